"""A styled decoder is the autoencoder with other weights, and the autoencoder itself never notices."""

import copy

import pytest
import torch
from diffusers import AutoencoderKL

from stylemamba.pipeline.conditional_decoder import ConditionalDecoder
from stylemamba.pipeline.style_decoder import StyleDecoder, apply_change, blend_changes, decoder_weights


def without_quantisation(vae):
    """A decoder as in SD3 and Flux: 16 channels, no convolution between latent and decoder."""
    config = {**vae().config, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
    return AutoencoderKL.from_config(config).eval()


@pytest.fixture(params=["AutoencoderKL", "AutoencoderTiny", "AutoencoderKL of 16 channels"])
def vae(request, components, taesd):
    kinds = {
        "AutoencoderKL": lambda: components()["vae"],
        "AutoencoderTiny": lambda: components(vae=taesd)["vae"],
        "AutoencoderKL of 16 channels": lambda: without_quantisation(lambda: components()["vae"]),
    }
    torch.manual_seed(0)
    return kinds[request.param]().requires_grad_(False)


def latents_of(vae, batch=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, vae.config.latent_channels, 4, 3, generator=generator)


def decode(vae, latents):
    with torch.no_grad():
        return vae.decode(latents).sample


def random_full(decoder, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(change.shape, generator=generator) * 0.02
        for name, change in decoder.full_changes().items()
    }


def random_low_rank(decoder, seed=1, rank=3):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(up.shape, generator=generator) * 0.1, down)
        for name, (up, down) in decoder.low_rank_changes(rank, seed).items()
    }


each_kind = pytest.mark.parametrize("changes_of", [random_full, random_low_rank], ids=["full", "low rank"])


def by_hand(vae, changes, strength):
    """A copy of the autoencoder with the change written into its weights."""
    changed = copy.deepcopy(vae)
    with torch.no_grad():
        for name, change in changes.items():
            weight = changed.get_parameter(name)
            full = change[0] @ change[1] if isinstance(change, tuple) else change
            weight += strength * full.reshape(weight.shape)
    return changed


def byte_copy(vae):
    return {name: value.clone() for name, value in vae.state_dict().items()}


# Nothing changed


def test_without_changes_it_decodes_as_the_autoencoder_bit_for_bit(vae):
    latents = latents_of(vae)
    with torch.no_grad():
        assert torch.equal(StyleDecoder(vae)(latents), decode(vae, latents))


@each_kind
def test_strength_zero_decodes_as_the_autoencoder_bit_for_bit(vae, changes_of):
    decoder, latents = StyleDecoder(vae), latents_of(vae)
    decoder.changes = changes_of(decoder)
    with torch.no_grad():
        assert torch.equal(decoder(latents, 0.0), decode(vae, latents))
        assert not torch.equal(decoder(latents, 1.0), decode(vae, latents))


@pytest.mark.parametrize("start", ["full", "low rank"])
def test_changes_start_at_zero(vae, start):
    decoder, latents = StyleDecoder(vae), latents_of(vae)
    decoder.changes = decoder.full_changes() if start == "full" else decoder.low_rank_changes(4, seed=0)
    with torch.no_grad():
        assert torch.equal(decoder(latents), decode(vae, latents))


# Something changed


@each_kind
@pytest.mark.parametrize("strength", [1.0, 0.5, 1.5, -1.0])
def test_it_decodes_as_an_autoencoder_whose_weights_were_changed_by_hand(vae, changes_of, strength):
    decoder, latents = StyleDecoder(vae), latents_of(vae)
    decoder.changes = changes_of(decoder)
    wanted = decode(by_hand(vae, decoder.changes, strength), latents)
    with torch.no_grad():
        torch.testing.assert_close(decoder(latents, strength), wanted)
    assert (wanted - decode(vae, latents)).abs().max() > 1e-3


@each_kind
def test_weights_are_linear_in_the_strength(vae, changes_of):
    for name, change in changes_of(StyleDecoder(vae)).items():
        weight = vae.get_parameter(name)
        at = [apply_change(weight, change, strength) for strength in (0.0, 1.0, 2.0)]
        assert torch.equal(at[0], weight)
        torch.testing.assert_close(at[2] - at[1], at[1] - at[0], atol=1e-6, rtol=1e-3)


@each_kind
def test_the_autoencoder_is_never_touched(vae, changes_of):
    vae.requires_grad_(True).train()
    before = byte_copy(vae)
    decoder = StyleDecoder(vae)
    decoder.changes = {
        name: tuple(part.requires_grad_() for part in change)
        if isinstance(change, tuple)
        else change.requires_grad_()
        for name, change in changes_of(decoder).items()
    }
    decoder(latents_of(vae), 0.7).square().mean().backward()
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in vae.parameters())
    assert all(part.training for part in vae.modules())
    gradients = [
        p.grad
        for change in decoder.changes.values()
        for p in ([change] if isinstance(change, torch.Tensor) else change)
    ]
    assert all(gradient is not None for gradient in gradients)


def test_weights_are_shared_with_the_autoencoder_not_copied(vae):
    ours, theirs = dict(StyleDecoder(vae).decoder.named_parameters()), dict(vae.named_parameters())
    assert all(value.data_ptr() == theirs[name].data_ptr() for name, value in ours.items())


# Which weights


def test_of_a_decoder_that_paints_a_fit_changes_what_steers_it_and_no_filter():
    painter = ConditionalDecoder(4, cond_dim=32, code_dim=8, channels=(8, 8, 8), depth=1, scale=4)
    changes = StyleDecoder(painter).full_changes()
    filters = {name for name, p in painter.named_parameters() if p.ndim == 4} | {
        name.replace("weight", "bias") for name, p in painter.named_parameters() if p.ndim == 4
    }
    assert changes and not filters & changes.keys()
    assert changes.keys() | filters == dict(painter.named_parameters()).keys()


def test_full_changes_cover_all_that_decodes_and_nothing_that_encodes(vae):
    parts = {name.partition(".")[0] for name, _ in vae.named_parameters()}
    changes = StyleDecoder(vae).full_changes()
    assert changes.keys() == decoder_weights(vae).keys()
    assert changes.keys() == {
        name for name, _ in vae.named_parameters() if not name.startswith(("encoder.", "quant_conv."))
    }
    assert {name.partition(".")[0] for name in changes} == parts - {"encoder", "quant_conv"}


def test_low_rank_changes_are_of_the_rank_and_the_seed_asked_for(vae):
    decoder = StyleDecoder(vae)
    one, again, other = (decoder.low_rank_changes(3, seed=seed) for seed in (0, 0, 1))
    for name, (up, down) in one.items():
        weight = vae.get_parameter(name)
        assert up.shape == (weight.shape[0], 3) and down.shape == (3, weight[0].numel())
        assert torch.equal(down, again[name][1]) and not torch.equal(down, other[name][1])


def test_low_rank_changes_of_a_large_decoder_stay_at_latent_resolution(components):
    names = StyleDecoder(components()["vae"]).low_rank_changes(4, seed=0)
    assert all("conv_in." in name or "mid_block." in name for name in names)
    assert any("attentions" in name for name in names) and "decoder.conv_in.weight" in names


def test_of_a_decoder_that_paints_only_what_the_embedding_steers_is_changed():
    painter = ConditionalDecoder(4, cond_dim=32, code_dim=8, channels=(8, 8, 8), depth=1, scale=4)
    steering = {
        name
        for name, _ in painter.named_parameters()
        if any(part in name for part in ("to_code.", "to_scale_shift.", "to_amount."))
    }
    decoder = StyleDecoder(painter)
    assert decoder.full_changes().keys() == steering
    matrices = {name for name in steering if painter.get_parameter(name).ndim > 1}
    assert decoder.low_rank_changes(2, seed=0).keys() == matrices
    assert any(name.startswith("norm_widen.") for name in matrices)  # the last, which sets the colours


# Precision and hosts


def test_a_half_precision_autoencoder_can_be_decoded_in_full(vae):
    half, latents = copy.deepcopy(vae).to(torch.bfloat16), latents_of(vae)
    wanted = decode(copy.deepcopy(half).float(), latents)
    decoder = StyleDecoder(half, random_full(StyleDecoder(vae)), dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(decoder(latents, 0.0), wanted)
        assert decoder(latents).dtype == torch.float32
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_changes_stored_in_half_precision_fit_a_full_precision_autoencoder(vae):
    decoder, latents = StyleDecoder(vae), latents_of(vae)
    full = random_full(decoder)
    decoder.changes = {name: change.half() for name, change in full.items()}
    wanted = decode(by_hand(vae, decoder.changes, 1.0), latents)
    with torch.no_grad():
        torch.testing.assert_close(decoder(latents), wanted)


@each_kind
def test_an_autoencoder_made_under_inference_mode_can_be_trained_on(vae, changes_of):
    """ComfyUI loads models so; autograd refuses their weights."""
    with torch.inference_mode():
        made_there = copy.deepcopy(vae)
    assert next(made_there.parameters()).is_inference()
    decoder = StyleDecoder(made_there)
    changes = changes_of(decoder)
    latents = latents_of(vae).requires_grad_()
    decoder.changes = changes
    image = decoder(latents)
    image.square().mean().backward()
    assert latents.grad.abs().max() > 0
    torch.testing.assert_close(image.detach(), decode(by_hand(vae, changes, 1.0), latents))


# Blending


@pytest.fixture
def pair(components):
    decoder = StyleDecoder(components()["vae"])
    return random_full(decoder, 1), random_low_rank(decoder, 2)


def dense(changes):
    return {
        k: (c[0] @ c[1] if isinstance(c, tuple) else c.flatten(1) if c.ndim > 1 else c)
        for k, c in changes.items()
    }


def test_a_blend_with_weights_one_and_zero_is_the_first_style_itself(pair):
    for weights, wanted in (((1, 0), pair[0]), ((0, 1), pair[1])):
        blended = blend_changes(pair, weights)
        assert blended.keys() == wanted.keys()
        assert all(blended[name] is wanted[name] for name in wanted)


def test_a_blend_is_the_weighted_sum_with_zero_where_a_style_changes_nothing(pair):
    blended, (full, low_rank) = blend_changes(pair, [0.7, -0.2]), map(dense, pair)
    assert blended.keys() == full.keys() | low_rank.keys()
    for name, change in blended.items():
        wanted = 0.7 * full[name] - 0.2 * low_rank.get(name, 0.0)
        torch.testing.assert_close(change, wanted)


def test_a_style_without_a_decoder_takes_no_part_in_the_blend(pair):
    assert blend_changes([{}, pair[1]], [0.5, 1.0]) == pair[1]
    assert blend_changes([{}, {}], [0.5, 0.5]) == {}


def test_a_blend_decodes_as_both_changes_one_after_the_other(components, pair):
    vae = components()["vae"]
    latents = latents_of(vae)
    wanted = decode(by_hand(by_hand(vae, pair[0], 0.6), pair[1], 0.4), latents)
    with torch.no_grad():
        torch.testing.assert_close(StyleDecoder(vae, blend_changes(pair, [0.6, 0.4]))(latents), wanted)
