"""How well the estimates are determined: R, S and the sandwich, carried to the natural scale.

With O = -2 log L (up to a constant), its contributions O_i and the free parameters psi,

    R = 1/2 d2O/dpsi2 ,    S = 1/4 sum_i (dO_i/dpsi)(dO_i/dpsi)' ,
    covariance = R^-1 S R^-1 ("sandwich", NONMEM's default),  R^-1 ("R"),  or  S^-1 ("S").

All three agree in expectation when the model is true; the sandwich stays valid when it is not (White 1982,
doi:10.2307/1912526). The delta method carries a covariance to the natural scale: thetas, variances and covariances of
the random effects, residual standard deviations. Intervals are 95 % and keep within bounds: where a parameter is a
function of one free parameter alone, the ends are transformed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.problem import Problem

Z = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""

KINDS = ("sandwich", "R", "S")


@dataclass(frozen=True)
class Uncertainty:
    """Standard errors on the natural scale, entries in the order of `names`; NaN for parameters at a boundary.

    Attributes:
        names: the P free parameters: thetas by name, "omega.cl" a variance, "omega.v,cl" a covariance, "cp.additive"
            a residual standard deviation.
        estimate, se, ci_lower, ci_upper: `[P]`; rse is se / |estimate|.
        covariance, correlation: of the estimates, `[P, P]`.
        condition_number: largest over smallest eigenvalue of `correlation` (without the parameters at a boundary).
    """

    names: tuple[str, ...]
    estimate: Tensor
    se: Tensor
    rse: Tensor
    ci_lower: Tensor
    ci_upper: Tensor
    covariance: Tensor
    correlation: Tensor
    condition_number: float


def information(hessian: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """R and S `[P, P]` from the Hessian of the objective `[P, P]` and its derivatives by subject `[subject, P]`."""
    return 0.5 * hessian, 0.25 * scores.T @ scores


def determined(kind: str, subjects: int, parameters: int, penalised: bool = False) -> tuple[str, str]:
    """The covariance that so many subjects can determine, and a note in words ("" when it is the one asked for).

    At an optimum the scores of n subjects sum to zero, so that S has rank n - 1 at most. With n <= P the sandwich
    R^-1 S R^-1 is singular: some combination of the parameters would have standard error zero. R stands in for it. So
    it does on a page with priors, which S knows nothing of: the sandwich is how far MAP estimates scatter over data
    sets at one and the same prior, and goes to zero where the prior alone speaks.

    Args:
        kind: "sandwich", "R" or "S", as asked for.
        subjects: those with data, n.
        parameters: free ones that are not at a boundary, P.
        penalised: whether the page has priors.

    Example:
        >>> determined("sandwich", 3, 7)[0]
        'R'
    """
    if kind == "sandwich" and penalised:
        return "R", (
            "standard errors are those of the Hessian R, which holds the curvature of the priors; the sandwich would go"
            " to zero where a prior alone speaks"
        )
    if kind != "sandwich" or subjects > parameters:
        return kind, ""
    return "R", (
        "standard errors are those of the Hessian R: the sandwich is singular unless more subjects have data than"
        f" there are parameters (here {subjects} and {parameters})"
    )


def covariance_of(r: Tensor, s: Tensor, kind: str, held: Tensor | None = None) -> tuple[Tensor | None, str]:
    """The covariance of the free estimates `[P, P]`, or None and the reason in words.

    Args:
        r, s: as `information` returns them.
        kind: "sandwich", "R" or "S".
        held: parameters at a boundary `[P]`: the others' covariance is taken with these fixed; their rows are NaN.

    Raises:
        ValueError: on another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"covariance={kind!r}: expected one of {', '.join(map(repr, KINDS))}")
    size = len(r)
    index = torch.arange(size) if held is None else (~held).nonzero().squeeze(-1)
    grid = (index[:, None], index)
    r, s = r[grid], s[grid]
    if kind != "S":
        inverse = _inverse(r)
        if inverse is None:
            return (
                None,
                "no standard errors: the Hessian R is not positive definite, so this is no proper minimum",
            )
        inner = inverse if kind == "R" else inverse @ s @ inverse
    else:
        inverse = _inverse(s)
        if inverse is None:
            return (
                None,
                "no standard errors: the score matrix S is singular (fewer subjects than parameters?)",
            )
        inner = inverse
    covariance = torch.full((size, size), math.nan, dtype=torch.float64)
    covariance[grid] = 0.5 * (inner + inner.T)
    return covariance, ""


def _inverse(matrix: Tensor) -> Tensor | None:
    """The inverse of a positive definite matrix, None when it is not one. Scaled first: units differ."""
    if not bool(torch.isfinite(matrix).all()) or not bool((matrix.diagonal() > 0).all()):
        return None
    scale = matrix.diagonal().rsqrt()
    factor, info = torch.linalg.cholesky_ex(matrix * scale * scale[:, None])
    if int(info) > 0 or float(factor.diagonal().min()) < 1e-7:
        return None
    return torch.cholesky_inverse(factor) * scale * scale[:, None]


def natural(problem: Problem, free: Tensor) -> Tensor:
    """Free parameters on the natural scale: thetas, variances and covariances, residual SDs.

    Args:
        problem: the binding of page and data.
        free: `[*b, P]`.

    Returns:
        `[*b, P]`, the entries named by `problem.names`.
    """
    layout = problem.layout
    values = layout.values(problem.full(free))
    omega = values.omega
    every = [values.theta[name][..., 0, 0] for name in layout.theta_names]
    every += [omega[..., i, j] for i, j in layout.positions]
    every += [values.sigma[name][..., 0, 0] for name in layout.sigma_names]
    return torch.stack([every[int(k)].expand(free.shape[:-1]) for k in problem.free_index], -1)


def jacobian(problem: Problem, free: Tensor) -> Tensor:
    """d natural / d free `[P, P]` at `free [P]`."""
    with torch.enable_grad():
        copies = free.detach().repeat(len(free), 1).requires_grad_()
        total = natural(problem, copies).diagonal().sum()
        (rows,) = torch.autograd.grad(total, copies)
    return rows


def uncertainty(problem: Problem, free: Tensor, covariance: Tensor) -> Uncertainty:
    """Standard errors and 95 % intervals on the natural scale.

    A parameter that depends on one free parameter alone has the transformed ends of that one's interval; a variance
    in a block has an interval on the log scale, a covariance a symmetric one.

    Args:
        problem: the binding of page and data.
        free: the estimates `[P]`, at least one.
        covariance: of the free estimates `[P, P]`; rows of NaN mark parameters at a boundary.

    Returns:
        An `Uncertainty`.

    Example:
        >>> e = FOCEI().estimate(problem)  # doctest: +SKIP
        >>> uncertainty(problem, e.free, e.covariance).condition_number  # doctest: +SKIP
        4.39
    """
    free = free.detach()
    estimate, slope = natural(problem, free), jacobian(problem, free)
    held = torch.isnan(covariance.diagonal())
    known = torch.where(held | held[:, None], 0.0, covariance)
    cov = torch.where(held | held[:, None], math.nan, slope @ known @ slope.T)
    se = cov.diagonal().sqrt()
    correlation = cov / (se * se[:, None])
    alone = (slope - slope.diagonal().diag()).abs().amax(-1) <= 1e-12 * slope.diagonal().abs()
    reach = Z * known.diagonal().sqrt().diag()
    moved = torch.stack([natural(problem, free + side * reach).diagonal() for side in (-1.0, 1.0)])
    positive = torch.tensor([name.startswith("omega.") and "," not in name for name in problem.names])
    ratio = torch.exp(Z * se / estimate.abs())
    ends = torch.stack((estimate - Z * se, estimate + Z * se))
    ends = torch.where(positive, torch.stack((estimate / ratio, estimate * ratio)), ends)
    ends = torch.where(alone, moved.sort(0).values, ends)
    ends = torch.where(held, math.nan, ends)
    kept = (~held).nonzero().squeeze(-1)
    return Uncertainty(
        names=problem.names,
        estimate=estimate,
        se=se,
        rse=se / estimate.abs(),
        ci_lower=ends[0],
        ci_upper=ends[1],
        covariance=cov,
        correlation=correlation,
        condition_number=condition_number(correlation[kept[:, None], kept]),
    )


def condition_number(correlation: Tensor) -> float:
    """Largest over smallest eigenvalue of a correlation matrix `[P, P]`; NaN if empty, infinite if singular."""
    if not len(correlation):
        return math.nan
    eigenvalues = torch.linalg.eigvalsh(correlation)
    return float(eigenvalues[-1] / eigenvalues[0]) if float(eigenvalues[0]) > 0 else math.inf
