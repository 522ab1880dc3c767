"""Mixing directions, strength and masks."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from stylemamba.pipeline.style_mixing import composite, interpolate_strength, mix_directions


def directions(count, width=8, seed=0, dtype=torch.float32):
    """Unit vectors within 90 degrees of each other, as those of prompts are."""
    generator = torch.Generator().manual_seed(seed)
    return list(normalize(torch.rand(count, width, generator=generator, dtype=dtype), dim=-1))


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


class TestMixDirections:
    @pytest.mark.parametrize("mode", ["linear", "slerp"])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
    def test_one_weight_alone_returns_its_direction_exactly(self, mode, dtype):
        three = [direction.to(dtype) for direction in directions(3)]
        for index, direction in enumerate(three):
            weights = [float(index == other) for other in range(3)]
            assert torch.equal(mix_directions(*three, weights=weights, mode=mode), direction)

    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(
        weights=st.lists(st.floats(0.01, 10), min_size=1, max_size=4),
        seed=st.integers(0, 100),
        mode=st.sampled_from(["linear", "slerp"]),
    )
    def test_unit_length_and_blind_to_the_scale_of_the_weights(self, weights, seed, mode):
        given_ = directions(len(weights), seed=seed, dtype=torch.float64)
        mixed = mix_directions(*given_, weights=weights, mode=mode)
        assert math.isclose(mixed.norm(), 1, rel_tol=1e-9)
        doubled = mix_directions(*given_, weights=[2 * weight for weight in weights], mode=mode)
        torch.testing.assert_close(mixed, doubled)

    def test_linear(self):
        a, b, c = directions(3)
        desired = normalize(0.5 * a - 0.2 * b + 2 * c, dim=-1)
        torch.testing.assert_close(mix_directions(a, b, 7 * c, weights=[0.5, -0.2, 2]), desired)

    def test_slerp_turns_at_constant_speed(self):
        a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
        for t in (0.1, 0.5, 0.8):
            mixed = mix_directions(a, b, weights=[1 - t, t], mode="slerp")
            torch.testing.assert_close(torch.atan2(mixed[1], mixed[0]), torch.tensor(t * math.pi / 2))

    def test_slerp_of_several_goes_on_from_the_mix_so_far(self):
        a, b, c = directions(3)
        pair = mix_directions(a, b, weights=[1, 3], mode="slerp")
        desired = mix_directions(pair, c, weights=[4, 4], mode="slerp")
        torch.testing.assert_close(mix_directions(a, b, c, weights=[1, 3, 4], mode="slerp"), desired)

    def test_slerp_of_nearly_equal_directions(self):
        (a,) = directions(1)
        for other in (a, normalize(a + 1e-7, dim=-1)):
            torch.testing.assert_close(mix_directions(a, other, weights=[1, 1], mode="slerp"), a)

    def test_batches(self):
        a, b = torch.stack(directions(3)), torch.stack(directions(3, seed=1))
        for mode in ("linear", "slerp"):
            mixed = mix_directions(a, b, weights=[1, 2], mode=mode)
            single = [mix_directions(a[i], b[i], weights=[1, 2], mode=mode) for i in range(3)]
            torch.testing.assert_close(mixed, torch.stack(single))

    def test_contrary_prompts_warn(self):
        a = torch.tensor([1.0, 0.0])
        b = normalize(torch.tensor([-0.3, 1.0]), dim=-1)
        with pytest.warns(UserWarning, match="point apart"):
            mix_directions(a, b, weights=[1, 1])
        mix_directions(a, b, weights=[1, 0])

    def test_exception(self):
        a, b = directions(2)
        with pytest.raises(ValueError, match=r"of the widths \[2, 3\]; wanted all of one encoder"):
            mix_directions(torch.ones(2), torch.ones(3), weights=[0.5, 0.5])
        with pytest.raises(ValueError, match="sum 0"):
            mix_directions(a, b, weights=[1, -1])
        with pytest.raises(ValueError, match="one weight for each"):
            mix_directions(a, b, weights=[1])
        with pytest.raises(ValueError, match="'slerp'"):
            mix_directions(a, b, weights=[1, 1], mode="cubic")
        with pytest.raises(ValueError, match="none below 0"):
            mix_directions(a, b, weights=[1, -0.5], mode="slerp")
        for mode in ("linear", "slerp"):
            with pytest.raises(ValueError, match="cancel"), pytest.warns(UserWarning, match="point apart"):
                mix_directions(a, -a, weights=[1, 1], mode=mode)


class TestComposite:
    @pytest.mark.parametrize("shape", [(5, 6), (2, 5, 6), (2, 1, 5, 6)])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
    def test_bit_identical_outside_the_mask(self, shape, dtype):
        X, Y = torch.rand(2, 2, 3, 5, 6).to(dtype)
        Y[..., 0, 0] = math.nan
        mask = torch.ones(shape)
        mask[..., :3, :] = 0
        out = composite(X, Y, mask)
        assert out.dtype == dtype
        assert torch.equal(out[..., :3, :], X[..., :3, :]) and torch.equal(out[..., 3:, :], Y[..., 3:, :])

    def test_soft_masks_blend_each_picture_by_its_own(self):
        X, Y, mask = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4), torch.rand(2, 4, 4)
        desired = torch.stack([m * y + (1 - m) * x for x, y, m in zip(X, Y, mask, strict=True)])
        torch.testing.assert_close(composite(X, Y, mask), desired)


class TestStrength:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_exact_at_both_ends(self, dtype):
        z, M = (torch.randn(2, 4, 33, 17) * 10).to(dtype), torch.randn(2, 4, 33, 17).to(dtype)
        assert torch.equal(interpolate_strength(z, M, 0.0), z)
        assert torch.equal(interpolate_strength(z, M, 1.0), M)

    @pytest.mark.parametrize("strength", [0.25, 0.9, 1.5])
    def test_between_and_beyond(self, strength):
        z, M = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
        torch.testing.assert_close(interpolate_strength(z, M, strength), z + strength * (M - z))


@pytest.mark.parametrize("weights", [(-1.0,), (-2.0, 0.0)])
def test_a_single_direction_is_turned_around_by_a_negative_weight(weights):
    directions = [torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0])][: len(weights)]
    assert torch.equal(mix_directions(*directions, weights=weights), -directions[0])


def test_weights_have_to_be_finite():
    with pytest.raises(ValueError, match="wanted finite numbers"):
        mix_directions(torch.ones(2), torch.ones(2), weights=[math.nan, 1.0])
