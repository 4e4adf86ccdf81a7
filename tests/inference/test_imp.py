"""Importance sampling as an estimator, against quadrature optima and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from inference.cases import Curved, curved_table, exact_log_likelihood, exact_maximum
from inference.pages import Theophylline, TheophyllineAdditive, WangAdditive, wang_data
from problems import Straight, exact, straight_problem, straight_table
from torch.distributions import HalfNormal, Normal

import nlmegen as nl
from nlmegen.errors import FitError
from nlmegen.inference.estimate import Estimate, Progress
from nlmegen.inference.flipflop import absorbs_slowly
from nlmegen.inference.imp import Importance
from nlmegen.inference.marginal import quadrature


def minus2ll(problem: nl.Problem, found: Estimate) -> float:
    return -2 * quadrature(problem, problem.values(found.free), 9).total


OPTIMA = [
    (Theophylline, "theophylline", 347.1042, (1,)),
    (TheophyllineAdditive, "theophylline", 360.7015, (1, 2)),
    (None, "phenobarbital", 870.7745, (1,)),
]


@pytest.mark.parametrize(("page", "data", "best", "seeds"), OPTIMA)
def test_it_ends_at_maximum_likelihood(page, data: str, best: float, seeds: tuple[int, ...]) -> None:
    """The optima were computed by independent quadrature."""
    model = nl.load_model(data) if page is None else page()
    problem = nl.Problem(model, nl.load_data(data))
    for seed in seeds:
        found = Importance(seed=seed, covariance=None).estimate(problem)
        assert found.converged, found.reason
        assert minus2ll(problem, found) == pytest.approx(best, abs=0.02)
        assert found.ofv_source == "quadrature"
        assert -2 * found.log_likelihood == pytest.approx(best, abs=0.02)
        assert found.bounds is not None
        assert found.bounds["ess_median"] > 0.8
        within = 4 * found.bounds["importance_se"]
        assert abs(found.bounds["importance_log_likelihood"] - found.log_likelihood) < within


def curved(page: type[nl.Model] = Curved) -> nl.Problem:
    """Linear in eta, with correlated random effects and a theta that has none."""
    return nl.Problem(page(), nl.read_nonmem(curved_table(24)))


def information(problem: nl.Problem, free: torch.Tensor) -> torch.Tensor:
    """Minus the second derivatives of the closed form."""

    def total(x: torch.Tensor) -> torch.Tensor:
        return exact_log_likelihood(problem, x).sum()

    return -torch.func.jacrev(torch.func.grad(total))(free)


def test_a_linear_page_ends_at_the_closed_form() -> None:
    problem = curved()
    best, most = exact_maximum(problem)
    found = Importance(seed=2, covariance="R").estimate(problem)
    assert found.converged, found.reason
    assert 0 <= 2 * (most - float(exact_log_likelihood(problem, found.free).sum())) < 0.02
    assert found.covariance is not None
    sd = torch.linalg.inv(information(problem, best)).diagonal().sqrt()
    torch.testing.assert_close(found.covariance.diagonal().sqrt(), sd, rtol=0.05, atol=1e-6)


class Believed(Curved):
    """With informative priors on a theta, a random effect and the residual error."""

    tvc = nl.Theta(0.2, prior=Normal(0.4, 0.02))
    iiv = nl.Omega(b=0.5, s=0.3, cov=[0.1], prior={"b": HalfNormal(0.2)})
    cp = nl.Additive(0.4, prior=HalfNormal(0.1))


def test_priors_lead_to_the_mode_of_the_posterior() -> None:
    problem = curved(Believed)
    found = Importance(seed=1).estimate(problem)
    assert found.converged, found.reason

    def objective(free: torch.Tensor) -> torch.Tensor:
        return problem.penalty(free) - 2 * exact_log_likelihood(problem, free).sum()

    # one Newton step of the closed form from the estimate: what was left to gain
    slope = torch.autograd.functional.jacobian(objective, found.free)
    bend = torch.autograd.functional.hessian(problem.penalty, found.free)
    curvature = information(problem, found.free) + 0.5 * bend
    step = torch.linalg.solve(curvature, 0.5 * slope)
    assert 0 <= float(objective(found.free) - objective(found.free - step)) < 0.02
    assert found.penalty == pytest.approx(float(problem.penalty(found.free)))
    own = float(exact_log_likelihood(problem, found.free).sum())
    assert found.log_likelihood == pytest.approx(own, abs=1e-6)
    torch.testing.assert_close(
        found.hessian_r, curvature, rtol=0.01, atol=0.01 * float(curvature.abs().max())
    )
    # far from the maximum of the likelihood alone
    alone = torch.func.grad(lambda x: exact_log_likelihood(problem, x).sum())(found.free)
    assert float(alone @ torch.linalg.solve(curvature, alone)) > 1.0


def test_a_poor_start_ends_at_the_same_place() -> None:
    model = TheophyllineAdditive().with_values(
        theta={"tvka": 6.0, "tvcl": 0.6, "tvv": 150.0}, sigma={"cp.additive": 0.1}
    )
    problem = nl.Problem(model, nl.load_data("theophylline"))
    found = Importance(covariance=None).estimate(problem)
    assert minus2ll(problem, found) == pytest.approx(360.7015, abs=0.02)


def test_a_flip_flop_start_is_mirrored_and_said() -> None:
    model = TheophyllineAdditive().with_values(theta={"tvka": 0.1, "tvcl": 2.5, "tvv": 3.0})
    problem = nl.Problem(model, nl.load_data("theophylline"))
    found = Importance(covariance=None).estimate(problem)
    assert any("mirror image" in note for note in found.notes)
    assert not absorbs_slowly(problem, found.free)


def test_an_evaluation_is_the_likelihood_with_its_error() -> None:
    problem, truth = straight_problem(), exact(straight_problem())
    found = Importance(seed=4, evaluate=True).estimate(problem)
    assert torch.equal(found.free, problem.start)
    assert (found.ofv_source, found.converged, found.covariance) == ("importance", True, None)
    assert found.ofv_se is not None
    assert 0 < found.ofv_se < 0.2
    assert abs(-2 * found.log_likelihood + 2 * truth.total) < 4 * found.ofv_se
    assert found.bounds is not None
    assert found.bounds["k"] == 3000
    assert found.bounds["khat_max"] < 0.7
    assert found.bounds["ess_min"] > 0.5
    fewer = Importance(seed=4, evaluate=True, k=300, covariance="S").estimate(problem)
    assert fewer.ofv_se is not None
    assert fewer.ofv_se == pytest.approx(found.ofv_se * 10**0.5, rel=0.3)
    assert fewer.score_s is not None


def test_the_same_seed_gives_the_same_fit() -> None:
    problem = curved()
    one, two, other = (
        Importance(seed=s, precision=0.1, covariance=None).estimate(problem) for s in (1, 1, 2)
    )
    torch.testing.assert_close(one.free, two.free, rtol=0, atol=1e-9)  # sums differ in their last bits
    assert one.bounds == pytest.approx(two.bounds, abs=1e-6)
    assert float((one.free - other.free).abs().max()) > 1e-4


def test_the_limit_of_iterations_is_told() -> None:
    problem = curved()
    for limit in (0, 2):
        found = Importance(max_iterations=limit).estimate(problem)
        assert not found.converged
        assert f"limit of {limit} iterations" in found.reason
        assert found.iterations == limit
        assert found.covariance is None


def test_an_interruption_keeps_the_best_so_far() -> None:
    problem = curved()

    def stop(at: Progress) -> None:
        if "finish" in at.stage:
            raise KeyboardInterrupt

    found = Importance().estimate(problem, stop)
    assert not found.converged
    assert "interrupted by the user during finish" in found.reason
    assert math.isfinite(found.ofv)
    assert float((found.free - problem.start).abs().max()) > 0.01


class Held(Curved):
    """Some parameters fixed."""

    tvb = nl.Theta(1.2, fixed=True)
    iiv = nl.Omega(b=0.5, s=0.3, cov=[0.1], fixed=True)


def test_fixed_parameters_stay() -> None:
    problem = curved(Held)
    found = Importance(covariance="R", precision=0.02).estimate(problem)
    assert problem.names == ("tvs", "tvc", "cp.additive")
    assert found.converged
    assert 0 <= 2 * (exact_maximum(problem)[1] - found.log_likelihood) < 0.02
    assert float(problem.values(found.free).theta["tvb"]) == pytest.approx(1.2)
    nothing = nl.Problem(WangAdditive(), wang_data())
    evaluated = Importance(evaluate=True).estimate(nothing)
    assert evaluated.ofv == pytest.approx(-1.990, abs=4 * (evaluated.ofv_se or 0.0))


class Without(Straight):
    """No random effects."""

    iiv = None  # type: ignore[assignment]

    def individual(self, theta, eta, cov):
        return dict(base=theta.tvb, slope=theta.tvs, cl=1.0, v=1.0)


class Learned(Straight):
    """A network in place of a slope."""

    net = nl.Neural(inputs=1, hidden=(2,), outputs=1)

    def observe(self, t, a, p):
        return dict(cp=p.base + p.slope * self.net(t))


def test_what_it_cannot_estimate_is_refused() -> None:
    data = nl.read_nonmem(straight_table(4))
    with pytest.raises(FitError, match="no random effects"):
        Importance().estimate(nl.Problem(Without(), data))
    with pytest.raises(FitError, match="does not learn the networks"):
        Importance().estimate(nl.Problem(Learned(), data))
    assert math.isfinite(Importance(evaluate=True).estimate(nl.Problem(Learned(), data)).ofv)


@pytest.mark.parametrize(
    "settings",
    [
        {"seed": -1}, {"seed": 1.5}, {"k": 10}, {"k": 500.0}, {"k": 500, "most_draws": 400}, {"most_draws": 3},
        {"precision": 0.0}, {"precision": math.nan}, {"df": 0}, {"covariance": "T"}, {"max_iterations": -1},
    ],
)  # fmt: skip
def test_settings_without_a_meaning_are_refused(settings: dict) -> None:
    with pytest.raises(FitError, match="Importance"):
        Importance(**settings)


def test_its_name_and_kind() -> None:
    assert Importance().name == "imp"
    assert Importance().kind == "sandwich"
    assert Importance(evaluate=True).kind is None
    assert Importance(evaluate=True, covariance="S").kind == "S"
