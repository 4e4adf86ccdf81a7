"""Sampling importance resampling of the parameters: intervals from the likelihood itself, without estimating again.

Parameter vectors are drawn around the estimates and weighted by

    w_j = exp(-dOFV_j / 2) / q(psi_j) ,      dOFV_j = O(psi_j) - O(estimates) ,

with the objective function O of the fit's method (and -2 log prior, where there are priors) and the density q they
were drawn from: multivariate Student t, or normal, on the free scale, on which a parameter is a logarithm wherever it
must be positive. What is resampled in proportion to w follows exp(-O/2), flat on the free scale. A prior of the page
takes the place of the flat one: it is a density of the natural parameter x, so |dx/dpsi| joins w. The first proposal
has the inverse Hessian R^-1 for its covariance, each further one the weighted moments of the draws before.

See Dosne, Bergstrand, Harling & Karlsson (2016), doi:10.1007/s10928-016-9487-8, and on iterating Dosne, Bergstrand &
Karlsson (2017), doi:10.1007/s10928-017-9542-0.
"""

from __future__ import annotations

import html
import math

import numpy as np
import pandas as pd
import torch
from scipy.stats import chi2
from torch import Tensor

from ..errors import DataError, FitError
from ..fit import Fit
from ..fit.result import one_thread
from ..inference.estimate import Progress, Report
from ..inference.objective import Objective
from ..inference.uncertainty import natural
from ..model.priors import log_slopes
from ..simulate.draws import generator, whole
from .criterion import centre, criterion, is_own
from .intervals import percentiles
from .proposal import Proposal, diagnosis, moments, resample

BATCH = 200
"""Vectors evaluated together, between two reports of progress."""

LOWER = 0.1
"""A draw whose objective is lower than the fit's by more than this says that the fit is not at its minimum."""

HEAVY = 0.7
"""k-hat above which the weights cannot be relied upon."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def sir(
    fit: Fit,
    samples: int = 1000,
    resamples: int = 1000,
    iterations: int = 3,
    inflation: float = 1.0,
    seed: int = 0,
    degrees: int | None = 5,
    cap: int | None = None,
    level: float = 0.95,
    progress: Report | None = None,
) -> SIR:
    """Sample parameter vectors, weigh them by the likelihood, and resample.

    Args:
        fit: a fit by a method with an objective function (fo, foce, focei, laplace, agq); any other with at most three
            random effects is weighed by adaptive quadrature.
        samples: vectors drawn in each iteration.
        resamples: vectors kept of the last one.
        iterations: proposals, each better than the one before.
        inflation: by which the covariance of the first proposal is multiplied.
        seed: of the draws.
        degrees: of freedom of Student's t; None for a normal distribution, whose tails bound no weight.
        cap: how often one vector may be kept; 1 resamples without replacement (Dosne et al. 2016), which needs several
            times as many samples as resamples. Without a cap resampling is systematic.
        level: coverage of the intervals.
        progress: called with a `Progress` now and then.

    Returns:
        A `SIR`.

    Raises:
        DataError: arguments that mean nothing.
        FitError: no objective function that could be evaluated, or no covariance to begin with.

    Example:
        >>> import nlmegen as nl
        >>> model, data = nl.load_model("theophylline"), nl.load_data("theophylline")
        >>> drawn = sir(nl.fit(model, data, nl.FOCEI()), samples=200, resamples=100, iterations=1)
        >>> len(drawn.table)
        100
    """
    samples, resamples = whole("samples", samples, 25), whole("resamples", resamples, 2)
    iterations = whole("iterations", iterations, 1)
    if cap is not None and whole("cap", cap, 1) * samples < resamples:
        raise DataError(
            f"sir(cap={cap}): {samples} samples kept {cap} times at most do not make {resamples} resamples; draw more"
        )
    if not 0 < inflation < math.inf:
        raise DataError(f"inflation: expected a positive factor of the covariance, got {inflation!r}")
    if degrees is not None:
        degrees = whole("degrees", degrees, 1)
    if not 0 < level < 1:
        raise DataError(f"level: expected a fraction between 0 and 1 such as 0.95, got {level!r}")
    if not fit.problem.P:
        raise DataError("the page has no free parameter, so there is nothing to sample")
    objective = criterion(fit)
    with one_thread(), torch.no_grad():
        base, mean, covariance, notes = centre(fit, objective)
        covariance = covariance * inflation
        rows = []
        for number in range(1, iterations + 1):
            source = generator(seed, "sir", number)
            proposal = Proposal.of(mean, covariance, degrees)
            free, log_q = proposal.draw(samples, source)
            dofv = _rise(objective, fit.ebe[None], free, base, number, iterations, progress)
            log_weight = -0.5 * dofv - log_q + log_slopes(fit.problem.layout, fit.problem.full(free))
            log_weight = torch.where(torch.isfinite(dofv), log_weight, -math.inf)
            if not bool(torch.isfinite(log_weight).any()):
                raise FitError(
                    "no sampled vector has a finite objective; sample closer to the estimates (inflation=0.2)"
                )
            rows.append(diagnosis(log_weight, dofv))
            if number < iterations:
                mean, covariance = moments(free, log_weight, mean, covariance)
        source = generator(seed, "sir resampling")
        chosen = resample(log_weight, resamples, cap, source)
        values = natural(fit.problem, free[chosen]).numpy()
    table = pd.DataFrame(values, columns=list(fit.problem.names))
    table.insert(0, "sample", chosen.numpy() + 1)
    table.insert(1, "dofv", dofv[chosen].numpy())
    table.index = pd.RangeIndex(1, resamples + 1, name="resample")
    diagnostics = pd.DataFrame(rows, index=pd.RangeIndex(1, iterations + 1, name="iteration"))
    if not is_own(fit):
        notes.append(f"weighed by adaptive quadrature ({fit.method} has no objective function of its own)")
    if len(fit.problem.weights):
        notes.append("the networks' weights are held at their estimates")
    return SIR(fit, seed, level, table, diagnostics, notes)


def _rise(
    objective: Objective,
    eta: Tensor,
    free: Tensor,
    base: float,
    number: int,
    iterations: int,
    progress: Report | None,
) -> Tensor:
    """dOFV of each vector `[k]`."""
    parts = []
    for some in torch.split(free, BATCH):
        parts.append(objective(some, eta, tolerance=1e-10).total - base)
        if progress is not None:
            done = (number - 1) * len(free) + sum(map(len, parts))
            progress(Progress("sir", done, iterations * len(free)))
    return torch.cat(parts)


class SIR:
    """Parameter vectors resampled by their likelihood.

    Attributes:
        fit: the fit; seed, level: as asked for.
        table: one row a resample: sample (which of the last iteration's), dofv, the parameters on the natural scale.
        diagnostics: one row an iteration: samples, finite (with a finite objective), ess (effective sample size), khat
            (Pareto shape of the largest weights), largest_weight (share), dofv_min, dofv_mean (weighted).
        notes: what deserves attention, in words.
    """

    def __init__(
        self,
        fit: Fit,
        seed: int,
        level: float,
        table: pd.DataFrame,
        diagnostics: pd.DataFrame,
        notes: list[str],
    ) -> None:
        self.fit, self.seed, self.level, self.table, self.diagnostics = fit, seed, level, table, diagnostics
        self.names = fit.problem.names
        last = diagnostics.iloc[-1]
        self.notes = list(notes)
        if last["khat"] > HEAVY:
            self.notes.append(
                f"k-hat {last['khat']:.2f} is above {HEAVY}: the weights cannot be relied upon; take more samples or"
                " iterations, or a bootstrap"
            )
        if last["ess"] < 100:
            self.notes.append(
                f"an effective sample size of {last['ess']:.0f} does not determine the ends of intervals; take more"
                " samples"
            )
        lost = int(last["samples"] - last["finite"])
        if lost:
            self.notes.append(f"{lost} of {last['samples']:.0f} sampled vectors have no finite objective")
        lowest = float(diagnostics["dofv_min"].min())
        if lowest < -LOWER:
            self.notes.append(
                f"a sampled vector has an objective lower by {-lowest:.3g}: the fit is not at its minimum; fit again"
                " from other starts"
            )

    def summary(self) -> pd.DataFrame:
        """One row a parameter: estimate, mean, median, se, se_asymptotic, lower, upper, asymptotic_lower and _upper."""
        values = self.table[list(self.names)].to_numpy(dtype=np.float64)
        ends = percentiles(values, self.level)
        fitted = self.fit.parameters.loc[list(self.names)]
        columns = {
            "estimate": fitted["estimate"].to_numpy(dtype=np.float64),
            "mean": values.mean(0),
            "median": np.median(values, axis=0),
            "se": values.std(0, ddof=1),
            "se_asymptotic": fitted["se"].to_numpy(dtype=np.float64),
            "lower": ends[0],
            "upper": ends[1],
            "asymptotic_lower": fitted["ci_lower"].to_numpy(dtype=np.float64),
            "asymptotic_upper": fitted["ci_upper"].to_numpy(dtype=np.float64),
        }
        return pd.DataFrame(columns, index=pd.Index(self.names, name="name"))

    def dofv(self) -> pd.DataFrame:
        """Quantiles of dOFV of the resamples beside those of a chi-square with a degree of freedom a parameter.

        They agree where the log likelihood is quadratic as far as the intervals reach.
        """
        found = self.table["dofv"].quantile(list(QUANTILES)).to_numpy()
        theory = chi2.ppf(QUANTILES, len(self.names))
        return pd.DataFrame({"dofv": found, "chi2": theory}, index=pd.Index(QUANTILES, name="quantile"))

    @property
    def covariance(self) -> pd.DataFrame:
        """Covariance of the resamples."""
        return self.table[list(self.names)].cov()

    def _head(self) -> str:
        last = self.diagnostics.iloc[-1]
        return (
            f"SIR of {self.fit.model.name} by {self.fit.method}: {len(self.diagnostics)} x {last['samples']:.0f}"
            f" samples, {len(self.table)} resamples, seed {self.seed}; effective sample size {last['ess']:.0f}, k-hat"
            f" {last['khat']:.2f}, mean dOFV {last['dofv_mean']:.2f} ({len(self.names)} parameters)"
        )

    def __repr__(self) -> str:
        table = self.summary().to_string(float_format=lambda x: f"{x:.5g}", na_rep="")
        title = f"{100 * self.level:g} % intervals"
        return "\n".join([self._head(), title, table, *(f"note: {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        table = self.summary().to_html(float_format=lambda x: f"{x:.5g}", na_rep="")
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return f"<p>{html.escape(self._head())}</p>{table}<ul>{notes}</ul>"
