from __future__ import annotations

import math

import pytest
import torch
from inference.pages import (
    Oral,
    Theophylline,
    TheophyllineAdditive,
    TheophyllineSd,
    WangAdditive,
    WangProportional,
    oral_table,
    wang_data,
)
from problems import Straight, exact, straight_problem, straight_table
from torch import exp

import nlmegen as nl
from nlmegen.errors import DataError, FitError, Status
from nlmegen.inference.conditional import FOCEIObjective
from nlmegen.inference.estimate import Progress

F64 = torch.float64


def theophylline(page: type[nl.Model] = Theophylline) -> nl.Problem:
    return nl.Problem(page(), nl.load_data("theophylline"))


def phenobarbital() -> nl.Problem:
    return nl.Problem(nl.load_model("phenobarbital"), nl.load_data("phenobarbital"))


def estimates(problem: nl.Problem, estimate) -> dict[str, float]:
    model = problem.model.with_free(problem.full(estimate.free))
    values = {k: float(v) for k, v in model.values.theta.items()}
    values |= {f"omega.{k}": float(v) for k, v in zip(problem.eta_names, model.omega.diagonal(), strict=True)}
    return values | {k: float(v) for k, v in model.values.sigma.items()}


# -- numbers that others have published ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("page", "ofv"),
    [(TheophyllineAdditive, 116.8034), (Theophylline, 104.3221), (TheophyllineSd, 99.0555)],
)
def test_theophylline_objective(page: type[nl.Model], ofv: float) -> None:
    problem = theophylline(page)
    found = nl.FOCEI().estimate(problem)
    assert found.converged
    assert found.ofv == pytest.approx(ofv, abs=1e-3)
    assert found.log_likelihood == pytest.approx(-0.5 * (ofv + 132 * math.log(2 * math.pi)), abs=1e-3)
    assert found.status.tolist() == [0] * 12
    assert found.covariance is not None


def test_theophylline_additive_estimates() -> None:
    problem = theophylline(TheophyllineAdditive)
    got = estimates(problem, nl.FOCEI(covariance=None).estimate(problem))
    assert 0.4639 - 5e-4 <= math.log(got["tvka"]) <= 0.4651 + 5e-4
    assert 1.0114 - 5e-4 <= math.log(got["tvcl"]) <= 1.0122 + 5e-4
    assert 3.4597 - 5e-4 <= math.log(got["tvv"]) <= 3.4601 + 5e-4
    assert 0.4024 - 5e-4 <= got["omega.ka"] <= 0.4044 + 5e-4
    assert 0.0689 - 5e-5 <= got["omega.cl"] <= 0.0691 + 5e-5
    assert 0.0190 - 5e-5 <= got["omega.v"] <= 0.0192 + 5e-5
    assert 0.694 - 5e-4 <= got["cp.additive"] <= 0.695 + 5e-4


def test_phenobarbital_agrees_with_nonmem() -> None:
    problem = phenobarbital()
    found = nl.FOCEI().estimate(problem)
    got = estimates(problem, found)
    assert found.ofv == pytest.approx(586.27605628, abs=1e-3)
    nonmem = {
        "tvcl": 0.00469555,
        "tvv": 0.984258,
        "asphyxia": 0.158920,
        "omega.cl": 0.0293508,
        "omega.v": 0.0279060,
        "cp.proportional": 0.0132410**0.5,
    }
    for name, value in nonmem.items():
        assert got[name] == pytest.approx(value, rel=1e-3), name


@pytest.mark.parametrize(("page", "ofv"), [(WangProportional, 39.458), (WangAdditive, -2.059)])
def test_wang_table(page: type[nl.Model], ofv: float) -> None:
    found = nl.FOCEI(evaluate=True).estimate(nl.Problem(page(), wang_data()))
    assert found.ofv == pytest.approx(ofv, abs=6e-4)


# -- exact answers --------------------------------------------------------------------------------------------------
def test_linear_gaussian_objective_is_the_likelihood() -> None:
    problem = straight_problem()
    found = nl.FOCEI(evaluate=True).estimate(problem)
    answer = exact(problem)
    assert found.log_likelihood == pytest.approx(float(answer.log_likelihood.sum()), abs=1e-9)
    assert torch.allclose(found.ebe, answer.mean, atol=1e-10)
    assert torch.allclose(found.eta_cov, answer.covariance, atol=1e-10)
    assert found.converged
    assert found.covariance is None


def test_linear_gaussian_maximum_is_that_of_the_closed_form() -> None:
    problem = nl.Problem(Straight(), nl.read_nonmem(straight_table(60, seed=2)))
    found = nl.FOCEI().estimate(problem)
    assert found.converged
    fitted = nl.Problem(problem.model.with_free(problem.full(found.free)), problem.population)
    top = float(exact(fitted).log_likelihood.sum())
    assert found.log_likelihood == pytest.approx(top, abs=1e-8)
    for direction in torch.eye(problem.P, dtype=F64):
        for h in (-0.02, 0.02):
            other = problem.model.with_free(problem.full(found.free + h * direction))
            assert float(exact(nl.Problem(other, problem.population)).log_likelihood.sum()) < top


# -- the gradient ---------------------------------------------------------------------------------------------------
class Block(nl.Model):
    """Correlated random effects, an unbounded and a two-sided theta, a neural-like nonlinearity in sight of each."""

    tvka = nl.Theta(1.5, lower=0.1, upper=9.0)
    lcl = nl.Theta(1.0)
    tvv = nl.Theta(31.0, lower=0)
    iiv = nl.Omega(cl=0.09, v=0.04, cov=[0.02])
    more = nl.Omega(ka=0.3)
    cp = nl.Combined(additive=0.4, proportional=0.1, form="sd")
    structure = nl.OneCompartment(absorption="first-order")

    def individual(self, theta, eta, cov):
        return dict(
            ka=theta.tvka * exp(eta.ka),
            cl=exp(theta.lcl + eta.cl) * (cov.wt / 70) ** 0.75,
            v=theta.tvv * (1 + eta.v),
        )

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


@pytest.mark.parametrize("page", [TheophyllineAdditive, Theophylline, TheophyllineSd, Block, "phenobarbital"])
def test_scores_are_the_derivatives_of_the_objective(page: type[nl.Model] | str) -> None:
    problem = phenobarbital() if isinstance(page, str) else theophylline(page)
    objective = FOCEIObjective(problem)
    start = problem.start + 0.05 * torch.randn(problem.P, dtype=F64)
    here = objective(start[None], scores=True)
    h = 1e-3
    unit = h * torch.eye(problem.P, dtype=F64)
    at = [objective(start + k * unit, here.eta).objective for k in (-3, -2, -1, 1, 2, 3)]
    # sixth order in h, subject by subject
    slope = ((at[5] - at[0]) - 9 * (at[4] - at[1]) + 45 * (at[3] - at[2])) / (60 * h)
    assert here.score is not None
    assert torch.allclose(here.score[0], slope.T, rtol=1e-6, atol=2e-6)
    assert torch.allclose(here.gradient[0], slope.sum(1), rtol=1e-6, atol=1e-5)


def test_a_batch_of_parameter_vectors_is_one_at_a_time() -> None:
    problem = theophylline()
    free = problem.start + 0.1 * torch.randn(5, problem.P, dtype=F64)
    together = FOCEIObjective(problem)(free, scores=True)
    for k, row in enumerate(free):
        alone = FOCEIObjective(problem)(row[None], scores=True)
        assert torch.allclose(together.objective[k], alone.objective[0], atol=1e-9)
        assert together.score is not None
        assert alone.score is not None
        assert torch.allclose(together.score[k], alone.score[0], rtol=1e-6, atol=1e-6)


def test_pieces_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = theophylline()
    free = problem.start + 0.1 * torch.randn(3, problem.P, dtype=F64)
    whole = FOCEIObjective(problem)(free, scores=True)
    monkeypatch.setattr("nlmegen.inference.objective.PIECE", 500)  # five subjects at a time
    parts = FOCEIObjective(problem)(free, scores=True)
    assert torch.allclose(whole.objective, parts.objective, atol=1e-9)
    assert torch.allclose(whole.gradient, parts.gradient, rtol=1e-7, atol=1e-6)
    assert torch.allclose(whole.eta, parts.eta, atol=1e-7)


def test_scores_not_asked_for_are_an_error() -> None:
    with pytest.raises(ValueError, match="scores=True"):
        _ = FOCEIObjective(theophylline())(theophylline().start[None]).gradient


# -- starts ---------------------------------------------------------------------------------------------------------
def test_a_poor_start_arrives() -> None:
    start = Theophylline().with_values(
        theta={"tvka": 10.0, "tvcl": 0.5, "tvv": 200.0},
        omega=torch.diag(torch.tensor([0.04, 0.5, 0.002], dtype=F64)),
        sigma={"cp.additive": 0.03, "cp.proportional": 0.02},
    )
    found = nl.FOCEI(covariance=None).estimate(nl.Problem(start, nl.load_data("theophylline")))
    assert found.converged
    assert found.ofv == pytest.approx(104.3221, abs=1e-3)


def test_many_subjects_take_the_other_road_to_the_same_place() -> None:
    table = oral_table(60)
    problem = nl.Problem(Oral(), nl.read_nonmem(table))
    newton = nl.FOCEI().estimate(problem)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nlmegen.inference.outer.CHEAP", 5_000)
        patch.setattr("nlmegen.inference.run.CHEAP", 5_000)
        secant = nl.FOCEI().estimate(problem)
    assert secant.converged
    assert secant.ofv == pytest.approx(newton.ofv, abs=1e-5)
    assert newton.covariance is not None
    assert secant.covariance is not None
    ratio = (secant.covariance.diagonal() / newton.covariance.diagonal()).sqrt()
    assert torch.allclose(ratio, torch.ones(problem.P, dtype=F64), atol=0.01)


def test_flip_flop_is_resolved_and_told() -> None:
    slow = Theophylline().with_values(theta={"tvka": 0.086, "tvcl": 2.8, "tvv": 1.8})
    problem = nl.Problem(slow, nl.load_data("theophylline"))
    found = nl.FOCEI(covariance=None).estimate(problem)
    assert found.ofv == pytest.approx(104.3221, abs=1e-3)
    assert any("mirror image" in note for note in found.notes)
    accepted = nl.FOCEI(covariance=None, flip_flop=True).estimate(problem)
    assert accepted.ofv == pytest.approx(103.0834, abs=1e-3)
    got = estimates(problem, accepted)
    assert got["tvka"] < got["tvcl"] / got["tvv"]


# -- edges ----------------------------------------------------------------------------------------------------------
class NoneAtAll(Oral):
    """No random effects: plain maximum likelihood."""

    iiv = None

    def individual(self, theta, eta, cov):
        return dict(ka=theta.tvka, cl=theta.tvcl, v=theta.tvv)


def test_without_random_effects_it_is_least_squares() -> None:
    problem = nl.Problem(NoneAtAll(), nl.read_nonmem(oral_table(5)))
    found = nl.FOCEI().estimate(problem)
    assert problem.q == 0
    assert found.converged
    values = problem.values(found.free)
    residual = (problem.y - problem.predict(torch.zeros(5, 0, dtype=F64), values).f).flatten()
    assert float(values.sigma["cp.sd"]) == pytest.approx(float((residual**2).mean().sqrt()), rel=1e-5)
    assert found.ebe.shape == (5, 0)
    assert found.log_likelihood == pytest.approx(
        float(problem.log_likelihood(torch.zeros(5, 0, dtype=F64), values).sum())
    )
    assert found.covariance is not None
    assert bool(torch.isfinite(found.covariance).all())


class FixedEffects(Oral):
    """Random effects whose variances are not estimated."""

    iiv = nl.Omega(ka=0.16, cl=0.09, v=0.04, fixed=True)
    tvka = nl.Theta(1.2, lower=0, fixed=True)


def test_fixed_parameters_stay_and_are_left_out() -> None:
    problem = nl.Problem(FixedEffects(), nl.read_nonmem(oral_table(12)))
    found = nl.FOCEI().estimate(problem)
    assert problem.names == ("tvcl", "tvv", "cp.sd")
    assert found.converged
    assert found.covariance is not None
    assert found.covariance.shape == (3, 3)
    got = estimates(problem, found)
    assert got["tvka"] == pytest.approx(1.2)
    assert got["omega.cl"] == pytest.approx(0.09)
    here = FOCEIObjective(problem)(found.free[None], scores=True)
    assert float(here.gradient.abs().max()) < 1e-2


class AllFixed(FixedEffects):
    """Nothing to estimate."""

    tvcl = nl.Theta(3.0, lower=0, fixed=True)
    tvv = nl.Theta(30.0, lower=0, fixed=True)
    cp = nl.LogNormal(0.2, fixed=True)


def test_nothing_to_estimate_is_an_evaluation() -> None:
    problem = nl.Problem(AllFixed(), nl.read_nonmem(oral_table(4)))
    found = nl.FOCEI().estimate(problem)
    assert found.converged
    assert found.free.shape == (0,)
    assert found.ofv == pytest.approx(nl.FOCEI(evaluate=True).estimate(problem).ofv)


def test_a_variance_of_zero_is_a_boundary_with_finite_answers() -> None:
    truth = Oral().with_values(omega=torch.diag(torch.tensor([0.16, 0.09, 1e-8], dtype=F64)))
    problem = nl.Problem(Oral(), nl.read_nonmem(oral_table(30, seed=2, model=truth)))
    found = nl.FOCEI().estimate(problem)
    assert found.converged
    assert estimates(problem, found)["omega.v"] < 1e-4
    assert "omega.v" in found.reason
    assert any("omega.v is at its boundary 0" in note for note in found.notes)
    assert found.covariance is not None
    known = [k for k, name in enumerate(problem.names) if name != "omega.v"]
    assert bool(torch.isfinite(found.covariance[known][:, known]).all())
    assert bool(torch.isnan(found.covariance[problem.names.index("omega.v")]).all())
    assert bool(torch.isfinite(found.ebe).all())
    without = nl.FOCEI().estimate(nl.Problem(WithoutV(), problem.population))
    assert found.ofv == pytest.approx(without.ofv, abs=1e-3)
    kept = found.covariance[known][:, known]
    assert without.covariance is not None
    assert torch.allclose(kept.diagonal(), without.covariance.diagonal(), rtol=0.02)


def test_a_correlation_of_one_is_a_boundary_too() -> None:
    problem = nl.Problem(Straight(), nl.read_nonmem(straight_table(40, seed=3)))
    found = nl.FOCEI().estimate(problem)
    assert found.converged
    omega = problem.omega(found.free)
    assert float(omega[0, 1] / (omega[0, 0] * omega[1, 1]).sqrt()) == pytest.approx(1.0, abs=1e-5)
    assert any("random effect s is a combination of others (correlation 1)" in note for note in found.notes)
    fitted = nl.Problem(problem.model.with_free(problem.full(found.free)), problem.population)
    assert found.log_likelihood == pytest.approx(float(exact(fitted).log_likelihood.sum()), abs=1e-8)


class WithoutV(Oral):
    """The same page, its random effect on v left out."""

    iiv = nl.Omega(ka=0.16, cl=0.09)

    def individual(self, theta, eta, cov):
        return dict(ka=theta.tvka * exp(eta.ka), cl=theta.tvcl * exp(eta.cl), v=theta.tvv)


def test_a_subject_without_observations_changes_nothing() -> None:
    table = oral_table(8)
    short = table[(table.ID != 3)]
    empty = table[(table.ID != 3) | (table.EVID == 1)]
    with pytest.warns(match="without observations"):
        data = nl.read_nonmem(empty)
    found = nl.FOCEI().estimate(nl.Problem(Oral(), data))
    reference = nl.FOCEI().estimate(nl.Problem(Oral(), nl.read_nonmem(short)))
    assert found.ofv == pytest.approx(reference.ofv, abs=1e-6)
    assert torch.allclose(found.ebe[2], torch.zeros(3, dtype=F64), atol=1e-9)
    assert Status.NO_OBSERVATIONS in Status(int(found.status[2]))
    values = nl.Problem(Oral(), data).values(found.free)
    assert torch.allclose(found.eta_cov[2], values.omega, rtol=1e-6)


def test_a_subject_without_a_dose_is_flagged() -> None:
    class Baseline(Oral):
        base = nl.Theta(0.5, lower=0)
        cp = nl.Additive(0.3)

        def individual(self, theta, eta, cov):
            return super().individual(theta, eta, cov) | dict(base=theta.base)

        def observe(self, t, a, p):
            return dict(cp=a.central / p.v + p.base)

    table = oral_table(5, model=Baseline())
    with pytest.warns(match="without doses"):
        data = nl.read_nonmem(table[(table.ID != 4) | (table.EVID == 0)])
    found = nl.FOCEI(evaluate=True).estimate(nl.Problem(Baseline(), data))
    assert [Status.NO_DOSES in Status(s) for s in found.status.tolist()] == [False, False, False, True, False]


class Narrow(Oral):
    """The clearance is not allowed to be as large as it is."""

    tvcl = nl.Theta(2.0, lower=1.0, upper=2.5)


def test_a_theta_at_its_bound_is_a_boundary() -> None:
    problem = nl.Problem(Narrow(), nl.read_nonmem(oral_table(30)))
    found = nl.FOCEI().estimate(problem)
    assert found.converged
    assert estimates(problem, found)["tvcl"] == pytest.approx(2.5, abs=1e-4)
    assert any("tvcl is at its bound 2.5" in note for note in found.notes)
    assert found.covariance is not None
    at = problem.names.index("tvcl")
    assert torch.isnan(found.covariance.diagonal()).nonzero().tolist() == [[at]]


class Sudden(Oral):
    """One absorption rate for all."""

    iiv = nl.Omega(cl=0.09, v=0.04)

    def individual(self, theta, eta, cov):
        return dict(ka=theta.tvka, cl=theta.tvcl * exp(eta.cl), v=theta.tvv * exp(eta.v))


def test_a_theta_that_runs_away_is_no_convergence() -> None:
    truth = Sudden().with_values(theta={"tvka": 80.0})
    table = oral_table(30, times=(2.0, 4.0, 8.0, 12.0, 24.0), seed=3, model=truth)
    found = nl.FOCEI().estimate(nl.Problem(Sudden(), nl.read_nonmem(table)))
    assert not found.converged
    assert "do not determine tvka" in found.reason
    assert math.isfinite(found.ofv)
    assert found.covariance is None


@pytest.mark.parametrize("n", [3, 6])
def test_too_few_subjects_for_a_sandwich_have_the_hessian(n: int) -> None:
    problem = nl.Problem(Straight(), nl.read_nonmem(straight_table(n)))
    found = nl.FOCEI().estimate(problem)
    assert found.converged
    assert found.covariance is not None
    assert found.covariance_kind == "R"
    assert any("those of the Hessian R" in note for note in found.notes)
    held = found.covariance.diagonal().isnan()
    inverse = torch.linalg.inv(found.hessian_r[~held][:, ~held])
    assert torch.allclose(found.covariance[~held][:, ~held], inverse, rtol=1e-6)


def test_one_subject_has_no_standard_errors_near_zero() -> None:
    problem = nl.Problem(Oral(), nl.read_nonmem(oral_table(1)))
    found = nl.FOCEI().estimate(problem)
    assert found.covariance_kind == "R"
    assert found.covariance is not None
    se = found.covariance.diagonal().sqrt()
    assert float(se[~se.isnan()].min()) > 1e-3  # the sandwich: 1e-12


class Proportional(Theophylline):
    """Proportional error, which has no variance where f = 0."""

    cp = nl.Proportional(0.2)


def test_proportional_error_at_zero_names_the_records() -> None:
    with pytest.raises(DataError, match=r"variance is zero at id 1 time 0.*Combined"):
        nl.FOCEI().estimate(theophylline(Proportional))


def test_a_start_that_is_not_finite_is_refused() -> None:
    problem = theophylline()
    problem.start = problem.start.clone()
    problem.start[0] = math.nan
    with pytest.raises(DataError, match="not finite"):
        nl.FOCEI().estimate(problem)


def test_control_c_returns_the_best_so_far() -> None:
    seen: list[float] = []

    def impatient(report: Progress) -> None:
        assert report.objective is not None
        seen.append(report.objective)
        if len(seen) == 3:
            raise KeyboardInterrupt

    found = nl.FOCEI().estimate(theophylline(), impatient)
    assert not found.converged
    assert found.reason == "interrupted by the user"
    assert found.ofv == pytest.approx(min(seen), abs=1e-6)
    assert found.ofv > 104.33
    assert found.covariance is None


def test_the_iteration_limit_is_a_reason() -> None:
    found = nl.FOCEI(max_iterations=2).estimate(theophylline())
    assert not found.converged
    assert "limit of 2 iterations" in found.reason
    assert found.iterations == 2
    assert math.isfinite(found.ofv)


def test_evaluation_stays_at_the_values_and_has_errors_when_asked() -> None:
    problem = phenobarbital()
    best = nl.FOCEI().estimate(problem)
    there = nl.Problem(problem.model.with_free(problem.full(best.free)), problem.population)
    plain = nl.FOCEI(evaluate=True).estimate(there)
    assert plain.ofv == pytest.approx(best.ofv, abs=1e-6)
    assert torch.equal(plain.free, there.start)
    assert plain.covariance is None
    asked = nl.FOCEI(evaluate=True, covariance="sandwich").estimate(there)
    assert asked.covariance is not None
    assert best.covariance is not None
    assert torch.allclose(asked.covariance, best.covariance, rtol=1e-2)
    assert torch.allclose(plain.ebe, best.ebe, atol=1e-3)


def test_options_are_checked() -> None:
    with pytest.raises(FitError, match="covariance='both'"):
        nl.FOCEI(covariance="both")  # type: ignore[arg-type]
    with pytest.raises(FitError, match="max_iterations"):
        nl.FOCEI(max_iterations=-1)
    assert nl.FOCEI().name == "focei"


@pytest.mark.parametrize("tolerance", [math.inf, 1000, 10, 0.011, 0.0, -1e-7, math.nan])
def test_a_tolerance_that_stops_at_the_start_is_refused(tolerance: float) -> None:
    with pytest.raises(FitError, match="tolerance=.*at most 0.01"):
        nl.FOCEI(tolerance=tolerance)


def test_the_loosest_tolerance_still_estimates() -> None:
    found = nl.FOCEI(tolerance=1e-2, covariance=None).estimate(theophylline())
    assert found.converged
    assert found.ofv == pytest.approx(104.3221, abs=0.05)


def test_permuted_subjects_give_the_same_fit() -> None:
    data = nl.load_data("theophylline")
    order = torch.arange(11, -1, -1)
    found = nl.FOCEI().estimate(nl.Problem(Theophylline(), data.select(order)))
    assert found.ofv == pytest.approx(104.3221, abs=1e-3)
    assert torch.allclose(found.ebe[order], nl.FOCEI().estimate(theophylline()).ebe, atol=1e-3)
