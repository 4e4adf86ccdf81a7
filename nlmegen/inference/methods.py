"""The estimation methods by name. A method's file is imported when the method is first asked for."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

METHODS = {
    "elbo": ("nlmegen.inference.elbo", "ELBO"),
    "focei": ("nlmegen.inference.foce", "FOCEI"),
    "foce": ("nlmegen.inference.foce", "FOCE"),
    "fo": ("nlmegen.inference.foce", "FO"),
    "laplace": ("nlmegen.inference.agq", "Laplace"),
    "agq": ("nlmegen.inference.agq", "AGQ"),
    "saem": ("nlmegen.inference.saem", "SAEM"),
    "imp": ("nlmegen.inference.imp", "Importance"),
}
"""Name, as on the command line -> where its dataclass of settings stands."""


def method_class(name: str) -> type[Any]:
    """Return the dataclass of settings of the method called `name`, a key of `METHODS`.

    Example:
        >>> method_class("focei")().name
        'focei'
    """
    place, attribute = METHODS[name]
    kind: type[Any] = getattr(importlib.import_module(place), attribute)
    return kind


JOINT = "+"
"""Between the names of the methods of a chain."""


def chain_names(name: str) -> list[str]:
    """The names of the methods that `name` joins.

    Example:
        >>> chain_names("saem+imp")
        ['saem', 'imp']
    """
    return name.split(JOINT)


def chained(methods: Sequence[Any]) -> Any:
    """A list of methods as one: the method itself when there is only one, else a `Chain`."""
    from .chain import Chain

    return methods[0] if len(methods) == 1 else Chain(tuple(methods))


def stages(method: Any) -> tuple[Any, ...]:
    """The methods of a chain in their order; of any other method itself alone."""
    return getattr(method, "methods", (method,))


def settings_of(method: Any) -> dict[str, dict[str, Any]]:
    """The settings of a method, or of each of a chain, by the method's name.

    Example:
        >>> settings_of(method_class("focei")(covariance="R"))["focei"]["covariance"]
        'R'
    """
    return {
        stage.name: {f.name: getattr(stage, f.name) for f in dataclasses.fields(stage) if f.init}
        for stage in stages(method)
    }


def with_settings(settings: Mapping[str, Mapping[str, Any]]) -> Any:
    """The method that has these settings, as `settings_of` returns them; lists stand for tuples.

    Example:
        >>> with_settings({"focei": {"covariance": "R"}}).covariance
        'R'
    """
    return chained(
        [
            method_class(name)(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
            for name, values in settings.items()
        ]
    )
