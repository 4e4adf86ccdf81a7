"""Methods by name, and `--set key=value`: options typed by the fields of the method's dataclass."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from nlmegen.errors import FitError, NlmegenError, nearest
from nlmegen.inference.methods import METHODS, chain_names, chained, method_class


class UsageError(NlmegenError):
    """Words on the command line that cannot be followed."""


def check_method(name: str) -> None:
    """Raise a UsageError unless `name` is a method, or several different ones joined by +. Imports nothing."""
    names = chain_names(name)
    for one in names:
        if not one:
            raise UsageError(f"--method {name}: expected names of methods joined by +, such as saem+imp")
        if one not in METHODS:
            raise UsageError(f"there is no method '{one}'.{nearest(one, METHODS)}")
        if names.count(one) > 1:
            raise UsageError(f"--method {name}: a chain takes each method once")


def accepts(name: str, option: str) -> bool:
    """Whether a method, or one of a chain, has an option of that name."""
    return any(option in _options(method_class(one)) for one in chain_names(name))


def build(name: str, settings: Sequence[str], flags: Mapping[str, object]) -> Any:
    """A method object from its options.

    Args:
        name: A key of `METHODS`, or several joined by +: each begins where the one before it ended.
        settings: `key=value` texts, as given to `--set`; `saem.key=value` for a method of a chain.
        flags: Options with a word of their own (`seed`, `device`, `evaluate`), those that were asked for.

    Raises:
        UsageError: An unknown option, a value of the wrong type, an option given twice, or a flag that this
            method has no use for.

    Example:
        >>> build("focei", ["covariance=R"], {}).covariance
        'R'
        >>> build("focei+elbo", ["elbo.steps=50"], {"seed": 1}).name
        'focei+elbo'
    """
    names = chain_names(name)
    if len(names) == 1:
        return _one(name, settings, flags)
    own: dict[str, list[str]] = {one: [] for one in names}
    for text in settings:
        one, dot, rest = text.partition(".")
        if not dot or one.strip() not in names:
            raise UsageError(
                f"--set {text}: in a chain say whose option it is, as {names[0]}.key=value; methods here:"
                f" {', '.join(names)}"
            )
        own[one.strip()].append(rest)
    for flag in flags:
        if not accepts(name, flag):
            raise _meaningless(flag, name)
    methods = [
        _one(one, own[one], {flag: value for flag, value in flags.items() if accepts(one, flag)})
        for one in names
    ]
    return chained(methods)


def _one(name: str, settings: Sequence[str], flags: Mapping[str, object]) -> Any:
    """A single method from its options."""
    kind = method_class(name)
    hints = _options(kind)
    given: dict[str, object] = {}
    for flag, value in flags.items():
        if flag not in hints:
            raise _meaningless(flag, name)
        given[flag] = value
    for text in settings:
        key, equals, value_text = text.partition("=")
        key = key.strip()
        if not equals:
            known = f", such as {key}={getattr(kind(), key)}." if key in hints else f".{nearest(key, hints)}"
            raise UsageError(f"--set {text}: expected key=value{known}")
        if key not in hints:
            raise UsageError(f"--set {text}: method {name} has no option '{key}'.{nearest(key, hints)}")
        if key in given:
            raise UsageError(f"--set {text}: '{key}' is given twice")
        try:
            given[key] = _typed(value_text.strip(), hints[key])
        except ValueError:
            raise UsageError(
                f"--set {text}: expected {_words(hints[key])} for '{key}', got '{value_text}'"
            ) from None
    try:
        return kind(**given)
    except FitError as error:  # a value outside its choices is bad input, nothing was estimated
        raise UsageError(str(error)) from None


def _meaningless(flag: str, name: str) -> UsageError:
    """The error of a flag that a method, or every one of a chain, has no use for."""
    able = [other for other in METHODS if accepts(other, flag)]
    remedy = f"methods that take it: {', '.join(able)}" if able else "no method takes it yet"
    return UsageError(f"--{flag} means nothing to method {name}; {remedy}")


def describe(name: str) -> str:
    """The options of a method, or of each of a chain, with their types and defaults, one a line."""
    return "\n".join(_describe_one(one) for one in chain_names(name))


def _describe_one(name: str) -> str:
    kind = method_class(name)
    hints = _options(kind)
    lines = [f"options of method {name} (--set key=value):"]
    for field in dataclasses.fields(kind):
        if field.name in hints:
            lines.append(f"  {field.name} = {field.default!r}  ({_words(hints[field.name])})")
    return "\n".join(lines)


def _options(kind: type[Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}


def _typed(text: str, hint: Any) -> Any:
    """The value that `text` means for a field of type `hint`; ValueError when it means none."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for choice in sorted(
            inner, key=lambda choice: choice is str
        ):  # any text is text: ask the others first
            try:
                return _typed(text, choice)
            except ValueError:
                continue
        raise ValueError(text)
    if origin is typing.Literal:
        for choice in inner:
            if text == str(choice):
                return choice
        raise ValueError(text)
    if origin is tuple:
        parts = [part.strip() for part in text.strip("()[]").split(",") if part.strip()]
        kinds = [inner[0]] * len(parts) if inner[-1] is Ellipsis else list(inner)
        if len(kinds) != len(parts):
            raise ValueError(text)
        return tuple(_typed(part, kind) for part, kind in zip(parts, kinds, strict=True))
    if hint is type(None):
        if text.lower() != "none":
            raise ValueError(text)
        return None
    if hint is bool:
        truth = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if text.lower() not in truth:
            raise ValueError(text)
        return truth[text.lower()]
    if hint in (int, float, str):
        return hint(text)
    raise ValueError(text)


def _words(hint: Any) -> str:
    """A type in words, for messages."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_words(choice) for choice in inner)
    if origin is typing.Literal:
        return " or ".join(f"'{choice}'" for choice in inner)
    if origin is tuple:
        return f"{_words(inner[0])}, or several joined by commas"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "none"}
    return words.get(hint, str(hint))
