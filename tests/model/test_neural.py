"""Networks of a page: values, derivatives in the inputs and in the weights, formulas, starts, refusals."""

from __future__ import annotations

import itertools

import mpmath
import pandas as pd
import pytest
import torch

import nlmegen as nl
from nlmegen.errors import ModelError
from nlmegen.maths.taylor import Taylor
from nlmegen.model.declare import declared
from nlmegen.model.neural import TRACED, Networks, Neural
from nlmegen.structure.derive import evaluate
from nlmegen.structure.trace import Graph, Untraceable

EXACT = {
    "tanh": mpmath.tanh,
    "softplus": lambda x: mpmath.log(1 + mpmath.exp(x)),
    "silu": lambda x: x / (1 + mpmath.exp(-x)),
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
}
CASES = [("tanh", (5,)), ("softplus", (4, 3)), ("silu", (3,)), ("sigmoid", (3, 2))]


class Page:
    """The part of a page that networks need."""

    slope = Neural(inputs=1, hidden=(3,), seed=4)
    net = Neural(inputs=2, hidden=(5,), outputs=2, activation="silu", penalty=0.5, scale=(10.0, 1.0), seed=1)

    def __init__(self, weights=None):
        self.networks = Networks(declared(type(self), Neural))
        self.weights = self.networks.start() if weights is None else weights


def exact(net, weights, inputs):
    """The outputs in 40 digits, one weight and one unit at a time."""
    values = [mpmath.mpf(x) / mpmath.mpf(s) for x, s in zip(inputs, net.scale, strict=True)]
    rest = iter(weights)
    layers = (*net.hidden, net.outputs)
    for layer, width in enumerate(layers):
        matrix = [[next(rest) for _ in values] for _ in range(width)]
        sums = [
            sum((w * v for w, v in zip(row, values, strict=True)), mpmath.mpf(0)) + next(rest)
            for row in matrix
        ]
        values = sums if layer == len(layers) - 1 else [EXACT[net.activation](s) for s in sums]
    return values


def network(net, weights=None):
    networks = Networks({"net": net})
    return networks.bound("net", 3 * networks.start() if weights is None else weights)


def plain(weights):
    return [mpmath.mpf(float(w)) for w in weights]


@pytest.fixture(autouse=True)
def _digits():
    with mpmath.workdps(40):
        yield


@pytest.mark.parametrize(("activation", "hidden"), CASES)
def test_values_are_those_of_the_formula(activation, hidden) -> None:
    net = Neural(
        inputs=2, hidden=hidden, outputs=2, activation=activation, scale=(8.0, 0.5), seed=sum(hidden)
    )
    at = network(net)
    x = torch.tensor([[-30.0], [0.3], [2.0], [900.0]], dtype=torch.float64)
    z = torch.tensor([0.7, -1.1, 30.0], dtype=torch.float64)
    both = at(x, z)
    assert isinstance(both, tuple)
    for i, j in itertools.product(range(4), range(3)):
        wanted = exact(net, plain(at.weights), (float(x[i, 0]), float(z[j])))
        for k in range(2):
            assert both[k].shape == (4, 3)
            assert float(both[k][i, j]) == pytest.approx(float(wanted[k]), rel=1e-13, abs=1e-13)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(("activation", "hidden"), CASES)
def test_derivatives_in_the_inputs(activation, hidden, order) -> None:
    net = Neural(inputs=3, hidden=hidden, activation=activation, scale=(2.0, 1.0, 1.0), seed=2)
    at = network(net)
    # two directions, an input that is a number, one without the second direction, one with a Hessian
    u, v = 0.4, -0.9
    s, t = Taylor.seed(torch.tensor([u, v], dtype=torch.float64), order)
    out = at(s * s * t, 1.5, torch.exp(s))

    def wanted(a, b):
        return exact(net, plain(at.weights), (a * a * b, mpmath.mpf(1.5), mpmath.exp(a)))[0]

    point = (mpmath.mpf(u), mpmath.mpf(v))
    assert float(out.value) == pytest.approx(float(wanted(*point)), rel=1e-13)
    value, jac, _ = out.full()
    assert value.shape == (1,)
    for i in range(2):
        slope = mpmath.diff(wanted, point, tuple(int(k == i) for k in range(2)))
        assert float(jac[i, 0]) == pytest.approx(float(slope), rel=1e-12)
    if order == 1:
        return
    for i, j in itertools.product(range(2), range(2)):
        bend = mpmath.diff(wanted, point, tuple(int(k == i) + int(k == j) for k in range(2)))
        assert float(out.dense_hess()[i, j, 0]) == pytest.approx(float(bend), rel=1e-11)


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize(("activation", "hidden"), CASES)
def test_reverse_mode_reaches_the_weights(activation, hidden, order) -> None:
    net = Neural(inputs=2, hidden=hidden, activation=activation, seed=5)
    start = network(net).weights
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 1, generator=generator, dtype=torch.float64)
    z = torch.randn(3, 1, generator=generator, dtype=torch.float64)

    def everything(weights):
        at = network(net, weights)
        if order == 0:
            return at(x, z)
        a, b = Taylor.seed(torch.cat((x, z), -1), order)
        out = at(a * b, b)
        parts = [out.value, out.full()[1], *([out.dense_hess()] if order == 2 else [])]
        return torch.cat([part.flatten() for part in parts])

    assert torch.autograd.gradcheck(everything, (start.clone().requires_grad_(),), atol=1e-7, rtol=1e-6)


def test_inputs_keep_their_shapes() -> None:
    at = network(Neural(inputs=2))
    (eta,) = Taylor.seed(torch.zeros(3, 2, 1, dtype=torch.float64), 2)
    out = at(torch.ones(2, 5, dtype=torch.float64), eta)
    assert out.shape == (3, 2, 5)
    assert at(0.5, eta).shape == (3, 2, 1)
    assert at(0.5, 1.0).shape == ()


@pytest.mark.parametrize(("activation", "hidden"), CASES)
def test_symbols_are_the_same_formula(activation, hidden) -> None:
    net = Neural(inputs=2, hidden=hidden, outputs=2, activation=activation, scale=(4.0, 1.0), seed=7)
    networks = Networks({"other": Neural(), "net": net})
    weights = 3 * networks.start()
    at = networks.bound("net", weights)
    graph = Graph()
    symbols = list(at(graph.state(0), graph.param(0)))
    leaves = {"state": 2.5, "param": -0.4}

    def leaf(kind, index):
        return weights[index] if kind == "weight" else torch.tensor(leaves[kind], dtype=torch.float64)

    found = evaluate(symbols, leaf)
    wanted = at(torch.tensor(2.5, dtype=torch.float64), torch.tensor(-0.4, dtype=torch.float64))
    for a, b in zip(found, wanted, strict=True):
        assert float(a) == pytest.approx(float(b), rel=1e-13)
    constant = at(graph.state(0), 1.0)[0]
    assert float(evaluate([constant], leaf)[0]) == pytest.approx(
        float(at(torch.tensor(2.5, dtype=torch.float64), 1.0)[0]), rel=1e-13
    )


def test_large_networks_are_not_written_out() -> None:
    net = Neural(inputs=1, hidden=(20, 20))
    assert net.n_weights > TRACED
    with pytest.raises(Untraceable, match="481 weights"):
        network(net)(Graph().state(0))


def test_networks_share_one_vector_in_order_of_declaration() -> None:
    page = Page()
    assert page.networks.offsets == {"slope": 0, "net": 10}
    assert page.networks.n_weights == len(page.weights) == 10 + 27
    x = torch.tensor([2.0], dtype=torch.float64)
    torch.testing.assert_close(page.slope(x), network(Page.slope, page.weights[:10])(x))
    torch.testing.assert_close(page.net(x, x)[1], network(Page.net, page.weights[10:])(x, x)[1])
    changed = Page(torch.cat((page.weights[:10], 2 * page.weights[10:])))
    torch.testing.assert_close(changed.slope(x), page.slope(x))
    assert float(changed.net(x, x)[0]) != float(page.net(x, x)[0])
    assert "net: 2-5-2 silu, 27 weights" in page.networks.describe()


def test_the_start_is_drawn_from_the_seed_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = Neural(seed=3).start(), Neural(seed=3).start(), Neural(seed=4).start()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    x = torch.linspace(0, 3, 50, dtype=torch.float64)
    for seed in range(20):
        out = network(Neural(hidden=(16,), seed=seed), Neural(hidden=(16,), seed=seed).start())(x)
        assert 0 < float(out.abs().max()) < 0.5


def test_the_penalty_spares_the_constants_of_the_outputs() -> None:
    page = Page()
    weights = torch.zeros(37, dtype=torch.float64)
    weights[10:20], weights[25:35] = 2.0, 3.0  # the matrices of net: 5 x 2 and 2 x 5
    weights[20:25] = 1.5  # its hidden biases
    weights[:10] = 7.0  # slope has no penalty
    weights[35:] = 5.0  # the biases of net's outputs
    assert float(page.networks.penalty(weights)) == pytest.approx(0.5 * (10 * 4.0 + 5 * 2.25 + 10 * 9.0))
    assert float(Networks({}).penalty(torch.zeros(0, dtype=torch.float64))) == 0.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(inputs=0), "inputs must be a whole number"),
        (dict(hidden=(8, 0)), "a width in hidden"),
        (dict(hidden=(8.5,)), "a width in hidden"),
        (dict(outputs=True), "outputs must be a whole number"),
        (dict(activation="tahn"), "Did you mean 'tanh'"),
        (dict(activation="relu"), "no such activation"),
        (dict(penalty=-1.0), "penalty must be finite and not negative"),
        (dict(penalty="much"), "penalty must be a number"),
        (dict(seed=-1), "seed must be a whole number of at least 0"),
        (dict(inputs=2, scale=(1.0,)), "of each of the 2 inputs"),
        (dict(inputs=2, scale=(1.0, 0.0)), "a positive number"),
    ],
)
def test_bad_declarations_are_refused(settings, message) -> None:
    with pytest.raises(ModelError, match=message):
        Neural(**settings)


def test_a_wrong_number_of_inputs_is_refused() -> None:
    page = Page()
    with pytest.raises(ModelError, match=r"net takes 2 inputs, got 1; declare net = nl.Neural\(inputs=1"):
        page.net(torch.zeros(1))
    with pytest.raises(ModelError, match="slope takes 1 input, got 2"):
        page.slope(0.0, 1.0)


class Learned(nl.Model):
    """Networks in every method of a page with differential equations."""

    tvcl = nl.Theta(2.0, lower=0)
    iiv = nl.Omega(cl=0.1)
    cp = nl.Proportional(0.1)
    size = nl.Neural(inputs=1, hidden=(2,), seed=1)
    leaving = nl.Neural(inputs=2, hidden=(3,), seed=2)
    seen = nl.Neural(inputs=1, hidden=(2,), seed=3)

    def individual(self, theta, eta, cov):
        return dict(cl=theta.tvcl * torch.exp(eta.cl + self.size(cov.wt / 70)), v=20.0)

    def dynamics(self, t, a, p):
        c = a.central / p.v
        return dict(central=-p.cl * c * torch.exp(self.leaving(c, t / 10)))

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v * torch.exp(self.seen(t / 10)))


def test_a_page_calls_its_networks_in_every_method() -> None:
    rows = [{"ID": i, "TIME": 0.0, "AMT": 100.0, "DV": 0.0, "EVID": 1, "WT": 50.0 + 30 * i} for i in (1, 2)]
    rows += [
        {"ID": i, "TIME": t, "AMT": 0.0, "DV": 1.0, "EVID": 0, "WT": 50.0 + 30 * i}
        for i in (1, 2)
        for t in (1.0, 6.0)
    ]
    data = nl.read_nonmem(pd.DataFrame(rows).sort_values(["ID", "TIME"]))
    model = Learned()
    assert len(model.weights) == 7 + 13 + 7
    problem = nl.Problem(model, data)
    eta = 0.2 * torch.ones(2, 1, dtype=torch.float64)
    before = problem.predict(eta, model.values).f
    for name, net in model.networks.nets.items():
        moved = model.weights.clone()
        start = model.networks.offsets[name]
        moved[start : start + net.n_weights] += 0.3
        after = problem.with_weights(moved).predict(eta, model.values).f
        assert float((after / before - 1).abs().min()) > 1e-4, name
    assert torch.equal(Learned().weights, model.weights), "instances share no weights"
    assert torch.equal(problem.predict(eta, model.values).f, before)


class Idle(nl.Model):
    """A network that nobody calls."""

    tvcl = nl.Theta(2.0, lower=0)
    iiv = nl.Omega(cl=0.1)
    cp = nl.Proportional(0.1)
    structure = nl.OneCompartment()
    net = nl.Neural()

    def individual(self, theta, eta, cov):
        return dict(cl=theta.tvcl * torch.exp(eta.cl), v=20.0)

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


@pytest.mark.parametrize("method", [nl.FOCEI(), nl.ELBO()])
def test_a_network_that_is_never_called_is_refused(method) -> None:
    rows = [{"ID": i, "TIME": 0.0, "AMT": 100.0, "DV": 0.0, "EVID": 1} for i in (1, 2, 3)]
    rows += [{"ID": i, "TIME": 2.0, "AMT": 0.0, "DV": 3.0 + i, "EVID": 0} for i in (1, 2, 3)]
    data = nl.read_nonmem(pd.DataFrame(rows).sort_values(["ID", "TIME"]))
    with pytest.raises(ModelError, match="the network net is declared and moves no prediction"):
        nl.fit(Idle(), data, method)
