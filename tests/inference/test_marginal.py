from __future__ import annotations

import math

import pytest
import torch
from inference.pages import (
    Oral,
    Theophylline,
    TheophyllineAdditive,
    WangAdditive,
    WangProportional,
    oral_table,
    wang_data,
)
from problems import exact, straight_problem
from torch import exp

import nlmegen as nl
from nlmegen.errors import FitError, Status
from nlmegen.inference.marginal import Sampled, StudentLaplace, importance, lay, quadrature
from nlmegen.inference.pareto import pareto_shape
from nlmegen.inference.proposals import TwoStudents, proposal

F64 = torch.float64


def at(page: nl.Model, data: nl.Population, theta: dict, omega_sd: list[float], sigma: dict) -> nl.Problem:
    omega = torch.diag(torch.tensor(omega_sd, dtype=F64) ** 2)
    return nl.Problem(page.with_values(theta=theta, omega=omega, sigma=sigma), data)


def optima() -> list:
    theophylline, phenobarbital = nl.load_data("theophylline"), nl.load_data("phenobarbital")

    def natural(ka: float, cl: float, v: float) -> dict:
        return {"tvka": math.exp(ka), "tvcl": math.exp(cl), "tvv": math.exp(v)}

    additive = at(
        TheophyllineAdditive(),
        theophylline,
        natural(0.45928, 1.01167, 3.45385),
        [0.63636, 0.26517, 0.13596],
        {"cp.additive": 0.69592},
    )
    combined = at(
        Theophylline(),
        theophylline,
        natural(0.40442, 1.01440, 3.46001),
        [0.63223, 0.25535, 0.12261],
        {"cp.additive": 0.26113, "cp.proportional": 0.13688},
    )
    neonates = at(
        nl.load_model("phenobarbital"),
        phenobarbital,
        {"tvcl": math.exp(-5.37804), "tvv": math.exp(-0.02507), "asphyxia": 0.15868},
        [0.17018, 0.16694],
        {"cp.proportional": 0.11507},
    )
    return [(additive, 360.7015), (combined, 347.1042), (neonates, 870.7745)]


@pytest.mark.parametrize("case", range(3))
def test_published_maxima(case: int) -> None:
    problem, minus_two_log = optima()[case]
    assert -2 * quadrature(problem, problem.values(problem.start)).total == pytest.approx(
        minus_two_log, abs=2e-3
    )


@pytest.mark.parametrize(("page", "ofv"), [(WangProportional, 39.355), (WangAdditive, -1.990)])
def test_wang_table(page: type[nl.Model], ofv: float) -> None:
    problem = nl.Problem(page(), wang_data())
    result = quadrature(problem, problem.values(problem.start), nodes=41)
    assert problem.ofv(result.total) == pytest.approx(ofv, abs=6e-4)
    assert result.nodes == 41


@pytest.mark.parametrize(("page", "ofv"), [(WangProportional, 39.227), (WangAdditive, -1.936)])
def test_one_node_is_laplace(page: type[nl.Model], ofv: float) -> None:
    problem = nl.Problem(page(), wang_data())
    assert problem.ofv(quadrature(problem, problem.values(problem.start), nodes=1).total) == pytest.approx(
        ofv, abs=6e-4
    )


@pytest.mark.parametrize("nodes", [1, 2, 5])
def test_linear_gaussian_is_exact_with_any_nodes(nodes: int) -> None:
    problem, answer = straight_problem(), exact(straight_problem())
    result = quadrature(problem, problem.values(problem.start), nodes=nodes)
    assert torch.allclose(result.log_likelihood, answer.log_likelihood, atol=1e-9)
    assert torch.allclose(result.mean, answer.mean, atol=1e-9)
    if nodes > 1:
        assert torch.allclose(result.cov, answer.covariance, atol=1e-9)


def test_importance_sampling_of_the_linear_gaussian_case() -> None:
    problem, answer = straight_problem(), exact(straight_problem())
    values = problem.values(problem.start)
    result = importance(problem, values, StudentLaplace.at_modes(problem, values), k=4000, seed=1)
    assert isinstance(result, Sampled)
    z = (result.log_likelihood - answer.log_likelihood) / result.se
    assert float(z.abs().max()) < 4
    assert abs(result.total - float(answer.log_likelihood.sum())) < 4 * result.total_se
    assert result.total_se < 0.05
    assert torch.allclose(result.mean, answer.mean, atol=0.05)
    assert torch.allclose(result.cov, answer.covariance, atol=0.05)
    assert float(result.khat.max()) < 0.5
    assert float(result.ess.min()) > 2000


class ExactProposal:
    """The posterior itself: every weight is the likelihood."""

    def __init__(self, problem: nl.Problem) -> None:
        answer = exact(problem)
        self.normal = torch.distributions.MultivariateNormal(answer.mean, answer.covariance)

    def sample(self, k: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (k, *self.normal.mean.shape)
        z = torch.randn(shape, dtype=F64, generator=generator)
        eta = self.normal.mean + (self.normal.scale_tril @ z.unsqueeze(-1)).squeeze(-1)
        return eta, self.normal.log_prob(eta)


def test_the_posterior_as_proposal_has_no_variance() -> None:
    problem = straight_problem()
    result = importance(problem, problem.values(problem.start), ExactProposal(problem), k=50)
    assert torch.allclose(result.log_likelihood, exact(problem).log_likelihood, atol=1e-9)
    assert float(result.se.max()) < 1e-7
    assert torch.allclose(result.ess, torch.full_like(result.ess, 50.0))


def test_importance_agrees_with_quadrature_on_theophylline() -> None:
    problem, _ = optima()[0]
    values = problem.values(problem.start)
    reference = quadrature(problem, values, nodes=13)
    result = importance(problem, values, StudentLaplace.at_modes(problem, values), k=4000, seed=3)
    z = (result.log_likelihood - reference.log_likelihood) / result.se
    assert float(z.abs().max()) < 4
    assert torch.allclose(result.mean, reference.mean, atol=0.03)
    assert torch.allclose(result.cov, reference.cov, atol=0.01)


def test_the_bias_correction_removes_the_bias() -> None:
    """With few draws the log of a mean weight is low by about its relative variance over 2 K."""
    problem = straight_problem()
    values = problem.values(problem.start)
    truth = exact(problem).log_likelihood
    laplace = StudentLaplace.at_modes(problem, values)
    wide = StudentLaplace(laplace.mode, 3.0 * laplace.scale, df=5)
    runs = [importance(problem, values, wide, k=60, seed=s) for s in range(400)]
    corrected = torch.stack([r.log_likelihood - truth for r in runs])
    raw = torch.stack([r.log_likelihood - r.bias_correction - truth for r in runs])
    assert float(raw.mean()) < -0.02
    assert abs(float(corrected.mean())) < 0.35 * abs(float(raw.mean()))


def test_stated_errors_are_calibrated() -> None:
    """Over 200 seeds z = error / se has mean zero and SD one, in total and subject by subject."""
    problem = straight_problem()
    values, truth = problem.values(problem.start), exact(straight_problem()).log_likelihood
    proposal = StudentLaplace.at_modes(problem, values, df=4)
    runs = [importance(problem, values, proposal, k=250, seed=s) for s in range(200)]
    z = torch.tensor([(r.total - float(truth.sum())) / r.total_se for r in runs], dtype=F64)
    assert abs(float(z.mean())) < 4 / math.sqrt(200)
    assert 0.8 < float(z.std()) < 1.2  # four standard errors of an SD of 200
    own = torch.stack([(r.log_likelihood - truth) / r.se for r in runs])
    assert 0.9 < float(own.std()) < 1.1
    share = torch.stack([r.ess for r in runs]).mean() / 250
    relative = torch.stack([r.log_likelihood - truth for r in runs]).var() * 250
    assert float(share) == pytest.approx(1 / (1 + float(relative)), rel=0.05)


def test_stated_errors_hold_against_quadrature_on_sparse_records() -> None:
    problem = nl.Problem(Oral(), nl.read_nonmem(oral_table(15, times=(1.0, 4.0, 24.0))))
    values = problem.values(problem.start)
    truth = quadrature(problem, values, nodes=15, rounds=2).log_likelihood
    made = proposal(problem, values, generator=torch.Generator().manual_seed(0))
    z = [importance(problem, values, made, k=200, seed=s) for s in range(60)]
    own = torch.stack([(r.log_likelihood - truth) / r.se for r in z])
    assert abs(float(own.mean())) < 4 / math.sqrt(own.numel())
    assert 0.9 < float(own.std()) < 1.1


def test_common_random_numbers_tell_a_difference() -> None:
    """Two parameter vectors close by: the difference is far better known than its parts."""
    problem = straight_problem()
    pair = [problem.values(problem.start), problem.values(problem.start + 0.02)]
    proposals = [StudentLaplace.at_modes(problem, values) for values in pair]
    totals = torch.tensor(
        [
            [importance(problem, v, q, k=200, seed=s).total for v, q in zip(pair, proposals, strict=True)]
            for s in range(40)
        ],
        dtype=F64,
    )
    truth = exact(problem, problem.start + 0.02).total - exact(problem).total
    difference = totals[:, 1] - totals[:, 0]
    assert float(difference.std()) < 0.2 * float(totals[:, 0].std())
    assert abs(float(difference.mean()) - truth) < 4 * float(difference.std()) / math.sqrt(40)


def test_lattice_draws_have_the_same_density_and_less_error() -> None:
    problem = straight_problem()
    values, truth = problem.values(problem.start), exact(straight_problem()).log_likelihood
    for df in (3, 4):
        made = StudentLaplace.at_modes(problem, values, df=df)
        errors = {"draw": [], "sample": []}
        for seed in range(40):
            for name, found in errors.items():
                eta, log_q = getattr(made, name)(200, torch.Generator().manual_seed(seed))
                ratio = problem.log_joint(eta, values) - log_q
                torch.testing.assert_close(log_q, made.log_density(eta))
                found.append(torch.logsumexp(ratio.flatten(0, -2), 0) - math.log(200) - truth)
        even, free = (torch.stack(errors[name]) for name in ("draw", "sample"))
        assert abs(float(even.mean())) < 4 * float(even.std()) / math.sqrt(even.numel())
        assert float(even.std()) < 0.8 * float(free.std())


class TestTwoStudents:
    """A mixture at the mode and at the moments."""

    def test_it_is_a_density(self) -> None:
        problem = straight_problem()
        values = problem.values(problem.start)
        modal = StudentLaplace.at_modes(problem, values, df=4)
        moved = StudentLaplace(modal.mode + 0.4, 1.5 * modal.scale, df=4)
        made, truth = TwoStudents(modal, moved), exact(problem).log_likelihood
        for name in ("sample", "draw"):
            eta, log_q = getattr(made, name)(20_000, torch.Generator().manual_seed(2))
            ratio = (problem.log_joint(eta, values) - log_q).flatten(0, -2)
            found = torch.logsumexp(ratio, 0) - math.log(len(ratio))
            torch.testing.assert_close(found, truth, rtol=0, atol=0.03)
            half = 0.5 * (modal.log_density(eta).exp() + moved.log_density(eta).exp())
            torch.testing.assert_close(log_q.exp(), half)

    @pytest.mark.parametrize("grid", [True, False], ids=["grid", "pilot"])
    def test_skewed_posteriors_keep_their_weight(self, grid: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        if not grid:
            monkeypatch.setattr("nlmegen.inference.proposals.GRID_ETAS", 0)
        table = oral_table(20, times=(2.0, 8.0, 24.0))
        model = Skewed()
        problem = nl.Problem(model, nl.read_nonmem(table))
        values = problem.values(problem.start)
        modal = StudentLaplace.at_modes(problem, values, df=4)
        made = proposal(problem, values, generator=torch.Generator().manual_seed(1))
        poor, good = (importance(problem, values, q, k=4000, seed=3) for q in (modal, made))
        assert float(good.ess.min()) > 1.3 * float(poor.ess.min())
        assert float(good.ess.min()) > 0.45 * 4000
        truth = quadrature(problem, values, 17, rounds=2)
        z = (good.log_likelihood - truth.log_likelihood) / good.se
        assert float(z.abs().max()) < 4.5


class Skewed(Oral):
    """Absorption that varies widely, seen late."""

    iiv = nl.Omega(ka=0.8, cl=0.09, v=0.04)
    cp = nl.Combined(additive=0.4, proportional=0.1)


def test_nodes_are_a_posterior() -> None:
    problem = straight_problem()
    found, truth = lay(problem, problem.values(problem.start), 5), exact(problem)
    assert found.eta.shape == (25, problem.n_subjects, 2)
    weights = found.log_weights.exp()
    torch.testing.assert_close(weights.sum(0), torch.ones(problem.n_subjects, dtype=F64))
    torch.testing.assert_close((weights[..., None] * found.eta).sum(0), truth.mean)
    torch.testing.assert_close(found.cov, truth.covariance)
    torch.testing.assert_close(found.log_likelihood, truth.log_likelihood)


def test_seeds_repeat_and_differ() -> None:
    problem = straight_problem()
    values = problem.values(problem.start)
    proposal = StudentLaplace.at_modes(problem, values)
    first, again, other = (importance(problem, values, proposal, k=100, seed=s).total for s in (1, 1, 2))
    assert first == again
    assert first != other


def test_student_density_integrates_to_one() -> None:
    scale = torch.tensor([[[0.5, 0.0], [0.3, 0.2]]], dtype=F64)
    proposal = StudentLaplace(torch.tensor([[0.4, -1.0]], dtype=F64), scale, df=4)
    eta, log_q = proposal.sample(200_000, torch.Generator().manual_seed(0))
    inside = ((eta[:, 0] - torch.tensor([0.4, -1.0], dtype=F64)).abs() < 0.5).all(-1)
    area = (inside / torch.exp(log_q[:, 0])).mean()  # E_q[1(box) / q] is the volume of the box
    assert float(area) == pytest.approx(1.0, rel=0.03)
    assert torch.allclose(eta[:, 0].mean(0), torch.tensor([0.4, -1.0], dtype=F64), atol=0.02)
    spread = 4 / (4 - 2) * (scale @ scale.mT)[0]
    assert torch.allclose(torch.cov(eta[:, 0].T), spread, rtol=0.1)


@pytest.mark.parametrize("k_true", [0.1, 0.4, 0.8])
def test_khat_of_pareto_tails(k_true: float) -> None:
    generator = torch.Generator().manual_seed(11)
    u = torch.rand(20_000, 30, dtype=F64, generator=generator)
    weights = (u**-k_true - 1) / k_true  # generalised Pareto with shape k
    got = pareto_shape(torch.log(weights))
    assert float(got.mean()) == pytest.approx(k_true, abs=0.06)


def test_chunks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = nl.Problem(Theophylline(), nl.load_data("theophylline"))
    values = problem.values(problem.start)
    proposal = StudentLaplace.at_modes(problem, values)
    whole, drawn = quadrature(problem, values, nodes=5), importance(problem, values, proposal, k=200)
    monkeypatch.setattr("nlmegen.inference.marginal.PIECE", 3000)
    assert torch.allclose(
        quadrature(problem, values, nodes=5).log_likelihood, whole.log_likelihood, atol=1e-10
    )
    assert importance(problem, values, proposal, k=200).total == pytest.approx(drawn.total, abs=1e-10)


def test_laying_the_grid_anew_helps_a_poor_rule() -> None:
    problem = nl.Problem(Oral(), nl.read_nonmem(oral_table(20, times=(1.0, 24.0))))
    values = problem.values(problem.start)
    reference = quadrature(problem, values, nodes=19).log_likelihood
    plain = (quadrature(problem, values, nodes=7, rounds=0).log_likelihood - reference).abs().sum()
    anew = (quadrature(problem, values, nodes=7, rounds=2).log_likelihood - reference).abs().sum()
    assert float(anew) < float(plain)


class Sixfold(nl.Model):
    """Six random effects on one constant."""

    level = nl.Theta(1.0)
    iiv = nl.Omega(a=0.1, b=0.1, c=0.1, d=0.1, e=0.1, f=0.1)
    cp = nl.Additive(0.5)
    structure = nl.OneCompartment()

    def individual(self, theta, eta, cov):
        return dict(x=theta.level + eta.a + eta.b + eta.c + eta.d + eta.e + eta.f, cl=1.0, v=1.0)

    def observe(self, t, a, p):
        return dict(cp=p.x + 0 * t)


def test_more_random_effects_take_fewer_nodes() -> None:
    problem = nl.Problem(Sixfold(), nl.read_nonmem(oral_table(2, times=(1.0, 2.0))))
    values = problem.values(problem.start)
    result = quadrature(problem, values)
    assert result.nodes == 5
    spread = torch.full((2, 2), 0.6, dtype=F64) + 0.25 * torch.eye(2, dtype=F64)
    expected = torch.distributions.MultivariateNormal(torch.ones(2, dtype=F64), spread).log_prob(problem.y)
    assert torch.allclose(result.log_likelihood, expected, atol=1e-8)


class Many(Sixfold):
    """Ten random effects: too many for a grid."""

    more = nl.Omega(g=0.1, h=0.1, i=0.1, j=0.1)

    def individual(self, theta, eta, cov):
        p = super().individual(theta, eta, cov)
        return p | dict(x=p["x"] + eta.g + eta.h + eta.i + eta.j)


def test_too_many_random_effects_are_refused() -> None:
    problem = nl.Problem(Many(), nl.read_nonmem(oral_table(1, times=(1.0,))))
    with pytest.raises(FitError, match="importance sampling"):
        quadrature(problem, problem.values(problem.start))


def test_one_parameter_vector_at_a_time() -> None:
    problem = straight_problem()
    with pytest.raises(FitError, match="one parameter vector"):
        quadrature(problem, problem.values(problem.start.expand(2, -1)))


class Ring(nl.Model):
    """f = exp(-eta^2): with y below 1 zero is a stationary point of the joint, where its data part bends down."""

    level = nl.Theta(1.0)
    iiv = nl.Omega(x=100.0)
    cp = nl.Additive(1.0)
    structure = nl.OneCompartment()

    def individual(self, theta, eta, cov):
        return dict(x=theta.level * exp(-(eta.x**2)), cl=1.0, v=1.0)

    def observe(self, t, a, p):
        return dict(cp=p.x + 0 * t)


def test_an_indefinite_hessian_is_flagged() -> None:
    table = oral_table(1, times=(1.0,))
    table.loc[table.EVID == 0, "DV"] = 0.2
    problem = nl.Problem(Ring(), nl.read_nonmem(table))
    # the maxima lie at |eta| near 1.27; prior standard deviations are 10, so no further start is better than zero
    result = quadrature(problem, problem.values(problem.start), nodes=3)
    assert Status.INDEFINITE in Status(int(result.status[0]))
    assert math.isfinite(result.total)


def test_a_subject_without_observations_has_likelihood_one() -> None:
    table = oral_table(2)
    with pytest.warns(match="without observations"):
        data = nl.read_nonmem(table[(table.ID != 2) | (table.EVID == 1)])
    problem = nl.Problem(Oral(), data)
    result = quadrature(problem, problem.values(problem.start), nodes=5)
    assert float(result.log_likelihood[1]) == pytest.approx(0.0, abs=1e-12)
    assert torch.allclose(result.cov[1], problem.values(problem.start).omega, rtol=1e-9)
