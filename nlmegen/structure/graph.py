"""Symbols: a page's formulas as a graph of operations, each written once.

A `Graph` keeps one node for each different operation (the same operation on the same operands is the same node), folds
constants and drops what adds or multiplies nothing, so that derivatives of derivatives stay short and a derivative that
is zero for every value is the constant 0. Operations and their arguments:

    leaf (kind, index)      "time" 0, "step" 0, "state" i, "forcing" i, "param" k, "weight" k, "component" c,
                            "cotangent" c; others in compiled closed forms (`blueprint`)
    const (float,)
    add sub mul             a + b, a - b (a negative is 0 - b), a b (a quotient is a product with a reciprocal)
    reciprocal exp log sqrt sin cos tanh sigmoid log1p expm1 softplus
    phi phi1 phi2           (1 - exp(-x)) / x and its derivatives
    shc shc1 shc2           sinh(sqrt z) / sqrt z and its derivatives
    pow (a, b)              0**b = 0 for b > 0, 0**0 = 1; exponents -1, 0.5, 1, 2 and the like have shorter forms
    where (c, a, b)         a where the condition c holds, else b
    lt le eq and or not     conditions

`primitive.primitive` rewrites tanh, sigmoid, softplus and powers by a constant integer or half in the others, which is
what a compiler has to emit.
IEEE special values are not followed through simplification (0 x is 0, whatever x).
"""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor

from nlmegen.errors import ModelError
from nlmegen.structure.symbols import CONDITIONS, Symbol, Untraceable

SERIES = ("phi", "phi1", "phi2", "shc", "shc1", "shc2")
"""Functions that torch does not have."""


class Graph:
    """Nodes made so far; every operation on its symbols ends in one of its methods.

    Example:
        >>> g = Graph()
        >>> x, y = g.state(0), g.param(0)
        >>> (x * y + 0.0 * x) is (y * x), (x - x).op
        (True, 'const')
    """

    def __init__(self) -> None:
        self._table: dict[tuple[Any, ...], Symbol] = {}
        self.zero = self.const(0.0)
        self.one = self.const(1.0)

    def __len__(self) -> int:
        return len(self._table)

    def _node(self, op: str, args: tuple[Any, ...], key: tuple[Any, ...]) -> Symbol:
        node = self._table.get(key)
        if node is None:
            node = self._table[key] = Symbol(op, args, len(self._table), self)
        return node

    def _make(self, op: str, *args: Symbol) -> Symbol:
        return self._node(op, args, (op, *(x.number for x in args)))

    # -- leaves -----------------------------------------------------------------------------------------------------
    def leaf(self, kind: str, index: int) -> Symbol:
        """The leaf of a kind at an index."""
        return self._node("leaf", (kind, index), ("leaf", kind, index))

    def const(self, x: float) -> Symbol:
        """A constant."""
        x = float(x) + 0.0  # -0.0 becomes 0.0
        return self._node("const", (x,), ("const", "nan" if x != x else x))

    def time(self) -> Symbol:
        """Time."""
        return self.leaf("time", 0)

    def state(self, i: int) -> Symbol:
        """Amount in compartment i, from 0."""
        return self.leaf("state", i)

    def param(self, k: int) -> Symbol:
        """Individual parameter k of the page."""
        return self.leaf("param", k)

    def weight(self, k: int) -> Symbol:
        """Entry k of the vector of network weights."""
        return self.leaf("weight", k)

    def component(self, c: int) -> Symbol:
        """Component c of a system with sensitivities (a sensitivity; values are `state`)."""
        return self.leaf("component", c)

    def forcing(self, i: int) -> Symbol:
        """Infusion rate that runs into compartment i."""
        return self.leaf("forcing", i)

    def cotangent(self, c: int) -> Symbol:
        """Cotangent of component c."""
        return self.leaf("cotangent", c)

    def step(self) -> Symbol:
        """Step size."""
        return self.leaf("step", 0)

    def number(self, x: Any) -> Symbol:
        """`x` as a quantity of this graph: a symbol, a number or a tensor of one element.

        Raises:
            Untraceable: for a tensor of several elements.
            ModelError: for anything else.
        """
        if isinstance(x, Symbol):
            if x.graph is not self:
                raise ValueError("symbols of two graphs cannot meet in one formula")
            return self.where(x, self.one, self.zero) if x.op in CONDITIONS else x
        if isinstance(x, Tensor):
            if x.numel() != 1:
                raise Untraceable(f"a constant tensor of shape {tuple(x.shape)} has no compiled form")
            return self.const(x.item())
        if isinstance(x, numbers.Real) or (hasattr(x, "item") and getattr(x, "size", 0) == 1):
            return self.const(float(x))
        raise ModelError(f"a formula needs quantities and numbers, got {type(x).__name__}")

    # -- arithmetic ---------------------------------------------------------------------------------------------------
    def _term(self, x: Symbol) -> tuple[float, Symbol]:
        """(c, y) with x = c y."""
        if x.op == "const":
            return x.args[0], self.one
        if x.op == "mul" and x.args[0].op == "const":
            return x.args[0].args[0], x.args[1]
        if x.op == "sub" and x.args[0] is self.zero:
            return -1.0, x.args[1]
        return 1.0, x

    def _scaled(self, c: float, x: Symbol) -> Symbol:
        if x is self.one:
            return self.const(c)
        if c == 0:
            return self.zero
        if c == 1:
            return x
        if c == -1:
            return self.sub(x.args[1], x.args[0]) if x.op == "sub" else self._make("sub", self.zero, x)
        return self._make("mul", self.const(c), x)

    def add(self, a: Symbol, b: Symbol) -> Symbol:
        """a + b."""
        if a is self.zero:
            return b
        if b is self.zero:
            return a
        (ca, xa), (cb, xb) = self._term(a), self._term(b)
        if xa is xb:
            return self._scaled(ca + cb, xa)
        if cb == -1 and xb is not self.one:
            return self.sub(a, xb)
        if ca == -1 and xa is not self.one:
            return self.sub(b, xa)
        return self._make("add", a, b) if a.number < b.number else self._make("add", b, a)

    def sub(self, a: Symbol, b: Symbol) -> Symbol:
        """a - b."""
        if b is self.zero:
            return a
        (ca, xa), (cb, xb) = self._term(a), self._term(b)
        if xa is xb:
            return self._scaled(ca - cb, xa)
        if a is self.zero:
            return self._scaled(-cb, xb)
        if cb < 0:
            return self.add(a, self._scaled(-cb, xb))
        if ca == -1 and xa is not self.one:
            return self._scaled(-1.0, self.add(xa, b))
        return self._make("sub", a, b)

    def neg(self, a: Symbol) -> Symbol:
        """-a."""
        return self.sub(self.zero, a)

    def mul(self, a: Symbol, b: Symbol) -> Symbol:
        """a b."""
        if a is self.zero or b is self.zero:
            return self.zero
        if a is self.one:
            return b
        if b is self.one:
            return a
        (ca, xa), (cb, xb) = self._term(a), self._term(b)
        c = ca * cb
        if c != 0 and math.isfinite(c) and not (ca == cb == 1):
            return self._scaled(c, self.mul(xa, xb))
        if b.op == "const" or (a.op != "const" and b.number < a.number):
            a, b = b, a
        return self.const(c) if b.op == "const" else self._make("mul", a, b)

    def reciprocal(self, a: Symbol) -> Symbol:
        """1 / a."""
        if a.op == "reciprocal":
            operand: Symbol = a.args[0]
            return operand
        c, x = self._term(a)
        if c == -1 and x is not self.one:
            return self.neg(self.function("reciprocal", x))
        return self.function("reciprocal", a)

    def div(self, a: Symbol, b: Symbol) -> Symbol:
        """a / b, by the reciprocal of b, which value and derivatives share."""
        return self.zero if a is self.zero else self.mul(a, self.reciprocal(b))

    def function(self, op: str, a: Symbol) -> Symbol:
        """A function of one quantity (reciprocal, exp, log, ...), by its name."""
        if a.op == "const" and op not in SERIES:
            of = torch.nn.functional.softplus if op == "softplus" else getattr(torch, op)
            return self.const(of(torch.tensor(a.args[0], dtype=torch.float64)).item())
        return self._make(op, a)

    def pow(self, a: Symbol, b: Symbol) -> Symbol:
        """a ** b."""
        if b.op == "const":
            e = b.args[0]
            if a.op == "const":
                return self.const((torch.tensor(a.args[0], dtype=torch.float64) ** e).item())
            if e == 0:
                return self.one
            if e == 1:
                return a
            if e == 2:
                return self.mul(a, a)
            if abs(e) == 0.5:
                root = self.function("sqrt", a)
                return root if e > 0 else self.reciprocal(root)
            if e < 0 and e == int(e):
                return self.pow(self.reciprocal(a), self.const(-e))
        elif a.op == "const" and a.args[0] > 0:
            return self.function("exp", self.mul(self.const(math.log(a.args[0])), b))
        return self._make("pow", a, b)

    # -- choices ------------------------------------------------------------------------------------------------------
    def where(self, c: Symbol, a: Symbol, b: Symbol) -> Symbol:
        """a where c holds, else b."""
        if c.op == "const":
            return a if c.args[0] else b
        if a is b:
            return a
        if c.op == "not":
            return self.where(c.args[0], b, a)
        return self._make("where", c, a, b)

    def compare(self, op: str, a: Symbol, b: Symbol) -> Symbol:
        """a < b ("lt"), a <= b ("le") or a == b ("eq")."""
        if a.op == b.op == "const":
            x, y = a.args[0], b.args[0]
            return self.one if (x < y if op == "lt" else x <= y if op == "le" else x == y) else self.zero
        if a is b:
            return self.zero if op == "lt" else self.one
        if op == "eq" and b.number < a.number:
            a, b = b, a
        return self._make(op, a, b)

    def logic(self, op: str, a: Symbol, b: Symbol) -> Symbol:
        """Both of two conditions ("and"), or either ("or")."""
        for x, y in ((a, b), (b, a)):
            if x.op == "const":
                return y if bool(x.args[0]) == (op == "and") else x
        if a is b:
            return a
        return self._make(op, a, b) if a.number < b.number else self._make(op, b, a)

    def invert(self, a: Symbol) -> Symbol:
        """Not a."""
        if a.op == "const":
            return self.zero if a.args[0] else self.one
        if a.op == "not":
            operand: Symbol = a.args[0]
            return operand
        return self._make("not", a)

    def truth(self, x: Any) -> Symbol:
        """`x` as a condition.

        Raises:
            ModelError: for a quantity.
        """
        if isinstance(x, bool):
            return self.one if x else self.zero
        if isinstance(x, Tensor) and x.dtype == torch.bool:
            return self.number(x)
        if not isinstance(x, Symbol) or not (x.op in CONDITIONS or x is self.zero or x is self.one):
            raise ModelError(
                "torch.where, &, | and ~ need a condition, got a quantity; write a comparison, for example x > 0"
            )
        return x
