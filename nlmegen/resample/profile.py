"""Likelihood profiles: how far one parameter can move before the objective, minimised over the others, rises too much.

With O_p(c) the minimum of the objective function O over all other parameters where the one of interest is c, the
interval of level 1 - alpha is

    { c : O_p(c) - min O  <=  chi-square quantile (1 degree of freedom) at 1 - alpha } ,

3.84 for 95 %. It needs no standard error, follows a skewed likelihood, and is the same on every scale. The ends are
roots of z(c) = +- sqrt(O_p(c) - min O), which is nearly linear; its slope is known, for the derivative of O_p is the
partial derivative of O. See Cole, Chu & Greenland (2014), doi:10.1093/aje/kwt245; Venzon & Moolgavkar (1988),
doi:10.2307/2347496.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from scipy.stats import chi2

from ..errors import DataError, FitError, nearest
from ..fit import Fit
from ..fit.result import one_thread
from ..inference.boundary import at_boundary
from ..inference.estimate import Progress, Report
from ..inference.flipflop import absorbs_slowly, has_mirror
from ..inference.methods import stages
from ..inference.objective import Objective
from ..inference.outer import Outer, Surface
from ..inference.starts import logarithmic
from ..inference.uncertainty import natural
from .criterion import criterion, is_own
from .walk import Better, Limit, Walk

SIDES = ("both", "lower", "upper")

RESTARTS = 3
"""How often the profile begins anew from a lower objective that it found."""

DRIFT = 0.01
"""By how much the objective may fall, when it is minimised from the estimates, before that is worth a word."""


def profile(
    fit: Fit,
    names: Sequence[str] | None = None,
    level: float = 0.95,
    sides: str = "both",
    progress: Report | None = None,
) -> Profile:
    """Profile the likelihood of each parameter.

    Args:
        fit: a fit by a method with an objective function (fo, foce, focei, laplace, agq); any other with at most three
            random effects is profiled on adaptive quadrature.
        names: parameters, as in `fit.parameters`; all that are free unless given.
        level: coverage.
        sides: "both", or "lower" or "upper" for one-sided limits, at which the objective rises by the square of the
            normal quantile (2.71 for 95 %).
        progress: called with a `Progress` for every parameter.

    Returns:
        A `Profile`.

    Raises:
        DataError: arguments that mean nothing, or a name that is no free parameter.
        FitError: no objective function that could be evaluated.

    Example:
        >>> import nlmegen as nl
        >>> model, data = nl.load_model("theophylline"), nl.load_data("theophylline")
        >>> found = profile(nl.fit(model, data, nl.FOCEI()), names=["tvcl"])
        >>> found.table.loc["tvcl", ["lower", "upper"]].astype(float).round(2).tolist()  # doctest: +SKIP
        [2.31, 3.34]
    """
    if isinstance(names, str):
        raise DataError(f"profile(names={names!r}): expected a list of names, write [{names!r}]")
    wanted = list(fit.problem.names if names is None else names)
    if not wanted:
        raise DataError("profile: no parameter to profile; name one that is free")
    for name in wanted:
        if name not in fit.problem.names:
            raise DataError(f"profile: {name!r} is no free parameter.{nearest(str(name), fit.problem.names)}")
    if sides not in SIDES:
        raise DataError(f"profile(sides={sides!r}): expected 'both', 'lower' or 'upper'")
    if not (0 < level < 1 and (sides == "both" or level > 0.5)):
        raise DataError(f"level: expected a fraction between 0 (one side: 0.5) and 1, got {level!r}")
    objective, notes = criterion(fit), []
    if not is_own(fit):
        notes.append(
            f"profiles are of adaptive quadrature ({fit.method} has no objective function of its own)"
        )
    if fit.problem.penalised:
        notes.append("the objective holds -2 log prior")
    if len(fit.problem.weights):
        notes.append("the networks' weights are held at their estimates")
    rise = float(chi2.ppf(level if sides == "both" else 2 * level - 1, 1))
    with one_thread():
        base = _Base.of(objective, fit.estimate.free, fit.ebe[None])
        drift = float(objective(fit.estimate.free[None], fit.ebe[None]).total[0]) - base.surface.value
        if drift > DRIFT:
            notes.append(
                f"minimised from the estimates the objective falls by {drift:.3g}; the profile is taken from there"
            )
        if bool(base.held.any()):
            held = ", ".join(n for n, yes in zip(fit.problem.names, base.held.tolist(), strict=True) if yes)
            notes.append(f"{held}: at the boundary, left there on the other profiles unless that does better")
        for _ in range(RESTARTS + 1):
            try:
                return _walked(fit, objective, base, wanted, rise, level, sides, notes, progress)
            except Better as found:
                before = base.surface.value
                base = _Base.of(objective, found.free, found.eta)
                notes.append(
                    f"a lower objective, by {before - base.surface.value:.4g}, was found on the profile of"
                    f" {found.name}; the profile began anew from there. The fit is not at its"
                    " minimum: fit again from these values"
                )
    raise FitError(
        f"the profile found a lower objective {RESTARTS + 1} times in a row, so the fit is not at a minimum; fit again"
        " from other starts"
    )


def _flipped(fit: Fit) -> Callable[[torch.Tensor], bool]:
    """Whether a free vector is the flip-flop image of what the fit reports, which its method does not accept."""
    problem, last = fit.problem, stages(fit.settings)[-1]
    if (
        getattr(last, "flip_flop", False)
        or not has_mirror(problem)
        or absorbs_slowly(problem, fit.estimate.free)
    ):
        return lambda free: False
    return lambda free: absorbs_slowly(problem, free)


@dataclass(frozen=True)
class _Base:
    """The minimum that rises are counted from, and the parameters at a boundary there, `[P]` bool."""

    surface: Surface
    held: torch.Tensor

    @classmethod
    def of(cls, objective: Objective, free: torch.Tensor, eta: torch.Tensor) -> _Base:
        outcome = Outer(objective, logarithmic(objective.problem)).run(free, eta)
        return cls(outcome.surface, at_boundary(objective.problem, outcome.surface))


def _walked(
    fit: Fit,
    objective: Objective,
    base: _Base,
    names: list[str],
    rise: float,
    level: float,
    sides: str,
    notes: list[str],
    progress: Report | None,
) -> Profile:
    problem = fit.problem
    estimate = natural(problem, base.surface.free)
    mixture = float(chi2.ppf(max(2 * level - 1, 0.0), 1))
    rows, points = [], []
    for done, name in enumerate(names):
        if progress is not None:
            progress(Progress("profile", done, len(names), note=name))
        index = problem.names.index(name)
        walk = Walk(objective, base.surface, base.held, index, rise, mixture, _flipped(fit))
        row: dict[str, object] = {"estimate": float(estimate[index])}
        said = []
        for side, sign in (("lower", -1), ("upper", 1)):
            limit = Limit(float("nan"), "") if sides not in ("both", side) else walk.side(sign)
            row[side] = limit.value
            if limit.words:
                said.append(limit.words)
        row["said"] = "; ".join(said)
        rows.append(row)
        points += [{"name": name, **point} for point in walk.path()]
    if progress is not None:
        progress(Progress("profile", len(names), len(names)))
    table = pd.DataFrame(rows, index=pd.Index(names, name="name"))
    for side in ("lower", "upper"):
        asymptotic = fit.parameters[f"ci_{side}"].loc[names].astype("float64")
        table.insert(len(table.columns) - 1, f"asymptotic_{side}", asymptotic)
    free = pd.Series(estimate.numpy(), index=list(problem.names))
    return Profile(fit, level, sides, rise, table, pd.DataFrame(points), free, base.surface.value, notes)


class Profile:
    """Likelihood profiles.

    Attributes:
        fit: the fit; level, sides: as asked for; rise: of the objective at the ends.
        table: one row a parameter: estimate, lower, upper, asymptotic_lower, asymptotic_upper (95 %, of the fit), said:
            what is to be said of an end (that there is none, a boundary).
        path: every point visited: name of the parameter, its value, rise of the objective, converged, and all
            parameters there by their names.
        estimates: where rises are counted from, by name; objective: the objective there.
        notes: what deserves attention, in words.
    """

    def __init__(
        self,
        fit: Fit,
        level: float,
        sides: str,
        rise: float,
        table: pd.DataFrame,
        path: pd.DataFrame,
        estimates: pd.Series[float],
        objective: float,
        notes: list[str],
    ) -> None:
        self.fit, self.level, self.sides, self.rise = fit, level, sides, rise
        self.table, self.path, self.estimates, self.objective = table, path, estimates, objective
        self.notes = notes + [f"{name}: {said}" for name, said in table["said"].items() if said]

    def _head(self) -> str:
        what = "intervals" if self.sides == "both" else f"{self.sides} limits"
        return (
            f"profile of {self.fit.model.name} by {self.fit.method}: {100 * self.level:g} % {what}, where the objective"
            f" rises by {self.rise:.4g} from {self.objective:.4f}"
        )

    def _shown(self) -> pd.DataFrame:
        return self.table.drop(columns="said").dropna(axis="columns", how="all")

    def __repr__(self) -> str:
        table = self._shown().to_string(float_format=lambda x: f"{x:.5g}", na_rep="")
        return "\n".join([self._head(), table, *(f"note: {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        table = self._shown().to_html(float_format=lambda x: f"{x:.5g}", na_rep="")
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return f"<p>{html.escape(self._head())}</p>{table}<ul>{notes}</ul>"
