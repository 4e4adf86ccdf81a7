"""Rung 2: -2 ELBO >= -2 log p(y) for deliberately wrong q, on nonlinear pages, against brute force.

log p(y) comes from the trapezoidal rule on a fixed grid and hand-written curves (`problems.brute_force`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from curves import brute_force, simulated, simulated_problem
from ladder.comparisons import F64, close, gaussian_q, within
from ladder.linear_gaussian import ladder_of, two_sided
from torch import Tensor
from torch.distributions import MultivariateNormal
from torch.distributions import kl_divergence as textbook

import nlmegen as nl
from nlmegen.inference.families import kl_divergence
from nlmegen.inference.marginal import StudentLaplace, importance, quadrature
from nlmegen.inference.posterior import Approximation
from nlmegen.inference.posteriors import weighted

SIZES = {"bolus": 8, "oral": 3}
"""Patients of each design; q = 2 and 3, Omega correlated in both."""


def designs() -> Iterator[tuple[nl.Problem, Tensor, Tensor, Tensor]]:
    """Problem, log p(y), posterior mean and covariance."""
    for name, n in SIZES.items():
        log_p, mean, cov = (torch.from_numpy(x) for x in brute_force(name, n))
        yield simulated_problem(name, n), log_p, mean, cov


def wrong(mean: Tensor, cov: Tensor) -> Iterator[tuple[str, Approximation]]:
    """The sweep: means shifted 1.5 SD along axes and diagonals, variances x 4 and / 16, correlations left out."""
    q = mean.shape[-1]
    factor, sd = torch.linalg.cholesky(cov), cov.diagonal(dim1=-2, dim2=-1).sqrt()
    yield "as good as a Gaussian gets", gaussian_q(mean, factor)
    for signs in itertools.product((-1.0, 0.0, 1.0), repeat=q):
        if any(signs) and (q == 2 or abs(sum(signs)) in (1, 3)):
            yield (
                f"mean shifted by 1.5 SD x {signs}",
                gaussian_q(mean + 1.5 * torch.tensor(signs, dtype=F64) * sd, factor),
            )
    yield "variance x 4", gaussian_q(mean, 2 * factor)
    yield "variance / 16", gaussian_q(mean, factor / 4)
    yield "without correlations", gaussian_q(mean, torch.diag_embed(sd))


def bound_holds_for_wrong_q() -> None:
    """ELBO <= IW-ELBO <= log p(y), in a band of 4 Monte Carlo standard errors, subject by subject."""
    for problem, log_p, mean, cov in designs():
        values = problem.values(problem.start)
        for what, q in wrong(mean, cov):
            eta, log_q = q.draw(1500, torch.Generator().manual_seed(1))
            ratio = (problem.log_joint(eta, values) - log_q).flatten(0, 1)
            elbo, sem = ratio.mean(0), ratio.std(0) / math.sqrt(len(ratio))
            assert bool((elbo <= log_p + 4 * sem).all()), f"{what}: the ELBO is above log p(y)"
            found = ladder_of(problem, q, 1500, seed=1)
            assert abs(found.elbo - float(elbo.sum())) < 0.25 + 0.05 * float((log_p - elbo).sum()), what
            assert found.elbo <= found.iwelbo + 0.05, what
            iw_error = (ratio - log_p).exp().mean(0) - 1
            iw_sem = (ratio - log_p).exp().std(0) / math.sqrt(len(ratio))
            assert bool((iw_error <= 5 * iw_sem).all()), f"{what}: the weights average to more than p(y)"


def bound_is_close_for_a_good_q() -> None:
    """A Gaussian with the true moments loses little, and its importance weights give log p(y)."""
    for problem, log_p, mean, cov in designs():
        found = ladder_of(problem, gaussian_q(mean, 1.2 * torch.linalg.cholesky(cov)), 8000)
        total = float(log_p.sum())
        assert total - 1.0 * len(log_p) < found.elbo < total
        within(found.log_likelihood - total, found.se, 5)
        assert found.se < 0.05
        close(found.posterior.mean, mean, 0.02)
        close(found.posterior.cov, cov, 0.02)


def quadrature_equals_brute_force() -> None:
    """The arbiter: likelihood, posterior mean and covariance of eta."""
    for problem, log_p, mean, cov in designs():
        found = quadrature(problem, problem.values(problem.start), 15)
        close(found.log_likelihood, log_p, 1e-6)
        close(found.mean, mean, 1e-5)
        close(found.cov, cov, 1e-5)


def importance_equals_brute_force() -> None:
    """Within four stated standard errors, by the default proposal; and the Laplace posterior of a fit."""
    for problem, log_p, mean, _ in designs():
        values = problem.values(problem.start)
        found = importance(problem, values, StudentLaplace.at_modes(problem, values), 6000, seed=5)
        within(found.log_likelihood - log_p, found.se, 4)
        assert float(found.se.max()) < 0.02
        posterior = weighted(problem, values, k=6000, seed=6)
        close(posterior.mean, mean, 0.03)
        close(posterior.log_likelihood, log_p, 0.03)


def bridge_from_simulated_truth() -> None:
    """Patients simulated from the page bring an exact draw of their posterior: the eta they were made with.

    Over 600 of them: ELBO <= log p <= E log p(y, eta) - log q(eta), and the bridge between the two, which is zero in
    expectation for the right log p and every q, lies in its 4-SEM band.
    """
    n = 600
    problem, (_, eta) = simulated_problem("bolus", n, seed=9), simulated("bolus", n, seed=9)
    values, truth = problem.values(problem.start), torch.from_numpy(eta)
    posterior = quadrature(problem, values, 15)
    factor = torch.linalg.cholesky(posterior.cov)
    for shift, widen in ((0.0, 1.0), (0.6, 1.0), (0.0, 1.6), (-0.5, 0.7)):
        q = gaussian_q(posterior.mean + shift * factor.sum(-1), widen * factor)
        own, log_q = (x.flatten(0, 1)[0] for x in q.draw(4, torch.Generator().manual_seed(2)))
        below = problem.log_joint(own, values) - log_q
        above = problem.log_joint(truth, values) - q.log_density(truth)
        # one draw a patient: patients take the place of draws
        off = posterior.log_likelihood
        two_sided((below - off)[:, None], (above - off)[:, None], torch.zeros(1, dtype=F64))


def divergence_of_the_textbook() -> None:
    """KL(N(m, C) || N(0, Omega)) by torch.distributions."""
    generator = torch.Generator().manual_seed(3)
    for q in (1, 2, 3):
        a, b = (
            torch.randn(5, q, q, generator=generator, dtype=F64).tril(-1)
            + torch.diag_embed(0.3 + torch.rand(5, q, generator=generator, dtype=F64))
            for _ in range(2)
        )
        mean = torch.randn(5, q, generator=generator, dtype=F64)
        prior = MultivariateNormal(torch.zeros(5, q, dtype=F64), scale_tril=b)
        close(kl_divergence(mean, a, b), textbook(MultivariateNormal(mean, scale_tril=a), prior), 1e-10)


CHECKS = (
    bound_holds_for_wrong_q,
    bound_is_close_for_a_good_q,
    quadrature_equals_brute_force,
    importance_equals_brute_force,
    bridge_from_simulated_truth,
    divergence_of_the_textbook,
)
