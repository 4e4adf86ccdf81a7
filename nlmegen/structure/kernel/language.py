"""The little language in which the drivers are written: Python on whole numbers, doubles and arrays at addresses.

A function in it runs in two ways. `translate.py` writes it as LLVM IR, which is how it is used; and it is ordinary
Python, slow, with every index checked, which is how it is tested. It may use

    locals that are int, float or bool throughout; tuples of addresses
    arrays made by `doubles` and `integers`, assigned once; `array.shape[k]`
    constants of its module (also `module.NAME`)
    if, while, for ... in range(...), break, continue, return (of nothing)
    + - * / on numbers; // and % on whole numbers that are not negative; abs; float("nan")
    comparisons, and, or, not, `a if c else b`
    functions of the same language, which are written out where they are called.

Nothing is allocated, nothing raised, and an index is not checked once translated.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np


class _Checked:
    """An array that refuses indices outside it, negative ones included."""

    def __init__(self, address: int, shape: tuple[int, ...], kind: Any) -> None:
        self.shape = tuple(int(x) for x in shape)
        count = int(np.prod(self.shape))
        room = (kind * count).from_address(int(address)) if count else (kind * 0)()
        self._array = np.ctypeslib.as_array(room).reshape(self.shape) if count else np.zeros(self.shape)

    def __getitem__(self, index: Any) -> Any:
        return self._array[self._inside(index)].item()

    def __setitem__(self, index: Any, value: Any) -> None:
        self._array[self._inside(index)] = value

    def _inside(self, index: Any) -> tuple[int, ...]:
        place = index if isinstance(index, tuple) else (index,)
        if len(place) != len(self.shape) or any(
            not 0 <= k < n for k, n in zip(place, self.shape, strict=True)
        ):
            raise IndexError(f"index {place} of an array of shape {self.shape}")
        return place


def doubles(address: int, shape: tuple[int, ...]) -> Any:
    """The doubles at an address, as an array of this shape, last index fastest."""
    return _Checked(address, shape, ctypes.c_double)


def integers(address: int, shape: tuple[int, ...]) -> Any:
    """The 64-bit integers at an address, likewise."""
    return _Checked(address, shape, ctypes.c_int64)


def call(address: int, pointers: tuple[int, ...]) -> None:
    """Call the function at an address with pointers."""
    kind = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * len(pointers))
    kind(int(address))(*[int(x) for x in pointers])
