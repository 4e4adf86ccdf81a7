"""Reading a page's equations: the namespaces that its methods see, and what is said when they go wrong."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

from nlmegen.errors import ModelError, NlmegenError, nearest
from nlmegen.structure.trace import Graph, Symbol, Untraceable


class Reader:
    """Leaves by name, as a page reads them: `a.central`, `p.v`, `p["v"]`.

    Args:
        kind: "a" (amounts) or "p" (individual parameters).
        values: the leaves so far.
        make: makes the leaf of a new name from its place; None when every name is known.
    """

    def __init__(
        self, kind: str, values: MutableMapping[str, Symbol], make: Callable[[int], Symbol] | None
    ) -> None:
        self._kind, self._values, self._make = kind, values, make

    def __getattr__(self, name: str) -> Symbol:
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in self._values:
            if self._make is None:
                raise ModelError(
                    f"{self._kind}.{name}: dynamics returns no rate of such a compartment.{nearest(name, self._values)}"
                )
            self._values[name] = self._make(len(self._values))
        return self._values[name]

    def __getitem__(self, name: str) -> Symbol:
        if not isinstance(name, str):
            raise ModelError(
                f"{self._kind}[{name!r}]: a quantity is read by its name, for example {self._kind}.x"
            )
        return self.__getattr__(name)

    def __iter__(self) -> Iterator[str]:
        if self._make is not None:
            raise Untraceable(f"a loop over the names in {self._kind} has no compiled form")
        return iter(self._values)


def call(method: Callable[..., Any], name: str, *args: Any) -> Any:
    """What a method of a page returns; a dict, or a ModelError that names the page's line.

    Raises:
        ModelError: when the method fails or returns something else.
        Untraceable: when it is right but has no compiled form.
    """
    try:
        result = method(*args)
    except Untraceable:
        raise
    except ModelError as error:
        if error.line is not None:
            raise
        raise _placed(error, method, str(error)) from error
    except NlmegenError:
        raise
    except Exception as error:
        text = str(error).partition("\n")[0]
        if "Symbol" in text:  # what stands for the quantity is to blame, not the page
            raise Untraceable(f"{name} has a step without compiled form ({text})") from error
        raise _placed(error, method, f"{name} fails: {type(error).__name__}: {text}") from error
    if not isinstance(result, Mapping):
        raise fail(method, f"{name} must return a dict by compartment, got {type(result).__name__}")
    for key in result:
        if not isinstance(key, str):
            raise fail(method, f"{name} must name its compartments by strings, got the key {key!r}")
    return result


def entry(graph: Graph, method: Callable[..., Any], name: str, key: str, value: Any) -> Symbol:
    """One entry of what a method returned, as a symbol."""
    try:
        return graph.number(value)
    except ModelError:
        raise fail(
            method, f"{name}: the entry {key!r} must be a number or a tensor, got {type(value).__name__}"
        ) from None


def known(method: Callable[..., Any], given: Mapping[str, Any], names: Sequence[str]) -> None:
    """Check that `initial` names compartments alone."""
    for name in given:
        if name not in names:
            raise fail(
                method, f"initial returns {name!r}, of which dynamics returns no rate.{nearest(name, names)}"
            )


def fail(method: Callable[..., Any], message: str) -> ModelError:
    """A ModelError that names the file and the first line of a page's method."""
    code = getattr(method, "__code__", None)
    if code is None:
        return ModelError(message)
    return ModelError(message, page=_name(code.co_filename), line=code.co_firstlineno)


def _placed(error: Exception, method: Callable[..., Any], message: str) -> ModelError:
    """A ModelError that names the last line of the method's file that the error passed through."""
    path = getattr(getattr(method, "__code__", None), "co_filename", None)
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    return ModelError(message, page=_name(path), line=lines[-1]) if path and lines else ModelError(message)


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1]
