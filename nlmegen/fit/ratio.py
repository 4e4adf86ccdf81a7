"""The likelihood-ratio test of two nested pages, with the null distribution that variances at 0 ask for.

    statistic = -2 log L(small) + 2 log L(large)

A variance cannot be negative. Where it is tested, half of the statistics are zero when the small page is true, and the
chi-square distribution with as many degrees of freedom as parameters rejects too seldom. `likelihood_ratio` finds from
the two pages what is tested (`nesting`) and takes the mixture that goes with it (`cone`).
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ..errors import DataError
from ..inference.conditional import FOCEIObjective
from ..inference.uncertainty import jacobian
from .arbiter import judge
from .comparison import check_comparable
from .cone import Reference, cone_reference, orthant_reference
from .criteria import cautions
from .nesting import Surplus, nested

if TYPE_CHECKING:
    from ..model.problem import Problem
    from .comparison import Column

FLOOR = 1e-3
"""A standard deviation that is tested at 0 counts as at least this part of its start where derivatives are taken."""

EXACT = ("quadrature", "importance")
"""Sources of an objective whose minimum is maximum likelihood."""


@dataclass(frozen=True)
class LikelihoodRatio:
    """A likelihood-ratio test.

    Attributes:
        statistic: -2 log L of the small page less that of the large one, at their estimates, by one arbiter.
        se: the arbiter's own error of it.
        df: tested parameters.
        p: probability of such a statistic or a larger one when the small page is true.
        reference: the null distribution: `weights`, `words`, `critical(level)`.
        tested: names of what the large page has over the small one.
        arbiter: how the likelihoods were computed; detail: in words.
        notes: what the test rests on, and what is in doubt.
    """

    statistic: float
    se: float
    df: int
    p: float
    reference: Reference
    tested: tuple[str, ...]
    arbiter: str
    detail: str
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        lines = [
            f"likelihood ratio {self.statistic:.4g} (numerical error {self.se:.2g}), p = {self.p:.3g}",
            f"tested: {', '.join(self.tested)} ({self.df} parameter{'' if self.df == 1 else 's'})",
            f"null distribution: {self.reference.words}; 5 % critical value {self.reference.critical():.3f}",
            f"-2 log L by {self.detail}",
        ]
        return "\n".join(lines + [f"note: {word}" for word in self.notes])

    def _repr_html_(self) -> str:
        return "".join(f"<p>{html.escape(line)}</p>" for line in repr(self).splitlines())


def likelihood_ratio(
    small: Column,
    large: Column,
    *,
    arbiter: str = "auto",
    nodes: int = 9,
    k: int = 1000,
    seed: int = 0,
    boundary: Sequence[str] = (),
    weights: Literal["information", "orthogonal"] = "information",
) -> LikelihoodRatio:
    """Test a page against a larger one that contains it.

    The reference distribution is chi-square with as many degrees of freedom as tested parameters; where variances are
    tested at 0 a mixture: 1/2 chi2(r) + 1/2 chi2(r + 1) for one variance with r covariances or other parameters beside
    it (Stram & Lee 1994, doi:10.2307/2533455); for several variances, or a block of them, a mixture whose weights come
    from the estimated information (see `cone`).

    Args:
        small, large: fits of the same data, the small page a special case of the large one: parameters left out, or
            held at a value.
        arbiter: as for `compare`; "own" takes the methods' own objectives, where both are of one kind.
        nodes, k, seed: of the arbiter, and `seed` of the draws behind a mixture.
        boundary: tested thetas whose null value is one of their bounds.
        weights: of several variances: "information" (score outer products of the large page at its estimates) or
            "orthogonal", as if their estimates were uncorrelated, which gives binomial weights.

    Raises:
        DataError: different data or scales, pages that are not nested as far as parameters tell, or fits that are
            not maximum likelihood: priors, networks.

    Example:
        >>> likelihood_ratio(additive, combined).p  # doctest: +SKIP
        0.00012
    """
    if weights not in ("information", "orthogonal"):
        raise DataError(f"weights={weights!r}: expected 'information' or 'orthogonal'")
    check_comparable((small, large))
    for fit in (small, large):
        words = cautions(fit.problem)
        if words:
            raise DataError(f"likelihood_ratio, page {fit.model.name}: {words[0]}")
    tested = nested(small, large, boundary)
    verdict = judge((small, large), arbiter, nodes, k, seed)
    statistic = float(verdict.minus2ll[0] - verdict.minus2ll[1])
    se = float(verdict.paired_se(1)[0])
    reference, notes = _reference(tested, large.problem, weights, seed)
    for fit, which in ((small, "small"), (large, "large")):
        if not fit.converged:
            notes.append(f"the {which} page did not converge, so its likelihood is not at a maximum")
    approximate = sorted({f.method for f in (small, large) if f.ofv_source not in EXACT})
    if approximate and verdict.arbiter == "own":
        notes.append(f"differences of objectives by {' and '.join(approximate)} are approximate")
    elif approximate:
        notes.append(
            f"estimates by {' and '.join(approximate)} do not quite maximise this likelihood; when the decision is"
            " close, estimate both pages by AGQ"
        )
    if statistic < -max(3 * se, 0.01):
        notes.append(
            "the large page fits worse than the small one that it contains, so its likelihood is not at its maximum:"
            " start it at the small one's estimates (with_values)"
            + (", and estimate both by AGQ" if approximate else "")
        )
    return LikelihoodRatio(
        statistic,
        se,
        tested.df,
        reference.p(statistic),
        reference,
        tested.names,
        verdict.arbiter,
        verdict.detail,
        (*tested.notes, *notes),
    )


def _reference(tested: Surplus, problem: Problem, weights: str, seed: int) -> tuple[Reference, list[str]]:
    """The null distribution, and what it rests on."""
    free, lines, sizes = len(tested.inside), len(tested.zero), tuple(len(b) for b in tested.blocks)
    if lines + len(sizes) == 0:
        return Reference({free: 1.0}), []
    if lines == 1 and not sizes:
        return orthant_reference(free, None, 1), []
    v = _covariance(tested, problem) if weights == "information" else None
    notes = []
    if v is None:
        why = "" if weights == "orthogonal" else " (too few subjects to estimate their correlation)"
        if sizes:
            raise DataError(
                "likelihood_ratio: the null distribution for a block of random effects needs the estimated information"
                f"{why}; test them one at a time"
            )
        notes.append(
            f"binomial weights: the estimates of the tested variances are taken as uncorrelated{why}"
        )
        return orthant_reference(free, None, lines), notes
    notes.append("weights from the estimated information of the tested variances")
    if sizes:
        return cone_reference(free, v, lines, sizes, seed), notes
    return orthant_reference(free, v, lines, seed), notes


def _covariance(tested: Surplus, problem: Problem) -> Tensor | None:
    """Asymptotic covariance of the estimates tested at the end of their range, from the scores at the estimates.

    Scores are those of FOCEI, in variances and covariances, which have finite derivatives at 0 where logarithms have
    none; None where there are no more subjects than parameters.
    """
    if int(problem.observed.any(-1).sum()) <= problem.P:
        return None
    free = _lifted(tested, problem)
    score = FOCEIObjective(problem)(free[None], scores=True).score
    assert score is not None
    slope = jacobian(problem, free)
    layout = problem.layout
    for place, name in enumerate(problem.names):
        endpoint = layout.endpoints.get(name.rpartition(".")[0])
        if name in layout.residual_sds and getattr(endpoint, "form", "") != "sd":
            # in the variance, whose derivative at 0 is not zero
            slope[place] = slope[place] * 2 * float(torch.exp(free[place]))
    natural = torch.linalg.solve(slope.T, score[0].T).T
    scale = natural.std(0)
    centred = (natural - natural.mean(0)) / scale
    if not bool(torch.isfinite(centred).all()):
        return None
    information = 0.25 * centred.T @ centred
    factor, trouble = torch.linalg.cholesky_ex(information)
    if int(trouble) > 0:
        return None
    whole = torch.cholesky_inverse(factor) / (scale * scale[:, None])
    names = list(tested.zero)
    for block in tested.blocks:
        names += [
            f"omega.{a}" if a == b else f"omega.{a},{b}" for i, a in enumerate(block) for b in block[: i + 1]
        ]
    at = torch.tensor([problem.names.index(name) for name in names])
    part: Tensor = whole[at[:, None], at]
    return part


def _lifted(tested: Surplus, problem: Problem) -> Tensor:
    """The estimates `[P]` with standard deviations that are tested at 0 a little above it, without correlations."""
    layout = problem.layout
    values = layout.values(problem.full(problem.start))
    omega = values.omega.clone()
    effects = {name.removeprefix("omega.") for name in tested.zero if name in layout.omega_names}
    effects |= {name for block in tested.blocks for name in block}
    for key, block in layout.omegas.items():
        for name, start in zip(layout.members[key], block.variances, strict=True):
            k = layout.effect_names.index(name)
            least = FLOOR**2 * start
            if name in effects and float(omega[k, k]) < least:
                omega[k], omega[:, k] = 0.0, 0.0
                omega[k, k] = least
    sigma = {name: float(x) for name, x in values.sigma.items()}
    for name in tested.zero:
        if name in sigma:
            endpoint, _, part = name.rpartition(".")
            sigma[name] = max(sigma[name], FLOOR * layout.endpoints[endpoint].start[part])
    vector = layout.pack({k: float(x) for k, x in values.theta.items()}, omega, sigma)
    return vector[problem.free_index]
