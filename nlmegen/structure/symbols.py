"""A symbol: one node of a graph of operations, which stands where a tensor or a Taylor number may stand on a page."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from nlmegen.errors import ModelError
from nlmegen.maths.taylor import NO_FLOAT, NO_TRUTH

if TYPE_CHECKING:
    from nlmegen.structure.graph import Graph

CONDITIONS = frozenset(("lt", "le", "eq", "and", "or", "not"))
SymbolRule = Callable[..., Any]
RULES: dict[str, SymbolRule] = {}


class Untraceable(Exception):
    """A page that is right but has no compiled form; the message says why, in words fit for a fit's notes."""


class Symbol:
    """One node of a graph; it answers what a tensor or a Taylor number answers in a page's formulas.

    Attributes:
        op: the operation.
        args: its operands (symbols), or (kind, index) of a leaf, or (value,) of a constant.
        number: its place in the graph. `==` makes a condition, so tables are keyed by this number.
        graph: the graph that holds it.
    """

    __slots__ = ("op", "args", "number", "graph")
    __array_ufunc__ = None  # numpy's scalars leave arithmetic to the symbol
    __hash__ = None  # type: ignore[assignment]
    dtype = torch.float64
    device = torch.device("cpu")

    def __init__(self, op: str, args: tuple[Any, ...], number: int, graph: Graph) -> None:
        self.op, self.args, self.number, self.graph = op, args, number, graph

    def __repr__(self) -> str:
        inside = ", ".join(f"#{x.number}" if isinstance(x, Symbol) else str(x) for x in self.args)
        return f"Symbol(#{self.number} {self.op}: {inside})"

    def __bool__(self) -> bool:
        raise ModelError(NO_TRUTH)

    def __float__(self) -> float:
        raise ModelError(NO_FLOAT)

    __int__ = __index__ = __float__

    def _apply(self, name: str, *args: Any) -> Any:
        return RULES[name](self.graph, *args)

    def __neg__(self) -> Symbol:
        return self.graph.neg(self.graph.number(self))

    def __pos__(self) -> Symbol:
        return self

    def __add__(self, other: Any) -> Any:
        return self._apply("add", self, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        return self._apply("sub", self, other)

    def __rsub__(self, other: Any) -> Any:
        return self._apply("sub", other, self)

    def __mul__(self, other: Any) -> Any:
        return self._apply("mul", self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        return self._apply("div", self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return self._apply("div", other, self)

    def __pow__(self, other: Any) -> Any:
        return self._apply("pow", self, other)

    def __rpow__(self, other: Any) -> Any:
        return self._apply("pow", other, self)

    def __abs__(self) -> Any:
        return self._apply("abs", self)

    def __lt__(self, other: Any) -> Any:
        return self._apply("lt", self, other)

    def __le__(self, other: Any) -> Any:
        return self._apply("le", self, other)

    def __gt__(self, other: Any) -> Any:
        return self._apply("gt", self, other)

    def __ge__(self, other: Any) -> Any:
        return self._apply("ge", self, other)

    def __eq__(self, other: object) -> Any:
        return self._apply("eq", self, other)

    def __ne__(self, other: object) -> Any:
        return self._apply("ne", self, other)

    def __and__(self, other: Any) -> Any:
        return self._apply("logical_and", self, other)

    __rand__ = __and__

    def __or__(self, other: Any) -> Any:
        return self._apply("logical_or", self, other)

    __ror__ = __or__

    def __invert__(self) -> Any:
        return self._apply("logical_not", self)

    def __getattr__(self, name: str) -> Any:
        method = None if name.startswith("__") else getattr(torch.Tensor, name, None)
        if method is None:
            raise AttributeError(f"a quantity has no attribute {name!r}")
        if not callable(method):
            raise Untraceable(f"reading .{name} of a quantity has no compiled form")
        return lambda *args, **kwargs: dispatch(method, (self, *args), kwargs)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return dispatch(func, args, kwargs or {})


def dispatch(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A torch operation on symbols.

    Raises:
        Untraceable: when there is no rule for it.
        ModelError: for an operation in place.
    """
    name = getattr(func, "__name__", str(func))
    if name.endswith("_") and not name.endswith("__"):
        raise ModelError(
            f"the in-place operation {name} would overwrite a quantity; use {name.rstrip('_')} and keep the result"
        )
    graph = next((x.graph for x in (*args, *kwargs.values()) if isinstance(x, Symbol)), None)
    rule = RULES.get(name)
    if rule is None or graph is None:
        raise Untraceable(f"torch.{name.strip('_')} has no compiled form")
    try:
        return rule(graph, *args, **kwargs)
    except TypeError as error:
        if isinstance(error, ModelError):
            raise
        raise Untraceable(f"torch.{name.strip('_')} with these arguments has no compiled form") from error
