"""Ends of profiles against closed forms, and sides that have none."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from problems import Straight, exact, straight_table
from resample.oneway import CUT, Layout, OneWay, fitted, table
from scipy.optimize import minimize
from scipy.stats import chi2

import nlmegen as nl
from nlmegen.fit import Fit
from nlmegen.inference.outer import Outer
from nlmegen.inference.starts import logarithmic
from nlmegen.inference.uncertainty import natural
from nlmegen.resample import profile as module
from nlmegen.resample.chart import Chart, Charted
from nlmegen.resample.criterion import criterion
from nlmegen.resample.profile import profile
from nlmegen.resample.walk import Better, Walk


def test_the_ends_are_those_of_the_closed_form() -> None:
    fit = fitted()
    layout, found = Layout.of(fit.population), profile(fit)
    ends = found.table[["lower", "upper"]]
    assert ends.loc["mu"].tolist() == pytest.approx(layout.interval_of_mu(), abs=1e-5)
    assert ends.loc["cp.additive"].tolist() == pytest.approx(layout.interval_of_sigma(), abs=1e-5)
    assert ends.loc["omega.b"].tolist() == pytest.approx(
        [layout.lower_of_omega(), layout.upper_of_omega()], abs=1e-5
    )
    assert found.notes == []
    for _, point in found.path[found.path["name"] == "omega.b"].iterrows():
        assert point["rise"] == pytest.approx(layout.rise_in_omega(point["value"]), abs=1e-5)


def test_a_variance_alone_has_the_chi_square_interval() -> None:
    """Without random effects to speak of: n log(s^2 / S) + n (S / s^2 - 1) = CUT for a residual variance."""

    class Alone(OneWay):
        iiv = nl.Omega(b=1e-12, fixed=True)

    fit = nl.fit(Alone(), nl.read_nonmem(table()), nl.FOCEI())
    y = fit.population.dv.numpy().ravel()
    ends = profile(fit, ["cp.additive"]).table.loc["cp.additive", ["lower", "upper"]].to_numpy(dtype=float)
    ratio = y.var() / ends**2
    assert len(y) * (-np.log(ratio) + ratio - 1) == pytest.approx([CUT, CUT], abs=1e-5)
    assert ends[0] < y.std() < ends[1]


def test_one_side_at_another_level() -> None:
    fit = fitted()
    layout = Layout.of(fit.population)
    found = profile(fit, ["omega.b"], level=0.9, sides="upper")
    assert found.rise == pytest.approx(1.2815515655446004**2)
    assert layout.rise_in_omega(found.table.loc["omega.b", "upper"]) == pytest.approx(found.rise, abs=1e-5)
    assert math.isnan(found.table.loc["omega.b", "lower"])
    assert "90 % upper limits" in repr(found)


@pytest.mark.parametrize("bounds", [{"upper": 50.0}, {"lower": -10.0, "upper": 50.0}], ids=str)
def test_lower_is_below_upper_whatever_the_bounds(bounds: dict[str, float]) -> None:
    """The free scale of a theta with an upper bound alone runs the other way."""

    class Bounded(OneWay):
        mu = nl.Theta(5.0, **bounds)

    fit = nl.fit(Bounded(), nl.read_nonmem(table()), nl.FOCEI())
    found = profile(fit, ["mu"])
    wanted = Layout.of(fit.population).interval_of_mu()
    assert found.table.loc["mu", ["lower", "upper"]].tolist() == pytest.approx(wanted, abs=1e-5)
    assert found.path["value"].is_monotonic_increasing


@pytest.mark.parametrize(
    ("bounds", "start"),
    [({"upper": 4.5}, 4.0), ({"lower": 0.0, "upper": 4.5}, 4.0), ({"lower": 6.0}, 7.0)],
    ids=str,
)
def test_a_theta_at_either_bound(bounds: dict[str, float], start: float) -> None:
    """The bound is one limit; on the other side n log(tau^2 + (mu - Y)^2) rises by CUT from its value there."""

    class Bounded(OneWay):
        mu = nl.Theta(start, **bounds)

    fit = nl.fit(Bounded(), nl.read_nonmem(table()), nl.FOCEI())
    layout, found = Layout.of(fit.population), profile(fit, ["mu"])
    lower, upper = found.table.loc["mu", ["lower", "upper"]]
    bound, end = (lower, upper) if start > 5 else (upper, lower)
    assert bound == (6.0 if start > 5 else 4.5)
    assert layout.rise_in_mu(end) - layout.rise_in_mu(bound) == pytest.approx(CUT, abs=1e-4)
    assert f"which is the {'lower' if start > 5 else 'upper'} limit" in found.table.loc["mu", "said"]


@pytest.mark.parametrize(("seed", "edge"), [(1, False), (2, True)])
def test_a_variance_that_may_be_zero(seed: int, edge: bool) -> None:
    fit = fitted(n=8, m=3, omega=0.02, seed=seed)
    layout, found = Layout.of(fit.population), profile(fit)
    assert (layout.estimates[1] == 0.0) is edge
    row = found.table.loc["omega.b"]
    assert row["lower"] == 0.0
    assert row["upper"] == pytest.approx(layout.upper_of_omega(), abs=1e-5)
    assert ("estimate is at its boundary" if edge else "the lower limit is the bound 0") in row["said"]
    assert "quantile is 2.71: 0 is kept" in row["said"]
    assert any("omega.b: at the boundary" in note for note in found.notes) is edge
    if not edge:
        assert f"rises by {layout.rise_in_omega(0.0):.3g} only" in row["said"]
    # the variance leaves its boundary where mu is far enough away
    ends = found.table.loc["mu", ["lower", "upper"]].tolist()
    assert [layout.rise_in_mu(end) for end in ends] == pytest.approx([CUT, CUT], abs=1e-4)


class Decay(OneWay):
    """An early excess that may be over before the first observation."""

    rate = nl.Theta(1.5, lower=0)

    def individual(self, theta, eta, cov):
        return dict(base=theta.mu + eta.b, rate=theta.rate, cl=1.0, v=1.0)

    def observe(self, t, a, p):
        return dict(cp=p.base + 2 * torch.exp(-p.rate * t))


def test_a_side_without_a_limit_is_said_in_words() -> None:
    records = table(seed=1)
    records.loc[records["EVID"] == 0, "DV"] += 2 * np.exp(-1.5 * records.loc[records["EVID"] == 0, "TIME"])
    data = nl.read_nonmem(records)
    fit = nl.fit(Decay(), data, nl.FOCEI(tolerance=1e-9))
    without = nl.fit(OneWay(), data, nl.FOCEI())
    found = profile(fit, ["rate"])
    assert fit.converged
    assert found.table.loc["rate", "upper"] == math.inf
    rise = without.ofv - fit.ofv
    assert 0 < rise < CUT
    assert f"no upper limit: the objective rises by {rise:.3g} only" in found.table.loc["rate", "said"]
    assert 0 < found.table.loc["rate", "lower"] < fit.parameters["estimate"]["rate"]


@pytest.fixture(scope="module")
def block() -> nl.Fit:
    return nl.fit(Straight(), nl.read_nonmem(straight_table(30)), nl.FOCEI())


class TestBlocks:
    @pytest.mark.parametrize("name", ["omega.b", "omega.s", "omega.s,b"])
    def test_coordinates_hold_the_parameter(self, block: nl.Fit, name: str) -> None:
        problem, free = block.problem, block.estimate.free
        index = problem.names.index(name)
        chart = Chart(problem, index)
        x = chart.coordinates(free)
        torch.testing.assert_close(chart.free(x), free)
        others = x + 0.3 * torch.randn(20, len(x), generator=torch.Generator().manual_seed(0), dtype=x.dtype)
        others[:, index] = x[index]
        values = natural(problem, chart.free(others))[:, index]
        torch.testing.assert_close(values, values[:1].expand(20))
        numeric = torch.autograd.functional.jacobian(chart.free, x)
        torch.testing.assert_close(chart.slopes(x), numeric)

    def test_the_ends_are_minima_under_the_constraint(self, block: nl.Fit) -> None:
        """The closed form minimised by scipy over everything else where the profile ended."""
        found = profile(block, ["omega.s", "omega.s,b"])
        problem = block.problem

        def minus2ll(z: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
            free = torch.from_numpy(z).requires_grad_()
            value = -2 * exact(problem, free).log_likelihood.sum()
            (slope,) = torch.autograd.grad(value, free)
            return float(value.detach()), slope.numpy()

        lowest = minus2ll(block.estimate.free.numpy())[0]
        for name, row in found.table.iterrows():
            index = problem.names.index(str(name))
            for side in ("lower", "upper"):
                path = found.path[found.path["name"] == name]
                at = path.iloc[(path["value"] - row[side]).abs().argmin()]
                omega = torch.zeros(2, 2, dtype=torch.float64)
                for entry, (i, j) in zip(problem.layout.omega_names, problem.layout.positions, strict=True):
                    omega[i, j] = omega[j, i] = float(at[entry])
                theta = {k: float(at[k]) for k in problem.layout.theta_names}
                start = problem.layout.pack(theta, omega, {"cp.additive": float(at["cp.additive"])})

                def held(z: np.ndarray[Any, Any], index: int = index, end: float = row[side]) -> float:
                    return float(natural(problem, torch.from_numpy(z))[index]) - end

                best = minimize(
                    minus2ll,
                    start.numpy() + 0.05,
                    method="SLSQP",
                    jac=True,
                    constraints={"type": "eq", "fun": held},
                    options={"ftol": 1e-10, "maxiter": 200},
                )
                assert best.fun - lowest == pytest.approx(CUT, abs=2e-4)

    def test_a_correlation_of_one_is_left_where_that_is_better(self) -> None:
        """Where the maximum has a correlation of one, points away from it have another."""
        fit = nl.fit(Straight(), nl.read_nonmem(straight_table(12)), nl.FOCEI())
        assert any("correlation 1" in note for note in fit.notes)
        found = profile(fit, ["omega.s,b"], sides="lower", level=0.975)
        end = found.path.iloc[(found.path["rise"] - CUT).abs().argmin()]
        correlation = end["omega.s,b"] / math.sqrt(end["omega.s"] * end["omega.b"])
        assert end["omega.s,b"] < 0
        assert -0.95 < correlation < -0.5
        omega = torch.tensor(
            [[end["omega.b"], end["omega.s,b"]], [end["omega.s,b"], end["omega.s"]]], dtype=torch.float64
        )
        there = fit.problem.layout.pack(
            {"tvb": end["tvb"], "tvs": end["tvs"]}, omega, {"cp.additive": end["cp.additive"]}
        )
        rise = -2 * (exact(fit.problem, there).total - exact(fit.problem, fit.estimate.free).total)
        assert rise == pytest.approx(CUT, abs=1e-4)

    def test_derivatives_in_the_coordinates(self, block: nl.Fit) -> None:
        problem = block.problem
        chart = Chart(problem, problem.names.index("omega.s"))
        objective = Charted(criterion(block), chart)
        x = chart.coordinates(block.estimate.free + 0.1)
        step = 1e-5 * torch.eye(len(x), dtype=x.dtype)
        ahead, behind = (objective(x + side * step).total for side in (1, -1))
        gradient = objective(x[None], scores=True).gradient[0]
        torch.testing.assert_close(gradient, (ahead - behind) / 2e-5, rtol=1e-4, atol=1e-4)


class TestAFitThatIsNotAtItsMinimum:
    def test_the_walk_reports_a_lower_objective(self) -> None:
        fit = fitted()
        objective = criterion(fit)
        wrong = fit.estimate.free + torch.tensor([1.5, 0.0, 0.0], dtype=torch.float64)
        base = Outer(objective, logarithmic(fit.problem)).exact(wrong, fit.ebe[None])
        walk = Walk(objective, base, torch.zeros(3, dtype=torch.bool), 1, CUT, 2.7)
        with pytest.raises(Better) as news:
            walk.side(-1)
        assert news.value.name == "omega.b"
        barred = Walk(objective, base, torch.zeros(3, dtype=torch.bool), 1, CUT, 2.7, lambda free: True)
        assert "was not found: the search failed beyond" in barred.side(-1).words

    def test_the_profile_begins_anew_and_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fit = fitted()
        expected = profile(fit, ["omega.b"]).table
        honest = module._Base.of
        calls = []

        def first_wrong(objective: Any, free: torch.Tensor, eta: torch.Tensor) -> Any:
            calls.append(free)
            if len(calls) > 1:
                return honest(objective, free, eta)
            wrong = fit.estimate.free + torch.tensor([1.5, 0.0, 0.0], dtype=torch.float64)
            surface = Outer(objective, logarithmic(fit.problem)).exact(wrong, fit.ebe[None])
            return module._Base(surface, torch.zeros(3, dtype=torch.bool))

        monkeypatch.setattr(module._Base, "of", staticmethod(first_wrong))
        found = profile(fit, ["omega.b"])
        assert any("a lower objective" in note and "omega.b" in note for note in found.notes)
        assert found.table["upper"].tolist() == pytest.approx(expected["upper"].tolist(), rel=1e-5)
        assert len(calls) == 2

    def test_a_drift_of_the_objective_is_told(self) -> None:
        model = OneWay().with_values(fitted(), theta=dict(mu=4.8))
        fit = nl.fit(model, nl.read_nonmem(table()), nl.FOCEI(evaluate=True))
        found = profile(fit, ["mu"])
        assert any("the objective falls by" in note for note in found.notes)
        assert found.estimates["mu"] == pytest.approx(Layout.of(fit.population).estimates[0], abs=1e-4)


class TestWhichObjective:
    def test_a_variational_fit_is_profiled_on_quadrature(self) -> None:
        fit = fitted()
        other = Fit(fit.model, fit.population, nl.ELBO(), fit.estimate, 0.0)
        found = profile(other, ["omega.b"], sides="upper", level=0.975)
        assert "adaptive quadrature" in found.notes[0]
        assert found.table.loc["omega.b", "upper"] == pytest.approx(
            Layout.of(fit.population).upper_of_omega(), abs=1e-4
        )

    def test_too_many_random_effects_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fit = fitted()
        other = Fit(fit.model, fit.population, nl.ELBO(), fit.estimate, 0.0)
        monkeypatch.setattr(other.problem, "q", 4)
        with pytest.raises(nl.FitError, match="4 random effects are too many for quadrature"):
            profile(other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(names="mu"), r"write \['mu'\]"),
        (dict(names=["ka"]), "'ka' is no free parameter. .*Legal names: mu"),
        (dict(sides="left"), "expected 'both', 'lower' or 'upper'"),
        (dict(level=1.0), "level: expected a fraction"),
        (dict(level=0.4, sides="lower"), "level: expected a fraction"),
    ],
)
def test_what_means_nothing_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(nl.DataError, match=message):
        profile(fitted(), **options)


def test_a_page_without_free_parameters_is_refused() -> None:
    class Known(OneWay):
        mu = nl.Theta(5.0, fixed=True)
        iiv = nl.Omega(b=1.0, fixed=True)
        cp = nl.Additive(0.7, fixed=True)

    fit = nl.fit(Known(), nl.read_nonmem(table()), nl.FOCEI())
    with pytest.raises(nl.DataError, match="no parameter to profile"):
        profile(fit)


def test_the_limit_is_a_chi_square_quantile() -> None:
    assert pytest.approx(float(chi2.ppf(0.95, 1))) == CUT
