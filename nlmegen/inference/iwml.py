"""Importance-weighted maximum likelihood: an encoder trained on simulated patients, and the likelihood on its draws.

    start      variational EM (`vem`)
    search     train the encoder, draw from it for the real patients, maximise the simulated likelihood; repeat
               until the parameters stand still and the draws carry weight for nearly everybody
    polish     train on while the learning rate decays; refresh the parameters until half-way, then freeze them
    finish     draw more and maximise until the expected loss of -2 log L to Monte Carlo is small

Weights of a page's networks are fitted with the parameters in variational EM, follow the draws at every refresh, and
are frozen with the second half of the polish (`learn`); what is reported holds at the final weights.

The encoder never sees a real patient in training and the parameters never see a bound: the end is the maximum
likelihood, whatever the family of q; a poor family costs effective sample size, which is watched.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .encoder import Encoder
from .learn import drawn_steps, learn_on_the_bound
from .maximise import Maximum, maximise
from .settle import UNMOVED, WANDERED, Round, draws_per_patient, enough, expected_loss, rounds
from .simulated import SimulatedLikelihood
from .train import Trainer
from .vem import Variational, unmirrored

if TYPE_CHECKING:
    from ..model.problem import Problem
    from .elbo import ELBO

Note = Callable[..., None]

SEARCH_LIMIT = 3000
"""Most training steps of the search."""
HOPELESS = 0.03
"""A median ESS / K under this, well into the search, ends the fit: the proposals miss the patients."""
FINISH = 500_000
"""Predictions that a round of the finish may always make: few patients get more draws each."""


@dataclass
class Course:
    """The state of a running fit: what is best so far, and how it went.

    Args:
        problem: the binding of page and data.
        encoder: trained in place.
        free: the best parameters so far, `[P]`.
        stage: what is being done.
        reason: why the fit may not be used; empty when nothing is wrong.
        success: what to say when nothing is wrong.
        steps: Adam steps taken.
        likelihood: the last simulated likelihood, once there is one; maximum: its maximum.
        deficit: expected loss of -2 log L to Monte Carlo error of the parameters, tr(H^-1 V).
        history: one dictionary a refresh.
        notes: anything the user should read.
    """

    problem: Problem
    encoder: Encoder
    free: Tensor
    stage: str = "start"
    reason: str = ""
    success: str = "the parameters stand still and the draws carry weight"
    steps: int = 0
    likelihood: SimulatedLikelihood | None = None
    maximum: Maximum | None = None
    deficit: float = math.nan
    history: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def start(course: Course, settings: ELBO, tell: Note) -> None:
    """Variational EM from the model's values; where that leads to flip-flop, from the mirror image."""
    course.stage = "variational EM"
    problem = course.problem

    def report(step: int, at: Variational) -> None:
        course.free = at.free
        tell(course.stage, step, None, None, f"bound {float(at.bound.sum()):.3f}")  # no objective function

    if len(problem.weights):
        course.problem, at = learn_on_the_bound(problem, course.free, report=report)
        course.free, problem = at.free, course.problem
    at, notes = unmirrored(problem, course.free, settings.flip_flop, report)
    course.notes += notes
    course.free = at.free
    course.history.append({"stage": course.stage, "step": 0, "bound": float(at.bound.sum())})


def refresh(course: Course, k: int, generator: torch.Generator) -> Maximum:
    """Draw for the real patients at the present parameters and move to the maximum of their simulated likelihood."""
    problem, free, learned = course.problem, course.free, 0.0
    eta, log_q = course.encoder.approximate(problem, problem.values(free)).draw(k, generator)
    if len(problem.weights):
        problem, eta, learned = drawn_steps(problem, free, eta, log_q)
        course.problem = problem
    likelihood = SimulatedLikelihood(problem, free, eta, log_q)
    found = maximise(likelihood, free, iterations=15, step_limit=0.2, reach=0.5)
    found = dataclasses.replace(found, moved=found.moved + learned)
    if math.isfinite(found.evaluation.log_likelihood):
        course.free, course.likelihood, course.maximum = found.free, likelihood, found
    return found


def search(course: Course, trainer: Trainer, settings: ELBO, generator: torch.Generator, tell: Note) -> None:
    """Alternate training and maximisation until two refreshes in a row move little and the draws carry weight."""
    course.stage = "search"
    k = draws_per_patient(course.problem, settings.draws)
    calm, steps = 0, 2 * settings.block
    while calm < 2:
        if course.steps >= SEARCH_LIMIT:
            course.notes.append("the parameters had not settled when the search ended; look at the history")
            return
        loss = trainer.train(course.problem.values(course.free), steps)
        course.steps, steps = trainer.step, settings.block
        found = refresh(course, k, generator)
        trainer.problem = course.problem
        low = _record(course, found, loss, tell)
        if course.steps > 5 * settings.block and float(found.first_ess.median()) < HOPELESS:
            course.reason = (
                f"the encoder's draws miss the patients (median effective sample size under {HOPELESS:.0%} of K): the"
                " model cannot produce these records at the present parameters; look at the data and the starts"
            )
            return
        calm = calm + 1 if found.moved < 2.0 and low > 0.2 else 0


def polish(course: Course, trainer: Trainer, settings: ELBO, generator: torch.Generator, tell: Note) -> None:
    """Decay the learning rate; parameters move in the first half alone."""
    course.stage = "polish"
    k = draws_per_patient(course.problem, settings.draws)
    trainer.decay(settings.steps)
    done, chunk = 0, max(1, settings.steps // 10)
    while done < settings.steps:
        loss = trainer.train(course.problem.values(course.free), min(chunk, settings.steps - done))
        done += chunk
        course.steps = trainer.step
        if done <= settings.steps // 2:
            _record(course, refresh(course, k, generator), loss, tell, settings.steps, done)
            trainer.problem = course.problem
        else:
            tell(course.stage, done, settings.steps, _objective(course))


def finish(course: Course, settings: ELBO, generator: torch.Generator, tell: Note) -> None:
    """Maximise on ever more draws until their noise costs less than `settings.precision` of -2 log L."""
    course.stage = "finish"
    problem = course.problem
    k = min(draws_per_patient(problem, 2 * settings.draws, FINISH), 4 * math.ceil(settings.most_draws / 4))
    if course.maximum is not None and course.likelihood is not None:
        loss = expected_loss(course.maximum.evaluation)
        k = max(k, enough(problem, course.likelihood.k, loss, settings.precision, settings.most_draws))

    def draw(free: Tensor, k: int) -> tuple[Tensor, Tensor]:
        return course.encoder.approximate(problem, problem.values(free)).draw(k, generator)

    def watch(at: Round) -> None:
        course.free, course.likelihood, course.maximum = at.free, at.likelihood, at.maximum
        course.deficit = at.loss
        note = f"{at.k} draws, expected loss {at.loss:.4f}"
        tell(course.stage, at.k, None, _objective(course), note)
        course.history.append(
            {
                "stage": course.stage,
                "step": course.steps,
                "objective": _objective(course),
                "moved": at.maximum.moved,
                "k": at.k,
            }
        )

    last = rounds(
        problem,
        course.free,
        draw,
        k,
        precision=settings.precision,
        most_draws=settings.most_draws,
        watch=watch,
    )
    if last.maximum.moved >= UNMOVED:
        course.reason = WANDERED


def train_and_maximise(course: Course, settings: ELBO, tell: Note) -> None:
    """The whole recipe; `course` holds the best so far at every moment."""
    generator = torch.Generator().manual_seed(settings.seed)
    start(course, settings, tell)
    trainer = Trainer(
        course.encoder,
        course.problem,
        generator,
        batch=settings.batch,
        rate=settings.rate,
        varied=settings.varied,
    )
    search(course, trainer, settings, generator, tell)
    if course.reason:
        return
    polish(course, trainer, settings, generator, tell)
    finish(course, settings, generator, tell)


def _objective(course: Course) -> float | None:
    found = course.maximum
    return None if found is None else course.problem.ofv(found.evaluation.log_likelihood)


def _record(
    course: Course, found: Maximum, loss: float, tell: Note, total: int | None = None, step: int | None = None
) -> float:
    """Write a refresh into the history; returns the 10th percentile of ESS / K."""
    ess = found.evaluation.ess
    low = float(ess.quantile(0.1))
    course.history.append(
        {
            "stage": course.stage,
            "step": course.steps,
            "loss": loss,
            "objective": _objective(course),
            "moved": found.moved,
            "ess_median": float(ess.median()),
            "ess_low": low,
        }
    )
    note = f"effective sample size {float(ess.median()):.0%}"
    tell(course.stage, course.steps if step is None else step, total, _objective(course), note)
    return low
