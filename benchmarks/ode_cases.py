"""ODE pages with their equations by hand, simulated cohorts, and what scipy makes of them: for `ode_routes.py`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.integrate import odeint, solve_ivp

import nlmegen as nl


class Page(nl.Model):
    """Every parameter x is tvx exp(eta.x); oral, one compartment, in closed form."""

    tvka, tvcl, tvv = nl.Theta(1.0, lower=0), nl.Theta(4.0, lower=0), nl.Theta(40.0, lower=0)
    iiv = nl.Omega(ka=0.09, cl=0.09, v=0.09)
    cp = nl.Additive(0.1)
    structure = nl.OneCompartment(absorption="first-order")

    def individual(self, theta, eta, cov):
        return {name: getattr(theta, "tv" + name) * torch.exp(getattr(eta, name)) for name in self.eta_names}

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


class Two(Page):
    """Oral, two compartments, in closed form."""

    tvq, tvv2 = nl.Theta(3.0, lower=0), nl.Theta(60.0, lower=0)
    iiv = nl.Omega(ka=0.09, cl=0.09, v=0.09, q=0.09, v2=0.09)
    structure = nl.TwoCompartment(absorption="first-order")


class Saturable(Page):
    """Oral, Michaelis-Menten elimination."""

    tvcl = None
    tvvm, tvkm = nl.Theta(8.0, lower=0), nl.Theta(1.0, lower=0)
    iiv = nl.Omega(ka=0.09, vm=0.09, v=0.09, km=0.09)

    def dynamics(self, t, a, p):
        absorption, c = p.ka * a.depot, a.central / p.v
        return dict(depot=-absorption, central=absorption - p.vm * c / (p.km + c))


class Indirect(Page):
    """Oral, effect compartment, production of a response inhibited by a sigmoid."""

    tvke0, tvic50 = nl.Theta(0.3, lower=0), nl.Theta(1.0, lower=0)
    tvkin, tvkout = nl.Theta(5.0, lower=0), nl.Theta(0.1, lower=0)
    iiv = nl.Omega(ka=0.09, cl=0.09, v=0.09, ke0=0.09, ic50=0.09, kin=0.09, kout=0.09)

    def initial(self, p):
        return dict(response=p.kin / p.kout)

    def dynamics(self, t, a, p):
        absorption, c = p.ka * a.depot, a.central / p.v
        effect = a.site**1.5 / (p.ic50**1.5 + a.site**1.5)
        return dict(
            depot=-absorption,
            central=absorption - p.cl * c,
            site=p.ke0 * (c - a.site),
            response=p.kin * (1 - effect) - p.kout * a.response,
        )

    def observe(self, t, a, p):
        return dict(cp=a.response)


class Binding(Page):
    """Target-mediated disposition in full (doi:10.1023/A:1014414520282); amounts are concentrations."""

    tvka = tvcl = tvv = None
    tvkel, tvkon, tvkoff = nl.Theta(0.05, lower=0), nl.Theta(0.091, lower=0), nl.Theta(0.001, lower=0)
    tvksyn, tvkdeg, tvkint = nl.Theta(0.11, lower=0), nl.Theta(0.0089, lower=0), nl.Theta(0.003, lower=0)
    iiv = nl.Omega(kel=0.09, kon=0.09, koff=0.09, ksyn=0.09, kdeg=0.09, kint=0.09)

    def initial(self, p):
        return dict(target=p.ksyn / p.kdeg)

    def dynamics(self, t, a, p):
        bound = p.kon * a.drug * a.target - p.koff * a.complex
        return dict(
            drug=-p.kel * a.drug - bound,
            target=p.ksyn - p.kdeg * a.target - bound,
            complex=bound - p.kint * a.complex,
        )

    def observe(self, t, a, p):
        return dict(cp=a.drug)


class Fast(Binding):
    """The same with binding a thousand times faster."""

    tvkon = nl.Theta(91.0, lower=0)


# the same equations by hand, for scipy: from amounts and parameters, in the page's order, to rates


def one(y: Sequence[Any], p: Sequence[Any]) -> list[Any]:
    ka, cl, v = p
    return [-ka * y[0], ka * y[0] - cl / v * y[1]]


def two(y: Sequence[Any], p: Sequence[Any]) -> list[Any]:
    ka, cl, v, q, v2 = p
    flow = q * (y[1] / v - y[2] / v2)
    return [-ka * y[0], ka * y[0] - cl / v * y[1] - flow, flow]


def saturable(y: Sequence[Any], p: Sequence[Any]) -> list[Any]:
    ka, vm, v, km = p
    return [-ka * y[0], ka * y[0] - vm * y[1] / (km * v + y[1])]


def indirect(y: Sequence[Any], p: Sequence[Any]) -> list[Any]:
    ka, cl, v, ke0, ic50, kin, kout = p
    site = y[2] * np.sqrt(y[2]) if isinstance(y[2], np.ndarray) else max(y[2], 0.0) ** 1.5
    effect = site / (ic50**1.5 + site)
    return [
        -ka * y[0],
        ka * y[0] - cl / v * y[1],
        ke0 * (y[1] / v - y[2]),
        kin * (1 - effect) - kout * y[3],
    ]


def binding(y: Sequence[Any], p: Sequence[Any]) -> list[Any]:
    kel, kon, koff, ksyn, kdeg, kint = p
    bound = kon * y[0] * y[1] - koff * y[2]
    return [-kel * y[0] - bound, ksyn - kdeg * y[1] - bound, bound - kint * y[2]]


@dataclass(frozen=True)
class Case:
    """A page with its equations by hand: rates, amounts at the start (zeros for None), and what is observed."""

    page: type[nl.Model]
    rates: Callable[[Sequence[Any], Sequence[Any]], list[Any]]
    observe: Callable[[Sequence[Any], Sequence[Any]], Any]
    states: int
    start: Callable[[Sequence[Any]], list[Any]] | None = None
    closed: bool = False
    stiff: bool = False
    single: bool = False


CASES = {
    "one-compartment": Case(Page, one, lambda y, p: y[1] / p[2], 2, closed=True),
    "michaelis-menten": Case(Saturable, saturable, lambda y, p: y[1] / p[2], 2),
    "two-compartment": Case(Two, two, lambda y, p: y[1] / p[2], 3, closed=True),
    "indirect-response": Case(
        Indirect, indirect, lambda y, p: y[3], 4, lambda p: [0 * p[0], 0 * p[0], 0 * p[0], p[5] / p[6]]
    ),
    "binding": Case(
        Binding, binding, lambda y, p: y[0], 3, lambda p: [0 * p[0], p[3] / p[4], 0 * p[0]], single=True
    ),
    "binding-kon-x-1000": Case(
        Fast,
        binding,
        lambda y, p: y[0],
        3,
        lambda p: [0 * p[0], p[3] / p[4], 0 * p[0]],
        single=True,
        stiff=True,
    ),
}


@dataclass(frozen=True)
class Cohort:
    """N subjects: `times` and `amounts` of their doses, times `seen` and random effects `eta`, each `[N, ...]`."""

    case: Case
    times: np.ndarray
    amounts: np.ndarray
    seen: np.ndarray
    eta: torch.Tensor

    @classmethod
    def draw(cls, case: Case, n: int) -> Cohort:
        generator = torch.Generator().manual_seed(1)

        def uniform(k: int) -> torch.Tensor:
            return torch.rand(n, k, generator=generator, dtype=torch.float64)

        q = len(case.page().eta_names)
        eta = 0.3 * torch.randn(n, q, generator=generator, dtype=torch.float64)
        if case.single:
            times, amounts, seen = 0.0 * uniform(1), 10 ** (1 + 2 * uniform(1)), 300 * uniform(11)
        else:
            times = torch.cat((torch.zeros(n, 1, dtype=torch.float64), 2 + 46 * uniform(2)), 1)
            amounts, seen = 100 * (0.5 + uniform(3)), 0.1 + 72 * uniform(11)
        return cls(case, times.sort(1).values.numpy(), amounts.numpy(), seen.sort(1).values.numpy(), eta)

    @cached_property
    def bound(self) -> nl.Problem:
        """The compiled page bound to this cohort."""
        n, doses = self.times.shape
        samples = self.seen.shape[1]
        table = pd.DataFrame(
            {
                "id": np.repeat(np.arange(1, n + 1), doses + samples),
                "time": np.concatenate((self.times, self.seen), 1).ravel(),
                "amt": np.concatenate((self.amounts, 0 * self.seen), 1).ravel(),
                "evid": np.tile([1] * doses + [0] * samples, n),
                "dv": np.tile([0.0] * doses + [1.0] * samples, n),
            }
        ).sort_values(["id", "time"], kind="stable")
        return nl.Problem(self.case.page().as_ode(), nl.Population.from_table(table))

    def problem(self, model: nl.Model) -> nl.Problem:
        """The same page solved otherwise; not bound anew, as the dry run through a slow route takes long."""
        other = copy.copy(self.bound)
        other.model, other.structure = model, model.structure
        return other

    def parameters(self, eta: np.ndarray) -> np.ndarray:
        """Individual parameters `[n, N]` at `eta [N, n]`."""
        model = self.case.page()
        typical = np.array([float(getattr(model.theta, "tv" + name)) for name in model.eta_names])
        return typical[:, None] * np.exp(eta.T)

    # -- scipy ------------------------------------------------------------------------------------------------------
    def lsoda(self, eta: np.ndarray, rtol: float = 1e-7) -> np.ndarray:
        """Predictions `[N, time]`, one subject after the other."""
        case, p = self.case, self.parameters(eta)
        out = np.zeros_like(self.seen)
        for i in range(len(out)):
            own, seen, given = p[:, i].tolist(), self.seen[i], self.times[i]

            def rates(y: np.ndarray, t: float, own: list[float] = own) -> list[float]:
                return case.rates(y.tolist(), own)

            y = np.array(case.start(own) if case.start else [0.0] * case.states)
            for k, t in enumerate(given):
                y[0] += self.amounts[i, k]
                end = given[k + 1] if k + 1 < len(given) else math.inf
                here = (seen >= t) & (seen < end)
                grid = np.concatenate(([t], seen[here], [end] if k + 1 < len(given) else []))
                states = odeint(rates, y, grid, rtol=rtol, atol=1e-4 * rtol * y.max(), mxstep=100_000)
                out[i, here] = case.observe(states[1 : 1 + here.sum()].T, own)
                y = states[-1].copy()
        return out

    def lsoda_jacobian(self, eta: np.ndarray) -> np.ndarray:
        """Predictions and their forward differences, n + 1 solves."""
        base = self.lsoda(eta)
        moves = 1e-4 * np.eye(eta.shape[1])
        return np.stack([base, *((self.lsoda(eta + move) - base) / 1e-4 for move in moves)])

    def reference(self) -> tuple[np.ndarray, np.ndarray]:
        """Predictions `[N, time]` and derivatives in eta `[n, N, time]` at rtol 1e-12."""
        eta = self.eta.numpy()
        return self._sensitivities(eta) if self.case.stiff else self._complex(eta)

    def _sensitivities(self, eta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """By LSODA on amounts and sensitivities y_q' = f_y y_q + f_q, whose right side is a complex step."""
        case, p, step = self.case, self.parameters(eta), 1e-30
        n, size = eta.shape
        value, jac = np.zeros_like(self.seen), np.zeros((size, *self.seen.shape))
        assert case.start is not None
        for i in range(n):
            own = p[:, i, None] * np.exp(1j * step * np.eye(size))  # a column a direction

            def rates(flat: np.ndarray, t: float, own: np.ndarray = own) -> np.ndarray:
                y, along = flat[: case.states, None], flat[case.states :].reshape(case.states, size)
                out = np.stack(case.rates(y + 1j * step * along, own))
                return np.concatenate((out[:, 0].real, (out.imag / step).ravel()))

            start = np.stack(case.start(own))
            start[0] += self.amounts[i, 0]
            flat = np.concatenate((start[:, 0].real, (start.imag / step).ravel()))
            grid = np.concatenate(([0.0], self.seen[i]))
            tight = dict(rtol=1e-12, atol=1e-16 * self.amounts[i, 0], mxstep=1_000_000)
            states = odeint(rates, flat, grid, **tight)[1:]
            seen = case.observe(
                (
                    states[:, : case.states, None]
                    + 1j * step * states[:, case.states :].reshape(-1, case.states, size)
                ).transpose(1, 2, 0),
                own[..., None],
            )
            value[i], jac[:, i] = seen[0].real, seen.imag / step
        return value, jac

    def _complex(self, eta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        case, step = self.case, 1e-30
        n, size = eta.shape
        # a column a direction, each with its own imaginary part
        p = self.parameters(eta)[:, :, None] * np.exp(1j * step * np.eye(size))[:, None, :]
        y = np.zeros((case.states, n, size), dtype=complex)
        if case.start is not None:
            y = np.stack([x + 0 * p[0] for x in case.start(p)])
        points = np.concatenate((self.times, self.seen), 1)
        order, given = points.argsort(1, kind="stable"), np.concatenate((self.amounts, 0 * self.seen), 1)
        subjects, now = np.arange(n), np.zeros(n)
        out = np.zeros((n, points.shape[1], size), dtype=complex)
        for k in range(points.shape[1]):
            at = order[:, k]
            span = (points[subjects, at] - now)[:, None]
            if span.any():
                y = self._march(y, p, span)
            y[0] += given[subjects, at][:, None]
            out[subjects, at] = case.observe(y, p)
            now = points[subjects, at]
        out = out[:, self.times.shape[1] :]
        return out[..., 0].real, np.moveaxis(out.imag, -1, 0) / step

    def _march(self, y: np.ndarray, p: np.ndarray, span: np.ndarray) -> np.ndarray:
        """Amounts `[state, N, n]` a time `span [N, 1]` later, in time that runs from 0 to 1."""

        def rates(s: float, flat: np.ndarray) -> np.ndarray:
            return (np.stack(self.case.rates(flat.reshape(y.shape), p)) * span).ravel()

        end = solve_ivp(rates, (0, 1), y.ravel(), "DOP853", rtol=1e-12, atol=1e-14).y[:, -1]
        return end.reshape(y.shape)
