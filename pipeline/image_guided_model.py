"""What SaMam and Mamba-ST have in common: patches of two pictures in, one picture out.

Responsible for: the order of the steps, sizes that are no multiple of a patch, strength, and what turns features into a
picture. What a style is, and how it gets into the content, is each model's own.

Shapes: B pictures, C features, h x w patches. Pictures are (B, 3, H, W) in [0, 1].
"""

import torch
import torch.nn.functional as F
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from .conditional_decoder import ConditionalDecoder
from .controls import in_palette, palette
from .padding import pad_to_multiple
from .siglip_encoder import SiglipEncoder
from .statistics_encoder import StatisticsEncoder


class ImageGuidedModel:
    """The methods that the models share, ahead of `ModelMixin` in their bases. The steps are each model's own:

    encode_content(images)  pictures (B, 3, H, W) -> features (B, C, h, w) of them padded to whole patches
    encode_style(images)    pictures (B, 3, H, W) -> their styles, in a shape of the model's own
    fuse(features, style)   features (B, C, h, w) -> the same with the style
    decode(features)        features (B, C, h, w) -> pictures (B, 3, h * patch, w * patch), not clamped

    With a `styled_decoder` the decoder is the one of the bundled StyleMamba model, which the style steers behind each
    convolution. What it is steered by, `signature`, goes with the style and with the features as further channels (`carry`),
    so that mixing them mixes it.
    """

    def forward(
        self, content: Tensor, style: Tensor, strength: float | Tensor = 1.0, **fuse_options
    ) -> Tensor:
        """Pictures (B, 3, H, W) and style pictures (B or 1, 3, any size) -> pictures (B, 3, H, W), not clamped.

        strength: one number, or (B, 1, 1, 1): 0 is the content as the decoder gives it back, 1 the style. `fuse_options`
        are those of the model's `fuse`.
        """
        height, width = content.shape[-2:]
        features = self.encode_content(content)
        fused = self.fuse(features, self.encode_style(style), **fuse_options)
        return self.decode_between(features, fused, strength)[..., :height, :width]

    @apply_forward_hook
    def decode_between(self, features: Tensor, fused: Tensor, strength: float | Tensor) -> Tensor:
        """Features (B, C, h, w) before and behind the style -> pictures (B, 3, h * patch, w * patch).

        With a styled decoder the pictures of both are mixed: statistics halfway may be those of a third style.
        """
        # Under autocast they may differ in precision.
        strength = torch.as_tensor(strength, dtype=features.dtype, device=features.device)
        if self.config.styled_decoder is None:
            return self.decode(torch.lerp(features, fused.to(features.dtype), strength))
        if (strength == 0).all() or (strength == 1).all():
            return self.decode(fused if strength.any() else features)
        plain, painted = self.decode(features), self.decode(fused)
        return torch.lerp(plain, painted, strength.to(plain.dtype))

    def whole_patches(self, images: Tensor) -> Tensor:
        """Pictures padded to whole patches, the channels of a pixel side by side: most layers are faster on those.

        In [-1, 1], around which they differ from each other, where the public checkpoints take [0, 1]: a first layer
        passes on the mean of what it is given and little else.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"the pictures have shape {tuple(images.shape)}, wanted (B, 3, H, W) in [0, 1].")
        padded = pad_to_multiple(images.to(self.dtype), self.config.patch_size)
        padded = padded if self.config.compat else padded * 2 - 1
        return padded.contiguous(memory_format=torch.channels_last)

    def make_styled_decoder(self, decoder: dict, tower: dict) -> None:
        """decoder, tower: options of `ConditionalDecoder` and of the `StatisticsEncoder` whose embeddings steer it."""
        if self.config.patch_size != 4:
            raise ValueError(f"a styled_decoder needs patch_size=4, got {self.config.patch_size}.")
        self.decoder, self.style_tower = ConditionalDecoder(**decoder), StatisticsEncoder(**tower)
        self.to_latents = nn.Conv2d(self.config.embed_dim, self.decoder.config.latent_channels, 1)
        self.signed = self.decoder.config.cond_dim + 12  # numbers of a signature

    def signature(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, any size) -> the embedding of their style and their palette, (B, E + 12)."""
        tower = SiglipEncoder(None, image_encoder=self.style_tower)
        mean, root = palette(images)  # (B, 3), (B, 3, 3)
        return torch.cat([tower.embed_images(images.to(self.dtype)), mean, root.flatten(1)], 1).to(self.dtype)

    def carry(self, features: Tensor, signature: Tensor | None = None) -> Tensor:
        """Features (B, C, h, w), and behind them the same for all patches: how much style, 1 or 0, and its signature."""
        if self.config.styled_decoder is None:
            return features
        if signature is None:
            style = features.new_zeros(len(features), 1 + self.signed)
        else:
            style = F.pad(signature.to(features.dtype), (1, 0), value=1.0).expand(len(features), -1)
        return torch.cat([features, style[:, :, None, None].expand(-1, -1, *features.shape[-2:])], 1)

    def uncarry(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The way back of `carry`: features (B, C, h, w), how much style (B, 1), signature (B, E + 12), which has become
        smaller by as much where it was mixed with none."""
        features, style = features.split((self.config.embed_dim, 1 + self.signed), 1)
        amount, signature = style.mean((2, 3)).split((1, self.signed), 1)
        return features, amount, signature / amount.clamp(min=1e-3)

    def paint(self, features: Tensor) -> Tensor:
        """`decode` with a styled decoder. However well it knows a style, the colours are those of the style image."""
        features, amount, signature = self.uncarry(features)
        code, mean, root = signature.split((self.signed - 12, 3, 9), 1)  # (B, E), (B, 3), (B, 9)
        picture = self.decoder(self.to_latents(features), code, amount) / 2 + 0.5  # (B, 3, 4 * h, 4 * w)
        recoloured = in_palette(picture, mean, root.unflatten(1, (3, 3))).to(picture.dtype)
        return torch.lerp(picture, recoloured, amount.clamp(max=1)[:, :, None, None].to(picture.dtype))


def same_size(channels: int, width: int, compat: bool, groups: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size. The public code meets zeros at the border, and paints a frame of it; ours repeats
    the border."""
    mode = "zeros" if compat else "replicate"
    return nn.Conv2d(channels, width, 3, padding=1, padding_mode=mode, groups=groups)


def keep_variance(layer: nn.Conv2d | nn.Linear) -> None:
    """He's initialisation. Torch's own halves the signal in every layer, so that after five of them a style is a whisper."""
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)


class StyleUnits(nn.Module):
    """Numbers of a style (B, n) in units of how much styles differ in them: around 0, with a spread of 1.

    Left to itself what says the style grows, and with it what all styles have in common, until it is the same for all of
    them to four digits and the network knows none. BatchNorm's running statistics, but used in training as well: a batch of four
    styles says little about styles.
    """

    def __init__(self, size: int, momentum: float = 0.02) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("square", torch.ones(size))
        self.register_buffer("seen", torch.zeros(()))  # 1 as soon as the two averages are of styles

    def forward(self, numbers: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                seen = numbers.detach().float()
                share = self.momentum if self.seen else 1.0  # the first batch counts in full
                self.mean.lerp_(seen.mean(0), share)
                self.square.lerp_(seen.square().mean(0), share)
                self.seen.fill_(1)
        variance = (self.square - self.mean.square()).clamp(min=0)
        return (numbers - self.mean) / (variance + 1e-4).sqrt()


class PictureDecoder(nn.Sequential):
    """Features (B, C, h, w) -> pictures (B, 3, patch * h, patch * w), by 3x3 convolutions and doublings.

    upsampling: "nearest" as in the papers, after which a style can colour the four pixels of a cell differently, which
    shows as a grid; or "bilinear".
    """

    def __init__(self, channels: int, width: int, patch_size: int, upsampling: str) -> None:
        twice, half, quarter = "twice", width // 2, width // 4
        plans = {
            8: (width, twice, width, width, width, half, twice, half, quarter, twice, quarter, 3),
            4: (width, twice, width, width, half, twice, half, quarter, quarter, 3),
        }
        if patch_size not in plans:
            raise ValueError(f"patch_size is {patch_size!r}, wanted 4 or 8.")
        layers = []
        for step in plans[patch_size]:
            if step == twice:
                layers.append(nn.Upsample(scale_factor=2, mode=upsampling))
            else:
                conv = nn.Conv2d(channels, step, 3, padding=1, padding_mode="reflect")
                layers += [conv, nn.ReLU(inplace=True)]
                channels = step
        # The last convolution gives colours, which may need to be negative for a while.
        super().__init__(*layers[:-1])
