"""Closed forms: derivatives, isolation of a bad subject, names, number of operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from structure.systems import (
    GRID,
    STRUCTURES,
    Dose,
    Regimen,
    constant,
    crowd,
    schedule,
    seeded,
    shifted,
    solved,
    solved_taylor,
    spread,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nlmegen.errors import ModelError
from nlmegen.maths.taylor import Number, Taylor, value_of
from nlmegen.model.named import Named
from nlmegen.structure.closed import Closed, OneCompartment, ThreeCompartment, TwoCompartment
from nlmegen.structure.spectrum import Disposition, micro_constants

family = pytest.mark.parametrize("structure", STRUCTURES, ids=repr)


# -- derivatives ------------------------------------------------------------------------------------------------------
@family
@pytest.mark.parametrize("order", [1, 2])
def test_taylor_derivatives_are_those_of_the_plain_route(structure: Closed, order: int) -> None:
    plan, eta = crowd(structure), spread(structure, 3)
    value, jac, hess = solved_taylor(structure, seeded(structure, eta, order), plan)

    def plain(e: Tensor) -> Tensor:
        return solved(structure, shifted(structure, e), plan)

    torch.testing.assert_close(value, plain(eta), rtol=1e-13, atol=1e-13)

    def along(e: Tensor) -> Tensor:
        """Jacobian, the subjects moved together: each depends on its own shifts alone."""
        return torch.func.jacfwd(lambda s: plain(e + s))(torch.zeros(e.shape[-1], dtype=torch.float64))

    torch.testing.assert_close(jac, along(eta).movedim(-1, 0), rtol=1e-11, atol=1e-11)
    if order == 2:
        second = torch.func.jacfwd(lambda s: along(eta + s))(torch.zeros(eta.shape[-1], dtype=torch.float64))
        torch.testing.assert_close(hess, second.movedim((-2, -1), (0, 1)), rtol=1e-10, atol=1e-10)


@family
def test_reverse_mode_over_the_jacobian(structure: Closed) -> None:
    """Theta shifts eta here, so the gradient of a function of the Jacobian in eta is a contraction of the Hessian."""
    plan, eta = crowd(structure), spread(structure, 3)
    theta = torch.zeros(len(structure.parameters), dtype=torch.float64, requires_grad=True)
    _, jac, _ = solved_taylor(structure, seeded(structure, eta + theta, 1), plan)
    weight = torch.randn(jac.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    (got,) = torch.autograd.grad((weight * jac).sum(), theta)
    hess = solved_taylor(structure, seeded(structure, eta, 2), plan)[2]
    torch.testing.assert_close(got, torch.einsum("kcnt,klcnt->l", weight, hess), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("order", [0, 1])
def test_modes_that_meet_let_finite_gradients_through(order: int, mode: int) -> None:
    """Rates equal in floating point (in some of 300 subjects) have no derivatives of their own."""
    two, three, n = TwoCompartment("first-order"), ThreeCompartment("first-order"), 300
    eta = spread(three, n)
    p = shifted(three, eta)
    pairs = [(p.q, p.v2)]
    third = value_of(Disposition(micro_constants(p.cl, p.v, pairs)).rates)[mode]
    theta = torch.zeros(n, 7, dtype=torch.float64, requires_grad=True)
    p = seeded(three, eta + theta, order) if order else shifted(three, eta + theta)
    p.q3 = p.q3 * (1e-30 / value_of(p.q3).detach())
    p.v3 = p.v3 * (1e-30 / third / value_of(p.v3).detach())
    regimen = Regimen([Dose(0.0, 100.0, "depot")], (1.0, 4.0))
    plan = schedule(three, *[regimen] * n)
    parts = solved_taylor(three, p, plan)[:2] if order else (solved(three, p, plan),)
    expected = solved(two, shifted(two, eta[:, [0, 1, 2, 3, 6]]), schedule(two, *[regimen] * n))
    torch.testing.assert_close(parts[0][:3], expected, rtol=1e-12, atol=0.0)
    for x in parts:
        (slope,) = torch.autograd.grad(x.sum(), theta, retain_graph=True)
        assert bool(torch.isfinite(slope).all())


# -- one bad subject --------------------------------------------------------------------------------------------------
@family
@pytest.mark.parametrize("bad", [0.0, -1.0, torch.nan])
@pytest.mark.parametrize("order", [0, 2])
def test_a_bad_parameter_spoils_its_own_subject_alone(structure: Closed, bad: float, order: int) -> None:
    plan, eta = crowd(structure), spread(structure, 3)
    for name in structure.parameters:
        p = seeded(structure, eta, order) if order else shifted(structure, eta)
        good = solved(structure, p, plan)
        spoilt = torch.tensor([[1.0], [bad], [1.0]], dtype=torch.float64)
        setattr(p, name, getattr(p, name) * spoilt)
        got = solved(structure, p, plan)
        assert not bool(torch.isfinite(got[:, 1]).any())
        torch.testing.assert_close(got[:, [0, 2]], good[:, [0, 2]], rtol=1e-13, atol=0.0)


@family
def test_extreme_parameters_raise_nothing_and_stay_apart(structure: Closed) -> None:
    plan, eta = crowd(structure), spread(structure, 3)
    for size in (1e-300, 1e-30, 1e30, 1e300):
        p = seeded(structure, eta, 2)
        p.v = p.v * torch.tensor([[1.0], [size], [1.0]], dtype=torch.float64)
        value, jac, hess = solved_taylor(structure, p, plan)
        for n, x in enumerate((value, jac, hess)):
            assert bool(torch.isfinite(x.index_select(n + 1, torch.tensor([0, 2]))).all())


# -- what a page sees -------------------------------------------------------------------------------------------------
def test_names() -> None:
    assert [s.compartments for s in STRUCTURES[1::2]] == [
        ("depot", "central"),
        ("depot", "central", "peripheral"),
        ("depot", "central", "peripheral", "peripheral2"),
    ]
    assert [s.compartments[0] for s in STRUCTURES[::2]] == ["central"] * 3
    assert [s.parameters for s in STRUCTURES[1::2]] == [
        ("cl", "v", "ka"),
        ("cl", "v", "q", "v2", "ka"),
        ("cl", "v", "q", "v2", "q3", "v3", "ka"),
    ]
    assert TwoCompartment("first-order").describe() == (
        "two compartments, first-order absorption, first-order elimination (cl, v, q, v2, ka)"
    )
    assert repr(OneCompartment("first-order")) == "OneCompartment(absorption='first-order')"


def test_another_absorption_is_refused() -> None:
    with pytest.raises(ModelError, match="absorption is None or \"first-order\", got 'zero-order'"):
        OneCompartment("zero-order")


def test_a_solution_is_a_mapping_that_computes_what_is_read() -> None:
    structure = OneCompartment("first-order")
    plan = schedule(structure, Regimen([Dose(0.0, 1.0, "depot")], (1.0,)))

    def operations(names: tuple[str, ...]) -> int:
        with _Count() as count:
            solution = structure.solve(constant(structure), plan)
            assert list(solution) == ["depot", "central"]
            assert "central" in solution
            assert "peripheral" not in solution
            for name in names:
                solution[name]
        return count.n

    operations(("depot", "central"))
    assert (
        operations(()) < operations(("depot",)) < operations(("central",)) < operations(("depot", "central"))
    )
    with pytest.raises(KeyError):
        structure.solve(constant(structure), plan)["peripheral"]


# -- size: at a dozen subjects time is the number of operations ------------------------------------------------------
class _Count(TorchDispatchMode):
    """Counts operations of torch, those that only look at memory in another way left out."""

    VIEWS = (
        "view",
        "expand",
        "unsqueeze",
        "squeeze",
        "select",
        "slice",
        "transpose",
        "permute",
        "unbind",
        "detach",
    )

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        self.n += not name.strip("_").startswith(self.VIEWS)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("structure", "most"),
    [
        (OneCompartment(), (10, 18, 30)),
        (OneCompartment("first-order"), (25, 43, 72)),
        (TwoCompartment("first-order"), (62, 120, 240)),
    ],
    ids=repr,
)
def test_few_operations_for_a_single_dose(structure: Closed, most: tuple[int, int, int]) -> None:
    plan = schedule(structure, Regimen([Dose(0.0, 100.0, structure.compartments[0])], GRID))
    eta = spread(structure, 1)
    for order in (0, 1, 2):
        p = seeded(structure, eta, order) if order else shifted(structure, eta)
        structure.solve(p, plan)["central"]
        with _Count() as count:
            structure.solve(p, plan)["central"]
        assert count.n <= most[order], f"order {order}: {count.n} operations"


def test_the_cost_of_carrying_the_state_grows_with_the_logarithm_of_the_doses() -> None:
    structure, counts = OneCompartment(), []
    for doses in (4, 32, 256):
        plan = schedule(structure, Regimen([Dose(float(k), 1.0, "central") for k in range(doses)], (300.0,)))
        p = seeded(structure, spread(structure, 1), 2)
        structure.solve(p, plan)["central"]
        with _Count() as count:
            structure.solve(p, plan)["central"]
        counts.append(count.n)
    assert counts[2] - counts[1] == counts[1] - counts[0]


# -- draws ------------------------------------------------------------------------------------------------------------
def _parts(x: Number, shape: tuple[int, ...]) -> list[Tensor]:
    """Value, Jacobian and Hessian, each expanded to `shape` behind its directions."""
    parts = x.full() if isinstance(x, Taylor) else (x,)
    return [y.expand(y.shape[:k] + shape) for k, y in enumerate(parts) if y is not None]


@pytest.mark.parametrize(
    ("structure", "moved"),
    [(s, name) for s in STRUCTURES for name in ("cl", "v", "ka") if name in s.parameters],
    ids=repr,
)
@pytest.mark.parametrize("draws", [2, 3, 5])
@pytest.mark.parametrize("rate", [0.0, 8.0], ids=["boluses", "infusions"])
def test_draws_may_move_one_parameter_alone(structure: Closed, moved: str, draws: int, rate: float) -> None:
    """Modes and compartments are axes in front of the draws: nothing that lacks draws may meet them there."""
    doses = [Dose(t, 100.0, structure.compartments[0], rate) for t in (0.0, 12.0, 24.0)]
    plan = schedule(structure, Regimen(doses, (1.0, 13.0, 30.0)))
    factor = torch.linspace(0.8, 1.3, draws, dtype=torch.float64)[:, None, None]
    for order in (0, 1, 2):
        p = (
            shifted(structure, spread(structure, 1))
            if order == 0
            else seeded(structure, spread(structure, 1), order)
        )
        one = {name: getattr(p, name) for name in structure.parameters}
        whole = structure.solve(Named("p", one | {moved: one[moved] * factor}), plan)
        for d in range(draws):
            alone = structure.solve(Named("p", one | {moved: one[moved] * factor[d]}), plan)
            for name in structure.compartments:
                ours, theirs = _parts(whole[name], (draws, 1, 3)), _parts(alone[name], (1, 3))
                for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
                    torch.testing.assert_close(a.select(k, d), b, rtol=1e-11, atol=1e-11)
