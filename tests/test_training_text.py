"""The text side of the training code at tiny size: what the tower reads, how it reads it, and that it learns."""

import json
import random
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoTokenizer, SiglipTextModel

from stylemamba import SiglipEncoder
from stylemamba.pipeline.style_memory import StyleMemory

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "training"))

import train_text_tower as training  # noqa: E402
from style_corpus import SLOT, StyleCorpus, Wording, held_out_strings, read_vocabulary  # noqa: E402
from tiny_teachers import sentence_encoder  # noqa: E402

VOCABULARY = {
    "wording": ["in the style of {style}", "{style} look"],
    "wording_with_subject": ["a {subject} in {style}", "{style} of a {subject}"],
    "style": ["{colour} {medium}", "{medium}", "{caption}"],
    "colour": ["red", "blue", "green", "golden"],
    "medium": ["woodcut", "fresco", "oil painting", "mosaic", "stained glass"],
    "subject": ["cat", "house"],
    "sentence": ["think of {style} again", "cut from {medium}", "a {colour} {subject}"],
}


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def wordings():
    return StyleCorpus(VOCABULARY, ["soft light on water"]).wordings(20, 3)


@pytest.fixture
def tokenizer(wordings):
    return training.train_tokenizer([w.text for w in wordings], 1600, length=16)


def new_tower(tokenizer, layers=2, width=32):
    return training.new_tower(tokenizer, F.normalize(torch.randn(len(tokenizer), width), dim=-1), layers)


class TestCorpus:
    def test_every_slot_of_the_committed_vocabulary_is_a_list(self):
        vocabulary = read_vocabulary()
        slots = {slot for entries in vocabulary.values() for entry in entries for slot in SLOT.findall(entry)}
        assert slots <= {*vocabulary, "caption", "word"}
        assert all("{style}" in t for t in vocabulary["wording"] + vocabulary["wording_with_subject"])

    def test_a_seed_repeats_and_a_longer_corpus_begins_with_the_shorter(self):
        corpus = StyleCorpus(read_vocabulary(), ["soft light on water"], ["tornado"])
        few = corpus.wordings(50, 2, seed=3)
        assert corpus.wordings(100, 2, seed=3)[: len(few)] == few
        assert corpus.wordings(50, 2, seed=4) != few

    def test_all_texts_are_distinct_name_their_style_and_leave_no_slot_open(self):
        result = StyleCorpus(read_vocabulary(), ["soft light on water"], ["tornado"]).wordings(500, 2)
        assert len({w.text.casefold() for w in result}) == len(result) > 1400
        assert all(w.style in w.text and "{" not in w.text for w in result)
        assert any("soft light on water" in w.text for w in result)
        assert any("tornado" in w.text for w in result)

    def test_held_out_texts_are_never_written_and_held_out_styles_not_inside_others(self):
        held_out = {"Soft light on water", "red woodcut", "a cat in fresco"}
        corpus = StyleCorpus(VOCABULARY, ["soft light on water", "thick paint"], held_out=held_out)
        texts = [w.text for w in corpus.wordings(20, 8)]
        assert "red woodcut" in {w.text for w in StyleCorpus(VOCABULARY).wordings(20, 8)}
        assert not {text.casefold() for text in held_out} & {text.casefold() for text in texts}
        assert not any("soft light" in text or "red woodcut" in text for text in texts)
        assert any("thick paint" in text for text in texts)

    def test_a_sentence_stands_for_what_fills_its_only_slot_or_else_for_itself(self):
        corpus = StyleCorpus(VOCABULARY, ["thick paint"], held_out={"cut from fresco", "red woodcut"})
        result = corpus.sentences(20)
        assert corpus.sentences(20) == result and len({w.text for w in result}) == 20
        styles = {w.text: w.style for w in result}
        assert styles["cut from mosaic"] == "mosaic" and styles["a red cat"] == "a red cat"
        assert not {"cut from fresco", "think of red woodcut again"} & set(styles)

    def test_held_out_files_hold_out_their_strings_but_not_the_labels_of_rows(self, tmp_path):
        first, second = tmp_path / "a.json", tmp_path / "b.json"
        first.write_text(json.dumps({"photos": ["a.webp"], "captions": ["starry night style"]}))
        second.write_text(json.dumps([{"label": "monet", "kind": "artist", "prompt": "Monet at noon"}]))
        held_out = held_out_strings(first, second, tmp_path / "missing.json")
        assert held_out == {"a.webp", "starry night style", "Monet at noon"}


class TestSpace:
    def test_forgets_what_varies_within_a_style_and_the_mean(self):
        styles, subjects = torch.randn(60, 1, 24), torch.randn(1, 5, 24)
        subjects[..., :18] = 0  # subjects lie in a few directions
        sentences = F.normalize(styles + 2 * subjects + 3, dim=-1)  # the 3: what all prompts share
        wordings = [Wording(f"{i} {j}", str(i)) for i in range(60) for j in range(5)]
        space = training.Space.fit(wordings, sentences.flatten(0, 1), width=12)

        def same_and_different(vectors):
            cosines = torch.einsum("ije,kle->ikjl", vectors, vectors)
            return cosines[range(60), range(60)].mean(), cosines.mean()

        before, after = (
            same_and_different(v) for v in (sentences, space(sentences.flatten(0, 1)).view(60, 5, 12))
        )
        assert before[1] > 0.7 and after[1].abs() < 0.05
        assert after[0] - after[1] > 0.6 > before[0] - before[1]

    def test_of_another_tower_is_found_from_sentences_that_both_have_read(self):
        sentences, other = torch.randn(400, 24) + 3, torch.randn(24, 12)
        embeds = F.normalize((sentences - 3) @ other, dim=-1)
        space = training.Space.like(sentences[:300], embeds[:300])
        assert (space(sentences[300:]) * embeds[300:]).sum(-1).mean() > 0.98
        assert (space(sentences[300:]) * embeds[300:].roll(1, 0)).sum(-1).mean().abs() < 0.2

    def test_survives_the_disk(self, tmp_path):
        space = training.Space(torch.randn(8), torch.randn(8, 4))
        space.save(tmp_path / "space.safetensors")
        sentences = torch.randn(3, 8)
        loaded = training.Space.load(tmp_path / "space.safetensors")(sentences)
        assert torch.equal(loaded, space(sentences))
        torch.testing.assert_close(loaded.norm(dim=-1), torch.ones(3))


class TestTokenizer:
    def test_reads_as_the_encoder_of_the_package_does(self, tokenizer, tmp_path):
        tokenizer.save_pretrained(tmp_path)
        texts = ["Stained glass", "", "a cat in " + "golden " * 30]
        ids = SiglipEncoder(new_tower(tokenizer), AutoTokenizer.from_pretrained(tmp_path)).tokenize(texts)
        assert torch.equal(ids, training.token_ids(tokenizer, texts)) and ids.shape == (3, 16)
        assert ids[1].eq(tokenizer.pad_token_id).all() and ids[0, -1] == tokenizer.pad_token_id

    def test_any_latin_word_can_be_read_and_nothing_else_crashes(self, tokenizer):
        text = "Zyxwvut quaffjord, Château-Ñandú (42%)!"
        assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]
        assert (
            "".join(tokenizer.decode(tokenizer(text)["input_ids"]).split())
            == "zyxwvutquaffjord,chateau-nandu(42%)!"
        )
        encoder = SiglipEncoder(new_tower(tokenizer), tokenizer)
        assert encoder.embed_texts(["пейзаж 🎨 浮世絵"]).isfinite().all()


class TestTower:
    @torch.no_grad()
    def test_the_short_way_to_the_last_position_gives_what_the_tower_gives(self, tokenizer):
        tower = new_tower(tokenizer, layers=3)
        ids = training.token_ids(tokenizer, ["stained glass", "a cat in red woodcut"])
        # At the start the layers before the last do nothing.
        torch.testing.assert_close(
            training.last_position(tower, ids, whole=False), tower(input_ids=ids).pooler_output
        )
        for weights in tower.parameters():
            weights.add_(0.1 * torch.randn_like(weights))
        expected = tower(input_ids=ids).pooler_output
        torch.testing.assert_close(training.last_position(tower, ids), expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(training.last_position(tower, ids, whole=False), expected, atol=0.01)

    def test_learns_and_a_stopped_run_goes_on_from_where_it_was(self, wordings, tokenizer, tmp_path):
        words = {word: torch.randn(32) for w in wordings for word in w.text.split()}
        vectors = {w.text: F.normalize(sum(words[x] for x in w.text.split()), dim=-1) for w in wordings}
        rows = training.lesson(wordings, vectors, certain=3)
        tower = new_tower(tokenizer)
        losses = training.train(
            tower, tokenizer, rows, tmp_path, minutes=60, lr=3e-3, batch=16, max_steps=150
        )
        assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
        saved = SiglipTextModel.from_pretrained(tmp_path / "tower" / "text_encoder", dtype=torch.float32)
        cosines = (training.embed_texts(saved, tokenizer, rows.texts) * rows.targets).sum(-1)
        assert cosines.mean() > 0.5
        assert saved.config.max_position_embeddings == 16
        resumed = training.train(
            new_tower(tokenizer), tokenizer, rows, tmp_path, minutes=60, batch=16, max_steps=5
        )
        assert sum(resumed) < 0.6 * sum(losses[:5])
        assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 155

    def test_spoken_texts_find_their_label_among_all(self, tokenizer, tmp_path):
        places = F.normalize(torch.randn(4, 32), dim=-1)
        texts = ["red woodcut", "golden fresco", "blue mosaic", "green stained glass"]
        spoken = training.Spoken(texts, [2, 0, 3, 1], places)
        rows = training.Lesson(["oil painting"], places[:1])
        tower = new_tower(tokenizer)
        training.train(
            tower, tokenizer, rows, tmp_path, minutes=60, lr=3e-3, batch=8, spoken=spoken, max_steps=80
        )
        likeness = training.embed_texts(tower, tokenizer, texts) @ places.T
        assert likeness.argmax(1).tolist() == [2, 0, 3, 1]

    def test_a_batch_of_spoken_texts_gives_each_its_label_and_joins_some_of_one_label(self):
        texts, labels = ["one two", "three four", "five six"], [0, 1, 1]
        spoken = training.Spoken(texts, labels, torch.eye(2))
        drawn, numbers = spoken.batch(300, random.Random(0))
        of_label = [{"one", "two"}, {"three", "four", "five", "six"}]
        for text, number in zip(drawn, numbers.tolist(), strict=True):
            assert set(text.replace(",", "").split()) <= of_label[number]
        assert sum("," in text for text in drawn) > 20 and set(numbers.tolist()) == {0, 1}
        # -log softmax of (1, 0) / T, with a tenth of the likelihood spread over the two
        p = torch.tensor([1.0, 0.0]) / training.TEMPERATURE
        right, wrong = -p.log_softmax(0)
        torch.testing.assert_close(
            spoken.loss(torch.tensor([[1.0, 0.0]]), torch.tensor([0])), 0.95 * right + 0.05 * wrong
        )

    def test_a_wording_belongs_half_way_to_its_style_alone(self):
        vectors = {"a cat in mosaic": torch.tensor([0.0, 1.0]), "mosaic": torch.tensor([1.0, 0.0])}
        rows = training.lesson([Wording("mosaic", "mosaic"), Wording("a cat in mosaic", "mosaic")], vectors)
        torch.testing.assert_close(rows.targets, torch.tensor([[1.0, 0.0], [0.5**0.5, 0.5**0.5]]))

    def test_perturbed_texts_keep_their_words(self):
        text, rng = "a cat, in the style of stained glass", random.Random(0)
        texts = {training.perturbed(text, rng) for _ in range(200)}
        assert text in texts and len(texts) > 10
        assert all(set(t.replace(",", "").split()) <= set(text.replace(",", "").split()) for t in texts)


def test_a_bare_name_belongs_to_the_label_that_is_the_bare_name():
    labels = ["van gogh", "van gogh drawing", "van eyck"]
    texts = ["in the style of Vincent van Gogh", "a drawing by Van Gogh", "reed pen with dots"]
    assert training.without_bare_names(texts, "van gogh drawing", labels) == texts[1:]
    assert training.without_bare_names(texts, "van gogh", labels) == texts
    assert training.without_bare_names(texts, "van gogh drawing", labels[1:]) == texts


def test_neighbours_and_popular_prompts_are_of_styles_that_there_are():
    read = [
        file.read_text(encoding="utf-8")
        for file in (training.DESCRIPTIONS, training.NEIGHBOURS, training.POPULAR)
    ]
    described, neighbours, popular = map(json.loads, read)
    assert set(neighbours) <= set(described)
    assert {label for accepted in popular.values() for label in accepted} <= set(described) and all(
        popular.values()
    )
    texts = [text.casefold() for own in neighbours.values() for text in own]
    assert len(texts) == len(set(texts))  # one style each
    assert not set(texts) & {prompt.casefold() for prompt in popular}


@pytest.fixture
def data(tmp_path):
    """A manifest of two styles and a photo, and a file of what is held out."""
    rows = [
        {"kind": "style", "label": "monet", "captions": ["water lilies", "soft light on water"]},
        {"kind": "style", "label": "mosaic", "captions": ["small stones", "tiles in cement"]},
        {"kind": "content", "label": "cat", "captions": ["a photo of a cat"]},
    ]
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "manifest.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "held_out.json").write_text(json.dumps({"captions": ["water lilies"]}))
    return folder


def run(monkeypatch, data, out, *more):
    encoder = sentence_encoder(out.parent / "bert")
    monkeypatch.setattr(
        sys, "argv",
        ["train_text_tower.py", str(data), str(out), "--sentence-encoder", str(encoder), "--minutes", "0.02", "--styles", "60",
         "--sentences", "20", "--space-styles", "200", "--tokens", "1600", "--batch", "8", "--held-out",
         str(data / "held_out.json"), *more],
    )  # fmt: skip
    training.main()


def test_one_command_writes_the_space_the_captions_and_a_tower_that_the_package_reads(
    tmp_path, data, monkeypatch, capsys
):
    out = tmp_path / "out"
    run(monkeypatch, data, out)
    captions = torch.load(out / "captions.pt", weights_only=True)
    assert {"monet", "mosaic", "water lilies", "a photo of a cat"} <= set(captions)
    torch.testing.assert_close(captions["water lilies"].norm(), torch.tensor(1.0))
    assert captions["monet"].shape == (training.WIDTH,)
    assert load_file(out / "space.safetensors")["projection"].shape == (256, training.WIDTH)
    tower = SiglipTextModel.from_pretrained(out / "tower" / "text_encoder")
    assert tower.dtype == torch.float16
    encoder = SiglipEncoder(tower.float(), AutoTokenizer.from_pretrained(out / "tower" / "tokenizer"))
    assert encoder.embed_texts(["a cat in stained glass"]).shape == (1, training.WIDTH)
    assert "1 held-out texts" in capsys.readouterr().out


def test_another_tower_goes_on_in_the_space_and_with_the_styles_of_a_pipeline(tmp_path, data, monkeypatch):
    run(monkeypatch, data, tmp_path / "first")
    tower = tmp_path / "first" / "tower"
    styles = F.normalize(torch.randn(2, training.WIDTH), dim=-1)
    StyleMemory.of(styles).save_pretrained(tower / "style_memory")
    files = {
        "NEIGHBOURS": {"monet": ["frederic bazille", "Lily Pond"], "no label here": ["x"]},
        "POPULAR": {"lily pond": ["monet"]},
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
        monkeypatch.setattr(training, name, tmp_path / name)
    seen = {}
    monkeypatch.setattr(training, "train", lambda *args, spoken, **options: seen.update(spoken=spoken))
    run(monkeypatch, data, tmp_path / "second", "--start", str(tower))
    torch.testing.assert_close(seen["spoken"].places, styles)
    assert seen["spoken"].labels[seen["spoken"].texts.index("tiles in cement")] == 1
    assert not {"water lilies", "Lily Pond", "x"} & set(
        seen["spoken"].texts
    )  # kept for the evaluation, or of nobody
    assert seen["spoken"].labels[seen["spoken"].texts.index("frederic bazille")] == 0
    # Its space is the one where sentences have the places that the package, with the first tower, gives them.
    reader = AutoTokenizer.from_pretrained(tower / "tokenizer")
    encoder = SiglipEncoder(
        SiglipTextModel.from_pretrained(tower / "text_encoder", dtype=torch.float32), reader
    )
    sentences = training.SentenceEncoder(tmp_path / "bert")
    texts = [w.text for w in StyleCorpus(read_vocabulary(), words=sentences.words()).wordings(200, 3)]
    expected = training.Space.like(sentences.embed(texts).half().float(), encoder.embed_texts(texts))
    got = training.Space.load(tmp_path / "second" / "space.safetensors")
    torch.testing.assert_close(got.projection, expected.projection, rtol=1e-2, atol=1e-2)


def test_a_blend_keeps_more_of_the_words_that_the_earlier_tower_knew(tokenizer):
    towers = [new_tower(tokenizer) for _ in range(2)]
    tower, before = ({name: w.clone() for name, w in t.state_dict().items()} for t in towers)
    read = torch.zeros(len(tokenizer), dtype=torch.long)
    read[:3] = torch.tensor([training.OFTEN, training.OFTEN - 1, 100])
    training.blend(*towers, read, keep=0.25, keep_words=0.5)
    for name, found in towers[0].state_dict().items():
        wanted = 0.75 * tower[name] + 0.25 * before[name]
        if name.endswith("token_embedding.weight"):
            wanted = tower[name].clone()
            wanted[[0, 2]] = (tower[name][[0, 2]] + before[name][[0, 2]]) / 2
        torch.testing.assert_close(found, wanted)
    for name, found in towers[1].state_dict().items():
        assert torch.equal(found, before[name])
