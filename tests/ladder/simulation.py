"""What is simulated from a linear page has the Gaussian law of that page; estimates of Monte Carlo error are honest."""

from __future__ import annotations

import math

import numpy as np
import torch
from histories import LogDose, log_dose_frame
from ladder.comparisons import F64, close, shifted
from ladder.linear_gaussian import ladder_of
from problems import TRUTH, Straight, exact, straight_problem

import nlmegen as nl

TIMES = np.array([1.0, 2.0, 3.0, 5.0])


def simulated_records_have_the_stated_law() -> None:
    """600 records of `Straight`, whitened by Z Omega Z' + sigma^2 I: means 0, variances 1, correlations 0."""
    cohort = nl.Cohort(600, "1", times=TIMES.tolist())
    table = nl.simulate(Straight(), cohort, seed=3)
    y = table.loc[table["evid"] == 0, "dv"].to_numpy().reshape(600, -1)
    _, mean, omega = TRUTH["Straight"]
    z = np.stack([np.ones_like(TIMES), TIMES], 1)
    marginal = z @ np.array(omega) @ z.T + 0.4**2 * np.eye(len(TIMES))
    white = np.linalg.solve(np.linalg.cholesky(marginal), (y - z @ np.array(mean)).T)
    off = white @ white.T / 600 - np.eye(len(TIMES))
    sd = np.sqrt((1 + np.eye(len(TIMES))) / 600)
    assert (np.abs(white.mean(1)) < 4.5 / math.sqrt(600)).all(), "means"
    assert (np.abs(off) < 4.5 * sd).all(), f"covariances: {off / sd}"


def simulated_doses_are_those_of_the_table() -> None:
    """New observations for every dosing history, without residual error: log y - log g + log tvv is minus one eta."""
    frame, log_amounts = log_dose_frame()
    table = nl.simulate(LogDose(), nl.read_nonmem(frame), seed=4, residual=False, truth=True)
    for number, (name, log_g) in enumerate(log_amounts):
        seen = table[(table["id"] == number + 1) & (table["evid"] == 0)]
        off = np.log(seen["dv"].to_numpy()) - np.array(log_g) + math.log(20.0)
        assert np.allclose(off, -seen["eta_v"].to_numpy(), atol=1e-9), name


def ladder_is_unbiased_with_honest_errors() -> None:
    """Over 80 seeds with few draws: the corrected sum is centred on log L, and its stated SE is its spread.

    Errors that all patients share would add up to more than the stated SE.
    """
    problem = straight_problem(100)
    truth = exact(problem)
    q = shifted(truth.mean, truth.covariance, widen=2.0)
    found = [ladder_of(problem, q, 8, seed) for seed in range(80)]
    error = torch.tensor([x.log_likelihood for x in found], dtype=F64) - truth.total
    stated = torch.tensor([x.se for x in found], dtype=F64)
    plain = torch.tensor([x.iwelbo for x in found], dtype=F64) - truth.total
    sem = float(error.std()) / math.sqrt(len(error))
    assert float(plain.mean()) < -8 * sem, (plain.mean(), sem)
    assert abs(float(error.mean())) < 0.25 * abs(float(plain.mean())) + 3 * sem, (
        error.mean(),
        plain.mean(),
        sem,
    )
    close(float(error.std() / stated.square().mean().sqrt()), 1.0, 0.2)


CHECKS = (
    simulated_records_have_the_stated_law,
    simulated_doses_are_those_of_the_table,
    ladder_is_unbiased_with_honest_errors,
)
