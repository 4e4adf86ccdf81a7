"""A Population in words: the text and the HTML that a terminal and a notebook show."""

from __future__ import annotations

import html as markup
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nlmegen.data.events import Kind

if TYPE_CHECKING:
    from nlmegen.data.population import Population


def lines(population: Population) -> list[tuple[str, str]]:
    """Return what there is to say of a population, as (heading, text)."""
    mask, unit = population.mask, population.time_unit
    found = [
        ("subjects", str(population.n_subjects)),
        ("observations", f"{population.n_observations} ({_per_subject(mask.sum(1))})"),
        ("times", span(population.time[mask], unit)),
        ("dv", span(population.dv[mask], population.dv_unit if len(population.dvids) == 1 else "")),
    ]
    if len(population.dvids) > 1:
        counts = [int((mask & (population.dvid == k)).sum()) for k in range(len(population.dvids))]
        parts = [f"{label}: {count}" for label, count in zip(population.dvids, counts, strict=True)]
        found.append(("dvid", ", ".join(parts)))
    found += [("doses", text) for text in routes(population)] or [("doses", "none")]
    found += [("covariate", text) for text in covariates(population)]
    for heading, kind in (("resets", Kind.RESET), ("switched off", Kind.OFF)):
        if bool((population.events.kind == kind).any()):
            found.append((heading, str(int((population.events.kind == kind).sum()))))
    if population.occasions is not None:
        number = population.occasions.number
        found.append(("occasions", f"{int(number.sum())} ({_per_subject(number)})"))
    for flag, heading in ((1, "below limit"), (-1, "above limit")):
        count = int((mask & (population.cens == flag)).sum())
        if count:
            found.append((heading, f"{count} observations ({count / population.n_observations:.0%})"))
    found += [("warning", text) for text in population.warnings]
    return found


def routes(population: Population) -> list[str]:
    """Return one text per way of dosing and compartment: how many, how much."""
    events, found, unit = population.events, [], population.amount_unit
    per_time = f"{unit}/{population.time_unit or 'time'}" if unit else ""
    ways = (
        (Kind.BOLUS, 0, "bolus", "amount"),
        (Kind.START, 0, "infusion", "rate"),
        (Kind.START, 1, "infusion of modelled rate (RATE -1)", "amount"),
        (Kind.START, 2, "infusion of modelled duration (RATE -2)", "amount"),
    )
    for kind, modelled, noun, what in ways:
        for code, label in enumerate(population.compartments):
            chosen = (events.kind == kind) & (events.modelled == modelled) & (events.compartment == code)
            if bool(chosen.any()):
                place = "the default compartment" if label == 0 else f"compartment {label}"
                size = span(
                    (events.amount if what == "amount" else events.rate)[chosen],
                    unit if what == "amount" else per_time,
                )
                found.append(f"{int(chosen.sum())} {noun} into {place}, {what} {size}")
    steady = events.kind == Kind.STEADY
    constant = steady & (events.amount == 0)
    steady &= ~constant
    for number, words in ((1, "replaces what is there"), (2, "adds to what is there")):
        chosen = steady & (events.steady == number)
        if bool(chosen.any()):
            every = span(events.interval[chosen], population.time_unit)
            found.append(f"{int(chosen.sum())} at steady state (SS {number}, {words}), every {every}")
    if bool(constant.any()):
        rate = span(events.rate[constant], per_time)
        found.append(f"{int(constant.sum())} constant infusions at steady state, rate {rate}")
    return found


def covariates(population: Population) -> list[str]:
    """Return one text per covariate: its range, and whether it varies."""
    found = []
    for name, item in population.covariates.items():
        # one that varies may do so between doses alone, where nothing is observed
        values = torch.tensor(population.table[name]) if item.varies and not item.levels else item.observation
        words = " or ".join(item.levels) if item.levels else span(values, "")
        found.append(f"{name} {words}, {'varies in time' if item.varies else 'constant'}")
    return found


def span(values: Tensor, unit: str) -> str:
    """Return the range of some values in words."""
    if values.numel() == 0:
        return "none"
    low, high = float(values.min()), float(values.max())
    tail = f" {unit}" if unit else ""
    return f"{low:.4g}{tail}" if low == high else f"{low:.4g} to {high:.4g}{tail}"


def text(population: Population) -> str:
    """Return the text shown in a terminal."""
    body = [f"  {heading:<12} {line}" for heading, line in lines(population)]
    return "\n".join(["Population", *body])


def html(population: Population) -> str:
    """Return the table shown in a notebook."""
    rows = "".join(
        f"<tr><th style='text-align:left'>{markup.escape(heading)}</th>"
        f"<td style='text-align:left'>{markup.escape(line)}</td></tr>"
        for heading, line in lines(population)
    )
    return f"<table><caption>Population</caption>{rows}</table>"


def _per_subject(count: Tensor) -> str:
    if count.numel() == 0:
        return "none"
    low, high = int(torch.min(count)), int(torch.max(count))
    return f"{low} a subject" if low == high else f"{low} to {high} a subject"
