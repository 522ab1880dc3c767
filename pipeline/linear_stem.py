"""The first convolutions of a small autoencoder's encoder, done as one.

Where nothing bends the signal between them, convolutions one after another are one with a larger kernel. In the bundled
autoencoder those are the first three: as one they take a sixth of the time, and the largest maps are never made. The latents are the same, to rounding.
"""

from itertools import takewhile

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor, nn

BORDER = 2  # latents at the top and left whose stem is taken step by step


def stem_of(vae: nn.Module) -> list[nn.Conv2d]:
    """The convolutions that can be taken as one; none where the autoencoder is of another kind or does more than encode."""
    if not isinstance(vae, AutoencoderTiny) or vae.use_tiling or vae.use_slicing or hasattr(vae, "_hf_hook"):
        return []
    # Exactly this class: a host's or an adapter's convolution may do something else with its weights.
    # Without the last layer, which keeps the size: as part of a stem it would see past the lower border, too.
    convs = list(takewhile(lambda layer: type(layer) is nn.Conv2d, vae.encoder.layers[:-1]))
    return convs if len(convs) > 1 else []


def encode_by_stem(encoder: nn.Module, stem: list[nn.Conv2d], images: Tensor) -> Tensor:
    """What `encoder` makes of pictures (B, 3, H, W) in [-1, 1], sides a multiple of its scale: (B, C, h, w)."""
    images = images.add(1).div(2)  # as `EncoderTiny` begins
    weight, bias, stride, padding = as_one(stem)
    x = F.conv2d(images, weight.to(images.dtype), bias.to(images.dtype), stride, padding)  # (B, C', h, w)
    # Each convolution of its own sees zeros beyond the border of the map before it, where this one sees what the map would be.
    reach = stride * (BORDER + 1)
    top, left = images[..., :reach, :], images[..., :reach]
    for conv in stem:
        top, left = conv(top), conv(left)
    x = torch.cat([top[..., :BORDER, :], x[..., BORDER:, :]], dim=-2)
    x = torch.cat([left[..., :BORDER], x[..., BORDER:]], dim=-1)
    return encoder.layers[len(stem) :](x)


def as_one(stem: list[nn.Conv2d]) -> tuple[Tensor, Tensor, int, int]:
    """Kernel, bias, stride and padding of the one convolution that does what these do one after another."""
    weight, bias, stride, padding = None, None, 1, 0
    for conv in stem:
        outer = conv.weight.float()
        own = 0 if conv.bias is None else conv.bias.float()
        bias = own if bias is None else outer.sum((2, 3)) @ bias + own
        # A tap of this kernel lies `stride` pixels from the next, each with a copy of the kernel before.
        weight = outer if weight is None else F.conv_transpose2d(outer, weight, stride=stride)
        padding += stride * conv.padding[0]
        stride *= conv.stride[0]
    return weight, bias, stride, padding
