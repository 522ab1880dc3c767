"""Convolutions taken as one: the latents are those of `vae.encode`, and no autoencoder is touched that does more."""

import pytest
import torch
from diffusers import AutoencoderTiny
from torch import nn

from stylemamba import StyleMambaPipeline
from stylemamba.pipeline.latents import encode_latents
from stylemamba.pipeline.linear_stem import as_one, stem_of


def autoencoder(*blocks: int) -> AutoencoderTiny:
    torch.manual_seed(sum(blocks))
    widths = (8,) * len(blocks)
    return AutoencoderTiny(
        encoder_block_out_channels=widths, decoder_block_out_channels=widths, num_encoder_blocks=blocks,
        num_decoder_blocks=blocks, latent_channels=4, scaling_factor=0.5,
    ).eval()  # fmt: skip


@pytest.mark.parametrize(("blocks", "convs"), [((0, 0, 2), 3), ((0, 1), 2), ((0, 1, 1, 1), 2), ((0, 0), 2)])
@pytest.mark.parametrize("size", [(16, 16), (64, 40), (24, 96)])
def test_latents_are_those_of_the_autoencoder(blocks, convs, size):
    vae, images = autoencoder(*blocks), torch.rand(2, 3, *size) * 2 - 1
    assert len(stem_of(vae)) == convs
    with torch.no_grad():
        wanted = vae.encode(images).latents * 0.5
        torch.testing.assert_close(encode_latents(vae, images), wanted, atol=1e-5, rtol=1e-4)


def test_of_the_bundled_model():
    vae, images = StyleMambaPipeline.from_pretrained("tiny").vae.float(), torch.rand(1, 3, 72, 100) * 2 - 1
    assert len(stem_of(vae)) == 3
    with torch.no_grad():
        torch.testing.assert_close(encode_latents(vae, images), vae.encode(images).latents, atol=1e-4, rtol=0)


def test_kernel_stride_and_padding():
    """3 pixels, then 3 of every second, then 3 of every fourth: 1 + 2 + 2 * 1 + 4 = 9 wide."""
    stem = [
        nn.Conv2d(3, 8, 3, padding=1),
        *(nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False) for _ in "ab"),
    ]
    weight, bias, stride, padding = as_one(stem)
    assert (tuple(weight.shape), tuple(bias.shape), stride, padding) == ((8, 3, 9, 9), (8,), 4, 4)


def test_gradients_reach_the_picture():
    vae, images = autoencoder(0, 0, 1), torch.rand(1, 3, 16, 16, requires_grad=True)
    (wanted,) = torch.autograd.grad(vae.encode(images).latents.square().sum() * 0.25, images)
    (got,) = torch.autograd.grad(encode_latents(vae, images).square().sum(), images)
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("change", ["blocks", "tiling", "slicing", "hook", "layer"])
def test_is_left_alone(change):
    vae = autoencoder(1, 0, 0) if change == "blocks" else autoencoder(0, 0, 1)
    if change == "tiling":
        vae.enable_tiling()
    elif change == "slicing":
        vae.enable_slicing()
    elif change == "hook":
        vae._hf_hook = object()  # what accelerate hangs on for offloading
    elif change == "layer":

        class Adapted(nn.Conv2d):
            pass

        vae.encoder.layers[0].__class__ = Adapted
    assert stem_of(vae) == []
