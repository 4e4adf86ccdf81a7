"""The plain bound: encoder and parameters moved together by Adam on the (K-sample) ELBO.

    maximise  sum_i E log 1/K sum_k p(y_i, eta_ik) / q_i(eta_ik)          K = 1: E_q log p(y | eta) - KL(q || p(eta))

Kept for comparison and teaching: with K = 1 the bound drags Omega and sigma away from the maximum likelihood wherever
posteriors are wide or skew (on what more samples do to the gradients, see Rainforth et al. 2018, arXiv:1802.04537). The
start is the same variational EM, then an encoder trained on simulated patients; what follows is the reparametrised
gradient of the bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .encoder import Encoder
from .families import log_diagonal, times
from .features import Record
from .iwml import Course, Note, start
from .train import CLIP, WARM_UP, Trainer
from .transport import Chart

if TYPE_CHECKING:
    from ..model.problem import Problem
    from .elbo import ELBO

PARAMETER_RATE, ENCODER_RATE = 0.01, 1e-3
"""Learning rates of the parameters and of the encoder."""
BATCH = 256
"""Subjects a step; fewer subjects get more draws each."""


@dataclass(frozen=True)
class Anchor:
    """The parameters at which records were last read: q does not depend on the parameters in between, as a bound
    demands.

    Draws are held in phi = mu + eta while a mu-referenced theta moves.

    Args:
        free: `[P]`.
        record: tokens there.
        moves: of eta with each free parameter, `[q, P]`.
    """

    free: Tensor
    record: Record
    moves: Tensor

    @classmethod
    @torch.no_grad()
    def at(cls, problem: Problem, encoder: Encoder, free: Tensor) -> Anchor:
        """Read every record at `free`."""
        moves = torch.zeros(problem.q, problem.P, dtype=torch.float64)
        for a, k in Chart(problem).paired.items():
            moves[k, a] = -1.0
        return cls(free, encoder.reader.read(problem, problem.values(free)), moves)


def sampled_bound(
    problem: Problem, encoder: Encoder, anchor: Anchor, free: Tensor, index: Tensor, uniform: Tensor
) -> Tensor:
    """The bound of the subjects `index [B]` from uniform points `[K, repeat, B, coordinates]`: `[repeat, B]`.

    Differentiable in `free` and in the encoder's weights.
    """
    part = anchor.record.select(index)
    raw = encoder(part).double()
    w = encoder.family.draw(raw, uniform)
    log_q = encoder.family.log_density(raw, w) - log_diagonal(part.scale)
    eta = part.location + times(part.scale, w) + anchor.moves @ (free - anchor.free)
    ratio = problem.select(index).log_joint(eta, problem.values(free)) - log_q
    return torch.logsumexp(ratio, 0) - math.log(len(ratio))


def ascend(course: Course, settings: ELBO, tell: Note) -> None:
    """Joint Adam from variational EM; the parameters returned are the mean of the last quarter of the path."""
    encoder = course.encoder
    generator = torch.Generator().manual_seed(settings.seed)
    start(course, settings, tell)
    problem = course.problem
    _pretrain(course, settings, generator, tell)
    course.stage = "bound"
    n, begun = problem.n_subjects, course.steps
    shape = (settings.k, max(1, BATCH // n), min(n, BATCH), encoder.family.coordinates(problem.q))
    free = course.free.clone().requires_grad_()
    groups = [
        {"params": [free], "lr": PARAMETER_RATE},
        {"params": list(encoder.parameters()), "lr": ENCODER_RATE},
    ]
    adam = torch.optim.Adam(groups, betas=(0.9, 0.99))
    path: list[Tensor] = []
    total = 0.0
    for step in range(settings.steps):
        if step % settings.block == 0:
            anchor = Anchor.at(problem, encoder, free.detach().clone())
        index = torch.randint(0, n, (BATCH,), generator=generator) if n > BATCH else torch.arange(n)
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64).clamp(1e-12, 1.0 - 1e-12)
        bound = n * sampled_bound(problem, encoder, anchor, free, index, uniform).mean()
        adam.zero_grad()
        (-bound / n).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), CLIP)
        share = min(1.0, (step + 1) / WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * step / settings.steps))
        for group, rate in zip(adam.param_groups, (PARAMETER_RATE, ENCODER_RATE), strict=True):
            group["lr"] = rate * share
        adam.step()
        course.free, course.steps = free.detach().clone(), begun + step + 1
        total += float(bound.detach())
        if step >= 0.75 * settings.steps:
            path.append(course.free)
        if (step + 1) % settings.block == 0:
            course.history.append(
                {"stage": course.stage, "step": course.steps, "bound": total / settings.block}
            )
            tell(course.stage, step + 1, settings.steps, None, f"bound {total / settings.block:.3f}")
            total = 0.0
    course.free = torch.stack(path).mean(0)
    course.success = "all steps were taken and the draws carry weight"
    course.notes.append(
        f"this fit maximises the {settings.k}-sample bound, not the likelihood: variances and residual error may be"
        " biased (objective 'iwml' maximises the likelihood); no standard errors"
    )
    if len(problem.weights):
        course.notes.append("the weights of the networks are those of variational EM, at which the fit began")


def _pretrain(course: Course, settings: ELBO, generator: torch.Generator, tell: Note) -> None:
    """The encoder alone, on patients simulated at the start, for as many steps as the ascent will take."""
    course.stage = "pretraining"
    trainer = Trainer(
        course.encoder,
        course.problem,
        generator,
        batch=settings.batch,
        rate=settings.rate,
        varied=settings.varied,
    )
    trainer.decay(settings.steps)
    for done in range(0, settings.steps, settings.block):
        trainer.train(course.problem.values(course.free), settings.block)
        course.steps = trainer.step
        tell(course.stage, min(done + settings.block, settings.steps), settings.steps, None)
