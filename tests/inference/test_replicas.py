"""Records drawn for the encoder: what a likelihood calls an observation, and what tokens say of it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from inference.kinds import LIMIT, Counts, Events, Grades, Joined, Limited, table, two_endpoints
from problems import F64
from scipy import stats
from torch import exp

import nlmegen as nl
from nlmegen.errors import DataError
from nlmegen.inference.encoder import Encoder
from nlmegen.inference.features import Reader
from nlmegen.inference.posteriors import posterior
from nlmegen.inference.replicas import answered, noisier
from nlmegen.inference.train import Trainer


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Positive(Limited):
    """The same, all observations positive."""

    cp = nl.Combined(additive=1.0, proportional=0.15, blq="M4")


class Without(Limited):
    """The same, censored records left out."""

    cp = nl.Combined(additive=0.15, proportional=0.15, blq="M1")


class Occasions(nl.Model):
    """Two occasions with kappas."""

    tvcl = nl.Theta(3.0, lower=0)
    tvv = nl.Theta(10.0, lower=0)
    iiv = nl.Omega(cl=0.15)
    iov = nl.Omega(cl=0.08, level="occ")
    cp = nl.Combined(additive=0.15, proportional=0.15)
    structure = nl.OneCompartment()

    def individual(self, theta, eta, cov, kappa):
        return dict(cl=theta.tvcl * exp(eta.cl + kappa.cl), v=theta.tvv)

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


def occasion_table(n: int = 12, count: int = 2, seed: int = 1) -> pd.DataFrame:
    rng, rows = np.random.default_rng(seed), []
    for i in range(n):
        for k in range(count):
            clearance = 3.0 * np.exp(0.4 * rng.normal())
            rows.append((i + 1, 24.0 * k, 100.0, 0.0, 4 if k else 1, k + 1))
            for t in (0.5, 2.0, 4.0, 8.0):
                f = 10.0 * np.exp(-clearance / 10.0 * t)
                rows.append((i + 1, 24.0 * k + t, 0.0, f + np.hypot(0.15, 0.15 * f) * rng.normal(), 0, k + 1))
    return pd.DataFrame(rows, columns=["ID", "TIME", "AMT", "DV", "EVID", "OCC"])


def limited_table(n: int = 30) -> pd.DataFrame:
    frame = table(Limited, n)
    return frame.assign(LLOQ=LIMIT)


def replicas_of(
    kind: type[nl.Model], frame: pd.DataFrame, m: int = 4000
) -> tuple[nl.Problem, nl.Problem, torch.Tensor]:
    """The designs of one subject many times, answered at eta = 0, and its prediction."""
    problem = nl.Problem(kind(), nl.read_nonmem(frame))
    designs, values = problem.select(torch.zeros(m, dtype=torch.long)), problem.values(problem.start)
    rows = designs.predict(torch.zeros(m, problem.q, dtype=F64), values).f
    return designs, answered(designs, rows, values, designs.mask, generator(1)), rows[0]


def test_records_under_the_limit_are_as_frequent_as_the_error_makes_them():
    designs, found, f = replicas_of(Limited, limited_table())
    assert found.limits is not None
    sd = designs.variance(f[None], designs.values(designs.start))[0].sqrt()[0]
    share = stats.norm.cdf(((LIMIT - f) / sd).numpy())
    seen = found.limits.censored.to(F64).mean(0).numpy()
    assert np.abs(seen - share).max() < 4.5 * np.sqrt(0.25 / 4000)
    inside = ~found.limits.censored
    assert bool((found.y[inside] >= LIMIT).all())
    assert bool((found.limits.upper[found.limits.censored] == LIMIT).all())
    assert bool(found.limits.lower[found.limits.censored].isinf().all())
    assert bool(
        found.log_likelihood(torch.zeros(4000, 1, dtype=F64), designs.values(designs.start)).isfinite().all()
    )


def test_a_table_of_flags_alone_cuts_as_one_with_limits_does():
    """CENS with the limit in DV of the censored records, and no LLOQ: whoever learns from replicas must see such."""
    found = []
    for frame in (table(Limited, 6), limited_table(6)):
        problem = nl.Problem(Limited(), nl.read_nonmem(frame))
        encoder = Encoder.of(problem)
        designs = Trainer(encoder, problem, generator()).problem.select(torch.arange(6).repeat(200))
        values = problem.values(problem.start)
        rows = designs.predict(torch.zeros(1200, problem.q, dtype=F64), values).f
        found.append(answered(designs, rows, values, designs.mask, generator(1)))
    assert found[0].limits is not None
    assert bool(found[0].limits.censored.any(0)[4:].all())
    assert torch.equal(found[0].limits.censored, found[1].limits.censored)
    assert torch.equal(found[0].y, found[1].y)


def test_positive_records_are_conditional_on_that():
    designs, found, f = replicas_of(Positive, limited_table())
    assert found.limits is not None
    sd = designs.variance(f[None], designs.values(designs.start))[0].sqrt()[0]
    nothing = stats.norm.cdf((-f / sd).numpy())
    share = (stats.norm.cdf(((LIMIT - f) / sd).numpy()) - nothing) / (1 - nothing)
    seen = found.limits.censored.to(F64).mean(0).numpy()
    assert nothing.max() > 0.02
    assert np.abs(seen - share).max() < 4.5 * np.sqrt(0.25 / 4000)
    assert bool((found.limits.lower[found.limits.censored] == 0).all())


def test_records_left_out_stay_out_and_others_are_taken_at_face_value():
    designs, found, _ = replicas_of(Without, limited_table(), 50)
    assert found.limits is None
    assert torch.equal(found.observed, designs.observed)
    assert bool((found.y[found.observed] < LIMIT).any())


def test_an_interval_of_the_data_is_one_of_the_replicas():
    frame = limited_table(4).assign(LIMIT=np.where(table(Limited, 4).CENS == 1, 0.5, np.nan))
    frame.loc[frame.ID == 1, "CENS"] = np.where(frame.TIME[frame.ID == 1] == 6.0, 1, 0)
    frame.loc[(frame.ID == 1) & (frame.TIME == 6.0), ["DV", "LIMIT"]] = LIMIT, 0.5
    designs, found, f = replicas_of(Limited, frame)
    real, limits = designs.limits, found.limits
    assert float(real.lower[0, -1]) == 0.5
    both = limits.censored[:, -1] & (limits.upper[:, -1] == LIMIT)
    under = limits.censored[:, -1] & (limits.upper[:, -1] == 0.5)
    sd = designs.variance(f[None], designs.values(designs.start))[0].sqrt()[0, -1]
    edges = stats.norm.cdf(((torch.tensor([0.5, LIMIT]) - f[-1]) / sd).numpy())
    assert float(under.to(F64).mean()) == pytest.approx(edges[0], abs=0.035)
    assert float(both.to(F64).mean()) == pytest.approx(edges[1] - edges[0], abs=0.035)


@pytest.mark.parametrize("kind", [Counts, Events, Grades])
def test_whole_numbers_are_drawn_with_their_means(kind):
    designs, found, f = replicas_of(kind, table(kind, 3))
    mean = designs.natural(f.expand(4000, -1), designs.values(designs.start))[0]
    spread = designs.variance(f[None], designs.values(designs.start))[0][0]
    assert float(((found.y.mean(0) - mean).abs() / (spread / 4000).sqrt()).max()) < 4.5


def test_samples_left_out_are_gone_from_the_likelihood_and_from_their_pairs():
    problem = two_endpoints(Joined)
    values = problem.values(problem.start)
    eta = torch.zeros(problem.n_subjects, problem.q, dtype=F64)
    mask = problem.mask.clone()
    mask[:, 0] = 0.0
    found = answered(problem, problem.predict(eta, values).f, values, mask, generator())
    pairs, own = problem.residual_pairs[0], found.residual_pairs[0]
    assert int(own.there.sum()) == int(pairs.there.sum()) - problem.n_subjects
    log_p = found.local(found.predict(eta, values).f, values).log_p
    assert bool((log_p[:, 0] == 0).all())
    assert bool(log_p.isfinite().all())


def test_noise_moves_standard_deviations_alone():
    problem = two_endpoints(Joined)
    values = problem.values(problem.start)
    factor = torch.full((problem.n_subjects, 1), 2.0, dtype=F64)
    told = noisier(problem, values, factor)
    assert torch.equal(told.sigma["link.correlation"], values.sigma["link.correlation"])
    torch.testing.assert_close(
        told.sigma["cp.additive"], 2 * values.sigma["cp.additive"] * torch.ones_like(factor)
    )


# -- tokens -----------------------------------------------------------------------------------------------------------
def twisted(problem: nl.Problem) -> Encoder:
    """Weights large enough to see everything that reaches the network."""
    encoder = Encoder.of(problem)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(2.0)
    return encoder


def moved(kind: type[nl.Model], frame: pd.DataFrame, change) -> torch.Tensor:
    """How much the network's answer for each subject moves with a change of the table."""
    problem = nl.Problem(kind(), nl.read_nonmem(frame))
    encoder, values = twisted(problem), problem.values(problem.start)
    other = frame.copy()
    change(other)
    after = encoder.approximate(nl.Problem(kind(), nl.read_nonmem(other)), values)
    return (after.raw - encoder.approximate(problem, values).raw).abs().amax(-1)


def test_flags_and_limits_are_read():
    frame = table(Limited, 6)
    last = frame.index[(frame.ID == 2) & (frame.TIME == 6.0)]
    for column, value in (("CENS", 1 - int(frame.CENS[last[0]])), ("DV", 2.6)):
        off = moved(Limited, frame, lambda t, c=column, v=value: t.loc.__setitem__((last, c), v))
        assert float(off[1]) > 1e-3
        assert float(off[[0, 2, 3, 4, 5]].max()) < 1e-5


@pytest.mark.parametrize("kind", [Counts, Events, Grades])
def test_whole_numbers_are_read(kind):
    frame = table(kind, 6)
    first = frame.index[(frame.ID == 2) & (frame.TIME == 0.5)]
    off = moved(kind, frame, lambda t: t.loc.__setitem__((first, "DV"), 1.0 - t.DV[first].clip(0, 1)))
    assert float(off[1]) > 1e-3
    assert float(off[[0, 2, 3, 4, 5]].max()) < 1e-5


def test_a_page_of_other_densities_reads_patients_without_censored_records():
    frame = table(Limited, 6)
    problem = nl.Problem(Limited(), nl.read_nonmem(frame))
    encoder, values = twisted(problem), problem.values(problem.start)
    whole = [i for i, rows in frame.groupby("ID") if not rows.CENS.any()]
    alone = nl.Problem(Limited(), nl.read_nonmem(frame[frame.ID.isin(whole)]))
    assert alone.plain
    assert not problem.plain
    found, known = encoder.approximate(alone, values), encoder.approximate(problem, values)
    torch.testing.assert_close(found.raw, known.raw[[i - 1 for i in whole]], rtol=1e-4, atol=1e-5)


def test_tokens_tell_occasions_apart():
    problem = nl.Problem(Occasions(), nl.read_nonmem(occasion_table()))
    reader, values = Reader.of(problem), problem.values(problem.start)
    assert reader.occasions == 2
    record = reader.read(problem, values)
    assert record.observations.shape[-1] == reader.sizes[0]
    assert record.doses.shape[-1] == reader.sizes[1]
    flags = record.observations[..., -2:]
    assert torch.equal(flags.argmax(-1), problem.levels.observation)
    assert torch.equal(flags.sum(-1), torch.ones_like(flags[..., 0]))
    assert Reader.from_config(reader.config()) == reader


def test_an_encoder_refuses_other_occasions_and_the_automatic_means_do_without_it():
    problem = nl.Problem(Occasions(), nl.read_nonmem(occasion_table(4)))
    encoder, values = Encoder.of(problem), problem.values(problem.start)
    more = nl.Problem(Occasions(), nl.read_nonmem(occasion_table(3, 3)))
    with pytest.raises(DataError, match="2 occasions a patient, and these patients have 3"):
        encoder.approximate(more, more.values(more.start))
    found = posterior(more, more.values(more.start), k=200, encoder=encoder)
    assert "encoder" not in found.how
    assert found.draws.shape[-1] == more.q
    assert encoder.approximate(problem, values).location.shape == (4, 3)


def test_steady_states_and_modelled_doses_are_read():
    rows = [
        (1, 0.0, 100.0, 0.0, 1, 1, 12.0, 0.0),
        (1, 2.0, 0.0, 5.0, 0, 0, 0.0, 0.0),
        (2, 0.0, 100.0, 0.0, 1, 1, 24.0, 0.0),
        (2, 2.0, 0.0, 5.0, 0, 0, 0.0, 0.0),
        (3, 0.0, 100.0, 0.0, 1, 0, 0.0, 0.0),
        (3, 2.0, 0.0, 5.0, 0, 0, 0.0, 0.0),
    ]
    frame = pd.DataFrame(rows, columns=["ID", "TIME", "AMT", "DV", "EVID", "SS", "II", "RATE"])
    problem = nl.Problem(Limited(), nl.read_nonmem(frame))
    reader = Reader.of(problem)
    assert reader.events
    record = reader.read(problem, problem.values(problem.start))
    assert record.doses.shape[-1] == reader.sizes[1]
    off = moved(Limited, frame, lambda t: t.loc.__setitem__((t.index[0], "II"), 8.0))
    assert float(off[0]) > 1e-3
    assert float(off[1:].max()) < 1e-5
