"""Theta and Omega as they are declared on a page, and the one vector in which an optimiser sees them all.

`theta` is natural (clearances in L/h), `free` unconstrained (their logarithms); `omega` is the covariance matrix of eta
(variances, as in NONMEM's $OMEGA), `sigma` holds residual standard deviations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError, nearest
from ..maths.bijections import Bijection
from ..maths.covariance import LogCholesky, block_positions
from . import correlation, priors
from .correlation import BETWEEN, Correlation
from .endpoints import Endpoint


def _number(value: Any, what: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ModelError(f"{what} must be a number, got {value!r}") from None
    if not math.isfinite(number):
        raise ModelError(f"{what} must be finite, got {number}; give a rough guess of its size")
    return number


@dataclass(frozen=True)
class Theta:
    """A fixed effect, NONMEM's $THETA.

    Args:
        start: where an estimation starts, on the natural scale.
        lower, upper: open bounds; an optimiser moves on the whole line, mapped onto (lower, upper).
        fixed: keep it at `start`.
        unit: shown in tables, e.g. "L/h".
        prior: its prior on the natural scale, a distribution of `torch.distributions` over one number; estimates are
            then maximum a posteriori (see `priors`). A method that cannot use it refuses it.

    Raises:
        ModelError: when the start is not a finite number strictly inside the bounds, or the bounds allow values at
            which the prior has no density.

    Example:
        >>> Theta(0.13, lower=0, unit="L/h").start
        0.13
    """

    start: float
    lower: float | None = None
    upper: float | None = None
    fixed: bool = False
    unit: str = ""
    prior: Any = None

    def __post_init__(self) -> None:
        start = _number(self.start, "the start of a Theta")
        lower = -math.inf if self.lower is None else _number(self.lower, "the bound lower=... of a Theta")
        upper = math.inf if self.upper is None else _number(self.upper, "the bound upper=... of a Theta")
        if not lower < upper:
            raise ModelError(
                f"the bounds of a Theta must satisfy lower < upper, got lower={lower:g}, upper={upper:g}"
            )
        if not lower < start < upper:
            raise ModelError(
                f"a Theta must start strictly inside its bounds ({lower:g}, {upper:g}), got {start:g}; "
                "move the start or the bound"
            )
        object.__setattr__(self, "start", start)
        priors.refuse_fixed(self.prior, self.fixed, "a Theta")
        if self.prior is not None:
            priors.check(self.prior, "a Theta", start, self.bijection)

    @property
    def bijection(self) -> Bijection:
        """The map from the real line onto the bounds."""
        return Bijection(
            -math.inf if self.lower is None else float(self.lower),
            math.inf if self.upper is None else float(self.upper),
        )


LEVELS = ("id", "occ")
"""What random effects may vary between: subjects, and the occasions of a subject."""


class Omega:
    """Random effects between subjects, or between occasions, and their covariance matrix, NONMEM's $OMEGA.

    Args:
        cov: covariances of a block, the lower triangle row by row without the diagonal: for `a, b, c` they are
            (b,a), (c,a), (c,b). Without it the effects are independent.
        fixed: keep the matrix at its start.
        level: "id", between subjects: the page reads them as `eta`. "occ", between the occasions of a subject (column
            OCC of the data): one value for each occasion, all with this one matrix (NONMEM's $OMEGA BLOCK SAME), read
            as `kappa` by `individual(self, theta, eta, cov, kappa)`.
        prior: prior of the standard deviations, as for `Theta`: one distribution for each of them, or a mapping by
            name for some.
        **variances: one variance for each random effect, by name.

    Raises:
        ModelError: on a variance that is not positive, a wrong number of covariances, a matrix that is not
            positive definite, a prior of something else, or another level.

    Example:
        >>> Omega(cl=0.1, v=0.02, cov=[0.01]).matrix().tolist()
        [[0.1, 0.01], [0.01, 0.02]]
    """

    def __init__(
        self,
        *,
        cov: Sequence[float] | None = None,
        fixed: bool = False,
        level: str = "id",
        prior: Any = None,
        **variances: float,
    ) -> None:
        if level not in LEVELS:
            raise ModelError(
                f"Omega(level={level!r}): expected 'id' (between subjects) or 'occ' (between the occasions of a"
                " subject, column OCC)"
            )
        self.level = level
        if not variances:
            raise ModelError("Omega() names no random effect; write for example Omega(cl=0.1, v=0.05)")
        self.names = tuple(variances)
        self.variances = tuple(_number(v, f"the variance Omega({k}=...)") for k, v in variances.items())
        for name, variance in zip(self.names, self.variances, strict=True):
            if variance <= 0:
                raise ModelError(
                    f"Omega({name}={variance:g}): a variance must be positive; "
                    "leave the random effect out to switch it off"
                )
        priors.refuse_fixed(prior, fixed, "an Omega")
        self.prior = priors.by_name(prior, self.names, "Omega")
        for name, density in self.prior.items():
            sd = math.sqrt(self.variances[self.names.index(name)])
            priors.check(density, f"the standard deviation of {name}", sd, Bijection(lower=0.0))
        given: object = cov
        if given is not None and (isinstance(given, str) or not isinstance(given, Sequence)):
            raise ModelError(f"Omega(cov=...) takes a list of covariances, row by row, got {cov!r}")
        self.fixed, self.block = bool(fixed), cov is not None
        need = len(self.names) * (len(self.names) - 1) // 2
        self.cov = () if cov is None else tuple(_number(c, "a covariance of Omega(cov=...)") for c in cov)
        if self.block and len(self.cov) != need:
            raise ModelError(
                f"Omega(cov=...) of {len(self.names)} random effects takes {need} covariances "
                f"(lower triangle, row by row), got {len(self.cov)}"
            )
        if self.block and bool(torch.linalg.eigvalsh(self.matrix())[0] <= 0):
            raise ModelError(
                "the matrix of Omega(cov=...) is not positive definite; make the covariances smaller"
            )

    def matrix(self) -> Tensor:
        """The covariance matrix `[q, q]`."""
        q = len(self.names)
        matrix = torch.diag(torch.tensor(self.variances, dtype=torch.float64))
        below = [(i, j) for i in range(q) for j in range(i)]
        for (i, j), c in zip(below, self.cov, strict=self.block):
            matrix[i, j] = matrix[j, i] = c
        return matrix

    def __repr__(self) -> str:
        inside = ", ".join(f"{n}={v:g}" for n, v in zip(self.names, self.variances, strict=True))
        block = f", cov={list(self.cov)}" if self.block else ""
        block += ', level="occ"' if self.level == "occ" else ""
        prior = f", prior={self.prior}" if self.prior else ""
        return f"Omega({inside}{block}{', fixed=True' if self.fixed else ''}{prior})"


@dataclass(frozen=True)
class Values:
    """Parameter values ready for a page: one for everybody, or one a draw or a subject.

    Attributes:
        theta: natural values by name, each broadcastable to `[*draw, subject, 1]`.
        factor: Cholesky factor L of Omega `[*draw, q, q]`; from a layout the page's matrix, effects between occasions
            once and last; from a problem that of its random effects, a block for each occasion (see `levels`).
        sigma: residual standard deviations by name ("cp.additive"), shapes as theta.
    """

    theta: dict[str, Tensor]
    factor: Tensor
    sigma: dict[str, Tensor]

    @property
    def omega(self) -> Tensor:
        """Covariance matrix of eta, L L' `[*draw, q, q]`."""
        return self.factor @ self.factor.mT


class Layout:
    """The order of all parameters in one vector `[*b, P]`, and the maps between that vector and `Values`.

    The order is every Theta, then every Omega block (log-Cholesky; those between occasions last), then every endpoint's
    residual parameters (logs), then correlations of residuals (logits between -1 and 1).

    Attributes:
        eta_names, kappa_names: names of the random effects between subjects and between occasions.
        effect_names: the rows of the page's Omega: the etas, then "occ.ka" for the kappa called ka.
        members: those of each Omega, by the name it is declared under.
    """

    def __init__(
        self,
        thetas: Mapping[str, Theta],
        omegas: Mapping[str, Omega],
        endpoints: Mapping[str, Endpoint],
        correlations: Mapping[str, Correlation] | None = None,
    ) -> None:
        omegas = {k: b for level in LEVELS for k, b in omegas.items() if b.level == level}
        self.thetas, self.omegas, self.endpoints = dict(thetas), omegas, dict(endpoints)
        self.eta_names, self.kappa_names = (
            tuple(name for block in omegas.values() if block.level == level for name in block.names)
            for level in LEVELS
        )
        self.members = {
            key: tuple(f"occ.{name}" if block.level == "occ" else name for name in block.names)
            for key, block in omegas.items()
        }
        self.effect_names = tuple(name for names in self.members.values() for name in names)
        positions = block_positions([(len(b.names), b.block) for b in omegas.values()])
        self.chart = LogCholesky(len(self.effect_names), positions)
        self.theta_names = tuple(thetas)
        self.omega_names = tuple(self._omega_name(i, j) for i, j in positions)
        self.correlations = dict(correlations or {})
        correlation.check(self.correlations, self.endpoints)
        self.correlation_names = tuple(f"{k}.correlation" for k in self.correlations)
        self.sigma_names = tuple(f"{k}.{s}" for k, e in endpoints.items() for s in e.start)
        self.residual_sds = tuple(
            f"{k}.{s}" for k, e in endpoints.items() for s in e.start if s not in e.others
        )
        self.sigma_names += self.correlation_names
        self.names = self.theta_names + self.omega_names + self.sigma_names
        self.positions = positions
        self.bijections = [t.bijection for t in thetas.values()]
        self.priors = self._priors()
        fixed = [t.fixed for t in thetas.values()]
        fixed += [b.fixed for b in omegas.values() for _ in block_positions([(len(b.names), b.block)])]
        fixed += [e.fixed for e in endpoints.values() for _ in e.start]
        fixed += [c.fixed for c in self.correlations.values()]
        self.fixed = torch.tensor(fixed, dtype=torch.bool)
        self.all_log = all(b.kind == "lower" and b.lower == 0 for b in self.bijections)

    def _omega_name(self, i: int, j: int) -> str:
        names = self.effect_names
        return f"omega.{names[i]}" if i == j else f"omega.{names[i]},{names[j]}"

    def _priors(self) -> dict[str, Any]:
        """Prior by name of a parameter; "omega.cl" stands for a standard deviation."""
        out = {name: t.prior for name, t in self.thetas.items() if t.prior is not None}
        for key, block in self.omegas.items():
            names = dict(zip(block.names, self.members[key], strict=True))
            out |= {f"omega.{names[name]}": prior for name, prior in block.prior.items()}
        for name, endpoint in self.endpoints.items():
            out |= {f"{name}.{s}": prior for s, prior in endpoint.priors.items()}
        return out

    @property
    def signature(self) -> list[str]:
        """What gives the vector its meaning, in words: bounds of thetas, blocks, kinds of residual error."""
        words = [
            f"{name} in ({b.lower:g}, {b.upper:g})"
            for name, b in zip(self.theta_names, self.bijections, strict=True)
        ]
        words += self.omega_names
        for name, endpoint in self.endpoints.items():
            words.append(f"{name}: {' '.join([type(endpoint).__name__, *endpoint.start, *endpoint.words])}")
        words += [f"{name}: Correlation {c.first} {c.second}" for name, c in self.correlations.items()]
        return words

    @property
    def n_theta(self) -> int:
        """Number of Thetas, which come first in the vector."""
        return len(self.theta_names)

    def start(self) -> Tensor:
        """The page's declared values as one vector `[P]`."""
        omega = torch.zeros(0, 0, dtype=torch.float64)
        for block in self.omegas.values():
            omega = torch.block_diag(omega, block.matrix())  # type: ignore[no-untyped-call]
        return self.pack(
            {k: t.start for k, t in self.thetas.items()},
            omega,
            {f"{k}.{s}": x for k, e in self.endpoints.items() for s, x in e.start.items()}
            | {f"{k}.correlation": c.start for k, c in self.correlations.items()},
        )

    def pack(self, theta: Mapping[str, Any], omega: Tensor, sigma: Mapping[str, Any]) -> Tensor:
        """The vector `[P]` of natural values."""
        parts = [
            b.free(torch.as_tensor(theta[k], dtype=torch.float64).reshape(1))
            for k, b in zip(self.theta_names, self.bijections, strict=True)
        ]
        if self.effect_names:
            parts.append(self.chart.vector(torch.as_tensor(omega, dtype=torch.float64)))
        for name in self.sigma_names:
            number = torch.as_tensor(sigma[name], dtype=torch.float64).reshape(1)
            parts.append(BETWEEN.free(number) if name in self.correlation_names else number.log())
        return torch.cat(parts)

    def values(self, vector: Tensor) -> Values:
        """`Values` of a vector `[*b, P]`; theta and sigma come out `[*b, 1, 1]`, the factor `[*b, q, q]`."""
        n, m = self.n_theta, len(self.names) - len(self.sigma_names)
        if (
            self.all_log and self.chart.is_diagonal and not self.correlations
        ):  # one exponential for all, as this is asked often
            every = torch.exp(vector)
            parts = every[..., None, None].unbind(-3)
            return Values(
                dict(zip(self.theta_names, parts[:n], strict=True)),
                torch.diag_embed(every[..., n:m]),
                dict(zip(self.sigma_names, parts[m:], strict=True)),
            )
        if self.all_log:
            natural = list(torch.exp(vector[..., :n])[..., None, None].unbind(-3))
        else:
            natural = [b.natural(vector[..., j, None, None]) for j, b in enumerate(self.bijections)]
        c = len(self.names) - len(self.correlations)
        sigma = torch.exp(vector[..., m:c])[..., None, None].unbind(-3)
        if self.correlations:
            sigma += BETWEEN.natural(vector[..., c:])[..., None, None].unbind(-3)
        return Values(
            dict(zip(self.theta_names, natural, strict=True)),
            self.chart.factor(vector[..., n:m]),
            dict(zip(self.sigma_names, sigma, strict=True)),
        )

    def slopes(self, vector: Tensor) -> Tensor:
        """Derivative of every theta, entry of the Cholesky factor and sigma in its own entry of `vector [*b, P]`."""
        n, m = self.n_theta, len(self.names) - len(self.sigma_names)
        if self.all_log:
            thetas = torch.exp(vector[..., :n])
        else:
            thetas = torch.stack([b.slope(vector[..., j]) for j, b in enumerate(self.bijections)], -1)
        factor = torch.where(self.chart.diagonal, torch.exp(vector[..., n:m]), 1.0)
        c = len(self.names) - len(self.correlations)
        parts = [thetas, factor, torch.exp(vector[..., m:c])]
        if self.correlations:
            parts.append(BETWEEN.slope(vector[..., c:]))
        return torch.cat(parts, -1)

    def check_names(self, given: Mapping[str, Any], legal: Sequence[str], what: str) -> None:
        """Raise a ModelError on the first name of `given` that is not in `legal`."""
        for name in given:
            if name not in legal:
                raise ModelError(f"{name!r} is not a {what} of this page.{nearest(name, legal)}")
