"""The settings of a fit: the paper's schedules as printed, presets, and mistakes named before anything runs."""

import dataclasses
import json
from pathlib import Path

import pytest

from stylemamba import PromptFitConfig

VECTORS = json.loads((Path(__file__).parent / "vectors" / "loss_vectors.json").read_text())["cases"]


def test_schedules_are_those_of_the_paper():
    (case,) = (case for case in VECTORS if case["id"] == "stylemamba.schedule")
    config, wanted = PromptFitConfig(), case["expected"]
    assert [config.content_weight(epoch) for epoch in range(20)] == wanted["content_weight"]
    assert [config.learning_rate(epoch) for epoch in range(20)] == wanted["lr"]
    assert config.second_order_epochs() == wanted["so_epochs"]
    snapshots = {str(epoch): config.snapshot_of(epoch) for epoch in config.second_order_epochs()}
    assert snapshots == wanted["so_snapshot_of"]


def test_defaults_are_those_of_the_contract():
    config = PromptFitConfig()
    wanted = {
        "epochs": 20, "steps_per_epoch": 1, "lr": 5e-4, "halve_at": 10, "content_weights": (9000, 150),
        "content_switch": 5, "style_weight": 500, "theta": 0.8, "alpha": 1.0, "beta": 2.0, "second_order_every": 5,
        "mask_ratio": 0.5, "mask_patch": 16, "train": "fusion+decoder", "source_prompt": "a plain photo",
        "preset": "paper", "masked_variant": "directional", "second_order_variant": "aligned", "patch_crops": 0,
    }  # fmt: skip
    assert {name: getattr(config, name) for name in wanted} == wanted


def test_steps_are_epochs_times_steps_per_epoch():
    assert PromptFitConfig().steps == 20
    assert PromptFitConfig(epochs=3, steps_per_epoch=7).steps == 21


@pytest.mark.parametrize(
    ("epochs", "every", "wanted"), [(5, 5, []), (6, 5, [5]), (10, 3, [3, 6, 9]), (3, 1, [1, 2])]
)
def test_the_second_order_loss_needs_an_earlier_snapshot(epochs, every, wanted):
    config = PromptFitConfig(epochs=epochs, second_order_every=every)
    assert config.second_order_epochs() == wanted
    assert all(config.snapshot_of(epoch) % every == 0 <= config.snapshot_of(epoch) for epoch in wanted)


def test_a_preset_fills_in_only_what_was_left_open():
    quality = PromptFitConfig(preset="quality")
    assert (quality.steps_per_epoch, quality.patch_crops, quality.masked_variant) == (10, 16, "same_mask")
    assert quality.tv_weight > 0 == PromptFitConfig().tv_weight
    assert PromptFitConfig(preset="fast").image_size < PromptFitConfig().image_size == 512
    sharpen = PromptFitConfig(preset="sharpen")
    assert len(set(sharpen.content_weights)) == 1  # no return to the photo before the style
    assert sharpen.content_weights[0] < PromptFitConfig().content_weights[1]
    assert sharpen.patch_crops > 0 and sharpen.patch_weight < PromptFitConfig().patch_weight
    assert (PromptFitConfig(preset="sharpen", lr=1.0).lr, sharpen.epochs) == (1.0, 20)
    chosen = PromptFitConfig(preset="quality", patch_crops=0, steps_per_epoch=2)
    assert (chosen.patch_crops, chosen.steps_per_epoch, chosen.masked_variant) == (0, 2, "same_mask")


def test_it_cannot_be_changed_and_can_be_a_key():
    config = PromptFitConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.lr = 1.0
    assert len({config, PromptFitConfig(), PromptFitConfig(lr=1.0)}) == 2


@pytest.mark.parametrize(
    "config",
    [
        PromptFitConfig(),
        PromptFitConfig(preset="quality", templates=("{}", "a photo of {}"), content_weights=(1, 2)),
    ],
    ids=["default", "changed"],
)
def test_json_gives_the_same_config_back(config):
    assert PromptFitConfig(**json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"preset": "best"}, "preset is 'best', wanted one of paper, quality, fast"),
        ({"train": "decoder"}, r"train is 'decoder', wanted one of fusion\+decoder, fusion, decoder_lora"),
        ({"masked_variant": "x"}, "masked_variant is 'x', wanted one of directional, same_mask, ratio"),
        (
            {"second_order_variant": "x"},
            "second_order_variant is 'x', wanted one of aligned, ratio, elementwise",
        ),
        ({"content_variant": "sse"}, "content_variant is 'sse', wanted one of clipstyler, normalised"),
        ({"epochs": 0}, "epochs is 0, wanted a whole number from 1 on"),
        ({"epochs": 2.5}, "epochs is 2.5, wanted a whole number"),
        ({"steps_per_epoch": 0}, "steps_per_epoch is 0, wanted a whole number from 1 on"),
        ({"second_order_every": 0}, "second_order_every is 0"),
        ({"mask_patch": 0}, "mask_patch is 0"),
        ({"lora_rank": 0}, "lora_rank is 0"),
        ({"image_size": 8}, "image_size is 8, wanted a whole number from 16 on"),
        ({"patch_crops": -1}, "patch_crops is -1, wanted a whole number from 0 on"),
        ({"mask_ratio": 1.5}, "mask_ratio is 1.5, wanted a share from 0 to 1"),
        ({"lr": -1e-4}, "lr is -0.0001, wanted a number from 0 on"),
        ({"lr": float("nan")}, "lr is nan, wanted a number from 0 on"),
        ({"lr": "fast"}, "lr is 'fast', wanted a number from 0 on"),
        ({"style_weight": float("inf")}, "style_weight is inf"),
        ({"content_weights": (9000,)}, r"content_weights are \(9000,\), wanted two numbers"),
        ({"content_weights": (9000, -1)}, r"content_weights are \(9000, -1\), wanted two numbers"),
        ({"templates": ()}, r"templates are \(\), wanted sentences with a {}"),
        ({"templates": ("a photo",)}, "wanted sentences with a {} where the prompt goes"),
    ],
    ids=str,
)
def test_settings_that_make_no_fit_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        PromptFitConfig(**options)
