"""The adjoint of one explicit step, as LLVM IR.

With stages Y_i = y + h sum_j a_ij k_j, k_i = g(t + c_i h, Y_i), and y' = y + h sum_i b_i k_i, the adjoint of y' gives,
from the last stage to the first,

    kbar_i = h (b_i ybar' + sum_(m > i) a_mi Ybar_m)    Ybar_i = (dg/dY)' kbar_i    pbar += (dg/dp)' kbar_i

and ybar = ybar' + sum_i Ybar_i. The products come from the graph of g by reverse accumulation; what is dear in g
(exponentials, reciprocals, ...) is kept from the way forward for the way back.

See Sandu (2006), On the properties of Runge-Kutta discrete adjoints, doi:10.1007/11758549_76.
"""

from __future__ import annotations

from dataclasses import dataclass

from nlmegen.structure.derive import reverse, substitute, topological
from nlmegen.structure.equations import Components
from nlmegen.structure.kernel.emit import VECTOR, Emitter, Module
from nlmegen.structure.kernel.explicit import NODES, STAGES
from nlmegen.structure.kernel.page import leaves
from nlmegen.structure.kernel.protocol import TIME
from nlmegen.structure.trace import Symbol

DEAR = frozenset(
    ("reciprocal", "exp", "log", "sqrt", "sin", "cos", "tanh", "sigmoid", "log1p", "expm1", "softplus", "pow")
)
COUNT = len(STAGES) - 1
"""Stages that the step's end depends on: the last is the first of the next step."""

UNDO_PARAMETERS = ("Y", "P", "W", "F", "T", "L", "Q", "R", "X")
"""State and forcing at the step's start; T: time and length; L: adjoint of the state after the step, then of that
before it; Q, R: adjoints of parameters, weights and time, and of the forcing, added to; X: room."""
PRODUCT_PARAMETERS = ("Y", "P", "W", "L", "T", "A", "Q")
BEGUN_PARAMETERS = ("P", "W", "L", "Q")


@dataclass(frozen=True)
class Products:
    """Products of a cotangent with the derivatives of the components' rates.

    Attributes:
        rates: rates of the components.
        states: [component] product with the derivatives in each component.
        rest: [parameter, then weight, then time] likewise.
        dear: costly parts of `rates` that occur in the products; there they are leaves ("kept", j).
        plain: `states` and `rest` without such leaves.
        start: [parameter, then weight] products with the derivatives of the initial state.
        wanted: the leaves of all components, parameters and weights.
    """

    rates: tuple[Symbol, ...]
    states: tuple[Symbol, ...]
    rest: tuple[Symbol, ...]
    dear: tuple[Symbol, ...]
    plain: tuple[Symbol, ...]
    start: tuple[Symbol, ...]
    wanted: tuple[Symbol, ...]

    @property
    def starts(self) -> bool:
        """Whether the initial state depends on parameters or weights."""
        return any(x is not x.graph.zero for x in self.start)

    @classmethod
    def of(cls, components: Components) -> Products:
        """The products for these components."""
        equations, graph = components.equations, components.equations.graph
        own = [
            graph.component(c) if along else graph.state(c) for c, (_, along) in enumerate(components.keys)
        ]
        rest = [graph.param(k) for k in range(len(equations.parameters))]
        rest += [graph.weight(k) for k in range(equations.n_weights)] + [graph.time()]
        cotangents = [graph.cotangent(c) for c in range(len(own))]
        plain = reverse(components.rates, cotangents, own + rest)
        inside = {x.number for x in topological(components.rates)}
        dear = [x for x in topological(plain) if x.number in inside and x.op in DEAR]
        kept = substitute(plain, {x.number: graph.leaf("kept", j) for j, x in enumerate(dear)})
        return cls(
            components.rates,
            tuple(kept[: len(own)]),
            tuple(kept[len(own) :]),
            tuple(dear),
            tuple(plain),
            tuple(reverse(components.initial, cotangents, rest[:-1])),
            (*own, *rest[:-1]),
        )


def room(products: Products) -> int:
    """Vectors of X that `undo` needs."""
    return (3 * COUNT + 1) * len(products.rates) + COUNT * len(products.dear)


def build(products: Products) -> Module:
    """The module: `undo`, the adjoint of an explicit step, and what `write_products` adds."""
    module = Module()
    write_products(module, products)
    with module.define("undo", UNDO_PARAMETERS) as e:
        _undo(e, len(products.rates), len(products.dear))
    return module


def write_products(module: Module, products: Products) -> None:
    """Add what every method needs.

    `slope` gives the rates, and what is dear in them; `pull` the products, by what was kept; `product` those at a place
    apart; `begun` those with the derivatives of the initial state.
    """
    size = len(products.rates)
    reading = leaves(
        time=lambda _e, _i: "%t",
        cotangent=lambda e, c: e.load("%L", c),
        kept=lambda e, j: e.load("%X", j),
    )
    with module.define("slope", ("Y", "P", "W", "F", "t", "K", "X"), internal=True) as e:
        values = e.expressions([*products.rates, *products.dear], reading)
        for c in range(size):
            e.store("%K", c, e.add(values[c], e.load("%F", c)))
        for j, value in enumerate(values[size:]):
            e.store("%X", j, value)
    for name, outputs in (("pull", [*products.states, *products.rest]), ("multiply", list(products.plain))):
        with module.define(name, ("Y", "P", "W", "L", "t", "A", "Q", "X"), internal=True) as e:
            for k, (x, value) in enumerate(zip(outputs, e.expressions(outputs, reading), strict=True)):
                if k < size:
                    e.store("%A", k, value)
                else:
                    add_to(e, k - size, x, value)
    with module.define("product", PRODUCT_PARAMETERS) as e:
        time = f"{VECTOR} {e.load('%T', TIME)}"
        e.invoke("multiply", "ptr %Y", "ptr %P", "ptr %W", "ptr %L", time, "ptr %A", "ptr %Q", "ptr null")
    with module.define("begun", BEGUN_PARAMETERS) as e:
        for k, (x, value) in enumerate(
            zip(products.start, e.expressions(products.start, reading), strict=True)
        ):
            add_to(e, k, x, value)


def add_to(e: Emitter, k: int, x: Symbol, value: str) -> None:
    """Add to entry k of the gradient what is not structurally zero."""
    if x is not x.graph.zero:
        e.store("%Q", k, e.add(e.load("%Q", k), value))


def _undo(e: Emitter, size: int, dear: int) -> None:
    """The body of `undo`; X: slopes, states and adjoints of the stages, kbar, then what is kept."""
    start, h = e.load("%T", 0), e.load("%T", 1)
    slopes = [e.row("%X", i * size) for i in range(COUNT)]
    states = ["%Y", *(e.row("%X", (COUNT + i) * size) for i in range(1, COUNT))]
    back = [e.row("%X", (2 * COUNT + i) * size) for i in range(COUNT)]
    bar = e.row("%X", 3 * COUNT * size)
    kept = [e.row("%X", (3 * COUNT + 1) * size + i * dear) for i in range(COUNT)]
    times = [f"{VECTOR} {e.fma(h, e.constant(node), start)}" for node in NODES[:COUNT]]
    for i in range(COUNT):
        if i:
            with e.loop(size) as c:
                total = e.constant(0.0)
                for slope, a in zip(slopes[:i], STAGES[i], strict=True):
                    total = e.fma(e.load(slope, c), e.constant(a), total)
                e.store(states[i], c, e.fma(total, h, e.load("%Y", c)))
        if i < COUNT - 1 or dear:
            given = (f"ptr {states[i]}", "ptr %P", "ptr %W", "ptr %F", times[i])
            e.invoke("slope", *given, f"ptr {slopes[i]}", f"ptr {kept[i]}")
    for i in reversed(range(COUNT)):
        with e.loop(size) as c:
            total = e.mul(e.load("%L", c), e.constant(STAGES[COUNT][i]))
            for m in range(i + 1, COUNT):
                total = e.fma(e.load(back[m], c), e.constant(STAGES[m][i]), total)
            total = e.mul(total, h)
            e.store(bar, c, total)
            e.store("%R", c, e.add(e.load("%R", c), total))
        e.invoke(
            "pull", f"ptr {states[i]}", "ptr %P", "ptr %W", f"ptr {bar}", times[i], f"ptr {back[i]}", "ptr %Q",
            f"ptr {kept[i]}",
        )  # fmt: skip
    with e.loop(size) as c:
        total = e.load("%L", c)
        for adjoint in back:
            total = e.add(total, e.load(adjoint, c))
        e.store("%L", c, total)
