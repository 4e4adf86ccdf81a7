"""Write the folder of a fit: beside its place first, moved there when it is whole, so nothing is half replaced."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import safetensors.torch

from nlmegen.check.residuals import residuals
from nlmegen.check.vpc import VPC, vpc
from nlmegen.data.nonmem import write_nonmem
from nlmegen.errors import DataError, FitError
from nlmegen.inference.methods import settings_of
from nlmegen.model.pagetext import page_text
from nlmegen.report.figures import Shown, draw
from nlmegen.report.html import report
from nlmegen.results.facts import facts, individuals

if TYPE_CHECKING:
    from nlmegen.fit import Fit

ESTIMATE_TENSORS = (
    "free",
    "ebe",
    "status",
    "eta_mean",
    "eta_cov",
    "covariance",
    "hessian_r",
    "score_s",
    "weights",
)
ENCODER = "encoder."
VPC_DRAWS = 300
"""Replicates behind the figure of the folder; `nlmegen vpc` takes more."""


def save_fit(fit: Fit, directory: str | Path, force: bool = False) -> Path:
    """Write the folder of a fit.

    A table, figure or report that cannot be made of an estimate (one that failed, say) is left out, and a note in
    fit.json says so; what was estimated is always kept.

    Args:
        fit: What `nlmegen.fit` returned.
        directory: The folder to make; its parents are made too.
        force: Replace a folder that holds an earlier fit, as a whole, once the new one is complete.

    Returns:
        The folder.

    Raises:
        DataError: The folder exists (see `check_target`).

    Example:
        >>> save_fit(fit, "nlmegen-out/mine").name                            # doctest: +SKIP
        'mine'
    """
    target = Path(directory)
    check_target(target, force)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        _write(fit, work)
        _replace(target, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def check_target(directory: str | Path, force: bool) -> None:
    """Raise a DataError when `save_fit` would refuse to write this folder.

    An existing path needs `force`; what is neither the folder of a fit nor empty is never replaced; a path that
    cannot be written is refused before an estimation, not after it.
    """
    target = Path(directory)
    there = next(path for path in target.absolute().parents if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise DataError(f"{target} cannot be made: {there} is not a folder that you may write to")
    if not target.exists():
        return
    if not force:
        raise DataError(f"{target} exists; choose another folder, or replace it with --force (force=True)")
    if not target.is_dir() or (any(target.iterdir()) and not (target / "fit.json").is_file()):
        raise DataError(f"{target} is not the folder of a fit and is not replaced; choose another folder")


def _write(fit: Fit, folder: Path) -> None:
    """Write everything; fit.json, which carries the notes on the rest, comes last."""
    # mkdtemp and safetensors keep what they make private; the result is to be as readable as any other
    umask = os.umask(0)
    os.umask(umask)
    folder.chmod(0o777 & ~umask)
    _write_weights(fit, folder / "weights.safetensors")
    (folder / "weights.safetensors").chmod(0o666 & ~umask)
    write_nonmem(fit.population, folder / "data.csv")
    (folder / "model.py").write_bytes(page_text(fit.model).encode())
    fit.parameters.to_csv(folder / "parameters.csv", index_label="name")
    for name, matrix in (("covariance", fit.covariance), ("correlation", fit.correlation)):
        if matrix is not None:
            matrix.to_csv(folder / f"{name}.csv")
    content = facts(fit)
    derived = _Derived(fit, folder)
    for what, write in (
        ("individuals.csv", derived.individuals),
        ("predictions.csv", derived.predictions),
        ("figures", derived.figures),
        ("report.html", derived.report),
    ):
        try:
            write()
        except Exception as error:  # noqa: BLE001 a figure must not cost an estimation of hours
            derived.notes.append(f"{what} could not be written: {type(error).__name__}: {error}")
    content["notes"] += derived.notes
    (folder / "fit.json").write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


class _Derived:
    """The files that are computed from a fit, and what two of them share."""

    def __init__(self, fit: Fit, folder: Path) -> None:
        self.fit, self.folder = fit, folder
        self.notes: list[str] = []
        self.table: pd.DataFrame | None = None
        self.check: VPC | None = None
        self.drawn: dict[str, Shown] | None = None

    def individuals(self) -> None:
        individuals(self.fit).to_csv(self.folder / "individuals.csv", index=False)

    def predictions(self) -> None:
        try:
            self.table = residuals(self.fit)
        except FitError as error:  # one column must not cost the others
            self.table = residuals(self.fit, draws=0)
            self.notes.append(f"npde was left out of predictions.csv: {error}")
        self.notes += self.table.attrs.get("notes", ())
        self.table.to_csv(self.folder / "predictions.csv", index=False)

    def figures(self) -> None:
        self.check = vpc(self.fit, draws=VPC_DRAWS)
        table = residuals(self.fit, draws=0) if self.table is None else self.table
        self.drawn = draw(self.fit, table, self.check)
        (self.folder / "figures").mkdir()
        for name, shown in self.drawn.items():
            if shown.png:
                (self.folder / "figures" / f"{name}.png").write_bytes(shown.png)

    def report(self) -> None:
        report(
            self.fit, self.folder / "report.html", predictions=self.table, vpc=self.check, drawn=self.drawn
        )


def _write_weights(fit: Fit, path: Path) -> None:
    """Write every tensor, and as metadata (JSON) what is needed to make a `Fit` of them again."""
    tensors = {"model": fit.model.free}
    scalars: dict[str, Any] = {}
    for field in dataclasses.fields(fit.estimate):
        value = getattr(fit.estimate, field.name)
        if field.name in ESTIMATE_TENSORS:
            if value is not None:
                tensors[field.name] = value
        elif field.name != "encoder":
            scalars[field.name] = value
    if fit.encoder is not None:
        tensors |= {f"{ENCODER}{key}": value for key, value in fit.encoder.state_dict().items()}
    units = ("interpolation", "time_unit", "amount_unit", "dv_unit")
    inner = {
        "parameters": fit.model.layout.signature,
        "settings": settings_of(fit.settings),
        "estimate": scalars,
        "solver": dataclasses.asdict(fit.model.solver) if fit.model.stepped else None,
        "encoder": None if fit.encoder is None else fit.encoder.config(),
        "population": {
            "covariates": list(fit.population.covariates),
            **{name: getattr(fit.population, name) for name in units},
        },
    }
    # clones: safetensors refuses tensors that share memory
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    safetensors.torch.save_file(whole, path, metadata={"nlmegen": json.dumps(inner)})


def _replace(target: Path, work: Path) -> None:
    """Move `work` to `target`; a folder in the way is kept aside until the new one stands."""
    if not target.exists():
        work.rename(target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    target.rename(aside / "old")
    try:
        work.rename(target)
    except OSError:
        (aside / "old").rename(target)
        aside.rmdir()
        raise
    shutil.rmtree(aside)
