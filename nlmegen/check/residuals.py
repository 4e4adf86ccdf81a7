"""Residuals of a fit: raw, individual weighted, weighted, conditional weighted, and by simulation.

With the linearisation of the model about eta*, `f(eta) ~ f(eta*) + J (eta - eta*)`, a subject's record is
Gaussian with

    mean  E = f(eta*) - J eta*        covariance  C = J Omega J' + diag(R)

and its weighted residuals are `C^(-1/2) (y - E)`: at eta* = 0 WRES, at the conditional mode CWRES (Hooker,
Staatz & Karlsson 2007, doi:10.1007/s11095-007-9361-x). The root is the symmetric one, by eigenvalues, as
NONMEM takes it unless WRESCHOL is given on $TABLE. R is taken at eta* where the fit lets eta and epsilon
interact (FOCEI and everything after it) and at eta = 0 for FO and FOCE; so are the modes.

NONMEM's columns (https://nmhelp.tingjieguo.com/$table.htm):

| here | NONMEM | |
|---|---|---|
| `pred`, `res`, `wres` | PRED, RES, WRES | the same (NWRES without, WRESI with INTERACTION: R is that of eta = 0) |
| `cwres` | CWRES of a run with INTERACTION | the same to the digits printed; R at the mode |
| `ipred` | CIPREDI, or IPRED = F in the page | the same |
| `iwres` | IRES / W where W is the residual SD | the same; W = F leaves sigma out |
| `epred`, `pwres` | EPRED, EWRES | the same up to Monte Carlo error; ERES is dv - epred |
| `npde` | NPDE | the same with `npde(fit, root="symmetric")`; here the Cholesky root of the R package npde |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from nlmegen.check.npde import npde
from nlmegen.check.quantiles import randomised
from nlmegen.check.records import on_records
from nlmegen.errors import FitError
from nlmegen.model.discrete import Discrete
from nlmegen.simulate.draws import generator, whole
from nlmegen.simulate.limits import complete

if TYPE_CHECKING:
    from nlmegen.fit import Fit
    from nlmegen.model.parameters import Values
    from nlmegen.model.problem import Problem

COLUMNS = ("pred", "ipred", "epred", "res", "wres", "iwres", "cwres", "pwres", "npde")
"""The columns that `residuals` adds to a table."""

_BLOCK = 4_000_000
"""Entries of the covariance matrices held at once."""


def residuals(fit: Fit, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Return the fitted table with predictions and residuals in columns of their own.

    | column | |
    |---|---|
    | `pred` | prediction at eta = 0, on the scale of DV (for a log-normal endpoint the median) |
    | `ipred` | the same at the conditional mode (EBE) |
    | `epred` | mean of the simulated observations |
    | `res` | y - f(0) |
    | `iwres` | (y - f(EBE)) / sqrt(R(EBE)) |
    | `wres` | C^(-1/2) (y - E), linearised at eta = 0 |
    | `cwres` | the same, linearised at the EBE |
    | `pwres` | V^(-1/2) (y - m), mean and covariance of simulated observations: Monolix's PWRES, NONMEM's EWRES |
    | `npde` | normalised prediction distribution errors, by simulation (`check.npde`) |

    y and f are on the scale of the residual model: for a log-normal endpoint that is the logarithm. Residuals that the
    page scales (`Predicted`) or correlates have that covariance in R. A value below or above a limit of
    quantification has no residual but npde, and is no part of wres and cwres of its record. Of a count or category
    `iwres` is the randomised quantile residual at the EBE (`check.quantiles`), `pred` the mean, and res, wres, cwres
    and pwres are missing; Student's t residuals have no wres and cwres.

    Args:
        fit: A `Fit`.
        draws: Simulations for `epred`, `pwres` and `npde`; 0 leaves these columns missing.
        seed: Seed of those simulations.

    Returns:
        All records of the table in their order, with `COLUMNS` added; missing on records without an
        observation. What stands in the way of npde in some subject is said in `attrs["notes"]`.

    Raises:
        FitError: The fitted model's predictions are not finite at eta = 0.

    Example:
        >>> import nlmegen as nl
        >>> fit = nl.fit(nl.load_model("theophylline"), nl.load_data("theophylline"), nl.FOCEI())
        >>> table = residuals(fit, draws=0)
        >>> len(table), int(table["cwres"].notna().sum())
        (144, 132)
    """
    problem, values = fit.problem, fit.values
    full = complete(problem)
    with torch.no_grad():
        y = problem.y
        mode = fit.ebe
        at_zero = full.predict(torch.zeros_like(mode), values, order=1)
        at_mode = full.predict(mode, values, order=1)
        assert at_zero.jac is not None
        assert at_mode.jac is not None
        if not bool(torch.isfinite(at_zero.f[..., : y.shape[-1]][problem.observed]).all()):
            raise FitError(
                "the prediction at eta = 0 is not finite: the fitted theta are unusable; start elsewhere"
            )
        times = y.shape[-1]
        f_zero, f_mode, jac_zero, jac_mode = (
            x[..., :times] for x in (at_zero.f, at_mode.f, at_zero.jac, at_mode.jac)
        )
        variance_zero, variance_mode = (
            full.variance(f, values)[0].expand(y.shape) * _size(full, rows)
            for f, rows in ((f_zero, at_zero.f), (f_mode, at_mode.f))
        )
        interaction = fit.ofv_source not in ("fo", "foce")
        omega = values.omega
        mean_mode = f_mode - torch.einsum("qnt,nq->nt", jac_mode, mode)
        measured = _measured(problem)
        used = problem.gaussian & measured
        source = generator(seed, "randomised quantile residuals")

        def weighted(residual: Tensor, jac: Tensor, variance: Tensor) -> Tensor:
            # What has no residual stands apart as padding does: residual 0, variance 1, no random effects.
            between = _between(problem, values, variance, used)
            residual, jac = torch.where(used, residual, 0.0), torch.where(used, jac, 0.0)
            white = whiten(residual, jac, omega, torch.where(used, variance, 1.0), between)
            return torch.where(used, white, torch.nan)

        shown: dict[str, Tensor | npt.NDArray[np.float64]] = {
            "pred": full.natural(at_zero.f, values),
            "ipred": full.natural(at_mode.f, values),
            "res": torch.where(measured, y - f_zero, torch.nan),
            "wres": weighted(y - f_zero, jac_zero, variance_zero),
            "iwres": torch.where(
                measured, (y - f_mode) / variance_mode.sqrt(), randomised(problem, f_mode, values, source)
            ),
            "cwres": weighted(y - mean_mode, jac_mode, variance_mode if interaction else variance_zero),
        }
    table = fit.population.to_table()
    table.attrs = {"time_unit": fit.population.time_unit, "dv_unit": fit.population.dv_unit}
    if whole("draws", draws, 0):
        scores = npde(fit, draws, seed)
        shown |= {"epred": scores.epred, "pwres": scores.pwres, "npde": scores.npde}
        table.attrs["notes"] = scores.notes
    for name in COLUMNS:
        table[name] = on_records(fit.population, shown[name]) if name in shown else np.nan
    return table


def _measured(problem: Problem) -> Tensor:
    """[N, T] whether an observation has a residual: it is a measured value, and no count or category."""
    out = problem.observed.clone()
    if problem.limits is not None:
        out &= ~problem.limits.censored
    for _, endpoint, mask in problem.by_endpoint:
        if isinstance(endpoint, Discrete):
            out &= ~mask
    return out


def _size(problem: Problem, rows: Tensor) -> Tensor:
    """[N, T] what a page that scales its residuals multiplies their variances by."""
    times = problem.time.shape[-1]
    return torch.exp(2 * rows[..., times:]) if problem.scaled else torch.ones_like(rows)


def _between(
    problem: Problem, values: Values, variance: Tensor, used: Tensor
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Covariances of residuals that are correlated: places of the two, [N, pair], and the covariance."""
    found = []
    for pairs in problem.residual_pairs:
        there = pairs.there & used.gather(-1, pairs.first) & used.gather(-1, pairs.second)
        sd = variance.sqrt()
        covariance = values.sigma[pairs.name] * sd.gather(-1, pairs.first) * sd.gather(-1, pairs.second)
        found.append((pairs.first, pairs.second, torch.where(there, covariance, 0.0)))
    return found


def whiten(
    residual: Tensor,
    jac: Tensor,
    omega: Tensor,
    variance: Tensor,
    between: Sequence[tuple[Tensor, Tensor, Tensor]] = (),
) -> Tensor:
    """Return `(J Omega J' + R)^(-1/2) r`, the symmetric root.

    Args:
        residual: r [N, T], 0 where padded.
        jac: J [q, N, T], 0 where padded.
        omega: [q, q].
        variance: Diagonal of R [N, T], 1 where padded, so that padding stays apart and 0.
        between: What is off the diagonal of R: two places and the covariance there, each [N, pair], 0 for no pair.

    Returns:
        [N, T]; a subject whose covariance is not finite or not positive definite gives NaN.
    """
    n, t = residual.shape
    out = torch.empty_like(residual)
    size = max(1, _BLOCK // max(1, t * t))
    for start in range(0, n, size):
        part = slice(start, start + size)
        j = jac[:, part].movedim(0, -1)
        cov = j @ omega @ j.mT + torch.diag_embed(variance[part])
        for first, second, value in between:
            i = torch.arange(len(cov))[:, None].expand(-1, first.shape[-1])
            cov.index_put_((i, first[part], second[part]), value[part], accumulate=True)
            cov.index_put_((i, second[part], first[part]), value[part], accumulate=True)
        usable = torch.isfinite(cov).all(-1).all(-1)
        cov = torch.where(usable[:, None, None], cov, torch.eye(t, dtype=cov.dtype))
        value, vector = torch.linalg.eigh(cov)
        usable &= (value > 0).all(-1)
        scaled = (vector.mT @ residual[part, :, None]) / value.clamp_min(
            torch.finfo(value.dtype).tiny
        ).sqrt()[..., None]
        whitened = (vector @ scaled).squeeze(-1)
        out[part] = torch.where(usable[:, None], whitened, torch.nan)
    return out
