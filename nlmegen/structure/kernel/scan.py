"""A plan as LLVM IR: one function that takes eight rows through their observations abreast.

    name(IN, DATA, N, BAR, OUT, RESULT)

    IN      vectors of the row's leaves, kind after kind (`plans.ROW_LEAVES`)
    DATA    what happens to each lane, see below
    N       one int64: the number of steps of the lane that has most
    BAR     cotangents, `[step, cotangent]` vectors
    OUT     numbers at every step, `[step, number]` vectors, of a plan that stores them
    RESULT  numbers of the row

DATA begins with the amounts given at the first event (a vector for each compartment) and the infusion rates that then
run (likewise). Then come the steps, `width` vectors each: first an event where ADVANCE is 1 (the amounts go a time SPAN
on, are multiplied by KEEP, and the doses GIVEN come in; from then on infusions run at RATES), then an observation where
OBSERVED is 1. Lanes do not see each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from nlmegen.structure.derive import operands, topological
from nlmegen.structure.kernel.emit import Emitter, Leaf, Module
from nlmegen.structure.plans import ROW_LEAVES, Plan
from nlmegen.structure.primitive import primitive
from nlmegen.structure.symbols import Symbol

OBSERVED, ELAPSED, ADVANCE, SPAN, KEEP, TIME, VALUE, HELD, ENDPOINT, GIVEN = range(10)
"""Fields of a step; GIVEN and the rates after it take one vector for each compartment."""

PARAMETERS = ("IN", "DATA", "N", "BAR", "OUT", "RESULT")
MOVING = (
    "state",
    "component",
    "forcing",
    "step",
    "time",
    "prediction",
    "observed",
    "endpoint",
    "held",
    "cotangent",
)
"""Leaves that differ from observation to observation."""


def width(compartments: int) -> int:
    """Vectors of a step."""
    return GIVEN + 2 * compartments


def build(plan: Plan) -> Module:
    """The module of one plan."""
    module = Module()
    with module.define(plan.name, PARAMETERS) as e:
        _Scan(e, plan).write()
    return module


class _Scan:
    def __init__(self, e: Emitter, plan: Plan) -> None:
        self.e, self.plan, self.print = e, plan, plan.blueprint
        self.count, self.width = self.print.compartments, width(self.print.compartments)
        self.known: dict[int, str] = {}
        starts = [sum(plan.sizes[:k]) for k in range(len(ROW_LEAVES))]
        self.row: dict[str, Leaf] = {
            kind: _reader("%IN", start) for kind, start in zip(ROW_LEAVES, starts, strict=True)
        }

    def write(self) -> None:
        """The body of the function."""
        e, plan = self.e, self.plan
        zero = e.constant(0.0)
        amounts = [e.variable(zero) for _ in plan.course.keys]
        running = [e.variable(e.load("%DATA", self.count + c)) for c in range(self.count)]
        totals = [e.variable(zero) for _ in plan.each] if plan.fate == "sum" else []
        for c, (i, directions) in enumerate(plan.course.keys):
            if not directions:
                e.write(amounts[c], e.load("%DATA", i))
        quantities = e.expressions(self.print.quantities, self.row, self.known)
        bound = e.expressions(plan.bound, self.row, self.known)
        place = {i: c for c, (i, directions) in enumerate(plan.course.keys) if not directions}

        def state(e: Emitter, i: int) -> str:
            return e.read(amounts[place[i]]) if i in place else e.load("%DATA", i)

        inner: dict[str, Leaf] = {
            **self.row,
            "param": lambda _e, k: quantities[k],
            "bound": lambda _e, k: bound[k],
            "state": state,
            "component": lambda e, c: e.read(amounts[c]),
            "forcing": lambda e, c: e.read(running[c]),
        }
        self._constant_part(inner)
        with e.repeat(e.new("load i64, ptr %N")) as index:
            base = e.new(f"add i64 {e.new(f'mul i64 {index}, {self.width}')}, {2 * self.count}")

            def field(k: int) -> str:
                return e.load("%DATA", e.new(f"add i64 {base}, {k}"))

            if plan.course.keys:
                advance = e.compare("ogt", field(ADVANCE), zero)
                with e.if_any(advance):
                    self._event(inner, advance, field, amounts, running)
            seen = e.compare("ogt", field(OBSERVED), zero)
            with e.if_any(seen):
                self._observation(inner, seen, field, index, totals)
        last: dict[str, Leaf] = {**self.row, "sum": lambda e, k: e.read(totals[k])}
        for k, x in enumerate(e.expressions(plan.end, last, dict(self.known))):
            e.store("%RESULT", k, x)

    def _constant_part(self, leaves: Mapping[str, Leaf]) -> None:
        """What observations and events need that is the same for all of them, before the loop."""
        outputs = primitive([*self._reduced(), *self.plan.course.carried])
        varies: dict[int, bool] = {}
        fixed: dict[int, Symbol] = {}
        for x in topological(outputs):
            below = operands(x)
            varies[x.number] = x.op == "leaf" and x.args[0] in MOVING or any(varies[y.number] for y in below)
            for y in below if varies[x.number] else ():
                if not varies[y.number] and y.op != "const":
                    fixed[y.number] = y
        for x in outputs:
            if not varies[x.number] and x.op != "const":
                fixed[x.number] = x
        self.e.expressions(list(fixed.values()), leaves, self.known)

    def _reduced(self) -> list[Symbol]:
        return [self.plan.course.prediction, *self.plan.each]

    def _event(
        self,
        leaves: Mapping[str, Leaf],
        advance: str,
        field: Callable[[int], str],
        amounts: Sequence[str],
        running: Sequence[str],
    ) -> None:
        e, course = self.e, self.plan.course
        span, keep = field(SPAN), field(KEEP)
        there = {**leaves, "step": lambda _e, _k: span}
        after = e.expressions(course.carried, there, dict(self.known))
        for (i, directions), old, new in zip(course.keys, amounts, after, strict=True):
            kept = e.mul(keep, new)
            if not directions:
                kept = e.add(kept, field(GIVEN + i))
            e.write(old, e.select(advance, kept, e.read(old)))
        for c, rate in enumerate(running):
            e.write(rate, e.select(advance, field(GIVEN + self.count + c), e.read(rate)))

    def _observation(
        self,
        leaves: Mapping[str, Leaf],
        seen: str,
        field: Callable[[int], str],
        index: str,
        totals: Sequence[str],
    ) -> None:
        e, plan = self.e, self.plan
        known = dict(self.known)

        def given(k: int) -> Leaf:
            return lambda _e, _k: field(k)

        here = {
            **leaves,
            "step": given(ELAPSED),
            "time": given(TIME),
            "observed": given(VALUE),
            "held": given(HELD),
            "endpoint": given(ENDPOINT),
            "cotangent": lambda e, c: e.load("%BAR", _at(e, index, plan.cotangents, c)),
        }
        (f,) = e.expressions([plan.course.prediction], here, known)
        here["prediction"] = lambda _e, _k: f
        for c, x in enumerate(e.expressions(plan.each, here, known)):
            if plan.fate == "sum":
                e.write(totals[c], e.select(seen, e.add(e.read(totals[c]), x), e.read(totals[c])))
            else:
                e.store("%OUT", _at(e, index, len(plan.each), c), x)


def _at(e: Emitter, index: str, size: int, c: int) -> str:
    return e.new(f"add i64 {e.new(f'mul i64 {index}, {size}')}, {c}")


def _reader(pointer: str, start: int) -> Leaf:
    return lambda e, k: e.load(pointer, start + k)
