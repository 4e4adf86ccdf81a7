"""Taylor numbers: a value with its Jacobian and Hessian, carried forward through ordinary formulas.

A `Taylor` behaves like a tensor. Written in it, `tvcl * exp(eta.cl)` is a value together with its first and second
derivatives in the seeded directions (the etas, mostly). For a function f of Taylor numbers u, v, ...

    (f u)_i  = f' u_i                          Jacobian
    (f u)_ij = f' u_ij + f'' u_i u_j           Hessian

so derivatives are exact, cost one pass, and stay ordinary tensors through which reverse mode passes: the gradient of a
Jacobian in further parameters (an exact FOCEI gradient) comes by autograd. Hot operations have rules here; every other
torch operation falls back on forward-mode differentiation of the operation itself.

Shapes: value `[*draw, subject, time]`, jac `[direction, ...]`, hess `[direction, direction, ...]`. The trailing axes of
jac and hess broadcast to those of value (they are kept small while they can be), and always have as many dimensions.

See Griewank & Walther, Evaluating Derivatives, 2nd ed. (2008), chapter 13, doi:10.1137/1.9780898717761.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from ..errors import ModelError

Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}

NO_TRUTH = (
    "a Python `if`, `and`, `or` or `while` needs one truth value, and a quantity holds one per subject and time; "
    "use torch.where(condition, a, b)"
)
NO_FLOAT = (
    "a quantity holds one number per subject and time and cannot become a Python float; "
    "use torch.exp, torch.log, torch.sqrt, ... in place of math.exp, math.log, math.sqrt, ..."
)


class Taylor:
    """A truncated Taylor number of first or second order.

    Args:
        value: the value, any shape.
        jac: first derivatives `[q, ...]`, trailing axes broadcastable to `value`, as many of them.
        hess: second derivatives `[q, q, ...]`; None means zero.
        order: 1 (Jacobian) or 2 (Jacobian and Hessian).

    Example:
        >>> x, y = Taylor.seed(torch.tensor([1.0, 2.0]), order=2)
        >>> z = x * torch.exp(y)
        >>> z.jac.flatten().tolist() == [z.value.item(), z.value.item()]
        True
    """

    __slots__ = ("value", "jac", "hess", "order")
    __array_priority__ = 1000

    def __init__(self, value: Tensor, jac: Tensor, hess: Tensor | None = None, order: int = 1) -> None:
        self.value, self.jac, self.hess, self.order = value, jac, hess, order

    @staticmethod
    def seed(x: Tensor, order: int) -> list[Taylor]:
        """The q entries of `x [..., q]` as independent variables, each of shape `[..., 1]`."""
        q = x.shape[-1]
        unit = torch.eye(q, dtype=x.dtype, device=x.device).reshape((q, q) + (1,) * x.ndim)
        return [Taylor(x[..., k : k + 1], unit[:, k], None, order) for k in range(q)]

    # -- what a tensor answers ------------------------------------------------------------------------------------
    @property
    def shape(self) -> torch.Size:
        """Shape of the value."""
        return self.value.shape

    @property
    def ndim(self) -> int:
        """Number of dimensions of the value."""
        return self.value.ndim

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the value."""
        return self.value.dtype

    @property
    def device(self) -> torch.device:
        """Device of the value."""
        return self.value.device

    @property
    def directions(self) -> int:
        """Number q of seeded directions."""
        return self.jac.shape[0]

    def dim(self) -> int:
        """Number of dimensions of the value."""
        return self.value.ndim

    def size(self, dim: int | None = None) -> Any:
        """Shape of the value, or one of its lengths."""
        return self.value.shape if dim is None else self.value.shape[dim]

    def full(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """(value, jac, hess) with every trailing axis at its full length (views; hess None stays None)."""
        shape, q = self.value.shape, self.directions
        hess = None if self.hess is None else self.hess.expand((q, q) + shape)
        return self.value, self.jac.expand((q,) + shape), hess

    def dense_hess(self) -> Tensor:
        """The Hessian at full shape `[q, q, ...]`, zeros where none is carried."""
        q = self.directions
        if self.hess is None:
            return torch.zeros((q, q) + self.value.shape, dtype=self.dtype, device=self.device)
        return self.hess.expand((q, q) + self.value.shape)

    def _map(self, structural: Callable[[Tensor, int], Tensor]) -> Taylor:
        """Apply a linear rearrangement, given the number of leading derivative axes to leave alone."""
        value, jac, hess = self.full()
        return Taylor(
            structural(value, 0),
            structural(jac, 1),
            None if hess is None else structural(hess, 2),
            self.order,
        )

    def __repr__(self) -> str:
        return f"Taylor(order={self.order}, directions={self.directions}, value={self.value!r})"

    # -- what a tensor does and a Taylor number must refuse ---------------------------------------------------------
    def __bool__(self) -> bool:
        raise ModelError(NO_TRUTH)

    def __float__(self) -> float:
        raise ModelError(NO_FLOAT)

    __int__ = __index__ = __float__

    # -- operators ------------------------------------------------------------------------------------------------
    def __neg__(self) -> Taylor:
        return Taylor(-self.value, -self.jac, None if self.hess is None else -self.hess, self.order)

    def __pos__(self) -> Taylor:
        return self

    def __add__(self, other: Any) -> Taylor:
        return add(self, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Taylor:
        return subtract(self, other)

    def __rsub__(self, other: Any) -> Taylor:
        return subtract(other, self)

    def __mul__(self, other: Any) -> Taylor:
        return multiply(self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Taylor:
        return divide(self, other)

    def __rtruediv__(self, other: Any) -> Taylor:
        return divide(other, self)

    def __pow__(self, other: Any) -> Taylor:
        return cast(Taylor, RULES["pow"](self, other))

    def __rpow__(self, other: Any) -> Taylor:
        return cast(Taylor, RULES["pow"](other, self))

    def __abs__(self) -> Taylor:
        return cast(Taylor, RULES["abs"](self))

    def __lt__(self, other: Any) -> Tensor:
        return _compare(operator.lt, self, other)

    def __le__(self, other: Any) -> Tensor:
        return _compare(operator.le, self, other)

    def __gt__(self, other: Any) -> Tensor:
        return _compare(operator.gt, self, other)

    def __ge__(self, other: Any) -> Tensor:
        return _compare(operator.ge, self, other)

    def __eq__(self, other: object) -> Tensor:  # type: ignore[override]
        return _compare(operator.eq, self, other)

    def __ne__(self, other: object) -> Tensor:  # type: ignore[override]
        return _compare(operator.ne, self, other)

    __hash__ = None  # type: ignore[assignment]

    def __matmul__(self, other: Any) -> Taylor:
        return cast(Taylor, RULES["forward_mode"](torch.matmul, (self, other), {}))

    def __getitem__(self, index: Any) -> Taylor:
        items = index if isinstance(index, tuple) else (index,)
        if sum(isinstance(i, (Tensor, list)) for i in items) > 1:
            return cast(Taylor, RULES["forward_mode"](lambda x: x[index], (self,), {}))
        return self._map(lambda x, lead: x[(slice(None),) * lead + items])

    def __getattr__(self, name: str) -> Any:
        # methods of tensors (x.exp(), x.unsqueeze(-1)) take the same route as the functions of torch
        method = getattr(torch.Tensor, name, None)
        if method is None or name.startswith("__"):
            raise AttributeError(f"a quantity has no attribute {name!r}")
        return lambda *args, **kwargs: _dispatch(method, (self, *args), kwargs)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return _dispatch(func, args, kwargs or {})


Number = Tensor | Taylor


def _compare(compare: Callable[[Any, Any], Any], a: Taylor, b: Any) -> Tensor:
    truth: Tensor = compare(a.value, value_of(b))
    return truth


def value_of(x: Any) -> Any:
    """The plain tensor (or scalar) inside `x`."""
    return x.value if isinstance(x, Taylor) else x


def unary(x: Taylor, f0: Tensor, f1: Tensor, f2: Tensor | None) -> Taylor:
    """f(x) from f and its first two derivatives at x.value (`f2` is read for order 2 alone)."""
    jac = f1 * x.jac
    if x.order == 1:
        return Taylor(f0, jac)
    assert f2 is not None
    hess = (f2 * x.jac).unsqueeze(1) * x.jac
    if x.hess is not None:
        hess = torch.addcmul(hess, f1, x.hess) if hess.ndim == x.hess.ndim else hess + f1 * x.hess
    return Taylor(f0, jac, hess, 2)


def _dispatch(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name = getattr(func, "__name__", "")
    rule = RULES.get(name)
    if rule is not None:
        return rule(*args, **kwargs)
    if name.endswith("_") and not name.endswith("__"):
        raise ModelError(
            f"the in-place operation {name} would overwrite a quantity; use {name.rstrip('_')} and keep the result"
        )
    return RULES["forward_mode"](func, args, kwargs)


def lift(x: Taylor, ndim: int) -> Taylor:
    """`x` with leading axes of length one, so that it has `ndim` dimensions."""
    extra = ndim - x.value.ndim
    if extra <= 0:
        return x
    ones = (1,) * extra
    value = x.value.reshape(ones + x.value.shape)
    jac = x.jac.reshape(x.jac.shape[:1] + ones + x.jac.shape[1:])
    hess = None if x.hess is None else x.hess.reshape(x.hess.shape[:2] + ones + x.hess.shape[2:])
    return Taylor(value, jac, hess, x.order)


def _pair(a: Taylor, b: Taylor) -> tuple[Taylor, Taylor]:
    ndim = max(a.value.ndim, b.value.ndim)
    return lift(a, ndim), lift(b, ndim)


def ndim_of(x: Any) -> int:
    """Number of dimensions of a tensor, 0 for a plain number."""
    return x.ndim if isinstance(x, Tensor) else 0


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None:
        return b
    return a if b is None else a + b


def add(a: Any, b: Any) -> Taylor:
    """a + b; at least one is a Taylor number."""
    if not isinstance(a, Taylor):
        a, b = b, a
    if not isinstance(b, Taylor):
        a = lift(a, ndim_of(b))
        return Taylor(a.value + b, a.jac, a.hess, a.order)
    a, b = _pair(a, b)
    return Taylor(a.value + b.value, a.jac + b.jac, _sum(a.hess, b.hess), a.order)


def subtract(a: Any, b: Any) -> Taylor:
    """a - b; at least one is a Taylor number."""
    if not isinstance(b, Taylor):
        a = lift(a, ndim_of(b))
        return Taylor(a.value - b, a.jac, a.hess, a.order)
    if not isinstance(a, Taylor):
        b = lift(b, ndim_of(a))
        return Taylor(a - b.value, -b.jac, None if b.hess is None else -b.hess, b.order)
    a, b = _pair(a, b)
    hess = _sum(a.hess, None if b.hess is None else -b.hess)
    return Taylor(a.value - b.value, a.jac - b.jac, hess, a.order)


def multiply(a: Any, b: Any) -> Taylor:
    """a b: (ab)_i = a b_i + b a_i, (ab)_ij = a b_ij + b a_ij + a_i b_j + a_j b_i."""
    if not isinstance(a, Taylor):
        a, b = b, a
    if not isinstance(b, Taylor):
        a = lift(a, ndim_of(b))
        return Taylor(a.value * b, a.jac * b, None if a.hess is None else a.hess * b, a.order)
    if a is b:
        return unary(
            a, a.value * a.value, 2 * a.value, torch.full_like(a.value, 2.0) if a.order == 2 else None
        )
    a, b = _pair(a, b)
    jac = a.value * b.jac + b.value * a.jac
    if a.order == 1:
        return Taylor(a.value * b.value, jac)
    cross = a.jac.unsqueeze(1) * b.jac
    hess = cross + cross.transpose(0, 1)
    if a.hess is not None:
        hess = hess + b.value * a.hess
    if b.hess is not None:
        hess = hess + a.value * b.hess
    return Taylor(a.value * b.value, jac, hess, 2)


def divide(a: Any, b: Any) -> Taylor:
    """r = a / b: r_i = (a_i - r b_i) / b, r_ij = (a_ij - r b_ij - r_i b_j - r_j b_i) / b."""
    if not isinstance(b, Taylor):
        return multiply(a, b.reciprocal() if isinstance(b, Tensor) else 1 / b)
    if not isinstance(a, Taylor):
        r = RULES["reciprocal"](b)
        return r if isinstance(a, (int, float)) and a == 1 else multiply(r, a)
    a, b = _pair(a, b)
    inverse = b.value.reciprocal()  # one operation, where 1 / x is two
    value = a.value * inverse
    jac = (a.jac - value * b.jac) * inverse
    if a.order == 1:
        return Taylor(value, jac)
    cross = jac.unsqueeze(1) * b.jac
    hess = cross + cross.transpose(0, 1)
    if b.hess is not None:
        hess = hess + value * b.hess
    hess = -hess if a.hess is None else a.hess - hess
    return Taylor(value, jac, hess * inverse, 2)
