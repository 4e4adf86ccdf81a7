"""NONMEM's THETA, OMEGA and SIGMA as the parameters of a page, by order or by a mapping.

Thetas are matched in their order, etas in theirs, and SIGMA's diagonal with the residual standard deviations of the
page. Random effects between occasions are etas of their own in NONMEM, one for each occasion, with $OMEGA BLOCK SAME:
they follow the others, (ka 1, ka 2, ...) for an effect of its own, (cl 1, ka 1, cl 2, ka 2, ...) for a block of two.
NONMEM's SIGMA is a variance, a page's residual error a standard deviation: its root is taken, and the standard error
goes with it. What a control stream does beside that (a THETA that is a logarithm, a residual error written as THETA(4)
times EPS(1) with SIGMA fixed at 1) is said by `map`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ..errors import DataError, nearest
from ..model.parameters import Layout

Change = Callable[[float], float]
Target = str | tuple[str, Change] | None

_NAME = re.compile(r"^(THETA|OMEGA|SIGMA|ETA)\(?(\d+)(?:,(\d+))?\)?$")
SAME = 1e-5
"""Relative difference of two numbers printed to six digits that may be the same."""
UNKNOWN = 1e9
"""From this size on a standard error is NONMEM's 1.0E+10, which means that there is none."""
STEP = 1e-6
"""Relative step of the derivative of a function in a mapping."""


@dataclass(frozen=True)
class Estimate:
    """One of NONMEM's estimates: value, standard error (NaN where there is none), whether it was fixed."""

    value: float
    se: float
    fixed: bool


@dataclass(frozen=True)
class Translation:
    """NONMEM's estimates on a page.

    Attributes:
        theta, sigma: natural values by name; omega: covariance matrix `[q, q]`.
        se: standard errors by name of the page, NaN where there are none.
        fixed: by name of the page, whether NONMEM held it.
        etas: number of the ETA -> name of the random effect, "cl" or "kappa.ka.2" (of the second occasion).
    """

    theta: dict[str, float]
    omega: Tensor
    sigma: dict[str, float]
    se: dict[str, float]
    fixed: dict[str, bool]
    etas: dict[int, str]


def canonical(name: str) -> str:
    """A name as NONMEM writes it in the files: THETA1, OMEGA(2,1), SIGMA(1,1).

    Example:
        >>> canonical("theta(3)"), canonical("OMEGA(1,2)")
        ('THETA3', 'OMEGA(2,1)')
    """
    match = _NAME.match(name.upper().replace(" ", ""))
    if match is None:
        raise DataError(f"map: '{name}' is no parameter of NONMEM; expected THETA1, OMEGA(1,1) or SIGMA(1,1)")
    kind, i, j = match[1], int(match[2]), match[3]
    if kind == "THETA":
        return f"THETA{i}"
    high, low = max(i, int(j or i)), min(i, int(j or i))
    return f"{kind}({high},{low})"


def translate(
    layout: Layout, given: Mapping[str, Estimate], mapping: Mapping[str, Target] | None
) -> Translation:
    """NONMEM's estimates by their names as values of a page.

    Args:
        layout: of the page.
        given: estimates by NONMEM's name.
        mapping: NONMEM's name -> the page's, a pair of it and a function of the estimate, or None to leave it out.

    Raises:
        DataError: counts that do not match, unknown names, or values that the page cannot take.
    """
    targets = _targets(layout, given, mapping or {})
    pairs = _by_order(layout, given, targets)
    etas = _etas(layout, given, targets)
    theta: dict[str, float] = {}
    sigma: dict[str, float] = {}
    se: dict[str, float] = {}
    fixed: dict[str, bool] = {}
    for source, (name, change) in pairs.items():
        estimate = given[source]
        value, error = _changed(source, estimate, change)
        if source.startswith("SIGMA") and change is None:
            value, error = _root(source, value, error)
        if name in layout.thetas:
            bounds = layout.thetas[name].bijection
            if not bounds.lower < value < bounds.upper:
                raise DataError(
                    f"{source} = {value:g} is outside the bounds of {name} on the page ({bounds.lower:g},"
                    f" {bounds.upper:g}); say what it is by map={{'{source}': ('{name}', math.exp)}}, or mend the page"
                )
            theta[name] = value
        elif value > 0:
            sigma[name] = value
        else:
            raise DataError(
                f"{source} = {value:g} cannot be the standard deviation {name}, which is positive"
            )
        se[name], fixed[name] = error, estimate.fixed
    omega = _omega(layout, given, etas, se, fixed)
    return Translation(theta, omega, sigma, se, fixed, etas)


def _targets(
    layout: Layout, given: Mapping[str, Estimate], mapping: Mapping[str, Target]
) -> dict[str, tuple[str, Change | None] | None]:
    """The mapping with names in NONMEM's spelling, checked."""
    out: dict[str, tuple[str, Change | None] | None] = {}
    for source, target in mapping.items():
        name = canonical(source)
        if name not in given:
            raise DataError(f"map: the run has no {name}.{nearest(name, given)}")
        if target is None:
            out[name] = None
            continue
        to, change = (target, None) if isinstance(target, str) else target
        if name.startswith("OMEGA"):
            i, j = _place(name)
            if i != j or change is not None:
                raise DataError(
                    f"map: {name} may only name a random effect by its variance (OMEGA(1,1): 'omega.cl'); covariances"
                    " follow, and functions are for THETA and SIGMA"
                )
            to = to.removeprefix("omega.")
            legal = layout.effect_names
        else:
            legal = layout.theta_names + layout.sigma_names
        if to not in legal:
            raise DataError(f"map: '{to}' for {name} is not on the page.{nearest(to, legal)}")
        once = to not in layout.effect_names or to in layout.eta_names  # a kappa has an ETA for each occasion
        if once and to in [done[0] for done in out.values() if done is not None]:
            raise DataError(f"map: '{to}' is named twice")
        out[name] = (to, change)
    return out


def _by_order(
    layout: Layout, given: Mapping[str, Estimate], targets: Mapping[str, Any]
) -> dict[str, tuple[str, Change | None]]:
    """NONMEM's THETA and SIGMA -> the page's name and a function: those of the mapping, the others by order."""
    pairs = {s: t for s, t in targets.items() if t is not None and not s.startswith("OMEGA")}
    claimed = {name for name, _ in pairs.values()}
    for kind, legal in (("THETA", layout.theta_names), ("SIGMA", layout.sigma_names)):
        left = [name for name in legal if name not in claimed]
        sources = [s for s in given if s.startswith(kind) and s not in targets and _diagonal(s)]
        if kind == "SIGMA" and not left:  # written as a THETA, SIGMA fixed at 1
            sources = [s for s in sources if not given[s].fixed]
        if len(sources) != len(left):
            raise DataError(
                f"the run has {len(sources)} {kind} to match by order ({', '.join(sources) or 'none'}) and the page"
                f" {len(left)} parameters ({', '.join(left) or 'none'}); say which is which by map={{'{kind}"
                f"{'1' if kind == 'THETA' else '(1,1)'}': 'name', ...}} (None leaves one out)"
            )
        pairs |= {s: (name, None) for s, name in zip(sources, left, strict=True)}
    for source, estimate in given.items():
        if (
            source.startswith("SIGMA")
            and not _diagonal(source)
            and estimate.value != 0
            and source not in targets
        ):
            raise DataError(
                f"{source} = {estimate.value:g}: a page has no correlation of residual errors; leave it out by"
                f" map={{'{source}': None}} if it does not matter"
            )
    return pairs


def _etas(layout: Layout, given: Mapping[str, Estimate], targets: Mapping[str, Any]) -> dict[int, str]:
    """Number of the ETA -> random effect of the page."""
    numbers = [_place(s)[0] for s in given if s.startswith("OMEGA") and _diagonal(s)]
    named = {_place(s)[0]: t for s, t in targets.items() if s.startswith("OMEGA")}
    given_rows = {k: t[0] for k, t in sorted(named.items()) if t is not None}
    etas: dict[int, str] = {}
    for k, row in given_rows.items():
        times = 1 + sum(_row(name) == row for name in etas.values())
        etas[k] = row if row in layout.eta_names else f"kappa.{row.removeprefix('occ.')}.{times}"
    left = [name for name in layout.effect_names if name not in given_rows.values()]
    plain = [name for name in left if name in layout.eta_names]
    free = [k for k in numbers if k not in named]
    kappas, spare = len(left) - len(plain), len(free) - len(plain)
    if spare < kappas or (spare % kappas if kappas else spare):
        each = " (of those between occasions, occ., one ETA an occasion)" if kappas else ""
        raise DataError(
            f"the run has {len(free)} ETA to match by order ({', '.join(map(str, free)) or 'none'}) and the page"
            f" {len(left)} random effects ({', '.join(left) or 'none'}){each}; say which is which by map="
            "{'OMEGA(1,1)': 'omega.name', ...} (None leaves one out)"
        )
    etas |= dict(zip(free, plain + _in_turn(layout, left, spare // kappas if kappas else 0), strict=True))
    return dict(sorted(etas.items()))


def _in_turn(layout: Layout, left: list[str], occasions: int) -> list[str]:
    """The effects between occasions among `left` in the order in which $OMEGA BLOCK SAME makes them."""
    names: list[str] = []
    turns = range(1, occasions + 1)
    for key, members in layout.members.items():
        own = [row.removeprefix("occ.") for row in members if row in left and row not in layout.eta_names]
        if layout.omegas[key].block:
            names += [f"kappa.{name}.{k}" for k in turns for name in own]
        else:
            names += [f"kappa.{name}.{k}" for name in own for k in turns]
    return names


def _row(effect: str) -> str:
    """The row of the page's Omega of a random effect: "occ.ka" of "kappa.ka.2"."""
    return f"occ.{effect.split('.')[1]}" if effect.startswith("kappa.") else effect


def _occasion(effect: str) -> int:
    return int(effect.rpartition(".")[2]) if effect.startswith("kappa.") else 0


def _omega(
    layout: Layout,
    given: Mapping[str, Estimate],
    etas: Mapping[int, str],
    se: dict[str, float],
    fixed: dict[str, bool],
) -> Tensor:
    """The covariance matrix on the page, and what goes with it."""
    q = len(layout.effect_names)
    omega = torch.zeros(q, q, dtype=torch.float64)
    names = {position: name for name, position in zip(layout.omega_names, layout.positions, strict=True)}
    for source, estimate in given.items():
        if not source.startswith("OMEGA"):
            continue
        i, j = _place(source)
        if i not in etas or j not in etas:
            continue
        a, b = (layout.effect_names.index(_row(etas[k])) for k in (i, j))
        place = (max(a, b), min(a, b))
        if place not in names or _occasion(etas[i]) != _occasion(etas[j]):
            if estimate.value != 0:
                raise DataError(
                    f"{source} = {estimate.value:g}, but the page has no covariance of {etas[i]} and {etas[j]}; declare"
                    " the block on the page: Omega(..., cov=[...])"
                )
            continue
        if _occasion(etas[i]) > 1:
            if abs(estimate.value - float(omega[a, b])) > SAME * abs(estimate.value):
                raise DataError(
                    f"{source} = {estimate.value:g} is that of {etas[i]} and {float(omega[a, b]):g} that of its first"
                    " occasion; a page has one matrix for all occasions ($OMEGA BLOCK SAME); check the order of the"
                    " etas (map=...)"
                )
            continue
        if i == j and not estimate.value > 0:
            raise DataError(
                f"{source} = {estimate.value:g}: a page's random effect has a positive variance; take {etas[i]} off the"
                f" page and leave the ETA out by map={{'{source}': None}}"
            )
        omega[a, b] = omega[b, a] = estimate.value
        se[names[place]], fixed[names[place]] = estimate.se, estimate.fixed
    if int(torch.linalg.cholesky_ex(omega)[1]):
        raise DataError(
            "OMEGA of the run is not positive definite on the page; check the order of the etas (map=...)"
        )
    return omega


def individual_names(columns: list[str], etas: Mapping[int, str]) -> dict[str, str]:
    """Columns of a .phi file -> names here: eta_cl, var_cl, cov_v_cl (phi_... and so on for methods of EM type)."""
    out = {"ID": "id", "OBJ": "obj"}
    for column in columns:
        match = re.match(r"^(ETA|PHI|ETC|PHC)\((\d+)(?:,(\d+))?\)$", column)
        if match is None:
            continue
        kind = match[1]
        i, j = (None if k is None else _short(etas.get(int(k), k)) for k in (match[2], match[3]))
        if match[3] is None:
            kappa = kind == "ETA" and etas.get(int(match[2]), "").startswith("kappa.")
            out[column] = str(i) if kappa else f"{kind.lower()}_{i}"
            continue
        prefix = "" if kind == "ETC" else "phi_"
        same = match[2] == match[3]
        out[column] = f"{prefix}var_{i}" if same else f"{prefix}cov_{i}_{j}"
    return out


def _short(effect: str) -> str:
    """A random effect within a column's name: "cl", "kappa_ka_2"."""
    return effect.replace(".", "_")


def to_frame(given: Mapping[str, Estimate]) -> pd.DataFrame:
    """NONMEM's estimates under their own names."""
    rows = [{"name": n, "estimate": e.value, "se": e.se, "fixed": e.fixed} for n, e in given.items()]
    return pd.DataFrame(rows).set_index("name")


def _place(source: str) -> tuple[int, int]:
    match = _NAME.match(source)
    assert match is not None
    return int(match[2]), int(match[3] or match[2])


def _diagonal(source: str) -> bool:
    i, j = _place(source)
    return i == j


def _changed(source: str, estimate: Estimate, change: Change | None) -> tuple[float, float]:
    """Value and standard error after a function of the mapping, by the delta method."""
    if change is None:
        return estimate.value, estimate.se
    step = STEP * max(abs(estimate.value), 1e-3)
    try:
        value, up, down = (float(change(estimate.value + d)) for d in (0.0, step, -step))
    except (TypeError, ValueError, ArithmeticError) as error:
        raise DataError(
            f"map: the function of {source} fails at {estimate.value:g}: {error}; it takes and returns one number,"
            " such as math.exp"
        ) from None
    return value, abs(up - down) / (2 * step) * estimate.se


def _root(source: str, variance: float, error: float) -> tuple[float, float]:
    """A standard deviation and its standard error, from NONMEM's variance."""
    if not variance > 0:
        raise DataError(f"{source} = {variance:g}: expected a positive variance; map=... can leave it out")
    sd = math.sqrt(variance)
    return sd, error / (2 * sd)
