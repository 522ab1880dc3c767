"""One space for words and pictures: embeds texts and images with the SigLIP towers of transformers.

Responsible for: tokenising as SigLIP was trained, differentiable resizing and normalising of pictures, both tower
families (SigLIP, SigLIP 2 fixed size, SigLIP 2 NaFlex). Knows nothing of styles or losses. Any pair of towers whose
`forward` returns `pooler_output` of one width fits.
"""

import logging
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .losses import full_precision
from .style import describe_component

logger = logging.getLogger(__name__)


class SiglipEncoder:
    """`text_encoder` with its `tokenizer`, and `image_encoder`; either side may be missing if it is not asked for.

    `logit_scale` (already exponentiated) and `logit_bias` turn a cosine into SigLIP's probability. They belong to the
    checkpoint and are None where it did not give them.
    """

    def __init__(
        self,
        text_encoder: nn.Module | None,
        tokenizer=None,
        image_encoder: nn.Module | None = None,
        logit_scale: float | None = None,
        logit_bias: float | None = None,
    ) -> None:
        self.text_encoder, self.tokenizer, self.image_encoder = text_encoder, tokenizer, image_encoder
        self.logit_scale, self.logit_bias = logit_scale, logit_bias

    @property
    def name(self) -> str:
        """Class, checkpoint and a hash of the weights, for the report of a metric."""
        tower = describe_component(
            self.image_encoder if self.image_encoder is not None else self.text_encoder
        )
        return f"{tower['class']} {tower['name']}".strip() + f"@{tower['fingerprint'][:12]}"

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """-> input ids (N, T). SigLIP was trained on lower-case texts padded at the right to its full length."""
        if self.tokenizer is None:
            raise ValueError("tokenizer is None, wanted the tokenizer that belongs to the text encoder.")
        length = self.text_encoder.config.max_position_embeddings
        # The tokenizer of SigLIP 2 is Gemma's, which does neither by itself; whoever saved it may have left other
        # limits in it as well.
        texts = [text.lower() for text in texts]
        for text in texts:
            tokens = len(self.tokenizer(text)["input_ids"])
            if tokens > length:
                logger.warning("The prompt has %d tokens and is cut to %d: %.60s...", tokens, length, text)
        batch = self.tokenizer(
            texts,
            padding="max_length",
            padding_side="right",
            truncation=True,
            max_length=length,
            return_tensors="pt",
        )
        return batch["input_ids"]

    def embed_texts(self, texts: Sequence[str], device: torch.device | None = None) -> Tensor:
        """-> unit vectors (N, E)."""
        if self.text_encoder is None:
            raise ValueError(
                "text_encoder is None, so no prompt can be read: load one with from_parts(text_encoder=...), or give "
                "a fitted style or prompt_embeds."
            )
        ids = self.tokenize(texts).to(device or self.text_encoder.device)
        return F.normalize(self.text_encoder(input_ids=ids).pooler_output.float(), dim=-1)

    @property
    def image_size(self) -> int:
        """Side of the square the image tower sees."""
        config = self.require_image_encoder().config
        size = getattr(config, "image_size", None)
        return size if size is not None else round(config.num_patches**0.5) * config.patch_size

    @property
    def patch_size(self) -> int:
        return self.require_image_encoder().config.patch_size

    def pixels(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] -> what the tower sees, (B, 3, S, S) in [-1, 1]; differentiable."""
        side = self.image_size
        if images.shape[-2:] != (side, side):
            # In full precision: on a CPU there is no other kernel, and half of it would round before the average.
            images = F.interpolate(full_precision(images), size=(side, side), mode="bicubic", antialias=True)
        return images * 2 - 1

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """What `pixels` gives -> unit vectors (B, E); differentiable."""
        tower = self.require_image_encoder()
        pixels = pixels.to(tower.dtype)
        if getattr(tower.config, "image_size", None) is not None:
            return F.normalize(tower(pixel_values=pixels).pooler_output.float(), dim=-1)
        # NaFlex towers take the patches as rows, with the grid they came from.
        p, (batch, _, height, width) = tower.config.patch_size, pixels.shape
        patches = rearrange(pixels, "b c (h p) (w q) -> b (h w) (p q c)", p=p, q=p)  # (B, L, p*p*3)
        grid = torch.tensor([[height // p, width // p]], device=pixels.device).expand(batch, -1)
        mask = torch.ones(patches.shape[:2], dtype=torch.int32, device=pixels.device)
        out = tower(pixel_values=patches, pixel_attention_mask=mask, spatial_shapes=grid)
        return F.normalize(out.pooler_output.float(), dim=-1)

    def embed_images(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] -> unit vectors (B, E); differentiable."""
        return self.embed_pixels(self.pixels(images))

    def require_image_encoder(self) -> nn.Module:
        if self.image_encoder is None:
            raise ValueError(
                "image_encoder is None, but fitting, scoring and style images need one: load the image tower of the "
                "same checkpoint as the text tower with from_parts(image_encoder=...)."
            )
        return self.image_encoder
