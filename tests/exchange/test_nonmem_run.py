"""A run of NONMEM read back: the phenobarbital run as printed, mappings, and files that are not as they should be."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from exchange.nonmem_files import METHOD, PHENO, PHENO_ROWS, ext_text, write_pheno

import nlmegen as nl
from nlmegen.errors import DataError, ModelError
from nlmegen.exchange import read_nonmem_run
from nlmegen.exchange.nonmem_names import canonical
from nlmegen.exchange.nonmem_tables import read_tables


@pytest.fixture(scope="module")
def data() -> nl.Population:
    return nl.load_data("phenobarbital")


@pytest.fixture(scope="module")
def page() -> nl.Model:
    return nl.load_model("phenobarbital")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, page: nl.Model, data: nl.Population) -> Any:
    return read_nonmem_run(write_pheno(tmp_path_factory.mktemp("nonmem")), model=page, data=data)


def changed(folder: Path, old: str, new: str) -> Path:
    """pheno.ext with a piece of text changed."""
    path = write_pheno(folder, phi=False, cov=False)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


def small(folder: Path, names: tuple[str, ...], final: tuple[float, ...], **rows: tuple[float, ...]) -> Path:
    """A .ext file of final estimates, standard errors (`se=`) and fixed flags (`fixed=`)."""
    table = {-1000000000: (*final, 600.0)}
    for key, at in (("se", -1000000001), ("fixed", -1000000006)):
        if key in rows:
            table[at] = (*rows[key], 0.0)
    path = folder / "small.ext"
    path.write_text(ext_text(names, table))
    return path


# -- the run as printed -----------------------------------------------------------------------------------------------
def test_the_numbers_are_those_printed(run: Any) -> None:
    assert run.ofv == 586.27605628520962
    assert run.ofv_source == "focei"
    assert run.converged
    table = run.parameters
    assert table.loc["tvcl", ["estimate", "se"]].tolist() == [4.69555e-3, 2.09967e-4]
    assert table.loc["omega.v", ["estimate", "se"]].tolist() == [2.79060e-2, 7.47591e-3]
    # NONMEM's SIGMA is a variance; its own root and the error of that stand in the rows -1000000004 and 5
    assert table.loc["cp.proportional", "estimate"] == pytest.approx(1.15069e-1, abs=1e-6)
    assert table.loc["cp.proportional", "se"] == pytest.approx(9.90666e-3, abs=1e-8)
    assert run.condition_number == 4.39229
    assert run.estimates.loc["OMEGA(2,1)", "fixed"]
    assert math.isnan(run.estimates.loc["OMEGA(2,1)", "se"])
    assert list(run.iterations["ITERATION"]) == [0, 12]
    assert run.covariance.loc["THETA3", "THETA2"] == -8.04175e-4
    assert run.correlation is None
    assert run.remarks == []
    assert "First Order Conditional Estimation with Interaction" in repr(run)


def test_the_subjects_stand_in_a_table(run: Any, data: nl.Population) -> None:
    table = run.individuals
    assert list(table.columns) == ["id", "eta_cl", "eta_v", "var_cl", "cov_v_cl", "var_v", "obj"]
    assert list(table["id"]) == list(data.ids)
    assert table["obj"].sum() == pytest.approx(run.ofv, abs=1e-8)
    assert table.loc[17, "eta_cl"] == 3.37255e-1


def test_it_is_a_column_beside_a_fit(run: Any, page: nl.Model, data: nl.Population) -> None:
    fit = nl.fit(page, data, nl.FOCEI())
    compared = nl.compare(fit, run, names=["here", "nonmem"])
    row = compared.table.loc["nonmem"]
    assert row["ofv"] == run.ofv
    assert row["minus2ll"] == pytest.approx(
        871.1369, abs=2e-3
    )  # by independent quadrature at NONMEM's estimates
    assert abs(row["minus2ll"] - compared.table.loc["here", "minus2ll"]) < 2e-3
    assert row["method"] == "nonmem"
    assert math.isnan(row["seconds"])
    own = nl.compare(fit, run, arbiter="own").table
    assert own["minus2ll"].tolist() == pytest.approx([871.14700157, 871.14700158], abs=1e-6)
    assert own["minus2ll"].iloc[1] == pytest.approx(
        871.14700157865809, abs=1e-8
    )  # "WITH CONSTANT" of the report
    sides = compared.parameters
    assert sides["here se"].to_numpy() == pytest.approx(sides["nonmem se"].to_numpy(), rel=2e-3)


# -- several tables, other methods ------------------------------------------------------------------------------------
def test_the_last_step_is_taken_unless_another_is_named(
    tmp_path: Path, page: nl.Model, data: nl.Population
) -> None:
    path = write_pheno(tmp_path, phi=False, cov=False)
    later = {k: (*v[:-1], v[-1] - 300.0) for k, v in PHENO_ROWS.items() if k != -1000000007}
    last = {-1000000007: (1.0,) + (0.0,) * 7}
    with path.open("a") as file:
        file.write(
            ext_text(
                PHENO,
                later | last,
                number=2,
                method="Stochastic Approximation Expectation-Maximization",
                objective="SAEMOBJ",
            )
        )
        file.write(
            ext_text(PHENO, later, number=3, method="Objective Function Evaluation by Importance Sampling")
        )
    run = read_nonmem_run(path, model=page, data=data)
    assert (run.number, run.ofv_source) == (3, "importance")
    assert run.converged
    assert "not in the file" in run.reason
    saem = read_nonmem_run(path, model=page, data=data, table=2)
    assert saem.ofv_source == "saem"
    assert math.isnan(saem.log_likelihood)
    assert not saem.converged
    assert saem.reason == "not completed"
    compared = nl.compare(run, saem, names=["imp", "saem"])
    assert any("saem: the objective" in note for note in compared.notes)
    assert any("saem did not converge" in note for note in compared.notes)
    assert read_nonmem_run(path, model=page, data=data, table=1).ofv_source == "focei"
    with pytest.raises(DataError, match="holds no table 4; it has 1, 2, 3"):
        read_nonmem_run(path, model=page, data=data, table=4)


@pytest.mark.parametrize(
    ("method", "source"),
    [
        (METHOD, "focei"),
        (f"{METHOD} (Evaluation)", "focei"),
        ("First Order Conditional Estimation (No Prior)", "foce"),
        ("First Order", "fo"),
        ("Laplacian Conditional Estimation with Interaction", "laplace"),
        ("Importance Sampling assisted by MAP Estimation", "importance"),
    ],
)
def test_methods_by_their_names(
    tmp_path: Path, page: nl.Model, data: nl.Population, method: str, source: str
) -> None:
    path = tmp_path / "run.ext"
    path.write_text(ext_text(PHENO, PHENO_ROWS, method=method))
    assert read_nonmem_run(path, model=page, data=data).ofv_source == source


def test_commas_lost_letters_and_asterisks(tmp_path: Path, page: nl.Model, data: nl.Population) -> None:
    path = write_pheno(tmp_path, phi=False, cov=False)
    lines = path.read_text().splitlines()
    lines[1:] = [",".join(line.split()) for line in lines[1:]]
    text = "\n".join(lines).replace("8.37555E-02", "************").replace("3.09626E-02", "3.09626-102")
    path.write_text(text)
    run = read_nonmem_run(path, model=page, data=data)
    assert math.isnan(run.parameters.loc["asphyxia", "se"])
    assert run.iterations["OMEGA(1,1)"].iloc[0] == 3.09626e-102
    assert run.parameters.loc["tvcl", "se"] == 2.09967e-4
    untitled = tmp_path / "untitled.ext"
    untitled.write_text("\n".join(lines[1:]).replace(",", " ").replace("( ", "("))
    assert read_tables(path)[0].columns == ["ITERATION", *PHENO, "OBJ"]


def test_a_file_without_titles_is_one_table(tmp_path: Path, page: nl.Model, data: nl.Population) -> None:
    path = tmp_path / "run.ext"
    path.write_text("".join(ext_text(PHENO, PHENO_ROWS).splitlines(keepends=True)[1:]))
    assert read_nonmem_run(path, model=page, data=data).ofv == 586.27605628520962


# -- mappings ---------------------------------------------------------------------------------------------------------
def test_logarithms_and_other_orders(tmp_path: Path, page: nl.Model, data: nl.Population) -> None:
    """Thetas in another order, the volume as a logarithm, etas exchanged, and the residual error as a theta."""
    names = ("THETA1", "THETA2", "THETA3", "THETA4", "SIGMA(1,1)", "OMEGA(1,1)", "OMEGA(2,1)", "OMEGA(2,2)")
    final = (math.log(0.98), 0.0047, 0.16, 0.12, 1.0, 0.028, 0.0, 0.029)
    path = small(
        tmp_path,
        names,
        final,
        se=(0.03, 2e-4, 0.08, 0.01, 1e10, 0.007, 1e10, 0.013),
        fixed=(0, 0, 0, 0, 1, 0, 1, 0),
    )
    run = read_nonmem_run(
        path,
        model=page,
        data=data,
        map={
            "theta(1)": ("tvv", math.exp),
            "THETA2": "tvcl",
            "THETA4": "cp.proportional",
            "OMEGA(1,1)": "omega.v",
        },
    )
    table = run.parameters
    assert table["estimate"].to_dict() == pytest.approx(
        {
            "tvcl": 0.0047,
            "tvv": 0.98,
            "asphyxia": 0.16,
            "omega.cl": 0.029,
            "omega.v": 0.028,
            "cp.proportional": 0.12,
        }
    )
    assert table.loc["tvv", "se"] == pytest.approx(0.98 * 0.03, rel=1e-6)
    assert table.loc["cp.proportional", "se"] == 0.01
    assert table.loc["omega.v", "se"] == 0.007
    assert float(run.model.theta.tvv) == pytest.approx(0.98)


def test_blocks_follow_their_etas(tmp_path: Path, data: nl.Population) -> None:
    Page = type(nl.load_model("phenobarbital"))
    page = type("Block", (Page,), {"__module__": __name__, "iiv": nl.Omega(cl=0.05, v=0.05, cov=[0.01])})
    names = ("THETA1", "THETA2", "THETA3", "SIGMA(1,1)", "OMEGA(1,1)", "OMEGA(2,1)", "OMEGA(2,2)")
    path = small(
        tmp_path,
        names,
        (0.005, 1.0, 0.1, 0.01, 0.03, -0.004, 0.02),
        se=(1e-4, 0.02, 0.08, 0.002, 0.01, 0.005, 0.006),
    )
    run = read_nonmem_run(path, model=page, data=data, map={"OMEGA(1,1)": "v"})
    wanted = torch.tensor([[0.02, -0.004], [-0.004, 0.03]], dtype=torch.float64)
    assert torch.allclose(run.model.omega, wanted)
    assert run.parameters.loc["omega.v,cl", "se"] == 0.005
    with pytest.raises(DataError, match=r"declare the block on the page"):
        read_nonmem_run(path, model=Page, data=data)


def test_what_is_fixed_on_one_side_only_is_said(tmp_path: Path, page: nl.Model, data: nl.Population) -> None:
    path = small(tmp_path, PHENO, (0.005, 1.0, 0.1, 0.01, 0.03, 0.0, 0.02), fixed=(0, 0, 1, 0, 0, 1, 0))
    said, objective = read_nonmem_run(path, model=page, data=data).remarks
    assert "NONMEM printed" in objective
    assert said.startswith("asphyxia is free on the page and was fixed by NONMEM")


def test_an_objective_that_the_page_does_not_have_is_said(
    run: Any, page: nl.Model, data: nl.Population
) -> None:
    swapped = read_nonmem_run(
        run.path, model=page, data=data, map={"OMEGA(1,1)": "omega.v", "OMEGA(2,2)": "omega.cl"}
    )
    (said,) = swapped.remarks
    own = nl.fit(swapped.model, data, nl.FOCEI(evaluate=True)).ofv
    assert f"the page has OFV {own:.4f} by focei, NONMEM printed 586.2761" in said
    assert own > 586.2761 + 0.01


@pytest.mark.parametrize(
    ("mapping", "says"),
    [
        ({"THETA9": "tvcl"}, "the run has no THETA9"),
        ({"KA": "tvcl"}, "no parameter of NONMEM"),
        ({"THETA1": "tvlc"}, "Did you mean 'tvcl'"),
        ({"THETA1": "tvcl", "THETA2": "tvcl"}, "named twice"),
        ({"THETA1": None}, r"2 THETA to match by order \(THETA2, THETA3\) and the page 3"),
        ({"OMEGA(2,1)": "omega.cl"}, "only name a random effect by its variance"),
        ({"OMEGA(1,1)": ("omega.cl", math.exp)}, "functions are for THETA"),
        ({"OMEGA(1,1)": None}, "1 ETA to match by order"),
        ({"THETA1": ("tvcl", math.log)}, "outside the bounds of tvcl"),
        ({"THETA1": ("tvcl", lambda x: math.log(-x))}, "fails at"),
        ({"SIGMA(1,1)": None}, "0 SIGMA to match by order"),
    ],
)
def test_mappings_that_cannot_be(
    tmp_path: Path, page: nl.Model, data: nl.Population, mapping: Any, says: str
) -> None:
    path = write_pheno(tmp_path, phi=False, cov=False)
    with pytest.raises(DataError, match=says):
        read_nonmem_run(path, model=page, data=data, map=mapping)


def test_names_in_any_spelling() -> None:
    assert [canonical(x) for x in ("theta 3", "THETA(3)", "omega(1,2)", "Sigma(2,2)", "OMEGA2")] == [
        "THETA3",
        "THETA3",
        "OMEGA(2,1)",
        "SIGMA(2,2)",
        "OMEGA(2,2)",
    ]


# -- files that are not as they should be -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (" -1000000000 ", " 13 ", "no final estimates.*up to 13.*interrupted"),
        (" ITERATION ", " ITER ", "line 2: expected labels that begin with"),
        ("TABLE NO.     1", "TABLE", "line 1: expected 'TABLE NO"),
        ("  2.09967E-04", "", "line 6: expected 9 cells, as many as labels, got 8"),
        ("9.84258E-01", "9.8x258E-01", "expected a number in column THETA2, got '9.8x258E-01'"),
        (" 2.79060E-02", " -2.7906E-02", "positive variance"),
        (" 1.32410E-02", " 0.00000E+00", "expected a positive variance"),
    ],
)
def test_damaged_files_are_refused(
    tmp_path: Path, page: nl.Model, data: nl.Population, old: str, new: str, says: str
) -> None:
    with pytest.raises(DataError, match=says):
        read_nonmem_run(changed(tmp_path, old, new), model=page, data=data)


def test_other_files_are_refused(tmp_path: Path, page: nl.Model, data: nl.Population) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_nonmem_run(tmp_path / "none.ext", model=page, data=data)
    empty = tmp_path / "empty.ext"
    empty.write_text("")
    with pytest.raises(DataError, match="no table of NONMEM 7"):
        read_nonmem_run(empty, model=page, data=data)
    phi = write_pheno(tmp_path).with_suffix(".phi")
    with pytest.raises(DataError, match=r"expected a \.ext file"):
        read_nonmem_run(phi, model=page, data=data)
    with pytest.raises(ModelError, match="needs model="):
        read_nonmem_run(phi, model="phenobarbital", data=data)
    with pytest.raises(DataError, match="needs data="):
        read_nonmem_run(phi, model=page, data="phenobarbital")


def test_a_run_of_other_subjects_is_refused(tmp_path: Path, page: nl.Model, data: nl.Population) -> None:
    path = write_pheno(tmp_path)
    with pytest.raises(DataError, match="59 subjects and the data 58"):
        read_nonmem_run(path, model=page, data=data.select(range(58)))
    phi = path.with_suffix(".phi")
    phi.write_text(phi.read_text().replace("5.9473520242962552", "6.9473520242962552"))
    (said,) = read_nonmem_run(path, model=page, data=data).remarks
    assert "sum to 587.2761" in said
