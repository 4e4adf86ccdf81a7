"""The plain bound: encoder and parameters moved together by Adam on the (K-sample) ELBO.

    maximise  sum_i E log 1/K sum_k p(y_i, eta_ik) / q_i(eta_ik)          K = 1: E_q log p(y | eta) - KL(q || p(eta))

Kept for comparison and teaching: with K = 1 the bound drags Omega and sigma away from the maximum likelihood wherever
posteriors are wide or skew (Rainforth et al. 2018, arXiv:1802.04537, on what more samples do). The start is the same
variational EM, then an encoder trained on simulated patients; what follows is the reparametrised gradient of the bound.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .iwml import Course, Note, start
from .train import Trainer
from .transport import Chart

if TYPE_CHECKING:
    from .elbo import ELBO

PRETRAINING = 600
"""Adam steps of the encoder on simulated patients before the joint ascent."""
PARAMETER_RATE = 0.01
"""Learning rate of the parameters."""
ENCODER_RATE = 1e-3
"""Learning rate of the encoder."""
BATCH = 256
"""Subjects a step; fewer subjects get more draws."""


def ascend(course: Course, settings: ELBO, tell: Note) -> None:
    """Joint Adam from variational EM; the parameters returned are the mean of the last quarter of the path."""
    problem, encoder = course.problem, course.encoder
    generator = torch.Generator().manual_seed(settings.seed)
    start(course, settings, tell)
    course.stage = "pretraining"
    trainer = Trainer(encoder, problem, generator, batch=settings.batch, rate=settings.rate, varied=0.0)
    trainer.decay(PRETRAINING)
    for done in range(0, PRETRAINING, settings.block):
        trainer.train(problem.values(course.free), settings.block)
        tell(course.stage, done + settings.block, PRETRAINING, None)
    course.stage = "bound"
    reference = course.free
    values = problem.values(reference)
    with torch.no_grad():
        # tokens stay at the reference: q depends on encoder and data alone, and the ascent is one honest objective
        record = encoder.reader.read(problem, values)
    moves = torch.zeros(problem.q, problem.P, dtype=torch.float64)
    for a, k in Chart(problem).paired.items():
        moves[k, a] = -1.0
    free = reference.clone().requires_grad_()
    adam = torch.optim.Adam(
        [{"params": [free], "lr": PARAMETER_RATE}, {"params": list(encoder.parameters()), "lr": ENCODER_RATE}],
        betas=(0.9, 0.99),
    )
    rates = [group["lr"] for group in adam.param_groups]
    n = problem.n_subjects
    repeats = max(1, BATCH // n)
    path: list[Tensor] = []
    running = 0.0
    for step in range(settings.steps):
        some = torch.randint(0, n, (BATCH,), generator=generator) if n > BATCH else torch.arange(n)
        chosen = problem.select(some) if n > BATCH else problem
        part = record.select(some)
        raw = encoder(part).double()
        uniform = torch.rand(
            settings.k, repeats, len(some), encoder.family.coordinates(problem.q), generator=generator, dtype=torch.float64
        )
        w = encoder.family.draw(raw, uniform.clamp(1e-12, 1.0 - 1e-12))
        log_q = encoder.family.log_density(raw, w) - part.scale.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        eta = part.location + (part.scale @ w.unsqueeze(-1)).squeeze(-1) + moves @ (free - reference)
        ratio = chosen.log_joint(eta, problem.values(free)) - log_q
        bound = (torch.logsumexp(ratio, 0) - math.log(settings.k)).mean()
        adam.zero_grad()
        (-bound).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 5.0)
        decay = 0.5 * (1.0 + math.cos(math.pi * step / settings.steps)) + 0.01
        for group, rate in zip(adam.param_groups, rates, strict=True):
            group["lr"] = rate * decay * min(1.0, (step + 1) / 50)
        adam.step()
        course.free, course.steps = free.detach().clone(), trainer.step + step + 1
        running += float(bound.detach()) * n
        if step >= 0.75 * settings.steps:
            path.append(course.free)
        if (step + 1) % settings.block == 0:
            course.history.append({"stage": course.stage, "step": course.steps, "bound": running / settings.block})
            tell(course.stage, step + 1, settings.steps, problem.ofv(running / settings.block), "bound")
            running = 0.0
    course.free = torch.stack(path).mean(0)
    course.deficit = 0.0
    course.notes.append(
        f"this fit maximises the {settings.k}-sample bound, not the likelihood: variances and residual error may be biased"
        " (objective 'iwml' maximises the likelihood); no standard errors"
    )
