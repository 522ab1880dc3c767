"""The decoder that paints: what strength and embedding do to it, whatever its weights are."""

import math

import pytest
import torch
import torch.nn.functional as F

from stylemamba.pipeline.conditional_decoder import (
    FINEST,
    ConditionalDecoder,
    FineLight,
    Grain,
    StyleNorm,
    _conv_at_twice,
)
from stylemamba.pipeline.controls import blur, luminance


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return ConditionalDecoder(latent_channels=4, cond_dim=6, code_dim=8, channels=(12, 8, 6), depth=1).eval()


def inputs(batch=2, height=8, width=12):
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, 4, height, width, generator=generator),
        F.normalize(torch.randn(batch, 6, generator=generator), dim=-1),
    )


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, 1.5])
def test_style_norm_gives_each_channel_the_asked_statistics_mixed_by_strength(strength):
    """At strength s: (1 - s) x + s (scale (x - mean) / deviation + shift), deviation with 1e-3 added."""
    torch.manual_seed(0)
    norm, x, code = StyleNorm(5, 3), torch.randn(2, 5, 9, 7) * 3 + 2, torch.randn(2, 3)
    scale, shift = (code @ norm.to_scale_shift.weight.T + norm.to_scale_shift.bias)[:, :, None, None].chunk(
        2, 1
    )
    mean = x.mean((2, 3), keepdim=True)
    deviation = ((x - mean) ** 2).mean((2, 3), keepdim=True).sqrt()
    wanted = (1 - strength) * x + strength * (scale * (x - mean) / (deviation + 1e-3) + shift)
    torch.testing.assert_close(norm(x, code, strength), wanted, atol=1e-5, rtol=1e-4)


def test_a_flat_channel_has_no_deviation_and_stays_finite():
    norm = StyleNorm(2, 3)
    x = torch.full((1, 2, 4, 4), 1e3, requires_grad=True)
    norm(x, torch.zeros(1, 3), 1.0).sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("size", [(4, 4), (5, 7), (8, 12), (9, 16)])
@pytest.mark.parametrize("scale", [2, 4])
def test_the_picture_is_as_large_as_the_latent_says_odd_or_even(size, scale):
    decoder = ConditionalDecoder(4, 6, 8, (12, 8, 6), depth=1, scale=scale)
    latents, embeds = inputs(1, *size)
    assert decoder(latents, embeds).shape == (1, 3, size[0] * scale, size[1] * scale)


def test_pixels_stay_in_place():
    """A mirrored latent gives the mirrored picture if every filter is symmetric: no stage may shift by a pixel."""
    torch.manual_seed(0)
    decoder = ConditionalDecoder(4, 6, 8, (12, 8, 6), depth=1)
    with torch.no_grad():
        for module in decoder.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.copy_((module.weight + module.weight.flip(-1)) / 2)
                if module.stride == (2, 2):  # its window starts at the left pixel of each pair
                    module.weight[..., 0] = 0
                    module.weight[..., 2] = module.weight[..., 1]
        latents, embeds = inputs(1, 8, 12)
        picture = decoder(latents, embeds)
        torch.testing.assert_close(decoder(latents.flip(-1), embeds).flip(-1), picture, atol=1e-4, rtol=1e-3)


def test_at_strength_zero_the_style_has_no_say(decoder):
    latents, embeds = inputs()
    with torch.no_grad():
        assert torch.equal(decoder(latents, embeds, 0.0), decoder(latents, -embeds, 0.0))
        assert (decoder(latents, embeds, 1.0) - decoder(latents, -embeds, 1.0)).abs().max() > 1e-3


@torch.no_grad()
def test_between_zero_and_one_the_pictures_are_mixed(decoder):
    """Not the statistics: halfway between two sets of them may be a third style."""
    z, embeds = inputs()
    strengths = torch.tensor([[0.25], [0.7]])
    plain, painted, mixed = (decoder(z, embeds, s) for s in (0.0, 1.0, strengths))
    assert (plain - painted).abs().mean() > 1e-3
    shares = strengths[:, :, None, None]
    torch.testing.assert_close(mixed, (1 - shares) * plain + shares * painted)


@torch.no_grad()
def test_above_one_it_paints_as_at_one(decoder):
    latents, embeds = inputs()
    assert torch.equal(decoder(latents, embeds, 1.5), decoder(latents, embeds, 1.0))


def test_each_picture_of_a_batch_has_its_own_style_and_strength(decoder):
    latents, embeds = inputs()
    strength = torch.tensor([[0.4], [1.0]])
    with torch.no_grad():
        together = decoder(latents, embeds, strength)
        for i in range(2):
            alone = decoder(latents[i : i + 1], embeds[i : i + 1], strength[i].item())
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-4)


class TestFineLight:
    @pytest.fixture
    def layer(self):
        torch.manual_seed(0)
        return FineLight(4, code_dim=8, scale=4).requires_grad_(False)

    @pytest.mark.parametrize("amount", [0.0, 0.3, 1.0])
    def test_mixes_the_finest_light_of_both(self, layer, amount):
        """With H what a blur over FINEST removes: amount * (own - H(painted)), alike for red, green and blue."""
        layer.to_amount.bias.fill_(torch.logit(torch.tensor(amount)).clamp(-80, 80))
        picture, latents = torch.rand(2, 3, 24, 32), torch.randn(2, 4, 6, 8)
        added = layer(picture, latents, torch.zeros(2, 8), 1.0)
        painted = luminance(picture)
        wanted = amount * (layer.own(latents) - (painted - blur(painted, FINEST)))
        torch.testing.assert_close(added, wanted, atol=1e-6, rtol=1e-5)

    def test_the_style_says_how_much(self, layer):
        layer.to_amount.weight.fill_(1.0)
        picture, latents = torch.rand(1, 3, 24, 32), torch.randn(1, 4, 6, 8)
        little, much = (layer(picture, latents, torch.full((1, 8), c), 1.0) for c in (-0.5, 0.5))
        ratio = math.exp(4)  # sigmoid(4) / sigmoid(-4)
        torch.testing.assert_close(much, ratio * little, atol=1e-5, rtol=1e-3)

    @pytest.mark.parametrize("size", [(4, 4), (5, 7), (9, 16)])
    @pytest.mark.parametrize("scale", [2, 4])
    def test_in_a_decoder(self, size, scale):
        torch.manual_seed(0)
        decoder = ConditionalDecoder(4, 6, 8, (12, 8, 6), depth=1, scale=scale, reads_fine_light=True).eval()
        plain = ConditionalDecoder(4, 6, 8, (12, 8, 6), depth=1, scale=scale).eval()
        plain.load_state_dict(decoder.state_dict(), strict=False)
        latents, embeds = inputs(1, *size)
        with torch.no_grad():
            picture, without = decoder(latents, embeds), plain(latents, embeds)
            assert picture.shape == (1, 3, size[0] * scale, size[1] * scale)
            assert (picture - without).abs().max() > 1e-3
            assert torch.equal(decoder(latents, embeds, 0.0), plain(latents, embeds, 0.0))


def test_only_the_direction_of_the_embedding_counts(decoder):
    latents, embeds = inputs()
    with torch.no_grad():
        torch.testing.assert_close(decoder(latents, embeds), decoder(latents, embeds * 7))


def test_gradients_reach_latent_embedding_and_every_weight(decoder):
    latents, embeds = (t.requires_grad_() for t in inputs())
    decoder(latents, embeds).square().sum().backward()
    assert latents.grad.abs().sum() > 0 and embeds.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in decoder.parameters() if p.ndim > 1)


def test_it_is_saved_and_loaded_bit_for_bit(decoder, tmp_path):
    decoder.save_pretrained(tmp_path)
    latents, embeds = inputs()
    with torch.no_grad():
        assert torch.equal(
            ConditionalDecoder.from_pretrained(tmp_path)(latents, embeds), decoder(latents, embeds)
        )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda z, e: (z[:, :3], e), "wanted (B, 4, h, w)"),
        (lambda z, e: (z, e[:, :5]), "wanted (B, 6)"),
        (lambda z, e: (z, None), "give a prompt"),
    ],
)
def test_wrong_inputs_are_named(decoder, change, words):
    with pytest.raises(ValueError, match="wanted") as error:
        decoder(*change(*inputs()))
    assert words in str(error.value)


def test_a_scale_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match="wanted 2 or 4"):
        ConditionalDecoder(scale=8)


def test_default_widths_fit_the_bundled_model():
    assert math.isclose(sum(p.numel() for p in ConditionalDecoder().parameters()), 1.2e6, rel_tol=0.05)


@pytest.mark.parametrize("size", [(5, 7), (8, 4)])
def test_a_convolution_at_twice_the_size(size):
    """As upsampling, repeating the border, and then convolving; nothing but the order of sums is different."""
    torch.manual_seed(0)
    conv, x = torch.nn.Conv2d(6, 4, 3), torch.randn(2, 6, *size)
    twice = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    wanted = conv(F.pad(twice, (1, 1, 1, 1), mode="replicate"))
    torch.testing.assert_close(_conv_at_twice(x, conv), wanted, rtol=1e-5, atol=1e-5)


class TestGrain:
    def test_adds_to_each_channel_as_much_noise_as_the_style_asks_for(self):
        """x + s * amount(code) * noise: per channel a multiple of one map, which has a mean of 0 and a variance of 1."""
        torch.manual_seed(0)
        grain, x, code = Grain(3, 2, side=64).eval(), torch.randn(2, 3, 64, 64), torch.randn(2, 2)
        torch.nn.init.normal_(grain.to_amount.weight)
        added = grain(x, code, 0.5) - x
        amount = code @ grain.to_amount.weight.T  # (B, C)
        noise = added[0, 0] / (0.5 * amount[0, 0])
        assert abs(noise.mean()) < 0.05 and abs(noise.var() - 1) < 0.05
        torch.testing.assert_close(added, 0.5 * amount[:, :, None, None] * noise, atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(grain(x, code, 0.0), x)

    def test_a_new_one_adds_nothing_but_learns(self):
        grain, x, code = Grain(3, 2), torch.randn(1, 3, 9, 7), torch.randn(1, 2)
        assert torch.equal(grain(x, code, 1.0), x)
        grain(x, code, 1.0).square().sum().backward()
        assert grain.to_amount.weight.grad.abs().min() > 0

    def test_lies_still_in_use_and_in_fits_and_elsewhere_where_it_drifts(self):
        torch.manual_seed(0)
        grain, x, code = Grain(1, 2, side=8), torch.zeros(1, 1, 20, 12), torch.ones(1, 2)
        torch.nn.init.ones_(grain.to_amount.weight)
        still = grain.eval()(x, code, 1.0)
        assert torch.equal(still, grain(x, code, 1.0)) and torch.equal(still, grain.train()(x, code, 1.0))
        assert torch.equal(still[..., 8:16, :8], still[..., :8, :8])  # a tile
        grain.drifts = True
        moved = [grain(x, code, 1.0) for _ in range(3)]
        assert not torch.equal(moved[0], moved[1]) or not torch.equal(moved[1], moved[2])
        for one in moved:
            torch.testing.assert_close(
                one[..., :8, :8].flatten().sort()[0], still[..., :8, :8].flatten().sort()[0]
            )

    def test_gives_strokes_to_a_flat_picture(self, decoder):
        flat = torch.full((1, 4, 16, 16), 0.3)
        _, embeds = inputs(1)
        inner = (..., slice(24, 40), slice(24, 40))  # away from the borders
        with torch.no_grad():
            assert decoder(flat, embeds)[inner].std(dim=(2, 3)).max() < 1e-5
            torch.nn.init.constant_(decoder.grain_low.to_amount.bias, 1.0)
            assert decoder(flat, embeds)[inner].std(dim=(2, 3)).max() > 1e-3
