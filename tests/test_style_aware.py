"""SaMam's operations; the numbers of the specification are in `test_vectors.py`."""

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn.functional import leaky_relu

from stylemamba.pipeline.losses import mean_std
from stylemamba.pipeline.style_aware import channel_gate, sain, samam_learning_rate, style_conv


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def x():
    return random(3, 2, 4, 5)


class TestSAIN:
    def test_with_the_statistics_of_a_style_it_is_adain(self, x):
        style = random(3, 2, 6, 6, seed=1)
        mean, std = style.mean(dim=(2, 3)), style.std(dim=(2, 3), correction=0)
        # The inverse of the LeakyReLU that SAIN applies.
        g, b = (torch.where(value < 0, value / 0.1, value) for value in (std, mean))
        for out in (
            sain(x, g, b),
            sain(x, torch.where(std < 1, (std - 1) / 0.1, std - 1), b, unit_gain=True),
        ):
            torch.testing.assert_close(out.mean(dim=(2, 3)), mean)
            torch.testing.assert_close(out.std(dim=(2, 3), correction=0), std, rtol=1e-3, atol=0)

    def test_zero_embedders(self, x):
        zero = torch.zeros(2, dtype=x.dtype)
        assert (sain(x, zero, zero) == 0).all()
        mean, _ = mean_std(x)
        centred = x - mean[..., None, None]
        std = (x.var(dim=(2, 3), correction=0) + 1e-5).sqrt()
        torch.testing.assert_close(sain(x, zero, zero, unit_gain=True), centred / std[..., None, None])

    def test_one_style_per_sample_equals_single_runs(self, x):
        g, b = random(3, 2, seed=1), random(3, 2, seed=2)
        single = [sain(x[i : i + 1], g[i], b[i]) for i in range(3)]
        torch.testing.assert_close(sain(x, g, b), torch.cat(single))

    @pytest.mark.parametrize("unit_gain", [False, True])
    def test_gradcheck(self, x, unit_gain):
        inputs = (x.requires_grad_(), random(2, seed=1).requires_grad_(), random(2, seed=2).requires_grad_())
        assert gradcheck(lambda *args: sain(*args, unit_gain=unit_gain), inputs)


class TestChannelGate:
    def test_zero_embedders(self, x):
        zero = torch.zeros(2, dtype=x.dtype)
        assert torch.equal(channel_gate(x, zero), 0.5 * x)
        assert torch.equal(channel_gate(x, zero, unit_gain=True), x)

    def test_gradcheck(self, x):
        assert gradcheck(channel_gate, (x.requires_grad_(), random(3, 2, seed=1).requires_grad_()))


class TestStyleConv:
    def test_a_delta_kernel_is_the_identity(self, x):
        kernel = torch.zeros(2, 3, 3, dtype=x.dtype)
        kernel[:, 1, 1] = 1
        assert torch.equal(style_conv(x, kernel), x)

    def test_one_style_per_sample_equals_single_runs(self, x):
        kernel = random(3, 2, 3, 3, seed=1)
        single = [style_conv(x[i : i + 1], kernel[i]) for i in range(3)]
        torch.testing.assert_close(style_conv(x, kernel), torch.cat(single))

    def test_gradcheck(self, x):
        assert gradcheck(style_conv, (x.requires_grad_(), random(2, 3, 3, seed=1).requires_grad_()))


def test_learning_rate_halves_after_fifty_thousand_iterations():
    assert samam_learning_rate(0) == 1e-4
    assert samam_learning_rate(50_000) == 0.5e-4


def test_leaky_slope_is_the_one_of_the_public_code():
    x = random(1, 1, 2, 2)
    value = torch.tensor([-1.0], dtype=x.dtype)
    out = sain(x, torch.zeros(1, dtype=x.dtype), value)
    torch.testing.assert_close(out, leaky_relu(value, 0.1).expand_as(out))
