"""What SaMam and Mamba-ST have in common: patches of two pictures in, one picture out.

Responsible for: the order of the steps, sizes that are no multiple of a patch, strength, the convolutions that turn
features into a picture, and the skip that carries the pixels past them. What a style is, and how it gets into the content,
is each model's own.

Shapes: B pictures, C features, h x w patches. Pictures are (B, 3, H, W) in [0, 1].
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .padding import pad_to_multiple


class ImageGuidedModel:
    """The methods that the models share, ahead of `ModelMixin` in their bases. The steps are each model's own:

    encode_content(images)  pictures (B, 3, H, W) -> features (B, C, h, w) of them padded to whole patches
    encode_style(images)    pictures (B, 3, H, W) -> their styles, in a shape of the model's own
    fuse(features, style)   features (B, C, h, w) -> the same with the style
    decode(features)        features (B, C, h, w) -> pictures (B, 3, h * patch, w * patch), not clamped

    With `pixel_skip` the pixels of each patch, 3 * patch^2 of them, are further features, the last ones: they take on the
    style's palette, and the decoder paints on them. A whole picture through a few hundred features needs a large network
    and a long training; strokes are little.
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
        # Under autocast they may differ in precision.
        strength = torch.as_tensor(strength, dtype=features.dtype, device=features.device)
        mixed = torch.lerp(features, fused.to(features.dtype), strength)
        return self.decode(mixed)[..., :height, :width]

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

    def with_pixels(self, features: Tensor, images: Tensor) -> Tensor:
        """Features (B, C, h, w) of pictures (B, 3, H, W), and behind them their pixels if these skip the network."""
        if not self.config.pixel_skip:
            return features
        pixels = pad_to_multiple(images.to(features.dtype), self.config.patch_size)
        return torch.cat([features, F.pixel_unshuffle(pixels, self.config.patch_size)], 1)

    def without_pixels(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """The way back of `with_pixels`: features and pictures, or None."""
        if not self.config.pixel_skip:
            return features, None
        pixels = 3 * self.config.patch_size**2
        features, pixels = features.split((features.shape[1] - pixels, pixels), 1)
        return features, F.pixel_shuffle(pixels, self.config.patch_size)


def keep_variance(layer: nn.Conv2d | nn.Linear) -> None:
    """He's initialisation. Torch's own halves the signal in every layer, so that after five of them a style is a whisper."""
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)


class PictureDecoder(nn.Sequential):
    """Features (B, C, h, w) -> pictures (B, 3, patch * h, patch * w), by 3x3 convolutions and doublings.

    upsampling: "nearest" as in the papers, after which a style can colour the four pixels of a cell differently, which
    shows as a grid; or "bilinear".
    silent: begins with black pictures, to which others are added.
    """

    def __init__(
        self, channels: int, width: int, patch_size: int, upsampling: str, silent: bool = False
    ) -> None:
        twice, half, quarter = "twice", width // 2, width // 4
        plans = {
            8: (width, twice, width, width, width, half, twice, half, quarter, twice, quarter, 3),
            4: (width, twice, width, width, half, twice, half, quarter, quarter, 3),
        }
        if patch_size not in plans:
            raise ValueError(f"patch_size is {patch_size!r}, wanted 4 or 8.")
        # A narrow layer of ReLU dies within a hundred steps of a training that begins with large ones.
        activation = nn.LeakyReLU(0.2, inplace=True) if silent else nn.ReLU(inplace=True)
        layers = []
        for step in plans[patch_size]:
            if step == twice:
                layers.append(nn.Upsample(scale_factor=2, mode=upsampling))
            else:
                layers += [
                    nn.Conv2d(channels, step, 3, padding=1, padding_mode="reflect"),
                    activation,
                ]
                channels = step
        super().__init__(
            *layers[:-1]
        )  # the last convolution gives colours, which may need to be negative for a while
        if silent:
            for layer in self:
                if isinstance(layer, nn.Conv2d):
                    keep_variance(layer)
            nn.init.zeros_(self[-1].weight)
            nn.init.zeros_(self[-1].bias)
