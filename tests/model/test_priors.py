"""Priors: what they must be, and the penalty they put on the objective, against densities written out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Beta, HalfNormal, LogNormal, Normal, Uniform

import nlmegen as nl
from nlmegen.model.priors import log_slopes


class Page(nl.Model):
    """Oral, priors of every kind."""

    tvka = nl.Theta(1.5, lower=0, prior=LogNormal(0.5, 1.0))
    tvcl = nl.Theta(2.7, lower=0, prior=Normal(3.0, 0.5))
    tvv = nl.Theta(31.0, lower=0)
    shift = nl.Theta(0.0, fixed=True)
    iiv = nl.Omega(ka=0.4, cl=0.1, cov=[0.05], prior={"cl": HalfNormal(1.0)})
    cp = nl.Combined(0.7, 0.1, prior={"additive": HalfNormal(2.0)})
    structure = nl.OneCompartment(absorption="first-order")

    def individual(self, theta, eta, cov):
        """Individual parameters."""
        return {
            "ka": theta.tvka * torch.exp(eta.ka),
            "cl": theta.tvcl * torch.exp(eta.cl + theta.shift),
            "v": theta.tvv,
        }

    def observe(self, t, a, p):
        """Concentration."""
        return {"cp": a.central / p.v}


def normal(x: float, mean: float, sd: float) -> float:
    """log N(x; mean, sd^2)."""
    return -0.5 * ((x - mean) / sd) ** 2 - math.log(sd) - 0.5 * math.log(2 * math.pi)


@pytest.fixture
def problem() -> nl.Problem:
    return nl.Problem(Page(), nl.load_data("theophylline"))


def by_hand(problem: nl.Problem, free: torch.Tensor) -> float:
    values = problem.values(free)
    ka, cl = float(values.theta["tvka"]), float(values.theta["tvcl"])
    sd, additive = math.sqrt(float(values.omega[1, 1])), float(values.sigma["cp.additive"])
    log_prior = normal(math.log(ka), 0.5, 1.0) - math.log(ka) + normal(cl, 3.0, 0.5)
    log_prior += math.log(2) + normal(sd, 0.0, 1.0) + math.log(2) + normal(additive, 0.0, 2.0)
    return -2 * log_prior


def test_the_penalty_is_minus_two_log_densities_on_the_natural_scale(problem: nl.Problem) -> None:
    moved = problem.start + torch.linspace(-0.3, 0.4, problem.P, dtype=torch.float64)
    both = problem.penalty(torch.stack((problem.start, moved)))
    assert problem.penalised
    assert both.tolist() == pytest.approx([by_hand(problem, f) for f in (problem.start, moved)], rel=1e-7)


def test_its_derivative_is_that_of_the_densities(problem: nl.Problem) -> None:
    free = (problem.start + 0.1).requires_grad_()
    (gradient,) = torch.autograd.grad(problem.penalty(free), free)
    for k in range(problem.P):
        step = torch.zeros(problem.P, dtype=torch.float64)
        step[k] = 1e-5
        ahead, behind = (by_hand(problem, free.detach() + side * step) for side in (1, -1))
        assert float(gradient[k]) == pytest.approx((ahead - behind) / 2e-5, abs=1e-5)
    assert float(gradient[problem.names.index("tvv")]) == 0.0


def test_slopes_make_densities_of_the_logarithms(problem: nl.Problem) -> None:
    """dx/du = x for what is positive: ka, cl, the standard deviation of cl in its block, the additive error."""
    moved = problem.start + torch.linspace(-0.3, 0.4, problem.P, dtype=torch.float64)
    values = problem.values(moved)
    parts = [
        values.theta["tvka"],
        values.theta["tvcl"],
        values.omega[1, 1].sqrt(),
        values.sigma["cp.additive"],
    ]
    wanted = sum(math.log(float(x)) for x in parts)
    got = log_slopes(problem.layout, problem.full(torch.stack((moved, moved))))
    assert got.tolist() == pytest.approx([wanted, wanted], rel=1e-12)


def test_slopes_between_two_bounds_and_below_one(problem: nl.Problem) -> None:
    class Bounded(Page):
        tvka = nl.Theta(1.5, lower=1, upper=4, prior=Normal(1.5, 1.0))
        tvcl = nl.Theta(2.7, upper=10, prior=Normal(3.0, 0.5))
        iiv = nl.Omega(ka=0.4, cl=0.1)
        cp = nl.Combined(0.7, 0.1)

    bounded = nl.Problem(Bounded(), problem.population)
    vector = bounded.full(bounded.start)
    # (upper - x)(x - lower) / (upper - lower), and upper - x
    wanted = math.log(2.5 * 0.5 / 3) + math.log(7.3)
    assert float(log_slopes(bounded.layout, vector)) == pytest.approx(wanted, rel=1e-12)


def test_a_uniform_prior_leaves_the_estimates_where_they_are(problem: nl.Problem) -> None:
    """Its density has no derivative at all, which must not be taken for an error."""

    class Plain(Page):
        tvka = nl.Theta(1.5, lower=0)
        tvcl = nl.Theta(2.7, lower=0, upper=20)
        iiv = nl.Omega(ka=0.4, cl=0.1)
        cp = nl.Combined(0.7, 0.1)

    class Flat(Plain):
        tvcl = nl.Theta(2.7, lower=0, upper=20, prior=Uniform(0.0, 20.0))

    plain, flat = (nl.fit(page, problem.population, nl.FOCEI()) for page in (Plain, Flat))
    assert flat.ofv == pytest.approx(plain.ofv, abs=1e-6)
    assert flat.penalty == pytest.approx(2 * math.log(20), abs=1e-6)
    assert flat.estimate.hessian_r == pytest.approx(plain.estimate.hessian_r, rel=1e-4, abs=1e-4)


def test_a_page_without_priors_has_no_penalty() -> None:
    plain = nl.Problem(nl.load_model("theophylline"), nl.load_data("theophylline"))
    assert not plain.penalised
    assert plain.penalty(plain.start[None].expand(3, -1)).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("declare", "words"),
    [
        (lambda: nl.Theta(1.0, prior=LogNormal(0.0, 1.0)), "no density at"),
        (lambda: nl.Theta(0.5, lower=0, prior=Beta(2.0, 2.0)), "upper="),
        (lambda: nl.Theta(5.0, lower=0, upper=6, prior=Uniform(0.0, 4.0)), "no density at 5"),
        (lambda: nl.Theta(1.0, lower=0, prior=0.3), "distribution of torch.distributions"),
        (lambda: nl.Theta(1.0, prior=Normal(torch.zeros(2), 1.0)), "one number"),
        (lambda: nl.Theta(1.0, fixed=True, prior=Normal(0.0, 1.0)), "would change nothing"),
        (lambda: nl.Omega(cl=0.1, fixed=True, prior=HalfNormal(1.0)), "would change nothing"),
        (lambda: nl.Additive(0.7, fixed=True, prior=HalfNormal(1.0)), "would change nothing"),
        (lambda: nl.Omega(cl=0.1, prior={"v": HalfNormal(1.0)}), "names 'v'"),
        (lambda: nl.Omega(cl=0.1, prior="flat"), "distribution of torch.distributions"),
        (lambda: nl.Additive(0.7, prior={"proportional": HalfNormal(1.0)}), "names 'proportional'"),
    ],
)
def test_what_is_no_prior_is_refused(declare, words: str) -> None:
    with pytest.raises(nl.ModelError, match=words):
        declare()


def test_priors_within_the_bounds_are_taken() -> None:
    nl.Theta(0.5, lower=0, upper=1, prior=Beta(2.0, 2.0))
    nl.Theta(1.0, prior=Normal(0.0, 1.0))
    assert "HalfNormal" in repr(nl.Omega(cl=0.1, prior=HalfNormal(1.0)))
