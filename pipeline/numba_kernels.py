"""The selective scan, its gradients and the scan of Mamba-2 as three compiled functions, for `numba_scan.py`.

Responsible for: the recurrence on numpy arrays, one slice of the channels of one sample a call. Knows nothing of torch
or threads. Importing this file compiles nothing: the first call for a dtype does, and numba keeps the result beside
this file or in the user's cache folder.

A call walks along the sequence in chunks, so that the rows of a chunk stay in the innermost cache. A row is what one
token needs to know of what lies side by side in SIMD lanes. On the way forward those are channels, state after state:
no sum runs across lanes. The gradients take states for lanes, channel after channel, since a chunk has to keep every
state then, and the gradients of B and C are sums over channels. Every loop over all lanes, `for n in range(_LANES)` or
`for d in range(_WIDTH)`, becomes one vector instruction a line (more where registers are narrower). It does only
because the compiler can see that nothing it writes overlaps what it reads, which is why there are two arrays, `row`
and `run`, where one would expect seven.
"""

import math
from collections.abc import Callable

import numba
import numpy as np

from .simd_math import exp2, log1p

CHUNK = 128  # tokens whose rows are held at once: 48 KB; half of that measures a tenth slower
_BLOCK = 16  # channels copied in and out at once: the float32 numbers of a cache line
_LANES = 16  # float32 numbers in the widest vector register there is; more states take several rounds
LOG2E = math.log2(math.e)

# The fields of a row, and those of `run`, which goes from token to token.
_B, _C, _GRAD_B, _GRAD_C, _DECAY, _KEPT, _ROW = (i * _LANES for i in range(7))
_STATE, _RATE, _GRAD_RATE, _RUN = (i * _LANES for i in range(4))

# The same where channels are the lanes.
_WIDTH = 64
_TOKENS = 32  # rows held at once: 24 KB; a divisor of CHUNK
_STEP, _W, _Y, _LANE_ROW = (i * _WIDTH for i in range(4))
_H, _LANE_RATE, _LANE_B, _LANE_C, _BIAS, _SKIP, _LANE_RUN = (i * _WIDTH for i in range(7))

# `reassoc` lets a sum over states run in any order, as SIMD needs; NaN and infinity keep their meaning.
_OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}
_inner = numba.njit(**_OPTIONS)


def _kernel(function: Callable) -> Callable:
    try:
        return numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # nowhere to write the cache: compiled once a process, then
        return numba.njit(**_OPTIONS)(function)


@_inner
def _steps(delta, bias, u, softplus, step, slope, w):
    """Step sizes of one channel, their derivative with respect to `delta`, and w = step * u."""
    zero, one, log2e = delta.dtype.type(0), delta.dtype.type(1), delta.dtype.type(LOG2E)
    if softplus:
        for t in range(len(delta)):
            x = delta[t] + bias
            e = exp2(-abs(x) * log2e)
            step[t] = max(x, zero) + log1p(e)
            slope[t] = (one if x > zero else e) / (one + e)
    else:
        for t in range(len(delta)):
            step[t] = delta[t] + bias
            slope[t] = one
    for t in range(len(delta)):
        w[t] = step[t] * u[t]


@_inner
def _load(x, begin, end, rows, field):
    """Copies B or C of a chunk into its rows."""
    for n in range(x.shape[0]):
        for t in range(end - begin):
            rows[n // _LANES, t, field + n % _LANES] = x[n, min(begin + t, x.shape[1] - 1)]


@_inner
def _unload(total, begin, end, rows, field):
    """Adds the gradient of B or C in the rows of a chunk to the total, and leaves zeros."""
    for n in range(total.shape[0]):
        for t in range(end - begin):
            total[n, min(begin + t, total.shape[1] - 1)] += rows[n // _LANES, t, field + n % _LANES]
            rows[n // _LANES, t, field + n % _LANES] = 0


@_inner
def _read(x, tokens_first, begin, end, first_channel, last_channel, block):
    """Copies a chunk of up to _BLOCK channels, from (L, D) or (D, L), to one row for each channel."""
    channels = min(_BLOCK, last_channel - first_channel)
    if tokens_first:
        for t in range(end - begin):
            token = x[begin + t, first_channel : first_channel + channels]
            for d in range(channels):
                block[d, t] = token[d]
    else:
        for d in range(channels):
            channel, row = x[first_channel + d, begin:end], block[d]
            for t in range(end - begin):
                row[t] = channel[t]


@_inner
def _write(x, tokens_first, begin, end, first_channel, last_channel, block):
    """The way back of `_read`."""
    channels = min(_BLOCK, last_channel - first_channel)
    if tokens_first:
        for t in range(end - begin):
            token = x[begin + t, first_channel : first_channel + channels]
            for d in range(channels):
                token[d] = block[d, t]
    else:
        for d in range(channels):
            channel, row = x[first_channel + d, begin:end], block[d]
            for t in range(end - begin):
                channel[t] = row[t]


@_inner
def _fill(run, field, values, first):
    """Copies up to _LANES values into a field of `run`, and zeros after the last."""
    for n in range(_LANES):
        run[field + n] = values[first + n] if first + n < len(values) else 0


@_inner
def _forward(rows, run, step, w, y):
    """Runs one channel through a chunk: adds C . h to y, leaves in the rows what the way back needs."""
    for t in range(len(y)):
        row, step_t, w_t, total = rows[t], step[t], w[t], y.dtype.type(0)
        for n in range(_LANES):
            decay = exp2(step_t * run[_RATE + n])
            kept = decay * run[_STATE + n]
            h = kept + w_t * row[_B + n]
            row[_DECAY + n] = decay
            row[_KEPT + n] = kept
            run[_STATE + n] = h
            total += h * row[_C + n]
        y[t] += total


@_inner
def _backward(rows, run, step, w, grad_y, tokens_back, grad_step, grad_w):
    """The way back through a chunk, in which `run` carries the gradient of the state.

    The order of tokens comes in an array so that the compiler does not reason about it: it would, wrongly, give up.
    """
    for t in tokens_back:
        row, step_t, w_t, grad_y_t = rows[t], step[t], w[t], grad_y[t]
        sum_w = sum_step = grad_y.dtype.type(0)
        for n in range(_LANES):
            B, kept = row[_B + n], row[_KEPT + n]
            g = run[_STATE + n] + grad_y_t * row[_C + n]
            row[_GRAD_B + n] += g * w_t
            row[_GRAD_C + n] += grad_y_t * (kept + w_t * B)
            run[_STATE + n] = g * row[_DECAY + n]
            sum_w += g * B
            grad_exponent = g * kept
            sum_step += grad_exponent * run[_RATE + n]
            run[_GRAD_RATE + n] += grad_exponent * step_t
        grad_w[t] += sum_w
        grad_step[t] += sum_step


@_inner
def _read_lanes(x, tokens_first, begin, end, first, last, rows, field):
    """Copies channels `first` to `last` of a few tokens, from (L, D) or (D, L), to a field of their rows."""
    if tokens_first:
        for t in range(end - begin):
            token, row = x[begin + t, first:last], rows[t]
            for d in range(last - first):
                row[field + d] = token[d]
    else:
        for d in range(last - first):
            channel = x[first + d, begin:end]
            for t in range(end - begin):
                rows[t, field + d] = channel[t]


@_inner
def _write_lanes(x, tokens_first, begin, end, first, last, rows, field):
    """The way back of `_read_lanes`."""
    if tokens_first:
        for t in range(end - begin):
            token, row = x[begin + t, first:last], rows[t]
            for d in range(last - first):
                token[d] = row[field + d]
    else:
        for d in range(last - first):
            channel = x[first + d, begin:end]
            for t in range(end - begin):
                channel[t] = rows[t, field + d]


@_inner
def _round_end(first, last_channel, channels, B, C):
    """Up to _WIDTH channels go together, of one group wherever B or C varies over the tokens."""
    last = min(first + _WIDTH, last_channel)
    for x in (B, C):
        if x.shape[3] > 1:
            wide = channels // x.shape[1]
            last = min(last, (first // wide + 1) * wide)
    return last


@_inner
def _fill_factors(x, n, channels, begin, end, first, last, by_token, run, field):
    """B or C of state n as two factors: one of the token and one of the channel, of which one is 1."""
    if x.shape[2] > 1:
        values = x[first * x.shape[0] // channels, n, begin:end]
        for t in range(end - begin):
            by_token[t] = values[t]
        for d in range(_WIDTH):
            run[field + d] = 1
    else:
        for t in range(end - begin):
            by_token[t] = 1
        for d in range(last - first):
            run[field + d] = x[(first + d) * x.shape[0] // channels, n, 0]


@_inner
def _lane_steps(rows, run, tokens, softplus):
    """From delta and u of each token the step, w = step * u, and y = D u, to which the states then add."""
    zero, log2e = rows.dtype.type(0), rows.dtype.type(LOG2E)
    for t in range(tokens):
        row = rows[t]
        if softplus:
            for d in range(_WIDTH):
                x = row[_STEP + d] + run[_BIAS + d]
                row[_STEP + d] = max(x, zero) + log1p(exp2(-abs(x) * log2e))
        else:
            for d in range(_WIDTH):
                row[_STEP + d] += run[_BIAS + d]
        for d in range(_WIDTH):
            u = row[_W + d]
            row[_W + d] = row[_STEP + d] * u
            row[_Y + d] = run[_SKIP + d] * u


@_inner
def _lane_forward(rows, run, B, C, tokens):
    """Runs one state of all channels of a round through a few tokens: adds C h to y."""
    for t in range(tokens):
        row, B_t, C_t = rows[t], B[t], C[t]
        for d in range(_WIDTH):
            decay = exp2(row[_STEP + d] * run[_LANE_RATE + d])
            run[_H + d] = decay * run[_H + d] + row[_W + d] * B_t * run[_LANE_B + d]
            row[_Y + d] += run[_H + d] * C_t * run[_LANE_C + d]


@_kernel
def scan(b, _, first_channel, last_channel, tokens_first, u, delta, A, B, C, D, bias, softplus, y, states):
    """Writes y and states of one slice of the channels of sample b. A comes multiplied by LOG2E.

    `states` (B, chunks + 1, D, N) starts with the state before the first token and gets the one after every chunk;
    with room for one only, it gets the last.
    """
    dtype, channels, kept = u.dtype, A.shape[1], states.shape[1] - 1
    length = u.shape[1 if tokens_first else 2]
    rows, run = np.zeros((_TOKENS, _LANE_ROW), dtype), np.zeros(_LANE_RUN, dtype)
    B_t, C_t, h = np.empty(_TOKENS, dtype), np.empty(_TOKENS, dtype), np.empty((A.shape[2], _WIDTH), dtype)
    A_b, B_b, C_b, D_b = A[b % A.shape[0]], B[b % B.shape[0]], C[b % C.shape[0]], D[b % D.shape[0]]
    first = first_channel
    while first < last_channel:
        last = _round_end(first, last_channel, channels, B, C)
        for d in range(last - first):
            run[_BIAS + d], run[_SKIP + d] = bias[first + d], D_b[first + d]
        h[:] = 0
        for d in range(last - first):
            for n in range(len(h)):
                h[n, d] = states[b, 0, first + d, n]
        for begin in range(0, length, _TOKENS):
            end = min(begin + _TOKENS, length)
            _read_lanes(delta[b], tokens_first, begin, end, first, last, rows, _STEP)
            _read_lanes(u[b], tokens_first, begin, end, first, last, rows, _W)
            _lane_steps(rows, run, end - begin, softplus)
            for n in range(len(h)):
                _fill_factors(B_b, n, channels, begin, end, first, last, B_t, run, _LANE_B)
                _fill_factors(C_b, n, channels, begin, end, first, last, C_t, run, _LANE_C)
                for d in range(last - first):
                    run[_LANE_RATE + d] = A_b[first + d, n]
                for d in range(_WIDTH):
                    run[_H + d] = h[n, d]
                _lane_forward(rows, run, B_t, C_t, end - begin)
                for d in range(_WIDTH):
                    h[n, d] = run[_H + d]
            _write_lanes(y[b], tokens_first, begin, end, first, last, rows, _Y)
            if end % CHUNK == 0 or end == length:
                after = states[b, min((end - 1) // CHUNK + 1, kept)]
                for d in range(last - first):
                    for n in range(len(h)):
                        after[first + d, n] = h[n, d]
        first = last


@_inner
def _head_forward(rows, run, decay, B, C):
    """`_lane_forward` for channels that decay alike."""
    for t in range(len(decay)):
        row, decay_t, B_t, C_t = rows[t], decay[t], B[t], C[t]
        for d in range(_WIDTH):
            run[_H + d] = decay_t * run[_H + d] + row[_W + d] * B_t
            row[_Y + d] += run[_H + d] * C_t


@_kernel
def scan_heads(b, _, first_channel, last_channel, u, delta, A, B, C, D, bias, softplus, y, states):
    """Mamba-2's scan of one slice of the channels of sample b: writes y, and takes the state on to the last. No gradients.

    u, y (B, L, D), delta (B, L, H), A (H,) times LOG2E, B and C (B, L, G, N), D (D,), bias (H,), states (B, D, N).
    """
    dtype, length, channels, heads = u.dtype, u.shape[1], u.shape[2], delta.shape[2]
    rows, run = np.zeros((_TOKENS, _LANE_ROW), dtype), np.zeros(_LANE_RUN, dtype)
    delta_t, step, decay, unused = np.empty((4, _TOKENS), dtype)
    B_t, C_t, h = np.empty(_TOKENS, dtype), np.empty(_TOKENS, dtype), np.empty((B.shape[3], _WIDTH), dtype)
    first = first_channel
    while first < last_channel:
        head = first * heads // channels
        group = head * B.shape[2] // heads
        last = min(first + _WIDTH, last_channel, (head + 1) * channels // heads)
        h[:] = 0
        for d in range(last - first):
            for n in range(len(h)):
                h[n, d] = states[b, first + d, n]
        for begin in range(0, length, _TOKENS):
            end = min(begin + _TOKENS, length)
            tokens = end - begin
            for t in range(tokens):
                delta_t[t] = delta[b, begin + t, head]
            _steps(delta_t[:tokens], bias[head], delta_t, softplus, step, unused, unused)
            for t in range(tokens):
                decay[t] = exp2(step[t] * A[head])
            _read_lanes(u[b], True, begin, end, first, last, rows, _W)
            for t in range(tokens):
                row, step_t = rows[t], step[t]
                for d in range(last - first):
                    row[_Y + d] = D[first + d] * row[_W + d]
                    row[_W + d] *= step_t
            for n in range(len(h)):
                for t in range(tokens):
                    B_t[t], C_t[t] = B[b, begin + t, group, n], C[b, begin + t, group, n]
                for d in range(_WIDTH):
                    run[_H + d] = h[n, d]
                _head_forward(rows, run, decay[:tokens], B_t, C_t)
                for d in range(_WIDTH):
                    h[n, d] = run[_H + d]
            _write_lanes(y[b], True, begin, end, first, last, rows, _Y)
        for d in range(last - first):
            for n in range(len(h)):
                states[b, first + d, n] = h[n, d]
        first = last


@_kernel
def scan_gradients(
    b, part, first_channel, last_channel, tokens_first, u, delta, A, B, C, D, bias,
    softplus, states, grad_y, carried,
    grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D,
):  # fmt: skip
    """Writes the gradients of one slice of the channels of sample b, chunk by chunk from the last.

    Each chunk runs forward a second time, from the state that was kept. `carried` is the gradient of the state that
    leaves a chunk, at first that of the last state.
    """
    dtype, channels, length = u.dtype, A.shape[1], u.shape[1 if tokens_first else 2]
    block = np.empty((5, _BLOCK, CHUNK), dtype)
    ln2 = dtype.type(1 / LOG2E)
    step, slope, w = np.empty(CHUNK, dtype), np.empty(CHUNK, dtype), np.empty(CHUNK, dtype)
    grad_step, grad_w, y = np.empty(CHUNK, dtype), np.empty(CHUNK, dtype), np.zeros(CHUNK, dtype)
    rows = np.zeros((1 + (A.shape[2] - 1) // _LANES, CHUNK, _ROW), dtype)
    run = np.zeros(_RUN, dtype)
    for chunk in range((length - 1) // CHUNK, -1, -1):
        begin, end = chunk * CHUNK, min((chunk + 1) * CHUNK, length)
        tokens_back = np.arange(end - begin - 1, -1, -1).astype(np.uintp)
        loaded_B = loaded_C = -1
        for d in range(first_channel, last_channel):
            i = (d - first_channel) % _BLOCK
            if i == 0:
                _read(u[b], tokens_first, begin, end, d, last_channel, block[0])
                _read(delta[b], tokens_first, begin, end, d, last_channel, block[1])
                _read(grad_y[b], tokens_first, begin, end, d, last_channel, block[2])
            group_B, group_C = d * B.shape[1] // channels, d * C.shape[1] // channels
            if loaded_B != group_B:
                _load(B[b % B.shape[0], group_B], begin, end, rows, _B)
            if loaded_C != group_C:
                _load(C[b % C.shape[0], group_C], begin, end, rows, _C)
            loaded_B, loaded_C = group_B, group_C

            u_d, delta_d, grad_y_d = (
                block[0, i, : end - begin],
                block[1, i, : end - begin],
                block[2, i, : end - begin],
            )
            A_d, grad_A_d, carried_d = A[b % A.shape[0], d], grad_A[b, d], carried[b, d]
            _steps(delta_d, bias[d], u_d, softplus, step, slope, w)
            for t in range(end - begin):
                grad_step[t] = grad_w[t] = 0
            for m in range(len(rows)):
                _fill(run, _STATE, states[b, chunk, d], m * _LANES)
                _fill(run, _RATE, A_d, m * _LANES)
                _forward(rows[m], run, step, w, y[: end - begin])
                _fill(run, _STATE, carried_d, m * _LANES)
                run[_GRAD_RATE:] = 0
                _backward(rows[m], run, step, w, grad_y_d, tokens_back, grad_step, grad_w)
                for n in range(min(_LANES, len(A_d) - m * _LANES)):
                    carried_d[m * _LANES + n] = run[_STATE + n]
                    grad_A_d[m * _LANES + n] += run[_GRAD_RATE + n]

            skip, grad_skip = D[b % D.shape[0], d], dtype.type(0)
            grad_u_d, grad_delta_d = block[3, i], block[4, i]
            for t in range(end - begin):
                grad_u_d[t] = grad_w[t] * step[t] + skip * grad_y_d[t]
            for t in range(end - begin):
                grad_delta_d[t] = (ln2 * grad_step[t] + grad_w[t] * u_d[t]) * slope[t]
            for t in range(end - begin):
                grad_skip += grad_y_d[t] * u_d[t]
            grad_D[b, d] += grad_skip

            if i == _BLOCK - 1 or d == last_channel - 1:
                _write(grad_u[b], tokens_first, begin, end, d - i, last_channel, block[3])
                _write(grad_delta[b], tokens_first, begin, end, d - i, last_channel, block[4])

            if d + 1 == last_channel or (d + 1) * B.shape[1] // channels != group_B:
                _unload(grad_B[b, part, group_B], begin, end, rows, _GRAD_B)
            if d + 1 == last_channel or (d + 1) * C.shape[1] // channels != group_C:
                _unload(grad_C[b, part, group_C], begin, end, rows, _GRAD_C)
