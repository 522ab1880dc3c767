"""`stylemamba bench`: what a picture costs on this machine, step by step, and each scan that runs here."""

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from .model_options import DeviceOption, DtypeOption, ModelOption, load_model
from .terminal import progress_bar, show_table

if TYPE_CHECKING:
    import torch

    from ..pipeline_stylemamba import StyleMambaPipeline

_SCAN = 1, 64, 4096, 16  # pictures, channels, tokens, states
_ONLY_ON = {"numba": "cpu", "triton": "cuda", "mamba_ssm": "cuda"}  # the other scans run on any device


def bench(
    size: Annotated[int, typer.Option("--size", metavar="PX", min=16, help="Side of the picture.")] = 512,
    repeats: Annotated[int, typer.Option("--repeats", metavar="N", min=1, help="Runs of each step.")] = 5,
    model: ModelOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
) -> None:
    """Says what a picture costs on this machine: milliseconds of every step, medians after a run to warm up.

    The scans are compared with plain torch's. How StyleMamba compares with
    others is in the repository's benchmarks/.

    \b
    Examples:
      stylemamba bench
      stylemamba bench --size 1024 --repeats 9 --device cuda
    """
    pipe = load_model(model, None, None, device, dtype)
    table = Table("step", "milliseconds", "remark")
    with progress_bar() as bar:
        task = bar.add_task("measuring", total=None)
        steps = _steps(pipe, size, repeats)
        for name, milliseconds in steps.items():
            table.add_row(name, f"{milliseconds:.1f}", f"{milliseconds / steps['whole picture']:.0%}")
        scans = _scans(pipe._execution_device, repeats)
        for name, milliseconds in scans.items():
            table.add_row(
                f"scan {name}", f"{milliseconds:.1f}", f"{scans['torch'] / milliseconds:.1f} x torch"
            )
        bar.remove_task(task)
    show_table(table)


def _steps(pipe: "StyleMambaPipeline", size: int, repeats: int) -> dict[str, float]:
    import torch

    place = pipe._execution_device
    picture = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(place)
    prompt = "stained glass window"
    with torch.no_grad():
        embeds = pipe.encode_prompt(prompt)
        latents = pipe.encode_image(picture)
        fused = pipe.fuse(latents, embeds)
    work = {
        "read the prompt": lambda: pipe.encode_prompt(prompt),
        "encode": lambda: pipe.encode_image(picture),
        "fuse": lambda: pipe.fuse(latents, embeds),
        "decode": lambda: pipe.decode(fused, embeds),
        "whole picture": lambda: pipe(picture, prompt, output_type="pt"),
    }
    return {name: _milliseconds(step, repeats, place) for name, step in work.items()}


def _scans(place: "torch.device", repeats: int) -> dict[str, float]:
    import torch

    from ..selective_scan import scan_backends, selective_scan

    batch, channels, length, states = _SCAN
    u, delta = (torch.rand(batch, channels, length, device=place) for _ in range(2))
    A = -torch.rand(channels, states, device=place)
    B, C = (torch.rand(batch, states, length, device=place) for _ in range(2))
    found = {}
    for name, runs in scan_backends().items():
        if runs and _ONLY_ON.get(name, place.type) == place.type:
            found[name] = _milliseconds(
                lambda name=name: selective_scan(u, delta, A, B, C, backend=name), repeats, place
            )
    return found


def _milliseconds(work: Callable[[], object], repeats: int, place: "torch.device") -> float:
    import torch

    def once() -> float:
        begin = time.perf_counter()
        with torch.no_grad():
            work()
        torch.zeros(1, device=place).item()  # waits until a GPU has done what it was asked for
        return 1000 * (time.perf_counter() - begin)

    once()
    return statistics.median(once() for _ in range(repeats))
