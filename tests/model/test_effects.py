"""Transforms of random effects and covariate helpers: values and derivatives by mpmath, scipy, and compiled pages."""

from __future__ import annotations

import mpmath
import numpy as np
import pandas as pd
import pytest
import torch
from nested import population
from scipy.stats import norm, t
from torch import exp

import nlmegen as nl
from nlmegen.errors import ModelError
from nlmegen.maths.taylor import Taylor

F64 = torch.float64


def number(x: float) -> torch.Tensor:
    return torch.tensor(x, dtype=F64)


@pytest.mark.parametrize("lam", [0.0, 1e-14, -1e-7, 1e-3, -0.2, 0.249, 0.251, 0.9, -1.7, 3.0])
@pytest.mark.parametrize("eta", [-1.1, 1.0, 0.0, 0.3])
def test_boxcox_and_its_derivatives(lam: float, eta: float) -> None:
    def truth(e, s):
        return e if s == 0 else mpmath.expm1(e * s) / s

    x, shape = Taylor.seed(torch.tensor([eta, lam], dtype=F64), 2)
    found = nl.boxcox(x, shape)
    value, jac, hess = found.full()
    with mpmath.workdps(40):
        e, s = mpmath.mpf(eta), mpmath.mpf(lam)
        place = s + mpmath.mpf(10) ** -25 if s == 0 else s  # differentiate beside the hole of the formula
        assert float(value) == pytest.approx(float(truth(e, s)), abs=1e-15)
        orders = [(1, 0), (0, 1), (2, 0), (1, 1), (0, 2)]
        numbers = [jac[0], jac[1], hess[0, 0], hess[0, 1], hess[1, 1]]
        for order, got in zip(orders, numbers, strict=True):
            # sum eta^(k+1) lam^k / (k+1)!, term by term
            series = mpmath.nsum(
                lambda k, o=order: (
                    0
                    if k + 1 < o[0] or k < o[1]
                    else e ** (k + 1 - o[0])
                    * place ** (k - o[1])
                    * mpmath.ff(k + 1, o[0])
                    * mpmath.ff(k, o[1])
                    / mpmath.factorial(k + 1)
                ),
                [0, 60],
            )
            assert float(got) == pytest.approx(float(series), rel=1e-12, abs=1e-13)
    assert float(nl.boxcox(number(eta), lam)) == pytest.approx(float(value), abs=1e-15)


def test_a_third_derivative_of_boxcox_passes_through_its_series() -> None:
    for lam in (0.0, 0.24, 0.26):
        x = torch.tensor([1.0, lam], dtype=F64, requires_grad=True)
        e, s = Taylor.seed(x, 2)
        hess = nl.boxcox(e, s).full()[2]
        (third,) = torch.autograd.grad(hess[1, 1].sum(), x)
        expected = sum(
            k * (k - 1) * (k - 2) * lam ** (k - 3) / float(mpmath.factorial(k + 1)) for k in range(3, 40)
        )
        assert float(third[1]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("df", "rel"), [(3, 1e-2), (4, 4e-3), (10, 1e-4), (50, 1e-6)])
def test_tlike_has_the_quantiles_of_student(df: float, rel: float) -> None:
    p = np.linspace(0.02, 0.98, 41)
    found = nl.tlike(torch.tensor(norm.ppf(p)), df).numpy()
    np.testing.assert_allclose(found, t.ppf(p, df), rtol=rel, atol=1e-12)
    seeded = nl.tlike(Taylor.seed(torch.tensor([0.7, float(df)], dtype=F64), 1)[0], number(df))
    ahead, behind = (float(nl.tlike(number(0.7 + h), df)) for h in (1e-6, -1e-6))
    assert float(seeded.jac[0]) == pytest.approx((ahead - behind) / 2e-6, rel=1e-8)


def test_logit_normal_keeps_within_its_bounds() -> None:
    eta = torch.tensor([-50.0, -1.0, 0.0, 2.0, 50.0], dtype=F64)
    x = nl.logit_normal(number(2.5), eta, 2.0, 4.0)
    assert float(x[2]) == pytest.approx(2.5)
    assert bool(((x >= 2.0) & (x <= 4.0)).all())
    logit = torch.log((x[1:4] - 2.0) / (4.0 - x[1:4]))
    torch.testing.assert_close(logit - logit[1], eta[1:4])
    torch.testing.assert_close(nl.logit_normal(2.5, eta, 2.0, 4.0), x)


def test_helpers_of_covariates() -> None:
    wt = torch.tensor([35.0, 70.0, 140.0], dtype=F64)
    torch.testing.assert_close(
        nl.allometric(wt, 70, number(0.75)), torch.tensor([0.5, 1.0, 2.0], dtype=F64) ** 0.75
    )
    torch.testing.assert_close(nl.allometric(wt), nl.allometric(wt, 70.0, 0.75))
    torch.testing.assert_close(nl.centred(wt, 70, 35), torch.tensor([-1.0, 0.0, 2.0], dtype=F64))


def test_what_they_refuse() -> None:
    with pytest.raises(ModelError, match="lower < upper, got 1 and 0"):
        nl.logit_normal(0.5, number(0.0), 1, 0)
    with pytest.raises(ModelError, match="2 is not between 0 and 1"):
        nl.logit_normal(2.0, number(0.0))
    with pytest.raises(ModelError, match="allometric: expected a positive number to divide by, got 0"):
        nl.allometric(number(70.0), 0)
    with pytest.raises(ModelError, match="centred"):
        nl.centred(number(70.0), 70, -1)
    with pytest.raises(ModelError, match="degrees of freedom are positive"):
        nl.tlike(number(0.1), 0)


class Words(nl.Model):
    """A page in all of them."""

    tvcl = nl.Theta(1.0, lower=0)
    tvv = nl.Theta(10.0, lower=0)
    tvf = nl.Theta(0.6, lower=0, upper=1)
    shape = nl.Theta(0.0)
    df = nl.Theta(5.0, lower=3)
    power = nl.Theta(0.75)
    male = nl.Theta(0.2)
    third = nl.Theta(-0.1)
    iiv = nl.Omega(cl=0.1, v=0.1, f=0.3)
    cp = nl.Combined(additive=0.1, proportional=0.1)
    structure = nl.OneCompartment()

    def individual(self, theta, eta, cov):
        group = theta.male * cov.sex["male"] + theta.third * cov.race["3"]
        return dict(
            cl=theta.tvcl
            * nl.allometric(cov.wt, 70, theta.power)
            * exp(nl.boxcox(eta.cl, theta.shape) + group),
            v=theta.tvv * exp(nl.tlike(eta.v, theta.df) + 0.1 * nl.centred(cov.wt, 70, 10)),
            f=nl.logit_normal(theta.tvf, eta.f),
        )

    def observe(self, t, a, p):
        return dict(cp=p.f * a.central / p.v)


def records(n: int = 9) -> pd.DataFrame:
    rows = []
    for i in range(n):
        one = {"id": i + 1, "wt": 50.0 + 5 * i, "sex": ("female", "male")[i % 2], "race": i % 3 + 1}
        rows.append(one | {"time": 0.0, "amt": 100.0, "dv": np.nan, "evid": 1})
        rows += [one | {"time": x, "amt": 0.0, "dv": 5.0, "evid": 0} for x in (1.0, 4.0, 9.0)]
    return pd.DataFrame(rows)


def test_a_page_of_them_runs_compiled_as_in_taylor_arithmetic() -> None:
    problem = nl.Problem(Words(), population(records()))
    eta = 0.4 * torch.randn(9, 3, dtype=F64)
    for shape in (0.0, 0.3):
        values = problem.values(
            problem.starting(problem.start).start.clone().index_fill(0, torch.tensor([3]), shape)
        )
        plain = problem.uncompiled().predict(eta, values, 2)
        assert problem.hasten().route.programs is not None, problem.route.reason
        quick = problem.predict(eta, values, 2)
        for a, b in zip((plain.f, plain.jac, plain.hess), (quick.f, quick.jac, quick.hess), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


# -- categorical covariates -------------------------------------------------------------------------------------------
def test_levels_are_indicators() -> None:
    problem = nl.Problem(Words(), population(records()))
    eta = torch.zeros(9, 3, dtype=F64)
    cl = problem.individual(eta, problem.values(problem.start))["cl"][:, 0].numpy()
    table = records().groupby("id").first()
    group = 0.2 * (table.sex == "male") - 0.1 * (table.race == 3)
    np.testing.assert_allclose(cl, (table.wt / 70) ** 0.75 * np.exp(group), rtol=1e-12)


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (lambda cov: cov.sex * 1.0, 'cov.sex is categorical and no number; .*cov.sex\\["female"\\]'),
        (lambda cov: exp(cov.sex), "a categorical covariate is no number"),
        (lambda cov: cov.sex["Male"], "no record of the data has this level .they have female, male.*'male'"),
        (lambda cov: cov.race["4"], "no record of the data has this level .they have 1, 2, 3"),
        (lambda cov: cov.sex[1], "a level is read by its name as text"),
    ],
)
def test_what_levels_refuse(extra: object, says: str) -> None:
    class Made(Words):
        def individual(self, theta, eta, cov):
            p = super().individual(theta, eta, cov)
            return p | dict(cl=p["cl"] * extra(cov))  # type: ignore[operator]

    with pytest.raises((ModelError, nl.DataError), match=says):
        nl.Problem(Made(), population(records()))


def test_numbers_stay_numbers_beside_their_levels() -> None:
    class Both(Words):
        def individual(self, theta, eta, cov):
            p = super().individual(theta, eta, cov)
            return p | dict(v=p["v"] * (1 + cov.race / 10) * exp(-(cov.race == 2).to(F64)))

    problem = nl.Problem(Both(), population(records()))
    v = problem.individual(torch.zeros(9, 3, dtype=F64), problem.values(problem.start))["v"][:, 0]
    table = records().groupby("id").first()
    expected = 10 * np.exp(0.01 * (table.wt - 70) - (table.race == 2)) * (1 + table.race / 10)
    np.testing.assert_allclose(v.numpy(), expected, rtol=1e-12)
    assert type(v) is torch.Tensor


def test_a_fit_knows_levels_that_new_patients_lack() -> None:
    fit = nl.fit(Words(), population(records()), nl.FOCEI(evaluate=True))
    women = population(records().query("sex == 'female' and race != 3"))
    with pytest.raises(nl.DataError, match="no record of the data has this level"):
        nl.Problem(Words(), women)
    found = fit.posterior(women, how="laplace")
    at = [fit.population.ids.index(i) for i in women.ids]
    torch.testing.assert_close(
        found.log_likelihood, fit.posterior(how="laplace").log_likelihood[at], rtol=1e-6, atol=1e-8
    )
    assert nl.Problem(fit.model, women).categories.seen()["race"] == ("1", "2", "3")
