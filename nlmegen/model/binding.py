"""Which observations belong to which endpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ..data.population import Population
from ..errors import DataError, nearest
from .endpoints import Endpoint


def bind_endpoints(endpoints: Mapping[str, Endpoint], population: Population) -> list[Tensor] | None:
    """One mask an endpoint from the DVIDs of a population, None where the one endpoint takes every observation.

    An endpoint takes the DVID it declares (`dvid=`), else the one that bears its name, else, the labels being numbers,
    its place among the endpoints.

    Raises:
        DataError: when observations are left that no endpoint takes.
    """
    labels: Sequence[int | str] = population.dvids
    if len(endpoints) == 1 and len(labels) == 1 and next(iter(endpoints.values())).dvid is None:
        return None
    masks, taken = [], set()
    for place, (name, endpoint) in enumerate(endpoints.items(), start=1):
        wanted = endpoint.dvid if endpoint.dvid is not None else name if name in labels else place
        taken.add(wanted)
        code = labels.index(wanted) if wanted in labels else -1
        masks.append(population.mask & (population.dvid == code))
    left = [str(label) for label in labels if label not in taken]
    if left:
        raise DataError(
            f"no endpoint of the page takes the observations with DVID {', '.join(left)}; declare one with "
            f"dvid=..., or leave them out on reading (ignore=...).{nearest(left[0], endpoints)}",
            column="DVID",
        )
    return masks
