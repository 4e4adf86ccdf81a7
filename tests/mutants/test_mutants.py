"""Each check of the ladder is shown able to fail: deliberate errors, one at a time, and the checks that must notice.

`tests/ladder/test_rungs.py` runs the same checks on the package as it is.
"""

from __future__ import annotations

import pytest
from ladder.rungs import CHECKS
from mutants import of_focei, of_integrals, of_models
from mutants.mutate import Mutant, put, rebuilt

from nlmegen.errors import NlmegenError

MUTANTS = of_integrals.MUTANTS + of_focei.MUTANTS + of_models.MUTANTS
NAMED = {check.__name__: check for check in CHECKS}


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without machine code, which would go around what is broken here and is held against it by tests of its own."""
    monkeypatch.setattr("nlmegen.model.compiled.Route.prepare", lambda route, problem: None)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_mutant_is_noticed(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, mutant.target, rebuilt(mutant.target, mutant.old, mutant.new))
    for name in mutant.checks:
        with pytest.raises((AssertionError, NlmegenError)):
            NAMED[name]()


def test_rebuilding_alone_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """All targets made again from their unchanged source: what the mutants' checks notice is the change."""
    for target, old in {mutant.target: mutant.old for mutant in MUTANTS}.items():
        put(monkeypatch, target, rebuilt(target, old, old))
    for name in {mutant.checks[0] for mutant in MUTANTS}:
        NAMED[name]()


def test_every_check_notices_something() -> None:
    silent = set(NAMED) - {name for mutant in MUTANTS for name in mutant.checks}
    assert not silent, f"no mutant shows that these checks can fail: {', '.join(sorted(silent))}"
