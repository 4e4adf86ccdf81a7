"""The checks made when a page's class is created: what is declared, what is missing, what is misspelt."""

from __future__ import annotations

import ast
import difflib
import inspect
import sys
from typing import Any

from torch import nn

from ..errors import ModelError, nearest
from ..structure.closed import Structure
from ..structure.solver import Solver
from .correlation import Correlation
from .endpoints import Endpoint
from .neural import Neural
from .parameters import Omega, Theta

REQUIRED = ("individual", "observe")
WITH_KAPPA = ("theta", "eta", "cov", "kappa")
"""Arguments of `individual` on a page with random effects between occasions."""
STEPPED = ("dynamics", "initial", "dosing")
SIGNATURES = {
    "individual": ("theta", "eta", "cov"),
    "observe": ("t", "a", "p"),
    "dynamics": ("t", "a", "p"),
    "initial": ("p",),
    "dosing": ("p",),
}


def page_file(cls: type) -> str | None:
    """The file that the page's class stands in, if it stands in one."""
    module = sys.modules.get(cls.__module__)
    return getattr(module, "__file__", None)


def line_of(cls: type, name: str) -> int | None:
    """The line of the page on which `name` is assigned or defined in the class body."""
    path = page_file(cls)
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as handle:
            tree = ast.parse(handle.read())
    except (OSError, SyntaxError):
        return None
    for node in ast.walk(tree):
        if not (isinstance(node, ast.ClassDef) and node.name == cls.__name__):
            continue
        if name == cls.__name__:
            return node.lineno
        for item in node.body:
            if isinstance(item, (ast.Assign, ast.AnnAssign)):
                targets = item.targets if isinstance(item, ast.Assign) else [item.target]
                if any(isinstance(t, ast.Name) and t.id == name for t in targets):
                    return item.lineno
            if isinstance(item, ast.FunctionDef) and item.name == name:
                return item.lineno
    return None


def page_error(cls: type, name: str, message: str) -> ModelError:
    """A ModelError that names the page's file and the line of `name`."""
    path = page_file(cls)
    return ModelError(message, page=path.rsplit("/", 1)[-1] if path else None, line=line_of(cls, name))


def declared(cls: type, kind: type) -> dict[str, Any]:
    """Class attributes of one kind by name, in the order of declaration, a subclass overriding its parents."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            if name in found and not isinstance(value, kind):
                del found[name]
            elif isinstance(value, kind):
                found[name] = value
    return found


def check_page(cls: type, base: type) -> None:
    """Every check that needs no data. `base` is the class all pages derive from.

    Raises:
        ModelError: naming the page's line, what is wrong, and the remedy.
    """
    own = {name: value for name, value in vars(cls).items() if not name.startswith("__")}
    for name, value in own.items():
        if isinstance(value, nn.Module):
            raise page_error(
                cls,
                name,
                f"{name} is a raw torch module in the class body: it would be shared by all models and silently "
                f"untrained; declare {name} = nl.Neural(inputs=..., hidden=(8,))",
            )
        if isinstance(value, (Theta, Omega, Endpoint, Correlation, Structure, Solver, Neural)):
            if (
                name not in ("structure", "solver")
                and hasattr(base, name)
                or name in ("training", "theta", "omega", "sigma", "free")
            ):
                raise page_error(
                    cls,
                    name,
                    f"the name {name!r} is taken by torch or nlmegen; choose another, for example {name}_",
                )
            if isinstance(value, Structure) and name != "structure":
                raise page_error(
                    cls, name, f"a closed form must be called structure, not {name}: write structure = ..."
                )
            if isinstance(value, Solver) != (name == "solver"):
                raise page_error(cls, name, "the settings of the solver are written solver = nl.Solver(...)")
        elif name == "solver":
            raise page_error(cls, name, f"solver must be nl.Solver(...), got {type(value).__name__}")
        elif name == "structure":
            raise page_error(
                cls,
                name,
                'structure must be a closed form, for example nl.OneCompartment(absorption="first-order")',
            )
    _check_methods(cls, own, base)
    _check_parts(cls)


def _check_methods(cls: type, own: dict[str, Any], base: type) -> None:
    legal = tuple(SIGNATURES)
    written = {
        name: value for name, value in own.items() if inspect.isfunction(value) and not name.startswith("_")
    }
    for name in written:
        if name in SIGNATURES:
            asked = tuple(inspect.signature(written[name]).parameters)[1:]
            if asked != SIGNATURES[name] and (name, asked) != ("individual", WITH_KAPPA):
                raise page_error(
                    cls,
                    name,
                    f"{name} must be written def {name}(self, {', '.join(SIGNATURES[name])}), got ({', '.join(asked)})",
                )
        elif hasattr(base, name):
            raise page_error(
                cls, name, f"the method name {name!r} is taken by torch or nlmegen; choose another"
            )
        elif difflib.get_close_matches(name, legal, n=1, cutoff=0.75):
            raise page_error(cls, name, f"{name} is not a method that a page may have.{nearest(name, legal)}")
    for name in REQUIRED:
        method = getattr(cls, name, None)
        if not inspect.isfunction(method) or method is getattr(base, name):
            raise page_error(
                cls,
                cls.__name__,
                f"the page {cls.__name__} has no method {name}({', '.join(SIGNATURES[name])}); write it",
            )


def is_stepped(cls: type) -> bool:
    """Whether a page is given by `dynamics` (of it or the nearest parent that gives a structure or dynamics)."""
    for parent in cls.__mro__:
        if "dynamics" in vars(parent):
            return True
        if "structure" in vars(parent):
            return False
    return False


def _check_parts(cls: type) -> None:
    own = vars(cls)
    if "dynamics" in own and "structure" in own:
        raise page_error(
            cls,
            "dynamics",
            "a page has either a closed form (structure = ...) or dynamics, not both; remove one",
        )
    if not is_stepped(cls):
        if not isinstance(getattr(cls, "structure", None), Structure):
            raise page_error(
                cls,
                cls.__name__,
                f"the page {cls.__name__} has no structure; write for example "
                'structure = nl.OneCompartment(absorption="first-order"), or a method dynamics(self, t, a, p)',
            )
        for name in ("initial", "solver"):
            if name in own:
                raise page_error(
                    cls,
                    name,
                    f"{name} belongs to pages with dynamics, and this one has a closed form; write its equations as "
                    "dynamics, or remove it",
                )
    if not declared(cls, Endpoint):
        raise page_error(
            cls,
            cls.__name__,
            f"the page {cls.__name__} declares no endpoint; write for example cp = nl.Proportional(0.1)",
        )
    seen: set[tuple[str, str]] = set()
    for name, block in declared(cls, Omega).items():
        for effect in block.names:
            if (block.level, effect) in seen:
                raise page_error(
                    cls, name, f"the random effect {effect!r} is declared twice; give each its own name"
                )
            seen.add((block.level, effect))
    _check_kappa(cls)


def _check_kappa(cls: type) -> None:
    """Effects between occasions are declared where `individual` asks for kappa, and nowhere else."""
    asks = "kappa" in inspect.signature(cls.individual).parameters  # type: ignore[attr-defined]
    blocks = [name for name, block in declared(cls, Omega).items() if block.level == "occ"]
    if blocks and not asks:
        raise page_error(
            cls,
            "individual" if "individual" in vars(cls) else blocks[0],
            f"{blocks[0]} declares random effects between occasions, which individual does not take; write "
            "def individual(self, theta, eta, cov, kappa)",
        )
    if asks and not blocks:
        raise page_error(
            cls,
            "individual" if "individual" in vars(cls) else cls.__name__,
            "individual takes kappa, and the page declares no random effect between occasions; write for example "
            'iov = nl.Omega(ka=0.05, level="occ"), or remove the argument',
        )
