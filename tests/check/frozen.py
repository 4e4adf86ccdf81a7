"""A fit that was never estimated: a page at values of choice on data of choice, with its conditional modes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

import nlmegen as nl


def frozen(model: nl.Model, population: nl.Population, method: str = "focei", modes: bool = True) -> Any:
    """What checks and plots ask of a Fit, at the model's present values."""
    problem = nl.Problem(model, population)
    values = model.values
    eta = torch.zeros(problem.n_subjects, problem.q, dtype=torch.float64)
    for _ in range(
        60 if modes else 0
    ):  # Gauss-Newton on the joint, by the derivatives of torch and not of the package
        joint = eta.clone().requires_grad_(True)
        total = problem.log_joint(joint, values).sum()
        (gradient,) = torch.autograd.grad(total, joint, create_graph=True)
        rows = [
            torch.autograd.grad(gradient[:, k].sum(), joint, retain_graph=True)[0] for k in range(problem.q)
        ]
        hessian = -torch.stack(rows, -2)
        curve, vector = torch.linalg.eigh(hessian)
        scaled = (vector.mT @ gradient.detach()[..., None]) / curve.abs().clamp_min(1e-3)[..., None]
        step = (vector @ scaled).squeeze(-1)
        size = step.abs().amax(-1, keepdim=True).clamp_min(1e-300)
        eta = eta + step * (0.5 / size).clamp_max(1.0)
    return SimpleNamespace(
        model=model,
        population=population,
        problem=problem,
        values=values,
        ebe=eta,
        method=method,
        ofv_source=method,
    )
