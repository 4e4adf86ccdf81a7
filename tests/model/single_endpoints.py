"""A page whose rows are handed to the density directly, and populations with every kind of record."""

from __future__ import annotations

import math

import pandas as pd
import torch
from torch import exp

import nlmegen as nl

F64 = torch.float64


def page(**endpoints: object) -> nl.Model:
    """A page with these endpoints (and correlations); every endpoint is predicted by the level, which is positive."""
    names = [k for k, e in endpoints.items() if not isinstance(e, nl.Correlation)]

    def individual(self, theta, eta, cov):
        return dict(cl=1.0, v=1.0, level=theta.level * exp(eta.high))

    def observe(self, t, a, p):
        return {name: 0.3 * p.level * exp(-0.1 * t) for name in names}

    body = dict(
        level=nl.Theta(1.5, lower=0),
        iiv=nl.Omega(high=0.2),
        structure=nl.OneCompartment(),
        individual=individual,
        observe=observe,
        **endpoints,
    )
    return type("Page", (nl.Model,), body)()


def population(rows: list[dict[str, object]]) -> nl.Population:
    """Records by subject; a dose of 1 at time 0 comes first."""
    table = []
    for i in sorted({int(row.get("id", 1)) for row in rows}):
        table.append(dict(id=i, time=0.0, amt=1.0, evid=1, dv=0.0))
        table += [dict(row, id=i, amt=0.0, evid=0) for row in rows if int(row.get("id", 1)) == i]
    frame = pd.DataFrame(table)
    if "cens" in frame:
        frame["cens"] = frame["cens"].fillna(0)
    if "dvid" in frame:
        frame["dvid"] = frame["dvid"].fillna(1)
    return nl.Population.from_table(frame, warn=False)


def bound(endpoint: object, dv: list[float], **columns: list[float]) -> nl.Problem:
    """One endpoint and one subject with these observations at times 1, 2, ..."""
    rows = [
        dict(time=float(k + 1), dv=y, **{name: values[k] for name, values in columns.items()})
        for k, y in enumerate(dv)
    ]
    return nl.Problem(page(y=endpoint), population(rows))


def local(problem: nl.Problem, f: list[float], observed: bool = True):
    """The density about these rows, and the rows, which want gradients."""
    rows = torch.tensor(f, dtype=F64).reshape(1, problem.n_subjects, -1)
    return problem.local(
        rows, problem.values(problem.start), observed=observed
    ), rows.clone().requires_grad_()


def dense(curvature, size: int) -> torch.Tensor:
    """The matrix `[size, size]` of the first subject of the first draw."""
    eye = torch.eye(size, dtype=F64)
    shape = (*curvature.diagonal.shape[:-1], size, size)
    return curvature.times(eye.expand(shape))[0, 0]


def by_autograd(problem: nl.Problem, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Score and -d2 log p of the first subject by reverse mode through log p."""
    total = problem.local(rows, problem.values(problem.start)).log_p.sum()
    (score,) = torch.autograd.grad(total, rows, create_graph=True)
    flat = score.flatten()
    second = [
        -torch.autograd.grad(x, rows, retain_graph=True, materialize_grads=True, allow_unused=True)[
            0
        ].flatten()
        for x in flat
    ]
    return flat.detach(), torch.stack(second)


NAN = math.nan
