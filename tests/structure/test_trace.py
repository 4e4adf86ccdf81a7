"""Symbols: what pages write on them, how they simplify, what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from structure.formulas import POSITIVE

import nlmegen.maths.rules  # noqa: F401 the rules of Taylor numbers
from nlmegen.errors import ModelError
from nlmegen.maths.taylor import Taylor
from nlmegen.structure.derive import evaluate, forward, topological
from nlmegen.structure.trace import Graph, Symbol, Untraceable


def tensor(x: float) -> torch.Tensor:
    return torch.tensor([x], dtype=torch.float64)


def value(symbol: Symbol, x: float, y: float) -> float:
    leaves = {"state": tensor(x), "param": tensor(y)}
    return float(evaluate([symbol], lambda kind, index: leaves[kind])[0])


@pytest.mark.parametrize("name", POSITIVE)
def test_a_formula_on_symbols_is_the_formula_on_tensors(name: str) -> None:
    g = Graph()
    symbol = POSITIVE[name](g.state(0), g.param(0))
    rng = np.random.default_rng(3)
    for x, y in rng.uniform(0.2, 2.5, (5, 2)):
        assert value(symbol, x, y) == pytest.approx(float(POSITIVE[name](tensor(x), tensor(y))), rel=1e-13)


@pytest.mark.parametrize("name", ["maximum", "minimum", "clamp", "abs", "relu", "where"])
def test_ties_choose_the_side_that_taylor_numbers_choose(name: str) -> None:
    """At a kink value and derivative are those of the other interpretation."""
    formulas = {
        "maximum": lambda x, y: torch.maximum(3 * x, x + y),
        "minimum": lambda x, y: torch.minimum(3 * x, x + y),
        "clamp": lambda x, y: torch.clamp(x, min=2.0) * torch.clamp(y, max=4.0),
        "abs": lambda x, y: torch.abs(x - 2) * y,
        "relu": lambda x, y: torch.relu(x - 2) * y,
        "where": lambda x, y: torch.where(x >= 2, x * x, 2 * y),
    }
    g = Graph()
    x, y = g.state(0), g.param(0)
    symbol = formulas[name](x, y)
    slopes = forward([symbol], {x.number: {0: g.one}, y.number: {1: g.one}})[0]
    a, b = Taylor.seed(torch.tensor([2.0, 4.0], dtype=torch.float64), 1)
    expected = formulas[name](a, b)
    assert value(symbol, 2.0, 4.0) == float(expected.value)
    got = [value(slopes.get(q, g.zero), 2.0, 4.0) for q in range(2)]
    assert got == expected.jac.flatten().tolist()


def test_equal_formulas_are_one_node() -> None:
    g = Graph()
    x, y, k = g.state(0), g.param(0), g.param(1)
    same = [
        (x * y, y * x),
        (x + y, y + x),
        (x / y, x * (1 / y)),
        (x.neg().neg(), x),
        (x - (-y), x + y),
        (-(x - y), y - x),
        (2 * (3 * x), 6.0 * x),
        (x + x, 2 * x),
        (3 * x - x, 2 * x),
        ((-x) * (-y), x * y),
        (x * (-y), -(x * y)),
        (1 / (1 / x), x),
        (x / 4, 0.25 * x),
        (x**1, x),
        (x**2, x * x),
        (torch.square(x), x * x),
        (torch.exp(x), x.exp()),
        (torch.where(x > 0, y, y), y),
        (torch.where(~(x > 0), y, k), torch.where(x > 0, k, y)),
        (torch.where(torch.tensor(True), x, y), x),
        (x > y, y < x),
        (x >= y, y <= x),
        (~~(x > y), x > y),
        ((x > y) & True, x > y),
    ]
    for left, right in same:
        assert left is right
    for zero in (x - x, 0 * x, x * 0.0, x * y - y * x, 0 / x, 0.0 * torch.log(x), (x - x) / y):
        assert zero is g.zero
    for one in (x**0, x - x + 1, torch.exp(0 * x), torch.ones_like(x)):
        assert one is g.one


NUMBERS = st.sampled_from([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0])
TREES = st.recursive(
    st.one_of(NUMBERS, st.sampled_from(["x", "y"])),
    lambda t: st.one_of(
        st.tuples(st.sampled_from("+-*"), t, t), st.tuples(st.sampled_from(["neg", "square"]), t)
    ),
    max_leaves=14,
)


@given(TREES)
def test_simplification_keeps_values(tree: object) -> None:
    def build(t: object, x: object, y: object) -> object:
        if isinstance(t, float):
            return t
        if isinstance(t, str):
            return x if t == "x" else y
        op, *args = t  # type: ignore[misc]
        built = [build(a, x, y) for a in args]
        if op == "+":
            return built[0] + built[1]  # type: ignore[operator]
        if op == "-":
            return built[0] - built[1]  # type: ignore[operator]
        if op == "*":
            return built[0] * built[1]  # type: ignore[operator]
        return -built[0] if op == "neg" else built[0] * built[0]  # type: ignore[operator]

    g = Graph()
    symbol = g.number(build(tree, g.state(0), g.param(0)))
    # multiples of 1/8 of small size: sums and products are exact in any order
    assert value(symbol, 1.375, -0.625) == pytest.approx(build(tree, 1.375, -0.625), rel=1e-12, abs=1e-12)


def test_numbers_of_every_kind_are_constants() -> None:
    g = Graph()
    x = g.state(0)
    for two in (
        2,
        2.0,
        np.float64(2.0),
        np.float32(2.0),
        np.int64(2),
        torch.tensor(2.0),
        torch.tensor([[2.0]]),
        torch.as_tensor(2),
    ):
        assert two * x is x + x
        assert x * two is x + x
    assert (x > 0) * 1.0 is torch.where(x > 0, 1.0, 0.0)


def test_what_has_no_single_truth_or_float_is_a_model_error() -> None:
    x = Graph().state(0)
    with pytest.raises(ModelError, match=r"torch\.where"):
        bool(x > 0)
    with pytest.raises(ModelError, match=r"torch\.where"):
        max(x, 0.0)
    with pytest.raises(ModelError, match=r"torch\.exp"):
        math.exp(x)
    with pytest.raises(ModelError, match="Python float"):
        x.item()
    with pytest.raises(ModelError, match="exp_ would overwrite"):
        x.exp_()
    with pytest.raises(ModelError, match="condition, got a quantity"):
        torch.where(x, x, 0.0)
    with pytest.raises(ModelError, match="got str"):
        x + "1"
    with pytest.raises(AttributeError, match="no attribute 'foo'"):
        _ = x.foo
    with pytest.raises(TypeError, match="unhashable"):
        hash(x)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: torch.cumsum(x, 0), "torch.cumsum has no compiled form"),
        (lambda x: x.unsqueeze(-1), "torch.unsqueeze has no compiled form"),
        (lambda x: torch.stack([x, x]), "torch.stack has no compiled form"),
        (lambda x: x.shape, r"reading \.shape"),
        (lambda x: x * torch.ones(3), r"constant tensor of shape \(3,\)"),
        (lambda x: torch.div(x, 2, rounding_mode="floor"), "torch.div with these arguments"),
        (lambda x: x.to(torch.float32), "float64"),
    ],
)
def test_what_only_the_compiler_cannot_do_is_untraceable(call: object, words: str) -> None:
    with pytest.raises(Untraceable, match=words):
        call(Graph().state(0))  # type: ignore[operator]


def test_symbols_of_two_graphs_do_not_mix() -> None:
    with pytest.raises(ValueError, match="two graphs"):
        Graph().state(0) + Graph().state(0)


def test_a_common_subexpression_stands_once() -> None:
    g = Graph()
    x, y = g.state(0), g.param(0)
    nodes = topological([torch.exp(x / y) + torch.exp(x / y) * x, x / y])
    assert sum(n.op == "exp" for n in nodes) == sum(n.op == "reciprocal" for n in nodes) == 1
