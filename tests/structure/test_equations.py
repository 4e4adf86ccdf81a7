"""Equations of pages: what is read, what is refused, and sensitivities against independent arithmetic."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import nlmegen.maths.rules  # noqa: F401 the rules of Taylor numbers
from nlmegen.errors import ModelError
from nlmegen.maths.taylor import Taylor
from nlmegen.structure.derive import evaluate, topological
from nlmegen.structure.equations import Components, Equations
from nlmegen.structure.trace import Symbol, Untraceable


class Named:
    """Attributes from a mapping."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.__dict__.update(values)


# -- pages ------------------------------------------------------------------------------------------------------------
def oral(t: Any, a: Any, p: Any) -> dict[str, Any]:
    return dict(depot=-p.ka * a.depot, central=p.ka * a.depot - p.cl / p.v * a.central)


def saturable(t: Any, a: Any, p: Any) -> dict[str, Any]:
    absorbed = p.ka * a.depot
    c = a.central / p.v
    return dict(depot=-absorbed, central=absorbed - p.vm * c / (p.km + c))


def response(t: Any, a: Any, p: Any) -> dict[str, Any]:
    """Effect compartment and inhibited production: Hill power 1.5, a circadian rhythm, a floor."""
    absorbed = p.ka * a.depot
    ce = a.ce.clamp(min=0.0)
    effect = ce**p.gamma / (p.ic50**p.gamma + ce**p.gamma)
    rhythm = 1 + 0.2 * torch.cos(0.3 * t)
    return dict(
        depot=-absorbed,
        central=absorbed - p.cl / p.v * a.central,
        ce=p.ke0 * (a.central / p.v - a.ce),
        resp=p.kin * rhythm * (1 - effect) - p.kout * a.resp,
    )


def response_start(p: Any) -> dict[str, Any]:
    return dict(resp=p.kin / p.kout, depot=100.0)


def saturable_start(p: Any) -> dict[str, Any]:
    return dict(depot=p.dose)


SATURABLE = dict(ka=1.1, vm=9.0, v=12.0, km=1.4, dose=100.0)
RESPONSE = dict(ka=1.2, cl=3.0, v=20.0, ke0=0.4, ic50=1.1, gamma=1.5, kin=5.0, kout=0.25)
CASES = {
    "saturable": (saturable, saturable_start, SATURABLE),
    "response": (response, response_start, RESPONSE),
}


# -- the same systems written by hand for numpy, free of symbols ----------------------------------------------------
def saturable_by_hand(t: float, y: np.ndarray, p: Mapping[str, Any]) -> np.ndarray:
    c = y[1] / p["v"]
    return np.array([-p["ka"] * y[0], p["ka"] * y[0] - p["vm"] * c / (p["km"] + c)])


def response_by_hand(t: float, y: np.ndarray, p: Mapping[str, Any]) -> np.ndarray:
    ce = y[2] if y[2].real > 0 else 0 * y[2]
    hill = ce ** p["gamma"] / (p["ic50"] ** p["gamma"] + ce ** p["gamma"]) if ce.real > 0 else 0.0
    made = p["kin"] * (1 + 0.2 * np.cos(0.3 * t)) * (1 - hill)
    concentration = y[1] / p["v"]
    return np.array(
        [
            -p["ka"] * y[0],
            p["ka"] * y[0] - p["cl"] * concentration,
            p["ke0"] * (concentration - y[2]),
            made - p["kout"] * y[3],
        ]
    )


BY_HAND: dict[str, tuple[Callable[..., np.ndarray], Callable[[Mapping[str, Any]], list[Any]]]] = {
    "saturable": (saturable_by_hand, lambda p: [p["dose"], 0.0]),
    "response": (response_by_hand, lambda p: [100.0, 0.0, 0.0, p["kin"] / p["kout"]]),
}
TIMES = np.array([0.0, 0.7, 2.0, 6.0, 15.0])


def solved_by_hand(name: str, p: Mapping[str, Any]) -> np.ndarray:
    rates, start = BY_HAND[name]
    y0 = np.array(start(p), dtype=complex)
    run = solve_ivp(lambda t, y: rates(t, y, p), (0, TIMES[-1]), y0, "DOP853", TIMES, rtol=1e-12, atol=1e-12)
    return run.y


def slope_by_hand(name: str, p: Mapping[str, float], q: str) -> np.ndarray:
    """dy/dp_q by a complex step through the solver, [state, time]."""
    return solved_by_hand(name, {**p, q: p[q] + 1e-30j}).imag / 1e-30


def curvature_by_hand(name: str, p: Mapping[str, float], q: str, r: str) -> np.ndarray:
    """d2y/dp_q dp_r: fourth-order differences of complex steps."""
    h = 4e-3 * p[r]
    weights = {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}
    return sum(w * slope_by_hand(name, {**p, r: p[r] + k * h}, q) for k, w in weights.items()) / h


# -- a graph as a plain Python function --------------------------------------------------------------------------------
OPERATIONS = {
    "add": "{} + {}",
    "sub": "{} - {}",
    "mul": "{} * {}",
    "reciprocal": "1 / {}",
    "pow": "{} ** {}",
    "where": "({1} if {0} else {2})",
    "lt": "{} < {}",
    "le": "{} <= {}",
    "eq": "{} == {}",
    "and": "{} and {}",
}


def compiled(outputs: tuple[Symbol, ...], states: int) -> Callable[..., list[float]]:
    """f(t, y, p) with y the components; by printing, a reading of the graph that `evaluate` has no part in."""
    lines, names = [], {}
    for x in topological(outputs):
        if x.op == "const":
            names[x.number] = repr(x.args[0])
            continue
        if x.op == "leaf":
            kind, index = x.args
            assert kind != "component" or index >= states
            names[x.number] = {"time": "t", "param": f"p[{index}]"}.get(kind, f"y[{index}]")
            continue
        args = [f"({names[a.number]})" for a in x.args]
        formula = OPERATIONS.get(x.op, f"np.{x.op}({{}})").format(*args)
        # a branch that is not taken may have no value
        names[x.number] = f"v{x.number}"
        lines.append(f"    try: v{x.number} = {formula}\n    except ZeroDivisionError: v{x.number} = np.nan")
    body = "\n".join([*lines, f"    return [{', '.join(names[x.number] for x in outputs)}]"])
    space: dict[str, Any] = {"np": np}
    exec(f"def f(t, y, p):\n{body}", space)
    function: Callable[..., list[float]] = space["f"]
    return function


def system(name: str, order: int) -> tuple[Components, list[float]]:
    dynamics, initial, p = CASES[name]
    equations = Equations.trace(dynamics, initial)
    return equations.components(order), [p[k] for k in equations.parameters]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_sensitivities_against_a_system_written_by_hand(name: str) -> None:
    """Values to 1e-9 of their peak, first derivatives to 1e-8, second to 1e-6; what is left out is zero."""
    components, p = system(name, 2)
    d, names = len(components.equations.compartments), components.equations.parameters
    rates, start = compiled(components.rates, d), compiled(components.initial, d)
    run = solve_ivp(
        lambda t, y: rates(t, y, p),
        (0, TIMES[-1]),
        start(0.0, [], p),
        "DOP853",
        TIMES,
        rtol=1e-11,
        atol=1e-11,
    )
    by_name = CASES[name][2]
    value = solved_by_hand(name, by_name).real
    peak = np.abs(value).max(1)
    np.testing.assert_allclose(run.y[:d] / peak[:, None], value / peak[:, None], atol=1e-9)
    for q, first in enumerate(names):
        got = _table(components, run.y, (q,), d) * p[q]
        expected = slope_by_hand(name, by_name, first) * p[q]
        np.testing.assert_allclose(got / peak[:, None], expected / peak[:, None], atol=1e-8)
    rng = np.random.default_rng(1)
    pairs = [(q, r) for q in range(len(p)) for r in range(q, len(p))]
    for k in rng.permutation(len(pairs))[:12]:
        q, r = pairs[k]
        got = _table(components, run.y, (q, r), d) * p[q] * p[r]
        expected = curvature_by_hand(name, by_name, names[q], names[r]) * p[q] * p[r]
        np.testing.assert_allclose(got / peak[:, None], expected / peak[:, None], atol=1e-6)


def _table(components: Components, y: np.ndarray, directions: tuple[int, ...], d: int) -> np.ndarray:
    rows = [components.index.get((i, directions)) for i in range(d)]
    return np.array([np.zeros(y.shape[1]) if c is None else y[c] for c in rows])


def _leaves(t: Any, y: list[Any], p: list[Any], force: list[Any] | None = None) -> Callable[[str, int], Any]:
    table = {"time": [t], "state": y, "component": y, "param": p, "forcing": force or []}
    return lambda kind, index: torch.as_tensor(table[kind][index], dtype=torch.float64)


def _runge_kutta(rates: Callable[[float, list[Any]], list[Any]], y: list[Any], steps: int) -> list[Any]:
    h = 0.05
    for n in range(steps):
        t = n * h
        k1 = rates(t, y)
        k2 = rates(t + h / 2, [a + k * (h / 2) for a, k in zip(y, k1, strict=True)])
        k3 = rates(t + h / 2, [a + k * (h / 2) for a, k in zip(y, k2, strict=True)])
        k4 = rates(t + h, [a + k * h for a, k in zip(y, k3, strict=True)])
        y = [a + (u + 2 * v + 2 * w + z) * (h / 6) for a, u, v, w, z in zip(y, k1, k2, k3, k4, strict=True)]
    return y


def chain(t: Any, a: Any, p: Any) -> dict[str, Any]:
    """A one-way chain with a side branch: many structural zeros."""
    return dict(
        first=-p.k1 * a.first,
        second=p.k1 * a.first - p.k2 * a.second,
        third=p.k2 * a.second - p.k3 * a.third * a.third,
        side=p.s * a.second - torch.exp(-p.u) * a.side,
        alone=-p.w * a.alone,
    )


STRUCTURES: dict[str, tuple[Any, Any, dict[str, float]]] = {
    **CASES,
    "oral": (oral, lambda p: dict(depot=3.0), dict(ka=1.1, cl=0.7, v=2.0)),
    "chain": (
        chain,
        lambda p: dict(first=2.0, alone=torch.sqrt(p.w)),
        dict(k1=1.1, k2=0.7, k3=0.4, s=0.3, u=0.2, w=1.3),
    ),
    "dosed chain": (
        chain,
        lambda p: dict(alone=p.w),
        dict(k1=1.1, k2=0.7, k3=0.4, s=0.3, u=0.2, w=1.3, f=0.8, unused=1.0),
    ),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_one_method_on_taylor_numbers_and_on_components(name: str) -> None:
    """Differentiating a Runge-Kutta step is stepping the sensitivities: equal to rounding, component by component.

    The dense run on Taylor numbers carries every derivative; those that are left out are zero there.
    """
    dynamics, initial, by_name = STRUCTURES[name]
    dosed = name == "dosed chain"
    equations = Equations.trace(dynamics, initial, 0, ("f", "unused") if dosed else ())
    assert set(equations.parameters) == set(by_name)
    n, d = len(equations.parameters), len(equations.compartments)
    place = {k: q for q, k in enumerate(equations.parameters)}
    injected = frozenset([(0, place["f"])]) if dosed else frozenset()
    components = equations.components(2, injected)

    p = Taylor.seed(torch.tensor([by_name[k] for k in equations.parameters], dtype=torch.float64), 2)
    space = Named(dict(zip(equations.parameters, p, strict=True)))

    def dense(t: float, y: list[Any]) -> list[Any]:
        out = dynamics(
            torch.tensor(t, dtype=torch.float64),
            Named(dict(zip(equations.compartments, y, strict=True))),
            space,
        )
        return [out[k] for k in equations.compartments]

    zero = p[0] * 0.0
    start = initial(space)
    y = [zero + start.get(k, 0.0) for k in equations.compartments]
    y[0] = y[0] + 5 * p[place["f"]] ** 2 if dosed else y[0]
    dose = y[0]
    expected = _runge_kutta(dense, y, 20)

    numbers = [x.value for x in p]
    first = [
        torch.as_tensor(v, dtype=torch.float64).reshape(1)
        for v in evaluate(components.initial, _leaves(0.0, [], numbers))
    ]
    if dosed:
        q = place["f"]
        first[0] = dose.value
        first[components.index[0, (q,)]] = dose.jac[q]
        first[components.index[0, (q, q)]] = dose.dense_hess()[q, q]

    def sparse(t: float, y: list[Any]) -> list[Any]:
        return evaluate(components.rates, _leaves(t, y, numbers))

    got = _runge_kutta(sparse, first, 20)
    for i in range(d):
        jac, hess = expected[i].full()[1], expected[i].dense_hess()
        wanted = {(): expected[i].value, **{(q,): jac[q] for q in range(n)}}
        wanted |= {(q, r): hess[q, r] for q in range(n) for r in range(q, n)}
        for w, exact in wanted.items():
            c = components.index.get((i, w))
            mine = torch.zeros(1, dtype=torch.float64) if c is None else got[c]
            torch.testing.assert_close(mine, exact.reshape(1), rtol=1e-10, atol=1e-12)


def test_structural_zeros_are_left_out_and_nothing_else() -> None:
    """The indirect response without rhythm: 19 of 32 components at order 1; at order 2 those below, by hand."""

    def page(t: Any, a: Any, p: Any) -> dict[str, Any]:
        absorbed = p.ka * a.depot
        h = a.ce**1.5 / (p.ic50**1.5 + a.ce**1.5)
        return dict(
            depot=-absorbed,
            central=absorbed - p.cl / p.v * a.central,
            ce=p.ke0 * (a.central / p.v - a.ce),
            resp=p.kin * (1 - h) - p.kout * a.resp,
        )

    equations = Equations.trace(page)
    assert len(equations.components(1).keys) == 19
    names = equations.parameters
    alive = {(i, tuple(names[q] for q in w)) for i, w in equations.components(2).keys if len(w) == 2}
    reaches = [("ka",), ("ka", "cl", "v"), ("ka", "cl", "v", "ke0")]
    by_hand = set()
    for i, known in enumerate(reaches):
        by_hand |= {(i, pair) for pair in _pairs(names, known)}
    # production is linear in kin and loss in kout: no second derivative in kin alone
    everything = _pairs(names, names)
    by_hand |= {(3, pair) for pair in everything if pair != ("kin", "kin")}
    assert alive == by_hand
    keys = equations.components(2).keys
    assert list(keys) == sorted(keys, key=lambda key: (len(key[1]), key[1], key[0]))


def _pairs(names: tuple[str, ...], known: tuple[str, ...]) -> set[tuple[str, str]]:
    inside = [k for k in names if k in known]
    return {(a, b) for n, a in enumerate(inside) for b in inside[n:]}


def test_a_moved_dose_reaches_what_a_condition_reads() -> None:
    """A dose moved by a lag moves the time at which another rate switches, though no derivative passes there."""

    def page(t: Any, a: Any, p: Any) -> dict[str, Any]:
        return dict(depot=-a.depot, other=torch.where(a.depot > 1.0, p.k, 0.0))

    equations = Equations.trace(page, None, 0, ("lag",))
    keys = equations.components(1, frozenset([(0, 1)])).keys
    assert (1, (1,)) in keys
    assert (1, (1,)) not in equations.components(1).keys


def test_acceleration_is_the_second_time_derivative() -> None:
    """d/dt of f(t, y(t)) with y' = f + forcing, by a difference along that direction."""
    components, p = system("response", 0)
    y, force = [20.0, 30.0, 0.8, 17.0], [1.0, 0.0, 0.0, 2.0]
    t, h = 1.3, 1e-5
    f = compiled(components.rates, 4)
    speed = np.array(f(t, y, p)) + force
    ahead, behind = (np.array(f(t + s * h, np.array(y) + s * h * speed, p)) for s in (1, -1))
    got = [float(v) for v in evaluate(components.acceleration, _leaves(t, y, p, force))]
    np.testing.assert_allclose(got, (ahead - behind) / (2 * h), rtol=1e-8)


# -- what is read -----------------------------------------------------------------------------------------------------
def test_names_in_order_of_reading() -> None:
    equations = Equations.trace(response, response_start)
    assert equations.compartments == ("depot", "central", "ce", "resp")
    assert equations.parameters == ("kin", "kout", "ka", "gamma", "ic50", "cl", "v", "ke0")
    assert not equations.autonomous
    assert not equations.linear
    extended = Equations.trace(response, response_start, 0, ("lag", "ka"))
    assert extended.parameters == (*equations.parameters, "lag")


def test_entries_may_be_plain_numbers() -> None:
    equations = Equations.trace(
        lambda t, a, p: dict(x=-p["k"] * a["x"], y=0.0, z=torch.tensor(1.0)), lambda p: dict(y=2)
    )
    g = equations.graph
    assert equations.rates[1] is g.zero
    assert equations.rates[2] is g.one
    assert [x.args[0] for x in equations.initial] == [0.0, 2.0, 0.0]
    assert equations.components(2).keys[:3] == ((0, ()), (1, ()), (2, ()))


@pytest.mark.parametrize(
    ("page", "linear", "autonomous"),
    [
        (oral, True, True),
        (lambda t, a, p: dict(x=p.r - p.k * (a.x + 2 * a.x) / p.v), True, True),
        (lambda t, a, p: dict(x=torch.where(p.k > 1, -p.k * a.x, -a.x)), True, True),
        (lambda t, a, p: dict(x=-p.k * a.x + torch.sin(t)), False, False),
        (lambda t, a, p: dict(x=-p.k * a.x * t), False, False),
        (lambda t, a, p: dict(x=-p.k * a.x**2), False, True),
        (lambda t, a, p: dict(x=torch.where(a.x > 1, -p.k, 0.0)), False, True),
        (lambda t, a, p: dict(x=torch.where(t > 1, -p.k * a.x, 0.0)), False, False),
        (lambda t, a, p: dict(x=-p.k * a.x.clamp(min=0.0)), False, True),
        (saturable, False, True),
    ],
)
def test_linear_and_autonomous_are_seen(page: Any, linear: bool, autonomous: bool) -> None:
    equations = Equations.trace(page)
    assert (equations.linear, equations.autonomous) == (linear, autonomous)


def test_matrix_of_a_linear_page() -> None:
    page = lambda t, a, p: dict(x=p.r - p.k * a.x + a.y, y=p.k * a.x - 3 * a.y)  # noqa: E731
    a, b = Equations.trace(page).matrix()
    flat = [float(v) for v in evaluate([*a[0], *a[1], *b], _leaves(0.0, [], [5.0, 0.7]))]
    assert flat == [-0.7, 1.0, 0.7, -3.0, 5.0, 0.0]
    with pytest.raises(ValueError, match="not linear"):
        Equations.trace(saturable).matrix()


def test_digest_is_of_the_equations() -> None:
    def again(t: Any, a: Any, p: Any) -> dict[str, Any]:
        absorption = a.depot * p.ka
        return dict(depot=-absorption, central=absorption - p.cl / p.v * a.central)

    digest = Equations.trace(oral).digest
    assert Equations.trace(again).digest == digest
    others = [
        Equations.trace(oral, lambda p: dict(depot=1.0)),
        Equations.trace(oral, None, 3),
        Equations.trace(oral, None, 0, ("lag",)),
        Equations.trace(saturable),
        Equations.trace(
            lambda t, a, p: dict(depot=-p.ka * a.depot, central=p.ka * a.depot - 2 * p.cl / p.v * a.central)
        ),
    ]
    assert len({digest, *(e.digest for e in others)}) == 6
    script = (
        "from nlmegen.structure.equations import Equations\n"
        "f = lambda t, a, p: dict(depot=-p.ka * a.depot, central=p.ka * a.depot - p.cl / p.v * a.central)\n"
        "print(Equations.trace(f).digest)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    assert run.stdout.strip() == digest


# -- what is refused --------------------------------------------------------------------------------------------------
def _if(t: Any, a: Any, p: Any) -> Any:
    if a.x > 1:
        return dict(x=-a.x)
    return dict(x=a.x)


def _math(t: Any, a: Any, p: Any) -> Any:
    import math

    return dict(x=-math.exp(p.k) * a.x)


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (_if, r"test_equations\.py, line \d+: a Python `if`"),
        (_math, r"test_equations\.py, line \d+: .*torch\.exp"),
        (lambda t, a, p: [a.x], "dynamics must return a dict by compartment, got list"),
        (lambda t, a, p: {1: a.x}, "got the key 1"),
        (lambda t, a, p: {}, "returns no compartment"),
        (lambda t, a, p: dict(central=-p.k * a.centrl), "a.centrl: .*Did you mean 'central'"),
        (lambda t, a, p: dict(x="fast"), "the entry 'x' must be a number or a tensor, got str"),
        (lambda t, a, p: dict(x=-p.k * a.x.exp_()), "exp_ would overwrite"),
        (lambda t, a, p: dict(x=undefined * a.x), "dynamics fails: NameError"),  # noqa: F821
    ],
)
def test_mistakes_name_the_line_and_the_remedy(page: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        Equations.trace(page)
    assert caught.value.page == "test_equations.py"
    assert caught.value.line is not None


def test_initial_may_name_compartments_alone() -> None:
    with pytest.raises(ModelError, match="initial returns 'depott'.*Did you mean 'depot'"):
        Equations.trace(oral, lambda p: dict(depott=1.0))


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (lambda t, a, p: dict(x=torch.cumsum(a.x, 0)), "torch.cumsum has no compiled form"),
        (lambda t, a, p: dict(x=a.x[..., :1]), "dynamics has a step without compiled form .*subscriptable"),
        (lambda t, a, p: dict(x=torch.ones(2, 1)), r"shape \(2, 1\)"),
        (lambda t, a, p: dict(x=sum(p[k] for k in p)), "loop over the names in p"),
    ],
)
def test_what_the_compiler_cannot_do_has_a_reason(page: Any, words: str) -> None:
    with pytest.raises(Untraceable, match=words):
        Equations.trace(page)


def test_orders_are_checked() -> None:
    with pytest.raises(ValueError, match="0, 1 or 2, got 3"):
        Equations.trace(oral).components(3)


# -- size -------------------------------------------------------------------------------------------------------------
def _operations(outputs: tuple[Symbol, ...]) -> int:
    return sum(x.op not in ("leaf", "const") for x in topological(outputs))


def test_fifteen_tissues_and_thirty_parameters() -> None:
    def page(t: Any, a: Any, p: Any) -> dict[str, Any]:
        arterial, out, back, flow = a["blood"] / p.vb, {}, 0.0, 0.0
        for k in range(14):
            leaving = p[f"q{k}"] * a[f"tissue{k}"] / p[f"k{k}"]
            out[f"tissue{k}"] = p[f"q{k}"] * arterial - leaving
            back, flow = back + leaving, flow + p[f"q{k}"]
        return dict(**out, blood=back - flow * arterial - p.cl * arterial)

    equations = Equations.trace(page)
    components = equations.components(1)
    assert equations.linear
    assert len(equations.parameters) == 30
    assert len(components.keys) == 15 * 31
    # five operations a component; dense Jacobians would take thirty
    assert _operations(components.rates) < 5 * 465


def _network(sizes: tuple[int, ...], x: list[Any]) -> Any:
    g, k = x[0].graph, 0
    for before, after in zip(sizes, sizes[1:], strict=False):
        y = []
        for i in range(after):
            place = k + i * before
            y.append(
                g.weight(k + before * after + i) + sum(g.weight(place + j) * x[j] for j in range(before))
            )
        x, k = (y if after == 1 else [torch.tanh(v) for v in y]), k + (before + 1) * after
    return x[0]


@pytest.mark.parametrize(
    ("sizes", "order", "limit"), [((2, 8, 1), 1, 250), ((2, 8, 1), 2, 700), ((3, 8, 8, 1), 1, 1100)]
)
def test_networks_as_formulas(sizes: tuple[int, ...], order: int, limit: int) -> None:
    """Sensitivities cost a small multiple of the network, not of its weights; derivatives are right."""

    def page(t: Any, a: Any, p: Any) -> dict[str, Any]:
        inputs = [a.central / p.v, p.z, p.z * p.v][: sizes[0]]
        return dict(
            depot=-p.ka * a.depot, central=p.ka * a.depot - torch.exp(_network(sizes, inputs)) * a.central
        )

    weights = sum((m + 1) * n for m, n in zip(sizes, sizes[1:], strict=False))
    equations = Equations.trace(page, None, weights)
    components = equations.components(order)
    assert components.equations.n_weights == weights
    assert _operations(components.rates) < limit
    w = np.random.default_rng(0).normal(size=weights)
    c = components.index[1, (1,)]
    place = [components.index.get((i, (1,))) for i in range(2)]
    y = np.random.default_rng(1).uniform(0.5, 1.5, len(components.keys))

    def rate(shift: float) -> np.ndarray:
        """The rates of the amounts along dp_1 and the sensitivities in it."""
        p = np.array([0.9, 1.2, 0.3])[: len(equations.parameters)]
        p[1] += shift
        state = [y[i] + (0 if place[i] is None else shift * y[place[i]]) for i in range(2)]
        table = {"state": [*state], "component": [*y], "param": [*p], "weight": [*w]}
        leaf = lambda kind, index: torch.tensor(table[kind][index], dtype=torch.float64)  # noqa: E731
        return np.array([float(v) for v in evaluate([components.rates[1], components.rates[c]], leaf)])

    h = 1e-5
    assert rate(0.0)[1] == pytest.approx((rate(h)[0] - rate(-h)[0]) / (2 * h), rel=1e-8)
