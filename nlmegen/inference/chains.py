"""The chains of all subjects, what they know of each subject's posterior, and how both follow the parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .expectation import Expectation, Sweeper
from .kernels import Anchor, Proposal, anchored, chosen, pick, root_of, walk
from .transport import Chart

if TYPE_CHECKING:
    from ..model.problem import Problem

NUMBERS = 25_000
"""Predictions that a sweep may always make: few patients get more draws each, up to the most pairs."""

FEWEST_PAIRS, MOST_PAIRS = 4, 32
"""Mirrored pairs of draws a chain, subject and sweep."""

PRIOR_SHARE, SEEN_SHARE = 8, 3
"""One pair in so many comes from the prior, and from the posterior moments that the chains have seen."""


class Chains:
    """Markov chains of all subjects at moving parameters.

    Args:
        problem: the binding of page and data.
        free: parameters, `[P]`.
        chains: independent chains a subject, C.
        generator: of everything random.

    Attributes:
        state: `[chain, subject, q]`.
        seen: posterior mean `[subject, q]` and covariance `[subject, q, q]` as the chains have seen them.
        sweeps: how many were made.
    """

    def __init__(self, problem: Problem, free: Tensor, chains: int, generator: torch.Generator) -> None:
        self.problem, self.free, self.generator = problem, free, generator
        wanted = NUMBERS // (2 * chains * max(1, problem.y.numel()))
        self.pairs = min(max(wanted, FEWEST_PAIRS), MOST_PAIRS)
        self.sweeps = 0
        shape = (problem.n_subjects, problem.q)
        self.state = torch.zeros(chains, *shape, dtype=torch.float64)
        self.bold = torch.zeros(shape, dtype=torch.float64)
        self.use(Chart(problem))
        self.begin()

    def use(self, chart: Chart) -> None:
        """Carry draws by another chart from the next `aim` on."""
        self.chart = chart
        self.sweeper = Sweeper(chart, 2 * self.pairs * len(self.state))

    def begin(self) -> None:
        """Start from random effects of zero, with nothing known."""
        self.state, self.bold = torch.zeros_like(self.state), torch.zeros_like(self.bold)
        self.seen: tuple[Tensor, Tensor] | None = None
        values = self.problem.values(self.free)
        self.anchor = anchored(self.problem, values, self.bold[None])
        self.moves = self.chart.transport(self.free, values, self.anchor.eta)

    def aim(self, steps: int = 1) -> None:
        """Look for each subject's mode from the best random effects known, and for the way draws are best carried."""
        values = self.problem.values(self.free)
        for _ in range(steps):
            candidates = torch.stack((self.bold, self.anchor.ahead, self.anchor.eta))
            self.anchor = anchored(self.problem, values, candidates)
            self.bold = self.anchor.eta
        self.moves = self.chart.transport(self.free, values, self.anchor.eta)

    def proposal(self) -> Proposal:
        """The mixture from which the next draws come."""
        prior = self.problem.values(self.free).factor.expand_as(self.anchor.root)
        centres, roots = [torch.zeros_like(self.anchor.ahead)], [prior]
        pairs = [max(1, self.pairs // PRIOR_SHARE)]
        if self.seen is not None:
            centres.append(self.seen[0])
            roots.append(root_of(self.seen[1]))
            pairs.append(max(1, self.pairs // SEEN_SHARE))
        centres.append(self.anchor.ahead)
        roots.append(self.anchor.root)
        pairs.append(self.pairs - sum(pairs))
        return Proposal(torch.stack(centres), torch.stack(roots), tuple(pairs))

    def sweep(self, *, informed: bool = True) -> Expectation:
        """One sweep of all chains: many proposals at once, then a random walk; the expectations at the first.

        Args:
            informed: with the information of the complete data.
        """
        eta, log_q = self.proposal().around(self.state, self.generator)
        found = self.sweeper(self.free, self.moves, eta, log_q, informed=informed)
        index = pick(found.log_weights, self.generator)
        joint = found.log_weights + log_q
        self.bold = chosen(eta.flatten(0, 1)[:, None], joint.flatten(0, 1).argmax(0)[None])[0]
        values = self.problem.values(self.free)
        # long steps by the prior's shape every third time
        root = self.anchor.root if self.sweeps % 3 else values.factor.expand_as(self.anchor.root)
        state, height = chosen(eta, index), chosen(joint, index)
        self.state, _ = walk(self.problem, values, state, height, root, self.generator)
        self.sweeps += 1
        return found

    def move(self, free: Tensor) -> None:
        """Go to new parameters; the chains and what is known of the modes are carried along."""
        shift = (self.moves @ (free - self.free).unsqueeze(-1)).squeeze(-1)
        self.free = free
        self.state, self.bold = self.state + shift, self.bold + shift
        at = self.anchor
        self.anchor = Anchor(at.eta + shift, at.ahead + shift, at.root)
        if self.seen is not None:
            self.seen = (self.seen[0] + shift, self.seen[1])

    def remember(self, found: Expectation, share: float) -> None:
        """Let the posterior moments of a sweep into the running averages, by `share`."""
        mean, second = found.mean.mean(0), found.second.mean(0)
        if self.seen is not None and share < 1.0:
            old, cov = self.seen
            second = (1 - share) * (cov + old.unsqueeze(-1) * old.unsqueeze(-2)) + share * second
            mean = (1 - share) * old + share * mean
        self.seen = (mean, second - mean.unsqueeze(-1) * mean.unsqueeze(-2))
