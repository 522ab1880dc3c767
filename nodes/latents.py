"""StyleMamba Fuse and StyleMamba Decode: styles in the latent space, between any nodes that take a LATENT."""

import torch
from torch import Tensor

from . import host
from .autoencoder import native_vae
from .host import io
from .model import StyledModel
from .pictures import from_mask, to_image
from .tiles import run_in_batches

_MAX_SIDE = 16384


class StyleMambaFuse(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="StyleMambaFuse",
            display_name="StyleMamba Fuse",
            category="StyleMamba",
            description="Writes a style into a LATENT, keeping every pixel in place. The result goes to StyleMamba Decode, to "
            "VAE Decode with the vae of this node, or to a KSampler.",
            search_aliases=["latent style transfer", "style latent", "img2img style"],
            inputs=[
                host.Model.Input("model", tooltip="From StyleMamba Loader."),
                io.Latent.Input("samples", tooltip="From VAE Encode with the vae of StyleMamba Loader."),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="The style in words, such as: an ink drawing on paper. Not read when a style is connected.",
                ),
                _strength(),
                host.Style.Input(
                    "style",
                    optional=True,
                    tooltip="A fitted, loaded or blended style, in place of the prompt.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="1 where to put the style; elsewhere the latent stays as it is. Resized to the latent.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="samples", tooltip="The latent with the style; all else in it is kept."
                ),
                io.Vae.Output(
                    display_name="vae",
                    tooltip="Decodes with the style, in core VAE Decode and its tiled form.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model, samples, prompt: str, strength: float, style=None, mask=None) -> io.NodeOutput:
        from ..pipeline.latents import scale_latents, unscale_latents
        from ..pipeline.style_mixing import composite

        latents = _latents_of(samples, model)
        model.to_device(*_pixels(latents, model))
        styled = model.styled(style, prompt, strength)
        pipe = styled.pipe
        vae = pipe.vae
        fused_by = pipe.strength_of_latents(strength)

        def fuse(part: Tensor) -> Tensor:
            scaled = scale_latents(vae, part.to(model.device))
            fused = pipe.fuse(scaled, styled.direction(len(part)), fused_by)
            return unscale_latents(vae, fused).cpu()

        progress = host.Progress(len(latents))
        # A single latent is never cut: the scan has to see the whole of it.
        fused = run_in_batches(fuse, latents, progress=progress)
        _require_finite(fused, "fusing the style")
        area = from_mask(mask, len(latents), latents.shape[-2:], _pixels(latents, model))
        if area is not None:
            fused = composite(latents, fused, area.to(latents))
        return io.NodeOutput({**samples, "samples": host.intermediate(fused)}, native_vae(styled))


class StyleMambaDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def side(name: str) -> io.Int.Input:
            return io.Int.Input(
                name,
                default=0,
                min=0,
                max=_MAX_SIDE,
                tooltip=f"The {name} of the original picture, to cut the padding off. 0: that of size_of, else all of it.",
            )

        return host.schema(
            node_id="StyleMambaDecode",
            display_name="StyleMamba Decode",
            category="StyleMamba",
            description="Decodes a LATENT with the style's own decoder, at the exact size of the original picture.",
            search_aliases=["style decode", "vae decode style", "latent to image"],
            inputs=[
                host.Model.Input("model", tooltip="From StyleMamba Loader."),
                io.Latent.Input("samples", tooltip="From StyleMamba Fuse, VAE Encode or a KSampler."),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="The style in words, the same as in StyleMamba Fuse. Without prompt and style the latent is "
                    "decoded as it is.",
                ),
                _strength(),
                side("width"),
                side("height"),
                host.Style.Input("style", optional=True, tooltip="The same style as in StyleMamba Fuse."),
                io.Image.Input(
                    "size_of",
                    optional=True,
                    tooltip="The original picture: the result gets its size, to the pixel.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The decoded picture."),
                io.Vae.Output(
                    display_name="vae", tooltip="The same decoder as a native VAE, for VAE Decode (Tiled)."
                ),
            ],
        )

    @classmethod
    def execute(
        cls, model, samples, prompt: str, strength: float, width: int, height: int, style=None, size_of=None
    ) -> io.NodeOutput:
        latents = _latents_of(samples, model)
        model.to_device(*_pixels(latents, model))
        if style is None and not prompt.strip():
            styled = StyledModel(model, model.own_pipeline(), None, strength=0.0)
        else:
            styled = model.styled(style, prompt, strength)
        vae = native_vae(styled)

        def decode(part: Tensor) -> Tensor:
            decoded = vae.first_stage_model.decode(part.to(model.device, model.pipe.vae.dtype))
            return (decoded / 2 + 0.5).float().cpu()

        progress = host.Progress(len(latents))
        pictures = run_in_batches(decode, latents, tile=styled.pipe.enable_tiling, progress=progress)
        _require_finite(pictures, "decoding")
        if size_of is not None:
            height, width = height or size_of.shape[-3], width or size_of.shape[-2]
        return io.NodeOutput(to_image(_cropped(pictures.clamp(0, 1), height, width)), vae)


def _strength() -> io.Float.Input:
    return io.Float.Input(
        "strength",
        default=1.0,
        min=0.0,
        max=1.5,
        step=0.05,
        display_mode=io.NumberDisplay.slider,
        tooltip="0 is the picture as it was, 1 the style, more exaggerates it.",
    )


def _latents_of(samples: dict, model) -> Tensor:
    latents = samples["samples"]
    channels = model.pipe.vae.config.latent_channels
    if latents.ndim != 4 or latents.shape[1] != channels or not latents.numel():
        raise ValueError(
            f"samples have shape {tuple(latents.shape)}, wanted (B, {channels}, h, w) as of the model {model.name!r}: use the "
            "vae of StyleMamba Loader in VAE Encode, or connect your VAE to StyleMamba Loader."
        )
    return latents.to("cpu", torch.float32)


def _pixels(latents: Tensor, model) -> tuple[int, ...]:
    return tuple(model.factor * side for side in latents.shape[-2:])


def _cropped(pictures: Tensor, height: int, width: int) -> Tensor:
    found = pictures.shape[-2:]
    if height > found[0] or width > found[1]:
        raise ValueError(
            f"got the size {width} x {height}, but the latent holds only {found[1]} x {found[0]} pixels: give the picture that "
            "it was encoded from, or set width and height to 0."
        )
    return pictures[..., : height or None, : width or None]


def _require_finite(tensor: Tensor, stage: str) -> None:
    if not torch.isfinite(tensor).all():
        raise FloatingPointError(
            f"{stage} gave NaN or infinite values: check that the latent and the style belong to this model."
        )
