"""The drivers' little language: machine code does what Python does, bit for bit, and Python checks every index."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from structure.kernel.pages import NO_WEIGHTS, log_normal, saturable, seeded
from structure.kernel.test_machine import MOVED, busy, moved_points, timeline

from nlmegen.structure.equations import Equations
from nlmegen.structure.kernel import code, words
from nlmegen.structure.kernel.driver import drive
from nlmegen.structure.kernel.language import call, doubles, integers
from nlmegen.structure.kernel.machine import Kernel
from nlmegen.structure.kernel.store import Store
from nlmegen.structure.kernel.translate import translate
from nlmegen.structure.solver import Solver

SCALE = 2.5


def both(function: Callable[[Any], None], *arrays: np.ndarray) -> None:
    """Run a function compiled and as Python on copies of arrays (addresses and lengths are its words); compare."""
    results = []
    for compiled in (True, False):
        mine = [x.copy() for x in arrays]
        table = (ctypes.c_int64 * (2 * len(mine)))(*[v for x in mine for v in (x.ctypes.data, len(x))])
        if compiled:
            code.program(function, len(table), Store().directory)(ctypes.addressof(table))
        else:
            function(integers(ctypes.addressof(table), (len(table),)))
        results.append(mine)
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)
    for before, after in zip(arrays, results[0], strict=True):
        if before.dtype == np.float64:
            assert not np.array_equal(before, after)


def numbers(table: Any) -> None:
    x = doubles(table[0], (table[1],))
    k = integers(table[2], (table[3],))
    x[0], x[1] = SCALE * k[0] - 1, -x[2] / 3
    x[2] += k[1] // 3 + k[1] % 3
    x[3] = abs(x[3]) + abs(-k[0])
    x[4] = words.N_WORDS
    x[5] = 1.0 if 0 < k[0] <= 3 and x[5] != x[5] else 2.0
    x[6] -= x[0] * x[1]


def test_numbers() -> None:
    both(numbers, np.array([1.0, 2, 3, -4, 5, np.nan, 7]), np.array([3, 8]))


def loops(table: Any) -> None:
    x = doubles(table[0], (2, 3))
    total, k = 0.0, 0
    while True:
        k += 1
        if k == 3:
            continue
        if k > 7 or not k < 9:
            break
        for i in range(1, 2):
            for j in range(x.shape[1]):
                if j == 1:
                    break
                total += x[i, j] * k
    x[0, 0] = total
    fill(x, 2, 1.5)
    for _ in range(0):
        x[0, 1] = 9.0
    if total > 0:
        return
    x[1, 1] = 100.0


def fill(x: Any, column: int, value: float) -> None:
    column -= 1
    for i in range(x.shape[0]):
        if i > 0:
            return
        x[i, column] = value


def test_loops_and_functions() -> None:
    both(loops, np.array([1.0, 2, 3, 4, 5, 6]))


def guarded(table: Any) -> None:
    """What is not chosen is not computed: index 99 would be outside."""
    x = doubles(table[0], (table[1],))
    k = 99
    x[0] = x[k] if k < table[1] else -1.0
    x[1] = 1.0 if k < table[1] and x[k] > 0.0 else 2.0
    x[2] = 3.0 if k >= table[1] or x[k] > 0.0 else 4.0


def test_guards() -> None:
    both(guarded, np.array([0.5, 0.5, 0.5]))


def outside(table: Any) -> None:
    x = doubles(table[0], (table[1],))
    x[-1] = 1.0


def test_python_checks_indices() -> None:
    room = np.zeros(2)
    table = (ctypes.c_int64 * 2)(room.ctypes.data, 2)
    with pytest.raises(IndexError):
        outside(integers(ctypes.addressof(table), (2,)))


def unknown_call(table: Any) -> None:
    print(table[0])


def changing_kind(table: Any) -> None:
    k = 1
    k = 2.0  # noqa: F841


def true_division(table: Any) -> None:
    table[0] = table[0] / table[1]


def slices(table: Any) -> None:
    table[0:1] = 3


@pytest.mark.parametrize("function", [unknown_call, changing_kind, true_division, slices])
def test_what_is_not_in_the_language(function: Callable[[Any], None]) -> None:
    with pytest.raises(NotImplementedError, match="line"):
        translate(function, "work", 2)


def test_a_call_through_an_address() -> None:
    seen: list[int] = []
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)
    listener = kind(lambda a, b: seen.extend((a, b)))
    address = ctypes.cast(listener, ctypes.c_void_p).value
    table = (ctypes.c_int64 * 2)(address, 7)
    code.program(calling, 2, Store().directory)(ctypes.addressof(table))
    calling(integers(ctypes.addressof(table), (2,)))
    assert seen == [7, 3, 7, 3]


def calling(table: Any) -> None:
    call(table[0], (table[1], 3))


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("method", ["explicit", "stiff"])
def test_the_driver_as_python(order: int, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole driver, every index checked, on a busy timeline with modelled doses and failing rows: the same bits."""
    n_rows = 11
    p = log_normal((1.0, 40.0, 6.0, 1.0, 0.7, 0.8, 3.0), n_rows, 0.2)
    p[4, 2] = torch.nan
    p[7, 0] = 1e9
    line = timeline(moved_points(*seeded(p, 2)[4:]), n_rows)
    injected = frozenset((i, q) for i in (0, 1) for q in (4, 5, 6))
    k = Kernel.build(Equations.trace(saturable, also=MOVED).components(order, injected), method)
    solver = Solver(rtol=1e-4, max_steps=150)

    def interpreted(address: int) -> None:
        drive(integers(address, (words.N_WORDS,)))

    fast = k.solve(p, NO_WEIGHTS, line, torch.arange(n_rows), solver)
    monkeypatch.setattr(k, "_drive", interpreted)
    slow = k.solve(p, NO_WEIGHTS, line, torch.arange(n_rows), solver)
    assert torch.equal(fast.status, slow.status)
    assert torch.equal(fast.steps, slow.steps)
    torch.testing.assert_close(fast.components, slow.components, rtol=0, atol=0, equal_nan=True)
    assert fast.status[4] == 3
    # rows without moving doses, each with its own times
    p, line = busy(n_rows)
    p = torch.cat([p, torch.ones(n_rows, 3)], -1)
    slow = k.solve(p, NO_WEIGHTS, line, torch.arange(n_rows), solver)
    monkeypatch.undo()
    fast = k.solve(p, NO_WEIGHTS, line, torch.arange(n_rows), solver)
    assert torch.equal(fast.components, slow.components)


def test_machine_code_is_kept(tmp_path: Path) -> None:
    directory = tmp_path / "kept"
    code.program(numbers, 4, directory)
    assert len(list(directory.iterdir())) == 1


def test_an_update_while_running_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in memory and what is on disk must not be mixed, nor stored for others under either's name."""
    monkeypatch.setattr(code, "SOURCES", ("other text", *code.SOURCES[1:]))
    with pytest.raises(RuntimeError, match="start Python again"):
        code.program(drive, words.N_WORDS, tmp_path)
    assert not list(tmp_path.iterdir())
