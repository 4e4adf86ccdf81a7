"""Random numbers that depend on the seed and on what they are for, never on how the work is cut."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor


def generator(seed: int, purpose: str, number: int = 0) -> torch.Generator:
    """Return the generator of one stream of draws.

    Args:
        seed: The user's seed.
        purpose: What is drawn ("covariates", "patients", ...): purposes do not share numbers.
        number: Which block, or which replicate, of that purpose.

    Example:
        >>> a, b = generator(7, "patients", 3), generator(7, "patients", 3)
        >>> bool(torch.equal(torch.rand(2, generator=a), torch.rand(2, generator=b)))
        True
    """
    words = np.random.SeedSequence([int(seed), zlib.crc32(purpose.encode()), number]).generate_state(2)
    return torch.Generator().manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)


def draw_eta(factor: Tensor, n: int, source: torch.Generator) -> Tensor:
    """Draw [n, q] random effects from N(0, L L').

    Args:
        factor: L [q, q], any square root of omega.
        n: Number of draws.
        source: Generator.
    """
    return torch.randn(n, factor.shape[-1], dtype=factor.dtype, generator=source) @ factor.mT
