"""The adjoint of one stiff step, as LLVM IR.

The step (`rosenbrock.py`) is, for amounts and sensitivities z together, with rates g and their Jacobian G at its start,

    W u_i = g(Z_i) + sum_j c_ij u_j / h + d_i h g_t      W = 1/(gamma h) I - G
    Z_i = z + sum_j a_ij u_j                             z' = z + sum_i m_i u_i .

From the last stage to the first, the adjoint of z' gives

    W' v_i = m_i zbar' + sum_(m > i) (a_mi Zbar_m + c_mi v_m / h)    Zbar_i = (dg/dZ)' v_i    pbar += (dg/dp)' v_i ,

by the step's own factors, transposed. What is left is that W itself depends on z and p: the adjoint of an entry of G is
sum_i v_i u_i, that of g_t is h sum_i d_i v_i, and one more product with the derivatives of these entries ends the step.
"""

from __future__ import annotations

from nlmegen.structure.derive import reverse
from nlmegen.structure.equations import Components
from nlmegen.structure.kernel import rosenbrock as forth
from nlmegen.structure.kernel.emit import VECTOR, Emitter, Module
from nlmegen.structure.kernel.page import leaves
from nlmegen.structure.kernel.reverse import UNDO_PARAMETERS, Products, add_to, write_products

COUNT = forth.COUNT


class _Room:
    """Rows of X.

    For each stage u, Z, Zbar, v; then g_t, rates, right side, what comes through W; the table of coefficients and
    factors; adjoints of coefficients and of g_t; what is kept.
    """

    def __init__(self, plan: forth._Plan, dear: int) -> None:
        size, self.dear = plan.size, dear
        self.solved, self.states, self.back, self.turned = (k * COUNT * size for k in range(4))
        self.slope = 4 * COUNT * size
        self.rates, self.right, self.bent = (self.slope + k * size for k in (1, 2, 3))
        self.table = self.bent + size
        self.entries = self.table + len(plan.place) + len(plan.rows)
        self.slopes = self.entries + len(plan.place)
        self.kept = self.slopes + len(plan.slopes)
        self.end = self.kept + COUNT * dear


def room(components: Components, products: Products) -> int:
    """Vectors of X that `undo` needs."""
    return _Room(forth._Plan(components), len(products.dear)).end


def build(components: Components, products: Products) -> Module:
    """The module: `undo`, the adjoint of a stiff step, and what `write_products` adds."""
    module, plan = Module(), forth._Plan(components)
    write_products(module, products)
    forth._linearise(module, plan)
    forth._factor(module, plan)
    forth._solve(module, plan)
    _turn(module, plan)
    _gather(module, plan)
    _bend(module, plan, products)
    with module.define("undo", UNDO_PARAMETERS) as e:
        _undo(e, plan, _Room(plan, len(products.dear)))
    return module


def _turn(module: Module, plan: forth._Plan) -> None:
    """Add `turn`: V from W' V = B, the transpose of `solve`, operation by operation."""
    with module.define("turn", ("P", "G", "B", "V"), internal=True) as e:
        b = [e.load("%B", c) for c in range(plan.size)]
        for along in sorted({along for _, along in plan.components.keys}, key=lambda x: (-len(x), x)):
            states = plan.states(along)
            for i in states:
                for j in states:
                    if ("upper", i, j) in plan.rows:
                        factor = e.load("%G", plan.rows["upper", i, j])
                        b[states[j]] = e.fma(factor, b[states[i]], b[states[j]])
                b[states[i]] = e.mul(b[states[i]], e.load("%G", plan.rows["pivot", i, i]))
            for k in reversed(states):
                for i in states:
                    if ("lower", i, k) in plan.rows:
                        factor = e.load("%G", plan.rows["lower", i, k])
                        b[states[k]] = e.fma(factor, b[states[i]], b[states[k]])
            for c in states.values():
                e.store("%V", c, b[c])
                for x, other in plan.terms[c]:
                    b[other] = e.fma(plan.coefficient(e, x), b[c], b[other])


def _gather(module: Module, plan: forth._Plan) -> None:
    """Add `gather`: to the adjoints H of the coefficients what a stage gives, v_i u_j for row i and column j."""
    index = {key: c for c, key in enumerate(plan.components.keys)}
    pairs = [(x, c, other) for c, terms in enumerate(plan.terms) for x, other in terms]
    for (i, along), c in index.items():
        pairs += [
            (x, c, index[j, along]) for (k, j), x in plan.jacobian.items() if k == i and (j, along) in index
        ]
    with module.define("gather", ("U", "V", "H", "Q"), internal=True) as e:
        total: dict[int, str] = {}
        symbols = {x.number: x for x, _, _ in pairs if x.op != "const"}
        for x, c, other in pairs:
            if x.number in symbols:
                u, v = e.load("%U", other), e.load("%V", c)
                total[x.number] = e.fma(u, v, total[x.number]) if x.number in total else e.mul(u, v)
        for number, value in total.items():
            pointer, row = "%H", plan.place.get(number, 0)
            if number not in plan.place:
                pointer, row = "%Q", symbols[number].args[1]
            e.store(pointer, row, e.add(e.load(pointer, row), value))


def _bend(module: Module, plan: forth._Plan, products: Products) -> None:
    """Add `bend`: products of H with derivatives of coefficients and of g_t, in the components to A, the rest to Q."""
    graph = plan.components.equations.graph
    outputs = [*plan.table.values(), *plan.slopes.values()]
    values = reverse(outputs, [graph.cotangent(k) for k in range(len(outputs))], products.wanted)
    reading = leaves(time=lambda _e, _i: "%t", cotangent=lambda e, k: e.load("%H", k))
    with module.define("bend", ("Y", "P", "W", "t", "H", "A", "Q"), internal=True) as e:
        infinity = e.constant(float("inf"))
        for k, (x, value) in enumerate(zip(values, e.expressions(values, reading), strict=True)):
            # an infinite derivative of an entry of W (a power, at an amount of 0) is left out, as an infinite entry is:
            # what the end of a step owes to its W is of the order of its error
            finite = e.select(e.compare("olt", e.absolute(value), infinity), value, e.constant(0.0))
            if k < plan.size:
                e.store("%A", k, finite)
            else:
                add_to(e, k - plan.size, x, finite)


def _combination(e: Emitter, total: str, terms: list[tuple[float, str]], c: str) -> str:
    """total + sum of weight times row c of a block."""
    for weight, block in terms:
        if weight:
            total = e.fma(e.load(block, c), e.constant(weight), total)
    return total


def _undo(e: Emitter, plan: forth._Plan, room: _Room) -> None:
    """The body of `undo`."""
    size, zero = plan.size, e.constant(0.0)
    start, h = e.load("%T", 0), e.load("%T", 1)
    inverse = e.div(e.constant(1.0), h)
    g = e.mul(inverse, e.constant(1.0 / forth.GAMMA))
    solved, states, back, turned = (
        [e.row("%X", first + i * size) for i in range(COUNT)]
        for first in (room.solved, room.states, room.back, room.turned)
    )
    states[0] = "%Y"
    slope, rates, right, bent, table, entries = (
        e.row("%X", k) for k in (room.slope, room.rates, room.right, room.bent, room.table, room.entries)
    )
    kept = [e.row("%X", room.kept + i * room.dear) for i in range(COUNT)]
    at = [f"{VECTOR} {e.fma(h, e.constant(node), start)}" for node in forth.NODES]
    for pointer, count in ((slope, size), (entries, len(plan.place) + len(plan.slopes))):
        if count:
            with e.loop(count) as c:
                e.store(pointer, c, zero)
    e.invoke("linearise", "ptr %Y", "ptr %P", "ptr %W", at[0], f"ptr {table}", f"ptr {slope}")
    e.invoke("factor", "ptr %P", f"ptr {table}", f"{VECTOR} {g}")
    for i in range(COUNT):
        pull = e.mul(h, e.constant(forth.SLOPES[i]))
        with e.loop(size) as c:
            if i:
                terms = list(zip(forth.STAGES[i], solved, strict=False))
                e.store(states[i], c, _combination(e, e.load("%Y", c), terms, c))
            total = _combination(e, zero, list(zip(forth.COUPLING[i], solved, strict=False)), c)
            e.store(right, c, e.fma(pull, e.load(slope, c), e.mul(total, inverse)))
        e.invoke(
            "slope", f"ptr {states[i]}", "ptr %P", "ptr %W", "ptr %F", at[i], f"ptr {rates}", f"ptr {kept[i]}"
        )  # fmt: skip
        e.invoke("solve", "ptr %P", f"ptr {table}", f"ptr {rates}", f"ptr {right}", f"ptr {solved[i]}")
    for i in reversed(range(COUNT)):
        later = range(i + 1, COUNT)
        with e.loop(size) as c:
            total = _combination(e, zero, [(forth.COUPLING[m][i], turned[m]) for m in later], c)
            total = e.fma(e.load("%L", c), e.constant(forth.WEIGHTS[i]), e.mul(total, inverse))
            total = _combination(e, total, [(forth.STAGES[m][i], back[m]) for m in later], c)
            e.store(right, c, total)
        e.invoke("turn", "ptr %P", f"ptr {table}", f"ptr {right}", f"ptr {turned[i]}")
        e.invoke("gather", f"ptr {solved[i]}", f"ptr {turned[i]}", f"ptr {entries}", "ptr %Q")
        pull = e.mul(h, e.constant(forth.SLOPES[i]))
        for row, state in enumerate(plan.slopes, len(plan.place)):
            e.store(entries, row, e.fma(pull, e.load(turned[i], state), e.load(entries, row)))
        with e.loop(size) as c:
            e.store("%R", c, e.add(e.load("%R", c), e.load(turned[i], c)))
        e.invoke(
            "pull", f"ptr {states[i]}", "ptr %P", "ptr %W", f"ptr {turned[i]}", at[i], f"ptr {back[i]}", "ptr %Q",
            f"ptr {kept[i]}",
        )  # fmt: skip
    e.invoke("bend", "ptr %Y", "ptr %P", "ptr %W", at[0], f"ptr {entries}", f"ptr {bent}", "ptr %Q")
    with e.loop(size) as c:
        total = e.add(e.load("%L", c), e.load(bent, c))
        for adjoint in back:
            total = e.add(total, e.load(adjoint, c))
        e.store("%L", c, total)
