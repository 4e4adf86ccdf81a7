"""What the compiled functions of a page and the event driver have agreed on.

**Lanes.** Eight rows (a row: one draw of one subject) are solved abreast; lane l of every vector belongs to one row. A
lane has its own time, step and next point; when its row is done it is given another. Lanes never see each other, so a
row's result has the same bits whoever its neighbours are. A lane without a row has STEP 0 and state 0; what it computes
is ignored (it may be NaN or infinite, and must not trap).

**Arrays** of vectors, 64-byte aligned, row c at offset c:

    Y  [C]        the components: amounts, then sensitivities, in the order of `Components.keys`
    P  [n]        the parameters
    WQ [n]        largest |S_iq| / scale_i over states and steps since rates were last taken anew (at a start, after a
                  dose), when the driver sets it to 0; raised by the step when it accepts
    W             the weights of the page's networks: plain doubles, not vectors, shared by all rows
    F  [C]        the forcing, added to the rate of each component: running infusion rates and their derivatives
    SC [D]        largest |y_i| so far ("running peak"): set to |y_i| by the driver at the start and at a reset, raised
                  by the driver after a bolus, and by the step when it accepts
    YN [C]        free for the step (the trial state); the driver lends it to `initial`
    K  [Method.rows]  row 0..C-1: dY/dt at (TIME, Y), forcing included. The driver has it computed by `rates` at the
                  start of a segment in which anything has changed, and whenever it needs it itself; the step may keep
                  it (the explicit one does: its last stage) or not. The rest is free for the step, and for `rates`,
                  which needs rows C..2C-1 as scratch
    T  [T_ROWS]   a lane's clock:
        TIME      now                                             in, out
        STEP      proposed length of the next step                in, out
        LEFT      length to the lane's next point                 in, out
        RTOL, FLOOR  the tolerance                                in
        ENDED     out: 1.0 where an accepted step reached the next point, else 0.0
        VERDICT   out: 1.0 accepted, 0.0 rejected, -1.0 rejected because the error was not a finite number
        TAKEN     out: length of the step that was tried, min(STEP, LEFT)
        FRESH     in, for `rates`: 1.0 in the lanes whose K is wanted; others keep theirs

**Functions** of a page's module, all void, every pointer noalias:

    f(Y, P, W, F, vector t, K)              internal: K[c] = rate of component c + F[c]     (written by `page.py`)
    rates(Y, P, W, F, T, K)                 K[0..C-1] = f at TIME in the lanes where FRESH
    initial(P, W, Y)                        Y = the components at the start of a row
    acceleration(Y, P, W, F, T, A)          A[0..D-1] = second time derivative of the amounts at (TIME, Y); order 2 only
    step(Y, P, W, F, T, K, YN, SC, WQ)      one step in every lane, each of its own length, written by the method

A step takes hh = min(STEP, LEFT) (LEFT itself when STEP >= LEFT), computes the trial state and its error norm, and
then, lane by lane: accepted (norm <= 1): Y = trial, TIME += hh, LEFT -= hh, SC raised; rejected: all of these unchanged
(bit for bit). STEP = the next proposal, at most 8 and at least 0.2 times hh; a step that was cut short by LEFT does not
make it smaller. The norm is NaN-safe: never accepted when not finite.

    norm^2  = max over blocks (the amounts; each direction q; each pair q, r) of
              1/D sum over states i of (err_i w_q w_r / scale_i)^2
    w_q     = max(|p_q|, min(LEAST_SHARE / (RTOL WQ_q), LARGEST_OWN)), so that a sensitivity in a parameter that is zero
              (an additive random effect, of the order of 1) is still held to a tolerance relative to itself
    scale_i = RTOL max(|y_i|, FLOOR peak_i, TINY largest peak)
              |y_i| the larger of old and trial, peak_i = max(SC_i, |y_i|)

`norm.py` writes that norm, the verdict and the bookkeeping once for every method; a method supplies trial and error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from nlmegen.structure.equations import Components
from nlmegen.structure.kernel.emit import Module

TIME, STEP, LEFT, RTOL, FLOOR, ENDED, VERDICT, TAKEN, FRESH, T_ROWS = range(10)

STEP_PARAMETERS = ("Y", "P", "W", "F", "T", "K", "YN", "SC", "WQ")
RATES_PARAMETERS = ("Y", "P", "W", "F", "T", "K")
F_PARAMETERS = ("Y", "P", "W", "F", "t", "K")


@dataclass(frozen=True)
class Method:
    """A way of stepping.

    Attributes:
        name: "explicit" or "stiff".
        rows: number of vectors of K that it needs for given components, at least 2 C.
        write: adds `step` to a module that already has `f`.
    """

    name: Literal["explicit", "stiff"]
    rows: Callable[[Components], int]
    write: Callable[[Module, Components], None]
