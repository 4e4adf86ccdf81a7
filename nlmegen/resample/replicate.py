"""One replicate of a bootstrap: draw its data, fit them, and say how that went; here or in a worker process."""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from ..errors import FitError
from ..fit import fit
from ..inference.methods import chained, stages
from ..inference.uncertainty import natural
from .carry import unpack
from .worlds import Worlds, worlds

STATUSES = CONVERGED, NOT_CONVERGED, FAILED = "converged", "not converged", "failed"


@dataclass(frozen=True)
class Replicate:
    """One row of a bootstrap.

    Attributes:
        replicate, seed: its number, 1, 2, ..., and the seed its data were drawn with.
        status: "converged", "not converged" or "failed"; reason: how the method stopped, in words.
        ofv: objective function.
        values: estimates on the natural scale, in the order of the free parameters.
        seconds: wall time.
        interrupted: whether a Ctrl-C cut it short, so that it says nothing.
    """

    replicate: int
    seed: int
    status: str
    reason: str
    ofv: float
    values: tuple[float, ...]
    seconds: float
    interrupted: bool = False

    @property
    def row(self) -> tuple[object, ...]:
        """Its cells, in the order of the table."""
        return (
            self.replicate,
            self.seed,
            self.status,
            self.reason,
            self.ofv,
            *self.values,
            self.seconds,
        )


def for_replicates(method: Any) -> Any:
    """The method without standard errors, which a replicate has no use for.

    Raises:
        FitError: a method that only evaluates.
    """
    made = []
    for stage in stages(method):
        if getattr(stage, "evaluate", False):
            raise FitError(
                f"the fit was only evaluated ({stage.name} with evaluate=True), so that every replicate would have the"
                " same estimates; estimate first, or give method=..."
            )
        able = any(field.name == "covariance" and field.init for field in dataclasses.fields(stage))
        made.append(dataclasses.replace(stage, covariance=None) if able else stage)
    return chained(made)


def perform(world: Worlds, method: Any, replicate: int) -> Replicate:
    """Draw the data of a replicate and fit them, starting at the estimates."""
    begin = time.perf_counter()
    model = world.model
    size = int((~model.layout.fixed).sum())
    seed = 0
    try:
        population, seed = world.draw(replicate)
        result = fit(model, population, method)
    except Exception as error:  # noqa: BLE001 whatever it is, it is this replicate's and is counted
        nothing = (math.nan,) * size
        reason = f"{type(error).__name__}: {error}"
        return Replicate(
            replicate, seed, FAILED, reason, math.nan, nothing, round(time.perf_counter() - begin, 4)
        )
    values = tuple(natural(result.problem, result.estimate.free).tolist())
    usable = math.isfinite(result.ofv) and all(map(math.isfinite, values))
    status = (CONVERGED if result.converged else NOT_CONVERGED) if usable else FAILED
    return Replicate(
        replicate,
        seed,
        status,
        result.reason,
        float(result.ofv),
        values,
        round(time.perf_counter() - begin, 4),
        interrupted=not result.converged and "interrupted" in result.reason,
    )


def perform_packed(parcel: bytes, replicate: int) -> Replicate:
    """`perform` in a worker; `parcel` holds (model, population, kind, seed, stratify, method)."""
    model, rest = unpack(parcel)
    population, kind, seed, stratify, method = rest
    return perform(_worlds(parcel, model, population, kind, seed, stratify), method, replicate)


_KEPT: dict[bytes, Worlds] = {}


def _worlds(parcel: bytes, *made_of: Any) -> Worlds:
    """The data sets of the bootstrap at hand, kept from one task to the next."""
    if parcel not in _KEPT:
        _KEPT.clear()
        _KEPT[parcel] = worlds(*made_of)
    return _KEPT[parcel]


def process_pool(workers: int) -> ProcessPoolExecutor:
    """Worker processes that leave Ctrl-C to the parent and end with it, even when it is killed."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare)


def _prepare() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        # a pool's workers wait for tasks for ever when their parent is gone
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: Any) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
