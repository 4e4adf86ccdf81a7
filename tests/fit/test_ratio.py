"""Likelihood ratios: the statistic against closed forms, what is tested, and the null distribution of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from problems import Straight, exact, maximum_likelihood, straight_table
from scipy.stats import chi2

import nlmegen as nl
from nlmegen.errors import DataError
from nlmegen.fit import likelihood_ratio
from nlmegen.fit.cone import Reference, _project, cone_reference, orthant_reference
from nlmegen.fit.nesting import Surplus, nested
from nlmegen.fit.ratio import _covariance

F64 = torch.float64
DATA = nl.read_nonmem(straight_table(30))


def page(**changes: Any) -> type[nl.Model]:
    return type("Variant", (Straight,), {"__module__": __name__, **changes})


def only(*effects: str) -> Any:
    """`individual` of Straight with some of its random effects."""

    def individual(self, theta, eta, cov):
        return dict(
            base=theta.tvb + (eta.b if "b" in effects else 0.0),
            slope=theta.tvs + (eta.s if "s" in effects else 0.0),
            cl=1.0,
            v=1.0,
        )

    return individual


class Bare(nl.Model):
    """No random effect."""

    tvb = nl.Theta(1.0)
    tvs = nl.Theta(0.5)
    cp = nl.Additive(0.6)
    structure = nl.OneCompartment()
    individual = only()
    observe = Straight.observe


BLOCK = Straight
DIAGONAL = page(iiv=nl.Omega(b=0.5, s=0.1))
BASE = page(iiv=nl.Omega(b=0.5), individual=only("b"))
FLAT = page(iiv=nl.Omega(b=0.5), individual=only("b"), tvs=nl.Theta(0.4, fixed=True))
COMBINED = page(cp=nl.Combined(0.3, 0.1))


@pytest.fixture(scope="module")
def fitted() -> Any:
    kept: dict[type[nl.Model], nl.Fit] = {}

    def of(kind: type[nl.Model], evaluate: bool = False) -> nl.Fit:
        if kind not in kept:
            kept[kind] = nl.fit(kind, DATA, nl.FOCEI(evaluate=evaluate))
        return kept[kind]

    return of


def test_the_statistic_is_that_of_the_closed_form(fitted: Any) -> None:
    best = [exact(p, maximum_likelihood(p)).total for p in (nl.Problem(k(), DATA) for k in (DIAGONAL, BLOCK))]
    test = likelihood_ratio(fitted(DIAGONAL), fitted(BLOCK))
    assert test.statistic == pytest.approx(2 * (best[1] - best[0]), abs=1e-5)
    assert test.df == 1
    assert test.tested == ("omega.s,b",)
    assert test.p == pytest.approx(chi2.sf(test.statistic, 1), rel=1e-9)
    own = likelihood_ratio(fitted(DIAGONAL), fitted(BLOCK), arbiter="own")
    assert own.statistic == pytest.approx(test.statistic, abs=1e-6)  # FOCEI is exact on a linear page
    assert any("approximate" in note for note in own.notes)


@pytest.mark.parametrize(
    ("small", "large", "tested", "weights"),
    [
        (DIAGONAL, BLOCK, ("omega.s,b",), {1: 1.0}),
        (BASE, DIAGONAL, ("omega.s",), {0: 0.5, 1: 0.5}),
        (BASE, BLOCK, ("omega.s,b", "omega.s"), {1: 0.5, 2: 0.5}),
        (FLAT, BASE, ("tvs",), {1: 1.0}),
        (FLAT, BLOCK, ("tvs", "omega.s,b", "omega.s"), {2: 0.5, 3: 0.5}),
        (BLOCK, COMBINED, ("cp.proportional",), {0: 0.5, 1: 0.5}),
    ],
)
def test_what_is_tested_and_against_what(
    fitted: Any, small: Any, large: Any, tested: tuple[str, ...], weights: dict[int, float]
) -> None:
    test = likelihood_ratio(fitted(small), fitted(large), arbiter="own")
    assert test.tested == tested
    assert dict(test.reference.weights) == weights
    expected = sum(w * chi2.sf(test.statistic, df) for df, w in weights.items() if df)
    if test.statistic <= 0:  # nothing is gained, as happens half of the time
        expected = 1.0
    assert test.p == pytest.approx(expected, rel=1e-9)
    assert "5 % critical value" in repr(test)
    assert "<p>" in test._repr_html_()


def test_several_variances_take_their_weights_from_the_information(fitted: Any) -> None:
    orthogonal = likelihood_ratio(fitted(Bare), fitted(DIAGONAL), weights="orthogonal")
    assert dict(orthogonal.reference.weights) == {0: 0.25, 1: 0.5, 2: 0.25}
    assert any("uncorrelated" in note for note in orthogonal.notes)
    test = likelihood_ratio(fitted(Bare), fitted(DIAGONAL))
    w = test.reference.weights
    # the closed form of the weights, with the correlation from the closed form of the information
    large = fitted(DIAGONAL)
    problem = large.problem

    def score_rows(natural: torch.Tensor) -> torch.Tensor:
        values = torch.stack(
            [natural[0], natural[1], 0.5 * natural[2].log(), 0.5 * natural[3].log(), natural[4]]
        )
        return exact(problem, values).log_likelihood

    free = large.estimate.free
    at = torch.cat((free[:2], (2 * free[2:4]).exp(), free[4:]))
    scores = torch.autograd.functional.jacobian(score_rows, at)
    scores = scores - scores.mean(0)
    v = torch.linalg.inv(scores.T @ scores)[2:4, 2:4]
    rho = float(v[0, 1] / (v[0, 0] * v[1, 1]).sqrt())
    assert w[2] == pytest.approx(0.25 + math.asin(rho) / (2 * math.pi), abs=1e-4)
    assert w[1] == 0.5
    assert sum(w.values()) == pytest.approx(1.0)
    assert rho < -0.1, "or the test says nothing"


def test_a_block_of_variances_against_nothing(fitted: Any) -> None:
    test = likelihood_ratio(fitted(Bare), fitted(BLOCK))
    assert test.df == 3
    assert sorted(test.reference.weights) == [0, 1, 2, 3]
    assert test.p < 1e-20
    with pytest.raises(DataError, match="one at a time"):
        likelihood_ratio(fitted(Bare), fitted(BLOCK), weights="orthogonal")


def test_a_variance_at_zero_still_has_an_information() -> None:
    tested = Surplus((), ("omega.b", "omega.s"), ())
    problem = nl.Problem(DIAGONAL().with_values(omega={"b": 0.5, "s": 1e-14}), DATA)
    v = _covariance(tested, problem)
    near = _covariance(tested, nl.Problem(DIAGONAL().with_values(omega={"b": 0.5, "s": 1e-5}), DATA))
    assert v is not None
    assert near is not None
    assert torch.allclose(v, near, rtol=1e-2)


def test_weights_of_half_lines_are_those_of_the_closed_form() -> None:
    v = torch.tensor([[1.0, 0.6], [0.6, 4.0]], dtype=F64)
    w = orthant_reference(2, v, 2).weights
    top = 0.25 + math.asin(0.3) / (2 * math.pi)
    assert [w[2], w[3], w[4]] == pytest.approx([0.5 - top, 0.5, top])
    # three: by drawing and counting the signs of a projection that looks at every face
    v3 = torch.tensor([[1.0, 0.5, -0.3], [0.5, 2.0, 0.4], [-0.3, 0.4, 1.5]], dtype=F64)
    z = np.random.default_rng(1).multivariate_normal(np.zeros(3), v3.numpy(), 100_000)
    found = orthant_reference(0, v3, 3).weights
    counted = np.bincount(_faces(z, np.linalg.inv(v3.numpy())), minlength=4) / len(z)
    assert [found[j] for j in range(4)] == pytest.approx(list(counted), abs=0.006)
    four = orthant_reference(0, torch.eye(4, dtype=F64), 4).weights
    assert [four[j] for j in range(5)] == pytest.approx([1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16], abs=0.012)


def _faces(z: np.ndarray, w: np.ndarray) -> np.ndarray:
    """How many coordinates the nearest point of the orthant to each `z [draw, 3]` has, by trying every face."""
    best, count = np.einsum("ni,ij,nj->n", z, w, z), np.zeros(len(z), dtype=int)
    for bits in range(1, 8):
        on = [k for k in range(3) if bits >> k & 1]
        point = np.linalg.solve(w[np.ix_(on, on)], w[on] @ z.T).T
        off = z.copy()
        off[:, on] -= point
        distance = np.where((point > 0).all(1), np.einsum("ni,ij,nj->n", off, w, off), np.inf)
        better = distance < best - 1e-12
        best, count = np.where(better, distance, best), np.where(better, len(on), count)
    return count


def test_the_cone_of_two_by_two_matrices() -> None:
    """Against its closed form (a round cone of 45 degrees), and a search over all rank-one matrices."""
    round_ = cone_reference(1, torch.tensor([1.0, 0.5, 1.0], dtype=F64).diag(), 0, (2,)).weights
    half = (1 - math.sqrt(0.5)) / 2
    assert [round_[j] for j in (1, 2, 3, 4)] == pytest.approx([half, 0.5 - half, 0.5 - half, half], abs=0.015)
    v = torch.tensor([[1.0, 0.3, 0.2], [0.3, 0.6, 0.3], [0.2, 0.3, 1.3]], dtype=F64)
    # in the coordinates of the projection V is scaled; with ones on its diagonal the scaling is known
    v = (
        v
        / (v.diagonal() * v.diagonal()[:, None]).sqrt()
        * torch.tensor([1.0, math.sqrt(0.5), 1.0], dtype=F64)
    )
    v = v * torch.tensor([1.0, math.sqrt(0.5), 1.0], dtype=F64)[:, None]
    value, point, length = _project(v, 0, (2,), 2000, seed=1)
    scale = torch.tensor([1.0, math.sqrt(2.0), 1.0], dtype=F64)
    scaled = v * scale * scale[:, None]
    z = torch.randn(2000, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    z = z @ torch.linalg.cholesky(scaled).T
    w = torch.linalg.inv(scaled)
    phi = torch.linspace(0, math.pi, 2001, dtype=F64)
    ray = torch.stack((phi.cos() ** 2, math.sqrt(2.0) * phi.cos() * phi.sin(), phi.sin() ** 2), -1)
    best = ((z @ w @ ray.T).clamp(min=0) ** 2 / torch.einsum("pi,ij,pj->p", ray, w, ray)).amax(1)
    inside = (z[:, 0] > 0) & (2 * z[:, 0] * z[:, 2] > z[:, 1] ** 2)
    assert float((value - torch.where(inside, length, best)).abs().max()) < 1e-3
    assert bool((point[:, 0] >= -1e-9).all())


def test_critical_values() -> None:
    assert Reference({1: 1.0}).critical() == pytest.approx(3.8415, abs=1e-3)
    assert Reference({0: 0.5, 1: 0.5}).critical() == pytest.approx(2.7055, abs=1e-3)
    assert Reference({1: 0.5, 2: 0.5}).critical() == pytest.approx(5.138, abs=1e-3)  # Stram & Lee 1994
    assert Reference({0: 0.97, 1: 0.03}).critical(0.05) == 0.0
    assert Reference({0: 0.5, 1: 0.5}).p(-1.0) == 1.0
    draws = torch.tensor([0.0, 1.0, 5.0], dtype=F64)
    assert Reference({}, 0, draws).p(2.0) == pytest.approx(2 / 4)
    assert Reference({}, 1, draws).p(9.0) == pytest.approx((chi2.sf([9.0, 8.0, 4.0], 1).sum() + 1) / 4)


SIGMAS = {"cp.proportional": 0.1, "cp.additive": 0.3}


@pytest.mark.parametrize(
    ("small", "large", "says"),
    [
        (BLOCK, DIAGONAL, "estimates omega.s,b"),
        (DIAGONAL, BASE, "random effects s of its own"),
        (BLOCK, BLOCK, "same parameters"),
        (BASE, FLAT, "tvs is estimated in the small page and fixed"),
        (FLAT, page(tvs=nl.Theta(0.3, fixed=True)), "fixed at 0.4 in the small page and at 0.3"),
        (BASE, page(tvs=nl.Theta(0.9, lower=0.8)), "outside its bounds"),
        (COMBINED, BLOCK, "not nested"),
        (COMBINED, page(cp=nl.Combined(0.3, 0.1, form="sd")), "different forms"),
        (BASE, page(iiv=nl.Omega(b=0.5, s=0.1, fixed=True)), "fixed"),
        (page(cp=nl.Additive(0.4, fixed=True)), page(cp=nl.Combined(0.4, 0.1, fixed=True)), "fixed"),
    ],
)
def test_pages_that_are_not_nested_are_refused(fitted: Any, small: Any, large: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        nested(fitted(small, evaluate=True), fitted(large, evaluate=True))


def test_a_null_value_at_a_bound_is_named(fitted: Any) -> None:
    class More(Straight):
        tvq = nl.Theta(0.1, lower=0)

        def individual(self, theta, eta, cov):
            return dict(base=theta.tvb + eta.b + theta.tvq, slope=theta.tvs + eta.s, cl=1.0, v=1.0)

    large = nl.fit(More, DATA, nl.FOCEI(evaluate=True))
    tested = nested(fitted(BLOCK), large)
    assert tested.inside == ("tvq",)
    assert "boundary" in tested.notes[0]
    assert nested(fitted(BLOCK), large, boundary=["tvq"]).zero == ("tvq",)
    with pytest.raises(DataError, match="no tested theta"):
        nested(fitted(BLOCK), large, boundary=["tvb"])


def test_a_fit_that_is_not_maximum_likelihood_is_refused(fitted: Any) -> None:
    prior = torch.distributions.Normal(1.0, 0.2)
    with_prior = nl.fit(page(tvb=nl.Theta(1.0, prior=prior)), DATA, nl.FOCEI())
    assert with_prior.penalty == pytest.approx(
        -2 * float(prior.log_prob(with_prior.model.theta.tvb)), abs=1e-9
    )
    assert f"{with_prior.ofv + with_prior.penalty:.4f}" in repr(with_prior)
    with pytest.raises(DataError, match="maximum a posteriori"):
        likelihood_ratio(fitted(DIAGONAL), with_prior)
    compared = nl.compare(fitted(DIAGONAL), with_prior)
    assert any("maximum a posteriori" in note for note in compared.notes)
    assert "note: " in repr(compared)


def test_a_large_page_that_fits_worse_is_pointed_out(fitted: Any) -> None:
    poor = nl.fit(BLOCK, DATA, nl.FOCEI(evaluate=True))
    test = likelihood_ratio(
        fitted(BASE), nl.fit(BLOCK().with_values(sigma={"cp.additive": 3.0}), DATA, nl.FOCEI(evaluate=True))
    )
    assert test.statistic < 0
    assert test.p == 1.0
    assert any("fits worse" in note for note in test.notes)
    with pytest.raises(DataError, match="expected 'information'"):
        likelihood_ratio(fitted(BASE), poor, weights="equal")
