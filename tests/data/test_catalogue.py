"""The catalogue of data sets: what lies there, under which names, and how light listing it is."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys

import pytest
import torch

from nlmegen.data.catalogue import list_data, load_data
from nlmegen.errors import DataError


def test_listing_loads_neither_torch_nor_pandas() -> None:
    code = (
        "import sys; from nlmegen.data.catalogue import list_data; entries = list_data(); "
        "entries[0].n_subjects; heavy = {'torch', 'pandas', 'numpy'} & set(sys.modules); "
        "assert entries and not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_names_titles_and_hashes() -> None:
    entries = {entry.name: entry for entry in list_data()}
    assert list(entries) == [
        "cefamandole",
        "indomethacin",
        "phenobarbital",
        "quinidine",
        "remifentanil",
        "tetracycline",
        "theophylline",
        "warfarin_simulated",
    ]
    for entry in entries.values():
        readme = (entry.path.parent / "README.md").read_text(encoding="utf-8")
        assert readme.splitlines()[0] == f"# {entry.title}"
        assert hashlib.sha256(entry.path.read_bytes()).hexdigest() in readme
        for words in ("**Source.**", "**Licence.**", "| column | unit | meaning |"):
            assert words in readme
        columns = entry.path.read_text(encoding="utf-8").splitlines()[0].split(",")
        assert re.findall(r"^\| ([A-Z]+) \|", readme, flags=re.MULTILINE) == columns


def test_theophylline() -> None:
    population = load_data("theophylline")
    assert population.ids == tuple(str(n) for n in range(1, 13))
    assert (population.n_observations, population.n_doses) == (132, 12)
    assert population.mask.all()
    assert (population.time[:, 0] == 0).all()
    assert (population.segment == 0).all(), "the dose comes before the observation at time 0"
    assert population.events.time.shape == (12, 1)
    assert population.compartments == (1,)
    assert (population.time_unit, population.amount_unit, population.dv_unit) == ("h", "mg", "mg/L")
    # dose per kg times weight as published: subject 1, 4.02 mg/kg and 79.6 kg; subject 5, 5.86 mg/kg and 54.6 kg
    assert population.events.amount[[0, 4], 0].tolist() == pytest.approx(
        [4.02 * 79.6, 5.86 * 54.6], rel=1e-15
    )
    assert population.dv[0].tolist() == [0.74, 2.84, 6.57, 10.5, 9.66, 8.58, 8.36, 7.47, 6.89, 5.94, 3.28]
    assert population.warnings == ()


def test_phenobarbital() -> None:
    population = load_data("phenobarbital")
    assert (population.n_subjects, population.n_observations, population.n_doses) == (59, 155, 589)
    assert len(population.table) == 744
    assert {name: item.varies for name, item in population.covariates.items()} == {"wt": False, "apgr": False}
    weight, apgar = population.covariates["wt"].observation, population.covariates["apgr"].observation
    assert (weight.min().item(), weight.max().item()) == (0.6, 3.6)
    assert torch.equal(apgar.unique(), torch.arange(1.0, 11.0, dtype=torch.float64))
    assert population.dv[0, :2].tolist() == [17.3, 31.0]
    assert population.segment[0, :2].tolist() == [0, 9], "ten doses before the second sample"
    assert population.compartments == (0,)


def test_unknown_name() -> None:
    with pytest.raises(DataError, match="Did you mean 'theophylline'"):
        load_data("theophyline")
    with pytest.raises(DataError, match="read_nonmem"):
        load_data("mine.csv")
