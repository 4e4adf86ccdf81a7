"""The one table of 64-bit words that the driver is called with: addresses and sizes, by position."""

from __future__ import annotations

# fmt: off
(
    # addresses of the page's functions (see protocol.py); ACCELERATION is 0 below order 2
    RATES, STEP, INITIAL, ACCELERATION,
    # sizes: components, amounts, parameters, order
    N_COMPONENTS, N_STATES, N_PARAMETERS, ORDER,
    # rows [first, end) of n_rows are solved by this call; timelines, points a timeline, columns, step cap
    FIRST, END, N_ROWS, N_TIMELINES, N_POINTS, N_SLOTS, MAX_STEPS,
    # which derivatives the timeline carries: of times and of amounts, 0 (none), 1 or 2
    TIME_ORDER, AMOUNT_ORDER,
    # addresses of input arrays: doubles p [M, n], weights [W], settings (rtol, floor); int64 who [M], places of the
    # sensitivities among the components, index1 [D, n], index2 [D, n, n]
    P, WEIGHTS, SETTINGS, WHO, INDEX1, INDEX2,
    # of the timeline: time, amount [R, K]; kind, compartment, slot [R, K] int64; count [R] int64; derivatives
    # [n, R, K], [n, n, R, K]
    TIMES, AMOUNTS, KINDS, PLACES, SLOTS, COUNTS, TIME_JAC, TIME_HESS, AMOUNT_JAC, AMOUNT_HESS,
    # of output arrays: components [M, T, C], status [M], steps [M]
    OUT, STATUS, STEPS,
    # of workspaces: vectors, and integers [L_ROWS, lane]
    WORK, LANE_WORK,
    # the tape: capacity in steps and in points (0: none), counts (two words, out), addresses; see driver.py
    TAPE_STEPS, TAPE_POINTS, TAPE_COUNTS, TAPE_Y, TAPE_T, TAPE_ROW, TAPE_POINT,
    N_WORDS,
) = range(46)

# rows of the integer workspace
ROW, AT, TAKEN_STEPS, PHASE, STALE, ARMED, CODE, L_ROWS = range(8)
# fmt: on
