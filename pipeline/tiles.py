"""Pictures larger than memory: a network runs on overlapping tiles, and the tiles agree with each other.

Responsible for cutting and joining, and for giving every tile the statistics and the grain of the whole picture: a layer that
normalises by mean and deviation would otherwise see another picture in each of them, and the seams would show. Knows nothing of
styles; the scan of a fusion always sees the whole latent and is not run in tiles.

Two ways to the statistics of the whole. A network of few normalising layers is run once for each of them over all tiles,
up to that layer: exact. A network of many (Stable Diffusion's autoencoder has about thirty) takes them from one pass over
the reduced picture: fast, and all tiles agree, but only about the same as the whole.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from .conditional_decoder import ConditionalDecoder, Grain, StyleNorm

Run = Callable[[Tensor], Tensor]

_NORMS = (nn.GroupNorm, StyleNorm)
_EXACT_UP_TO = 16  # layers
_JOIN = 4  # over so many units two tiles fade into each other, outside of both halos


@dataclass(frozen=True)
class Span:
    """Part of one axis: what a tile sees, and what of it belongs to no other tile."""

    start: int
    stop: int
    core_start: int
    core_stop: int


def run_in_tiles(
    run: Run, whole: Tensor, side: int, halo: int, align: int = 1, shared: "SharedStatistics | None" = None
) -> Tensor:
    """`run(whole)` from tiles of `side`. `run` maps (B, C, H, W) to (B, C', s*H, s*W) for some scale s.

    halo: within this distance of a cut the network misses what it would need, and nothing of a tile is used.
    align: cuts are made at multiples of it. All in units of `whole`. shared: is told where each tile lies.
    """
    height, width = whole.shape[-2:]
    rows, columns = (spans(length, side, halo, align) for length in (height, width))
    total, weights = None, None
    for row in rows:
        for column in columns:
            if shared is not None:
                shared.place(row, column)
            result = run(whole[..., row.start : row.stop, column.start : column.stop])
            if total is None:
                scale = result.shape[-1] / (column.stop - column.start)
                size = [round(scale * length) for length in (height, width)]
                total = result.new_zeros(*result.shape[:2], *size)
                weights = [result.new_zeros(length) for length in size]
                fades = [
                    [_fade(span, length, halo, scale).to(result) for span in several]
                    for several, length in ((rows, height), (columns, width))
                ]
                for axis, several in enumerate((rows, columns)):
                    for span, fade in zip(several, fades[axis], strict=True):
                        weights[axis][_scaled(span, scale)] += fade
            across, along = fades[0][rows.index(row)], fades[1][columns.index(column)]
            total[..., _scaled(row, scale), _scaled(column, scale)] += result * across[:, None] * along
    return total.div_(weights[0][:, None]).div_(weights[1])


def spans(length: int, side: int, halo: int, align: int = 1) -> list[Span]:
    """Cuts an axis into the fewest tiles of `side` that overlap by two halos and the join, spread evenly."""
    overlap = 2 * halo + _JOIN
    if side <= overlap:
        raise ValueError(
            f"tiles of {side} overlap by {overlap}, which leaves nothing: make them larger than that."
        )
    count = max(1, math.ceil((length - overlap) / (side - overlap)))
    if count == 1:
        return [Span(0, length, 0, length)]
    room = length - side
    starts = [min(room, round(i * room / (count - 1) / align) * align) for i in range(count)]
    # the last one ends where the picture ends, and is longer for it where `align` left something over
    starts[-1] -= starts[-1] % align
    stops = [start + side for start in starts[:-1]] + [length]
    cuts = [(stop + start) // 2 // align * align for stop, start in zip(stops[:-1], starts[1:], strict=True)]
    return [Span(*edges) for edges in zip(starts, stops, [0, *cuts], [*cuts, length], strict=True)]


def _scaled(span: Span, scale: float) -> slice:
    return slice(round(scale * span.start), round(scale * span.stop))


def _fade(span: Span, length: int, halo: int, scale: float) -> Tensor:
    """Weights of a tile along one axis: 0 in its halos, 1 inside, and a ramp between; no halo where the picture ends."""
    count = round(scale * span.stop) - round(scale * span.start)
    position = torch.arange(count) + 0.5
    rise, fall = ((distance - scale * halo) / (scale * _JOIN) for distance in (position, count - position))
    fade = torch.ones(count)
    if span.start > 0:
        fade = torch.minimum(fade, rise)
    if span.stop < length:
        fade = torch.minimum(fade, fall)
    return fade.clamp(0, 1)


class SharedStatistics:
    """Gives the normalising layers of `network` the statistics of the whole picture, for as long as this object is used.

    network: one of your own, such as a `module_view`; its layers are changed for good.
    """

    def __init__(self, network: nn.Module) -> None:
        layers = [layer for layer in network.modules() if isinstance(layer, _NORMS)]
        self._layers = [_SharedNorm(layer) for layer in layers]
        self._grains = [layer for layer in network.modules() if isinstance(layer, Grain)]

    @staticmethod
    def wanted_by(network: nn.Module) -> bool:
        return any(isinstance(layer, _NORMS) for layer in network.modules())

    def place(self, row: Span, column: Span) -> None:
        """Before each tile."""
        for layer in self._layers:
            layer.tile = (row, column)
        for grain in self._grains:
            grain.origin = (row.start, column.start)

    @torch.no_grad()
    def measure(self, run: Run, whole: Tensor, side: int, halo: int, align: int = 1) -> None:
        """Before `run_in_tiles` with the same arguments."""
        if len(self._layers) > _EXACT_UP_TO:
            scale = side / max(whole.shape[-2:])  # as large as a tile, which fits
            size = [max(align, math.ceil(scale * n / align) * align) for n in whole.shape[-2:]]
            if scale < 1:  # in full precision: on a CPU there is no such kernel in half
                small = F.interpolate(whole.float(), size=size, mode="bilinear", antialias=True)
                whole = small.to(whole.dtype)
            run(whole)
            return
        rows, columns = (spans(length, side, halo, align) for length in whole.shape[-2:])
        # Each round settles the next layer in the order in which they run.
        while True:
            reached = None
            for row in rows:
                for column in columns:
                    part = (slice(row.start, row.stop), slice(column.start, column.stop))
                    self.place(row, column)
                    try:
                        run(whole[(..., *part)])
                    except _Reached as stop:
                        reached = stop.layer
            if reached is None:
                return
            reached.settle()


class _Reached(Exception):
    def __init__(self, layer: "_SharedNorm") -> None:
        self.layer = layer


class _SharedNorm:
    """Stands in for the `forward` of one normalising layer."""

    def __init__(self, layer: nn.Module) -> None:
        self.groups = layer.num_groups if isinstance(layer, nn.GroupNorm) else None
        self.tile: tuple[Span, Span] | None = None
        self._own_forward = layer.forward
        self._seen: list[tuple[int, Tensor, Tensor]] = []
        self._statistics: tuple[Tensor, Tensor] | None = None
        layer.forward = self.forward

    def forward(self, x: Tensor, *rest) -> Tensor:
        """x: (B, C, H, W), or (B, C, N) as attention has it."""
        if self._statistics is None:
            if self.tile is None:  # one pass over the reduced picture
                self._look(x)
                self.settle()
            else:
                sides = zip(self.tile, x.shape[2:], strict=True) if x.ndim == 4 else ()
                self._look(x[(..., *(_core(span, count) for span, count in sides))])
                raise _Reached(self)
        # Normalising is one factor and one offset a channel. Two points that have the wanted statistics tell which, whatever
        # the layer makes of them.
        mean, deviation = (
            value.to(x.dtype).view(*value.shape, *[1] * (x.ndim - 2)) for value in self._statistics
        )
        low, high = self._own_forward(torch.cat([mean - deviation, mean + deviation], dim=-1), *rest).split(
            1, -1
        )
        factor = (high - low) / (2 * deviation)  # (B, C, 1, 1)
        return torch.addcmul(low - factor * (mean - deviation), x, factor)

    def settle(self) -> None:
        """From what was seen of all tiles: the mean, and the deviation within and between tiles."""
        counts, means, variances = zip(*self._seen, strict=True)
        weights = [count / sum(counts) for count in counts]
        mean = sum(w * m for w, m in zip(weights, means, strict=True))
        variance = sum(
            w * (v + (m - mean).square()) for w, m, v in zip(weights, means, variances, strict=True)
        )
        self._statistics = (mean, variance.sqrt().clamp(min=1e-4))
        self._seen.clear()

    def _look(self, x: Tensor) -> None:
        grouped = x.float().flatten(2)  # (B, C, N)
        if self.groups is not None:
            grouped = grouped.unflatten(1, (self.groups, -1)).flatten(2)  # (B, G, C/G * N)
        variance, mean = torch.var_mean(grouped, dim=-1, correction=0)  # (B, C) or (B, G)
        repeats = x.shape[1] // mean.shape[1]
        self._seen.append(
            (
                grouped.shape[-1],
                mean.repeat_interleave(repeats, dim=1),
                variance.repeat_interleave(repeats, dim=1),
            )
        )


def _core(span: Span, count: int) -> slice:
    """The part of a layer's input along one axis that belongs to this tile alone. Layers work at some power of two of the
    tile's size, some with a margin around it, which counts where the picture ends."""
    length = span.stop - span.start
    scale = 2.0 ** round(math.log2(count / length))
    margin = (count - math.ceil(scale * length)) // 2
    start, stop = (margin + round(scale * (edge - span.start)) for edge in (span.core_start, span.core_stop))
    return slice(
        0 if span.core_start == span.start else start, count if span.core_stop == span.stop else stop
    )


def bytes_per_pixel(network: nn.Module) -> int:
    """About what a pass takes at its widest, as measured on a CPU: four maps of float32 at full resolution. The decoder that
    paints has few channels there, and most of its maps at half; those of Stable Diffusion carry twice the channels of its
    encoder up to full resolution, in seven maps."""
    network = getattr(network, "_orig_mod", network)  # that torch.compile wraps
    config = network.config
    if isinstance(network, ConditionalDecoder):
        return 128
    if isinstance(network, AutoencoderTiny):
        return 16 * config.encoder_block_out_channels[0]
    channels = config.get("block_out_channels") or config.down_block_out_channels
    return 7 * 4 * 2 * channels[0]
