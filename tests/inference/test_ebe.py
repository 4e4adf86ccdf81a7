from __future__ import annotations

import pytest
import torch
from inference.pages import Oral, Theophylline, TheophyllineSd, WangProportional, oral_table, wang_data
from problems import exact, straight_problem

import nlmegen as nl
from nlmegen.errors import Status
from nlmegen.inference.ebe import Conditional, Terms, find_modes, modes

F64 = torch.float64


def theophylline(page: type[nl.Model] = Theophylline) -> nl.Problem:
    return nl.Problem(page(), nl.load_data("theophylline"))


def minus_log_joint(problem: nl.Problem, values, eta: torch.Tensor) -> torch.Tensor:
    return -problem.log_joint(eta, values).sum()


def test_linear_modes_are_the_posterior_means() -> None:
    problem = straight_problem()
    eta, status = modes(problem, problem.values(problem.start))
    assert torch.allclose(eta, exact(problem).mean, atol=1e-12)
    assert status.tolist() == [0] * problem.n_subjects


@pytest.mark.parametrize("page", [Theophylline, TheophyllineSd])
def test_modes_are_stationary_points_of_the_joint(page: type[nl.Model]) -> None:
    problem = theophylline(page)
    values = problem.values(problem.start)
    eta, _ = modes(problem, values)
    eta = eta.requires_grad_()
    (gradient,) = torch.autograd.grad(minus_log_joint(problem, values, eta), eta)
    assert float(gradient.abs().max()) < 1e-6
    nearby = eta.detach() + 0.02 * torch.randn(200, *eta.shape, dtype=F64)
    assert bool((problem.log_joint(nearby, values) <= problem.log_joint(eta.detach(), values)).all())


@pytest.mark.parametrize("page", [Theophylline, TheophyllineSd, WangProportional])
def test_the_expansion_is_that_of_the_joint(page: type[nl.Model]) -> None:
    data = wang_data() if page is WangProportional else nl.load_data("theophylline")
    problem = nl.Problem(page(), data)
    values = problem.values(problem.start)
    eta = 0.3 * torch.randn(problem.n_subjects, problem.q, dtype=F64)
    conditional = Conditional.of(problem, values)
    at = conditional(conditional.whitened(eta))
    factor = values.factor

    def of_one(x: torch.Tensor) -> torch.Tensor:
        return -problem.log_joint(x, values)[3]

    whole = eta.clone()
    gradient = torch.autograd.functional.jacobian(of_one, whole)[3]
    hessian = torch.autograd.functional.hessian(of_one, whole)[3, :, 3]
    assert torch.allclose(at.eta, eta)
    assert torch.allclose(at.gradient[3], factor.mT @ gradient, rtol=1e-9, atol=1e-9)
    assert torch.allclose(at.hessian[3], factor.mT @ hessian @ factor, rtol=1e-8, atol=1e-8)


def test_the_stand_in_for_the_hessian_is_the_expected_one() -> None:
    problem = theophylline()
    values = problem.values(problem.start)
    eta = torch.zeros(problem.n_subjects, problem.q, dtype=F64)
    at = Conditional.of(problem, values)(eta)
    f = problem.predict(eta, values).f
    generator = torch.Generator().manual_seed(3)
    draws = 4000
    problem.y = problem.simulate_dv(f.expand(draws, *f.shape), values, generator)
    total = Conditional.of(problem, values)(eta.expand(draws, *eta.shape)).hessian.mean(0)
    scale = at.fallback().diagonal(dim1=-2, dim2=-1).sqrt()
    difference = (total - at.fallback()) / (scale.unsqueeze(-1) * scale.unsqueeze(-2))
    assert float(difference.abs().max()) < 0.05


def test_terms_are_derivatives_of_the_residual_density() -> None:
    problem = theophylline(TheophyllineSd)
    values = problem.values(problem.start)
    f = problem.predict(torch.zeros(problem.n_subjects, 3, dtype=F64), values).f + 0.5

    def phi(x: torch.Tensor) -> torch.Tensor:
        r = problem.variance(x, values)[0]
        return (0.5 * ((problem.y - x) ** 2 / r + torch.log(r))).sum()

    x = f.clone().requires_grad_()
    (first,) = torch.autograd.grad(phi(x), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    terms = Terms(problem, f, values)
    assert torch.allclose(terms.first, first.detach(), rtol=1e-10)
    assert torch.allclose(terms.second, second, rtol=1e-9)


def test_many_parameter_vectors_are_as_many_searches() -> None:
    problem = theophylline()
    free = problem.start + 0.2 * torch.randn(4, problem.P, dtype=F64)
    together, _ = modes(problem, problem.values(free))
    for row, eta in zip(free, together, strict=True):
        assert torch.allclose(modes(problem, problem.values(row))[0], eta, atol=1e-7)


def test_a_large_batch_is_compacted_to_the_same_modes() -> None:
    problem = nl.Problem(Oral(), nl.read_nonmem(oral_table(40)))
    free = problem.start + 0.3 * torch.randn(10, problem.P, dtype=F64)
    conditional = Conditional.of(problem, problem.values(free))
    found = find_modes(conditional, torch.zeros(10, 40, 3, dtype=F64))
    assert bool(found.converged.all())
    alone = torch.stack([modes(problem, problem.values(row))[0] for row in free])
    assert torch.allclose(found.expansion.eta, alone, atol=1e-7)
    assert float(found.decrement.max()) < 1e-10


def test_a_selection_is_the_flattened_batch() -> None:
    problem = theophylline()
    free = problem.start + 0.2 * torch.randn(3, problem.P, dtype=F64)
    conditional = Conditional.of(problem, problem.values(free))
    z = torch.randn(3, 12, 3, dtype=F64)
    index = torch.tensor([35, 0, 13, 13])
    part = conditional.select(index)(z.reshape(-1, 3)[index])
    whole = conditional(z)
    assert torch.allclose(part.value, whole.value.flatten()[index])
    assert torch.allclose(part.eta, whole.eta.reshape(-1, 3)[index])
    assert torch.allclose(part.hessian, whole.hessian.reshape(-1, 3, 3)[index])


def test_a_subject_without_observations_has_the_prior_mode() -> None:
    table = oral_table(3)
    table = table[(table.ID != 2) | (table.EVID == 1)]
    with pytest.warns(match="without observations"):
        data = nl.read_nonmem(table)
    problem = nl.Problem(Oral(), data)
    eta, status = modes(problem, problem.values(problem.start), torch.ones(3, 3, dtype=F64))
    assert torch.allclose(eta[1], torch.zeros(3, dtype=F64), atol=1e-12)
    assert Status(int(status[1])) == Status.NO_OBSERVATIONS
    assert status[[0, 2]].tolist() == [0, 0]


class Square(nl.Model):
    """f = (eta - 1/2)^2: two modes, the negative one the better under this prior mean of zero."""

    level = nl.Theta(0.5)
    iiv = nl.Omega(x=4.0)
    cp = nl.Additive(0.1)
    structure = nl.OneCompartment()

    def individual(self, theta, eta, cov):
        return dict(x=eta.x - theta.level, cl=1.0, v=1.0)

    def observe(self, t, a, p):
        return dict(cp=p.x**2)


def test_a_second_mode_is_found_and_the_better_kept() -> None:
    table = oral_table(1, times=(1.0,))
    table.loc[table.EVID == 0, "DV"] = 4.0
    problem = nl.Problem(Square(), nl.read_nonmem(table))
    values = problem.values(problem.start)
    worse, status = modes(problem, values, torch.tensor([[2.4]], dtype=F64))
    assert float(worse) == pytest.approx(2.5, abs=0.01)
    assert status.tolist() == [0]
    better, status = modes(problem, values, torch.tensor([[2.4]], dtype=F64), second_starts=(0.0, -1.0))
    assert float(better) == pytest.approx(-1.5, abs=0.01)
    assert Status(int(status)) == Status.SECOND_MODE


def test_a_start_without_a_density_begins_again_at_zero() -> None:
    problem = theophylline()
    values = problem.values(problem.start)
    wild = torch.zeros(12, 3, dtype=F64)
    wild[4] = 900.0  # exp overflows
    eta, status = modes(problem, values, wild)
    assert torch.allclose(eta, modes(problem, values)[0], atol=1e-8)
    assert status.tolist() == [0] * 12
