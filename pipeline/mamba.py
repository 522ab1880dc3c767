"""The Mamba mixer: mixes the tokens of an image along one or several scan paths.

Responsible for: the projections, the convolution, the parameters of the scan and their initialisation. Knows nothing
of normalisation, residuals or conditioning (`fusion.py`), nor of how a scan is computed (`selective_scan.py`,
`ssd_scan.py`) or which pixels a path visits (`scan_orders.py`).

Glossary (letters of the Mamba paper, arXiv 2312.00752):
    b, B        batch size in shapes; B is also the input matrix below
    L           tokens, height * width
    d_model     channels that come in and go out
    D, d_inner  channels of the scan, expand * d_model; D is also the skip weight below
    N, d_state  size of the hidden state of one channel
    K           scan paths (directions), each with its own Delta, A, B, C and D
    dt_rank, R  rank of the projection that makes Delta
    Delta       step size of each token and channel, > 0: large ones write the token, small ones keep the state
    A           (K, D, N) decay rates, < 0, stored as A_log = log(-A)
    B, C        (b, K, N, L) what a token writes into the state, what it reads from it
    D           (K, D) weight of the direct path from input to output
    z           (b, L, D) gate
    h           (b, K, D, N) hidden state, lives inside the scan
    H, P        Mamba-2 (arXiv 2405.21060): H heads of P channels, D = H * P; Delta, A and the skip weight are one a
                head instead of one a channel (and state)
"""

import math
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .scan_orders import scan_orders
from .selective_scan import numba_obstacle, selective_scan
from .ssd_scan import ssd_scan

# Of a warm-up: tokens that are read one by one, and of how many farther ones one is read.
_NEAR, _EVERY = 64, 8
_PIECE = 2**22  # bytes of an array of the scan, of which a handful then fit into the cache


@cache
def _onednn_linear() -> Callable | None:
    """oneDNN's matrix product, or None where this torch has none. It is a private operator, hence the trial."""
    try:
        product = torch.ops.mkldnn._linear_pointwise
        product(torch.ones(1, 1, device="cpu"), torch.ones(1, 1, device="cpu"), None, "none", [], "")
    except (AttributeError, RuntimeError):
        return None
    return product


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`; without gradients, in float32 on the CPU, by oneDNN.

    Torch asks MKL there, which leaves half of the register width of AMD's processors unused: 2.3 times slower on Zen 5.
    """
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or not _onednn_linear():
        return F.linear(x, weight, bias)
    operands = (x, weight) if bias is None else (x, weight, bias)
    # Not for tensors of a class of their own either, such as quantised weights.
    if any(
        t.device.type != "cpu" or t.dtype != torch.float32 or type(t) not in (Tensor, nn.Parameter)
        for t in operands
    ):
        return F.linear(x, weight, bias)
    return _onednn_linear()(x, weight, bias, "none", [], "")


class Linear(nn.Linear):
    """`nn.Linear` by way of `linear`: the same layer, and faster where no gradient is wanted."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class CausalConv(nn.Conv1d):
    """A depthwise convolution over each token and those before it; (B, L, K, D) to the same shape, K paths alike.

    It runs as a convolution of images one pixel high: for those, unlike for sequences, torch has a kernel that takes
    the channels of a token side by side.
    """

    def forward(self, x: Tensor, padded: bool = False) -> Tensor:
        """`padded`: `x` begins with the tokens before the first, one less than the convolution has taps."""
        paths, taps = x.shape[2], self.kernel_size[0]
        length = x.shape[1] - (taps - 1 if padded else 0)
        image = x.flatten(2).mT[:, :, None]  # (B, K*D, 1, L)
        weight, bias = self.weight.repeat(paths, 1, 1)[:, :, None], self.bias.repeat(paths)
        padding = 0 if padded else (0, taps - 1)
        y = F.conv2d(image, weight, bias, padding=padding, groups=len(bias))[..., 0, :length]  # (B, K*D, L)
        return y.mT.unflatten(2, (paths, -1))  # (B, L, K, D)


@torch.no_grad()
def init_scan(
    x_proj: Tensor, dt_proj: Tensor | None, dt_bias: Tensor | None, A_log: Tensor | None, D: Tensor | None
) -> None:
    """Mamba's initialisation of what a scan has; None for what it lacks, or begins otherwise."""
    for projection in (x_proj, dt_proj):
        if projection is not None:  # as nn.Linear's
            nn.init.uniform_(projection, -(projection.shape[-1] ** -0.5), projection.shape[-1] ** -0.5)
    if A_log is not None:
        A_log.copy_(torch.arange(1, A_log.shape[-1] + 1).log().expand_as(A_log))
    if dt_bias is not None:
        init_step_bias(dt_bias)
    if D is not None:
        nn.init.ones_(D)


@torch.no_grad()
def init_step_bias(dt_bias: Tensor) -> None:
    """Delta starts log-uniform between 1e-3 and 1e-1, and the bias is what softplus maps to it."""
    dt = torch.empty_like(dt_bias).uniform_(math.log(1e-3), math.log(1e-1)).exp_().clamp_(min=1e-4)
    dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))


def _lengthened(delta: Tensor, bias: Tensor, far: int) -> Tensor:
    """Steps as they are before their bias is added and softplus taken; each of the first `far` becomes as long as those it stands for."""
    if not far:
        return delta
    step = _EVERY * F.softplus(delta[:, :far] + bias)
    # What softplus maps to `step`, as in `init_step_bias`.
    longer = step + torch.log(-torch.expm1(-step)) - bias
    return torch.cat([longer.to(delta.dtype), delta[:, far:]], 1)


def _linear_by_path(x: Tensor, weight: Tensor) -> Tensor:
    """Each path by its own matrix: x (B, L, K, in) and weight (K, out, in) to (B, L, K, out)."""
    if len(weight) == 1:
        return linear(x[:, :, 0], weight[0])[:, :, None]
    return torch.einsum("koi,blki->blko", weight, x)


class MambaMixer(nn.Module):
    """Maps tokens (B, L, d_model) to the same shape.

    With `scan_order="raster"` and `conv="causal"` this is Mamba as published. More paths (`scan_orders`) run as one
    grouped scan; their outputs are put back in raster order and summed before the gate. `x_proj`, `dt_proj`,
    `dt_bias`, `A_log` and `D` hold one set per path, stacked in a leading axis of size K (also for K = 1); in and
    out projection and the convolution are shared.

    ssm: "mamba", or "mamba2": the scan of Mamba-2, with heads of 64 channels (one head where there are fewer). What
    surrounds it stays: B, C and Delta are made from the convolved tokens of each path, and the output is gated as
    in Mamba, without the norm that Mamba-2 adds there for depth. `dt_rank` is for "mamba" only.

    warm_up: how many tokens a path has read when it comes to the first. A state is empty at first, and what reads it then has colours
    of its own until it is full. So each path first reads its own beginning backwards, and forwards again where it is short: the
    nearest 64 tokens, and of the farther ones one in eight, with a step eight times as long.

    conv: "causal", a depthwise convolution over the `d_conv` last tokens of each path, or "spatial", a depthwise
    3 x 3 convolution of the image before it is read along the paths.
    """

    # Rounding these to half precision changes the decay of the state over long sequences.
    _keep_in_fp32 = ("A_log", "D", "dt_bias")

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        scan_order: str = "raster",
        conv: str = "causal",
        ssm: str = "mamba",
        warm_up: int = 0,
    ) -> None:
        super().__init__()
        if ssm not in ("mamba", "mamba2"):
            raise ValueError(f"ssm is {ssm!r}, wanted 'mamba' or 'mamba2'.")
        if conv not in ("causal", "spatial"):
            raise ValueError(f"conv is {conv!r}, wanted 'causal' or 'spatial'.")
        self.d_state = d_state
        self.d_inner = d_inner = expand * d_model
        self.ssm = ssm
        self.scan_order = scan_order
        self.warm_up = warm_up
        paths = len(scan_orders(scan_order, 1, 1)[0])

        self.in_proj = Linear(d_model, 2 * d_inner, bias=False)
        if conv == "causal":
            self.conv = CausalConv(d_inner, d_inner, d_conv, groups=d_inner)
        else:
            # Not zeros, of which a style can make a frame around the picture.
            self.conv = nn.Conv2d(d_inner, d_inner, 3, padding=1, padding_mode="replicate", groups=d_inner)
        if ssm == "mamba":
            self.dt_rank = dt_rank = dt_rank or math.ceil(d_model / 16)
            self.x_proj = nn.Parameter(torch.empty(paths, dt_rank + 2 * d_state, d_inner))
            self.dt_proj = nn.Parameter(torch.empty(paths, d_inner, dt_rank))
            self.dt_bias = nn.Parameter(torch.empty(paths, d_inner))
            self.A_log = nn.Parameter(torch.empty(paths, d_inner, d_state))
            self.D = nn.Parameter(torch.empty(paths, d_inner))
        else:
            self.heads = heads = d_inner // (math.gcd(d_inner, 64) if d_inner > 64 else d_inner)
            self.x_proj = nn.Parameter(torch.empty(paths, heads + 2 * d_state, d_inner))
            self.dt_bias = nn.Parameter(torch.empty(paths, heads))
            self.A_log = nn.Parameter(torch.empty(paths, heads))
            self.D = nn.Parameter(torch.empty(paths, heads))
        self.out_proj = Linear(d_inner, d_model, bias=False)
        self.reset_scan_parameters()

    @torch.no_grad()
    def reset_scan_parameters(self) -> None:
        """Mamba's and Mamba-2's initialisation; a model-wide re-initialisation that touches these parameters must call this after."""
        if self.ssm == "mamba":
            init_scan(self.x_proj, self.dt_proj, self.dt_bias, self.A_log, self.D)
        else:
            init_scan(self.x_proj, None, None, None, self.D)
            self.A_log.uniform_(1, 16).log_()
            init_step_bias(self.dt_bias)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        if x.dim() != 3 or x.shape[1] != height * width or x.shape[2] != self.in_proj.in_features:
            raise ValueError(
                f"x is {tuple(x.shape)}, wanted (B, height * width, d_model) = "
                f"(B, {height * width}, {self.in_proj.in_features}); pass the size of the token grid, not of the image."
            )
        orders, inverses = scan_orders(self.scan_order, height, width, x.device)  # (K, L) each
        paths = len(orders)

        # The channels of a token stay side by side: whole tokens are moved, and projections need no transposed copy.
        x, z = self.in_proj(x).chunk(2, dim=-1)  # (B, L, D) each
        if isinstance(self.conv, nn.Conv2d):
            image = x.unflatten(1, (height, width)).permute(0, 3, 1, 2)  # (B, D, H, W)
            x = self.conv(image.contiguous(memory_format=torch.channels_last))  # (B, D, H, W)
            x = x.permute(0, 2, 3, 1).flatten(1, 2)  # (B, L, D)
        if paths == 1:  # in raster order, as they are
            u = x[:, :, None]  # (B, L, 1, D)
        else:
            u = x.index_select(1, orders.T.flatten()).unflatten(1, (-1, paths))  # (B, L, K, D)
        u = u if isinstance(self.conv, nn.Conv2d) else self.conv(u)
        in_place = not torch.is_grad_enabled()  # a fresh result costs more than what is computed
        u = F.silu(u, inplace=in_place)  # (B, L, K, D)

        y = self._scan(u)  # (B, L, K, D)
        if paths == 1:
            y = y[:, :, 0]  # (B, L, D)
        else:
            places = inverses.T * paths + torch.arange(paths, device=x.device)  # (L, K)
            y = (
                y.flatten(1, 2).index_select(1, places.flatten()).unflatten(1, (-1, paths)).sum(2)
            )  # (B, L, D)
        z = F.silu(z, inplace=in_place)
        return self.out_proj(y.mul_(z) if in_place else y * z)  # (B, L, d_model)

    def piece(self, x: Tensor) -> int:
        """How many tokens at a time go fastest: all, or fewer where `stream` gives what `forward` gives."""
        streams = (
            x.device.type == "cpu"
            and not torch.is_grad_enabled()
            and isinstance(self.conv, CausalConv)
            and self.scan_order == "raster"
            and not self.warm_up
            and not numba_obstacle()
        )
        return max(1, _PIECE // (self.d_inner * x.element_size())) if streams else x.shape[1]

    def stream(self) -> Callable[[Tensor], Tensor]:
        """`forward` for a sequence that comes in pieces (B, T, d_model): each call goes on where the last one ended.

        A path that is causal throughout needs of earlier tokens its state and no more. What one step hands to the next
        then stays in the cache, and in memory that was used before: the system's handing out of fresh pages costs as
        much time as all the computing of a long sequence.
        """
        tail = state = None

        def go_on(x: Tensor) -> Tensor:
            nonlocal tail, state
            u, z = self.in_proj(x).chunk(2, dim=-1)  # (B, T, D) each
            before = self.conv.kernel_size[0] - 1
            tail = u.new_zeros(len(u), before, self.d_inner) if tail is None else tail
            u = torch.cat([tail, u], 1)  # (B, taps - 1 + T, D)
            tail = u[:, u.shape[1] - before :].clone()
            u = F.silu(self.conv(u[:, :, None], padded=True), inplace=True)  # (B, T, 1, D)
            y, state = self._scan_on(u, state)  # (B, T, 1, D), (B, D, N) or (B, H, P, N)
            return self.out_proj(y[:, :, 0].mul_(F.silu(z, inplace=True)))  # (B, T, d_model)

        return go_on

    def _scan(self, u: Tensor) -> Tensor:
        """(B, L, K, D) to the same shape."""
        before, far = self._before(u.shape[1], u.device)  # (T,)
        u = torch.cat([u[:, before], u], 1) if len(before) else u  # (B, T + L, K, D)
        if self.ssm == "mamba":
            y = selective_scan(*self._mamba(u, far), delta_softplus=True).mT  # (B, T + L, K*D)
        else:
            y = ssd_scan(*self._mamba2(u, far), dt_softplus=True).flatten(2)  # (B, T + L, K*H*P)
        return y[:, len(before) :].unflatten(2, u.shape[2:])  # (B, L, K, D)

    def _before(self, length: int, device: torch.device) -> tuple[Tensor, int]:
        """Which tokens of a path are read before its first, the farthest first, as if mirrors stood at both of its ends; and how many
        of them are far."""
        near = min(self.warm_up, _NEAR)
        far = (self.warm_up - near) // _EVERY
        farther = near + _EVERY // 2 + _EVERY * torch.arange(far, device=device)
        there = torch.cat([torch.arange(near, device=device), farther]).flip(0) % (2 * length)
        return torch.minimum(there, 2 * length - 1 - there), far

    def _scan_on(self, u: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """`_scan` from the state that an earlier piece left, and the state that this one leaves."""
        from .numba_scan import numba_scan, numba_ssd_scan

        if self.ssm == "mamba":
            y, state = numba_scan(*self._mamba(u), True, state)
            y = y.mT
        else:
            x, dt, A, B, C, D, _, dt_bias = self._mamba2(u)
            y, state = numba_ssd_scan(x, dt, A, B, C, D, dt_bias, True, state)
            y = y.flatten(2).to(u.dtype)
        return y.unflatten(2, u.shape[2:]), state

    def _mamba(self, u: Tensor, far: int = 0) -> tuple[Tensor | None, ...]:
        """What `selective_scan` takes: u, delta, A, B, C, D, z, delta_bias. `far`: how many tokens stand for eight."""
        dt, B, C = _linear_by_path(u, self.x_proj).split(
            (self.dt_rank, self.d_state, self.d_state), dim=3
        )  # (B, L, K, R), (B, L, K, N), (B, L, K, N)
        delta = _linear_by_path(dt, self.dt_proj)  # (B, L, K, D)
        delta = _lengthened(delta, self.dt_bias, far)
        return (
            u.flatten(2).mT,
            delta.flatten(2).mT,
            -torch.exp(self.A_log).flatten(0, 1),
            B.permute(0, 2, 3, 1),
            C.permute(0, 2, 3, 1),
            self.D.flatten(),
            None,
            self.dt_bias.flatten(),
        )

    def _mamba2(self, u: Tensor, far: int = 0) -> tuple[Tensor | None, ...]:
        """What `ssd_scan` takes: x, dt, A, B, C, D, z, dt_bias. `far`: as in `_mamba`."""
        dt, B, C = _linear_by_path(u, self.x_proj).split(
            (self.heads, self.d_state, self.d_state), dim=3
        )  # (B, L, K, H), (B, L, K, N), (B, L, K, N)
        dt = _lengthened(dt, self.dt_bias, far)
        return (
            u.unflatten(3, (self.heads, -1)).flatten(2, 3),
            dt.flatten(2),
            -torch.exp(self.A_log).flatten(),
            B,
            C,
            self.D.flatten(),
            None,
            self.dt_bias.flatten(),
        )

    def _apply(self, fn, recurse: bool = True):
        # `.half()` and `.to(dtype)` come through here; `.double()` and moves between devices pass as they are.
        kept = {id(self._parameters[name]) for name in self._keep_in_fp32}

        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if id(tensor) in kept and moved.dtype.itemsize < 4 else moved

        return super()._apply(keep_precision, recurse)
