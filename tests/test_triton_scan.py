"""The GPU kernels against the definition: in Triton's interpreter everywhere, compiled where there is a GPU."""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")

# The interpreter has to be chosen before triton is imported, so this runs in a process of its own.
IN_THE_INTERPRETER = """
import itertools, torch
from stylemamba.pipeline import triton_scan as engine
from stylemamba.pipeline.selective_scan import selective_scan_ref

engine._CHUNK = 4
g = torch.Generator().manual_seed(0)
rand = lambda *shape: torch.rand(*shape, generator=g, dtype=torch.float64)
randn = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
b, d, n, length = 2, 4, 3, 9

def inputs(dtype, per_sample, B, C, optional):
    own = (b,) if per_sample else ()
    states = {"constant": (d, n), "token": (b, n, length), "grouped": (b, 2, n, length)}
    x = [randn(b, d, length), 5 * rand(b, d, length) ** 3, -16 * rand(*own, d, n) ** 2, randn(*states[B]), randn(*states[C])]
    x += [randn(*own, d), randn(b, d, length), rand(d)] if optional else [None] * 3
    return [t if t is None else t.to(dtype).requires_grad_() for t in x]

def results(scan, x, softplus):
    y, h = scan(*x, softplus)
    return y, h, *torch.autograd.grad(y.square().sum() + h.square().sum(), [t for t in x if t is not None])

def reference(*x):
    return selective_scan_ref(*x, return_last_state=True)

cases = [
    (torch.float64, False, "grouped", "grouped", True, True),
    (torch.float32, True, "grouped", "grouped", True, True),
    (torch.float32, False, "constant", "token", False, False),
    (torch.float32, False, "token", "constant", True, False),
    (torch.bfloat16, False, "token", "token", True, True),
]
for dtype, per_sample, B, C, optional, softplus in cases:
    x = inputs(dtype, per_sample, B, C, optional)
    exact = [t if t is None else t.detach().double().requires_grad_() for t in x]
    limit = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for a, w in zip(results(engine.triton_scan, x, softplus), results(reference, exact, softplus), strict=True):
        assert a.isfinite().all()
        assert (a - w).abs().max() < limit * w.abs().max(), (dtype, B, C, a.shape)

x = inputs(torch.float64, False, "token", "token", True)
x = [t[..., :5].detach().requires_grad_() if t.shape[-1] == length else t for t in x]
assert torch.autograd.gradcheck(lambda *x: engine.triton_scan(*x, True), x, fast_mode=True)

u, delta, A, B, C, D, _, _ = inputs(torch.float32, False, "token", "token", True)
leaves = [u, torch.full_like(u, 5.0).requires_grad_(), torch.full_like(A, -200.0).requires_grad_(), B, C, D]  # exp(-1000) is 0
y, _ = engine.triton_scan(*leaves, None, None, False)
torch.testing.assert_close(y, D[:, None] * u + (C * B).sum(1)[:, None] * 5 * u)
assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum(), leaves))
print("all agree")
"""


def test_in_the_interpreter():
    run = subprocess.run(
        [sys.executable, "-c", IN_THE_INTERPRETER],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.stdout.strip().endswith("all agree"), run.stderr[-3000:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("length", [1, 127, 128, 129, 1000])
@pytest.mark.parametrize("groups", [1, 2])
def test_on_a_gpu(length, groups):
    from stylemamba.pipeline.selective_scan import selective_scan

    torch.manual_seed(0)
    shapes = [(2, 4, length), (2, 4, length), (4, 16), (2, groups, 16, length), (2, groups, 16, length), (4,)]
    leaves = [torch.randn(shape, dtype=torch.float64).cuda().requires_grad_() for shape in shapes]

    def results(dtype, backend):
        u, delta, A, *others = (x.to(dtype) for x in leaves)
        y, h = selective_scan(
            u, delta, -A.exp(), *others, delta_softplus=True, return_last_state=True, backend=backend
        )
        return y, h, *torch.autograd.grad(y.square().sum() + h.square().sum(), leaves)

    for a, b in zip(results(torch.float32, "triton"), results(torch.float64, "torch"), strict=True):
        assert (a - b).abs().max() < 1e-5 * b.abs().max()
