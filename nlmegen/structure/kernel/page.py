"""The module of one page: its rates, its start, its acceleration and a step."""

from __future__ import annotations

from collections.abc import Mapping

from nlmegen.structure.equations import Components
from nlmegen.structure.kernel.emit import VECTOR, Emitter, Leaf, Module
from nlmegen.structure.kernel.protocol import F_PARAMETERS, FRESH, RATES_PARAMETERS, TIME, Method


def leaves(**more: Leaf) -> Mapping[str, Leaf]:
    """How the leaves of a page's graphs are read, in a function whose pointers are called Y, P, W and F.

    Args:
        more: further kinds of leaf, or other ways: `time=lambda e, _: "%t"`.
    """

    def row(pointer: str) -> Leaf:
        return lambda e, index: e.load(pointer, index)

    def weight(e: Emitter, index: int) -> str:
        return e.broadcast("%W", index)

    return {
        "state": row("%Y"),
        "component": row("%Y"),
        "param": row("%P"),
        "weight": weight,
        "forcing": row("%F"),
        **more,
    }


def build(components: Components, method: Method) -> Module:
    """The module of `protocol.py` for these components.

    Args:
        components: amounts and sensitivities to be solved for.
        method: writes the step.
    """
    module = Module()
    size = len(components.keys)
    with module.define("f", F_PARAMETERS, internal=True) as e:
        for i, rate in enumerate(e.expressions(components.rates, leaves(time=lambda _e, _i: "%t"))):
            e.store("%K", i, e.add(rate, e.load("%F", i)))
    with module.define("rates", RATES_PARAMETERS) as e:
        scratch = e.row("%K", size)
        e.invoke(
            "f", "ptr %Y", "ptr %P", "ptr %W", "ptr %F", f"{VECTOR} {e.load('%T', TIME)}", f"ptr {scratch}"
        )
        fresh = e.compare("ogt", e.load("%T", FRESH), e.constant(0.0))
        with e.loop(size) as c:
            e.store("%K", c, e.select(fresh, e.load(scratch, c), e.load("%K", c)))
    with module.define("initial", ("P", "W", "Y")) as e:
        for i, value in enumerate(e.expressions(components.initial, leaves())):
            e.store("%Y", i, value)
    if components.order > 1:
        with module.define("acceleration", ("Y", "P", "W", "F", "T", "A")) as e:
            clock = e.load("%T", TIME)
            for i, x in enumerate(e.expressions(components.acceleration, leaves(time=lambda _e, _i: clock))):
                e.store("%A", i, x)
    method.write(module, components)
    return module
