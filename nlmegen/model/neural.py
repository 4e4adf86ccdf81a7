"""Networks declared on a page: small, smooth, fully connected, in float64, evaluated like any other formula.

    h_0 = x / scale          h_k = act(W_k h_(k-1) + b_k)          net(x) = W h + b

A declaration stays on the class; the weights of all networks of a page are one vector `weights [W]` of the instance, in
the order of declaration, each network layer by layer: the matrix row by row, then the biases. Called with tensors or
Taylor numbers a network is a few large operations, through which reverse mode passes to the weights; called with
symbols it is written out as scalar formulas over the leaves ("weight", k) of their graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from ..errors import ModelError, nearest
from ..maths.taylor import Number, Taylor, add, unary
from ..structure.trace import Symbol, Untraceable

TRACED = 400
"""Weights of one network up to which it is written out as symbols: formulas, and the time to compile them with their
derivatives, grow with every weight."""

FIRST_OUTPUT = 0.1
"""Standard deviation of the output at the start, roughly: small beside the formulas around it, and not zero, so that
every layer has a gradient."""

Slopes = tuple[Tensor, Tensor, Tensor | None]


def _tanh(x: Tensor, second: bool) -> Slopes:
    t = torch.tanh(x)
    first = 1 - t * t
    return t, first, -2 * t * first if second else None


def _sigmoid(x: Tensor, second: bool) -> Slopes:
    s = torch.sigmoid(x)
    first = s * (1 - s)
    return s, first, first * (1 - 2 * s) if second else None


def _softplus(x: Tensor, second: bool) -> Slopes:
    s = torch.sigmoid(x)
    return _smooth_ramp(x), s, s * (1 - s) if second else None


def _silu(x: Tensor, second: bool) -> Slopes:
    s = torch.sigmoid(x)
    bend = s * (1 - s)
    return x * s, s + x * bend, bend * (2 + x * (1 - 2 * s)) if second else None


def _smooth_ramp(x: Any) -> Any:
    """log(1 + exp x); torch's own threshold of 20 would leave an error of 2e-9."""
    return softplus(x, threshold=40.0) if isinstance(x, Tensor) else softplus(x)


@dataclass(frozen=True)
class Activation:
    """A smooth function of one number.

    Attributes:
        plain: for tensors and symbols.
        slopes: (f, f', f'' if asked for) of a tensor.
    """

    plain: Callable[[Any], Any]
    slopes: Callable[[Tensor, bool], Slopes]

    def __call__(self, x: Number) -> Number:
        """f(x) of a tensor or a Taylor number."""
        if isinstance(x, Taylor):
            return unary(x, *self.slopes(x.value, x.order == 2))
        result: Tensor = self.plain(x)
        return result


ACTIVATIONS: Mapping[str, Activation] = {
    "tanh": Activation(torch.tanh, _tanh),
    "softplus": Activation(_smooth_ramp, _softplus),
    "silu": Activation(silu, _silu),
    "sigmoid": Activation(torch.sigmoid, _sigmoid),
}
"""Smooth ones alone: a kink (relu) has no second derivative, and a solver's steps pile up at it."""


def _count(value: Any, what: str, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ModelError(f"Neural: {what} must be a whole number of at least {least}, got {value!r}")
    return value


class Neural:
    """A network of a page, declared like a parameter and called like a function.

    On an instance the name is the network at the instance's weights: `self.net(x, z)` takes `inputs` quantities
    (tensors, Taylor numbers, symbols and plain numbers of any shapes that broadcast) and returns one quantity, a tuple
    of them for `outputs` > 1. The output is any real number, at the start a smooth function of size 0.1 or so; the page
    makes a positive rate of it, for example by `exp` or `softplus`.

    Args:
        inputs: number of inputs.
        hidden: widths of the hidden layers; () leaves a linear function.
        outputs: number of outputs.
        activation: "tanh", "softplus", "silu" or "sigmoid", of the hidden layers.
        penalty: adds penalty * (sum of squared weights) to -2 log L while estimating: weights have, as it were, a
            normal prior of variance 1 / penalty. The biases of the outputs are left out, so that no constant is pulled
            to zero; those of hidden units are not, else a unit may bend far from the data and never come back.
            Reported likelihoods are without it.
        seed: of the weights at the start.
        scale: a typical size of each input, by which it is divided, so that the network sees numbers of order one
            whatever the units; 1 for all when not given. Random effects with variance one need no scale.

    Raises:
        ModelError: on a size that is not a whole number of at least 1, an unknown activation, a penalty that is
            negative, a scale that is not positive or not of one number an input; and, when called, on a wrong number
            of inputs.

    Example:
        >>> Neural(inputs=2, hidden=(8,), scale=(10.0, 1.0))
        Neural(2 -> 8 -> 1, tanh, 33 weights)
    """

    def __init__(
        self,
        inputs: int = 1,
        hidden: int | Sequence[int] = (8,),
        outputs: int = 1,
        *,
        activation: str = "tanh",
        penalty: float = 0.0,
        seed: int = 0,
        scale: float | Sequence[float] | None = None,
    ) -> None:
        widths = (hidden,) if isinstance(hidden, int) else hidden
        self.inputs, self.outputs = _count(inputs, "inputs"), _count(outputs, "outputs")
        self.hidden = tuple(_count(width, "a width in hidden=...") for width in widths)
        if activation not in ACTIVATIONS:
            raise ModelError(
                f"Neural(activation={activation!r}): no such activation.{nearest(str(activation), ACTIVATIONS)}"
            )
        self.activation = activation
        self.penalty = _size(penalty, "penalty")
        self.seed = _count(seed, "seed", 0)
        given = (scale,) * self.inputs if isinstance(scale, (int, float)) else scale
        sizes = (1.0,) * self.inputs if given is None else tuple(_size(s, "scale") for s in given)
        self.scale: tuple[float, ...] = sizes
        if len(self.scale) != self.inputs or not all(s > 0 for s in self.scale):
            raise ModelError(
                f"Neural(scale={scale!r}): expected a typical size, a positive number, of each of the {self.inputs}"
                " inputs"
            )
        self.name = "net"

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """The declaration on the class, the network at the instance's weights on an instance."""
        if instance is None:
            return self
        return instance.networks.bound(self.name, instance.weights)

    @cached_property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of every layer."""
        widths = (self.inputs, *self.hidden, self.outputs)
        return tuple(zip(widths[:-1], widths[1:], strict=True))

    @cached_property
    def input_sizes(self) -> Tensor:
        """`scale` as a tensor `[inputs]`."""
        return torch.tensor(self.scale, dtype=torch.float64)

    @property
    def n_weights(self) -> int:
        """Number of weights, biases included."""
        return sum((before + 1) * after for before, after in self.sizes)

    def start(self) -> Tensor:
        """The weights at the start `[n_weights]`, drawn from `seed`.

        Matrices are normal with variance 1 / inputs, the last one smaller; hidden biases uniform on (-1, 1), so that
        the units bend at different places.
        """
        generator = torch.Generator().manual_seed(self.seed)
        parts = []
        for layer, (before, after) in enumerate(self.sizes):
            matrix = torch.randn(after, before, generator=generator, dtype=torch.float64) / math.sqrt(before)
            bias = 2 * torch.rand(after, generator=generator, dtype=torch.float64) - 1
            if layer == len(self.sizes) - 1:
                matrix, bias = FIRST_OUTPUT * matrix, torch.zeros_like(bias)
            parts += [matrix.flatten(), bias]
        return torch.cat(parts)

    def penalties(self) -> Tensor:
        """What multiplies the square of each weight in the penalty, 0 for the last biases, `[n_weights]`."""
        parts = torch.full((self.n_weights,), self.penalty, dtype=torch.float64)
        parts[self.n_weights - self.outputs :] = 0.0
        return parts

    def __repr__(self) -> str:
        widths = " -> ".join(str(n) for n in (self.inputs, *self.hidden, self.outputs))
        return f"Neural({widths}, {self.activation}, {self.n_weights} weights)"


def _size(value: Any, what: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ModelError(f"Neural: {what} must be a number, got {value!r}") from None
    if not 0 <= number < math.inf:
        raise ModelError(f"Neural: {what} must be finite and not negative, got {number:g}")
    return number


class Networks:
    """The networks of a page and the one vector that holds all their weights.

    Args:
        nets: declarations by name, in order.

    Attributes:
        nets: the same.
        offsets: where each network's weights begin, by name.
        n_weights: W, of all together.
    """

    def __init__(self, nets: Mapping[str, Neural]) -> None:
        self.nets = dict(nets)
        self.offsets: dict[str, int] = {}
        self.n_weights = 0
        for name, net in self.nets.items():
            self.offsets[name] = self.n_weights
            self.n_weights += net.n_weights

    def start(self) -> Tensor:
        """The weights at the start `[W]`."""
        return torch.cat([torch.zeros(0, dtype=torch.float64), *(n.start() for n in self.nets.values())])

    @cached_property
    def penalties(self) -> Tensor:
        """What multiplies the square of each weight in the penalty `[W]`."""
        return torch.cat([torch.zeros(0, dtype=torch.float64), *(n.penalties() for n in self.nets.values())])

    def penalty(self, weights: Tensor) -> Tensor:
        """What the penalties add to -2 log L while estimating, a scalar, at `weights [W]`."""
        return (self.penalties * weights * weights).sum()

    def bound(self, name: str, weights: Tensor) -> Network:
        """The network `name` at `weights [W]`."""
        return Network(self.nets[name], self.offsets[name], weights)

    def describe(self) -> str:
        """One line in words, "" without networks."""
        return ", ".join(
            f"{name}: {'-'.join(map(str, (n.inputs, *n.hidden, n.outputs)))} {n.activation}, {n.n_weights} weights"
            for name, n in self.nets.items()
        )


class Network:
    """A network at its weights.

    Args:
        net: the declaration.
        offset: where its weights begin.
        weights: of all networks of the page, `[W]`.
    """

    def __init__(self, net: Neural, offset: int, weights: Tensor) -> None:
        self.net, self.offset = net, offset
        self.weights = weights[offset : offset + net.n_weights]

    def __call__(self, *inputs: Any) -> Any:
        """The output at `inputs`, one quantity each; a tuple for several outputs.

        Raises:
            ModelError: on a wrong number of inputs.
            Untraceable: when called with symbols and the network is too large to be written out.
        """
        net = self.net
        if len(inputs) != net.inputs:
            raise ModelError(
                f"the network {net.name} takes {net.inputs} input{'s' if net.inputs > 1 else ''}, got {len(inputs)};"
                f" declare {net.name} = nl.Neural(inputs={len(inputs)}, ...) or call it with {net.inputs}"
            )
        graph = next((x.graph for x in inputs if isinstance(x, Symbol)), None)
        out = self._numbers(inputs) if graph is None else self._symbols(graph, inputs)
        return out[0] if net.outputs == 1 else tuple(out)

    # -- tensors and Taylor numbers -----------------------------------------------------------------------------------
    def _numbers(self, inputs: Sequence[Any]) -> list[Any]:
        act = ACTIVATIONS[self.net.activation]
        x: Number | None = None
        place = 0
        for layer, (before, after) in enumerate(self.net.sizes):
            matrix = self.weights[place : place + before * after].view(after, before)
            bias = self.weights[place + before * after : place + (before + 1) * after]
            place += (before + 1) * after
            x = bias + self._first(inputs, matrix) if layer == 0 else _linear(x, matrix, bias)
            if layer < len(self.net.sizes) - 1:
                x = act(x)
        assert x is not None
        return [x[..., k] for k in range(self.net.outputs)]

    def _first(self, inputs: Sequence[Any], matrix: Tensor) -> Number:
        """W_1 x / scale, input by input: each keeps its own shape as long as it can, and no zero Hessian is made."""
        scaled = matrix / self.net.input_sizes.to(matrix)
        total: Any = None
        for x, column in zip(inputs, scaled.unbind(1), strict=True):
            term = _outer(x, column)
            total = term if total is None else total + term
        number: Number = total
        return number

    # -- symbols ------------------------------------------------------------------------------------------------------
    def _symbols(self, graph: Any, inputs: Sequence[Any]) -> list[Any]:
        net = self.net
        if net.n_weights > TRACED:
            raise Untraceable(
                f"the network {net.name} has {net.n_weights} weights, and formulas are written out up to {TRACED}"
            )
        act = ACTIVATIONS[net.activation].plain
        x = [value if s == 1 else value * (1 / s) for value, s in zip(inputs, net.scale, strict=True)]
        place = self.offset
        for layer, (before, after) in enumerate(net.sizes):
            out = []
            for row in range(after):
                total = graph.weight(place + before * after + row)
                for column, value in enumerate(x):
                    total = total + graph.weight(place + row * before + column) * value
                out.append(total if layer == len(net.sizes) - 1 else act(total))
            x = out
            place += (before + 1) * after
        return x


def _outer(x: Any, column: Tensor) -> Number:
    """x times each entry of `column [h]` along a new last axis."""
    if isinstance(x, Taylor):
        hess = None if x.hess is None else x.hess.unsqueeze(-1) * column
        return Taylor(x.value.unsqueeze(-1) * column, x.jac.unsqueeze(-1) * column, hess, x.order)
    return x.unsqueeze(-1) * column if isinstance(x, Tensor) else x * column


def _linear(x: Any, matrix: Tensor, bias: Tensor) -> Number:
    """W x + b over the last axis, which is at full length in every part of a Taylor number."""
    if not isinstance(x, Taylor):
        y: Tensor = x @ matrix.mT
        return y + bias
    hess = None if x.hess is None else x.hess @ matrix.mT
    return add(Taylor(x.value @ matrix.mT, x.jac @ matrix.mT, hess, x.order), bias)
