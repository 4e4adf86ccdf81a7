"""Object code on disk: kept, shared, damaged, refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from structure.kernel.pages import NO_WEIGHTS, log_normal, oral, timeline

from nlmegen.structure.equations import Equations
from nlmegen.structure.kernel.code import compiled
from nlmegen.structure.kernel.explicit import EXPLICIT
from nlmegen.structure.kernel.machine import Kernel
from nlmegen.structure.kernel.page import build
from nlmegen.structure.kernel.store import Store
from nlmegen.structure.solver import Solver
from nlmegen.structure.timeline import Point

POINTS = [(0.0, Point.BOLUS, 0, 100.0), (2.0, Point.OBSERVE, 0, 0.0)]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "kept"
    path.mkdir(mode=0o700)
    return path


def solve(store: Store) -> torch.Tensor:
    k = Kernel.build(Equations.trace(oral).components(1), store=store)
    p = log_normal((1.0, 4.0, 40.0), 3)
    return k.solve(p, NO_WEIGHTS, timeline(POINTS, 3), torch.arange(3), Solver()).components


def test_round_trip(directory: Path) -> None:
    store = Store(directory)
    assert store.get("a") is None
    store.put("a", b"code")
    assert store.get("a") == b"code"
    assert [path.name for path in directory.iterdir()] == ["a"]


def test_directory_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    store = Store(tmp_path / "deep" / "er")
    store.put("a", b"code")
    assert store.get("a") == b"code"
    assert store.directory.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "damage", [lambda x: x[:-1], lambda x: b"", lambda x: x[:40] + b"?" + x[41:], lambda x: x[:10]]
)
def test_damaged_code_is_made_anew(directory: Path, damage: object) -> None:
    """A kernel whose stored code was cut short or altered is compiled again, and stored again."""
    store = Store(directory)
    want = solve(store)
    files = sorted(directory.iterdir())
    assert len(files) == 2  # the page and the driver
    whole = [path.read_bytes() for path in files]
    for path, content in zip(files, whole, strict=True):
        path.write_bytes(damage(content))  # type: ignore[operator]
    for path in files:
        assert store.get(path.name) is None
    assert torch.equal(solve(store), want)
    k = Kernel.build(Equations.trace(oral).components(1), store=store)
    assert k.store is store
    mended = [path.read_bytes() == content for path, content in zip(files, whole, strict=True)]
    assert any(mended)  # the driver is held by this process; the page is not


def test_no_directory_no_failure(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    store = Store(blocked / "below")
    store.put("a", b"code")
    assert store.get("a") is None
    assert solve(store).isfinite().all()


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="permissions of this kind are not kept")
def test_open_directory_is_not_trusted(directory: Path) -> None:
    store = Store(directory)
    store.put("a", b"code")
    directory.chmod(0o777)
    assert store.get("a") is None
    store.put("b", b"code")
    assert [path.name for path in directory.iterdir()] == ["a"]


def test_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NLMEGEN_CACHE", str(tmp_path / "mine"))
    assert Store().directory == tmp_path / "mine"
    monkeypatch.delenv("NLMEGEN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert Store().directory == tmp_path / "cache" / "nlmegen" / "kernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store().directory == tmp_path / ".cache" / "nlmegen" / "kernels"


WRITER = """
import ctypes, sys
from pathlib import Path
from nlmegen.structure.kernel.code import compiled
from nlmegen.structure.kernel.store import Store
text = Path(sys.argv[1]).read_text()
code = compiled(text, ("rates", "step", "initial"), lambda: text, Store(Path(sys.argv[2])))
assert code.address["step"]
"""


def test_two_processes_at_once(directory: Path, tmp_path: Path) -> None:
    """Both find an empty directory, both compile and write; what they leave is whole, and equal to what one leaves."""
    text = build(Equations.trace(oral).components(2), EXPLICIT).text()
    source = tmp_path / "page.ll"
    source.write_text(text)
    both = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(source), str(directory)], cwd=Path(__file__).parents[3]
        )
        for _ in range(2)
    ]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    left = list(directory.iterdir())
    alone = tmp_path / "alone"
    compiled(text, ("rates", "step", "initial"), lambda: text, Store(alone))
    assert [path.name for path in left] == [path.name for path in alone.iterdir()]
    assert left[0].read_bytes() == (alone / left[0].name).read_bytes()
