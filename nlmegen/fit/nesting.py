"""What one page has that another leaves out: the parameters that a likelihood ratio of the two tests.

A tested parameter is inside its range under the null hypothesis (a theta, a covariance beside variances that stay), or
at the end of it: the variance of a random effect that the small page does not have is 0, and so is a part of the
residual error that it leaves out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import DataError, nearest
from ..model.parameters import Layout

if TYPE_CHECKING:
    from .comparison import Column

SAME = 1e-8
"""Relative difference of two fixed values up to which they are the same."""


@dataclass(frozen=True)
class Surplus:
    """Parameters of the large page that the small one leaves out, or holds.

    Attributes:
        inside: those whose null value is inside their range.
        zero: single ones whose null value is the end of their range.
        blocks: random effects whose covariance matrix, of two or more of them, is zero under the null hypothesis.
        notes: what could not be seen from the pages.
    """

    inside: tuple[str, ...]
    zero: tuple[str, ...]
    blocks: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def df(self) -> int:
        """How many parameters are tested."""
        return len(self.inside) + len(self.zero) + sum(len(b) * (len(b) + 1) // 2 for b in self.blocks)

    @property
    def names(self) -> tuple[str, ...]:
        """All of them in words."""
        return self.inside + self.zero + tuple(f"omega of ({', '.join(b)})" for b in self.blocks)


def nested(small: Column, large: Column, boundary: Sequence[str] = ()) -> Surplus:
    """What `large` has over `small`.

    Args:
        small, large: fits of the two pages.
        boundary: tested thetas of the large page whose null value is one of their bounds.

    Raises:
        DataError: the small page is no special case of the large one, as far as parameters tell.
    """
    s, g = small.model.layout, large.model.layout
    inside, thetas_notes = _thetas(small, large)
    matrix = _random_effects(small, large)
    errors_inside, errors_zero = _endpoints(small, large)
    for name in boundary:
        if name not in inside:
            raise DataError(f"boundary: '{name}' is no tested theta.{nearest(name, inside)}")
    tested = Surplus(
        inside=tuple(n for n in inside if n not in boundary) + matrix.inside + errors_inside,
        zero=tuple(boundary) + matrix.zero + errors_zero,
        blocks=matrix.blocks,
        notes=tuple(thetas_notes),
    )
    if not tested.df:
        raise DataError(
            "likelihood_ratio: the large page has no parameter that the small one leaves out or holds; pages with the"
            f" same parameters ({', '.join(_free(s)) or 'none'}) are compared by AIC (compare)"
            if _free(s) == _free(g)
            else "likelihood_ratio: nothing is tested; hand it the small page first, then the large one"
        )
    return tested


def _free(layout: Layout) -> list[str]:
    """Names of the free parameters."""
    return [name for name, fixed in zip(layout.names, layout.fixed.tolist(), strict=True) if not fixed]


def _no(why: str) -> DataError:
    return DataError(
        f"likelihood_ratio: the small page is no special case of the large one: {why}; compare such pages by AIC or BIC"
        " (compare), or hand the small page first"
    )


def _thetas(small: Column, large: Column) -> tuple[list[str], list[str]]:
    """Tested thetas, and notes."""
    s, g = small.model.layout, large.model.layout
    tested, absent = [], []
    for name, theta in g.thetas.items():
        own = s.thetas.get(name)
        if own is None:
            if not theta.fixed:
                tested.append(name)
                absent.append(name)
            continue
        value = float(small.model.theta[name])
        if theta.fixed:
            there = float(large.model.theta[name])
            if not own.fixed:
                raise _no(f"{name} is estimated in the small page and fixed in the large one")
            if abs(value - there) > SAME * max(abs(value), abs(there)):
                raise _no(f"{name} is fixed at {value:g} in the small page and at {there:g} in the large one")
            continue
        b = theta.bijection
        if not b.lower < value < b.upper:
            raise _no(f"{name} = {value:g} of the small page is outside its bounds in the large one")
        if own.fixed:
            tested.append(name)
    extra = [name for name, theta in s.thetas.items() if name not in g.thetas and not theta.fixed]
    if extra:
        raise _no(f"it has {', '.join(extra)} of its own")
    notes = []
    if absent:
        notes.append(
            f"{', '.join(absent)}: not in the small page, taken to have a null value inside the bounds; where it is a"
            " bound (a clearance of 0), name it in boundary=..."
        )
    if type(small.problem.structure) is not type(large.problem.structure):
        notes.append("the structures of the pages differ; that one contains the other is taken on trust")
    return tested, notes


def _random_effects(small: Column, large: Column) -> Surplus:
    """Tested entries of Omega."""
    s, g = _entries(small), _entries(large)
    unknown = [e for e in small.model.effect_names if e not in large.model.effect_names]
    if unknown:
        raise _no(f"it has the random effects {', '.join(unknown)} of its own")
    known = set(small.model.effect_names)
    inside: list[str] = []
    new: list[str] = [e for e in large.model.effect_names if e not in known]
    for key, (name, fixed, value) in g.items():
        if key <= known:
            own = s.get(key)
            if own is None:
                if fixed and value != 0:
                    raise _no(f"{name} is fixed at {value:g} in the large page and 0 in the small one")
                inside += [] if fixed else [name]
            elif fixed and not own[1]:
                raise _no(f"{name} is estimated in the small page and fixed in the large one")
            elif fixed and abs(value - own[2]) > SAME * max(abs(value), abs(own[2])):
                raise _no(f"{name} is fixed at {own[2]:g} in the small page and {value:g} in the large one")
            elif own[1] and not fixed:
                inside.append(name)
        elif fixed:
            raise _no(f"the large page has {name} fixed, and the small page is without it")
        elif key & known:
            inside.append(name)  # a covariance with an effect that stays
    gone = [name for key, (name, fixed, _) in s.items() if key not in g and not fixed]
    if gone:
        raise _no(f"it estimates {', '.join(gone)}, which the large page does not have")
    zero, blocks = [], []
    for declared, block in large.model.layout.omegas.items():
        members = [e for e in large.model.layout.members[declared] if e in new]
        if block.block and len(members) > 1:
            blocks.append(tuple(members))
        else:
            zero += [f"omega.{e}" for e in members]
    return Surplus(tuple(inside), tuple(zero), tuple(blocks))


def _entries(fit: Column) -> dict[frozenset[str], tuple[str, bool, float]]:
    """Entries of Omega by the pair of random effects: name, whether fixed, value."""
    layout, omega = fit.model.layout, fit.model.omega
    fixed = layout.fixed[layout.n_theta :].tolist()
    return {
        frozenset((layout.effect_names[i], layout.effect_names[j])): (name, fixed[at], float(omega[i, j]))
        for at, (name, (i, j)) in enumerate(zip(layout.omega_names, layout.positions, strict=True))
    }


def _endpoints(small: Column, large: Column) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tested residual standard deviations: inside their range, and at 0."""
    s, g = small.model.layout.endpoints, large.model.layout.endpoints
    if set(s) != set(g):
        raise _no(f"its endpoints are {', '.join(s)} and not {', '.join(g)}")
    inside: list[str] = []
    zero: list[str] = []
    for name, wide in g.items():
        own = s[name]
        options = [[x for x in e.words if not x.startswith("form=")] for e in (own, wide)]
        forms = [getattr(e, "form", None) for e in (own, wide)]
        kinds = f"{type(own).__name__} and {type(wide).__name__} residual errors of {name}"
        missing = [x for x in wide.start if x not in own.start]
        if type(own) is not type(wide):
            if not missing or set(own.start) - set(wide.start) or type(wide).__name__ != "Combined":
                raise _no(f"{kinds} are not nested")
        elif forms[0] != forms[1]:
            raise _no(f"the {kinds} have different forms")
        if options[0] != options[1]:
            raise _no(f"the {kinds} have different options ({_told(options[0])} and {_told(options[1])})")
        if wide.fixed and not own.fixed:
            raise _no(
                f"the residual error of {name} is estimated in the small page and fixed in the large one"
            )
        if wide.fixed:
            if missing:
                raise _no(f"the large page has the residual error of {name} fixed")
            continue
        zero += [f"{name}.{x}" for x in missing]
        if own.fixed:
            inside += [f"{name}.{x}" for x in own.start]
    return tuple(inside) + _correlations(small, large), tuple(zero)


def _told(options: list[str]) -> str:
    return " ".join(options) or "none"


def _correlations(small: Column, large: Column) -> tuple[str, ...]:
    """Tested correlations of residuals; without one they are 0, inside its range."""
    s, g = small.model.layout.correlations, large.model.layout.correlations
    if set(s) - set(g):
        raise _no(
            f"its residuals have the correlation {sorted(set(s) - set(g))[0]}, which the large page lacks"
        )
    tested = []
    for name, wide in g.items():
        own = s.get(name)
        if own is not None and {own.first, own.second} != {wide.first, wide.second}:
            raise _no(f"the correlation {name} is that of other endpoints")
        if wide.fixed and (own is None or not own.fixed):
            raise _no(f"the correlation {name} is fixed in the large page and not in the small one")
        if not wide.fixed and (own is None or own.fixed):
            tested.append(f"{name}.correlation")
    return tuple(tested)
