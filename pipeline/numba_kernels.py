"""The selective scan and its gradients as two compiled functions, for `numba_scan.py`.

Responsible for: the recurrence on numpy arrays, one slice of the channels of one sample a call. Knows nothing of torch
or threads. Importing this file compiles nothing: the first call for a dtype does, and numba keeps the result beside
this file or in the user's cache folder.

A call walks along the sequence in chunks and within a chunk from channel to channel, so that the rows of a chunk stay
in the innermost cache. A row is what one token needs to know of the states, side by side in SIMD lanes: every loop
`for n in range(_LANES)` becomes one vector instruction a line (two with AVX2). It does only because the compiler can
see that nothing it writes overlaps what it reads, which is why there are two arrays, `row` and `run`, where one would
expect seven.
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


@_kernel
def scan(b, _, first_channel, last_channel, tokens_first, u, delta, A, B, C, D, bias, softplus, y, states):
    """Writes y and states of one slice of the channels of sample b. A comes multiplied by LOG2E.

    `states` (B, chunks + 1, D, N) starts with zeros and gets the state after every chunk; with room for one only, it
    gets the last.
    """
    dtype, channels, kept = u.dtype, A.shape[1], states.shape[1] - 1
    length = u.shape[1 if tokens_first else 2]
    block = np.empty((3, _BLOCK, CHUNK), dtype)
    step, slope, w = np.empty(CHUNK, dtype), np.empty(CHUNK, dtype), np.empty(CHUNK, dtype)
    rows = np.zeros((1 + (A.shape[2] - 1) // _LANES, CHUNK, _ROW), dtype)
    run = np.zeros(_RUN, dtype)
    for chunk in range(1 + (length - 1) // CHUNK):
        begin, end = chunk * CHUNK, min((chunk + 1) * CHUNK, length)
        loaded_B = loaded_C = -1
        for d in range(first_channel, last_channel):
            i = (d - first_channel) % _BLOCK
            if i == 0:
                _read(u[b], tokens_first, begin, end, d, last_channel, block[0])
                _read(delta[b], tokens_first, begin, end, d, last_channel, block[1])
            group_B, group_C = d * B.shape[1] // channels, d * C.shape[1] // channels
            if loaded_B != group_B:
                _load(B[b % B.shape[0], group_B], begin, end, rows, _B)
            if loaded_C != group_C:
                _load(C[b % C.shape[0], group_C], begin, end, rows, _C)
            loaded_B, loaded_C = group_B, group_C

            u_d, delta_d, y_d = (
                block[0, i, : end - begin],
                block[1, i, : end - begin],
                block[2, i, : end - begin],
            )
            A_d = A[b % A.shape[0], d]
            before, after = states[b, min(chunk, kept), d], states[b, min(chunk + 1, kept), d]
            _steps(delta_d, bias[d], u_d, softplus, step, slope, w)
            skip = D[b % D.shape[0], d]
            for t in range(end - begin):
                y_d[t] = skip * u_d[t]
            for m in range(len(rows)):
                _fill(run, _STATE, before, m * _LANES)
                _fill(run, _RATE, A_d, m * _LANES)
                _forward(rows[m], run, step, w, y_d)
                for n in range(min(_LANES, len(after) - m * _LANES)):
                    after[m * _LANES + n] = run[_STATE + n]

            if i == _BLOCK - 1 or d == last_channel - 1:
                _write(y[b], tokens_first, begin, end, d - i, last_channel, block[2])


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
