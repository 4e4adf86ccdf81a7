"""Mu-referenced pairs: a parameter and a random effect that move every individual parameter alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..maths.taylor import Taylor

if TYPE_CHECKING:
    from .problem import Problem


def mu_pairs(problem: Problem) -> list[tuple[int, int]]:
    """Mu-referenced pairs (index in the free vector, index of the eta).

    Pair (j, k) means that moving free parameter j is the same as moving eta k, for every individual parameter and
    at every subject; found by comparing derivatives at random points. Only effects between subjects pair: an effect
    between occasions does not last as long as a parameter.
    """
    levels = problem.levels
    if levels.q == 0:
        return []
    generator = torch.Generator().manual_seed(7)
    n, q = problem.layout.n_theta, levels.q
    vector = problem.full(problem.start) + 0.3 * torch.randn(
        len(problem.layout.names), generator=generator, dtype=torch.float64
    )
    eta = 0.3 * torch.randn(problem.n_subjects, problem.q, generator=generator, dtype=torch.float64)
    values = problem.layout.values(vector)
    eye = torch.eye(n + q, dtype=torch.float64).reshape(n + q, n + q, 1, 1)
    theta = {
        name: Taylor(values.theta[name], eye[:, j] * b.slope(vector[j]))
        for j, (name, b) in enumerate(zip(problem.layout.theta_names, problem.layout.bijections, strict=True))
    }
    effects: dict[str, Any] = {name: eta[:, k : k + 1] for k, name in enumerate(problem.eta_names)}
    effects |= {name: Taylor(effects[name], eye[:, n + k]) for k, name in enumerate(problem.eta_names[:q])}
    p = problem.parameters(theta, effects)
    jac = torch.cat([x.full()[1].flatten(1) for x in p.values() if isinstance(x, Taylor)], 1)
    scale = jac.abs().amax(1)
    pairs: list[tuple[int, int]] = []
    for place, j in enumerate(problem.free_index.tolist()):
        for k in range(q):
            if j < n and scale[j] > 0 and bool((jac[j] - jac[n + k]).abs().amax() <= 1e-9 * scale[j]):
                pairs.append((place, k))
    return pairs
