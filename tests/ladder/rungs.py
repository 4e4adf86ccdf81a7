"""All checks of the ladder."""

from __future__ import annotations

from ladder import bound, dosing, invariance, linear_gaussian, published, simulation

RUNGS = (linear_gaussian, bound, published, dosing, invariance, simulation)
CHECKS = tuple(check for rung in RUNGS for check in rung.CHECKS)
