"""Work that survives: a kill in the middle, a torn line, another fit in the same place."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from resample.oneway import fitted

import nlmegen as nl
from nlmegen.resample.bootstrap import bootstrap
from nlmegen.resample.journal import Journal

CHILD = """
import os
import sys

from resample.oneway import fitted
from nlmegen.resample.bootstrap import bootstrap
from nlmegen.resample.replicate import process_pool


def tell(progress):
    print(progress.step, flush=True)


if __name__ == "__main__":
    with process_pool(1) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        bootstrap(fitted(), n=400, out=sys.argv[1], executor=pool, progress=tell)
"""


def rows(path: Path) -> list[list[str]]:
    """Every cell as it is written, but for the time it took."""
    return [line.rsplit(",", 1)[:1] for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def fit() -> nl.Fit:
    return fitted()


def test_a_killed_bootstrap_is_finished_with_the_same_numbers(fit: nl.Fit, tmp_path: Path) -> None:
    """Begun by a process with a worker, killed in the middle, finished by this process alone."""
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    paths = [str(Path(nl.__file__).parent.parent), str(Path(__file__).parent.parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        worker = int(child.stdout.readline())
        for line in child.stdout:
            if int(line) == 5:
                child.send_signal(signal.SIGKILL)
                break
    assert child.returncode == -signal.SIGKILL
    csv = tmp_path / "bootstrap.csv"
    before = rows(csv)
    n = len(before) + 3
    assert 6 <= len(before) < 400
    bootstrap(fit, n=n, out=tmp_path)
    (tmp_path / "whole").mkdir()
    whole = bootstrap(fit, n=n, out=tmp_path / "whole")
    assert rows(csv) == rows(tmp_path / "whole" / "bootstrap.csv")
    again = bootstrap(fit, n=n, out=tmp_path)
    pd.testing.assert_frame_equal(again.table.drop(columns="seconds"), whole.table.drop(columns="seconds"))
    assert ended(worker), "a worker does not outlive the one it works for"


def ended(pid: int) -> bool:
    """Whether a process ends within a minute; one that nobody has buried yet has ended."""
    state = Path(f"/proc/{pid}/stat")
    for _ in range(600):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("left", [0.3, 0.8, 1.0])
def test_a_torn_line_is_computed_again(fit: nl.Fit, tmp_path: Path, left: float) -> None:
    bootstrap(fit, n=3, out=tmp_path)
    csv = tmp_path / "bootstrap.csv"
    whole = csv.read_bytes()
    lines = whole.splitlines(keepends=True)
    csv.write_bytes(b"".join(lines[:3]) + lines[3][: int(left * len(lines[3])) - 1])
    bootstrap(fit, n=3, out=tmp_path)
    assert [line.rsplit(b",", 1)[0] for line in csv.read_bytes().splitlines()] == [
        line.rsplit(b",", 1)[0] for line in whole.splitlines()
    ]


@pytest.mark.parametrize(("cell", "damaged"), [(2, "convexged"), (1, "x7"), (4, "1.2.3"), (6, "one")])
def test_a_damaged_row_is_named(fit: nl.Fit, tmp_path: Path, cell: int, damaged: str) -> None:
    bootstrap(fit, n=2, out=tmp_path)
    csv = tmp_path / "bootstrap.csv"
    lines = csv.read_text().splitlines()
    cells = lines[2].split(",")
    cells[cell] = damaged
    csv.write_text("\n".join([*lines[:2], ",".join(cells)]) + "\n")
    with pytest.raises(nl.DataError, match=r"the row of replicate 2 is damaged; .*--force"):
        bootstrap(fit, n=2, out=tmp_path)


def test_a_torn_header_is_written_again(fit: nl.Fit, tmp_path: Path) -> None:
    bootstrap(fit, n=2, out=tmp_path)
    csv = tmp_path / "bootstrap.csv"
    whole = rows(csv)
    csv.write_bytes(csv.read_bytes()[:12])
    bootstrap(fit, n=2, out=tmp_path)
    assert rows(csv) == whole


def test_numbers_come_back_from_the_file_to_the_last_bit(fit: nl.Fit, tmp_path: Path) -> None:
    first = bootstrap(fit, n=2, out=tmp_path / "mine.csv")
    pd.testing.assert_frame_equal(bootstrap(fit, n=2, out=tmp_path / "mine.csv").table, first.table)
    assert (tmp_path / "mine.json").exists()


def test_another_fit_or_other_settings_are_refused(fit: nl.Fit, tmp_path: Path) -> None:
    bootstrap(fit, n=2, out=tmp_path)
    other = fitted(seed=2)
    with pytest.raises(nl.DataError, match="holds another bootstrap .estimates.*data.*--force"):
        bootstrap(other, n=2, out=tmp_path)
    with pytest.raises(nl.DataError, match=r"kind case there, parametric asked for"):
        bootstrap(fit, n=2, kind="parametric", out=tmp_path)
    with pytest.raises(nl.DataError, match=r"seed 0 there, 1 asked for"):
        bootstrap(fit, n=2, seed=1, out=tmp_path)
    with pytest.raises(nl.DataError, match="method"):
        bootstrap(fit, n=2, method=nl.FOCEI(tolerance=1e-6), out=tmp_path)
    before = (tmp_path / "bootstrap.csv").read_bytes()
    anew = bootstrap(fit, n=2, seed=1, out=tmp_path, fresh=True)
    assert anew.seed == 1
    assert (tmp_path / "bootstrap.csv").read_bytes() != before
    assert json.loads((tmp_path / "bootstrap.json").read_text())["seed"] == 1


class TestTheFile:
    def make(self, place: Path) -> Journal:
        return Journal(place, "work", {"of": "mine"}, ["number", "value"])

    def test_one_writer_at_a_time(self, tmp_path: Path) -> None:
        with self.make(tmp_path), pytest.raises(nl.DataError, match="being written by another process"):
            self.make(tmp_path)

    def test_a_row_is_on_the_disk_at_once_and_in_order_in_the_end(self, tmp_path: Path) -> None:
        path = tmp_path / "work.csv"
        with self.make(tmp_path) as journal:
            journal.add((2, 0.1 + 0.2))
            assert path.read_text() == "number,value\n2,0.30000000000000004\n"
            journal.add((1, 'said\n"so", twice'))
        assert path.read_text() == 'number,value\n1,"said ""so"", twice"\n2,0.30000000000000004\n'
        with self.make(tmp_path) as journal:
            assert journal.rows[1] == ["1", 'said "so", twice']

    def test_a_damaged_line_is_named(self, tmp_path: Path) -> None:
        with self.make(tmp_path) as journal:
            journal.add((1, 1.0))
            journal.add((2, 2.0))
        path = tmp_path / "work.csv"
        path.write_text(path.read_text().replace("1,1.0", "1,1.0,9"))
        with pytest.raises(nl.DataError, match="line 2: expected 2 values"):
            self.make(tmp_path)

    def test_a_file_that_nobody_owns_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "work.csv").write_text("number,value\n1,2\n")
        with pytest.raises(nl.DataError, match="no work.json to say what it holds"):
            self.make(tmp_path)
        assert (tmp_path / "work.csv").read_text() == "number,value\n1,2\n"
