"""The binding of a model to a population, and the one quantity everything is written against:

    log_joint(eta) = log p(y | eta, x; theta, sigma) + log p(eta | Omega)            one number a subject

Methods, conditional modes, checks and the simulator receive a `Problem` and nothing else.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..data.population import Population
from ..errors import DataError
from ..maths.taylor import Taylor
from ..structure.schedule import Schedule
from . import compiled, pairs
from .binding import Hints, bind_endpoints, not_finite
from .dryrun import dry_run
from .named import Named, tensor_of
from .page import Model
from .parameters import Values
from .priors import penalty

LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Prediction:
    """Predictions on the scale of the residual error, padded entries 0.

    Attributes:
        f: `[*draw, subject, time]`.
        jac: `[direction, *draw, subject, time]`, or None.
        hess: `[direction, direction, *draw, subject, time]`, or None.
    """

    f: Tensor
    jac: Tensor | None = None
    hess: Tensor | None = None


@dataclass(frozen=True)
class Directions:
    """Directions other than the unit vectors of eta, in which to differentiate a prediction.

    Attributes:
        eta: `[direction, *draw, subject, q]`, how eta moves.
        theta: by name `[direction, *draw, subject or 1, 1]`, how natural thetas move (absent: not at all).
    """

    eta: Tensor
    theta: Mapping[str, Tensor]


class Problem:
    """A model bound to a population.

    Args:
        model: an instance of a page.
        population: the data.

    Attributes:
        y, mask: observations on the scale of the residual error and 1.0 where there is one, `[subject, time]`.
        schedule: the dosing schedule of every subject.
        names: names of the P free (not fixed) parameters, in the order of every free vector.

    Raises:
        ModelError: when the page fails its dry run on these data.
        DataError: when the data lack a covariate, hold an endpoint or compartment that the page does not have, or hold
            observations that the endpoint cannot take.
    """

    def __init__(self, model: Model, population: Population) -> None:
        self.model, self.population, self.layout = model, population, model.layout
        self.structure, self.eta_names = model.structure.afresh(), model.eta_names
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
        self.endpoint_masks = bind_endpoints(self.endpoints, population)
        self.cov_observation = {k: c.observation for k, c in population.covariates.items()}
        self.cov_segment = {k: c.segment for k, c in population.covariates.items()}
        self._bind_observations()
        self.free_index = torch.nonzero(~self.layout.fixed).flatten()
        self.fixed_vector = model.free.detach().clone()
        self.names = tuple(self.layout.names[int(i)] for i in self.free_index)
        self.varies = any(covariate.varies for covariate in population.covariates.values())
        self.route = compiled.Route()
        self.covariate_hints = Hints(population)
        used = dry_run(self)
        self.varies = any(population.covariates[k].varies for k in used)

    def _bind_observations(self) -> None:
        y = self.population.dv
        jacobian = torch.zeros_like(y)
        for endpoint, mask in zip(self.endpoints.values(), self._masks(), strict=True):
            if endpoint.positive and getattr(endpoint, "dv", "") == "natural":
                bad = mask & (y <= 0)
                if bool(bad.any()):
                    raise DataError(
                        f"a log-normal endpoint needs positive observations, got DV <= 0 at {self.where(bad)}; "
                        'leave these records out (MDV 1), use another residual error, or dv="log" for a log table'
                    )
            safe = torch.where(mask, y, 1.0)
            y = torch.where(mask, endpoint.link_dv(safe), y)
            jacobian = torch.where(mask, endpoint.log_jacobian(safe), jacobian)
        self.y = torch.where(self.observed, y, 0.0)
        self.log_jacobian = torch.where(self.observed, jacobian, 0.0).sum(-1)

    def _masks(self) -> list[Tensor]:
        """One boolean mask `[subject, time]` an endpoint."""
        return [self.observed] if self.endpoint_masks is None else self.endpoint_masks

    def where(self, bad: Tensor, most: int = 5) -> str:
        """Subjects and times of the observations flagged in `bad [subject, time]`, in words."""
        places = bad.nonzero().tolist()
        words = [f"id {self.population.ids[n]} time {float(self.time[n, t]):g}" for n, t in places[:most]]
        return ", ".join(words) + (f" and {len(places) - most} more" if len(places) > most else "")

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
        """Number of observations that carry log(2 pi) in the likelihood and not in the objective function."""
        return self.n_observations

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
        return self.layout.values(self.full(free))

    def omega(self, free: Tensor) -> Tensor:
        """Covariance of eta `[*b, q, q]` at `free [*b, P]`."""
        return self.values(free).omega

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

    # -- predictions ----------------------------------------------------------------------------------------------
    def predict(
        self, eta: Tensor, values: Values, order: int = 0, directions: Directions | None = None
    ) -> Prediction:
        """Predictions at the observation times, with derivatives.

        Args:
            eta: random effects `[*draw, subject, q]`.
            values: parameter values, broadcastable to the draws and subjects.
            order: 0 value, 1 and Jacobian, 2 and Hessian in eta.
            directions: differentiate along these (order 1 or 2) instead of along each eta.
        """
        if self.route.programs is not None:
            quick = compiled.predict(self, eta, values, order, directions)
            if quick is not None:
                return Prediction(*quick)
        theta: Mapping[str, Any] = values.theta
        if order == 0:
            etas: list[Any] = [eta[..., k : k + 1] for k in range(self.q)]
        elif directions is None:
            etas = Taylor.seed(eta, order)
        else:
            etas = [
                Taylor(eta[..., k : k + 1], directions.eta[..., k : k + 1], None, order)
                for k in range(self.q)
            ]
            theta = {
                k: Taylor(v, directions.theta[k], None, order) if k in directions.theta else v
                for k, v in theta.items()
            }
        g = self.evaluate(theta, dict(zip(self.eta_names, etas, strict=True)))
        shape = eta.shape[:-1] + self.time.shape[-1:]
        if isinstance(g, Taylor):
            _, jac, hess = Taylor(g.value.expand(shape), g.jac, g.hess, g.order).full()
            if order == 2 and hess is None:
                hess = g.dense_hess().expand((self.q, self.q) + shape)
            return Prediction(g.value.expand(shape), jac, hess)
        f = g.expand(shape)
        d = self.q if directions is None else directions.eta.shape[0]
        zero = torch.zeros((), dtype=f.dtype, device=f.device)
        return Prediction(
            f,
            zero.expand((d,) + shape) if order else None,
            zero.expand((d, d) + shape) if order == 2 else None,
        )

    def hasten(self) -> Problem:
        """This problem, its predictions from now on by machine code where its page allows; it takes a moment."""
        self.route.prepare(self)
        return self

    def uncompiled(self) -> Problem:
        """The same problem, its predictions in Taylor arithmetic."""
        other = copy.copy(self)
        other.route = compiled.Route("asked for")
        return other

    def evaluate(self, theta: Mapping[str, Any], eta: Mapping[str, Any], used: Any = None) -> Any:
        """The page's formulas once through, on tensors or Taylor numbers alike, linked and masked.

        Returns:
            Predictions on the scale of the residual error, broadcastable to `[*draw, subject, time]`.
        """
        p, a = self.amounts(theta, eta)
        out = self.model.observe(self.time, Named("a", a), Named("p", p))
        g: Any = None
        for (name, endpoint), mask in zip(self.endpoints.items(), self._masks(), strict=True):
            f = out[name]
            if self.ragged or self.endpoint_masks is not None:
                f = torch.where(
                    mask, f, torch.ones((), dtype=self.y.dtype) if endpoint.positive else 0.0 * self.y[0, 0]
                )
            f = endpoint.link(f)
            g = f if g is None else g + f
        return g

    def amounts(self, theta: Mapping[str, Any], eta: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
        """Individual parameters as `observe` reads them, and the amounts in the compartments."""
        theta_, eta_ = Named("theta", theta), Named("eta", eta)
        p = self.model.individual(theta_, eta_, self._cov(self.cov_observation))
        p_segment = self.model.individual(theta_, eta_, self._cov(self.cov_segment)) if self.varies else p
        needed = {k: tensor_of(p_segment[k]) for k in self.structure.parameters}
        return p, self.structure.solve(Named("p", needed), self.schedule)

    def unsolved(self, eta: Tensor, values: Values) -> Tensor:
        """Whether the differential equations of the page cannot be solved, `[*draw, subject]` bool."""
        if not self.model.stepped:
            return torch.zeros(eta.shape[:-1], dtype=torch.bool)
        etas = {name: eta[..., k : k + 1] for k, name in enumerate(self.eta_names)}
        _, a = self.amounts(values.theta, etas)
        nothing = torch.zeros(eta.shape[:-1], dtype=torch.int64)
        return (nothing + getattr(a, "status", 0)) != 0

    def _cov(self, values: Mapping[str, Tensor]) -> Named:
        return Named("cov", values, self.covariate_hints)

    def individual(self, eta: Tensor, values: Values) -> dict[str, Tensor]:
        """Individual parameters by name, each `[*draw, subject, 1 or time]`."""
        etas = {name: eta[..., k : k + 1] for k, name in enumerate(self.eta_names)}
        p = self.model.individual(
            Named("theta", values.theta), Named("eta", etas), self._cov(self.cov_observation)
        )
        shape = eta.shape[:-1]
        tensors = {k: tensor_of(v) for k, v in p.items()}
        return {k: v.expand(shape + v.shape[-1:]) for k, v in tensors.items()}

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
        variance = self.variance(f, values)[0]
        terms = (self.y - f) ** 2 / variance + torch.log(variance) + LOG_2PI
        return -0.5 * (terms * self.mask).sum(-1) + self.log_jacobian

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
        f = self.predict(torch.zeros(self.n_subjects, self.q, dtype=torch.float64), values).f
        variance = self.variance(f, values)[0].expand(f.shape)
        if bool((bad := self.observed & ~torch.isfinite(f)).any()):
            why = not_finite(self.unsolved(torch.zeros(self.n_subjects, self.q, dtype=torch.float64), values))
            raise DataError(f"the prediction is not finite at the start, at {self.where(bad)}; {why}")
        if bool((bad := self.observed & ~(variance > 0)).any()):
            raise DataError(
                f"the residual variance is zero at {self.where(bad)} (proportional error where the prediction is 0); "
                "add an additive part (nl.Combined), or leave these records out (MDV 1)"
            )

    def simulate_dv(self, f: Tensor, values: Values, generator: torch.Generator) -> Tensor:
        """Observations drawn around predictions `f [*draw, subject, time]`, on the scale of the table."""
        sd = self.variance(f, values)[0].sqrt()
        y = f + sd * torch.randn(f.shape, generator=generator, dtype=f.dtype)
        return self.natural(y)

    def natural(self, y: Tensor) -> Tensor:
        """From the scale of the residual error to that of the table; padded entries 0."""
        out = y
        for endpoint, mask in zip(self.endpoints.values(), self._masks(), strict=True):
            out = torch.where(mask, endpoint.natural(y), out)
        return torch.where(self.observed, out, 0.0)

    # -- subsets --------------------------------------------------------------------------------------------------
    def select(self, index: Tensor) -> Problem:
        """The problem of the subjects in `index` (repeats allowed), sharing everything else.

        Its `population` is that of all subjects; tensors are those of the chosen ones.
        """
        other = copy.copy(self)
        other.n_subjects = len(index)
        for name in ("time", "observed", "mask", "y", "log_jacobian"):
            setattr(other, name, getattr(self, name)[index])
        other.schedule = self.schedule.select(index)
        if self.endpoint_masks is not None:
            other.endpoint_masks = [m[index] for m in self.endpoint_masks]
        other.cov_observation = {k: v[index] for k, v in self.cov_observation.items()}
        if self.varies:
            other.cov_segment = {k: v[index] for k, v in self.cov_segment.items()}
        return other
