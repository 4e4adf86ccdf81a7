"""The page of a fit as a file that runs by itself."""

from __future__ import annotations

import ast
import builtins
import inspect
import sys
import textwrap
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .page import Model

_PLAIN = (bool, int, float, str, bytes, tuple, type(None))


def page_text(model: Model) -> str:
    """The text of DIR/model.py; "" when Python cannot find the page's source.

    A page that stands in a file is that file. A class written in a script or a notebook is preceded by the
    imports, constants and functions that it uses, taken from where it was written.
    """
    text = textwrap.dedent(model.source)
    if not text.strip():
        return ""
    body = ast.parse(text).body
    if len(body) != 1 or not isinstance(body[0], ast.ClassDef):
        return text
    module = sys.modules.get(type(model).__module__)
    known = {} if module is None else vars(module)
    imports: list[str] = []
    parts: list[str] = []
    _collect(body[0].name, text, known, {body[0].name}, imports, parts)
    return "\n".join(sorted(set(imports))) + "\n\n\n" + "\n\n".join(parts)


def _collect(
    name: str, text: str, known: dict[str, Any], seen: set[str], imports: list[str], parts: list[str]
) -> None:
    """Append what `text`, the definition of `name`, reads from `known`, then the text itself."""
    for used in _names_read(text):
        if used in seen or used not in known or hasattr(builtins, used):
            continue
        seen.add(used)
        value = known[used]
        line = _import_line(used, value, known.get("__name__"))
        if line is not None:
            imports.append(line)
        elif isinstance(value, _PLAIN):
            parts.append(f"{used} = {value!r}\n")
        else:
            try:
                source = textwrap.dedent(inspect.getsource(value))
            except (OSError, TypeError):
                continue  # the page will say which name it misses when it is loaded
            _collect(used, source, known, seen, imports, parts)
    parts.append(text if text.endswith("\n") else f"{text}\n")


def _names_read(text: str) -> list[str]:
    names = [node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)]
    return list(dict.fromkeys(names))


def _import_line(name: str, value: Any, here: str | None) -> str | None:
    """The import statement that gives `value`, None when it was not imported."""
    if isinstance(value, ModuleType):
        return f"import {value.__name__}" + ("" if value.__name__ == name else f" as {name}")
    home = getattr(value, "__module__", None)
    original = getattr(value, "__name__", None)
    for place in (home, "torch"):  # torch's own functions do not say where they live
        if original is None or place in (None, here, "__main__"):
            continue
        if getattr(sys.modules.get(str(place)), original, None) is value:
            return f"from {place} import {original}" + ("" if original == name else f" as {name}")
    return None
