"""Counts and categories as endpoints: `observe` returns what governs their law.

    Poisson             a count with mean f
    NegativeBinomial    a count with mean f and variance f + dispersion f^2
    Bernoulli           0 or 1; P(Y = 1) = f
    Ordered             0, 1, ..., K; P(Y >= k) = logistic(f - c_k), c_1 = 0, c_2 = gap1, c_3 = gap1 + gap2, ...

Each gives log p(y | f), its first and second derivative in f, and the expected information -E[d2 log p / df2].
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import ModelError
from .endpoints import Endpoint

FEW = 1e-3
"""Product of count and dispersion under which the negative binomial law comes from its series about Poisson's."""


class Slopes(NamedTuple):
    """log p and what a method needs of its derivatives in f, `[*draw, subject, time]`."""

    log_p: Tensor
    first: Tensor
    second: Tensor
    expected: Tensor


@dataclass(frozen=True)
class Discrete(Endpoint):
    """An observation that is a whole number."""

    kind: ClassVar[str]

    @abstractmethod
    def legal(self, y: Tensor) -> Tensor:
        """Whether an observation may be y, bool."""

    def remedy(self, y: Tensor) -> str:
        """What to do about observations y `[n]`, of which some are not `legal`, where that can be seen; else ""."""
        return ""

    @abstractmethod
    def defined(self, f: Tensor) -> Tensor:
        """Whether there is a law for f, bool; it holds for f = 0.5."""

    @abstractmethod
    def slopes(self, f: Tensor, y: Tensor, sigma: Mapping[str, Tensor]) -> Slopes:
        """The log density and its derivatives, for f that are `defined`."""

    @abstractmethod
    def mean(self, f: Tensor, sigma: Mapping[str, Tensor]) -> Tensor:
        """E y."""

    @abstractmethod
    def draw(self, f: Tensor, sigma: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """Draws of y, of the shape of f."""


@dataclass(frozen=True)
class Poisson(Discrete):
    """A count with Poisson's law; `observe` returns its mean.

    Example:
        >>> seizures = Poisson()
        >>> seizures.start
        {}
    """

    kind: ClassVar[str] = "a count"

    @property
    def start(self) -> dict[str, float]:
        """See `Endpoint`."""
        return {}

    def variance(self, f: Tensor, sigma: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """See `Endpoint`."""
        return f, torch.ones_like(f), torch.zeros_like(f)

    def legal(self, y: Tensor) -> Tensor:
        """See `Discrete`."""
        return (y >= 0) & (y == y.floor())

    def defined(self, f: Tensor) -> Tensor:
        """See `Discrete`."""
        return f > 0

    def slopes(self, f: Tensor, y: Tensor, sigma: Mapping[str, Tensor]) -> Slopes:
        """See `Discrete`."""
        ratio = y / f
        log_p = y * torch.log(f) - f - torch.lgamma(y + 1)
        return Slopes(log_p, ratio - 1, -ratio / f, 1 / f)

    def mean(self, f: Tensor, sigma: Mapping[str, Tensor]) -> Tensor:
        """See `Discrete`."""
        return f

    def draw(self, f: Tensor, sigma: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """See `Discrete`."""
        return torch.poisson(f, generator=generator)


@dataclass(frozen=True)
class NegativeBinomial(Poisson):
    """A count that scatters more than Poisson's law: mean f, variance f + dispersion f^2.

    Args:
        dispersion: estimated, and positive; at 0 the law is Poisson's.
    """

    dispersion: float

    others: ClassVar[tuple[str, ...]] = ("dispersion",)

    @property
    def start(self) -> dict[str, float]:
        """See `Endpoint`."""
        return {"dispersion": self.dispersion}

    def variance(self, f: Tensor, sigma: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """See `Endpoint`."""
        d = sigma["dispersion"]
        return f + d * f * f, 1 + 2 * d * f, 2 * d

    def slopes(self, f: Tensor, y: Tensor, sigma: Mapping[str, Tensor]) -> Slopes:
        """See `Discrete`."""
        d = sigma["dispersion"]
        wide, ratio = 1 + d * f, y / f
        more = (1 + d * y) / wide
        log_p = y * torch.log(f) - torch.lgamma(y + 1) - (y + 1 / d) * torch.log1p(d * f) + _rising(y, d)
        return Slopes(log_p, ratio - more, d * more / wide - ratio / f, 1 / (f * wide))

    def draw(self, f: Tensor, sigma: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """See `Discrete`."""
        shape = (1 / sigma["dispersion"]).expand(f.shape)
        rate = torch._standard_gamma(shape.contiguous(), generator=generator) / shape
        return torch.poisson(f * rate, generator=generator)


def _rising(y: Tensor, d: Tensor) -> Tensor:
    """sum over j < y of log(1 + d j)."""
    few = d * y < FEW
    k = 1 / torch.where(few, torch.ones_like(y), d * torch.ones_like(y))
    direct = torch.lgamma(y + k) - torch.lgamma(k) - y * torch.log(k)
    one = y - 1  # sums of powers of j
    first, second = 0.5 * y * one, y * one * (2 * y - 1) / 6
    fourth = second * (3 * y * y - 3 * y - 1) / 5
    series = d * (first - d * (second / 2 - d * (first * first / 3 - d * fourth / 4)))
    return torch.where(few, series, direct)


@dataclass(frozen=True)
class Bernoulli(Discrete):
    """An event that happens (1) or not (0).

    Args:
        scale: what `observe` returns: the "probability" of the event, or its "logit", which no rounding can bring to
            the ends.
    """

    scale: Literal["probability", "logit"] = "probability"

    kind: ClassVar[str] = "0 or 1"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale not in ("probability", "logit"):
            raise ModelError(f"Bernoulli(scale={self.scale!r}): expected 'probability' or 'logit'")

    @property
    def start(self) -> dict[str, float]:
        """See `Endpoint`."""
        return {}

    @property
    def words(self) -> list[str]:
        """See `Endpoint`."""
        return [*super().words, f"scale={self.scale}"]

    def variance(self, f: Tensor, sigma: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """See `Endpoint`."""
        if self.scale == "probability":
            return f * (1 - f), 1 - 2 * f, torch.full_like(f, -2.0)
        p, n = torch.sigmoid(f), torch.sigmoid(-f)
        return p * n, p * n * (n - p), p * n * (1 - 6 * p * n)

    def legal(self, y: Tensor) -> Tensor:
        """See `Discrete`."""
        return (y == 0) | (y == 1)

    def defined(self, f: Tensor) -> Tensor:
        """See `Discrete`."""
        return (f > 0) & (f < 1) if self.scale == "probability" else torch.isfinite(f)

    def slopes(self, f: Tensor, y: Tensor, sigma: Mapping[str, Tensor]) -> Slopes:
        """See `Discrete`."""
        if self.scale == "logit":
            p, n = torch.sigmoid(f), torch.sigmoid(-f)
            log_p = torch.nn.functional.logsigmoid((2 * y - 1) * f)
            return Slopes(log_p, y * n - (1 - y) * p, -p * n, p * n)
        yes, no = y / f, (1 - y) / (1 - f)
        log_p = y * torch.log(f) + (1 - y) * torch.log1p(-f)
        return Slopes(log_p, yes - no, -yes / f - no / (1 - f), 1 / (f * (1 - f)))

    def mean(self, f: Tensor, sigma: Mapping[str, Tensor]) -> Tensor:
        """See `Discrete`."""
        return f if self.scale == "probability" else torch.sigmoid(f)

    def draw(self, f: Tensor, sigma: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """See `Discrete`."""
        uniform = torch.rand(f.shape, generator=generator, dtype=f.dtype)
        return (uniform < self.mean(f, sigma)).to(f.dtype)


@dataclass(frozen=True)
class Ordered(Discrete):
    """One of the ordered categories 0, 1, ..., K (a score, a grade), by proportional odds.

    `observe` returns f, the logit of P(Y >= 1); P(Y >= k) = logistic(f - c_k) with the cuts c_1 = 0, c_2 = gap1,
    c_3 = gap1 + gap2, ... The gaps are estimated, and positive; they are called gap1, gap2, ...

    Args:
        gaps: K - 1 of them, at their starts; none for the two categories 0 and 1.

    Example:
        >>> Ordered(gaps=[1.0, 1.5]).start
        {'gap1': 1.0, 'gap2': 1.5}
    """

    gaps: Sequence[float] = ()

    kind: ClassVar[str] = "a category"

    @property
    def others(self) -> tuple[str, ...]:  # type: ignore[override]
        """See `Endpoint`."""
        return tuple(self.start)

    @property
    def start(self) -> dict[str, float]:
        """See `Endpoint`."""
        return {f"gap{k}": gap for k, gap in enumerate(self.gaps, 1)}

    def _at_least(self, f: Tensor, sigma: Mapping[str, Tensor]) -> list[Tensor]:
        """f - c_k for k = 1, ..., K."""
        out = [f]
        for name in self.start:
            out.append(out[-1] - sigma[name])
        return out

    def variance(self, f: Tensor, sigma: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """See `Endpoint`: Var Y, from E Y = sum_k S_k and E Y^2 = sum_k (2k - 1) S_k with S_k = P(Y >= k)."""
        mean, square = [torch.zeros_like(f)] * 3, [torch.zeros_like(f)] * 3
        for k, x in enumerate(self._at_least(f, sigma), 1):
            p, n = torch.sigmoid(x), torch.sigmoid(-x)
            parts = (p, p * n, p * n * (n - p))
            mean = [a + b for a, b in zip(mean, parts, strict=True)]
            square = [a + (2 * k - 1) * b for a, b in zip(square, parts, strict=True)]
        (m, m1, m2), (s, s1, s2) = mean, square
        return s - m * m, s1 - 2 * m * m1, s2 - 2 * (m1 * m1 + m * m2)

    def legal(self, y: Tensor) -> Tensor:
        """See `Discrete`."""
        return (y >= 0) & (y <= len(self.gaps) + 1) & (y == y.floor())

    def remedy(self, y: Tensor) -> str:
        """See `Discrete`."""
        if not len(y) or bool((y != y.floor()).any()):
            return ""
        low, high, top = int(y.min()), int(y.max()), len(self.gaps) + 1
        if low == 1:
            more = f", and declare {high - 2} gaps for {high} categories" if high - 1 > top else ""
            return f"categories start at 0: subtract 1{more}"
        if low == 0 and high > top:
            return f"the page has the categories 0 to {top}: {high + 1} categories need {high - 1} gaps"
        return ""

    def defined(self, f: Tensor) -> Tensor:
        """See `Discrete`."""
        return torch.isfinite(f)

    def slopes(self, f: Tensor, y: Tensor, sigma: Mapping[str, Tensor]) -> Slopes:
        """See `Discrete`.

        With a = f - c_k, b = f - c_(k+1): P(Y = k) = logistic(a) logistic(-b) (1 - exp(b - a)), which cancels nowhere.
        """
        xs = self._at_least(f, sigma)
        total, first, second, expected = (torch.zeros_like(f) for _ in range(4))
        for k in range(len(xs) + 1):
            log_p, slope, bend = torch.zeros_like(f), torch.zeros_like(f), torch.zeros_like(f)
            for x, sign in ((xs[k - 1] if k else None, 1.0), (xs[k] if k < len(xs) else None, -1.0)):
                if x is not None:
                    p, n = torch.sigmoid(x), torch.sigmoid(-x)
                    log_p = log_p + torch.nn.functional.logsigmoid(sign * x)
                    slope = slope + (n if sign > 0 else -p)
                    bend = bend - p * n
            if 0 < k < len(xs):
                log_p = log_p + torch.log(-torch.expm1(-sigma[f"gap{k}"]))
            here = y == k
            total, first, second = (
                torch.where(here, new, old)
                for new, old in zip((log_p, slope, bend), (total, first, second), strict=True)
            )
            expected = expected - torch.exp(log_p) * bend
        return Slopes(total, first, second, expected)

    def mean(self, f: Tensor, sigma: Mapping[str, Tensor]) -> Tensor:
        """The expected category, sum_k P(Y >= k)."""
        return torch.stack([torch.sigmoid(x) for x in self._at_least(f, sigma)]).sum(0)

    def draw(self, f: Tensor, sigma: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """See `Discrete`."""
        uniform = torch.rand(f.shape, generator=generator, dtype=f.dtype)
        return torch.stack([(uniform < torch.sigmoid(x)).to(f.dtype) for x in self._at_least(f, sigma)]).sum(
            0
        )
