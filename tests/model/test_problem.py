"""The binding of page and data: the joint density against a hand computation, derivatives, mu-references, refusals."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import exp

import nlmegen as nl
from nlmegen.errors import DataError, ModelError
from nlmegen.model.problem import Directions

F64 = torch.float64

TABLE = pd.DataFrame(
    {
        "ID": [1, 1, 1, 1, 2, 2, 2],
        "TIME": [0.0, 1.0, 4.0, 9.0, 0.0, 2.0, 6.0],
        "AMT": [100.0, 0, 0, 0, 50.0, 0, 0],
        "DV": [0.0, 4.1, 2.9, 1.2, 0.0, 2.0, 1.1],
        "EVID": [1, 0, 0, 0, 1, 0, 0],
        "WT": [70.0, 70, 70, 70, 50.0, 50, 50],
        "SEX": ["m", "m", "m", "m", "f", "f", "f"],
    }
)


class Page(nl.Model):
    """A bolus into one compartment."""

    tvcl = nl.Theta(2.0, lower=0)
    tvv = nl.Theta(20.0, lower=0)
    power = nl.Theta(0.75)
    iiv = nl.Omega(cl=0.1, v=0.04, cov=[0.02])
    cp = nl.Combined(additive=0.5, proportional=0.1)
    structure = nl.OneCompartment()

    def individual(self, theta, eta, cov):
        return dict(cl=theta.tvcl * (cov.wt / 70) ** theta.power * exp(eta.cl), v=theta.tvv * exp(eta.v))

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


def page(**changes):
    return type("Changed", (Page,), {"__module__": __name__, **changes})()


def data(table: pd.DataFrame = TABLE) -> nl.Population:
    return nl.read_nonmem(table)


def by_hand(problem: nl.Problem, eta: np.ndarray) -> list[float]:
    """log p(y, eta) with scipy's densities and the textbook bolus formula."""
    out = []
    omega = np.array([[0.1, 0.02], [0.02, 0.04]])
    for n, (dose, wt) in enumerate([(100, 70), (50, 50)]):
        rows = TABLE[(n + 1 == TABLE.ID) & (TABLE.EVID == 0)]
        cl, v = 2.0 * (wt / 70) ** 0.75 * math.exp(eta[n, 0]), 20.0 * math.exp(eta[n, 1])
        f = dose / v * np.exp(-cl / v * rows.TIME.to_numpy())
        sd = np.sqrt(0.5**2 + (0.1 * f) ** 2)
        out.append(
            stats.norm.logpdf(rows.DV.to_numpy(), f, sd).sum()
            + stats.multivariate_normal.logpdf(eta[n], np.zeros(2), omega)
        )
    return out


def test_the_joint_density_equals_a_hand_computation() -> None:
    problem = nl.Problem(Page(), data())
    eta = 0.3 * torch.randn(2, 2, dtype=F64)
    ours = problem.log_joint(eta, problem.values(problem.start))
    torch.testing.assert_close(
        ours, torch.tensor(by_hand(problem, eta.numpy()), dtype=F64), rtol=1e-12, atol=1e-12
    )


def test_draws_and_batches_of_parameters_broadcast() -> None:
    problem = nl.Problem(Page(), data())
    eta = 0.3 * torch.randn(4, 2, 2, dtype=F64)
    free = problem.start + 0.1 * torch.randn(4, problem.P, dtype=F64)
    together = problem.log_joint(eta, problem.values(free))
    apart = torch.stack([problem.log_joint(e, problem.values(x)) for e, x in zip(eta, free, strict=True)])
    torch.testing.assert_close(together, apart)


def test_derivatives_against_differences_and_along_directions() -> None:
    problem = nl.Problem(Page(), data())
    values = problem.values(problem.start)
    eta = 0.3 * torch.randn(2, 2, dtype=F64)
    at = problem.predict(eta, values, order=2)
    h = 1e-5
    for k in range(2):
        step = h * torch.eye(2, dtype=F64)[k]
        up, down = problem.predict(eta + step, values, 1), problem.predict(eta - step, values, 1)
        torch.testing.assert_close(at.jac[k], (up.f - down.f) / (2 * h), rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(at.hess[k], (up.jac - down.jac) / (2 * h), rtol=1e-6, atol=1e-7)
    along = Directions(
        torch.tensor([0.5, -1.0], dtype=F64).expand(1, 2, 2), {"power": torch.ones(1, 1, 1, dtype=F64)}
    )
    moved = problem.predict(eta, values, order=1, directions=along)
    free = problem.start.clone()
    free[2] += h
    shifted = problem.predict(eta + h * along.eta[0], problem.values(free)).f
    torch.testing.assert_close(moved.jac[0], (shifted - at.f) / h, rtol=1e-3, atol=1e-4)


def test_mu_references_are_found_and_nothing_else() -> None:
    assert nl.Problem(Page(), data()).mu_pairs == [(0, 0), (1, 1)]
    linear = page(
        individual=lambda self, theta, eta, cov: dict(
            cl=theta.tvcl + eta.cl + 0 * theta.power, v=theta.tvv * exp(eta.v)
        )
    )
    assert nl.Problem(linear, data()).mu_pairs == [(1, 1)]
    unbounded = page(
        tvcl=nl.Theta(2.0),
        individual=lambda self, theta, eta, cov: dict(
            cl=theta.tvcl + eta.cl + 0 * theta.power, v=theta.tvv * exp(eta.v)
        ),
    )
    assert nl.Problem(unbounded, data()).mu_pairs == [(0, 0), (1, 1)]


def test_fixed_parameters_stay_out_of_the_free_vector() -> None:
    problem = nl.Problem(
        page(tvv=nl.Theta(20.0, lower=0, fixed=True), iiv=nl.Omega(cl=0.1, v=0.04, fixed=True)), data()
    )
    assert problem.names == ("tvcl", "power", "cp.additive", "cp.proportional")
    free = problem.start + 0.1
    assert float(problem.values(free).theta["tvv"]) == pytest.approx(20.0)
    assert problem.full(free.expand(3, -1)).shape == (3, 7)


def test_select_gives_the_same_rows_in_any_order() -> None:
    problem = nl.Problem(Page(), data())
    values = problem.values(problem.start)
    eta = 0.3 * torch.randn(3, 2, dtype=F64)
    index = torch.tensor([1, 0, 1])
    picked = problem.select(index).log_joint(eta, values)
    whole = torch.stack([problem.log_joint(eta[[0, 0]], values)[1], problem.log_joint(eta[[1, 1]], values)[0],
                         problem.log_joint(eta[[2, 2]], values)[1]])  # fmt: skip
    torch.testing.assert_close(picked, whole)


def test_time_varying_covariates_follow_the_next_record() -> None:
    table = TABLE.assign(WT=[70.0, 70, 90, 90, 50, 50, 50])
    problem = nl.Problem(Page(), data(table))
    assert problem.varies
    f = problem.predict(torch.zeros(2, 2, dtype=F64), problem.values(problem.start)).f[0]
    k = [2.0 * (w / 70) ** 0.75 / 20.0 for w in (70, 90, 90)]
    amount, expected = 100.0, []
    for rate, step in zip(k, (1.0, 3.0, 5.0), strict=True):
        amount *= math.exp(-rate * step)
        expected.append(amount / 20.0)
    torch.testing.assert_close(f, torch.tensor(expected, dtype=F64))


def test_a_varying_column_that_the_page_does_not_read_costs_nothing() -> None:
    plain, noted = nl.Problem(Page(), data()), nl.Problem(Page(), data(TABLE.assign(NOTE=range(7))))
    assert noted.population.events.time.shape[1] > 1
    assert not noted.varies
    eta = 0.3 * torch.randn(2, 2, dtype=F64)
    values = plain.values(plain.start)
    torch.testing.assert_close(noted.log_joint(eta, values), plain.log_joint(eta, values), rtol=0, atol=0)
    some = nl.Problem(Page(), noted.population.select([1]))
    torch.testing.assert_close(some.log_joint(eta[1:], values), plain.log_joint(eta, values)[1:])


def test_no_subjects_at_all_are_refused() -> None:
    with pytest.raises(DataError, match="no subject"):
        nl.Problem(Page(), data().select([]))


def test_the_endpoints_take_their_dvid() -> None:
    table = TABLE.assign(DVID=["cp", "cp", "pd", "cp", "cp", "cp", "pd"])
    both = page(
        pd=nl.Additive(2.0), observe=lambda self, t, a, p: dict(cp=a.central / p.v, pd=10 + 0 * a.central)
    )
    problem = nl.Problem(both, data(table))
    f = problem.predict(torch.zeros(2, 2, dtype=F64), problem.values(problem.start)).f
    assert (f == 10).tolist() == [[False, True, False], [False, True, False]]
    r = problem.variance(f, problem.values(problem.start))[0].expand(f.shape)
    assert r[0, 1].item() == pytest.approx(4.0)
    with pytest.raises(DataError, match="no endpoint of the page takes .* pd"):
        nl.Problem(Page(), data(table))


def test_endpoints_that_share_or_lack_a_dvid_are_refused() -> None:
    def two(**kinds):
        return page(observe=lambda self, t, a, p: dict(cp=a.central / p.v, pd=10 + 0 * a.central), **kinds)

    table = TABLE.assign(DVID=[1, 1, 2, 1, 1, 1, 2])
    nl.Problem(two(cp=nl.Additive(0.5), pd=nl.Additive(2.0)), data(table))
    with pytest.raises(ModelError, match="cp and pd both take DVID 1"):
        nl.Problem(two(cp=nl.Additive(0.5, dvid=1), pd=nl.Additive(2.0, dvid=1)), data(table))
    with pytest.raises(DataError, match="pd takes DVID 3, which no observation has"):
        nl.Problem(two(cp=nl.Additive(0.5), pd=nl.Additive(2.0, dvid=3)), data(table))


PAGES = {
    "python if": (
        dict(individual=lambda self, theta, eta, cov: dict(
            cl=theta.tvcl * exp(eta.cl) * theta.power if theta.tvcl > 1 else eta.cl, v=theta.tvv * exp(eta.v))),
        r"torch\.where",
    ),
    "math.exp": (
        dict(individual=lambda self, theta, eta, cov: dict(
            cl=theta.tvcl * math.exp(eta.cl) * theta.power, v=theta.tvv * exp(eta.v))),
        r"torch\.exp",
    ),
    "unknown eta": (
        dict(individual=lambda self, theta, eta, cov: dict(cl=theta.tvcl * exp(eta.ka), v=theta.tvv)),
        "eta.ka: .*Legal names: cl, v",
    ),
    "unused eta": (
        dict(individual=lambda self, theta, eta, cov: dict(cl=theta.tvcl * exp(eta.cl) * theta.power, v=theta.tvv)),
        "eta.v is declared and never used",
    ),
    "missing parameter": (
        dict(individual=lambda self, theta, eta, cov: dict(cl=theta.tvcl * exp(eta.cl), vol=theta.tvv)),
        "needs the parameter 'v'",
    ),
    "wrong shape": (
        dict(individual=lambda self, theta, eta, cov: dict(
            cl=theta.tvcl * exp(eta.cl) * theta.power, v=(theta.tvv * exp(eta.v)).squeeze(-1).sum(-1))),
        "has shape",
    ),
    "not a dict": (dict(observe=lambda self, t, a, p: a.central / p.v), "must return a dict"),
    "misspelt endpoint": (dict(observe=lambda self, t, a, p: dict(cpp=a.central / p.v)), "Did you mean 'cp'"),
    "missing endpoint": (dict(observe=lambda self, t, a, p: {}), "does not return the declared endpoint 'cp'"),
    "unknown compartment": (dict(observe=lambda self, t, a, p: dict(cp=a.centre / p.v)), "Did you mean 'central'"),
    "mixes subjects": (
        dict(observe=lambda self, t, a, p: dict(cp=a.central / p.v + 0 * a.central + a.central.mean(-2, keepdim=True))),
        "mixes subjects",
    ),
    "not finite": (
        dict(individual=lambda self, theta, eta, cov: dict(
            cl=theta.tvcl * exp(eta.cl) * theta.power, v=torch.log(-theta.tvv) * exp(eta.v))),
        "not finite",
    ),
    "another failure": (dict(observe=lambda self, t, a, p: dict(cp=a.central @ p.v)), "observe fails"),
}  # fmt: skip


@pytest.mark.parametrize("name", PAGES)
def test_the_dry_run_names_the_line_and_the_remedy(name: str) -> None:
    changes, says = PAGES[name]
    with pytest.raises(ModelError, match=says) as caught:
        nl.Problem(page(**changes), data())
    assert caught.value.line is not None


def test_covariates_that_are_not_there() -> None:
    with pytest.raises(DataError, match="cov.wgt.*Did you mean 'wt'"):
        nl.Problem(
            page(individual=lambda self, theta, eta, cov: dict(cl=theta.tvcl * cov.wgt, v=theta.tvv)), data()
        )
    comments = TABLE.assign(NOTE=[f"sample {k}" for k in range(len(TABLE))])
    with pytest.raises(DataError, match="note of the data holds text.*group them"):
        nl.Problem(
            page(individual=lambda self, theta, eta, cov: dict(cl=theta.tvcl * cov.note, v=theta.tvv)),
            data(comments),
        )
    blank = TABLE.assign(SITE=["", *["a"] * (len(TABLE) - 1)])
    with pytest.raises(
        DataError, match=r"column site .* 1 of \d+ records have none \(line 2\); fill them in"
    ):
        nl.Problem(
            page(individual=lambda self, theta, eta, cov: dict(cl=theta.tvcl * cov.site["a"], v=theta.tvv)),
            data(blank),
        )


def test_a_covariate_where_there_is_none_at_all() -> None:
    with pytest.raises(DataError, match="cov.wt: the data hold no covariate.*--covariates"):
        nl.Problem(Page(), data(TABLE.drop(columns=["WT", "SEX"])))


def test_observations_without_a_density_are_named() -> None:
    early = pd.concat([TABLE.iloc[:1].assign(EVID=0, AMT=0.0, DV=0.3), TABLE]).reset_index(drop=True)
    problem = nl.Problem(page(cp=nl.Proportional(0.1)), data(early))
    with pytest.raises(DataError, match="residual variance is zero at id 1 time 0"):
        problem.check(problem.values(problem.start))
    combined = nl.Problem(Page(), data(early))
    combined.check(combined.values(combined.start))
    with pytest.raises(DataError, match="DV <= 0 at id 1 time 0"):
        nl.Problem(page(cp=nl.LogNormal(0.1)), data(early.assign(DV=[0.0, *TABLE.DV])))
    log_scale = nl.Problem(page(cp=nl.LogNormal(0.1)), data(early))
    with pytest.raises(DataError, match="not finite at the start"):
        log_scale.check(log_scale.values(log_scale.start))


def test_log_normal_joint_is_that_of_the_natural_observations() -> None:
    problem = nl.Problem(page(cp=nl.LogNormal(0.2)), data())
    values = problem.values(problem.start)
    eta = 0.1 * torch.randn(2, 2, dtype=F64)
    f = problem.predict(eta, values).f
    y = problem.population.dv.masked_fill(~problem.population.mask, 1.0)
    expected = (torch.distributions.LogNormal(f, 0.2).log_prob(y) * problem.mask).sum(-1)
    torch.testing.assert_close(problem.log_likelihood(eta, values), expected)


def test_simulated_observations_have_the_stated_moments() -> None:
    problem = nl.Problem(Page(), data())
    values = problem.values(problem.start)
    f = problem.predict(torch.zeros(2, 2, dtype=F64), values).f
    y = problem.simulate_dv(f.expand(20000, 2, 3), values, torch.Generator().manual_seed(1))
    z = (y.mean(0) - f) / (problem.variance(f, values)[0] / 20000).sqrt()
    assert float(z[problem.population.mask].abs().max()) < 4
    assert bool((y[:, ~problem.population.mask] == 0).all())
