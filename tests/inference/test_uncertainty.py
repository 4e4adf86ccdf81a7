from __future__ import annotations

import math

import pytest
import torch
from inference.pages import Oral, oral_table
from problems import Straight, straight_table
from torch.distributions import LogNormal

import nlmegen as nl
from nlmegen.inference.uncertainty import (
    condition_number,
    covariance_of,
    determined,
    information,
    jacobian,
    natural,
    uncertainty,
)

F64 = torch.float64


@pytest.fixture(scope="module")
def phenobarbital():
    problem = nl.Problem(nl.load_model("phenobarbital"), nl.load_data("phenobarbital"))
    return problem, nl.FOCEI().estimate(problem)


def test_phenobarbital_standard_errors_are_nonmems(phenobarbital) -> None:
    problem, found = phenobarbital
    got = uncertainty(problem, found.free, found.covariance)
    nonmem = {
        "tvcl": 0.000209967,
        "tvv": 0.0268946,
        "asphyxia": 0.0837555,
        "omega.cl": 0.0134156,
        "omega.v": 0.00747591,
        "cp.proportional": 0.00227991 / (2 * 0.0132410**0.5),  # NONMEM's is of the variance
    }
    for name, se in nonmem.items():
        assert float(got.se[problem.names.index(name)]) == pytest.approx(se, rel=0.01), name
    assert got.condition_number == pytest.approx(4.392, rel=0.01)
    assert torch.allclose(got.rse, got.se / got.estimate.abs())


def test_the_plain_hessian_gives_the_other_published_error(phenobarbital) -> None:
    problem, found = phenobarbital
    covariance, why = covariance_of(found.hessian_r, found.score_s, "R")
    assert why == ""
    got = uncertainty(problem, found.free, covariance)
    assert float(got.se[problem.names.index("asphyxia")]) == pytest.approx(0.0782, rel=0.01)
    assert got.condition_number == pytest.approx(2.976, rel=0.01)


def closed_form(problem: nl.Problem, free: torch.Tensor) -> torch.Tensor:
    """log p(y_i) of a `Straight` problem by Gaussian algebra, differentiable in the free parameters."""
    values = problem.values(free)
    rows = []
    for n in range(problem.n_subjects):
        seen = problem.population.mask[n]
        t, y = problem.time[n, seen], problem.population.dv[n, seen]
        z = torch.stack([torch.ones_like(t), t], -1)
        mean = values.theta["tvb"].squeeze() + values.theta["tvs"].squeeze() * t
        noise = values.sigma["cp.additive"].squeeze() ** 2 * torch.eye(len(t), dtype=F64)
        rows.append(torch.distributions.MultivariateNormal(mean, z @ values.omega @ z.mT + noise).log_prob(y))
    return torch.stack(rows)


def test_r_and_s_are_the_derivatives_of_the_exact_likelihood() -> None:
    problem = nl.Problem(Straight(), nl.read_nonmem(straight_table(40, seed=2)))
    found = nl.FOCEI().estimate(problem)
    hessian = torch.autograd.functional.hessian(lambda x: closed_form(problem, x).sum(), found.free)
    scores = torch.autograd.functional.jacobian(lambda x: closed_form(problem, x), found.free)
    assert torch.allclose(found.hessian_r, -hessian, rtol=1e-3, atol=1e-3 * float(hessian.abs().max()))
    assert torch.allclose(found.score_s, scores.T @ scores, rtol=1e-4, atol=1e-4)
    inverse = torch.linalg.inv(-hessian)
    expected = inverse @ (scores.T @ scores) @ inverse
    assert torch.allclose(found.covariance, expected, rtol=5e-3, atol=1e-3 * float(expected.abs().max()))
    by_scores = nl.FOCEI(covariance="S").estimate(problem)
    assert by_scores.covariance_kind == "S"
    assert torch.allclose(by_scores.covariance, torch.linalg.inv(scores.T @ scores), rtol=1e-3, atol=1e-4)


def test_a_block_is_carried_by_the_delta_method() -> None:
    problem = nl.Problem(Straight(), nl.read_nonmem(straight_table(5)))
    free = problem.start + 0.1
    values = problem.values(free)
    assert problem.names == ("tvb", "tvs", "omega.b", "omega.s,b", "omega.s", "cp.additive")
    expected = [
        float(values.theta["tvb"]),
        float(values.theta["tvs"]),
        float(values.omega[0, 0]),
        float(values.omega[1, 0]),
        float(values.omega[1, 1]),
        float(values.sigma["cp.additive"]),
    ]
    assert natural(problem, free).tolist() == pytest.approx(expected)
    h = 1e-6
    numeric = torch.stack(
        [
            (natural(problem, free + h * e) - natural(problem, free - h * e)) / (2 * h)
            for e in torch.eye(6, dtype=F64)
        ],
        1,
    )
    assert torch.allclose(jacobian(problem, free), numeric, atol=1e-8)
    root = torch.randn(6, 6, dtype=F64)
    covariance = 0.01 * root @ root.T
    got = uncertainty(problem, free, covariance)
    assert torch.allclose(got.covariance, numeric @ covariance @ numeric.T, atol=1e-8)
    k = problem.names.index("omega.s")
    assert 0 < float(got.ci_lower[k]) < float(got.estimate[k]) < float(got.ci_upper[k])
    c = problem.names.index("omega.s,b")
    assert float(got.ci_upper[c] + got.ci_lower[c]) == pytest.approx(2 * float(got.estimate[c]))


def test_intervals_keep_within_bounds() -> None:
    problem = nl.Problem(Oral(), nl.read_nonmem(oral_table(4)))
    covariance = torch.eye(problem.P, dtype=F64)
    got = uncertainty(problem, problem.start, covariance)
    assert bool((got.ci_lower > 0).all())
    k = problem.names.index("tvcl")
    assert float(got.ci_lower[k]) == pytest.approx(3.0 * math.exp(-1.959964), rel=1e-6)
    assert float(got.ci_upper[k]) == pytest.approx(3.0 * math.exp(1.959964), rel=1e-6)
    assert float(got.se[k]) == pytest.approx(3.0)


def test_a_parameter_at_a_boundary_is_left_out() -> None:
    r = torch.tensor([[4.0, 1.0, 0.0], [1.0, 3.0, 0.0], [0.0, 0.0, 0.0]], dtype=F64)
    held = torch.tensor([False, False, True])
    covariance, why = covariance_of(r, r, "R", held)
    assert why == ""
    assert covariance is not None
    assert torch.allclose(covariance[:2, :2], torch.linalg.inv(r[:2, :2]))
    assert bool(torch.isnan(covariance[2]).all())
    assert covariance_of(r, r, "R")[0] is None


def test_an_indefinite_hessian_is_said_and_not_mended() -> None:
    r = torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=F64)
    covariance, why = covariance_of(r, torch.eye(2, dtype=F64), "sandwich")
    assert covariance is None
    assert "not positive definite" in why
    covariance, why = covariance_of(torch.eye(2, dtype=F64), torch.ones(2, 2, dtype=F64), "S")
    assert covariance is None
    assert "singular" in why
    with pytest.raises(ValueError, match="expected one of"):
        covariance_of(r, r, "both")


def test_units_do_not_matter_for_being_definite() -> None:
    scale = torch.tensor([1e-6, 1.0, 1e6], dtype=F64)
    r = (torch.eye(3, dtype=F64) + 0.5) * scale * scale[:, None]
    covariance, _ = covariance_of(r, r, "R")
    assert covariance is not None
    inverse = torch.linalg.inv(torch.eye(3, dtype=F64) + 0.5)
    assert torch.allclose(covariance * scale * scale[:, None], inverse, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "subjects", "wanted"),
    [
        ("sandwich", 1, "R"),
        ("sandwich", 4, "R"),
        ("sandwich", 5, "sandwich"),
        ("R", 1, "R"),
        ("S", 1, "S"),
    ],
)
def test_a_singular_sandwich_is_not_served(kind: str, subjects: int, wanted: str) -> None:
    got, note = determined(kind, subjects, 4)
    assert got == wanted
    assert bool(note) == (got != kind)
    # the reason: scores that sum to zero leave the sandwich of as many subjects as parameters without full rank
    scores = torch.randn(4, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    centred = scores - scores.mean(0)
    assert int(torch.linalg.matrix_rank(centred.mT @ centred)) == 3


def test_a_sandwich_without_the_priors_is_not_served() -> None:
    """Where a prior is all that is known, the error is its own: of log x for a log-normal one of .01."""

    class Informed(nl.Model):
        tvka = nl.Theta(1.5, lower=0, prior=LogNormal(math.log(1.2), 0.01))
        tvcl = nl.Theta(2.7, lower=0)
        tvv = nl.Theta(32.0, lower=0)
        iiv = nl.Omega(ka=0.3, cl=0.1, v=0.05)
        cp = nl.Combined(additive=0.5, proportional=0.1)
        structure = nl.OneCompartment(absorption="first-order")

        def individual(self, theta, eta, cov):
            return dict(
                ka=theta.tvka * torch.exp(eta.ka),
                cl=theta.tvcl * torch.exp(eta.cl),
                v=theta.tvv * torch.exp(eta.v),
            )

        def observe(self, t, a, p):
            return dict(cp=a.central / p.v)

    fit = nl.fit(Informed(), nl.load_data("theophylline"), nl.FOCEI())
    assert float(fit.parameters.loc["tvka", "rse"]) == pytest.approx(0.01, rel=0.01)
    assert fit.estimate.covariance_kind == "R"
    assert any("curvature of the priors" in note for note in fit.notes)


def test_information_counts_scores_of_the_objective() -> None:
    r, s = information(torch.full((1, 1), 6.0, dtype=F64), torch.tensor([[2.0], [-4.0]], dtype=F64))
    assert float(r) == 3.0
    assert float(s) == 5.0


def test_condition_number() -> None:
    rho = 0.6
    assert condition_number(torch.tensor([[1.0, rho], [rho, 1.0]], dtype=F64)) == pytest.approx(
        (1 + rho) / (1 - rho)
    )
    assert condition_number(torch.ones(2, 2, dtype=F64)) > 1e12
    assert math.isnan(condition_number(torch.zeros(0, 0, dtype=F64)))


def test_intervals_are_what_they_are_said_to_be() -> None:
    """Ends of transformed intervals, of a variance in a block on the log scale, and of a covariance, by hand."""

    class Bounded(Straight):
        tvb = nl.Theta(1.0, lower=-1, upper=3)
        tvs = nl.Theta(0.5, upper=2)

    problem = nl.Problem(Bounded(), nl.read_nonmem(straight_table(5)))
    root = 0.2 * torch.randn(6, 6, dtype=F64, generator=torch.Generator().manual_seed(1))
    covariance = root @ root.T + 0.01 * torch.eye(6, dtype=F64)
    got = uncertainty(problem, problem.start, covariance)
    z, sd = 1.959963984540054, covariance.diagonal().sqrt()
    free = problem.start

    def logistic(u: float) -> float:
        return -1 + 4 / (1 + math.exp(-u))

    lower, upper = got.ci_lower.tolist(), got.ci_upper.tolist()
    assert (lower[0], upper[0]) == pytest.approx([logistic(float(free[0] + s * z * sd[0])) for s in (-1, 1)])
    # an upper bound turns the ends round: x = 2 - exp(u)
    assert (lower[1], upper[1]) == pytest.approx(
        [2 - math.exp(float(free[1] + s * z * sd[1])) for s in (1, -1)]
    )
    # omega.b = exp(2 u) alone; omega.s,b = exp(u) c and omega.s = c^2 + exp(2 v) by the delta method
    assert (lower[2], upper[2]) == pytest.approx(
        [math.exp(2 * float(free[2] + s * z * sd[2])) for s in (-1, 1)]
    )
    a, c, d = (float(x) for x in (free[2].exp(), free[3], free[5 - 1].exp()))
    gradient = torch.tensor([a * c, a], dtype=F64)
    se = float((gradient @ covariance[2:4, 2:4] @ gradient).sqrt())
    assert (lower[3], upper[3]) == pytest.approx((a * c - z * se, a * c + z * se))
    gradient = torch.tensor([2 * c, 2 * d * d], dtype=F64)
    se = float((gradient @ covariance[3:5, 3:5] @ gradient).sqrt())
    factor = math.exp(z * se / (c * c + d * d))
    assert (lower[4], upper[4]) == pytest.approx(((c * c + d * d) / factor, (c * c + d * d) * factor))
    assert (lower[5], upper[5]) == pytest.approx([math.exp(float(free[5] + s * z * sd[5])) for s in (-1, 1)])
    assert got.correlation.diagonal().tolist() == pytest.approx([1.0] * 6)
