"""AIC and BIC: which parameters are learned from subjects, published values, and when neither applies."""

from __future__ import annotations

import math

import pytest
import torch
from inference.pages import Oral, oral_table
from problems import Curve, Straight, curve_problem, straight_problem

import nlmegen as nl
from nlmegen.fit.criteria import Counts, aic, bic, cautions, counts


def test_a_theta_without_a_random_effect_is_learned_from_observations() -> None:
    assert counts(straight_problem()) == Counts(random=5, fixed=1)
    # tvd of Curve has no effect beside it: with sigma it counts by observations
    assert counts(curve_problem()) == Counts(random=3 + 6, fixed=2)


def test_a_theta_that_moves_a_parameter_with_and_one_without_an_effect() -> None:
    class Shared(Straight):
        def individual(self, theta, eta, cov):
            return dict(base=theta.tvb + eta.b, slope=theta.tvs * theta.tvb, cl=1.0, v=1.0 + eta.s)

    problem = nl.Problem(Shared(), straight_problem().population)
    assert counts(problem) == Counts(random=3, fixed=3)


def test_fixed_parameters_are_not_counted() -> None:
    page = type("Fixed", (Straight,), {"__module__": __name__, "tvs": nl.Theta(0.5, fixed=True)})
    problem = nl.Problem(page(), straight_problem().population)
    assert counts(problem).total == problem.P == 5
    assert counts(problem) == Counts(random=4, fixed=1)


def test_the_published_bic_of_phenobarbital() -> None:
    """pharmpy's documentation of calculate_bic, from the OFV without its constant: 611.7071686216575."""
    problem = nl.Problem(nl.load_model("phenobarbital"), nl.load_data("phenobarbital"))
    assert bic(586.27605628188053, problem) == pytest.approx(611.7071686216575, abs=1e-6)
    assert aic(586.27605628188053, problem) == pytest.approx(598.27605628188053)


def test_subjects_without_observations_do_not_count() -> None:
    table = oral_table(4)
    table.loc[table.ID.max() == table.ID, "EVID"] = 1
    with pytest.warns(UserWarning, match="without observations"):
        data = nl.read_nonmem(table.assign(AMT=table.AMT.where(table.EVID == 0, 100.0)))
    problem = nl.Problem(Oral(), data)
    number = counts(problem)
    expected = number.random * math.log(3) + number.fixed * math.log(problem.n_observations)
    assert bic(0.0, problem) == pytest.approx(expected)


def test_priors_and_networks_are_cautioned_against() -> None:
    prior = torch.distributions.Normal(1.0, 0.2)
    page = type("Prior", (Straight,), {"__module__": __name__, "tvb": nl.Theta(1.0, prior=prior)})
    data = straight_problem().population
    (said,) = cautions(nl.Problem(page(), data))
    assert "tvb" in said
    assert "maximum a posteriori" in said

    class Learned(Curve):
        """A network of t."""

        net = nl.Neural(inputs=1, hidden=(3,), outputs=1, penalty=1.0)

        def observe(self, t, a, p):
            return dict(cp=p.base + p.slope * t + p.wave * torch.cos(t) + self.net(t))

    (said,) = cautions(nl.Problem(Learned(), curve_problem().population))
    assert "network of 10 weights" in said
    assert not cautions(straight_problem())
