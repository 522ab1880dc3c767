"""The ImageNet-trained VGG16 that the small perceptual network learns from.

Two kinds of file: torchvision's `vgg16-*.pth`, and the shift-tolerant VGG16 in the wheel of `stlpips-pytorch`, whose
pools are blurred before they halve. A training tool: nothing of it is shipped.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from stylemamba.pipeline.perceptual import VGGFeatures

# images (B, 3, H, W) in [0, 1] -> the maps behind all thirteen convolutions, `1_1` to `5_3`
Teacher = Callable[[Tensor], dict[str, Tensor]]


class _LargestOfFour(torch.autograd.Function):
    """`F.max_pool2d(x, 2, stride=1)`, several times as fast as torch's own on a CPU, both ways."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        masks = []
        for dim in (2, 3):
            n = x.shape[dim] - 1
            here, there = x.narrow(dim, 0, n), x.narrow(dim, 1, n)
            if ctx.needs_input_grad[0]:
                masks.append(here >= there)
            x = torch.maximum(here, there)
        ctx.save_for_backward(*masks)
        return x

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        for dim, here in zip((3, 2), reversed(ctx.saved_tensors), strict=True):
            n = grad.shape[dim]
            shape = [*grad.shape[:dim], n + 1, *grad.shape[dim + 1 :]]
            spread = torch.empty(
                shape, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last
            )
            spread.narrow(dim, n, 1).zero_()
            kept = torch.mul(grad, here, out=spread.narrow(dim, 0, n))
            rest = grad - kept
            spread.narrow(dim, 1, n).add_(rest)
            grad = spread
        return grad


def load_teacher(
    file: Path, stages: int = 5, device: str | torch.device = "cpu"
) -> tuple[Teacher, list[Tensor]]:
    """The network as far as a stage, and the weights of its five LPIPS heads. Gradients pass to the images."""
    state = torch.load(file, map_location=device, weights_only=True)
    if not any(key.endswith(".filt") for key in state):
        vgg = VGGFeatures.from_state_dict(state).to(device)
        convs = [name for name in vgg.convs if int(name[0]) <= stages]
        names = [f"relu{name}" for name in convs]
        return lambda images: dict(zip(convs, vgg(images, names).values(), strict=True)), list(
            vgg.lpips_heads
        )
    heads = [state[f"lin{index}.model.1.weight"].flatten() for index in range(5)]
    layers: list[list[tuple[str, tuple[Tensor, ...]]]] = []
    for stage in range(1, stages + 1):
        prefix = f"net.slice{stage}."
        positions = sorted({int(k.removeprefix(prefix).split(".")[0]) for k in state if k.startswith(prefix)})
        layers.append([])
        for key in (f"{prefix}{position}." for position in positions):
            if key + "filt" in state:
                layers[-1].append(("pool", (state[key + "filt"],)))
            else:
                weight = state[key + "weight"].contiguous(memory_format=torch.channels_last)
                layers[-1].append(("conv", (weight, state[key + "bias"])))
    shift, scale = state["scaling_layer.shift"], state["scaling_layer.scale"]

    def shift_tolerant(images: Tensor) -> dict[str, Tensor]:
        x, maps = ((images * 2 - 1) - shift) / scale, {}
        x = x.contiguous(memory_format=torch.channels_last)
        for number, stage in enumerate(layers, 1):
            index = 0
            for kind, tensors in stage:
                if kind == "conv":
                    index += 1
                    x = maps[f"{number}_{index}"] = F.conv2d(x, *tensors, padding=1).relu_()
                else:
                    x = F.pad(_LargestOfFour.apply(x), (2, 2, 2, 2), mode="reflect")
                    x = F.conv2d(x, *tensors, stride=2, groups=x.shape[1])
        return maps

    return shift_tolerant, heads
