"""The portable engine of the selective scan: exact, on any device, in memory bounded by a chunk of tokens.

Responsible for: the recurrence and its gradients in plain torch. Knows nothing of the choice between engines and does
not check its inputs (`selective_scan.py` does both).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK = 64  # tokens whose states are held at once; 32 to 128 measure alike on a CPU


def chunked_scan(
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
    # One convention spares the rest of this file every special case: the last axis of each input is time, and there
    # a size of 1 means "the same for all tokens".
    inputs = (
        u,
        delta,
        A[..., None] if A.dim() == 3 else A[None, ..., None],  # (B or 1, D, N, 1)
        with_groups(B),  # (B or 1, G, N, L or 1)
        with_groups(C),
        None if D is None else D.reshape(-1, D.shape[-1], 1),  # (B or 1, D, 1)
        z,
        None if delta_bias is None else delta_bias[None, :, None],  # (1, D, 1)
    )
    training = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    return _ChunkedScan.apply(delta_softplus, training, *inputs)


def with_groups(x: Tensor) -> Tensor:
    """B or C with its groups spelled out; a constant one has as many groups as channels."""
    if x.dim() == 2:
        return x[None, ..., None]  # (1, D, N, 1)
    return x[:, None] if x.dim() == 3 else x  # (B, G, N, L)


class _ChunkedScan(torch.autograd.Function):
    """Runs `_scan_chunk` over the sequence, holding the states of one chunk only.

    For the backward pass it keeps the state before every chunk (N / _CHUNK of the size of u), and computes each
    chunk a second time.
    """

    @staticmethod
    def forward(ctx, softplus: bool, training: bool, *inputs: Tensor | None) -> tuple[Tensor, Tensor]:
        u, _, A, *_ = inputs
        h = u.new_zeros(
            *u.shape[:2], A.shape[2], dtype=torch.promote_types(u.dtype, torch.float32)
        )  # (B, D, N)
        y = torch.empty_like(u, memory_format=torch.contiguous_format)  # (B, D, L)
        buffers = _chunk_buffers(h, u.shape[-1])
        starts = []
        for first in range(0, u.shape[-1], _CHUNK):
            if training:
                starts.append(h)
            y[..., first : first + _CHUNK], h = _scan_chunk(h, *_slices(inputs, first), softplus, buffers)
        ctx.softplus = softplus
        ctx.save_for_backward(*inputs, *starts)
        return y, h

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_y: Tensor, grad_h: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[2:]
        inputs, starts = ctx.saved_tensors[: len(needed)], ctx.saved_tensors[len(needed) :]
        wanted = [i for i, need in enumerate(needed) if need]
        # What every chunk adds to is summed in full precision; a token's own gradient is written once.
        grads = [
            torch.zeros_like(
                x, dtype=torch.promote_types(x.dtype, torch.float32) if x.shape[-1] == 1 else x.dtype
            )
            for x in (inputs[i] for i in wanted)
        ]
        buffers = _chunk_buffers(grad_h, grad_y.shape[-1])
        for chunk, h in reversed(list(enumerate(starts))):
            first = chunk * _CHUNK
            h = h.detach().requires_grad_()
            pieces = [x if x is None else x.detach().requires_grad_() for x in _slices(inputs, first)]
            with torch.enable_grad():
                outputs = _scan_chunk(h, *pieces, ctx.softplus, buffers)
            grad_h, *new = torch.autograd.grad(
                outputs, [h, *(pieces[i] for i in wanted)], (grad_y[..., first : first + _CHUNK], grad_h)
            )
            for total, grad in zip(_slices(grads, first), new, strict=True):
                total += grad
        by_input = dict(zip(wanted, grads, strict=True))
        return None, None, *(by_input[i].to(x.dtype) if i in by_input else None for i, x in enumerate(inputs))


def _slices(inputs: Sequence[Tensor | None], first: int) -> list[Tensor | None]:
    """The tokens of the chunk that starts at `first`, of every input that has tokens."""
    return [x if x is None or x.shape[-1] == 1 else x[..., first : first + _CHUNK] for x in inputs]


def _scan_chunk(
    h: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
    buffers: Tensor,
) -> tuple[Tensor, Tensor]:
    """The scan of T tokens from the state `h`: outputs (B, D, T) and the next state (B, D, N)."""
    u, delta, A, B, C, D, z, delta_bias = (
        x if x is None else x.to(h.dtype) for x in (u, delta, A, B, C, D, z, delta_bias)
    )
    delta = delta if delta_bias is None else delta + delta_bias  # (B, D, T)
    delta = F.softplus(delta) if softplus else delta  # (B, D, T)
    y, h = _ChunkStates.apply(h, delta, delta * u, A, B, C, buffers)  # (B, D, T), (B, D, N)
    y = y if D is None else y + D * u
    y = y if z is None else y * F.silu(z)
    return y, h


def _chunk_buffers(h: Tensor, tokens: int) -> Tensor:
    """Room for the three tensors of a chunk that are N times the size of its tokens, shared by all chunks of a pass."""
    return h.new_empty(3, min(tokens, _CHUNK) + 1, *h.shape)  # (3, T + 1, B, D, N)


class _ChunkStates(torch.autograd.Function):
    """h_t = exp(delta_t A) h_{t-1} + B_t w_t and y_t = C_t . h_t, with w = delta u; gives y (B, D, T) and h_T.

    Inside, time goes first: the state of all channels at one token is then one block of memory. Only products of
    decays occur, never a quotient: nothing overflows, and what underflows is a state long forgotten.
    """

    @staticmethod
    def forward(
        ctx, h: Tensor, delta: Tensor, w: Tensor, A: Tensor, B: Tensor, C: Tensor, buffers: Tensor
    ) -> tuple[Tensor, Tensor]:
        delta, w, A, B, C = (_time_first(x) for x in (delta, w, A, B, C))  # (T or 1, ...)
        decay, states, _ = buffers[:, : len(w) + 1]  # (T + 1, B, D, N) each; states[t] is h_t, states[0] is h
        torch.mul(delta[..., None], A, out=decay[1:]).exp_()
        torch.mul(_grouped(w, B)[..., None], B[..., None, :], out=_grouped(states, B)[1:])
        states[0] = h
        decays, steps = decay.unbind(), states.unbind()
        for t in range(1, len(steps)):
            steps[t].addcmul_(decays[t], steps[t - 1])
        y = _dot("tbgdn,tbgn->tbgd", _grouped(states[1:], C), C)  # (T, B, G, D/G)
        ctx.save_for_backward(delta, w, A, B, C)
        ctx.buffers = buffers
        return _time_last(y.flatten(2)), steps[-1].clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_y: Tensor, grad_h: Tensor) -> tuple[Tensor | None, ...]:
        delta, w, A, B, C = ctx.saved_tensors
        decay, states, grads = ctx.buffers[:, : len(w) + 1]  # grads[t] becomes dLoss/dh_t
        grad_y = _grouped(_time_first(grad_y), C)  # (T, B, G, D/G)
        torch.mul(grad_y[..., None], C[..., None, :], out=_grouped(grads, C)[1:])
        grads[0] = 0
        grads[-1] += grad_h
        decays, steps = decay.unbind(), grads.unbind()
        for t in reversed(range(1, len(steps))):
            steps[t - 1].addcmul_(decays[t], steps[t])
        grad_h = steps[0].clone()

        decay, grads, before = decay[1:], grads[1:], states[:-1]  # (T, B, D, N) each
        grad_C = _dot("tbgdn,tbgd->tbgn", _grouped(states[1:], C), grad_y)
        grad_B = _dot("tbgdn,tbgd->tbgn", _grouped(grads, B), _grouped(w, B))
        grad_w = _dot("tbgdn,tbgn->tbgd", _grouped(grads, B), B).flatten(2)  # (T, B, D)
        grad_exponent = decay.mul_(before).mul_(grads)  # with respect to delta_t A
        grad_delta = torch.mul(grad_exponent, A, out=grads).sum(-1)  # (T, B, D)
        grad_A = grad_exponent.mul_(delta[..., None])
        shared = (grad.sum_to_size(x.shape) for grad, x in ((grad_A, A), (grad_B, B), (grad_C, C)))
        return grad_h, *(_time_last(grad) for grad in (grad_delta, grad_w, *shared)), None


def _grouped(x: Tensor, like: Tensor) -> Tensor:
    """(T, B, D, ...) as (T, B, G, D/G, ...), with the groups of `like` (T, B, G, N)."""
    return x.unflatten(2, (like.shape[2], -1))


def _dot(equation: str, x: Tensor, y: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):  # it would round a matrix product to half precision
        return torch.einsum(equation, x, y.expand(*x.shape[:3], -1))


def _time_first(x: Tensor) -> Tensor:
    """(..., T) as (T, ...). Two copies: torch transposes a contiguous matrix several times faster than any other."""
    return x.flatten(0, -2).contiguous().t().contiguous().view(x.shape[-1], *x.shape[:-1])


def _time_last(x: Tensor) -> Tensor:
    """(T, ...) as (..., T)."""
    return x.flatten(1).t().contiguous().view(*x.shape[1:], len(x))
