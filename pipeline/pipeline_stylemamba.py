"""`StyleMambaPipeline`: picture and prompt in, stylized picture out; fits, loads and mixes styles.

Responsible for the order of the steps, for what a diffusers user expects of a pipeline, and for the styles in use.
Each step is a public method that can be used alone, with gradients. The nets, losses and files are in their own
modules; where parts come from is in `loading.py`.
"""

import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .controls import add_fine_strokes, check_controls, resize, stroke_sizes
from .finishing import finish
from .fit_config import PromptFitConfig
from .fusion import StyleFusion
from .images import MIN_SIDE, Content, Picture, collect, read_images, read_mask, stack
from .latents import BEYOND, decode_latents, encode_latents, unscale_latents, vae_scale_factor
from .loading import PipelineLoading
from .masks import feather_mask
from .module_view import module_view
from .padding import pad_to_multiple
from .perceptual import VGGFeatures
from .prompt_fit import FitProgress, PromptFit
from .prompts import Prompt, as_mixtures, describe
from .siglip_encoder import SiglipEncoder
from .statistics_encoder import StatisticsEncoder
from .style import Style
from .style_decoder import StyleDecoder, blend_changes
from .style_memory import StyleMemory
from .style_mixing import interpolate_strength, mix_directions
from .style_set import StyleSet
from .tiles import SharedStatistics, bytes_per_pixel, run_in_tiles

logger = logging.getLogger(__name__)

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
# Within this distance of a cut, in pixels, nothing of a tile is used. Further in, the bundled model's tiles differ from the
# whole by less than 1/255; tests/test_tiles.py holds it to that.
TILE_HALO = 48
TILE = 1024
WHOLE_BYTES = 2**31  # what a pass over a whole picture may take before it goes in tiles


@dataclass
class StyleMambaPipelineOutput(BaseOutput):
    """`images`: a list of PIL pictures, an array (B, H, W, C), a tensor (B, C, H, W), or latents; a list of these
    where pictures of different sizes were given."""

    images: list[Image.Image] | np.ndarray | Tensor | list


class StyleMambaPipeline(PipelineLoading, DiffusionPipeline):
    """Text-driven style transfer that keeps every pixel in place.

    vae: an autoencoder of the SD family. text_encoder, tokenizer, image_encoder: SigLIP or SigLIP 2 towers; the image
    side is needed to fit, to score and for style images only. fusion: writes the style into the latent.
    style_decoder: paints, called with (latents, prompt_embeds, strength), see `ConditionalDecoder`. perceptual: a network of
    the content losses of a fit. style_memory: leads the words of a prompt to the styles that the painter knows. logit_scale,
    logit_bias: SigLIP's, for probabilities.
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->fusion->style_decoder->vae"
    _optional_components = ["image_encoder", "style_decoder", "perceptual", "style_memory"]
    # The attention of its pooling head, and one layer of the decoder that paints, read weights outside of `forward`, where no hook
    # puts them back. The memory has buffers alone, of which the hooks want a parameter.
    _exclude_from_cpu_offload = ["image_encoder", "style_decoder", "style_memory"]
    _callback_tensor_inputs = ["latents"]

    vae: AutoencoderKL | AutoencoderTiny
    text_encoder: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fusion: StyleFusion

    def __init__(
        self,
        vae: AutoencoderKL | AutoencoderTiny,
        text_encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        fusion: StyleFusion,
        image_encoder: PreTrainedModel | StatisticsEncoder | None = None,
        style_decoder: torch.nn.Module | None = None,
        perceptual: VGGFeatures | None = None,
        style_memory: StyleMemory | None = None,
        logit_scale: float | None = None,
        logit_bias: float | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            fusion=fusion,
            image_encoder=image_encoder,
            style_decoder=style_decoder,
            perceptual=perceptual,
            style_memory=style_memory,
        )
        self.register_to_config(logit_scale=logit_scale, logit_bias=logit_bias)
        self.vae_scale_factor = vae_scale_factor(getattr(self, "vae", None))
        self.styles = StyleSet()
        self._tile: int | None = None
        self._interrupt = False
        self._num_timesteps = 0

    @property
    def encoder(self) -> SiglipEncoder:
        """The space that words and pictures share."""
        return SiglipEncoder(
            self.text_encoder,
            self.tokenizer,
            self.image_encoder,
            logit_scale=self.config.logit_scale,
            logit_bias=self.config.logit_bias,
        )

    @property
    def num_timesteps(self) -> int:
        """Forward passes of the running call: one for each size among its pictures."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Set `_interrupt` in a callback to stop: a fit keeps what it has learnt."""
        return self._interrupt

    # The steps

    def check_inputs(
        self,
        image=None,
        prompt=None,
        style_image=None,
        strength=1.0,
        structure=0.0,
        stroke_scale=1.0,
        preserve_color=False,
        shading=0.0,
        tone_only=False,
        protect_text=False,
        feather=0.0,
        mask_image=None,
        num_images_per_prompt=1,
        generator=None,
        latents=None,
        output_type="pil",
        prompt_embeds=None,
        callback_on_step_end_tensor_inputs=("latents",),
    ) -> None:
        if image is None and latents is None:
            raise ValueError("image is None, wanted a picture to stylize (or latents=).")
        takes = preserve_color or structure or shading or tone_only or protect_text or mask_image is not None
        if image is None and takes:
            raise ValueError(
                "image is None, but preserve_color, structure, shading, tone_only, protect_text and mask_image take from the "
                "picture: give it beside latents."
            )
        if latents is not None and latents.ndim != 4:
            raise ValueError(f"latents have shape {tuple(latents.shape)}, wanted (B, C, h, w).")
        if latents is not None and stroke_scale != 1:
            raise ValueError(
                f"stroke_scale is {stroke_scale}, but latents are encoded already: leave it at 1, or give image alone."
            )
        if output_type == "latent" and takes:
            raise ValueError(
                "output_type is 'latent', but preserve_color, structure, shading, tone_only, protect_text and mask_image work on "
                "pictures: leave them out, or take pictures."
            )
        if output_type == "latent" and stroke_scale != 1:
            raise ValueError(
                f"stroke_scale is {stroke_scale}, but latents hold strokes of one size only: leave it at 1, or take pictures."
            )
        if prompt is None and prompt_embeds is None and style_image is None and not self.styles.active:
            raise ValueError(
                "prompt is None and no style is loaded: give a prompt, a style_image, prompt_embeds, or load_style first."
            )
        if prompt is not None and prompt_embeds is not None:
            raise ValueError("both prompt and prompt_embeds were given, wanted one of them.")
        check_controls(
            preserve_color,
            strength=strength,
            structure=structure,
            stroke_scale=stroke_scale,
            shading=shading,
            feather=feather,
        )
        if not isinstance(num_images_per_prompt, int) or num_images_per_prompt < 1:
            raise ValueError(
                f"num_images_per_prompt is {num_images_per_prompt!r}, wanted a whole number from 1 on."
            )
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type is {output_type!r}, wanted one of {', '.join(OUTPUT_TYPES)}.")
        if not isinstance(generator, (torch.Generator, list, tuple, type(None))):
            raise ValueError(
                f"generator is a {type(generator).__name__}, wanted a torch.Generator or a list of them."
            )
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs has {unknown}, wanted {self._callback_tensor_inputs}."
            )

    def encode_prompt(
        self,
        prompt: Prompt | list[Prompt],
        num_images_per_prompt: int = 1,
        templates: Sequence[str] = ("{}",),
        mix: str = "linear",
        recall: bool = True,
    ) -> Tensor:
        """Unit embeddings (N, E), N = prompts * num_images_per_prompt, of what the prompts mean to the fusion and the decoder.

        prompt: a string, a list of them, `[(prompt, weight), ...]` for one mixture, or a list that holds mixtures.
        templates: sentences with `{}` where the prompt goes; their embeddings are averaged.
        mix: "linear" or "slerp", see `mix_directions`.
        recall: with a style memory, what it makes of the words; without, what the text encoder does.
        """
        rows = []
        for mixture in as_mixtures(prompt):
            used = [(text, weight) for text, weight in mixture if weight != 0] or mixture
            texts = [template.replace("{}", text) for text, _ in used for template in templates]
            embeds = self.encoder.embed_texts(texts, self._execution_device)
            if recall and self.style_memory is not None:
                embeds = self.style_memory(embeds)
            embeds = embeds.unflatten(0, (len(used), len(templates)))  # (prompts, templates, E)
            embeds = (
                embeds[:, 0] if len(templates) == 1 else torch.nn.functional.normalize(embeds.mean(1), dim=-1)
            )
            rows.append(mix_directions(*embeds, weights=[weight for _, weight in used], mode=mix))
        prompt_embeds = torch.stack(rows).repeat_interleave(num_images_per_prompt, dim=0)  # (N, E)
        return prompt_embeds

    @property
    def beyond(self) -> int:
        """Latents of the mirrored picture on every side while it is encoded, see `latents.encode_latents`."""
        return 0 if self.style_decoder is None else BEYOND

    def encode_image(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1], any size -> scaled latents (B, C, h, w) of the picture padded to whole latents."""
        padded, f = pad_to_multiple(image, self.vae_scale_factor), self.vae_scale_factor
        tile = self._tile_for(self.vae, padded.shape[-2:])
        vae, shared = self._sharing_statistics(self.vae) if tile else (self.vae, None)

        def encode(part: Tensor) -> Tensor:
            pixels = part.to(self._execution_device, vae.dtype) * 2 - 1
            return encode_latents(vae, pixels, self.beyond)

        if tile is None:
            return encode(padded)
        tiles = (padded, tile, TILE_HALO, 2 * f)
        if shared is not None:
            shared.measure(encode, *tiles)
        return run_in_tiles(encode, *tiles, shared)

    def fuse(self, latents: Tensor, prompt_embeds: Tensor | None = None, strength: float = 1.0) -> Tensor:
        """Scaled latents (B, C, h, w) -> the same with the style. Without `prompt_embeds` the styles in use go by the
        prompts they were fitted to."""
        if prompt_embeds is None and not self.styles.active:
            raise ValueError(
                "prompt_embeds is None and no style is loaded: give encode_prompt's result, or load_style first."
            )
        if prompt_embeds is not None and len(prompt_embeds) == 1:
            prompt_embeds = prompt_embeds.expand(len(latents), -1)  # one for all
        if self.styles.active:
            fused = self.styles.fuse(latents, prompt_embeds, whole=self.style_decoder is not None)
        else:
            fused = self.fusion(latents.to(self.fusion.dtype), prompt_embeds)
        return interpolate_strength(latents, fused, strength)

    def strength_of_latents(self, strength: float) -> float:
        """By how much to `fuse` latents that nobody mixes later: where a decoder paints, it takes the styles whole, whatever
        their weights."""
        return strength if self.style_decoder is None else strength * self.styles.amount

    def decode(
        self,
        latents: Tensor,
        prompt_embeds: Tensor | None = None,
        strength: float = 1.0,
        plain: Tensor | None = None,
    ) -> Tensor:
        """Scaled latents (B, C, h, w) -> pictures (B, 3, H, W), about [0, 1], not clamped. plain: the latents before they were
        fused, for a strength between 0 and 1 or above; by default `latents`."""
        if self.style_decoder is not None:
            if prompt_embeds is None and self.styles.active:
                prompt_embeds = self.styles.prompt_embeds().to(latents.device)
            # Said here alone: `fuse` and what changes the decoder take the styles whole.
            strength = strength * self.styles.amount
            if strength not in (0, 1):
                # Pictures are mixed, not latents or statistics: halfway between a photo's and a style's lie those of a third
                # style. Above 1, what the style changes of the plain picture is exaggerated.
                ends = (latents if plain is None else plain, 0.0), (latents, 1.0)
                plain, painted = (self._decode(end, prompt_embeds, reached) for end, reached in ends)
                return torch.lerp(plain, painted, strength)
        return self._decode(latents, prompt_embeds, strength)

    def _decode(self, latents: Tensor, prompt_embeds: Tensor | None, strength: float) -> Tensor:
        """One pass; where a decoder paints, of a strength of 0 or 1."""
        latents = latents.to(self.vae.dtype)
        whole = self.style_decoder is not None
        changes = blend_changes(*self.styles.decoder_changes(whole=whole)) if strength else {}
        painter = self.vae if self.style_decoder is None or not strength else self.style_decoder
        tile = self._tile_for(painter, [side * self.vae_scale_factor for side in latents.shape[-2:]])
        if changes or tile:
            network = StyleDecoder(painter, changes, device=latents.device)

            def run(part: Tensor) -> Tensor:
                return network(unscale_latents(self.vae, part), strength, prompt_embeds)

            if tile:
                tiles = (latents, tile // self.vae_scale_factor, -(-TILE_HALO // self.vae_scale_factor), 2)
                shared = SharedStatistics(network)
                shared.measure(run, *tiles)
                image = run_in_tiles(run, *tiles, shared)
            else:
                image = run(latents)
        elif painter is self.vae:
            image = decode_latents(self.vae, latents)
        else:
            image = painter(unscale_latents(self.vae, latents), prompt_embeds, strength)
        return image.float().div(2).add_(0.5)

    @torch.no_grad()
    def __call__(
        self,
        image: Picture | Sequence[Picture] | None = None,
        prompt: Prompt | list[Prompt] | None = None,
        *,
        style_image: Picture | Sequence[Picture] | None = None,
        strength: float = 1.0,
        structure: float = 0.0,
        stroke_scale: float = 1.0,
        preserve_color: bool | str = False,
        shading: float = 0.0,
        tone_only: bool = False,
        protect_text: bool = False,
        mask_image: Picture | Sequence[Picture] | None = None,
        feather: float = 0.0,
        mix: str = "linear",
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 (as in diffusers; never changed)
    ) -> StyleMambaPipelineOutput | tuple:
        """Stylizes pictures. The result has the size of the input, to the pixel.

        image: PIL, numpy (uint8, uint16 or floats), torch [B, 3, H, W] in [0, 1], or lists of them, of any sizes from
            16 px; grey and alpha are read, alpha is put back.
        prompt: one for all pictures or one for each; `[(prompt, weight), ...]` mixes. One picture with several
            prompts gives one result for each.
        style_image: a picture in place of a prompt, or mixed with it half and half.
        strength: 0 is the reconstruction by the autoencoder, 1 the style, up to 1.5 more than that.
        structure: 0 to 1, how much of the picture's own edges and fine light is put back, the finest first: all that is finer
            than so much of a stroke.
        stroke_scale: size of the strokes, in parts of the picture, whatever its resolution; 2 doubles it.
        preserve_color: True or "luminance" keeps the picture's colours and takes only the luminance of the result;
            "palette" paints with the picture's colours, wherever the style wants them.
        shading: 0 to 1, how much of the picture's broad light and dark is kept.
        tone_only: takes the colours of the style and nothing of its texture: one smooth map from colour to colour.
        protect_text: keeps text and line art legible: found by its dense edges on even ground, it keeps every edge.
        mask_image: 1 or white where to stylize; where it is 0 the pixels of the input stay as they are.
        feather: pixels over which the style fades out inside the edge of the mask.
        mix: how weighted prompts and a style image are mixed, "linear" or "slerp".
        generator: accepted as in every pipeline; one pass draws no random numbers.
        latents: scaled latents of the pictures, if they are encoded already.
        output_type: "pil", "np", "pt" or "latent".
        callback_on_step_end: called after the latents of each group of equal size are fused, as in diffusers.
        """
        # 1. Check
        self.check_inputs(
            image, prompt, style_image, strength, structure, stroke_scale, preserve_color, shading, tone_only,
            protect_text, feather, mask_image, num_images_per_prompt, generator, latents, output_type, prompt_embeds, callback_on_step_end_tensor_inputs,
        )  # fmt: skip
        self._interrupt = False
        contents = self._contents_of_latents(latents) if image is None else read_images(image)
        self._require_matching(latents, contents)

        # 2. Prompts and pictures, one of each for every result
        embeds = self._condition(prompt, prompt_embeds, style_image, mix)  # (P, E) or None
        contents, embeds, latents = _match(contents, embeds, latents, num_images_per_prompt)
        if isinstance(generator, (list, tuple)) and len(generator) != len(contents):
            raise ValueError(
                f"got {len(generator)} generators for {len(contents)} results, wanted one for each."
            )
        masks = None
        if mask_image is not None:
            sizes = [content.size for content in contents[::num_images_per_prompt]]
            masks = read_mask(mask_image, sizes, self._execution_device)
            if not any(mask.any() for mask in masks):
                logger.warning("mask_image is empty (0 everywhere): nothing is stylized.")
            masks = [feather_mask(mask, feather) for mask in masks for _ in range(num_images_per_prompt)]

        # 3. One pass for each size, and one more where its strokes are painted at another
        once = strength == 0 or latents is not None or output_type == "latent"

        def painted_at(size: tuple[int, int]) -> list[tuple[int, int]]:
            return [size] if once else stroke_sizes(size, stroke_scale, MIN_SIDE, size)

        groups = _group_by_size(contents, painted_at, WHOLE_BYTES // bytes_per_pixel(self.vae))
        if self.style_decoder is None or output_type == "latent":
            fused_by = self.strength_of_latents(strength)
        else:  # the style whole, of which `decode` mixes in as much as is wanted
            fused_by = float(strength > 0)
        self._num_timesteps = sum(len(painted_at(size)) for size, _ in groups)
        results: dict[int, Content | Tensor] = {}
        step = 0
        with self.progress_bar(total=self._num_timesteps) as bar:
            for (height, width), members in groups:
                rgb = _batch([contents[i].rgb for i in members]).to(self._execution_device)  # (B, 3, H, W)
                cond = None if embeds is None else embeds[members]  # (B, E)
                stylized = None
                for size in painted_at((height, width)):
                    if latents is None:
                        work = resize(rgb, size)
                        z = self.encode_image(work)  # (B, C, h, w)
                    else:
                        work, z = rgb, latents[members].to(self._execution_device, self.vae.dtype)
                    self._require_finite(z, "encoding the picture")
                    fused = self.fuse(z, cond, fused_by)  # (B, C, h, w)
                    self._require_finite(fused, "fusing the style")
                    if callback_on_step_end is not None:
                        given = dict.fromkeys(callback_on_step_end_tensor_inputs, fused)
                        fused = (callback_on_step_end(self, step, step, given) or {}).get("latents", fused)
                    step += 1
                    if output_type != "latent":
                        painted = self.decode(fused, cond, strength, plain=z)  # (B, 3, H', W')
                        self._require_finite(painted, "decoding")
                        painted = painted[..., : size[0], : size[1]].clamp_(0, 1)
                        stylized = painted if stylized is None else add_fine_strokes(stylized, painted)
                    bar.update()
                if output_type == "latent":
                    results.update(zip(members, fused.split(1), strict=True))
                else:
                    area = None if masks is None else _batch([masks[i] for i in members])
                    stylized = finish(
                        resize(stylized, (height, width)),
                        rgb,
                        structure,
                        shading,
                        preserve_color,
                        tone_only,
                        protect_text,
                        area,
                    )  # (B, 3, H, W)
                    for i, one in zip(members, stylized.split(1), strict=True):
                        results[i] = Content(one, contents[i].alpha)
                if self._interrupt:
                    break

        # 4. In the order of the input, in the form asked for
        done = [results[i] for i in sorted(results)]
        images = stack(done) if output_type == "latent" else collect(done, output_type)
        self.maybe_free_model_hooks()
        return StyleMambaPipelineOutput(images=images) if return_dict else (images,)

    def enable_tiling(self, tile: int = TILE) -> None:
        """Encodes and decodes in tiles of `tile` pixels, for little memory. Pictures too large to go whole into about 2 GB
        do so anyway. The tiles share the statistics of the whole picture, and the scan sees it whole."""
        least = 4 * TILE_HALO
        if tile < least or tile % 16:
            raise ValueError(f"tile is {tile}, wanted a multiple of 16 px, at least {least}.")
        self._tile = tile

    def disable_tiling(self) -> None:
        """Back to tiles for large pictures only."""
        self._tile = None

    # Styles

    @property
    def fit_preset(self) -> str:
        """What a fit begins with if nobody chooses: "sharpen" for a decoder that paints the prompt already, else "paper"."""
        return "paper" if self.style_decoder is None else "sharpen"

    def fit_style(
        self,
        image: Picture | Sequence[Picture],
        prompt: Prompt,
        *,
        config: PromptFitConfig | None = None,
        generator: torch.Generator | None = None,
        callback: Callable[[FitProgress], bool | None] | None = None,
        checkpoint: str | os.PathLike | None = None,
    ) -> Style:
        """Fits a style to `prompt` on one or several pictures; `load_style` puts it to use.

        config: without one, the settings of `fit_preset`. `PromptFitConfig(preset=pipe.fit_preset, epochs=40)` changes one of
            them; the preset "paper", that of a bare `PromptFitConfig()`, leads a decoder that paints back to the photo.
        generator: its initial seed decides every random number; without one the seed is 0.
        callback: called after each step with a `FitProgress`; return False to stop and keep what was learnt.
        checkpoint: a path where progress is kept; a fit that was left early goes on from there.
        """
        config = config or PromptFitConfig(preset=self.fit_preset)
        if not isinstance(config, PromptFitConfig):
            raise TypeError(
                f"config is a {type(config).__name__}, wanted a PromptFitConfig: PromptFitConfig(**config)."
            )
        if self.style_decoder is not None and config.content_weights == PromptFitConfig().content_weights:
            logger.warning(
                "The content weights of the paper lead this model, which paints the prompt already, back to the photo; "
                "PromptFitConfig(preset=pipe.fit_preset, ...) has smaller ones."
            )
        mixtures = as_mixtures(prompt)
        if len(mixtures) != 1:
            raise ValueError(
                f"got {len(mixtures)} prompts, wanted one, or [(prompt, weight), ...] for a mixed style."
            )
        self._interrupt = False
        # ComfyUI runs every node under inference_mode, where nothing can be trained.
        with torch.inference_mode(False), torch.enable_grad():
            with torch.no_grad():
                prompt_embeds = self.encode_prompt([mixtures[0]], templates=config.templates)
                # What a photo is like is no style to remember.
                source_embeds = self.encode_prompt(
                    config.source_prompt, templates=config.templates, recall=False
                )
            fit = PromptFit(
                self,
                read_images(image),
                prompt=describe(mixtures[0]),
                prompt_embeds=prompt_embeds,
                source_embeds=source_embeds,
                config=config,
                seed=0 if generator is None else generator.initial_seed(),
            )
            with self.progress_bar(total=config.steps) as bar:

                def after_step(progress: FitProgress) -> bool | None:
                    bar.update(progress.step - bar.n)
                    bar.set_postfix(style=f"{progress.losses['style']:.3f}")
                    wanted = None if callback is None else callback(progress)
                    return False if self._interrupt else wanted

                fit.run(after_step, checkpoint)
            return fit.style()

    def load_style(self, style: Style | str | os.PathLike, name: str | None = None) -> str:
        """Loads a style file, or takes a fitted `Style`, and puts it to use alone. Returns its name."""
        loaded = style if isinstance(style, Style) else Style.load(style)
        if name is None:
            name = (
                loaded.prompt if isinstance(style, Style) else Path(style).stem
            ) or f"style{len(self.styles.loaded)}"
        self.styles.add(name, loaded, self.vae, self.style_decoder)
        return name

    def set_styles(
        self,
        names: str | Sequence[str],
        weights: float | Sequence[float] | None = None,
        mix: str = "linear",
    ) -> None:
        """Puts loaded styles to use, mixed by `weights`: 1 each if left out; those that sum to less give less of the style.

        mix: how the directions are mixed that a decoder that paints follows, "linear" or "slerp"; fused latents are always
        mixed linearly.
        """
        self.styles.use(names, weights, mix)

    def list_styles(self) -> dict[str, float]:
        """Loaded styles with their weights; 0 is loaded but not in use."""
        return {name: self.styles.active.get(name, 0.0) for name in self.styles.loaded}

    def unload_styles(self, names: str | Sequence[str] | None = None) -> None:
        """Forgets these styles, or all of them."""
        self.styles.remove(names)

    # What __call__ is made of

    def _condition(self, prompt, prompt_embeds, style_image, mix: str) -> Tensor | None:
        if prompt is not None:
            prompt_embeds = self.encode_prompt(prompt, mix=mix)
        elif prompt_embeds is not None:
            prompt_embeds = prompt_embeds.to(self._execution_device)
            prompt_embeds = prompt_embeds[None] if prompt_embeds.ndim == 1 else prompt_embeds
        if style_image is None:
            return prompt_embeds
        rgbs = [content.rgb.to(self._execution_device) for content in read_images(style_image)]
        seen = torch.cat([self.encoder.embed_images(rgb) for rgb in rgbs])  # (S, E)
        if prompt_embeds is None:
            return seen
        if len(seen) not in (1, len(prompt_embeds)) and len(prompt_embeds) != 1:
            raise ValueError(
                f"got {len(prompt_embeds)} prompts and {len(seen)} style images, wanted as many or one."
            )
        rows = max(len(seen), len(prompt_embeds))
        both = [e.expand(rows, -1) for e in (prompt_embeds, seen)]
        return mix_directions(*both, weights=[0.5, 0.5], mode=mix)

    def _tile_for(self, network: torch.nn.Module, size: Sequence[int]) -> int | None:
        """The side of the tiles in which a picture of this size goes through `network`; None: it goes whole."""
        if getattr(network, "use_tiling", False):  # its own tiles, asked for with vae.enable_tiling
            return None
        tile, fits = self._tile, WHOLE_BYTES // bytes_per_pixel(network)
        if tile is None and size[0] * size[1] > fits:
            tile = min(TILE, math.isqrt(fits) // 16 * 16)
        return tile if tile is not None and max(size) > tile else None

    def _sharing_statistics(
        self, network: torch.nn.Module
    ) -> tuple[torch.nn.Module, SharedStatistics | None]:
        """The network again, with one mean and deviation for all tiles, where it has layers that use them."""
        if not SharedStatistics.wanted_by(network):
            return network, None
        view = module_view(network, self._execution_device)  # where no hook will bring it
        return view, SharedStatistics(view)

    def _contents_of_latents(self, latents: Tensor) -> list[Content]:
        """Stand-ins that carry the size: nothing of a picture is used when there is none."""
        size = [side * self.vae_scale_factor for side in latents.shape[-2:]]
        return [Content(torch.zeros(1, 3, *size)) for _ in range(len(latents))]

    def _require_matching(self, latents: Tensor | None, contents: list[Content]) -> None:
        if latents is None:
            return
        f = self.vae_scale_factor
        for height, width in {content.size for content in contents}:
            wanted = (-(-height // f), -(-width // f))
            if tuple(latents.shape[-2:]) != wanted:
                raise ValueError(
                    f"latents have shape {tuple(latents.shape)}, wanted (B, C, {wanted[0]}, {wanted[1]}) for a picture "
                    f"of {width} x {height} px: give what encode_image made of it."
                )

    def _require_finite(self, tensor: Tensor, stage: str) -> None:
        # One pass: what is not finite makes the sum so.
        if not torch.isfinite(tensor.sum(dtype=torch.float32)):
            raise FloatingPointError(
                f"{stage} gave NaN or infinite values in {tensor.dtype}: load the pipeline with dtype=torch.float32 (some "
                "autoencoders overflow in half precision), or check the weights of the style."
            )


def _match(
    contents: list[Content], embeds: Tensor | None, latents: Tensor | None, copies: int
) -> tuple[list[Content], Tensor | None, Tensor | None]:
    """One picture, one embedding and one latent for every result: single ones serve all, then each `copies` times."""
    if latents is not None and len(latents) != len(contents):
        raise ValueError(f"got {len(latents)} latents for {len(contents)} pictures, wanted one for each.")
    if embeds is not None and len(embeds) != len(contents):
        if len(embeds) == 1:
            embeds = embeds.expand(len(contents), -1)
        elif len(contents) == 1:
            contents = contents * len(embeds)
            latents = None if latents is None else latents.expand(len(embeds), -1, -1, -1)
        else:
            raise ValueError(
                f"got {len(embeds)} prompts for {len(contents)} pictures, wanted as many, or one of either."
            )
    contents = [content for content in contents for _ in range(copies)]
    repeat = [None if t is None else t.repeat_interleave(copies, dim=0) for t in (embeds, latents)]
    return contents, *repeat


def _group_by_size(
    contents: list[Content], painted_at: Callable[[tuple[int, int]], list[tuple[int, int]]], pixels: int
) -> list[tuple[tuple[int, int], list[int]]]:
    """(size, indices) of pictures that go through the model together, of at most so many pixels unless one alone has more, at
    the largest size that they are painted at."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index, content in enumerate(contents):
        groups.setdefault(content.size, []).append(index)
    split = []
    for size, members in groups.items():
        most = max(1, pixels // max(height * width for height, width in painted_at(size)))
        split += [(size, members[i : i + most]) for i in range(0, len(members), most)]
    return split


def _batch(tensors: list[Tensor]) -> Tensor:
    """Without a copy of a single one, which may be large."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
