"""The rungs, on the package as it is; each check is named for what must hold."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from ladder.rungs import CHECKS


@pytest.mark.parametrize(
    "check", CHECKS, ids=lambda check: f"{check.__module__.removeprefix('ladder.')}-{check.__name__}"
)
def test_rung(check: Callable[[], None]) -> None:
    check()
