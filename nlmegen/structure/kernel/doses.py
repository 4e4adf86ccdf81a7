"""What a start and a dose do to a lane, in the little language of `language.py`.

A dose d (a bolus, or a new infusion rate) at time tau, both functions of the parameters, moves the state x to

    x+_q  = x-_q + d_q + (f- - f+) tau_q
    x+_qr = x-_qr + d_qr + (f- - f+) tau_qr
            + (S'-_q - S'+_q) tau_r + (S'-_r - S'+_r) tau_q + (x''- - x''+) tau_q tau_r

(total derivatives of x+(tau) = x-(tau) + d); f, S' and x'' are time derivatives before and after, infusions included.

Arguments: `y`, `forcing` [C, lane]; `before`, `after` [C, lane] the rates of all components; `first` [D, n] and
`second` [D, n, n] the places of the sensitivities among the components, -1 for none; derivatives [n, R, K] and
[n, n, R, K] of times or amounts; lane, row of the timeline, point.
"""

from __future__ import annotations

from typing import Any


def begin(y: Any, start: Any, forcing: Any, sc: Any, lane: int) -> None:
    """A lane at its initial state, which stands in `start`; nothing flows in, and nothing has been larger."""
    for c in range(y.shape[0]):
        y[c, lane] = start[c, lane]
        forcing[c, lane] = 0.0
    for i in range(sc.shape[0]):
        sc[i, lane] = abs(y[i, lane])


def add_first(y: Any, first: Any, jac: Any, i: int, lane: int, line: int, at: int) -> None:
    """Add d_q to the first sensitivities of state i."""
    for q in range(first.shape[1]):
        if first[i, q] >= 0:
            y[first[i, q], lane] += jac[q, line, at]


def add_second(y: Any, second: Any, hess: Any, i: int, lane: int, line: int, at: int) -> None:
    """Add d_qr to the second sensitivities of state i."""
    for q in range(second.shape[1]):
        for r in range(q, second.shape[2]):
            if second[i, q, r] >= 0:
                y[second[i, q, r], lane] += hess[q, r, line, at]


def set_first(forcing: Any, first: Any, i: int, lane: int) -> None:
    """End the infusion into the first sensitivities of state i."""
    for q in range(first.shape[1]):
        if first[i, q] >= 0:
            forcing[first[i, q], lane] = 0.0


def set_second(forcing: Any, second: Any, i: int, lane: int) -> None:
    """End the infusion into the second sensitivities of state i."""
    for q in range(second.shape[1]):
        for r in range(q, second.shape[2]):
            if second[i, q, r] >= 0:
                forcing[second[i, q, r], lane] = 0.0


def empty(y: Any, first: Any, second: Any, order: int, i: int, lane: int) -> None:
    """Nothing is left in state i, nor in its sensitivities."""
    y[i, lane] = 0.0
    for q in range(first.shape[1]):
        if first[i, q] >= 0:
            y[first[i, q], lane] = 0.0
        if order > 1:
            for r in range(q, second.shape[2]):
                if second[i, q, r] >= 0:
                    y[second[i, q, r], lane] = 0.0


def first_jump(y: Any, before: Any, after: Any, first: Any, jac: Any, lane: int, line: int, at: int) -> None:
    """Add (f- - f+) tau_q."""
    for q in range(first.shape[1]):
        move = jac[q, line, at]
        if move != 0.0:
            for i in range(first.shape[0]):
                if first[i, q] >= 0:
                    y[first[i, q], lane] += (before[i, lane] - after[i, lane]) * move


def bend(y: Any, before: Any, after: Any, second: Any, hess: Any, lane: int, line: int, at: int) -> None:
    """Add (f- - f+) tau_qr."""
    for q in range(second.shape[1]):
        for r in range(q, second.shape[2]):
            move = hess[q, r, line, at]
            if move != 0.0:
                for i in range(second.shape[0]):
                    if second[i, q, r] >= 0:
                        y[second[i, q, r], lane] += (before[i, lane] - after[i, lane]) * move


def second_jump(
    y: Any,
    before: Any,
    after: Any,
    acceleration: Any,
    first: Any,
    second: Any,
    jac: Any,
    lane: int,
    line: int,
    at: int,
) -> None:
    """Add (S'-_q - S'+_q) tau_r + (S'-_r - S'+_r) tau_q + (x''- - x''+) tau_q tau_r; `acceleration` is x''- - x''+."""
    for q in range(second.shape[1]):
        for r in range(q, second.shape[2]):
            move_q, move_r = jac[q, line, at], jac[r, line, at]
            if move_q != 0.0 or move_r != 0.0:
                for i in range(second.shape[0]):
                    if second[i, q, r] >= 0:
                        jump = acceleration[i, lane] * move_q * move_r
                        if first[i, q] >= 0:
                            jump += (before[first[i, q], lane] - after[first[i, q], lane]) * move_r
                        if first[i, r] >= 0:
                            jump += (before[first[i, r], lane] - after[first[i, r], lane]) * move_q
                        y[second[i, q, r], lane] += jump


def record(tape: Any, counts: Any, steps: int, lane: int, row: int, point: int) -> None:
    """Note on the tape, as long as there is room, that a row stood at a point (-1: its start) after so many steps."""
    place = counts[1]
    counts[1] += 1
    if place < tape.shape[0]:
        tape[place, 0] = steps
        tape[place, 1] = lane
        tape[place, 2] = row
        tape[place, 3] = point
