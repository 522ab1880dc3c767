"""Time, error and peak memory of every engine of the selective scan, against mamba.py and the transformers library.

    pip install --no-deps mambapy
    python benchmarks/scan.py --repeats 5

Each row runs in a process of its own, so that its peak memory is its own, and is timed in turn with the peer: mamba.py's
parallel scan on the same inputs. `x mamba.py` is the median over these pairs. The scan takes step sizes as they are,
without softplus or gate, since mamba.py's does. The error is the largest of y (and of all gradients) against float64,
relative to the largest entry. The memory is what the process grew by while the row ran alone, results included.

`transformers` is that library's path without kernels, `mamba_selective_scan` of its Mamba, called as its mixer does; its
backward pass takes a time quadratic in tokens and is skipped where that is minutes. On a GPU where mamba-ssm can be
imported, it is one of the engines.
"""

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

from fusion import kib

SHAPES = [(1, 128, 1024, 16), (1, 256, 4096, 16), (4, 256, 4096, 16), (1, 512, 16384, 16)]
MODES = ("forward", "forward+backward")


def seconds(work, device: str) -> float:
    import torch

    begin = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def paired(work, peer, repeats: int, device: str) -> dict:
    """Both in turn, after a warm-up; few repeats where one run takes long."""
    seconds(work, device)
    slow = seconds(peer, device) > 20
    runs = [(seconds(work, device), seconds(peer, device)) for _ in range(1 if slow else repeats)]
    return {
        "ms": 1000 * statistics.median(own for own, _ in runs),
        "ratio": statistics.median(other / own for own, other in runs),
    }


def peak(work, device: str) -> float:
    """MiB by which one run raises the memory in use; a smaller run before has loaded the libraries. Linux."""
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = kib("VmRSS")
    work()
    return (kib("VmHWM") - before) / 1024


def scan_row(engine: str, shape: tuple[int, ...], mode: str, repeats: int, device: str) -> dict:
    import torch
    from mambapy.mamba import MambaBlock

    from stylemamba.pipeline.selective_scan import selective_scan

    def inputs(batch: int, channels: int, length: int, states: int) -> list:
        torch.manual_seed(0)
        tensors = (
            torch.randn(batch, channels, length),
            torch.nn.functional.softplus(torch.randn(batch, channels, length) - 3),
            -torch.arange(1.0, states + 1).repeat(channels, 1),
            torch.randn(batch, states, length),
            torch.randn(batch, states, length),
            torch.randn(channels),
        )
        return [x.to(device) for x in tensors]

    def transformers(tensors: list) -> torch.Tensor:
        from transformers.models.mamba.modeling_mamba import mamba_selective_scan

        return mamba_selective_scan(*tensors)

    def ours(tensors: list) -> torch.Tensor:
        return selective_scan(*tensors, backend=engine)

    def theirs(tensors: list) -> torch.Tensor:
        u, delta, A, B, C, D = tensors
        return MambaBlock.selective_scan(None, u, delta, A, B, C, D)  # (B, L, D)

    def once(scan, tensors: list) -> list:
        if mode == "forward":
            with torch.no_grad():
                return [scan(tensors)]
        y = scan(tensors)
        return [y, *torch.autograd.grad(y, tensors, torch.ones_like(y))]

    def leaves(tensors: list, dtype=torch.float32) -> list:
        return [x.to(dtype, copy=True).requires_grad_() for x in tensors]

    tensors = inputs(*shape)
    flipped = leaves(
        [x.mT.contiguous() if x.dim() == 3 else x for x in tensors]
    )  # (B, L, D), as mamba.py wants
    own = flipped if engine == "mamba.py" else leaves(tensors)
    scan = {"mamba.py": theirs, "transformers": transformers}.get(engine, ours)
    small = inputs(1, 4, 8, shape[3])
    small = [x.mT.contiguous() if x.dim() == 3 else x for x in small] if engine == "mamba.py" else small
    once(scan, leaves(small))
    found = {"mib": peak(lambda: once(scan, own), device)}

    got = once(scan, own)
    if engine == "mamba.py":
        got = [x.mT if x.dim() == 3 else x for x in got]
    exact = once(lambda x: selective_scan(*x, backend="torch"), leaves(tensors, torch.float64))
    found["error"] = max(
        ((a - b).abs().max() / b.abs().max()).item() for a, b in zip(got, exact, strict=True)
    )
    del got, exact
    return found | paired(lambda: once(scan, own), lambda: once(theirs, flipped), repeats, device)


def floor(shape: tuple[int, ...], threads: int) -> str:
    """What the CPU engine cannot beat here: its exponentials at the measured rate, its bytes at that of a copy."""
    from concurrent.futures import ThreadPoolExecutor

    import numba
    import numpy as np
    import torch

    from stylemamba.pipeline.simd_math import exp2

    @numba.njit(nogil=True)
    def exponentials(x, out, rounds):
        for _ in range(rounds):
            for i in range(len(x)):
                out[i] = exp2(x[i])

    x = np.linspace(-20, 0, 4096, dtype=np.float32)
    exponentials(x, np.empty_like(x), 1)
    begin = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda _: exponentials(x, np.empty_like(x), 20_000), range(threads)))
    rate = threads * 20_000 * len(x) / (time.perf_counter() - begin)

    a, b = torch.ones(2**26), torch.ones(2**26)
    b.copy_(a)
    begin = time.perf_counter()
    for _ in range(5):
        b.copy_(a)
    bandwidth = 5 * 2 * a.nbytes / (time.perf_counter() - begin)

    batch, channels, length, states = shape
    tokens = batch * channels * length
    exps, moved = tokens * states, 4 * (3 * tokens + 2 * batch * length * states)
    # Backward: the exponentials again; u, delta and the gradient of y come in, two gradients go out.
    again = moved + 4 * 2 * tokens
    return (
        f"Floor at {shape}: {rate / 1e9:.1f} G exp/s and {bandwidth / 1e9:.1f} GB/s measured. Forward {exps / rate * 1e3:.1f} ms "
        f"of exponentials and {moved / bandwidth * 1e3:.1f} ms of memory; forward+backward {2 * exps / rate * 1e3:.1f} ms and "
        f"{(moved + again) / bandwidth * 1e3:.1f} ms."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--shapes", type=int, nargs="*", default=list(range(len(SHAPES))), help="which of SHAPES"
    )
    parser.add_argument("--engines", nargs="*", help="rows to run; default: all that can run here")
    parser.add_argument("--row", help="JSON of one row: measure it in this process and print JSON")
    args = parser.parse_args()

    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.row:
        engine, shape, mode = json.loads(args.row)
        found = scan_row(engine, tuple(shape), mode, args.repeats, device)
        print(json.dumps(found))
        return

    from stylemamba import scan_backends

    fitting = [n for n, can_run in scan_backends().items() if can_run and (n != "numba" or device == "cpu")]
    engines = args.engines or ["mamba.py", "transformers", *fitting]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, {device}\n")
    if device == "cpu" and "numba" in engines:
        print(floor(SHAPES[2], torch.get_num_threads()) + "\n")
    print("| shape (B, D, L, N) | pass | engine | ms, median | x mamba.py | error | peak MiB |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: |", flush=True)
    for shape in (SHAPES[i] for i in args.shapes):
        for mode in MODES:
            for engine in engines:
                if engine == "transformers" and mode != "forward" and math.prod(shape) > 2**21:
                    print(f"| {shape} | {mode} | {engine} | skipped: minutes a run | | | |", flush=True)
                    continue
                row = json.dumps([engine, shape, mode])
                command = [sys.executable, __file__, "--row", row, "--repeats", str(args.repeats)]
                run = subprocess.run(command, capture_output=True, text=True)
                if run.returncode:
                    print(
                        f"| {shape} | {mode} | {engine} | failed: {run.stderr.strip().splitlines()[-1]} | | | |"
                    )
                    continue
                found = json.loads(run.stdout.splitlines()[-1])
                print(
                    f"| {shape} | {mode} | {engine} | {found['ms']:.1f} | {found['ratio']:.2f} | "
                    f"{found['error']:.0e} | {found['mib']:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
