"""Scenarios bound to a model: the table the package reads, what it predicts, and what the oracle says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scenarios import oracle, walking
from scenarios.models import MODELS, ByHand, Kinetics, doses, page, random
from scenarios.table import SCENARIOS, WEIGHTS, A

import nlmegen as nl
from nlmegen.data.population import Population
from nlmegen.model.problem import Prediction, Problem

Array = NDArray[Any]

ROUTES: dict[str, nl.Solver | None] = {
    "closed": None,
    "expm": nl.Solver(route="expm"),
    "compiled explicit": nl.Solver(route="compiled", method="explicit"),
    "compiled stiff": nl.Solver(route="compiled", method="stiff"),
    "torch explicit": nl.Solver(route="torch", method="explicit"),
    "torch stiff": nl.Solver(route="torch", method="stiff"),
}
VALUE, FIRST, SECOND = 1e-6, 1e-5, 1e-5
"""Errors allowed: of values over the subject's peak; of derivatives in the random effects over the largest of that
derivative's own course, or the peak if that is larger."""

WEIGHED = ("weight", "both", "factor", "late")
"""Variants whose weights change from record to record."""


def scenarios(variant: str, model: Kinetics) -> list[str]:
    """The scenarios that a variant of a model can mean anything in."""
    return [
        s.name
        for s in SCENARIOS.values()
        if (doses(variant) or not s.modelled)
        and (s.weight or variant not in WEIGHED)
        and (not s.off or model.off)
        and not s.refused
    ]


@dataclass(frozen=True)
class Trial:
    """Some scenarios, one subject each, for a variant of a model.

    Attributes:
        model, variant: which page.
        names: of the scenarios.
        rule: how covariates hold between records.
        shift: added to all times.
    """

    model: str
    variant: str
    names: tuple[str, ...]
    rule: str = "nonmem"
    shift: float = 0.0

    @property
    def kinetics(self) -> Kinetics:
        return MODELS[self.model]

    @cached_property
    def equations(self) -> ByHand:
        return ByHand(self.kinetics, self.variant)

    def records(self, name: str) -> list[dict[str, Any]]:
        """A scenario's records with compartments by number and weights."""
        varies = self.variant in WEIGHED
        out = []
        for k, r in enumerate(SCENARIOS[name].records):
            cmt = r["cmt"] if isinstance(r["cmt"], int) else 1 if r["cmt"] == A else self.kinetics.second
            wt = WEIGHTS[k % len(WEIGHTS)] if varies else 70.0
            out.append(r | dict(cmt=cmt, cov_wt=wt, time=r["time"] + self.shift))
        return out

    @cached_property
    def endpoints(self) -> int:
        return len(page(self.model, "plain", False).layout.endpoints)

    @cached_property
    def table(self) -> pd.DataFrame:
        rows: list[dict[str, Any]] = []
        for n, name in enumerate(self.names, 1):
            for r in self.records(name):
                row = dict(id=n, dv=1.0 if r["evid"] == 0 else np.nan, mdv=int(r["evid"] != 0)) | r
                seen = range(1, self.endpoints + 1) if r["evid"] == 0 else (1,)
                rows += [row | dict(dvid=k) for k in seen]
        table = pd.DataFrame(rows)
        return table if self.variant in WEIGHED else table.drop(columns="cov_wt")

    @cached_property
    def population(self) -> Population:
        return Population.from_table(self.table, self.rule, warn=False)

    @cached_property
    def eta(self) -> Array:
        """Random effects `[subject, q]`, small, all different."""
        effects = random(self.kinetics, self.variant)
        n = np.array([list(SCENARIOS).index(name) for name in self.names])
        return 0.05 * np.sin(1.3 * n[:, None] + 2.1 * np.arange(len(effects)) + 0.4)

    @cached_property
    def directions(self) -> Array:
        """Each random effect, and two mixtures of all: a quadratic form that agrees on these agrees, bar accident."""
        q = self.eta.shape[1]
        mixed = np.cos(np.arange(2)[:, None] * 0.9 + np.arange(q) * 1.7 + 0.3)
        return np.concatenate((np.eye(q), mixed / np.linalg.norm(mixed, axis=1, keepdims=True)))

    @cached_property
    def expected(self) -> list[tuple[Array, Array, Array]]:
        """By subject: value `[observation]`, derivatives `[direction, observation]`; endpoints side by side."""
        moves = walking.columns(self.directions)
        subjects = [
            oracle.Subject(
                self.equations, self.records(name), self.equations.parameters(eta, moves), self.rule
            )
            for name, eta in zip(self.names, self.eta, strict=True)
        ]
        seen = walking.walk(subjects, exact=self.kinetics.linear)
        return [walking.derivatives(np.concatenate(s)) for s in seen]

    def page(self, route: str) -> nl.Model:
        solver = ROUTES[route]
        model = page(self.model, self.variant, solver is None)()
        return model if solver is None else model.with_solver(solver)

    def problem(self, route: str) -> Problem:
        return Problem(self.page(route), self.population)

    def predict(self, route: str, order: int = 2) -> Prediction:
        problem = self.problem(route)
        return problem.predict(torch.from_numpy(self.eta), problem.model.values, order=order)

    def errors(self, got: Prediction) -> dict[str, tuple[float, float, float]]:
        """By scenario: largest errors of value, first and second derivatives, relative to what is said above."""
        assert got.jac is not None
        assert got.hess is not None
        directions = torch.from_numpy(self.directions)
        first = torch.einsum("dk,knt->dnt", directions, got.jac)
        second = torch.einsum("dj,dk,jknt->dnt", directions, directions, got.hess)
        found = {}
        for n, (name, (value, d1, d2)) in enumerate(zip(self.names, self.expected, strict=True)):
            count = value.shape[-1]
            peak = self.apart(value).max(0)
            ratios = []
            for x, y, lead in ((got.f[n], value, 0), (first[:, n], d1, 1), (second[:, n], d2, 1)):
                wrong = self.apart(x[..., :count].detach().numpy() - y)
                scale = peak if not lead else np.maximum(peak, self.apart(y).max(-2))
                ratio = wrong / np.where(scale > 0, scale, 1.0)[..., None, :]
                ratios.append(float(np.where(np.isnan(ratio), np.inf, ratio).max(initial=0.0)))
            found[name] = (ratios[0], ratios[1], ratios[2])
        return found

    def apart(self, x: Array) -> Array:
        """Sizes `[..., observation, endpoint]`."""
        return np.abs(x).reshape(*x.shape[:-1], -1, self.endpoints)


@cache
def trial(model: str, variant: str, rule: str = "nonmem") -> Trial:
    """All scenarios that a variant of a model can be tried with."""
    return Trial(model, variant, tuple(scenarios(variant, MODELS[model])), rule)


def worst(
    errors: dict[str, tuple[float, float, float]], limits: Sequence[float] = (VALUE, FIRST, SECOND)
) -> str:
    """The scenarios that miss, in words; "" when none does."""
    lines = [
        f"{name}: value {v:.1e}, first {f:.1e}, second {s:.1e}"
        for name, (v, f, s) in errors.items()
        if not (v <= limits[0] and f <= limits[1] and s <= limits[2])
    ]
    return "\n".join(lines)
