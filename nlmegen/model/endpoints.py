"""Endpoints: what is observed, and its residual error, NONMEM's $ERROR.

With prediction f and residual standard deviations sigma, an observation is y = f + eps, eps ~ N(0, R(f)):

    Additive                     R = additive^2
    Proportional                 R = (proportional f)^2
    Combined, form "variance"    R = additive^2 + (proportional f)^2
    Combined, form "sd"          R = (additive + proportional f)^2
    LogNormal                    log y = log f + eps, R = sd^2

NONMEM's $SIGMA holds variances; these are standard deviations.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import ModelError
from ..maths.bijections import Bijection
from . import priors


@dataclass(frozen=True)
class Endpoint(ABC):
    """One kind of observation.

    Args:
        dvid: the DVID (number or name) of its records; without it, its own name or its place among the endpoints.
        fixed: keep the standard deviations at their starts.
        prior: prior of the standard deviations, as for `Theta`: one distribution for each of them, or a mapping by
            name for some.
    """

    _: KW_ONLY
    dvid: int | str | None = None
    fixed: bool = False
    prior: Any = None

    def __post_init__(self) -> None:
        for name, start in self.start.items():
            kind = type(self).__name__
            number: object = start
            if not isinstance(number, Real) or not math.isfinite(number) or number <= 0:
                raise ModelError(
                    f"{kind}({name}={start!r}): a residual standard deviation must be a positive number; "
                    "give a rough guess of its size"
                )
        priors.refuse_fixed(self.prior, self.fixed, type(self).__name__)
        for name, prior in self.priors.items():
            priors.check(prior, f"the standard deviation {name}", self.start[name], Bijection(lower=0.0))

    @property
    def priors(self) -> dict[str, Any]:
        """Prior of each standard deviation that has one, by name."""
        return priors.by_name(self.prior, tuple(self.start), type(self).__name__)

    @property
    @abstractmethod
    def start(self) -> dict[str, float]:
        """Standard deviations by name, at their starts."""

    @abstractmethod
    def variance(self, f: Tensor, sigma: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """R(f), dR/df and d2R/df2, each broadcastable to `f [*draw, subject, time]`."""

    def link(self, f: Any) -> Any:
        """The prediction on the scale of the residual error (tensor or Taylor number)."""
        return f

    def link_dv(self, y: Tensor) -> Tensor:
        """An observation of the table on the scale of the residual error."""
        return y

    def natural(self, y: Tensor) -> Tensor:
        """From the scale of the residual error back to that of the table."""
        return y

    def log_jacobian(self, y: Tensor) -> Tensor:
        """log |d link(y) / dy|, what a density of the transformed observation lacks."""
        return torch.zeros_like(y)

    @property
    def positive(self) -> bool:
        """Whether predictions (and observations, where they are natural) must be positive."""
        return False


@dataclass(frozen=True)
class Additive(Endpoint):
    """Constant residual standard deviation `additive`, in the units of the observation."""

    additive: float

    @property
    def start(self) -> dict[str, float]:
        """See `Endpoint`."""
        return {"additive": self.additive}

    def variance(self, f: Tensor, sigma: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """See `Endpoint`."""
        zero = torch.zeros((), dtype=f.dtype, device=f.device)
        return sigma["additive"] ** 2, zero, zero


@dataclass(frozen=True)
class Proportional(Endpoint):
    """Residual standard deviation `proportional` times the prediction (a fraction)."""

    proportional: float

    @property
    def start(self) -> dict[str, float]:
        """See `Endpoint`."""
        return {"proportional": self.proportional}

    def variance(self, f: Tensor, sigma: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """See `Endpoint`."""
        square = sigma["proportional"] ** 2
        slope = square * f
        return slope * f, 2 * slope, 2 * square


@dataclass(frozen=True)
class Combined(Endpoint):
    """Additive and proportional error together.

    Args:
        additive: in the units of the observation.
        proportional: a fraction.
        form: "variance" adds the two variances, "sd" the two standard deviations. The two differ (by 5 units of
            objective function on theophylline) and are not the same model.
    """

    additive: float
    proportional: float
    form: Literal["variance", "sd"] = "variance"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in ("variance", "sd"):
            raise ModelError(f"Combined(form={self.form!r}): form must be 'variance' or 'sd'")

    @property
    def start(self) -> dict[str, float]:
        """See `Endpoint`."""
        return {"additive": self.additive, "proportional": self.proportional}

    def variance(self, f: Tensor, sigma: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """See `Endpoint`."""
        a, b = sigma["additive"], sigma["proportional"]
        square = b * b
        if self.form == "variance":
            slope = square * f
            return a * a + slope * f, 2 * slope, 2 * square
        sd = a + b * f
        return sd * sd, 2 * b * sd, 2 * square


@dataclass(frozen=True)
class LogNormal(Endpoint):
    """Additive error on the logarithm.

    Args:
        sd: residual standard deviation of log y.
        dv: "natural" when the table holds y (the likelihood is then that of y and includes -sum log y), "log" when it
            holds log y. Objective functions of the two are not comparable.
    """

    sd: float
    dv: Literal["natural", "log"] = "natural"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dv not in ("natural", "log"):
            raise ModelError(f"LogNormal(dv={self.dv!r}): dv must be 'natural' or 'log'")

    @property
    def start(self) -> dict[str, float]:
        """See `Endpoint`."""
        return {"sd": self.sd}

    @property
    def positive(self) -> bool:
        """See `Endpoint`."""
        return True

    def variance(self, f: Tensor, sigma: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """See `Endpoint`."""
        zero = torch.zeros((), dtype=f.dtype, device=f.device)
        return sigma["sd"] ** 2, zero, zero

    def link(self, f: Any) -> Any:
        """See `Endpoint`."""
        return torch.log(f)

    def link_dv(self, y: Tensor) -> Tensor:
        """See `Endpoint`."""
        return torch.log(y) if self.dv == "natural" else y

    def natural(self, y: Tensor) -> Tensor:
        """See `Endpoint`."""
        return torch.exp(y) if self.dv == "natural" else y

    def log_jacobian(self, y: Tensor) -> Tensor:
        """See `Endpoint`."""
        return -torch.log(y) if self.dv == "natural" else torch.zeros_like(y)
