"""Ragged items as rectangles: padding, and the positions of subjects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nlmegen.data.columns import Bools, Ints
from nlmegen.errors import DataError


def padded(items: Ints, subject: Ints, default: Ints) -> tuple[Ints, Bools]:
    """Arrange items as [subject, width]; padding repeats a subject's last one, or `default` if it has none.

    Args:
        items: The items, ordered by subject.
        subject: The subject of each item.
        default: [subject].

    Returns:
        [subject, width] the items, and whether each is one and no padding.

    Example:
        >>> items, mask = padded(np.array([5, 6, 7]), np.array([0, 0, 1]), np.array([5, 7]))
        >>> items.tolist(), mask.tolist()
        ([[5, 6], [7, 7]], [[True, True], [True, False]])
    """
    count = np.bincount(subject, minlength=len(default))
    width = max(int(count.max(initial=0)), 1)
    column = np.arange(width)
    mask = column < count[:, None]
    position = (np.cumsum(count) - count)[:, None] + np.minimum(column, np.maximum(count - 1, 0)[:, None])
    if not len(items):
        return np.broadcast_to(default[:, None], mask.shape).copy(), mask
    found = items[np.minimum(position, len(items) - 1)]
    return np.where(count[:, None] > 0, found, default[:, None]), mask


def widened(values: Tensor, width: int) -> Tensor:
    """Pad [subject, time] to `width` as `padded` does: the last column holds each subject's last item.

    Example:
        >>> widened(torch.tensor([[5, 6], [7, 7]]), 3).tolist()
        [[5, 6, 6], [7, 7, 7]]
    """
    return torch.cat((values, values[:, -1:].expand(-1, width - values.shape[1])), dim=1)


def positions(index: Tensor | Sequence[int] | Ints, size: int) -> Tensor:
    """Return positions (negative ones count from the end) or a mask as int64 positions from 0 to size - 1.

    Raises:
        DataError: a position out of range, no whole number, or a mask of another length than `size`.

    Example:
        >>> positions([0, -1], 4).tolist(), positions([True, False, True], 3).tolist()
        ([0, 3], [0, 2])
    """
    items = index.detach().cpu().numpy() if isinstance(index, Tensor) else np.asarray(index)
    if items.ndim != 1 or (items.size and items.dtype.kind not in "iub"):
        raise DataError(
            f"expected a list of whole numbers (positions of subjects) or a mask of bools, got {index!r:.80}"
        )
    if items.dtype.kind == "b":
        if len(items) != size:
            raise DataError(
                f"expected a mask with one bool for each of the {size} subjects, got {len(items)}; make it from this "
                "Population"
            )
        return torch.from_numpy(np.flatnonzero(items))
    items = items.astype(np.int64)
    if items.size and (items.min() < -size or items.max() >= size):
        raise DataError(f"expected positions of subjects from 0 to {size - 1}, got {items.tolist()[:10]}")
    return torch.from_numpy(np.where(items < 0, items + size, items))


def ranges(start: Ints, count: Ints) -> Ints:
    """Return the concatenation of arange(start_k, start_k + count_k).

    Example:
        >>> ranges(np.array([4, 0]), np.array([2, 3])).tolist()
        [4, 5, 0, 1, 2]
    """
    offset = np.repeat(start - (np.cumsum(count) - count), count)
    return np.asarray(np.arange(int(count.sum())) + offset, dtype=np.int64)
