"""Elementary functions on eight numbers at once, as LLVM IR.

Each is a polynomial after an argument reduction, without table or branch, so that all lanes share the work. Errors are
one or two units in the last place (a few where functions are composed); results below 1e-307 are flushed to zero.
Special values are those of C (exp(-inf) = 0, log(0) = -inf, pow(0, 0) = 1), except that pow of a negative base is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nlmegen.structure.kernel.emit import Emitter

# Adding and subtracting 1.5 * 2**52 rounds to an integer, which then stands in the low bits of the sum.
ROUND = 6755399441055744.0
# log 2 in two parts; the first has trailing zeros, so that a whole multiple of it is exact.
LN2_HIGH, LN2_LOW = 0.6931471803691238, 1.9082149292705877e-10
SQRT_HALF_BITS = 0x3FE6A09E667F3BCD
LARGEST, SMALLEST = 709.782712893384, -707.0

SMALL = 0.25
"""Arguments of phi up to which series replace quotients."""
SECOND_OF_PHI = [(-1) ** k / (math.factorial(k) * (k + 3)) for k in range(12)]
TERMS = 13
"""Of the series of shc: all digits up to z = 10, and enough up to 25."""


def _polynomial(e: Emitter, x: str, coefficients: Sequence[float]) -> str:
    """c0 + c1 x + ... by two interleaved Horner chains in x^2, which halves the waiting."""
    square = e.mul(x, x)
    parts = []
    for chain in (coefficients[0::2], coefficients[1::2]):
        total = e.constant(chain[-1])
        for c in reversed(chain[:-1]):
            total = e.fma(total, square, e.constant(c))
        parts.append(total)
    return e.fma(parts[1], x, parts[0])


def _series(e: Emitter, r: str) -> str:
    """(exp(r) - 1 - r) / r^2 for |r| <= log(2) / 2."""
    return _polynomial(e, r, [1 / math.factorial(k) for k in range(2, 14)])


def _exponential(e: Emitter, x: str, correction: str | None = None) -> str:
    """exp(x + correction) with |correction| far below 1: x = n log 2 + r, and 2^n through the exponent's bits."""
    inside = e.select(e.compare("olt", x, e.constant(SMALLEST)), e.constant(SMALLEST), x)
    inside = e.select(e.compare("ogt", inside, e.constant(LARGEST)), e.constant(LARGEST), inside)
    shifted = e.fma(inside, e.constant(1 / math.log(2)), e.constant(ROUND))
    n = e.strict("fsub", shifted, e.constant(ROUND))
    r = e.fma(n, e.constant(-LN2_HIGH), inside)
    r = e.fma(n, e.constant(-LN2_LOW), r)
    if correction is not None:
        r = e.add(r, correction)
    mantissa = e.add(e.constant(1.0), e.fma(e.mul(r, r), _series(e, r), r))
    # 2^(n - 1) and then 2: n may be 1024, which has no exponent of its own
    power = e.whole("shl", e.whole("sub", e.bits(shifted), e.integer(1)), e.integer(52))
    value = e.mul(e.number(e.whole("add", e.bits(mantissa), power)), e.constant(2.0))
    value = e.select(e.compare("olt", x, e.constant(SMALLEST)), e.constant(0.0), value)
    value = e.select(e.compare("ogt", x, e.constant(LARGEST)), e.constant(math.inf), value)
    return e.select(e.compare("uno", x, x), x, value)


def _logarithm(e: Emitter, x: str) -> tuple[str, str]:
    """log(x) as a sum of two numbers, the first the larger, for positive normal x.

    x = 2^k m with m from sqrt(1/2) to sqrt(2); log m = 2 atanh(q) with q = (m - 1) / (m + 1), in two parts.
    """
    bits = e.bits(x)
    k = e.whole("ashr", e.whole("sub", bits, e.integer(SQRT_HALF_BITS)), e.integer(52))
    m = e.number(e.whole("sub", bits, e.whole("shl", k, e.integer(52))))
    k = e.rounded(k)
    one = e.constant(1.0)
    above, below = e.strict("fsub", m, one), e.strict("fadd", m, one)
    lost = e.strict("fsub", m, e.strict("fsub", below, one))
    inverse = e.strict("fdiv", one, below)
    q = e.strict("fmul", above, inverse)
    minus = e.negative(q)
    q_low = e.mul(e.fma(minus, lost, e.fma(minus, below, above)), inverse)
    square = e.mul(q, q)
    tail = _polynomial(e, square, [2 / n for n in range(3, 25, 2)])
    # k LN2_HIGH is exact, and so is the sum's first part up to its own rounding, which the second part collects
    first = e.strict("fmul", k, e.constant(LN2_HIGH))
    twice = e.strict("fadd", q, q)
    high = e.strict("fadd", first, twice)
    rounding = e.strict("fsub", twice, e.strict("fsub", high, first))
    low = e.fma(k, e.constant(LN2_LOW), e.fma(e.mul(square, q), tail, e.add(q_low, q_low)))
    return high, e.add(low, rounding)


def _exp(e: Emitter, x: str) -> str:
    return _exponential(e, x)


def _log(e: Emitter, x: str) -> str:
    high, low = _logarithm(e, x)
    value = e.add(high, low)
    value = e.select(e.compare("oeq", x, e.constant(0.0)), e.constant(-math.inf), value)
    value = e.select(e.compare("oge", x, e.constant(0.0)), value, e.constant(math.nan))
    return e.select(e.compare("oeq", x, e.constant(math.inf)), x, value)


def _expm1(e: Emitter, x: str) -> str:
    near = e.fma(e.mul(x, x), _series(e, x), x)
    far = e.sub(e.call("exp", x), e.constant(1.0))
    return e.select(e.compare("olt", e.absolute(x), e.constant(math.log(2) / 2)), near, far)


def _log1p(e: Emitter, x: str) -> str:
    u = e.strict("fadd", e.constant(1.0), x)
    lost = e.strict("fsub", x, e.strict("fsub", u, e.constant(1.0)))
    value = e.add(e.call("log", u), e.div(lost, u))
    # at u = 0 and u = inf the correction is inf - inf
    value = e.select(e.compare("oeq", u, e.constant(0.0)), e.constant(-math.inf), value)
    value = e.select(e.compare("oeq", u, e.constant(math.inf)), u, value)
    return e.select(e.compare("oeq", u, e.constant(1.0)), x, value)


def _pow(e: Emitter, a: str, b: str) -> str:
    first, second = _logarithm(e, a)
    high = e.strict("fadd", first, second)
    low = e.strict("fsub", second, e.strict("fsub", high, first))
    product = e.strict("fmul", b, high)
    rest = e.fma(b, low, e.fma(b, high, e.negative(product)))
    value = _exponential(e, product, rest)
    zero, one = e.constant(0.0), e.constant(1.0)
    positive = e.compare("ogt", b, zero)
    at_zero = e.select(positive, zero, e.constant(math.inf))
    at_infinity = e.select(positive, e.constant(math.inf), zero)
    value = e.select(e.compare("oeq", a, zero), at_zero, value)
    value = e.select(e.compare("oeq", a, e.constant(math.inf)), at_infinity, value)
    value = e.select(e.compare("oge", a, zero), value, e.constant(math.nan))
    value = e.select(e.compare("oeq", b, zero), one, value)
    return e.select(e.compare("uno", a, b), e.constant(math.nan), value)


def _tanh(e: Emitter, x: str) -> str:
    t = e.call("expm1", e.mul(e.constant(-2.0), e.absolute(x)))
    size = e.div(e.negative(t), e.add(t, e.constant(2.0)))
    return e.select(e.compare("olt", x, e.constant(0.0)), e.negative(size), size)


def _sigmoid(e: Emitter, x: str) -> str:
    return e.div(e.constant(1.0), e.add(e.constant(1.0), e.call("exp", e.negative(x))))


def _softplus(e: Emitter, x: str) -> str:
    soft = e.call("log1p", e.call("exp", e.negative(e.absolute(x))))
    return e.add(e.select(e.compare("olt", x, e.constant(0.0)), e.constant(0.0), x), soft)


def _phi(order: int) -> Callable[[Emitter, str], str]:
    """Derivative number `order` of (1 - exp(-x)) / x, as `divided.phi` computes it."""

    def write(e: Emitter, x: str) -> str:
        fall, half = e.call("exp", e.negative(x)), e.constant(-0.5)
        second = _polynomial(e, x, SECOND_OF_PHI)
        first = e.mul(half, e.fma(x, second, fall))
        near = [e.sub(fall, e.mul(x, first)), first, second][order]
        value = e.div(e.sub(e.constant(1.0), fall), x)
        far = value
        if order > 0:
            first = far = e.div(e.sub(fall, value), x)
        if order > 1:
            far = e.div(e.sub(e.negative(fall), e.add(first, first)), x)
        return e.select(e.compare("olt", e.absolute(x), e.constant(SMALL)), near, far)

    return write


def _shc(order: int) -> Callable[[Emitter, str], str]:
    """Derivative number `order` of sinh(sqrt z) / sqrt z, an entire function, by its series."""
    coefficients = [1 / math.factorial(2 * j + 1) for j in range(TERMS)]
    for _ in range(order):
        coefficients = [j * c for j, c in enumerate(coefficients)][1:]
    return lambda e, z: _polynomial(e, z, coefficients)


WRITERS: Mapping[str, Callable[..., str]] = {
    "exp": _exp,
    "log": _log,
    "expm1": _expm1,
    "log1p": _log1p,
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "softplus": _softplus,
    "pow": _pow,
    "phi": _phi(0),
    "phi1": _phi(1),
    "phi2": _phi(2),
    "shc": _shc(0),
    "shc1": _shc(1),
    "shc2": _shc(2),
}
ARGUMENTS: Mapping[str, int] = {name: 2 if name == "pow" else 1 for name in WRITERS}
