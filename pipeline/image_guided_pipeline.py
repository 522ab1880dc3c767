"""`SaMamPipeline` and `MambaSTPipeline`: picture and style picture (or words, for SaMam) in, stylized picture out.

Responsible for the order of the steps, and for mixing several styles. It takes and gives pictures as `StyleMambaPipeline`
does, and its steps are public methods as well, each usable alone and with gradients. What a style is to each of the two
models is in `samam.py` and `mamba_st.py`.
"""

import os
from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .controls import add_fine_strokes, check_controls, resize, stroke_sizes
from .finishing import finish
from .images import MIN_SIDE, Content, Picture, collect, read_images, read_mask
from .loading import PretrainedLoading
from .mamba_st import MambaST
from .masks import feather_mask
from .pipeline_stylemamba import StyleMambaPipelineOutput
from .prompts import Prompt, as_mixtures
from .public_checkpoints import load_public_mamba_st, load_public_samam
from .samam import SaMam
from .siglip_encoder import SiglipEncoder
from .text_to_style import TextToStyle

OUTPUT_TYPES = ("pil", "np", "pt")
# A scan along four paths needs about 1 KB a pixel: larger pictures are painted at this size and enlarged.
MOST_PIXELS = 2**21

WeightedPictures = Sequence[tuple[Picture, float]]
# Pictures (1, 3, H, W), or texts, and weights that sum to 1
Mixture = list[tuple[Tensor | str, float]]


class ImageGuidedPipeline(PretrainedLoading, DiffusionPipeline):
    """What the two pipelines share. Each brings `fuse(features, styles, shuffles, generator)`: how styles are mixed.

    style_size: shorter side at which a style image is read, which sets how large its strokes become; None is that of the
    picture to stylize.
    """

    model_cpu_offload_seq = "model"
    _has_tokens_to_shuffle = False
    reads_prompts = False

    def __init__(self, model: SaMam | MambaST, style_size: int | None = None) -> None:
        super().__init__()
        self.register_modules(model=model)
        self.register_to_config(style_size=style_size)

    # The steps

    def check_inputs(
        self,
        style_image,
        prompt,
        strength,
        structure,
        stroke_scale,
        preserve_color,
        shading,
        feather,
        shuffles,
        generator,
        output_type,
    ) -> None:
        if prompt is not None and not self.reads_prompts:
            raise ValueError(
                f"a prompt was given, but this {type(self).__name__} reads none: give a style_image."
            )
        if (style_image is None) == (prompt is None):
            given = "neither" if prompt is None else "both"
            wanted = "a style_image or a prompt" if self.reads_prompts else "a style_image"
            raise ValueError(f"got {given} of style_image and prompt, wanted {wanted}.")
        check_controls(
            preserve_color,
            strength=strength,
            structure=structure,
            stroke_scale=stroke_scale,
            shading=shading,
            feather=feather,
        )
        if type(shuffles) is not int or shuffles < 0:
            raise ValueError(f"shuffles is {shuffles!r:.40}, wanted a whole number from 0 on.")
        if shuffles and not self._has_tokens_to_shuffle:
            raise ValueError(f"shuffles is {shuffles}, wanted 0: {type(self).__name__} has no style tokens.")
        if not isinstance(generator, (torch.Generator, type(None))):
            raise ValueError(f"generator is a {type(generator).__name__}, wanted one torch.Generator.")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type is {output_type!r}, wanted one of {', '.join(OUTPUT_TYPES)}.")

    def encode_content(self, image: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] -> features (B, C, h, w)."""
        return self.model.encode_content(image.to(self._execution_device))

    def encode_style(self, mixture: Mixture, size: tuple[int, int]) -> list[tuple[Tensor, float]]:
        """Style pictures and weights -> what the model sees in each, for pictures of this height and width."""
        side = self.config.style_size or min(size)
        return [
            (self.model.encode_style(_shorter_side(rgb, side).to(self._execution_device)), weight)
            for rgb, weight in mixture
        ]

    def decode(self, features: Tensor) -> Tensor:
        """Features (B, C, h, w) -> pictures (B, 3, H, W), about [0, 1], not clamped."""
        return self.model.decode(features).float()

    @torch.no_grad()
    def __call__(
        self,
        image: Picture | Sequence[Picture],
        style_image: Picture | WeightedPictures | list[Picture | WeightedPictures] | None = None,
        *,
        prompt: Prompt | list[Prompt] | None = None,
        strength: float = 1.0,
        structure: float = 0.0,
        stroke_scale: float = 1.0,
        preserve_color: bool | str = False,
        shading: float = 0.0,
        tone_only: bool = False,
        protect_text: bool = False,
        mask_image: Picture | Sequence[Picture] | None = None,
        feather: float = 0.0,
        shuffles: int = 0,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> StyleMambaPipelineOutput | tuple:
        """Stylizes pictures. The result has the size of the input, to the pixel.

        image: PIL, numpy (uint8, uint16 or floats), torch [B, 3, H, W] in [0, 1], or lists of them, of any sizes from
            16 px; grey and alpha are read, alpha is put back.
        style_image: one for all pictures or one for each, in the same forms; `[(picture, weight), ...]` mixes. One
            picture with several styles gives one result for each.
        prompt: words in place of a style image, where the pipeline has a text encoder; `[(prompt, weight), ...]` mixes.
        strength: 0 is the picture as the model gives it back, 1 the style, up to 1.5 more than that.
        structure, stroke_scale, preserve_color, shading, tone_only, protect_text, mask_image, feather: as in
            `StyleMambaPipeline`.
        shuffles: of Mamba-ST's style tokens. 0 leaves them in place; 1 and more put them in random orders and give the
            mean, so that nothing of where things stand in the style image can pass.
        generator: its initial seed decides the orders; without one the seed is 0.
        output_type: "pil", "np" or "pt".
        """
        # 1. Check
        self.check_inputs(
            style_image, prompt, strength, structure, stroke_scale, preserve_color, shading, feather, shuffles, generator,
            output_type,
        )  # fmt: skip
        contents = read_images(image)
        mixtures = read_mixtures(style_image) if prompt is None else read_prompts(prompt)

        # 2. One picture and one mixture of styles for every result
        if len(mixtures) not in (1, len(contents)) and len(contents) != 1:
            raise ValueError(
                f"got {len(mixtures)} styles for {len(contents)} pictures, wanted as many, or one of either."
            )
        results = max(len(contents), len(mixtures))
        contents = contents * (results // len(contents))
        masks = None
        if mask_image is not None:
            masks = read_mask(mask_image, [content.size for content in contents], self._execution_device)
            masks = [feather_mask(mask, feather) for mask in masks]

        # 3. One pass for each size and mixture, and one more where its strokes are painted at another size
        groups: dict[tuple, list[int]] = {}
        for i, content in enumerate(contents):
            groups.setdefault((content.size, i % len(mixtures)), []).append(i)
        passes: list[tuple] = []
        for (size, style), members in groups.items():
            full = _full_size(size)
            sizes = stroke_sizes(size, stroke_scale, MIN_SIDE, full) if strength else [full]
            sizes = [_full_size(painted_at) for painted_at in sizes]
            most = max(1, MOST_PIXELS // max(height * width for height, width in sizes))
            passes += [(size, style, sizes, members[i : i + most]) for i in range(0, len(members), most)]
        done: list[Content | None] = [None] * results
        with self.progress_bar(total=len(passes)) as bar:
            for size, style, sizes, members in passes:
                rgb = torch.cat([contents[i].rgb for i in members]).to(self._execution_device)  # (B, 3, H, W)
                painted = None
                for painted_at in sizes:
                    features = self.encode_content(resize(rgb, painted_at))  # (B, C, h, w)
                    styles = self.encode_style(mixtures[style], painted_at)
                    fused = self.fuse(features, styles, shuffles, generator)  # (B, C, h, w)
                    strokes = self.model.decode_between(features, fused, strength).float()  # (B, 3, H', W')
                    self._require_finite(strokes)
                    strokes = strokes[..., : painted_at[0], : painted_at[1]].clamp(0, 1)
                    painted = strokes if painted is None else add_fine_strokes(painted, strokes)
                mask = None if masks is None else torch.cat([masks[i] for i in members])
                stylized = finish(
                    resize(painted, size),
                    rgb,
                    structure,
                    shading,
                    preserve_color,
                    tone_only,
                    protect_text,
                    mask,
                )  # (B, 3, H, W)
                for i, one in zip(members, stylized.split(1), strict=True):
                    done[i] = Content(one, contents[i].alpha)
                bar.update()

        # 4. In the order of the input, in the form asked for
        images = collect(done, output_type)
        self.maybe_free_model_hooks()
        return StyleMambaPipelineOutput(images=images) if return_dict else (images,)

    def _require_finite(self, stylized: Tensor) -> None:
        if not torch.isfinite(stylized).all():
            raise FloatingPointError(
                f"the model gave NaN or infinite values in {self.model.dtype}: load the pipeline with dtype=torch.float32, "
                "or check its weights."
            )


class SaMamPipeline(ImageGuidedPipeline):
    """Style transfer by SaMam. Styles are mixed as embeddings, so that any number of them costs one pass.

    text_encoder, tokenizer, text_head: read prompts; they come together, or not at all.
    """

    model_cpu_offload_seq = "text_encoder->text_head->model"
    _optional_components = ["text_encoder", "tokenizer", "text_head"]

    def __init__(
        self,
        model: SaMam,
        style_size: int | None = 256,
        text_encoder: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        text_head: TextToStyle | None = None,
    ) -> None:
        super().__init__(model, style_size)
        self.register_modules(text_encoder=text_encoder, tokenizer=tokenizer, text_head=text_head)

    @property
    def reads_prompts(self) -> bool:
        return self.text_head is not None and self.text_encoder is not None

    @classmethod
    def from_public_checkpoint(cls, file: str | os.PathLike) -> "SaMamPipeline":
        """From a checkpoint of the paper's authors on this machine, see `public_checkpoints.py`."""
        return cls(load_public_samam(file))

    def encode_prompt(self, texts: Sequence[str]) -> Tensor:
        """Texts -> style embeddings (N, R, 3, 3), as `encode_style` gives them for pictures."""
        embeds = SiglipEncoder(self.text_encoder, self.tokenizer).embed_texts(texts, self._execution_device)
        return self.text_head(embeds).to(self.model.dtype)

    def encode_style(self, mixture: Mixture, size: tuple[int, int]) -> list[tuple[Tensor, float]]:
        texts = [(self.encode_prompt([what]), weight) for what, weight in mixture if isinstance(what, str)]
        return texts + super().encode_style([pair for pair in mixture if not isinstance(pair[0], str)], size)

    def fuse(
        self, features: Tensor, styles: Mixture, shuffles: int = 0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Features (B, C, h, w) -> the same with the mean of the styles."""
        return self.model.fuse(features, sum(weight * style for style, weight in styles))


class MambaSTPipeline(ImageGuidedPipeline):
    """Style transfer by Mamba-ST. Styles are mixed as features, since a token cannot hold two; each costs a pass."""

    _has_tokens_to_shuffle = True

    def __init__(self, model: MambaST, style_size: int | None = None) -> None:
        super().__init__(model, style_size)

    @classmethod
    def from_public_checkpoint(cls, *files: str | os.PathLike) -> "MambaSTPipeline":
        """From the checkpoints of the paper's authors on this machine, see `public_checkpoints.py`."""
        return cls(load_public_mamba_st(*files))

    def fuse(
        self, features: Tensor, styles: Mixture, shuffles: int = 0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Features (B, C, h, w) -> the mean of the same with each style."""
        # Seeded for each pass, so that a picture gets the same orders alone and in a batch.
        seed = 0 if generator is None else generator.initial_seed()
        return sum(
            weight * self.model.fuse(features, style, shuffles, torch.Generator().manual_seed(seed))
            for style, weight in styles
        )


def read_prompts(prompt: Prompt | list[Prompt]) -> list[Mixture]:
    """Every form of `prompt` -> one mixture of texts for each style."""
    return [_with_shares(mixture, "prompts") for mixture in as_mixtures(prompt)]


def read_mixtures(style_image: Picture | WeightedPictures | list) -> list[Mixture]:
    """Every form of `style_image` -> one mixture for each style: as prompts are read, with pictures for texts."""
    if isinstance(style_image, (list, tuple)) and style_image and all(map(_is_weighted, style_image)):
        return [_mixture(style_image)]
    if not isinstance(style_image, (list, tuple)):
        return [[(content.rgb, 1.0)] for content in read_images(style_image)]
    if not style_image:
        raise ValueError("style_image is an empty list, wanted a picture or [(picture, weight), ...].")
    return [mixture for item in style_image for mixture in read_mixtures(item)]


def _is_weighted(item) -> bool:
    return isinstance(item, (list, tuple)) and len(item) == 2 and isinstance(item[1], (int, float))


def _mixture(weighted: WeightedPictures) -> Mixture:
    mixture = []
    for picture, share in _with_shares(weighted, "style images"):
        contents = read_images(picture)
        if len(contents) != 1:
            raise ValueError(
                f"a weight stands for {len(contents)} style images, wanted one: give each its own."
            )
        mixture.append((contents[0].rgb, share))
    return mixture


def _with_shares(weighted: Sequence[tuple], what: str) -> list[tuple]:
    """With weights that sum to 1; those of weight 0 are left out."""
    weights = [weight for _, weight in weighted]
    if min(weights) < 0 or sum(weights) == 0:
        raise ValueError(f"the weights of the {what} are {weights}, wanted none below 0 and one above.")
    return [(one, weight / sum(weights)) for one, weight in weighted if weight]


def _full_size(size: tuple[int, int]) -> tuple[int, int]:
    """That of the picture, or the largest that is painted."""
    most = min(1.0, (MOST_PIXELS / (size[0] * size[1])) ** 0.5)
    return tuple(round(side * most) for side in size)


def _shorter_side(rgb: Tensor, side: int) -> Tensor:
    height, width = rgb.shape[-2:]
    scale = side / min(height, width)
    return resize(rgb, (round(height * scale), round(width * scale)))
