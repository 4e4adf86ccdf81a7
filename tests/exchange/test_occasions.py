"""Between-occasion variability of a NONMEM run: one ETA for each occasion, $OMEGA BLOCK SAME, as kappas of a page."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from exchange.nonmem_files import ext_text
from nested import Nested, Oral, exact, linear_table, oral_table, population

import nlmegen as nl
from nlmegen.errors import DataError
from nlmegen.exchange import read_nonmem_run
from nlmegen.exchange.nonmem_names import individual_names


def lower(q: int, entries: dict[tuple[int, int], float]) -> dict[str, float]:
    """OMEGA by name, the lower triangle row by row as NONMEM prints it."""
    return {f"OMEGA({i},{j})": entries.get((i, j), 0.0) for i in range(1, q + 1) for j in range(1, i + 1)}


def run(folder: Path, values: dict[str, float], page: nl.Model, data: nl.Population, **options: object):
    path = folder / "iov.ext"
    path.write_text(ext_text(tuple(values), {-1000000000: (*values.values(), 100.0)}))
    return read_nonmem_run(path, model=page, data=data, **options)  # type: ignore[arg-type]


BLOCK = {(k, k): v for k, v in enumerate((0.3, 0.06, 0.2, 0.04, 0.2, 0.04, 0.2, 0.04), 1)}
BLOCK |= {(4, 3): 0.01, (6, 5): 0.01, (8, 7): 0.01}


def test_a_block_for_each_occasion(tmp_path: Path) -> None:
    table = linear_table()
    values = {"THETA1": 1.9, "THETA2": 0.6, "SIGMA(1,1)": 0.09, **lower(8, BLOCK)}
    found = run(tmp_path, values, Nested(), population(table))
    expected = torch.tensor([[0.2, 0.01], [0.01, 0.04]], dtype=torch.float64)
    torch.testing.assert_close(found.model.omega[2:, 2:], expected)
    assert found.parameters.loc["omega.occ.s,occ.b", "estimate"] == pytest.approx(0.01)
    assert found.translation.etas[6] == "kappa.s.2"
    mine = nl.fit(found.model, population(table), nl.FOCEI(evaluate=True))
    truth = exact(table, found.parameters["estimate"].to_dict()).sum()
    assert mine.log_likelihood == pytest.approx(truth, abs=1e-9)
    columns = individual_names(
        ["ID", "ETA(1)", "ETA(6)", "ETC(6,6)", "ETC(6,5)", "PHI(3)"], found.translation.etas
    )
    assert list(columns.values())[2:] == [
        "eta_b", "kappa_s_2", "var_kappa_s_2", "cov_kappa_s_2_kappa_b_2", "phi_kappa_b_1"
    ]  # fmt: skip


def test_single_effects_in_turn_or_as_mapped(tmp_path: Path) -> None:
    data = population(oral_table())
    head = {
        "THETA1": 1.0,
        "THETA2": 10.0,
        "THETA3": 1.0,
        "SIGMA(1,1)": 0.01,
        "SIGMA(2,1)": 0.0,
        "SIGMA(2,2)": 0.04,
    }
    turns = lower(6, {(1, 1): 0.1, (2, 2): 0.2, (3, 3): 0.03, (4, 4): 0.03, (5, 5): 0.4, (6, 6): 0.4})
    found = run(tmp_path, head | turns, Oral(), data)
    assert found.model.omega.diagonal().tolist() == pytest.approx([0.1, 0.2, 0.03, 0.4])
    assert list(found.translation.etas.values())[2:] == [
        "kappa.cl.1",
        "kappa.cl.2",
        "kappa.ka.1",
        "kappa.ka.2",
    ]
    mixed = lower(6, {(1, 1): 0.1, (2, 2): 0.2, (3, 3): 0.03, (4, 4): 0.4, (5, 5): 0.03, (6, 6): 0.4})
    with pytest.raises(DataError, match="one matrix for all occasions"):
        run(tmp_path, head | mixed, Oral(), data)
    names = {f"OMEGA({k},{k})": f"omega.occ.{'cl' if k % 2 else 'ka'}" for k in range(3, 7)}
    found = run(tmp_path, head | mixed, Oral(), data, map=names)
    assert found.model.omega.diagonal().tolist() == pytest.approx([0.1, 0.2, 0.03, 0.4])
    with pytest.raises(DataError, match="7 ETA to match by order .* one ETA an occasion"):
        run(tmp_path, head | lower(7, {(k, k): 0.1 for k in range(1, 8)}), Oral(), data)
