"""The models of the scenarios, each told twice: as a page, and by hand for the oracle.

Every individual parameter x is tvx exp(eta.x), or tvx where it has no random effect. Four variants of each page:

    plain       nothing but the kinetics
    modelled    lag, bioavailability, duration and rate of the doses into every compartment that is dosed
    weight      clearance and baseline follow the covariate cov_wt
    both        the two together
    factor      as both, without lags, and the bioavailability follows cov_wt
    late        as both, and lag, bioavailability, duration and rate follow cov_wt
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

import nlmegen as nl

DOSING = dict(lag=0.7, f=0.8, dur=2.6, rate=15.0)
"""Of the first compartment; the second has SECOND times (bioavailability: half-way to 1)."""
SECOND = dict(lag=0.6, dur=1.4, rate=0.7)
EXPONENTS = dict(cl=0.75, vmax=0.75, base=-0.3, f=-0.25, lag=1.2, dur=0.6, rate=0.8)
"""of cov_wt / 70."""
FOLLOW = dict(factor=("f",), late=("f", "lag", "dur", "rate"))
"""By variant, what follows the weight of that which is said of doses."""


@dataclass(frozen=True)
class Kinetics:
    """A model, by hand.

    Attributes:
        compartments: in order; the first is the default for doses.
        values: typical values by parameter.
        effects: parameters with a random effect.
        dynamics: derivatives of amounts by name, from amounts and parameters by attribute; works on numpy and torch.
        observe: predictions by endpoint, likewise.
        second: number of the second compartment that is dosed.
        initial: amounts at the start by name, likewise.
        closed: the closed form of the same kinetics.
        linear: in the amounts.
        off: numbers of compartments that may be switched off: nothing flows into them.
    """

    name: str
    compartments: tuple[str, ...]
    values: Mapping[str, float]
    effects: tuple[str, ...]
    dynamics: Callable[[Any, Any], dict[str, Any]]
    observe: Callable[[Any, Any], dict[str, Any]]
    second: int
    initial: Callable[[Any], dict[str, Any]] | None = None
    closed: Any = None
    linear: bool = True
    off: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.name


# -- dynamics, once for numpy and torch -------------------------------------------------------------------------------
def one(a: Any, p: Any) -> dict[str, Any]:
    return dict(central=-p.cl / p.v * a.central)


def two(a: Any, p: Any) -> dict[str, Any]:
    out, back = p.q / p.v * a.central, p.q / p.v2 * a.peripheral
    return dict(central=-p.cl / p.v * a.central - out + back, peripheral=out - back)


def three(a: Any, p: Any) -> dict[str, Any]:
    rates = two(a, p)
    out, back = p.q3 / p.v * a.central, p.q3 / p.v3 * a.peripheral2
    return dict(central=rates["central"] - out + back, peripheral=rates["peripheral"], peripheral2=out - back)


def saturable(a: Any, p: Any) -> dict[str, Any]:
    c = a.central / p.v
    return dict(central=-p.vmax * c / (p.km + c))


def oral(disposition: Callable[[Any, Any], dict[str, Any]]) -> Callable[[Any, Any], dict[str, Any]]:
    def dynamics(a: Any, p: Any) -> dict[str, Any]:
        absorbed, rates = p.ka * a.depot, disposition(a, p)
        return dict(depot=-absorbed, central=rates.pop("central") + absorbed, **rates)

    return dynamics


def turnover(a: Any, p: Any) -> dict[str, Any]:
    c = a.central / p.v
    return dict(
        central=-p.cl / p.v * a.central,
        response=p.kout * p.base * (1 - c / (p.ic50 + c)) - p.kout * a.response,
    )


def metabolite(a: Any, p: Any) -> dict[str, Any]:
    formed = p.cl / p.v * a.central
    return dict(
        depot=-p.ka * a.depot,
        central=p.ka * a.depot - formed,
        metabolite=p.fm * formed - p.km * a.metabolite,
    )


def concentration(a: Any, p: Any) -> dict[str, Any]:
    return dict(cp=a.central / p.v)


ONE = dict(cl=2.1, v=21.0)
TWO = dict(cl=2.1, v=14.0, q=2.4, v2=18.0)
THREE = dict(cl=2.1, v=14.0, q=2.4, v2=18.0, q3=0.9, v3=12.0)
KA = dict(ka=0.9)
MM = dict(vmax=36.0, km=1.7, v=15.0)

MODELS: dict[str, Kinetics] = {
    m.name: m
    for m in (
        Kinetics("one", ("central",), ONE, ("cl", "v"), one, concentration, 1, closed=nl.OneCompartment()),
        Kinetics(
            "one oral",
            ("depot", "central"),
            ONE | KA,
            ("cl", "v", "ka"),
            oral(one),
            concentration,
            2,
            closed=nl.OneCompartment("first-order"),
            off=(1,),
        ),
        Kinetics(
            "two",
            ("central", "peripheral"),
            TWO,
            ("cl", "q", "v2"),
            two,
            concentration,
            2,
            closed=nl.TwoCompartment(),
        ),
        Kinetics(
            "two oral",
            ("depot", "central", "peripheral"),
            TWO | KA,
            ("cl", "v2", "ka"),
            oral(two),
            concentration,
            2,
            closed=nl.TwoCompartment("first-order"),
            off=(1,),
        ),
        Kinetics(
            "three",
            ("central", "peripheral", "peripheral2"),
            THREE,
            ("cl", "v", "q3"),
            three,
            concentration,
            3,
            closed=nl.ThreeCompartment(),
        ),
        Kinetics(
            "three oral",
            ("depot", "central", "peripheral", "peripheral2"),
            THREE | KA,
            ("cl", "v3", "ka"),
            oral(three),
            concentration,
            2,
            closed=nl.ThreeCompartment("first-order"),
            off=(1,),
        ),
        Kinetics(
            "Michaelis-Menten",
            ("central",),
            MM,
            ("vmax", "km", "v"),
            saturable,
            concentration,
            1,
            linear=False,
        ),
        Kinetics(
            "Michaelis-Menten oral",
            ("depot", "central"),
            MM | KA,
            ("vmax", "km", "ka"),
            oral(saturable),
            concentration,
            2,
            linear=False,
            off=(1,),
        ),
        Kinetics(
            "turnover",
            ("central", "response"),
            ONE | dict(kout=0.3, base=12.0, ic50=1.5),
            ("cl", "kout", "base"),
            turnover,
            lambda a, p: dict(cp=a.central / p.v, effect=a.response),
            1,
            initial=lambda p: dict(response=p.base),
            linear=False,
            off=(),
        ),
        Kinetics(
            "parent and metabolite",
            ("depot", "central", "metabolite"),
            ONE | KA | dict(fm=0.6, km=0.17),
            ("cl", "ka", "km"),
            metabolite,
            lambda a, p: dict(cp=a.central / p.v, cm=a.metabolite / p.v),
            2,
            off=(1,),
        ),
    )
}


# -- the page ---------------------------------------------------------------------------------------------------------
def doses(variant: str) -> dict[str, float]:
    """What a variant's page says of doses, typical values."""
    if variant in ("modelled", "both", "late"):
        return DOSING
    return {k: v for k, v in DOSING.items() if k != "lag"} if variant == "factor" else {}


def names(model: Kinetics, variant: str) -> dict[str, float]:
    """Typical values of all parameters of a variant."""
    return dict(model.values) | doses(variant)


def random(model: Kinetics, variant: str) -> tuple[str, ...]:
    """Parameters with a random effect, in the order of the page's etas."""
    return model.effects + tuple(doses(variant))


def with_weight(variant: str, name: str, wt: Any) -> Any:
    """The factor by which a parameter follows the weight."""
    weighed = variant in ("weight", "both", *FOLLOW)
    follows = name in FOLLOW.get(variant, ()) if name in DOSING else weighed and name in EXPONENTS
    return (wt / 70.0) ** EXPONENTS[name] if follows else 1.0


def second_dose(p: Any, lag: Any) -> dict[str, Any]:
    return dict(
        lag=None if lag is None else SECOND["lag"] * lag,
        bioavailability=0.5 + 0.5 * p.f,
        duration=SECOND["dur"] * p.dur,
        rate=SECOND["rate"] * p.rate,
    )


@cache
def page(name: str, variant: str, closed: bool) -> type[nl.Model]:
    """The page of a model in a variant, in closed form or by differential equations."""
    model = MODELS[name]
    typical = names(model, variant)
    effects = random(model, variant)

    def individual(self: Any, theta: Any, eta: Any, cov: Any) -> dict[str, Any]:
        out = {}
        for x in typical:
            value = getattr(theta, f"tv{x}")
            if x in effects:
                value = value * torch.exp(getattr(eta, x))
            if x in EXPONENTS and variant in ("weight", "both", *FOLLOW):
                value = value * with_weight(variant, x, cov.cov_wt)
            out[x] = value
        return out

    body: dict[str, Any] = {f"tv{x}": nl.Theta(value) for x, value in typical.items()}
    body["iiv"] = nl.Omega(**dict.fromkeys(effects, 0.1))
    for endpoint in model.observe(_Ones(), _Ones()):
        body[endpoint] = nl.Additive(0.1, dvid=len([k for k in body if k in ("cp", "effect", "cm")]) + 1)
    body["individual"] = individual
    body["observe"] = lambda self, t, a, p: model.observe(a, p)
    if doses(variant):
        first, second = model.compartments[0], model.compartments[model.second - 1]

        def dosing(self: Any, p: Any) -> dict[str, Any]:
            lag = p.lag if "lag" in typical else None
            out = {first: nl.Dose(lag=lag, bioavailability=p.f, duration=p.dur, rate=p.rate)}
            if second != first:
                out[second] = nl.Dose(**second_dose(p, lag))
            return out

        body["dosing"] = dosing
    if closed:
        body["structure"] = model.closed
    else:
        body["dynamics"] = lambda self, t, a, p: model.dynamics(a, p)
        if model.initial is not None:
            body["initial"] = lambda self, p: model.initial(p)  # type: ignore[misc]
    body["__module__"], body["__doc__"] = __name__, f"{name}, {variant}."
    named = {
        "observe": ("self", "t", "a", "p"),
        "dynamics": ("self", "t", "a", "p"),
        "initial": ("self", "p"),
    }
    for method in named:
        if method in body:
            body[method].__name__ = method
    return type("Page", (nl.Model,), body)


class _Ones:
    def __getattr__(self, name: str) -> float:
        return 1.0


# -- the oracle's side ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ByHand:
    """A variant of a model as `oracle.Equations`."""

    model: Kinetics
    variant: str

    @property
    def compartments(self) -> tuple[str, ...]:
        return self.model.compartments

    @property
    def linear(self) -> bool:
        return self.model.linear

    def rates(self, t: Any, a: Any, p: Any) -> Sequence[Any]:
        rates = self.model.dynamics(SimpleNamespace(**dict(zip(self.compartments, a, strict=True))), p)
        return [rates[c] for c in self.compartments]

    def initial(self, p: Any) -> Sequence[Any]:
        start = {} if self.model.initial is None else self.model.initial(p)
        return [start.get(c, 0.0) for c in self.compartments]

    def observe(self, a: Any, p: Any) -> Sequence[Any]:
        seen = self.model.observe(SimpleNamespace(**dict(zip(self.compartments, a, strict=True))), p)
        return list(seen.values())

    def dosing(self, p: Any) -> dict[int, SimpleNamespace]:
        if not doses(self.variant):
            return {}
        lag = getattr(p, "lag", None)
        out = {0: SimpleNamespace(lag=lag, f=p.f, duration=p.dur, rate=p.rate)}
        if self.model.second != 1:
            other = second_dose(p, lag)
            out[self.model.second - 1] = SimpleNamespace(
                lag=other["lag"], f=other["bioavailability"], duration=other["duration"], rate=other["rate"]
            )
        return out

    def parameters(self, eta: Any, moves: Any) -> Callable[[Mapping[str, Any]], SimpleNamespace]:
        """From a record to parameters `[K]`, random effects `eta [q]` moved by `moves [q, K]`."""
        effects = random(self.model, self.variant)

        def at(record: Mapping[str, Any]) -> SimpleNamespace:
            out = {}
            for x, typical in names(self.model, self.variant).items():
                log = eta[effects.index(x)] + moves[effects.index(x)] if x in effects else 0.0 * moves[0]
                out[x] = typical * np.exp(log) * with_weight(self.variant, x, record["cov_wt"])
            return SimpleNamespace(**out)

        return at
