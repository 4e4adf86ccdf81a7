"""Rung 1: where log p(y) has a closed form, every method must give it, not come near it.

A check is a function without arguments that raises AssertionError; `tests/mutants` runs the same on broken code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from histories import exact_log_dose, log_dose_problem
from ladder.comparisons import EXACT, F64, close, fixed_q, shifted, within
from problems import Exact, curve_problem, exact, exact_hessian, exact_scores, straight_problem
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

import nlmegen as nl
from nlmegen.inference import vem
from nlmegen.inference.conditional import FOCEIObjective
from nlmegen.inference.ebe import modes
from nlmegen.inference.iwml import Course
from nlmegen.inference.ladder import Ladder, climb
from nlmegen.inference.marginal import StudentLaplace, importance, quadrature
from nlmegen.inference.objective import Evaluation
from nlmegen.inference.posterior import Approximation
from nlmegen.inference.simulated import SimulatedLikelihood

LOG_2PI = math.log(2 * math.pi)


def cases() -> Iterator[tuple[nl.Problem, Exact]]:
    """Two and three etas with correlated Omega, and the log-normal one with its own closed form."""
    for problem in (straight_problem(7), curve_problem(6)):
        yield problem, exact(problem)
    yield log_dose_problem(), exact_log_dose()


def off_start(problem: nl.Problem) -> Tensor:
    """A parameter vector away from the declared values, where nothing vanishes by symmetry."""
    return problem.start + 0.2 * torch.randn(problem.P, generator=torch.Generator().manual_seed(4), dtype=F64)


# -- the joint density ------------------------------------------------------------------------------------------------
def joint_over_posterior_is_the_likelihood() -> None:
    """Bayes' rule at arbitrary etas: log p(y, eta) - log p(eta | y) = log p(y)."""
    for problem, truth in cases():
        posterior = MultivariateNormal(truth.mean, truth.covariance)
        generator = torch.Generator().manual_seed(1)
        eta = torch.randn(5, problem.n_subjects, problem.q, generator=generator, dtype=F64)
        joint = problem.log_joint(eta, problem.values(problem.start))
        close(joint - posterior.log_prob(eta), truth.log_likelihood.expand(5, -1), EXACT)


def score_of(found: Evaluation) -> Tensor:
    """The scores of an evaluation that was asked for them."""
    assert found.score is not None
    return found.score


# -- FOCEI ------------------------------------------------------------------------------------------------------------
def focei_value_and_modes() -> None:
    """O_i = -2 log p - n log 2 pi; the modes are posterior means."""
    for problem, truth in cases():
        found = FOCEIObjective(problem)(problem.start[None])
        count = problem.population.mask.sum(-1).to(F64)
        close(found.objective[0], -2 * truth.log_likelihood - count * LOG_2PI, EXACT)
        close(found.eta[0], truth.mean, EXACT)


def focei_starts_anywhere() -> None:
    """The modes do not depend on where their search began, nor on parameters of another evaluation."""
    problem = curve_problem(6)
    free = off_start(problem)
    objective = FOCEIObjective(problem)
    elsewhere = objective(problem.start[None])
    for eta in (None, elsewhere.eta, 3 * torch.ones_like(elsewhere.eta)):
        found = objective(free[None], eta, scores=True)
        close(found.eta[0], exact(problem, free).mean, 1e-9)
        close(score_of(found)[0], -2 * exact_scores(problem, free), 1e-6)


def focei_scores() -> None:
    """The derivative of every subject's objective in every free parameter."""
    for problem in (straight_problem(7), curve_problem(6)):
        free = off_start(problem)
        found = FOCEIObjective(problem)(free[None], scores=True)
        close(score_of(found)[0], -2 * exact_scores(problem, free), 1e-7)


def focei_result() -> None:
    """`FOCEI(evaluate=True)`: likelihood, OFV, EBEs and their covariance, R, S."""
    for problem, truth in cases():
        estimate = nl.FOCEI(evaluate=True, covariance="sandwich").estimate(problem)
        close(estimate.log_likelihood, truth.total, EXACT)
        close(estimate.ofv, -2 * truth.total - problem.n_observations * LOG_2PI, EXACT)
        close(estimate.ebe, truth.mean, EXACT)
        close(estimate.eta_cov, truth.covariance, EXACT)
        if "tvk" in problem.names:
            continue
        score = exact_scores(problem, problem.start)
        assert estimate.hessian_r is not None
        assert estimate.score_s is not None
        close(estimate.hessian_r, -exact_hessian(problem, problem.start), 2e-3)
        close(estimate.score_s, score.mT @ score, 1e-7)


def standard_errors_by_the_delta_method() -> None:
    """Sandwich, R and S on the natural scale, from the closed form's own derivatives in the natural parameters."""
    problem = straight_problem(40)
    free = problem.start
    score, hessian = exact_scores(problem, free), -exact_hessian(problem, free)
    r, s = torch.linalg.inv(hessian), score.mT @ score
    wanted = {"sandwich": r @ s @ r, "R": r, "S": torch.linalg.inv(s)}
    slope = torch.autograd.functional.jacobian(lambda x: by_hand(problem, x), free)
    for kind, covariance in wanted.items():
        estimate = nl.FOCEI(evaluate=True, covariance=kind).estimate(problem)  # type: ignore[arg-type]
        assert estimate.covariance is not None
        close(estimate.covariance, covariance, 1e-3)
        fit = nl.fit(problem.model, problem.population, nl.FOCEI(evaluate=True, covariance=kind))  # type: ignore[arg-type]
        natural = (slope @ covariance @ slope.mT).diagonal().sqrt()
        close(torch.tensor(fit.parameters["se"].to_numpy()), natural, 1e-3)


def by_hand(problem: nl.Problem, free: Tensor) -> Tensor:
    """Natural parameters of `Straight` as functions of its free vector, spelled out."""
    a, c, b = free[2].exp(), free[3], free[4].exp()
    return torch.stack([free[0], free[1], a * a, a * c, c * c + b * b, free[5].exp()])


# -- integrals --------------------------------------------------------------------------------------------------------
def quadrature_with_any_nodes() -> None:
    """One node (Laplace), two, five: all exact; from three nodes on the moments too. Indifferent to a poor start."""
    for problem, truth in cases():
        values = problem.values(problem.start)
        for nodes in (1, 2, 5):
            found = quadrature(problem, values, nodes)
            close(found.log_likelihood, truth.log_likelihood, EXACT)
            close(found.mean, truth.mean, EXACT)
            if nodes > 1:
                close(found.cov, truth.covariance, EXACT)
        again = quadrature(
            problem, values, 5, rounds=1, eta0=torch.ones(problem.n_subjects, problem.q, dtype=F64)
        )
        close(again.log_likelihood, truth.log_likelihood, EXACT)


class Draws:
    """Independent draws of a Gaussian, with their density, as `importance` takes them."""

    def __init__(self, mean: Tensor, factor: Tensor) -> None:
        self.density = MultivariateNormal(mean, scale_tril=factor)

    def sample(self, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        shape = (k, *self.density.loc.shape)
        white = torch.randn(shape, generator=generator, dtype=F64)
        eta = self.density.loc + (self.density.scale_tril @ white.unsqueeze(-1)).squeeze(-1)
        return eta, self.density.log_prob(eta)


def importance_from_the_posterior_has_no_error() -> None:
    """Weights from exact posterior draws are all p(y)."""
    for problem, truth in cases():
        found = importance(
            problem,
            problem.values(problem.start),
            Draws(truth.mean, torch.linalg.cholesky(truth.covariance)),
            16,
        )
        close(found.log_likelihood, truth.log_likelihood, EXACT)
        close(found.se, torch.zeros_like(found.se), EXACT)
        close(found.ess, torch.full_like(found.ess, 16.0), EXACT)


def importance_by_student_t() -> None:
    """The default proposal: within four of its own standard errors, subject by subject, moments too."""
    for problem, truth in cases():
        values = problem.values(problem.start)
        found = importance(problem, values, StudentLaplace.at_modes(problem, values), 4000, seed=2)
        within(found.log_likelihood - truth.log_likelihood, found.se, 4)
        sd = truth.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
        within((found.mean - truth.mean) / sd, 1 / found.ess.sqrt()[:, None], 5)
        assert float(found.se.max()) < 0.02


def importance_bias_is_corrected() -> None:
    """Few draws from too wide a q: the mean over many repeats is right with the correction, and low without it."""
    problem, repeats, k = straight_problem(5), 4000, 10
    truth = exact(problem)
    many = problem.select(torch.arange(5).repeat(repeats))
    factor = 1.5 * torch.linalg.cholesky(truth.covariance)
    wide = Draws(truth.mean.repeat(repeats, 1), factor.repeat(repeats, 1, 1))
    found = importance(many, problem.values(problem.start), wide, k, seed=3)
    error = found.log_likelihood - truth.log_likelihood.repeat(repeats)
    sem = float(error.std()) / math.sqrt(len(error))
    plain = float((error - found.bias_correction).mean())
    assert plain < -8 * sem, f"without the correction: {plain:.4f} +- {sem:.4f}"
    # what the correction leaves is of the next order, 1 / K^2
    assert abs(float(error.mean())) < 4 * sem + 0.5 / k**2, f"with it: {float(error.mean()):.4f} +- {sem:.4f}"
    close(float((found.se**2).mean().sqrt() / error.std()), 1.0, 0.15)


# -- the bound --------------------------------------------------------------------------------------------------------
def ladder_of(problem: nl.Problem, q: Approximation, k: int, seed: int = 0) -> Ladder:
    """The package's ladder with q in place of a trained encoder."""
    return climb(Course(problem, fixed_q(q), problem.start), k, torch.Generator().manual_seed(seed))


def bound_at_the_exact_q() -> None:
    """Where q is the posterior, ELBO = IW-ELBO = log p(y), draw by draw."""
    for problem, truth in cases():
        found = ladder_of(problem, shifted(truth.mean, truth.covariance), 40)
        for value in (found.elbo, found.iwelbo, found.log_likelihood):
            close(value, truth.total, EXACT)
        close(found.se, 0.0, EXACT)
        close(found.posterior.log_likelihood, truth.log_likelihood, EXACT)


WRONG = [(0.0, 2.0), (0.0, 0.25), (1.5, 1.0), (-1.5, 0.5), (0.7, 1.4)]
"""Shift along the diagonal in posterior SDs, factor on the SD."""


def bound_gap_is_the_divergence() -> None:
    """log p(y) - ELBO(q) = KL(q || posterior) by torch.distributions, to the error of the lattice."""
    for problem, truth in cases():
        exact_posterior = MultivariateNormal(truth.mean, truth.covariance)
        for shift, widen in WRONG:
            q = shifted(truth.mean, truth.covariance, shift=shift, widen=widen)
            gap = kl_divergence(MultivariateNormal(*q.moments()), exact_posterior)
            wanted = truth.total - float(gap.sum())
            found = torch.tensor([ladder_of(problem, q, 40, seed).elbo for seed in range(12)], dtype=F64)
            within(found.mean() - wanted, found.std() / math.sqrt(12) + 1e-9, 5)
            assert abs(float(found.mean()) - wanted) < 0.02 * float(gap.sum()) + 1e-6


def variational_em_bound() -> None:
    """On cubature points the bound of any Gaussian q is exact: log p(y) - KL(q || posterior)."""
    for problem, truth in cases():
        exact_posterior = MultivariateNormal(truth.mean, truth.covariance)
        for shift, widen in WRONG:
            q = shifted(truth.mean, truth.covariance, shift=shift, widen=widen)
            gap = kl_divergence(MultivariateNormal(*q.moments()), exact_posterior)
            mean, cov = q.moments()
            found = vem.gaussian_bound(problem, problem.start, mean, torch.linalg.cholesky(cov))
            close(found, truth.log_likelihood - gap, EXACT)


def variational_em_finds_the_posterior() -> None:
    """One natural-gradient step on a linear page is Bayes' rule; EM ends at the maximum of the closed form."""
    for problem, truth in cases():
        at = vem.start_at(problem, problem.start)
        for _ in range(12):
            at = vem.expectation_step(problem, at)
        close(at.mean, truth.mean, 1e-7)
        close(at.covariance, truth.covariance, 1e-7)
        close(at.bound, truth.log_likelihood, 1e-9)


def variational_em_climbs_to_maximum_likelihood() -> None:
    """The M-steps: -2 log L of their end is that of the closed form's maximum."""
    problem = straight_problem(60)
    end = vem.variational_em(problem, problem.start, iterations=200, tolerance=1e-4)
    gradient = exact_scores(problem, end.free).sum(0)
    information = -exact_hessian(problem, end.free)
    short = float(gradient @ torch.linalg.solve(information, gradient))
    assert short < 0.05, f"Newton would still gain {short:.3g} of -2 log L"


def bridge_between_two_bounds() -> None:
    """ELBO <= log p(y) <= EUBO with exact posterior draws; their bridge is unbiased (4 SEM), whatever q."""
    for problem, truth in cases():
        values = problem.values(problem.start)
        draws = Draws(truth.mean, torch.linalg.cholesky(truth.covariance))
        eta, _ = draws.sample(3000, torch.Generator().manual_seed(5))
        for shift, widen in WRONG:
            q = shifted(truth.mean, truth.covariance, shift=shift, widen=widen)
            own, own_log_q = q.draw(3000, torch.Generator().manual_seed(6))
            below = (problem.log_joint(own, values) - own_log_q).flatten(0, 1)
            above = problem.log_joint(eta, values) - q.log_density(eta)
            two_sided(below, above, truth.log_likelihood)


def two_sided(below: Tensor, above: Tensor, log_p: Tensor) -> None:
    """Assert that log weights of q's draws and of posterior draws `[draw, subject]` enclose and bridge log p(y)."""
    sem = [x.std(0) / math.sqrt(len(x)) for x in (below, above)]
    assert bool((below.mean(0) - 4 * sem[0] <= log_p).all()), "the lower bound is above log p(y)"
    assert bool((above.mean(0) + 4 * sem[1] >= log_p).all()), "the upper bound is below log p(y)"
    # E_q[ w / (1 + w) ] = E_posterior[ 1 / (1 + w) ] with w = p(y, eta) / (q p(y)), both sides within [0, 1]
    left, right = torch.sigmoid(below - log_p), torch.sigmoid(log_p - above)
    spread = (left.var(0) / len(left) + right.var(0) / len(right)).sqrt()
    within(left.mean(0) - right.mean(0), spread + 1e-12, 4.5)


# -- the simulated likelihood -----------------------------------------------------------------------------------------
def simulated_likelihood(moved: float, k: int = 8000) -> tuple[nl.Problem, SimulatedLikelihood, Tensor]:
    """On draws of a q that is twice too wide, and the parameters at which to evaluate."""
    problem = curve_problem(6)
    truth = exact(problem)
    q = shifted(truth.mean, truth.covariance, widen=1.5)
    eta, log_q = q.draw(k, torch.Generator().manual_seed(7))
    noise = torch.randn(problem.P, generator=torch.Generator().manual_seed(8), dtype=F64)
    return problem, SimulatedLikelihood(problem, problem.start, eta, log_q), problem.start + moved * noise


def simulated_value() -> None:
    """The likelihood on fixed draws, where they were made and elsewhere: the closed form to Monte Carlo error."""
    for moved in (0.0, 0.05, 0.1):
        problem, likelihood, free = simulated_likelihood(moved)
        found, wanted = likelihood(free), exact(problem, free)
        within(found.log_likelihood - wanted.total, found.log_likelihood_se + 1e-3, 5)
        assert abs(found.log_likelihood - wanted.total) < 0.01


def simulated_scores() -> None:
    """Its scores are those of the closed form, and the derivative of its own value."""
    for moved in (0.0, 0.1):
        problem, likelihood, free = simulated_likelihood(moved)
        found, wanted = likelihood(free), exact_scores(problem, free)
        close(found.scores, wanted, 0.05)
        noise = found.score_noise.diagonal().sqrt()
        within(found.gradient - wanted.sum(0), noise + 0.01, 6)
        step = 1e-5
        for a in range(problem.P):
            move = torch.zeros(problem.P, dtype=F64)
            move[a] = step
            slope = (likelihood(free + move).log_likelihood - likelihood(free - move).log_likelihood) / (
                2 * step
            )
            close(float(found.gradient[a]), slope, 1e-5)


def simulated_curvature() -> None:
    """Its Hessian by differences of scores is the closed form's, to Monte Carlo error."""
    problem, likelihood, _ = simulated_likelihood(0.0, k=20_000)
    wanted = exact_hessian(problem, problem.start)
    scale = wanted.diagonal().abs().sqrt()
    close(likelihood.hessian(problem.start) / scale / scale[:, None], wanted / scale / scale[:, None], 0.03)


# -- conditional modes ------------------------------------------------------------------------------------------------
def modes_from_second_starts() -> None:
    """On a linear page there is one mode: second starts find no other and change nothing."""
    for problem, truth in cases():
        eta, status = modes(problem, problem.values(problem.start), second_starts=(0.0, -1.0))
        close(eta, truth.mean, EXACT)
        assert not bool(status.any())


CHECKS = (
    joint_over_posterior_is_the_likelihood,
    focei_value_and_modes,
    focei_starts_anywhere,
    focei_scores,
    focei_result,
    standard_errors_by_the_delta_method,
    quadrature_with_any_nodes,
    importance_from_the_posterior_has_no_error,
    importance_by_student_t,
    importance_bias_is_corrected,
    bound_at_the_exact_q,
    bound_gap_is_the_divergence,
    variational_em_bound,
    variational_em_finds_the_posterior,
    variational_em_climbs_to_maximum_likelihood,
    bridge_between_two_bounds,
    simulated_value,
    simulated_scores,
    simulated_curvature,
    modes_from_second_starts,
)
