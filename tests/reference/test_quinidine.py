"""Quinidine: the figures of Pinheiro & Bates (2000, chapter 8) for the basic model, printed by nlme.

nlme's `nlme` alternates between modes and the maximum likelihood of the model linearised at them (Lindstrom & Bates
1990, doi:10.2307/2532087). Its printed run ended with the variance of V's random effect at zero, where this project's
linearisation gives its objective; FOCEI and quadrature find more in the data, with that variance above zero.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, exp

import nlmegen as nl

PRINTED = {"tvv": 5.3821, "tvka": -0.2726, "tvcl": 2.4703}
MINUS_2LL = 993.229


def fixed_volume() -> nl.Model:
    """The basic model, without the random effect whose variance is zero in the printed run."""
    basic = type(nl.load_model("quinidine"))

    class FixedVolume(basic):  # type: ignore[misc, valid-type]
        iiv = nl.Omega(cl=0.1)

        def individual(self, theta: nl.model.named.Named, eta: Tensor, cov: Tensor) -> dict[str, Tensor]:
            return dict(cl=theta.tvcl * exp(eta.cl), v=theta.tvv, ka=theta.tvka)

    return FixedVolume()


def linearised(fit: nl.Fit, free: Tensor) -> float:
    """-2 log L at `free [P]` of the model linearised at the modes and thetas of `fit`; thetas of both are the same."""
    problem, values = fit.problem, fit.problem.values(free)
    there = problem.predict(fit.ebe, fit.values, order=1)
    assert there.jac is not None
    mask = problem.mask
    z = there.jac.movedim(0, -1) * mask[..., None]
    w = (problem.y - there.f) * mask + (z @ fit.ebe[..., None]).squeeze(-1)
    noise = torch.where(mask > 0, values.sigma["cp.additive"] ** 2, 1.0)
    root = torch.linalg.cholesky(z @ values.omega @ z.mT + torch.diag_embed(noise))
    white = torch.linalg.solve_triangular(root, w[..., None], upper=False)
    log_det = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum()
    return float((white**2).sum() + log_det) + problem.n_observations * math.log(2 * math.pi)


def test_the_linearisation_at_the_printed_estimates_has_the_printed_objective() -> None:
    data = nl.load_data("quinidine")
    # omega^2 and sigma are not printed: these are a fixed point of the alternation with the thetas held
    model = fixed_volume().with_values(
        theta={name: math.exp(log) for name, log in PRINTED.items()},
        omega={"cl": math.exp(2 * -1.1357)},
        sigma={"cp.additive": math.exp(-0.2752)},
    )
    fit = nl.fit(model, data, nl.FOCEI(evaluate=True))
    free = fit.problem.start
    found = linearised(fit, free)
    assert found == pytest.approx(MINUS_2LL, abs=0.01)
    for k in (3, 4):
        for step in (-0.02, 0.02):
            moved = free + step * torch.eye(len(free), dtype=free.dtype)[k]
            assert linearised(fit, moved) > found, "the variances maximise the linearised likelihood"


def test_focei_finds_more_with_a_random_effect_of_volume() -> None:
    data = nl.load_data("quinidine")
    assert (data.n_subjects, data.n_observations) == (136, 361)
    fit = nl.fit(nl.load_model("quinidine"), data, nl.FOCEI())
    assert fit.converged
    exact = nl.quadrature(fit.problem, fit.values, 13).total
    assert -2 * exact == pytest.approx(-2 * fit.log_likelihood, abs=1.5)
    assert -2 * fit.log_likelihood == pytest.approx(989.495, abs=0.01)
    assert math.log(float(fit.model.theta.tvcl)) == pytest.approx(PRINTED["tvcl"], abs=0.05)
