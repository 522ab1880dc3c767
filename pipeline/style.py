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

from .. import __version__
from .atomic_write import atomic_write
from .fusion import StyleFusion
from .mamba import MambaMixer
from .style_decoder import WeightChange

FORMAT = "stylemamba-style"
FORMAT_VERSION = 1
# Bounds on a file before it is believed. A style of SD's whole decoder has 0.1 GB and 160 tensors.
MAX_BYTES = 2**31
MAX_TENSORS = 4096
MAX_TEXT = 2**22  # characters of one metadata field
MAX_SIDE = 256  # of the thumbnail
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INFO_TYPES = {
    "prompt": str, "source_prompt": str, "title": str, "created": str, "stopped": str, "seed": int,
    "steps_done": int, "second_order_steps": int, "config": dict, "losses": dict, "base": dict, "versions": dict,
}  # fmt: skip


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

    def build_fusion(self) -> StyleFusion:
        """The fitted fusion, frozen, over the tensors of this style."""
        stored = {name: tuple(value.shape) for name, value in self.fusion.items()}
        blocks = {name.split(".")[1] for name in stored if name.startswith("blocks.")}
        depth = self.fusion_config.get("depth")
        try:
            if depth != len(blocks):
                raise ValueError(f"its config says depth {depth!r:.20}, it holds {len(blocks)} blocks")
            # Without memory: a config may ask for any size, until it is known to agree with the tensors.
            with torch.device("meta"):
                fusion = StyleFusion(**self.fusion_config)
        except (ArithmeticError, TypeError, ValueError, RuntimeError) as error:
            raise StyleFileError(
                f"its fusion cannot be built by this StyleMamba ({' '.join(str(error).split()):.300}); fit the style again."
            ) from error
        wanted = {name: tuple(value.shape) for name, value in fusion.state_dict().items()}
        for name in sorted(wanted.keys() | stored.keys()):
            if wanted.get(name) != stored.get(name):
                raise StyleFileError(
                    f"its fusion tensor {name!r:.80} is {stored.get(name, 'missing')}, its config wants "
                    f"{wanted.get(name, 'none')}: the file is damaged or was written by another StyleMamba."
                )
        fusion.load_state_dict(self.fusion, assign=True)
        return fusion.requires_grad_(False).eval()

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
    @torch.inference_mode(False)  # so that gradients pass through a style that ComfyUI loaded
    def load(cls, path: str | os.PathLike) -> "Style":
        """Reads and checks a style file; every reason why it cannot be used is a `StyleFileError` of one sentence."""
        path = Path(path)
        if not os.path.isfile(path):  # False, not an error, for names that no file can have
            raise StyleFileError(f"{path} is not a file: give the path of a .safetensors style file.")
        if path.stat().st_size > MAX_BYTES:
            raise StyleFileError(f"{path} has {path.stat().st_size} bytes, too many for a style file.")
        try:
            with safe_open(path, framework="pt") as file:
                metadata, names = file.metadata() or {}, file.keys()
                _check_format(path, metadata)
                if len(names) > MAX_TENSORS:
                    raise StyleFileError(f"{path} holds {len(names)} tensors, too many for a style file.")
                # Copies: what is read from an open file changes, or crashes, when somebody writes over that file.
                tensors = {name: file.get_tensor(name).clone() for name in names}
        except (SafetensorError, OSError, MemoryError) as error:
            raise StyleFileError(
                f"{path} is no whole safetensors file (damaged, cut off or of another kind): {error!r:.200}."
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
    # Of ourselves no metadata: in a host's folder of node packs we were cloned, not installed.
    libraries = ("torch", "diffusers", "transformers", "safetensors")
    return {"stylemamba": __version__, **{name: version(name) for name in libraries}}


def timestamp() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def fingerprint(module: nn.Module) -> str:
    """Hash of a module's weights, the same for a checkpoint in full and in half precision; "unknown" where there is
    nothing to compare."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        # Offloaded piece by piece: not worth loading for a warning. In bfloat16: too coarse to tell a rounded copy.
        if value.is_meta or value.dtype == torch.bfloat16:
            return "unknown"
        digest.update(name.encode())
        digest.update(value.detach().to("cpu", torch.float16).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def describe_component(module: nn.Module) -> dict[str, str]:
    """What a style records of a model it was fitted on."""
    return {
        "class": type(module).__name__,
        "name": _public_name(str(getattr(module.config, "_name_or_path", ""))),
        "fingerprint": fingerprint(module),
    }


def _public_name(source: str) -> str:
    """A Hub id as it is, of a folder the end of its path alone, since style files are given to others: "tiny/vae" for a part of a
    pipeline, and the id in place of a folder of the Hub's cache."""
    if not (os.path.isabs(source) or os.path.isdir(source)):
        return source
    path = Path(source)
    for folder in path.parents:
        if folder.name.startswith("models--"):  # .../models--owner--name/snapshots/<revision>/<part>
            owner_and_name = folder.name.removeprefix("models--").replace("--", "/", 1)
            return "/".join((owner_and_name, *path.relative_to(folder).parts[2:]))
    is_part = (path.parent / "model_index.json").is_file()
    return f"{path.parent.name}/{path.name}" if is_part else path.name


def _stored(name: str, value: Tensor) -> Tensor:
    keep = name.rsplit(".", 1)[-1] in MambaMixer._keep_in_fp32
    return value.detach().to("cpu", torch.float32 if keep else torch.float16)


def _check_format(path: Path, metadata: dict[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        kind = metadata.get("modelspec.architecture") or metadata.get("format") or "no metadata"
        raise StyleFileError(f"{path} is a safetensors file but no StyleMamba style ({kind!r:.60}).")
    for name, text in metadata.items():
        if len(text) > MAX_TEXT:
            raise StyleFileError(
                f"{path} has {len(text)} characters of metadata {name!r:.40}, too many for a style file."
            )
    found = metadata.get("format_version", "")
    if not (found.isdecimal() and len(found) < 10):
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
    if not isinstance(fusion_config, dict) or not isinstance(info, dict) or not _is_info(info):
        raise StyleFileError(
            f"{path} has damaged metadata (values of the wrong kind in fusion_config or info)."
        )
    for name, value in tensors.items():
        if value.dtype not in _DTYPES or not torch.isfinite(_stored(name, value)).all():
            raise StyleFileError(
                f"{path}: tensor {name!r:.80} is not made of floating point numbers that are finite in half precision."
            )

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
    style = cls(embeds, fusion_config, fusion, decoder, info, thumbnail)
    try:
        width = style.build_fusion().config.cond_dim
    except StyleFileError as error:
        raise StyleFileError(f"{path}: {error}") from error
    if len(embeds) != width:
        raise StyleFileError(
            f"{path} holds a prompt embedding of width {len(embeds)}, its fusion wants {width}."
        )
    return style


def _is_info(info: dict) -> bool:
    """Whether everything in it that StyleMamba reads is of the kind it writes."""
    if not all(isinstance(info[name], kind) for name, kind in _INFO_TYPES.items() if name in info):
        return False
    base, losses = info.get("base", {}).values(), info.get("losses", {}).values()
    if not all(isinstance(part, dict) for part in base) or not all(isinstance(one, list) for one in losses):
        return False
    texts, numbers = (text for part in base for text in part.values()), (x for one in losses for x in one)
    # a number that is not finite fails the comparison
    return all(isinstance(text, str) for text in texts) and all(
        isinstance(x, (int, float)) and abs(x) < 1e39 for x in numbers
    )


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
    except Exception:  # Pillow has no common class for what it makes of broken files
        return None
