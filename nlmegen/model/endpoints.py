"""Endpoints: what is observed, and its residual error, NONMEM's $ERROR.

With prediction f and residual standard deviations sigma, an observation is y = f + eps, eps ~ N(0, R(f)):

    Additive                     R = additive^2
    Proportional                 R = (proportional f)^2
    Combined, form "variance"    R = additive^2 + (proportional f)^2
    Combined, form "sd"          R = (additive + proportional f)^2
    LogNormal                    log y = log f + eps, R = sd^2

NONMEM's $SIGMA holds variances; these are standard deviations. Further residual errors are in `residuals`, counts and
categories in `discrete`. What is known
of an observation may be a limit alone (column CENS, see `censoring`); `blq` says what is made of it:

    M3      its likelihood is the probability of the interval that it is known to lie in
    M4      as M3, every observation taken to be positive: all is conditional on y > 0
    M1      it is left out
    half    it is taken to be half its upper limit

(Beal, J Pharmacokinet Pharmacodyn 28:481-504 (2001), doi:10.1023/A:1012299115260.)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from numbers import Real
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..errors import ModelError
from ..maths.bijections import Bijection
from . import priors

BLQ = ("M3", "M4", "M1", "half")
"""What may be made of an observation of which only limits are known."""


@dataclass(frozen=True)
class Endpoint(ABC):
    """One kind of observation.

    Args:
        dvid: the DVID (number or name) of its records; without it, its own name or its place among the endpoints.
        fixed: keep the residual parameters at their starts.
        prior: prior of the residual parameters, as for `Theta`: one distribution for each of them, or a mapping by
            name for some.
    """

    others: ClassVar[tuple[str, ...]] = ()
    """Residual parameters that are no standard deviations."""

    _: KW_ONLY
    dvid: int | str | None = None
    fixed: bool = False
    prior: Any = None

    def __post_init__(self) -> None:
        for name, start in self.start.items():
            kind = type(self).__name__
            number: object = start
            if not isinstance(number, Real) or not math.isfinite(number) or number <= 0:
                what = "it" if name in self.others else "a residual standard deviation"
                raise ModelError(
                    f"{kind}({name}={start!r}): {what} must be a positive number; give a rough guess of its size"
                )
        priors.refuse_fixed(self.prior, self.fixed, type(self).__name__)
        for name, prior in self.priors.items():
            priors.check(prior, f"the residual parameter {name}", self.start[name], Bijection(lower=0.0))

    @property
    def priors(self) -> dict[str, Any]:
        """Prior of each residual parameter that has one, by name."""
        return priors.by_name(self.prior, tuple(self.start), type(self).__name__)

    @property
    @abstractmethod
    def start(self) -> dict[str, float]:
        """Residual parameters by name (standard deviations, mostly), all positive, at their starts."""

    @abstractmethod
    def variance(self, f: Tensor, sigma: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """R(f), dR/df and d2R/df2, each broadcastable to `f [*draw, subject, time]`."""

    @property
    def words(self) -> list[str]:
        """Options that change the meaning of the parameters, for the signature of a page."""
        return [f"{key}={getattr(self, key)}" for key in ("form", "dv") if hasattr(self, key)]

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
class Residual(Endpoint, ABC):
    """An observation that is a prediction plus a residual.

    Args:
        blq: what is made of an observation of which only limits are known: "M3", "M4", "M1" or "half".
    """

    _: KW_ONLY
    blq: Literal["M3", "M4", "M1", "half"] = "M3"

    gaussian: ClassVar[bool] = True
    """Whether residuals are normal."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blq not in BLQ:
            raise ModelError(
                f"{type(self).__name__}(blq={self.blq!r}): expected one of {', '.join(map(repr, BLQ))}"
            )

    def halved(self, limit: Tensor) -> Tensor:
        """Half a limit of the table, which stands for the observation under it."""
        return 0.5 * limit

    def zero(self) -> float:
        """An observation of zero, on the scale of the residual error."""
        return float(self.link_dv(torch.zeros((), dtype=torch.float64)))

    @property
    def words(self) -> list[str]:
        """See `Endpoint`."""
        return [*super().words, *([f"blq={self.blq}"] if self.blq != "M3" else [])]


@dataclass(frozen=True)
class Additive(Residual):
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
class Proportional(Residual):
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
class Combined(Residual):
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
        check_form(self.form, "Combined")

    @property
    def start(self) -> dict[str, float]:
        """See `Endpoint`."""
        return {"additive": self.additive, "proportional": self.proportional}

    def variance(self, f: Tensor, sigma: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """See `Endpoint`."""
        return combined(f, sigma["additive"], sigma["proportional"], self.form)


def check_form(form: str, kind: str) -> None:
    """Raise a ModelError on another form than "variance" or "sd"."""
    if form not in ("variance", "sd"):
        raise ModelError(f"{kind}(form={form!r}): form must be 'variance' or 'sd'")


def combined(f: Tensor, a: Tensor, b: Tensor, form: str) -> tuple[Tensor, Tensor, Tensor]:
    """R and its derivatives for an additive and a proportional part."""
    square = b * b
    if form == "variance":
        slope = square * f
        return a * a + slope * f, 2 * slope, 2 * square
    sd = a + b * f
    return sd * sd, 2 * b * sd, 2 * square


@dataclass(frozen=True)
class LogNormal(Residual):
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

    def halved(self, limit: Tensor) -> Tensor:
        """See `Residual`."""
        return 0.5 * limit if self.dv == "natural" else limit - math.log(2)

    def zero(self) -> float:
        """See `Residual`."""
        return -math.inf


@dataclass(frozen=True, eq=False)
class Predicted:
    """A prediction whose residual error has a size of its own: what `observe` returns for random effects on residuals.

    The residual standard deviation of the endpoint is multiplied by `scale`, NONMEM's `Y = F + EPS(1)*W*EXP(ETA(3))`.

    Args:
        f: the prediction.
        scale: a positive quantity, `[*draw, subject, 1 or time]`.

    Example:
        In a page whose `individual` returns `noise=exp(eta.noise)`:

        >>> def observe(self, t, a, p):
        ...     return dict(cp=Predicted(a.central / p.v, scale=p.noise))
    """

    f: Any
    scale: Any = 1.0
