"""Correlated residuals: which observations belong together, the parameter, draws, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from model.single_endpoints import F64, by_autograd, dense, page, population
from scipy import stats

import nlmegen as nl

PAIR = dict(cp=nl.Combined(0.3, 0.2), pd=nl.Additive(0.5))
LINK = nl.Correlation("cp", "pd", 0.6)


def problem(records: list[dict[str, object]], **more: object) -> nl.Problem:
    return nl.Problem(page(**PAIR, **(more or {"link": LINK})), population(records))


TOGETHER = [
    dict(time=1.0, dv=0.5, dvid=1),
    dict(time=1.0, dv=0.9, dvid=2),
    dict(time=2.0, dv=0.4, dvid=1),
    dict(time=3.0, dv=0.7, dvid=2),
    dict(time=3.0, dv=0.2, dvid=1),
]


def test_the_same_time_or_the_same_l2() -> None:
    (pairs,) = problem(TOGETHER).residual_pairs
    assert [
        p for p, there in zip(pairs.first[0].tolist(), pairs.there[0].tolist(), strict=True) if there
    ] == [0, 4]
    assert pairs.second[0].tolist() == [1, 3]
    groups = [dict(r, l2=g) for r, g in zip(TOGETHER, (1, 1, 2, 2, 0), strict=True)]
    (pairs,) = problem(groups).residual_pairs
    assert pairs.first[0].tolist() == [0, 2]
    assert pairs.second[0].tolist() == [1, 3]


def test_the_same_time_after_a_reset_is_another() -> None:
    """The clock starts again with the second period: cp at 1 h of the first has no pd beside it."""
    rows = [(0.0, 1, 1), (1.0, 0, 1), (2.0, 0, 1), (2.0, 0, 2)]
    rows += [(0.0, 4, 1), (1.0, 0, 1), (1.0, 0, 2), (2.0, 0, 2)]
    frame = pd.DataFrame(rows, columns=["time", "evid", "dvid"])
    frame = frame.assign(id=1, amt=(frame.evid > 0) * 1.0, dv=0.5)
    bound = nl.Problem(page(**PAIR, link=LINK), nl.Population.from_table(frame, warn=False))
    (pairs,) = bound.residual_pairs
    assert pairs.there.tolist() == [[True, True]]
    assert (pairs.first[0].tolist(), pairs.second[0].tolist()) == ([1, 3], [2, 4])


def test_density_and_derivatives_against_a_multivariate_normal() -> None:
    p = problem(TOGETHER)
    f = np.array([0.6, 0.8, 0.5, 0.4, 0.3])
    sd = np.where([True, False, True, False, True], np.hypot(0.3, 0.2 * f), 0.5)
    cov = np.diag(sd**2)
    for i, j in ((0, 1), (4, 3)):
        cov[i, j] = cov[j, i] = 0.6 * sd[i] * sd[j]
    law = stats.multivariate_normal(f, cov)
    rows = torch.tensor(f, dtype=F64).reshape(1, 1, 5)
    values = p.values(p.start)
    at = p.local(rows, values, observed=True)
    y = [0.5, 0.9, 0.4, 0.7, 0.2]
    assert float(at.log_p.sum()) == pytest.approx(float(law.logpdf(y)), rel=1e-12)
    score, second = by_autograd(p, rows.clone().requires_grad_())
    torch.testing.assert_close(at.score.flatten(), score, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(dense(at.second, 5), second, rtol=1e-11, atol=1e-12)
    # the expected information of a normal law: J' R^-1 J + 1/2 tr(R^-1 R_i R^-1 R_j), here J = 1
    inverse, slopes = np.linalg.inv(cov), []
    for k in range(5):
        change = np.zeros((5, 5))
        relative = 0.04 * f[k] / sd[k] ** 2 if k in (0, 2, 4) else 0.0
        for j in range(5):
            change[k, j] = change[j, k] = cov[k, j] * relative * (2 if j == k else 1)
        slopes.append(change)
    trace = [[0.5 * np.trace(inverse @ a @ inverse @ b) for b in slopes] for a in slopes]
    np.testing.assert_allclose(dense(at.weight, 5), inverse + np.array(trace), rtol=1e-11, atol=1e-13)


def test_one_of_a_pair_with_limits_is_an_integral_of_the_pair() -> None:
    """The first pair's second is below .9, the other pair's first lies between .1 and .2."""
    records = [
        dict(r, cens=int(k in (1, 4)), limit=0.1 if k == 4 else math.nan) for k, r in enumerate(TOGETHER)
    ]
    p = problem(records)
    f = [0.6, 0.8, 0.5, 0.4, 0.3]
    rows = torch.tensor(f, dtype=F64).reshape(1, 1, 5)
    at = p.local(rows, p.values(p.start), observed=True)
    a, b, d = math.hypot(0.3, 0.12), math.hypot(0.3, 0.1), math.hypot(0.3, 0.06)
    root = math.sqrt(1 - 0.36)
    given = stats.norm(0.8 + 0.6 * 0.5 / a * (0.5 - 0.6), 0.5 * root)
    other = stats.norm(0.3 + 0.6 * d / 0.5 * (0.7 - 0.4), d * root)
    truth = stats.norm.logpdf(0.5, 0.6, a) + given.logcdf(0.9) + stats.norm.logpdf(0.4, 0.5, b)
    truth += stats.norm.logpdf(0.7, 0.4, 0.5) + math.log(other.cdf(0.2) - other.cdf(0.1))
    assert float(at.log_p.sum()) == pytest.approx(truth, rel=1e-12)
    score, second = by_autograd(p, rows.clone().requires_grad_())
    torch.testing.assert_close(at.score.flatten(), score, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(dense(at.second, 5), second, rtol=1e-9, atol=1e-10)
    assert float(torch.linalg.eigvalsh(dense(at.weight, 5)).min()) >= -1e-12


def test_the_parameter_is_a_correlation_everywhere() -> None:
    p = problem(TOGETHER)
    assert p.names[-1] == "link.correlation"
    assert float(p.model.sigma["link.correlation"]) == pytest.approx(0.6, rel=1e-15)
    moved = p.model.with_values(sigma={"link.correlation": -0.99})
    assert float(moved.sigma["link.correlation"]) == pytest.approx(-0.99, rel=1e-14)
    with pytest.raises(nl.ModelError, match="outside its bounds"):
        p.model.with_values(sigma={"link.correlation": 1.0})
    free = p.fixed_vector.clone()
    slopes = p.layout.slopes(free)
    step = torch.zeros_like(free)
    step[-1] = 1e-6
    ends = [float(p.layout.values(free + s * step).sigma["link.correlation"]) for s in (1, -1)]
    assert float(slopes[-1]) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-8)
    assert "link: Correlation cp pd" in p.layout.signature
    held = problem(TOGETHER, link=nl.Correlation("cp", "pd", 0.6, fixed=True))
    assert "link.correlation" not in held.names

    def total(x: torch.Tensor) -> torch.Tensor:
        f = torch.full((1, 1, 5), 0.5, dtype=F64)
        return p.local(f, p.values(x)).log_p.sum()

    assert torch.autograd.gradcheck(total, p.start.clone().requires_grad_())


def test_draws_are_correlated() -> None:
    p = problem(TOGETHER)
    f = torch.full((20_000, 1, 5), 0.5, dtype=F64)
    dv = p.simulate_dv(f, p.values(p.start), torch.Generator().manual_seed(1))[:, 0].numpy()
    found = np.corrcoef(dv.T)
    assert found[0, 1] == pytest.approx(0.6, abs=0.02)
    assert found[4, 3] == pytest.approx(0.6, abs=0.02)
    assert abs(found[0, 2]) < 0.03
    assert dv[:, 0].std() == pytest.approx(math.hypot(0.3, 0.1), rel=0.02)
    assert dv[:, 1].std() == pytest.approx(0.5, rel=0.02)


def test_subjects_keep_their_pairs() -> None:
    records = [dict(r, id=1) for r in TOGETHER] + [dict(r, id=2) for r in TOGETHER[:2]]
    p = problem(records)
    f = torch.full((2, 5), 0.5, dtype=F64)
    both = p.local(f, p.values(p.start)).log_p
    alone = p.select(torch.tensor([1]))
    torch.testing.assert_close(alone.local(f[1:], p.values(p.start)).log_p, both[1:])
    assert both[1, 2:].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (dict(link=nl.Correlation("cp", "effect")), "names 'effect', which is no endpoint"),
        (dict(a=nl.Correlation("cp", "pd"), b=nl.Correlation("pd", "cp")), "both correlate the endpoint"),
    ],
)
def test_what_a_page_refuses(more: dict[str, object], says: str) -> None:
    with pytest.raises(nl.ModelError, match=says):
        page(**PAIR, **more)
    with pytest.raises(nl.ModelError, match="whose residuals are not normal"):
        page(cp=nl.Poisson(), pd=nl.Additive(0.1), link=LINK)


def test_what_data_are_refused() -> None:
    apart = [dict(r, time=float(k)) for k, r in enumerate(TOGETHER, 1)]
    with pytest.raises(nl.DataError, match="no observations of cp and pd were made together"):
        problem(apart)
    limited = [dict(r, cens=int(k < 2)) for k, r in enumerate(TOGETHER)]
    with pytest.raises(nl.DataError, match="only limits are known, at id 1 time 1"):
        problem(limited)
