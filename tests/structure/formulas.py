"""Formulas of two quantities for the tests of symbols: each torch function that pages may use, with points to try."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

Formula = Callable[[Any, Any], Any]

# formulas that are smooth on x, y > 0
POSITIVE: dict[str, Formula] = {
    "arithmetic": lambda x, y: (x - 2.0 * y + 1.0) * (x + y) - (3 - x) / (y + 0.5) + 2 / x,
    "negatives": lambda x, y: -(x - y) * -x + (-y - x) - (-x) / (-y) + (0.0 - x),
    "constants": lambda x, y: torch.as_tensor(1.5) * x + torch.ones(()) * y - torch.tensor(2.0) / (1.0 + x),
    "tensor first": lambda x, y: (
        (torch.tensor(2.0) - x) * (torch.tensor(3.0) + y) + torch.tensor(2.0) * x * y
    ),
    "reciprocal": lambda x, y: x.reciprocal() * y + torch.reciprocal(y * y + x),
    "quotients": lambda x, y: x / y / (1 + x / y),
    "exp": lambda x, y: torch.exp(-x * y) + x.exp(),
    "exp2": lambda x, y: torch.exp2(x * y),
    "log": lambda x, y: torch.log(x + y) * y.log() + torch.log2(x) - torch.log10(y * x),
    "sqrt": lambda x, y: torch.sqrt(x * y) + x.sqrt() * torch.rsqrt(y),
    "trigonometric": lambda x, y: torch.sin(x) * torch.cos(y) + torch.tan(0.3 * x * y),
    "tanh": lambda x, y: torch.tanh(x - y) * torch.tanh(x * y),
    "sigmoid": lambda x, y: torch.sigmoid(x * y - 1) + y * (x - y).sigmoid() + torch.special.expit(x),
    "softplus": lambda x, y: (
        F.softplus(x - y) * F.softplus(3 * y - x, beta=2.0) + F.softplus(12 * x, threshold=3.0)
    ),
    "logsigmoid": lambda x, y: F.logsigmoid(x - 2 * y),
    "log1p": lambda x, y: torch.log1p(x * y) + y.log1p(),
    "expm1": lambda x, y: torch.expm1(x - y) * x,
    "abs": lambda x, y: torch.abs(x - 5) * abs(y - 7) * (x + y).abs(),
    "square": lambda x, y: torch.square(x - y) * y.square(),
    "relu": lambda x, y: torch.relu(x + y) * x + F.relu(-x) * y,
    "silu": lambda x, y: F.silu(x - y) * y,
    "elu": lambda x, y: F.elu(y - x - 3) + F.elu(x + y, 1.5),
    "integer powers": lambda x, y: x**2 * y**3 + (x - y) ** 5 + x**-1 + y**-2 + (x + y) ** -3 + x**1 + y**0,
    "half powers": lambda x, y: x**0.5 * y**1.5 + (x * y) ** -0.5 + (x + y) ** 2.5 + y**-1.5,
    "real powers": lambda x, y: x**0.75 * (x + y) ** 2.3 + torch.pow(y, -1.7),
    "powers of quantities": lambda x, y: (
        x**y + y**x + 2.0**x + torch.tensor(3.0) ** y + torch.pow(x * y, x + y)
    ),
    "rsub": lambda x, y: torch.rsub(x, 2.0) * torch.rsub(y, x),
    "alpha": lambda x, y: torch.add(x, y, alpha=2) * torch.sub(x, y, alpha=0.5),
    "where": lambda x, y: torch.where(x > 0.1, x * y * y, y) + torch.where(y <= 0.0, x, 1.0) * x,
    "conditions": lambda x, y: torch.where((x > 0) & ~(y < 0) | (x == y), x * x * y, 0.0) + (x > 0) * y * x,
    "not equal": lambda x, y: torch.where(torch.logical_and(x != y, torch.logical_not(x >= 100.0)), x * y, y),
    "extremes": lambda x, y: torch.maximum(x, 0.01 * y) * torch.minimum(y, 50 * x) * x,
    "clamp": lambda x, y: x.clamp(min=0.0) * torch.clamp(y, 0.0, 100.0) + torch.clamp(x * y, max=y * 200) * x,
    "likes": lambda x, y: torch.ones_like(x) * y * x + torch.zeros_like(y) + torch.full_like(x, 2.0) * x,
    "michaelis-menten": lambda x, y: 3.0 * x / (y + x),
    "hill": lambda x, y: x**y / (0.7**y + x**y),
    "cancelling": lambda x, y: x * y - y * x + (x - x) * y + x * 0.0 + (x + y) - y + 0.0 * torch.exp(y),
}

# where zero bases and the branch not taken must give numbers: (formula, x, y)
EDGES: dict[str, tuple[Formula, float, float]] = {
    "x^y at 0, y = 2.5": (lambda x, y: x**y, 0.0, 2.5),
    "x^2.5 at 0": (lambda x, y: x**2.5 * y, 0.0, 2.0),
    "x^3 at 0": (lambda x, y: x**3 * y, 0.0, 2.0),
    "x^3 below 0": (lambda x, y: x**3 * y, -1.3, 2.0),
    "x^-3 below 0": (lambda x, y: x**-3 * y, -1.3, 2.0),
    "x^2 at 0": (lambda x, y: x**2 * y, 0.0, 2.0),
    "hill at 0": (lambda x, y: x**y / (0.5**y + x**y), 0.0, 3.5),
    "sigmoid far below": (lambda x, y: torch.sigmoid(x * y), -900.0, 1.0),
    "sigmoid far above": (lambda x, y: torch.sigmoid(x * y), 900.0, 1.0),
    "tanh far": (lambda x, y: torch.tanh(x * y), -900.0, 1.0),
    "softplus far below": (lambda x, y: F.softplus(x * y), -100.0, 1.0),
    "softplus far above": (lambda x, y: F.softplus(x * y), 900.0, 1.0),
    "log1p near 0": (lambda x, y: torch.log1p(x * y), 1e-13, 2.0),
    "expm1 near 0": (lambda x, y: torch.expm1(x * y), 1e-13, 2.0),
}
