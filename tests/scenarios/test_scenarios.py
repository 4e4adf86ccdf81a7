"""Every event on every model by every route: what NONMEM's PREDPP means by a table, to six digits and with derivatives.

One batched solve a model, variant and route holds all scenarios, a subject each; the answers are the `oracle`'s, which
is held against closed forms and NONMEM's own output first. Where a route cannot serve a combination, the error that it
gives is the answer.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scenarios import oracle, walking
from scenarios.models import EXPONENTS, MODELS, Kinetics, names, page, second_dose
from scenarios.table import SCENARIOS, see, steady
from scenarios.trials import ROUTES, VALUE, Trial, scenarios, trial, worst

import nlmegen as nl
from nlmegen.errors import DataError, ModelError
from nlmegen.model.problem import Problem

QUICK = ("closed", "expm", "compiled explicit", "compiled stiff")
TORCH = ("torch explicit", "torch stiff")
LINEAR = [m for m in MODELS.values() if m.linear]
VARYING = "parameters vary in time"
"""What the compiled route says of parameters that vary where doses are modelled, or records say more than doses."""
SAMPLE = {
    "torch explicit": ("Michaelis-Menten", "turnover"),
    "torch stiff": ("turnover",),
}
"""Models that the routes which take their time are tried with in every run."""


def served(model: Kinetics, route: str) -> bool:
    """Whether the page exists for this route: a closed form, equations linear in the amounts."""
    if route == "closed":
        return model.closed is not None
    return route != "expm" or model.linear


def available(route: str) -> None:
    if "compiled" in route and importlib.util.find_spec("llvmlite") is None:
        pytest.skip("the compiled route needs llvmlite")


def cases(*routes: str, models: Any = tuple(MODELS)) -> list[Any]:
    return [
        pytest.param(name, route, id=f"{name}-{route}")
        for route in routes
        for name in models
        if served(MODELS[name], route)
    ]


SAMPLED = [p for route, few in SAMPLE.items() for p in cases(route, models=few)]


def check(which: Trial, route: str) -> None:
    available(route)
    assert not (found := worst(which.errors(which.predict(route)))), f"\n{found}"


# -- every scenario --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("variant", ["plain", "modelled"])
@pytest.mark.parametrize(("model", "route"), cases(*QUICK))
def test_every_event(model: str, route: str, variant: str) -> None:
    check(trial(model, variant), route)


@pytest.mark.parametrize(("model", "route"), SAMPLED)
def test_some_events_through_torch(model: str, route: str) -> None:
    check(
        Trial(model, "modelled", tuple(scenarios("modelled", MODELS[model])[k] for k in range(3, 60, 5))),
        route,
    )


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["plain", "modelled"])
@pytest.mark.parametrize(("model", "route"), cases(*TORCH))
def test_every_event_through_torch(model: str, route: str, variant: str) -> None:
    check(trial(model, variant), route)


# -- covariates that change ------------------------------------------------------------------------------------
def changing(model: str, variant: str, rule: str, route: str) -> Trial:
    """The scenarios with weights that a route serves: the compiled one takes boluses, infusions and resets alone."""
    whole = trial(model, variant, rule)
    if "compiled" not in route:
        return whole
    return Trial(model, variant, tuple(n for n in whole.names if SCENARIOS[n].plain), rule)


@pytest.mark.parametrize("rule", ["nonmem", "locf", "linear"])
@pytest.mark.parametrize(
    ("model", "route"),
    [
        *cases("closed", models=("one", "two oral", "three")),
        *cases("expm", models=("one oral",)),
        *cases("compiled explicit", models=("Michaelis-Menten oral", "turnover")),
        *cases("compiled stiff", models=("one oral",)),
    ],
)
def test_weights_that_change(model: str, route: str, rule: str) -> None:
    check(changing(model, "weight", rule, route), route)


@pytest.mark.parametrize("variant", ["both", "factor"])
@pytest.mark.parametrize("rule", ["nonmem", "locf", "linear"])
@pytest.mark.parametrize(
    ("model", "route"),
    [*cases("closed", models=("one", "two oral")), *cases("expm", models=("one",))],
)
def test_weights_that_change_where_doses_are_modelled(
    model: str, route: str, rule: str, variant: str
) -> None:
    check(trial(model, variant, rule), route)


@pytest.mark.parametrize("rule", ["nonmem", "locf", "linear"])
@pytest.mark.parametrize(("model", "route"), cases("closed", models=("one",)))
def test_doses_that_follow_weights_that_change(model: str, route: str, rule: str) -> None:
    """Lag, bioavailability, duration and rate each of the moment that PREDPP takes it from."""
    check(trial(model, "late", rule), route)


ACROSS = (
    "late additional doses",
    "a late dose after the next record",
    "a late dose and a reset",
    "infusions that overlap themselves",
    "modelled beside recorded ones",
    "modelled durations that overlap",
)
"""Doses that come after a change of the weight."""


def test_late_doses_by_the_exponential() -> None:
    check(Trial("one oral", "late", ACROSS), "expm")


@pytest.mark.parametrize("route", TORCH)
def test_late_doses_through_torch(route: str) -> None:
    which = Trial("Michaelis-Menten", "late", ACROSS[:1] if "stiff" in route else (ACROSS[0], ACROSS[4]))
    got = which.predict(route, 0).f
    for n, (expected, _, _) in enumerate(which.expected):
        assert np.abs(got[n, : len(expected)].numpy() - expected).max() <= VALUE * expected.max()


@pytest.mark.parametrize("closed", [True, False])
def test_late_doses_arrive_draw_by_draw(closed: bool) -> None:
    """Draws together give what each gives alone, though their doses arrive in different intervals."""
    which = Trial("one oral", "late", ACROSS)
    problem = Problem(page("one oral", "late", closed)(), which.population)
    draw = torch.from_numpy(which.eta) + torch.tensor([-1.5, 0.0, 1.2], dtype=torch.float64)[:, None, None]
    together = problem.predict(draw, problem.model.values, order=1)
    for k, eta in enumerate(draw):
        alone = problem.predict(eta, problem.model.values, order=1)
        torch.testing.assert_close(together.f[k], alone.f, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(together.jac[:, k], alone.jac, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["weight", "both", "factor", "late"])
@pytest.mark.parametrize(("model", "route"), cases("closed", "expm", *TORCH))
def test_weights_that_change_on_every_model(model: str, route: str, variant: str) -> None:
    check(trial(model, variant), route)


@pytest.mark.parametrize(
    ("model", "route"), [("one oral", "compiled explicit"), ("turnover", "compiled stiff")]
)
def test_the_compiled_route_says_what_it_does_not_do_where_weights_change(model: str, route: str) -> None:
    """Each kind of scenario that it leaves to the others, one by one."""
    available(route)
    for variant in ("weight", "both", "factor"):
        for name in scenarios(variant, MODELS[model]):
            if variant == "weight" and SCENARIOS[name].plain:
                continue
            if len({r["evid"] for r in SCENARIOS[name].records}) == 1:
                continue
            with pytest.raises(ModelError, match=VARYING):
                Trial(model, variant, (name,)).predict(route, 1)


@pytest.mark.parametrize("model", ["one oral", "turnover"])
def test_left_alone_the_solver_takes_a_route_that_serves(model: str) -> None:
    """route="auto" on what the compiled route does not do."""
    available("compiled")
    names = ("steady state, boluses", "late additional doses")
    for variant in ("weight", "both"):
        which = Trial(model, variant, names)
        problem = Problem(page(model, variant, False)(), which.population)
        got = problem.predict(torch.from_numpy(which.eta), problem.model.values, order=2)
        assert not (found := worst(which.errors(got))), f"\n{found}"


# -- what is refused -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("scenario", [s for s in SCENARIOS.values() if s.refused], ids=str)
def test_records_that_are_refused(scenario: Any) -> None:
    with pytest.raises(DataError, match=scenario.refused):
        _ = Trial("one oral", "modelled", (scenario.name,)).population


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("scenario", [s for s in SCENARIOS.values() if s.modelled and not s.refused], ids=str)
def test_modelled_records_on_a_page_that_does_not_model_them(scenario: Any, closed: bool) -> None:
    which = Trial("one oral", "plain", (scenario.name,))
    with pytest.raises(DataError, match="expected the page to give the (rate|duration) of doses into depot"):
        Problem(page("one oral", "plain", closed)(), which.population)


@pytest.mark.parametrize("model", [m for m in MODELS.values() if not m.linear], ids=str)
def test_the_exponential_is_for_linear_equations(model: Kinetics) -> None:
    with pytest.raises(ModelError, match="not linear"):
        page(model.name, "plain", False)().with_solver(ROUTES["expm"])


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("place", [2, 3])
def test_a_compartment_that_is_filled_by_others_cannot_be_switched_off(route: str, place: int) -> None:
    available(route)
    which = Trial("two oral", "plain", ("bolus",))
    table = which.table
    off = table.iloc[:1].assign(time=3.0, evid=2, amt=0.0, mdv=1, cmt=-place)
    rows = pd.concat((table, off)).sort_values("time", kind="stable").reset_index(drop=True)
    switched = nl.Population.from_table(rows, warn=False)

    def predicted() -> None:
        problem = Problem(which.page(route), switched)
        problem.predict(torch.from_numpy(which.eta), problem.model.values)

    with pytest.raises(DataError, match="switch|off"):
        predicted()


def own(records: list[dict[str, Any]], name: str) -> Trial:
    """A trial of records that are in no table."""

    class Other(Trial):
        def records(self, _: str) -> list[dict[str, Any]]:
            return [r | dict(cmt=1 if r["cmt"] == "A" else 2, cov_wt=70.0) for r in records]

    return Other("one oral", "modelled", (name,))


@pytest.mark.parametrize("route", ["closed", "expm", "compiled explicit", "torch explicit"])
def test_a_lag_as_long_as_the_interval_of_a_steady_state_has_no_answer(route: str) -> None:
    """NONMEM asks for a lag below II."""
    available(route)
    which = own([steady(0, ii=0.5, amt=10), *see(1.0, 3.0)], "bolus")
    problem = Problem(which.page(route), which.population)
    with pytest.raises(DataError, match="at the start"):
        problem.check(problem.values(problem.start))


@pytest.mark.parametrize("route", ["compiled explicit", "torch explicit"])
def test_more_than_can_be_eliminated_has_no_steady_state(route: str) -> None:
    available(route)
    records = [steady(0, ii=4, amt=200), *see(1.0, 3.0)]

    class Other(Trial):
        def records(self, _: str) -> list[dict[str, Any]]:
            return [r | dict(cmt=1, cov_wt=70.0) for r in records]

    which = Other("Michaelis-Menten", "plain", ("bolus",))
    problem = Problem(which.page(route), which.population)
    assert problem.predict(torch.from_numpy(which.eta), problem.model.values).f.isnan().all()


# -- occasions -------------------------------------------------------------------------------------------------
class Occasions(nl.Model):
    """Oral, clearance that differs between occasions."""

    tvcl = nl.Theta(2.1)
    tvv = nl.Theta(21.0)
    tvka = nl.Theta(0.9)
    iiv = nl.Omega(cl=0.1, ka=0.1)
    iov = nl.Omega(kcl=0.05, level="occ")
    cp = nl.Additive(0.1)
    structure = nl.OneCompartment("first-order")

    def individual(self, theta, eta, cov, kappa):
        cl = theta.tvcl * torch.exp(eta.cl + kappa.kcl)
        return dict(cl=cl, v=theta.tvv, ka=theta.tvka * torch.exp(eta.ka))

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


@pytest.mark.parametrize(
    "name", ["boluses", "overlapping infusions", "additional doses", "resets", "steady state twice"]
)
def test_occasions_change_like_a_covariate(name: str) -> None:
    """Clearance exp(kappa) of the occasion is clearance by a weight that gives the same factor, (wt/70)^0.75."""
    which = Trial("one oral", "weight", (name,))
    weights = which.table.cov_wt
    codes = {w: k + 1 for k, w in enumerate(dict.fromkeys(weights))}
    table = which.table.drop(columns="cov_wt").assign(occ=[codes[w] for w in weights])
    problem = Problem(Occasions(), nl.Population.from_table(table, warn=False))
    eta = np.concatenate([which.eta[0, [0, 2]], [0.75 * np.log(w / 70.0) for w in codes]])
    got = problem.predict(torch.from_numpy(eta[None]), problem.spread(problem.model.values))
    # the weighted page has effects of cl, v and ka: its value at these is what is wanted with v typical
    same = Problem(page("one oral", "weight", True)(), which.population)
    at = torch.from_numpy(which.eta * np.array([1.0, 0.0, 1.0]))
    expected = same.predict(at, same.model.values).f
    assert float((got.f - expected).abs().max()) <= 1e-12 * float(expected.abs().max())


class LateOccasions(nl.Model):
    """The page "one oral, late" without effects of its own, an occasion in place of the weight."""

    iov = nl.Omega(size=0.05, level="occ")
    cp = nl.Additive(0.1)
    structure = nl.OneCompartment("first-order")

    def individual(self, theta, eta, cov, kappa):
        return {
            k: v * torch.exp(EXPONENTS.get(k, 0.0) * kappa.size)
            for k, v in names(MODELS["one oral"], "late").items()
        }

    def dosing(self, p):
        return dict(
            depot=nl.Dose(lag=p.lag, bioavailability=p.f, duration=p.dur, rate=p.rate),
            central=nl.Dose(**second_dose(p, p.lag)),
        )

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


@pytest.mark.parametrize("name", [*ACROSS, "modelled rate and duration, additional doses"])
def test_late_doses_of_occasions(name: str) -> None:
    """An occasion acts on lag, bioavailability, duration and rate as a weight of the same size does."""
    which = Trial("one oral", "late", (name,))
    weights = which.table.cov_wt
    codes = {w: k + 1 for k, w in enumerate(dict.fromkeys(weights))}
    table = which.table.drop(columns="cov_wt").assign(occ=[codes[w] for w in weights])
    problem = Problem(LateOccasions(), nl.Population.from_table(table, warn=False))
    eta = np.log(np.array([*codes]) / 70.0)
    got = problem.predict(torch.from_numpy(eta[None]), problem.spread(problem.model.values))
    still = walking.columns(np.zeros((0, which.eta.shape[1])))
    subject = oracle.Subject(
        which.equations, which.records(name), which.equations.parameters(0.0 * which.eta[0], still)
    )
    expected = np.concatenate(walking.walk([subject], exact=True)[0]).real[:, 0]
    assert np.abs(got.f[0].numpy() - expected).max() <= 1e-9 * expected.max()
