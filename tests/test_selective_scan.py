"""Every engine of the selective scan against the recurrence written out, against the vectors, and against float64."""

import json
import math
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import profile

from stylemamba.pipeline import selective_scan as scan_module
from stylemamba.pipeline.selective_scan import (
    scan_backend_reasons,
    scan_backends,
    selective_scan,
    selective_scan_ref,
)

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
# On a CPU mamba_ssm takes no input, so it is not among them even where it is installed.
BACKENDS = [name for name, can_run in scan_backends().items() if can_run and name != "mamba_ssm"]

CHUNKS = {"torch": 160, "numba": 320}  # two and a half
COMPILED_OR_CHUNKED = [name for name in BACKENDS if name in CHUNKS]

_file = Path(__file__).parent / "vectors" / "loss_vectors.json"
VECTORS = {
    case["id"]: case for case in json.loads(_file.read_text())["cases"] if case["id"].startswith("scan.")
}

each_backend = pytest.mark.parametrize("backend", BACKENDS)


def vector(name):
    case = VECTORS[name]
    inputs = {key: torch.tensor(value, dtype=torch.float64) for key, value in case["inputs"].items()}
    expected = {key: torch.tensor(value, dtype=torch.float64) for key, value in case["expected"].items()}
    close = partial(torch.testing.assert_close, rtol=case["rtol"], atol=case["atol"])
    return inputs, expected, close


def random_inputs(
    batch=2, channels=4, length=70, states=3, groups=2, per_sample=False, dtype=torch.float32, seed=0
):
    """One tensor for each of NAMES. Steps reach 5 and decay rates -16; some products underflow."""
    g = torch.Generator().manual_seed(seed)
    rand = partial(torch.rand, generator=g, dtype=torch.float64)
    randn = partial(torch.randn, generator=g, dtype=torch.float64)
    own = (batch,) if per_sample else ()
    inputs = (
        randn(batch, channels, length),
        5 * rand(batch, channels, length) ** 3,
        -16 * rand(*own, channels, states) ** 2 - 1e-3,
        randn(batch, groups, states, length),
        randn(batch, groups, states, length),
        randn(*own, channels),
        randn(batch, channels, length),
        rand(channels) / 10,
    )
    return tuple(x.to(dtype) for x in inputs)


def written_out(u, delta, A, B, C, D, z, delta_bias, delta_softplus):
    """The equations with one loop per index, for per-sample A and D and grouped B and C."""
    batch, channels, length = u.shape
    states = A.shape[-1]
    y, last = torch.zeros_like(u), u.new_zeros(batch, channels, states)
    for b in range(batch):
        for d in range(channels):
            group = d // (channels // B.shape[1])
            h = [0.0] * states
            for t in range(length):
                step = (delta[b, d, t] + delta_bias[d]).item()
                step = math.log1p(math.exp(step)) if delta_softplus else step
                out = (D[b, d] * u[b, d, t]).item()
                for n in range(states):
                    decay = math.exp(step * A[b, d, n].item())
                    h[n] = decay * h[n] + step * (B[b, group, n, t] * u[b, d, t]).item()
                    out += C[b, group, n, t].item() * h[n]
                gate = z[b, d, t].item()
                y[b, d, t] = out * gate / (1 + math.exp(-gate))
            last[b, d] = torch.tensor(h)
    return y, last


def results_and_gradients(inputs, backend, **options):
    """y, last state and the gradient of a random functional of both with respect to every input."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    y, last = selective_scan(*inputs, return_last_state=True, backend=backend, **options)
    g = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=g, dtype=torch.float64).to(x.dtype) for x in (y, last)]
    return y.detach(), last.detach(), *torch.autograd.grad((y, last), inputs, weights)


def relative_error(got, wanted):
    return ((got.double() - wanted.double()).abs().max() / wanted.abs().max().clamp_min(1e-12)).item()


# The vectors


@each_backend
def test_vector_by_hand(backend):
    inputs, expected, close = vector("scan.hand")
    y, last = selective_scan(**inputs, return_last_state=True, backend=backend)
    close(y, expected["y"])
    close(last, expected["last_state"])


@each_backend
def test_vector_grouped_softplus_gate(backend):
    inputs, expected, close = vector("scan.grouped_softplus_gate")
    y, last = selective_scan(**inputs, delta_softplus=True, return_last_state=True, backend=backend)
    close(y, expected["y"])
    close(last, expected["last_state"])


@each_backend
def test_vector_per_sample_A_D(backend):
    inputs, expected, close = vector("scan.s7_per_sample_A_D")
    y, last = selective_scan(**inputs, return_last_state=True, backend=backend)
    close(y, expected["y"])
    close(last, expected["last_state"])


@each_backend
def test_vector_style_and_content_streams(backend):
    v, expected, close = vector("scan.mstd")
    scan = partial(
        selective_scan, delta=v["delta_style"], A=v["A"], B=v["B_style"], D=v["D"], backend=backend
    )
    close(scan(v["u_style"], C=v["C_content"]), expected["mamba_st"])
    close(scan(v["u_style"], C=v["C_style"]), expected["single_stream_style_C"])
    close(scan(v["u_content"], C=v["C_content"]), expected["tgstm_u_from_content"])


@each_backend
def test_vector_ssd_duality(backend):
    v, expected, close = vector("scan.ssd_duality")
    # A scalar log-decay a per token is delta = -a with A = -1; x has its delta in it, u does not.
    delta = -v["a"].expand(3, 4)[None]  # (1, D, L)
    y = selective_scan(
        v["x"].T[None] / delta,
        delta,
        -torch.ones(3, 2).double(),
        v["B"].T[None],
        v["C"].T[None],
        backend=backend,
    )
    close(y[0].T, expected["y"])


@each_backend
@pytest.mark.parametrize("softplus", [False, True])
def test_equals_the_equations_written_out(backend, softplus):
    inputs = random_inputs(length=5, per_sample=True, dtype=torch.float64)
    y, last = selective_scan(*inputs, delta_softplus=softplus, return_last_state=True, backend=backend)
    expected_y, expected_last = written_out(*inputs, delta_softplus=softplus)
    torch.testing.assert_close(y, expected_y)
    torch.testing.assert_close(last, expected_last)


# Engines against the float64 reference


@each_backend
@pytest.mark.parametrize("length", [1, 2, 3, 63, 64, 65, 1000, 4096])
def test_float32_agrees_with_float64(backend, length):
    if backend == "ref" and length > 65:
        pytest.skip("the loop is the same for every length")
    got = results_and_gradients(random_inputs(length=length), backend)
    wanted = results_and_gradients(random_inputs(length=length, dtype=torch.float64), "ref")
    for name, a, b in zip(("y", "last state", *NAMES), got, wanted, strict=True):
        assert a.isfinite().all(), name
        assert relative_error(a, b) < 1e-5, name


@pytest.mark.parametrize("engine", COMPILED_OR_CHUNKED)
def test_float32_agrees_with_float64_over_two_chunks_and_a_half(engine):
    """Every way to give B and C, with and without the optional inputs."""
    full = random_inputs(length=CHUNKS[engine], groups=2, dtype=torch.float64)
    constant, per_token = full[3][0, :, :, :2].permute(0, 2, 1).reshape(4, 3), full[3][:, 0]
    for B in (constant, per_token, full[3]):
        for C in (constant, per_token, full[4]):
            for optional in (full[5:], (None, None, None), (None, full[6], None), (full[5], None, full[7])):
                inputs = (*full[:3], B, C, *optional)
                present = {name: x for name, x in zip(NAMES, inputs, strict=True) if x is not None}

                def run(backend, dtype, present=present):
                    tensors = {k: x.to(dtype, copy=True).requires_grad_() for k, x in present.items()}
                    y, last = selective_scan(
                        **tensors, delta_softplus=True, return_last_state=True, backend=backend
                    )
                    return torch.autograd.grad(
                        y.square().sum() + last.square().sum(), list(tensors.values())
                    ), y

                got, y = run(engine, torch.float32)
                wanted, expected_y = run("torch", torch.float64)
                assert relative_error(y, expected_y) < 1e-5
                for name, a, b in zip(present, got, wanted, strict=True):
                    assert a.shape == b.shape
                    assert relative_error(a, b) < 1e-5, (name, B.shape, C.shape)


@each_backend
@pytest.mark.parametrize("per_sample", [False, True])
def test_gradcheck(backend, per_sample):
    inputs = random_inputs(
        channels=2, length=5, states=2, groups=1, per_sample=per_sample, dtype=torch.float64
    )
    inputs = [x.requires_grad_() for x in inputs]
    scan = partial(selective_scan, delta_softplus=True, return_last_state=True, backend=backend)
    assert torch.autograd.gradcheck(scan, inputs)


@pytest.mark.parametrize("engine", COMPILED_OR_CHUNKED)
def test_gradcheck_across_chunks(engine):
    inputs = random_inputs(
        batch=1, channels=1, length=CHUNKS[engine], states=1, groups=1, dtype=torch.float64
    )
    inputs = [x.requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(partial(selective_scan, backend=engine), inputs, fast_mode=True)


@each_backend
def test_gradient_of_one_input_needs_no_other(backend):
    inputs = [x.requires_grad_() for x in random_inputs(dtype=torch.float64)]
    everything = torch.autograd.grad(selective_scan(*inputs, backend=backend).square().sum(), inputs)
    for i, expected in enumerate(everything):
        alone = [x.detach().requires_grad_(j == i) for j, x in enumerate(inputs)]
        y = selective_scan(*alone, backend=backend)
        torch.testing.assert_close(torch.autograd.grad(y.square().sum(), alone[i])[0], expected)


# Properties


@each_backend
def test_causal_bit_for_bit(backend):
    inputs = random_inputs(length=140)
    y = selective_scan(*inputs, backend=backend)
    for k in (0, 1, 63, 64, 100, 139):
        changed = [x.clone() for x in inputs]
        for i in (0, 1, 3, 4, 6):  # all that varies over time
            changed[i][..., k] += 1
        moved = selective_scan(*changed, backend=backend)
        assert torch.equal(moved[..., :k], y[..., :k])
        assert not torch.equal(moved[..., k], y[..., k])


@each_backend
def test_without_reading_the_state_only_the_skip_is_left(backend):
    u, delta, A, B, C, D, _, _ = random_inputs()
    y = selective_scan(u, delta, A, B, torch.zeros_like(C), D, backend=backend)
    assert torch.equal(y, D[:, None] * u)


@each_backend
def test_underflowing_decay_forgets_the_past(backend):
    u, delta, A, B, C, D, _, _ = random_inputs(groups=1)
    delta, A = delta + 5, torch.full_like(A, -200.0)  # exp(-1000) is 0 in float32
    leaves = [x.requires_grad_() for x in (u, delta, A, B, C, D)]
    y = selective_scan(*leaves, backend=backend)
    torch.testing.assert_close(y, D[:, None] * u + (C * B).sum(2) * delta * u)
    assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum(), leaves))


@each_backend
def test_batch_equals_its_samples(backend):
    inputs = random_inputs(batch=3, per_sample=True)
    together = selective_scan(*inputs, backend=backend)
    for i in range(3):
        alone = [x if name == "delta_bias" else x[i : i + 1] for name, x in zip(NAMES, inputs, strict=True)]
        torch.testing.assert_close(together[i : i + 1], selective_scan(*alone, backend=backend))


@each_backend
def test_chained_halves_equal_the_whole(backend):
    """A state of the first half that is read by nobody else carries all there is to know of it."""
    u, delta, A, B, C, D, _, _ = random_inputs(length=130, groups=1, dtype=torch.float64)
    whole, last = selective_scan(u, delta, A, B, C, D, return_last_state=True, backend=backend)
    _, middle = selective_scan(
        u[..., :65], delta[..., :65], A, B[..., :65], C[..., :65], return_last_state=True, backend=backend
    )
    second, rest = selective_scan(
        u[..., 65:], delta[..., 65:], A, B[..., 65:], C[..., 65:], D, return_last_state=True, backend=backend
    )
    carried = (
        torch.exp(delta[..., 65:].cumsum(-1)[..., None] * A[:, None]) * middle[:, :, None]
    )  # (B, D, L/2, N)
    echo = torch.einsum("bdln,bnl->bdl", carried, C[:, 0, :, 65:])
    torch.testing.assert_close(whole[..., 65:], second + echo)
    torch.testing.assert_close(last, rest + carried[:, :, -1])


def peak_of_memory(function):
    """(bytes at the peak, bytes still held at the end), as torch's allocator saw it."""
    with profile(profile_memory=True) as record:
        kept = function()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    held, peak = 0, 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    assert kept is not None
    return peak, held


@pytest.mark.parametrize("training", [False, True])
def test_memory_is_bounded_by_the_chunk(training):
    def working_memory(length):
        inputs = [x.requires_grad_() for x in random_inputs(1, 16, length, 16, groups=1)]

        def run():
            with torch.set_grad_enabled(training):
                y = selective_scan(*inputs, delta_softplus=True, backend="torch")
            return torch.autograd.grad(y, inputs, y.detach()) if training else y

        run()
        peak, held = peak_of_memory(run)
        assert peak > held > 0
        # y, which a training step has released by now, is an output too.
        return peak - held - (4 * 16 * length if training else 0)

    chunk = 65 * 16 * 16 * 4
    assert working_memory(1024) < 6 * chunk
    # Training keeps one state per chunk, inference nothing.
    assert working_memory(2048) < (1.2 if training else 1.01) * working_memory(1024)


# Dtypes and modes


@each_backend
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_only_the_rounding_of_float32(backend, dtype):
    half = random_inputs(dtype=dtype)
    got = results_and_gradients(half, backend)
    wanted = results_and_gradients([x.float() for x in half], backend)
    assert got[0].dtype == dtype
    assert got[1].dtype == torch.float32
    torch.testing.assert_close(got[1], wanted[1])
    for name, x, a, b in zip(
        ("y", *NAMES), (half[0], *half), (got[0], *got[2:]), (wanted[0], *wanted[2:]), strict=True
    ):
        assert a.dtype == x.dtype
        assert relative_error(a, b) < (2e-2 if dtype == torch.bfloat16 else 3e-3), name


@each_backend
def test_parameters_may_stay_in_float32(backend):
    u, delta, A, B, C, D, z, bias = random_inputs()
    half = [x.bfloat16() for x in (u, delta, B, C, z)]
    y = selective_scan(half[0], half[1], A, half[2], half[3], D, half[4], bias, backend=backend)
    full = [x.float() for x in half]
    wanted = selective_scan(full[0], full[1], A, full[2], full[3], D, full[4], bias, backend=backend)
    assert torch.equal(y, wanted.bfloat16())


@each_backend
def test_autocast_does_not_reach_the_scan(backend):
    inputs = random_inputs()
    wanted = results_and_gradients(inputs, backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = results_and_gradients(inputs, backend)
    for a, b in zip(got, wanted, strict=True):
        assert torch.equal(a, b)


@each_backend
def test_no_grad_and_inference_mode(backend):
    inputs = [x.requires_grad_() for x in random_inputs()]
    wanted = selective_scan(*inputs, backend=backend)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y = selective_scan(*inputs, backend=backend)
        assert not y.requires_grad
        assert torch.equal(y, wanted)


@each_backend
def test_strided_inputs(backend):
    inputs = random_inputs()
    strided = [x.transpose(0, -1).contiguous().transpose(0, -1) for x in inputs]
    expanded = [x[:1].expand_as(x) for x in inputs]
    for views in (strided, expanded):
        y = selective_scan(*views, backend=backend)
        torch.testing.assert_close(y, selective_scan(*(x.contiguous() for x in views), backend=backend))


@each_backend
def test_inputs_are_left_alone(backend):
    inputs = [x.requires_grad_() for x in random_inputs()]
    before = [x.detach().clone() for x in inputs]
    y = selective_scan(*inputs, delta_softplus=True, backend=backend)
    first = torch.autograd.grad(y.sum(), inputs, retain_graph=True)
    second = torch.autograd.grad(y.sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# Choosing an engine


def test_scan_backends():
    backends = scan_backends()
    assert list(backends) == ["ref", "torch", "numba", "triton", "mamba_ssm"]
    assert backends["ref"] and backends["torch"]
    assert all(type(can_run) is bool for can_run in backends.values())


def test_every_backend_says_why():
    reasons = scan_backend_reasons()
    assert list(reasons) == list(scan_backends())
    assert all(reasons.values())
    if not torch.cuda.is_available():
        assert reasons["triton"] == reasons["mamba_ssm"] == "no GPU of NVIDIA or AMD is visible to torch"


def test_auto_is_the_fastest_that_fits(monkeypatch):
    inputs = random_inputs()
    calls = []

    def engine(name, fits=True, obstacle=""):
        run = lambda *args: (calls.append(name), selective_scan_ref(*args, return_last_state=True))[1]  # noqa: E731
        return scan_module._Engine(
            run, obstacle=lambda: obstacle, fits=lambda inputs, return_last_state: fits
        )

    engines = {
        "slow": engine("slow"),
        "fast": engine("fast"),
        "picky": engine("picky", fits=False),
        "broken": engine("broken", obstacle="its compiler is missing; install it"),
    }
    monkeypatch.setattr(scan_module, "_ENGINES", engines)
    selective_scan(*inputs)
    selective_scan(*inputs, backend="slow")
    assert calls == ["fast", "slow"]
    assert scan_backends() == {"slow": True, "fast": True, "picky": True, "broken": False}
    with pytest.raises(ValueError, match="'picky' does not take these inputs.*use backend='auto'"):
        selective_scan(*inputs, backend="picky")
    with pytest.raises(
        ValueError, match="'broken' cannot run on this machine: its compiler is missing; inst"
    ):
        selective_scan(*inputs, backend="broken")


@pytest.mark.parametrize("way", ["absent", "broken"])
def test_without_numba_the_scan_runs_in_torch_and_says_so_once(way, monkeypatch, caplog):
    def numba_scan(*inputs):
        raise RuntimeError("LLVM is of another version")

    broken = ModuleType("stylemamba.pipeline.numba_scan")
    broken.numba_scan = numba_scan
    monkeypatch.setitem(sys.modules, broken.__name__, None if way == "absent" else broken)
    scan_module.numba_obstacle.cache_clear()
    try:
        inputs = random_inputs()
        for _ in range(2):
            y = selective_scan(*inputs)
        assert torch.equal(y, selective_scan(*inputs, backend="torch"))
        assert not scan_backends()["numba"]
        wanted = "pip install numba" if way == "absent" else "RuntimeError: LLVM is of another version"
        assert wanted in scan_backend_reasons()["numba"]
        assert len(caplog.records) == 1
        assert wanted in caplog.text
    finally:
        scan_module.numba_obstacle.cache_clear()


def test_unknown_backend():
    with pytest.raises(ValueError, match="'cuda' is unknown; use 'auto' or one of ref, torch"):
        selective_scan(*random_inputs(), backend="cuda")


def test_mamba_ssm_gets_the_dtypes_its_kernel_wants(monkeypatch):
    seen = []

    def kernel(*inputs, return_last_state):
        seen.append([x.dtype for x in inputs[:8]])
        return selective_scan_ref(*inputs, return_last_state=return_last_state)

    monkeypatch.setattr(scan_module, "_mamba_ssm_scan", lambda: kernel)
    inputs = random_inputs(dtype=torch.bfloat16)
    y, last = scan_module._run_mamba_ssm(*inputs, True)
    assert y.dtype == torch.bfloat16
    assert last.dtype == torch.float32
    scan_module._run_mamba_ssm(inputs[0], inputs[1].float(), *inputs[2:], True)
    half, full = torch.bfloat16, torch.float32
    assert seen == [[half, half, full, half, half, full, half, full], [full] * 8]


def test_mamba_ssm_is_for_shared_parameters_on_cuda():
    assert not scan_module._fits_mamba_ssm(random_inputs(), False)
    if torch.cuda.is_available():
        on_gpu = [x.cuda() for x in random_inputs()]
        per_sample = [x.cuda() for x in random_inputs(per_sample=True)]
        assert scan_module._fits_mamba_ssm(on_gpu, True)
        assert not scan_module._fits_mamba_ssm(per_sample, True)
        assert not scan_module._fits_mamba_ssm([x.double() for x in on_gpu], True)
        assert not scan_module._fits_mamba_ssm([x.requires_grad_() for x in on_gpu], True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("backend", [name for name, can_run in scan_backends().items() if can_run])
def test_on_a_gpu(backend):
    inputs = random_inputs(length=200)
    u, *gradients = results_and_gradients([x.cuda() for x in inputs], "torch" if backend == "ref" else "auto")
    y = selective_scan(*(x.cuda() for x in inputs), backend=backend)
    wanted = results_and_gradients([x.double() for x in inputs], "ref")
    assert relative_error(y.cpu(), wanted[0]) < 1e-5
    for a, b in zip((u, *gradients), wanted, strict=True):
        assert relative_error(a.cpu(), b) < 1e-5


# Errors


@pytest.mark.parametrize("scan", [selective_scan, selective_scan_ref])
@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("u", (2, 70), r"u is torch.float32 \(2, 70\), wanted floating point \(B, D, L\)"),
        ("u", (2, 4, 0), "without an empty axis"),
        ("delta", (2, 70, 4), r"delta is \(2, 70, 4\), wanted \(2, 4, 70\)"),
        ("A", (5, 3), r"A is \(5, 3\), wanted \(4, 3\) or \(2, 4, 3\)"),
        ("A", (), r"A is \(\), wanted"),
        (
            "B",
            (2, 3, 3, 70),
            r"B is \(2, 3, 3, 70\), wanted \(4, 3\) or \(2, 3, 70\) or \(2, a divisor of 4, 3, 70\)",
        ),
        ("B", (2, 0, 3, 70), "a divisor of 4"),
        ("C", (2, 4, 70), r"C is \(2, 4, 70\), wanted .* A has N = 3"),
        ("D", (3,), r"D is \(3,\), wanted \(4\) or \(2, 4\)"),
        ("z", (2, 4, 69), r"z is \(2, 4, 69\), wanted \(2, 4, 70\)"),
        ("delta_bias", (2, 4), r"delta_bias is \(2, 4\), wanted \(4\)"),
    ],
)
def test_shapes_that_do_not_fit(scan, name, shape, message):
    inputs = dict(zip(NAMES, random_inputs(), strict=True))
    inputs[name] = torch.ones(shape)
    with pytest.raises(ValueError, match=message):
        scan(**inputs)


def test_complex_A():
    u, delta, A, B, C, *_ = random_inputs()
    with pytest.raises(ValueError, match="A is complex, wanted real.*pass A.real"):
        selective_scan(u, delta, A.to(torch.complex64), B, C)


def test_integer_u():
    u, delta, A, B, C, *_ = random_inputs()
    with pytest.raises(ValueError, match="u is torch.int64"):
        selective_scan(u.long(), delta, A, B, C)


# The comparison mamba-ssm makes in its own tests, with our loop as the reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("length", [128, 372])
def test_usual_ranges_and_tolerances(dtype, groups, length):
    torch.manual_seed(0)
    inputs = (
        torch.randn(2, 4, length).to(dtype),
        torch.rand(2, 4, length).to(dtype) / 2,
        -torch.rand(4, 8) / 2,
        torch.randn(2, groups, 8, length).to(dtype),
        torch.randn(2, groups, 8, length).to(dtype),
        torch.randn(4),
        torch.randn(2, 4, length).to(dtype),
        torch.rand(4) / 2,
    )
    rtol, atol = {torch.float32: (6e-4, 2e-3), torch.float16: (3e-3, 5e-3), torch.bfloat16: (3e-2, 5e-2)}[
        dtype
    ]
    got = results_and_gradients(inputs, "auto", delta_softplus=True)
    wanted = results_and_gradients(inputs, "ref", delta_softplus=True)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def test_softplus_of_large_steps():
    u, _, A, B, C, *_ = random_inputs()
    large = torch.full_like(u, 30.0)
    y = selective_scan(u, large, A, B, C, delta_softplus=True)
    torch.testing.assert_close(y, selective_scan(u, F.softplus(large), A, B, C))
