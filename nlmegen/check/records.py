"""Between the padded tensors of a Population and the rows of its table."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import Tensor

from nlmegen.data.population import Population


def on_records(population: Population, value: Tensor | npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return [N, T] values as a column of the population's table, missing where there is no observation."""
    column = np.full(len(population.table), np.nan)
    seen = population.mask.numpy()
    column[population.row.numpy()[seen]] = np.asarray(value)[seen]
    return column


def observations(population: Population) -> pd.DataFrame:
    """Return id, time, dv, dvid of the observations, subject by subject: the entries of `[N, T]` under its mask."""
    seen = population.mask.numpy()
    subject = np.nonzero(seen)[0]
    return pd.DataFrame(
        {
            "id": np.asarray(population.ids, dtype=object)[subject],
            "time": population.time.numpy()[seen],
            "dv": population.dv.numpy()[seen],
            "dvid": np.asarray(population.dvids, dtype=object)[population.dvid.numpy()[seen]],
        }
    )


def on_observations(population: Population, value: Tensor) -> npt.NDArray[Any]:
    """Return [*draw, N, T] values as [*draw, n], in the order of `observations`."""
    column: npt.NDArray[Any] = value.numpy()[..., population.mask.numpy()]
    return column
