"""Simulated patients: their law, their seeds, and the way back through the data reader."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from problems import Straight
from torch import exp

import nlmegen as nl
from nlmegen.errors import DataError, ModelError
from nlmegen.simulate import trial
from nlmegen.simulate.cohort import Cohort
from nlmegen.simulate.trial import replicate, simulate, stream


class TwoEndpoints(nl.Model):
    """Bolus; concentration (DVID 1, log-normal) and amount left (DVID 2, proportional)."""

    tvcl = nl.Theta(1.0, lower=0)
    tvv = nl.Theta(10.0, lower=0)
    iiv = nl.Omega(cl=0.1)
    cp = nl.LogNormal(0.2)
    left = nl.Proportional(0.1)
    structure = nl.OneCompartment()

    def individual(self, theta: Any, eta: Any, cov: Any) -> Any:
        return dict(cl=theta.tvcl * exp(eta.cl), v=theta.tvv)

    def observe(self, t: Any, a: Any, p: Any) -> Any:
        return dict(cp=a.central / p.v, left=a.central)


def test_mean_and_covariance_of_a_linear_model() -> None:
    n, times = 20_000, [1.0, 3.0]
    table = simulate(Straight(), Cohort(n, "1", times=times), seed=4)
    y = table.loc[table["evid"] == 0, "dv"].to_numpy().reshape(n, 2)
    z = np.array([[1.0, 1.0], [1.0, 3.0]])
    cov = z @ np.array([[0.5, 0.12], [0.12, 0.1]]) @ z.T + 0.16 * np.eye(2)
    assert (np.abs(y.mean(0) - [1.5, 2.5]) < 4.5 * np.sqrt(np.diag(cov) / n)).all()
    got = np.cov(y.T)
    error = np.sqrt((np.outer(np.diag(cov), np.diag(cov)) + cov**2) / n)
    assert (np.abs(got - cov) < 4.5 * error).all()


def test_without_residual_error_the_residual_variance_is_gone() -> None:
    cohort = Cohort(20_000, "1", times=[1.0, 3.0])
    y = simulate(Straight(), cohort, seed=4, residual=False)
    y = y.loc[y["evid"] == 0, "dv"].to_numpy().reshape(-1, 2)
    z = np.array([[1.0, 1.0], [1.0, 3.0]])
    cov = z @ np.array([[0.5, 0.12], [0.12, 0.1]]) @ z.T
    error = np.sqrt((np.outer(np.diag(cov), np.diag(cov)) + cov**2) / 20_000)
    assert (np.abs(np.cov(y.T) - cov) < 4.5 * error).all()


def test_same_seed_same_patients_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "BLOCK", 10)
    donors = pd.DataFrame({"wt": [50.0, 70.0, 90.0]})
    cohort = Cohort(57, {"a": "3/kg every 12 x 2", "b": "100"}, times="0:24:6", covariates=donors)
    model = nl.load_model("theophylline")
    whole = simulate(model, cohort, seed=5)
    for chunk in (1, 10, 25, 57, 1000):
        tables = list(stream(model, cohort, seed=5, chunk=chunk))
        assert len(tables) == {1: 6, 10: 6, 25: 2, 57: 1, 1000: 1}[chunk]
        pd.testing.assert_frame_equal(pd.concat(tables, ignore_index=True), whole)
    assert not whole.equals(simulate(model, cohort, seed=6))


def test_blocks_do_not_repeat_each_other() -> None:
    table = simulate(nl.load_model("theophylline"), Cohort(2500, "320", times=[4.0]), seed=1, truth=True)
    assert table["eta_ka"].nunique() == 2500
    assert table.loc[table["evid"] == 0, "dv"].nunique() == 2500


def test_a_simulated_table_reads_back(tmp_path: Any) -> None:
    model = nl.load_model("phenobarbital")
    donors = nl.load_data("phenobarbital")
    cohort = Cohort(
        30, "20/kg over 0.5 + 2.5/kg every 12 x 9 at 12", times=[2.0, 50.0, 110.0], covariates=donors
    )
    table = simulate(model, cohort, seed=3)
    nl.write_nonmem(table, tmp_path / "cohort.csv")
    read = nl.read_nonmem(tmp_path / "cohort.csv")
    direct = cohort.population(seed=3)
    for name in ("time", "kind", "amount", "rate", "compartment"):
        torch.testing.assert_close(getattr(read.events, name), getattr(direct.events, name))
    torch.testing.assert_close(read.time, direct.time)
    assert set(read.covariates) == {"wt", "apgr"}
    for name, covariate in read.covariates.items():
        torch.testing.assert_close(covariate.observation, direct.covariates[name].observation)
    problem = nl.Problem(model, read)
    torch.testing.assert_close(
        problem.y[read.mask], torch.tensor(table.loc[table["evid"] == 0, "dv"].to_numpy())
    )
    assert list(table.columns[:8]) == ["id", "time", "amt", "rate", "cmt", "evid", "mdv", "dv"]


def test_the_truth_is_true() -> None:
    model = nl.load_model("phenobarbital")
    donors = nl.load_data("phenobarbital")
    cohort = Cohort(40, "20/kg", times=[2.0, 50.0], covariates=donors)
    table = simulate(model, cohort, seed=3, truth=True)
    cl = float(model.theta.tvcl) * table["wt"] * np.exp(table["eta_cl"])
    v = float(model.theta.tvv) * table["wt"] * (1 + 0.1 * (table["apgr"] < 5)) * np.exp(table["eta_v"])
    np.testing.assert_allclose(table["true_cl"], cl)
    np.testing.assert_allclose(table["true_v"], v)
    seen = table[table["evid"] == 0]
    expected = 20 * seen["wt"] / seen["true_v"] * np.exp(-seen["true_cl"] / seen["true_v"] * seen["time"])
    np.testing.assert_allclose(seen["ipred"], expected, rtol=1e-9)
    noise = (seen["dv"] / seen["ipred"] - 1) / 0.15
    assert abs(noise.mean()) < 4 / np.sqrt(80)
    assert abs(noise.std() - 1) < 4 / np.sqrt(160)


def test_the_truth_is_no_covariate() -> None:
    table = simulate(nl.load_model("theophylline"), Cohort(5, "320", times=[1.0, 4.0]), truth=True)
    assert not nl.read_nonmem(table).covariates


def test_several_endpoints_give_a_record_each() -> None:
    table = simulate(TwoEndpoints(), Cohort(4, "100", times=[0.0, 5.0]), seed=1, residual=False)
    seen = table[table["evid"] == 0]
    assert seen["dvid"].astype(int).tolist() == [1, 2, 1, 2] * 4
    left = seen.loc[seen["dvid"].astype(int) == 2, "dv"].to_numpy()
    np.testing.assert_allclose(seen.loc[seen["dvid"].astype(int) == 1, "dv"], left / 10, rtol=1e-12)
    problem = nl.Problem(TwoEndpoints(), nl.read_nonmem(table))
    assert problem.n_observations == 16


def test_a_sample_that_cannot_be_observed_is_no_observation() -> None:
    table = simulate(TwoEndpoints(), Cohort(3, "100 at 2", times=[1.0, 5.0]), seed=1)
    early = table[(table["evid"] == 0) & (table["time"] == 1.0)]
    assert (early["mdv"] == 1).all()
    assert (table.loc[(table["evid"] == 0) & (table["time"] == 5.0), "mdv"] == 0).all()
    problem = nl.Problem(TwoEndpoints(), nl.read_nonmem(table))
    problem.check(problem.values(problem.start))


def test_a_population_is_simulated_at_its_own_records() -> None:
    data = nl.load_data("theophylline")
    model = nl.load_model("theophylline")
    table = simulate(model, data, seed=2, replicates=3)
    assert table["replicate"].value_counts().tolist() == [len(data.table)] * 3
    for k, own in table.groupby("replicate"):
        kept = own.drop(columns=["replicate", "dv"]).reset_index(drop=True)
        pd.testing.assert_frame_equal(kept, data.table.drop(columns="dv"))
        assert own.loc[own["evid"] == 0, "dv"].notna().all()
        if k == 1:
            pd.testing.assert_series_equal(own["dv"], simulate(model, data, seed=2)["dv"])
    assert table.groupby("replicate")["dv"].sum().nunique() == 3


def test_replicates_do_not_depend_on_how_many_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = nl.Problem(nl.load_model("theophylline"), nl.load_data("theophylline"))
    values = problem.model.values
    many = torch.cat(list(replicate(problem, values, 7, seed=1)))
    monkeypatch.setattr(trial, "_NUMBERS", 1)
    few = torch.cat(list(replicate(problem, values, 3, seed=1)))
    torch.testing.assert_close(many[:3], few, rtol=0, atol=0)
    assert len(many) == 7


def test_what_a_model_cannot_use() -> None:
    with pytest.raises(DataError, match="replicates"):
        simulate(nl.load_model("theophylline"), Cohort(3, "100", times=[1.0]), replicates=2)
    with pytest.raises(DataError, match="wt"):
        simulate(nl.load_model("phenobarbital"), Cohort(3, "100", times=[1.0]))
    with pytest.raises(DataError, match="liver"):
        simulate(nl.load_model("theophylline"), Cohort(3, "100 into liver", times=[1.0]))
    with pytest.raises(DataError, match="got DataFrame"):
        simulate(nl.load_model("theophylline"), pd.DataFrame({"id": [1]}))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="got str"):
        simulate("theophylline", Cohort(3, "100", times=[1.0]))


def test_a_prediction_that_is_no_number_is_no_patient() -> None:
    wild = nl.load_model("theophylline").with_values(omega={"ka": 1e6})
    with pytest.raises(ModelError, match=r"\d+ of 50 patients"):
        simulate(wild, Cohort(50, "100", times=[1.0]))


def test_a_fit_is_simulated_at_its_estimates() -> None:
    class Fitted:
        model = nl.load_model("theophylline").with_values(theta={"tvcl": 1.0})

    cohort = Cohort(3, "100", times=[1.0])
    pd.testing.assert_frame_equal(simulate(Fitted(), cohort), simulate(Fitted.model, cohort))


def test_truth_of_a_bootstrap_is_each_patients_own() -> None:
    again = nl.load_data("theophylline").select([0, 0, 1])
    table = simulate(nl.load_model("theophylline"), again, seed=1, truth=True)
    size = np.bincount(np.repeat(np.arange(3), [len(again.select([k]).table) for k in range(3)]))
    patient = np.repeat(np.arange(3), size)
    assert (table.groupby(patient)["eta_ka"].nunique() == 1).all()
    assert table["eta_ka"].nunique() == 3


def test_columns_of_an_old_dv_are_dropped() -> None:
    data = nl.load_data("theophylline")
    stale = ["pred", "ipred", "cwres", "npde", "eta_ka", "true_cl"]
    source = nl.Population.from_table(data.table.assign(**dict.fromkeys(stale, 7.0), tad=1.0), warn=False)
    table = simulate(nl.load_model("theophylline"), source, seed=2)
    assert list(table.columns) == [*data.table.columns, "tad"]
    truth = simulate(nl.load_model("theophylline"), source, seed=2, truth=True)
    assert not (truth[["ipred", "eta_ka", "true_cl"]] == 7).any().any()
    assert "cwres" not in truth


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"replicates": -1}, "replicates: expected a whole number of 1 or more, got -1"),
        ({"replicates": 0}, "replicates"),
        ({"replicates": 2.5}, "replicates"),
        ({"seed": "a"}, "seed: expected a whole number of 0 or more, got 'a'"),
        ({"seed": None}, "seed"),
        ({"seed": -1}, "seed"),
        ({"residual": "no"}, "residual: expected True or False, got 'no'"),
        ({"truth": 1}, "truth"),
    ],
)
def test_options_of_another_kind(options: dict[str, Any], word: str) -> None:
    model = nl.load_model("theophylline")
    with pytest.raises(DataError, match=word):
        simulate(model, nl.load_data("theophylline"), **options)
    if "replicates" not in options:
        with pytest.raises(DataError, match=word):
            simulate(model, Cohort(2, "100", times=[1.0]), **options)


def test_replicates_leave_a_covariate_of_that_name_alone() -> None:
    data = nl.load_data("theophylline")
    source = nl.Population.from_table(data.table.assign(replicate=3.0), warn=False)
    with pytest.raises(DataError, match="a covariate 'replicate'"):
        simulate(nl.load_model("theophylline"), source, replicates=2)
