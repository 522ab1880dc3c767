"""The selective scan, the recurrence at the heart of every state-space model in this package.

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t        y_t = C_t . h_t + D u_t        (times SiLU(z_t))

Responsible for: the definition as a readable loop, checking the inputs, and choosing an engine, which is one row of
`_ENGINES`. Knows nothing of images, directions or modules (`scan_orders.py`, `mamba.py`), nor of how an engine works
inside (`chunked_scan.py`, `numba_scan.py`, `triton_scan.py`).

The letters and shapes are those of `mamba.py`'s glossary. Real A only.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from .chunked_scan import chunked_scan

logger = logging.getLogger(__name__)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Scan `u` along its last axis; differentiable in every tensor, last state included.

    u, delta, z: (B, D, L). A: (D, N), or (B, D, N) for one per sample. B and C: constant (D, N), one per token
    (B, N, L), or one per token and group of channels (B, G, N, L). D: (D,) or (B, D). delta_bias: (D,).
    Computes in float32 (float64 for a float64 `u`) and returns y (B, D, L) in the dtype of `u`, and with
    `return_last_state` also h_L (B, D, N) in the dtype of the computation.

    Raises ValueError for shapes that do not fit together, for a complex A, and for a `backend` that is unknown,
    cannot run on this machine or cannot take these inputs (`auto` takes the fastest that can).
    """
    _check_shapes(u, delta, A, B, C, D, z, delta_bias)
    inputs = (u, delta, A, B, C, D, z, delta_bias)
    engine = _choose_engine(backend, inputs, return_last_state)
    y, last_state = engine.run(*inputs, delta_softplus)
    return (y, last_state) if return_last_state else y


def selective_scan_ref(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The definition of `selective_scan`: one token at a time, gradients by autograd, same arguments and result."""
    _check_shapes(u, delta, A, B, C, D, z, delta_bias)
    dtype = torch.promote_types(u.dtype, torch.float32)
    step = delta.to(dtype) if delta_bias is None else delta.to(dtype) + delta_bias.to(dtype)[:, None]
    step = F.softplus(step) if delta_softplus else step  # (B, D, L)
    A = A.to(dtype)  # (D, N) or (B, D, N)

    h = u.new_zeros(*u.shape[:2], A.shape[-1], dtype=dtype)  # (B, D, N)
    ys = []
    for u_t, step_t, B_t, C_t in zip(
        u.to(dtype).unbind(-1),
        step.unbind(-1),
        _by_token(B.to(dtype), u),
        _by_token(C.to(dtype), u),
        strict=True,
    ):
        h = torch.exp(step_t[..., None] * A) * h + (step_t * u_t)[..., None] * B_t  # (B, D, N)
        ys.append((h * C_t).sum(-1))  # (B, D)
    y = torch.stack(ys, -1)  # (B, D, L)

    if D is not None:
        y = y + D.to(dtype)[..., None] * u
    if z is not None:
        y = y * F.silu(z.to(dtype))
    y = y.to(u.dtype)
    return (y, h) if return_last_state else y


def _by_token(x: Tensor, u: Tensor) -> Iterable[Tensor]:
    """B or C of each token, one row per channel: (D, N) or (B, D, N)."""
    if x.dim() == 2:
        return [x] * u.shape[-1]
    x = x[:, None] if x.dim() == 3 else x  # (B, G, N, L)
    return (x_t.repeat_interleave(u.shape[1] // x.shape[1], 1) for x_t in x.unbind(-1))


def scan_backends() -> dict[str, bool]:
    """Which engines can run on this machine, by name, slowest first."""
    return {name: engine.obstacle() == "" for name, engine in _ENGINES.items()}


def scan_backend_reasons() -> dict[str, str]:
    """For each engine what it is good for, or why it cannot run on this machine and what would help."""
    return {name: engine.obstacle() or engine.purpose for name, engine in _ENGINES.items()}


@cache
def numba_obstacle() -> str:
    """A small scan and its gradients show whether numba works here; this also compiles its kernels."""
    try:
        from .numba_scan import numba_scan

        # ComfyUI asks under inference_mode, where nothing that is made can have a gradient.
        with torch.inference_mode(False), torch.enable_grad():
            u = torch.ones(1, 1, 2, device="cpu").requires_grad_()
            y, _ = numba_scan(u, u, -u[0, :, :1], u, u, None, None, None, True)
            y.sum().backward()
        return ""
    except ImportError as error:
        obstacle = f"numba cannot be imported ({error}); pip install numba"
    except Exception as error:  # a compiler can break in many ways, none of them our caller's
        obstacle = f"numba does not work here: {type(error).__name__}: {str(error).strip().splitlines()[0]}"
    logger.warning("On the CPU selective scans run in plain torch, several times slower: %s.", obstacle)
    return obstacle


def _run_numba(*inputs: Tensor | bool | None) -> tuple[Tensor, Tensor]:
    from .numba_scan import numba_scan

    return numba_scan(*inputs)


def _triton_obstacle() -> str:
    if not torch.cuda.is_available():
        return "no GPU of NVIDIA or AMD is visible to torch"
    return "" if find_spec("triton") else "triton is not installed; pip install triton"


def _run_triton(*inputs: Tensor | bool | None) -> tuple[Tensor, Tensor]:
    from .triton_scan import triton_scan

    return triton_scan(*inputs)


@cache
def _mamba_ssm_scan() -> Callable | None:
    """mamba-ssm's `selective_scan_fn`, or None where its CUDA kernel is missing (the package imports without it)."""
    try:
        from mamba_ssm.ops import selective_scan_interface as interface
    except Exception:  # an extension built for another torch fails in many ways, none of them our caller's
        return None
    return interface.selective_scan_fn if getattr(interface, "selective_scan_cuda", None) else None


def _mamba_ssm_obstacle() -> str:
    if not torch.cuda.is_available():
        return "no GPU of NVIDIA or AMD is visible to torch"
    return (
        "" if _mamba_ssm_scan() else 'mamba-ssm or its CUDA kernel is missing; pip install "stylemamba[cuda]"'
    )


def _run_mamba_ssm(
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
    # The kernel wants one dtype for all that varies over time, and float32 for all that does not.
    dtypes = {x.dtype for x in (u, delta, B, C, z) if x is not None and x.dim() > 2}
    varying = u.dtype if len(dtypes) == 1 else torch.float32
    inputs = (
        x if x is None else x.to(varying if x.dim() > 2 else torch.float32)
        for x in (u, delta, A, B, C, D, z, delta_bias)
    )
    y, last_state = _mamba_ssm_scan()(*inputs, delta_softplus, return_last_state=True)
    return y.to(u.dtype), last_state


def _fits_mamba_ssm(inputs: tuple[Tensor | None, ...], return_last_state: bool) -> bool:
    u, _, A, _, _, D, _, _ = inputs
    shared = A.dim() == 2 and (D is None or D.dim() == 1)
    # The kernel drops the gradient of the last state.
    training = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    return u.is_cuda and u.dtype != torch.float64 and shared and not (return_last_state and training)


@dataclass(frozen=True)
class _Engine:
    """`run(u, delta, A, B, C, D, z, delta_bias, delta_softplus) -> (y, last_state)`, on inputs already checked.

    `obstacle()`: why it cannot run on this machine, or ""; `fits(inputs, return_last_state)`: whether it takes these
    inputs.
    """

    run: Callable[..., tuple[Tensor, Tensor]]
    purpose: str = ""
    obstacle: Callable[[], str] = lambda: ""
    fits: Callable[[tuple[Tensor | None, ...], bool], bool] = lambda inputs, return_last_state: True


# Slowest first: `auto` takes the last one that fits and has no obstacle.
_ENGINES: dict[str, _Engine] = {
    "ref": _Engine(
        partial(selective_scan_ref, return_last_state=True), "the definition, for checks; any device"
    ),
    "torch": _Engine(chunked_scan, "any device; needs nothing"),
    "numba": _Engine(
        _run_numba,
        "tensors on the CPU",
        obstacle=numba_obstacle,
        fits=lambda inputs, return_last_state: inputs[0].device.type == "cpu",
    ),
    "triton": _Engine(
        _run_triton,
        "tensors on a GPU",
        obstacle=_triton_obstacle,
        fits=lambda inputs, return_last_state: inputs[0].is_cuda,
    ),
    "mamba_ssm": _Engine(
        _run_mamba_ssm,
        "tensors on a GPU, where A and D are the same for all samples",
        obstacle=_mamba_ssm_obstacle,
        fits=_fits_mamba_ssm,
    ),
}


def _choose_engine(backend: str, inputs: tuple[Tensor | None, ...], return_last_state: bool) -> _Engine:
    if backend == "auto":
        engines = reversed(_ENGINES.values())
        return next(e for e in engines if e.fits(inputs, return_last_state) and not e.obstacle())

    if backend not in _ENGINES:
        names = ", ".join(name for name, can_run in scan_backends().items() if can_run)
        raise ValueError(f"backend {backend!r} is unknown; use 'auto' or one of {names}.")
    engine = _ENGINES[backend]
    if obstacle := engine.obstacle():
        raise ValueError(
            f"backend {backend!r} cannot run on this machine: {obstacle}; or use backend='auto'."
        )
    if not engine.fits(inputs, return_last_state):
        u, _, A, *_ = inputs
        raise ValueError(
            f"backend {backend!r} does not take these inputs: {u.dtype} on {u.device}, A {tuple(A.shape)}, "
            f"return_last_state={return_last_state}; use backend='auto'."
        )
    return engine


def _check_shapes(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    if u.dim() != 3 or 0 in u.shape or not u.is_floating_point():
        raise ValueError(
            f"u is {u.dtype} {tuple(u.shape)}, wanted floating point (B, D, L) without an empty axis; "
            "channels come before tokens: tokens.transpose(1, 2)."
        )
    if A.is_complex():
        raise ValueError("A is complex, wanted real: complex states are not supported; pass A.real.")
    batch, channels, length = u.shape
    n = A.shape[-1] if A.dim() else 0

    def states(x: Tensor) -> list[tuple]:
        fitting = x.dim() == 4 and x.shape[1] > 0 and channels % x.shape[1] == 0
        groups = x.shape[1] if fitting else f"a divisor of {channels}"
        return [(channels, n), (batch, n, length), (batch, groups, n, length)]

    for name, x, wanted in [
        ("delta", delta, [(batch, channels, length)]),
        ("A", A, [(channels, n), (batch, channels, n)]),
        ("B", B, states(B)),
        ("C", C, states(C)),
        ("D", D, [(channels,), (batch, channels)]),
        ("z", z, [(batch, channels, length)]),
        ("delta_bias", delta_bias, [(channels,)]),
    ]:
        if x is not None and tuple(x.shape) not in wanted:
            shapes = " or ".join(f"({', '.join(map(str, shape))})" for shape in wanted)
            raise ValueError(
                f"{name} is {tuple(x.shape)}, wanted {shapes}: u (B, D, L) is {tuple(u.shape)} and A has N = {n}; "
                f"reshape {name}, or whichever of the three is wrong."
            )
