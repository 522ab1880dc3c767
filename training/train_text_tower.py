"""Trains the text tower of the bundled model, and the space it shares with pictures.

    python training/train_text_tower.py DATA OUT --sentence-encoder all-MiniLM-L6-v2 --minutes 15

The space is a linear map of a sentence encoder's vectors that keeps what names a style and lets go of how it is worded
and of the subject. The tower, a small SigLIP text model with its own tokenizer, learns to put wordings of styles
(style_corpus.py) where the sentence encoder and the map put them, and what people say who mean a style without naming it
(style_descriptions.json), or something that looks like it (style_neighbours.json), where the style is, nearer to it than to any
other. The sentence encoder is not needed afterwards.

With --start PIPELINE the tower of a pipeline that pictures were trained with is replaced: its space and the styles of its memory
stay where they are, and other words find them.

OUT gets, in this order: space.safetensors (`mean` and `projection`), captions.pt (every caption and label of DATA's
manifest with its vector), sentences/ (a cache), and tower/ with text_encoder/ and tokenizer/. Runs again from
OUT/state.pt if it is there.
"""

import argparse
import copy
import hashlib
import json
import random
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import style_wordings
import torch
import torch.nn.functional as F
from manifest import read_manifest
from safetensors.torch import load_file, save_file
from style_corpus import StyleCorpus, Wording, held_out_strings, read_vocabulary
from timed_run import TimedRun, add_run_options
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    AutoModel,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    SiglipTextConfig,
    SiglipTextModel,
)

from stylemamba.pipeline.style_memory import StyleMemory

REPOSITORY = Path(__file__).parent.parent
WIDTH = 192  # of the space, and of the tower
TEMPERATURE = 0.05  # of the cosines to all styles: wider than in `StyleMemory`, so that a label wins clearly
LABEL_WEIGHT = 0.2  # of the likelihood of a text's label, beside `distance`
LENGTH = 32  # tokens a prompt may have
OFTEN = 6  # times that a word piece must have been read, to be known; for `--keep-words`
# label -> texts, the last two of each for the report
DESCRIPTIONS = REPOSITORY / "training" / "style_descriptions.json"
# label -> names of artists, movements, techniques, things and moods that are no label, and look most like this one
NEIGHBOURS = REPOSITORY / "training" / "style_neighbours.json"
POPULAR = (
    REPOSITORY / "benchmarks" / "popular_prompts.json"
)  # of benchmarks/words.py: no neighbour is worded so


class SentenceEncoder:
    """A BERT whose sentence vector is the mean over its tokens, at unit length."""

    def __init__(self, folder: Path, bfloat16: bool = False, device: str | torch.device = "cpu") -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        # Three times as fast on a CPU that has it, at a cosine of 0.9999 to float32, and slower on others.
        dtype = torch.bfloat16 if bfloat16 else torch.float32
        self.model = AutoModel.from_pretrained(folder, dtype=dtype).eval().to(device)

    def words(self) -> list[str]:
        """The whole words it knows."""
        return sorted(w for w in self.tokenizer.get_vocab() if w.isascii() and w.isalpha() and len(w) > 3)

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], batch: int = 64) -> Tensor:
        """-> (N, D)"""
        vectors = torch.zeros(len(texts), self.model.config.hidden_size)
        by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding
        for begin in range(0, len(texts), batch):
            chosen = by_length[begin : begin + batch]
            inputs = self.tokenizer(
                [texts[i] for i in chosen],
                padding=True,
                truncation=True,
                return_tensors="pt",
            ).to(self.model.device)
            mask = inputs["attention_mask"][..., None]
            hidden = self.model(**inputs).last_hidden_state.float()
            vectors[chosen] = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).cpu()
        return vectors

    def embed_cached(self, texts: Sequence[str], folder: Path, shard: int = 8192) -> Tensor:
        """`embed` in pieces that are kept in `folder`: an interrupted run embeds only what is missing."""
        folder.mkdir(parents=True, exist_ok=True)
        shards = []
        for begin in range(0, len(texts), shard):
            part = texts[begin : begin + shard]
            file = folder / f"{hashlib.sha256(chr(10).join(part).encode()).hexdigest()[:16]}.npy"
            if not file.exists():
                unfinished = file.with_suffix(".unfinished.npy")
                np.save(unfinished, self.embed(part).half().numpy())
                unfinished.replace(file)
            shards.append(torch.from_numpy(np.load(file)).float())
        return torch.cat(shards)


class Space:
    """The linear map of sentence vectors (N, D) to unit vectors of the common space (N, E)."""

    def __init__(self, mean: Tensor, projection: Tensor) -> None:
        self.mean, self.projection = mean, projection

    def __call__(self, sentences: Tensor) -> Tensor:
        return F.normalize((sentences - self.mean) @ self.projection, dim=-1)

    @classmethod
    def fit(cls, wordings: Sequence[Wording], sentences: Tensor, width: int = WIDTH) -> "Space":
        """A softened linear discriminant: what varies between wordings of one style shrinks, what varies most between
        styles stays. The mean, what all prompts have in common, goes.

        The full discriminant (a power of 1/2, not 1/4) forgets subjects still better and meanings as well.
        """
        index: dict[str, int] = {}
        style = torch.tensor([index.setdefault(wording.style, len(index)) for wording in wordings])
        mean = sentences.mean(0)
        centres = torch.zeros(len(index), sentences.shape[1]).index_add_(0, style, sentences)
        centres /= style.bincount()[:, None]
        within, between = torch.cov((sentences - centres[style]).T), torch.cov(centres.T)
        values, vectors = torch.linalg.eigh(within)
        shrink = vectors * (values + 0.5 * values.mean()) ** -0.25 @ vectors.T
        _, directions = torch.linalg.eigh(shrink @ between @ shrink)  # ascending
        return cls(mean, shrink @ directions[:, -width:])

    @classmethod
    def like(cls, sentences: Tensor, embeds: Tensor) -> "Space":
        """The space where these sentences (N, D) have these embeddings (N, E), as nearly as a linear map can put them."""
        mean = sentences.mean(0)
        centred = sentences - mean
        ridge = 1e-3 * centred.square().sum(0).mean() * torch.eye(centred.shape[1])
        return cls(mean, torch.linalg.solve(centred.T @ centred + ridge, centred.T @ embeds))

    @classmethod
    def load(cls, file: Path) -> "Space":
        return cls(**load_file(file))

    def save(self, file: Path) -> None:
        save_file({"mean": self.mean, "projection": self.projection.contiguous()}, file)


def train_tokenizer(texts: Iterable[str], size: int, length: int = LENGTH) -> PreTrainedTokenizerFast:
    """Lower-case word pieces without accents. Every Latin word can be read, if need be letter by letter."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    alphabet = [a + b for a in letters for b in letters] + list("!\"#$%&'()*+,-./:;<=>?@[]^_`{|}~")
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=["<pad>", "<unk>"], show_progress=False, min_frequency=2
    )
    tokenizer.train_from_iterator([*alphabet, *texts], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=length,
        model_input_names=["input_ids"],
    )


def new_tower(tokenizer: PreTrainedTokenizerFast, token_vectors: Tensor, layers: int = 2) -> SiglipTextModel:
    """A tower that begins as a bag of words: its last position sees the mean of the tokens' own vectors.

    The layers before the last do nothing yet. From a random start most of a CPU budget goes into learning what words
    mean.
    """
    width = token_vectors.shape[1]
    config = SiglipTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=8 * width // 3,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        projection_size=width,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=None,
    )
    tower = SiglipTextModel(config)
    with torch.no_grad():
        embeddings = tower.embeddings
        embeddings.token_embedding.weight.copy_(token_vectors)
        embeddings.token_embedding.weight[tokenizer.pad_token_id].normal_(std=0.05)
        embeddings.position_embedding.weight.normal_(std=0.01)
        for layer in tower.encoder.layers:
            layer.self_attn.out_proj.weight.zero_()
            layer.mlp.fc2.weight.zero_()
            layer.mlp.fc2.bias.zero_()
        last = tower.encoder.layers[-1].self_attn
        for linear in (last.v_proj, last.out_proj, tower.head):
            linear.weight.copy_(torch.eye(width))
        for linear in (last.q_proj, last.k_proj):
            linear.weight.mul_(0.1)
    return tower


def token_ids(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Tensor:
    """As `SiglipEncoder.tokenize` does it."""
    batch = tokenizer(
        list(texts),
        padding="max_length",
        padding_side="right",
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
    )
    return batch["input_ids"]


def last_position(tower: SiglipTextModel, ids: Tensor, whole: bool = True) -> Tensor:
    """What `tower(input_ids=ids).pooler_output` gives, (N, E), without what its last layer computes for the other
    positions; if not `whole`, without the layers before the last, as they are while they do nothing."""
    *layers, last = tower.encoder.layers
    hidden = tower.embeddings(ids)  # (N, T, E)
    for layer in layers if whole else ():
        hidden = layer(hidden, attention_mask=None)
    attention, normed, pooled = last.self_attn, last.layer_norm1(hidden), hidden[:, -1:]
    query, key, value = (
        linear(x).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)  # (N, H, T, E / H)
        for linear, x in (
            (attention.q_proj, normed[:, -1:]),
            (attention.k_proj, normed),
            (attention.v_proj, normed),
        )
    )
    seen = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    pooled = pooled + attention.out_proj(seen)
    pooled = pooled + last.mlp(last.layer_norm2(pooled))
    return tower.head(tower.final_layer_norm(pooled[:, 0]))


@torch.no_grad()
def blend(
    tower: SiglipTextModel, before: SiglipTextModel, read: Tensor, keep: float, keep_words: float
) -> None:
    """Puts a share of an earlier tower into this one, `keep_words` for the vectors of word pieces that it had read at least
    `OFTEN` times, `keep` for all else; read: how often, (V,). What a longer training has learnt by heart goes, in part."""
    earlier = before.state_dict()
    for name, weight in tower.state_dict().items():
        if name.endswith("token_embedding.weight"):
            share = torch.where(read >= OFTEN, keep_words, 0.0)[:, None].to(weight)
            weight.lerp_(earlier[name].to(weight), share)
        else:
            weight.lerp_(earlier[name].to(weight), keep)


@torch.no_grad()
def embed_texts(tower: SiglipTextModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Tensor:
    parts = [
        tower(input_ids=token_ids(tokenizer, texts[i : i + 256]).to(tower.device)).pooler_output
        for i in range(0, len(texts), 256)
    ]
    return F.normalize(torch.cat(parts), dim=-1).cpu()


def perturbed(text: str, rng: random.Random) -> str:
    """Now and then in another order or without some of its words: a prompt is rarely worded as we would word it."""
    words = text.split()
    chance = rng.random()
    if chance < 0.1:
        rng.shuffle(words)
    elif chance < 0.2 and "," in text:
        parts = text.split(", ")
        rng.shuffle(parts)
        words = [", ".join(parts)]
    elif chance < 0.5 and len(words) > 3:
        for _ in range(rng.randint(1, len(words) // 3)):
            del words[rng.randrange(len(words))]
    return " ".join(words)


def distance(result: Tensor, target: Tensor) -> Tensor:
    """Of unit vectors (N, E): each to its own target, and all cosines among them."""
    return 1 - (result * target).sum(-1).mean() + 5 * F.mse_loss(result @ result.T, target @ target.T)


class Lesson:
    """Texts and where they belong (N, E); the first `certain` ones, which matter most, make up half of every batch."""

    def __init__(self, texts: list[str], targets: Tensor, certain: int = 0) -> None:
        self.texts, self.targets, self.certain = texts, targets, certain

    def batch(self, size: int, rng: random.Random) -> tuple[list[str], Tensor]:
        rows = [rng.randrange(self.certain) for _ in range(size // 2 if self.certain else 0)]
        rows += [rng.randrange(len(self.texts)) for _ in range(size - len(rows))]
        return [perturbed(self.texts[row], rng) for row in rows], self.targets[rows]


class Spoken:
    """Texts that mean a label, given as the number of its place among `places` (L, E)."""

    def __init__(self, texts: list[str], labels: list[int], places: Tensor) -> None:
        self.texts, self.labels, self.places = texts, labels, places
        self.of_label = [[] for _ in places]
        for text, label in zip(texts, labels, strict=True):
            self.of_label[label].append(text)

    def batch(self, size: int, rng: random.Random) -> tuple[list[str], Tensor]:
        """Now and then two texts of one label in a row: a prompt may be a list."""
        rows = [rng.randrange(len(self.texts)) for _ in range(size)]
        labels = [self.labels[row] for row in rows]
        texts = [self.texts[row] for row in rows]
        for i, label in enumerate(labels):
            if rng.random() < 0.15:
                texts[i] += ", " + rng.choice(self.of_label[label])
        return [perturbed(text, rng) for text in texts], torch.tensor(labels)

    def loss(self, result: Tensor, labels: Tensor) -> Tensor:
        """How unlikely the labels are, of unit vectors (N, E), if the nearest is the likeliest."""
        places, labels = self.places.to(result.device), labels.to(result.device)
        return F.cross_entropy(result @ places.T / TEMPERATURE, labels, label_smoothing=0.1)


def lesson(wordings: Sequence[Wording], vectors: dict[str, Tensor], certain: int = 0) -> Lesson:
    """A wording belongs half way between where the sentence encoder puts it and where it puts its style alone: the
    map cannot forget every subject, the tower can learn to."""
    targets = torch.stack([vectors[wording.text] + vectors[wording.style] for wording in wordings])
    return Lesson([wording.text for wording in wordings], F.normalize(targets, dim=-1), certain)


def train(
    tower: SiglipTextModel,
    tokenizer: PreTrainedTokenizerFast,
    rows: Lesson,
    out: Path,
    minutes: float,
    lr: float = 1e-3,
    batch: int = 128,
    seed: int = 0,
    bfloat16: bool = False,
    spoken: Spoken | None = None,
    held_out: Lesson | None = None,
    max_steps: int | None = None,
) -> list[float]:
    """Trains for the time that is left of `minutes`; -> the loss of every step of this run. `spoken` adds half a batch to each.

    The first third of the time goes to the words and the last layer alone: many cheap steps.
    """
    optimizer = torch.optim.AdamW(tower.parameters(), lr=lr, weight_decay=0.01, betas=(0.9, 0.98), fused=True)
    run = TimedRun(out / "state.pt", minutes, optimizer, warm_up=200, save_every=60)
    if run.kept:
        tower.load_state_dict(run.kept["tower"])

    def save() -> None:
        copy.deepcopy(tower).half().save_pretrained(out / "tower" / "text_encoder")
        run.save(tower=tower.state_dict())

    losses, whole = [], run.share > 1 / 3
    for step in run:
        if not whole and run.share > 1 / 3:
            whole = True
            run.warm_again()  # for the layers that join
        rng = random.Random(f"{seed} {step}")
        texts, targets = rows.batch(batch, rng)
        said, labels = spoken.batch(batch // 2, rng) if spoken else ([], None)
        ids, targets = (x.to(tower.device) for x in (token_ids(tokenizer, texts + said), targets))
        with torch.autocast(tower.device.type, torch.bfloat16, enabled=bfloat16):
            result = last_position(tower, ids, whole)
        result = F.normalize(result.float(), dim=-1)
        loss = distance(result[:batch], targets)
        if spoken:
            loss = loss + LABEL_WEIGHT * spoken.loss(result[batch:], labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tower.parameters(), 1)
        optimizer.step()
        losses.append(loss.item())
        run.log(loss=loss)
        if run.due():
            save()
            if held_out is not None:
                cosine = (embed_texts(tower, tokenizer, held_out.texts) * held_out.targets).sum(-1).mean()
                run.say(f"cosine of held-out texts {cosine:.4f}")
        if len(losses) == max_steps:
            break
    save()
    return losses


def nearest_label(captions: Tensor, labels: Sequence[int], prototypes: Tensor) -> tuple[float, float]:
    """-> the share of captions whose own label is the nearest of all, and among the nearest five."""
    cosines = captions @ prototypes.T
    own = cosines.gather(1, torch.tensor(labels)[:, None])
    rank = (cosines > own).sum(1)
    return (rank < 1).float().mean().item(), (rank < 5).float().mean().item()


def places_of(
    captions: dict[str, list[str]], held_out: set[str], vectors: dict[str, Tensor]
) -> dict[str, Tensor]:
    """label -> the middle of its name and its captions, (E,)."""
    return {
        label: F.normalize(
            vectors[label] + sum(vectors[text] for text in texts if text.casefold() not in held_out), dim=-1
        )
        for label, texts in captions.items()
    }


def report(
    tower: SiglipTextModel,
    tokenizer: PreTrainedTokenizerFast,
    asked: dict[str, list[str]],
    places: dict[str, Tensor],
    vectors: dict[str, Tensor],
) -> None:
    """How well texts that no training read find their label, by the tower and by what it learned from."""
    labels = list(places)
    pairs = [(labels.index(label), text) for label, texts in asked.items() for text in texts]
    if not pairs:
        return
    own, texts = zip(*pairs, strict=True)
    taught, learned = torch.stack([vectors[text] for text in texts]), embed_texts(tower, tokenizer, texts)
    print(f"{len(texts)} held-out texts, cosine {(taught * learned).sum(-1).mean():.4f}")
    for name, result in (("sentence encoder", taught), ("tower", learned)):
        first, five = nearest_label(result, own, torch.stack(list(places.values())))
        print(f"{name}: own label nearest {first:.1%}, in the nearest five {five:.1%} of {len(places)}")


def read_captions(data: Path) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """-> {label: captions} of styles, and the same of photographs."""
    styles: dict[str, list[str]] = {}
    photos: dict[str, list[str]] = {}
    for row in read_manifest(data):
        is_photo = row["kind"] == "content" or row.get("role") == "content"
        texts = (photos if is_photo else styles).setdefault(row["label"], [])
        texts += [caption for caption in row["captions"] if caption not in texts]
    return styles, photos


def without_bare_names(texts: Sequence[str], label: str, labels: Iterable[str]) -> list[str]:
    """What says only "van Gogh" means "van gogh", if that is a label, and not "van gogh drawing"."""
    shorter = next((other for other in labels if label.startswith(f"{other} ")), None)
    if shorter is None:
        return list(texts)
    more = label.removeprefix(shorter).split()
    lower = [text.casefold() for text in texts]
    return [
        t for t, low in zip(texts, lower, strict=True) if shorter not in low or any(w in low for w in more)
    ]


def trained_labels(data: Path) -> list[str]:
    """Those with artworks to train with, in the order of the memory's styles."""
    return list(dict.fromkeys(row["label"] for row in read_manifest(data, "style")))


def read_descriptions(
    labels: Iterable[str], reserved: set[str]
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """-> {label: descriptions to read}, and the two of each that are kept back for the report."""
    written = json.loads(DESCRIPTIONS.read_text(encoding="utf-8"))
    texts = {
        label: [text for text in written[label] if text.casefold() not in reserved]
        for label in labels
        if label in written
    }
    described = {label: own[:-2] for label, own in texts.items()}
    kept_back = {label: own[-2:] for label, own in texts.items()}
    return described, kept_back


def read_neighbours(labels: Iterable[str], reserved: set[str]) -> dict[str, list[str]]:
    """{label: what looks like it and is not among the labels}, without what the evaluation keeps for itself."""
    written = json.loads(NEIGHBOURS.read_text(encoding="utf-8"))
    return {
        label: [text for text in written.get(label, []) if text.casefold() not in reserved]
        for label in labels
    }


def space_of(wordings: Sequence[Wording], sentences: Tensor, start: Path | None) -> Space:
    """A new space, or the one of the pipeline `start`; sentences (N, D) are of the wordings."""
    if start is None:
        return Space.fit(wordings, sentences)
    tower = SiglipTextModel.from_pretrained(start / "text_encoder", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(start / "tokenizer")
    return Space.like(sentences, embed_texts(tower, tokenizer, [wording.text for wording in wordings]))


def spoken_of(
    places: dict[str, Tensor],
    described: dict[str, list[str]],
    neighbours: dict[str, list[str]],
    styles: dict[str, list[str]],
    corpus: StyleCorpus,
) -> Spoken:
    """All that is said of a label: its descriptions, what else looks like it, and twice its names and captions, which most
    prompts are like."""
    said = []
    for number, label in enumerate(places):
        named = style_wordings.wordings(label, corpus.allowed(styles[label]))
        named = corpus.allowed(without_bare_names(named, label, places))
        texts = [*described.get(label, []), *neighbours.get(label, []), *named, *named]
        said += [(text, number) for text in texts]
    return Spoken(*map(list, zip(*said, strict=True)), torch.stack(list(places.values())))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sentence-encoder", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--start", type=Path, help="a pipeline whose space and styles stay")
    parser.add_argument(
        "--keep", type=float, default=0.0, help="share of the tower of --start, with the same tokenizer"
    )
    parser.add_argument("--keep-words", type=float, default=0.0, help="the same, of the words it knew")
    parser.add_argument("--styles", type=int, default=50000, help="of the grammar, each in three wordings")
    parser.add_argument("--sentences", type=int, default=20000, help="of the grammar besides them")
    parser.add_argument("--space-styles", type=int, default=6000, help="that the space is fitted to")
    parser.add_argument("--tokens", type=int, default=20000)
    parser.add_argument(
        "--held-out",
        type=Path,
        nargs="*",
        default=[REPOSITORY / "training" / "held_out.json", REPOSITORY / "benchmarks" / "prompts.json"],
        help="JSON files whose strings no training sees",
    )
    add_run_options(parser, minutes=15, lr=1e-3, batch=128)
    args = parser.parse_args()
    if args.start is None and (args.keep or args.keep_words):
        parser.error("--keep and --keep-words mix in the tower of --start: give a pipeline there")

    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    cache = args.out / "sentences"
    sentences = SentenceEncoder(args.sentence_encoder, args.bfloat16, args.device)
    styles, photos = read_captions(args.data)
    held_out = held_out_strings(*args.held_out)
    reserved = {text.casefold() for text in held_out}

    # Pictures may already have been trained in a space that is there; it knows no captions, so it stays valid whatever is
    # held out.
    space_file = args.out / "space.safetensors"
    if not space_file.exists():
        grammar = StyleCorpus(read_vocabulary(), words=sentences.words())
        wordings = grammar.wordings(args.space_styles, 3, args.seed)
        space_of(wordings, sentences.embed_cached([w.text for w in wordings], cache), args.start).save(
            space_file
        )
    space = Space.load(space_file)
    known = dict.fromkeys(
        [*styles, *photos, *(c for texts in [*styles.values(), *photos.values()] for c in texts)]
    )
    vectors = dict(zip(known, space(sentences.embed(list(known))), strict=True))
    torch.save({text: vector.clone() for text, vector in vectors.items()}, args.out / "captions.pt")
    print(f"space and captions after {time.process_time():.0f} s", flush=True)

    if args.start is None:
        places = places_of(styles, reserved, vectors)
    else:
        memory = StyleMemory.from_pretrained(args.start / "style_memory").float()
        places = dict(zip(trained_labels(args.data), memory.styles, strict=True))
    described, kept_back = read_descriptions(places, reserved)
    # Labels are names that a prompt may well be, and are learned like captions.
    captions = [*styles, *(c for texts in styles.values() for c in texts)]
    corpus = StyleCorpus(read_vocabulary(), captions, sentences.words(), held_out)
    popular = {prompt.casefold() for prompt in json.loads(POPULAR.read_text(encoding="utf-8"))}
    neighbours = read_neighbours(places, reserved | popular)
    spoken = spoken_of(places, described, neighbours, styles, corpus)
    certain = [Wording(caption, caption) for caption in dict.fromkeys(corpus.allowed(captions))]
    certain += [Wording(c, "a photo") for texts in photos.values() for c in corpus.allowed(texts)]
    rows = [
        *certain,
        *corpus.wordings(args.styles, 2, args.seed),
        *corpus.sentences(args.sentences, args.seed),
    ]
    seen = {wording.text.casefold() for wording in rows}
    unseen = [w for w in corpus.wordings(1000, 2, args.seed + 1) if w.text.casefold() not in seen]
    texts = list(dict.fromkeys(text for w in [*rows, *unseen] for text in (w.text, w.style)))
    vectors |= dict(zip(texts, space(sentences.embed_cached(texts, cache)), strict=True))
    print(f"{len(texts)} texts embedded after {time.process_time():.0f} s", flush=True)

    tokenizer_folder = args.out / "tower" / "tokenizer"
    if tokenizer_folder.exists():  # the state to resume from was trained with it
        tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    else:
        read = [*(wording.text for wording in rows), *spoken.texts, *sentences.words()]
        tokenizer = train_tokenizer(read, args.tokens)
        tokenizer.save_pretrained(tokenizer_folder)
    pieces = [piece.removeprefix("##") for piece in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))]
    tower = new_tower(tokenizer, space(sentences.embed_cached(pieces, cache))).to(args.device)
    train(
        tower, tokenizer, lesson(rows, vectors, len(certain)), args.out, args.minutes, args.lr, args.batch, args.seed,
        args.bfloat16, spoken=spoken, held_out=lesson(unseen, vectors),
    )  # fmt: skip
    if args.keep or args.keep_words:
        before = SiglipTextModel.from_pretrained(args.start / "text_encoder", dtype=torch.float32)
        if AutoTokenizer.from_pretrained(args.start / "tokenizer").get_vocab() != tokenizer.get_vocab():
            parser.error(
                f"--keep wants the word pieces of {args.start}: copy its tokenizer to {tokenizer_folder} and begin anew"
            )
        known_by = [*styles, *(t for texts in described.values() for t in texts), *corpus.allowed(captions)]
        pieces_read = token_ids(tokenizer, known_by).flatten().bincount(minlength=len(tokenizer))
        blend(tower.cpu(), before, pieces_read, args.keep, args.keep_words)
        copy.deepcopy(tower).half().save_pretrained(args.out / "tower" / "text_encoder")
    asked = {
        label: [text for text in texts if text.casefold() in reserved] for label, texts in styles.items()
    }
    vectors |= {text: space(sentences.embed([text]))[0] for texts in kept_back.values() for text in texts}
    print("captions")
    report(tower, tokenizer, asked, places, vectors)
    print("descriptions")
    report(tower, tokenizer, kept_back, places, vectors)


if __name__ == "__main__":
    main()
