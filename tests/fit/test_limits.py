"""Fits that take different things to be observed are not compared; a correlation of residuals is tested."""

from __future__ import annotations

import pytest
import torch
from inference.kinds import Counts, Joined, Limited, table, two_endpoints
from inference.test_kinds import Pair, simulated

import nlmegen as nl


class LeftOut(Limited):
    """Records below the limit left out."""

    cp = nl.Combined(additive=0.15, proportional=0.15, blq="M1")


class Conditional(Limited):
    """All is conditional on positive values."""

    cp = nl.Combined(additive=0.15, proportional=0.15, blq="M4")


class Apart(Pair):
    """Residuals without correlation."""

    link = nl.Correlation("parent", "other", 0.0, fixed=True)


def test_what_limits_make_of_the_data_must_be_one() -> None:
    data = nl.read_nonmem(table(Limited, 12))
    out = nl.fit(LeftOut(), data, nl.FOCEI(evaluate=True))
    known = nl.fit(Limited(), data, nl.Laplace(evaluate=True))
    positive = nl.fit(Conditional(), data, nl.Laplace(evaluate=True))
    with pytest.raises(nl.DataError, match="take different things to be observed"):
        nl.compare(out, known)
    nl.compare(known, positive)
    with pytest.raises(nl.DataError, match=r"different options \(none and blq=M4\)"):
        nl.likelihood_ratio(known, positive)


class Measured(Counts):
    """The counts taken for measurements."""

    count = nl.Additive(2.0)


def test_a_probability_is_not_compared_with_a_density() -> None:
    data = nl.read_nonmem(table(Counts, 6))
    fits = [nl.fit(kind(), data, nl.Laplace(evaluate=True)) for kind in (Counts, Measured)]
    with pytest.raises(nl.DataError, match="count is a count or a category in one page and a measurement"):
        nl.compare(*fits)


class Single(Joined):
    """Its first endpoint alone."""

    met = None
    link = None

    def observe(self, t, a, p):
        return dict(cp=nl.Predicted(a.central / p.v, scale=p.size))


def test_a_new_patient_need_not_have_every_endpoint() -> None:
    problem = two_endpoints(Joined)
    fit = nl.fit(problem.model, problem.population, nl.FOCEI(evaluate=True))
    table = problem.population.table
    new = nl.Population.from_table(table[(table.evid > 0) | (table.dvid == 1)], warn=False)
    own = nl.fit(Single, new, nl.FOCEI(evaluate=True))
    found, truth = (f.posterior(new, how="laplace") for f in (fit, own))
    torch.testing.assert_close(found.log_likelihood, truth.log_likelihood, rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(found.mean, truth.mean, rtol=1e-12, atol=1e-10)
    with pytest.raises(nl.DataError, match="the endpoint met takes DVID 2, which no observation has"):
        nl.fit(Joined, new, nl.FOCEI(evaluate=True))


def test_a_correlation_is_one_degree_of_freedom() -> None:
    data = simulated(Pair, 20).population
    small, large = (nl.fit(kind(), data, nl.FOCEI()) for kind in (Apart, Pair))
    test = nl.likelihood_ratio(small, large)
    assert "link.correlation" in str(test)
    assert "chi2(1)" in str(test)
    with pytest.raises(nl.DataError, match="correlation"):
        nl.likelihood_ratio(large, small)
