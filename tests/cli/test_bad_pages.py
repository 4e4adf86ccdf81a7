"""Pages that cannot be fitted: exit status 2, one message with the page's line and the remedy, no traceback.

Every bad page has a near neighbour that differs in the fault alone and must be accepted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from cli.nothing import save_nothing

import nlmegen.results
from nlmegen.cli import main

PAGE = """\
import math

import nlmegen as nl
import torch
from torch import exp


class Drug(nl.Model):
    \"\"\"Oral, one compartment.\"\"\"

    tvka = nl.Theta(1.0, lower=0, unit="1/h")
    tvcl = nl.Theta(2.0, lower=0, unit="L/h")
    tvv = nl.Theta(25.0, lower=0, unit="L")
    iiv = nl.Omega(ka=0.2, cl=0.1, v=0.05)
    cp = nl.Combined(additive=0.5, proportional=0.15)
    structure = nl.OneCompartment(absorption="first-order")

    def individual(self, theta, eta, cov):
        size = cov.wt / 70
        return dict(
            ka=theta.tvka * exp(eta.ka),
            cl=theta.tvcl * exp(eta.cl),
            v=theta.tvv * size * exp(eta.v),
        )

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)
"""

Edit = tuple[str, str]


@dataclass(frozen=True)
class Case:
    """A fault and its neighbour, each as an edit of PAGE.

    Attributes:
        name: Of the test.
        bad: The text to replace, and the fault.
        good: The same for the near neighbour.
        words: What the message must say: what is wrong, and the remedy.
        at: Text of the bad page on the line that the message must name; None where no line is to blame.
    """

    name: str
    bad: Edit
    good: Edit
    words: tuple[str, ...]
    at: str | None = None


ENDPOINT = "    cp = nl.Combined(additive=0.5, proportional=0.15)\n"
IIV = "iiv = nl.Omega(ka=0.2, cl=0.1, v=0.05)"
TVCL = 'tvcl = nl.Theta(2.0, lower=0, unit="L/h")'
CL = "cl=theta.tvcl * exp(eta.cl)"
RETURN = "return dict(cp=a.central / p.v)"
STRUCTURE = 'structure = nl.OneCompartment(absorption="first-order")'
SIZE = "size = cov.wt / 70"

CASES = (
    Case(
        "misspelt endpoint in observe",
        (RETURN, "return dict(pc=a.central / p.v)"),
        (RETURN, "return {'cp': a.central / p.v}"),
        ("'pc'", "not a declared endpoint", "Did you mean 'cp'?"),
        "def observe",
    ),
    Case(
        "endpoint key missing in observe",
        (RETURN, "return dict()"),
        (RETURN, "return dict(cp=a['central'] / p['v'])"),
        ("does not return the declared endpoint 'cp'",),
        "def observe",
    ),
    Case(
        "observe returns a tensor",
        (RETURN, "return a.central / p.v"),
        (RETURN, "cp = a.central / p.v\n        return dict(cp=cp)"),
        ("must return a dict of predictions by endpoint", "Tensor"),
        "def observe",
    ),
    Case(
        "no endpoint declared",
        (ENDPOINT, ""),
        (ENDPOINT, "    cp = nl.Additive(0.5)\n"),
        ("declares no endpoint", "cp = nl.Proportional(0.1)"),
        "class Drug",
    ),
    Case(
        "raw module in the class body",
        (ENDPOINT, ENDPOINT + "    net = torch.nn.Linear(1, 1)\n"),
        (ENDPOINT, ENDPOINT + "    weight = 70.0\n"),
        ("net is a raw torch module", "declare net = nl.Neural"),
        "net =",
    ),
    Case(
        "Python if on a quantity",
        (SIZE, "size = cov.wt / 70 if cov.wt > 0 else 1.0"),
        (SIZE, "size = torch.where(cov.wt > 0, cov.wt / 70, 1.0)"),
        ("Python `if`", "torch.where(condition, a, b)"),
        "size =",
    ),
    Case(
        "math.exp of a quantity",
        (CL, "cl=theta.tvcl * math.exp(eta.cl)"),
        (CL, "cl=theta.tvcl * torch.exp(eta.cl) * math.exp(0.1)"),
        ("use torch.exp", "in place of math.exp"),
        "math.exp",
    ),
    Case(
        "a parameter of the wrong shape",
        (CL, "cl=(theta.tvcl * exp(eta.cl)).squeeze(-1)"),
        (CL, "cl=(theta.tvcl * exp(eta.cl)) * torch.ones(1)"),
        ("'cl' has shape", "without reshaping, summing or indexing"),
        "def individual",
    ),
    Case(
        "a prediction of the wrong shape",
        (RETURN, "return dict(cp=(a.central / p.v)[..., :1, :2])"),
        (RETURN, "return dict(cp=a.central[..., :] / p.v)"),
        ("'cp' has shape", "without reshaping, summing or indexing"),
        "def observe",
    ),
    Case(
        "a formula that mixes subjects",
        (SIZE, "size = cov.wt / cov.wt.mean()"),
        (SIZE, "size = cov.wt / 69.6"),
        ("a formula mixes subjects", "per subject"),
        "def observe",
    ),
    Case(
        "method observe missing",
        ("    def observe(self, t, a, p):\n        return dict(cp=a.central / p.v)\n", ""),
        (RETURN, "return dict(cp=1.0 * a.central / p.v)"),
        ("has no method observe(t, a, p)", "write it"),
        "class Drug",
    ),
    Case(
        "method misspelt",
        ("def individual", "def indivdual"),
        (
            "    def observe",
            "    def _scale(self, p):\n        return p.v\n\n    def observe",
        ),
        ("individual",),
        "def indivdual",
    ),
    Case(
        "wrong arguments of a method",
        ("def individual(self, theta, eta, cov)", "def individual(self, eta, theta, cov)"),
        ("def individual(self, theta, eta, cov)", "def individual(self, theta, eta, cov) -> dict"),
        ("def individual(self, theta, eta, cov)", "got (eta, theta, cov)"),
        "def individual",
    ),
    Case(
        "kappa without occasions",
        ("def individual(self, theta, eta, cov)", "def individual(self, theta, eta, cov, kappa)"),
        (IIV, "iiv = nl.Omega(ka=0.2, cl=0.1, v=0.05, level='id')"),
        ("no random effect between occasions", 'level="occ"', "remove the argument"),
        "def individual",
    ),
    Case(
        "an ODE page",
        (
            "    def observe",
            "    def dynamics(self, t, a, p):\n        return dict(depot=0)\n\n    def observe",
        ),
        ("    def observe", "    kind = 'oral'\n\n    def observe"),
        ("either a closed form", "or dynamics, not both", "remove one"),
        "def dynamics",
    ),
    Case(
        "syntax error",
        (CL, "cl=theta.tvcl * * exp(eta.cl)"),
        (CL, "cl=theta.tvcl ** 1 * exp(eta.cl)"),
        ("not valid Python",),
        "* * exp",
    ),
    Case(
        "a name that is not imported",
        (CL, "cl=theta.tvcl * expp(eta.cl)"),
        (CL, "cl=theta.tvcl * torch.exp(eta.cl)"),
        ("NameError", "expp"),
        "expp",
    ),
    Case(
        "a module that is not installed",
        ("import math\n", "import mathh\n"),
        ("import math\n", "import math\nimport json\n"),
        ("fails when it is loaded", "No module named 'mathh'"),
        "import mathh",
    ),
    Case(
        "no Model in the file",
        (PAGE[PAGE.index("class Drug") :], "x = 1\n"),
        ("class Drug", "x = 1\n\n\nclass Drug"),
        ("expected exactly one class derived from nl.Model, found 0",),
    ),
    Case(
        "two Models in the file",
        (RETURN, RETURN + "\n\n\n" + PAGE[PAGE.index("class Drug") :].replace("Drug", "Other")),
        (RETURN, RETURN + "\n\n\nclass Other:\n    pass"),
        ("found 2: Drug, Other", "keep one page in a file"),
    ),
    Case(
        "a Theta with a name of nn.Module",
        (TVCL, TVCL + "\n    half = nl.Theta(0.5)"),
        (TVCL, TVCL.replace("L/h", "half L/h")),
        ("'half' is taken", "half_"),
        "half =",
    ),
    Case(
        "an endpoint with a name of nn.Module",
        (ENDPOINT, ENDPOINT.replace("cp =", "type =")),
        (ENDPOINT, ENDPOINT.replace("proportional=0.15", 'proportional=0.15, form="sd"')),
        ("'type' is taken", "type_"),
        "type =",
    ),
    Case(
        "a method with a name of nn.Module",
        ("    def observe", "    def train(self, t):\n        return t\n\n    def observe"),
        ("    def observe", "    def _train(self, t):\n        return t\n\n    def observe"),
        ("'train' is taken",),
        "def train",
    ),
    Case(
        "NaN start",
        (TVCL, 'tvcl = nl.Theta(float("nan"), lower=0)'),
        (TVCL, 'tvcl = nl.Theta(float("2.0"), lower=0)'),
        ("start of a Theta must be finite", "rough guess"),
        "float(",
    ),
    Case(
        "text as a start",
        (TVCL, 'tvcl = nl.Theta("two", lower=0)'),
        (TVCL, "tvcl = nl.Theta(2, lower=0)"),
        ("must be a number, got 'two'",),
        '"two"',
    ),
    Case(
        "start outside its bounds",
        (TVCL, "tvcl = nl.Theta(2.0, lower=3)"),
        (TVCL, "tvcl = nl.Theta(2.0, lower=1)"),
        ("strictly inside its bounds (3, inf), got 2", "move the start or the bound"),
        "lower=3",
    ),
    Case(
        "start on its bound",
        (TVCL, "tvcl = nl.Theta(0.0, lower=0)"),
        (TVCL, "tvcl = nl.Theta(0.1, lower=0)"),
        ("strictly inside its bounds (0, inf), got 0",),
        "Theta(0.0",
    ),
    Case(
        "bounds the wrong way round",
        (TVCL, "tvcl = nl.Theta(2.0, lower=3, upper=1)"),
        (TVCL, "tvcl = nl.Theta(2.0, lower=1, upper=3)"),
        ("lower < upper", "lower=3, upper=1"),
        "upper=1",
    ),
    Case(
        "an option of Theta that there is not",
        (TVCL, "tvcl = nl.Theta(2.0, low=0)"),
        (TVCL, "tvcl = nl.Theta(2.0, lower=0, upper=100)"),
        ("low",),
        "low=0",
    ),
    Case(
        "unknown eta used",
        (CL, "cl=theta.tvcl * exp(eta.clr)"),
        (CL, "cl=theta.tvcl * exp(eta['cl'])"),
        ("eta.clr", "Did you mean 'cl'? Legal names: ka, cl, v."),
        "eta.clr",
    ),
    Case(
        "unknown theta used",
        (CL, "cl=theta.tvlc * exp(eta.cl)"),
        (CL, "cl=theta['tvcl'] * exp(eta.cl)"),
        ("theta.tvlc", "Did you mean 'tvcl'? Legal names: tvka, tvcl, tvv."),
        "theta.tvlc",
    ),
    Case(
        "unknown covariate",
        (SIZE, "size = cov.weight / 70"),
        (SIZE, "size = cov['wt'] / 70"),
        ("cov.weight", "Legal names: wt."),
    ),
    Case(
        "unknown compartment read",
        (RETURN, "return dict(cp=a.centre / p.v)"),
        (RETURN, "return dict(cp=(a.central + 0 * a.depot) / p.v)"),
        ("a.centre", "Did you mean 'central'?"),
        "a.centre",
    ),
    Case(
        "unknown individual parameter read",
        (RETURN, "return dict(cp=a.central / p.vol)"),
        (RETURN, "return dict(cp=a.central / p.v * (p.cl / p.cl))"),
        ("p.vol", "Legal names: ka, cl, v."),
        "p.vol",
    ),
    Case(
        "a parameter that the structure needs",
        (CL, "clearance=theta.tvcl * exp(eta.cl)"),
        (CL, CL + ", half_life=theta.tvcl"),
        ("needs the parameter 'cl'", "add cl=... to the dict it returns (now: ka, clearance, v)"),
        "def individual",
    ),
    Case(
        "a random effect that is declared and never used",
        (CL, "cl=theta.tvcl"),
        (CL, "cl=theta.tvcl * (1 + eta.cl)"),
        ("eta.cl is declared and never used", "use it or remove it"),
        "def individual",
    ),
    Case(
        "a negative variance",
        (IIV, "iiv = nl.Omega(ka=0.2, cl=-0.1, v=0.05)"),
        (IIV, "iiv = nl.Omega(ka=0.2, cl=0.01, v=0.05)"),
        ("Omega(cl=-0.1)", "must be positive", "leave the random effect out"),
        "cl=-0.1",
    ),
    Case(
        "a block with too few covariances",
        (IIV, "iiv = nl.Omega(ka=0.2, cl=0.1, v=0.05, cov=[0.01])"),
        (IIV, "iiv = nl.Omega(ka=0.2, cl=0.1, v=0.05, cov=[0.01, 0.0, 0.01])"),
        ("takes 3 covariances", "got 1"),
        "cov=[0.01]",
    ),
    Case(
        "a block that is no covariance matrix",
        (IIV, "iiv = nl.Omega(ka=0.2, cl=0.1, v=0.05, cov=[0.9, 0.0, 0.0])"),
        (IIV, "iiv = nl.Omega(ka=0.2, cl=0.1, v=0.05, cov=[0.09, 0.0, 0.0])"),
        ("not positive definite", "make the covariances smaller"),
        "cov=[0.9",
    ),
    Case(
        "a random effect declared twice",
        (IIV, IIV + "\n    more = nl.Omega(cl=0.1)"),
        (IIV, "iiv = nl.Omega(ka=0.2, v=0.05)\n    more = nl.Omega(cl=0.1)"),
        ("'cl' is declared twice", "own name"),
        "more =",
    ),
    Case(
        "a residual error of nought",
        (ENDPOINT, "    cp = nl.Additive(0.0)\n"),
        (ENDPOINT, "    cp = nl.Additive(0.01)\n"),
        ("Additive(additive=0.0)", "positive number"),
        "Additive(0.0)",
    ),
    Case(
        "proportional error where the prediction is 0",
        (ENDPOINT, "    cp = nl.Proportional(0.1)\n"),
        (ENDPOINT, "    cp = nl.Combined(additive=0.1, proportional=0.1)\n"),
        ("residual variance is zero at id", "add an additive part (nl.Combined)"),
    ),
    Case(
        "log-normal error of a zero",
        (ENDPOINT, "    cp = nl.LogNormal(0.1)\n"),
        (ENDPOINT, '    cp = nl.Combined(additive=0.1, proportional=0.1, form="variance")\n'),
        ("needs positive observations", "MDV 1"),
    ),
    Case(
        "a structure that is none",
        (STRUCTURE, 'structure = "one compartment"'),
        (STRUCTURE, STRUCTURE.replace("nl.", "nl.")),
        ("structure must be a closed form", "nl.OneCompartment"),
        "structure =",
    ),
    Case(
        "no structure",
        (f"    {STRUCTURE}\n", ""),
        (STRUCTURE, "structure = nl.OneCompartment('first-order')"),
        ("has no structure", "nl.OneCompartment"),
        "class Drug",
    ),
    Case(
        "a structure under another name",
        (STRUCTURE, STRUCTURE.replace("structure", "kinetics")),
        (STRUCTURE, STRUCTURE + "\n    kinetics = 1"),
        ("must be called structure, not kinetics",),
        "kinetics =",
    ),
    Case(
        "an absorption that there is not",
        (STRUCTURE, 'structure = nl.OneCompartment(absorption="firstorder")'),
        (STRUCTURE, 'structure = nl.OneCompartment(absorption="first-order")  # ADVAN2'),
        ("first-order",),
        "firstorder",
    ),
)


def edited(edit: Edit) -> str:
    assert edit[0] in PAGE
    return PAGE.replace(edit[0], edit[1], 1)


def fit(page: Path) -> int:
    return main(["fit", str(page), "theophylline", "--method", "focei", "--evaluate"])


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits write nothing here: what they write has its own tests, and figures take their time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nlmegen.results, "save_fit", save_nothing)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_page_is_refused_with_its_line_and_remedy(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = edited(case.bad)
    page = tmp_path / "drug.py"
    page.write_text(text)
    assert fit(page) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert message.count("nlmegen: ") == 1
    for words in case.words:
        assert words in message
    if case.at is not None:
        (line,) = [k for k, content in enumerate(text.splitlines(), 1) if case.at in content]
        assert f"page drug.py, line {line}: " in message


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_its_near_neighbour_is_accepted(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = edited(case.good)
    assert text != edited(case.bad)
    page = tmp_path / "drug.py"
    page.write_text(text)
    status = fit(page)
    assert (status, capsys.readouterr().err) == (0, "")


def test_messages_tell_the_faults_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    messages = []
    for case in CASES:
        (tmp_path / "drug.py").write_text(edited(case.bad))
        fit(tmp_path / "drug.py")
        messages.append(capsys.readouterr().err)
    assert len(set(messages)) == len(CASES) >= 40


def test_debug_shows_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "drug.py"
    page.write_text(edited(CASES[0].bad))
    assert main(["fit", str(page), "theophylline", "--method", "focei", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.py", "there is no page missing.py"),
        ("theophyline", "Did you mean 'theophylline'?"),
        ("folder.py", "there is no page folder.py"),
    ],
)
def test_a_page_that_is_not_there(name: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("folder.py").mkdir()
    assert main(["fit", name, "theophylline"]) == 2
    assert words in capsys.readouterr().err


def test_a_page_that_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "drug.py"
    page.write_bytes(b"\xff\xfe\x00page")
    assert fit(page) == 2
    message = capsys.readouterr().err
    assert "not UTF-8 text" in message
    assert "save it as UTF-8" in message
