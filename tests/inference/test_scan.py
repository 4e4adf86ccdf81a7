"""Modes that a search from zero misses: one sample that a fast and a slow absorption explain."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

import nlmegen as nl
from nlmegen.errors import Status
from nlmegen.inference.scan import likeliest


class Slow(nl.Model):
    """Oral, one sample near the crossing of two courses, a small residual error."""

    ka = nl.Theta(0.8, lower=0, fixed=True)
    iiv = nl.Omega(ka=0.64, fixed=True)
    cp = nl.Additive(0.02)
    structure = nl.OneCompartment(absorption="first-order")

    def individual(self, theta, eta, cov):
        """Clearance 3 L/h, volume 30 L."""
        ka = theta.ka * torch.exp(eta.ka)
        return {"ka": ka, "cl": 3.0 + 0.0 * ka, "v": 30.0 + 0.0 * ka}

    def observe(self, t, a, p):
        """Concentration."""
        return {"cp": a.central / p.v}


@pytest.fixture
def data() -> nl.Population:
    table = pd.DataFrame(
        {
            "ID": [1, 1, 2, 2],
            "TIME": [0.0, 6.0, 0.0, 6.0],
            "AMT": [100.0, 0.0] * 2,
            "DV": [0.0, 1.6, 0.0, 1.9],
            "EVID": [1, 0] * 2,
        }
    )
    return nl.read_nonmem(table)


def by_brute_force(problem: nl.Problem) -> torch.Tensor:
    """Modes on a fine line `[subject]`."""
    line = torch.linspace(-6, 6, 240_001, dtype=torch.float64)[:, None, None].expand(-1, 2, 1)
    depth = problem.log_joint(line, problem.values(problem.start))
    return line[depth.argmax(0), torch.arange(2), 0]


def test_the_likeliest_of_the_points_is_taken(data: nl.Population) -> None:
    problem = nl.Problem(Slow(), data)
    values = problem.values(problem.start)
    steps = 0.8 * torch.arange(-3.0, 4.0, dtype=torch.float64)
    depth = problem.log_joint(steps[:, None, None].expand(-1, 2, 1), values)
    assert likeliest(problem, values)[:, 0].tolist() == steps[depth.argmax(0)].tolist()


@pytest.mark.parametrize("method", [nl.FOCEI, nl.Laplace, nl.AGQ, nl.Importance])
def test_the_deeper_mode_is_found_and_the_other_reported(method, data: nl.Population) -> None:
    fit = nl.fit(Slow(), data, method(evaluate=True))
    assert torch.allclose(fit.ebe[:, 0], by_brute_force(fit.problem), atol=1e-4)
    assert all(Status.SECOND_MODE in Status(int(flag)) for flag in fit.status)


def test_the_importance_posterior_stands_on_the_deeper_mode(data: nl.Population) -> None:
    fit = nl.fit(Slow(), data, nl.FOCEI(evaluate=True))
    mean = fit.posterior(how="importance").mean[:, 0]
    assert torch.allclose(mean, by_brute_force(fit.problem), atol=0.02)
