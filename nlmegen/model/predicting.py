"""Predictions of a page on data, with their derivatives, and the individual parameters that they come from."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import torch
from torch import Tensor

from ..maths.taylor import Taylor
from . import compiled
from .endpoints import Endpoint, Predicted
from .named import Named, tensor_of

if TYPE_CHECKING:
    from ..structure.closed import Structure
    from ..structure.schedule import Schedule
    from .categories import Categories
    from .levels import Levels
    from .page import Model
    from .parameters import Values
    from .problem import Problem


@dataclass(frozen=True)
class Prediction:
    """Predictions on the scale of the residual error, padded entries 0.

    A row is a time; where a page gives residuals a size of their own (`Predicted`), the logarithms of that size at all
    times follow as further rows.

    Attributes:
        f: `[*draw, subject, row]`.
        jac: `[direction, *draw, subject, row]`, or None.
        hess: `[direction, direction, *draw, subject, row]`, or None.
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


class Predicting:
    """The part of a `Problem` that evaluates the page."""

    model: Model
    structure: Structure
    schedule: Schedule
    levels: Levels
    categories: Categories
    endpoints: dict[str, Endpoint]
    endpoint_masks: list[Tensor] | None
    eta_names: tuple[str, ...]
    q: int
    y: Tensor
    time: Tensor
    observed: Tensor
    ragged: bool
    varies: bool
    scaled: bool
    route: compiled.Route
    cov_observation: dict[str, Tensor]
    cov_segment: dict[str, Tensor]
    cov_dose: dict[str, Tensor]
    covariate_hints: Mapping[str, str]

    @property
    def by_endpoint(self) -> list[tuple[str, Endpoint, Tensor]]:
        """Name, declaration and mask `[subject, time]` of every endpoint."""
        return [(k, e, m) for (k, e), m in zip(self.endpoints.items(), self._masks(), strict=True)]

    @property
    def rows(self) -> int:
        """Number of rows of a prediction."""
        return self.time.shape[-1] * (2 if self.scaled else 1)

    @property
    def row_mask(self) -> Tensor:
        """The rows of observations that count, `[subject, row]` bool."""
        return torch.cat((self.observed, self.observed), -1) if self.scaled else self.observed

    def _masks(self) -> list[Tensor]:
        """One boolean mask `[subject, time]` an endpoint."""
        return [self.observed] if self.endpoint_masks is None else self.endpoint_masks

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
            quick = compiled.predict(cast("Problem", self), eta, values, order, directions)
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
        shape = eta.shape[:-1] + (self.rows,)
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

    def hasten(self) -> Self:
        """This problem, its predictions from now on by machine code where its page allows; it takes a moment."""
        self.route.prepare(cast("Problem", self))
        return self

    def uncompiled(self) -> Self:
        """The same problem, its predictions in Taylor arithmetic."""
        other = copy.copy(self)
        other.route = compiled.Route("asked for")
        return other

    def evaluate(self, theta: Mapping[str, Any], eta: Mapping[str, Any], used: Any = None) -> Any:
        """The page's formulas once through, on tensors or Taylor numbers alike, linked and masked.

        Returns:
            Predictions on the scale of the residual error, broadcastable to `[*draw, subject, row]`.
        """
        p, a = self.amounts(theta, eta)
        out = self.model.observe(self.time, Named("a", a), Named("p", p))
        g: Any = None
        for (name, endpoint), mask in zip(self.endpoints.items(), self._masks(), strict=True):
            f = out[name].f if isinstance(out[name], Predicted) else out[name]
            if self.ragged or self.endpoint_masks is not None:
                f = torch.where(
                    mask, f, torch.ones((), dtype=self.y.dtype) if endpoint.positive else 0.0 * self.y[0, 0]
                )
            f = endpoint.link(f)
            g = f if g is None else g + f
        return self._with_scales(g, out) if self.scaled else g

    def _with_scales(self, g: Any, out: Mapping[str, Any]) -> Any:
        """Predictions followed by the logarithms of the size of residuals, where they have one."""
        h: Any = torch.zeros_like(self.y)
        for name, _, mask in self.by_endpoint:
            if isinstance(out[name], Predicted):
                h = torch.where(mask, torch.log(tensor_of(out[name].scale)), h)
        g, h = torch.where(self.observed, g, 0.0 * h), torch.where(self.observed, h, 0.0 * g)
        return torch.cat((g, h), -1)

    def amounts(self, theta: Mapping[str, Any], eta: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
        """Individual parameters as `observe` reads them, and the amounts in the compartments."""
        p = self.parameters(theta, eta)
        p_segment = self.parameters(theta, eta, where="segment") if self.varies else p
        needed = {k: tensor_of(p_segment[k]) for k in self.structure.parameters}
        given = None
        if self.varies and (self.structure.by_record or not self.schedule.plain):
            # steady states, the start and most of what is said of doses go by their own record
            p_dose = self.parameters(theta, eta, where="dose")
            given = Named("p", {k: tensor_of(p_dose[k]) for k in self.structure.parameters})
        return p, self.structure.solve(Named("p", needed), self.schedule, given)

    def parameters(
        self,
        theta: Mapping[str, Any],
        effects: Mapping[str, Any],
        where: Literal["observation", "segment", "dose"] = "observation",
        used: Mapping[str, set[str]] | None = None,
    ) -> dict[str, Any]:
        """Individual parameters by name, at the observations, or in the segments between events.

        Args:
            theta: natural values by name; tensors, Taylor numbers or symbols.
            effects: random effects by name, in the words of `eta_names`.
            where: as they hold at observations, in the segments between events, or for the dose of an event.
            used: sets that collect the names read, by "theta", "eta", "kappa" and "cov".
        """
        collect = {} if used is None else used
        held = {"observation": self.cov_observation, "segment": self.cov_segment, "dose": self.cov_dose}[
            where
        ]
        covariates = self.categories.offered(held, trial=used is not None)
        return self.model.parameters_of(
            Named("theta", theta, used=collect.get("theta")),
            Named("eta", self.levels.eta(effects), used=collect.get("eta")),
            Named("cov", covariates, self.covariate_hints, collect.get("cov")),
            Named("kappa", self.levels.kappa(effects, where), used=collect.get("kappa")),
        )

    def unsolved(self, eta: Tensor, values: Values) -> Tensor:
        """Whether the differential equations of the page cannot be solved, `[*draw, subject]` bool."""
        if not self.model.stepped:
            return torch.zeros(eta.shape[:-1], dtype=torch.bool)
        etas = {name: eta[..., k : k + 1] for k, name in enumerate(self.eta_names)}
        _, a = self.amounts(values.theta, etas)
        nothing = torch.zeros(eta.shape[:-1], dtype=torch.int64)
        return (nothing + getattr(a, "status", 0)) != 0

    def individual(self, eta: Tensor, values: Values) -> dict[str, Tensor]:
        """Individual parameters by name, each `[*draw, subject, 1 or time]`."""
        etas = {name: eta[..., k : k + 1] for k, name in enumerate(self.eta_names)}
        p = self.parameters(values.theta, etas)
        shape = eta.shape[:-1]
        tensors = {k: tensor_of(v) for k, v in p.items()}
        return {k: v.expand(shape + v.shape[-1:]) for k, v in tensors.items()}
