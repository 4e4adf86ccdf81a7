"""Rates and modes of disposition against numpy's eigenvalues and fifty digits."""

from __future__ import annotations

import mpmath as mp
import numpy as np
import pytest
import torch
from structure.exact import flow_matrix
from structure.systems import VALUES, spread
from torch import Tensor

from nlmegen.maths.taylor import Taylor, value_of
from nlmegen.structure.closed import Closed, OneCompartment, ThreeCompartment, TwoCompartment
from nlmegen.structure.spectrum import Disposition, micro_constants

PAIRS = {1: (), 2: (("q", "v2"),), 3: (("q", "v2"), ("q3", "v3"))}
KINDS: dict[int, Closed] = {1: OneCompartment(), 2: TwoCompartment(), 3: ThreeCompartment()}


def disposition(n: int, values: dict[str, float]) -> Disposition:
    p = {k: torch.tensor([[x]], dtype=torch.float64) for k, x in values.items()}
    return Disposition(micro_constants(p["cl"], p["v"], [(p[q], p[v]) for q, v in PAIRS[n]]))


def exact_rates(n: int, values: dict[str, float]) -> list[float]:
    with mp.workdps(60):
        a = flow_matrix(KINDS[n], {k: mp.mpf(x) for k, x in values.items()})
        eigenvalues = mp.eig(a, left=False, right=False) if n > 1 else [a[0, 0]]
        return sorted((float(-mp.re(x)) for x in eigenvalues), reverse=True)


CASES = [
    dict(),
    dict(q=1e-9),
    dict(q=1e9),
    dict(v2=1e6),
    dict(v2=1e-6),
    dict(cl=1e-9),
    dict(cl=1e6),
    dict(q3=5.0, v3=50.0),
    dict(q3=1e-7, v3=1e4),
    dict(cl=1e5, q=1e-2, v2=1e3, q3=1e-5, v3=1e5),
]


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("changed", CASES, ids=str)
def test_rates_keep_their_relative_accuracy(n: int, changed: dict[str, float]) -> None:
    values = VALUES | changed
    rates = value_of(disposition(n, values).rates).flatten()
    torch.testing.assert_close(
        rates, torch.tensor(exact_rates(n, values), dtype=torch.float64), rtol=1e-13, atol=0.0
    )


@pytest.mark.parametrize("n", [2, 3])
def test_many_random_systems(n: int) -> None:
    g = torch.Generator().manual_seed(0)
    names = ("cl", "v", "q", "v2", "q3", "v3")
    p = {k: torch.exp(3 * torch.randn(500, 1, generator=g, dtype=torch.float64)) for k in names}
    found = Disposition(micro_constants(p["cl"], p["v"], [(p[q], p[v]) for q, v in PAIRS[n]]))
    rates = value_of(found.rates)[..., 0]
    a = value_of(found.matrix()).squeeze(-1).permute(2, 0, 1).numpy()
    # symmetric form, for which numpy's eigenvalues are accurate against the largest one
    scale = np.sqrt(np.abs(np.swapaxes(a, 1, 2) / np.where(a == 0, 1, a)))
    symmetric = np.where(a == 0, 0, a * np.where(np.eye(n), 1, scale))
    expected = np.sort(-np.linalg.eigvalsh(symmetric), axis=-1)[:, ::-1].T
    np.testing.assert_allclose(rates.numpy() / expected[0], expected / expected[0], rtol=0, atol=1e-12)
    assert bool((rates > 0).all())
    assert bool((rates[:-1] >= rates[1:]).all())


@pytest.mark.parametrize("n", [2, 3])
def test_shares_rebuild_the_identity_and_the_matrix(n: int) -> None:
    """sum_m r_ijm = delta_ij and sum_m -lambda_m r_ijm = A_ij."""
    found = disposition(n, VALUES)
    rates, a = value_of(found.rates), value_of(found.matrix())
    for i in range(n):
        for j in range(n):
            share = value_of(found.response(i, j))
            torch.testing.assert_close(share.sum(0).item(), float(i == j), rtol=0.0, atol=1e-14)
            torch.testing.assert_close((-rates * share).sum(0), a[i, j], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("n", [2, 3])
def test_derivatives_of_the_rates(n: int) -> None:
    """By the implicit function theorem on Taylor numbers, and through Newton's steps on tensors: the same."""
    eta = spread(KINDS[n], 4, sd=0.5)
    names = KINDS[n].parameters

    def rates(shift: list[Tensor] | list[Taylor]) -> Tensor | Taylor:
        p = {k: VALUES[k] * torch.exp(s) for k, s in zip(names, shift, strict=True)}  # type: ignore[arg-type]
        return Disposition(micro_constants(p["cl"], p["v"], [(p[q], p[v]) for q, v in PAIRS[n]])).rates

    def plain(move: Tensor) -> Tensor:
        return value_of(rates(list((eta + move).unsqueeze(-1).unbind(1))))

    got = rates(Taylor.seed(eta, 2))
    assert isinstance(got, Taylor)
    zero = torch.zeros(len(names), dtype=torch.float64)
    jac = torch.func.jacfwd(plain)
    torch.testing.assert_close(got.full()[1], jac(zero).movedim(-1, 0), rtol=1e-11, atol=1e-13)
    hess = torch.func.jacfwd(jac)(zero)
    torch.testing.assert_close(got.dense_hess(), hess.movedim((-2, -1), (0, 1)), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("q", "meets"), [(5.0, False), (1e-6, True)])
def test_where_modes_meet(q: float, meets: bool) -> None:
    values = VALUES | dict(q=q, v2=q * VALUES["v"] / VALUES["cl"])
    where = disposition(2, values).meeting
    assert (where is not None) == meets
    assert disposition(1, values).meeting is None
