"""Loaded styles and their mixes, through the pipeline that a user holds."""

import copy
import logging

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny

from stylemamba import Style, StyleFusion, StyleMambaPipeline
from stylemamba.pipeline.conditional_decoder import ConditionalDecoder
from stylemamba.pipeline.style import StyleFileError, describe_component
from stylemamba.pipeline.style_decoder import StyleDecoder
from stylemamba.pipeline.style_mixing import mix_directions

WIDTH = 32  # of the tiny towers


def small_vae():
    """Four pixels a latent, for a decoder that paints at this scale."""
    return AutoencoderTiny(
        latent_channels=4, encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(0, 0, 1), num_decoder_blocks=(1, 1, 1),
    ).eval()  # fmt: skip


def make_style(vae, seed, prompt="stained glass", decoder="full", preset="tiny", **options):
    """A style that changes much, fitted on `vae` as far as its file can tell."""
    generator = torch.Generator().manual_seed(seed)

    def noise(like, scale):
        return torch.randn(like.shape, generator=generator).to(like) * scale

    torch.manual_seed(seed)
    fusion = StyleFusion.from_preset(
        preset, latent_channels=vae.config.latent_channels, cond_dim=WIDTH, **options
    )
    state = {name: value + noise(value, 0.1) for name, value in fusion.state_dict().items()}
    changes = {}
    if decoder == "full":
        changes = {k: noise(v, 0.05) for k, v in StyleDecoder(vae).full_changes().items()}
    elif decoder == "low rank":
        factors = StyleDecoder(vae).low_rank_changes(2, seed)
        changes = {k: (noise(up, 0.1), down) for k, (up, down) in factors.items()}
    config = {k: v for k, v in fusion.config.items() if not k.startswith("_")}
    embeds = torch.nn.functional.normalize(noise(torch.empty(WIDTH), 1.0), dim=0)
    info = {"prompt": prompt, "base": {"vae": describe_component(vae)}}
    return Style(embeds, config, state, changes, info)


@pytest.fixture
def styled(pipe):
    """A pipeline with a full style, a low-rank one and one without a decoder."""
    pipe.load_style(make_style(pipe.vae, 1), "glass")
    pipe.load_style(make_style(pipe.vae, 2, decoder="low rank", preset="dense"), "ink")
    pipe.load_style(make_style(pipe.vae, 3, decoder="none", fuser="cross_attention"), "neon")
    return pipe


def result(pipe, photo, **options):
    return pipe(photo, output_type="pt", **options).images


def latents_of(pipe, photo):
    with torch.no_grad():
        return pipe.encode_image(photo)


# Names


def test_a_loaded_style_is_in_use_alone(styled):
    assert styled.list_styles() == {"glass": 0.0, "ink": 0.0, "neon": 1.0}


def test_names_come_from_the_file_the_prompt_or_the_caller(pipe, tmp_path):
    style = make_style(pipe.vae, 1, prompt="an ink drawing")
    style.save(tmp_path / "ink no. 3.safetensors")
    assert pipe.load_style(tmp_path / "ink no. 3.safetensors") == "ink no. 3"
    assert pipe.load_style(str(tmp_path / "ink no. 3.safetensors"), name="mine") == "mine"
    assert pipe.load_style(style) == "an ink drawing"
    assert pipe.load_style(make_style(pipe.vae, 2, prompt="")) == "style3"
    assert list(pipe.list_styles()) == ["ink no. 3", "mine", "an ink drawing", "style3"]


def test_a_name_can_be_given_once(styled):
    with pytest.raises(ValueError, match="a style named 'glass' is loaded already"):
        styled.load_style(make_style(styled.vae, 5), "glass")
    assert styled.list_styles() == {"glass": 0.0, "ink": 0.0, "neon": 1.0}


@pytest.mark.parametrize("call", ["set_styles", "unload_styles"])
@pytest.mark.parametrize("names", ["wood", ["glass", "wood"]])
def test_unknown_names_are_named_and_change_nothing(styled, call, names):
    with pytest.raises(
        ValueError, match=r"no style named 'wood' is loaded; loaded are \['glass', 'ink', 'neon'\]"
    ):
        getattr(styled, call)(names)
    assert styled.list_styles() == {"glass": 0.0, "ink": 0.0, "neon": 1.0}


def test_a_pipeline_without_styles_says_so(pipe):
    assert pipe.list_styles() == {}
    with pytest.raises(ValueError, match="loaded are none"):
        pipe.set_styles("glass")


# Weights


@pytest.mark.parametrize(
    ("names", "weights", "wanted"),
    [
        ("glass", None, {"glass": 1.0, "ink": 0.0}),
        ("glass", 0.5, {"glass": 0.5, "ink": 0.0}),
        (["glass", "ink"], None, {"glass": 1.0, "ink": 1.0}),
        (["glass", "ink"], [0.7, 0.3], {"glass": 0.7, "ink": 0.3}),
        (["glass", "ink"], 0.5, {"glass": 0.5, "ink": 0.5}),  # one number for all, as in diffusers
        (["glass", "ink"], [1.2, -0.2], {"glass": 1.2, "ink": -0.2}),
        (["glass", "ink"], [1, 0], {"glass": 1.0, "ink": 0.0}),
    ],
)
def test_weights_belong_to_the_names_in_order(styled, names, weights, wanted):
    styled.set_styles(names, weights)
    assert styled.list_styles() == {**wanted, "neon": 0.0}


@pytest.mark.parametrize(
    ("names", "weights", "sentence"),
    [
        (["glass", "ink"], [1.0], "one weight for each"),
        ("glass", [0.5, 0.5], "one weight for each"),
        (["glass", "glass"], [0.5, 0.5], "each name once"),
        (["glass", "ink"], [0, 0], "all weights are 0"),
        ([], [], "all weights are 0"),
        ("glass", float("nan"), "wanted finite numbers"),
        (["glass", "ink"], [1.0, float("inf")], "wanted finite numbers"),
    ],
)
def test_weights_that_make_no_mix_are_refused_and_change_nothing(styled, names, weights, sentence):
    with pytest.raises(ValueError, match=sentence):
        styled.set_styles(names, weights)
    assert styled.list_styles() == {"glass": 0.0, "ink": 0.0, "neon": 1.0}


# Mixing


@pytest.mark.parametrize(("one", "other"), [("glass", "ink"), ("ink", "neon"), ("neon", "glass")])
def test_weights_one_and_zero_give_the_first_style_bit_for_bit(styled, photo, one, other):
    styled.set_styles(one)
    alone = result(styled, photo)
    styled.set_styles([one, other], [1, 0])
    assert torch.equal(result(styled, photo), alone)
    styled.set_styles([one, other], [0, 1])
    assert not torch.equal(result(styled, photo), alone)


def test_equal_weights_do_not_know_an_order(styled, photo):
    styled.set_styles(["glass", "ink"], [0.5, 0.5])
    mixed = result(styled, photo)
    styled.set_styles(["ink", "glass"], [0.5, 0.5])
    assert torch.equal(result(styled, photo), mixed)


@pytest.mark.parametrize("weights", [(0.5, 0.5, 0.0), (0.7, 0.6, 0.5), (1.2, -0.4, 0.1), (0.3, 0.0, 0.0)])
def test_a_mix_moves_the_latents_and_the_decoder_by_the_weighted_sum(styled, photo, weights):
    styles = list(styled.styles.loaded.values())
    styled.set_styles(["glass", "ink", "neon"], weights)
    z, vae = latents_of(styled, photo), copy.deepcopy(styled.vae)
    with torch.no_grad():
        wanted = z.clone()
        for weight, style in zip(weights, styles, strict=True):
            wanted += weight * (style.build_fusion().float()(z, style.prompt_embeds[None]) - z)
            for name, change in style.decoder.items():
                full = change[0].float() @ change[1].float() if isinstance(change, tuple) else change.float()
                parameter = vae.get_parameter(name)
                parameter += weight * full.view_as(parameter)
        torch.testing.assert_close(styled.fuse(z), wanted, atol=1e-4, rtol=1e-4)
        decoded = vae.decode(wanted / vae.config.scaling_factor).sample / 2 + 0.5
        torch.testing.assert_close(
            result(styled, photo), decoded[..., :48, :40].clamp(0, 1), atol=1e-3, rtol=1e-3
        )
    assert (wanted - z).abs().max() > 0.01


@pytest.mark.parametrize("mix", ["linear", "slerp"])
def test_directions_are_mixed_as_asked_and_latents_linearly(styled, photo, mix):
    styled.set_styles(["glass", "ink"], [0.7, 0.3], mix=mix)
    directions = [styled.styles.loaded[name].prompt_embeds for name in ("glass", "ink")]
    mixed = mix_directions(*directions, weights=[0.7, 0.3], mode=mix)
    assert torch.equal(styled.styles.prompt_embeds()[0], mixed)
    latents = styled.encode_image(photo)
    fused = styled.fuse(latents)
    styled.set_styles(["glass", "ink"], [0.7, 0.3])
    assert torch.equal(styled.fuse(latents), fused)
    assert torch.equal(mixed, styled.styles.prompt_embeds()[0]) == (mix == "linear")


def test_a_mix_that_is_none_is_refused_and_changes_nothing(styled):
    before = styled.list_styles()
    with pytest.raises(ValueError, match="mix is 'round', wanted one of linear, slerp"):
        styled.set_styles(["glass", "ink"], mix="round")
    with pytest.raises(ValueError, match="slerp' wants none below 0"):
        styled.set_styles(["glass", "ink"], [1.0, -0.5], mix="slerp")
    assert styled.list_styles() == before and styled.styles.mix == "linear"


def test_a_prompt_steers_the_style_in_use(styled, photo):
    styled.set_styles("glass")
    z, style = latents_of(styled, photo), styled.styles.loaded["glass"]
    embeds = styled.encode_prompt("neon city at night")
    with torch.no_grad():
        found, own = styled.fuse(z, embeds), styled.fuse(z)
        wanted = style.build_fusion().float()(z, embeds)
    assert torch.equal(found, wanted) and not torch.equal(found, own)


def test_strength_zero_is_the_reconstruction_whatever_is_loaded(styled, photo):
    plain = StyleMambaPipeline.from_pipe(styled)
    plain.set_progress_bar_config(disable=True)
    wanted = result(plain, photo, prompt="mosaic", strength=0.0)
    assert torch.equal(result(styled, photo, strength=0.0), wanted)


def test_a_batch_is_its_single_pictures(styled, photo):
    styled.set_styles(["glass", "neon"], [0.6, 0.4])
    both = torch.cat([photo, photo.flip(-1)])
    singles = [result(styled, one) for one in both.split(1)]
    torch.testing.assert_close(result(styled, both), torch.cat(singles), atol=1e-5, rtol=1e-5)


def test_the_file_of_a_style_gives_the_same_picture_bit_for_bit(styled, photo, tmp_path):
    for name, style in list(styled.styles.loaded.items()):
        styled.set_styles(name)
        wanted = result(styled, photo)
        style.save(tmp_path / "style.safetensors")
        again = styled.load_style(tmp_path / "style.safetensors", f"{name} again")
        assert styled.list_styles()[again] == 1.0
        assert torch.equal(result(styled, photo), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_styles_follow_the_precision_of_the_pipeline_and_back(styled, photo, dtype):
    styled.set_styles(["glass", "neon"], [0.6, 0.4])
    wanted = result(styled, photo)
    styled.to(dtype)
    assert (result(styled, photo) - wanted).abs().mean() < 0.03
    styled.to(torch.float32)
    assert (result(styled, photo) - wanted).abs().mean() < 0.03


def test_gradients_pass_through_a_style_that_was_used_under_inference_mode(pipe, photo):
    style = make_style(pipe.vae, 1)
    with torch.inference_mode():
        pipe.load_style(style, "glass")
        pipe(photo)
    latents = latents_of(pipe, photo).requires_grad_()
    pipe.fuse(latents).square().mean().backward()
    assert latents.grad.abs().max() > 0


# Unloading


def test_unloading_restores_the_plain_pipeline_exactly(pipe, photo):
    before = result(pipe, photo, prompt="mosaic")
    weights = {name: value.clone() for name, value in pipe.vae.state_dict().items()}
    pipe.load_style(make_style(pipe.vae, 1), "glass")
    assert not torch.equal(result(pipe, photo, prompt="mosaic"), before)
    pipe.unload_styles()
    assert pipe.list_styles() == {}
    assert torch.equal(result(pipe, photo, prompt="mosaic"), before)
    assert all(torch.equal(value, weights[name]) for name, value in pipe.vae.state_dict().items())
    with pytest.raises(ValueError, match="no style is loaded"):
        pipe(photo)


def test_a_style_unloaded_leaves_the_mix_of_the_others(styled, photo):
    styled.set_styles(["glass", "ink"], [1.0, 0.5])
    styled.unload_styles("ink")
    assert styled.list_styles() == {"glass": 1.0, "neon": 0.0}
    mixed = result(styled, photo)
    styled.set_styles("glass")
    assert torch.equal(result(styled, photo), mixed)
    styled.load_style(make_style(styled.vae, 9), "ink")  # the name is free again
    styled.unload_styles(["glass", "ink"])
    assert styled.list_styles() == {"neon": 0.0}


# Styles of another autoencoder


def of_channels(vae, channels):
    return type(vae).from_config({**vae.config, "latent_channels": channels})


def wider(vae):
    return type(vae).from_config({**vae.config, "block_out_channels": (8, 8, 8, 16)})


@pytest.mark.parametrize("decoder", ["full", "low rank"])
def test_a_style_of_another_autoencoder_is_refused_in_a_sentence(pipe, taesd, decoder):
    for vae, sentence in (
        (of_channels(pipe.vae, 16), "with 16 latent channels, this pipeline's autoencoder has 4"),
        (wider(pipe.vae), "changes decoder weights .* that this pipeline's AutoencoderKL does not have"),
        (taesd(), "changes decoder weights .* that this pipeline's AutoencoderKL does not have"),
    ):
        with pytest.raises(StyleFileError, match=sentence) as caught:
            pipe.load_style(make_style(vae, 1, decoder=decoder), "glass")
        assert "'glass'" in str(caught.value) and type(vae).__name__ in str(caught.value)
    assert pipe.list_styles() == {}


def test_a_style_of_an_autoencoder_is_refused_by_a_decoder_that_paints_in_words_that_help(components, taesd):
    painter = ConditionalDecoder(4, cond_dim=32, code_dim=8, channels=(8, 8, 8), depth=1, scale=4).eval()
    pipe = StyleMambaPipeline(**components(vae=taesd, style_decoder=painter))
    with pytest.raises(StyleFileError, match="load the style into a pipeline of that autoencoder alone"):
        pipe.load_style(make_style(pipe.vae, 1), "glass")


def test_a_weight_says_how_much_of_a_style_a_decoder_that_paints_gives(components, photo):
    painter = ConditionalDecoder(4, cond_dim=32, code_dim=8, channels=(8, 8, 8), depth=1, scale=4).eval()
    pipe = StyleMambaPipeline(**components(vae=small_vae, style_decoder=painter))
    plain = result(pipe, photo, prompt="any", strength=0)
    for name, seed in (("glass", 1), ("ink", 2)):
        pipe.load_style(make_style(pipe.vae, seed, decoder="none"), name)

    def change(*weights) -> float:
        pipe.set_styles(["glass", "ink"][: len(weights)], weights)
        return float((result(pipe, photo) - plain).abs().mean())

    changes = [change(weight) for weight in (1.0, 0.5, 0.1, 0.01)]
    assert changes == sorted(changes, reverse=True) and changes[-1] < 0.05 * changes[0]
    assert change(0.7, 0.3) > 0.5 * changes[0]  # a mixture is no weaker for being one
    pipe.set_styles("glass", np.float32(1.0))
    assert float((result(pipe, photo) - plain).abs().mean()) == pytest.approx(changes[0], rel=1e-5)


@pytest.mark.parametrize("prompt", [None, "neon city at night"])
@pytest.mark.parametrize("output", ["pt", "latent"])
def test_a_weight_is_a_strength_where_a_decoder_paints(components, photo, prompt, output):
    """Once, not once for the latents and once more for the picture; and what is learnt of the decoder stays whole."""
    painter = ConditionalDecoder(4, cond_dim=32, code_dim=8, channels=(8, 8, 8), depth=1, scale=4).eval()
    pipe = StyleMambaPipeline(**components(vae=small_vae, style_decoder=painter))
    style = make_style(pipe.vae, 1, decoder="none")
    style.decoder = {k: torch.full_like(v, 0.05) for k, v in StyleDecoder(painter).full_changes().items()}
    style.info["base"]["style_decoder"] = describe_component(painter)
    pipe.load_style(style, "glass")

    def painted(weight, strength):
        pipe.set_styles("glass", weight)
        return pipe(photo, prompt, strength=strength, output_type=output).images

    torch.testing.assert_close(painted(0.5, 1.0), painted(1.0, 0.5), atol=1e-5, rtol=0)
    torch.testing.assert_close(painted(0.5, 0.5), painted(1.0, 0.25), atol=1e-5, rtol=0)
    assert (painted(0.5, 1.0) - painted(1.0, 1.0)).abs().max() > 1e-3
    z = pipe.encode_image(photo)
    pipe.set_styles("glass", 0.5)
    steps = pipe.decode(pipe.fuse(z), plain=z)
    pipe.set_styles("glass", 1.0)
    torch.testing.assert_close(steps, pipe.decode(pipe.fuse(z), strength=0.5, plain=z), atol=1e-5, rtol=0)


def test_one_prompt_fuses_a_batch(styled, photo):
    z = latents_of(styled, torch.cat([photo, photo.flip(-1)]))
    embeds = styled.encode_prompt("neon city at night")
    with torch.no_grad():
        for names in (["glass"], ["glass", "ink"], []):
            if names:
                styled.set_styles(names)
            else:
                styled.unload_styles()
            wanted = torch.cat([styled.fuse(one, embeds) for one in z.split(1)])
            torch.testing.assert_close(styled.fuse(z, embeds), wanted, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="prompt_embeds have shape"):
        styled.fuse(z, embeds.expand(3, -1))


def test_a_style_that_would_change_the_encoder_is_refused(pipe):
    name = "encoder.conv_in.weight"
    style = make_style(pipe.vae, 1, decoder="none")
    style.decoder[name] = torch.zeros_like(pipe.vae.get_parameter(name))
    with pytest.raises(StyleFileError, match=name):
        pipe.load_style(style, "glass")


def test_a_style_without_a_decoder_serves_every_autoencoder_of_its_channels(pipe, taesd, photo):
    pipe.load_style(make_style(taesd(), 1, decoder="none"), "glass")
    assert result(pipe, photo).shape == photo.shape


def test_a_fusion_that_cannot_be_built_is_refused_and_not_loaded(pipe):
    style = make_style(pipe.vae, 1)
    style.fusion_config["depth"] = 7
    with pytest.raises(StyleFileError, match="depth 7"):
        pipe.load_style(style, "glass")
    assert pipe.list_styles() == {}


def warnings_of_loading(pipe, style, caplog):
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="stylemamba"):
        pipe.load_style(style, f"style{len(pipe.list_styles())}")
    return [record.getMessage() for record in caplog.records]


def test_other_weights_of_the_same_shape_are_a_warning(pipe, caplog):
    other = copy.deepcopy(pipe.vae)
    with torch.no_grad():
        other.decoder.conv_in.bias += 0.1
    assert warnings_of_loading(pipe, make_style(pipe.vae, 1), caplog) == []
    (message,) = warnings_of_loading(pipe, make_style(other, 1), caplog)
    assert "fitted on other weights of the autoencoder (AutoencoderKL)" in message


def test_other_weights_of_a_decoder_that_paints_are_a_warning(components, caplog):
    painter = ConditionalDecoder(4, cond_dim=32, code_dim=8, channels=(8, 8, 8), depth=1, scale=4).eval()
    pipe = StyleMambaPipeline(**components(vae=small_vae, style_decoder=painter))
    style = make_style(pipe.vae, 1, decoder="none")
    style.info["base"]["style_decoder"] = describe_component(painter)
    assert warnings_of_loading(pipe, style, caplog) == []
    with torch.no_grad():
        painter.conv_out.bias += 0.1
    (message,) = warnings_of_loading(pipe, style, caplog)
    assert "fitted on other weights of the decoder that paints (ConditionalDecoder)" in message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_same_weights_in_half_precision_are_none(pipe, dtype, caplog):
    style = make_style(pipe.vae, 1)
    pipe.to(dtype)
    assert warnings_of_loading(pipe, style, caplog) == []
