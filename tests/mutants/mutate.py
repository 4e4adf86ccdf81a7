"""Break one function of the package for the length of a test.

A function, method or property is rebuilt from its own source text with one snippet replaced, in the namespace of its
module, and put in the place of the original wherever that is known by name. The snippet must occur exactly once: when
code is rewritten, its mutants have to be rewritten with it.
"""

from __future__ import annotations
import __future__

import importlib
import inspect
import pkgutil
import re
import sys
import textwrap
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytest

import nlmegen

# a module first imported under a mutant would keep it
for found in pkgutil.walk_packages(nlmegen.__path__, "nlmegen."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)

PLACES = ("nlmegen", "ladder", "problems", "histories", "curves", "inference", "reference")
"""Modules in which the original's name may have been imported."""


@dataclass(frozen=True)
class Mutant:
    """One deliberate error.

    Attributes:
        name: what is wrong, in words.
        target: "module:function" or "module:Class.member", the module without "nlmegen.".
        old, new: the snippet and what replaces it.
        checks: names of the ladder's checks that must fail.
    """

    name: str
    target: str
    old: str
    new: str
    checks: tuple[str, ...]


def plain(member: Any) -> Any:
    """The function inside a property, cached property, class or static method."""
    for kind, attribute in (
        (property, "fget"),
        (cached_property, "func"),
        ((classmethod, staticmethod), "__func__"),
    ):
        if isinstance(member, kind):  # type: ignore[arg-type]
            return getattr(member, attribute)
    return member


def locate(target: str) -> tuple[Any, Any, str, Any]:
    """Module, owner (module or class), name and member of a target."""
    module_name, path = target.split(":")
    module = importlib.import_module(f"nlmegen.{module_name}")
    *outer, name = path.split(".")
    owner = module
    for part in outer:
        owner = getattr(owner, part)
    return module, owner, name, inspect.getattr_static(owner, name)


def pattern(snippet: str) -> re.Pattern[str]:
    """The snippet's tokens in their order, however a formatter has laid them out."""
    tokens = re.findall(r"\w+|[^\w\s]", snippet)
    words = [
        rf"\b{token}\b" if token[0].isalnum() or token[0] == "_" else re.escape(token) for token in tokens
    ]
    return re.compile(r"\s*".join(words))


def rebuilt(target: str, old: str, new: str) -> Any:
    """The member of a target, made again from its source with `old` replaced by `new`."""
    module, _, name, member = locate(target)
    source = textwrap.dedent(inspect.getsource(plain(member)))
    changed, count = pattern(old).subn(lambda found: new, source)
    assert count == 1, (
        f"{target} holds the snippet {old!r} {count} times, expected once: bring the mutant up to date"
    )
    code = compile(
        changed,
        f"<mutant of {target}>",
        "exec",
        __future__.annotations.compiler_flag,
        dont_inherit=True,
    )
    made: dict[str, Any] = {}
    exec(code, module.__dict__, made)
    return made[name]


def put(patch: pytest.MonkeyPatch, target: str, member: Any) -> None:
    """Put a rebuilt member in the place of the original."""
    module, owner, name, original = locate(target)
    if isinstance(member, cached_property):
        member.__set_name__(owner, name)
    patch.setattr(owner, name, member)
    if owner is module:
        for place, other in list(sys.modules.items()):
            if place.split(".")[0] in PLACES and other.__dict__.get(name) is original:
                patch.setattr(other, name, member)
