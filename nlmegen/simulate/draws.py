"""Random numbers that depend on the seed and on what they are for, never on how the work is cut."""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nlmegen.errors import DataError


def whole(name: str, value: object, least: int) -> int:
    """Return an argument that counts something as an int.

    Args:
        name: The argument, for the message.
        value: What was given; a float that is a whole number will do.
        least: The smallest number that makes sense.

    Raises:
        DataError: Not a number, not whole, or below `least`.

    Example:
        >>> whole("draws", 20.0, 1)
        20
    """
    number: Any = value
    real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if real and abs(number) != math.inf and number % 1 == 0 and number >= least:
        return int(number)
    raise DataError(f"{name}: expected a whole number of {least} or more, got {value!r}")


def generator(seed: int, purpose: str, number: int = 0) -> torch.Generator:
    """Return the generator of one stream of draws.

    Args:
        seed: The user's seed, a whole number of 0 or more.
        purpose: What is drawn ("covariates", "patients", ...): purposes do not share numbers.
        number: Which block, or which replicate, of that purpose.

    Raises:
        DataError: A seed that is none.

    Example:
        >>> a, b = generator(7, "patients", 3), generator(7, "patients", 3)
        >>> bool(torch.equal(torch.rand(2, generator=a), torch.rand(2, generator=b)))
        True
    """
    words = np.random.SeedSequence(
        [whole("seed", seed, 0), zlib.crc32(purpose.encode()), number]
    ).generate_state(2)
    return torch.Generator().manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)


def draw_eta(factor: Tensor, n: int, source: torch.Generator) -> Tensor:
    """Draw [n, q] random effects from N(0, L L').

    Args:
        factor: L [q, q], any square root of omega.
        n: Number of draws.
        source: Generator.
    """
    return torch.randn(n, factor.shape[-1], dtype=factor.dtype, generator=source) @ factor.mT
