"""Rows into lanes and back, for closed forms: what happens to a subject as the steps of `scan.py`.

Everything stands in one table of words, as for the driver of differential equations, and is written in the little
language of `language.py`.
"""

from __future__ import annotations

from typing import Any

from nlmegen.structure.kernel.emit import LANES
from nlmegen.structure.kernel.language import call, doubles, integers
from nlmegen.structure.kernel.scan import (
    ADVANCE,
    ELAPSED,
    ENDPOINT,
    GIVEN,
    HELD,
    KEEP,
    OBSERVED,
    SPAN,
    TIME,
    VALUE,
)

# fmt: off
(
    # address of the compiled function
    PROGRAM,
    # rows, each a draw of a subject, draw after draw; subjects; events, observations and compartments of a subject;
    # vectors of a step; steps at most
    END, SUBJECTS, EVENTS, TIMES, COMPARTMENTS, WIDTH, STEPS,
    # subjects of the schedule, and addresses: which of them each subject is [subject]; time and elapsed time and
    # segment [scheduled, time]; length and keep [scheduled, event]; doses and rates [compartment, scheduled, event]
    SCHEDULED, WHO, CLOCK, SINCE, SEGMENT, LENGTH, KEPT, BOLUS, RATE,
    # of the subjects: which observations there are [subject, time] int64, y, endpoint [subject, time]; residual
    # variances that are held [row, time], or 0
    SEEN, Y, WHICH, VARIANCE,
    # leaves of a row: how many, and for each [leaf, 3] address, stride by draw, stride by subject (in numbers)
    LEAVES, SOURCES,
    # numbers of a step in and out, of a row out; addresses [number, row, time] in and out, [row, number] out
    COTANGENTS, NUMBERS, RESULTS, BARS, OUT, ENDS,
    # workspaces: of vectors, of integers [3 + steps, lane] and more
    WORK, LANE_WORK,
    # of the search alone: random effects; entries of the factor L of Omega, the first of them among the leaves, and
    # the address of their places in L [entry, 2]
    Q, ENTRIES, FACTOR, PLACES,
    # addresses: eta at the start and z at the end [row, q], longest steps [row, q], value, decrement [row], Hessian
    # and expected information [2, row, q, q], their inverses [2, row, q, q], gradient [row, q], state
    # [3, row], the largest number of evaluations [1], settings [2]
    Z, LIMIT, LEVEL, DECREMENT, MATRICES, INVERSES, GRADIENT, STATE, ITERATIONS, SETTINGS,
    N_WORDS,
) = range(46)
# fmt: on

N_STEPS, ROW, SUBJECT, SLOT = range(4)
"""Rows of the integer workspace: a lane's number of steps, its row and subject, and for each step its observation."""


def vectors(leaves: int, compartments: int, width: int, steps: int, each: int, results: int) -> int:
    """Vectors of the workspace, cut up as `fill` and the drivers do."""
    return leaves + 2 * compartments + steps * (width + each) + results


def fill(words: Any, lane: int, subject: int, draw: int, leaf: Any, data: Any, held: Any) -> None:
    """Put a row into a lane: its leaves, and the steps of its subject where they are not there already."""
    subjects = words[SUBJECTS]
    sources = integers(words[SOURCES], (words[LEAVES], 3))
    for k in range(words[LEAVES]):
        at = draw * sources[k, 1] + subject * sources[k, 2]
        number = doubles(sources[k, 0] + 8 * at, (1,))
        leaf[k, lane] = number[0]
    held[ROW, lane] = draw * subjects + subject
    # variances that are held differ from row to row
    if held[SUBJECT, lane] != subject or words[VARIANCE] != 0:
        plot(words, lane, subject, data, held)
        held[SUBJECT, lane] = subject


def plot(words: Any, lane: int, subject: int, data: Any, held: Any) -> None:
    """Write what happens to a subject into a lane, step by step."""
    subjects, events, n_times, count = words[SUBJECTS], words[EVENTS], words[TIMES], words[COMPARTMENTS]
    scheduled, size = words[SCHEDULED], words[WIDTH]
    who = integers(words[WHO], (subjects,))
    place = who[subject]
    clock = doubles(words[CLOCK], (scheduled, n_times))
    since = doubles(words[SINCE], (scheduled, n_times))
    segment = integers(words[SEGMENT], (scheduled, n_times))
    length = doubles(words[LENGTH], (scheduled, events))
    keep = doubles(words[KEPT], (scheduled, events))
    bolus = doubles(words[BOLUS], (count, scheduled, events))
    rate = doubles(words[RATE], (count, scheduled, events))
    seen = integers(words[SEEN], (subjects, n_times))
    y = doubles(words[Y], (subjects, n_times))
    which = doubles(words[WHICH], (subjects, n_times))
    for c in range(count):
        data[c, lane] = bolus[c, place, 0]
        data[count + c, lane] = rate[c, place, 0]
    event, step = 0, 0
    for t in range(n_times):
        if seen[subject, t] == 0:
            continue
        base = 2 * count + step * size
        data[base + ADVANCE, lane] = 0.0
        while event < segment[place, t]:
            base = 2 * count + step * size
            data[base + OBSERVED, lane] = 0.0
            data[base + ADVANCE, lane] = 1.0
            data[base + SPAN, lane] = length[place, event]
            event += 1
            data[base + KEEP, lane] = keep[place, event]
            for c in range(count):
                data[base + GIVEN + c, lane] = bolus[c, place, event]
                data[base + GIVEN + count + c, lane] = rate[c, place, event]
            if event < segment[place, t]:
                step += 1
        data[base + OBSERVED, lane] = 1.0
        data[base + ELAPSED, lane] = since[place, t]
        data[base + TIME, lane] = clock[place, t]
        data[base + VALUE, lane] = y[subject, t]
        data[base + ENDPOINT, lane] = which[subject, t]
        if words[VARIANCE] != 0:
            variance = doubles(words[VARIANCE], (words[END], n_times))
            data[base + HELD, lane] = variance[held[ROW, lane], t]
        held[SLOT + step, lane] = t
        step += 1
    held[N_STEPS, lane] = step
    # what is left of the lane's last subject
    for k in range(step, words[STEPS]):
        data[2 * count + k * size + OBSERVED, lane] = 0.0
        data[2 * count + k * size + ADVANCE, lane] = 0.0


def visit(words: Any) -> None:
    """Run a program on all rows: predictions, or their reverse derivative.

    Each lane takes a share of the rows, subject after subject, so that it seldom meets another subject.
    """
    leaves, count, size, steps = words[LEAVES], words[COMPARTMENTS], words[WIDTH], words[STEPS]
    n_bars, n_out, n_ends, end = words[COTANGENTS], words[NUMBERS], words[RESULTS], words[END]
    n_times = words[TIMES]
    vector = 8 * LANES
    at_data = words[WORK] + leaves * vector
    at_each = at_data + (2 * count + steps * size) * vector
    at_bar = at_each
    at_out = at_bar + steps * n_bars * vector
    at_result = at_out + steps * n_out * vector
    leaf = doubles(words[WORK], (leaves, LANES))
    data = doubles(at_data, (2 * count + steps * size, LANES))
    bar = doubles(at_bar, (steps * n_bars, LANES))
    out = doubles(at_out, (steps * n_out, LANES))
    result = doubles(at_result, (n_ends, LANES))
    held = integers(words[LANE_WORK], (SLOT + steps, LANES))
    most = integers(words[LANE_WORK] + (SLOT + steps) * vector, (1,))
    bars = doubles(words[BARS], (n_bars, end, n_times))
    found = doubles(words[OUT], (n_out, end, n_times))
    ends = doubles(words[ENDS], (end, n_ends))
    draws = end // words[SUBJECTS]
    share = (end + LANES - 1) // LANES
    for lane in range(LANES):
        held[SUBJECT, lane] = -1
    for turn in range(share):
        most[0] = 0
        for lane in range(LANES):
            at = lane * share + turn
            if at >= end:
                at = end - 1
            fill(words, lane, at // draws, at % draws, leaf, data, held)
            row = held[ROW, lane]
            if held[N_STEPS, lane] > most[0]:
                most[0] = held[N_STEPS, lane]
            for k in range(held[N_STEPS, lane]):
                if data[2 * count + k * size + OBSERVED, lane] > 0.0:
                    for c in range(n_bars):
                        bar[k * n_bars + c, lane] = bars[c, row, held[SLOT + k, lane]]
        given = (words[WORK], at_data, words[LANE_WORK] + (SLOT + steps) * vector, at_bar, at_out, at_result)
        call(words[PROGRAM], given)
        for lane in range(LANES):
            row = held[ROW, lane]
            if lane * share + turn >= end:
                continue
            for k in range(n_ends):
                ends[row, k] = result[k, lane]
            for k in range(held[N_STEPS, lane]):
                if data[2 * count + k * size + OBSERVED, lane] > 0.0:
                    for c in range(n_out):
                        found[c, row, held[SLOT + k, lane]] = out[k * n_out + c, lane]
