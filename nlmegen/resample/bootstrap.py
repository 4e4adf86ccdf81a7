"""Bootstrap: the same estimation on data drawn again, and how its estimates scatter.

See Efron & Tibshirani, An Introduction to the Bootstrap (1993); for population models Thai, Mentre, Holford,
Veyrat-Follet & Comets (2014), doi:10.1007/s10928-013-9343-z.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor, as_completed
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..fit import Fit
from ..fit.result import one_thread
from ..inference.estimate import Method, Progress, Report
from ..inference.methods import settings_of
from ..model.pagetext import page_text
from ..simulate.draws import whole
from .carry import covers, pack
from .journal import Journal
from .replicate import STATUSES, Replicate, for_replicates, perform, perform_packed
from .scatter import HEAD, TAIL, Bootstrap
from .worlds import worlds


def bootstrap(
    fit: Fit,
    n: int = 200,
    kind: str = "case",
    method: Method | None = None,
    stratify: str | None = None,
    seed: int = 0,
    executor: Executor | None = None,
    out: str | Path | None = None,
    progress: Report | None = None,
    level: float = 0.95,
    fresh: bool = False,
) -> Bootstrap:
    """Estimate again on `n` data sets drawn from the data ("case") or from the fit ("parametric").

    Every replicate starts at the fit's estimates and has data that depend on (seed, its number) alone, so that the
    numbers depend neither on the executor nor on the order in which replicates end, and more replicates can be added
    later. A method with a seed keeps it: it is part of how the estimates follow from the data.

    Args:
        fit: a fit.
        n: replicates. 200 determine a standard error to 5 %; the ends of a 95 % interval need 1000 or more.
        kind: "case" draws subjects with replacement and trusts the model least; "parametric" simulates the same
            subjects anew from the fit.
        method: with which to estimate; the fit's own unless given. Standard errors are left out.
        stratify: a column of the table: subjects are drawn within its values (case).
        seed: of the data sets.
        executor: where to work; a `concurrent.futures` executor (processes, or a cluster's). This process unless given.
        out: a folder, or a csv, to which every finished replicate is written at once. The same call goes on where an
            earlier one ended, however it ended, and comes to the same numbers.
        progress: called with a `Progress` at every finished replicate.
        level: coverage of the intervals.
        fresh: begin anew even where `out` holds replicates.

    Returns:
        A `Bootstrap`. Ctrl-C returns the replicates that are there.

    Raises:
        DataError: arguments that mean nothing, or `out` holds replicates of another fit or other settings.
        FitError: the fit was only evaluated, so that there is nothing to repeat.
        ModelError: with an executor, a page whose source does not stand by itself.

    Example:
        >>> import nlmegen as nl
        >>> model, data = nl.load_model("theophylline"), nl.load_data("theophylline")
        >>> again = bootstrap(nl.fit(model, data, nl.FOCEI()), n=3)
        >>> len(again.table)
        3
    """
    n = whole("n (replicates)", n, 2)
    if not 0 < level < 1:
        raise DataError(f"level: expected a fraction between 0 and 1 such as 0.95, got {level!r}")
    if not fit.problem.P:
        raise DataError("the page has no free parameter, so there is nothing to bootstrap")
    settings = for_replicates(fit.settings if method is None else method)
    world = worlds(fit.model, fit.population, kind, seed, stratify)
    columns = [*HEAD, *fit.problem.names, *TAIL]
    journal = None
    if out is not None:
        identity = _identity(fit, settings, kind, stratify, seed)
        journal = Journal(out, "bootstrap", identity, columns, fresh=fresh)
    rows: dict[int, tuple[Any, ...]] = {}
    with journal if journal is not None else nullcontext():
        if journal is not None:
            rows = {k: _checked(cells, journal.path) for k, cells in journal.rows.items() if k <= n}
        missing = [k for k in range(1, n + 1) if k not in rows]
        if executor is None:
            work = _here(lambda k: perform(world, settings, k), missing)
        else:
            packed = pack(fit.model, fit.population, kind, seed, stratify, settings)
            work = _spread(executor, packed, missing)
        interrupted = False
        try:
            for done in work:
                if done.interrupted:
                    interrupted = True
                    break
                rows[done.replicate] = done.row
                if journal is not None:
                    journal.add(done.row)
                if progress is not None:
                    progress(_report(rows, n))
        except KeyboardInterrupt:
            interrupted = True
        finally:
            work.close()
    return Bootstrap.of(fit, settings, kind, seed, n, level, [rows[k] for k in sorted(rows)], interrupted)


def _here(one: Callable[[int], Replicate], replicates: list[int]) -> Generator[Replicate]:
    with one_thread():
        for k in replicates:
            yield one(k)


def _spread(executor: Executor, packed: bytes, replicates: list[int]) -> Generator[Replicate]:
    """Replicates in the order in which they end; those that have not begun are cancelled when nobody wants them."""
    futures = [executor.submit(perform_packed, packed, k) for k in replicates]
    try:
        for future in as_completed(futures):
            yield future.result()
    finally:
        for future in futures:
            future.cancel()


def _checked(cells: Sequence[str], path: Path) -> tuple[str, ...]:
    """A row as it was read, when it is one that this module wrote."""
    try:
        STATUSES.index(cells[HEAD.index("status")])
        int(cells[HEAD.index("seed")])
        for cell in cells[HEAD.index("ofv") :]:
            float(cell or "nan")
    except ValueError:
        raise DataError(
            f"{path}: the row of replicate {cells[0]} is damaged; remove it to have it computed again, or begin anew"
            " (--force, fresh=True)"
        ) from None
    return tuple(cells)


def _report(rows: dict[int, tuple[Any, ...]], n: int) -> Progress:
    lost = sum(row[HEAD.index("status")] != "converged" for row in rows.values())
    return Progress("bootstrap", len(rows), n, note=f"{lost} not usable" if lost else "")


def _identity(fit: Fit, settings: Any, kind: str, stratify: str | None, seed: int) -> dict[str, Any]:
    """All that the numbers depend on; the number of replicates is not part of it."""
    from .. import __version__

    model = fit.model

    def digest(text: bytes) -> str:
        return hashlib.sha256(text).hexdigest()

    return {
        "nlmegen": __version__,
        "kind": kind,
        "stratify": stratify,
        "seed": seed,
        "method": settings_of(settings),
        "model": model.name,
        "page": digest("\n".join((page_text(model), *model.layout.signature)).encode()),
        "estimates": model.free.tolist(),
        "weights": digest(model.weights.detach().numpy().tobytes()),
        "solver": repr(model.solver) if model.stepped else None,
        "data": covers(fit.population),
    }
