"""Derivatives of graphs against autograd (double backward), Taylor numbers and mpmath."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from structure.formulas import EDGES, POSITIVE, Formula
from torch import Tensor

import nlmegen.maths.rules  # noqa: F401 the rules of Taylor numbers
from nlmegen.maths.taylor import Taylor
from nlmegen.structure.derive import evaluate, forward, reverse, substitute, topological
from nlmegen.structure.primitive import primitive
from nlmegen.structure.trace import Graph, Symbol

PAIRS = ((0, 0), (0, 1), (1, 1))


def numbers(outputs: list[Symbol], x: float, y: float) -> list[float]:
    leaves = {"state": x, "param": y, "cotangent": 1.0}
    values = evaluate(outputs, lambda kind, index: torch.tensor([leaves[kind]], dtype=torch.float64))
    return [float(v) for v in values]


def derivatives(formula: Formula, lower: bool = False) -> list[Symbol]:
    """Value, two first and three second derivatives as symbols."""
    g = Graph()
    x, y = g.state(0), g.param(0)
    seeds = {x.number: {0: g.one}, y.number: {1: g.one}}
    f = formula(x, y)
    first = forward([f], seeds)[0]
    slopes = [first.get(q, g.zero) for q in range(2)]
    second = forward(slopes, seeds)
    out = [f, *slopes, *(second[i].get(j, g.zero) for i, j in PAIRS)]
    return primitive(out) if lower else out


def by_autograd(formula: Formula, x: float, y: float) -> list[float]:
    point = torch.tensor([x, y], dtype=torch.float64, requires_grad=True)

    def f(z: Tensor) -> Tensor:
        result: Tensor = formula(z[0], z[1])
        return result

    value = f(point)
    (slope,) = torch.autograd.grad(value, point, create_graph=True, allow_unused=True)
    slope = torch.zeros(2) if slope is None else slope
    rows = []
    for k in range(2):
        row = torch.autograd.grad(slope[k], point, retain_graph=True)[0] if slope.requires_grad else slope * 0
        rows.append(row)
    return [float(value.detach()), *slope.tolist(), *(float(rows[i][j]) for i, j in PAIRS)]


@pytest.mark.parametrize("lower", [False, True], ids=["as traced", "primitive"])
@pytest.mark.parametrize("name", POSITIVE)
def test_first_and_second_derivatives(name: str, lower: bool) -> None:
    symbols = derivatives(POSITIVE[name], lower)
    for x, y in np.random.default_rng(5).uniform(0.2, 2.5, (4, 2)):
        expected = np.array(by_autograd(POSITIVE[name], x, y))
        got = np.array(numbers(symbols, x, y))
        np.testing.assert_allclose(got, expected, rtol=2e-11, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("lower", [False, True], ids=["as traced", "primitive"])
@pytest.mark.parametrize("name", EDGES)
def test_edges(name: str, lower: bool) -> None:
    """Zero bases, far tails, small arguments: finite, and what autograd gives where it gives a number."""
    formula, x, y = EDGES[name]
    got = np.array(numbers(derivatives(formula, lower), x, y))
    expected = np.array(by_autograd(formula, x, y))
    known = np.isfinite(expected)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[known], expected[known], rtol=1e-11, atol=1e-300)


def test_powers_of_zero() -> None:
    """0**b and its derivatives are limits from above: with b = 2 the second derivative in the base is 2."""
    symbols = derivatives(lambda x, y: x**y)
    assert numbers(symbols, 0.0, 2.0) == [0.0, 0.0, 0.0, 2.0, 0.0, 0.0]
    assert numbers(symbols, 0.0, 3.0) == [0.0] * 6
    assert numbers(symbols, 0.0, 1.0)[:3] == [0.0, 1.0, 0.0]
    # an infinite slope at 0 counts as 0, so that 0 times it is a number
    assert numbers(symbols, 0.0, 0.5) == [0.0] * 6
    assert numbers(symbols, 0.0, 1.5) == [0.0] * 6
    for formula in (lambda x, y: x**1.5 * y, lambda x, y: x**0.7 * y, lambda x, y: torch.sqrt(x) * y):
        assert numbers(derivatives(formula), 0.0, 2.0) == [0.0] * 6
    assert numbers(symbols, 0.0, 0.0)[0] == 1.0


def test_the_branch_not_taken_gives_no_nan() -> None:
    """Forward and reverse, value, first and second derivatives, where the other branch is infinite at 0."""

    def formula(x: Any, y: Any) -> Any:
        return torch.where(x > 0, torch.log(x) * torch.sqrt(x) * y / x, x * y * y)

    at_zero = [0.0, 9.0, 0.0, 0.0, 6.0, 0.0]
    assert numbers(derivatives(formula), 0.0, 3.0) == at_zero
    g = Graph()
    x, y = g.state(0), g.param(0)
    bars = reverse([formula(x, y)], [g.cotangent(0)], [x, y])
    assert numbers(bars, 0.0, 3.0) == at_zero[1:3]


@pytest.mark.parametrize("name", POSITIVE)
def test_reverse_is_the_transpose_of_forward(name: str) -> None:
    """Two outputs with cotangents c0, c1: the result is c0 f_x + c1 g_x, and so in y."""
    g = Graph()
    x, y = g.state(0), g.param(0)
    outputs = [g.number(POSITIVE[name](x, y)), g.number(POSITIVE[name](y * x, x)) * y]
    bars = reverse(outputs, [g.cotangent(0), g.cotangent(1)], [x, y, g.param(7)])
    slopes = forward(outputs, {x.number: {0: g.one}, y.number: {1: g.one}})
    assert bars[2] is g.zero
    leaves = {("state", 0): 0.7, ("param", 0): 1.4, ("cotangent", 0): 0.3, ("cotangent", 1): -1.1}

    def leaf(kind: str, index: int) -> Tensor:
        return torch.tensor([leaves[kind, index]], dtype=torch.float64)

    got = [float(v) for v in evaluate(bars[:2], leaf)]
    flat = [row.get(q, g.zero) for q in range(2) for row in slopes]
    a = [float(v) for v in evaluate(flat, leaf)]
    np.testing.assert_allclose(got, [0.3 * a[0] - 1.1 * a[1], 0.3 * a[2] - 1.1 * a[3]], rtol=1e-11)


@pytest.mark.parametrize("name", [k for k in POSITIVE if k not in ("half powers",)])
def test_evaluate_on_taylor_numbers(name: str) -> None:
    """Running the graph on Taylor numbers is running the formula on them."""
    g = Graph()
    symbol = g.number(POSITIVE[name](g.state(0), g.param(0)))
    x, y = Taylor.seed(torch.tensor([[0.6, 1.7], [1.1, 0.4]], dtype=torch.float64), 2)
    leaves = {"state": x, "param": y}
    got = evaluate([symbol], lambda kind, index: leaves[kind])[0]
    assert isinstance(got, Taylor)
    for n in range(2):
        expected = by_autograd(POSITIVE[name], float(x.value[n]), float(y.value[n]))
        value, jac, _ = got.full()
        hess = got.dense_hess()
        mine = [value[n], jac[0, n], jac[1, n], *(hess[i, j, n] for i, j in PAIRS)]
        scale = np.abs(expected).max()
        np.testing.assert_allclose([float(v) for v in mine], expected, rtol=2e-11, atol=1e-12 * scale)


@pytest.mark.parametrize("op", ["tanh", "sigmoid", "softplus"])
def test_primitive_forms_are_accurate_everywhere(op: str) -> None:
    """Relative error of a few units in the last place, against 40 digits, near 0, in between and far out."""
    exact = {
        "tanh": mpmath.tanh,
        "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
        "softplus": lambda x: mpmath.log1p(mpmath.exp(x)),
    }[op]
    g = Graph()
    (form,) = primitive([g.function(op, g.state(0))])
    assert op not in {x.op for x in topological([form])}
    near = [s * 10.0**k for k in range(-300, 0, 20) for s in (-1, 1)]
    middle = np.random.default_rng(2).uniform(-3, 3, 300).tolist() + [-0.625, 0.625, 0.0]
    far = [-700.0, -50.0, -20.0, 20.0, 50.0, 700.0, 900.0]
    with mpmath.workdps(40):
        for x in near + middle + far:
            expected = exact(mpmath.mpf(x))
            assert abs(numbers([form], x, 0.0)[0] - expected) <= 6e-16 * abs(expected)


def test_primitive_powers() -> None:
    g = Graph()
    x = g.state(0)
    exponents = [3.0, 7.0, -4.0, 64.0, 1.5, 2.5, -1.5]
    forms = primitive([x**e for e in exponents])
    assert "pow" not in {n.op for n in topological(forms)}
    np.testing.assert_allclose(numbers(forms, 1.3, 0.0), [1.3**e for e in exponents], rtol=1e-14)
    np.testing.assert_allclose(
        numbers(forms[:3], -1.3, 0.0), [(-1.3) ** e for e in exponents[:3]], rtol=1e-14
    )
    assert {n.op for n in topological(primitive([x**0.3, x ** g.param(0)]))} >= {"pow"}


def test_substitute_simplifies() -> None:
    g = Graph()
    x, y = g.state(0), g.param(0)
    f = torch.exp(x) * y + torch.where(x > 0, y, 2 * y) - x / y
    assert substitute([f], {x.number: g.zero})[0] is y + 2 * y
    assert numbers(substitute([f], {y.number: x * x}), 0.7, 0.0)[0] == pytest.approx(
        math.exp(0.7) * 0.49 + 0.49 - 1 / 0.7, rel=1e-14
    )


def test_a_deep_graph_needs_no_recursion() -> None:
    g = Graph()
    x = y = g.state(0)
    for _ in range(5_000):
        y = torch.sin(y)
    assert len(topological([y])) == 5_001
    slope = forward([y], {x.number: {0: g.one}})[0][0]
    assert 0 < numbers([slope], 0.5, 0.0)[0] < 1
    assert reverse([y], [g.one], [x])[0] is not g.zero
