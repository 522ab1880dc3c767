"""Prompt-fit: trains a fusion, and the decoder if asked, until pictures move along the prompt's direction.

Responsible for the loop: what is trained, the terms of one step, snapshots, stopping, and the `Style` that comes out.
The losses are in `losses.py`, schedules and settings in `fit_config.py`, resuming in `fit_checkpoint.py`. Works on
views and copies: no component of a pipeline is changed.
"""

import copy
import hashlib
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from .crops import random_crops
from .fit_checkpoint import load_checkpoint, save_checkpoint
from .fit_config import PromptFitConfig
from .images import Content, to_pil
from .latents import encode_latents, unscale_latents
from .losses import (
    apply_patch_mask,
    content_loss,
    directional_cosine,
    directional_loss,
    masked_directional_loss,
    patch_directional_loss,
    patch_mask,
    range_penalty,
    second_order_loss,
    style_loss,
    total_loss,
    total_variation,
)
from .module_view import module_view
from .padding import pad_to_multiple
from .perceptual import PerceptualLoss
from .siglip_encoder import SiglipEncoder
from .style import Style, describe_component, library_versions, timestamp
from .style_decoder import StyleDecoder
from .temporal import frame_difference_loss, second_order_temporal_loss

__all__ = ["FitProgress", "PromptFit", "PromptFitConfig"]

logger = logging.getLogger(__name__)


@dataclass
class FitProgress:
    """What a callback sees after each step. Return False from the callback to stop there and keep what was learnt."""

    step: int  # steps done, from 1
    steps: int
    epoch: int  # from 0
    losses: dict[str, float]
    preview: Callable[[], Image.Image]  # the first content picture, stylized with what was learnt so far


@dataclass
class FitContent:
    """One content picture, with everything about it that stays the same during the fit."""

    image: Tensor  # (1, 3, H, W) in [-1, 1]
    latents: Tensor  # (1, C, h, w)
    pixels: Tensor  # (1, 3, S, S), what the image encoder saw
    features: Tensor  # (1, E)
    distance: Callable[[Tensor], dict[str, Tensor]]  # content terms of a result
    # epoch -> features of the result when it began
    snapshots: dict[int, Tensor] = field(default_factory=dict)


class PromptFit:
    """One fit. `run()` takes optimiser steps, each over all content pictures; `style()` is what came of it."""

    def __init__(
        self,
        pipe,
        contents: Sequence[Content],
        prompt: str,
        prompt_embeds: Tensor,
        source_embeds: Tensor,
        config: PromptFitConfig,
        seed: int,
    ) -> None:
        self.pipe, self.prompt, self.config, self.seed = pipe, prompt, config, seed
        self.device = pipe._execution_device
        self.text = {"FT": _normal(prompt_embeds, self.device), "Fsrc": _normal(source_embeds, self.device)}
        self.done, self.gate_fired = 0, 0  # steps
        self.history: dict[str, list[float]] = {}
        self.stopped = ""  # why, if before the end

        view = {"device": self.device, "dtype": torch.float32}
        self.vae = module_view(pipe.vae, **view)
        self.encoder = SiglipEncoder(
            None, image_encoder=module_view(pipe.encoder.require_image_encoder(), **view)
        )
        self.perceptual = None if pipe.perceptual is None else module_view(pipe.perceptual, **view)
        if self.perceptual is None:
            logger.warning(
                "The pipeline has no `perceptual` network, so the content terms of this fit compare latents of the "
                "autoencoder. Give it one (VGGFeatures.from_torchvision) for the content losses of the paper."
            )
        self.fusion = copy.deepcopy(module_view(pipe.fusion, **view)).requires_grad_(True)
        self.decoder = StyleDecoder(self.vae if pipe.style_decoder is None else pipe.style_decoder, **view)
        self.parameters = self._trained_parameters()
        self.optimizer = torch.optim.Adam(self.parameters.values(), lr=config.lr)
        self.contents = [self._prepare(content) for content in contents]
        if config.temporal_weight and len({content.image.shape for content in self.contents}) > 1:
            sizes = sorted({f"{c.size[1]} x {c.size[0]}" for c in contents})
            raise ValueError(
                f"the pictures have the sizes {', '.join(sizes)}, wanted frames of one film for temporal_weight."
            )
        self.best_loss, self.best = math.inf, self._copy_of_parameters()

    def _trained_parameters(self) -> dict[str, nn.Parameter | Tensor]:
        parameters = {f"fusion.{name}": value for name, value in self.fusion.named_parameters()}
        if self.config.train == "fusion+decoder":
            self.decoder.changes = {k: v.requires_grad_() for k, v in self.decoder.full_changes().items()}
            parameters.update({f"decoder.{k}": v for k, v in self.decoder.changes.items()})
        elif self.config.train == "decoder_lora":
            self.decoder.changes = self.decoder.low_rank_changes(self.config.lora_rank, seed=self.seed)
            for name, (up, down) in self.decoder.changes.items():
                parameters[f"decoder.{name}.up"] = up.requires_grad_()
                parameters[f"decoder.{name}.down"] = down.requires_grad_()
        return parameters

    def _prepare(self, content: Content) -> FitContent:
        rgb = _normal(content.rgb, self.device)
        scale = self.config.image_size / max(rgb.shape[-2:])
        if scale < 1:
            size = [max(16, round(side * scale)) for side in rgb.shape[-2:]]
            rgb = F.interpolate(rgb, size=size, mode="bicubic", antialias=True).clamp(0, 1)
        image = rgb * 2 - 1  # (1, 3, H, W)
        with torch.no_grad():
            latents = self._encode(image)
            pixels = self.encoder.pixels(rgb)
            features = self.encoder.embed_pixels(pixels)
        if self.perceptual is not None:
            distance = PerceptualLoss(self.perceptual, image, variant=self.config.content_variant)
        else:

            def distance(result: Tensor) -> dict[str, Tensor]:
                return {
                    "latent": content_loss(self._encode(result), latents, variant=self.config.content_variant)
                }

        return FitContent(image, latents, pixels, features, distance)

    def _encode(self, image: Tensor) -> Tensor:
        padded = pad_to_multiple(image, self.pipe.vae_scale_factor)
        return encode_latents(self.vae, padded, self.pipe.beyond)

    @property
    def epoch(self) -> int:
        return self.done // self.config.steps_per_epoch

    def stylize(self, content: FitContent) -> Tensor:
        """-> (1, 3, H, W), about [-1, 1]. Not clamped: a clamp would stop the gradient."""
        fused = self.fusion(content.latents, self.text["FT"])  # (1, C, h, w)
        result = self.decoder(unscale_latents(self.vae, fused), prompt_embeds=self.text["FT"])
        return result[..., : content.image.shape[-2], : content.image.shape[-1]]

    def losses(
        self,
        content: FitContent,
        generator: torch.Generator,
        before: list[tuple[Tensor, Tensor]] | None = None,
    ) -> dict[str, Tensor]:
        """Every term of one picture; `total` is minimised, terms that are off are left out. before: of the frames before
        it, the picture and its result; this one is added."""
        config, text = self.config, self.text
        result = self.stylize(content)  # (1, 3, H, W)
        pixels = self.encoder.pixels(result / 2 + 0.5)  # (1, 3, S, S)
        features = self.encoder.embed_pixels(pixels)  # (1, E)
        if self.epoch % config.second_order_every == 0:
            content.snapshots.setdefault(self.epoch, features.detach())

        keep = patch_mask(*pixels.shape[-2:], config.mask_patch, config.mask_ratio, generator=generator).to(
            pixels
        )
        masked = self.encoder.embed_pixels(apply_patch_mask(pixels, keep))
        origin = content.features
        if config.masked_variant == "same_mask":
            with torch.no_grad():
                origin = self.encoder.embed_pixels(apply_patch_mask(content.pixels, keep))
        terms = {
            "dir": directional_loss(features, content.features, **text, delta=config.delta),
            "md": masked_directional_loss(
                masked, origin, **text, variant=config.masked_variant, delta=config.delta
            ),
            "so": features.new_zeros(()),
        }
        unguarded = directional_loss(features.detach(), content.features, **text)
        if self.epoch in config.second_order_epochs():
            snapshot = content.snapshots[config.snapshot_of(self.epoch)]
            terms["so"] = second_order_loss(
                features, snapshot, content.features, **text,
                alpha=config.alpha, beta=config.beta, variant=config.second_order_variant,
            )  # fmt: skip
            self.gate_fired += int(unguarded < config.theta)
        style = style_loss(terms["dir"], terms["md"], terms["so"], config.theta, gate_on=unguarded)

        distance = content.distance(result)
        total = total_loss(
            style,
            distance.get("lpips", 0.0),
            distance.get("vgg", distance.get("latent")),
            config.style_weight,
            config.content_weight(self.epoch),
        )
        terms.update(distance, range=range_penalty(result))
        total = total + config.range_weight * terms["range"]
        if config.tv_weight:
            terms["tv"] = total_variation(result)
            total = total + config.tv_weight * terms["tv"]
        if config.temporal_weight and before is not None:
            if before:
                # The frames before stand still: each frame's gradient comes from its own step.
                (c0, y0) = before[-1]
                terms["temporal"] = frame_difference_loss(c0, content.image, y0, result)
                if len(before) > 1:
                    terms["temporal"] = terms["temporal"] + second_order_temporal_loss(
                        before[-2][1], y0, result
                    )
                total = total + config.temporal_weight * terms["temporal"]
            before.append((content.image, result.detach()))
        if config.patch_crops:
            size = min(config.patch_size, *result.shape[-2:])
            crops = random_crops(
                result / 2 + 0.5, config.patch_crops, size, self.encoder.image_size, generator=generator
            )  # (N, 3, S, S)
            cosines = directional_cosine(
                self.encoder.embed_images(crops), content.features, **text, delta=config.delta
            )
            terms["patch"] = patch_directional_loss(cosines, config.patch_threshold)
            total = total + config.patch_weight * terms["patch"]
        return {"total": total, "style": style, "dir_unguarded": unguarded, **terms}

    def step(self) -> dict[str, float]:
        """One optimiser step on the mean loss of all pictures. Raises `FloatingPointError` where it leads nowhere."""
        self.optimizer.param_groups[0]["lr"] = self.config.learning_rate(self.epoch)
        self.optimizer.zero_grad()
        means: dict[str, float] = {}
        before: list[tuple[Tensor, Tensor]] = []
        for index, content in enumerate(self.contents):
            # Random numbers follow from seed, step and picture, so that a resumed fit draws the same.
            draw = hashlib.sha256(f"{self.seed} {self.done} {index}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(draw[:7], "little"))
            terms = self.losses(content, generator, before)
            (terms["total"] / len(self.contents)).backward()
            for name, value in terms.items():
                means[name] = means.get(name, 0.0) + value.item() / len(self.contents)
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.config.gradient_clip)
        if not (math.isfinite(means["total"]) and torch.isfinite(norm)):
            raise FloatingPointError(f"loss {means['total']} and gradient norm {norm.item()}")

        # Totals compare only under one content weight: the best of each phase starts anew.
        if (
            means["total"] < self.best_loss
            or self.done == self.config.content_switch * self.config.steps_per_epoch
        ):
            self.best_loss, self.best = means["total"], self._copy_of_parameters()
        self.optimizer.step()
        # A style is stored in half precision: what overflows there is as lost as what is not a number.
        largest = (
            torch.stack([value.detach().abs().amax() for value in self.parameters.values()]).amax().item()
        )
        if not largest <= torch.finfo(torch.float16).max:
            raise FloatingPointError(f"weights up to {largest}")
        self.done += 1
        for name, value in means.items():
            self.history.setdefault(name, []).append(float(f"{value:.6g}"))
        return means

    def run(
        self,
        callback: Callable[[FitProgress], bool | None] | None = None,
        checkpoint: str | os.PathLike | None = None,
    ) -> None:
        """All steps that are left. With `checkpoint`, continues from that file if it is there, and writes it after
        each epoch and whenever the run is left early, by Ctrl-C too."""
        if checkpoint is not None and os.path.exists(checkpoint):
            load_checkpoint(self, checkpoint)
        saved, whole = self.done, True  # not whole: a step is half done, and the state must not be written
        try:
            while self.done < self.config.steps and not self.stopped:
                epoch, whole = self.epoch, False
                try:
                    means = self.step()
                except FloatingPointError as error:
                    self._restore_best(error)
                    break
                whole = True
                progress = FitProgress(self.done, self.config.steps, epoch, means, self.preview)
                if callback is not None and callback(progress) is False:
                    self.stopped = f"by the callback after step {self.done}"
                if checkpoint is not None and self.epoch > epoch:
                    save_checkpoint(self, checkpoint)
                    saved = self.done
        finally:
            if checkpoint is not None and whole and saved < self.done:
                save_checkpoint(self, checkpoint)
        if self.epoch > self.config.second_order_every and not self.gate_fired:
            logger.warning(
                "The second-order loss never counted in this fit: L_dir stayed at or above theta = %g.",
                self.config.theta,
            )

    @torch.no_grad()
    def preview(self) -> Image.Image:
        return to_pil(self.stylize(self.contents[0]) / 2 + 0.5)

    def style(self) -> Style:
        """What was learnt so far."""
        changes = {
            name: tuple(part.detach() for part in change) if isinstance(change, tuple) else change.detach()
            for name, change in self.decoder.changes.items()
        }
        info = {
            "prompt": self.prompt,
            "source_prompt": self.config.source_prompt,
            "created": timestamp(),
            "seed": self.seed,
            "config": self.config.to_dict(),
            "steps_done": self.done,
            "stopped": self.stopped,
            "second_order_steps": self.gate_fired,
            "losses": self.history,
            "base": self.base,
            "versions": library_versions(),
        }
        config = {k: v for k, v in self.fusion.config.items() if not k.startswith("_")}
        weights = {k: v.detach() for k, v in self.fusion.state_dict().items()}
        return Style(self.text["FT"][0], config, weights, changes, info, self.preview())

    @cached_property
    def base(self) -> dict[str, dict[str, str]]:
        """The models that this fit stands on."""
        names = (
            "vae", "text_encoder", "style_memory", "image_encoder", "fusion", "style_decoder", "perceptual",
        )  # fmt: skip
        parts = {name: getattr(self.pipe, name) for name in names}
        return {name: describe_component(part) for name, part in parts.items() if part is not None}

    @cached_property
    def identity(self) -> dict[str, object]:
        """What has to agree for a checkpoint to be of this fit."""
        pictures = b"".join(content.image.cpu().numpy().tobytes() for content in self.contents)
        return {
            "prompt": self.prompt,
            "seed": self.seed,
            "pictures": hashlib.sha256(pictures).hexdigest()[:16],
            "embedding": hashlib.sha256(self.text["FT"].cpu().numpy().tobytes()).hexdigest()[:16],
            **{f"config.{name}": value for name, value in self.config.to_dict().items()},
            **{name: part["fingerprint"] for name, part in self.base.items()},
        }

    def _copy_of_parameters(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.parameters.items()}

    @torch.no_grad()
    def _restore_best(self, error: FloatingPointError) -> None:
        for name, value in self.best.items():
            self.parameters[name].copy_(value)
        self.stopped = f"not finite at step {self.done + 1} ({error}); the best state before it was restored"
        logger.warning(
            'The fit became %s. A lower lr may help: PromptFitConfig(lr=...); or train="fusion".',
            self.stopped,
        )


def _normal(tensor: Tensor, device: torch.device) -> Tensor:
    """Float32 and fit for autograd, even if a host made it under `inference_mode`."""
    tensor = tensor.detach().to(device, torch.float32)
    return tensor.clone() if tensor.is_inference() else tensor
