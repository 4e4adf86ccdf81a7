"""Priors on the population parameters, which turn maximum likelihood into maximum a posteriori (MAP).

A prior is a distribution of PyTorch over one number: of a Theta on its natural scale, of the standard deviation of a
random effect or of a residual error. A method that honours priors minimises

    -2 log L(theta, omega, sigma) - 2 sum_j log prior_j(x_j)

in which the density is that of x_j itself, as in NONMEM's $PRIOR: no Jacobian of the scale on which an optimiser
moves. The mode therefore depends on what the prior is a density of: a log-normal prior of a clearance and a normal
prior of its logarithm have the same quantiles and different modes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from ..errors import ModelError, nearest

if TYPE_CHECKING:
    from ..maths.bijections import Bijection
    from .parameters import Layout

REACH = 20.0
"""Free values up to this far from zero are asked whether the prior has a density there (e^20 on a log scale)."""


def check(prior: Any, what: str, start: float, bijection: Bijection) -> None:
    """Raise a ModelError unless `prior` is a density wherever the parameter can go.

    Args:
        prior: what was given as a prior.
        what: the parameter in words, for the message.
        start: its natural value at the start.
        bijection: from the real line onto its bounds.
    """
    if not isinstance(prior, Distribution):
        raise ModelError(
            f"the prior of {what} must be a distribution of torch.distributions, for example"
            f" LogNormal(math.log({start:g}), 0.3), got {prior!r}"
        )
    if tuple(prior.batch_shape) != () or tuple(prior.event_shape) != ():
        raise ModelError(
            f"the prior of {what} must be over one number, got one of shape"
            f" {[*prior.batch_shape, *prior.event_shape]}; give each parameter a prior of its own"
        )
    line = torch.linspace(-REACH, REACH, 81, dtype=torch.float64)
    points = torch.cat((torch.tensor([start], dtype=torch.float64), bijection.natural(line)))
    support: Any = prior.support
    inside = support.check(points)
    if not bool(inside.all()):
        bad = float(points[~inside][0])
        raise ModelError(
            f"the prior {prior} of {what} has no density at {bad:.4g}, which its bounds allow; give lower=... and"
            " upper=... that keep within the prior's support"
        )
    if not bool(torch.isfinite(prior.log_prob(points[0]))):
        raise ModelError(f"the prior {prior} of {what} has no finite density at the start {start:g}")


def refuse_fixed(prior: Any, fixed: bool, what: str) -> None:
    """Raise a ModelError on a prior of what is held at its start: it would change nothing."""
    if fixed and prior is not None:
        raise ModelError(
            f"{what} is fixed and has a prior, which would change nothing; remove fixed=True or prior=..."
        )


def by_name(given: Any, names: Sequence[str], what: str) -> dict[str, Any]:
    """A prior for each of `names`, from one distribution for all or a mapping for some; empty for None.

    Args:
        given: what was given as `prior=`.
        names: of the parameters that it may be for.
        what: the declaration in words, for the message.

    Raises:
        ModelError: a mapping names a parameter that there is not.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        return dict.fromkeys(names, given)
    for name in given:
        if name not in names:
            raise ModelError(f"{what}: prior= names '{name}'.{nearest(str(name), names)}")
    return dict(given)


def penalty(layout: Layout, vector: Tensor) -> Tensor:
    """-2 sum log prior `[*b]` at the vector of all parameters `[*b, all]`, those that are fixed left out.

    Example:
        >>> penalty(model.layout, model.free)  # doctest: +SKIP
        tensor(1.8379)
    """
    total = 0.0 * vector.sum(-1)  # a uniform prior has no derivative of its own: zero, and not none
    for name, x in _with_priors(layout, vector).items():
        total = total - 2.0 * layout.priors[name].log_prob(x)
    return total


def log_slopes(layout: Layout, vector: Tensor) -> Tensor:
    """sum log |dx/du| `[*b]` over the parameters x with a prior, u being x or its logarithm (its logit between bounds).

    A prior is a density of x, and this makes one of u of it, for whoever draws on the free scale (of a random effect in
    a block u is the logarithm of its standard deviation).
    """
    total = vector.new_zeros(vector.shape[:-1])
    for name, x in _with_priors(layout, vector).items():
        if name in layout.thetas:
            at = layout.theta_names.index(name)
            total = total + layout.bijections[at].slope(vector[..., at]).abs().log()
        else:
            total = total + x.log()
    return total


def _with_priors(layout: Layout, vector: Tensor) -> dict[str, Tensor]:
    """The numbers that the priors are densities of, each `[*b]`, by name."""
    if not layout.priors:
        return {}
    values = layout.values(vector)
    omega_sd = values.omega.diagonal(dim1=-2, dim2=-1).sqrt()
    found = {}
    for name in layout.priors:
        if name in values.theta:
            found[name] = values.theta[name][..., 0, 0]
        elif name in values.sigma:
            found[name] = values.sigma[name][..., 0, 0]
        else:
            found[name] = omega_sd[..., layout.positions[layout.omega_names.index(name)][0]]
    return found
