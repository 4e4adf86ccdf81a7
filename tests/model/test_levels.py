"""The vector of random effects with occasions: its order, covariance, derivatives, and what a page reads of it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from nested import Nested, Oral, linear_table, oral_table, population
from scipy.integrate import solve_ivp
from torch import Tensor, exp

import nlmegen as nl
from nlmegen.errors import DataError, ModelError
from nlmegen.model.levels import column
from nlmegen.model.parameters import Omega

F64 = torch.float64


def effects(problem: nl.Problem, seed: int = 0, size: float = 0.3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(problem.n_subjects, problem.q, generator=generator, dtype=F64)


def test_the_order_of_the_vector_and_its_covariance() -> None:
    problem = nl.Problem(Nested(), population(linear_table()))
    assert problem.eta_names == (
        "b",
        "s",
        *(f"kappa.{name}.{k}" for k in (1, 2, 3) for name in ("b", "s")),
    )
    assert problem.names[2:7] == (
        "omega.b",
        "omega.s",
        "omega.occ.b",
        "omega.occ.s,occ.b",
        "omega.occ.s",
    )
    within = torch.tensor([[0.15, 0.02], [0.02, 0.03]], dtype=F64)
    expected = torch.block_diag(torch.diag(torch.tensor([0.4, 0.05], dtype=F64)), within, within, within)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(problem.omega(problem.start), expected)
    torch.testing.assert_close(problem.page_omega(problem.start), expected[:4, :4])
    several = problem.values(problem.start.expand(3, -1)).factor
    assert several.shape == (3, 8, 8)
    assert problem.levels.present.sum(1).tolist() == [8, 8, 6, 8, 8, 6, 8, 8]
    assert problem.levels.numbers.tolist() == [8, 8, 22, 22]
    assert problem.mu_pairs == [(0, 0), (1, 1)]


def test_means_and_moments_over_the_occasions_that_there_are() -> None:
    levels = nl.Problem(Nested(), population(linear_table())).levels
    x = torch.randn(8, 8, dtype=F64)
    moment = x.unsqueeze(-1) * x.unsqueeze(-2)
    lines = [x[n, 2 + 2 * k : 4 + 2 * k] for n in range(8) for k in range(2 if n % 3 == 2 else 3)]
    kappas = torch.stack(lines)
    torch.testing.assert_close(levels.mean(x)[2:], kappas.mean(0))
    torch.testing.assert_close(levels.mean(x)[:2], x[:, :2].mean(0))
    pooled = levels.pooled(moment)
    torch.testing.assert_close(pooled[2:, 2:], kappas.mT @ kappas / len(kappas))
    torch.testing.assert_close(pooled[:2, :2], moment[:, :2, :2].mean(0))
    part = levels.select(torch.tensor([2, 5]))
    torch.testing.assert_close(part.mean(x[[2, 5]])[2:], x[[2, 5], 2:6].reshape(4, 2).mean(0))


def test_derivatives_against_differences() -> None:
    problem = nl.Problem(Oral(), population(oral_table()))
    assert problem.route.prepare(problem) is None
    assert "occasion" in problem.route.reason
    eta, values = effects(problem), problem.values(problem.start)
    found = problem.predict(eta, values, 2)
    assert found.jac is not None
    assert found.hess is not None
    step = 1e-5 * torch.eye(problem.q, dtype=F64)
    for k in range(problem.q):
        ahead, behind = (problem.predict(eta + side * step[k], values, 1) for side in (1.0, -1.0))
        assert ahead.jac is not None
        assert behind.jac is not None
        torch.testing.assert_close(found.jac[k], (ahead.f - behind.f) / 2e-5, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(found.hess[k], (ahead.jac - behind.jac) / 2e-5, rtol=1e-5, atol=1e-7)
    # an earlier occasion reaches into a later one through what is left of its dose, and not the other way about
    first = problem.time[0] <= 24.0
    later = [problem.eta_names.index(f"kappa.{name}.2") for name in ("cl", "ka")]
    assert not found.jac[later][..., first].any()
    assert found.jac[2][..., ~first].abs().min() > 0


class Infused(nl.Model):
    """One compartment with clearance by occasion alone, its amount seen."""

    tvcl = nl.Theta(2.0, lower=0)
    iov = nl.Omega(cl=0.2, level="occ")
    cp = nl.Additive(0.1)
    structure = nl.OneCompartment()

    def individual(self, theta, eta, cov, kappa):
        return dict(cl=theta.tvcl * exp(kappa.cl), v=10.0)

    def observe(self, t, a, p):
        return dict(cp=a.central)


RECORDS = pd.DataFrame(
    {
        "id": 1,
        "time": [0.0, 2.0, 5.0, 9.0, 11.0, 14.0, 20.0, 21.0],
        "amt": [100.0, 0, 0, 0, 50.0, 0, 0, 0],
        "dv": [np.nan, 1, 1, 1, np.nan, 1, 1, 1],
        "evid": [1, 0, 0, 0, 1, 0, 0, 0],
        "occ": [1, 1, 1, 2, 2, 2, 3, 3],
    }
)


ROUTES = {
    "closed": None,
    "compiled": nl.Solver(rtol=1e-10),
    "expm": nl.Solver(route="expm"),
    "torch": nl.Solver(route="torch", method="explicit", rtol=1e-10),
    "stiff": nl.Solver(route="torch", method="stiff", rtol=1e-9),
}


@pytest.mark.parametrize("form", ROUTES)
@pytest.mark.parametrize(
    ("interpolation", "borders"),
    [("nonmem", (5.0, 14.0)), ("locf", (9.0, 20.0)), ("linear", (5.0, 14.0))],
)
def test_kappa_changes_at_the_border_of_an_occasion(
    interpolation: str, borders: tuple[float, float], form: str
) -> None:
    """Against scipy, whose right-hand side changes clearance where the rule of interpolation says."""
    page = Infused() if form == "closed" else Infused().as_ode(ROUTES[form])
    problem = nl.Problem(page, population(RECORDS, interpolation=interpolation))
    kappa = torch.tensor([[0.5, -0.8, 1.1]], dtype=F64)
    found = problem.predict(kappa, problem.values(problem.start)).f[0].numpy()
    y, now, expected = 0.0, 0.0, []
    doses = {0.0: 100.0, 11.0: 50.0}
    for t in sorted({*RECORDS.time, *borders}):
        k = sum(t > b for b in borders)
        if t > now:
            rate = 0.2 * np.exp(float(kappa[0, k]))
            y = solve_ivp(lambda s, x, r=rate: -r * x, (now, t), [y], rtol=1e-12, atol=1e-12).y[0, -1]
            now = t
        y += doses.get(t, 0.0)
        if t in (2.0, 5.0, 9.0, 14.0, 20.0, 21.0):
            expected.append(y)
    np.testing.assert_allclose(found, expected, rtol=1e-9 if form in ("closed", "expm") else 1e-6)
    shown = problem.individual(kappa, problem.values(problem.start))["cl"][0].numpy()
    np.testing.assert_allclose(shown, 2 * np.exp(kappa[0, [0, 0, 1, 1, 2, 2]].numpy()))


def test_a_table_without_occasions_is_one_occasion_and_says_so() -> None:
    problem = nl.Problem(Nested(), population(linear_table().drop(columns="occ")))
    assert problem.eta_names == ("b", "s", "kappa.b.1", "kappa.s.1")
    assert problem.route.prepare(problem) is not None  # constant in time: machine code as ever
    assert "no occasions" in problem.levels.notes()[0]
    eta, values = effects(problem), problem.values(problem.start)
    plain = problem.uncompiled().predict(eta, values, 1)
    quick = problem.predict(eta, values, 1)
    assert plain.jac is not None
    assert quick.jac is not None
    torch.testing.assert_close(quick.f, plain.f)
    torch.testing.assert_close(quick.jac, plain.jac)
    one = population(linear_table(occasions=2).query("occ == 11"))
    assert "no subject has two" in nl.Problem(Nested(), one).levels.notes()[0]
    assert not nl.Problem(Nested(), population(linear_table())).levels.notes()


def test_a_selection_of_subjects_keeps_its_occasions() -> None:
    problem = nl.Problem(Oral(), population(oral_table()))
    eta, values = effects(problem), problem.values(problem.start)
    index = torch.tensor([4, 1, 1])
    part = problem.select(index)
    torch.testing.assert_close(part.predict(eta[index], values).f, problem.predict(eta, values).f[index])


def page(individual: object, **declared: object) -> type:
    return type("Page", (Nested,), {"individual": individual, "__module__": __name__, **declared})


def test_what_a_page_with_occasions_refuses() -> None:
    with pytest.raises(ModelError, match="'occ' .between the occasions"):
        Omega(ka=0.1, level="day")
    with pytest.raises(
        ModelError, match="iov declares random effects between occasions, which individual does not"
    ):
        page(lambda self, theta, eta, cov: {})
    with pytest.raises(ModelError, match="individual takes kappa, and the page declares no"):
        page(lambda self, theta, eta, cov, kappa: {}, iov=None)
    with pytest.raises(ModelError, match="'b' is declared twice"):
        page(lambda self, theta, eta, cov, kappa: {}, more=Omega(b=0.1, level="occ"))
    with pytest.raises(
        ModelError, match=r"individual must be written def individual\(self, theta, eta, cov\)"
    ):
        page(lambda self, theta, eta, kappa: {})
    data = population(linear_table())

    def misspelt(self, theta, eta, cov, kappa):
        return dict(base=theta.mu + eta.b + kappa.bb, slope=theta.slope + eta.s + kappa.s, cl=1.0, v=1.0)

    with pytest.raises(
        ModelError, match="kappa.bb: there is no such random effect.*level='occ'.*Did you mean 'b'"
    ):
        nl.Problem(page(misspelt)(), data)

    def unused(self, theta, eta, cov, kappa):
        return dict(base=theta.mu + eta.b + kappa.b, slope=theta.slope + eta.s, cl=1.0, v=1.0)

    with pytest.raises(ModelError, match="kappa.s is declared and never used"):
        nl.Problem(page(unused)(), data)


def test_values_of_a_page_with_occasions() -> None:
    model = Nested().with_values(omega={"occ.b": 0.6, "b": 0.1})
    assert model.effect_names == ("b", "s", "occ.b", "occ.s")
    assert float(model.omega[2, 2]) == pytest.approx(0.6)
    assert float(model.omega[3, 2]) == pytest.approx(0.02 * 2)  # the correlation stays
    assert float(model.omega[0, 0]) == pytest.approx(0.1)
    with pytest.raises(ModelError, match="'kappa.b' is not a random effect"):
        Nested().with_values(omega={"kappa.b": 0.1})
    matrix = Nested().omega.clone()
    matrix[0, 2] = matrix[2, 0] = 0.01
    with pytest.raises(ModelError, match="inside the blocks"):
        Nested().with_values(omega=matrix)
    assert 'level="occ"' in repr(Nested.iov)
    assert "omega occ.s,occ.b" in repr(model)


def test_columns_are_named_for_tables() -> None:
    assert [column(name) for name in ("cl", "kappa.cl.2")] == ["eta_cl", "kappa_cl_2"]


def test_an_occasion_on_every_record() -> None:
    table = linear_table()
    table["occ"] = table["occ"].astype(float)
    table.loc[3, "occ"] = np.nan
    with pytest.raises(DataError, match="occ"):
        nl.Problem(Nested(), population(table))


class Given(nl.Model):
    """Bioavailability, lag and duration by occasion: what `dosing` alone reads."""

    tvf = nl.Theta(0.8, lower=0)
    tvlag = nl.Theta(0.5, lower=0)
    tvd = nl.Theta(3.0, lower=0)
    iov = nl.Omega(f=0.1, lag=0.1, d=0.1, level="occ")
    cp = nl.Additive(0.1)
    structure = nl.OneCompartment(absorption="first-order")

    def individual(self, theta, eta, cov, kappa):
        return dict(
            f=theta.tvf * exp(kappa.f),
            lag=theta.tvlag * exp(kappa.lag),
            d=theta.tvd * exp(kappa.d),
            cl=1.0,
            v=10.0,
            ka=0.7,
        )

    def dosing(self, p):
        return dict(depot=nl.Dose(bioavailability=p.f, lag=p.lag), central=nl.Dose(duration=p.d))

    def observe(self, t, a, p):
        return dict(cp=a.central)


def superposed(kappa: np.ndarray, times: list[float], interpolation: str) -> list[float]:
    """Amounts in the central compartment after oral doses at 0, 24, 48 and an infusion from 30 on, by occasion."""
    f, lag, d = 0.8 * np.exp(kappa[:, 0]), 0.5 * np.exp(kappa[:, 1]), 3.0 * np.exp(kappa[:, 2])
    if interpolation == "nonmem":
        f[0] = f[1]  # the first dose lags into the interval of the second occasion
    out = []
    for t in times:
        total = 0.0
        for k, given in enumerate((0.0, 24.0, 48.0)):
            since = max(t - given - lag[k], 0.0)
            total += 100 * f[k] * 0.7 / 0.6 * (np.exp(-0.1 * since) - np.exp(-0.7 * since))
        since = max(t - 30.0, 0.0)
        running = min(since, d[1])
        total += 60 / d[1] / 0.1 * (1 - np.exp(-0.1 * running)) * np.exp(-0.1 * (since - running))
        out.append(total)
    return out


@pytest.mark.parametrize(
    ("form", "interpolation"),
    [*((form, "nonmem") for form in ROUTES if form != "stiff"), ("closed", "locf"), ("compiled", "locf")],
)
def test_a_dose_has_the_kappas_of_its_own_record_and_of_its_arrival(form: str, interpolation: str) -> None:
    """The first occasion is a dose alone: under NONMEM's rule the interval after it belongs to the second already.

    The lag is that of the record, the bioavailability that of the interval in which the lagged dose comes.
    """
    times = [25.0, 29.0, 31.0, 36.0, 50.0, 55.0]
    doses = pd.DataFrame(
        {"time": [0.0, 24, 30, 48], "amt": [100.0, 100, 60, 100], "rate": [0, 0, -2, 0], "cmt": [1, 1, 2, 1]}
    ).assign(evid=1, dv=np.nan, occ=[1, 2, 2, 3])
    seen = pd.DataFrame({"time": times}).assign(
        amt=0.0, rate=0, cmt=2, evid=0, dv=1.0, occ=[2, 2, 2, 2, 3, 3]
    )
    table = pd.concat([doses, seen]).sort_values(["time", "evid"], ascending=[True, False]).assign(id=1)
    page = Given() if form == "closed" else Given().as_ode(ROUTES[form])
    problem = nl.Problem(page, population(table, interpolation=interpolation))
    kappa = torch.tensor([[0.3, 0.2, 0.0, -0.4, -0.3, 0.6, 0.6, 0.5, 0.0]], dtype=F64)
    found = problem.predict(kappa, problem.values(problem.start), 1)
    matrix = kappa.numpy().reshape(3, 3)
    np.testing.assert_allclose(found.f[0].numpy(), superposed(matrix, times, interpolation), rtol=3e-6)
    assert found.jac is not None
    for j in range(9):
        step = np.zeros(9)
        step[j] = 1e-6
        ahead, behind = (superposed(matrix + s * step.reshape(3, 3), times, interpolation) for s in (1, -1))
        slope = (np.array(ahead) - np.array(behind)) / 2e-6
        np.testing.assert_allclose(
            found.jac[j, 0].numpy(), slope, atol=1e-4 * max(superposed(matrix, times, interpolation))
        )
