"""The CPU engine of the selective scan, on compiled kernels.

Responsible for: bringing the inputs into one form, the link to autograd, and spreading the work over the cores. Knows
nothing of the choice between engines and does not check its inputs (`selective_scan.py` does both), nor of the
recurrence (`numba_kernels.py`). Needs numba.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import Tensor

from .chunked_scan import with_groups
from .numba_kernels import CHUNK, LOG2E, scan, scan_gradients, scan_heads

_STATES_A_THREAD = 2**18  # work that repays the start of a thread, about 0.1 ms


def numba_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`selective_scan` on inputs that were checked; always with the last state.

    state: (B, D, N) before the first token, if it is not 0; without gradients.
    """
    channels, states = A.shape[-2:]
    dtype = torch.promote_types(u.dtype, torch.float32)
    none = u.new_zeros(channels)
    # Both layouts are taken as they are; the tokens of an image usually come with their channels side by side.
    tokens_first = u.stride(1) < u.stride(2)
    # One convention for the rest: an axis of size 1 means "the same for every sample, or token".
    inputs = (
        u.mT if tokens_first else u,  # (B, L, D) or (B, D, L)
        delta.mT if tokens_first else delta,
        A.reshape(-1, channels, states),  # (B or 1, D, N)
        with_groups(B),  # (B or 1, G, N, L or 1)
        with_groups(C),
        (none if D is None else D).reshape(-1, channels),  # (B or 1, D)
        none if delta_bias is None else delta_bias,
    )
    inputs = (x.to(dtype).contiguous() for x in inputs)
    y, h = _NumbaScan.apply(tokens_first, delta_softplus, torch.is_grad_enabled(), state, *inputs)
    y = y.mT if tokens_first else y  # (B, D, L)
    y = y if z is None else y * F.silu(z.to(dtype))
    return y.to(u.dtype), h


def numba_ssd_scan(
    x: Tensor,
    step: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    step_bias: Tensor | None,
    softplus: bool,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`ssd_scan` on inputs that were checked, without gradients: y, and always the last state.

    state: (b, H, P, N) before the first token, if it is not 0.
    """
    dtype, (heads, width) = torch.promote_types(x.dtype, torch.float32), x.shape[2:]
    none = x.new_zeros(heads)
    D = none if D is None else D
    inputs = (
        x.flatten(2),  # (b, L, H * P)
        step,
        A.to(dtype) * LOG2E,
        B,
        C,
        (D if D.dim() == 2 else D[:, None].expand(-1, width)).flatten(),  # (H * P,)
        none if step_bias is None else step_bias,
    )
    inputs = [x.detach().to(dtype).contiguous() for x in inputs]
    y, h = torch.empty_like(inputs[0]), inputs[0].new_zeros(len(x), heads * width, B.shape[3])
    if state is not None:
        h.copy_(state.flatten(1, 2))
    _run(scan_heads, _jobs(inputs[0], h), _threads(inputs[0], h), *inputs, softplus, y, h)
    return y.unflatten(2, (heads, width)), h.unflatten(1, (heads, width))


class _NumbaScan(torch.autograd.Function):
    """y, in the layout of u, and h_L (B, D, N). Keeps the state before every chunk (N / CHUNK of the size of u)."""

    @staticmethod
    def forward(
        ctx, tokens_first: bool, softplus: bool, grad_enabled: bool, state: Tensor | None, *inputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        u, delta, A, *others = inputs
        training = grad_enabled and any(ctx.needs_input_grad)
        length = u.shape[1 if tokens_first else 2]
        kept = 1 + math.ceil(length / CHUNK) if training else 1
        states = u.new_zeros(u.shape[0], kept, *A.shape[1:])  # (B, chunks + 1 or 1, D, N)
        if state is not None:
            states[:, 0] = state
        y = torch.empty_like(u)
        inputs = (u, delta, A * LOG2E, *others)
        _run(scan, _jobs(u, A), _threads(u, A), tokens_first, *inputs, softplus, y, states)
        ctx.tokens_first, ctx.softplus = tokens_first, softplus
        ctx.save_for_backward(*inputs, states)
        return y, states[:, -1].clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_y: Tensor, grad_h: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, states = ctx.saved_tensors
        u, _, A, B, C, D, _ = inputs
        batch = len(u)
        # Slices may write to the same token of B and C, so each gets sums of its own, as far as `u` gives the room.
        jobs = _jobs(u, A, most=max(1, u.numel() // max(B.numel(), C.numel())))
        slices = len(jobs) // batch
        grads = (
            torch.empty_like(u),
            torch.empty_like(u),
            u.new_zeros(batch, *A.shape[1:]),
            u.new_zeros(batch, slices, *B.shape[1:]),
            u.new_zeros(batch, slices, *C.shape[1:]),
            u.new_zeros(batch, *D.shape[1:]),
        )
        carried = grad_h.clone(memory_format=torch.contiguous_format)  # (B, D, N)
        arguments = (ctx.tokens_first, *inputs, ctx.softplus, states, grad_y.contiguous(), carried, *grads)
        _run(scan_gradients, jobs, _threads(u, A), *arguments)
        grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D = grads
        return (
            *(None,) * 4,
            grad_u,
            grad_delta,
            grad_A.sum_to_size(A.shape),
            grad_B.sum(1).sum_to_size(B.shape),
            grad_C.sum(1).sum_to_size(C.shape),
            grad_D.sum_to_size(D.shape),
            grad_delta.sum((0, 1 if ctx.tokens_first else 2)),
        )


def _threads(u: Tensor, A: Tensor) -> int:
    return min(torch.get_num_threads(), 1 + u.numel() * A.shape[-1] // _STATES_A_THREAD)


def _jobs(u: Tensor, A: Tensor, most: int | None = None) -> list[tuple[int, int, int, int]]:
    """(sample, slice, first channel, channel after the last): enough slices to keep all threads busy."""
    batch, channels = len(u), A.shape[1]
    threads = _threads(u, A)
    slices = min(threads // math.gcd(threads, batch), channels, most or channels)
    edges = [channels * i // slices for i in range(slices + 1)]
    return [(b, i, edges[i], edges[i + 1]) for b in range(batch) for i in range(slices)]


def _run(
    kernel: Callable, jobs: list[tuple[int, int, int, int]], threads: int, *arguments: Tensor | bool
) -> None:
    """The kernels release the GIL, so Python's threads serve; numba's own are not safe after a fork."""
    arrays = [x.detach().numpy() if isinstance(x, Tensor) else x for x in arguments]
    if min(threads, len(jobs)) == 1:
        for job in jobs:
            kernel(*job, *arrays)
        return
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(kernel, *job, *arrays) for job in jobs]:
            done.result()
