"""Backwards along the recorded steps: one function for every page, in the little language of `language.py`.

The driver leaves a tape of its steps (`driver.py`). Backwards, each of eight lanes takes a row and undoes its accepted
steps from the last to the first; with the adjoint a = d objective / d state,

    a_n = (d state_(n+1) / d state_n)' a_(n+1) ,    gradient += (d state_(n+1) / d parameters)' a_(n+1) ,

the lengths of steps held fixed. Between them the points of the row are undone: an observation adds its cotangent, a
reset hands `a` to the initial state, an emptied compartment forgets its own, a bolus or an infusion hands it to its
amount.

A dose at a time tau that depends on the parameters moves the sensitivities by (f- - f+) dtau/dp, f- and f+ being the
rates before and after it; and as it moves in time itself, the objective changes by

    a-' g- - a+' g+ + (explicit dependence of f- and f+ on time)

per unit of tau, with g the rates of all components. The state at a dose is where the next step starts from, or what is
observed at that moment: where neither follows, nothing depends on the dose.
"""

from __future__ import annotations

from typing import Any

from nlmegen.structure.kernel import words as w
from nlmegen.structure.kernel.doses import empty
from nlmegen.structure.kernel.driver import BOLUS, OBSERVE, RATE, RESET, ZERO
from nlmegen.structure.kernel.emit import LANES
from nlmegen.structure.kernel.language import call, doubles, integers
from nlmegen.structure.kernel.protocol import FRESH, T_ROWS, TIME

# fmt: off
(
    # addresses of functions (reverse.py): the adjoint of a step, of the rates at one place, of the initial state (0: it
    # is the same for all rows)
    UNDO, PRODUCT, BEGUN,
    # entries of the gradient: parameters, then weights
    N_GRADIENT,
    # addresses of the cotangents [row, slot, component]
    COTANGENT,
    # of lists by row and by step and lane, int64: last and reached [row], previous and segment [step, lane]
    LAST, REACHED, PREVIOUS, SEGMENT,
    # of results: gradient [row, entry], its weights summed over rows [W], added to
    GRADIENT, SUM,
    # of the workspace of vectors, and of integers [B_ROWS, lane]
    BACK_WORK, BACK_LANES,
    N_BACK_WORDS,
) = range(w.N_WORDS, w.N_WORDS + 14)
# fmt: on

# rows of the integer workspace: the lane's row, its next point and entry of the tape, whether its state is known
B_ROW, B_POINT, B_ENTRY, B_KNOWN, B_ROWS = range(5)
NEW, DONE = -1, -2


def vectors(size: int, n: int, gradient: int, room: int) -> int:
    """Vectors of the workspace, see `rewind`."""
    return 11 * size + 2 * n + 2 * (gradient + 1) + 2 + T_ROWS + room


def forcing(
    rate: Any, lane: int, line: int, until: int, kinds: Any, places: Any, amounts: Any, jac: Any, index: Any
) -> None:
    """The forcing in force before the point `until`, into one lane of `rate`."""
    for c in range(rate.shape[0]):
        rate[c, lane] = 0.0
    for k in range(until):
        if kinds[line, k] == RESET:
            for c in range(rate.shape[0]):
                rate[c, lane] = 0.0
        elif kinds[line, k] == RATE:
            i = places[line, k]
            rate[i, lane] = amounts[line, k]
            for q in range(jac.shape[0]):
                if index[i, q] >= 0:
                    rate[index[i, q], lane] = jac[q, line, k]


def rewind(words: Any) -> None:
    """Propagate the cotangents of what was observed to the parameters and to the start of every row.

    Args:
        words: the table of `words.py` as the driver was called with it, and the further words above.
    """
    size, states, n = words[w.N_COMPONENTS], words[w.N_STATES], words[w.N_PARAMETERS]
    n_rows, lines, n_points, n_slots = (
        words[w.N_ROWS],
        words[w.N_TIMELINES],
        words[w.N_POINTS],
        words[w.N_SLOTS],
    )
    # parameters that times and amounts have first and second derivatives in
    moved, bent = n if words[w.TIME_ORDER] > 0 else 0, n if words[w.TIME_ORDER] > 1 else 0
    given, curved = n if words[w.AMOUNT_ORDER] > 0 else 0, n if words[w.AMOUNT_ORDER] > 1 else 0
    entries = words[N_GRADIENT]
    p = doubles(words[w.P], (n_rows, n))
    who = integers(words[w.WHO], (n_rows,))
    index1 = integers(words[w.INDEX1], (states, n))
    order = words[w.ORDER]
    index2 = integers(words[w.INDEX2], (states, n, n))
    times = doubles(words[w.TIMES], (lines, n_points))
    amounts = doubles(words[w.AMOUNTS], (lines, n_points))
    kinds = integers(words[w.KINDS], (lines, n_points))
    places = integers(words[w.PLACES], (lines, n_points))
    slots = integers(words[w.SLOTS], (lines, n_points))
    counts = integers(words[w.COUNTS], (lines,))
    time_jac = doubles(words[w.TIME_JAC], (moved, lines, n_points))
    time_hess = doubles(words[w.TIME_HESS], (bent, bent, lines, n_points))
    amount_jac = doubles(words[w.AMOUNT_JAC], (given, lines, n_points))
    amount_hess = doubles(words[w.AMOUNT_HESS], (curved, curved, lines, n_points))
    out = doubles(words[w.OUT], (n_rows, n_slots, size))
    status = integers(words[w.STATUS], (n_rows,))
    tape_counts = integers(words[w.TAPE_COUNTS], (2,))
    n_steps, n_carried = tape_counts[0], tape_counts[1]
    tape_y = doubles(words[w.TAPE_Y], (n_steps, size, LANES))
    tape_t = doubles(words[w.TAPE_T], (n_steps, 2, LANES))
    tape_row = integers(words[w.TAPE_ROW], (n_steps, LANES))
    tape_point = integers(words[w.TAPE_POINT], (n_carried, 4))
    cotangent = doubles(words[COTANGENT], (n_rows, n_slots, size))
    last = integers(words[LAST], (n_rows,))
    reached = integers(words[REACHED], (n_rows,))
    previous = integers(words[PREVIOUS], (n_steps * LANES,))
    segment = integers(words[SEGMENT], (n_steps * LANES,))
    total = doubles(words[GRADIENT], (n_rows, entries))
    sums = doubles(words[SUM], (entries - n,))

    # the workspace, cut into arrays of vectors; those of an event hold the same numbers in all lanes, as events that
    # move are rare beside steps
    vector = 8 * LANES
    at_y = words[BACK_WORK]
    at_f = at_y + size * vector
    at_adjoint = at_f + size * vector
    at_pushed = at_adjoint + size * vector
    at_begun = at_pushed + size * vector
    at_p = at_begun + size * vector
    at_gradient = at_p + n * vector
    at_t = at_gradient + (entries + 1) * vector
    at_event_y = at_t + 2 * vector
    at_event_f = at_event_y + size * vector
    at_event_bar = at_event_f + size * vector
    at_event_back = at_event_bar + size * vector
    at_event_k = at_event_back + size * vector
    at_event_p = at_event_k + 2 * size * vector
    at_event_gradient = at_event_p + n * vector
    at_event_t = at_event_gradient + (entries + 1) * vector
    at_room = at_event_t + T_ROWS * vector
    y = doubles(at_y, (size, LANES))
    force = doubles(at_f, (size, LANES))
    adjoint = doubles(at_adjoint, (size, LANES))
    pushed = doubles(at_pushed, (size, LANES))
    begun = doubles(at_begun, (size, LANES))
    pv = doubles(at_p, (n, LANES))
    gradient = doubles(at_gradient, (entries + 1, LANES))
    clock = doubles(at_t, (2, LANES))
    event_y = doubles(at_event_y, (size, LANES))
    event_f = doubles(at_event_f, (size, LANES))
    event_bar = doubles(at_event_bar, (size, LANES))
    event_back = doubles(at_event_back, (size, LANES))
    event_k = doubles(at_event_k, (size, LANES))
    event_p = doubles(at_event_p, (n, LANES))
    event_gradient = doubles(at_event_gradient, (entries + 1, LANES))
    event_t = doubles(at_event_t, (T_ROWS, LANES))
    held = integers(words[BACK_LANES], (B_ROWS, LANES))
    undo = (at_y, at_p, words[w.WEIGHTS], at_f, at_t, at_adjoint, at_gradient, at_pushed, at_room)
    rates = (at_event_y, at_event_p, words[w.WEIGHTS], at_event_f, at_event_t, at_event_k)
    product = (
        at_event_y,
        at_event_p,
        words[w.WEIGHTS],
        at_event_bar,
        at_event_t,
        at_event_back,
        at_event_gradient,
    )

    start = (at_event_p, words[w.WEIGHTS], at_event_bar, at_event_gradient)

    # ---- the tape's accepted steps as one list a row, each with the point that it leads to
    for row in range(n_rows):
        last[row], reached[row] = -1, 0
    carried = 0
    for s in range(n_steps):
        while carried < n_carried and tape_point[carried, 0] <= s:
            reached[tape_point[carried, 2]] = tape_point[carried, 3] + 1
            carried += 1
        for lane in range(LANES):
            row = tape_row[s, lane]
            if row >= 0 and tape_t[s, 1, lane] > 0.0:
                entry = s * LANES + lane
                previous[entry] = last[row]
                segment[entry] = reached[row]
                last[row] = entry

    following, active = 0, LANES
    for lane in range(LANES):
        held[B_ROW, lane] = NEW
        clock[1, lane] = 0.0
    while True:
        for lane in range(LANES):
            while held[B_ROW, lane] != DONE:
                row, at, entry = held[B_ROW, lane], held[B_POINT, lane], held[B_ENTRY, lane]
                if row >= 0 and entry >= 0 and segment[entry] > at:
                    # ---- a step to undo
                    s, from_lane = entry // LANES, entry % LANES
                    for c in range(size):
                        y[c, lane] = tape_y[s, c, from_lane]
                    clock[0, lane] = tape_t[s, 0, from_lane]
                    clock[1, lane] = tape_t[s, 1, from_lane]
                    held[B_ENTRY, lane] = previous[entry]
                    held[B_KNOWN, lane] = 1
                    break
                if row < 0 or at < 0:
                    # ---- the row is done: another
                    if row >= 0:
                        if words[BEGUN] != 0:
                            for j in range(LANES):
                                for q in range(n):
                                    event_p[q, j] = pv[q, lane]
                                for c in range(size):
                                    event_bar[c, j] = begun[c, lane] + adjoint[c, lane]
                                for q in range(entries + 1):
                                    event_gradient[q, j] = gradient[q, lane]
                            call(words[BEGUN], start)
                            for q in range(entries):
                                gradient[q, lane] = event_gradient[q, 0]
                        for q in range(entries):
                            total[row, q] = gradient[q, lane]
                    while following < n_rows and status[following] != 0:
                        following += 1
                    if following == n_rows:
                        held[B_ROW, lane] = DONE
                        clock[1, lane] = 0.0
                        active -= 1
                        break
                    row = following
                    following += 1
                    held[B_ROW, lane], held[B_KNOWN, lane] = row, 0
                    held[B_POINT, lane], held[B_ENTRY, lane] = counts[who[row]] - 1, last[row]
                    for q in range(n):
                        pv[q, lane] = p[row, q]
                    for q in range(entries + 1):
                        gradient[q, lane] = 0.0
                    for c in range(size):
                        y[c, lane], adjoint[c, lane], pushed[c, lane], begun[c, lane] = 0.0, 0.0, 0.0, 0.0
                    forcing(
                        force, lane, who[row], counts[who[row]], kinds, places, amounts, amount_jac, index1
                    )
                    continue
                # ---- a point to undo
                line = who[row]
                kind = kinds[line, at]
                held[B_POINT, lane] = at - 1
                if kind == OBSERVE:
                    for c in range(size):
                        y[c, lane] = out[row, slots[line, at], c]
                        adjoint[c, lane] += cotangent[row, slots[line, at], c]
                    held[B_KNOWN, lane] = 1
                    continue
                if kind == RESET:
                    for c in range(size):
                        begun[c, lane] += adjoint[c, lane]
                        adjoint[c, lane], pushed[c, lane] = 0.0, 0.0
                    held[B_KNOWN, lane] = 0
                    forcing(force, lane, line, at, kinds, places, amounts, amount_jac, index1)
                    continue
                if kind == ZERO:
                    # what was there has gone, and nothing is felt of it
                    empty(y, index1, index2, order, places[line, at], lane)
                    empty(adjoint, index1, index2, order, places[line, at], lane)
                    continue
                if kind != BOLUS and kind != RATE:
                    continue
                moving = False
                for q in range(moved):
                    moving = moving or time_jac[q, line, at] != 0.0
                    for r in range(bent):
                        moving = moving or time_hess[q, r, line, at] != 0.0
                moving = moving and held[B_KNOWN, lane] != 0
                i, value = places[line, at], 0.0
                if moving:
                    for j in range(LANES):
                        event_t[TIME, j], event_t[FRESH, j] = times[line, at], 1.0
                        for q in range(n):
                            event_p[q, j] = pv[q, lane]
                        for c in range(size):
                            event_y[c, j], event_f[c, j], event_bar[c, j] = y[c, lane], force[c, lane], 0.0
                        for q in range(entries + 1):
                            event_gradient[q, j] = 0.0
                    call(words[w.RATES], rates)
                    for c in range(size):
                        value -= adjoint[c, lane] * event_k[c, 0]
                    if size > states:
                        for q in range(moved):
                            move = time_jac[q, line, at]
                            for j in range(states):
                                c = index1[j, q]
                                if c >= 0:
                                    for r in range(bent):
                                        turn = time_hess[q, r, line, at] * adjoint[c, lane]
                                        gradient[r, lane] -= turn * event_k[j, 0]
                                    y[c, lane] += move * event_k[j, 0]
                                    for m in range(LANES):
                                        event_bar[j, m] -= move * adjoint[c, lane]
                        call(words[PRODUCT], product)
                        for j in range(states):
                            adjoint[j, lane] += event_back[j, 0]
                        if kind == RATE:
                            pushed[i, lane] += event_bar[i, 0]
                # ---- the amount: what is felt after the dose
                for r in range(given):
                    felt = adjoint[i, lane] if kind == BOLUS else pushed[i, lane]
                    gradient[r, lane] += felt * amount_jac[r, line, at]
                    for q in range(curved):
                        c = index1[i, q]
                        if c >= 0:
                            felt = adjoint[c, lane] if kind == BOLUS else pushed[c, lane]
                            gradient[r, lane] += felt * amount_hess[q, r, line, at]
                if kind == RATE:
                    pushed[i, lane] = 0.0
                    for q in range(n):
                        if index1[i, q] >= 0:
                            pushed[index1[i, q], lane] = 0.0
                    forcing(force, lane, line, at, kinds, places, amounts, amount_jac, index1)
                else:
                    y[i, lane] -= amounts[line, at]
                    for q in range(given):
                        if index1[i, q] >= 0:
                            y[index1[i, q], lane] -= amount_jac[q, line, at]
                if not moving:
                    continue
                # ---- the rates before it
                for j in range(LANES):
                    for c in range(size):
                        event_y[c, j], event_f[c, j] = y[c, lane], force[c, lane]
                call(words[w.RATES], rates)
                if size > states:
                    if kind == RATE:
                        pushed[i, lane] -= event_bar[i, 0]
                    for q in range(moved):
                        move = time_jac[q, line, at]
                        for j in range(states):
                            c = index1[j, q]
                            if c >= 0:
                                for r in range(bent):
                                    turn = time_hess[q, r, line, at] * adjoint[c, lane]
                                    gradient[r, lane] += turn * event_k[j, 0]
                                y[c, lane] -= move * event_k[j, 0]
                    for j in range(LANES):
                        for c in range(size):
                            event_y[c, j], event_bar[c, j] = y[c, lane], -event_bar[c, j]
                    call(words[w.RATES], rates)
                    call(words[PRODUCT], product)
                    for j in range(states):
                        adjoint[j, lane] += event_back[j, 0]
                    for q in range(entries + 1):
                        gradient[q, lane] += event_gradient[q, 0]
                    value += event_gradient[entries, 0]
                for c in range(size):
                    value += adjoint[c, lane] * event_k[c, 0]
                for q in range(moved):
                    gradient[q, lane] += value * time_jac[q, line, at]
        if active == 0:
            break
        call(words[UNDO], undo)
    for row in range(n_rows):
        for q in range(entries - n):
            sums[q] += total[row, n + q]
