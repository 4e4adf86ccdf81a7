"""A `Fit` back from its folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import safetensors
from torch import Tensor

from nlmegen.data.nonmem import read_table
from nlmegen.data.population import Population, build
from nlmegen.errors import DataError, ModelError, NlmegenError
from nlmegen.fit import Fit
from nlmegen.inference.encoder import Encoder
from nlmegen.inference.estimate import Estimate
from nlmegen.inference.methods import with_settings
from nlmegen.model.catalogue import list_models, load_model
from nlmegen.model.page import Model
from nlmegen.results.facts import SCHEMA
from nlmegen.results.save import ENCODER, ESTIMATE_TENSORS
from nlmegen.structure.solver import Solver


def load_fit(directory: str | Path, model: Model | type[Model] | Literal["page"]) -> Fit:
    """Read a fit back from its folder.

    Given a model, only tensors, JSON and csv are read and nothing from the folder is executed. `model="page"` RUNS the
    folder's model.py as Python code, once its hash agrees with fit.json. The hash guards against an edited page, not
    against a malicious folder: do this only with folders that you trust. A page whose text is that of the
    catalogue's page of the same name is taken from the catalogue.

    Args:
        directory: A folder that `save_fit` wrote.
        model: The page the fit was made with (its values do not matter), or "page".

    Raises:
        DataError: The folder is not one of a fit, or of another schema, or its data were changed.
        ModelError: The model's parameters are not those of the fit, or model.py is not the page that was
            fitted.

    Example:
        >>> fit = load_fit("nlmegen-out/mine", model=Warfarin())              # doctest: +SKIP
    """
    folder = Path(directory)
    content = _read_json(folder)
    page = _page(folder, content) if model == "page" else model() if isinstance(model, type) else model
    if not isinstance(page, Model):
        raise ModelError(
            f'load_fit needs the page of the fit (a model or its class), or model="page" to run the folder\'s model.py;'
            f" got {model!r}. For a page of the catalogue: model=nl.load_model(name)"
        )
    weights = folder / "weights.safetensors"
    try:
        with safetensors.safe_open(weights, framework="pt") as file:
            inner = json.loads(file.metadata()["nlmegen"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 not a mapping
    except (OSError, safetensors.SafetensorError, TypeError, KeyError, ValueError) as error:
        raise DataError(f"{weights} cannot be read ({error}); fit again") from None
    try:
        return _assemble(folder, page, content, inner, tensors)
    except (KeyError, TypeError, RuntimeError) as error:
        if isinstance(error, NlmegenError):
            raise
        raise DataError(f"{folder} is damaged ({type(error).__name__}: {error}); fit again") from None


def _assemble(
    folder: Path, page: Model, content: dict[str, Any], inner: dict[str, Any], tensors: dict[str, Tensor]
) -> Fit:
    """The `Fit` of what was read."""
    signature = page.layout.signature
    if signature != inner["parameters"]:
        differs = [w for w in inner["parameters"] if w not in signature] or inner["parameters"]
        raise ModelError(
            f"{folder} holds a fit of another page: it has {'; '.join(differs)}, the model given has"
            f" {'; '.join(w for w in signature if w not in inner['parameters']) or 'them in another order'}."
            " Give the page that was fitted"
        )
    population = _population(folder / "data.csv", inner["population"], content["data"])
    encoder = None
    if inner["encoder"] is not None:
        encoder = Encoder.from_config(inner["encoder"])
        states = {
            key.removeprefix(ENCODER): value for key, value in tensors.items() if key.startswith(ENCODER)
        }
        encoder.load_state_dict(states)
    own: dict[str, Any] = {name: tensors.get(name) for name in ESTIMATE_TENSORS}
    estimate = Estimate(**own, encoder=encoder, **inner["estimate"])
    settings = with_settings(inner["settings"])
    if inner.get("solver") is not None:
        page = page.as_ode(Solver(**inner["solver"]))
    if estimate.weights is not None:
        page = page.with_weights(estimate.weights)
    return Fit(page.with_free(tensors["model"]), population, settings, estimate, content["seconds"])


def _population(path: Path, reading: dict[str, Any], expected: dict[str, Any]) -> Population:
    """The fitted data, read as they were read for the fit."""
    units = (reading["time_unit"], reading["amount_unit"], reading["dv_unit"])
    population = build(
        read_table(path), reading["interpolation"], units, covariates=reading["covariates"], warn=False
    )
    if population.sha256 != expected["sha256"] or population.n_subjects != expected["n_subjects"]:
        raise DataError(f"{path} is not the table that was fitted; fit again, or restore the file")
    return population


def _read_json(folder: Path) -> dict[str, Any]:
    path = folder / "fit.json"
    if not path.is_file():
        raise DataError(
            f"{folder} is not the folder of a fit: it holds no fit.json. Make one with `nlmegen fit`"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); fit again") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise DataError(
            f"{path} has schema {content.get('schema') if isinstance(content, dict) else None!r},"
            f" this version reads {SCHEMA}; install the nlmegen that wrote it, or fit again"
        )
    return content


def _page(folder: Path, facts: dict[str, Any]) -> Model:
    """The folder's page, or the catalogue's when it has the same text."""
    path = folder / "model.py"
    wanted = facts.get("page_sha256")
    remedy = "load it with load_fit(DIR, model=YourPage())"
    if wanted is None or not path.is_file():
        raise ModelError(f"{folder} holds no page (the fitted class had no source file); {remedy}")
    if hashlib.sha256(path.read_bytes()).hexdigest() != wanted:
        raise ModelError(
            f"{path} is not run: it is not the page that was fitted (its hash differs from fit.json); {remedy}"
        )
    for entry in list_models():
        if entry.name == facts["model"] and hashlib.sha256(entry.path.read_bytes()).hexdigest() == wanted:
            return load_model(entry.name)
    page = load_model(path)
    object.__setattr__(page, "_name", facts["model"])  # the name of what was fitted, not of the file model.py
    return page
