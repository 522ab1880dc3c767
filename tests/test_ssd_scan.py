"""The scan of Mamba-2 against the selective scan with the same decays, against its vector, and against float64."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from stylemamba.pipeline import ssd_scan as scan_module
from stylemamba.pipeline.selective_scan import selective_scan_ref
from stylemamba.pipeline.ssd_scan import ssd_scan

NAMES = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias")

_file = Path(__file__).parent / "vectors" / "loss_vectors.json"
DUALITY = next(case for case in json.loads(_file.read_text())["cases"] if case["id"] == "scan.ssd_duality")


@pytest.fixture(params=["kernel", "products"])
def way(request, monkeypatch):
    """Without gradients the CPU has a kernel; other devices, and machines without numba, have the matrix products."""
    if request.param == "products":
        monkeypatch.setattr(scan_module, "numba_obstacle", lambda: "not for this test")


def random_inputs(batch=2, length=70, heads=4, width=3, groups=2, states=5, dtype=torch.float32, seed=0):
    """One tensor for each of NAMES. Steps reach 5 and decay rates -16; some products underflow."""
    g = torch.Generator().manual_seed(seed)
    rand = partial(torch.rand, generator=g, dtype=torch.float64)
    randn = partial(torch.randn, generator=g, dtype=torch.float64)
    inputs = (
        randn(batch, length, heads, width),
        5 * rand(batch, length, heads) ** 3,
        -16 * rand(heads) ** 2 - 1e-3,
        randn(batch, length, groups, states),
        randn(batch, length, groups, states),
        randn(heads, width),
        randn(batch, length, heads, width),
        rand(heads) / 10,
    )
    return tuple(x.to(dtype) for x in inputs)


def by_selective_scan(x, dt, A, B, C, D, z, dt_bias, dt_softplus):
    """Every channel of a head with the decay of its head, every state with that of its channel."""
    heads, width = x.shape[2:]
    each_channel = partial(torch.repeat_interleave, repeats=width)
    y, h = selective_scan_ref(
        x.flatten(2).mT,
        each_channel(dt, dim=2).mT,
        each_channel(A)[:, None].expand(-1, B.shape[-1]),
        B.permute(0, 2, 3, 1),
        C.permute(0, 2, 3, 1),
        D.flatten(),
        z.flatten(2).mT,
        each_channel(dt_bias),
        dt_softplus,
        return_last_state=True,
    )
    return y.mT.unflatten(2, (heads, width)), h.unflatten(1, (heads, width))


def results_and_gradients(scan, inputs):
    inputs = [x.clone().requires_grad_() for x in inputs]
    y, h = scan(*inputs)
    g = torch.Generator().manual_seed(1)
    weights = [torch.randn(t.shape, generator=g, dtype=torch.float64).to(t.dtype) for t in (y, h)]
    return y.detach(), h.detach(), *torch.autograd.grad((y, h), inputs, weights)


@pytest.mark.usefixtures("way")
def test_vector_duality():
    v = {name: torch.tensor(value, dtype=torch.float64) for name, value in DUALITY["inputs"].items()}
    # The vector has its step in x: a step of -a with A = -1, and x without it.
    step = -v["a"][None, :, None]  # (1, L, H)
    x = v["x"][None, :, None] / step[..., None]  # (1, L, H, P)
    for chunk in (1, 2, 3, 64):
        y = ssd_scan(
            x, step, -torch.ones(1).double(), v["B"][None, :, None], v["C"][None, :, None], chunk=chunk
        )
        torch.testing.assert_close(
            y[0, :, 0],
            torch.tensor(DUALITY["expected"]["y"], dtype=torch.float64),
            rtol=DUALITY["rtol"],
            atol=DUALITY["atol"],
        )


@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("length", [1, 2, 3, 63, 64, 65, 300])
def test_equals_the_selective_scan_in_results_and_gradients(length, softplus):
    wanted = results_and_gradients(
        partial(by_selective_scan, dt_softplus=softplus), random_inputs(length=length, dtype=torch.float64)
    )
    for dtype, limit in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        scan = partial(ssd_scan, dt_softplus=softplus, return_last_state=True)
        got = results_and_gradients(scan, random_inputs(length=length, dtype=dtype))
        for name, a, b in zip(("y", "last state", *NAMES), got, wanted, strict=True):
            assert a.isfinite().all(), name
            assert (a - b).abs().max() < limit * b.abs().max().clamp_min(1e-12), name


@pytest.mark.parametrize(("heads", "width", "groups"), [(2, 100, 1), (3, 64, 3), (1, 7, 1), (4, 65, 2)])
@pytest.mark.parametrize("length", [1, 31, 100])
def test_the_way_without_gradients_gives_the_same(heads, width, groups, length):
    """Heads narrower and wider than what the kernel takes at once; two samples, so that both are reached."""
    inputs = random_inputs(2, length, heads, width, groups, dtype=torch.float64)
    wanted = ssd_scan(*(t.requires_grad_() for t in inputs), dt_softplus=True, return_last_state=True)
    for dtype, limit in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        with torch.no_grad():
            got = ssd_scan(*(t.to(dtype) for t in inputs), dt_softplus=True, return_last_state=True)
        for a, b in zip(got, wanted, strict=True):
            assert a.dtype == dtype and a.shape == b.shape
            assert (a - b).abs().max() < limit * b.abs().max()


@pytest.mark.usefixtures("way")
def test_float32_over_thousands_of_tokens():
    got = ssd_scan(*random_inputs(length=4096), return_last_state=True)
    wanted = ssd_scan(*random_inputs(length=4096, dtype=torch.float64), return_last_state=True)
    for a, b in zip(got, wanted, strict=True):
        assert (a - b).abs().max() < 1e-5 * b.abs().max()


@pytest.mark.usefixtures("way")
def test_small_steps_after_large_ones_keep_their_digits():
    """A running sum of the exponents would be 20000 by the end of the chunk, and then know them to 1e-3 only."""
    x, dt, A, B, C, *_ = random_inputs(length=64, dtype=torch.float64)
    dt[:, :32], dt[:, 32:] = 5.0, 1e-3
    A = torch.full_like(A, -128.0)
    wanted = ssd_scan(x, dt, A, B, C)
    got = ssd_scan(*(t.float() for t in (x, dt, A, B, C)))
    assert (got - wanted)[:, 33:].abs().max() < 1e-6 * wanted[:, 33:].abs().max()


@pytest.mark.parametrize("chunk", [2, 64])
def test_gradcheck(chunk):
    inputs = [
        x.requires_grad_() for x in random_inputs(length=5, heads=2, width=2, states=2, dtype=torch.float64)
    ]
    scan = partial(ssd_scan, dt_softplus=True, chunk=chunk, return_last_state=True)
    assert torch.autograd.gradcheck(scan, inputs)


@pytest.mark.usefixtures("way")
def test_the_chunk_does_not_matter():
    inputs = random_inputs(dtype=torch.float64)
    wanted = ssd_scan(*inputs, return_last_state=True)
    for chunk in (1, 7, 70, 1000):
        for a, b in zip(ssd_scan(*inputs, chunk=chunk, return_last_state=True), wanted, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.usefixtures("way")
def test_causal():
    inputs = random_inputs(length=140)
    y = ssd_scan(*inputs)
    for k in (0, 1, 63, 64, 139):
        changed = [t.clone() for t in inputs]
        for i in (0, 1, 3, 4, 6):  # all that varies over time
            changed[i][:, k] += 1
        moved = ssd_scan(*changed)
        torch.testing.assert_close(moved[:, :k], y[:, :k])
        assert not torch.isclose(moved[:, k], y[:, k]).all()


def test_underflowing_decay_forgets_the_past():
    x, dt, A, B, C, *_ = random_inputs(groups=1)
    leaves = [t.requires_grad_() for t in (x, dt + 5, torch.full_like(A, -200.0), B, C)]  # exp(-1000) is 0
    y = ssd_scan(*leaves)
    torch.testing.assert_close(y, (C * B).sum(3)[..., None] * leaves[1][..., None] * x)
    assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum(), leaves))


@pytest.mark.usefixtures("way")
def test_one_skip_weight_a_head():
    x, dt, A, B, C, *_ = random_inputs()
    D = torch.randn(4)
    torch.testing.assert_close(ssd_scan(x, dt, A, B, C, D), ssd_scan(x, dt, A, B, C) + D[:, None] * x)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_only_the_rounding_of_float32(dtype):
    half = random_inputs(dtype=dtype)
    y, h = ssd_scan(*half, return_last_state=True)
    wanted_y, wanted_h = ssd_scan(*(t.float() for t in half), return_last_state=True)
    assert y.dtype == dtype
    assert torch.equal(y, wanted_y.to(dtype))
    assert torch.equal(h, wanted_h)


@pytest.mark.usefixtures("way")
def test_autocast_does_not_reach_the_scan():
    inputs = random_inputs()
    wanted = ssd_scan(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ssd_scan(*inputs), wanted)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("x", (2, 70, 4), r"x is torch.float32 \(2, 70, 4\), wanted floating point \(b, L, H, P\)"),
        ("dt", (2, 4, 70), r"dt is \(2, 4, 70\), wanted \(2, 70, 4\)"),
        ("A", (4, 5), r"A is \(4, 5\), wanted \(4\)"),
        ("B", (2, 70, 3, 5), r"B is \(2, 70, 3, 5\), wanted \(2, 70, a divisor of 4, 5\)"),
        ("C", (2, 70, 1, 5), r"C is \(2, 70, 1, 5\), wanted \(2, 70, 2, 5\)"),
        ("D", (3,), r"D is \(3,\), wanted \(4\) or \(4, 3\)"),
        ("z", (2, 70, 4), r"z is \(2, 70, 4\), wanted \(2, 70, 4, 3\)"),
        ("dt_bias", (3,), r"dt_bias is \(3,\), wanted \(4\)"),
    ],
)
def test_shapes_that_do_not_fit(name, shape, message):
    inputs = dict(zip(NAMES, random_inputs(), strict=True))
    inputs[name] = torch.ones(shape)
    with pytest.raises(ValueError, match=message):
        ssd_scan(**inputs)


def test_a_chunk_of_nothing():
    with pytest.raises(ValueError, match="chunk is 0, wanted at least 1"):
        ssd_scan(*random_inputs(), chunk=0)
