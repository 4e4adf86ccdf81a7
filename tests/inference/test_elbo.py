"""The method as a whole: exact maxima of linear pages, published optima of real data, gates, refusals, interruption."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from inference.cases import (
    Oral,
    curved_problem,
    exact_log_likelihood,
    exact_maximum,
    exact_posterior,
    oral_problem,
    oral_table,
)
from problems import F64
from torch.distributions import LogNormal

import nlmegen as nl
from nlmegen.errors import DataError, FitError, ModelError, Status
from nlmegen.inference.estimate import Progress
from nlmegen.inference.marginal import quadrature
from nlmegen.inference.settle import draws_per_patient

QUICK = nl.ELBO(steps=40, batch=64, block=20, width=16, most_draws=400)


def loss(problem: nl.Problem, free: torch.Tensor, best: float) -> float:
    """What `free` costs of -2 log L on a linear page."""
    return 2 * (best - float(exact_log_likelihood(problem, free).sum()))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_maximum_likelihood_of_a_linear_page(seed: int):
    problem = curved_problem(40, seed=2)
    truth, best = exact_maximum(problem)
    estimate = nl.ELBO(seed=seed, steps=40, batch=64, block=20, width=16).estimate(problem)
    assert estimate.converged, estimate.reason
    assert loss(problem, estimate.free, best) < 0.02
    assert estimate.log_likelihood == pytest.approx(best, abs=4 * (estimate.ofv_se or 0) + 0.02)
    assert estimate.ofv == pytest.approx(problem.ofv(estimate.log_likelihood))
    assert estimate.ofv_source == "importance"
    # standard errors: the inverse of the exact Hessian, and its sandwich
    hessian = torch.func.jacrev(torch.func.grad(lambda x: exact_log_likelihood(problem, x).sum()))(truth)
    scores = torch.func.jacrev(lambda x: exact_log_likelihood(problem, x))(truth)
    inverse = torch.linalg.inv(-hessian)
    sandwich = inverse @ scores.mT @ scores @ inverse
    assert estimate.covariance_kind == "sandwich"
    assert estimate.covariance is not None
    ratio = (estimate.covariance.diagonal() / sandwich.diagonal()).sqrt()
    np.testing.assert_allclose(ratio, 1.0, rtol=0.1)
    # and each subject's posterior
    mean, covariance = exact_posterior(problem, estimate.free)
    sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    assert float(((estimate.eta_mean - mean) / sd).abs().max()) < 0.1
    assert float(((estimate.ebe - mean) / sd).abs().max()) < 1e-6


def test_the_plain_bound_is_exact_where_its_family_holds_the_posterior():
    problem = curved_problem(30, seed=2)
    _, best = exact_maximum(problem)
    estimate = nl.ELBO(objective="elbo", steps=200, batch=64, block=50, width=16).estimate(problem)
    assert loss(problem, estimate.free, best) < 0.3
    assert estimate.bounds is not None
    assert estimate.bounds["elbo"] == pytest.approx(best, abs=0.3)
    assert estimate.covariance is None
    assert any("bound" in note for note in estimate.notes)


@pytest.mark.slow
def test_the_plain_bound_is_biased_on_sparse_records_where_importance_weighting_is_not():
    """Three samples a patient: log-normal error, posteriors wide and skew."""

    class Sparse(nl.Model):
        """One compartment, three etas."""

        tvka = nl.Theta(0.8, lower=0)
        tvcl = nl.Theta(5.0, lower=0)
        tvv = nl.Theta(20.0, lower=0)
        iiv = nl.Omega(ka=0.1, cl=0.1, v=0.1)
        cp = nl.LogNormal(0.3)
        structure = nl.OneCompartment(absorption="first-order")

        def individual(self, theta, eta, cov):
            return dict(
                ka=theta.tvka * torch.exp(eta.ka),
                cl=theta.tvcl * torch.exp(eta.cl),
                v=theta.tvv * torch.exp(eta.v),
            )

        def observe(self, t, a, p):
            return dict(cp=a.central / p.v)

    truth = Sparse().with_values(
        theta={"tvka": 1.2, "tvcl": 3.0, "tvv": 30.0},
        omega={"ka": 0.16, "cl": 0.09, "v": 0.04},
        sigma={"cp.sd": 0.2},
    )
    cohort = nl.Cohort(400, nl.Regimen(100), times=(1.0, 4.0, 24.0))
    problem = nl.Problem(Sparse(), nl.read_nonmem(nl.simulate(truth, cohort, seed=1)))
    good = nl.ELBO(seed=0, covariance=None).estimate(problem)
    plain = nl.ELBO(seed=0, objective="elbo").estimate(problem)
    at = {
        name: quadrature(problem, problem.values(x.free), 9, rounds=1).total
        for name, x in (("good", good), ("plain", plain))
    }
    assert good.converged, good.reason
    assert at["good"] > at["plain"] + 0.3
    names = problem.names
    ka, sd = names.index("omega.ka"), names.index("cp.sd")
    assert float(plain.free[ka] - good.free[ka]) < math.log(0.93)
    assert float(plain.free[sd] - good.free[sd]) > math.log(1.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes", "optimum", "allowed"),
    [
        ("theophylline", {"cp": nl.Additive(1.0)}, 360.7015, 0.05),
        ("theophylline", {}, 347.1042, 0.05),
        ("phenobarbital", {}, 870.7745, 0.2),
    ],
)
def test_real_data_end_at_the_published_quadrature_optimum(name, changes, optimum, allowed):
    page = type(nl.load_model(name))
    changed = type("Changed", (page,), {"__module__": __name__, "__doc__": page.__doc__, **changes})
    problem = nl.Problem(changed(), nl.load_data(name))
    estimate = nl.ELBO(seed=0).estimate(problem)
    assert estimate.converged, estimate.reason
    found = -2 * quadrature(problem, problem.values(estimate.free), 9).total
    assert found == pytest.approx(optimum, abs=allowed)
    assert -2 * estimate.log_likelihood == pytest.approx(found, abs=0.05)


def test_the_ladder_climbs():
    problem = oral_problem(30)
    estimate = QUICK.estimate(problem)
    bounds = estimate.bounds
    assert bounds is not None
    assert bounds["elbo"] <= bounds["iwelbo"] <= bounds["importance_log_likelihood"]
    truth = quadrature(problem, problem.values(estimate.free), 15).total
    assert bounds["importance_log_likelihood"] == pytest.approx(truth, abs=4 * bounds["importance_se"] + 0.01)
    assert bounds["elbo"] < truth - 0.01
    assert 0 < bounds["ess_min"] <= bounds["ess_median"] <= 1
    assert bounds["k"] >= 1000


def test_progress_history_and_the_same_answer_from_the_same_seed():
    problem = oral_problem(12)
    seen: list[Progress] = []
    before = torch.get_rng_state()
    one = QUICK.estimate(problem, seen.append)
    two = QUICK.estimate(problem)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.free, two.free)
    assert one.ofv == two.ofv
    assert [p.stage for p in seen if p.step][0] == "variational EM"
    assert {"variational EM", "search", "polish", "finish"} <= {p.stage for p in seen}
    assert {row["stage"] for row in one.history} == {"variational EM", "search", "polish", "finish"}
    assert one.iterations == max(row["step"] for row in one.history)


@pytest.mark.parametrize("stage", ["variational EM", "search", "polish", "finish"])
def test_ctrl_c_keeps_the_best_so_far(stage: str):
    problem = oral_problem(12)

    def stop(progress: Progress) -> None:
        if progress.stage == stage:
            raise KeyboardInterrupt

    estimate = QUICK.estimate(problem, stop)
    assert not estimate.converged
    assert "interrupted" in estimate.reason
    assert bool(estimate.free.isfinite().all())
    assert math.isfinite(estimate.ofv)
    assert estimate.encoder is not None


def test_fixed_parameters_and_block_omega():
    class Block(Oral):
        """`Oral` with a full block and a fixed volume."""

        tvv = nl.Theta(30.0, lower=0, fixed=True)
        iiv = nl.Omega(ka=0.16, cl=0.09, cov=[0.03])

    problem = nl.Problem(Block(), nl.read_nonmem(oral_table(30)))
    estimate = QUICK.estimate(problem)
    assert estimate.free.shape == (problem.P,)
    assert "omega.cl,ka" in problem.names
    values = problem.values(estimate.free)
    assert float(values.theta["tvv"]) == pytest.approx(30.0)
    truth = quadrature(problem, values, 15).total
    assert estimate.log_likelihood == pytest.approx(truth, abs=0.05)


def test_nothing_to_estimate_still_gives_an_encoder():
    class Known(Oral):
        """`Oral` with everything known."""

        tvka = nl.Theta(1.2, lower=0, fixed=True)
        tvcl = nl.Theta(3.0, lower=0, fixed=True)
        tvv = nl.Theta(30.0, lower=0, fixed=True)
        power = nl.Theta(0.75, fixed=True)
        iiv = nl.Omega(ka=0.16, cl=0.09, fixed=True)
        cp = nl.Combined(additive=0.05, proportional=0.15, fixed=True)

    problem = nl.Problem(Known(), nl.read_nonmem(oral_table(8)))
    estimate = QUICK.estimate(problem)
    assert estimate.converged, estimate.reason
    assert estimate.free.shape == (0,)
    truth = quadrature(problem, problem.values(estimate.free), 15)
    assert estimate.log_likelihood == pytest.approx(truth.total, abs=0.02)


def test_a_patient_no_model_could_produce_is_flagged():
    table = oral_table(20)
    first = table.index[(table["ID"] == 4) & (table["EVID"] == 0)]
    table.loc[first, "DV"] *= [40.0, 0.05, 40.0, 0.05, 40.0][: len(first)]
    problem = nl.Problem(Oral(), nl.read_nonmem(table))
    fixed = problem.model
    estimate = QUICK.estimate(problem)
    assert estimate.bounds is not None
    assert bool(estimate.ebe.isfinite().all())
    assert fixed is problem.model
    low = (estimate.status & int(Status.LOW_ESS)) > 0
    assert not bool(low[:3].any())
    assert bool(low[3])


class TestRefusals:
    def test_no_random_effects(self):
        class Naive(nl.Model):
            """Nobody differs."""

            tvcl = nl.Theta(3.0, lower=0)
            cp = nl.Additive(0.4)
            structure = nl.OneCompartment()

            def individual(self, theta, eta, cov):
                return dict(cl=theta.tvcl, v=30.0)

            def observe(self, t, a, p):
                return dict(cp=a.central / p.v)

        problem = nl.Problem(Naive(), nl.read_nonmem(oral_table().assign(CMT=1)))
        with pytest.raises(FitError, match="no random effects.*FOCEI"):
            nl.ELBO().estimate(problem)

    def test_a_prior_on_the_plain_bound(self):
        class Prior(Oral):
            """`Oral` with a prior."""

            tvv = nl.Theta(30.0, lower=0, prior=LogNormal(3.4, 0.1))

        problem = nl.Problem(Prior(), nl.read_nonmem(oral_table()))
        with pytest.raises(ModelError, match="prior on tvv"):
            nl.ELBO(objective="elbo").estimate(problem)

    def test_a_start_without_variance(self):
        class NoError(Oral):
            """Proportional error alone, so that a prediction of zero has no variance."""

            cp = nl.Proportional(0.2)

        table = oral_table(3)
        table.loc[table.index[table["EVID"] == 0][0], "TIME"] = 0.0
        problem = nl.Problem(NoError(), nl.read_nonmem(table))
        with pytest.raises(DataError, match="id 1 time 0"):
            nl.ELBO().estimate(problem)

    @pytest.mark.parametrize(
        ("setting", "words"),
        [
            ({"objective": "iwm"}, "Did you mean 'iwml'"),
            ({"family": "flow"}, "gaussian"),
            ({"covariance": "r"}, "sandwich, R, S"),
            ({"objective": "elbo", "family": "mixture"}, "reparametrised"),
            ({"k": 8}, "belongs to objective='elbo'"),
            ({"steps": 0}, "at least 10"),
            ({"draws": 1}, "at least 20"),
        ],
    )
    def test_settings(self, setting, words):
        with pytest.raises(FitError, match=words):
            nl.ELBO(**setting)


def test_draws_follow_the_number_of_patients_and_the_memory():
    assert oral_problem(10).y.shape == (10, 5)
    assert draws_per_patient(oral_problem(10), 100) == 3000
    assert draws_per_patient(oral_problem(10), 100) % 4 == 0
    big = oral_problem(10).select(torch.arange(10).repeat(40_000))
    assert draws_per_patient(big, 100) == 20
    assert oral_problem(10).y.dtype == F64
