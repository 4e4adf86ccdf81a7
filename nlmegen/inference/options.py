"""What the settings of every classic method have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from ..errors import FitError

Covariance = Literal["auto", "sandwich", "R", "S"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options that mean the same in every method but `ELBO`; all are named, none goes by its place.

    Args:
        evaluate: only evaluate at the model's present values (MAXEVAL=0).
        covariance: which standard errors: "sandwich" (NONMEM's default), "R" (the Hessian), "S" (the scores), None for
            none; "auto" is "sandwich" for an estimation and None for an evaluation. "R" stands in for "sandwich", and
            a note says so, where no more subjects have data than there are parameters, and on a page with priors.
        flip_flop: accept absorption slower than elimination. Otherwise (oral, one compartment) the mirror image with
            the faster absorption is estimated, and a note says so.

    Raises:
        FitError: on a value that an option does not have.
    """

    evaluate: bool = False
    covariance: Covariance | None = "auto"
    flip_flop: bool = False

    name: ClassVar[str]

    def __post_init__(self) -> None:
        for option in ("evaluate", "flip_flop"):
            if not isinstance(value := getattr(self, option), bool):
                raise FitError(f"{self.label}({option}={value!r}): expected True or False")
        if self.covariance is not None and self.covariance not in get_args(Covariance):
            raise FitError(
                f"{self.label}(covariance={self.covariance!r}): expected 'sandwich', 'R', 'S', 'auto', or None for no"
                " standard errors"
            )

    def require_whole(self, **least: int) -> None:
        """Raise a FitError unless every option named here is a whole number of at least so much."""
        for option, low in least.items():
            value = getattr(self, option)
            if type(value) is not int or value < low:
                raise FitError(f"{self.label}({option}={value!r}): expected a whole number, at least {low}")

    @property
    def label(self) -> str:
        """The method's name in a sentence."""
        return type(self).__name__

    @property
    def kind(self) -> str | None:
        """The covariance that will be computed, "auto" resolved."""
        if self.covariance == "auto":
            return None if self.evaluate else "sandwich"
        return self.covariance
