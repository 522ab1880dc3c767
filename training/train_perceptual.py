"""Trains the perceptual network of the bundled model: a VGG16 of small width that predicts the maps of a real one.

    python training/train_perceptual.py DATA OUT --vgg vgg16.pth --minutes 15

It begins as a pruned teacher: in each layer some of the teacher's channels are kept and their filters solved by least
squares from what the layers before still know. Then it is trained so that from its maps a linear layer can give those
of the teacher at five depths, on photographs and art; the linear layers are thrown away. Its LPIPS heads are fitted to
the distances that the teacher's LPIPS gives to pairs of crops. Runs again from OUT/state.pt if it is there.
"""

import argparse
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from manifest import read_manifest, training_pictures
from pictures import Pictures
from scipy.optimize import nnls
from teacher_vgg import Teacher, load_teacher
from timed_run import TimedRun, add_run_options
from torch import Tensor, nn

from stylemamba.pipeline.perceptual import VGGFeatures, lpips_head

TAPS = VGGFeatures.lpips_taps
CHANNELS = (16, 32, 64, 128, 128)  # 0.9 million weights, a sixteenth of the teacher's arithmetic
HEAD_CROPS = 60  # that the LPIPS heads are fitted to, each with seven distortions


@torch.no_grad()
def pruned_teacher(teacher: Teacher, images: Tensor, samples: int = 20_000) -> VGGFeatures:
    network = VGGFeatures(depth=16, channels=CHANNELS)
    network = network.to(images.device, memory_format=torch.channels_last)
    wanted = teacher(images)
    x = (images - images.new_tensor((0.485, 0.456, 0.406)).view(3, 1, 1)) / images.new_tensor(
        (0.229, 0.224, 0.225)
    ).view(3, 1, 1)
    for name, conv in network.convs.items():
        if name.endswith("_1") and name != "1_1":
            x = F.max_pool2d(x, 2)
        large = F.interpolate(wanted[name], size=x.shape[-2:], mode="bilinear")  # (B, C, H, W)
        kept = telling_channels(large.transpose(0, 1).flatten(1), conv.out_channels)
        patches = F.unfold(x, 3, padding=1).transpose(1, 2).flatten(0, 1)  # (B*H*W, c*9)
        target = large[:, kept].permute(0, 2, 3, 1).flatten(0, 2)  # (B*H*W, C')
        chosen = torch.randperm(len(patches))[:samples]
        patches, target = F.pad(patches[chosen], (0, 1), value=1.0), target[chosen]
        # What a ReLU cut off is unknown; below zero any value would do, so negative predictions are no error.
        weights = solve(patches, target)
        for _ in range(3):
            predicted = patches @ weights
            weights = solve(patches, torch.where((target <= 0) & (predicted < 0), predicted, target))
        conv.weight.copy_(weights[:-1].T.view_as(conv.weight))
        conv.bias.copy_(weights[-1])
        x = F.relu(conv(x))
    for conv in network.convs.values():
        conv.requires_grad_()
    return network


def solve(patches: Tensor, target: Tensor) -> Tensor:
    """Ridge regression, (n, p) and (n, q) -> (p, q)."""
    gram = patches.T.double() @ patches.double()
    gram += 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram, patches.T.double() @ target.double()).float()


def telling_channels(maps: Tensor, count: int) -> Tensor:
    """Those rows of (C, n) from which the others are best predicted, found greedily (a pivoted Cholesky factorisation)."""
    maps = (maps - maps.mean(1, keepdim=True)) / (maps.std(1, keepdim=True) + 1e-3)
    rest, kept = maps @ maps.T / maps.shape[1], []
    for _ in range(count):
        best = (rest.square().sum(0) / rest.diagonal().clamp(min=1e-6)).masked_fill_(
            rest.diagonal() < 1e-4, -1.0
        )
        best[kept] = -1.0
        pivot = int(best.argmax())
        kept.append(pivot)
        rest = rest - torch.outer(rest[:, pivot], rest[pivot]) / rest[pivot, pivot].clamp(min=1e-6)
    return torch.tensor(kept)


@torch.no_grad()
def taps(teacher: Teacher, images: Tensor) -> list[Tensor]:
    maps = teacher(images)
    return [maps[tap.removeprefix("relu")] for tap in TAPS]


class Readout(nn.ModuleList):
    """Linear layers from the small maps to the teacher's, each channel of those divided by its own deviation."""

    def __init__(self, teacher_maps: list[Tensor]) -> None:
        super().__init__(
            nn.Conv2d(width, maps.shape[1], 1) for width, maps in zip(CHANNELS, teacher_maps, strict=True)
        )
        for index, maps in enumerate(teacher_maps):
            self.register_buffer(f"deviation{index}", maps.std((0, 2, 3), keepdim=True) + 1e-3)

    @torch.no_grad()
    def begin(self, maps: list[Tensor], wanted: list[Tensor]) -> None:
        """Solves the layers for these maps."""
        for index, (layer, small, large) in enumerate(zip(self, maps, wanted, strict=True)):
            large = F.interpolate(
                large / getattr(self, f"deviation{index}"), size=small.shape[-2:], mode="bilinear"
            )
            rows = F.pad(small.permute(0, 2, 3, 1).flatten(0, 2), (0, 1), value=1.0)
            weights = solve(rows, large.permute(0, 2, 3, 1).flatten(0, 2))
            layer.weight.copy_(weights[:-1].T.view_as(layer.weight))
            layer.bias.copy_(weights[-1])

    def unexplained(self, maps: list[Tensor], wanted: list[Tensor]) -> list[Tensor]:
        """Of each depth, the share of the teacher's variance that is not predicted."""
        shares = []
        for index, (layer, small, large) in enumerate(zip(self, maps, wanted, strict=True)):
            large = large / getattr(self, f"deviation{index}")
            # The teacher pads at its pools, so its maps are a little larger.
            large = F.interpolate(large, size=small.shape[-2:], mode="bilinear", align_corners=False)
            shares.append(F.mse_loss(layer(small), large) / large.var((0, 2, 3)).mean())
        return shares


def fit_lpips_heads(
    network: VGGFeatures, teacher: Teacher, heads: list[Tensor], crops: list[Tensor]
) -> float:
    """Sets the heads by non-negative least squares. Returns the correlation of the distances on pairs left out."""
    rows, wanted = [], []
    with torch.no_grad():
        for crop in crops:
            for other in distortions(crop):
                wanted.append(lpips_head(taps(teacher, crop), taps(teacher, other), heads))
                maps = [network(image, TAPS) for image in (crop, other)]
                # With a head that is one for one channel, `lpips_head` is that channel's share.
                rows.append(torch.cat([_channel_distances(maps[0][tap], maps[1][tap]) for tap in TAPS]))
    table, target = torch.stack(rows).cpu(), torch.stack(wanted).cpu()
    seen = torch.arange(len(table)) % 5 > 0
    ridge = 0.01 * table.square().mean(0).sum().sqrt() * torch.eye(table.shape[1])
    weights, _ = nnls(
        torch.cat([table[seen], ridge]).numpy(), torch.cat([target[seen], torch.zeros(len(ridge))]).numpy()
    )
    weights = torch.from_numpy(weights).float()
    for head, part in zip(network.lpips_heads, weights.split(CHANNELS), strict=True):
        head.copy_(part)
    return torch.corrcoef(torch.stack([table[~seen] @ weights, target[~seen]]))[0, 1].item()


def _channel_distances(a: Tensor, b: Tensor) -> Tensor:
    a, b = (x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10) for x in (a, b))
    return (a - b).square().mean((0, 2, 3))


def distortions(crop: Tensor) -> list[Tensor]:
    """The kinds of change that styles and autoencoders make, weak and strong."""
    blurred = F.interpolate(F.avg_pool2d(crop, 2), scale_factor=2.0, mode="bilinear")
    coarse = F.interpolate(F.avg_pool2d(crop, 8), scale_factor=8.0, mode="bilinear")
    noisy = (crop + 0.1 * torch.randn_like(crop)).clamp(0, 1)
    gain, offset = torch.rand(2, 1, 3, 1, 1, device=crop.device)
    tinted = (crop * (0.6 + 0.6 * gain) + 0.2 * offset).clamp(0, 1)
    posterised = (crop * 3).round() / 3
    return [blurred, coarse, noisy, tinted, posterised, crop.flip(-1), 1 - crop]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--vgg", type=Path, required=True, help="weights of the teacher, see teacher_vgg.py")
    parser.add_argument("--crop", type=int, default=96)
    add_run_options(parser, minutes=15, lr=3e-4, batch=8)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    teacher, heads = load_teacher(args.vgg, device=args.device)
    pictures = Pictures(training_pictures(args.data), side=160)
    evaluation = Pictures([args.data / row["file"] for row in read_manifest(args.data, "eval")], side=160)
    held_out = evaluation.crops(16, args.crop, random.Random(1)).to(args.device)
    first = pictures.crops(64, args.crop, random.Random(0)).to(args.device)
    network = pruned_teacher(teacher, first)
    readout = Readout(taps(teacher, first)).to(args.device)
    readout.begin(list(network(first, TAPS).values()), taps(teacher, first))
    parameters = [*network.convs.parameters(), *readout.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=1e-4)
    # The warm-up keeps what least squares found: full steps at once lose most of it.
    run = TimedRun(args.out / "state.pt", args.minutes, optimizer, warm_up=100, save_every=60)
    if run.kept:
        network.load_state_dict(run.kept["network"])
        readout.load_state_dict(run.kept["readout"])
    for step in run:
        images = pictures.crops(args.batch, args.crop, random.Random(f"{args.seed} {step}"))
        images = images.to(args.device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bfloat16):
            maps = [tap.float() for tap in network(images, TAPS).values()]
            wanted = [tap.float() for tap in taps(teacher, images)]
        loss = sum(readout.unexplained(maps, wanted))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log(loss=loss)
        if run.due():
            with torch.no_grad():
                shares = readout.unexplained(list(network(held_out, TAPS).values()), taps(teacher, held_out))
            kept = " ".join(f"{1 - share.item():.3f}" for share in shares)
            run.say(f"explained of held-out pictures' maps {kept}")
            network.save_pretrained(args.out)
            run.save(network=network.state_dict(), readout=readout.state_dict())
    run.save(network=network.state_dict(), readout=readout.state_dict())

    rng = random.Random(f"{args.seed} heads")
    crops = [pictures.crops(1, 128, rng).to(args.device) for _ in range(HEAD_CROPS)]
    correlation = fit_lpips_heads(network, teacher, heads, crops)
    print(f"LPIPS of the small network and of the teacher on pairs left out: correlation {correlation:.3f}")
    network.save_pretrained(args.out)


if __name__ == "__main__":
    main()
