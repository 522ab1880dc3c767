"""Where the parts of a pipeline come from: a folder, a bundled name, a Hub id, another pipeline, or single parts.

Responsible for `from_pretrained`, `from_parts` and `from_pipe`. Knows nothing of what the parts do.
"""

import json
import math
import os
from importlib import import_module
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    Siglip2TextModel,
    Siglip2VisionModel,
    SiglipTextModel,
    SiglipVisionModel,
)
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from ..weights import bundled_folder, bundled_names, pipeline_of
from . import conditional_decoder, statistics_encoder  # noqa: F401 (diffusers loads parts of imported modules only)
from .fusion import StyleFusion
from .siglip_encoder import SiglipEncoder

# Class -> its module, which imports this one.
PIPELINES = {
    "StyleMambaPipeline": ".pipeline_stylemamba",
    "SaMamPipeline": ".image_guided_pipeline",
    "MambaSTPipeline": ".image_guided_pipeline",
}
_TOWERS = {
    "siglip": {"text": SiglipTextModel, "vision": SiglipVisionModel},
    "siglip2": {"text": Siglip2TextModel, "vision": Siglip2VisionModel},
}


class PretrainedLoading:
    """`from_pretrained` of every pipeline of this package, ahead of `DiffusionPipeline` in its bases."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs):
        """A folder written by `save_pretrained`, the name of a bundled model, or a Hub id. Keyword arguments are
        those of diffusers: `dtype` (float32 if left out), `variant`, `revision`, components to use instead, and so on."""
        # diffusers' own parts begin in single precision, those of transformers in that of their file: one for all.
        if kwargs.get("dtype") is None and kwargs.get("torch_dtype") is None:
            kwargs["dtype"] = torch.float32
        source = os.fspath(pretrained_model_name_or_path)
        folder = bundled_folder(source) or source
        if not os.path.isdir(folder):
            hub = ("cache_dir", "force_download", "local_files_only", "token", "revision")
            folder = cls.download(
                source, variant=kwargs.get("variant"), **{k: kwargs.pop(k) for k in hub if k in kwargs}
            )
        _check_folder(Path(folder))
        # diffusers asks for every component that is not optional; a pipeline saved without one has none to give.
        index = json.loads(Path(folder, "model_index.json").read_text(encoding="utf-8"))
        kind = index.get("_class_name")
        if kind != cls.__name__ and kind in PIPELINES:
            raise ValueError(f"{source!r} holds a {kind}, so load it with {kind}.from_pretrained.")
        for name, value in index.items():
            if isinstance(value, list) and value[0] is None:
                kwargs.setdefault(name, None)
        pipe = super().from_pretrained(folder, **kwargs)
        pipe.register_to_config(_name_or_path=source)
        if "vae" in index and "vae" not in kwargs:
            _channels_last(pipe.vae)
        return pipe

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs) -> str:
        """Fetches a Hub repository. diffusers' own download refuses components of other packages than itself and
        transformers; ours need no remote code, since this package brings their classes."""
        variant = kwargs.get("variant")

        def fetch(*weights: str) -> str:
            return snapshot_download(
                pretrained_model_name,
                allow_patterns=["*.json", "*.txt", "*.model", *weights],
                **{k: kwargs[k] for k in ("cache_dir", "force_download", "token", "revision") if k in kwargs},
                local_files_only=bool(kwargs.get("local_files_only")),
            )

        try:
            if variant is None:
                return fetch("*.safetensors")
            folder = Path(fetch(f"*.{variant}.safetensors", f"*.{variant}-*.safetensors"))
            # A part that has none of the variant is loaded as it is.
            without = [
                part.parent.name for part in folder.glob("*/config.json")
                if not any(part.parent.glob(f"*.{variant}[.-]*safetensors"))
            ]  # fmt: skip
            return fetch(*(f"{part}/*.safetensors" for part in without)) if without else str(folder)
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise OSError(
                f"{pretrained_model_name!r} is neither a folder nor a bundled model ({', '.join(bundled_names())}), and it "
                f"could not be fetched from the Hub: {str(error).splitlines()[0]}"
            ) from error


class PipelineLoading(PretrainedLoading):
    """The loading methods of `StyleMambaPipeline`."""

    @classmethod
    def from_parts(
        cls,
        vae: str | os.PathLike | nn.Module,
        text_encoder: str | os.PathLike | nn.Module | None = None,
        *,
        tokenizer=None,
        image_encoder: str | os.PathLike | nn.Module | None = None,
        fusion: StyleFusion | None = None,
        perceptual: nn.Module | None = None,
        preset: str = "paper",
        dtype: torch.dtype | None = None,
    ):
        """A pipeline of separate parts, each a Hub id, a folder or a loaded object, with a fresh identity fusion.

        A SigLIP checkpoint given as `text_encoder` brings its tokenizer and image tower along.
        preset: of the fusion: "paper", "wide", "dense" or "tiny".
        """
        if isinstance(vae, (str, os.PathLike)):
            vae = _load_vae(vae, dtype)
        logits: dict[str, float | None] = {}
        if isinstance(text_encoder, (str, os.PathLike)):
            source = os.fspath(text_encoder)
            text_encoder = _load_tower(source, "text", dtype)
            tokenizer = tokenizer if tokenizer is not None else AutoTokenizer.from_pretrained(source)
            if image_encoder is None and "vision" in _towers(source):
                image_encoder = source
            logits = _read_logits(source)
        if isinstance(image_encoder, (str, os.PathLike)):
            image_encoder = _load_tower(os.fspath(image_encoder), "vision", dtype)
        if fusion is None:
            fusion = _fresh_fusion(
                vae, text_encoder if text_encoder is not None else image_encoder, preset, dtype
            )
        return cls(vae, text_encoder, tokenizer, fusion, image_encoder, perceptual=perceptual, **logits)

    @classmethod
    def from_pipe(cls, pipeline, *, preset: str = "paper", **kwargs):
        """The autoencoder of a loaded Stable Diffusion pipeline, shared and not copied, with the parts in `kwargs`:
        `text_encoder`, `tokenizer`, `image_encoder`, `fusion`. From a StyleMamba pipeline, every part is shared."""
        vae = kwargs.get("vae", getattr(pipeline, "vae", None))
        if vae is None:
            raise ValueError(
                f"{type(pipeline).__name__} has no vae to share, wanted a pipeline of the SD family."
            )
        if isinstance(pipeline, cls):
            # diffusers would leave out what is no instance of exactly the class of an annotation.
            kwargs = {**pipeline.components, **kwargs}
        else:
            # SD's CLIP towers do not span one space with pictures, so they are left where they are.
            for name in ("text_encoder", "tokenizer", "image_encoder"):
                kwargs.setdefault(name, None)
            if kwargs.get("fusion") is None:
                tower = (
                    kwargs["text_encoder"] if kwargs["text_encoder"] is not None else kwargs["image_encoder"]
                )
                kwargs["fusion"] = _fresh_fusion(vae, tower, preset, vae.dtype)
        # diffusers would cast all to float32, the shared autoencoder with it
        kwargs.setdefault("dtype", vae.dtype)
        return super().from_pipe(pipeline, **kwargs)


def load_pipeline(source: str | os.PathLike, **kwargs):
    """The pipeline of a folder or a bundled name, of whichever class it is; a Hub id is taken for a `StyleMambaPipeline`.
    Keyword arguments are those of `from_pretrained`."""
    kind = pipeline_of(bundled_folder(os.fspath(source)) or Path(source))
    kind = kind if kind in PIPELINES else "StyleMambaPipeline"  # whose errors say what is wrong
    return getattr(import_module(PIPELINES[kind], __package__), kind).from_pretrained(source, **kwargs)


def load_encoder(source: str | os.PathLike) -> SiglipEncoder:
    """A whole SigLIP checkpoint without a pipeline around it: towers, tokenizer, learnt scale and bias."""
    source = os.fspath(source)
    text_tower, image_tower = (_load_tower(source, side, None) for side in ("text", "vision"))
    return SiglipEncoder(
        text_tower, AutoTokenizer.from_pretrained(source), image_tower, **_read_logits(source)
    )


def _check_folder(folder: Path) -> None:
    if not (folder / "model_index.json").is_file():
        raise OSError(
            f"{folder} has no model_index.json, so it holds no saved pipeline: give a folder that save_pretrained wrote, or "
            "build a pipeline of parts with from_parts."
        )


def _load_vae(source: str | os.PathLike, dtype: torch.dtype | None) -> nn.Module:
    """An autoencoder's own folder or repository, or the `vae` inside that of a whole SD pipeline."""
    source = os.fspath(source)
    for subfolder in (None, "vae"):
        try:
            config = AutoencoderKL.load_config(source, subfolder=subfolder)
        except OSError as error:
            reason = error
            continue
        kind = config.get("_class_name", "AutoencoderKL")
        autoencoder = getattr(diffusers, kind, None)
        if autoencoder is None or "Autoencoder" not in kind:
            raise ValueError(
                f"{source!r} is a {kind}, wanted an autoencoder of the SD family (AutoencoderKL)."
            )
        options = {"dtype": dtype} if dtype else {}
        return _channels_last(autoencoder.from_pretrained(source, subfolder=subfolder, **options))
    raise OSError(
        f"no autoencoder at {source!r}, neither there nor in its folder vae: {str(reason).splitlines()[0]}"
    )


def _channels_last(vae: nn.Module) -> nn.Module:
    """Most convolutions are faster when the channels of a pixel lie side by side: on a CPU by a fifth in Stable Diffusion's
    encoder, twice in a small one. For autoencoders loaded here; one that came from elsewhere stays as it is."""
    return vae.to(memory_format=torch.channels_last)


def _towers(source: str) -> dict[str, type[nn.Module]]:
    """The towers that a checkpoint holds: "text", "vision" or both."""
    if os.path.isabs(source) and not os.path.isdir(source):
        raise OSError(f"{source} does not exist: give a folder that holds a SigLIP checkpoint, or a Hub id.")
    kind = AutoConfig.from_pretrained(source).model_type
    family = kind.removesuffix("_text_model").removesuffix("_vision_model")
    if family not in _TOWERS:
        raise ValueError(
            f"{source!r} is a {kind} checkpoint, wanted SigLIP or SigLIP 2 (google/siglip-base-patch16-224)."
        )
    return {side: cls for side, cls in _TOWERS[family].items() if kind in (family, f"{family}_{side}_model")}


def _load_tower(source: str, side: str, dtype: torch.dtype | None) -> nn.Module:
    towers = _towers(source)
    if side not in towers:
        raise ValueError(
            f"{source!r} holds no {side} tower, only {' and '.join(towers)}: give a whole SigLIP checkpoint."
        )
    # One tower of a whole checkpoint leaves the other's weights unused, and transformers would list every one of them.
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        tower, report = towers[side].from_pretrained(
            source, dtype=dtype or torch.float32, output_loading_info=True
        )
    finally:
        transformers_logging.set_verbosity(verbosity)
    if report["missing_keys"]:
        raise ValueError(
            f"{source!r} lacks {len(report['missing_keys'])} weights of its {side} tower ({min(report['missing_keys'])}): "
            "its files are incomplete or of another version of transformers."
        )
    return tower.eval()


def _read_logits(source: str) -> dict[str, float | None]:
    """SigLIP's learnt scale (as the factor it is) and bias, which the single towers do not carry."""
    scale, bias = _read_scalar(source, "logit_scale"), _read_scalar(source, "logit_bias")
    return {"logit_scale": None if scale is None else math.exp(scale), "logit_bias": bias}


def _read_scalar(source: str, name: str) -> float | None:
    """One number of a checkpoint in one or several safetensors files, or None if it is not there."""
    file_name = "model.safetensors"
    index = cached_file(source, f"{file_name}.index.json", _raise_exceptions_for_missing_entries=False)
    if index is not None:
        file_name = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].get(name, file_name)
    path = cached_file(source, file_name, _raise_exceptions_for_missing_entries=False)
    if path is None:
        return None
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name).float().item() if name in file.keys() else None  # noqa: SIM118 (not a dict)


def _fresh_fusion(
    vae: nn.Module, tower: nn.Module | None, preset: str, dtype: torch.dtype | None
) -> StyleFusion:
    """An identity fusion, the same one every time: two fits of one preset start from the same place."""
    if tower is None:
        raise ValueError(
            "text_encoder is None, wanted a SigLIP text tower: its width decides the width of the fusion."
        )
    width = getattr(tower.config, "projection_size", None) or tower.config.hidden_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fusion = StyleFusion.from_preset(preset, latent_channels=vae.config.latent_channels, cond_dim=width)
    return fusion.to(dtype) if dtype else fusion
