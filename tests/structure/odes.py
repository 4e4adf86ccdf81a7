"""The table of ODE problems: a page, its equations by hand in numpy, and predictions with derivatives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from structure import ode_effects as effects
from structure import ode_linear as linear
from structure import ode_saturable as saturable
from structure import ode_targets as targets
from structure.doses import PATTERNS, population
from structure.references import Array, Reference, derivatives, march
from torch import Tensor

import nlmegen as nl
from nlmegen.model.problem import Problem

Equations = Callable[[Any, Sequence[Any], Any], Sequence[Any]]
STIFF = ("irregular boluses", "overlapping infusions", "resets")


@dataclass(frozen=True)
class Ode:
    """A problem of the table.

    Every parameter x of a page is tvx exp(eta.x), or tvx where there is no such random effect.

    Attributes:
        name: what it is called in the tests' names.
        page: the page, as a user writes it.
        compartments: in the order of `dynamics`.
        equations: `dynamics` once more, on numpy arrays, from the time, amounts and parameters to a list.
        seen: `observe` once more, to a list with one entry an endpoint.
        start: `initial` once more; zeros by default.
        main, other: where doses go.
        dose, hour: units of the dosing patterns.
        linear: whether the matrix exponential applies.
        stiff: whether explicit steps are hopeless.
        closed: the same page in closed form, if it has one.
        patterns: the dosing patterns that it is tried with.
        radius: of the circle, in the logarithms of parameters, on which derivatives are taken.
    """

    name: str
    page: type[nl.Model]
    compartments: tuple[str, ...]
    equations: Equations
    seen: Equations
    start: Callable[[Any], Sequence[Any]] | None = None
    main: str = "central"
    other: str = "central"
    dose: float = 100.0
    hour: float = 1.0
    linear: bool = False
    stiff: bool = False
    closed: type[nl.Model] | None = None
    patterns: tuple[str, ...] = field(default=tuple(PATTERNS))
    radius: float = 0.01

    def __str__(self) -> str:
        return self.name

    def rates(self, t: Any, a: Sequence[Array], p: Any) -> Sequence[Any]:
        """See `references.System`."""
        return self.equations(t, a, p)

    def initial(self, p: Any) -> Sequence[Any]:
        """See `references.System`."""
        return [0.0] * len(self.compartments) if self.start is None else self.start(p)

    def observe(self, t: Any, a: Sequence[Array], p: Any) -> Sequence[Any]:
        """See `references.System`."""
        return self.seen(t, a, p)

    def plan(self, pattern: str) -> list[tuple[float, str, float, str]]:
        """What happens to a subject, in this problem's units and compartments."""
        size = {"bolus": self.dose, "rate": self.dose / self.hour}
        into = {"main": self.main, "other": self.other, "": ""}
        return [
            (t * self.hour, what, amount * size.get(what, 0.0), into[to])
            for t, what, amount, to in PATTERNS[pattern].points
        ]


def _first(volume: str, compartment: int) -> Equations:
    """A concentration."""
    return lambda t, a, p: [a[compartment] / getattr(p, volume)]


def _amount(compartment: int) -> Equations:
    return lambda t, a, p: [a[compartment]]


_ORAL = dict(main="depot", other="central")
_TURNOVER: dict[str, Any] = dict(
    compartments=("central", "response"), seen=_amount(1), start=effects.baseline, other="response"
)
_TARGET: dict[str, Any] = dict(
    compartments=("drug", "target", "bound"),
    equations=targets.binding,
    seen=lambda t, a, p: [a[0] + a[2], a[1]],
    start=lambda p: [0.0, p.ksyn / p.kdeg, 0.0],
    main="drug",
    other="bound",
    dose=30.0,
)

PROBLEMS: dict[str, Ode] = {
    problem.name: problem
    for problem in (
        Ode(
            "one-compartment oral",
            linear.OneOral,
            ("depot", "central"),
            linear.one_oral,
            _first("v", 1),
            **_ORAL,
            linear=True,
            closed=linear.OneOralClosed,
        ),
        Ode(
            "two-compartment oral",
            linear.TwoOral,
            ("depot", "central", "peripheral"),
            linear.two_oral,
            _first("v", 1),
            **_ORAL,
            linear=True,
            closed=linear.TwoOralClosed,
        ),
        Ode(
            "three-compartment",
            linear.ThreeInfusion,
            ("central", "peripheral", "peripheral2"),
            linear.three_infusion,
            _first("v", 0),
            other="peripheral2",
            linear=True,
        ),
        Ode(
            "transit chain",
            linear.Transit,
            ("dose", "transit1", "transit2", "transit3", "central"),
            linear.transit,
            _first("v", 4),
            main="dose",
            linear=True,
        ),
        Ode(
            "enterohepatic",
            linear.Enterohepatic,
            ("gut", "central", "bile"),
            linear.enterohepatic,
            _first("v", 1),
            main="gut",
            linear=True,
        ),
        Ode(
            "chain of six",
            linear.Chain,
            ("a1", "a2", "a3", "a4", "a5", "a6"),
            linear.chain,
            lambda t, a, p: [(a[2] + a[5]) / p.v],
            main="a1",
            other="a4",
            linear=True,
            radius=0.004,
        ),
        Ode(
            "physiological",
            linear.Physiological,
            ("gut", "liver", "kidney", "muscle", "fat", "vein", "lung", "artery"),
            linear.physiological,
            lambda t, a, p: [a[5] / 6.0],
            main="gut",
            other="vein",
            linear=True,
            hour=0.5,
            radius=0.02,
        ),
        Ode(
            "Michaelis-Menten",
            saturable.MichaelisMenten,
            ("central",),
            saturable.michaelis_menten,
            _first("v", 0),
        ),
        Ode(
            "Michaelis-Menten oral",
            saturable.MichaelisMentenOral,
            ("depot", "central"),
            saturable.michaelis_menten_oral,
            _first("v", 1),
            **_ORAL,
        ),
        Ode(
            "parallel elimination",
            saturable.Parallel,
            ("central", "peripheral"),
            saturable.parallel,
            _first("v", 0),
            other="peripheral",
        ),
        Ode(
            "gamma input",
            saturable.GammaInput,
            ("depot", "central"),
            saturable.gamma_input,
            _first("v", 1),
            **_ORAL,
        ),
        Ode(
            "parent and metabolite",
            saturable.ParentMetabolite,
            ("parent", "metabolite"),
            saturable.parent_metabolite,
            lambda t, a, p: [a[0] / p.v, a[1] / p.vm],
            main="parent",
            other="metabolite",
        ),
        Ode(
            "autoinduction",
            saturable.Autoinduction,
            ("central", "enzyme"),
            saturable.autoinduction,
            _first("v", 0),
            start=lambda p: [0.0, 1.0],
        ),
        Ode("turnover I", effects.InhibitedProduction, equations=effects.inhibited_production, **_TURNOVER),
        Ode("turnover II", effects.InhibitedLoss, equations=effects.inhibited_loss, **_TURNOVER),
        Ode(
            "turnover III", effects.StimulatedProduction, equations=effects.stimulated_production, **_TURNOVER
        ),
        Ode("turnover IV", effects.StimulatedLoss, equations=effects.stimulated_loss, **_TURNOVER),
        Ode("sigmoid turnover", effects.SigmoidTurnover, equations=effects.sigmoid_turnover, **_TURNOVER),
        Ode("circadian", effects.Circadian, equations=effects.circadian, **_TURNOVER),
        Ode(
            "effect site",
            effects.EffectSite,
            ("central", "site"),
            effects.effect_site,
            effects.effect_seen,
            linear=True,
        ),
        Ode(
            "tumour growth",
            effects.TumourGrowth,
            ("central", "growing", "damaged1", "damaged2", "damaged3"),
            effects.tumour_growth,
            lambda t, a, p: [a[1] + a[2] + a[3] + a[4]],
            start=lambda p: [0.0, p.w0, 0.0, 0.0, 0.0],
            radius=0.001,  # poles: the power of 20 is -1 not far from real parameters
        ),
        Ode(
            "quasi-steady target",
            targets.QuasiSteady,
            ("central", "target"),
            targets.quasi_steady,
            lambda t, a, p: [a[0] / p.v, a[1]],
            start=lambda p: [0.0, p.ksyn / p.kdeg],
        ),
        Ode("target binding", targets.Binding, **_TARGET),
        Ode("stiff target binding", targets.StiffBinding, stiff=True, patterns=STIFF, **_TARGET),
    )
}


@dataclass(frozen=True)
class Trial:
    """A problem bound to data: one subject a pattern.

    Attributes:
        ode: the problem.
        patterns: of its subjects, in order.
        names: of the n parameters, those with a random effect first.
        theta: their typical values [n].
        eta: random effects [subject, q].
    """

    ode: Ode
    patterns: tuple[str, ...]
    names: tuple[str, ...]
    theta: Array
    eta: Tensor

    @classmethod
    def of(cls, ode: Ode, patterns: Sequence[str] | None = None) -> Trial:
        """The problem with these patterns, all of its own by default."""
        chosen = ode.patterns if patterns is None else tuple(patterns)
        model = ode.page()
        etas = model.eta_names
        every = [name.removeprefix("tv") for name in model.theta_names]
        names = (*etas, *(name for name in every if name not in etas))
        theta = np.array([float(model.theta[f"tv{name}"]) for name in names])
        spread = np.random.default_rng(11).normal(0.0, 0.25, (len(PATTERNS), len(etas)))
        rows = [list(PATTERNS).index(pattern) for pattern in chosen]
        return cls(ode, chosen, names, theta, torch.from_numpy(spread[rows]))

    def problem(self, model: nl.Model) -> Problem:
        """The package's problem, for a page of the same endpoints and compartments."""
        number = {name: k for k, name in enumerate(self.ode.compartments, 1)}
        into = {"main": number[self.ode.main], "other": number[self.ode.other]}
        endpoints = len(model.layout.endpoints)
        return Problem(model, population(self.patterns, self.ode.hour, self.ode.dose, into, endpoints))

    def reference(self) -> Reference:
        """See `references.Reference`; entries in the order of the table's observations `[..., subject, slot]`."""
        full, rows = (
            reference(self.ode.name),
            [self.ode.patterns.index(pattern) for pattern in self.patterns],
        )
        pick = [x[..., rows, :, :] for x in (full.value, full.jac, full.hess)]
        used = int(np.isfinite(pick[0][..., 0]).sum(-1).max())
        return Reference(*(x[..., :used, :].reshape(*x.shape[:-2], -1) for x in pick))


@cache
def reference(name: str) -> Reference:
    """The reference of a problem for all its patterns `[..., subject, observation, endpoint]`."""
    trial = Trial.of(PROBLEMS[name])
    n, q = len(trial.names), trial.eta.shape[1]
    x = np.repeat(np.log(trial.theta)[:, None], len(trial.patterns), 1)
    x[:q] += trial.eta.numpy().T

    def predicted(logs: Array) -> Array:
        p: Mapping[str, Array] = dict(zip(trial.names, np.exp(logs), strict=True))
        out = march(trial.ode, [trial.ode.plan(pattern) for pattern in trial.patterns], p, trial.ode.dose)
        return np.moveaxis(out, 0, -2)

    found = derivatives(predicted, x, q, trial.ode.radius)
    assert found.jac.shape[0] == n
    return found
