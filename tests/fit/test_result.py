"""`fit` and `Fit`: one verb for every method, the model untouched, tables that say what they hold."""

from __future__ import annotations

import math

import pytest
import torch
from problems import Straight, exact, straight_problem, straight_table

import nlmegen as nl
from nlmegen.errors import DataError, FitError, ModelError


@pytest.fixture(scope="module")
def result() -> nl.Fit:
    return nl.fit(Straight(), nl.read_nonmem(straight_table(40)), nl.FOCEI())


def test_the_model_handed_in_is_not_changed(result: nl.Fit) -> None:
    model = Straight()
    before = model.free.clone()
    again = nl.fit(model, result.population, nl.FOCEI())
    assert bool((model.free == before).all())
    assert again.ofv == pytest.approx(result.ofv, abs=1e-6)
    assert float(again.model.theta.tvb) != float(model.theta.tvb)


def test_the_objective_is_that_of_the_closed_form(result: nl.Fit) -> None:
    expected = float(exact(result.problem).log_likelihood.sum())
    assert result.log_likelihood == pytest.approx(expected, abs=1e-6)
    n = result.problem.n_observations
    assert result.ofv == pytest.approx(-2 * expected - n * math.log(2 * math.pi), abs=1e-5)
    assert result.aic == pytest.approx(-2 * expected + 2 * 6, abs=1e-5)
    assert result.bic == pytest.approx(-2 * expected + 5 * math.log(40) + math.log(n), abs=1e-5)


def test_a_class_will_do_and_a_start_comes_from_an_earlier_fit(result: nl.Fit) -> None:
    assert nl.fit(Straight, result.population, nl.FOCEI()).ofv == pytest.approx(result.ofv, abs=1e-6)
    there = nl.fit(Straight().with_values(result), result.population, nl.FOCEI(evaluate=True))
    assert there.ofv == pytest.approx(result.ofv, abs=1e-6)
    assert there.parameters["se"].isna().all()


def test_the_parameter_table(result: nl.Fit) -> None:
    table = result.parameters
    assert list(table.index) == ["tvb", "tvs", "omega.b", "omega.s,b", "omega.s", "cp.additive"]
    assert list(table["kind"]) == ["theta", "theta", "omega", "omega", "omega", "sigma"]
    assert table.loc["omega.s,b", "estimate"] == pytest.approx(float(result.model.omega[1, 0]))
    assert bool((table["ci_lower"] < table["estimate"]).all())
    assert bool((table["estimate"] < table["ci_upper"]).all())
    assert result.omega_se[0, 1] == pytest.approx(table.loc["omega.s,b", "se"])
    assert 1 < result.condition_number < 1000


def test_fixed_parameters_are_listed_without_a_standard_error() -> None:
    page = type("Fixed", (Straight,), {"__module__": __name__, "tvs": nl.Theta(0.5, fixed=True)})
    table = nl.fit(page, nl.read_nonmem(straight_table(20)), nl.FOCEI()).parameters
    assert table["fixed"].to_dict() == {name: name == "tvs" for name in table.index}
    assert math.isnan(table.loc["tvs", "se"])
    assert table.loc["tvs", "estimate"] == pytest.approx(0.5)


def test_shrinkage_is_that_of_the_modes(result: nl.Fit) -> None:
    sd = result.ebe.std(0)
    expected = 1 - sd / result.model.omega.diagonal().sqrt()
    assert list(result.shrinkage_eta.values()) == pytest.approx(expected.tolist())


def test_the_posterior_of_a_classic_fit_is_exact_where_the_page_is_linear(result: nl.Fit) -> None:
    truth = exact(result.problem)
    posterior = result.posterior(k=4000, seed=3)
    sd = truth.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    assert float(((posterior.mean - truth.mean) / sd).abs().max()) < 0.15
    new = nl.read_nonmem(straight_table(5, seed=9))
    assert list(result.posterior(new, k=200).table()["id"]) == list(new.ids)


@pytest.mark.parametrize("k", [24, 1, 0, -5])
def test_too_few_draws_are_refused(result: nl.Fit, k: int) -> None:
    with pytest.raises(DataError, match=rf"k={k}.*at least 25 draws"):
        result.posterior(k=k)


def test_the_fewest_draws_have_a_khat(result: nl.Fit) -> None:
    assert bool(result.posterior(k=25).khat.isfinite().all())


def test_text_and_html_say_how_it_went(result: nl.Fit) -> None:
    text = repr(result)
    assert "converged" in text
    assert "omega.s,b" in text
    assert "shrinkage" in text
    assert "<table" in result._repr_html_()


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (("theophylline", None, None), ModelError, "needs a model"),
        ((Straight, "theophylline", None), DataError, "needs a Population"),
        ((Straight, straight_problem().population, nl.FOCEI), FitError, "method object"),
    ],
)
def test_what_fit_refuses(arguments: tuple, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        nl.fit(*arguments)


def test_data_without_observations_are_refused() -> None:
    table = straight_table(3)
    doses = table[table.EVID == 1]
    with pytest.warns(UserWarning, match="without observations"):
        data = nl.read_nonmem(doses)
    with pytest.raises(DataError, match="no observation"):
        nl.fit(Straight, data, nl.FOCEI())


def test_a_page_without_random_effects() -> None:
    class Plain(nl.Model):
        """y = b + s t + eps."""

        tvb = nl.Theta(1.0)
        tvs = nl.Theta(0.5)
        cp = nl.Additive(0.4)
        structure = nl.OneCompartment()

        def individual(self, theta, eta, cov):
            return dict(base=theta.tvb, slope=theta.tvs, cl=1.0, v=1.0)

        def observe(self, t, a, p):
            return dict(cp=p.base + p.slope * t)

    data = nl.read_nonmem(straight_table(20))
    result = nl.fit(Plain, data, nl.FOCEI())
    t, y = data.time[data.mask], data.dv[data.mask]
    design = torch.stack([torch.ones_like(t), t], -1)
    expected = torch.linalg.lstsq(design, y.unsqueeze(-1)).solution.flatten()
    assert [float(result.model.theta.tvb), float(result.model.theta.tvs)] == pytest.approx(
        expected.tolist(), abs=1e-5
    )
    assert result.shrinkage_eta == {}
    assert "omega" not in repr(result)


def test_a_fit_runs_on_one_thread_and_gives_back_what_there_was() -> None:
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        nl.fit(
            Straight,
            nl.read_nonmem(straight_table(20)),
            nl.FOCEI(),
            lambda p: seen.append(torch.get_num_threads()),
        )
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
