"""Newton's method for many small minimisations, one row a lane: the rules of `maths.newton`, compiled.

A lane holds one row (one draw of one subject) until its search has ended, and is then given another, so that no row
waits for others. See `maths.newton.minimise` for what each number means; the function minimised is the plan `density`,
whose numbers of a row are l, whether the closed form must not be used, the gradient, and the upper triangles of the
Hessian and of what stands in for it where it is indefinite.

A row ends with these states, 0 or 1; MEETS means that it must be searched by another route.
"""

from __future__ import annotations

from typing import Any

from nlmegen.structure.kernel import rows as w
from nlmegen.structure.kernel.emit import LANES
from nlmegen.structure.kernel.language import call, doubles, integers
from nlmegen.structure.kernel.rows import fill

CONVERGED, INDEFINITE, MEETS = range(3)
"""Rows of the states."""

IDLE, START, GOING = range(3)

ROUNDING = 1e-10
FLOOR = 1e-10
SHORTEST = 1e-9
HUGE = 1.7e308

# rows of the table of what a lane remembers, after the point and the step
VALUE, DECREMENT, FRACTION, WAS_INDEFINITE, RESTARTED, KEPT_ROWS = range(6)

LANE_ROWS = 3
"""Rows of the integer workspace after those of `rows.fill`: two numbers for all lanes, phases, evaluations."""


def workspace(leaves: int, compartments: int, width: int, steps: int, q: int) -> int:
    """Vectors of the workspace, as `seek` cuts it up."""
    results = 2 + q + q * (q + 1)
    return leaves + 2 * compartments + steps * width + results + 3 * q + KEPT_ROWS + q * q + 2 * q


def factorise(m: Any, d: Any, good: Any) -> None:
    """m = L D L' in place, L below the diagonal and D in d; good[0] is 1 where every pivot is positive."""
    good[0] = 1
    for j in range(d.shape[0]):
        pivot = m[j, j]
        for k in range(j):
            pivot -= m[j, k] * m[j, k] * d[k]
        d[j] = pivot
        if not pivot > 0.0:
            good[0] = 0
        for i in range(j + 1, d.shape[0]):
            entry = m[i, j]
            for k in range(j):
                entry -= m[i, k] * m[j, k] * d[k]
            m[i, j] = entry / pivot


def whiten(words: Any, row: int, lane: int, leaf: Any, z: Any, x: Any) -> None:
    """x = L^-1 eta of a row, by forward substitution; the entries of L come row after row, the diagonal last."""
    first = words[w.FACTOR]
    places = integers(words[w.PLACES], (words[w.ENTRIES], 2))
    for i in range(z.shape[1]):
        x[i, lane] = z[row, i]
    for k in range(words[w.ENTRIES]):
        i, j = places[k, 0], places[k, 1]
        if i == j:
            x[i, lane] = x[i, lane] / leaf[first + k, lane]
        else:
            x[i, lane] -= leaf[first + k, lane] * x[j, lane]


def invert(
    row: int, which: int, of: int, matrices: Any, inverses: Any, m: Any, d: Any, half: Any, good: Any
) -> None:
    """The inverse of matrix `of` of a row, NaN where it is not positive definite, as its inverse number `which`."""
    q = d.shape[0]
    for i in range(q):
        for j in range(i + 1):
            m[i, j] = matrices[of, row, i, j]
    factorise(m, d, good)
    for c in range(q):
        for i in range(q):
            x = 1.0 if i == c else 0.0
            for k in range(i):
                x -= m[i, k] * half[k]
            half[i] = x
        for back in range(q):
            i = q - 1 - back
            x = half[i] / d[i]
            for k in range(i + 1, q):
                x -= m[k, i] * half[k]
            half[i] = x if good[0] == 1 else float("nan")
        for i in range(q):
            inverses[which, row, i, c] = half[i]


def newton_step(
    lane: int, row: int, result: Any, step: Any, kept: Any, limit: Any, m: Any, d: Any, half: Any, good: Any
) -> None:
    """The limited Newton step of a lane from the numbers of its row, and its decrement."""
    q = d.shape[0]
    kept[WAS_INDEFINITE, lane] = 0.0
    for attempt in range(2):
        at = 2 + q + attempt * ((q * (q + 1)) // 2)
        for i in range(q):
            for j in range(i, q):
                m[j, i] = result[at, lane]
                at += 1
        factorise(m, d, good)
        if good[0] == 1:
            break
        kept[WAS_INDEFINITE, lane] = 1.0
    decrement = 0.0
    for i in range(q):
        x = result[2 + i, lane]
        for k in range(i):
            x -= m[i, k] * half[k]
        half[i] = x
        decrement += x * x / d[i]
    if good[0] == 0 or not decrement < HUGE:
        kept[DECREMENT, lane] = float("nan")
        for i in range(q):
            step[i, lane] = 0.0
        return
    kept[DECREMENT, lane] = decrement
    excess = 1.0
    for back in range(q):
        i = q - 1 - back
        x = half[i] / d[i]
        for k in range(i + 1, q):
            x -= m[k, i] * half[k]
        half[i] = x
        size = abs(x) / limit[row, i]
        if size > excess:
            excess = size
    for i in range(q):
        step[i, lane] = -half[i] / excess


def keep(lane: int, row: int, result: Any, matrices: Any, gradient: Any, level: Any, value: float) -> None:
    """Write what belongs to the point of a row that is accepted."""
    q = gradient.shape[1]
    level[row] = value
    for i in range(q):
        gradient[row, i] = result[2 + i, lane]
    at = 2 + q
    for which in range(2):
        for i in range(q):
            for j in range(i, q):
                matrices[which, row, i, j] = result[at, lane]
                matrices[which, row, j, i] = result[at, lane]
                at += 1


def seek(words: Any) -> None:
    """Minimise all rows from the random effects Z, which are replaced by the whitened minima."""
    leaves, count, size, steps = words[w.LEAVES], words[w.COMPARTMENTS], words[w.WIDTH], words[w.STEPS]
    q, end = words[w.Q], words[w.END]
    n_results = 2 + q + q * (q + 1)
    vector = 8 * LANES
    at_data = words[w.WORK] + (leaves + q) * vector
    at_result = at_data + (2 * count + steps * size) * vector
    at_x = at_result + n_results * vector
    at_step = at_x + q * vector
    at_kept = at_step + q * vector
    at_m = at_kept + KEPT_ROWS * vector
    at_d = at_m + q * q * 8
    at_half = at_d + q * 8
    at_lanes = words[w.LANE_WORK] + (w.SLOT + steps) * vector
    leaf = doubles(words[w.WORK], (leaves + q, LANES))
    data = doubles(at_data, (2 * count + steps * size, LANES))
    result = doubles(at_result, (n_results, LANES))
    x = doubles(at_x, (q, LANES))
    step = doubles(at_step, (q, LANES))
    kept = doubles(at_kept, (KEPT_ROWS, LANES))
    m = doubles(at_m, (q, q))
    d = doubles(at_d, (q,))
    half = doubles(at_half, (q,))
    held = integers(words[w.LANE_WORK], (w.SLOT + steps, LANES))
    most = integers(at_lanes, (1,))
    good = integers(at_lanes + 8, (1,))
    phase = integers(at_lanes + vector, (LANES,))
    tally = integers(at_lanes + 2 * vector, (LANES,))
    z = doubles(words[w.Z], (end, q))
    limit = doubles(words[w.LIMIT], (end, q))
    level = doubles(words[w.LEVEL], (end,))
    decrements = doubles(words[w.DECREMENT], (end,))
    matrices = doubles(words[w.MATRICES], (2, end, q, q))
    inverses = doubles(words[w.INVERSES], (2, end, q, q))
    gradient = doubles(words[w.GRADIENT], (end, q))
    state = integers(words[w.STATE], (3, end))
    iterations = integers(words[w.ITERATIONS], (1,))
    settings = doubles(words[w.SETTINGS], (2,))
    tolerance, longest = settings[0], settings[1]
    following, running, draws = 0, 0, end // words[w.SUBJECTS]
    for lane in range(LANES):
        phase[lane] = IDLE
        held[w.SUBJECT, lane] = -1
        held[w.N_STEPS, lane] = 0
        for k in range(leaves + q):
            leaf[k, lane] = 1.0
    for k in range(2 * count + steps * size):
        for lane in range(LANES):
            data[k, lane] = 0.0
    while True:
        changed = False
        for lane in range(LANES):
            if phase[lane] == IDLE and following < end:
                fill(words, lane, following // draws, following % draws, leaf, data, held)
                whiten(words, held[w.ROW, lane], lane, leaf, z, x)
                for i in range(q):
                    step[i, lane] = 0.0
                tally[lane] = 0
                kept[RESTARTED, lane] = 0.0
                kept[FRACTION, lane] = 1.0
                phase[lane] = START
                following += 1
                running += 1
                changed = True
        if running == 0:
            return
        if changed:
            most[0] = 0
            for lane in range(LANES):
                if phase[lane] != IDLE and held[w.N_STEPS, lane] > most[0]:
                    most[0] = held[w.N_STEPS, lane]
        for lane in range(LANES):
            if phase[lane] != IDLE:
                for i in range(q):
                    leaf[leaves + i, lane] = x[i, lane] + kept[FRACTION, lane] * step[i, lane]
        given = (words[w.WORK], at_data, at_lanes, at_result, at_result, at_result)
        call(words[w.PROGRAM], given)
        for lane in range(LANES):
            if phase[lane] == IDLE:
                continue
            row = held[w.ROW, lane]
            value = result[0, lane]
            tally[lane] += 1
            stopped, lost = False, False
            if result[1, lane] > 0.0:
                stopped, lost = True, True
            elif phase[lane] == START:
                if not abs(value) < HUGE and kept[RESTARTED, lane] == 0.0:
                    kept[RESTARTED, lane] = 1.0
                    for i in range(q):
                        x[i, lane] = 0.0
                    continue
                newton_step(lane, row, result, step, kept, limit, m, d, half, good)
                keep(lane, row, result, matrices, gradient, level, value)
                phase[lane] = GOING
                stopped = not kept[DECREMENT, lane] >= tolerance or not abs(value) < HUGE
            else:
                before = kept[VALUE, lane]
                if value <= before + ROUNDING * (1.0 + abs(before)):
                    for i in range(q):
                        x[i, lane] = leaf[leaves + i, lane]
                    previous = kept[DECREMENT, lane]
                    newton_step(lane, row, result, step, kept, limit, m, d, half, good)
                    keep(lane, row, result, matrices, gradient, level, value)
                    kept[FRACTION, lane] = 1.0
                    stopped = previous < FLOOR and kept[DECREMENT, lane] > 0.1 * previous
                    stopped = stopped or not kept[DECREMENT, lane] >= tolerance
                else:
                    slope = kept[FRACTION, lane] * kept[DECREMENT, lane]
                    ratio = 0.5 * slope / (value - before + slope)
                    if not ratio >= 0.1:
                        ratio = 0.1
                    if ratio > 0.5:
                        ratio = 0.5
                    kept[FRACTION, lane] *= ratio
                    value = before
                    stopped = kept[FRACTION, lane] < SHORTEST
            kept[VALUE, lane] = value
            decrement = kept[DECREMENT, lane]
            over = tally[lane] >= longest
            if not stopped and not over:
                continue
            for i in range(q):
                z[row, i] = x[i, lane]
            if tally[lane] > iterations[0]:
                iterations[0] = tally[lane]
            for k in range(3):
                state[k, row] = 0
            if lost:
                state[MEETS, row] = 1
            if not lost:
                decrements[row] = decrement
                if decrement < tolerance or (decrement < FLOOR and stopped):
                    state[CONVERGED, row] = 1
                # the information, and what stands for the Hessian
                invert(row, 0, 1, matrices, inverses, m, d, half, good)
                hessian = 0
                if kept[WAS_INDEFINITE, lane] > 0.0:
                    state[INDEFINITE, row] = 1
                    hessian = 1
                invert(row, 1, hessian, matrices, inverses, m, d, half, good)
            phase[lane] = IDLE
            running -= 1
