"""Gradients by the adjoint against complex steps of an independent solver, closed forms and forward sensitivities."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

pytest.importorskip("llvmlite")

from nlmegen.maths.taylor import Taylor
from nlmegen.structure.equations import Equations
from nlmegen.structure.kernel import language, tape
from nlmegen.structure.kernel.adjoint import Adjoint, NoAdjoint, _Tape
from nlmegen.structure.kernel.machine import Kernel
from nlmegen.structure.solver import Solver
from nlmegen.structure.timeline import Point, Timeline

TIGHT = Solver(rtol=1e-11)
NONE = torch.zeros(0, dtype=torch.float64)
OBSERVE, BOLUS, RATE, RESET, MARK = (Point[x] for x in ("OBSERVE", "BOLUS", "RATE", "RESET", "MARK"))


def timeline(rows):
    """A timeline from rows of points (time, kind, compartment, amount); padded, observations numbered."""
    length = max(len(row) for row in rows)
    padded = [[*row, *[(0.0, MARK, 0, 0.0)] * (length - len(row))] for row in rows]
    time, kind, place, amount = (
        torch.tensor([[point[k] for point in row] for row in padded], dtype=dtype)
        for k, dtype in enumerate((torch.float64, torch.int64, torch.int64, torch.float64))
    )
    seen = kind == OBSERVE
    slot = torch.where(seen, seen.cumsum(-1) - 1, -1)
    return Timeline(
        time=time,
        kind=kind,
        compartment=place,
        amount=amount,
        slot=slot,
        segment=torch.zeros_like(kind),
        count=torch.tensor([len(row) for row in rows]),
        n_slots=int(seen.sum(-1).max()),
    )


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- Michaelis-Menten: the page, and the same with its sensitivities by hand ------------------------------------------
NAMES = ("base", "v", "ka", "vm", "km")
CENTRE = torch.tensor([0.5, 30.0, 1.0, 8.0, 1.2], dtype=torch.float64)


def dynamics(t, a, p):
    absorption, concentration = p.ka * a.depot, a.central / p.v
    return dict(depot=-absorption, central=absorption - p.vm * concentration / (p.km + concentration))


def initial(p):
    return dict(central=p.base * p.v)


def by_hand(y, p):
    """Rates of [depot, central, then the pair of sensitivities in each of the five parameters], along a last axis."""
    base, v, ka, vm, km = np.moveaxis(p, -1, 0)
    depot, c = y[..., 0], y[..., 1] / v
    out = np.zeros_like(y)
    out[..., 0], out[..., 1] = -ka * depot, ka * depot - vm * c / (km + c)
    slope = vm * km / (km + c) ** 2
    own = {
        1: (0, slope * c / v),
        2: (-depot, depot),
        3: (0, -c / (km + c)),
        4: (0, vm * c / (km + c) ** 2),
    }
    for q in range(5):
        first, second = y[..., 2 + 2 * q], y[..., 3 + 2 * q]
        source = own.get(q, (0, 0))
        out[..., 2 + 2 * q] = -ka * first + source[0]
        out[..., 3 + 2 * q] = ka * first - slope / v * second + source[1]
    return out


def begin(p):
    y = np.zeros((*p.shape[:-1], 12), dtype=p.dtype)
    y[..., 1] = p[..., 0] * p[..., 1]
    y[..., 3], y[..., 5] = p[..., 1], p[..., 0]
    return y


def walk(rates, start, p, row):
    """Everything at the observations of one row, for a batch of parameter vectors, by scipy at rtol 1e-12."""
    y, time, force, seen = start(p), row[0][0], np.zeros(2), []

    def slope(t, flat):
        out = rates(flat.reshape(y.shape), p)
        out[..., :2] += force
        return out.ravel()

    for at, kind, place, amount in row:
        if kind != RESET and at > time:
            found = solve_ivp(slope, (time, at), y.ravel(), "DOP853", rtol=1e-12, atol=1e-13)
            y = found.y[:, -1].reshape(y.shape)
        time = at
        if kind == OBSERVE:
            seen.append(y)
        elif kind == BOLUS:
            y = y.copy()
            y[..., place] += amount
        elif kind == RATE:
            force[place] = amount
        elif kind == RESET:
            y, force[:] = start(p), 0.0
    return np.stack(seen)


ROWS = [
    [
        (0.0, BOLUS, 0, 100.0),
        (0.0, OBSERVE, 0, 0.0),
        (1.3, OBSERVE, 0, 0.0),
        (3.7, RATE, 1, 12.0),
        (3.7, BOLUS, 0, 50.0),
        (3.7, OBSERVE, 0, 0.0),
        (5.0, MARK, 0, 0.0),
        (6.2, RATE, 1, 0.0),
        (6.2, OBSERVE, 0, 0.0),
        (1.0, RESET, 0, 0.0),
        (1.0, BOLUS, 1, 20.0),
        (4.0, OBSERVE, 0, 0.0),
        (4.0, BOLUS, 1, 20.0),
    ],
    [
        (1.0, OBSERVE, 0, 0.0),
        (2.0, RATE, 0, 30.0),
        (4.5, OBSERVE, 0, 0.0),
        (5.0, RESET, 0, 0.0),
        (9.0, OBSERVE, 0, 0.0),
    ],
    [
        (0.0, RATE, 1, 8.0),
        (2.5, RATE, 1, 16.0),
        (3.0, OBSERVE, 0, 0.0),
        (3.5, RATE, 1, 0.0),
        (14.0, OBSERVE, 0, 0.0),
    ],
]


@pytest.mark.parametrize(("order", "method"), [(0, "explicit"), (1, "explicit"), (1, "stiff")])
def test_gradients_of_values_and_sensitivities_are_those_of_an_independent_solver(order, method):
    equations = Equations.trace(dynamics, initial)
    place = [equations.parameters.index(name) for name in NAMES]
    kernel = Kernel.build(equations.components(order), method)
    p = CENTRE * torch.exp(0.2 * random(3, 5))
    line = timeline(ROWS)
    cotangent = random(3, line.n_slots, len(kernel.components.keys), seed=1)
    rows = torch.zeros(3, 5, dtype=torch.float64)
    rows[:, place] = p
    found = Adjoint(kernel)(rows, NONE, line, torch.arange(3), TIGHT, cotangent).parameters[:, place]
    columns = [i if not along else 2 + 2 * place.index(along[0]) + i for i, along in kernel.components.keys]
    for m, row in enumerate(ROWS):
        stepped = p[m].numpy() + 1e-30j * np.eye(5)
        slopes = walk(by_hand, begin, stepped, row)[:, :, columns].imag / 1e-30
        given = cotangent[m, : len(slopes)].numpy()
        expected = np.einsum("tc,tqc->q", given, slopes)
        scale = np.einsum("tc,tqc->q", np.abs(given), np.abs(slopes))
        assert np.abs(found[m].numpy() - expected).max() <= 1e-8 * scale.max()
        assert (np.abs(found[m].numpy() - expected) <= 1e-7 * scale).all()


# -- a page with everything: time in its rates, a choice, powers, a reading of parameters in the initial state ---------
def busy(t, a, p):
    absorption, concentration = p.ka * a.depot, torch.where(a.central > 0, a.central / p.v, 0 * p.v)
    drive = concentration**p.hill / (1 + concentration**p.hill)
    return dict(
        depot=-absorption,
        central=absorption - p.k * a.central * torch.exp(-0.1 * a.effect),
        effect=p.kin * (1 - 0.5 * drive) * (1 + 0.2 * torch.sin(0.3 * t)) - 0.4 * a.effect,
    )


def busy_start(p):
    return dict(effect=p.kin / 0.4, central=0.1 * p.v * p.k)


BUSY = dict(ka=1.1, k=0.2, v=10.0, hill=1.6, kin=2.0)


def busy_problem(order, rows=5, method="explicit"):
    equations = Equations.trace(busy, busy_start, also=("lag", "f"))
    # the doses of `modelled` depend on the last two parameters
    injected = frozenset((i, equations.parameters.index(name)) for i in (0, 1) for name in ("lag", "f"))
    kernel = Kernel.build(equations.components(order, injected), method)
    centre = dict(BUSY, lag=0.4, f=0.7)
    p = torch.tensor([centre[name] for name in equations.parameters], dtype=torch.float64)
    return kernel, p * torch.exp(0.2 * random(rows, len(p)))


def modelled(kernel, p):
    """Doses, an infusion and a dose after a reset, whose times and amounts depend on two of the parameters."""
    names = kernel.components.equations.parameters
    seeds = Taylor.seed(p, 2)
    lag, f = seeds[names.index("lag")], seeds[names.index("f")]
    rows = len(p)
    still = torch.zeros(rows, 1, dtype=torch.float64)
    one = still + 1.0
    points = [
        (still, MARK, 0, still),
        (one + 0.0 * lag, OBSERVE, 0, still),
        (one + lag * lag, BOLUS, 0, 100.0 * f * f),
        (one + 1.0, OBSERVE, 0, still),
        (one + 1.0 + 0.5 * lag, RATE, 1, 20.0 / (1 + f)),
        (one + 1.0 + 0.5 * lag + 1.0 / (1 + f * lag), BOLUS, 1, 30.0 * lag * f),
        (one + 1.0 + 0.5 * lag + 1.5 * (1 + f), RATE, 1, still),
        (one + 6.0, OBSERVE, 0, still),
        (still, RESET, 0, still),
        (0.3 * lag, BOLUS, 0, 40.0 * torch.exp(f)),
        (one + 2.0, OBSERVE, 0, still),
    ]
    kind = torch.tensor([[int(point[1]) for point in points]]).expand(rows, -1)
    seen = kind == OBSERVE
    return Timeline(
        time=torch.cat([point[0] + 0.0 * lag for point in points], -1),
        kind=kind,
        compartment=torch.tensor([[point[2] for point in points]]).expand(rows, -1),
        amount=torch.cat([point[3] + 0.0 * lag for point in points], -1),
        slot=torch.where(seen, seen.cumsum(-1) - 1, -1),
        segment=torch.zeros_like(kind),
        count=torch.full((rows,), len(points)),
        n_slots=4,
    )


def forward_gradient(components, cotangent, higher, solved):
    """The gradient in the parameters from the sensitivities of one order more."""
    n = len(components.equations.parameters)
    gradient = torch.zeros(len(cotangent), n, dtype=torch.float64)
    scale = torch.zeros_like(gradient)
    for k, (i, along) in enumerate(components.keys):
        for q in range(n):
            c = higher.index.get((i, tuple(sorted((*along, q)))))
            if c is not None:
                terms = cotangent[:, :, k] * solved[:, :, c]
                gradient[:, q] += terms.sum(-1)
                scale[:, q] += terms.abs().sum(-1)
    return gradient, scale


@pytest.mark.parametrize("method", ["explicit", "stiff"])
@pytest.mark.parametrize("order", [0, 1])
def test_modelled_doses_give_what_sensitivities_of_one_order_more_give(order, method):
    kernel, p = busy_problem(order, method=method)
    higher, _ = busy_problem(order + 1, method=method)
    line, who = modelled(kernel, p), torch.arange(len(p))
    cotangent = random(len(p), 4, len(kernel.components.keys), seed=2)
    found = Adjoint(kernel)(p, NONE, line, who, TIGHT, cotangent).parameters
    solved = higher.solve(p, NONE, line, who, TIGHT).components
    expected, scale = forward_gradient(kernel.components, cotangent, higher.components, solved)
    assert (scale > 0).all()
    assert ((found - expected).abs() <= 1e-8 * scale).all()


def test_lag_bioavailability_and_duration_agree_with_a_closed_form():
    # x' = -k x: a bolus F d at lag, an infusion of d over D that begins at 2 + lag
    equations = Equations.trace(lambda t, a, p: dict(central=-p.k * a.central), also=("f", "lag", "dur"))
    assert equations.parameters == ("k", "f", "lag", "dur")
    kernel = Kernel.build(equations.components(1, frozenset((0, q) for q in (1, 2, 3))))
    p = torch.tensor([[0.3, 0.8, 0.25, 1.7], [0.1, 0.5, 0.6, 3.0]], dtype=torch.float64)
    _, f, lag, dur = Taylor.seed(p, 2)
    still = 0.0 * lag
    kind = torch.tensor([[MARK, BOLUS, OBSERVE, OBSERVE, RATE, OBSERVE, RATE, OBSERVE]]).expand(2, -1)
    times = [still, lag, still + 0.7, still + 1.0, lag + 2.0, still + 2.9, lag + 2.0 + dur, still + 7.0]
    seen = torch.tensor([0.7, 1.0, 2.9, 7.0], dtype=torch.float64)
    line = Timeline(
        time=torch.cat(times, -1),
        kind=kind,
        compartment=torch.zeros_like(kind),
        amount=torch.cat([still, 100.0 * f, still, still, 60.0 / dur, still, still, still], -1),
        slot=torch.tensor([[-1, -1, 0, 1, -1, 2, -1, 3]]).expand(2, -1),
        segment=torch.zeros_like(kind),
        count=torch.tensor([8, 8]),
        n_slots=4,
    )

    def exact(k, f, lag, dur):
        since = (seen - 2.0 - lag).clamp(min=0.0)
        infused = torch.exp(-k * (since - torch.minimum(since, dur))) - torch.exp(-k * since)
        return 100.0 * f * torch.exp(-k * (seen - lag)) + 60.0 / dur / k * infused

    cotangent = random(2, 4, len(kernel.components.keys))
    found = Adjoint(kernel)(p, NONE, line, torch.arange(2), TIGHT, cotangent).parameters
    for m in range(2):
        at = p[m].clone().requires_grad_()
        jac = torch.autograd.functional.jacobian(lambda x: exact(*x), at, create_graph=True)
        columns = [exact(*at), *jac.unbind(-1)]
        total = sum(
            (cotangent[m, :, c] * columns[1 + along[0] if along else 0]).sum()
            for c, (_, along) in enumerate(kernel.components.keys)
        )
        (expected,) = torch.autograd.grad(total, at)
        torch.testing.assert_close(found[m], expected, rtol=1e-7, atol=1e-7 * float(expected.abs().max()))


def binding(t, a, p):
    """Target-mediated disposition, with fast binding."""
    bound = 1000.0 * p.kon * a.free * a.target - p.koff * a.complex
    return dict(
        free=-p.kel * a.free - bound,
        target=p.kin - p.kout * a.target - bound,
        complex=bound - p.kint * a.complex,
    )


@pytest.mark.parametrize("order", [0, 1])
def test_a_stiff_page_gives_what_sensitivities_of_one_order_more_give(order):
    equations = Equations.trace(binding, lambda p: dict(target=p.kin / p.kout))
    kernel, higher = (Kernel.build(equations.components(k), "stiff") for k in (order, order + 1))
    centre = dict(kel=0.05, kon=0.091, koff=0.001, kin=0.11, kout=0.0089, kint=0.003)
    p = torch.tensor([centre[x] for x in equations.parameters], dtype=torch.float64)
    p = p * torch.exp(0.2 * random(3, 6))
    row = [(0.0, BOLUS, 0, 100.0), (5.0, OBSERVE, 0, 0.0), (150.0, OBSERVE, 0, 0.0), (300.0, OBSERVE, 0, 0.0)]
    line, who, solver = (
        timeline([row]),
        torch.zeros(3, dtype=torch.int64),
        Solver(rtol=1e-9, max_steps=100_000),
    )
    cotangent = random(3, 3, len(kernel.components.keys), seed=2)
    found = Adjoint(kernel)(p, NONE, line, who, solver, cotangent)
    solved = higher.solve(p, NONE, line, who, solver)
    expected, scale = forward_gradient(kernel.components, cotangent, higher.components, solved.components)
    assert not found.status.any()
    assert ((found.parameters - expected).abs() <= 1e-6 * scale).all()


# -- networks ---------------------------------------------------------------------------------------------------------
def network(hidden, weight):
    """Two inputs, one hidden layer of tanh, one output; `weight(k)` gives a weight."""

    def net(x, z, tanh):
        total = weight(4 * hidden)
        for j in range(hidden):
            inner = weight(j) * x + weight(hidden + j) * z + weight(2 * hidden + j)
            total = total + weight(3 * hidden + j) * tanh(inner)
        return total

    return net


def learned(hidden, p_weights=False):
    """Michaelis-Menten elimination modulated by a network, and an initial state that reads a weight."""

    def run(t, a, p):
        graph = getattr(a.depot, "graph", None)
        source = (lambda k: p[f"w{k}"]) if p_weights else (lambda k: graph.weight(k))
        concentration = a.central / p.v
        out = network(hidden, source)(concentration, 0.02 * a.depot, torch.tanh)
        uptake = p.ka * a.depot
        return dict(
            depot=-uptake, central=uptake - p.vm * concentration / (1 + concentration) * torch.exp(out)
        )

    return run


LEARNED_ROWS = [
    [(0.0, BOLUS, 0, 60.0), (0.6, OBSERVE, 0, 0.0), (4.1, BOLUS, 0, 30.0), (9.0, OBSERVE, 0, 0.0)],
    [(0.0, RATE, 0, 20.0), (2.0, RATE, 0, 0.0), (3.0, OBSERVE, 0, 0.0), (5.5, OBSERVE, 0, 0.0)],
]


def test_gradient_in_the_weights_is_that_of_an_independent_solver():
    hidden, count = 8, 33
    equations = Equations.trace(learned(hidden), n_weights=count)
    kernel = Kernel.build(equations.components(0))
    weights = 0.3 * random(count, seed=3)
    p = torch.tensor([[30.0, 1.0, 8.0], [25.0, 1.3, 6.0]], dtype=torch.float64)
    order = [("v", "ka", "vm").index(name) for name in equations.parameters]
    line, cotangent = timeline(LEARNED_ROWS), random(2, 2, 2, seed=4)
    rows = p[:, order]
    adjoint = Adjoint(kernel)
    each = adjoint(rows, weights, line, torch.arange(2), TIGHT, cotangent, per_row=True)
    summed = adjoint(rows, weights, line, torch.arange(2), TIGHT, cotangent)
    assert torch.equal(each.parameters, summed.parameters)
    torch.testing.assert_close(each.weights.sum(0), summed.weights, rtol=1e-13, atol=1e-13)
    # along three directions at once, by complex steps
    directions = random(3, count, seed=5).numpy()
    stepped = weights.numpy() + 1e-30j * directions
    for m, row in enumerate(LEARNED_ROWS):
        v, ka, vm = p[m].numpy()

        def rates(y, w, v=v, ka=ka, vm=vm):
            depot, c = y[..., 0], y[..., 1] / v
            out = network(hidden, lambda k: w[..., k])(c, 0.02 * depot, np.tanh)
            return np.stack([-ka * depot, ka * depot - vm * c / (1 + c) * np.exp(out)], -1)

        slopes = walk(rates, lambda w: np.zeros((3, 2), complex), stepped, row).imag / 1e-30
        expected = np.einsum("tc,tqc->q", cotangent[m].numpy(), slopes)
        scale = np.einsum("tc,tqc->q", np.abs(cotangent[m].numpy()), np.abs(slopes)).max()
        assert np.abs(directions @ each.weights[m].numpy() - expected).max() <= 1e-8 * scale


@pytest.mark.parametrize("method", ["explicit", "stiff"])
def test_gradient_of_sensitivities_in_the_weights_is_that_of_the_same_page_with_weights_as_parameters(method):
    hidden, count = 2, 9
    kernel = Kernel.build(Equations.trace(learned(hidden), n_weights=count).components(1), method)
    names = kernel.components.equations.parameters
    other = Equations.trace(learned(hidden, p_weights=True))
    higher = Kernel.build(other.components(2))
    weights = 0.4 * random(count, seed=6)
    p = torch.tensor([30.0, 1.0, 8.0], dtype=torch.float64) * torch.exp(0.2 * random(2, 3))
    p = p[:, [("v", "ka", "vm").index(name) for name in names]]
    every = torch.stack(
        [p[:, names.index(x)] if x in names else weights[int(x[1:])].expand(2) for x in other.parameters], -1
    )
    line, who = timeline(LEARNED_ROWS), torch.arange(2)
    solved = higher.solve(every, NONE, line, who, TIGHT).components
    cotangent = random(2, 2, len(kernel.components.keys), seed=7)
    found = Adjoint(kernel)(p, weights, line, who, TIGHT, cotangent, per_row=True)
    for q, name in enumerate(other.parameters):
        expected, scale = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        for k, (i, along) in enumerate(kernel.components.keys):
            key = tuple(sorted([*(other.parameters.index(names[r]) for r in along), q]))
            if (i, key) in higher.components.index:
                terms = cotangent[:, :, k] * solved[:, :, higher.components.index[i, key]]
                expected, scale = expected + terms.sum(-1), scale + terms.abs().sum(-1)
        given = found.parameters[:, names.index(name)] if name in names else found.weights[:, int(name[1:])]
        assert (scale > 0).all()
        assert ((given - expected).abs() <= 1e-8 * scale).all()


# -- memory, failures, limits ------------------------------------------------------------------------------------------
def many(rows=60):
    equations = Equations.trace(learned(2), lambda p: dict(central=0.1 * p.v), n_weights=9)
    kernel = Kernel.build(equations.components(1))
    centre = dict(v=30.0, ka=1.0, vm=8.0)
    p = torch.tensor([centre[x] for x in equations.parameters], dtype=torch.float64)
    p = p * torch.exp(0.3 * random(rows, 3))
    cotangent = random(rows, 2, len(kernel.components.keys), seed=8)
    return kernel, p, 0.3 * random(9, seed=9), timeline(LEARNED_ROWS), torch.arange(rows) % 2, cotangent


@pytest.mark.parametrize("memory", [1, 50_000, 400_000])
def test_blocks_of_any_size_give_the_same_bits(memory):
    kernel, p, weights, line, who, cotangent = many()
    adjoint = Adjoint(kernel)
    whole = adjoint(p, weights, line, who, Solver(), cotangent)
    blocks = adjoint(p, weights, line, who, Solver(), cotangent, memory=memory)
    alone = adjoint(p[7:8], weights, line, who[7:8], Solver(), cotangent[7:8])
    assert torch.equal(whole.parameters, blocks.parameters)
    assert torch.equal(whole.weights, blocks.weights)
    assert torch.equal(whole.parameters[7:8], alone.parameters)
    assert (whole.parameters != 0).all()
    assert (whole.weights != 0).all()


def test_threads_change_no_bit():
    kernel, p, weights, line, who, cotangent = many(600)
    adjoint = Adjoint(kernel)
    one = adjoint(p, weights, line, who, Solver(), cotangent)
    two = adjoint(p, weights, line, who, Solver(), cotangent, n_threads=2, memory=500_000)
    assert torch.equal(one.parameters, two.parameters)
    assert torch.equal(one.weights, two.weights)
    each = adjoint(p, weights, line, who, Solver(), cotangent, per_row=True)
    torch.testing.assert_close(each.weights.sum(0), one.weights, rtol=1e-12, atol=1e-12)


def test_tape_stays_within_its_memory(monkeypatch):
    kernel, p, weights, line, who, cotangent = many(200)
    sizes, reserve = [], _Tape._reserve

    def watched(self, capacity):
        reserve(self, capacity)
        sizes.append(self.bytes)

    monkeypatch.setattr(_Tape, "_reserve", watched)
    Adjoint(kernel)(p, weights, line, who, Solver(), cotangent, memory=300_000)
    assert 200_000 < max(sizes) <= 300_000


def test_rows_that_fail_have_a_status_and_no_gradient_and_disturb_nobody():
    kernel, p, weights, line, who, cotangent = many(20)
    broken = p.clone()
    broken[3] = torch.nan
    broken[11, kernel.components.equations.parameters.index("vm")] = 1e9
    solver, adjoint = Solver(max_steps=300), Adjoint(kernel)
    good = adjoint(p, weights, line, who, solver, cotangent, per_row=True)
    found = adjoint(broken, weights, line, who, solver, cotangent, per_row=True)
    expected = kernel.solve(broken, weights, line, who, solver).status
    assert torch.equal(found.status, expected)
    assert expected[[3, 11]].tolist() == [3, 1]
    rest = expected == 0
    assert rest.sum() == 18
    assert torch.equal(found.parameters[rest], good.parameters[rest])
    assert torch.equal(found.weights[rest], good.weights[rest])
    assert not found.parameters[~rest].any()
    assert not found.weights[~rest].any()


def test_every_index_is_inside_its_array(monkeypatch):
    """The way back as ordinary Python, with every index checked: the bits of the compiled one."""
    kernel, p = busy_problem(1, rows=3)
    line, who = modelled(kernel, p), torch.arange(3)
    cotangent = random(3, 4, len(kernel.components.keys), seed=2)
    adjoint, solver = Adjoint(kernel), Solver(rtol=1e-4)
    expected = adjoint(p, NONE, line, who, solver, cotangent)

    def slowly(address):
        tape.rewind(language.integers(address, (tape.N_BACK_WORDS,)))

    monkeypatch.setattr(adjoint, "_rewind", slowly)
    assert torch.equal(adjoint(p, NONE, line, who, solver, cotangent).parameters, expected.parameters)


def test_what_has_no_adjoint_says_so():
    kernel, p = busy_problem(2, rows=2)
    line, who = modelled(kernel, p), torch.arange(2)
    cotangent = torch.zeros(2, 4, len(kernel.components.keys), dtype=torch.float64)
    with pytest.raises(NoAdjoint, match="order 2"):
        Adjoint(kernel)(p, NONE, line, who, Solver(), cotangent)
    with pytest.raises(ValueError, match="expected cotangents"):
        Adjoint(kernel)(p[:1], NONE, timeline(ROWS[:1]), who[:1], Solver(), cotangent[:1, :1])
