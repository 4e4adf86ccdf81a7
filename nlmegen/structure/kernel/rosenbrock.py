"""The stiff step of a compiled page: a Rosenbrock method of order 5 (Rodas5Pe), with its sensitivities.

With J the Jacobian of the rates f at the start of a step of size h, and W = 1/(gamma h) - J, the stages are

    W u_i = f(t + alpha_i h, y + sum_j a_ij u_j) + sum_j c_ij u_j / h + d_i h f_t          i = 1, ..., 8
    y(t + h) = y + sum_i m_i u_i        error = sum_i e_i u_i .

The derivative of a step in a parameter p_q is the same step taken by the system of amounts and sensitivities together,
whose Jacobian is block triangular with J in every diagonal block. So no derivative is taken through the elimination:
W is factored once a step, and every stage of every sensitivity is one more pair of triangular solves,

    W u_q  = F_q  + ... + J_q u                             J_q, J_qr: total derivatives of J along the solution,
    W u_qr = F_qr + ... + J_q u_r + J_r u_q + J_qr u        F_q, F_qr: rates of the sensitivities at the stage.

J, J_q and J_qr are the same for all stages; they are written from the graph once a step. W is factored without
exchanging rows, in an order that creates few new entries, with structural zeros left out. What exchanges would protect
from is left to the error estimate: a pivot that is lost to cancellation spoils the stages, each in its own way, so that
the estimate is large, the step refused and a shorter one tried (W is dominated by its diagonal 1/(gamma h) once h is
small).

The method is L-stable, stiffly accurate, and keeps its order in the limit of infinite stiffness. Coefficients:
Steinebach (2023), BIT Numer Math 63:27, doi:10.1007/s10543-023-00967-x (Rodas5P), in the form of Hairer & Wanner,
Solving Ordinary Differential Equations II, section IV.7; error weights: Steinebach (2024), Rosenbrock methods within
OrdinaryDiffEq.jl, as given there for Rodas5Pe.
"""

from __future__ import annotations

from collections.abc import Mapping

from nlmegen.structure.derive import forward, topological
from nlmegen.structure.equations import Component, Components
from nlmegen.structure.kernel.emit import VECTOR, Emitter, Module
from nlmegen.structure.kernel.norm import Length, Norm
from nlmegen.structure.kernel.page import leaves
from nlmegen.structure.kernel.protocol import STEP_PARAMETERS, TIME, Method
from nlmegen.structure.trace import Symbol, Untraceable

# fmt: off
GAMMA = 0.21193756319429014
_LAST = (-7.502846399306121, 2.561846144803919, -11.627539656261098, -0.18268767659942256, 0.030198172008377946)
STAGES: tuple[tuple[float, ...], ...] = (  # a
    (),
    (3.0,),
    (2.849394379747939, 0.45842242204463923),
    (-6.954028509809101, 2.489845061869568, -10.358996098473584),
    (2.8029986275628964, 0.5072464736228206, -0.3988312541770524, -0.04721187230404641),
    _LAST,
    (*_LAST, 1.0),
    (*_LAST, 1.0, 1.0),
)
COUPLING: tuple[tuple[float, ...], ...] = (  # c
    (),
    (-14.155112264123755,),
    (-17.97296035885952, -2.859693295451294),
    (147.12150275711716, -1.41221402718213, 71.68940251302358),
    (165.43517024871676, -0.4592823456491126, 42.90938336958603, -5.961986721573306),
    (24.854864614690072, -3.0009227002832186, 47.4931110020768, 5.5814197821558125, -0.6610691825249471),
    (30.91273214028599, -3.1208243349937974, 77.79954646070892, 34.28646028294783, -19.097331116725623,
     -28.087943162872662),
    (37.80277123390563, -3.2571969029072276, 112.26918849496327, 66.9347231244047, -40.06618937091002,
     -54.66780262877968, -9.48861652309627),
)
NODES = (0.0, 0.6358126895828704, 0.4095798393397535, 0.9769306725060716, 0.4288403609558664, 1.0, 1.0, 1.0)  # alpha
SLOPES = (GAMMA, -0.42387512638858027, -0.3384627126235924, 1.8046452872882734, 2.325825639765069, 0.0, 0.0, 0.0)  # d
WEIGHTS = (*_LAST, 1.0, 1.0, 1.0)  # m
ERROR = (0.2606326497975715, -0.005158627295444251, 1.3038988631109731, 1.235000722062074, -0.7931985603795049,
         -1.005448461135913, -0.18044626132120234, 0.17051519239113755)  # e
# fmt: on
COUNT = len(STAGES)

LARGEST = 12_000
"""Operations of one step's functions above which a page is not compiled: about three seconds of compiling."""


class _Plan:
    """Where everything stands that a step needs: the derivatives of J, the elimination, and the rows of K.

    Rows of K: rates at the start (C), rates at a stage (C), the rest of a stage's right side (C), time derivatives
    (C, none for a page free of time), stages (8 C), then the table: coefficients and factors, one row each.

    Attributes:
        components: what is solved.
        index: the place of each component.
        terms: for each component (of a sensitivity) the pairs (coefficient, component) that lower orders give to the
            right side of its stage.
        jacobian: J by (row, column), without structural zeros.
        slopes: time derivatives of the rates, by component.
        order: states in order of elimination.
        rows: of each factor, "lower", "upper" or "pivot", by row and column, its place in the table.
    """

    def __init__(self, components: Components) -> None:
        self.components = components
        equations = components.equations
        self.size, self.count = len(components.keys), len(equations.compartments)
        self.index = {key: c for c, key in enumerate(components.keys)}
        self.jacobian = {
            (i, u[1]): x
            for i, row in enumerate(equations.jacobian)
            for u, x in row.items()
            if u[0] == "state"
        }
        clock = {equations.graph.time().number: {0: equations.graph.one}}
        found = [] if equations.autonomous else forward(components.rates, clock)
        self.slopes = {c: row[0] for c, row in enumerate(found) if row}
        self.terms = _terms(components, self.index, self.jacobian)
        self.place: dict[int, int] = {}
        for x in (*self.jacobian.values(), *(x for pairs in self.terms for x, _ in pairs)):
            if not _at_hand(x):
                self.place.setdefault(x.number, len(self.place))
        self._symbols = {x.number: x for x in self.jacobian.values()}
        self._symbols |= {x.number: x for pairs in self.terms for x, _ in pairs}
        self.order, filled = _elimination(set(self.jacobian), self.count)
        rank = {i: k for k, i in enumerate(self.order)}
        self.rows: dict[tuple[str, int, int], int] = {}
        for i, j in sorted(filled):
            kind = "pivot" if i == j else "lower" if rank[i] > rank[j] else "upper"
            self.rows[kind, i, j] = len(self.place) + len(self.rows)

    @property
    def table(self) -> dict[int, Symbol]:
        """Coefficients by their row of the table."""
        return {row: self._symbols[number] for number, row in self.place.items()}

    @property
    def blocks(self) -> int:
        """Blocks of C rows in K."""
        return (3 if self.components.equations.autonomous else 4) + COUNT

    def block(self, e: Emitter, k: int) -> str:
        """Pointer to a block of K: 0 start, 1 stage, 2 rest, -8, ..., -1 the solved stages."""
        return "%K" if k == 0 else e.row("%K", self.size * (k if k > 0 else self.blocks + k))

    def coefficient(self, e: Emitter, x: Symbol) -> str:
        """The value of a coefficient, in a function that has the table as G and the parameters as P."""
        if x.op == "const":
            return e.constant(x.args[0])
        return e.load("%P", x.args[1]) if _at_hand(x) else e.load("%G", self.place[x.number])

    def states(self, along: tuple[int, ...]) -> dict[int, int]:
        """The components of one block by state, in order of elimination."""
        return {i: self.index[i, along] for i in self.order if (i, along) in self.index}


def _at_hand(x: Symbol) -> bool:
    """Whether a coefficient need not be stored: a constant or a parameter."""
    return x.op == "const" or (x.op == "leaf" and x.args[0] == "param")


def _terms(
    components: Components, index: Mapping[Component, int], jacobian: Mapping[tuple[int, int], Symbol]
) -> list[list[tuple[Symbol, int]]]:
    """For each component what the stages of lower orders give to it, J_q u and J_q u_r + J_r u_q + J_qr u."""
    g = components.equations.graph
    first: dict[int, dict[int, Symbol]] = {}
    second: dict[int, dict[int, Symbol]] = {}
    for q in range(len(components.equations.parameters) if components.order else 0):
        first.setdefault(g.param(q).number, {})[q] = g.one
    for (i, along), c in index.items():
        for q in set(along):
            rest = along[1:] if along[0] == q else along[:1]
            if rest and (i, rest) not in index:
                continue  # zero for every value, and so is what it would drive
            below = g.component(index[i, rest]) if rest else g.state(i)
            (second if rest else first).setdefault(below.number, {})[q] = g.component(c)
    places = list(jacobian)
    once = dict(zip(places, forward(list(jacobian.values()), first), strict=True))
    flat = [(ij, q, x) for ij, row in once.items() for q, x in row.items()] if components.order > 1 else []
    twice = {
        (ij, q): row
        for (ij, q, _), row in zip(flat, forward([x for _, _, x in flat], first | second), strict=True)
    }
    out: list[list[tuple[Symbol, int]]] = []
    for i, along in components.keys:
        pairs: list[tuple[Symbol | None, Component]] = []
        for j in (j for k, j in places if k == i):
            if len(along) == 1:
                pairs.append((once[i, j].get(along[0]), (j, ())))
            elif along:
                q, r = along
                pairs.append((once[i, j].get(q), (j, (r,))))
                pairs.append((once[i, j].get(r), (j, (q,))))
                pairs.append((twice.get(((i, j), q), {}).get(r), (j, ())))
        out.append([(x, index[key]) for x, key in pairs if x is not None and key in index])
    return out


def _elimination(jacobian: set[tuple[int, int]], count: int) -> tuple[list[int], set[tuple[int, int]]]:
    """An order of elimination that creates few entries (Markowitz: least row times column count), and the entries."""
    entries = jacobian | {(i, i) for i in range(count)}
    active, left, order = set(entries), set(range(count)), []
    while left:
        cost = {k: [0, 0] for k in left}
        for i, j in active:
            cost[i][0] += 1
            cost[j][1] += 1
        k = min(left, key=lambda k: ((cost[k][0] - 1) * (cost[k][1] - 1), k))
        below = [i for i in left if i != k and (i, k) in active]
        right = [j for j in left if j != k and (k, j) in active]
        created = {(i, j) for i in below for j in right}
        entries |= created
        left.remove(k)
        order.append(k)
        active = {(i, j) for i, j in active | created if i in left and j in left}
    return order, entries


def _linearise(module: Module, plan: _Plan) -> None:
    """Add `linearise`: the coefficients of the table, and the time derivatives of the rates."""
    with module.define("linearise", ("Y", "P", "W", "t", "G", "D"), internal=True) as e:
        reading = leaves(time=lambda _e, _i: "%t")
        places = [*(("%G", row) for row in plan.table), *(("%D", c) for c in plan.slopes)]
        values = e.expressions([*plan.table.values(), *plan.slopes.values()], reading)
        for (pointer, row), x in zip(places, values, strict=True):
            e.store(pointer, row, x)


def _factor(module: Module, plan: _Plan) -> None:
    """Add `factor`: W = g I - J as L U; stored are -L_ik, -U_kj / U_kk and 1 / U_kk."""
    with module.define("factor", ("P", "G", "g"), internal=True) as e:
        w: dict[tuple[int, int], str] = {}
        for _, i, j in plan.rows:
            x = plan.jacobian.get((i, j))
            value = e.constant(0.0) if x is None else plan.coefficient(e, x)
            w[i, j] = e.sub("%g" if i == j else e.constant(0.0), value)
        done: set[int] = set()
        for k in plan.order:
            done.add(k)
            below = [i for i in plan.order if i not in done and (i, k) in w]
            right = [j for j in plan.order if j not in done and (k, j) in w]
            pivot = e.div(e.constant(1.0), w[k, k])
            e.store("%G", plan.rows["pivot", k, k], pivot)
            for i in below:
                factor = e.negative(e.mul(w[i, k], pivot))
                e.store("%G", plan.rows["lower", i, k], factor)
                for j in right:
                    w[i, j] = e.fma(factor, w[k, j], w[i, j])
            for j in right:
                e.store("%G", plan.rows["upper", k, j], e.negative(e.mul(w[k, j], pivot)))


def _solve(module: Module, plan: _Plan) -> None:
    """Add `solve`: one stage U of all components from its right side, the sum of R and B."""
    with module.define("solve", ("P", "G", "R", "B", "U"), internal=True) as e:
        for along in sorted({along for _, along in plan.components.keys}, key=lambda x: (len(x), x)):
            states = plan.states(along)
            b = {}
            for i, c in states.items():
                b[i] = e.add(e.load("%R", c), e.load("%B", c))
                for x, other in plan.terms[c]:
                    b[i] = e.fma(plan.coefficient(e, x), e.load("%U", other), b[i])
            for k in states:
                for i in states:
                    if ("lower", i, k) in plan.rows:
                        b[i] = e.fma(e.load("%G", plan.rows["lower", i, k]), b[k], b[i])
            for i in reversed(states):
                b[i] = e.mul(b[i], e.load("%G", plan.rows["pivot", i, i]))
                for j in states:
                    if ("upper", i, j) in plan.rows:
                        b[i] = e.fma(e.load("%G", plan.rows["upper", i, j]), b[j], b[i])
                e.store("%U", states[i], b[i])


def _stage(e: Emitter, plan: _Plan, i: int, h: str, g: str) -> None:
    """Write the argument of stage i to YN and, to B, sum_j c_ij u_j / h + d_i h f_t."""
    scale = e.mul(g, e.constant(GAMMA))
    slope = None if plan.components.equations.autonomous or SLOPES[i] == 0 else plan.block(e, 3)
    solved = [plan.block(e, k - COUNT) for k in range(i)]
    rest = plan.block(e, 2)
    incremental = i > 0 and STAGES[i][:-1] == STAGES[i - 1] and STAGES[i][-1] == 1.0
    with e.loop(plan.size) as c:
        stages = [e.load(u, c) for u in solved]
        if i:
            y, new = (e.load("%YN", c), stages[-1:]) if incremental else (e.load("%Y", c), stages)
            for a, u in zip(STAGES[i][-len(new) :], new, strict=True):
                y = e.fma(u, e.constant(a), y)
            e.store("%YN", c, y)
        total = e.constant(0.0)
        for a, u in zip(COUPLING[i], stages, strict=True):
            total = e.fma(u, e.constant(a), total)
        total = e.mul(total, scale)
        if slope is not None:
            total = e.fma(e.mul(h, e.constant(SLOPES[i])), e.load(slope, c), total)
        e.store(rest, c, total)


def write(module: Module, components: Components) -> None:
    """Add `step` to a module that has `f`.

    Raises:
        Untraceable: when the step would be too long to compile in seconds.
    """
    plan = _Plan(components)
    if (operations := _operations(plan)) > LARGEST:
        raise Untraceable(
            f"the system of {plan.size} amounts and sensitivities is too large for the compiled stiff step "
            f"({operations} operations, {LARGEST} allowed)"
        )
    _linearise(module, plan)
    _factor(module, plan)
    _solve(module, plan)
    with module.define("step", STEP_PARAMETERS) as e:
        length = Length(e)
        h, time = length.value, e.load("%T", TIME)
        g = e.div(e.constant(1.0 / GAMMA), h)
        stage, rest, table = plan.block(e, 1), plan.block(e, 2), plan.block(e, plan.blocks)
        slope = rest if components.equations.autonomous else plan.block(e, 3)
        if slope != rest:
            with e.loop(plan.size) as c:
                e.store(slope, c, e.constant(0.0))
        e.invoke(
            "linearise", "ptr %Y", "ptr %P", "ptr %W", f"{VECTOR} {time}", f"ptr {table}", f"ptr {slope}"
        )
        e.invoke("factor", "ptr %P", f"ptr {table}", f"{VECTOR} {g}")
        for i in range(COUNT):
            _stage(e, plan, i, h, g)
            solved = plan.block(e, i - COUNT)
            if i:
                at = e.fma(h, e.constant(NODES[i]), time)
                e.invoke("f", "ptr %YN", "ptr %P", "ptr %W", "ptr %F", f"{VECTOR} {at}", f"ptr {stage}")
            given = stage if i else "%K"
            e.invoke("solve", "ptr %P", f"ptr {table}", f"ptr {given}", f"ptr {rest}", f"ptr {solved}")
        stages = [plan.block(e, k - COUNT) for k in range(COUNT)]
        with e.loop(plan.size) as c:
            e.store("%YN", c, e.add(e.load("%YN", c), e.load(stages[-1], c)))
            error = e.constant(0.0)
            for weight, u in zip(ERROR, stages, strict=True):
                error = e.fma(e.load(u, c), e.constant(weight), error)
            e.store(rest, c, error)
        norm = Norm(e, components, order=5)
        for k in range(plan.size):
            norm.add(k, e.load(rest, k))
        accepted = norm.decide(length)
        end = e.add(time, h)
        e.invoke("f", "ptr %YN", "ptr %P", "ptr %W", "ptr %F", f"{VECTOR} {end}", f"ptr {stage}")
        with e.loop(plan.size) as c:
            e.store("%Y", c, e.select(accepted, e.load("%YN", c), e.load("%Y", c)))
            e.store("%K", c, e.select(accepted, e.load(stage, c), e.load("%K", c)))


def _operations(plan: _Plan) -> int:
    """About how many instructions the functions of a step hold."""
    graphs = topological([*plan.components.rates, *plan.table.values(), *plan.slopes.values()])
    terms = sum(len(pairs) for pairs in plan.terms)
    blocks = {along for _, along in plan.components.keys}
    return len(graphs) + terms + sum(len(plan.states(along)) ** 2 for along in blocks)


def _rows(components: Components) -> int:
    """Vectors of K that are enough for a step: blocks, coefficients and factors."""
    equations = components.equations
    read = [sum(kind == "state" for kind, _ in row) for row in equations.jacobian]
    coefficients = sum((1, 1, 3)[len(along)] * read[i] for i, along in components.keys)
    return (4 + COUNT) * len(components.keys) + coefficients + len(read) ** 2


STIFF = Method(name="stiff", rows=_rows, write=write)
