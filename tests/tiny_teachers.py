"""What the training learns from, at tiny size and with random weights, in the files that the real ones come in."""

import json
from pathlib import Path

import torch
from PIL import Image
from style_corpus import read_vocabulary
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast


def shift_tolerant_vgg16(file: Path, widths: tuple[int, ...] = (8, 8, 8, 8, 8)) -> Path:
    """As `vgg_shift_tolerant.pth` of stlpips-pytorch."""
    width, state = 3, {}
    for name, value in (("shift", 0.0), ("scale", 1.0)):
        state[f"scaling_layer.{name}"] = torch.full((1, 3, 1, 1), value)
    for stage, (channels, count) in enumerate(zip(widths, (2, 2, 3, 3, 3), strict=True), 1):
        state[f"lin{stage - 1}.model.1.weight"] = torch.rand(1, channels, 1, 1)
        if stage > 1:
            state[f"net.slice{stage}.0.filt"] = torch.full((width, 1, 5, 5), 1 / 25)
        for position in range(1, count + 1):
            weight = torch.randn(channels, width, 3, 3) * (2 / 9 / width) ** 0.5
            state[f"net.slice{stage}.{position}.weight"] = weight
            state[f"net.slice{stage}.{position}.bias"] = torch.zeros(channels)
            width = channels
    torch.save(state, file)
    return file


def sentence_encoder(folder: Path) -> Path:
    """A BERT, which still gives different sentences different vectors."""
    words = {w for entries in read_vocabulary().values() for entry in entries for w in entry.lower().split()}
    ids = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(ids), hidden_size=256, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(folder)
    return folder


def picture_set(data: Path, files: list[tuple[str, str, str]]) -> list[dict]:
    """Pictures of noise, those of a label alike, and the manifest: (file, kind, label) -> its rows."""
    rows, labels = [], sorted({label for _, _, label in files})
    for number, (file, kind, label) in enumerate(files):
        path = data / file
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.rand(200, 200, 3, generator=torch.Generator().manual_seed(number))
        pixels = (pixels ** (1 + 3 * labels.index(label)) * 255).byte().numpy()
        Image.fromarray(pixels).save(path, **({"lossless": True} if path.suffix == ".webp" else {}))
        rows.append({"file": file, "kind": kind, "label": label, "captions": [f"a {label}"]})
        if kind == "eval":
            rows[-1]["role"] = "content" if label == "photo" else "style"
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (data / "manifest.jsonl").write_text(lines, encoding="utf-8")
    return rows
