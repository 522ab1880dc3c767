"""Prompt-fit on tiny real components: it learns, repeats, resumes, stops in time, and leaves the pipeline alone."""

import copy
import functools
import logging
import math
import random
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from stylemamba import PromptFitConfig, Style, StyleFusion, StyleMambaPipeline
from stylemamba.pipeline.conditional_decoder import ConditionalDecoder
from stylemamba.pipeline.fit_checkpoint import load_checkpoint
from stylemamba.pipeline.images import read_images
from stylemamba.pipeline.prompt_fit import PromptFit

MODES = ("fusion+decoder", "fusion", "decoder_lora")
each_mode = pytest.mark.parametrize("train", MODES)
PROMPT = "stained glass"
SHORT = {
    "epochs": 4,
    "second_order_every": 2,
    "content_switch": 1,
    "halve_at": 3,
}  # every schedule takes part
PAPER_TERMS = {"total", "style", "dir", "dir_unguarded", "md", "so", "lpips", "vgg", "range"}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def fit(pipe, image, prompt=PROMPT, seed=0, callback=None, checkpoint=None, **options):
    return pipe.fit_style(
        image,
        prompt,
        config=PromptFitConfig(**options),
        generator=seeded(seed),
        callback=callback,
        checkpoint=checkpoint,
    )


def prepared(pipe, image, **options):
    """The fit itself, before its first step."""
    config = PromptFitConfig(**options)
    with torch.no_grad():
        embeds = [pipe.encode_prompt(text) for text in (PROMPT, config.source_prompt)]
    return PromptFit(pipe, read_images(image), PROMPT, *embeds, config, seed=0)


def tensors_of(style):
    """Every tensor of a style by one name."""
    found = {"prompt_embeds": style.prompt_embeds, **style.fusion}
    for name, change in style.decoder.items():
        parts = change if isinstance(change, tuple) else (change,)
        found.update({f"{name} {i}": part for i, part in enumerate(parts)})
    return found


def same(one, other):
    """Bit for bit, with the course of every loss."""
    ours, theirs = tensors_of(one), tensors_of(other)
    return (
        ours.keys() == theirs.keys()
        and all(torch.equal(value, theirs[name]) for name, value in ours.items())
        and one.info["losses"] == other.info["losses"]
        and one.info["second_order_steps"] == other.info["second_order_steps"]
    )


def stop_after(step):
    return lambda progress: progress.step < step


@pytest.fixture
def messages(caplog):
    caplog.set_level(logging.WARNING, logger="stylemamba")
    return lambda: " ".join(record.getMessage() for record in caplog.records)


@pytest.fixture(scope="module")
def pictures():
    """Two of different sizes, neither a multiple of the autoencoder's 8 on every side."""
    return [torch.rand(1, 3, *size, generator=seeded(i)) for i, size in enumerate([(32, 36), (40, 27)])]


# It learns (F1)


@pytest.mark.parametrize("seed", range(5))
def test_a_fresh_fusion_learns_the_style_and_the_total_falls(components, photo, seed):
    torch.manual_seed(seed)
    parts = components(fusion=StyleFusion.from_preset("tiny", cond_dim=32))
    with torch.no_grad():
        for part in ("vae", "image_encoder", "text_encoder"):
            for parameter in parts[part].parameters():
                parameter += 0.02 * torch.randn_like(parameter)
    style = fit(quiet(StyleMambaPipeline(**parts)), photo, seed=seed, epochs=30, content_weights=(150, 150))
    for term in ("total", "style", "dir_unguarded"):
        values = style.info["losses"][term]
        assert len(values) == 30
        assert np.mean(values[-5:]) < 0.9 * np.mean(values[:5]), term


@each_mode
def test_every_mode_learns(pipe, photo, train):
    values = fit(pipe, photo, train=train, lr=2e-3).info["losses"]["dir_unguarded"]
    assert np.mean(values[-5:]) < 0.95 * np.mean(values[:5])


def test_the_result_moves_along_the_text_in_the_pipeline_too(pipe, photo):
    style = fit(pipe, photo, epochs=30)
    text = pipe.encode_prompt([PROMPT, "a plain photo"])
    pipe.load_style(style, "glass")

    def progress_along_text(strength):
        features = pipe.encoder.embed_images(
            torch.cat([pipe(photo, strength=strength, output_type="pt").images, photo])
        )
        return F.cosine_similarity(features[0] - features[1], text[0] - text[1], dim=0)

    with torch.no_grad():
        assert progress_along_text(1.0) > progress_along_text(0.0) + 0.1


@pytest.mark.parametrize(
    ("preset", "terms"),
    [
        ("paper", PAPER_TERMS),
        ("fast", PAPER_TERMS),
        ("quality", PAPER_TERMS | {"tv", "patch"}),
        ("sharpen", PAPER_TERMS | {"patch"}),
    ],
)
def test_every_term_of_a_preset_is_in_the_history(pipe, photo, preset, terms):
    seen = []
    style = fit(pipe, photo, preset=preset, epochs=2, callback=lambda progress: seen.append(progress.losses))
    history, steps = style.info["losses"], style.info["steps_done"]
    assert history.keys() == terms == seen[0].keys()
    assert all(len(values) == steps == len(seen) and np.isfinite(values).all() for values in history.values())
    for name, values in history.items():
        assert values == pytest.approx([losses[name] for losses in seen], rel=1e-5)


@pytest.fixture
def painting() -> dict:
    """Components of a model that paints what an embedding says, as the bundled one."""
    vae = AutoencoderTiny(
        latent_channels=4, encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(0, 0, 1), num_decoder_blocks=(1, 1, 1),
    )  # fmt: skip
    decoder = ConditionalDecoder(4, cond_dim=32, code_dim=8, channels=(8, 8, 8), depth=1, scale=4)
    return {"vae": vae.eval, "style_decoder": decoder.eval()}


def test_without_a_config_the_preset_suits_the_model(components, photo, painting):
    def config_of(**parts) -> PromptFitConfig:
        pipe = StyleMambaPipeline(**components(**parts))
        style = pipe.fit_style(photo, PROMPT, callback=lambda _: False)  # one step is enough
        return PromptFitConfig(**style.info["config"])

    assert config_of() == PromptFitConfig(preset="paper")
    assert config_of(**painting) == PromptFitConfig(preset="sharpen")


@pytest.mark.parametrize(("paints", "preset", "warns"), [(1, "paper", 1), (1, "sharpen", 0), (0, "paper", 0)])
def test_a_model_that_paints_warns_of_the_papers_content_weights(
    components, photo, painting, messages, paints, preset, warns
):
    pipe = StyleMambaPipeline(**components(**(painting if paints else {})))
    pipe.fit_style(photo, PROMPT, config=PromptFitConfig(epochs=1, preset=preset))
    assert ("back to the photo" in messages()) == bool(warns)


# The arithmetic of a step


@pytest.mark.parametrize("preset", ["paper", "quality"])
def test_the_total_is_the_weighted_sum_on_the_schedule_of_the_content_weight(pipe, photo, preset):
    options = {
        "preset": preset,
        "epochs": 4,
        "steps_per_epoch": 2,
        "content_switch": 2,
        "content_weights": (7000, 30),
    }
    config, history = PromptFitConfig(**options), fit(pipe, photo, **options).info["losses"]
    for step, total in enumerate(history["total"]):
        terms = {name: values[step] for name, values in history.items()}
        wanted = 500 * terms["style"] + (7000 if step < 4 else 30) * (terms["lpips"] + terms["vgg"])
        wanted += 50 * terms["range"] + config.tv_weight * terms.get("tv", 0) + 9000 * terms.get("patch", 0)
        assert total == pytest.approx(wanted, rel=1e-4)


def test_the_content_weight_decides_what_is_learnt(pipe, photo):
    free, held = (fit(pipe, photo, content_weights=(weight, weight)) for weight in (0, 9000))
    assert free.info["losses"]["lpips"][-1] > 1.05 * held.info["losses"]["lpips"][-1]
    # before the switch only the first of the two counts
    early = [
        fit(pipe, photo, epochs=2, content_switch=2, content_weights=(9000, after)) for after in (0, 150)
    ]
    assert same(*early)


def test_the_rate_is_halved_from_its_epoch_on_and_not_before(pipe, photo):
    def after(epochs, **options):
        return fit(pipe, photo, epochs=epochs, train="fusion", **options)

    assert same(after(3, halve_at=3), after(3, halve_at=10))
    assert not same(after(5, halve_at=3), after(5, halve_at=10))
    assert same(after(3, lr=1e-3, halve_at=0), after(3, lr=5e-4, halve_at=10))


@each_mode
def test_without_a_rate_nothing_moves(pipe, photo, train):
    style = fit(pipe, photo, epochs=2, lr=0.0, train=train)
    wanted = pipe.fusion.state_dict()
    assert all(torch.equal(value, wanted[name].to(value.dtype)) for name, value in style.fusion.items())
    for change in style.decoder.values():
        assert not (change[0] @ change[1] if isinstance(change, tuple) else change).any()


def test_each_mode_trains_what_it_says(pipe, photo):
    full, fusion, low_rank = (fit(pipe, photo, epochs=2, train=train) for train in MODES)
    assert full.decoder and all(
        isinstance(change, torch.Tensor) and change.any() for change in full.decoder.values()
    )
    assert fusion.decoder == {}
    assert low_rank.decoder and all(
        up.any() and up.shape[1] == len(down) == 4 for up, down in low_rank.decoder.values()
    )
    start = pipe.fusion.state_dict()
    for style in (full, fusion, low_rank):
        assert not any(
            torch.equal(value, start[name].to(value.dtype)) for name, value in style.fusion.items()
        )


class Recorder:
    """What the image encoder saw and gave, call by call."""

    def __init__(self, encoder):
        self.pixels, self.features = pixels, features = [], []

        def record(
            _module, _args, kwargs, output
        ):  # a function: the fit's copy of the encoder keeps these very lists
            pixels.append(kwargs["pixel_values"].detach())
            features.append(F.normalize(output.pooler_output.detach(), dim=-1))

        encoder.register_forward_hook(record, with_kwargs=True)


@pytest.mark.parametrize("steps_per_epoch", [1, 2])
def test_the_second_order_loss_counts_at_its_epochs_against_the_right_snapshot(pipe, photo, steps_per_epoch):
    recorder = Recorder(pipe.image_encoder)
    config = {"epochs": 17, "steps_per_epoch": steps_per_epoch, "alpha": 0.7, "beta": 3.0, "theta": 2.5}
    history = fit(pipe, photo, **config).info["losses"]
    content, results = (
        recorder.features[0],
        recorder.features[1::2],
    )  # in each step the result, then the masked one
    text = pipe.encode_prompt([PROMPT, "a plain photo"])
    direction = text[0] - text[1]
    for step, (value, new) in enumerate(zip(history["so"], results, strict=False)):
        wanted, epoch = 0.0, step // steps_per_epoch
        if epoch in (5, 10, 15):
            snapshot = results[(epoch - 5) * steps_per_epoch]
            weight = 0.7 * (1 - math.exp(-3.0 * (snapshot - content).norm().item()))
            wanted = weight * (1 - F.cosine_similarity(new - snapshot, direction[None]).item())
            assert value > 0
        assert value == pytest.approx(wanted, rel=1e-3)
        assert history["style"][step] == pytest.approx(
            history["dir"][step] + history["md"][step] + value, rel=1e-4
        )


def test_the_second_order_loss_is_inert_at_the_first_evaluation_of_an_identity(components, photo):
    """Methods 1.7: the snapshot of epoch 0 is the reconstruction, nearly the content where the autoencoder is good."""
    parts = components(fusion=StyleFusion.from_preset("tiny", cond_dim=32))
    pipe = quiet(StyleMambaPipeline(**parts))
    with torch.no_grad():
        reconstruction = pipe(photo, PROMPT, strength=0.0, output_type="pt").images
    recorder = Recorder(pipe.image_encoder)
    so = fit(pipe, reconstruction, epochs=11, lr=5e-3, theta=2.5).info["losses"]["so"]
    shifts = [(recorder.features[1 + 2 * epoch] - recorder.features[0]).norm().item() for epoch in (0, 5)]
    assert so[5] <= 2 * (1 - math.exp(-2 * shifts[0])) + 1e-6
    assert shifts[0] < shifts[1] and so[5] < so[10]


def test_a_closed_gate_keeps_the_second_order_loss_out_and_says_so(pipe, photo, messages):
    closed = fit(pipe, photo, epochs=8, theta=0.0)  # no L_dir is below 0
    losses = closed.info["losses"]
    assert losses["so"][5] > 0 and closed.info["second_order_steps"] == 0
    assert losses["style"] == pytest.approx(np.add(losses["dir"], losses["md"]), rel=1e-5)
    assert "The second-order loss never counted in this fit: L_dir stayed at or above theta = 0" in messages()


def test_the_gate_looks_at_the_loss_without_its_guard(pipe, photo):
    options = {"epochs": 6, "delta": 0.5}  # a guard that moves L_dir by much
    losses = fit(pipe, photo, **options).info["losses"]
    guarded, unguarded = losses["dir"][5], losses["dir_unguarded"][5]
    assert abs(guarded - unguarded) > 0.01
    for theta in (unguarded - 1e-3, unguarded + 1e-3):
        info, opened = fit(pipe, photo, theta=theta, **options).info, unguarded < theta
        terms = {name: values[5] for name, values in info["losses"].items()}
        assert info["second_order_steps"] == int(opened) and terms["so"] > 1e-3
        assert terms["style"] == pytest.approx(terms["dir"] + terms["md"] + opened * terms["so"], rel=1e-5)


def test_an_open_gate_is_counted_and_not_complained_of(pipe, pictures, messages):
    style = fit(pipe, pictures, epochs=8, steps_per_epoch=2, theta=2.5)
    assert style.info["second_order_steps"] == 2 * len(pictures)
    assert "never counted" not in messages()


@pytest.mark.parametrize("variant", ["directional", "same_mask", "ratio"])
def test_no_gradient_of_the_masked_loss_reaches_the_result_through_a_hole(pipe, variant):
    photo = torch.rand(1, 3, 32, 32, generator=seeded(0))  # of the encoder's size, so that nothing is resized
    one = prepared(pipe, photo, masked_variant=variant, mask_patch=8, mask_ratio=0.5)
    seen, results = Recorder(one.encoder.image_encoder), []

    def keep(_module, _args, result):
        result.retain_grad()
        results.append(result)

    one.decoder.register_forward_hook(keep)
    one.losses(one.contents[0], seeded(0))["md"].backward()
    holes = (seen.pixels[1] == 0).all(1)[0]
    assert holes.float().mean() == 0.5 and (holes[:8, :8] == holes[0, 0]).all()
    (gradient,) = (result.grad[0].abs().sum(0) for result in results)
    assert gradient[holes].max() == 0 and gradient[~holes].min() > 0


def test_masks_are_drawn_anew_for_each_step_and_picture(pipe, pictures):
    recorder = Recorder(pipe.image_encoder)
    fit(pipe, pictures, epochs=3, mask_patch=8)
    masked = [(pixels == 0).all(1) for pixels in recorder.pixels[3::2]]  # behind the two contents
    assert len(masked) == 6
    assert all(mask.float().mean() == 0.5 for mask in masked)
    assert len({tuple(mask.flatten().tolist()) for mask in masked}) == 6


def test_several_pictures_count_alike(pipe, pictures):
    both = fit(pipe, pictures, epochs=1).info["losses"]
    singles = [fit(pipe, picture, epochs=1).info["losses"] for picture in pictures]
    for term in ("dir_unguarded", "lpips", "range"):  # no random mask takes part in these
        assert both[term][0] == pytest.approx(np.mean([losses[term][0] for losses in singles]), rel=1e-4)


# It repeats (F2)


@each_mode
def test_the_same_seed_gives_the_same_style_bit_for_bit(pipe, components, pictures, train):
    one = fit(pipe, pictures, seed=4, train=train, **SHORT)
    torch.manual_seed(99)  # of no concern
    assert same(one, fit(quiet(StyleMambaPipeline(**components())), pictures, seed=4, train=train, **SHORT))
    assert not same(one, fit(pipe, pictures, seed=5, train=train, **SHORT))


def test_without_a_generator_the_seed_is_zero_and_no_other_random_number_is_used(pipe, photo):
    state = torch.get_rng_state()
    style = pipe.fit_style(photo, PROMPT, config=PromptFitConfig(**SHORT))
    assert style.info["seed"] == 0 and same(style, fit(pipe, photo, seed=0, **SHORT))
    assert torch.equal(torch.get_rng_state(), state)


def test_styles_in_use_do_not_enter_the_fit(pipe, photo):
    style = fit(pipe, photo, **SHORT)
    pipe.load_style(style, "glass")
    assert same(fit(pipe, photo, **SHORT), style)


# It can be interrupted at any step and resumed (F3)


@functools.cache
def whole(pipe, pictures, train, steps_per_epoch):
    return fit(pipe, list(pictures), train=train, steps_per_epoch=steps_per_epoch, **SHORT)


@pytest.fixture(scope="module")
def resting(components):
    """One pipeline for all: no fit changes it."""
    return quiet(StyleMambaPipeline(**components()))


class Interruption(Exception):
    pass


def by_an_error(_pipe, _progress):
    raise Interruption


def by_ctrl_c(_pipe, _progress):
    raise KeyboardInterrupt


def by_returning_false(_pipe, _progress):
    return False


def by_the_flag_of_the_pipeline(pipe, _progress):
    pipe._interrupt = True


@each_mode
@pytest.mark.parametrize("steps_per_epoch", [1, 3])
@pytest.mark.parametrize("how", [by_an_error, by_ctrl_c, by_returning_false, by_the_flag_of_the_pipeline])
def test_a_fit_left_at_any_step_goes_on_as_if_nothing_had_been(
    resting, pictures, tmp_path, train, steps_per_epoch, how
):
    wanted = whole(resting, tuple(pictures), train, steps_per_epoch)
    options = {"train": train, "steps_per_epoch": steps_per_epoch, **SHORT}
    last = random.Random(f"{train} {steps_per_epoch} {how}").randrange(1, wanted.info["steps_done"])
    checkpoint = tmp_path / "fit.safetensors"
    try:
        left = fit(
            resting, pictures, checkpoint=checkpoint, **options,
            callback=lambda progress: how(resting, progress) if progress.step == last else None,
        )  # fmt: skip
        assert (
            left.info["steps_done"] == last and left.info["stopped"] == f"by the callback after step {last}"
        )
        assert not same(left, wanted)
    except (Interruption, KeyboardInterrupt):
        assert how in (by_an_error, by_ctrl_c)

    steps = []
    resumed = fit(
        resting, pictures, checkpoint=checkpoint, callback=lambda p: steps.append(p.step), **options
    )
    assert steps == list(range(last + 1, wanted.info["steps_done"] + 1))
    assert resumed.info["stopped"] == "" and same(resumed, wanted)


def test_moments_come_back_in_the_layout_of_their_weights(pipe, photo, tmp_path):
    """The autoencoder's channels lie side by side in memory; a file has only one layout."""
    pipe.vae.to(memory_format=torch.channels_last)
    options, checkpoint = {"train": "fusion+decoder", **SHORT}, tmp_path / "fit.safetensors"
    wanted = fit(pipe, photo, **options)
    fit(pipe, photo, checkpoint=checkpoint, callback=stop_after(2), **options)

    resumed = prepared(pipe, photo, **options)
    load_checkpoint(resumed, checkpoint)
    for value, state in resumed.optimizer.state.items():
        assert state["exp_avg"].stride() == state["exp_avg_sq"].stride() == value.stride()
    assert any(not value.is_contiguous() for value in resumed.optimizer.state)
    assert same(fit(pipe, photo, checkpoint=checkpoint, **options), wanted)


@each_mode
@pytest.mark.parametrize("steps_per_epoch", [1, 3])
def test_a_fit_whose_process_dies_goes_on_from_the_last_whole_epoch(
    resting, pictures, tmp_path, train, steps_per_epoch
):
    wanted = whole(resting, tuple(pictures), train, steps_per_epoch)
    options = {"train": train, "steps_per_epoch": steps_per_epoch, **SHORT}
    running, found = tmp_path / "running.safetensors", tmp_path / "found.safetensors"

    def die(progress):
        if progress.step == 2 * steps_per_epoch + 1:
            shutil.copy(running, found)  # what a process that is killed here leaves behind

    fit(resting, pictures, checkpoint=running, callback=die, **options)
    steps = []
    resumed = fit(resting, pictures, checkpoint=found, callback=lambda p: steps.append(p.step), **options)
    # with one step an epoch the second epoch was whole as well
    assert steps[0] == 2 * steps_per_epoch + 1 and same(resumed, wanted)


@each_mode
def test_ctrl_c_in_the_middle_of_a_step_loses_that_step_alone(resting, pictures, tmp_path, train):
    wanted = whole(resting, tuple(pictures), train, 1)
    checkpoint, calls = tmp_path / "fit.safetensors", []

    def interrupt(*_):
        calls.append(1)
        if len(calls) == 2 + 4 * 2 + 3:  # two contents, two steps, and the second picture of the third
            raise KeyboardInterrupt

    handle = resting.image_encoder.register_forward_pre_hook(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(resting, pictures, checkpoint=checkpoint, train=train, **SHORT)
    finally:
        handle.remove()
    steps = []
    resumed = fit(
        resting,
        pictures,
        checkpoint=checkpoint,
        train=train,
        callback=lambda p: steps.append(p.step),
        **SHORT,
    )
    assert steps == [3, 4] and same(resumed, wanted)


def test_ctrl_c_between_an_update_and_its_count_is_not_written(resting, pictures, tmp_path):
    wanted = whole(resting, tuple(pictures), "fusion", 3)
    checkpoint = tmp_path / "fit.safetensors"
    one = prepared(resting, pictures, train="fusion", steps_per_epoch=3, **SHORT)

    def interrupt(*_):
        if one.done == 4:
            raise KeyboardInterrupt

    one.optimizer.register_step_post_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        one.run(checkpoint=checkpoint)
    options = {"train": "fusion", "steps_per_epoch": 3, **SHORT}
    assert same(fit(resting, pictures, checkpoint=checkpoint, **options), wanted)


def test_a_finished_fit_is_read_from_its_checkpoint(resting, pictures, tmp_path):
    checkpoint, steps = tmp_path / "fit.safetensors", []
    wanted = fit(resting, pictures, checkpoint=checkpoint, **SHORT)
    again = fit(resting, pictures, checkpoint=checkpoint, callback=lambda p: steps.append(p.step), **SHORT)
    assert steps == [] and same(again, wanted)
    assert list(tmp_path.iterdir()) == [checkpoint]


def test_without_a_checkpoint_nothing_is_written(resting, photo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(resting, photo, callback=stop_after(2), **SHORT)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def left(pipe, photo, tmp_path):
    """The checkpoint of a fit of `photo` that was left after two steps."""
    checkpoint = tmp_path / "fit.safetensors"
    fit(pipe, photo, checkpoint=checkpoint, callback=stop_after(2), **SHORT)
    return checkpoint


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"prompt": "mosaic"}, "prompt"),
        ({"seed": 7}, "seed"),
        ({"lr": 1e-3}, "config.lr"),
        ({"train": "fusion"}, "config.train"),
        ({"epochs": 9}, "config.epochs"),
        ({"content_weights": (1, 1)}, "config.content_weights"),
    ],
)
def test_a_checkpoint_of_another_fit_is_refused(pipe, photo, left, changed, what):
    before = left.read_bytes()
    with pytest.raises(ValueError, match=f"belongs to another fit: its {what} is "):
        fit(pipe, photo, checkpoint=left, **{**SHORT, **changed})
    assert left.read_bytes() == before


def test_a_checkpoint_of_other_pictures_or_models_is_refused(pipe, photo, left):
    with pytest.raises(ValueError, match="belongs to another fit: its pictures is "):
        fit(pipe, photo.flip(-1), checkpoint=left, **SHORT)
    with pytest.raises(ValueError, match="belongs to another fit: its pictures is "):
        fit(pipe, [photo, photo], checkpoint=left, **SHORT)
    for part in ("fusion", "image_encoder", "perceptual"):
        parameter = next(getattr(pipe, part).parameters())
        before = parameter.detach().clone()
        parameter.data += 0.1
        with pytest.raises(ValueError, match=f"belongs to another fit: its {part} is "):
            fit(pipe, photo, checkpoint=left, **SHORT)
        parameter.data = before
    assert fit(pipe, photo, checkpoint=left, **SHORT).info["steps_done"] == 4


def test_a_damaged_checkpoint_is_a_clear_error(pipe, photo, left, tmp_path):
    def refused(path):
        with pytest.raises(ValueError, match="checkpoint") as caught:
            fit(pipe, photo, checkpoint=path, **SHORT)
        assert str(path) in str(caught.value)
        return str(caught.value)

    data = left.read_bytes()
    damaged = tmp_path / "damaged.safetensors"
    for length in (0, 5, 100, len(data) // 2, len(data) - 1):
        damaged.write_bytes(data[:length])
        assert "Delete it to start again" in refused(damaged)
    assert "Delete it" in refused(tmp_path)

    with safe_open(left, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    name = next(name for name in tensors if name.startswith("parameter."))
    for changed_tensors, changed_metadata in (
        ({name: None}, {}),
        ({name: torch.zeros(3, 3, 3)}, {}),
        ({"snapshot.7.0": torch.zeros(1, 32)}, {}),
        ({"snapshot.x": torch.zeros(1, 32)}, {}),
        ({}, {"progress": "{"}),
        ({}, {"progress": "[]"}),
        ({}, {"progress": "{}"}),
        ({}, {"fit": "3"}),
    ):
        kept = {key: value for key, value in {**tensors, **changed_tensors}.items() if value is not None}
        save_file(kept, damaged, metadata={**metadata, **changed_metadata})
        assert "damaged fit checkpoint" in refused(damaged)
    save_file(tensors, damaged, metadata={"format": "pt"})
    assert "is no fit checkpoint" in refused(damaged)


# It leaves the pipeline as it was (F4)


@each_mode
def test_no_component_is_changed(pipe, photo, train):
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    assert parts.keys() >= {"vae", "text_encoder", "image_encoder", "fusion", "perceptual"}
    for i, part in enumerate(parts.values()):
        part.requires_grad_(i % 2 == 0).train(i % 3 == 0)
    tensors = {(n, k): v.clone() for n, part in parts.items() for k, v in part.state_dict().items()}
    flags = {(n, k): p.requires_grad for n, part in parts.items() for k, p in part.named_parameters()}
    modes = {(n, k): m.training for n, part in parts.items() for k, m in part.named_modules()}

    fit(pipe, photo, train=train, lr=1e-2, **SHORT)
    for name, part in parts.items():
        assert getattr(pipe, name) is part
        assert all(torch.equal(value, tensors[name, key]) for key, value in part.state_dict().items())
        assert all(
            p.requires_grad == flags[name, key] and p.grad is None for key, p in part.named_parameters()
        )
        assert all(module.training == modes[name, key] for key, module in part.named_modules())
    assert pipe.list_styles() == {}


def test_training_mode_of_the_components_is_of_no_concern(pipe, photo):
    for part in pipe.image_encoder.modules():
        if hasattr(part, "dropout"):
            part.dropout = 0.5
    wanted = fit(pipe, photo, **SHORT)
    pipe.vae.train()
    pipe.image_encoder.train()
    assert same(fit(pipe, photo, **SHORT), wanted)


# What comes out


@each_mode
def test_a_saved_style_gives_the_picture_of_the_fitted_one_bit_for_bit(pipe, photo, tmp_path, train):
    style = fit(pipe, photo, train=train, lr=3e-3, **SHORT)
    style.save(tmp_path / "style.safetensors")
    found = []
    for source in (style, tmp_path / "style.safetensors"):
        pipe.load_style(source, "style")
        found.append(pipe(photo, output_type="pt").images)
        pipe.unload_styles()
    assert torch.equal(*found)
    loaded = Style.load(tmp_path / "style.safetensors")
    assert same(loaded, style) and loaded.info == style.info


@each_mode
def test_the_pipeline_shows_what_the_fit_saw(pipe, photo, train):
    style = fit(pipe, photo, train=train, lr=3e-3, **SHORT)
    pipe.load_style(style, "style")
    found, seen = (np.asarray(image, dtype=float) for image in (pipe(photo).images[0], style.thumbnail))
    assert np.abs(found - seen).mean() < 0.5  # levels of 255: the file is in half precision


def test_a_style_tells_where_it_came_from(pipe, photo):
    style = fit(pipe, photo, seed=11, epochs=2, preset="quality")
    info = style.info
    assert (style.prompt, info["source_prompt"], info["seed"], info["stopped"]) == (
        PROMPT,
        "a plain photo",
        11,
        "",
    )
    assert PromptFitConfig(**info["config"]) == PromptFitConfig(epochs=2, preset="quality")
    assert info["base"]["vae"]["class"] == "AutoencoderKL" and len(info["base"]["vae"]["fingerprint"]) == 16
    assert info["base"].keys() == {"vae", "text_encoder", "image_encoder", "fusion", "perceptual"}
    assert info["versions"]["torch"] == torch.__version__.partition("+")[0]
    torch.testing.assert_close(style.prompt_embeds, pipe.encode_prompt(PROMPT)[0])


def test_the_callback_sees_every_step_and_may_look_at_the_picture(pipe, photo):
    seen = []

    def look(progress):
        preview = progress.preview() if progress.step in (1, 4) else None
        seen.append((progress.step, progress.steps, progress.epoch, preview))

    style = fit(pipe, photo, epochs=2, steps_per_epoch=2, lr=3e-3, callback=look)
    assert [entry[:3] for entry in seen] == [(1, 4, 0), (2, 4, 0), (3, 4, 1), (4, 4, 1)]
    first, last = seen[0][3], seen[3][3]
    assert isinstance(last, Image.Image) and last.mode == "RGB" and last.size == (40, 48)
    assert first.tobytes() != last.tobytes() == style.thumbnail.tobytes()
    assert same(style, fit(pipe, photo, epochs=2, steps_per_epoch=2, lr=3e-3))  # looking changes nothing


def test_a_large_picture_is_reduced_for_the_fit(pipe, photo):
    large = F.interpolate(photo, scale_factor=2)
    assert fit(pipe, large, epochs=1, image_size=48).thumbnail.size == (40, 48)
    assert fit(pipe, large, epochs=1, image_size=50).thumbnail.size == (42, 50)
    assert fit(pipe, photo, epochs=1, image_size=512).thumbnail.size == (40, 48)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_any_picture_can_be_fitted(pipe, photo, mode):
    pixels = (photo[0].permute(1, 2, 0) * 255).byte().numpy()
    style = fit(pipe, Image.fromarray(pixels).convert(mode), epochs=1)
    assert style.thumbnail.size == (40, 48)


# Prompts


def test_templates_are_averaged_on_both_sides(pipe, photo):
    templates = ("{}", "a picture of {}", "{} on {paper}")  # braces of its own are words
    recorder = Recorder(pipe.image_encoder)
    style = fit(pipe, photo, epochs=1, templates=templates)

    def averaged(text):
        embeds = pipe.encode_prompt([template.replace("{}", text) for template in templates])
        return F.normalize(embeds.mean(0), dim=0)

    torch.testing.assert_close(style.prompt_embeds, averaged(PROMPT).detach())
    shift, direction = (
        recorder.features[1] - recorder.features[0],
        averaged(PROMPT) - averaged("a plain photo"),
    )
    wanted = 1 - F.cosine_similarity(shift, direction[None]).item()
    assert style.info["losses"]["dir_unguarded"][0] == pytest.approx(wanted, rel=1e-3)


def test_a_weighted_mixture_is_one_prompt(pipe, photo):
    style = fit(pipe, photo, prompt=[("stained glass", 0.75), ("an ink drawing on paper", 0.25)], epochs=1)
    one, other = pipe.encode_prompt(["stained glass", "an ink drawing on paper"]).detach()
    torch.testing.assert_close(style.prompt_embeds, F.normalize(0.75 * one + 0.25 * other, dim=0))
    assert style.prompt == "0.75 stained glass + 0.25 an ink drawing on paper"


def test_several_prompts_are_refused(pipe, photo):
    with pytest.raises(ValueError, match="got 2 prompts, wanted one"):
        fit(pipe, photo, prompt=["stained glass", "mosaic"], epochs=1)


# Hosts and components


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@each_mode
def test_a_fit_inside_of_inference_mode_equals_one_outside(components, photo, mode, train):
    """ComfyUI loads and runs everything so."""
    wanted = fit(quiet(StyleMambaPipeline(**components())), photo, train=train, **SHORT)
    with mode():
        pipe = quiet(StyleMambaPipeline(**components()))
        image = photo.clone()
        assert (
            next(pipe.vae.parameters()).is_inference()
            == image.is_inference()
            == (mode is torch.inference_mode)
        )
        previews = []
        style = fit(pipe, image, train=train, callback=lambda p: previews.append(p.preview()), **SHORT)
        pipe.load_style(style, "style")
        inside = pipe(image, output_type="pt").images
    assert same(style, wanted) and len(previews) == 4
    outside = quiet(StyleMambaPipeline(**components()))
    outside.load_style(wanted, "style")
    assert torch.equal(inside, outside(photo, output_type="pt").images)


def test_a_fit_works_with_the_tiny_autoencoder(components, taesd, photo):
    pipe = quiet(StyleMambaPipeline(**components(vae=taesd)))
    for train in MODES:
        values = fit(pipe, photo, train=train, lr=3e-3).info["losses"]["dir_unguarded"]
        assert values[-1] < min(values[:5])  # this random autoencoder passes little on


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_pipeline_is_fitted_in_full_precision(components, photo, dtype):
    pipe = quiet(StyleMambaPipeline(**components()))
    wanted = fit(pipe, photo, **SHORT).info["losses"]
    pipe.to(dtype)
    dtypes = {name: part.dtype for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    style = fit(pipe, photo, **SHORT)
    assert {name: getattr(pipe, name).dtype for name in dtypes} == dtypes
    for name, values in style.info["losses"].items():
        assert values[0] == pytest.approx(wanted[name][0], rel=0.05, abs=1e-6)
    # finer than half precision could add to the weights themselves
    weights = dict(pipe.vae.named_parameters())
    steps = torch.cat(
        [(change.float() / weights[name].float()).flatten() for name, change in style.decoder.items()]
    )
    assert ((steps != 0) & (steps.abs() < torch.finfo(dtype).eps / 2)).any()
    pipe.load_style(style, "style")
    assert torch.isfinite(pipe(photo, output_type="pt").images).all()


def test_without_a_perceptual_network_latents_are_compared_and_it_is_said(components, photo, messages):
    pipe = quiet(StyleMambaPipeline(**components(perceptual=None)))
    history = fit(pipe, photo, content_weights=(150, 150)).info["losses"]
    assert "has no `perceptual` network" in messages()
    assert history.keys() == PAPER_TERMS - {"lpips", "vgg"} | {"latent"}
    assert np.mean(history["style"][-5:]) < 0.95 * np.mean(history["style"][:5])
    for step, total in enumerate(history["total"]):
        terms = {name: values[step] for name, values in history.items()}
        assert total == pytest.approx(
            500 * terms["style"] + 150 * terms["latent"] + 50 * terms["range"], rel=1e-4
        )


def test_without_an_image_encoder_it_says_what_is_missing(components, photo):
    pipe = quiet(StyleMambaPipeline(**components(image_encoder=None)))
    with pytest.raises(ValueError, match="image_encoder is None, but fitting"):
        fit(pipe, photo, epochs=1)


# Numbers that are none


def turn_to_nan_after(network, calls):
    """`network` works for so many calls and gives NaN from then on."""
    count = []

    def spoil(_module, _args, output):
        count.append(1)
        return {tap: maps * float("nan") for tap, maps in output.items()} if len(count) > calls else output

    return network.register_forward_hook(spoil)


@each_mode
def test_a_fit_that_breaks_gives_its_best_finite_state_and_says_so(pipe, photo, messages, train, tmp_path):
    options = {"train": train, "lr": 3e-3, "content_weights": (150, 150), "masked_variant": "same_mask"}
    totals = fit(pipe, photo, epochs=8, **options).info["losses"]["total"]
    handle = turn_to_nan_after(pipe.perceptual, 1 + 7)  # the content once, then one call a step
    style = fit(pipe, photo, epochs=8, **options)
    handle.remove()
    assert (
        style.info["stopped"].startswith("not finite at step 8 (loss nan") and style.info["steps_done"] == 7
    )
    assert style.info["losses"]["total"] == totals[:7]
    assert (
        "The fit became not finite at step 8" in messages()
        and "best state before it was restored" in messages()
    )

    best = int(np.argmin(totals[:7]))  # a total belongs to the state before its step
    assert best > 0
    wanted = tensors_of(fit(pipe, photo, epochs=8, callback=stop_after(best), **options))
    assert all(torch.equal(value, wanted[name]) for name, value in tensors_of(style).items())
    style.save(tmp_path / "style.safetensors")
    assert same(Style.load(tmp_path / "style.safetensors"), style)


def test_the_best_state_from_before_an_interruption_is_not_forgotten(pipe, photo, tmp_path):
    options = {"epochs": 8, "lr": 3e-3, "content_weights": (150, 150), "masked_variant": "same_mask"}
    handle = turn_to_nan_after(pipe.perceptual, 1 + 4)
    wanted = fit(pipe, photo, **options)
    handle.remove()
    checkpoint = tmp_path / "fit.safetensors"
    fit(pipe, photo, checkpoint=checkpoint, callback=stop_after(4), **options)
    handle = turn_to_nan_after(pipe.perceptual, 1)  # so that the first step behind the interruption fails
    resumed = fit(pipe, photo, checkpoint=checkpoint, **options)
    handle.remove()
    assert 0 < np.argmin(wanted.info["losses"]["total"]) < 4
    assert same(resumed, wanted)


def test_totals_are_compared_under_one_content_weight_only(pipe, photo):
    """Behind the switch every total is smaller or larger for no merit of its own."""
    options = {"content_switch": 3, "content_weights": (0, 9000), "lr": 1e-3}
    handle = turn_to_nan_after(pipe.perceptual, 1 + 4)
    style = fit(pipe, photo, epochs=8, **options)
    handle.remove()
    totals = style.info["losses"]["total"]
    assert min(totals[:3]) < min(totals[3:])  # and still a state of the second phase is restored
    wanted = tensors_of(
        fit(pipe, photo, epochs=8, callback=stop_after(3 if totals[3] == min(totals[3:]) else 4), **options)
    )
    assert all(torch.equal(value, wanted[name]) for name, value in tensors_of(style).items())


@each_mode
@pytest.mark.parametrize("epochs", [1, 3])
def test_a_rate_that_explodes_gives_the_start_back(pipe, photo, messages, train, epochs, tmp_path):
    """Also if it explodes at the very last step, behind which no loss is computed any more."""
    style = fit(pipe, photo, lr=1e30, epochs=epochs, train=train)
    assert "not finite at step 1" in style.info["stopped"] and "A lower lr may help" in messages()
    wanted = pipe.fusion.state_dict()
    assert all(torch.equal(value, wanted[name].to(value.dtype)) for name, value in style.fusion.items())
    style.save(tmp_path / "style.safetensors")
    Style.load(tmp_path / "style.safetensors")


def test_nan_weights_in_a_component_stop_the_fit_at_once(pipe, photo):
    broken = copy.deepcopy(pipe.vae)
    broken.decoder.conv_out.weight.data.fill_(float("nan"))
    pipe.register_modules(vae=broken)
    assert "not finite at step 1" in fit(pipe, photo, epochs=2, train="fusion").info["stopped"]


def test_a_fit_that_broke_leaves_no_broken_checkpoint(pipe, photo, tmp_path):
    checkpoint = tmp_path / "fit.safetensors"
    handle = turn_to_nan_after(pipe.perceptual, 1 + 2)
    fit(pipe, photo, checkpoint=checkpoint, **SHORT)
    handle.remove()
    assert same(fit(pipe, photo, checkpoint=checkpoint, **SHORT), fit(pipe, photo, **SHORT))


class TestFramesOfAFilm:
    @staticmethod
    def frames(count=3, move=1.0):
        columns = torch.arange(40.0)
        return [
            (0.5 + 0.4 * torch.sin((columns - move * t) / 5)).expand(1, 3, 48, 40).contiguous()
            for t in range(count)
        ]

    def test_the_terms_are_those_of_the_equations(self, pipe):
        fitting = prepared(pipe, self.frames(), temporal_weight=7.0)
        before, results = [], []
        for content in fitting.contents:
            terms = fitting.losses(content, seeded(0), before)
            results.append(fitting.stylize(content).detach())
            plain = fitting.losses(content, seeded(0))
            assert torch.allclose(terms["total"], plain["total"] + 7.0 * terms.get("temporal", 0.0))
        _, c1, c2 = (content.image for content in fitting.contents)
        y0, y1, y2 = results
        wanted = ((y2 - y1) - (c2 - c1)).square().mean() + (y2 - 2 * y1 + y0).square().mean()
        torch.testing.assert_close(terms["temporal"].detach(), wanted)
        assert len(before) == 3 and not any(y.requires_grad for _, y in before)

    def test_a_film_that_stands_still_costs_nothing(self, pipe):
        style = fit(pipe, self.frames(move=0.0), temporal_weight=100.0, **SHORT)
        assert max(style.info["losses"]["temporal"]) < 1e-10

    def test_without_the_weight_pictures_are_on_their_own(self, pipe):
        assert "temporal" not in fit(pipe, self.frames(), **SHORT).info["losses"]

    def test_pictures_of_several_sizes_are_no_film(self, pipe):
        with pytest.raises(ValueError, match="have the sizes 32 x 32, 40 x 48, wanted frames of one film"):
            fit(pipe, [torch.zeros(1, 3, 48, 40), torch.zeros(1, 3, 32, 32)], temporal_weight=1.0)
