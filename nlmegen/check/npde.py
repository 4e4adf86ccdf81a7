"""Residuals by simulation: where each observation stands among simulations of it, without linearising the model.

For subject i with observations y_i and K simulated records y_i^k from the fitted model (both on the scale of
the residual model), m and V the mean and covariance of the simulations and B a root, B B' = V,

    y* = B^-1 (y - m),    y^k* = B^-1 (y^k - m),    pde_ij = mean_k [ y^k*_ij < y*_ij ],    npde = Phi^-1(pde)

Under the true model npde is N(0, 1), and uncorrelated within a subject (Brendel et al. 2006,
doi:10.1007/s11095-006-9067-5; Comets, Brendel & Mentre 2008, doi:10.1016/j.cmpb.2007.12.002, whose edges 1/2K,
1 - 1/2K are used here). npd is the same without decorrelation: it keeps the time of a misfit, and is correlated
within a subject.

B is the Cholesky factor, as in those papers (each observation is freed of the earlier ones), or the symmetric
root, which treats all alike: NONMEM's NPDE and EWRES take the latter unless WRESCHOL is given on $TABLE.

    pwres = V^(-1/2) (y - m), the symmetric root

are Monolix's population weighted residuals (https://monolixsuite.slp-software.com/monolix/2024R1/scatter-plot-of-residuals)
and NONMEM's EWRES: mean 0 and covariance I under the true model, but not normal where the model is not linear.

Of a value below (above) a limit of quantification its probability alone is known. It is drawn anew from the simulated
values of that record beyond the limit, which makes its pde uniform on (0, P(below)); so are simulated values beyond the
limit, so that observed and simulated records are treated alike (Nguyen, Comets & Mentre 2012,
doi:10.1007/s10928-012-9264-2). Counts and categories are whole numbers: a uniform number in (0, 1) is added to observed
and simulated ones, and pde is then that of the randomised quantile residual (Dunn & Smyth 1996,
doi:10.1080/10618600.1996.10474708). Their scores are reproducible (`seed`), but hold a part of chance. pwres is missing
for both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy import special, stats
from torch import Tensor

from nlmegen.check.records import observations
from nlmegen.errors import DataError, FitError
from nlmegen.model import drawn
from nlmegen.model.discrete import Discrete
from nlmegen.simulate.draws import draw_eta, generator, whole
from nlmegen.simulate.limits import complete

if TYPE_CHECKING:
    from nlmegen.fit import Fit
    from nlmegen.model.parameters import Values
    from nlmegen.model.problem import Problem

_SUBJECTS = 64
"""Subjects simulated together; fixed, because the draws depend on it."""

_NUMBERS = 64_000_000
"""Simulated observations held at once, padding included; richer records are simulated fewer subjects at a time."""

_EACH = 20
"""Simulations for each observation of a record that the draws asked for cannot decorrelate."""

_LONGEST = 1000
"""Observations of the longest record that is given more draws; a longer one would not fit in memory."""


@dataclass(frozen=True)
class Npde:
    """Prediction distribution errors of a fit.

    Attributes:
        npde: [N, T] decorrelated, missing where padded; see the module for censored values, counts and categories.
        npd: [N, T] not decorrelated.
        epred: [N, T] mean of the simulated observations, on the scale of DV (NONMEM's EPRED).
        pwres: [N, T] population weighted residuals.
        table: One row an observation: id, time, dv, (dvid,) epred, pwres, npd, npde.
        draws: Number of simulations of a subject, where its record is not too long for them.
        notes: What was done otherwise for subjects with long records.
    """

    npde: npt.NDArray[np.float64]
    npd: npt.NDArray[np.float64]
    epred: npt.NDArray[np.float64]
    pwres: npt.NDArray[np.float64]
    table: pd.DataFrame
    draws: int
    notes: tuple[str, ...] = ()

    def test(self) -> pd.DataFrame:
        """Return how far npde is from N(0, 1): see `uniformity`."""
        return uniformity(self.npde[np.isfinite(self.npde)])


def uniformity(scores: npt.ArrayLike) -> pd.DataFrame:
    """Test normal scores against N(0, 1), that is, their probabilities against the uniform distribution.

    Args:
        scores: [n] values such as npde, taken as independent (decorrelation makes them nearly so).

    Returns:
        Rows `mean` (t test of mean 0), `variance` (chi-squared test of variance 1), `ks` (Kolmogorov-Smirnov
        distance of the probabilities from uniform) and `global` (the least p value times three: Bonferroni);
        columns `statistic`, `expected` and `p`.

    Example:
        >>> float(uniformity([-1.5, -0.5, 0.0, 0.5, 1.5]).loc["mean", "statistic"])
        0.0
    """
    values = np.asarray(scores, dtype=np.float64).reshape(-1)
    n = len(values)
    variance = float(values.var(ddof=1))
    below = float(stats.chi2.cdf((n - 1) * variance, n - 1))
    ks = stats.kstest(special.ndtr(values), "uniform")
    p = [float(stats.ttest_1samp(values, 0.0).pvalue), 2 * min(below, 1 - below), float(ks.pvalue)]
    return pd.DataFrame(
        {
            "statistic": [float(values.mean()), variance, float(ks.statistic), np.nan],
            "expected": [0.0, 1.0, 0.0, np.nan],
            "p": [*p, min(1.0, 3 * min(p))],
        },
        index=["mean", "variance", "ks", "global"],
    )


def npde(
    fit: Fit, draws: int = 1000, seed: int = 0, root: Literal["cholesky", "symmetric"] = "cholesky"
) -> Npde:
    """Return the prediction distribution errors of a fit, from simulations of its own records.

    A record of n observations needs more than 2n draws for its covariance. Where `draws` are fewer, that subject gets
    20n of its own; beyond 1000 observations that is too much, and its npde and pwres are missing (its npd is not).

    Args:
        fit: A `Fit`.
        draws: Simulations K, 2 or more.
        seed: Seed of the simulations.
        root: The root that decorrelates for npde: "cholesky" (Comets et al. 2008) or "symmetric" (NONMEM's default).

    Raises:
        DataError: Draws or a seed that are no whole numbers, a root of another name.
        FitError: Simulations that do not vary (no residual error).

    Example:
        >>> import nlmegen as nl
        >>> fit = nl.fit(nl.load_model("theophylline"), nl.load_data("theophylline"), nl.FOCEI())
        >>> npde(fit, draws=100).test().index.tolist()
        ['mean', 'variance', 'ks', 'global']
    """
    draws = whole("draws", draws, 2)
    if root not in ("cholesky", "symmetric"):
        raise DataError(f'root: expected "cholesky" or "symmetric", got {root!r}')
    problem, values = complete(fit.problem), fit.values
    cens, mask = fit.population.cens, problem.observed
    smooth = _smooth(problem) & (cens == 0)
    count = mask.sum(-1)
    short = 2 * count + 2 > draws
    lost = short & (count > _LONGEST)
    raw = torch.full(mask.shape, torch.nan, dtype=torch.float64)
    decorrelated, expected, weighted = raw.clone(), raw.clone(), raw.clone()

    def fill(i: int, seen: Tensor, y: Tensor, sims: Tensor) -> None:
        whitened = decorrelate(y, sims, "symmetric")
        weighted[i, seen] = torch.where(smooth[i, seen], whitened[0], torch.nan)
        decorrelated[i, seen] = normal_score(
            *(whitened if root == "symmetric" else decorrelate(y, sims, "cholesky"))
        )

    size = max(1, min(_SUBJECTS, _NUMBERS // (draws * max(1, mask.shape[-1]))))
    for block, start in enumerate(range(0, len(mask), size)):
        index = torch.arange(start, min(start + size, len(mask)))
        part = problem.select(index)
        simulated = _simulate(part, values, draws, generator(seed, "npde", block))
        natural = part.natural(simulated, values, drawn=True)
        expected[index] = torch.where(mask[index], natural.mean(0), torch.nan)
        observed, simulated = _completed(
            part, cens[index], natural, simulated, generator(seed, "npde, imputed", block)
        )
        for k, i in enumerate(index.tolist()):
            seen = mask[i]
            if not bool(seen.any()):
                continue
            y, sims = observed[k, seen], simulated[:, k, seen]
            raw[i, seen] = normal_score(y, sims)
            if not short[i]:
                fill(i, seen, y, sims)
    for i in torch.nonzero(short & ~lost).flatten().tolist():
        part, seen = problem.select(torch.tensor([i])), mask[i]
        source = generator(seed, "npde of a long record", i)
        simulated = _simulate(part, values, _EACH * int(count[i]), source)
        natural = part.natural(simulated, values, drawn=True)
        observed, simulated = _completed(
            part, cens[i : i + 1], natural, simulated, generator(seed, "npde of a long record, imputed", i)
        )
        fill(i, seen, observed[0, seen], simulated[:, 0, seen])
    notes: tuple[str, ...] = ()
    if bool(lost.any()):
        who = ", ".join(fit.population.ids[i] for i in torch.nonzero(lost).flatten().tolist()[:5])
        notes = (
            f"npde is missing for {int(lost.sum())} of {len(mask)} subjects (id {who}):"
            f" more than {_LONGEST} observations",
        )
    columns = {"epred": expected, "pwres": weighted, "npd": raw, "npde": decorrelated}
    table = observations(fit.population).assign(**{k: x[mask].numpy() for k, x in columns.items()})
    return Npde(decorrelated.numpy(), raw.numpy(), expected.numpy(), weighted.numpy(), table, draws, notes)


def decorrelate(
    y: Tensor, simulated: Tensor, root: Literal["cholesky", "symmetric"] = "cholesky"
) -> tuple[Tensor, Tensor]:
    """Return y [T] and simulated [K, T], less the mean of the simulations and divided by the root of their
    covariance.

    Raises:
        FitError: The simulations do not vary.
    """
    mean = simulated.mean(0)
    cov = torch.cov(simulated.T).reshape(simulated.shape[-1], -1)
    factor, failed = torch.linalg.cholesky_ex(cov)
    if bool(failed):
        raise FitError(
            "npde: simulated observations of a subject are not finite, or do not vary, or two of them vary as one;"
            " a model without residual error at some record cannot be checked this way"
        )
    both = torch.cat([y[None], simulated]) - mean
    if root == "cholesky":
        rotated = torch.linalg.solve_triangular(factor, both.T, upper=False).T
    else:
        value, vector = torch.linalg.eigh(cov)
        rotated = both @ ((vector / value.sqrt()) @ vector.mT)
    return rotated[0], rotated[1:]


def normal_score(y: Tensor, simulated: Tensor) -> Tensor:
    """Return `Phi^-1` of the fraction of simulations [K, T] below y [T], kept 1/2K from 0 and 1."""
    k = len(simulated)
    below = (simulated < y).to(torch.float64).mean(0)
    score: Tensor = torch.special.ndtri(below.clamp(0.5 / k, 1 - 0.5 / k))
    return score


def _simulate(problem: Problem, values: Values, draws: int, source: torch.Generator) -> Tensor:
    """[K, N, T] simulated observations on the scale of the residual model."""
    n = problem.n_subjects
    with torch.no_grad():
        eta = draw_eta(values.factor, draws * n, source).reshape(draws, n, -1)
        rows = problem.predict(eta, values).f
        f = rows[..., : problem.time.shape[-1]]
        sd = problem.variance(f, values)[0].sqrt()
        if not problem.plain:
            return drawn.observations(problem, rows, sd, values, source)
        return f + sd * torch.randn(f.shape, dtype=f.dtype, generator=source)


def _smooth(problem: Problem) -> Tensor:
    """[N, T] whether an observation is neither a count nor a category."""
    out = problem.observed.clone()
    for _, endpoint, mask in problem.by_endpoint:
        if isinstance(endpoint, Discrete):
            out &= ~mask
    return out


def _completed(
    problem: Problem, cens: Tensor, natural: Tensor, simulated: Tensor, source: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Observed [N, T] and simulated [K, N, T] values, those beyond a limit drawn anew, whole numbers made continuous.

    Args:
        problem: Of these subjects.
        cens: [N, T] of the observed values.
        natural: [K, N, T] simulated values on the scale of the table.
        simulated: The same on the scale of the residual model.
        source: Generator of what is drawn.
    """
    observed = problem.y
    whole = problem.observed & ~_smooth(problem)
    if bool(whole.any()):
        shift = torch.rand((len(simulated) + 1, *observed.shape), dtype=observed.dtype, generator=source)
        observed = torch.where(whole, observed + shift[0], observed)
        simulated = torch.where(whole, simulated + shift[1:], simulated)
    flags = problem.censored(natural)[1]
    if not bool((flags != 0).any()):
        return observed, simulated
    both, flag = torch.cat([observed[None], simulated]), torch.cat([cens[None], flags])
    for i, t in torch.nonzero((flag != 0).any(0)).tolist():
        for sign in (1, -1):
            pool = simulated[flags[:, i, t] == sign, i, t]
            here = flag[:, i, t] == sign
            if len(pool) and bool(here.any()):
                drawn_anew = torch.randint(len(pool), (int(here.sum()),), generator=source)
                both[here, i, t] = pool[drawn_anew]
    return both[0], both[1:]
