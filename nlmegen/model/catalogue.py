"""Pages by name or by file. A page is Python: loading one runs it, so load only pages that you trust."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ModelError, nearest

if TYPE_CHECKING:
    from .page import Model


@dataclass(frozen=True)
class Page:
    """An entry of the catalogue of models."""

    name: str
    title: str
    path: Path


def _folder() -> Path:
    package = Path(__file__).resolve().parent.parent
    installed = package / "_models"
    return installed if installed.is_dir() else package.parent / "models"


def list_models() -> list[Page]:
    """The pages of the catalogue, by name; reads their docstrings and runs none of them."""
    pages = []
    for path in sorted(_folder().glob("[a-z]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        doc = next((d for d in (ast.get_docstring(c) for c in classes) if d), path.stem)
        pages.append(Page(path.stem, doc.splitlines()[0], path))
    return pages


def load_model(name: str | Path) -> Model:
    """A model of the catalogue by name, or the one page in a `.py` file.

    The file is run as Python code: load only pages that you trust.

    Raises:
        ModelError: an unknown name, a file that does not run, or one that does not hold exactly one page; the message
            names the line.

    Example:
        >>> load_model("theophylline").eta_names
        ('ka', 'cl', 'v')
    """
    path = Path(name)
    if path.suffix != ".py":
        known = {page.name: page.path for page in list_models()}
        if str(name) not in known:
            raise ModelError(
                f"no model called {str(name)!r} in the catalogue (a file must end in .py).{nearest(str(name), known)}"
            )
        path = known[str(name)]
    if not path.is_file():
        raise ModelError(
            f"there is no page {path}: expected a .py file that holds one class derived from nl.Model"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(
            f"the page is not UTF-8 text ({error.reason}); save it as UTF-8", page=path.name
        ) from None
    digest = hashlib.sha256(f"{path.resolve()}\n{text}".encode()).hexdigest()[:16]
    module_name = f"nlmegen_page_{path.stem}_{digest}"
    if module_name not in sys.modules:
        _run(path, module_name)
    return _only_page(sys.modules[module_name], path)


def _run(path: Path, module_name: str) -> None:
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # inspect and the class's own checks look the page's file up here
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        del sys.modules[module_name]
        raise ModelError(
            f"the page is not valid Python: {error.msg}", page=path.name, line=error.lineno
        ) from None
    except ModelError as error:
        del sys.modules[module_name]
        if error.page is not None:
            raise
        raise ModelError(str(error), page=path.name, line=_line_in(error, path)) from None
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise ModelError(
            f"the page fails when it is loaded: {type(error).__name__}: {error}",
            page=path.name,
            line=_line_in(error, path),
        ) from error


def _line_in(error: BaseException, path: Path) -> int | None:
    """The last line of the page that the error passed through."""
    here = path.resolve()  # the interpreter names files absolutely, a user need not
    lines = [
        f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).resolve() == here
    ]
    return lines[-1] if lines else None


def _only_page(module: object, path: Path) -> Model:
    from .page import Model  # torch is loaded with the first page, not for a list of names

    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Model)
        and value is not Model
        and value.__module__ == getattr(module, "__name__", None)
    ]
    if len(found) != 1:
        raise ModelError(
            f"expected exactly one class derived from nl.Model, found {len(found)}"
            f"{': ' + ', '.join(c.__name__ for c in found) if found else ''}; keep one page in a file",
            page=path.name,
        )
    model: Model = found[0]()
    object.__setattr__(model, "_name", path.stem)
    return model
