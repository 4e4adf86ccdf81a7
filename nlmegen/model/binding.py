"""Which observations belong to which endpoint, and what of a table is no covariate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

from pandas.api.types import is_numeric_dtype
from torch import Tensor

from ..data.population import Population
from ..errors import DataError, ModelError, nearest
from ..structure.solver import NOT_SOLVED
from .endpoints import Endpoint


def bind_endpoints(endpoints: Mapping[str, Endpoint], population: Population) -> list[Tensor] | None:
    """One mask an endpoint from the DVIDs of a population, None where the one endpoint takes every observation.

    An endpoint takes the DVID it declares (`dvid=`), else the one that bears its name, else, the labels being numbers,
    its place among the endpoints.

    Raises:
        ModelError: when two endpoints take the same DVID.
        DataError: when observations are left that no endpoint takes, or an endpoint has none.
    """
    labels: Sequence[int | str] = population.dvids
    if len(endpoints) == 1 and len(labels) == 1 and next(iter(endpoints.values())).dvid is None:
        return None
    masks: list[Tensor] = []
    taken: dict[int | str, str] = {}
    for place, (name, endpoint) in enumerate(endpoints.items(), start=1):
        wanted = endpoint.dvid if endpoint.dvid is not None else name if name in labels else place
        if wanted in taken:
            raise ModelError(
                f"the endpoints {taken[wanted]} and {name} both take DVID {wanted}; give each a dvid=... of its own"
            )
        taken[wanted] = name
        if wanted not in labels:
            raise DataError(
                f"the endpoint {name} takes DVID {wanted}, which no observation has (the data hold "
                f"{', '.join(map(str, labels)) or 'none'}); set its dvid=..., or remove the endpoint",
                column="DVID",
            )
        masks.append(population.mask & (population.dvid == labels.index(wanted)))
    left = [str(label) for label in labels if label not in taken]
    if left:
        raise DataError(
            f"no endpoint of the page takes the observations with DVID {', '.join(left)}; declare one with "
            f"dvid=..., or leave them out on reading (ignore=...).{nearest(left[0], endpoints)}",
            column="DVID",
        )
    return masks


def not_finite(lost: Tensor) -> str:
    """What to check where a prediction is not finite.

    Args:
        lost: whether differential equations could not be solved.
    """
    if bool(lost.any()):
        return NOT_SOLVED
    return (
        "check the starting values, the doses, and for a log-normal endpoint that no observation precedes the first "
        "dose"
    )


class Hints(Mapping[str, str]):
    """What to say of columns of a table that are there but cannot be covariates, looked up when somebody asks."""

    def __init__(self, population: Population) -> None:
        self._population = population

    @cached_property
    def _words(self) -> dict[str, str]:
        table = self._population.table
        return {
            str(name): f"column {name} of the data holds text; recode it to numbers before reading"
            for name in table.columns
            if name not in self._population.covariates and not is_numeric_dtype(table[name])
        }

    def __getitem__(self, name: str) -> str:
        return self._words[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._words)

    def __len__(self) -> int:
        return len(self._words)

    def __bool__(self) -> bool:
        return True  # without looking
