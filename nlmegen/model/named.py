"""Values by name, as a page reads them: `theta.tvcl`, `eta.cl`, `cov.wt`, `a.central`, `p.v`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError, ModelError, nearest
from ..maths.taylor import Taylor

_WHAT = {
    "theta": "Theta declared on the page",
    "eta": "random effect declared in Omega(...)",
    "kappa": "random effect declared in Omega(..., level='occ')",
    "cov": "covariate column of the data",
    "a": "compartment of the structure",
    "p": "individual parameter returned by individual()",
}


class Named:
    """Attributes from a mapping; a name that is not there is an error naming the nearest.

    Args:
        kind: what is held: "theta", "eta", "kappa", "cov", "a" or "p".
        values: the values by name.
        hints: what to say of particular missing names.
        used: a set that collects the names read (a dry run passes one).

    Raises:
        ModelError: on a name that the page does not have (DataError for a covariate).
    """

    def __init__(
        self,
        kind: str,
        values: Mapping[str, Any],
        hints: Mapping[str, str] | None = None,
        used: set[str] | None = None,
    ) -> None:
        self._kind, self._hints, self._used = kind, hints, used
        self._values = values
        if used is None and isinstance(
            values, dict
        ):  # amounts of a structure are computed when they are read
            self.__dict__.update(values)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in self._values:
            if self._used is not None:
                self._used.add(name)
            return self._values[name]
        error = DataError if self._kind == "cov" else ModelError
        hint = (self._hints or {}).get(name)
        if hint is None and self._kind == "cov" and not self._values:
            hint = "the data hold no covariate; add its column (to a cohort: covariates=..., or --covariates DATA)"
        if hint is None:
            hint = f"there is no such {_WHAT[self._kind]}.{nearest(name, self._values)}"
        raise error(f"{self._kind}.{name}: {hint}")

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __repr__(self) -> str:
        return f"{self._kind}({', '.join(f'{k}={v}' for k, v in self._values.items())})"


def tensor_of(x: Any) -> Any:
    """A plain number of a page (`cl=1.0`) as a tensor; tensors and Taylor numbers as they are."""
    return x if isinstance(x, (Tensor, Taylor)) else torch.full((1, 1), float(x), dtype=torch.float64)
