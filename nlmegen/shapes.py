"""The axis glossary: what each word in a shape such as `[*draw, subject, time]` counts.

Shapes in docstrings are written with these words or with the letters beside them. A mask marks the padding;
nothing computed from padding may reach a likelihood.
"""

from __future__ import annotations

AXES: dict[str, str] = {
    "draw": "any number of leading axes: posterior draws, quadrature nodes, parameter vectors, replicates",
    "subject": "N, the subjects of a Population, in order of first appearance in the table",
    "time": "T, the observations of a subject, padded to the longest record",
    "event": "E, the events of a subject (doses, infusion ends, resets), padded; event e opens segment e",
    "compartment": "C, the compartments of a structure, in the order of its `compartments`",
    "eta": "q, the between-subject random effects, in the order of `Problem.eta_names`",
    "free": "P, the unconstrained parameters an optimiser sees, in the order of `Problem.names`",
}
"""Axis word -> what it counts. Inside a page every quantity is `[*draw, subject, 1 or time]`."""
