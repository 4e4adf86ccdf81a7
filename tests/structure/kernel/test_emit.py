"""Elementary functions and graphs as LLVM IR, against mpmath and against Python on the same numbers."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence

import mpmath as mp
import numpy as np
import pytest

from nlmegen.structure.kernel.code import compiled
from nlmegen.structure.kernel.emit import LANES, Emitter, Module
from nlmegen.structure.kernel.functions import WRITERS
from nlmegen.structure.kernel.page import leaves
from nlmegen.structure.kernel.store import Store
from nlmegen.structure.trace import Graph, Symbol

Array = np.ndarray


def aligned(rows: int) -> Array:
    """Vectors on a boundary of 64 bytes."""
    room = np.empty(rows * LANES + LANES)
    first = (-room.ctypes.data // 8) % LANES
    return room[first : first + rows * LANES].reshape(rows, LANES)


def run(
    build: Callable[[Emitter], Sequence[str]], columns: Sequence[Array], weights: Array | None = None
) -> Array:
    """Results [result, number] of code that reads row j of %Y as column j."""
    module = Module()
    with module.define("work", ("Y", "W", "K")) as e:
        results = build(e)
        for c, result in enumerate(results):
            e.store("%K", c, result)
    text = module.text()
    code = compiled(text, ("work",), lambda: text, Store())
    call = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3)(code.address["work"])
    count = len(columns[0])
    padded = [np.concatenate([x, np.ones(-count % LANES)]).reshape(-1, LANES) for x in columns]
    y, k, out = aligned(len(columns)), aligned(len(results)), []
    w = np.zeros(1) if weights is None else weights
    for block in zip(*padded, strict=True):
        y[:] = block
        call(y.ctypes.data, w.ctypes.data, k.ctypes.data)
        out.append(k.copy())
    return np.concatenate(out, -1)[:, :count]


def units(got: Array, exact: Sequence[mp.mpf]) -> float:
    """Largest error in units of the last place."""
    worst = 0.0
    for x, y in zip(got, exact, strict=True):
        assert math.isfinite(x)
        worst = max(worst, float(abs(mp.mpf(float(x)) - y) / math.ulp(float(y))))
    return worst


def spread(low: float, high: float, count: int = 400, seed: int = 0) -> Array:
    return np.random.default_rng(seed).uniform(low, high, count)


SIGNED = np.concatenate([spread(-700, 700), spread(-3, 3), 10.0 ** spread(-18, 0), -(10.0 ** spread(-18, 0))])
POSITIVE = np.concatenate(
    [10.0 ** spread(-300, 300), spread(0.5, 2), 1 + 10.0 ** spread(-15, -1), 1 - 10.0 ** spread(-15, -1)]
)
NOT_NEGATIVE = np.concatenate([spread(0, 700, 60), spread(0, 3, 60), 10.0 ** spread(-9, 0, 60)])
UP_TO_EIGHT = np.concatenate([spread(0, 8, 60), 10.0 ** spread(-9, 0, 60)])


def phi(order: int) -> Callable[[mp.mpf], mp.mpf]:
    """(1 - exp(-x)) / x and its derivatives, the integral of (-s)^order exp(-x s) over s from 0 to 1."""

    def exact(x: mp.mpf) -> mp.mpf:
        with mp.workdps(80):
            fall = mp.exp(-x)
            value = (1 - fall) / x
            first = (fall - value) / x
            return [value, first, -(fall + 2 * first) / x][order]

    return exact


def shc(order: int) -> Callable[[mp.mpf], mp.mpf]:
    """sinh(sqrt z) / sqrt z and its derivatives, from S' = (cosh r - S) / 2 z and S'' = (S - 6 S') / 4 z."""

    def exact(z: mp.mpf) -> mp.mpf:
        with mp.workdps(80):
            r = mp.sqrt(z)
            value = mp.sinh(r) / r
            first = (mp.cosh(r) - value) / (2 * z)
            return [value, first, (value - 6 * first) / (4 * z)][order]

    return exact


CASES: dict[str, tuple[Array, Callable[[mp.mpf], mp.mpf], float]] = {
    "exp": (SIGNED, mp.exp, 2),
    "log": (POSITIVE, mp.log, 2),
    "expm1": (SIGNED, mp.expm1, 4),
    "log1p": (np.concatenate([POSITIVE, -spread(0, 1), -(10.0 ** spread(-18, 0))]), mp.log1p, 4),
    "tanh": (np.concatenate([SIGNED / 50, 10.0 ** spread(-18, 0)]), mp.tanh, 6),
    "sigmoid": (SIGNED, lambda x: 1 / (1 + mp.exp(-x)), 4),
    "softplus": (SIGNED, lambda x: mp.log1p(mp.exp(x)), 4),
    "phi": (NOT_NEGATIVE, phi(0), 8),
    "phi1": (NOT_NEGATIVE, phi(1), 32),
    "phi2": (NOT_NEGATIVE, phi(2), 300),
    "shc": (UP_TO_EIGHT, shc(0), 4),
    "shc1": (UP_TO_EIGHT, shc(1), 4),
    "shc2": (UP_TO_EIGHT, shc(2), 50),
}


def test_every_function_is_tested() -> None:
    assert {*CASES, "pow"} == set(WRITERS)


@pytest.mark.parametrize("name", CASES)
def test_function(name: str) -> None:
    x, exact, bound = CASES[name]
    with mp.workdps(40):
        got = run(lambda e: [e.call(name, e.load("%Y", 0))], [x])[0]
        assert units(got, [exact(mp.mpf(float(v))) for v in x]) <= bound


def test_power() -> None:
    a = np.concatenate([10.0 ** spread(-50, 50, seed=1), spread(0.5, 2, seed=2), np.array([2.0, 10.0])])
    b = np.concatenate([spread(-5.5, 5.5, seed=3), spread(-300, 300, seed=4), np.array([1000.5, -300.25])])
    got = run(lambda e: [e.call("pow", e.load("%Y", 0), e.load("%Y", 1))], [a, b])[0]
    with mp.workdps(40):
        assert units(got, [mp.mpf(float(x)) ** mp.mpf(float(y)) for x, y in zip(a, b, strict=True)]) <= 4


INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("name", "arguments", "value"),
    [
        ("exp", (-INF,), 0.0),
        ("exp", (INF,), INF),
        ("exp", (710.0,), INF),
        ("exp", (-800.0,), 0.0),
        ("exp", (NAN,), NAN),
        ("log", (0.0,), -INF),
        ("log", (-1.0,), NAN),
        ("log", (INF,), INF),
        ("log", (NAN,), NAN),
        ("log1p", (-1.0,), -INF),
        ("log1p", (INF,), INF),
        ("log1p", (-2.0,), NAN),
        ("expm1", (-INF,), -1.0),
        *((f"phi{n or ''}", (0.0,), value) for n, value in enumerate((1.0, -1 / 2, 1 / 3))),
        *((f"shc{n or ''}", (0.0,), value) for n, value in enumerate((1.0, 1 / 6, 1 / 60))),
        ("expm1", (NAN,), NAN),
        ("tanh", (INF,), 1.0),
        ("tanh", (-INF,), -1.0),
        ("tanh", (NAN,), NAN),
        ("sigmoid", (-INF,), 0.0),
        ("sigmoid", (INF,), 1.0),
        ("softplus", (-INF,), 0.0),
        ("softplus", (INF,), INF),
        ("softplus", (NAN,), NAN),
        ("pow", (0.0, 2.5), 0.0),
        ("pow", (0.0, 0.0), 1.0),
        ("pow", (0.0, -1.0), INF),
        ("pow", (NAN, 0.5), NAN),
        ("pow", (2.0, NAN), NAN),
        ("pow", (-2.0, 0.5), NAN),
        ("pow", (INF, 0.5), INF),
        ("pow", (INF, -0.5), 0.0),
    ],
)
def test_special_values(name: str, arguments: tuple[float, ...], value: float) -> None:
    columns = [np.array([x]) for x in arguments]
    got = run(lambda e: [e.call(name, *(e.load("%Y", j) for j in range(len(arguments))))], columns)
    np.testing.assert_array_equal(got[0], [value])


def outputs(build: Callable[[Graph, Symbol, Symbol], Sequence[Symbol]], columns: Sequence[Array]) -> Array:
    g = Graph()
    symbols = build(g, g.state(0), g.state(1))
    return run(lambda e: e.expressions(symbols, leaves()), columns, np.array([3.0, 0.25]))


def test_graph() -> None:
    """Every kind of node, a weight and a choice."""
    x, y = spread(0.1, 4, 40), spread(-4, 4, 40, seed=1)

    def build(g: Graph, a: Symbol, b: Symbol) -> list[Symbol]:
        low, even = g.compare("lt", a, g.const(2.0)), g.compare("le", b, g.zero)
        return [
            g.add(g.mul(a, b), g.sub(a, g.const(0.1))),
            g.mul(g.reciprocal(a), g.weight(1)),
            g.function("sqrt", a),
            g.function("sin", b),
            g.function("cos", b),
            g.where(g.logic("and", low, even), a, b),
            g.where(g.logic("or", low, g.invert(even)), a, b),
            g.where(g.compare("eq", a, a), g.weight(0), a),
            a,
        ]

    got = outputs(build, [x, y])
    low, even = x < 2, y <= 0
    want = [x * y + x - 0.1, 0.25 / x, np.sqrt(x), np.sin(y), np.cos(y)]
    want += [np.where(low & even, x, y), np.where(low | ~even, x, y), np.full(40, 3.0), x]
    np.testing.assert_allclose(got, np.array(want), rtol=4e-16, atol=1e-15)


@pytest.mark.parametrize("exponent", [2.0, 3.0, -1.0, -2.5, 0.5, 1.5, 9.0, 16.0, 17.0, 0.3])
def test_constant_power(exponent: float) -> None:
    x = spread(0.1, 4, 40)
    got = outputs(lambda g, a, b: [g.pow(a, g.const(exponent))], [x, x])[0]
    np.testing.assert_allclose(got, x**exponent, rtol=2e-15)


def test_unknown_node() -> None:
    g = Graph()
    strange = g._make("besselj", g.state(0))
    with pytest.raises(NotImplementedError, match="besselj"):
        run(lambda e: e.expressions([strange], leaves()), [np.ones(1)])


def test_module_may_not_reach_outside() -> None:
    text = "declare void @abort()\ndefine void @work() {\n  call void @abort()\n  ret void\n}\n"
    with pytest.raises(RuntimeError, match="abort"):
        compiled(text, ("work",), lambda: text, Store())
