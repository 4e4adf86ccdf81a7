"""Residual errors beyond the usual four: a power of the prediction, a transform of both sides, heavy tails.

Power       y = f + eps, R = (sd |f|^power)^2
BoxCox      (y^lam - 1) / lam = (f^lam - 1) / lam + eps, R = sd^2
StudentT    y = f + eps, eps / sqrt(R) has a Student t law, R that of Combined
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..errors import ModelError
from .endpoints import Residual, check_form, combined


@dataclass(frozen=True)
class Power(Residual):
    """Residual standard deviation sd |f|^power; power 0 is additive, 1 proportional.

    Args:
        sd: the standard deviation where the prediction is 1.
        power: estimated, and positive.
    """

    sd: float
    power: float = 1.0

    others: ClassVar[tuple[str, ...]] = ("power",)

    @property
    def start(self) -> dict[str, float]:
        """See `Endpoint`."""
        return {"sd": self.sd, "power": self.power}

    def variance(self, f: Tensor, sigma: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """See `Endpoint`."""
        power, rests = 2 * sigma["power"], f == 0
        safe = torch.where(rests, torch.ones((), dtype=torch.float64), f)
        variance = sigma["sd"] ** 2 * (safe * safe) ** sigma["power"]
        variance = torch.where(rests, torch.zeros((), dtype=torch.float64), variance)
        slope = power * variance / safe
        return variance, slope, (power - 1) * slope / safe


@dataclass(frozen=True)
class BoxCox(Residual):
    """Additive error after a Box-Cox transform of both sides, (y^lam - 1) / lam; observations are positive.

    The likelihood is that of y and holds the Jacobian of the transform. `lam` is a number of the page and not
    estimated: 0 is `LogNormal`, 1 additive error, 0.5 that of square roots (times two).

    Args:
        sd: residual standard deviation of the transformed observation.
        lam: the exponent.
    """

    sd: float
    lam: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        lam: object = self.lam
        if not isinstance(lam, Real) or not math.isfinite(lam):
            raise ModelError(
                f"BoxCox(lam={self.lam!r}): expected a number, for example 0.5; 0 is the logarithm"
            )

    dv: ClassVar[str] = "natural"

    @property
    def start(self) -> dict[str, float]:
        """See `Endpoint`."""
        return {"sd": self.sd}

    @property
    def positive(self) -> bool:
        """See `Endpoint`."""
        return True

    @property
    def words(self) -> list[str]:
        """See `Endpoint`."""
        return [*super().words, f"lam={self.lam:g}"]

    def variance(self, f: Tensor, sigma: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """See `Endpoint`."""
        zero = torch.zeros((), dtype=f.dtype, device=f.device)
        return sigma["sd"] ** 2, zero, zero

    def link(self, f: Any) -> Any:
        """See `Endpoint`."""
        return (f**self.lam - 1) / self.lam if self.lam else torch.log(f)

    def link_dv(self, y: Tensor) -> Tensor:
        """See `Endpoint`."""
        linked: Tensor = self.link(y)
        return linked

    def natural(self, y: Tensor) -> Tensor:
        """See `Endpoint`; what lies outside the range of the transform becomes its end."""
        return (self.lam * y + 1).clamp(min=0.0) ** (1 / self.lam) if self.lam else torch.exp(y)

    def log_jacobian(self, y: Tensor) -> Tensor:
        """See `Endpoint`."""
        return (self.lam - 1) * torch.log(y)

    def zero(self) -> float:
        """See `Residual`."""
        return -1 / self.lam if self.lam > 0 else -math.inf


@dataclass(frozen=True)
class StudentT(Residual):
    """Residuals with the heavy tails of Student's t, for data with outliers.

    The scale is that of `Combined`: with `df` degrees of freedom the standard deviation is the scale times
    sqrt(df / (df - 2)). Observations of which only limits are known can be left out or halved, not M3 or M4.

    Args:
        additive: in the units of the observation.
        proportional: a fraction; None for none.
        df: degrees of freedom, a number of the page and not estimated.
        form: as of `Combined`.
    """

    additive: float | None = None
    proportional: float | None = None
    df: float = 4.0
    form: Literal["variance", "sd"] = "variance"

    gaussian: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_form(self.form, "StudentT")
        if not self.start:
            raise ModelError("StudentT needs a scale: additive=..., proportional=... or both")
        df: object = self.df
        if not isinstance(df, Real) or not 0 < float(df) < math.inf:
            raise ModelError(f"StudentT(df={self.df!r}): expected a positive number, for example 4")

    @property
    def start(self) -> dict[str, float]:
        """See `Endpoint`."""
        both = {"additive": self.additive, "proportional": self.proportional}
        return {name: x for name, x in both.items() if x is not None}

    @property
    def words(self) -> list[str]:
        """See `Endpoint`."""
        return [*super().words, f"df={self.df:g}"]

    def variance(self, f: Tensor, sigma: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The square of the scale, and its derivatives in f."""
        zero = torch.zeros((), dtype=f.dtype, device=f.device)
        return combined(f, sigma.get("additive", zero), sigma.get("proportional", zero), self.form)
