"""The vector of random effects of a problem: those of the subject, then those of each of its occasions.

A page declares q effects between subjects (eta) and r effects between occasions (kappa), and one covariance of either;
on data with K occasions there are q + r K numbers a subject,

    [eta_1 .. eta_q, kappa_1 .. kappa_r of occasion 1, ..., kappa_1 .. kappa_r of occasion K]

with covariance diag(Omega, Omega_occ, ..., Omega_occ). The page's own matrix, diag(Omega, Omega_occ), has q + r rows.
A subject with fewer occasions keeps the numbers that it does not need: nothing depends on them, so that their posterior
is their prior, in every method, and they leave every likelihood as it was.

See Karlsson & Sheiner (1993), J Pharmacokinet Biopharm 21:735-750, doi:10.1007/BF01113502.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..data.population import Population
    from .parameters import Layout


class Levels:
    """Which random effect of a problem is what.

    Args:
        layout: the page's parameters.
        population: the data, whose occasions are counted.

    Attributes:
        q, r, count: effects between subjects, effects between occasions, and occasions (1 without kappas).
        names: of every random effect, "cl" or "kappa.cl.2".
        row: the row of the page's matrix that each has, `[q + r K]`.
        occasion: the occasion each belongs to, counted from 0; -1 for an eta.
        present: whether a subject has the occasion, `[subject, q + r K]` bool.
        at: the occasion, counted from 0, of each "observation" `[subject, time]`, and of each "segment" and "dose"
            `[subject, event]` (see `Occasions`); empty where the page has no kappas or the data no occasions.
        places: every entry of the factor L of the problem's Omega: its number among the page's entries (of
            `Layout.positions`), its row and column.
    """

    def __init__(self, layout: Layout, population: Population) -> None:
        self._etas, self._kappas = layout.eta_names, layout.kappa_names
        self.q, self.r = len(self._etas), len(self._kappas)
        occasions = population.occasions if self.r else None
        self.count = 1 if occasions is None else occasions.count
        self.changes = self.count > 1
        numbers = range(self.count) if self.r else ()
        self.names = (*self._etas, *(f"kappa.{name}.{k + 1}" for k in numbers for name in self._kappas))
        self.row = torch.tensor(
            [*range(self.q), *(self.q + j for _ in numbers for j in range(self.r))], dtype=torch.long
        )
        self.occasion = torch.tensor(
            [-1] * self.q + [k for k in numbers for _ in self._kappas], dtype=torch.long
        )
        self.at: dict[str, Tensor] = {}
        if occasions is not None:
            self.at = {
                "observation": occasions.observation,
                "segment": occasions.segment,
                "dose": occasions.dose,
            }
        owned = torch.ones(population.n_subjects, dtype=torch.long) if occasions is None else occasions.number
        self.present = self.occasion < owned.unsqueeze(-1)
        self.places = self._places(layout)

    def _places(self, layout: Layout) -> tuple[tuple[int, int, int], ...]:
        every = []
        for entry, (i, j) in enumerate(layout.positions):
            shifts = [0] if i < self.q else [k * self.r for k in range(self.count)]
            every += [(entry, i + shift, j + shift) for shift in shifts]
        return tuple(every)

    def select(self, index: Tensor) -> Levels:
        """The levels of the subjects in `index`."""
        other = copy.copy(self)
        other.present = self.present[index]
        other.at = {place: occasion[index] for place, occasion in self.at.items()}
        return other

    def notes(self) -> list[str]:
        """What to say of a page with effects between occasions on data without."""
        if not self.r or self.changes:
            return []
        why = "the data have no occasions (column OCC)" if not self.at else "no subject has two occasions"
        return [
            f"{why}: the random effects between occasions ({', '.join(self._kappas)}) take one value a subject and"
            " cannot be told from effects between subjects on the same parameter"
        ]

    @property
    def observation(self) -> Tensor | None:
        """The occasion of each observation, counted from 0, `[subject, time]`; None where the page has no kappas."""
        return self.at.get("observation")

    @property
    def segment(self) -> Tensor | None:
        """The occasion of each segment between events, `[subject, event]`; None where the page has no kappas."""
        return self.at.get("segment")

    @property
    def numbers(self) -> Tensor:
        """How many values there are of each effect of the page: subjects, or occasions of all subjects, `[q + r]`."""
        return torch.zeros(self.q + self.r, dtype=torch.float64).index_add(
            0, self.row, self.present.to(torch.float64).sum(0)
        )

    def seen(self, observed: Tensor) -> Tensor:
        """Whether a subject has observations (for a kappa: in its occasion), `[subject, q + r K]` bool.

        Args:
            observed: where there is an observation, `[subject, time]` bool.
        """
        any_here = observed.any(-1, keepdim=True)
        if not self.at:
            return any_here.expand(-1, len(self.row))
        own = [(observed & (self.at["observation"] == k)).any(-1) for k in range(self.count)]
        return torch.stack([any_here[:, 0] if k < 0 else own[k] for k in self.occasion.tolist()], -1)

    # -- what a page reads ----------------------------------------------------------------------------------------
    def eta(self, effects: Mapping[str, Any]) -> dict[str, Any]:
        """The effects between subjects among `effects`, by name."""
        return {name: effects[name] for name in self._etas}

    def kappa(self, effects: Mapping[str, Any], where: str = "observation") -> dict[str, Any]:
        """The effects between occasions by name, each `[*draw, subject, 1 or time]` (or event).

        Args:
            effects: every random effect by name, `[*draw, subject, 1]`: tensors, Taylor numbers or (of a single
                occasion) symbols.
            where: of the occasion of each "observation", each "segment" between events, or each event's "dose".
        """
        index = self.at.get(where)
        chosen = {}
        for name in self._kappas:
            value = effects[f"kappa.{name}.1"]
            for k in range(1, self.count):
                assert index is not None
                value = torch.where(index == k, effects[f"kappa.{name}.{k + 1}"], value)
            chosen[name] = value
        return chosen

    # -- between the page's matrix and the problem's --------------------------------------------------------------
    def spread(self, matrix: Tensor) -> Tensor:
        """The problem's matrix `[*b, q + r K, q + r K]` of the page's `[*b, q + r, q + r]`, a block an occasion."""
        if not self.changes:
            return matrix
        wide = matrix[..., self.row, :][..., self.row]
        return torch.where(self.occasion.unsqueeze(-1) == self.occasion, wide, 0.0)

    def pooled(self, moment: Tensor) -> Tensor:
        """Mean of the second moments of every subject `[subject, q + r K, q + r K]` over subjects and the occasions
        that they have, `[q + r, q + r]`; what the page's matrix leaves out is left out.
        """
        if not self.changes:
            return moment.mean(0)
        q, r = self.q, self.r
        pooled = torch.zeros(q + r, q + r, dtype=moment.dtype)
        pooled[:q, :q] = moment[:, :q, :q].mean(0)
        own = self.present[:, q::r].to(moment.dtype)
        blocks = [moment[:, at : at + r, at : at + r] for at in range(q, moment.shape[-1], r)]
        total = torch.stack(
            [(block * has[:, None, None]).sum(0) for block, has in zip(blocks, own.mT, strict=True)]
        )
        pooled[q:, q:] = total.sum(0) / own.sum()
        return pooled

    def mean(self, x: Tensor) -> Tensor:
        """Mean of `x [subject, q + r K]` over subjects and the occasions that they have, `[q + r]`."""
        if not self.changes:
            return x.mean(0)
        there = torch.where(self.present, x, 0.0).sum(0)
        return torch.zeros(self.q + self.r, dtype=x.dtype).index_add(0, self.row, there) / self.numbers


def column(effect: str) -> str:
    """A random effect of a problem as a column of a table.

    Example:
        >>> column("cl"), column("kappa.cl.2")
        ('eta_cl', 'kappa_cl_2')
    """
    return effect.replace(".", "_") if effect.startswith("kappa.") else f"eta_{effect}"
