"""A fit with occasions in its tables, criteria, likelihood ratios, resampling, figures and folder."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from nested import Nested, exact, linear_table, population

import nlmegen as nl
from nlmegen.fit.criteria import counts
from nlmegen.plots.etas import etas


class Between(nl.Model):
    """`Nested` without occasions."""

    mu = nl.Theta(2.0)
    slope = nl.Theta(0.5)
    iiv = nl.Omega(b=0.4, s=0.05)
    cp = nl.Additive(0.3)
    structure = nl.OneCompartment()

    def individual(self, theta, eta, cov):
        return dict(base=theta.mu + eta.b, slope=theta.slope + eta.s, cl=1.0, v=1.0)

    def observe(self, t, a, p):
        return dict(cp=p.base + p.slope * t)


class One(Between):
    """With one variance between occasions."""

    iov = nl.Omega(b=0.1, level="occ")

    def individual(self, theta, eta, cov, kappa):
        p = super().individual(theta, eta, cov)
        return p | dict(base=p["base"] + kappa.b)


class LeftOut(One):
    """Records beyond a limit left out."""

    cp = nl.Additive(0.3, blq="M1")


TABLE = linear_table(30)


@cache
def fitted(page: type) -> nl.Fit:
    return nl.fit(page, population(TABLE), nl.FOCEI())


def test_an_occasion_that_m1_leaves_out_has_no_share_in_shrinkage() -> None:
    table = linear_table(8)
    occ = next(c for c in table.columns if c.lower() == "occ")
    gone = (table[occ] == table[occ].iloc[-1]) & (table.iloc[:, 0] == table.iloc[-1, 0])
    table = table.assign(cens=(gone & (table.evid == 0)).astype(int))
    fit = nl.fit(LeftOut, population(table), nl.FOCEI(evaluate=True))
    kappa = fit.ebe[:, 2:]
    used = kappa[kappa != 0]
    assert int((kappa == 0).sum()) > int((~fit.problem.levels.present[:, 2:]).sum())
    assert fit.shrinkage_eta["occ.b"] == pytest.approx(1 - float(used.std()) / math.sqrt(0.1))


def test_a_likelihood_ratio_of_occasions_is_one_of_variances_at_their_boundary() -> None:
    one = nl.likelihood_ratio(fitted(Between), fitted(One), arbiter="own")
    assert (one.tested, one.df) == (("omega.occ.b",), 1)
    assert one.reference.critical() == pytest.approx(2.7055, abs=1e-3)  # 1/2 chi2(0) + 1/2 chi2(1)
    assert one.statistic == pytest.approx(
        2 * (fitted(One).log_likelihood - fitted(Between).log_likelihood), abs=1e-9
    )
    beside = nl.likelihood_ratio(fitted(One), fitted(Nested), arbiter="own")
    assert beside.df == 2
    assert beside.reference.weights == {1: 0.5, 2: 0.5}
    both = nl.likelihood_ratio(fitted(Between), fitted(Nested), arbiter="own")
    assert both.tested == ("omega of (occ.b, occ.s)",)
    with pytest.raises(nl.DataError, match="random effects occ.b of its own"):
        nl.likelihood_ratio(fitted(One), fitted(Between), arbiter="own")


def test_parameters_are_counted_once_however_many_occasions() -> None:
    fit = fitted(Nested)
    assert fit.n_parameters == 8
    number = counts(fit.problem)
    assert (number.random, number.fixed) == (7, 1)
    assert fit.aic == pytest.approx(-2 * fit.log_likelihood + 16)
    observed = int((TABLE.evid == 0).sum())
    assert fit.bic == pytest.approx(-2 * fit.log_likelihood + 7 * math.log(30) + math.log(observed))


def test_a_comparison_by_importance_sampling() -> None:
    found = nl.compare(fitted(One), fitted(Nested), arbiter="importance", k=200, seed=1)
    row = found.table.loc["nested-focei"]
    truth = -2 * exact(TABLE, fitted(Nested).parameters["estimate"].to_dict()).sum()
    assert abs(row["minus2ll"] - truth) < 4 * row["minus2ll_se"] + 0.02


def test_the_folder_of_a_fit(tmp_path: Path) -> None:
    fit = fitted(Nested)
    nl.save_fit(fit, tmp_path / "fit")
    content = json.loads((tmp_path / "fit" / "fit.json").read_text())
    assert content["omega"]["names"] == ["b", "s", "occ.b", "occ.s"]
    np.testing.assert_allclose(content["omega"]["covariance"], fit.model.omega.numpy())
    assert list(content["shrinkage_eta"]) == ["b", "s", "occ.b", "occ.s"]
    table = pd.read_csv(tmp_path / "fit" / "individuals.csv")
    assert list(table.columns[1:9]) == [
        "eta_b",
        "eta_s",
        *(f"kappa_{x}_{k}" for k in (1, 2, 3) for x in "bs"),
    ]
    assert table["kappa_b_3"].isna().tolist() == [k % 3 == 2 for k in range(30)]
    assert table["kappa_s_2_sd"].notna().all()
    back = nl.load_fit(tmp_path / "fit", model=Nested())
    assert back.ofv == fit.ofv
    assert back.shrinkage_eta == pytest.approx(fit.shrinkage_eta)
    torch.testing.assert_close(back.posterior(how="laplace").mean, fit.posterior(how="laplace").mean)


def test_figures_report_and_text(tmp_path: Path) -> None:
    fit = fitted(Nested)
    labels = [axis.get_xlabel() for axis in etas(fit).axes if axis.get_xlabel()]
    assert labels == ["eta b", "eta s", "kappa b", "kappa s"]
    assert "occ.s" in repr(fit).splitlines()[-3] or "occ.s" in repr(fit)
    page = Path(nl.report(fit, tmp_path / "report.html")).read_text()
    assert "omega.occ.s,occ.b" in page
    correlation = float(fit.model.omega[3, 2] / (fit.model.omega[2, 2] * fit.model.omega[3, 3]).sqrt())
    assert f"correlation {correlation:.3f}"[:16] in page


def test_resampling() -> None:
    fit = fitted(Nested)
    profile = nl.profile(fit, ["omega.occ.s"]).table
    low, high = profile.loc["omega.occ.s", ["lower", "upper"]]
    assert low < fit.parameters["estimate"]["omega.occ.s"] < high
    for kind in ("case", "parametric"):
        drawn = nl.bootstrap(fit, 2, kind=kind, seed=1)
        assert "omega.occ.s,occ.b" in drawn.table.columns
    assert "omega.occ.b" in repr(nl.sir(fit, samples=50, resamples=20, seed=1))


def test_simulation_draws_each_occasion_anew() -> None:
    """Covariance over replicates of two observations of one subject in two occasions, and in one."""
    model = Nested()
    one = linear_table(1, occasions=2, times=(0.5, 1.0))
    drawn = nl.simulate(model, population(one), seed=3, replicates=1500)
    y = drawn[drawn.evid == 0].dv.to_numpy().reshape(1500, -1)
    t = one[one.evid == 0].time.to_numpy()[-4:]
    y = y[:, -4:]
    omega, kappa = np.diag([0.4, 0.05]), np.array([[0.15, 0.02], [0.02, 0.03]])
    z = np.column_stack([np.ones_like(t), t])
    occasion = one[one.evid == 0].occ.to_numpy()[-4:]
    cov = z @ omega @ z.T + (occasion[:, None] == occasion) * (z @ kappa @ z.T) + 0.09 * np.eye(len(t))
    spread = np.sqrt((np.outer(np.diag(cov), np.diag(cov)) + cov**2) / 1500)
    assert (np.abs(np.cov(y.T) - cov) < 4.5 * spread).all()
