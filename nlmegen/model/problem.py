"""The binding of a model to a population, and the one quantity everything is written against:

    log_joint(eta) = log p(y | eta, x; theta, sigma) + log p(eta | Omega)            one number a subject

Methods, conditional modes, checks and the simulator receive a `Problem` and nothing else.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from ..data.population import Population
from ..errors import DataError
from ..structure.schedule import Schedule
from . import compiled, drawn, likelihood, pairs
from .binding import Hints, bind_endpoints, not_finite
from .categories import Categories
from .censoring import left_out, observations, places
from .correlation import pairs_of
from .discrete import Discrete
from .dryrun import dry_run
from .endpoints import Residual
from .levels import Levels
from .page import Model
from .parameters import Values
from .predicting import Directions, Predicting, Prediction
from .priors import penalty

__all__ = ["LOG_2PI", "Directions", "Prediction", "Problem"]

LOG_2PI = math.log(2 * math.pi)


class Problem(Predicting):
    """A model bound to a population.

    Args:
        model: an instance of a page.
        population: the data.
        partial: whether endpoints may be without observations, as of patients who come after a fit.

    Attributes:
        y, mask: observations on the scale of the residual error and 1.0 where there is one, `[subject, time]`.
        observed: where there is one that counts (M1 leaves out those of which only limits are known), bool.
        limits: what is known of observations of which only limits are known; None where all were measured.
        gaussian: observations with a normal density, `[subject, time]` bool.
        measured: whether every observation is Gaussian and measured, as first-order methods need it.
        scaled: whether the page gives residuals a size of their own, so that predictions have rows for it.
        residual_pairs: observations with correlated residuals.
        schedule: the dosing schedule of every subject.
        names: names of the P free (not fixed) parameters, in the order of every free vector.
        covariates_read: the covariates that the page reads.

    Raises:
        ModelError: when the page fails its dry run on these data.
        DataError: when the data lack a covariate, hold an endpoint or compartment that the page does not have, or hold
            observations that the endpoint cannot take.
    """

    def __init__(self, model: Model, population: Population, partial: bool = False) -> None:
        self.model, self.population, self.layout = model, population, model.layout
        self.structure, self.levels = model.structure.afresh(), Levels(model.layout, population)
        self.eta_names = self.levels.names
        self.q = len(self.eta_names)
        self.n_subjects = population.n_subjects
        if not self.n_subjects:
            raise DataError("the population holds no subject; select at least one")
        self.schedule = Schedule.build(population, self.structure.compartments)
        self.time = population.time
        self.observed = population.mask
        self.mask = population.mask.to(torch.float64)
        self.ragged = not bool(population.mask.all())
        self.endpoints = self.layout.endpoints
        self.endpoint_masks = bind_endpoints(self.endpoints, population, partial)
        self.cov_observation = {k: c.observation for k, c in population.covariates.items()}
        self.cov_segment = {k: c.segment for k, c in population.covariates.items()}
        self.cov_dose = {k: c.segment if c.dose is None else c.dose for k, c in population.covariates.items()}
        self._bind_observations(partial)
        self.free_index = torch.nonzero(~self.layout.fixed).flatten()
        self.fixed_vector = model.free.detach().clone()
        self.names = tuple(self.layout.names[int(i)] for i in self.free_index)
        changes = self.levels.changes
        self.varies = changes or any(covariate.varies for covariate in population.covariates.values())
        self.route = compiled.Route()
        self.covariate_hints = Hints(population)
        self.categories = Categories(population, model.known_levels)
        self.covariates_read = frozenset(dry_run(self))
        self.varies = changes or any(population.covariates[k].varies for k in self.covariates_read)

    def _bind_observations(self, partial: bool) -> None:
        population = self.population
        gone = left_out(list(self.endpoints.values()), self._masks(), population)
        if bool(gone.any()):
            self.observed = self.observed & ~gone
            self.mask, self.ragged = self.observed.to(torch.float64), True
            if self.endpoint_masks is not None:
                self.endpoint_masks = [mask & ~gone for mask in self.endpoint_masks]
        found = observations(self.endpoints, self._masks(), population)
        self.y, self.limits, self.gaussian = found.y, found.limits, found.gaussian
        self.log_jacobian = found.jacobian.sum(-1)
        self.lloq, self.uloq = population.lloq, population.uloq
        masks = dict(zip(self.endpoints, self._masks(), strict=True))
        censored = torch.zeros_like(self.observed) if self.limits is None else self.limits.censored
        self.residual_pairs = pairs_of(self.layout.correlations, masks, censored, population, partial)
        normal = [isinstance(e, Residual) and e.gaussian for e in self.endpoints.values()]
        self.measured, self.scaled = self.limits is None and all(normal), False

    @property
    def plain(self) -> bool:
        """Whether every observation is Gaussian about one row, measured, and independent of the others."""
        return self.measured and not self.scaled and not self.residual_pairs

    def where(self, bad: Tensor, most: int = 5) -> str:
        """Subjects and times of the observations flagged in `bad [subject, time]`, in words."""
        return places(self.population, bad, most)

    # -- sizes ----------------------------------------------------------------------------------------------------
    @property
    def P(self) -> int:
        """Number of free parameters."""
        return len(self.names)

    @property
    def n_observations(self) -> int:
        """Number of observations in the likelihood."""
        return int(self.observed.sum())

    @property
    def n_gaussian(self) -> int:
        """Number of observations that carry log(2 pi) in the likelihood and not in the objective function: those that
        are Gaussian and measured.
        """
        return int(self.gaussian.sum())

    def ofv(self, log_likelihood: float) -> float:
        """NONMEM's objective function, -2 log L - n log(2 pi)."""
        return -2.0 * log_likelihood - self.n_gaussian * LOG_2PI

    # -- parameters -----------------------------------------------------------------------------------------------
    @cached_property
    def start(self) -> Tensor:
        """The model's present values as a free vector `[P]`."""
        return self.fixed_vector[self.free_index]

    @property
    def weights(self) -> Tensor:
        """Weights of the page's networks `[W]`: no part of any free vector."""
        return self.model.weights

    def with_weights(self, weights: Tensor) -> Problem:
        """The same problem at other network weights, through which gradients pass."""
        other = copy.copy(self)
        other.model = self.model.with_weights(weights)
        other.structure = self.structure.on(other.model)
        return other

    def starting(self, free: Tensor) -> Problem:
        """The same problem started at `free [P]`."""
        other = copy.copy(self)
        other.__dict__.pop("start", None)
        other.fixed_vector = self.full(free.detach()).clone()
        other.model = self.model.with_free(other.fixed_vector)
        return other

    def full(self, free: Tensor) -> Tensor:
        """The vector of all parameters `[*b, all]` from the free ones `[*b, P]`."""
        if len(self.fixed_vector) == self.P:
            return free
        base = self.fixed_vector.expand(free.shape[:-1] + self.fixed_vector.shape)
        return base.index_copy(-1, self.free_index, free)

    def values(self, free: Tensor) -> Values:
        """Values of `free [*b, P]`: thetas and sigmas `[*b, 1, 1]`, Cholesky factor of Omega `[*b, q, q]`."""
        return self.spread(self.layout.values(self.full(free)))

    def spread(self, values: Values) -> Values:
        """The page's values with the factor of this problem's random effects, a block for each occasion."""
        if not self.levels.changes:
            return values
        return replace(values, factor=self.levels.spread(values.factor))

    def omega(self, free: Tensor) -> Tensor:
        """Covariance of eta `[*b, q, q]` at `free [*b, P]`."""
        return self.values(free).omega

    def page_omega(self, free: Tensor) -> Tensor:
        """The page's covariance of random effects at `free [*b, P]`, in the order of `Layout.effect_names`."""
        return self.layout.values(self.full(free)).omega

    @property
    def penalised(self) -> bool:
        """Whether a parameter that is not fixed has a prior."""
        return bool(self.layout.priors)

    def penalty(self, free: Tensor) -> Tensor:
        """-2 sum log prior of the parameters `[*b]` at `free [*b, P]`; 0 on a page without priors. Differentiable.

        See `priors`: of thetas on their natural scale, of standard deviations of random effects and residuals.
        """
        return penalty(self.layout, self.full(free))

    mu_pairs = cached_property(pairs.mu_pairs)

    # -- likelihood -----------------------------------------------------------------------------------------------
    def variance(self, f: Tensor, values: Values) -> tuple[Tensor, Tensor, Tensor]:
        """Residual variance R(f), dR/df and d2R/df2, broadcastable to `[*draw, subject, time]`; 1, 0, 0 at padding."""
        total: list[Tensor] | None = None
        for (name, endpoint), mask in zip(self.endpoints.items(), self._masks(), strict=True):
            sigma = {s: values.sigma[f"{name}.{s}"] for s in endpoint.start}
            parts = list(endpoint.variance(f, sigma))
            if total is None:
                total = parts
            else:
                total = [torch.where(mask, new, old) for new, old in zip(parts, total, strict=True)]
        assert total is not None
        if self.ragged:
            one, zero = torch.ones((), dtype=f.dtype), torch.zeros((), dtype=f.dtype)
            total = [
                torch.where(self.observed, x, fill) for x, fill in zip(total, (one, zero, zero), strict=True)
            ]
        return total[0], total[1], total[2]

    def log_likelihood(self, eta: Tensor, values: Values) -> Tensor:
        """log p(y | eta) `[*draw, subject]`, every constant included."""
        f = self.predict(eta, values).f
        if not self.plain:
            log_p: Tensor = likelihood.log_density(self, f, values)
            return log_p.sum(-1) + self.log_jacobian
        variance = self.variance(f, values)[0]
        terms = (self.y - f) ** 2 / variance + torch.log(variance) + LOG_2PI
        return -0.5 * (terms * self.mask).sum(-1) + self.log_jacobian

    def local(
        self, f: Tensor, values: Values, observed: bool = False, held: Tensor | None = None
    ) -> likelihood.Local:
        """The density of the observations about the rows of a prediction, with derivatives; for every kind of endpoint.

        Args:
            f: rows, `[*draw, subject, row]`.
            values: parameter values, broadcastable to the draws and subjects.
            observed: also the observed curvature.
            held: residual variances that do not move with the prediction, `[*draw, subject, time]`; None for R(f).

        Example:
            >>> at = problem.local(problem.predict(eta, values).f, values)  # doctest: +SKIP
            >>> problem.log_likelihood(eta, values) - problem.log_jacobian - at.log_p.sum(-1)  # doctest: +SKIP
            tensor([0., 0.])
        """
        return likelihood.local(self, f, values, observed, held)

    def log_prior(self, eta: Tensor, values: Values) -> Tensor:
        """log N(eta; 0, Omega) `[*draw, subject]`."""
        factor = values.factor.unsqueeze(-3) if values.factor.ndim > 2 else values.factor
        white: Tensor = torch.linalg.solve_triangular(factor, eta.unsqueeze(-1), upper=False).squeeze(-1)
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * (white**2).sum(-1) - log_det - 0.5 * self.q * LOG_2PI

    def log_joint(self, eta: Tensor, values: Values) -> Tensor:
        """log p(y | eta) + log p(eta) `[*draw, subject]`."""
        return self.log_likelihood(eta, values) + self.log_prior(eta, values)

    def check(self, values: Values) -> None:
        """Refuse values at which an observation has no density at eta = 0.

        Raises:
            DataError: naming the subjects and times, and the remedy.
        """
        rows = self.predict(torch.zeros(self.n_subjects, self.q, dtype=torch.float64), values).f
        f = rows[..., : self.y.shape[-1]]
        variance = self.variance(f, values)[0].expand(f.shape)
        if bool((bad := self.observed & ~torch.isfinite(f)).any()):
            lost = self.unsolved(torch.zeros(self.n_subjects, self.q, dtype=torch.float64), values)
            why = not_finite(self, bad.any(-1), lost)
            raise DataError(f"the prediction is not finite at the start, at {self.where(bad)}; {why}")
        for name, endpoint, mask in self.by_endpoint:
            if isinstance(endpoint, Discrete) and bool((bad := mask & ~endpoint.defined(f)).any()):
                raise DataError(
                    f"the prediction of {name} ({type(endpoint).__name__}) is none at {self.where(bad)}: a mean must be"
                    " positive, a probability between 0 and 1; check the formula and the starting values"
                )
        if bool((bad := self.observed & ~(variance > 0)).any()):
            raise DataError(
                f"the residual variance is zero at {self.where(bad)} (proportional error where the prediction is 0); "
                "add an additive part (nl.Combined), or leave these records out (MDV 1)"
            )

    def simulate_dv(self, f: Tensor, values: Values, generator: torch.Generator) -> Tensor:
        """Observations drawn around predictions `f [*draw, subject, row]`, on the scale of the table.

        They are those of complete data: limits of quantification are applied by `censored`, and values under zero are
        as frequent as the residual error makes them.
        """
        sd = self.variance(f[..., : self.y.shape[-1]], values)[0].sqrt()
        if self.plain:
            return self.natural(f + sd * torch.randn(f.shape, generator=generator, dtype=f.dtype))
        return self.natural(drawn.observations(self, f, sd, values, generator), drawn=True)

    def natural(self, y: Tensor, values: Values | None = None, drawn: bool = False) -> Tensor:
        """From the scale of the residual error to that of the table `[*draw, subject, time]`; padded entries 0.

        Of rows it takes the predictions. A prediction of a count is its mean, of an event its probability, of ordered
        categories the expected category.

        Args:
            y: rows of predictions, or observations, `[*draw, subject, row or time]`.
            values: where gaps of ordered categories are taken from; the values that the problem starts from when not
                given.
            drawn: these are observations, so that counts and categories are what they are.
        """
        y = y[..., : self.y.shape[-1]]
        out = y
        for name, endpoint, mask in self.by_endpoint:
            if not isinstance(endpoint, Discrete):
                out = torch.where(mask, endpoint.natural(y), out)
            elif not drawn:
                given = self.layout.values(self.fixed_vector) if values is None else values
                sigma = {s: given.sigma[f"{name}.{s}"] for s in endpoint.start}
                out = torch.where(mask, endpoint.mean(y, sigma), out)
        return torch.where(self.observed, out, 0.0)

    def censored(self, dv: Tensor) -> tuple[Tensor, Tensor]:
        """Observations of the table as they would have been recorded under the limits of quantification of the records.

        Args:
            dv: `[*draw, subject, time]`.

        Returns:
            dv with the limit in place of what lies beyond it, and CENS: 1 below the lower, -1 above the upper limit, 0
            between; int64. Counts and categories have no limits.
        """
        residual = torch.zeros_like(self.observed)
        for _, endpoint, mask in self.by_endpoint:
            if isinstance(endpoint, Residual):
                residual = residual | mask
        below, above = residual & (dv < self.lloq), residual & (dv > self.uloq)
        cens = below.to(torch.int64) - above.to(torch.int64)
        return torch.where(below, self.lloq, torch.where(above, self.uloq, dv)), cens

    # -- subsets --------------------------------------------------------------------------------------------------
    def select(self, index: Tensor) -> Problem:
        """The problem of the subjects in `index` (repeats allowed), sharing everything else.

        Its `population` is that of all subjects; tensors are those of the chosen ones.
        """
        other = copy.copy(self)
        other.n_subjects = len(index)
        for name in ("time", "observed", "mask", "y", "log_jacobian", "gaussian", "lloq", "uloq"):
            setattr(other, name, getattr(self, name)[index])
        other.schedule = self.schedule.select(index)
        other.levels = self.levels.select(index)
        if self.endpoint_masks is not None:
            other.endpoint_masks = [m[index] for m in self.endpoint_masks]
        other.limits = None if self.limits is None else self.limits.select(index)
        other.residual_pairs = [pairs.select(index) for pairs in self.residual_pairs]
        other.cov_observation = {k: v[index] for k, v in self.cov_observation.items()}
        if self.varies:
            other.cov_segment = {k: v[index] for k, v in self.cov_segment.items()}
            other.cov_dose = {k: v[index] for k, v in self.cov_dose.items()}
        return other
