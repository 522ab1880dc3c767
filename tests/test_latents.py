"""Pictures to latents and back, for every autoencoder of the SD family."""

import numpy as np
import pytest
import torch
from diffusers import AsymmetricAutoencoderKL, AutoencoderKL, AutoencoderTiny

from stylemamba.pipeline.latents import (
    decode_latents,
    encode_latents,
    scale_latents,
    unscale_latents,
    vae_scale_factor,
)


def kl(levels=4, **config):
    return AutoencoderKL(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        norm_num_groups=2,
        **config,
    ).eval()


def tiny(levels=4, **config):
    channels = (8,) * levels
    return AutoencoderTiny(
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        num_encoder_blocks=(1,) * levels,
        num_decoder_blocks=(1,) * levels,
        **config,
    ).eval()


def asymmetric(levels=4, **config):
    return AsymmetricAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        down_block_out_channels=(8,) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        up_block_out_channels=(8,) * levels,
        norm_num_groups=2,
        **config,
    ).eval()


KINDS = pytest.mark.parametrize("kind", [kl, tiny, asymmetric])


def pictures(side=32):
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


@KINDS
@pytest.mark.parametrize("levels", [2, 3, 4])
@torch.no_grad()
def test_the_scale_factor_is_the_one_the_network_has(kind, levels):
    vae = kind(levels)
    factor = vae_scale_factor(vae)
    assert factor == 2 ** (levels - 1)
    latents = encode_latents(vae, pictures())
    assert latents.shape == (2, 4, 32 // factor, 32 // factor)
    assert decode_latents(vae, latents).shape == (2, 3, 32, 32)


def test_of_an_uneven_autoencoder_the_side_that_makes_latents_counts():
    uneven = AsymmetricAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, down_block_out_channels=(8,) * 3, norm_num_groups=2,
        up_block_types=("UpDecoderBlock2D",) * 4, up_block_out_channels=(8,) * 4,
    )  # fmt: skip
    assert vae_scale_factor(uneven) == 4


def test_without_an_autoencoder_the_factor_is_that_of_stable_diffusion():
    assert vae_scale_factor(None) == 8


@pytest.mark.parametrize("shift", [None, 0.0, 0.1159])
def test_unscale_undoes_scale(shift):
    vae = kl(2, scaling_factor=0.3611, shift_factor=shift)
    raw = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    scaled = scale_latents(vae, raw)
    torch.testing.assert_close(unscale_latents(vae, scaled), raw, rtol=0, atol=1e-12)
    torch.testing.assert_close(scaled, (raw - (shift or 0)) * 0.3611)


@torch.no_grad()
def test_kl_takes_the_mode_and_draws_no_random_numbers():
    vae = kl(2, scaling_factor=0.3611, shift_factor=0.1159)
    before = torch.random.get_rng_state()
    latents = encode_latents(vae, pictures())
    assert torch.equal(torch.random.get_rng_state(), before)
    mean = vae.encode(pictures()).latent_dist.mean
    torch.testing.assert_close(latents, (mean - 0.1159) * 0.3611)


@torch.no_grad()
def test_taesd_is_its_own_scale():
    vae = tiny(2)
    assert torch.equal(encode_latents(vae, pictures()), vae.encode(pictures()).latents)
    z = torch.rand(1, 4, 4, 4)
    assert torch.equal(decode_latents(vae, z), vae.decode(z).sample)


@KINDS
@torch.no_grad()
def test_decode_undoes_the_scale(kind):
    vae, z = kind(2, scaling_factor=0.5), torch.rand(1, 4, 4, 4)
    assert torch.equal(decode_latents(vae, z), vae.decode(z / 0.5).sample)


@KINDS
def test_gradients_reach_the_picture(kind):
    vae, x = kind(2), pictures(16).requires_grad_()
    decode_latents(vae, encode_latents(vae, x)).square().sum().backward()
    assert torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0


@pytest.mark.parametrize("size", [(32, 40), (8, 24)])
def test_what_lies_beyond_a_picture_is_mirrored_and_taken_off_again(size):
    """Or repeated, where the picture is too small to be mirrored that far."""
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1), latent_channels=4, scaling_factor=0.5,
    )  # fmt: skip
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(3)) * 2 - 1
    numpy_mode = "reflect" if min(size) > 8 else "edge"
    wide = torch.from_numpy(np.pad(images.numpy(), ((0, 0), (0, 0), (8, 8), (8, 8)), mode=numpy_mode))
    wanted = 0.5 * vae.encode(wide).latents[:, :, 2:-2, 2:-2]
    found = encode_latents(vae, images, 2)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert (found - encode_latents(vae, images)).abs().max() > 1e-4
