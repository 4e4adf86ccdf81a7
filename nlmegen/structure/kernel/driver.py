"""The event driver: rows through their points, eight abreast, one step of all lanes at a time.

One function for every page, in the little language of `language.py`. It knows a page by the addresses of its functions
(`protocol.py`); all it is given stands in one table of words (`words.py`).

A lane is in one of these phases:

    EMPTY   takes the next row, or falls IDLE when there is none
    DUE     stands at a point of its row: points are carried out until one needs a function of the page first
    BEFORE  waits for rates (and accelerations) just before a dose whose time depends on parameters
    AFTER   waits for them just after it
    LAST    waits for the rates of the first sensitivities after their jump (order 2)
    START   waits for rates at the start of a segment
    RUN     takes steps
    FAILED  is to write NaN in the observations that remain

What a dose does to sensitivities stands in `doses.py`. Before the first point of a row the state is taken to be its
initial state, with the page's rates running.

**The tape** (for the adjoint): where TAPE_STEPS > 0, every call of `step` is recorded: TAPE_Y[s] = Y before it
[C, lane], TAPE_T[s] = the time before it and the length that it went, 0 where it was rejected [2, lane], TAPE_ROW[s] =
the row of each running lane, else -1. Where TAPE_POINTS > 0, every point carried out (and the start of every row, point
-1) is recorded in order: TAPE_POINT[j] = (number of steps taken so far by the call, lane, row, point). TAPE_COUNTS =
steps and points met, also beyond the capacity: when they exceed it, the caller makes room and calls again.
"""

from __future__ import annotations

from typing import Any

from nlmegen.structure.kernel import words as w
from nlmegen.structure.kernel.doses import (
    add_first,
    add_second,
    begin,
    bend,
    empty,
    first_jump,
    record,
    second_jump,
    set_first,
    set_second,
)
from nlmegen.structure.kernel.emit import LANES
from nlmegen.structure.kernel.language import call, doubles, integers
from nlmegen.structure.kernel.protocol import (
    ENDED,
    FLOOR,
    FRESH,
    LEFT,
    RTOL,
    STEP,
    T_ROWS,
    TAKEN,
    TIME,
    VERDICT,
)

RUN, IDLE, EMPTY, DUE, BEFORE, AFTER, LAST, START, FAILED = range(9)
OBSERVE, BOLUS, RATE, RESET, MARK, ZERO = range(6)
OK, STEP_CAP, UNDERFLOW, NOT_FINITE = range(4)

FIRST_STEP = 0.05
"""Share of the shortest time constant |y| / |y'| that the first step takes."""
SHORTEST = 1e-13
"""A step shorter than this share of the time (plus a little) has no meaning."""


def drive(words: Any) -> None:
    """Solve rows FIRST to END - 1.

    Args:
        words: the table of `words.py`, int64.
    """
    size, states, n, order = words[w.N_COMPONENTS], words[w.N_STATES], words[w.N_PARAMETERS], words[w.ORDER]
    end, n_rows, lines = words[w.END], words[w.N_ROWS], words[w.N_TIMELINES]
    n_points, n_slots, cap = words[w.N_POINTS], words[w.N_SLOTS], words[w.MAX_STEPS]
    time_order, amount_order = words[w.TIME_ORDER], words[w.AMOUNT_ORDER]
    p = doubles(words[w.P], (n_rows, n))
    who = integers(words[w.WHO], (n_rows,))
    settings = doubles(words[w.SETTINGS], (2,))
    index1 = integers(words[w.INDEX1], (states, n))
    index2 = integers(words[w.INDEX2], (states, n, n))
    times = doubles(words[w.TIMES], (lines, n_points))
    amounts = doubles(words[w.AMOUNTS], (lines, n_points))
    kinds = integers(words[w.KINDS], (lines, n_points))
    places = integers(words[w.PLACES], (lines, n_points))
    slots = integers(words[w.SLOTS], (lines, n_points))
    counts = integers(words[w.COUNTS], (lines,))
    time_jac = doubles(words[w.TIME_JAC], (n, lines, n_points))
    time_hess = doubles(words[w.TIME_HESS], (n, n, lines, n_points))
    amount_jac = doubles(words[w.AMOUNT_JAC], (n, lines, n_points))
    amount_hess = doubles(words[w.AMOUNT_HESS], (n, n, lines, n_points))
    out = doubles(words[w.OUT], (n_rows, n_slots, size))
    status = integers(words[w.STATUS], (n_rows,))
    steps = integers(words[w.STEPS], (n_rows,))

    # the workspace, cut into arrays of vectors
    vector = 8 * LANES
    at_y = words[w.WORK]
    at_yn = at_y + size * vector
    at_f = at_yn + size * vector
    at_before = at_f + size * vector
    at_p = at_before + size * vector
    at_wq = at_p + n * vector
    at_sc = at_wq + n * vector
    at_a = at_sc + states * vector
    at_a_before = at_a + states * vector
    at_t = at_a_before + states * vector
    at_goal = at_t + T_ROWS * vector
    at_k = at_goal + vector
    y = doubles(at_y, (size, LANES))
    yn = doubles(at_yn, (size, LANES))
    forcing = doubles(at_f, (size, LANES))
    before = doubles(at_before, (size, LANES))
    pv = doubles(at_p, (n, LANES))
    wq = doubles(at_wq, (n, LANES))
    sc = doubles(at_sc, (states, LANES))
    acceleration = doubles(at_a, (states, LANES))
    acceleration_before = doubles(at_a_before, (states, LANES))
    clock = doubles(at_t, (T_ROWS, LANES))
    goal = doubles(at_goal, (LANES,))
    k = doubles(at_k, (size, LANES))
    held = integers(words[w.LANE_WORK], (w.L_ROWS, LANES))

    room_steps, room_points = words[w.TAPE_STEPS], words[w.TAPE_POINTS]
    tape_counts = integers(words[w.TAPE_COUNTS], (2,))
    tape_y = doubles(words[w.TAPE_Y], (room_steps, size, LANES))
    tape_t = doubles(words[w.TAPE_T], (room_steps, 2, LANES))
    tape_row = integers(words[w.TAPE_ROW], (room_steps, LANES))
    tape_point = integers(words[w.TAPE_POINT], (room_points, 4))
    taped_steps, tape_counts[1] = 0, 0

    rates = (at_y, at_p, words[w.WEIGHTS], at_f, at_t, at_k)
    step = (at_y, at_p, words[w.WEIGHTS], at_f, at_t, at_k, at_yn, at_sc, at_wq)
    following = words[w.FIRST]
    running = 0

    for lane in range(LANES):
        held[w.PHASE, lane] = EMPTY
        clock[TIME, lane] = 0.0
        clock[RTOL, lane] = settings[0]
        clock[FLOOR, lane] = settings[1]
        clock[FRESH, lane] = 0.0
        for q in range(n):
            pv[q, lane] = 1.0
    for c in range(size):
        for lane in range(LANES):
            k[c, lane] = 0.0

    while True:
        # ---- points, until every lane runs or is idle
        while True:
            wanted, waiting, accelerate = False, False, False
            for lane in range(LANES):
                phase = held[w.PHASE, lane]
                if phase <= IDLE:
                    continue
                row, at = held[w.ROW, lane], held[w.AT, lane]
                line = who[row] if phase != EMPTY else 0

                if phase == BEFORE:
                    for c in range(size):
                        before[c, lane] = k[c, lane]
                    if order > 1:
                        for i in range(states):
                            acceleration_before[i, lane] = acceleration[i, lane]
                    held[w.ARMED, lane] = 1
                    phase = DUE
                elif phase == AFTER:
                    first_jump(y, before, k, index1, time_jac, lane, line, at)
                    if order > 1:
                        if time_order > 1:
                            bend(y, before, k, index2, time_hess, lane, line, at)
                        clock[FRESH, lane] = 1.0
                        held[w.PHASE, lane] = LAST
                        wanted, waiting, accelerate = True, True, True
                        continue
                    held[w.AT, lane] += 1
                    held[w.STALE, lane] = 1
                    phase = DUE
                elif phase == LAST:
                    for i in range(states):
                        acceleration_before[i, lane] -= acceleration[i, lane]
                    second_jump(y, before, k, acceleration_before, index1, index2, time_jac, lane, line, at)
                    held[w.AT, lane] += 1
                    held[w.STALE, lane] = 1
                    phase = DUE
                elif phase == START:
                    # rates are known: are they finite, and how fast is the fastest amount?
                    bad, fastest = 0.0, 0.0
                    for q in range(n):
                        wq[q, lane] = 0.0
                    for c in range(size):
                        bad += 0.0 * y[c, lane] + 0.0 * k[c, lane] + 0.0 * forcing[c, lane]
                    for i in range(states):
                        if sc[i, lane] > 0.0:
                            speed = abs(k[i, lane]) / sc[i, lane]
                            if speed > fastest:
                                fastest = speed
                    if bad != 0.0:
                        held[w.CODE, lane] = NOT_FINITE
                        phase = FAILED
                    else:
                        length = FIRST_STEP / fastest if fastest > 0.0 else 0.1 * clock[LEFT, lane]
                        if held[w.TAKEN_STEPS, lane] == 0 or length < clock[STEP, lane]:
                            clock[STEP, lane] = length
                        held[w.PHASE, lane] = RUN
                        continue

                while True:
                    if phase == FAILED:
                        for j in range(held[w.AT, lane], counts[line]):
                            if kinds[line, j] == OBSERVE:
                                for c in range(size):
                                    out[row, slots[line, j], c] = float("nan")
                        status[row] = held[w.CODE, lane]
                        steps[row] = held[w.TAKEN_STEPS, lane]
                        running -= 1
                        phase = EMPTY

                    if phase == EMPTY:
                        for c in range(size):
                            y[c, lane] = 0.0
                            forcing[c, lane] = 0.0
                        if following >= end:
                            for q in range(n):
                                pv[q, lane] = 1.0
                                wq[q, lane] = 0.0
                            for i in range(states):
                                sc[i, lane] = 0.0
                            clock[STEP, lane] = 0.0
                            clock[LEFT, lane] = 1e300
                            held[w.ROW, lane] = -1
                            held[w.PHASE, lane] = IDLE
                            break
                        row = following
                        line = who[row]
                        following += 1
                        running += 1
                        held[w.ROW, lane] = row
                        held[w.AT, lane], held[w.TAKEN_STEPS, lane] = 0, 0
                        held[w.ARMED, lane], held[w.CODE, lane] = 0, OK
                        bad = 0.0
                        for q in range(n):
                            pv[q, lane] = p[row, q]
                            wq[q, lane] = 0.0
                            bad += 0.0 * p[row, q]
                        if bad != 0.0:
                            held[w.CODE, lane] = NOT_FINITE
                            phase = FAILED
                            continue
                        if counts[line] > 0:
                            clock[TIME, lane] = times[line, 0]
                        call(words[w.INITIAL], (at_p, words[w.WEIGHTS], at_yn))
                        begin(y, yn, forcing, sc, lane)
                        held[w.STALE, lane] = 1
                        if room_points > 0:
                            record(tape_point, tape_counts, taped_steps, lane, row, -1)

                    # ---- the points that are due
                    phase = DUE
                    at = held[w.AT, lane]
                    while at < counts[line]:
                        kind = kinds[line, at]
                        if kind < 0 or kind == MARK or kind > ZERO:
                            at += 1
                            continue
                        if kind != RESET and not times[line, at] <= clock[TIME, lane]:
                            break
                        if kind == OBSERVE:
                            for c in range(size):
                                out[row, slots[line, at], c] = y[c, lane]
                        elif kind == RESET:
                            clock[TIME, lane] = times[line, at]
                            call(words[w.INITIAL], (at_p, words[w.WEIGHTS], at_yn))
                            begin(y, yn, forcing, sc, lane)
                            held[w.STALE, lane] = 1
                        elif kind == ZERO:
                            empty(y, index1, index2, order, places[line, at], lane)
                            held[w.STALE, lane] = 1
                        else:
                            moving = False
                            if time_order > 0 and order > 0:
                                for q in range(n):
                                    moving = moving or time_jac[q, line, at] != 0.0
                            if time_order > 1 and order > 1:
                                for q in range(n):
                                    for r in range(n):
                                        moving = moving or time_hess[q, r, line, at] != 0.0
                            if moving and held[w.ARMED, lane] == 0:
                                clock[FRESH, lane] = 1.0
                                phase = BEFORE
                                break
                            i = places[line, at]
                            if kind == BOLUS:
                                y[i, lane] += amounts[line, at]
                                if abs(y[i, lane]) > sc[i, lane]:
                                    sc[i, lane] = abs(y[i, lane])
                                if amount_order > 0 and order > 0:
                                    add_first(y, index1, amount_jac, i, lane, line, at)
                                if amount_order > 1 and order > 1:
                                    add_second(y, index2, amount_hess, i, lane, line, at)
                            else:
                                forcing[i, lane] = amounts[line, at]
                                set_first(forcing, index1, i, lane)
                                if amount_order > 0 and order > 0:
                                    add_first(forcing, index1, amount_jac, i, lane, line, at)
                                if order > 1:
                                    set_second(forcing, index2, i, lane)
                                if amount_order > 1 and order > 1:
                                    add_second(forcing, index2, amount_hess, i, lane, line, at)
                            held[w.STALE, lane] = 1
                            if moving:
                                held[w.ARMED, lane] = 0
                                clock[FRESH, lane] = 1.0
                                phase = AFTER
                        if room_points > 0:
                            record(tape_point, tape_counts, taped_steps, lane, row, at)
                        if phase == AFTER:
                            break
                        at += 1
                    held[w.AT, lane] = at
                    if phase != DUE:
                        held[w.PHASE, lane] = phase
                        wanted, waiting = True, True
                        if phase == BEFORE and order > 1:
                            accelerate = True
                        break
                    if at == counts[line]:
                        status[row] = OK
                        steps[row] = held[w.TAKEN_STEPS, lane]
                        running -= 1
                        phase = EMPTY
                        continue
                    # ---- on to the next point
                    goal[lane] = times[line, at]
                    left = goal[lane] - clock[TIME, lane]
                    clock[LEFT, lane] = left
                    if not left < 1e300:
                        held[w.CODE, lane] = NOT_FINITE
                        phase = FAILED
                        continue
                    if held[w.STALE, lane] != 0:
                        held[w.STALE, lane] = 0
                        clock[FRESH, lane] = 1.0
                        held[w.PHASE, lane] = START
                        wanted, waiting = True, True
                    else:
                        held[w.PHASE, lane] = RUN
                    break
            if wanted:
                call(words[w.RATES], rates)
                if accelerate:
                    call(words[w.ACCELERATION], (at_y, at_p, words[w.WEIGHTS], at_f, at_t, at_a))
                for lane in range(LANES):
                    clock[FRESH, lane] = 0.0
            if not waiting:
                break
        if running == 0:
            break

        # ---- steps, until a lane stands at a point or fails
        while True:
            if room_steps > 0:
                if taped_steps < room_steps:
                    for c in range(size):
                        for lane in range(LANES):
                            tape_y[taped_steps, c, lane] = y[c, lane]
                    for lane in range(LANES):
                        tape_t[taped_steps, 0, lane] = clock[TIME, lane]
                        tape_row[taped_steps, lane] = held[w.ROW, lane]
                taped_steps += 1
            call(words[w.STEP], step)
            if 0 < taped_steps <= room_steps:
                for lane in range(LANES):
                    tape_t[taped_steps - 1, 1, lane] = (
                        clock[TAKEN, lane] if clock[VERDICT, lane] > 0.0 else 0.0
                    )
            stopped = False
            for lane in range(LANES):
                if held[w.PHASE, lane] != RUN:
                    continue
                held[w.TAKEN_STEPS, lane] += 1
                shortest = SHORTEST * (abs(clock[TIME, lane]) + 1e-3)
                after = RUN
                if clock[ENDED, lane] != 0.0:
                    clock[TIME, lane] = goal[lane]
                    after = DUE
                elif held[w.TAKEN_STEPS, lane] >= cap:
                    held[w.CODE, lane] = STEP_CAP
                    after = FAILED
                elif clock[VERDICT, lane] <= 0.0 and not clock[STEP, lane] >= shortest:
                    held[w.CODE, lane] = NOT_FINITE if clock[VERDICT, lane] < 0.0 else UNDERFLOW
                    after = FAILED
                held[w.PHASE, lane] = after
                stopped = stopped or after != RUN
            if stopped:
                break
    tape_counts[0] = taped_steps
