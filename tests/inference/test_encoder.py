"""The encoder: blind to padding and order, at home with designs it never saw, the same after a round trip through
JSON.
"""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch
from inference.cases import (
    Curved,
    Oral,
    curved_problem,
    curved_table,
    exact_posterior,
    oral_problem,
    oral_table,
)
from problems import F64

import nlmegen as nl
from nlmegen.data.columns import DataWarning
from nlmegen.inference.encoder import Encoder, Pool
from nlmegen.inference.features import Reader
from nlmegen.inference.marginal import quadrature


def twisted(encoder: Encoder) -> Encoder:
    """Weights large enough to see everything that reaches the network."""
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(2.0)
    return encoder


@pytest.mark.parametrize("family", ["gaussian", "mixture"])
def test_padding_does_not_matter(family: str):
    table = oral_table(7)
    encoder = twisted(Encoder.of(oral_problem(7), family))
    alone = nl.Problem(Oral(), nl.read_nonmem(table[table["ID"] == 2]))
    crowd = nl.Problem(Oral(), nl.read_nonmem(table))
    values = crowd.values(crowd.start)
    assert alone.y.shape[1] < crowd.y.shape[1]
    assert alone.schedule.start.shape[1] < crowd.schedule.start.shape[1]
    a, b = encoder.approximate(alone, values), encoder.approximate(crowd, values)
    torch.testing.assert_close(a.raw[0], b.raw[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(a.location[0], b.location[1], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(a.scale[0], b.scale[1], rtol=1e-9, atol=1e-12)


def test_the_order_of_samples_does_not_matter():
    problem = oral_problem(7)
    encoder = twisted(Encoder.of(problem))
    record = encoder.reader.read(problem, problem.values(problem.start))
    order = torch.tensor([3, 0, 4, 2, 1])
    turned = record.select(slice(None))
    shuffled = type(record)(
        turned.observations[:, order],
        turned.mask[:, order],
        turned.doses.flip(1),
        turned.dosed.flip(1),
        turned.context,
        turned.location,
        turned.scale,
    )
    torch.testing.assert_close(encoder(shuffled), encoder(record), rtol=1e-4, atol=1e-5)


def test_every_part_of_a_record_is_read():
    problem = oral_problem(7)
    encoder = twisted(Encoder.of(problem))
    values = problem.values(problem.start)
    table = oral_table(7)
    before = encoder.approximate(problem, values).raw

    def after(change) -> torch.Tensor:
        other = table.copy()
        change(other)
        raw = encoder.approximate(nl.Problem(Oral(), nl.read_nonmem(other)), values).raw
        return (raw - before).abs().amax(1)

    def set_cell(column: str, row: int, value: float):
        return lambda frame: frame.__setitem__(column, frame[column].where(frame.index != row, value))

    second = int(table.index[table["ID"] == 2][0])
    for name, change in {
        "observed value": set_cell("DV", second + 2, 0.9),
        "observation time": set_cell("TIME", second + 3, 6.0),
        "dose amount": set_cell("AMT", second, 140.0),
    }.items():
        moved = after(change)
        assert float(moved[1]) > 1e-3, name
        assert float(torch.cat([moved[:1], moved[2:]]).max()) < 1e-4, name
    heavier = table.copy()
    heavier.loc[heavier["ID"] == 2, "WT"] = 90.0
    raw = encoder.approximate(nl.Problem(Oral(), nl.read_nonmem(heavier)), values).raw
    assert float((raw - before).abs()[1].max()) > 1e-3


def test_infusions_and_compartments_are_told_apart():
    def table(rate: float, compartment: int) -> pd.DataFrame:
        return pd.DataFrame(
            {
                "ID": 1,
                "TIME": [0.0, 3.0, 8.0],
                "AMT": [100.0, 0, 0],
                "RATE": [rate, 0, 0],
                "DV": [0.0, 2.0, 1.0],
                "EVID": [1, 0, 0],
                "CMT": [compartment, 2, 2],
                "WT": 70.0,
            }
        )

    problems = [
        nl.Problem(Oral(), nl.read_nonmem(table(*x))) for x in ((0.0, 1), (0.0, 2), (50.0, 2), (25.0, 2))
    ]
    reader = Reader.of(problems[2])
    tokens = [reader.read(p, p.values(p.start)).doses[0, 0] for p in problems]
    for i in range(4):
        for j in range(i):
            assert float((tokens[i] - tokens[j]).abs().max()) > 0.05


def test_an_untrained_encoder_knows_a_linear_page():
    problem = curved_problem()
    encoder = Encoder.of(problem)
    with torch.no_grad():
        encoder.head.weight.zero_()
        encoder.head.bias.zero_()
    mean, covariance = encoder.approximate(problem, problem.values(problem.start), widen=1.0).moments()
    exact_mean, exact_covariance = exact_posterior(problem, problem.start)
    torch.testing.assert_close(mean, exact_mean)
    torch.testing.assert_close(covariance, exact_covariance)


def test_posterior_of_patients_with_other_designs_and_columns():
    encoder = Encoder.of(oral_problem(30))
    table = oral_table(6, seed=11)
    table["TIME"] = table["TIME"] * 1.3
    table["AMT"] = table["AMT"] * 0.6
    table["DV"] = table["DV"] * 0.6
    table["HT"] = 170.0
    problem = nl.Problem(Oral(), nl.read_nonmem(table))
    values = problem.values(problem.start)
    posterior = encoder.posterior(problem, values, k=2000, seed=1)
    truth = quadrature(problem, values, 15, rounds=1)
    sd = truth.cov.diagonal(dim1=-2, dim2=-1).sqrt()
    assert float(((posterior.mean - truth.mean) / sd).abs().max()) < 0.1
    torch.testing.assert_close(posterior.log_likelihood, truth.log_likelihood, rtol=0, atol=0.05)
    assert posterior.draws.shape == (2000, 6, 2)
    assert posterior.table()["verdict"].isin(["good", "usable"]).all()
    again = encoder.posterior(problem, values, k=2000, seed=1)
    # the second search for modes of a problem runs compiled and rounds otherwise
    torch.testing.assert_close(again.log_weights, posterior.log_weights, rtol=0, atol=1e-9)


def test_a_patient_without_samples_has_the_prior():
    table = curved_table(4)
    table = table[(table["ID"] != 3) | (table["EVID"] == 1)]
    with pytest.warns(DataWarning, match="without observations"):
        with_gap = nl.read_nonmem(table)
    problem = nl.Problem(Curved(), with_gap)
    values = problem.values(problem.start)
    posterior = Encoder.of(problem).posterior(problem, values, k=4000)
    assert float(posterior.mean[2].abs().max()) < 0.05
    torch.testing.assert_close(posterior.cov[2], values.omega, rtol=0.1, atol=0.02)
    assert float(posterior.log_likelihood[2]) == pytest.approx(0.0, abs=0.02)


def test_round_trip_through_json():
    problem = oral_problem()
    encoder = twisted(Encoder.of(problem, "gaussian", width=16, seed=5))
    other = Encoder.from_config(json.loads(json.dumps(encoder.config())))
    other.load_state_dict(encoder.state_dict())
    values = problem.values(problem.start)
    assert torch.equal(encoder.approximate(problem, values).raw, other.approximate(problem, values).raw)
    assert other.config() == encoder.config()


def test_seeds_decide_and_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    one, same, other = (Encoder.of(oral_problem(), seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.head.weight, same.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)
    assert one.head.weight.dtype == torch.float32
    assert one.approximate(oral_problem(), oral_problem().values(oral_problem().start)).raw.dtype == F64


def test_a_pool_of_nothing_is_finite():
    pool = Pool(3, 8, 2.0, torch.Generator().manual_seed(0))
    empty = pool(torch.randn(2, 4, 3), torch.zeros(2, 4)).detach()
    assert bool(empty.isfinite().all())
    assert float(empty.abs().max()) <= 1.0
