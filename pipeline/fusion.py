"""The Style Fusion Module: writes a style, given as an embedding, into the latent of an image.

Responsible for: latent -> tokens -> conditioned blocks -> latent, the presets, the zero initialisation. Knows nothing
of images, prompts or decoders. How tokens are mixed is in `mamba.py`, how they are modulated in `adaln.py`.

Shapes: B images, C latent channels, h x w latent size, r unshuffle factor, L = (h/r) * (w/r) tokens of width d,
E width of the text embedding.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import is_accelerate_available
from einops import rearrange
from torch import Tensor, nn

from .adaln import READINGS, STARTS_AT_ONE, eq1_reading
from .mamba import Linear, MambaMixer
from .padding import pad_to_multiple

# methods of the paper and its ablations; "paper" is the block the authors most likely used
PRESETS = {
    "paper": {"unshuffle": 8, "depth": 1, "mlp_ratio": 1.0},
    "wide": {"unshuffle": 8, "depth": 8, "mlp_ratio": 4.0},
    "dense": {
        "unshuffle": 2,
        "d_model": 256,
        "depth": 2,
        "mlp_ratio": 1.0,
        "scan_order": "zigzag",
        "conv": "spatial",
    },
    "tiny": {"unshuffle": 2, "d_model": 32, "depth": 1, "mlp_ratio": 1.0, "d_state": 8},
}


def latent_to_tokens(latent: Tensor, r: int) -> tuple[Tensor, tuple[int, int]]:
    """(B, C, h, w) -> row-major tokens (B, L, C*r*r) and the token grid (h/r, w/r)."""
    x = F.pixel_unshuffle(latent, r)  # (B, C*r*r, h/r, w/r)
    return rearrange(x, "b c h w -> b (h w) c"), (x.shape[-2], x.shape[-1])


def tokens_to_latent(tokens: Tensor, r: int, height: int, width: int) -> Tensor:
    """The inverse: tokens (B, height*width, C*r*r) -> (B, C, height*r, width*r)."""
    return F.pixel_shuffle(rearrange(tokens, "b (h w) c -> b c h w", h=height, w=width), r)


class CrossAttentionMixer(nn.Module):
    """The fuser of the paper's table 3: every token attends to all tokens and to the text token.

    Same width as the Mamba mixer and the same interface, plus the text: a lone text token as key would make the
    attention a constant, so the modulated tokens stand beside it as keys and values.
    """

    def __init__(self, d_model: int, cond_dim: int, head_dim: int = 64) -> None:
        super().__init__()
        most = max(1, d_model // head_dim)
        self.num_heads = next(heads for heads in range(most, 0, -1) if d_model % heads == 0)
        self.to_text = Linear(cond_dim, d_model)
        self.to_q = Linear(d_model, d_model, bias=False)
        self.to_kv = Linear(d_model, 2 * d_model, bias=False)
        self.to_out = Linear(d_model, d_model)

    def forward(self, tokens: Tensor, cond: Tensor) -> Tensor:
        context = torch.cat([self.to_text(cond)[:, None], tokens], dim=1)  # (B, 1+L, d)
        k, v = self.to_kv(context).chunk(2, dim=-1)
        q, k, v = (rearrange(t, "b l (n e) -> b n l e", n=self.num_heads) for t in (self.to_q(tokens), k, v))
        mixed = F.scaled_dot_product_attention(q, k, v)  # (B, heads, L, d/heads)
        return self.to_out(rearrange(mixed, "b n l e -> b l (n e)"))


class FusionBlock(nn.Module):
    """One conditioned block. At initialisation it returns its input bit for bit, and every parameter can learn."""

    def __init__(
        self,
        d_model: int,
        cond_dim: int,
        mlp_ratio: float = 1.0,
        fuser: str = "mamba",
        reading: str = "A",
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        scan_order: str = "raster",
        conv: str = "causal",
        ssm: str = "mamba",
        warm_up: int = 0,
    ) -> None:
        super().__init__()
        if reading not in READINGS:
            raise ValueError(f"reading is {reading!r}, wanted one of {', '.join(READINGS)}.")
        if fuser not in ("mamba", "cross_attention"):
            raise ValueError(f"fuser is {fuser!r}, wanted 'mamba' or 'cross_attention'.")
        self.reading = reading
        self.names = READINGS[reading]
        if fuser == "mamba":
            self.mixer = MambaMixer(
                d_model,
                d_state=d_state,
                d_conv=d_conv,
                expand=expand,
                scan_order=scan_order,
                conv=conv,
                ssm=ssm,
                warm_up=warm_up,
            )
        else:
            self.mixer = CrossAttentionMixer(d_model, cond_dim)
        self.ada_ln = nn.Sequential(nn.SiLU(), Linear(cond_dim, len(self.names) * d_model))
        nn.init.zeros_(self.ada_ln[1].weight)
        nn.init.zeros_(self.ada_ln[1].bias)
        self.mlp = self.out = None
        if reading == "A":
            hidden = round(mlp_ratio * d_model)
            self.mlp = nn.Sequential(Linear(d_model, hidden), nn.GELU("tanh"), Linear(hidden, d_model))
        else:  # these readings end in a LayerNorm: a zero projection around them restores the identity
            self.out = Linear(d_model, d_model)
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)
            with torch.no_grad():
                for name, bias in zip(self.names, self.ada_ln[1].bias.chunk(len(self.names)), strict=True):
                    bias.fill_(1.0 if name in STARTS_AT_ONE[reading] else 0.0)

    def forward(self, x: Tensor, cond: Tensor, height: int, width: int) -> Tensor:
        modulation = self.ada_ln(cond)[:, None].chunk(len(self.names), dim=-1)  # each (B, 1, d)
        if not isinstance(self.mixer, MambaMixer):
            return self._fuse(x, lambda tokens: self.mixer(tokens, cond), modulation)  # (B, L, d)
        piece = self.mixer.piece(x)
        if piece >= x.shape[1]:
            return self._fuse(x, lambda tokens: self.mixer(tokens, height, width), modulation)  # (B, L, d)
        mix, fused = self.mixer.stream(), torch.empty_like(x)
        for part, place in zip(x.split(piece, 1), fused.split(piece, 1), strict=True):
            place.copy_(self._fuse(part, mix, modulation))
        return fused  # (B, L, d)

    def _fuse(self, x: Tensor, mix: Callable[[Tensor], Tensor], modulation: tuple[Tensor, ...]) -> Tensor:
        m = eq1_reading(self.reading, x, mix, self.mlp, **dict(zip(self.names, modulation, strict=True)))
        return m if self.out is None else x + self.out(m)


class StyleFusion(ModelMixin, ConfigMixin):
    """Latent (B, C, h, w) and embedding (B, E) -> latent (B, C, h, w). Freshly made, it is the identity, bit for bit.

    The embedding is L2-normalised and multiplied by sqrt(E): entries of a unit vector are about 1/sqrt(E), too small
    to move the modulation within a fit of twenty steps.

    `d_model=None` takes the tokens as they are (width C*r*r). Another width adds a linear layer at either end.
    `warm_up`: how many tokens each scan has read when it comes to the first (`mamba.py`); without, the first rows have colours of their
    own.
    """

    _no_split_modules = ["FusionBlock"]
    _repeated_blocks = ["FusionBlock"]
    _skip_layerwise_casting_patterns = ["ada_ln", "mixer"]
    # diffusers can see to this only with accelerate, and would refuse to load without it.
    _keep_in_fp32_modules = list(MambaMixer._keep_in_fp32) if is_accelerate_available() else None

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 4,
        cond_dim: int = 768,
        unshuffle: int = 8,
        d_model: int | None = None,
        depth: int = 1,
        mlp_ratio: float = 1.0,
        fuser: str = "mamba",
        reading: str = "A",
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        scan_order: str = "raster",
        conv: str = "causal",
        ssm: str = "mamba",
        warm_up: int = 0,
    ) -> None:
        super().__init__()
        if type(warm_up) is not int or warm_up < 0:
            raise ValueError(f"warm_up is {warm_up!r:.40}, wanted a whole number from 0 on.")
        sizes = {
            "latent_channels": latent_channels, "cond_dim": cond_dim, "unshuffle": unshuffle, "depth": depth,
            "d_model": 1 if d_model is None else d_model, "d_state": d_state, "d_conv": d_conv, "expand": expand,
        }  # fmt: skip
        for name, size in sizes.items():
            if type(size) is not int or size < 1:  # True is an int to isinstance
                raise ValueError(f"{name} is {size!r:.40}, wanted a whole number from 1 on.")
        if not isinstance(mlp_ratio, (int, float)) or not mlp_ratio > 0:
            raise ValueError(f"mlp_ratio is {mlp_ratio!r:.40}, wanted a number above 0.")
        token_dim = latent_channels * unshuffle**2
        self.proj_in = self.proj_out = None
        if d_model is not None and d_model != token_dim:
            self.proj_in = Linear(token_dim, d_model)
            self.proj_out = Linear(d_model, token_dim)
            nn.init.zeros_(self.proj_out.weight)
            nn.init.zeros_(self.proj_out.bias)
        self.blocks = nn.ModuleList(
            FusionBlock(
                d_model or token_dim,
                cond_dim,
                mlp_ratio=mlp_ratio,
                fuser=fuser,
                reading=reading,
                d_state=d_state,
                d_conv=d_conv,
                expand=expand,
                scan_order=scan_order,
                conv=conv,
                ssm=ssm,
                warm_up=warm_up,
            )
            for _ in range(depth)
        )

    @classmethod
    def from_preset(
        cls, preset: str, *, latent_channels: int = 4, cond_dim: int = 768, **overrides
    ) -> "StyleFusion":
        """A fresh identity fusion: "paper", "wide", "dense" or "tiny"; `overrides` are arguments of the class."""
        if preset not in PRESETS:
            raise ValueError(f"preset is {preset!r}, wanted one of {', '.join(PRESETS)}.")
        return cls(latent_channels=latent_channels, cond_dim=cond_dim, **{**PRESETS[preset], **overrides})

    def forward(self, latents: Tensor, prompt_embeds: Tensor) -> Tensor:
        self._check(latents, prompt_embeds)
        height, width = latents.shape[-2:]
        r = self.config.unshuffle
        cond = F.normalize(prompt_embeds.float(), dim=-1) * math.sqrt(self.config.cond_dim)  # (B, E)
        cond = cond.to(latents.dtype)

        tokens, grid = latent_to_tokens(pad_to_multiple(latents, r), r)  # (B, L, C*r*r)
        x = tokens if self.proj_in is None else self.proj_in(tokens)  # (B, L, d)
        for block in self.blocks:
            x = block(x, cond, *grid)  # (B, L, d)
        x = x if self.proj_out is None else tokens + self.proj_out(x)  # (B, L, C*r*r)
        return tokens_to_latent(x, r, *grid)[..., :height, :width]  # (B, C, h, w)

    def _check(self, latents: Tensor, prompt_embeds: Tensor) -> None:
        channels, cond_dim = self.config.latent_channels, self.config.cond_dim
        if latents.ndim != 4 or latents.shape[1] != channels:
            raise ValueError(
                f"latents have shape {tuple(latents.shape)}, wanted (B, {channels}, h, w): this fusion was made for "
                f"an autoencoder of {channels} latent channels; make one for yours with StyleFusion.from_preset."
            )
        if prompt_embeds.shape != (latents.shape[0], cond_dim):
            raise ValueError(
                f"prompt_embeds have shape {tuple(prompt_embeds.shape)}, wanted ({latents.shape[0]}, {cond_dim}): one "
                f"embedding per image, from a text tower of width {cond_dim}."
            )
