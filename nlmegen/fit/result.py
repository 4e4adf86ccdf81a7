"""One verb, `fit(model, data, method)`, and one result, `Fit`, whatever the method."""

from __future__ import annotations

import html
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ..data.population import Population
from ..errors import DataError, FitError, ModelError, Status
from ..inference.elbo import ELBO
from ..inference.estimate import Estimate, Method, Report
from ..inference.identify import identifiability
from ..inference.methods import chained
from ..inference.posterior import FEWEST_DRAWS, Posterior
from ..inference.posteriors import posterior
from ..inference.uncertainty import Uncertainty, uncertainty
from ..model.page import Model
from ..model.parameters import Values
from ..model.problem import Problem
from ..model.remarks import remarks
from .criteria import aic, bic


def fit(
    model: Model | type[Model],
    data: Population,
    method: Method | Sequence[Method] | None = None,
    progress: Report | None = None,
) -> Fit:
    """Fit a page to data.

    The marginal likelihood prod_i of integral p(y_i | eta) p(eta | Omega) d eta is maximised over theta, Omega and
    sigma; the methods differ in how they approximate the integral.

    Args:
        model: a page, or its class; it is not changed. Its present values are the start.
        data: the population.
        method: an object of settings such as `ELBO()` (the default) or `FOCEI()`; or a list of them, in which each
            begins at the estimates of the one before.
        progress: called with a `Progress` now and then; nothing is printed without it.

    Returns:
        A `Fit`; Ctrl-C during the estimation returns the best so far with `converged` False.

    Raises:
        ModelError: the page cannot be used (its line and the remedy are named).
        DataError: the data do not fit the page.
        FitError: the estimation could not start, or gave nothing usable.

    Example:
        >>> import nlmegen as nl
        >>> result = nl.fit(nl.load_model("theophylline"), nl.load_data("theophylline"), nl.FOCEI())
        >>> round(result.ofv, 2)
        104.32
    """
    if isinstance(model, type) and issubclass(model, Model):
        model = model()
    if not isinstance(model, Model):
        raise ModelError(f"fit needs a model (a page or nl.load_model(name)), got {type(model).__name__}")
    if not isinstance(data, Population):
        raise DataError(f"fit needs a Population (nl.load_data, nl.read_nonmem), got {type(data).__name__}")
    chosen = _chosen(method)
    begin = time.perf_counter()
    problem = Problem(model, data)
    if problem.n_observations == 0:
        raise DataError("the data hold no observation (EVID 0 and MDV 0), so there is nothing to fit")
    with one_thread():
        estimate = chosen.estimate(problem, progress)
    estimate.notes += [*problem.structure.notes(), *problem.levels.notes(), *remarks(problem)]
    estimate.notes += [f"data: {text}" for text in data.warnings]
    fitted = model.with_free(problem.full(estimate.free)).knowing(problem.categories.seen())
    if estimate.weights is not None:
        fitted, problem = fitted.with_weights(estimate.weights), problem.with_weights(estimate.weights)
    unsolved = problem.unsolved(estimate.ebe, problem.spread(fitted.values))
    estimate.status = estimate.status | unsolved.to(torch.int64) * int(Status.NOT_SOLVED)
    result = Fit(fitted, data, chosen, estimate, time.perf_counter() - begin)
    result.__dict__["problem"] = problem.starting(estimate.free)  # bound and checked already
    return result


def _chosen(method: Method | Sequence[Method] | None) -> Method:
    """The method object of what was given to `fit`."""
    if method is None:
        return ELBO()
    single: Any = chained(method) if isinstance(method, Sequence) else method
    if isinstance(single, type) or not hasattr(single, "estimate"):
        raise FitError(f"fit needs a method object such as nl.FOCEI() or nl.ELBO(), got {single!r}")
    chosen: Method = single
    return chosen


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold torch to one thread, and give back what there was.

    On batches of the size of a population more threads wait for each other: with two, on two busy cores, a fit took
    six times as long.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Fit:
    """The result of `fit`.

    Attributes:
        model: the page at its estimates (a copy); population: the data; settings: the method object; method: its name.
        estimate: what the method returned, in full.
        seconds: wall time of the estimation.
        ofv, log_likelihood, ofv_source, ofv_se: objective function, complete log-likelihood, how it was computed, and
            its Monte Carlo standard error (None where there is none); the likelihood alone, without priors.
        penalty: -2 log prior at the estimates, 0 on a page without priors.
        converged, reason, iterations, notes: how it stopped.
        ebe, eta_mean, eta_cov, eta_sd, status: by subject, `[subject, q]` (`[subject, q, q]`, `[subject]`).
        encoder, bounds, history: of a variational fit the encoder and the ladder of bounds (of `Importance` its rung by
            sampling); the course of the fit.
    """

    def __init__(
        self, model: Model, population: Population, settings: Method, estimate: Estimate, seconds: float
    ) -> None:
        texts = {name: c.levels for name, c in population.covariates.items() if c.levels}
        self.model, self.population, self.settings = model.knowing(texts), population, settings
        self.method, self.estimate, self.seconds = settings.name, estimate, seconds
        self.ofv, self.log_likelihood = estimate.ofv, estimate.log_likelihood
        self.ofv_source, self.ofv_se = estimate.ofv_source, estimate.ofv_se
        self.penalty = estimate.penalty
        self.converged, self.reason, self.iterations = (
            estimate.converged,
            estimate.reason,
            estimate.iterations,
        )
        self.notes = list(estimate.notes)
        self.ebe, self.status = estimate.ebe, estimate.status
        self.eta_mean, self.eta_cov = estimate.eta_mean, estimate.eta_cov
        self.encoder, self.bounds, self.history = estimate.encoder, estimate.bounds, estimate.history

    @cached_property
    def problem(self) -> Problem:
        """The fitted model bound to its data."""
        return Problem(self.model, self.population)

    @property
    def values(self) -> Values:
        """Estimates as `problem` takes them: the factor of Omega has a block for each occasion."""
        return self.problem.spread(self.model.values)

    @property
    def eta_sd(self) -> Tensor:
        """Posterior standard deviations of eta `[subject, q]`."""
        return self.eta_cov.diagonal(dim1=-2, dim2=-1).sqrt()

    @cached_property
    def uncertainty(self) -> Uncertainty | None:
        """Standard errors, intervals and correlations of the free parameters, None when there are none."""
        if self.estimate.covariance is None or not self.problem.P:
            return None
        return uncertainty(self.problem, self.estimate.free, self.estimate.covariance)

    @cached_property
    def parameters(self) -> pd.DataFrame:
        """One row a parameter: kind, estimate, se, rse, ci_lower, ci_upper, unit, fixed.

        Omega rows are variances and covariances, sigma rows standard deviations; `rse` is a fraction; intervals are
        95 %. Fixed parameters have no standard error.
        """
        layout, values, spread = self.model.layout, self.model.values, self.uncertainty
        omega = values.omega
        estimates = [(k, "theta", float(v), layout.thetas[k].unit) for k, v in values.theta.items()]
        for name, (i, j) in zip(layout.omega_names, layout.positions, strict=True):
            estimates.append((name, "omega", float(omega[i, j]), ""))
        estimates += [(k, "sigma", float(v), "") for k, v in values.sigma.items()]
        rows = []
        for name, kind, estimate, unit in estimates:
            at = self.problem.names.index(name) if name in self.problem.names else None
            row = {"name": name, "kind": kind, "estimate": estimate}
            for column in ("se", "rse", "ci_lower", "ci_upper"):
                known = spread is not None and at is not None
                row[column] = float(getattr(spread, column)[at]) if known else math.nan
            rows.append(row | {"unit": unit, "fixed": at is None})
        return pd.DataFrame(rows).set_index("name")

    @property
    def omega_se(self) -> Tensor:
        """Standard errors of the entries of `model.omega` `[q, q]`, NaN where there are none."""
        q, layout = len(self.model.effect_names), self.model.layout
        se = torch.full((q, q), math.nan, dtype=torch.float64)
        for name, (i, j) in zip(layout.omega_names, layout.positions, strict=True):
            se[i, j] = se[j, i] = float(self.parameters["se"][name])
        return se

    @property
    def condition_number(self) -> float:
        """Of the correlation matrix of the estimates; NaN without standard errors."""
        return math.nan if self.uncertainty is None else self.uncertainty.condition_number

    @property
    def covariance(self) -> pd.DataFrame | None:
        """Covariance matrix of the estimates on the natural scale; None without standard errors.

        Rows and columns of parameters at a boundary are NaN.
        """
        spread = self.uncertainty
        return None if spread is None else _square(spread.covariance, spread.names)

    @property
    def correlation(self) -> pd.DataFrame | None:
        """Correlation matrix of the estimates on the natural scale; None without standard errors."""
        spread = self.uncertainty
        return None if spread is None else _square(spread.correlation, spread.names)

    @property
    def n_parameters(self) -> int:
        """Number of estimated parameters."""
        return self.problem.P

    @property
    def aic(self) -> float:
        """-2 log L + 2 P, from the complete likelihood (see `criteria`)."""
        return aic(-2 * self.log_likelihood, self.problem)

    @cached_property
    def bic(self) -> float:
        """-2 log L + P_R log N + P_F log n, from the complete likelihood (see `criteria`)."""
        return bic(-2 * self.log_likelihood, self.problem)

    @property
    def shrinkage_eta(self) -> dict[str, float]:
        """1 - sd(EBE) / omega_sd for each random effect, over the subjects with observations; for effects between
        occasions ("occ.ka") over the occasions with observations.
        """
        levels, omega_sd = self.problem.levels, self.model.omega.diagonal().sqrt()
        found = {}
        for k, name in enumerate(self.model.effect_names):
            modes = self.ebe[:, levels.row == k][levels.seen(self.problem.observed)[:, levels.row == k]]
            found[name] = float(1 - modes.std() / omega_sd[k]) if len(modes) > 1 else math.nan
        return found

    def posterior(
        self, population: Population | None = None, k: int = 1000, seed: int = 0, how: str = "auto"
    ) -> Posterior:
        """p(eta | y, x) of each subject at these estimates, for patients never seen too; nothing is trained.

        A variational fit answers with its encoder, any other with Student t densities at the conditional modes; both
        are corrected by importance weights and say, by effective sample size and k-hat, how far to trust them. A
        patient for whom that is not far enough is taken to a quadrature (up to three random effects) or gets many more
        draws; `Posterior.how` tells.

        Args:
            population: the patients; the fitted ones when left out.
            k: draws for each patient, at least 25; nodes of a quadrature, at most.
            seed: of the draws.
            how: "auto", or one means for all patients: "encoder", "importance", "quadrature", or "laplace", a Gaussian
                at the conditional mode with the inverse Hessian as covariance.

        Raises:
            DataError: too few draws, patients that do not fit the page, or means that this fit does not have.

        Example:
            >>> set(fit.posterior(how="quadrature").how)  # doctest: +SKIP
            {'quadrature'}
        """
        if not k >= FEWEST_DRAWS:
            raise DataError(
                f"posterior(k={k}): expected at least {FEWEST_DRAWS} draws a patient, fewer leave no tail by which to"
                " judge the weights; 1000 unless given"
            )
        problem = self.problem
        if population is not None:
            problem = Problem(self.model.knowing(problem.categories.seen()), population, partial=True)
        return posterior(
            problem, problem.spread(self.model.values), how=how, k=k, seed=seed, encoder=self.encoder
        )

    def problems(self) -> list[str]:
        """What deserves attention, in words: why it did not converge, subjects with a Status, notes, and what the data
        do not determine.
        """
        words = [] if self.converged else [f"not converged: {self.reason}"]
        flags = [Status(int(s)) for s in self.status]
        for flag in Status:
            ids = [i for i, s in zip(self.population.ids, flags, strict=True) if flag in s]
            if ids:
                shown = ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
                words.append(f"{flag.describe()} (id {shown})")
        return words + self.notes + self.identifiability

    @cached_property
    def identifiability(self) -> list[str]:
        """What the data do not determine, or poorly, in plain sentences (see `identify`)."""
        e = self.estimate
        if not self.problem.P:
            return []
        return identifiability(
            self.problem, e.free, e.hessian_r, e.score_s, self.uncertainty, self.shrinkage_eta
        )

    def summary(self) -> str:
        """The fit in a few lines of text."""
        data = f"{self.population.n_subjects} subjects, {self.problem.n_observations} observations"
        se = "" if self.ofv_se is None else f" (Monte Carlo SE {self.ofv_se:.3g})"
        stop = "converged" if self.converged else "NOT CONVERGED"
        head = [
            f"{self.model.name} by {self.method}: {data}",
            f"OFV {self.ofv:.4f}{se}, -2LL {-2 * self.log_likelihood:.4f} ({self.ofv_source}); {stop}: {self.reason}; "
            f"{self.iterations} iterations, {self.seconds:.2f} s",
        ]
        if self.bounds:
            b = self.bounds
            sampled = f"{-2 * b['importance_log_likelihood']:.3f}"
            if "elbo" in b:
                iwelbo = f"-2*IW-ELBO({b['k']}) {-2 * b['iwelbo']:.3f}"
                level = f"-2*ELBO {-2 * b['elbo']:.3f} >= {iwelbo} >= -2LL {sampled}"
            else:
                level = f"-2LL by {b['k']} importance samples {sampled} (SE {2 * b['importance_se']:.2g})"
            head.append(
                f"{level}; ESS fraction median {b['ess_median']:.2f}, lowest {b['ess_min']:.2f}; "
                f"k-hat max {b['khat_max']:.2f}"
            )
        table = self.parameters.drop(columns=["unit", "fixed"]).to_string(
            float_format=lambda x: f"{x:.5g}", na_rep=""
        )
        shrinkage = ", ".join(f"{k} {100 * v:.0f} %" for k, v in self.shrinkage_eta.items())
        tail = [f"shrinkage of the EBEs: {shrinkage}"] if shrinkage else []
        if self.penalty:
            head.append(
                f"maximum a posteriori: OFV + penalty (-2 log prior) {self.ofv:.4f} + {self.penalty:.4f} ="
                f" {self.ofv + self.penalty:.4f}"
            )
        return "\n".join([*head, table, *tail, *(f"note: {w}" for w in self.problems())])

    def __repr__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        lines = self.summary().splitlines()
        table = self.parameters.to_html(float_format=lambda x: f"{x:.5g}", na_rep="")
        notes = "".join(f"<li>{html.escape(w)}</li>" for w in self.problems())
        return f"<p>{html.escape(lines[0])}<br>{html.escape(lines[1])}</p>{table}<ul>{notes}</ul>"


def _square(matrix: Tensor, names: tuple[str, ...]) -> pd.DataFrame:
    """A matrix of the parameters under their names."""
    return pd.DataFrame(matrix.numpy(), index=pd.Index(names, name="name"), columns=list(names))
