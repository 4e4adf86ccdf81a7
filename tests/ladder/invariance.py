"""Rung 4, at the level of a problem: what must not change a number, and what must change it by a known amount."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import torch
from curves import Oral, simulated
from ladder.comparisons import F64, close
from ladder.dosing import Absorbed, table
from ladder.linear_gaussian import score_of
from problems import Straight, curve_problem, linear_table

import nlmegen as nl
from nlmegen.inference.conditional import FOCEIObjective
from nlmegen.inference.marginal import quadrature

UNEQUAL = (3, 1, 4, 2)


def uneven(n: int = 4) -> pd.DataFrame:
    """Oral patients with records of unequal length, some with a second dose."""
    frame = table([dict(time=0.0, amt=100.0, cmt=1), dict(time=12.0, amt=60.0, cmt=1)], n)
    place = frame.groupby(["id", "evid"]).cumcount()
    most = frame["id"].map(lambda i: UNEQUAL[(i - 1) % 4])
    keep = (place < most) | ((frame["evid"] == 1) & (frame["id"] % 2 == 0))
    return frame[keep | ((frame["evid"] == 1) & (place == 0))].reset_index(drop=True)


def contributions(frame: pd.DataFrame, page: type[nl.Model] = Absorbed) -> dict[str, torch.Tensor]:
    """By patient: objective, scores, modes and the quadrature likelihood, in one row `[number]`."""
    problem = nl.Problem(page(), nl.read_nonmem(frame))
    found = FOCEIObjective(problem)(problem.start[None], scores=True)
    exact = quadrature(problem, problem.values(problem.start), 7)
    rows = torch.cat(
        (
            found.objective[0, :, None],
            score_of(found)[0],
            found.eta[0],
            exact.log_likelihood[:, None],
            exact.mean,
        ),
        -1,
    )
    return dict(zip(problem.population.ids, rows, strict=True))


def patients_do_not_see_each_other() -> None:
    """Permuted, alone, and beside a patient with a far longer record: every patient's numbers stay."""
    frame = uneven()
    whole = contributions(frame)
    order = [3, 1, 4, 2]
    permuted = pd.concat([frame[frame["id"] == i] for i in order])
    for name, row in contributions(permuted).items():
        close(row, whole[name], 1e-9)
    for i in order:
        alone = contributions(frame[frame["id"] == i])
        close(alone[str(i)], whole[str(i)], 1e-9)
    doses = pd.DataFrame([dict(id=9, evid=1, time=3.0 * k, amt=10.0, cmt=1, dv=np.nan) for k in range(12)])
    samples = pd.DataFrame([dict(id=9, evid=0, time=0.5 + k, amt=0.0, dv=1.0) for k in range(30)])
    long = pd.concat([doses, samples]).sort_values("time", kind="stable")
    padded = contributions(pd.concat([frame, long]))
    for name, row in whole.items():
        close(padded[name], row, 1e-9)


def batches_of_parameters_do_not_mix() -> None:
    """Several parameter vectors at once give what each gives alone; the same for subsets of patients."""
    problem = curve_problem(9)
    generator = torch.Generator().manual_seed(1)
    free = problem.start + 0.3 * torch.randn(4, problem.P, generator=generator, dtype=F64)
    objective = FOCEIObjective(problem)
    together = objective(free, scores=True)
    for k in range(4):
        alone = objective(free[k : k + 1], scores=True)
        close(together.objective[k], alone.objective[0], 1e-9)
        close(score_of(together)[k], score_of(alone)[0], 1e-8)
    index = torch.tensor([5, 2, 2])
    part = FOCEIObjective(problem.select(index))(free, scores=True)
    close(part.objective, together.objective[:, index], 1e-9)
    close(score_of(part), score_of(together)[:, index], 1e-8)


def units_of_amount() -> None:
    """mg to ug in AMT and DV: volumes stay, additive sigma x 1000, OFV + 2 n log 1000; a fit and its errors scale."""
    frame = uneven(8)
    scaled = frame.assign(amt=frame["amt"] * 1000, dv=frame["dv"] * 1000)
    model = Absorbed()
    large = model.with_values(sigma={"cp.additive": 1000 * float(model.sigma["cp.additive"])})
    n = int((frame["evid"] == 0).sum())
    a = nl.FOCEI(evaluate=True, covariance="R").estimate(nl.Problem(model, nl.read_nonmem(frame)))
    b = nl.FOCEI(evaluate=True, covariance="R").estimate(nl.Problem(large, nl.read_nonmem(scaled)))
    close(b.ofv - a.ofv, 2 * n * math.log(1000), 1e-9)
    close(b.ebe, a.ebe, 1e-8)
    assert a.hessian_r is not None
    assert b.hessian_r is not None
    close(b.hessian_r, a.hessian_r, 1e-3)


def units_of_time() -> None:
    """Hours to minutes: rates and clearances / 60, the OFV stays."""
    frame = uneven()
    model = Absorbed()
    slow = model.with_values(theta={k: float(model.theta[k]) / 60 for k in ("tvka", "tvcl")})
    a = nl.FOCEI(evaluate=True).estimate(nl.Problem(model, nl.read_nonmem(frame)))
    b = nl.FOCEI(evaluate=True).estimate(
        nl.Problem(slow, nl.read_nonmem(frame.assign(time=frame["time"] * 60)))
    )
    close(b.ofv, a.ofv, 1e-9)
    close(b.ebe, a.ebe, 1e-8)


def predictions_are_linear_in_dose() -> None:
    """Twice the dose, twice the prediction and its derivatives."""
    frame = uneven()
    one, two = (
        nl.Problem(Absorbed(), nl.read_nonmem(frame.assign(amt=factor * frame["amt"])))
        for factor in (1.0, 2.0)
    )
    eta = 0.3 * torch.randn(3, one.n_subjects, 2, generator=torch.Generator().manual_seed(2), dtype=F64)
    a, b = (p.predict(eta, p.values(p.start), 2) for p in (one, two))
    for x, y in ((a.f, b.f), (a.jac, b.jac), (a.hess, b.hess)):
        assert x is not None
        close(y, 2 * x, 1e-12)


def naming_and_order_of_columns() -> None:
    """Upper or lower case, columns in another order, EVID or MDV left to be inferred: the same likelihood."""
    frame = simulated("oral", 3)[0]
    wanted = evaluate_oral(frame)
    mixed = frame[["DV", "EVID", "AMT", "TIME", "ID"]].rename(columns=str.lower)
    close(evaluate_oral(mixed), wanted, 1e-12)
    close(evaluate_oral(frame.drop(columns="EVID")), wanted, 1e-12)
    close(evaluate_oral(frame.assign(MDV=frame["EVID"])), wanted, 1e-12)


def evaluate_oral(frame: pd.DataFrame) -> float:
    """OFV of the oral design's page on a table."""
    return nl.FOCEI(evaluate=True).estimate(nl.Problem(Oral(), nl.read_nonmem(frame))).ofv


def observations_left_out() -> None:
    """MDV 1 and EVID 2 take a record out of the likelihood, whatever stands in DV."""
    frame = linear_table("Straight", 5)

    def total(data: pd.DataFrame) -> float:
        return nl.FOCEI(evaluate=True).estimate(nl.Problem(Straight(), nl.read_nonmem(data))).ofv

    drop = (frame["EVID"] == 0) & (frame.groupby("ID").cumcount() == 2)
    wanted = total(frame[~drop])
    wild = frame.assign(DV=frame["DV"].where(~drop, 1e4))
    close(total(wild.assign(MDV=(drop | (frame["EVID"] == 1)).astype(int))), wanted, 1e-10)
    close(total(wild.assign(EVID=frame["EVID"].where(~drop, 2))), wanted, 1e-10)


CHECKS = (
    patients_do_not_see_each_other,
    batches_of_parameters_do_not_mix,
    units_of_amount,
    units_of_time,
    predictions_are_linear_in_dose,
    naming_and_order_of_columns,
    observations_left_out,
)
