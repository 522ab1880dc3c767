"""Style files: one fitted style in one safetensors file, and the checks before anything of it is used.

Responsible for: what a style holds, its metadata, saving it atomically and loading it without trusting it. Knows
nothing of fitting or of pipelines; `pipeline_stylemamba.py` applies styles.

A style keeps the trained fusion (weights and config), the change of the decoder's weights, and the embedding it was
fitted to, so that no text tower is needed to apply it. Tensors are stored in half precision, but for the parameters
of the scan; a style in memory holds the same rounded numbers as its file, so both give the same picture.
"""

import base64
import hashlib
import io
import json
import math
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .atomic_write import atomic_write
from .mamba import MambaMixer
from .style_decoder import WeightChange

FORMAT = "stylemamba-style"
FORMAT_VERSION = 1
MAX_BYTES = 2**31  # a style of SD's whole decoder is 0.1 GB; nothing larger is worth opening
MAX_SIDE = 256  # of the thumbnail


class StyleFileError(ValueError):
    """A style file that cannot be used, with the reason in one sentence."""


@dataclass
class Style:
    """A fitted style. `info` is what the metadata holds: prompts, fit config, seed, losses, base models, versions."""

    prompt_embeds: Tensor  # (E,) unit vector
    fusion_config: dict
    fusion: dict[str, Tensor]
    decoder: dict[str, WeightChange] = field(default_factory=dict)
    info: dict = field(default_factory=dict)
    thumbnail: Image.Image | None = None

    def __post_init__(self) -> None:
        self.prompt_embeds = self.prompt_embeds.detach().float().cpu()
        self.fusion = {name: _stored(name, value) for name, value in self.fusion.items()}
        self.decoder = {
            name: tuple(_stored(name, part) for part in change)
            if isinstance(change, tuple)
            else _stored(name, change)
            for name, change in self.decoder.items()
        }

    @property
    def prompt(self) -> str:
        return self.info.get("prompt", "")

    def save(self, path: str | os.PathLike) -> None:
        """Writes `path` (.safetensors), whole or not at all."""
        path = Path(path)
        if path.suffix != ".safetensors":
            raise StyleFileError(f"{path} ends in {path.suffix!r}, wanted a name that ends in .safetensors.")
        tensors = {"prompt_embeds": self.prompt_embeds}
        tensors.update({f"fusion.{name}": value for name, value in self.fusion.items()})
        for name, change in self.decoder.items():
            parts = (
                zip(("up", "down"), change, strict=True) if isinstance(change, tuple) else [("full", change)]
            )
            tensors.update({f"decoder.{name}.{part}": value for part, value in parts})
        with atomic_write(path) as part:
            save_file({k: v.contiguous() for k, v in tensors.items()}, part, metadata=self._metadata())

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Style":
        """Reads and checks a style file; every reason why it cannot be used is a `StyleFileError` of one sentence."""
        path = Path(path)
        if not path.is_file():
            raise StyleFileError(f"{path} is not a file: give the path of a .safetensors style file.")
        if path.stat().st_size > MAX_BYTES:
            raise StyleFileError(f"{path} has {path.stat().st_size} bytes, too many for a style file.")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                _check_format(path, metadata)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError, MemoryError) as error:
            raise StyleFileError(
                f"{path} is no whole safetensors file (damaged, cut off or of another kind): {error}."
            ) from error
        return _from_tensors(cls, path, tensors, metadata)

    def _metadata(self) -> dict[str, str]:
        info = self.info
        metadata = {
            "format": FORMAT,
            "format_version": str(FORMAT_VERSION),
            "fusion_config": json.dumps(self.fusion_config),
            "info": json.dumps(info),
            # the fields that model browsers show (ModelSpec 1.0)
            "modelspec.sai_model_spec": "1.0.0",
            "modelspec.architecture": "stylemamba/style",
            "modelspec.implementation": "stylemamba",
            "modelspec.title": info.get("title") or self.prompt or "style",
            "modelspec.trigger_phrase": self.prompt,
            "modelspec.date": info.get("created", ""),
        }
        if self.thumbnail is not None:
            metadata["modelspec.thumbnail"] = _data_uri(self.thumbnail)
        return metadata


def library_versions() -> dict[str, str]:
    return {
        name: version(name) for name in ("stylemamba", "torch", "diffusers", "transformers", "safetensors")
    }


def timestamp() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def fingerprint(module: nn.Module) -> str:
    """Hash of a module's weights, the same for a checkpoint in full and in half precision."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if value.is_meta:
            return "unknown"  # offloaded piece by piece: not worth loading for a warning
        digest.update(name.encode())
        digest.update(
            value.detach().to("cpu", torch.float16).contiguous().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()[:16]


def describe_component(module: nn.Module) -> dict[str, str]:
    """What a style records of a model it was fitted on."""
    return {
        "class": type(module).__name__,
        "name": str(getattr(module.config, "_name_or_path", "")),
        "fingerprint": fingerprint(module),
    }


def _stored(name: str, value: Tensor) -> Tensor:
    keep = name.rsplit(".", 1)[-1] in MambaMixer._keep_in_fp32
    return value.detach().to("cpu", torch.float32 if keep else torch.float16)


def _check_format(path: Path, metadata: dict[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        kind = metadata.get("modelspec.architecture") or metadata.get("format") or "no metadata"
        raise StyleFileError(f"{path} is a safetensors file but no StyleMamba style ({kind:.60}).")
    found = metadata.get("format_version", "")
    if not found.isdecimal():
        raise StyleFileError(
            f"{path} has format version {found!r:.40}, wanted a whole number: the file is damaged."
        )
    if int(found) > FORMAT_VERSION:
        raise StyleFileError(
            f"{path} has format version {found}, newer than the {FORMAT_VERSION} this StyleMamba reads: upgrade with "
            "pip install --upgrade stylemamba."
        )


def _from_tensors(cls, path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Style:
    try:
        fusion_config, info = json.loads(metadata["fusion_config"]), json.loads(metadata["info"])
    except (KeyError, ValueError, RecursionError) as error:
        raise StyleFileError(f"{path} has damaged metadata ({type(error).__name__}).") from error
    if not isinstance(fusion_config, dict) or not isinstance(info, dict):
        raise StyleFileError(f"{path} has damaged metadata (fusion_config and info have to be JSON objects).")
    for name, value in tensors.items():
        if not value.is_floating_point() or not torch.isfinite(value).all():
            raise StyleFileError(f"{path}: tensor {name!r:.80} is not made of finite floating point numbers.")

    embeds = tensors.pop("prompt_embeds", None)
    if embeds is None or embeds.ndim != 1:
        raise StyleFileError(f"{path} holds no prompt embedding of shape (E,): it is damaged.")
    fusion, decoder = {}, {}
    for key, value in tensors.items():
        kind, _, name = key.partition(".")
        if kind == "fusion":
            fusion[name] = value
        elif kind == "decoder":
            name, _, part = name.rpartition(".")
            decoder.setdefault(name, {})[part] = value
        else:
            raise StyleFileError(f"{path} holds the unknown tensor {key!r:.80}: it is no StyleMamba style.")
    for name, parts in decoder.items():
        factors = [parts.get("up"), parts.get("down")]
        if set(parts) == {"full"}:
            decoder[name] = parts["full"]
        elif (
            set(parts) == {"up", "down"}
            and all(p.ndim == 2 for p in factors)
            and factors[0].shape[1] == len(factors[1])
        ):
            decoder[name] = tuple(factors)
        else:
            raise StyleFileError(f"{path}: the change of {name!r:.80} is neither full nor a pair of factors.")
    thumbnail = _from_data_uri(metadata.get("modelspec.thumbnail", ""))
    return cls(embeds, fusion_config, fusion, decoder, info, thumbnail)


def _data_uri(image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((MAX_SIDE, MAX_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _from_data_uri(uri: str) -> Image.Image | None:
    """A picture for the eye only: a broken one is left out, it does not make the style useless."""
    head, _, data = uri.partition(",")
    if head != "data:image/jpeg;base64" or len(data) > 2**20:
        return None
    try:
        image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)), formats=["JPEG"])
        if math.prod(image.size) > 2**22:
            return None
        image.load()
        return image
    except (ValueError, OSError):
        return None
