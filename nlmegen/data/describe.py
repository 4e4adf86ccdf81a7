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
        ("dv", span(population.dv[mask], population.dv_unit)),
    ]
    if len(population.dvids) > 1:
        counts = [int((mask & (population.dvid == k)).sum()) for k in range(len(population.dvids))]
        parts = [f"{label}: {count}" for label, count in zip(population.dvids, counts, strict=True)]
        found.append(("dvid", ", ".join(parts)))
    found += [("doses", text) for text in routes(population)] or [("doses", "none")]
    found += [("covariate", text) for text in covariates(population)]
    if bool((population.events.kind == Kind.RESET).any()):
        found.append(("resets", str(int((population.events.kind == Kind.RESET).sum()))))
    found += [("warning", text) for text in population.warnings]
    return found


def routes(population: Population) -> list[str]:
    """Return one text per way of dosing and compartment: how many, how much."""
    events, found = population.events, []
    for kind, noun in ((Kind.BOLUS, "bolus"), (Kind.START, "infusion")):
        for code, label in enumerate(population.compartments):
            chosen = (events.kind == kind) & (events.compartment == code)
            if not bool(chosen.any()):
                continue
            place = "the default compartment" if label == 0 else f"compartment {label}"
            amount = events.amount if kind == Kind.BOLUS else events.rate
            unit = population.amount_unit
            if kind == Kind.START and unit:
                unit = f"{unit}/{population.time_unit or 'time'}"
            what = "amount" if kind == Kind.BOLUS else "rate"
            found.append(f"{int(chosen.sum())} {noun} into {place}, {what} {span(amount[chosen], unit)}")
    return found


def covariates(population: Population) -> list[str]:
    """Return one text per covariate: its range, and whether it varies."""
    return [
        f"{name} {span(item.observation, '')}, {'varies in time' if item.varies else 'constant'}"
        for name, item in population.covariates.items()
    ]


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
