"""Courses of the ODE pages by scipy, their equations written once more, and cohorts drawn from them.

Nothing here is shared with the pages: amounts per volume where they have amounts,
Lambert's W and the matrix exponential where there is a closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from scipy.special import lambertw

Floats = NDArray[np.float64]
Course = Callable[[Mapping[str, float], float, Mapping[str, Floats]], dict[str, Floats]]
"""Individual parameters, dose, times by endpoint -> predictions by endpoint."""


@dataclass(frozen=True)
class Study:
    """A page's truth and design: what is needed to draw a cohort.

    Attributes:
        course: predictions of one subject.
        theta: the typical values by the name of the individual parameter.
        omega: variances of log-normal random effects.
        sigma: residual SD by endpoint: proportional, of the logarithm where `log` holds the endpoint.
        doses: doses, dealt to the subjects in turn.
        times: sampling times by endpoint, in the order of their DVID.
        log: endpoints with log-normal error.
        n: number of subjects of one cohort.
    """

    course: Course
    theta: Mapping[str, float]
    omega: Mapping[str, float]
    sigma: Mapping[str, float]
    doses: Sequence[float]
    times: Mapping[str, Sequence[float]]
    log: frozenset[str] = field(default_factory=frozenset)
    n: int = 40

    def draw(self, rng: np.random.Generator, n: int | None = None) -> pd.DataFrame:
        """A NONMEM table of a cohort."""
        rows = []
        times = {name: np.array(t, dtype=float) for name, t in self.times.items()}
        for i in range(n or self.n):
            p = {k: v * np.exp(np.sqrt(self.omega.get(k, 0.0)) * rng.normal()) for k, v in self.theta.items()}
            dose = self.doses[i % len(self.doses)]
            rows.append(dict(id=i + 1, time=0.0, amt=dose, dv=np.nan, evid=1, cmt=1, dvid=0))
            for dvid, (name, f) in enumerate(self.course(p, dose, times).items(), start=1):
                e = self.sigma[name] * rng.normal(size=f.shape)
                y = f * np.exp(e) if name in self.log else f * (1 + e)
                rows += [
                    dict(id=i + 1, time=t, amt=0.0, dv=v, evid=0, cmt=0, dvid=dvid)
                    for t, v in zip(times[name], y, strict=True)
                ]
        table = pd.DataFrame(rows).sort_values(
            ["id", "time", "evid"], ascending=[True, True, False], kind="stable"
        )
        return table.drop(columns=["dvid"] if len(times) == 1 else [])


def _solved(
    rates: Callable[[float, Floats], Sequence[float]], start: Sequence[float], times: Mapping[str, Floats]
) -> dict[str, Floats]:
    """States `[state, time]` at the times of every endpoint."""
    grid = np.unique(np.concatenate(list(times.values())))
    found = solve_ivp(rates, (0.0, grid[-1]), start, "LSODA", t_eval=grid, rtol=1e-11, atol=1e-13)
    assert found.success, found.message
    return {name: found.y[:, np.searchsorted(grid, t)] for name, t in times.items()}


def michaelis_menten(p: Mapping[str, float], dose: float, times: Mapping[str, Floats]) -> dict[str, Floats]:
    """C = km W(C0/km exp((C0 - vmax t / v) / km))."""
    c0 = dose / p["v"]
    z = c0 / p["km"] * np.exp((c0 - p["vmax"] / p["v"] * times["cp"]) / p["km"])
    return {"cp": p["km"] * lambertw(z).real}


def transit(p: Mapping[str, float], dose: float, times: Mapping[str, Floats]) -> dict[str, Floats]:
    """The matrix exponential of a chain of seven."""
    ktr, k = 5 / p["mtt"], p["cl"] / p["v"]
    out = np.array([ktr] * 5 + [p["ka"], k])
    matrix = np.diag(-out) + np.diag(out[:-1], -1)
    start = np.eye(7)[0] * dose
    return {"cp": np.array([(expm(matrix * t) @ start)[-1] for t in times["cp"]]) / p["v"]}


def turnover(kin: float, kout: float) -> Course:
    """The response relative to its baseline, kin and kout changed by `kin` or `kout` times the effect."""

    def course(p: Mapping[str, float], dose: float, times: Mapping[str, Floats]) -> dict[str, Floats]:
        k, c0 = p["cl"] / p["v"], dose / p["v"]

        def rates(t: float, x: Floats) -> list[float]:
            c = c0 * np.exp(-k * t)
            e = p["emax"] / (1 + p["ec50"] / c)
            return [p["kout"] * (1 + kin * e) - p["kout"] * (1 + kout * e) * x[0]]

        states = _solved(rates, [1.0], times)
        return {"cp": c0 * np.exp(-k * times["cp"]), "effect": p["base"] * states["effect"][0]}

    return course


def tmdd(p: Mapping[str, float], dose: float, times: Mapping[str, Floats]) -> dict[str, Floats]:
    """Total drug, total target and complex in place of free ones; concentrations throughout."""
    k10, k12, k21 = p["cl"] / p["v"], p["q"] / p["v"], p["q"] / p["v2"]
    kon = p["koff"] / p["kd"]

    def rates(t: float, x: Floats) -> list[float]:
        total, tissue, target, pair = x
        free, unbound = total - pair, target - pair
        return [
            -(k10 + k12) * free + k21 * tissue - p["kint"] * pair,
            k12 * free - k21 * tissue,
            p["kdeg"] * p["r0"] - p["kdeg"] * unbound - p["kint"] * pair,
            kon * free * unbound - (p["koff"] + p["kint"]) * pair,
        ]

    states = _solved(rates, [dose / p["v"], 0.0, p["r0"], 0.0], times)
    return {"cp": states["cp"][0] - states["cp"][3], "rtot": states["rtot"][2]}


def tmdd_qss(p: Mapping[str, float], dose: float, times: Mapping[str, Floats]) -> dict[str, Floats]:
    """The complex from its quadratic equation, complex^2 - (total + target + kss) complex + total target = 0."""
    k10, k12, k21 = p["cl"] / p["v"], p["q"] / p["v"], p["q"] / p["v2"]

    def bound(total: Floats, target: Floats) -> Floats:
        s = total + target + p["kss"]
        return 2 * total * target / (s + np.sqrt(s**2 - 4 * total * target))

    def rates(t: float, x: Floats) -> list[float]:
        total, tissue, target = x
        pair = bound(total, target)
        free = total - pair
        return [
            -(k10 + k12) * free + k21 * tissue - p["kint"] * pair,
            k12 * free - k21 * tissue,
            p["kdeg"] * p["r0"] - p["kdeg"] * (target - pair) - p["kint"] * pair,
        ]

    states = _solved(rates, [dose / p["v"], 0.0, p["r0"]], times)
    total, _, target = states["cp"]
    return {"cp": total - bound(total, target), "rtot": states["rtot"][2]}


_SAMPLES = {"cp": (0.5, 1, 2, 4, 8, 12, 18, 24), "effect": (0.0, 1, 3, 6, 9, 12, 18, 24, 36, 48)}
_EFFECT = dict(cl=3.0, v=30.0, base=50.0, kout=0.25, ec50=1.0)
_VARIES = dict(cl=0.06, v=0.04, base=0.04, kout=0.06, ec50=0.09)
_TARGET = dict(cl=0.25, v=3.0, q=0.5, v2=2.5, r0=10.0, kdeg=0.8, kint=0.15)
_WEEKS = (0.1, 1, 2, 4, 7, 10, 14, 21)


def _indirect(emax: float, kin: float, kout: float) -> Study:
    theta, sigma = _EFFECT | dict(emax=emax), dict(cp=0.1, effect=0.05)
    return Study(turnover(kin, kout), theta, _VARIES, sigma, (30, 100, 300), _SAMPLES)


def _antibody(course: Course, n: int, **more: float) -> Study:
    omega, sigma = dict(cl=0.06, v=0.04, r0=0.09, kint=0.06), dict(cp=0.1, rtot=0.1)
    times = dict(cp=_WEEKS, rtot=(0.0, *_WEEKS))
    return Study(course, _TARGET | more, omega, sigma, (100, 500, 2000), times, n=n)


STUDIES: dict[str, Study] = {
    "michaelis_menten": Study(
        michaelis_menten,
        dict(vmax=8.0, km=2.0, v=30.0),
        dict(vmax=0.09, v=0.04),
        dict(cp=0.2),
        (150, 300, 600),
        dict(cp=(0.5, 4, 12, 24, 36, 48, 60)),
        log=frozenset({"cp"}),
    ),
    "transit": Study(
        transit,
        dict(mtt=1.5, ka=1.0, cl=5.0, v=40.0),
        dict(mtt=0.09, ka=0.09, cl=0.09, v=0.04),
        dict(cp=0.1),
        (100,),
        dict(cp=(0.5, 1, 1.5, 2, 2.5, 3, 4, 6, 8, 12, 16, 24)),
    ),
    "turnover_inhibited_production": _indirect(0.9, -1, 0),
    "turnover_inhibited_loss": _indirect(0.9, 0, -1),
    "turnover_stimulated_production": _indirect(3.0, 1, 0),
    "turnover_stimulated_loss": _indirect(3.0, 0, 1),
    "tmdd": _antibody(tmdd, 15, kd=1.0, koff=10.0),
    "tmdd_qss": _antibody(tmdd_qss, 24, kss=1.0),
}
