"""A page, its values and its data as bytes, for a worker process: a class loaded from a file does not pickle.

The page travels as its source text with the hash of it, the values as tensors; the worker runs the text as
`load_model` runs a file, once, and keeps the page for the tasks that follow.
"""

from __future__ import annotations

import hashlib
import pickle
import tempfile
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from ..data.population import Population
from ..errors import ModelError, NlmegenError
from ..model.catalogue import load_model
from ..model.page import Model
from ..model.pagetext import page_text
from ..structure.solver import Solver


@dataclass(frozen=True)
class Parcel:
    """A model in transit.

    Attributes:
        text, sha256: source of the page and its hash.
        name: of the page.
        free, weights: its values, all parameters `[all]` and network weights `[W]`.
        solver: settings with which its equations are stepped; None for a closed form.
    """

    text: str
    sha256: str
    name: str
    free: Tensor
    weights: Tensor
    solver: Solver | None

    @classmethod
    def of(cls, model: Model) -> Parcel:
        """The parcel of a model.

        Raises:
            ModelError: the page's source cannot be found, or does not make the page again by itself.
        """
        text = page_text(model)
        remedy = "write the page in a .py file of its own (nl.load_model), or work without an executor"
        if not text:
            raise ModelError(
                f"the source of the page {model.name} cannot be found by other processes; {remedy}"
            )
        if "from nlmegen_page_" in text:  # a subclass of a page in another file: that module is here alone
            raise ModelError(
                f"the page {model.name} derives from a page in another file, which other processes lack; {remedy}"
            )
        digest = hashlib.sha256(text.encode()).hexdigest()
        # one thread a worker: there are as many workers as are to work (no result depends on it)
        solver = replace(model.solver, threads=1) if model.stepped else None
        parcel = cls(text, digest, model.name, model.free.detach(), model.weights.detach(), solver)
        try:
            made = parcel.open()
        except NlmegenError as error:
            raise ModelError(f"the page {model.name} does not stand by itself ({error}); {remedy}") from None
        if made.layout.signature != model.layout.signature:
            raise ModelError(f"the source of the page {model.name} has changed since it was loaded; {remedy}")
        return parcel

    def open(self) -> Model:
        """The model again. Runs the page."""
        page = _page(self.text, self.sha256)
        if self.solver is not None:
            page = page.as_ode(self.solver)
        page = page.with_weights(self.weights).with_free(self.free)
        object.__setattr__(page, "_name", self.name)  # of what was fitted, not of the file it came in
        return page


@lru_cache(maxsize=8)
def _page(text: str, digest: str) -> Model:
    if hashlib.sha256(text.encode()).hexdigest() != digest:
        raise ModelError("the page was changed on its way to a worker; start again")
    with tempfile.TemporaryDirectory(prefix="nlmegen-page-") as folder:
        path = Path(folder) / "page.py"
        path.write_bytes(text.encode())
        return load_model(path)


def pack(model: Model, *rest: object) -> bytes:
    """A model and whatever else pickles (populations, methods), as bytes."""
    return pickle.dumps((Parcel.of(model), *rest))


@lru_cache(maxsize=4)
def unpack(parcel: bytes) -> tuple[Model, tuple[object, ...]]:
    """What `pack` packed; kept, for the next task is likely to need the same."""
    first, *rest = pickle.loads(parcel)
    return first.open(), tuple(rest)


def covers(population: Population) -> str:
    """What tells one table, and the way it was read, from another."""
    reading = (population.sha256, population.interpolation, *sorted(population.covariates))
    return hashlib.sha256("\n".join(reading).encode()).hexdigest()
