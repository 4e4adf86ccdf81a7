"""Expressions of the drivers' little language as LLVM IR: numbers, arrays, comparisons, calls (see `translate.py`)."""

from __future__ import annotations

import ast
import math
import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

TYPES = {"int": "i64", "float": "double", "bool": "i1"}
ARITHMETIC = {
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Mult: "mul",
    ast.Div: "div",
    ast.FloorDiv: "div",
    ast.Mod: "rem",
}
# every comparison with a NaN is false, but "not equal", as in Python
COMPARISONS = {
    ast.Lt: ("slt", "olt"),
    ast.LtE: ("sle", "ole"),
    ast.Gt: ("sgt", "ogt"),
    ast.GtE: ("sge", "oge"),
    ast.Eq: ("eq", "oeq"),
    ast.NotEq: ("ne", "une"),
}
TAG = {"float": "!tbaa !3", "int": "!tbaa !4"}


@dataclass(frozen=True)
class Value:
    """A number: its kind ("int", "float" or "bool") and how LLVM calls it."""

    kind: str
    text: str


@dataclass(frozen=True)
class Array:
    """An array: kind of its numbers, pointer, lengths."""

    kind: str
    pointer: str
    shape: tuple[Value, ...]


@dataclass(frozen=True)
class Variable:
    """A local on the stack."""

    kind: str
    pointer: str


class Scope:
    """Names of one function."""

    def __init__(self, function: FunctionType, end: str) -> None:
        self.names: dict[str, Any] = {}
        self.globals: Mapping[str, Any] = function.__globals__
        self.end = end
        self.loops: list[tuple[str, str]] = []


class Expressions(ABC):
    """Lines of IR; `_scope` is the function that is being written out."""

    def __init__(self) -> None:
        self.locals: list[str] = []
        self.lines: list[str] = []
        self._count = 0
        self._scope: Scope

    @abstractmethod
    def function(self, function: Any, arguments: Sequence[Any]) -> None:
        """Write a function out, its arguments bound."""

    # -- lines ----------------------------------------------------------------------------------------------------
    def _name(self, prefix: str) -> str:
        self._count += 1
        return f"{prefix}{self._count}"

    def _new(self, instruction: str) -> str:
        name = self._name("%v")
        self.lines.append(f"  {name} = {instruction}")
        return name

    def _label(self, label: str) -> None:
        self.lines += [f"  br label %{label}", f"{label}:"]

    def _jump(self, label: str) -> None:
        # what follows a jump is never reached, but a block must have a name
        self.lines += [f"  br label %{label}", f"{self._name('dead')}:"]

    def _branch(self, condition: Value, yes: str, no: str) -> None:
        self.lines += [f"  br i1 {condition.text}, label %{yes}, label %{no}", f"{yes}:"]

    def _variable(self, kind: str) -> Variable:
        pointer = self._name("%x")
        self.locals.append(f"  {pointer} = alloca {TYPES[kind]}")
        return Variable(kind, pointer)

    def _read(self, place: Variable) -> Value:
        return Value(place.kind, self._new(f"load {TYPES[place.kind]}, ptr {place.pointer}"))

    def _write(self, place: Variable, value: Value) -> None:
        value = self._as(value, place.kind)
        self.lines.append(f"  store {TYPES[place.kind]} {value.text}, ptr {place.pointer}")

    # -- expressions ----------------------------------------------------------------------------------------------
    def _expression(self, x: ast.expr) -> Any:
        match x:
            case ast.Constant(value=bool() | int() | float()):
                return _constant(x.value)
            case ast.Name(id=name):
                return self._named(name, x)
            case ast.Attribute(value=ast.Name(id=module), attr=name) if isinstance(
                self._scope.globals.get(module), ModuleType
            ):
                return _constant(getattr(self._scope.globals[module], name))
            case ast.Tuple(elts=parts):
                return tuple(self._expression(part) for part in parts)
            case ast.Subscript(
                value=ast.Attribute(value=ast.Name(id=name), attr="shape"), slice=ast.Constant()
            ):
                return self._scope.names[name].shape[x.slice.value]  # type: ignore[attr-defined]
            case ast.Subscript(value=ast.Name(id=name)):
                array = self._scope.names[name]
                pointer = self._element(array, x.slice)
                return Value(
                    array.kind, self._new(f"load {TYPES[array.kind]}, ptr {pointer}, {TAG[array.kind]}")
                )
            case ast.BinOp():
                return self._arithmetic(x, x.op, self._expression(x.left), self._expression(x.right))
            case ast.UnaryOp(op=ast.USub()):
                value = self._expression(x.operand)
                if value.kind == "float":
                    return Value("float", self._new(f"fneg double {value.text}"))
                return Value("int", self._new(f"sub i64 0, {value.text}"))
            case ast.UnaryOp(op=ast.Not()):
                return Value("bool", self._new(f"xor i1 {self._truth(x.operand).text}, true"))
            case ast.Compare():
                return self._comparisons(x)
            case ast.BoolOp():
                return self._logic(x)
            case ast.IfExp():
                return self._choice(x)
            case ast.Call():
                return self._call(x)
        raise unknown(x)

    def _named(self, name: str, x: ast.expr) -> Any:
        place = self._scope.names.get(name)
        if isinstance(place, Variable):
            return self._read(place)
        if place is not None:
            return place
        if isinstance(self._scope.globals.get(name), int | float):
            return _constant(self._scope.globals[name])
        raise unknown(x)

    def _element(self, array: Array, index: ast.expr) -> str:
        places = index.elts if isinstance(index, ast.Tuple) else [index]
        if len(places) != len(array.shape):
            raise unknown(index)
        offset = self._expression(places[0]).text
        for place, length in zip(places[1:], array.shape[1:], strict=True):
            moved = self._new(f"mul i64 {offset}, {length.text}")
            offset = self._new(f"add i64 {moved}, {self._expression(place).text}")
        return self._new(f"getelementptr {TYPES[array.kind]}, ptr {array.pointer}, i64 {offset}")

    def _as(self, value: Value, kind: str) -> Value:
        """A number as another kind."""
        if value.kind == kind:
            return value
        if value.kind == "int" and kind == "float":
            return Value(kind, self._new(f"sitofp i64 {value.text} to double"))
        raise NotImplementedError(f"a number of kind {value.kind} where {kind} is wanted")

    def _arithmetic(self, x: ast.AST, op: ast.operator, a: Value, b: Value) -> Value:
        name = ARITHMETIC.get(type(op))
        whole = a.kind == b.kind == "int"
        if name is None or (isinstance(op, ast.Div) and whole) or (name == "rem" and not whole):
            raise unknown(x)
        if whole:
            return Value(
                "int", self._new(f"{'s' if name in ('div', 'rem') else ''}{name} i64 {a.text}, {b.text}")
            )
        a, b = self._as(a, "float"), self._as(b, "float")
        return Value("float", self._new(f"f{name} double {a.text}, {b.text}"))

    def _compare(self, op: ast.cmpop, a: Value, b: Value) -> Value:
        signed, ordered = COMPARISONS[type(op)]
        if a.kind == b.kind == "int":
            return Value("bool", self._new(f"icmp {signed} i64 {a.text}, {b.text}"))
        a, b = self._as(a, "float"), self._as(b, "float")
        return Value("bool", self._new(f"fcmp {ordered} double {a.text}, {b.text}"))

    def _comparisons(self, x: ast.Compare) -> Value:
        values = [self._expression(y) for y in (x.left, *x.comparators)]
        parts = [self._compare(op, a, b) for op, a, b in zip(x.ops, values, values[1:], strict=False)]
        result = parts[0]
        for part in parts[1:]:
            result = Value("bool", self._new(f"and i1 {result.text}, {part.text}"))
        return result

    def _truth(self, x: ast.expr) -> Value:
        value = self._expression(x)
        if not isinstance(value, Value) or value.kind != "bool":
            raise unknown(x)
        return value

    def _logic(self, x: ast.BoolOp) -> Value:
        """`and` and `or`; what follows is not looked at once the answer is known."""
        result, after = self._variable("bool"), self._name("after")
        for k, part in enumerate(x.values):
            self._write(result, self._truth(part))
            if k < len(x.values) - 1:
                more = self._name("more")
                yes, no = (more, after) if isinstance(x.op, ast.And) else (after, more)
                text = self._read(result).text
                self.lines += [f"  br i1 {text}, label %{yes}, label %{no}", f"{more}:"]
        self._label(after)
        return self._read(result)

    def _choice(self, x: ast.IfExp) -> Value:
        """`a if c else b`: only the one that is chosen is computed."""
        yes, no, after = self._name("then"), self._name("else"), self._name("after")
        self._branch(self._truth(x.test), yes, no)
        a = self._expression(x.body)
        result = self._variable(a.kind)
        self._write(result, a)
        self.lines += [f"  br label %{after}", f"{no}:"]
        self._write(result, self._expression(x.orelse))
        self._label(after)
        return self._read(result)

    def _call(self, x: ast.Call) -> Any:
        if not isinstance(x.func, ast.Name) or x.keywords:
            raise unknown(x)
        name = x.func.id
        if name == "float" and isinstance(x.args[0], ast.Constant) and x.args[0].value == "nan":
            return _constant(math.nan)
        given = [self._expression(y) for y in x.args]
        if name == "abs":
            if given[0].kind == "float":
                return Value("float", self._new(f"call double @llvm.fabs.f64(double {given[0].text})"))
            return Value("int", self._new(f"call i64 @llvm.abs.i64(i64 {given[0].text}, i1 false)"))
        if name in ("doubles", "integers"):
            address, shape = given
            pointer = self._new(f"inttoptr i64 {address.text} to ptr")
            return Array("float" if name == "doubles" else "int", pointer, shape)
        if name == "call":
            address, pointers = given
            target = self._new(f"inttoptr i64 {address.text} to ptr")
            words = ", ".join(f"i64 {p.text}" for p in pointers)
            self.lines.append(f"  call void {target}({words})")
            return None
        function = self._scope.globals.get(name)
        if not isinstance(function, FunctionType):
            raise unknown(x)
        self.function(function, given)
        return None


def _constant(x: Any) -> Value:
    if isinstance(x, bool):
        return Value("bool", "true" if x else "false")
    if isinstance(x, int):
        return Value("int", str(int(x)))
    if isinstance(x, float):
        return Value("float", f"0x{struct.unpack('<Q', struct.pack('<d', x))[0]:016X}")
    raise NotImplementedError(f"a constant {x!r}")


def unknown(x: ast.AST) -> NotImplementedError:
    """What is raised for what is not in the language."""
    return NotImplementedError(f"not in the language, line {getattr(x, 'lineno', '?')}: {ast.unparse(x)}")
