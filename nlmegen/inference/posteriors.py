"""The posterior p(eta | y, x) of each patient at given parameters, by the means that suit it.

    "encoder"      draws of a trained encoder's q, importance weighted
    "importance"   draws of Student t densities at the conditional mode and the posterior moments, weighted
    "quadrature"   nodes of an adaptive grid with their weights; up to three random effects
    "laplace"      draws of the Gaussian at the mode with the inverse Hessian as covariance, all of the same weight: an
                   approximation, and weights that are computed but not used say how good a one
    "auto"         the encoder where there is one (trained for as many occasions), else importance; a patient for whom
                   that is not good enough is taken to the next means: importance, quadrature, many more draws

Nothing is trained. See `Posterior.verdict` for what is good enough.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import torch

from ..errors import DataError, nearest
from ..maths.quadrature import affordable_nodes
from ..model.problem import LOG_2PI
from .lattice import shifted_lattice
from .marginal import GRID_ETAS, laplace_scale, lay
from .posterior import Posterior, log_joint
from .proposals import proposal
from .scan import deepest

if TYPE_CHECKING:
    from ..model.parameters import Values
    from ..model.problem import Problem
    from .encoder import Encoder

HOW = ("auto", "encoder", "importance", "quadrature", "laplace")

FEWEST_NODES, MOST_NODES = 5, 21
"""Nodes a dimension of a patient's grid: as many as K draws have room for, between these."""

MORE = 20
"""How many times more draws are taken where nothing else is good enough."""


def posterior(
    problem: Problem,
    values: Values,
    *,
    how: str = "auto",
    k: int = 1000,
    seed: int = 0,
    encoder: Encoder | None = None,
) -> Posterior:
    """The posterior of each patient of a problem.

    Args:
        problem: the page bound to the patients.
        values: the parameters, without draw axes.
        how: one of `HOW`.
        k: draws a patient (of an encoder, rounded up to a multiple of four); a grid has at most so many nodes.
        seed: of the draws.
        encoder: of a variational fit.

    Raises:
        DataError: an unknown `how`, no random effects, an encoder that is not there, or a grid with too many random
            effects or too few nodes.
    """
    if how not in HOW:
        raise DataError(f"posterior(how={how!r}): no such means.{nearest(how, HOW)}")
    if not problem.q:
        raise DataError("the page has no random effects, so patients have no posterior of them")
    if how == "encoder" and encoder is None:
        raise DataError(
            "posterior(how='encoder'): this fit has no encoder; only a variational one (nl.ELBO) does. Use 'auto',"
            " 'importance', 'quadrature' or 'laplace'"
        )
    if how == "laplace":
        return gaussian(problem, values, k, seed)
    if how == "quadrature":
        return on_nodes(problem, values, _nodes_within(problem.q, k))
    if encoder is not None and how != "importance" and (how == "encoder" or encoder.suits(problem)):
        found = encoder.posterior(problem, values, k=k, seed=seed)
        found = dataclasses.replace(found, how=("encoder",) * problem.n_subjects)
    else:
        found = weighted(problem, values, k, seed)
    return _mended(problem, values, found, seed) if how == "auto" else found


def gaussian(problem: Problem, values: Values, k: int, seed: int) -> Posterior:
    """Laplace's approximation: draws of N(mode, H^-1), equally weighted; log p(y) is Laplace's, too."""
    at = deepest(problem, values).expansion
    mode, scale = laplace_scale(at)
    generator = torch.Generator().manual_seed(seed)
    normal = torch.special.ndtri(shifted_lattice(k, len(mode), mode.shape[-1], generator).flatten(0, 1)[:k])
    draws = mode + torch.einsum("nij,knj->kni", scale, normal)
    volume = torch.linalg.slogdet(scale)[1]
    log_q = -0.5 * (normal**2).sum(-1) - 0.5 * problem.q * LOG_2PI - volume
    unused = log_joint(problem, draws, values) - log_q
    told = Posterior.weigh(_ids(problem), tuple(problem.eta_names), draws, unused)
    return dataclasses.replace(
        told,
        log_weights=torch.full_like(unused, -math.log(len(draws))),
        log_likelihood=problem.log_joint(mode, values) + 0.5 * problem.q * LOG_2PI + volume,
        how=("laplace",) * problem.n_subjects,
    )


def weighted(problem: Problem, values: Values, k: int, seed: int) -> Posterior:
    """Importance sampling from Student t densities."""
    generator = torch.Generator().manual_seed(seed)
    eta, log_q = proposal(problem, values, generator=generator).sample(k, generator)
    ratio = log_joint(problem, eta, values) - log_q
    found = Posterior.weigh(_ids(problem), tuple(problem.eta_names), eta, ratio)
    return dataclasses.replace(found, how=("importance",) * problem.n_subjects)


def on_nodes(problem: Problem, values: Values, nodes: int) -> Posterior:
    """The nodes of an adaptive quadrature as weighted draws; its error is the change from a rule of two nodes fewer.

    Effective sample sizes and k-hat, which speak of random draws, are NaN.
    """
    fine = lay(problem, values, nodes)
    coarse = lay(problem, values, nodes - 2)
    sd = fine.cov.diagonal(dim1=-2, dim2=-1).clamp_min(1e-300).sqrt()
    error = (fine.log_likelihood - coarse.log_likelihood).abs()
    if problem.q:
        error = torch.maximum(error, ((fine.mean - coarse.mean) / sd).abs().amax(-1))
    unknown = torch.full_like(error, math.nan)
    return Posterior(
        _ids(problem),
        tuple(problem.eta_names),
        fine.eta,
        fine.log_weights,
        fine.log_likelihood,
        unknown,
        unknown,
        ("quadrature",) * problem.n_subjects,
        error,
    )


def many(problem: Problem, values: Values, k: int, seed: int) -> Posterior:
    """`MORE` times as many draws, from which k of equal weight are taken (systematic resampling)."""
    dense = weighted(problem, values, MORE * k, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    start = torch.rand(problem.n_subjects, generator=generator, dtype=torch.float64)
    points = (start + torch.arange(k, dtype=torch.float64).unsqueeze(-1)) / k
    edges = dense.log_weights.exp().cumsum(0)
    chosen = torch.searchsorted(edges.mT.contiguous(), points.mT.contiguous()).mT.clamp_max(MORE * k - 1)
    draws = dense.draws.gather(0, chosen.unsqueeze(-1).expand(-1, -1, problem.q))
    return dataclasses.replace(
        dense,
        draws=draws,
        log_weights=torch.full_like(points, -math.log(k)),
        ess=dense.ess.clamp_max(float(k)),
    )


def _nodes_within(q: int, k: int) -> int:
    """The largest grid that k draws have room for.

    Raises:
        DataError: when it is too small to be believed, or there are too many random effects.
    """
    if q > GRID_ETAS:
        raise DataError(
            f"posterior(how='quadrature'): the page has {q} random effects, a grid takes at most {GRID_ETAS};"
            " use 'importance'"
        )
    nodes = affordable_nodes(MOST_NODES, q, k)
    if nodes < FEWEST_NODES:
        raise DataError(
            f"posterior(how='quadrature', k={k}): {q} random effects need at least {FEWEST_NODES**q} nodes; ask for"
            " a larger k"
        )
    return nodes


def _mended(problem: Problem, values: Values, found: Posterior, seed: int) -> Posterior:
    """The patients whose verdict is "refine" by the next means, and the next; the best of each is kept."""
    k = found.k
    roomy = problem.q <= GRID_ETAS and affordable_nodes(MOST_NODES, problem.q, k) >= FEWEST_NODES
    for means in ("importance", "quadrature", "more"):
        poor = torch.tensor([word == "refine" for word in found.verdict]).nonzero().flatten()
        if not len(poor):
            break
        some = problem.select(poor)
        if means == "importance" and "encoder" in found.how:
            other = weighted(some, values, k, seed + 1)
        elif means == "quadrature" and roomy:
            other = on_nodes(some, values, _nodes_within(problem.q, k))
        elif means == "more":
            other = many(some, values, k, seed + 2)
        else:
            continue
        found = found.replaced(poor, other)
    return found


def _ids(problem: Problem) -> tuple[str, ...]:
    return tuple(problem.population.ids)
