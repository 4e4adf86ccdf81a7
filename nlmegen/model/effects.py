"""Words for pages: random effects beyond the normal, parameters between bounds, and covariate effects.

Plain functions of tensors, Taylor numbers and symbols alike, so that a page that uses them is differentiated and
compiled as if the formula stood there.

    def individual(self, theta, eta, cov):
        cl = theta.tvcl * nl.allometric(cov.wt) * exp(nl.boxcox(eta.cl, theta.shape))
        f = nl.logit_normal(theta.tvf, eta.f)
        return dict(cl=cl, ...)
"""

from __future__ import annotations

import math
from typing import Any

import torch

from ..errors import ModelError

NEAR = 0.25
"""Below this size of its argument (e^z - 1) / z is summed as a series, which keeps its digits and derivatives."""

_SERIES = tuple(1 / math.factorial(k + 1) for k in range(14))


def boxcox(eta: Any, lam: Any) -> Any:
    """A normal random effect made skew, ((exp eta)^lam - 1) / lam; eta itself at lam = 0.

    Positive `lam` gives a long right tail, negative a long left one. Its derivative in eta at 0 is 1 whatever `lam` is,
    so that the variance of eta keeps its meaning for small effects. Smooth in both arguments, at lam = 0 too, so that
    `lam` may be a Theta that starts there.

    Args:
        eta: the random effect.
        lam: the shape, a number or a Theta.

    Source:
        Petersson, Hanze, Savic & Karlsson (2009), Pharm Res 26:2174-2185, doi:10.1007/s11095-009-9931-1.

    Example:
        >>> boxcox(torch.tensor(0.5, dtype=torch.float64), 1.0)  # exp(0.5) - 1
        tensor(0.6487, dtype=torch.float64)
    """
    if isinstance(lam, (int, float)):
        return eta if lam == 0 else torch.expm1(lam * eta) / lam
    z = lam * eta
    near = abs(z) < NEAR
    # either branch sees an argument at which it is smooth, so that no NaN flows back through the unused one
    small, large = torch.where(near, z, 0.0), torch.where(near, 1.0, z)
    series = small * _SERIES[-1] + _SERIES[-2]
    for c in reversed(_SERIES[:-2]):
        series = series * small + c
    return eta * torch.where(near, series, torch.expm1(large) / large)


def tlike(eta: Any, df: Any) -> Any:
    """A normal random effect given the heavy tails of a Student t with `df` degrees of freedom.

        eta (1 + (eta^2 + 1)/(4 df) + (5 eta^4 + 16 eta^2 + 3)/(96 df^2)
               + (3 eta^6 + 19 eta^4 + 17 eta^2 - 15)/(384 df^3))

    the expansion that takes quantiles of a standard normal to those of the t. It is about the t where eta has variance
    1, and merely heavier in its tails elsewhere: for a t of scale s write `s * tlike(eta.z, df)` with `Omega(z=1,
    fixed=True)` and a Theta s. Quantiles between .02 and .98 are those of the t within 0.4 % at df = 4 and 1 % at
    df = 3; do not go below.

    Args:
        eta: the random effect.
        df: degrees of freedom, a number or a Theta with lower=3 or so; large ones leave eta as it is.

    Source:
        Petersson, Hanze, Savic & Karlsson (2009), Pharm Res 26:2174-2185, doi:10.1007/s11095-009-9931-1; the expansion
        is 26.7.5 of Abramowitz & Stegun, Handbook of Mathematical Functions.

    Example:
        >>> tlike(torch.tensor(1.0, dtype=torch.float64), 4)
        tensor(1.1416, dtype=torch.float64)
    """
    if isinstance(df, (int, float)) and not df > 0:
        raise ModelError(f"tlike(eta, df={df:g}): degrees of freedom are positive, 3 or more to be of use")
    square, rate = eta * eta, 1.0 / df
    first = 0.25 * (square + 1.0)
    second = ((5.0 * square + 16.0) * square + 3.0) / 96.0
    third = (((3.0 * square + 19.0) * square + 17.0) * square - 15.0) / 384.0
    return eta * (1.0 + rate * (first + rate * (second + rate * third)))


def logit_normal(typical: Any, eta: Any, lower: float = 0.0, upper: float = 1.0) -> Any:
    """An individual parameter between bounds, normal on the logit scale about its typical value:

        x = (typical - lower) / (upper - lower),     lower + (upper - lower) logistic(log(x / (1 - x)) + eta)

    Args:
        typical: the value at eta = 0, a Theta with the same bounds.
        eta: the random effect.
        lower, upper: the bounds, numbers.

    Raises:
        ModelError: bounds that are not two finite numbers in order, or a typical number outside of them.

    Example:
        >>> logit_normal(0.5, torch.tensor([0.0, 1.0], dtype=torch.float64))
        tensor([0.5000, 0.7311], dtype=torch.float64)
    """
    if not (math.isfinite(lower) and math.isfinite(upper) and lower < upper):
        raise ModelError(f"logit_normal: expected bounds lower < upper, got {lower!r} and {upper!r}")
    if isinstance(typical, (int, float)):
        if not lower < typical < upper:
            raise ModelError(
                f"logit_normal: the typical value {typical:g} is not between {lower:g} and {upper:g}"
            )
        logit: Any = math.log((typical - lower) / (upper - typical))
    else:
        logit = torch.log((typical - lower) / (upper - typical))
    return lower + (upper - lower) * torch.sigmoid(logit + eta)


def allometric(size: Any, reference: float = 70.0, exponent: Any = 0.75) -> Any:
    """The effect of body size, (size / reference)^exponent: 0.75 for clearances, 1 for volumes, -0.25 for rates.

    Args:
        size: the covariate, for example `cov.wt`.
        reference: the size at which the effect is 1.
        exponent: a number, or a Theta to be estimated.

    Source:
        Anderson & Holford (2008), Annu Rev Pharmacol Toxicol 48:303-332, doi:10.1146/annurev.pharmtox.48.113006.094708.

    Example:
        >>> allometric(torch.tensor([70.0, 35.0], dtype=torch.float64))
        tensor([1.0000, 0.5946], dtype=torch.float64)
    """
    return (size / _reference("allometric", reference)) ** exponent


def centred(covariate: Any, reference: float, scale: float = 1.0) -> Any:
    """A covariate about a reference, (covariate - reference) / scale: typical values are then those at the reference.

    Args:
        covariate: for example `cov.age`.
        reference: where it is 0: a median of the data, or a number that means something (40 years).
        scale: what counts as one step, for example 10 for decades.

    Example:
        >>> centred(torch.tensor([40.0, 65.0], dtype=torch.float64), 40, 10)
        tensor([0.0000, 2.5000], dtype=torch.float64)
    """
    return (covariate - reference) / _reference("centred", scale)


def _reference(what: str, value: Any) -> float:
    """A number to divide by."""
    if not isinstance(value, (int, float)) or not (math.isfinite(value) and value > 0):
        raise ModelError(f"{what}: expected a positive number to divide by, got {value!r}")
    return float(value)
