"""Time and memory of our fuser against a cross-attention fuser of equal width, over the number of tokens.

    python benchmarks/fusion.py --width 256 --repeats 3

One block of `StyleFusion` on a latent of 4 channels with one token a pixel, so that 16 x 16 to 256 x 256 latents are 256
to 65,536 tokens. Each row runs in a process of its own; its memory is what that process grew by in the first run. The
ratio is the median over runs in turn with the cross-attention. The exponents are fitted to 1024 tokens and more (memory:
4096 and more, below which libraries weigh more than data): 1 is linear in tokens, 2 quadratic.
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

FUSERS = {
    "mamba": {},
    "mamba2": {"ssm": "mamba2"},
    "mamba, 4 paths": {"scan_order": "zigzag", "conv": "spatial"},
    "mamba2, 4 paths": {"scan_order": "zigzag", "conv": "spatial", "ssm": "mamba2"},
    "cross-attention": {"fuser": "cross_attention"},
}
SIDES = (16, 32, 64, 128, 256)
PASSES = ("forward", "forward+backward")


def kib(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0])


def measure(fuser: str, side: int, mode: str, width: int, repeats: int, paired: bool) -> dict:
    import torch

    from stylemamba import StyleFusion

    def make(name: str) -> StyleFusion:
        torch.manual_seed(0)
        return StyleFusion(unshuffle=1, d_model=width, depth=1, **FUSERS[name])

    latent, embeds = torch.randn(1, 4, side, side), torch.randn(1, 768)

    def once(model: StyleFusion, latent: torch.Tensor) -> float:
        begin = time.perf_counter()
        with torch.set_grad_enabled(mode != "forward"):
            out = model(latent, embeds)
        if mode != "forward":
            out.sum().backward()
        return time.perf_counter() - begin

    model = make(fuser)
    once(model, latent[..., :4, :4])
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew; Linux
    before = kib("VmRSS")
    once(model, latent)
    found = {"mib": (kib("VmHWM") - before) / 1024}
    peer = make("cross-attention")
    if paired:
        once(peer, latent)
    runs = [(once(model, latent), once(peer, latent) if paired else math.nan) for _ in range(repeats)]
    return found | {
        "ms": 1000 * statistics.median(own for own, _ in runs),
        "ratio": statistics.median(other / own for own, other in runs),
    }


def exponent(points: list[tuple[int, float]], first: int) -> float:
    """The slope of a line through log(value) over log(tokens)."""
    import numpy as np

    tokens, values = zip(*((t, v) for t, v in points if t >= first), strict=True)
    return np.polyfit(np.log(tokens), np.log(values), 1)[0] if len(tokens) > 1 else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--attention-up-to", type=int, default=16384, help="tokens; more of them take minutes a run"
    )
    parser.add_argument("--row", help="JSON of one row: measure it in this process and print JSON")
    args = parser.parse_args()
    if args.row:
        print(json.dumps(measure(*json.loads(args.row))))
        return

    import torch

    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, width {args.width}\n"
    )
    print("| pass | fuser | tokens | ms, median | x cross-attention | peak MiB |")
    print("| --- | --- | ---: | ---: | ---: | ---: |", flush=True)
    fits = []
    for mode in PASSES:
        for fuser in FUSERS:
            times, sizes = [], []
            for side in SIDES:
                tokens, paired = side * side, side * side <= args.attention_up_to
                if fuser == "cross-attention" and not paired:
                    print(f"| {mode} | {fuser} | {tokens} | skipped: minutes a run | | |", flush=True)
                    continue
                row = json.dumps([fuser, side, mode, args.width, args.repeats, paired])
                command = [sys.executable, __file__, "--row", row]
                run = subprocess.run(command, check=True, capture_output=True, text=True)
                found = json.loads(run.stdout.splitlines()[-1])
                times.append((tokens, found["ms"]))
                sizes.append((tokens, max(found["mib"], 0.1)))
                ratio = f"{found['ratio']:.2f}" if paired else "-"
                print(
                    f"| {mode} | {fuser} | {tokens} | {found['ms']:.1f} | {ratio} | {found['mib']:.0f} |",
                    flush=True,
                )
            fits.append((mode, fuser, exponent(times, 1024), exponent(sizes, 4096)))
    print("\n| pass | fuser | exponent of time | exponent of memory |\n| --- | --- | ---: | ---: |")
    for mode, fuser, of_time, of_memory in fits:
        print(f"| {mode} | {fuser} | {of_time:.2f} | {of_memory:.2f} |")


if __name__ == "__main__":
    main()
