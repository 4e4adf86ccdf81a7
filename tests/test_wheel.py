"""What a stranger gets from pip: a wheel, built from the sdist, that knows its models and data sets by itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import nlmegen

ROOT = Path(__file__).parent.parent
CATALOGUE = {"models": "nlmegen/_models", "datasets": "nlmegen/_datasets"}

pytestmark = pytest.mark.slow


def run(*words: str, cwd: Path, path: Path | None = None) -> str:
    """Run a command with `path` first on Python's path; return what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    ran = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that comes out of the sdist, so that the sdist is checked too."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT), cwd=out)
    (made,) = out.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed wheel and nothing else."""
    site = tmp_path_factory.mktemp("site")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile")
    run(*pip, "--target", str(site), str(wheel), cwd=site)
    return site


def test_the_wheel_carries_the_catalogue_whole_and_once(wheel: Path) -> None:
    names = contents(wheel)
    for folder, place in CATALOGUE.items():
        expected = {
            f"{place}/{file.relative_to(ROOT / folder).as_posix()}"
            for file in (ROOT / folder).rglob("*")
            if file.is_file() and "__pycache__" not in file.parts
        }
        assert expected
        assert {name for name in names if name.startswith(place)} == expected


def test_the_wheel_carries_nothing_else(wheel: Path) -> None:
    names = contents(wheel)
    assert "nlmegen/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names} == {"nlmegen", f"nlmegen-{nlmegen.__version__}.dist-info"}
    assert not [name for name in names if name.endswith(".pyc")]


def test_the_installed_wheel_lists_and_loads_its_catalogue(installed: Path, tmp_path: Path) -> None:
    where = run(sys.executable, "-c", "import nlmegen; print(nlmegen.__file__)", cwd=tmp_path, path=installed)
    assert Path(where.strip()).is_relative_to(installed)
    listed = run(sys.executable, "-m", "nlmegen", "list", cwd=tmp_path, path=installed)
    for name in ("theophylline", "phenobarbital"):
        assert len(re.findall(rf"^  {name} ", listed, flags=re.M)) == 2, listed
    assert run(str(installed / "bin" / "nlmegen"), "list", cwd=tmp_path, path=installed) == listed
    code = "import nlmegen as nl; print(nl.load_data('theophylline').n_subjects, nl.load_model('theophylline').name)"
    assert run(sys.executable, "-c", code, cwd=tmp_path, path=installed).split() == ["12", "theophylline"]


def test_an_editable_install_copies_nothing(tmp_path: Path) -> None:
    code = f"import hatchling.build as b; print(b.build_editable({str(tmp_path)!r}))"
    name = run(sys.executable, "-c", code, cwd=ROOT).split()[-1]
    names = contents(tmp_path / name)
    assert names
    assert not [name for name in names if "_models" in name or "_datasets" in name]


def test_the_citation_names_this_version() -> None:
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text("utf-8"), flags=re.M)
    assert cited is not None
    assert cited[1] == nlmegen.__version__
