"""2^x and log(1 + x) for compiled loops.

Responsible for: two functions that LLVM can turn into SIMD. numpy's call the C library once a number; these are polynomials
in float32, to an error of 1e-8 before rounding. In float64, wanted for checks only, they are numpy's. Knows nothing of
scans. numba does not look here when it decides whether a compiled `numba_kernels.py` is up to date: touch that too.
"""

import numba
import numpy as np
from numba.extending import overload


def exp2(x: float) -> float:
    """2^x, and 0 below 2^-126.5."""
    return np.exp2(x)


# 2^f = 1 + f (E1 + f (E2 + ...)) for |f| <= 1/2: of all of degree 6, the one whose largest relative error is smallest, 3e-9
# (by Remez' exchange). The Taylor series needs one more term for that.
_ONE = np.float32(1)
_E1, _E2, _E3, _E4, _E5, _E6 = (
    np.float32(c)
    for c in (
        0.6931472149680393,
        0.24022652782875928,
        0.05550310550996365,
        0.009617692974918868,
        0.00134066439048765,
        0.00015594677540764279,
    )
)


@overload(exp2, jit_options={"error_model": "numpy", "fastmath": {"contract"}})
def _exp2_of_dtype(x):
    if x is not numba.float32:
        return lambda x: np.exp2(x)

    def polynomial(x):
        x = min(max(x, np.float32(-127)), np.float32(128))
        whole = np.rint(x)
        f = x - whole  # |f| <= 1/2
        power = (((((_E6 * f + _E5) * f + _E4) * f + _E3) * f + _E2) * f + _E1) * f + _ONE
        # 2^whole is its exponent field; -127 gives 0 and 128 infinity.
        return power * np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32)

    return polynomial


def log1p(x: float) -> float:
    """log(1 + x), for 0 <= x <= 1."""
    return np.log1p(x)


_L = [np.float32(2 / k) for k in range(1, 16, 2)]
_L0, _L1, _L2, _L3, _L4, _L5, _L6, _L7 = _L


@overload(log1p, jit_options={"error_model": "numpy", "fastmath": {"contract"}})
def _log1p_of_dtype(x):
    if x is not numba.float32:
        return lambda x: np.log1p(x)

    def series(x):
        s = x / (x + np.float32(2))  # log(1 + x) = 2 atanh(s), and s <= 1/3
        q = s * s
        return s * (((((((_L7 * q + _L6) * q + _L5) * q + _L4) * q + _L3) * q + _L2) * q + _L1) * q + _L0)

    return series
