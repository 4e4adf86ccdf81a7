"""Smooth one-to-one maps between an unconstrained number and an interval.

lower alone      x = lower + exp(u)
upper alone      x = upper - exp(u)
both             x = lower + (upper - lower) / (1 + exp(-u))
neither          x = u
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Bijection:
    """The map onto an open interval.

    Example:
        >>> Bijection(lower=0.0).natural(torch.tensor(0.0)).item()
        1.0
    """

    lower: float = -math.inf
    upper: float = math.inf

    @property
    def kind(self) -> str:
        """One of "identity", "lower", "upper", "both"."""
        if math.isinf(self.lower):
            return "identity" if math.isinf(self.upper) else "upper"
        return "lower" if math.isinf(self.upper) else "both"

    def natural(self, free: Tensor) -> Tensor:
        """x(u), any shape."""
        match self.kind:
            case "identity":
                return free
            case "lower":
                return torch.exp(free) if self.lower == 0 else self.lower + torch.exp(free)
            case "upper":
                return self.upper - torch.exp(free)
        return self.lower + (self.upper - self.lower) * torch.sigmoid(free)

    def free(self, natural: Tensor) -> Tensor:
        """u(x), the inverse of `natural`."""
        match self.kind:
            case "identity":
                return natural
            case "lower":
                return torch.log(natural - self.lower)
            case "upper":
                return torch.log(self.upper - natural)
        return torch.logit((natural - self.lower) / (self.upper - self.lower))

    def slope(self, free: Tensor) -> Tensor:
        """dx/du, any shape."""
        match self.kind:
            case "identity":
                return torch.ones_like(free)
            case "lower":
                return torch.exp(free)
            case "upper":
                return -torch.exp(free)
        s = torch.sigmoid(free)
        return (self.upper - self.lower) * s * (1 - s)
