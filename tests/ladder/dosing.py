"""Doses, infusions, resets and covariates that change, through to the likelihood, against superposition by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import torch
from histories import HISTORIES, LogDose, exact_log_dose, log_dose_frame, log_dose_problem
from ladder.comparisons import EXACT, F64, close
from torch import exp

import nlmegen as nl
from nlmegen.inference.conditional import FOCEIObjective


def predictions_by_superposition() -> None:
    """log f of every observation of every history at eta = 0."""
    problem = log_dose_problem()
    f = problem.predict(torch.zeros(problem.n_subjects, 1, dtype=F64), problem.values(problem.start)).f
    for number, (name, log_g) in enumerate(log_dose_frame()[1]):
        wanted = torch.tensor(log_g, dtype=F64) - math.log(20.0)
        found = f[number, problem.population.mask[number]]
        assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-9), f"history {name!r}: {found} for {wanted}"


def likelihood_of_every_history() -> None:
    """The closed form of log p(y), -sum log y included, one patient for each rule of dosing."""
    problem, truth = log_dose_problem(), exact_log_dose()
    found = FOCEIObjective(problem)(problem.start[None])
    count = problem.population.mask.sum(-1).to(F64)
    close(found.objective[0], -2 * truth.log_likelihood - count * math.log(2 * math.pi), EXACT)
    close(found.eta[0], truth.mean, EXACT)


def log_and_natural_tables_differ_by_the_jacobian() -> None:
    """LogNormal(dv="log") on log y: -2 log L is smaller by 2 sum log y; the estimates are the same."""
    frame = log_dose_frame()[0].copy()
    natural = nl.FOCEI(evaluate=True).estimate(log_dose_problem())
    seen = frame["evid"] == 0
    jacobian = float(np.log(frame.loc[seen, "dv"]).sum())
    frame.loc[seen, "dv"] = np.log(frame.loc[seen, "dv"])
    page = type("LogScale", (LogDose,), {"__module__": __name__, "cp": nl.LogNormal(0.3, dv="log")})()
    log = nl.FOCEI(evaluate=True).estimate(nl.Problem(page, nl.read_nonmem(frame)))
    close(natural.ofv - log.ofv, 2 * jacobian, 1e-9)
    close(natural.ebe, log.ebe, 1e-9)


class Absorbed(nl.Model):
    """Oral doses with etas on clearance and volume, for comparisons of whole evaluations."""

    tvka = nl.Theta(1.1, lower=0)
    tvcl = nl.Theta(3.0, lower=0)
    tvv = nl.Theta(25.0, lower=0)
    iiv = nl.Omega(cl=0.15, v=0.1)
    cp = nl.Combined(additive=0.1, proportional=0.15)
    structure = nl.OneCompartment(absorption="first-order")

    def individual(self, theta, eta, cov):
        return dict(ka=theta.tvka, cl=theta.tvcl * exp(eta.cl), v=theta.tvv * exp(eta.v))

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


def table(doses: list[dict[str, float]], n: int = 4) -> pd.DataFrame:
    """Patients with these dose records and seven samples each; dv invented."""
    rng = np.random.default_rng(2)
    rows = []
    for i in range(n):
        rows += [{"id": i + 1, "evid": 1, "dv": np.nan, **d} for d in doses]
        for t in (1.0, 3.0, 9.0, 13.0, 25.5, 30.0, 47.0):
            rows.append(
                {"id": i + 1, "evid": 0, "amt": 0.0, "time": t + 0.1 * i, "dv": rng.lognormal(0.8, 0.4)}
            )
    frame = pd.DataFrame(rows).sort_values(
        ["id", "time", "evid"], ascending=[True, True, False], kind="stable"
    )
    return frame.fillna({"rate": 0.0, "addl": 0.0, "ii": 0.0}) if len(frame.columns) > 5 else frame


def evaluated(frame: pd.DataFrame) -> tuple[float, torch.Tensor]:
    """OFV and EBEs of `Absorbed` by a whole FOCEI evaluation."""
    estimate = nl.FOCEI(evaluate=True).estimate(nl.Problem(Absorbed(), nl.read_nonmem(frame)))
    return estimate.ofv, estimate.ebe


def additional_doses_equal_written_out_ones() -> None:
    """ADDL and II against records; into the depot, into the central compartment, and as infusions."""
    for dose in (dict(amt=100.0, cmt=1), dict(amt=80.0, cmt=2), dict(amt=80.0, cmt=2, rate=20.0)):
        short = [dict(time=0.0, addl=4, ii=6.0, **dose), dict(time=27.0, amt=50.0, cmt=1)]
        long = [dict(time=6.0 * k, **dose) for k in range(5)] + [dict(time=27.0, amt=50.0, cmt=1)]
        (a, eta_a), (b, eta_b) = evaluated(table(short)), evaluated(table(long))
        close(a, b, 1e-9)
        close(eta_a, eta_b, 1e-8)


def short_infusions_become_boluses() -> None:
    """An infusion's OFV tends to the bolus's, at first order in its duration."""
    bolus, _ = evaluated(table([dict(time=0.0, amt=100.0, cmt=2)]))
    off = [
        evaluated(table([dict(time=0.0, amt=100.0, cmt=2, rate=100.0 / d)]))[0] - bolus
        for d in (1e-2, 1e-3, 1e-6)
    ]
    assert abs(off[2]) < 1e-5 < abs(off[1]) < abs(off[0])
    close(off[0] / off[1], 10.0, 0.02)


def doses_superpose() -> None:
    """The prediction under all of a history's doses is the sum of those under each dose alone."""
    for name, history in HISTORIES.items():
        if history.reset is not None:
            continue
        weights = {d[0]: history.weight(d[0]) for d in history.doses}
        parts = []
        for only in (None, *range(len(history.doses))):
            rows = [
                {
                    "time": t,
                    "amt": a if only in (None, k) else 0.0,
                    "rate": a / d if d and only in (None, k) else 0.0,
                }
                | {"evid": 1 if only in (None, k) else 2, "dv": np.nan, "wt": weights[t]}
                for k, (t, a, d) in enumerate(history.doses)
            ]
            rows += [
                {"time": t, "amt": 0.0, "rate": 0.0, "evid": 0, "dv": 1.0, "wt": history.weight(t)}
                for t in history.times
                if t > max(weights)
            ]
            frame = pd.DataFrame(rows).assign(id=1).sort_values("time", kind="stable")
            problem = nl.Problem(LogDose(), nl.read_nonmem(frame))
            f = problem.predict(torch.zeros(1, 1, dtype=F64), problem.values(problem.start)).f
            parts.append(f[0].exp())
        assert torch.allclose(parts[0], torch.stack(parts[1:]).sum(0), rtol=1e-10), name


CHECKS = (
    predictions_by_superposition,
    likelihood_of_every_history,
    log_and_natural_tables_differ_by_the_jacobian,
    additional_doses_equal_written_out_ones,
    short_infusions_become_boluses,
    doses_superpose,
)
