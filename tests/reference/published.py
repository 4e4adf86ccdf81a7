"""The numbers of numbers.toml, and models at them."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import nlmegen as nl
from nlmegen.inference.marginal import quadrature

NUMBERS: dict[str, Any] = tomllib.loads((Path(__file__).parent / "numbers.toml").read_text(encoding="utf-8"))


def at(model: nl.Model, numbers: Mapping[str, Any]) -> nl.Model:
    """The model at published estimates."""
    theta = {k: math.exp(v) for k, v in numbers.get("log_theta", {}).items()} | dict(numbers.get("theta", {}))
    omega = {k: v**2 for k, v in numbers.get("omega_sd", {}).items()} | dict(numbers.get("omega", {}))
    sigma = dict(numbers.get("sigma", {}))
    if "sigma2" in numbers:
        sigma = {model.sigma_names[0]: numbers["sigma2"] ** 0.5}
    return model.with_values(theta=theta, omega=omega, sigma=sigma)


def minus2ll(model: nl.Model, data: nl.Population, nodes: int = 9) -> float:
    """-2 log L by the package's quadrature."""
    problem = nl.Problem(model, data)
    return -2 * quadrature(problem, problem.values(problem.start), nodes).total


def moved(model: nl.Model, name: str, free_step: float) -> nl.Model:
    """The model with one entry of its free vector moved."""
    step = torch.zeros_like(model.free)
    step[model.layout.names.index(name)] = free_step
    return model.with_free(model.free + step)
