"""The fixed point of Lindstrom & Bates (1990), which nlme's `nlme` looks for, computed with this package's parts.

Modes of the random effects, then the maximum likelihood of the model linearised at them, in turns until neither
moves (Biometrics 46:673-687, doi:10.2307/2532087). For pages with one additive residual error. It is neither FOCE nor
a maximum of anything: the linearisation moves with the estimates.

    python benchmarks/lindstrom_bates.py          (theophylline per kg, beside nlme's printed figures)
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor, exp

import nlmegen as nl

LOG_2PI = math.log(2 * math.pi)


def fixed_point(model: nl.Model, data: nl.Population, rounds: int = 60) -> tuple[float, nl.Model]:
    """-2 log L of the linearised model at the fixed point, and the model there."""
    value = math.nan
    for _ in range(rounds):
        fit = nl.fit(model, data, nl.FOCEI(evaluate=True))
        value, free = linearised_maximum(fit.problem, fit.ebe, len(model.theta_names))
        moved = float((free - fit.problem.start).abs().max())
        model = model.with_free(free)
        if moved < 1e-6:
            break
    return value, model


def linearised_maximum(problem: nl.Problem, eta: Tensor, n_theta: int) -> tuple[float, Tensor]:
    """The maximum over all parameters of the likelihood of the model linearised at `problem.start` and `eta`."""
    free, mask = problem.start, problem.mask
    there = problem.predict(eta, problem.values(free), order=1)
    z = there.jac.movedim(0, -1) * mask[..., None]
    steps = 1e-5 * torch.eye(len(free), dtype=free.dtype)[:n_theta]
    ends = [[problem.predict(eta, problem.values(free + k * h)).f for k in (1, -1)] for h in steps]
    x = torch.stack([(up - down) / 2e-5 for up, down in ends], -1) * mask[..., None]
    w = (problem.y - there.f) * mask + x @ free[:n_theta] + (z @ eta[..., None]).squeeze(-1)

    def objective(at: np.ndarray) -> tuple[float, np.ndarray]:
        moving = torch.tensor(at, requires_grad=True)
        values = problem.values(moving)
        (sigma,) = values.sigma.values()
        cov = z @ values.omega @ z.mT + torch.diag_embed(torch.where(mask > 0, sigma**2, 1.0))
        root = torch.linalg.cholesky(cov)
        white = torch.linalg.solve_triangular(root, (w - x @ moving[:n_theta])[..., None], upper=False)
        total = (white**2).sum() + 2 * root.diagonal(dim1=-2, dim2=-1).log().sum()
        total.backward()
        return total.item(), moving.grad.numpy()

    found = minimize(objective, free.numpy(), jac=True, method="BFGS", options={"gtol": 1e-6})
    return found.fun + problem.n_observations * LOG_2PI, torch.tensor(found.x)


class PerKilogram(nl.Model):
    """Theophylline as nlme's example has it: doses and volumes per kg, additive error."""

    tvka = nl.Theta(1.5, lower=0)
    tvcl = nl.Theta(0.04, lower=0)
    tvv = nl.Theta(0.5, lower=0)
    iiv = nl.Omega(ka=0.4, cl=0.07, v=0.02)
    cp = nl.Additive(0.7)
    structure = nl.OneCompartment(absorption="first-order")

    def individual(self, theta, eta, cov):
        return dict(
            ka=theta.tvka * exp(eta.ka),
            cl=theta.tvcl * cov.wt * exp(eta.cl),
            v=theta.tvv * cov.wt * exp(eta.v),
        )

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


def main() -> None:
    torch.set_num_threads(1)
    value, model = fixed_point(PerKilogram(), nl.load_data("theophylline"))
    rows = {"-2LL": (value, 358.649)}
    for name, printed in {"tvka": 0.4454, "tvcl": -3.2117, "tvv": -0.7862}.items():
        rows[f"log {name}"] = math.log(float(model.theta[name])), printed
    for k, printed in enumerate((0.642, 0.264, 0.135)):
        rows[f"omega_sd {model.eta_names[k]}"] = float(model.omega[k, k]) ** 0.5, printed
    rows["sigma"] = float(model.sigma["cp.additive"]), 0.692
    print(f"{'':<14}{'computed':>12}{'nlme':>12}")
    for label, (computed, printed) in rows.items():
        print(f"{label:<14}{computed:>12.4f}{printed:>12.4f}")


if __name__ == "__main__":
    main()
