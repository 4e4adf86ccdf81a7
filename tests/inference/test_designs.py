"""Varied designs: samples stay in their segments, and predictions equal those of a table that really has that
design.
"""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from inference.cases import Oral, oral_problem, oral_table
from problems import F64

import nlmegen as nl
from nlmegen.inference.designs import DOSE_RANGE, moved_times, redesigned, vary_designs


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_moved_samples_keep_their_order_and_their_segment():
    problem = oral_problem(12)
    schedule, seen = problem.schedule, problem.mask > 0
    opened = schedule.start.gather(1, schedule.segment)
    length = schedule.length.gather(1, schedule.segment)
    closed = torch.where(length > 0, opened + length, torch.inf)
    changed = False
    for seed in range(20):
        time = moved_times(problem, generator(seed))
        assert bool((time >= opened)[seen].all())
        assert bool((time <= closed)[seen].all())
        assert bool((torch.diff(time) > 0)[seen[:, 1:]].all())
        assert torch.equal(time[~seen], problem.time[~seen])
        changed |= bool((time != problem.time)[seen].all())
    assert changed


def test_a_redesigned_problem_predicts_what_such_a_table_would():
    table = oral_table(9)
    problem = nl.Problem(Oral(), nl.read_nonmem(table))
    time = moved_times(problem, generator(1))
    factor = torch.linspace(0.5, 2.0, 9, dtype=F64).unsqueeze(1)
    other = redesigned(problem, time, factor)
    rows = []
    for n, (_, record) in enumerate(table.groupby("ID", sort=False)):
        record = record.copy()
        record["AMT"] *= float(factor[n])
        seen = record["EVID"] == 0
        record.loc[seen, "TIME"] = time[n, : int(seen.sum())].tolist()
        rows.append(record)
    truth = nl.Problem(Oral(), nl.read_nonmem(pd.concat(rows)))
    eta = 0.3 * torch.randn(2, 9, 2, generator=generator(2), dtype=F64)
    values = problem.values(problem.start)
    torch.testing.assert_close(other.predict(eta, values).f, truth.predict(eta, values).f)
    assert torch.equal(problem.time, nl.Problem(Oral(), nl.read_nonmem(table)).time)


def test_nothing_is_varied_unless_asked():
    problem = oral_problem()
    index = torch.tensor([3, 3, 0])
    chosen, mask = vary_designs(problem, index, 0.0, generator())
    assert torch.equal(chosen.time, problem.time[index])
    assert torch.equal(mask, problem.mask[index])


def test_the_share_of_varied_designs():
    problem = oral_problem()
    index = torch.randint(0, 10, (4000,), generator=generator(3))
    chosen, mask = vary_designs(problem, index, 0.3, generator(4))
    moved = (chosen.time != problem.time[index]).any(1)
    assert abs(float(moved.double().mean()) - 0.3) < 0.03
    assert torch.equal(mask[~moved], problem.mask[index][~moved])
    assert bool((mask <= problem.mask[index]).all())
    assert bool((mask[moved].sum(1) < problem.mask[index][moved].sum(1)).any())
    dose, before = chosen.schedule.bolus[0][:, 0], problem.schedule.bolus[0][index][:, 0]
    factor = (dose / before).log()
    assert float(factor.abs().max()) <= DOSE_RANGE + 1e-12
    assert torch.equal(dose[~moved], before[~moved])


class Stepped(nl.Model):
    """`Oral` as differential equations."""

    tvka = nl.Theta(1.2, lower=0)
    tvcl = nl.Theta(3.0, lower=0)
    tvv = nl.Theta(30.0, lower=0)
    power = nl.Theta(0.75)
    iiv = nl.Omega(ka=0.16, cl=0.09)
    cp = nl.Combined(additive=0.05, proportional=0.15)
    individual, observe = Oral.individual, Oral.observe

    def dynamics(self, t, a, p):
        return dict(depot=-p.ka * a.depot, central=p.ka * a.depot - p.cl / p.v * a.central)


@pytest.mark.parametrize("route", ["compiled", "stepped"])
def test_every_route_sees_the_new_doses_and_times(route):
    problem = oral_problem(6)
    if route == "compiled":
        problem.hasten()
        assert problem.route.programs is not None
    else:
        problem = nl.Problem(Stepped(), nl.read_nonmem(oral_table(6)))
    chosen = problem.select(torch.tensor([4, 1, 1]))
    factor = torch.tensor([[0.5], [1.0], [2.0]], dtype=F64)
    other = redesigned(chosen, moved_times(chosen, generator(1)), factor)
    eta = 0.3 * torch.randn(3, 2, generator=generator(2), dtype=F64)
    values = problem.values(problem.start)
    truth = redesigned(
        oral_problem(6).uncompiled().select(torch.tensor([4, 1, 1])), other.time, factor
    ).predict(eta, values)
    found = other.predict(eta, values).f
    assert float((found - chosen.predict(eta, values).f).abs().max()) > 0.1
    torch.testing.assert_close(found, truth.f, rtol=1e-5, atol=1e-6)
