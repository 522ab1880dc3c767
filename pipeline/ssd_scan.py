"""The scan of Mamba-2 (state-space duality, arXiv 2405.21060): one decay a head and token, so chunks are matrix products.

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t^T        y_t = h_t^T C_t + D x_t        (times SiLU(z_t))

Responsible for: this recurrence in plain torch, on any device, with gradients by autograd. Without gradients on the CPU
a compiled loop is faster than any product, and does it if numba is there (`numba_scan.py`). Knows nothing of images,
directions or modules (`mamba.py`).
`selective_scan.py` has a decay for each channel and state instead.

b batch, L tokens in c chunks of T, H heads of P channels, G groups of R heads that share B and C, N states a channel.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .selective_scan import numba_obstacle


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    chunk: int = 64,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scan `x` along its second axis; shapes and results of mamba-ssm's `mamba_chunk_scan_combined`.

    x, z: (b, L, H, P). dt: (b, L, H). A, dt_bias: (H,). B, C: (b, L, G, N). D: (H,) or (H, P).
    Computes in float32 (float64 for a float64 `x`) and returns y (b, L, H, P) in the dtype of `x`, and with
    `return_last_state` also h_L (b, H, P, N) in the dtype of the computation. Time and memory of the matrix products
    grow with L * chunk; on the CPU without gradients there is no chunk.

    Raises ValueError for shapes that do not fit together.
    """
    _check_shapes(x, dt, A, B, C, D, z, dt_bias, chunk)
    inputs = (x, dt, A, B, C, D, dt_bias)
    training = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    if x.device.type == "cpu" and not training and not numba_obstacle():
        from .numba_scan import numba_ssd_scan

        y, h = numba_ssd_scan(*inputs, dt_softplus)
    else:
        y, h = _by_chunks(*inputs, dt_softplus, min(chunk, x.shape[1]))
    y = (y if z is None else y * F.silu(z.to(y.dtype))).to(x.dtype)
    return (y, h) if return_last_state else y


def _by_chunks(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """y before the gate, and the last state, by matrix products: any device, with gradients."""
    with torch.autocast(x.device.type, enabled=False):  # it would round the matrix products to half precision
        dtype, length = torch.promote_types(x.dtype, torch.float32), x.shape[1]
        step = dt.to(dtype) if dt_bias is None else dt.to(dtype) + dt_bias.to(dtype)
        step = F.softplus(step) if dt_softplus else step  # (b, L, H)
        wide_x = x.to(dtype)
        groups = B.shape[2]

        # A step of 0 keeps the state as it is and writes nothing: it fills up the last chunk.
        def chunks(t: Tensor) -> Tensor:
            padding = (0, 0) * (t.dim() - 2) + (0, -length % chunk)
            return F.pad(t, padding).unflatten(1, (-1, chunk)).transpose(1, 2)  # (b, T, c, ...)

        def heads(t: Tensor) -> Tensor:
            return chunks(t).unflatten(3, (groups, -1)).permute(0, 2, 3, 4, 1, *range(5, t.dim() + 2))

        written = heads(wide_x * step[..., None])  # (b, c, G, R, T, P)
        B, C = (chunks(t.to(dtype)).permute(0, 2, 3, 1, 4) for t in (B, C))  # (b, c, G, T, N)
        decays = _segment_decays(heads(step * A.to(dtype)))  # (b, c, G, R, T, T + 1)
        from_start, within = decays[..., 0], decays[..., 1:]  # (b, c, G, R, T), (b, c, G, R, T, T)

        # 1. What the tokens of a chunk read of one another
        y = ((C @ B.mT)[:, :, :, None] * within) @ written  # (b, c, G, R, T, P)

        # 2. The state that a chunk adds, and 3. the state before each chunk
        added = (written * within[..., -1, :, None]).mT @ B[:, :, :, None]  # (b, c, G, R, P, N)
        h, before = torch.zeros_like(added[:, 0]), []  # (b, G, R, P, N)
        for decay, new in zip(from_start[..., -1, None, None].unbind(1), added.unbind(1), strict=True):
            before.append(h)
            h = decay * h + new

        # 4. What a token reads of the chunks before its own
        y = y + from_start[..., None] * (C[:, :, :, None] @ torch.stack(before, 1).mT)

        y = y.permute(0, 1, 4, 2, 3, 5).flatten(3, 4).flatten(1, 2)[:, :length]  # (b, L, H, P)
        if D is not None:
            y = y + wide_x * (D if D.dim() == 2 else D[:, None]).to(dtype)
    return y, h.flatten(1, 2)


def _segment_decays(log_decay: Tensor) -> Tensor:
    """(..., T) -> (..., T, T + 1): what is left at the end of token t of the state before token s, 0 for s > t + 1.

    Sums of the log decays between the two, each added up from s on: as differences of one running sum they would
    lose the digits of the small ones.
    """
    tokens = log_decay.shape[-1]
    later = torch.ones(tokens, tokens + 1, device=log_decay.device, dtype=log_decay.dtype).tril()
    return (log_decay[..., None] * later).cumsum(-2).exp().tril(1)


def _check_shapes(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    chunk: int,
) -> None:
    if x.dim() != 4 or 0 in x.shape or not x.is_floating_point():
        raise ValueError(
            f"x is {x.dtype} {tuple(x.shape)}, wanted floating point (b, L, H, P) without an empty axis; "
            "split the channels into heads: x.unflatten(-1, (heads, -1))."
        )
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}, wanted at least 1.")
    batch, length, heads, width = x.shape
    fitting = B.dim() == 4 and B.shape[2] > 0 and heads % B.shape[2] == 0
    states = (batch, length, B.shape[2] if fitting else f"a divisor of {heads}", B.shape[-1])
    for name, given, wanted in [
        ("dt", dt, [(batch, length, heads)]),
        ("A", A, [(heads,)]),
        ("B", B, [states]),
        ("C", C, [states]),
        ("D", D, [(heads,), (heads, width)]),
        ("z", z, [tuple(x.shape)]),
        ("dt_bias", dt_bias, [(heads,)]),
    ]:
        if given is not None and tuple(given.shape) not in wanted:
            shapes = " or ".join(f"({', '.join(map(str, shape))})" for shape in wanted)
            raise ValueError(
                f"{name} is {tuple(given.shape)}, wanted {shapes}: x (b, L, H, P) is {tuple(x.shape)}; "
                f"reshape {name}, or whichever of the two is wrong."
            )
