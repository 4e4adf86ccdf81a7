"""What every test gets: a seed, no display, and a check that the global state of torch was left alone."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the tests' matrices are small
os.environ["MPLBACKEND"] = "Agg"

import random
import sys
from collections.abc import Iterator

import hypothesis
import numpy as np
import pytest
import torch

# a test must not depend on the machine's speed or on luck
hypothesis.settings.register_profile("nlmegen", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("nlmegen")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked gpu where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _reproducible_and_clean() -> Iterator[None]:
    """Seed every generator before a test; afterwards the global dtype, device and threads are unchanged."""
    random.seed(20260101)
    np.random.seed(20260101)  # noqa: NPY002 for third-party code that still uses the global generator
    torch.manual_seed(20260101)
    before = _global_state()
    yield
    assert _global_state() == before, "a global setting of torch was changed"
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


def _global_state() -> dict[str, object]:
    return {
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
