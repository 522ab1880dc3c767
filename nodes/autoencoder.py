"""A model's autoencoder as the host's native VAE, and a native VAE as the autoencoder of a model.

The host's latents are the posterior's mode, unscaled; the pipeline's are scaled. Here, and in `latents.py` beside it, is
the border between the two.
"""

import torch
from torch import Tensor, nn

from . import host
from .model import HostModel, StyledModel

# latent channels -> scale and shift that diffusion models of that family apply. A VAE does not say its own; what
# matters here is that fitting and applying agree, and that fusions see numbers of about 1.
_SCALES = {4: (0.18215, None), 16: (0.3611, 0.1159)}
_NORM_GROUPS = 32  # in every autoencoder of the SD family


class StyledAutoencoder(nn.Module):
    """What a native VAE wraps: `encode` to the host's latents, `decode` with a style."""

    def __init__(self, styled: StyledModel) -> None:
        super().__init__()
        self.vae = styled.pipe.vae
        self.styled = styled

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> the host's latents."""
        from ..pipeline.latents import encode_latents, unscale_latents

        return unscale_latents(self.vae, encode_latents(self.vae, images, self.styled.pipe.beyond))

    def decode(self, latents: Tensor) -> Tensor:
        """The host's latents -> (B, 3, H, W) in about [-1, 1]."""
        from ..pipeline.latents import scale_latents

        styled = self.styled
        scaled = scale_latents(self.vae, latents)
        return styled.pipe.decode(scaled, styled.direction(len(latents)), styled.strength) * 2 - 1


def native_vae(styled: StyledModel):
    """A native VAE that decodes with the style; core VAE Decode, its tiles and its retries all work with it."""
    pipe, factor = styled.pipe, styled.model.factor
    # The model's own patcher: two of them over the same nets would move them away under each other's feet.
    return host.native_vae(
        StyledAutoencoder(styled), styled.model.patcher, factor=factor, channels=pipe.vae.config.latent_channels,
        dtype=pipe.vae.dtype, pad=lambda pixels: _padded(pixels, factor),
    )  # fmt: skip


def plain_vae(model: HostModel):
    """The same without a style."""
    return native_vae(StyledModel(model, model.pipe, None, strength=0.0))


def autoencoder_of(vae) -> nn.Module:
    """The autoencoder in a native VAE: ours as it is, one of the SD family as a copy in the layout of diffusers."""
    net = vae.first_stage_model
    if isinstance(net, StyledAutoencoder):
        return net.vae
    state = vae.get_sd()
    wanted = ("encoder.conv_in.weight", "decoder.conv_in.weight", "encoder.mid.attn_1.q.weight")
    packed = "bn.running_mean" in state  # FLUX.2: its latents are patches of these, normalised
    if packed or any(name not in state or state[name].ndim != 4 for name in wanted):
        raise ValueError(
            f"vae is a {type(net).__name__}, wanted an autoencoder of the Stable Diffusion family (AutoencoderKL): load "
            "one with Load VAE, or leave vae unconnected to use the model's own."
        )
    with torch.inference_mode(False):
        return _to_diffusers(
            {name: value.detach().to("cpu", torch.float32, copy=True) for name, value in state.items()}
        )


def with_autoencoder(model: HostModel, vae) -> HostModel:
    """The model's towers around another autoencoder, with a fresh fusion: what the old one has learnt does not carry over."""
    from ..pipeline.fusion import StyleFusion

    autoencoder = autoencoder_of(vae)
    if autoencoder is model.pipe.vae:
        return model
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same one every time, so that fits compare
        fusion = StyleFusion.from_preset(
            "paper",
            latent_channels=autoencoder.config.latent_channels,
            cond_dim=model.pipe.fusion.config.cond_dim,
        )
    parts = {"vae": autoencoder, "fusion": fusion.eval(), "style_decoder": None, "style_memory": None}
    pipe = type(model.pipe).from_pipe(model.pipe, **parts, dtype=torch.float32)
    return HostModel.of(f"{model.name} with another VAE", pipe)


def _padded(pixels: Tensor, factor: int) -> Tensor:
    """(B, H, W, C) -> RGB with whole latents at every edge: the host would crop, and shift the picture."""
    from ..pipeline.padding import pad_to_multiple

    return pad_to_multiple(pixels[..., :3].movedim(-1, 1), factor).movedim(1, -1)


def _to_diffusers(state: dict[str, Tensor]) -> nn.Module:
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    def count(prefix: str) -> int:
        return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})

    levels = count("encoder.down.")
    channels = state["decoder.conv_in.weight"].shape[1]
    scale, shift = _SCALES.get(channels, (1.0, None))
    config = {
        "latent_channels": channels,
        "block_out_channels": [len(state[f"encoder.down.{i}.block.0.conv1.weight"]) for i in range(levels)],
        "layers_per_block": count("encoder.down.0.block."),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "norm_num_groups": _NORM_GROUPS,
        "use_quant_conv": "quant_conv.weight" in state,
        "use_post_quant_conv": "post_quant_conv.weight" in state,
        "scaling_factor": scale,
        "shift_factor": shift,
    }
    autoencoder = AutoencoderKL(**config)
    autoencoder.load_state_dict(convert_ldm_vae_checkpoint(state, config))
    return autoencoder.eval()
