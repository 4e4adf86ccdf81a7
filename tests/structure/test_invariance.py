"""A subject is the same alone, among others, padded, permuted, in draws, with parameters spelt otherwise."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from structure.exact import amounts
from structure.systems import (
    STRUCTURES,
    VALUES,
    Dose,
    Regimen,
    crowd,
    log_normal,
    schedule,
    seeded,
    solved,
    solved_taylor,
    spread,
)

from nlmegen.data.population import Population
from nlmegen.maths.taylor import Taylor
from nlmegen.structure.closed import Closed
from nlmegen.structure.schedule import Schedule

family = pytest.mark.parametrize("structure", STRUCTURES, ids=repr)


@family
def test_a_subject_alone_is_the_subject_among_others(structure: Closed) -> None:
    plan, eta = crowd(structure), spread(structure, 3)
    whole = solved_taylor(structure, seeded(structure, eta, 2), plan)
    order = torch.tensor([2, 0, 1, 0])
    permuted = solved_taylor(structure, seeded(structure, eta[order], 2), plan.select(order))
    for n, (w, m) in enumerate(zip(whole, permuted, strict=True)):
        torch.testing.assert_close(m, w.index_select(n + 1, order), rtol=1e-12, atol=1e-12)
    # the simple subject without the padding that the others force on it
    unpadded = schedule(structure, Regimen([Dose(0.0, 100.0, structure.compartments[0])], (1.0, 4.0)))
    assert unpadded.single
    alone = solved_taylor(structure, seeded(structure, eta[1:2], 2), unpadded)
    for n, (w, m) in enumerate(zip(whole, alone, strict=True)):
        torch.testing.assert_close(m, w.narrow(n + 1, 1, 1)[..., :2], rtol=1e-11, atol=1e-11)


@family
def test_draws_are_solved_one_by_one(structure: Closed) -> None:
    plan, eta = crowd(structure), spread(structure, 3, 2, 4)
    whole = solved_taylor(structure, seeded(structure, eta, 2), plan)
    one = solved_taylor(structure, seeded(structure, eta[1, 3], 2), plan)
    assert whole[0].shape[1:4] == (2, 4, 3)
    for n, (w, m) in enumerate(zip(whole, one, strict=True)):
        torch.testing.assert_close(w.select(n + 1, 1).select(n + 1, 3), m, rtol=1e-12, atol=1e-12)


@family
def test_parameters_may_be_numbers_or_shared_or_lack_eta(structure: Closed) -> None:
    plan, eta = crowd(structure), spread(structure, 3)
    p = seeded(structure, eta, 2)
    reference = solved_taylor(structure, seeded(structure, eta * (torch.arange(eta.shape[-1]) != 1), 2), plan)
    for v in (VALUES["v"], torch.tensor([[VALUES["v"]]], dtype=torch.float64)):
        p.v = v
        got = solved_taylor(structure, p, plan)
        torch.testing.assert_close(got[0], reference[0], rtol=1e-13, atol=0.0)
        assert got[1][1].abs().max() == 0, "no derivative in the direction that is left out"
        torch.testing.assert_close(got[1][0], reference[1][0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(got[2][0, 0], reference[2][0, 0], rtol=1e-12, atol=1e-12)


@family
def test_values_per_segment_that_do_not_vary(structure: Closed) -> None:
    plan, eta = crowd(structure), spread(structure, 3)
    p = seeded(structure, eta, 2)
    expected = solved_taylor(structure, p, plan)
    events = plan.start.shape[-1]
    wide = SimpleNamespace(**{k: x * torch.ones(3, events, dtype=torch.float64) for k, x in vars(p).items()})
    some = SimpleNamespace(**(vars(p) | {"v": wide.v}))
    for varied in (wide, some):
        for a, b in zip(solved_taylor(structure, varied, plan), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@family
def test_parameters_that_change_with_a_covariate(structure: Closed) -> None:
    """Against fifty digits: clearance follows a weight that changes between and at doses."""
    first = structure.compartments[0]
    rows = [
        dict(time=0.0, amt=100.0, cmt=first, evid=1, wt=70.0),
        dict(time=1.0, evid=0, wt=70.0),
        dict(time=2.0, amt=60.0, rate=20.0, cmt=first, evid=1, wt=80.0),
        dict(time=4.0, evid=0, wt=95.0),
        dict(time=6.0, amt=50.0, cmt=structure.compartments[-1], evid=1, wt=60.0),
        dict(time=9.0, evid=0, wt=60.0),
    ]
    blank = dict(id=1, amt=0.0, rate=0.0, cmt=0, dv=1.0)
    frame = pd.DataFrame([blank | row for row in rows])
    people = Population.from_table(frame, interpolation="locf", warn=False)
    plan = Schedule.build(people, structure.compartments)
    share = people.covariates["wt"].segment / 70
    q = len(structure.parameters)

    def parameters(order: int) -> SimpleNamespace:
        zero = torch.zeros(1, q, dtype=torch.float64)
        p = log_normal(structure, Taylor.seed(zero, order) if order else list(zero[..., None].unbind(1)))
        p.cl = p.cl * share
        return p

    events = [
        (0.0, "bolus", 100.0, first, 70.0),
        (2.0, "rate", 20.0, first, 80.0),
        (4.0, "change", 0.0, "", 95.0),
        (5.0, "rate", -20.0, first, 95.0),
        (6.0, "bolus", 50.0, structure.compartments[-1], 60.0),
    ]
    values = [VALUES | dict(cl=VALUES["cl"] * wt / 70) for *_, wt in events]
    exact = amounts(structure, values, [e[:4] for e in events], (1.0, 4.0, 9.0)).astype(float)
    got = solved(structure, parameters(0), plan)[:, 0]
    torch.testing.assert_close(got, torch.from_numpy(exact), rtol=1e-12, atol=1e-12)

    # derivatives: clearance scales all segments, so its log-derivative is that of every rate of elimination together
    h = 1e-6
    moved = [
        amounts(
            structure,
            [p | dict(cl=p["cl"] * np.exp(s)) for p in values],
            [e[:4] for e in events],
            (1.0, 4.0, 9.0),
        )
        for s in (-h, h)
    ]
    slope = torch.from_numpy(((moved[1] - moved[0]) / (2 * h)).astype(float))
    jac = solved_taylor(structure, parameters(2), plan)[1][0][:, 0]
    torch.testing.assert_close(jac, slope, rtol=1e-7, atol=1e-7)
