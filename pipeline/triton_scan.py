"""The GPU engine of the selective scan: two Triton kernels, forward and backward.

Responsible for: the recurrence and its gradients on a GPU, and the link to autograd. Knows nothing of the choice
between engines and does not check its inputs (`selective_scan.py` does both). Needs triton. With TRITON_INTERPRET=1,
set before this file is imported, the kernels run on the CPU, slowly, as the tests do.

One program runs one channel of one sample through the sequence, chunk by chunk with a carried state. Inside a chunk
the tokens are scanned in parallel: two steps h -> a h + x one after the other are again such a step.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .chunked_scan import with_groups

_CHUNK = 128  # tokens scanned at once


def triton_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """`selective_scan` on inputs that were checked; always with the last state."""
    channels, states = A.shape[-2:]
    dtype = torch.promote_types(u.dtype, torch.float32)
    none = u.new_zeros(channels)
    # One convention for all: an axis of size 1 means "the same for every sample, or token".
    inputs = (
        u,
        delta,
        A.reshape(-1, channels, states),  # (B or 1, D, N)
        with_groups(B),  # (B or 1, G, N, L or 1)
        with_groups(C),
        (none if D is None else D).reshape(-1, channels),  # (B or 1, D)
        none if delta_bias is None else delta_bias,
    )
    y, h = _TritonScan.apply(delta_softplus, *(x.to(dtype).contiguous() for x in inputs))
    y = y if z is None else y * F.silu(z.to(dtype))
    return y.to(u.dtype), h


class _TritonScan(torch.autograd.Function):
    """y (B, D, L) and h_L (B, D, N). Keeps the state before every chunk (N / _CHUNK of the size of u)."""

    @staticmethod
    def forward(ctx, softplus: bool, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        u, _, A, *_ = inputs
        batch, channels, length = u.shape
        y = torch.empty_like(u)
        states = u.new_zeros(
            batch, channels, 1 + triton.cdiv(length, _CHUNK), A.shape[2]
        )  # (B, D, chunks + 1, N)
        _scan[(batch * channels,)](*inputs, y, states, **_sizes(*inputs), SOFTPLUS=softplus)
        ctx.softplus = softplus
        ctx.save_for_backward(*inputs, states)
        return y, states[:, :, -1].clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_y: Tensor, grad_h: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, states = ctx.saved_tensors
        u, _, A, B, C, D, _ = inputs
        batch, channels, _ = u.shape
        grad_u, grad_delta = torch.empty_like(u), torch.empty_like(u)
        grad_A, grad_D = u.new_empty(batch, *A.shape[1:]), u.new_empty(batch, channels)
        grad_B, grad_C = torch.zeros_like(B), torch.zeros_like(C)  # all channels of a group add to them
        grads = (grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D)
        _scan_gradients[(batch * channels,)](
            *inputs,
            states,
            grad_y.contiguous(),
            grad_h.contiguous(),
            *grads,
            **_sizes(*inputs),
            SOFTPLUS=ctx.softplus,
        )
        return (
            None,
            grad_u,
            grad_delta,
            grad_A.sum_to_size(A.shape),
            grad_B,
            grad_C,
            grad_D.sum_to_size(D.shape),
            grad_delta.sum((0, 2)),
        )


def _sizes(u: Tensor, _: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, __: Tensor) -> dict[str, int]:
    return {
        "length": u.shape[2],
        "channels": u.shape[1],
        "states_a_channel": A.shape[2],
        "batch_A": len(A),
        "batch_D": len(D),
        "batch_B": len(B),
        "groups_B": B.shape[1],
        "length_B": B.shape[3],
        "batch_C": len(C),
        "groups_C": C.shape[1],
        "length_C": C.shape[3],
        "CHUNK": _CHUNK,
        "LANES": triton.next_power_of_2(A.shape[2]),
    }


@triton.jit
def _one_after_the_other(a, x, next_a, next_x):
    return next_a * a, next_a * x + next_x


@triton.jit
def _step_and_slope(delta, SOFTPLUS: tl.constexpr):
    """The step size and its derivative with respect to `delta`, which has its bias."""
    if SOFTPLUS:
        e = tl.exp(-tl.abs(delta))
        w = 1 + e
        # log(1 + e) keeps the digits of a small e this way: the rounding of 1 + e cancels out of the quotient.
        log1p = tl.where(w == 1, e, tl.log(w) * e / tl.where(w == 1, 1, w - 1))
        return tl.maximum(delta, 0) + log1p, tl.where(delta > 0, 1, e) / w
    return delta, tl.zeros_like(delta) + 1


@triton.jit
def _places(b, d, n, t, channels, states_a_channel, batch, groups, length):
    """Where B or C has the tokens t and states n of one channel: (CHUNK, LANES)."""
    row = ((b % batch) * groups + d * groups // channels) * states_a_channel + n
    return row[None, :] * length + tl.where(length > 1, t, 0)[:, None]


@triton.jit
def _scan(
    u, delta, A, B, C, D, bias, y, states,
    length, channels, states_a_channel,
    batch_A, batch_D, batch_B, groups_B, length_B, batch_C, groups_C, length_C,
    CHUNK: tl.constexpr, LANES: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    b, d = pid // channels, pid % channels
    n, t = tl.arange(0, LANES), tl.arange(0, CHUNK)
    real = n < states_a_channel
    rate = tl.load(A + ((b % batch_A) * channels + d) * states_a_channel + n, real, 0)  # (LANES,)
    skip, offset = tl.load(D + (b % batch_D) * channels + d), tl.load(bias + d)
    kept = states + pid * (tl.cdiv(length, CHUNK) + 1) * states_a_channel + n
    h_end = tl.zeros_like(rate)
    for begin in range(0, length, CHUNK):
        at = begin + t
        inside = at < length
        step, _ = _step_and_slope(tl.load(delta + pid * length + at, inside, 0) + offset, SOFTPLUS)
        step = tl.where(inside, step, 0)  # a step of 0 keeps the state as it is
        u_t = tl.load(u + pid * length + at, inside, 0)  # (CHUNK,)
        both = inside[:, None] & real[None, :]
        B_at = _places(b, d, n, at, channels, states_a_channel, batch_B, groups_B, length_B)
        C_at = _places(b, d, n, at, channels, states_a_channel, batch_C, groups_C, length_C)
        B_t, C_t = tl.load(B + B_at, both, 0), tl.load(C + C_at, both, 0)  # (CHUNK, LANES)

        decay = tl.exp(step[:, None] * rate[None, :])  # (CHUNK, LANES)
        decays, h = tl.associative_scan((decay, (step * u_t)[:, None] * B_t), 0, _one_after_the_other)
        h += decays * h_end[None, :]
        tl.store(y + pid * length + at, tl.sum(h * C_t, 1) + skip * u_t, inside)

        h_end = tl.sum(tl.where(t[:, None] == CHUNK - 1, h, 0), 0)
        kept += states_a_channel
        tl.store(kept, h_end, real)


@triton.jit
def _scan_gradients(
    u, delta, A, B, C, D, bias, states, grad_y, grad_h,
    grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D,
    length, channels, states_a_channel,
    batch_A, batch_D, batch_B, groups_B, length_B, batch_C, groups_C, length_C,
    CHUNK: tl.constexpr, LANES: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    b, d = pid // channels, pid % channels
    n, t = tl.arange(0, LANES), tl.arange(0, CHUNK)
    real = n < states_a_channel
    rate = tl.load(A + ((b % batch_A) * channels + d) * states_a_channel + n, real, 0)  # (LANES,)
    skip, offset = tl.load(D + (b % batch_D) * channels + d), tl.load(bias + d)
    g_begin = tl.load(grad_h + pid * states_a_channel + n, real, 0)  # what later tokens want of the state
    rate_sum, skip_sum = tl.zeros_like(rate), tl.zeros_like(skip)
    chunks = tl.cdiv(length, CHUNK)
    for back in range(0, chunks):
        chunk = chunks - 1 - back
        at = chunk * CHUNK + t
        inside, follows = at < length, at + 1 < length
        step, slope = _step_and_slope(tl.load(delta + pid * length + at, inside, 0) + offset, SOFTPLUS)
        next_step, _ = _step_and_slope(tl.load(delta + pid * length + at + 1, follows, 0) + offset, SOFTPLUS)
        step, next_step = tl.where(inside, step, 0), tl.where(follows, next_step, 0)
        u_t = tl.load(u + pid * length + at, inside, 0)  # (CHUNK,)
        grad_y_t = tl.load(grad_y + pid * length + at, inside, 0)
        both = inside[:, None] & real[None, :]
        B_at = _places(b, d, n, at, channels, states_a_channel, batch_B, groups_B, length_B)
        C_at = _places(b, d, n, at, channels, states_a_channel, batch_C, groups_C, length_C)
        B_t, C_t = tl.load(B + B_at, both, 0), tl.load(C + C_at, both, 0)  # (CHUNK, LANES)

        # The states once more, from the one before the chunk
        h_begin = tl.load(states + (pid * (chunks + 1) + chunk) * states_a_channel + n, real, 0)
        decay = tl.exp(step[:, None] * rate[None, :])  # (CHUNK, LANES)
        written = (step * u_t)[:, None] * B_t
        decays, h = tl.associative_scan((decay, written), 0, _one_after_the_other)
        h += decays * h_begin[None, :]

        # The gradient of each state: g_t = C_t grad_y_t + decay_{t+1} g_{t+1}
        next_decay = tl.exp(next_step[:, None] * rate[None, :])
        decays, g = tl.associative_scan(
            (next_decay, grad_y_t[:, None] * C_t), 0, _one_after_the_other, reverse=True
        )
        g += decays * g_begin[None, :]
        g_begin = tl.sum(tl.where(t[:, None] == 0, g, 0), 0)

        tl.atomic_add(grad_B + B_at, g * (step * u_t)[:, None], both)
        tl.atomic_add(grad_C + C_at, grad_y_t[:, None] * h, both)
        grad_w = tl.sum(g * B_t, 1)
        grad_exponent = g * (h - written)  # of step * rate: h - written is decay_t h_{t-1}
        rate_sum += tl.sum(grad_exponent * step[:, None], 0)
        grad_step = tl.sum(grad_exponent * rate[None, :], 1) + grad_w * u_t
        skip_sum += tl.sum(grad_y_t * u_t, 0)
        tl.store(grad_u + pid * length + at, grad_w * step + skip * grad_y_t, inside)
        tl.store(grad_delta + pid * length + at, grad_step * slope, inside)
    tl.store(grad_A + pid * states_a_channel + n, rate_sum, real)
    tl.store(grad_D + pid, skip_sum)
