"""SaMam's style-aware operations as functions: the style arrives as per-channel numbers or kernels.

Responsible for the arithmetic between an image's feature map and what the style embedder produced for it; it does not
know the embedder's layers.  `x` is (B, C, H, W); per-channel numbers are (C,), or (B, C) for a style per sample.

SAIN and the channel gate come in two forms.  The literal one is the public code's.  With `unit_gain=True` the gain is
1 where the embedder outputs 0, so that a zero-initialised layer passes its input through; in the literal form it
multiplies by 0 (SAIN) or 0.5 (gate) instead, and most of the embedder never receives a gradient.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_SLOPE = 0.1  # of the LeakyReLU behind SaMam's style heads


def _per_channel(value: Tensor) -> Tensor:
    return value[..., None, None]


def sain(x: Tensor, g: Tensor, b: Tensor, *, unit_gain: bool = False) -> Tensor:
    """Style-aware instance norm: `IN(x) * leaky(g) + leaky(b)`, or `IN(x) * (1 + leaky(g)) + leaky(b)`.

    IN has the biased variance, eps 1e-5 and no weights of its own.
    """
    gain = F.leaky_relu(g, _SLOPE) + (1 if unit_gain else 0)
    return F.instance_norm(x) * _per_channel(gain) + _per_channel(F.leaky_relu(b, _SLOPE))


def channel_gate(x: Tensor, v: Tensor, *, unit_gain: bool = False) -> Tensor:
    """Style-aware channel modulation: `x * sigmoid(v)`, or `x * 2 * sigmoid(v)`."""
    return x * _per_channel(torch.sigmoid(v) * (2 if unit_gain else 1))


def style_conv(x: Tensor, kernel: Tensor) -> Tensor:
    """Depthwise 3x3 cross-correlation with a generated `kernel` (C, 3, 3) or (B, C, 3, 3), borders reflected."""
    batch, channels, height, width = x.shape
    kernels = kernel.expand(batch, channels, 3, 3).reshape(batch * channels, 1, 3, 3)
    folded = F.pad(x, (1, 1, 1, 1), mode="reflect").view(1, batch * channels, height + 2, width + 2)
    return F.conv2d(folded, kernels, groups=batch * channels).view_as(x)


def samam_learning_rate(iteration: int, base: float = 1e-4, decay: float = 2e-5) -> float:
    """SaMam's schedule: `base / (1 + decay * iteration)`."""
    return base / (1 + decay * iteration)
