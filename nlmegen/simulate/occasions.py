"""Occasions of virtual patients: where one ends and the next begins."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from nlmegen.errors import DataError

_Floats = npt.NDArray[np.float64]

REMEDY = 'say "dose" (each dose opens one), a number (so long is each), or the times at which they begin'


def read_occasions(occasions: Any) -> str | float | tuple[float, ...] | None:
    """Read what `Cohort(occasions=)` may be.

    Args:
        occasions: None; "dose"; the length of an occasion, a number or its text; or the times at which occasions begin,
            numbers or the text "0, 24, 48".

    Raises:
        DataError: anything else.

    Example:
        >>> read_occasions("0, 24"), read_occasions("12")
        ((0.0, 24.0), 12.0)
    """
    if occasions is None or occasions == "dose":
        return occasions  # type: ignore[no-any-return]
    try:
        if isinstance(occasions, bool):
            raise TypeError
        if isinstance(occasions, str) and "," in occasions:
            occasions = [float(word) for word in occasions.split(",")]
        if isinstance(occasions, Iterable) and not isinstance(occasions, (str, bytes)):
            starts = tuple(float(value) for value in occasions)
            if len(starts) and np.isfinite(starts).all() and (np.diff(starts) > 0).all():
                return starts
        else:
            length = float(occasions)
            if 0 < length < np.inf:
                return length
    except (TypeError, ValueError):
        pass
    raise DataError(f"occasions: cannot read {occasions!r}; {REMEDY}")


def boundaries(occasions: str | float | tuple[float, ...], doses: _Floats, last: float) -> _Floats:
    """Return the times, after the first, at which an occasion begins.

    Args:
        occasions: As `read_occasions` returns it.
        doses: Times of the doses.
        last: Time of the last record.
    """
    if isinstance(occasions, str):
        return np.unique(doses)[1:]
    if isinstance(occasions, tuple):
        return np.array(occasions[1:])
    return np.arange(1, int(np.floor(last / occasions + 1e-9)) + 1) * np.float64(occasions)


def with_occasions(records: pd.DataFrame, bounds: _Floats) -> pd.DataFrame:
    """Number the occasions of the records of one subject, and mark where one begins.

    At each boundary a record of EVID 2 of the earlier occasion comes before the others: between records NONMEM's rule
    takes the value of the next one, so that the time up to the boundary is still the earlier occasion's.

    Args:
        records: In the order of time; times that rounding parts from a boundary already moved onto it.
        bounds: Times at which an occasion begins, after the first.
    """
    time = records["time"].to_numpy(dtype=float)
    bounds = bounds[bounds <= time.max()]
    whole = records.assign(occ=1 + np.searchsorted(bounds, time, side="right"))
    empty = ~np.isin(bounds, time)
    marks = {"evid": 2, "amt": 0.0, "rate": 0.0, "cmt": 0}
    before = pd.DataFrame({"time": bounds, "occ": 1 + np.arange(len(bounds))}).assign(**marks)
    after = pd.DataFrame({"time": bounds[empty], "occ": 2 + np.flatnonzero(empty)}).assign(**marks)
    blank: dict[str, Any] = {
        str(name): records[name].iloc[-1] for name in records if name not in ("time", *marks)
    }
    blank |= {name: 0 for name in ("ii", "ss") if name in records}
    blank |= {name: np.nan for name in ("lloq",) if name in records}
    added = [part.assign(**blank) for part in (before, after)]
    joined = pd.concat([added[0], whole, added[1]], ignore_index=True)
    return joined.sort_values("time", kind="stable", ignore_index=True)[[*records.columns, "occ"]]
