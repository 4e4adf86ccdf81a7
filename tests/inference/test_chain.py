"""Methods in a row: where each begins, what is kept of it, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch

import nlmegen as nl
from nlmegen.inference.chain import Chain
from nlmegen.inference.estimate import Estimate, Report
from nlmegen.inference.methods import settings_of, with_settings
from nlmegen.results import load_fit, save_fit


@dataclass(frozen=True)
class Moved:
    """Evaluates FOCEI at its start and claims the point beside it."""

    by: float = 0.1
    reason: str = "moved"
    name: str = field(default="moved", init=False)

    def estimate(self, problem: nl.Problem, progress: Report | None = None) -> Estimate:
        """See `Method`."""
        here = nl.FOCEI(evaluate=True).estimate(problem, progress)
        return replace(
            here, free=here.free + self.by, reason=self.reason, converged=False, history=[{"at": 1}]
        )


@pytest.fixture(scope="module")
def problem() -> nl.Problem:
    return nl.Problem(nl.load_model("theophylline"), nl.load_data("theophylline"))


def test_each_begins_where_the_one_before_ended(problem: nl.Problem) -> None:
    found = Chain((Moved(0.1), nl.FOCEI(evaluate=True))).estimate(problem)
    assert torch.equal(found.free, problem.start + 0.1)
    expected = nl.FOCEI(evaluate=True).estimate(problem.starting(problem.start + 0.1))
    assert found.ofv == expected.ofv
    assert found.history[0] == {"method": "moved", "at": 1}
    assert found.notes[0].startswith("moved did not converge (moved), OFV")


def test_the_model_and_its_problem_are_not_changed(problem: nl.Problem) -> None:
    before = problem.start.clone()
    other = problem.starting(before + 1.0)
    assert torch.equal(problem.start, before)
    assert torch.equal(problem.model.free, problem.full(before))
    assert torch.equal(other.start, before + 1.0)
    assert torch.equal(other.model.free.detach(), other.full(before + 1.0))


def test_an_interruption_ends_the_chain(problem: nl.Problem) -> None:
    chain = Chain((Moved(0.1, "interrupted by the user"), nl.FOCEI()))
    found = chain.estimate(problem)
    assert found.reason == "interrupted by the user"
    assert not found.converged
    assert found.notes[0] == "interrupted before focei began"


def test_a_chain_ends_at_the_last_methods_optimum_and_survives_its_folder(tmp_path) -> None:
    data, page = nl.load_data("theophylline"), nl.load_model("theophylline")
    fit = nl.fit(page, data, [nl.FO(), nl.FOCEI(covariance="R")])
    assert fit.method == "fo+focei"
    assert fit.ofv == pytest.approx(104.3221, abs=1e-3)
    assert fit.iterations > nl.fit(page.with_values(fit), data, nl.FOCEI()).iterations
    save_fit(fit, tmp_path / "chain")
    again = load_fit(tmp_path / "chain", model=page)
    assert again.settings == fit.settings
    report = (tmp_path / "chain" / "report.html").read_text(encoding="utf-8")
    assert "--method fo+focei --set focei.covariance=R" in report
    assert "begun at the estimates of fo" in report


def test_settings_are_kept_by_method() -> None:
    chain = Chain((nl.FOCEI(covariance="S"), nl.ELBO(seed=4)))
    assert with_settings(settings_of(chain)) == chain
    assert with_settings(settings_of(nl.ELBO(seed=2))) == nl.ELBO(seed=2)


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        ((), "two methods or more, got 0"),
        ((nl.FOCEI(), nl.FOCEI(covariance="R")), "each method once, got focei 2 times"),
        ((nl.FOCEI, nl.ELBO()), "takes method objects"),
        ((nl.FOCEI(), Chain((nl.FO(), nl.FOCE()))), "holds no other chain"),
    ],
)
def test_what_is_no_chain_is_refused(methods, words: str) -> None:
    data, page = nl.load_data("theophylline"), nl.load_model("theophylline")
    with pytest.raises(nl.FitError, match=words):
        nl.fit(page, data, list(methods))
