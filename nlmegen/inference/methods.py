"""The estimation methods by name. A method's file is imported when the method is first asked for."""

from __future__ import annotations

import importlib
from typing import Any

METHODS = {"elbo": ("nlmegen.inference.elbo", "ELBO"), "focei": ("nlmegen.inference.foce", "FOCEI")}
"""Name, as on the command line -> where its dataclass of settings stands."""
PLANNED = ("foce", "fo", "laplace", "agq", "saem", "imp")
"""Names that are settled for methods to come."""


def method_class(name: str) -> type[Any]:
    """Return the dataclass of settings of the method called `name`, a key of `METHODS`.

    Example:
        >>> method_class("focei")().name
        'focei'
    """
    place, attribute = METHODS[name]
    kind: type[Any] = getattr(importlib.import_module(place), attribute)
    return kind
