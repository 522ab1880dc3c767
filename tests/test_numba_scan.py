"""What is particular to the compiled engine; that it agrees with the others is tested in `test_selective_scan.py`."""

import math
import multiprocessing
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

pytest.importorskip("numba")

import numba
import numpy as np

from stylemamba.pipeline import numba_kernels, simd_math
from stylemamba.pipeline.numba_scan import numba_scan
from stylemamba.pipeline.selective_scan import selective_scan_ref


def inputs(batch=2, channels=6, length=150, states=16, dtype=torch.float32, groups=1):
    g = torch.Generator().manual_seed(0)
    rand = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_()  # noqa: E731
    return [
        rand(batch, channels, length),
        rand(batch, channels, length),
        rand(channels, states),
        rand(batch, groups, states, length),
        rand(batch, groups, states, length),
        rand(channels),
        rand(batch, channels, length),
        rand(channels),
    ]


def run(tensors):
    """y, last state and all gradients; A is made negative here."""
    u, delta, A, *others = tensors
    y, h = numba_scan(u, delta, -A.abs(), *others, True)
    return y, h, *torch.autograd.grad(y.square().sum() + h.square().sum(), tensors)


@pytest.mark.parametrize(("channels", "groups"), [(150, 2), (130, 1), (12, 12), (66, 1)])
@pytest.mark.parametrize("tokens_first", [False, True])
def test_rounds_of_channels_end_with_their_group(channels, groups, tokens_first):
    u, delta, A, B, C, D, z, bias = (
        x.detach().double() for x in inputs(channels=channels, states=3, length=130, groups=groups)
    )
    if tokens_first:
        u, delta = (x.mT.contiguous().mT for x in (u, delta))
    arguments = (u, delta, -A.abs(), B, C, D, z, bias, True)
    wanted = selective_scan_ref(*arguments, return_last_state=True)
    for got, exact in zip(numba_scan(*arguments), wanted, strict=True):
        torch.testing.assert_close(got, exact)


@numba.njit
def exp2_of_all(x, out):
    for i in range(len(x)):
        out[i] = simd_math.exp2(x[i])


@numba.njit
def log1p_of_all(x, out):
    for i in range(len(x)):
        out[i] = simd_math.log1p(x[i])


def test_exponential_is_exact_to_float32():
    x = np.concatenate([np.linspace(-126, 127, 200_001), np.linspace(-1e-3, 1e-3, 10_001)]).astype(np.float32)
    out = np.empty_like(x)
    exp2_of_all(x, out)
    exact = np.exp2(x.astype(np.float64))
    assert np.abs(out / exact - 1).max() < 1e-7


def test_exponential_at_the_ends():
    x = np.array([0, -127, -1000, -np.inf, 128, 1000, np.inf, np.nan], np.float32)
    out = np.empty_like(x)
    exp2_of_all(x, out)
    np.testing.assert_array_equal(out, np.array([1, 0, 0, 0, np.inf, np.inf, np.inf, np.nan], np.float32))


def test_logarithm_is_exact_to_float32():
    x = np.concatenate([np.linspace(0, 1, 100_001)[1:], np.logspace(-30, 0, 10_001)]).astype(np.float32)
    out = np.empty_like(x)
    log1p_of_all(x, out)
    assert np.abs(out / np.log1p(x.astype(np.float64)) - 1).max() < 2.5e-7


@pytest.mark.parametrize("name", range(5))
def test_nan_is_not_hidden(name):
    tensors = [x.detach() for x in inputs(batch=1, channels=1)]
    tensors[name].view(-1)[0] = math.nan
    y, _ = numba_scan(*tensors, True)
    assert y[0, 0, 0].isnan()


@pytest.mark.parametrize("states", [1, 16, 17, 40])
def test_any_number_of_states(states):
    got = run(inputs(states=states))
    wanted = run(inputs(states=states, dtype=torch.float64))
    for a, b in zip(got, wanted, strict=True):
        assert (a - b).abs().max() < 1e-5 * b.abs().max()


@pytest.mark.parametrize("channels", [1, 16, 21])
def test_both_layouts_are_taken(channels):
    """(B, D, L) in memory, and (B, L, D) as a mixer has it; y comes back the way u came."""
    plain = inputs(channels=channels)
    flipped = [x.detach().mT.contiguous().mT.requires_grad_() if x.dim() == 3 else x for x in plain]
    got, wanted = run(flipped), run(plain)
    assert channels == 1 or got[0].stride() == flipped[0].stride()
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * b.abs().max().item())


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("groups", [1, 3])
def test_threads_share_the_work_but_not_the_result(batch, groups, monkeypatch):
    tensors = inputs(batch=batch, length=1500, groups=groups)
    alone = run(tensors)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr("stylemamba.pipeline.numba_scan._STATES_A_THREAD", 1)
    together, again = run(tensors), run(tensors)
    assert torch.equal(alone[0], together[0])
    for a, b, c in zip(alone, together, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * a.abs().max().item())
        assert torch.equal(b, c)


def test_called_from_many_threads():
    tensors = inputs()
    wanted = run(tensors)
    with ThreadPoolExecutor(8) as pool:
        for got in pool.map(lambda _: run(tensors), range(16)):
            assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.skipif(sys.platform != "linux", reason="fork is a habit of Linux")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_survives_a_fork(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr("stylemamba.pipeline.numba_scan._STATES_A_THREAD", 1)
    tensors = [x.detach() for x in inputs()]
    wanted, _ = numba_scan(*tensors, True)
    context = multiprocessing.get_context("fork")
    result = context.SimpleQueue()
    child = context.Process(target=lambda: result.put(numba_scan(*tensors, True)[0].numpy().tobytes()))
    child.start()
    assert result.get() == wanted.numpy().tobytes()
    child.join(timeout=30)
    assert child.exitcode == 0


def test_nowhere_to_keep_the_compiled_kernels(tmp_path):
    """As in a read-only installation without a home: the module imports all the same."""
    (tmp_path / "elsewhere").mkdir()
    for module in (numba_kernels, simd_math):
        shutil.copy(module.__file__, tmp_path / "elsewhere")
    program = f"""
import sys; sys.path.insert(0, {str(tmp_path)!r})
from numba.core import caching
caching.CacheImpl._locator_classes = []
from elsewhere import numba_kernels
assert callable(numba_kernels.scan)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_numba_is_found_under_inference_mode():
    """ComfyUI's first question comes from there, and the answer is kept."""
    from stylemamba.pipeline.selective_scan import numba_obstacle

    outside = numba_obstacle.__wrapped__()
    with torch.inference_mode():
        assert numba_obstacle.__wrapped__() == outside
