"""Training the encoder by forward KL on patients simulated from the model at its current parameters.

    minimise  -E_{eta ~ p(eta), y ~ p(y | eta)} log q(eta | y)

The expectation runs over simulated pairs, so that no likelihood is differentiated and q covers its target (the
inclusive KL; Papamakarios & Murray 2016, arXiv:1605.06376). Each simulated patient comes from a population whose
omega_sd and residual SD are a little wider or narrower, and is told so: the encoder then follows parameters that
still move.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .designs import vary_designs
from .encoder import Encoder
from .features import Record
from .replicas import answered, noisier, with_limits

if TYPE_CHECKING:
    from ..model.parameters import Values
    from ..model.problem import Problem

WARM_UP = 50
"""Adam steps over which the learning rate rises."""
FLOOR = 0.003
"""Learning rate at the end of the decay, as a share of the first."""
CLIP = 5.0
"""Largest norm of a gradient."""


@dataclass(frozen=True)
class Pool:
    """Simulated patients, as the network sees them, and their standardised etas w (float32 `[patient, q]`)."""

    record: Record
    w: Tensor


def simulate_pool(
    problem: Problem,
    encoder: Encoder,
    values: Values,
    size: int,
    generator: torch.Generator,
    *,
    varied: float = 0.3,
    jitter: tuple[float, float] = (-0.4, 0.5),
) -> Pool:
    """Patients simulated from the model on the designs of a problem.

    Args:
        problem: the designs.
        encoder: whose reader makes the tokens.
        values: the parameters.
        size: how many patients.
        generator: source of designs, etas and residuals.
        varied: share of designs with samples left out or moved and doses scaled.
        jitter: range of the log factor on each patient's prior SDs and residual SD.
    """
    n, q = problem.n_subjects, problem.q
    index = torch.randint(0, n, (size,), generator=generator)
    designs, mask = vary_designs(problem, index, varied, generator)
    low, high = jitter
    offsets = low + (high - low) * torch.rand(size, q + 1, generator=generator, dtype=torch.float64)
    e = torch.randn(size, q, generator=generator, dtype=torch.float64) * offsets[:, :-1].exp()
    eta = e @ values.factor.mT
    f = designs.predict(eta, values).f
    if problem.plain:
        variance = designs.variance(f, values)[0]
        noise = torch.randn(f.shape, generator=generator, dtype=torch.float64)
        y = f + variance.sqrt() * offsets[:, -1:].exp() * noise
        record = encoder.reader.read(designs, values, y, mask, offsets)
    else:
        told = noisier(problem, values, offsets[:, -1:].exp())
        replicas = answered(designs, f.nan_to_num(), told, mask, generator)
        record = encoder.reader.read(replicas, told, offsets=offsets)
    off = (eta - record.location).unsqueeze(-1)
    w = torch.linalg.solve_triangular(record.scale, off, upper=False).squeeze(-1)
    usable = (w.isfinite().all(-1) & f.isfinite().all(-1)).nonzero().squeeze(-1)
    if len(usable) < size:
        record, w = record.select(usable), w[usable]
    return Pool(record, w.float())


class Trainer:
    """Adam on simulated patients: constant rate after a warm-up until `decay(steps)` is called, a cosine from then on.

    Args:
        encoder: trained in place.
        problem: designs of the patients, all subjects of a population.
        generator: source of everything random.
        batch: patients a step.
        rate: learning rate.
        varied: share of varied designs.
    """

    def __init__(
        self,
        encoder: Encoder,
        problem: Problem,
        generator: torch.Generator,
        *,
        batch: int = 256,
        rate: float = 3e-3,
        varied: float = 0.3,
    ) -> None:
        self.encoder, self.problem, self.generator = encoder, with_limits(problem), generator
        self.batch, self.rate, self.varied = batch, rate, varied
        self.step = 0
        self._decay: tuple[int, int] | None = None
        self._adam = torch.optim.Adam(encoder.parameters(), lr=rate, betas=(0.9, 0.99), fused=True)

    def decay(self, steps: int) -> None:
        """Let the learning rate fall to its floor over the next `steps`."""
        self._decay = (self.step, steps)

    def learning_rate(self) -> float:
        """The rate of the next step."""
        rate = self.rate * min(1.0, (self.step + 1) / WARM_UP)
        if self._decay is not None:
            begun, steps = self._decay
            done = min(1.0, (self.step - begun) / steps)
            rate *= 0.5 * (1.0 + math.cos(math.pi * done)) + FLOOR
        return rate

    def train(self, values: Values, steps: int) -> float:
        """Some Adam steps on fresh patients drawn at `values`; returns the mean loss (nats a patient, of
        standardised w).
        """
        pool = simulate_pool(
            self.problem, self.encoder, values, steps * self.batch, self.generator, varied=self.varied
        )
        total = 0.0
        for k in range(steps):
            rows = slice(k * self.batch, (k + 1) * self.batch)
            w = pool.w[rows]
            if not len(w):
                break
            raw = self.encoder(pool.record.select(rows))
            loss = -self.encoder.family.log_density(raw, w).mean()
            self._adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.encoder.parameters(), CLIP)
            for group in self._adam.param_groups:
                group["lr"] = self.learning_rate()
            self._adam.step()
            self.step += 1
            total += float(loss.detach())
        return total / max(1, steps)
