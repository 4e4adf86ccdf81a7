"""What every member of the classic family must do: FO, FOCE, FOCEI, Laplace, AGQ."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from inference.pages import Oral, Theophylline, TheophyllineAdditive, TheophyllineSd, oral_table
from problems import Straight, exact, exact_scores, straight_problem, straight_table
from torch import exp
from torch.distributions import LogNormal, Normal

import nlmegen as nl
from nlmegen.errors import FitError, ModelError, Status
from nlmegen.inference.agq import AGQ, Laplace
from nlmegen.inference.classic import Classic
from nlmegen.inference.foce import FO, FOCE, FOCEI
from nlmegen.inference.objective import Objective

F64 = torch.float64
LOG_2PI = math.log(2 * math.pi)

FAMILY: dict[str, Callable[..., Classic]] = {
    "fo": FO,
    "foce": FOCE,
    "focei": FOCEI,
    "laplace": Laplace,
    "agq": lambda **options: AGQ(nodes=3, **options),
}
member = pytest.mark.parametrize("method", FAMILY.values(), ids=FAMILY)


class Block(nl.Model):
    """Correlated random effects, an unbounded and a two-sided theta, one without eta, combined error."""

    tvka = nl.Theta(1.5, lower=0.1, upper=9.0)
    lcl = nl.Theta(1.0)
    tvv = nl.Theta(31.0, lower=0)
    power = nl.Theta(0.75)
    iiv = nl.Omega(cl=0.09, v=0.04, cov=[0.02])
    more = nl.Omega(ka=0.3)
    cp = nl.Combined(additive=0.4, proportional=0.1, form="sd")
    structure = nl.OneCompartment(absorption="first-order")

    def individual(self, theta, eta, cov):
        return dict(
            ka=theta.tvka * exp(eta.ka),
            cl=exp(theta.lcl + eta.cl) * (cov.wt / 70) ** theta.power,
            v=theta.tvv * (1 + eta.v),
        )

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


def theophylline(page: type[nl.Model] = Theophylline, subjects: int = 5) -> nl.Problem:
    return nl.Problem(page(), nl.load_data("theophylline").select(torch.arange(subjects)))


def differences(objective: Objective, free: torch.Tensor, eta: torch.Tensor, h: float = 1e-3) -> torch.Tensor:
    """d O_i / d free `[subject, P]`, of sixth order in h."""
    unit = h * torch.eye(len(free), dtype=F64)
    at = [objective(free + k * unit, eta).objective for k in (-3, -2, -1, 1, 2, 3)]
    return (((at[5] - at[0]) - 9 * (at[4] - at[1]) + 45 * (at[3] - at[2])) / (60 * h)).T


# -- the gradient ---------------------------------------------------------------------------------------------------
@member
@pytest.mark.parametrize("page", [TheophyllineAdditive, Theophylline, TheophyllineSd, Block])
def test_scores_are_the_derivatives_of_the_objective(
    method: Callable[..., Classic], page: type[nl.Model]
) -> None:
    problem = theophylline(page)
    objective = method().objective(problem)
    free = problem.start + 0.05 * torch.randn(problem.P, dtype=F64)
    here = objective(free[None], scores=True)
    slope = differences(objective, free, here.eta)
    assert here.score is not None
    assert torch.allclose(here.score[0], slope, rtol=1e-6, atol=2e-6)
    assert torch.allclose(here.gradient[0], slope.sum(0), rtol=1e-6, atol=1e-5)


@member
def test_a_batch_of_parameter_vectors_is_one_at_a_time(method: Callable[..., Classic]) -> None:
    problem = theophylline()
    objective = method().objective(problem)
    free = problem.start + 0.1 * torch.randn(3, problem.P, dtype=F64)
    together = objective(free, scores=True)
    for k, row in enumerate(free):
        alone = objective(row[None], scores=True)
        for name in ("objective", "mean", "cov", "depth"):
            assert torch.allclose(getattr(together, name)[k], getattr(alone, name)[0], atol=1e-8), name
        assert together.score is not None
        assert alone.score is not None
        assert torch.allclose(together.score[k], alone.score[0], rtol=1e-6, atol=1e-6)


@member
def test_pieces_make_no_difference(method: Callable[..., Classic], monkeypatch: pytest.MonkeyPatch) -> None:
    problem = theophylline()
    free = problem.start + 0.1 * torch.randn(2, problem.P, dtype=F64)
    whole = method().objective(problem)(free, scores=True)
    monkeypatch.setattr("nlmegen.inference.objective.PIECE", 200)  # two subjects, a few nodes at a time
    parts = method().objective(problem)(free, scores=True)
    assert torch.allclose(whole.objective, parts.objective, atol=1e-9)
    assert torch.allclose(whole.gradient, parts.gradient, rtol=1e-7, atol=1e-6)
    assert torch.allclose(whole.mean, parts.mean, atol=1e-8)
    assert torch.allclose(whole.cov, parts.cov, atol=1e-8)


# -- exact answers --------------------------------------------------------------------------------------------------
@member
def test_linear_gaussian_objective_is_the_likelihood(method: Callable[..., Classic]) -> None:
    problem = straight_problem(7)
    found = method(evaluate=True).estimate(problem)
    answer = exact(problem)
    assert found.log_likelihood == pytest.approx(answer.total, abs=1e-9)
    assert found.ofv == pytest.approx(-2 * answer.total - problem.n_observations * LOG_2PI, abs=1e-9)
    assert torch.allclose(found.ebe, answer.mean, atol=1e-9)
    assert torch.allclose(found.eta_mean, answer.mean, atol=1e-9)
    assert torch.allclose(found.eta_cov, answer.covariance, atol=1e-9)
    assert found.converged
    assert found.covariance is None
    free = problem.start + 0.2
    score = method().objective(problem)(free[None], scores=True).score
    assert score is not None
    assert torch.allclose(score[0], -2 * exact_scores(problem, free), atol=1e-6)


@member
def test_linear_gaussian_maximum_is_that_of_the_closed_form(method: Callable[..., Classic]) -> None:
    problem = nl.Problem(Straight(), nl.read_nonmem(straight_table(60, seed=2)))
    found = method().estimate(problem)
    assert found.converged
    score = exact_scores(problem, found.free)
    gradient = score.sum(0)
    assert float(gradient @ torch.linalg.solve(score.mT @ score, gradient)) < 1e-6
    assert found.score_s is not None
    assert torch.allclose(found.score_s, score.mT @ score, rtol=1e-4, atol=1e-4)


class NoneAtAll(Oral):
    """No random effects: plain maximum likelihood."""

    iiv = None

    def individual(self, theta, eta, cov):
        return dict(ka=theta.tvka, cl=theta.tvcl, v=theta.tvv)


@member
def test_without_random_effects_it_is_least_squares(method: Callable[..., Classic]) -> None:
    problem = nl.Problem(NoneAtAll(), nl.read_nonmem(oral_table(5)))
    found = method().estimate(problem)
    assert problem.q == 0
    assert found.converged
    values = problem.values(found.free)
    zero = torch.zeros(5, 0, dtype=F64)
    residual = (problem.y - problem.predict(zero, values).f).flatten()
    assert float(values.sigma["cp.sd"]) == pytest.approx(float((residual**2).mean().sqrt()), rel=1e-5)
    assert found.log_likelihood == pytest.approx(float(problem.log_likelihood(zero, values).sum()))
    assert found.ebe.shape == (5, 0)
    assert found.covariance is not None
    assert bool(torch.isfinite(found.covariance).all())


# -- edges ----------------------------------------------------------------------------------------------------------
class FixedEffects(Oral):
    """Random effects whose variances are not estimated."""

    iiv = nl.Omega(ka=0.16, cl=0.09, v=0.04, fixed=True)
    tvka = nl.Theta(1.2, lower=0, fixed=True)


class AllFixed(FixedEffects):
    """Nothing to estimate."""

    tvcl = nl.Theta(3.0, lower=0, fixed=True)
    tvv = nl.Theta(30.0, lower=0, fixed=True)
    cp = nl.LogNormal(0.2, fixed=True)


@member
def test_fixed_parameters_stay(method: Callable[..., Classic]) -> None:
    problem = nl.Problem(FixedEffects(), nl.read_nonmem(oral_table(12)))
    found = method().estimate(problem)
    assert problem.names == ("tvcl", "tvv", "cp.sd")
    assert found.converged
    assert found.covariance is not None
    assert found.covariance.shape == (3, 3)
    nothing = nl.Problem(AllFixed(), nl.read_nonmem(oral_table(4)))
    assert method().estimate(nothing).ofv == pytest.approx(method(evaluate=True).estimate(nothing).ofv)


@pytest.mark.parametrize(
    "method", [FAMILY["foce"], FAMILY["laplace"], FAMILY["agq"]], ids=["foce", "laplace", "agq"]
)
def test_a_variance_of_zero_is_a_boundary_with_finite_answers(method: Callable[..., Classic]) -> None:
    truth = Oral().with_values(omega=torch.diag(torch.tensor([0.16, 0.09, 1e-8], dtype=F64)))
    problem = nl.Problem(Oral(), nl.read_nonmem(oral_table(30, seed=2, model=truth)))
    found = method().estimate(problem)
    assert found.converged
    assert any("omega.v is at its boundary 0" in note for note in found.notes)
    assert float(problem.omega(found.free)[2, 2]) < 1e-4
    assert found.covariance is not None
    known = [k for k, name in enumerate(problem.names) if name != "omega.v"]
    assert bool(torch.isfinite(found.covariance[known][:, known]).all())
    assert bool(torch.isfinite(found.eta_cov).all())


@member
def test_a_subject_without_observations_changes_nothing(method: Callable[..., Classic]) -> None:
    table = oral_table(6)
    with pytest.warns(match="without observations"):
        data = nl.read_nonmem(table[(table.ID != 3) | (table.EVID == 1)])
    found = method(evaluate=True).estimate(nl.Problem(Oral(), data))
    without = method(evaluate=True).estimate(nl.Problem(Oral(), nl.read_nonmem(table[table.ID != 3])))
    assert found.ofv == pytest.approx(without.ofv, abs=1e-8)
    assert Status.NO_OBSERVATIONS in Status(int(found.status[2]))
    assert torch.allclose(found.eta_mean[2], torch.zeros(3, dtype=F64), atol=1e-9)
    if method is not FAMILY["agq"]:  # three nodes integrate x^2, which they must
        assert torch.allclose(found.eta_cov[2], nl.Problem(Oral(), data).values(found.free).omega, atol=1e-9)


@member
def test_what_is_reported(method: Callable[..., Classic]) -> None:
    settings = method()
    seen = []
    found = settings.estimate(theophylline(subjects=12), seen.append)
    assert found.converged
    assert found.ofv_source == ("quadrature" if settings.name == "agq" else settings.name)
    assert found.covariance_kind == "sandwich"
    assert found.penalty == 0.0
    assert found.status.tolist() == [0] * 12
    assert seen[-1].stage == settings.label
    assert all(report.stage.startswith(settings.label) for report in seen)
    assert found.history[-1]["ofv"] == pytest.approx(found.ofv, abs=1e-4)
    fit = nl.fit(Theophylline(), nl.load_data("theophylline"), method(evaluate=True))
    assert fit.method == settings.name


@member
def test_control_c_returns_the_best_so_far(method: Callable[..., Classic]) -> None:
    def impatient(report: nl.Progress) -> None:
        if report.objective is not None:
            raise KeyboardInterrupt

    found = method().estimate(theophylline(), impatient)
    assert not found.converged
    assert found.reason == "interrupted by the user"
    assert math.isfinite(found.ofv)
    assert found.covariance is None
    assert bool(torch.isfinite(found.eta_cov).all())


@member
def test_options_are_checked_under_the_methods_name(method: Callable[..., Classic]) -> None:
    label = method().label
    with pytest.raises(FitError, match=rf"{label}\(covariance='both'\)"):
        method(covariance="both")
    with pytest.raises(FitError, match=rf"{label}\(max_iterations=-1\)"):
        method(max_iterations=-1)
    with pytest.raises(FitError, match=rf"{label}\(tolerance=10\).*at most 0.01"):
        method(tolerance=10)


class Learned(nl.Model):
    """A network, whose weights only some members can learn."""

    tvcl, tvv, tvka = nl.Theta(3.0, lower=0), nl.Theta(30.0, lower=0), nl.Theta(1.2, lower=0)
    iiv = nl.Omega(cl=0.09, v=0.04)
    cp = nl.LogNormal(0.2)
    net = nl.Neural(inputs=1, hidden=(2,), outputs=1, penalty=1.0)
    structure = nl.OneCompartment(absorption="first-order")

    def individual(self, theta, eta, cov):
        size = self.net(cov.wt / 70)
        return dict(ka=theta.tvka, cl=theta.tvcl * exp(size + eta.cl), v=theta.tvv * exp(eta.v))

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


@pytest.mark.parametrize("method", [FO, Laplace, AGQ])
def test_weights_that_cannot_be_learned_are_refused(method: Callable[..., Classic]) -> None:
    table = oral_table(4).assign(WT=[50.0 + 5 * i for i in oral_table(4).ID])
    with pytest.raises(ModelError, match=r"cannot learn the weights of networks.*FOCEI\(\) or ELBO\(\)"):
        method().estimate(nl.Problem(Learned(), nl.read_nonmem(table)))


def test_foce_learns_weights_as_focei_does() -> None:
    table = oral_table(12).assign(WT=[50.0 + 5 * i for i in oral_table(12).ID])
    problem = nl.Problem(Learned(), nl.read_nonmem(table))
    one, two = (method(covariance=None).estimate(problem) for method in (FOCE, FOCEI))
    assert one.ofv == pytest.approx(two.ofv, abs=1e-6)  # log-normal error: no interaction to lose
    assert one.weights is not None
    assert one.ofv_source == "foce"


# -- priors ---------------------------------------------------------------------------------------------------------
class Informed(Straight):
    """The linear page with priors on a theta, a standard deviation of a random effect and the residual one."""

    tvb = nl.Theta(1.0, prior=Normal(3.0, 0.25))
    tvs = nl.Theta(0.5)
    iiv = nl.Omega(b=0.5, s=0.1, cov=[0.12], prior={"b": LogNormal(-1.0, 0.25)})
    cp = nl.Additive(0.4, prior=LogNormal(-1.0, 0.125))


def minus_two_log_prior(free: torch.Tensor) -> torch.Tensor:
    """By hand, from the free vector of `Informed`: thetas, log-Cholesky entries row by row, log sigma."""
    theta = Normal(3.0, 0.25).log_prob(free[0])
    spread, residual = LogNormal(-1.0, 0.25), LogNormal(-1.0, 0.125)
    return -2 * (theta + spread.log_prob(free[2].exp()) + residual.log_prob(free[5].exp()))


@member
def test_priors_give_the_posterior_mode(method: Callable[..., Classic]) -> None:
    problem = nl.Problem(Informed(), nl.read_nonmem(straight_table(40, seed=2)))
    found = method(covariance="R").estimate(problem)
    assert found.converged
    answer = exact(problem, found.free)
    assert found.log_likelihood == pytest.approx(answer.total, abs=1e-8)
    assert found.penalty == pytest.approx(float(minus_two_log_prior(found.free)), abs=1e-6)
    assert any("MAP" in note for note in found.notes)
    assert found.hessian_r is not None
    assert found.score_s is not None

    def negative(free: torch.Tensor) -> torch.Tensor:
        return -exact(problem, free).log_likelihood.sum() + 0.5 * minus_two_log_prior(free)

    gradient = torch.autograd.functional.jacobian(negative, found.free)
    hessian = torch.autograd.functional.hessian(negative, found.free)
    assert float(gradient @ torch.linalg.solve(hessian, gradient)) < 1e-6
    assert torch.allclose(found.hessian_r, hessian, rtol=5e-3, atol=5e-3 * float(hessian.abs().max()))
    score = exact_scores(problem, found.free)
    assert torch.allclose(found.score_s, score.mT @ score, rtol=1e-4, atol=1e-3)


def test_the_prior_is_in_the_total_and_no_subjects_score() -> None:
    problem = nl.Problem(Informed(), nl.read_nonmem(straight_table(8)))
    free = torch.stack((problem.start, problem.start + 0.1))
    found = FOCEI().objective(problem)(free, scores=True)
    prior = torch.stack([minus_two_log_prior(row) for row in free])
    assert torch.allclose(found.total, found.ofv + prior, atol=1e-6)
    assert found.score is not None
    slope = torch.stack([torch.autograd.functional.jacobian(minus_two_log_prior, row) for row in free])
    assert torch.allclose(found.gradient, found.score.sum(1) + slope, atol=1e-5)
    plain = nl.Problem(Straight(), problem.population)
    other = FOCEI().objective(plain)(free, scores=True)
    assert torch.equal(found.objective, other.objective)
    assert other.penalty is None
