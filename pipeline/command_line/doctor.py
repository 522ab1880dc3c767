"""`stylemamba doctor`: what is installed, what runs here, what is missing and how to get it. Changes nothing."""

import importlib
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import typer
from rich.table import Table

from ...weights import bundled_names
from .model_options import holds_image_guided
from .terminal import complain, plain, quiet_libraries, show_table

_REQUIRED = ("torch", "diffusers", "transformers", "safetensors", "einops", "torchmetrics")
_OPTIONAL = {
    "accelerate": "lower memory while loading, CPU offload: pip install accelerate",
    "sentencepiece": "tokenizers of older SigLIP checkpoints: pip install sentencepiece",
    "torchvision": "VGG weights by --vgg torchvision: pip install torchvision",
    "av": "video: pip install av",
    "numba": "a faster scan on the CPU: pip install numba",
    "triton": "a faster scan on NVIDIA GPUs: comes with torch for CUDA on Linux",
    "mamba_ssm": 'the authors\' scan on NVIDIA GPUs: pip install "stylemamba[cuda]"',
}


def doctor() -> None:
    """Says what is installed, what runs here, and what is missing and how to get it.

    Ends with exit code 1 if StyleMamba cannot work as it is installed. Looks nothing up on the network.

    \b
    Examples:
      stylemamba doctor
      stylemamba --debug doctor
    """
    broken = _check_required()
    table = Table("what", "state", "remark")
    table.add_row("python", platform.python_version(), platform.platform(terse=True))
    for package in ("stylemamba", *_REQUIRED):
        table.add_row(package, _version(package), broken.get(package, ""))
    if not broken:
        quiet_libraries()
        for row in (*_devices(), *_scans()):
            table.add_row(*row)
    for package, remark in _OPTIONAL.items():
        found = find_spec(package) is not None
        table.add_row(package, _version(package) if found else "missing", "" if found else remark)
    for row in _bundled():
        table.add_row(*row)
    if not broken:
        for row in _hub_cache():
            table.add_row(*row)
    show_table(table)
    if broken:
        complain(
            f"Error: StyleMamba cannot work like this, for {', '.join(broken)} cannot be imported: pip install --upgrade "
            "stylemamba."
        )
        raise typer.Exit(1)


def _check_required() -> dict[str, str]:
    """Package -> why it cannot be imported, for those that cannot."""
    broken = {}
    for package in (*_REQUIRED, "..pipeline_stylemamba"):
        try:
            importlib.import_module(package, __package__)
        except Exception as error:  # a damaged installation fails in many ways
            broken[package.replace("..pipeline_stylemamba", "stylemamba")] = plain(error)
    return broken


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _devices() -> list[tuple[str, str, str]]:
    import torch

    rows = [("device cpu", "ok", f"threads: {torch.get_num_threads()}")]
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        rows.append((f"device cuda:{index}", "ok", f"{card.name}, {card.total_memory / 2**30:.0f} GB"))
    if len(rows) == 1:
        rows.append(("device cuda", "missing", "no NVIDIA or AMD GPU, or a torch built without it"))
    if torch.backends.mps.is_available():
        rows.append(("device mps", "ok", "Apple GPU"))
    return rows


def _scans() -> list[tuple[str, str, str]]:
    from ..selective_scan import scan_backend_reasons, scan_backends

    reasons = scan_backend_reasons()
    return [
        (f"scan {name}", "runs" if can_run else "does not run", plain(reasons[name]))
        for name, can_run in scan_backends().items()
    ]


def _bundled() -> list[tuple[str, str, str]]:
    uses = {
        name: f"for stylemamba stylize --style-image --model {name}"
        if holds_image_guided(name)
        else f"for --model {name}"
        for name in bundled_names()
    }
    rows = [(f"bundled model {name}", "ok", use) for name, use in uses.items()]
    return rows or [("bundled model", "none", "name one with --model, or with --vae and --text-encoder")]


def _hub_cache() -> list[tuple[str, str, str]]:
    """Models in the Hub's cache that StyleMamba can use without a download."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        repositories = ()
    rows = []
    for repository in sorted(repositories, key=lambda repository: repository.repo_id):
        uses = {use for revision in repository.revisions if (use := _use_of(revision.snapshot_path))}
        if uses:
            rows.append((f"Hub cache: {plain(repository.repo_id)}", "ok", f"for {', '.join(sorted(uses))}"))
    return rows or [
        (
            "Hub cache",
            "empty",
            "no usable model; --vae stabilityai/sd-vae-ft-mse --text-encoder google/siglip-base-patch16-224 fetches one",
        )
    ]


def _use_of(snapshot: Path) -> str | None:
    """The option that a downloaded repository fits, if any."""
    index, config = _json(snapshot / "model_index.json"), _json(snapshot / "config.json")
    if not any(snapshot.rglob("*.safetensors")):
        return None
    if index.get("_class_name") == "StyleMambaPipeline":
        return "--model"
    if str(config.get("model_type", "")).startswith("siglip"):
        return "--text-encoder"
    if config.get("_class_name") in ("AutoencoderKL", "AutoencoderTiny") or "vae" in index:
        return "--vae"
    return None


def _json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
