"""What SaMam and Mamba-ST share: the units of a style, and a decoder that the style steers."""

import pytest
import torch

from stylemamba import MambaST, SaMam
from stylemamba.pipeline.controls import in_palette, palette
from stylemamba.pipeline.image_guided_model import StyleUnits
from stylemamba.pipeline.siglip_encoder import SiglipEncoder


class TestStyleUnits:
    def test_numbers_of_many_styles_come_out_around_0_with_a_spread_of_1(self):
        torch.manual_seed(0)
        units, mean, spread = StyleUnits(3), torch.tensor([5.0, -2.0, 100.0]), torch.tensor([0.1, 1.0, 20.0])
        for _ in range(400):
            units(mean + spread * torch.randn(4, 3))
        told = units.eval()(mean + spread * torch.randn(2000, 3))
        torch.testing.assert_close(told.mean(0), torch.zeros(3), atol=0.4, rtol=0)
        torch.testing.assert_close(told.std(0), torch.ones(3), atol=0.2, rtol=0)

    def test_a_style_means_the_same_alone_and_among_others(self):
        units, numbers = StyleUnits(3), torch.randn(4, 3)
        units(numbers)
        units.eval()
        torch.testing.assert_close(units(numbers)[:1], units(numbers[:1]))

    def test_the_first_styles_count_in_full_and_use_changes_nothing(self):
        units, numbers = StyleUnits(2), torch.tensor([[1.0, 10.0], [3.0, 10.0]])
        torch.testing.assert_close(units(numbers), torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), atol=1e-3, rtol=0)
        before = {name: buffer.clone() for name, buffer in units.named_buffers()}
        units.eval()(torch.randn(5, 2))
        assert all(torch.equal(buffer, before[name]) for name, buffer in units.named_buffers())


STYLED = {
    "decoder": {"latent_channels": 4, "cond_dim": 6, "code_dim": 8, "channels": [12, 8, 6], "depth": 1},
    "tower": {"projection_size": 6, "channels": [4, 4, 4, 4, 4], "hidden_size": 8, "image_size": 32},
}


@pytest.fixture(params=[(SaMam, {"groups": 1}), (MambaST, {"depth": 1})], ids=["samam", "mamba-st"])
def model(request):
    kind, size = request.param
    torch.manual_seed(0)
    small = {"embed_dim": 8, "patch_size": 4, "encoder_depth": 1, "d_state": 2, "styled_decoder": STYLED}
    return kind(**small, **size).eval()


def awake(model):
    """One that does something, as after training."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


class TestStyledDecoder:
    def test_paints_in_the_colours_of_the_style_whatever_was_learnt(self, model):
        content, style = torch.rand(2, 3, 32, 24), 0.6 - 0.2 * torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            result = awake(model)(content, style)
        for of_result, of_style in zip(palette(result), palette(style), strict=True):
            torch.testing.assert_close(of_result, of_style.expand_as(of_result), rtol=1e-2, atol=1e-3)

    def test_at_strength_0_knows_no_style(self, model):
        content, one, other = torch.rand(2, 3, 30, 21), *torch.rand(2, 1, 3, 64, 64)
        awake(model)
        with torch.no_grad():
            assert torch.equal(model(content, one, strength=0.0), model(content, other, strength=0.0))
            assert (model(content, one) - model(content, other)).abs().mean() > 1e-3

    @pytest.mark.parametrize("strength", [0.3, 1.4, torch.tensor([0.5, 1.0]).view(2, 1, 1, 1)])
    def test_between_the_pictures_are_mixed(self, model, strength):
        content, style = torch.rand(2, 3, 30, 21), torch.rand(1, 3, 64, 64)
        awake(model)
        with torch.no_grad():
            plain, painted, mixed = (model(content, style, strength=s) for s in (0.0, 1.0, strength))
        torch.testing.assert_close(mixed, (1 - strength) * plain + strength * painted, atol=1e-5, rtol=1e-4)

    def test_what_is_carried_comes_back(self, model):
        features, signature = torch.randn(2, 8, 4, 4), torch.randn(2, 18)
        tokens, amount, back = model.uncarry(model.carry(features, signature))
        assert torch.equal(tokens, features) and torch.equal(amount, torch.ones(2, 1))
        torch.testing.assert_close(back, signature)
        assert not model.uncarry(model.carry(features))[1].any()

    def test_half_a_style_is_the_same_style_at_half_strength(self, model):
        features, signature = torch.randn(1, 8, 4, 4), torch.randn(1, 18)
        half = torch.lerp(model.carry(features), model.carry(features, signature), 0.5)
        tokens, amount, back = model.uncarry(half)
        torch.testing.assert_close(tokens, features)
        torch.testing.assert_close(amount, torch.full((1, 1), 0.5))
        torch.testing.assert_close(back, signature)

    def test_a_signature_is_what_the_tower_says_and_the_palette(self, model):
        style = torch.rand(2, 3, 40, 50)
        tower = SiglipEncoder(None, image_encoder=model.style_tower)
        with torch.no_grad():
            code, mean, root = model.signature(style).split((6, 3, 9), 1)
            torch.testing.assert_close(code, tower.embed_images(style))
        torch.testing.assert_close((mean, root.unflatten(1, (3, 3))), palette(style))

    def test_is_given_latents_code_and_strength(self, model):
        """At half strength: half the decoder's picture at half strength, half the same in the style's palette."""
        torch.manual_seed(1)
        features, code = torch.randn(1, 8, 5, 6), torch.randn(1, 6)
        mean, root = palette(torch.rand(1, 3, 16, 16))
        carried = model.carry(features, torch.cat([code, mean, root.flatten(1)], 1))
        with torch.no_grad():
            got = model.decode(torch.lerp(model.carry(features), carried, 0.5))
            picture = model.decoder(model.to_latents(features), code, 0.5) / 2 + 0.5
            wanted = 0.5 * picture + 0.5 * in_palette(picture, mean, root)
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


def test_a_styled_decoder_refuses_other_patches():
    with pytest.raises(ValueError, match="styled_decoder needs patch_size=4, got 8"):
        SaMam(embed_dim=8, patch_size=8, d_state=2, styled_decoder=STYLED)
