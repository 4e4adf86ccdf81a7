"""Simulated patients come from the model, the standardised target is what it should be, and training lowers its
loss.
"""

from __future__ import annotations

import math

import pytest
import torch
from inference.cases import curved_problem, oral_problem
from problems import F64

from nlmegen.inference.encoder import Encoder
from nlmegen.inference.train import Trainer, simulate_pool


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_on_a_linear_page_the_target_is_standard_normal_whatever_the_offsets():
    problem = curved_problem()
    encoder = Encoder.of(problem)
    pool = simulate_pool(problem, encoder, problem.values(problem.start), 40_000, generator())
    w = pool.w.double()
    inside = w[pool.record.location.isfinite().all(1)]
    assert len(inside) == 40_000
    torch.testing.assert_close(inside.mean(0), torch.zeros(2, dtype=F64), rtol=0, atol=0.03)
    torch.testing.assert_close(inside.T @ inside / len(inside), torch.eye(2, dtype=F64), rtol=0, atol=0.06)


def test_training_reaches_the_entropy_of_a_linear_page():
    """No q can do better than the posterior itself, here N(0, I) in w: (q / 2) log 2 pi e nats."""
    problem = curved_problem()
    encoder = Encoder.of(problem, "gaussian", width=16)
    trainer = Trainer(encoder, problem, generator(), varied=0.2)
    values = problem.values(problem.start)
    first = trainer.train(values, 20)
    trainer.train(values, 150)
    trainer.decay(150)
    last = trainer.train(values, 150)
    best = math.log(2 * math.pi * math.e)
    assert first > best + 0.02
    assert last == pytest.approx(best, abs=0.03)


def test_training_raises_the_effective_sample_size():
    problem = oral_problem(12)
    values = problem.values(problem.start)
    encoder = Encoder.of(problem, steps=0)
    trainer = Trainer(encoder, problem, generator(1))
    before = encoder.posterior(problem, values, k=400).ess.mean()
    trainer.decay(200)
    losses = [trainer.train(values, 50) for _ in range(4)]
    after = encoder.posterior(problem, values, k=400).ess.mean()
    assert losses[-1] < losses[0]
    assert float(after) > float(before) + 20


def test_the_learning_rate_rises_and_falls():
    trainer = Trainer(Encoder.of(oral_problem()), oral_problem(), generator(), rate=1e-2)
    rates = []
    for step in range(200):
        trainer.step = step
        if step == 100:
            trainer.decay(100)
        rates.append(trainer.learning_rate())
    assert rates[0] == pytest.approx(1e-2 / 50)
    assert rates[60] == pytest.approx(1e-2)
    assert rates[150] == pytest.approx(0.5e-2, rel=0.02)
    assert rates[199] < 1e-4
    assert all(a >= b for a, b in zip(rates[100:], rates[101:], strict=False))


def test_a_seed_gives_the_same_network():
    problem = oral_problem()
    values = problem.values(problem.start)
    weights = []
    for _ in range(2):
        encoder = Encoder.of(problem, width=8, seed=3)
        Trainer(encoder, problem, generator(3)).train(values, 10)
        weights.append(encoder.head.weight.detach().clone())
    assert torch.equal(*weights)
