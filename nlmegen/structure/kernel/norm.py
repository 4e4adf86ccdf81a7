"""The error norm of a step and what follows from it, the same for every method (see `protocol.py`)."""

from __future__ import annotations

from nlmegen.structure.equations import Components
from nlmegen.structure.kernel.emit import INTEGERS, VECTOR, Emitter
from nlmegen.structure.kernel.protocol import ENDED, FLOOR, LEFT, RTOL, STEP, TAKEN, TIME, VERDICT

# Below this share of the row's largest amount nothing is measured relative to itself: the first steps into an empty
# chain of compartments would otherwise have to begin at powers of the smallest number.
TINY = 1e-14
SMALLEST_SCALE = 1e-100
SAFETY, LARGEST_GROWTH, LARGEST_CUT = 0.9, 8.0, 0.2
LEAST_SHARE = 1 / 30
"""A column of sensitivities S_q that has stayed below this share of its amounts once multiplied with p_q (p_q = 0 is
nothing unusual: an additive random effect) is measured against this much more than itself instead ..."""
LARGEST_OWN = 1.0
"""... but with no greater weight than this: the first steps into an empty chain would begin at nothing once more."""


class Length:
    """The step that is tried: hh = min(STEP, LEFT), and whether it reaches the lane's next point.

    Attributes:
        value: hh.
        last: mask of the lanes where it reaches the point.
    """

    def __init__(self, e: Emitter) -> None:
        self.proposed, self.left = e.load("%T", STEP), e.load("%T", LEFT)
        self.last = e.compare("oge", self.proposed, self.left)
        self.value = e.select(self.last, self.left, self.proposed)
        e.store("%T", TAKEN, self.value)


class Norm:
    """Collects the errors of the components and decides.

    Args:
        e: the emitter of `step`; the trial state stands in YN.
        components: what is solved.
        order: of the error estimate's leading term, h^order (5 for a pair of orders 5 and 4); it gives the next step.
    """

    def __init__(self, e: Emitter, components: Components, order: int) -> None:
        self.e, self.components, self.order = e, components, order
        count = len(components.equations.compartments)
        magnitude = [
            e.maximum(e.absolute(e.load("%YN", i)), e.absolute(e.load("%Y", i))) for i in range(count)
        ]
        self.peaks = [e.maximum(x, e.load("%SC", i)) for i, x in enumerate(magnitude)]
        largest = self.peaks[0]
        for peak in self.peaks[1:]:
            largest = e.maximum(peak, largest)
        least = e.add(e.mul(largest, e.constant(TINY)), e.constant(SMALLEST_SCALE))
        rtol, floor = e.load("%T", RTOL), e.load("%T", FLOOR)
        self.inverse = []
        for x, peak in zip(magnitude, self.peaks, strict=True):
            scale = e.maximum(e.maximum(x, e.mul(floor, peak)), least)
            self.inverse.append(e.div(e.constant(1.0), e.mul(rtol, scale)))
        self._rtol = rtol
        self._sums: dict[tuple[int, ...], str] = {}
        self._columns: dict[int, str] = {}

    def add(self, c: int, error: str) -> None:
        """Take in the error of component c."""
        e = self.e
        state, directions = self.components.keys[c]
        x = e.mul(error, self.inverse[state])
        so_far = self._sums.get(directions)
        self._sums[directions] = e.mul(x, x) if so_far is None else e.fma(x, x, so_far)
        if len(directions) == 1:
            (q,) = directions
            share = e.mul(e.absolute(e.load("%YN", c)), self.inverse[state])
            largest = self._columns.get(q, e.load("%WQ", q))
            self._columns[q] = e.maximum(largest, share)

    def _weight(self, q: int) -> str:
        """What errors of sensitivities in p_q are multiplied with: |p_q|, or more where they are small even so."""
        e = self.e
        size = e.absolute(e.load("%P", q))
        column = self._columns.get(q)
        if column is None:
            return size
        own = e.div(e.constant(LEAST_SHARE), e.mul(self._rtol, column))
        large = e.compare("ogt", own, e.constant(LARGEST_OWN))
        return e.maximum(size, e.select(large, e.constant(LARGEST_OWN), own))

    def decide(self, length: Length) -> str:
        """Write verdict, clock, running peaks and the next step; the mask of the lanes that accept."""
        e = self.e
        share = e.constant(1.0 / len(self.peaks))
        worst = e.constant(0.0)
        weights = {q: self._weight(q) for q in sorted({q for directions in self._sums for q in directions})}
        squares = {q: e.mul(x, x) for q, x in weights.items()}
        for directions, total in self._sums.items():
            block = e.mul(total, share)
            for q in directions:
                block = e.mul(block, squares[q])
            # `ule` is true on NaN, in the block or already in the worst: once NaN, always NaN
            larger = e.select(e.compare("ule", block, worst), worst, block)
            worst = e.select(e.compare("uno", block, block), block, larger)
        accepted = e.compare("ole", worst, e.constant(1.0))
        end = e.both(accepted, length.last)
        factor = e.mul(_power(e, worst, -0.5 / self.order), e.constant(SAFETY))
        factor = e.select(
            e.compare("ogt", factor, e.constant(LARGEST_GROWTH)), e.constant(LARGEST_GROWTH), factor
        )
        factor = e.select(e.compare("ogt", factor, e.constant(LARGEST_CUT)), factor, e.constant(LARGEST_CUT))
        bad = e.compare("uno", worst, worst)
        factor = e.select(bad, e.constant(LARGEST_CUT), factor)
        proposal = e.mul(length.value, factor)
        one, zero = e.constant(1.0), e.constant(0.0)
        e.store("%T", STEP, e.select(end, e.maximum(length.proposed, proposal), proposal))
        time = e.load("%T", TIME)
        e.store("%T", TIME, e.select(accepted, e.strict("fadd", time, length.value), time))
        e.store("%T", LEFT, e.select(accepted, e.strict("fsub", length.left, length.value), length.left))
        e.store("%T", ENDED, e.select(end, one, zero))
        e.store("%T", VERDICT, e.select(accepted, one, e.select(bad, e.constant(-1.0), zero)))
        for i, peak in enumerate(self.peaks):
            e.store("%SC", i, e.select(accepted, peak, e.load("%SC", i)))
        for q, column in self._columns.items():
            e.store("%WQ", q, e.select(accepted, column, e.load("%WQ", q)))
        return accepted


def _power(e: Emitter, x: str, exponent: float) -> str:
    """x^exponent to about 1 % for x >= 0: linear between powers of two; enough for the length of a step.

    The bits of x read as an integer are 2^52 (log2 x + 1023), to .09 in log2.
    """
    bias, unit = 1023.0 * 2.0**52, 0.043 * 2.0**52
    x = e.select(e.compare("ogt", x, e.constant(1e-24)), x, e.constant(1e-24))
    bits = e.rounded(e.bits(x))
    moved = e.fma(e.add(bits, e.constant(unit - bias)), e.constant(exponent), e.constant(bias - unit))
    return e.number(e.new(f"fptosi {VECTOR} {moved} to {INTEGERS}"))
