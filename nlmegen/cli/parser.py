"""The words of the command line. Nothing numerical is imported here."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

from nlmegen import __version__

MODEL = "a model of the catalogue (see `nlmegen list`) or a .py file that holds one Model"
DATA = "a data set of the catalogue (see `nlmegen list`) or a csv in NONMEM's format"
DIR = "the folder of a fit (its page, model.py, is run: use folders that you trust)"


class _Parser(argparse.ArgumentParser):
    """Errors are one message and exit status 2; the whole usage is a `--help` away."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\nSee: {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; parsed arguments name the `module` of this package and the `function` to call."""
    parser = _Parser(
        prog="nlmegen",
        description="Population pharmacokinetics on generative models: fit, compare, simulate.",
        epilog="exit status: 0 usable result; 2 bad input; 3 estimation failed (what there is was kept)",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"nlmegen {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    def command(name: str, module: str, function: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(module=module, function=function)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return sub

    _fit(command("fit", "estimate", "run", "estimate a model on data and write the folder of the fit"))

    sub = command("compare", "folders", "compare", "put fits side by side on one likelihood")
    sub.add_argument(
        "dir", nargs="+", metavar="DIR|RUN.ext", help=f"{DIR}; or the .ext file of a run of NONMEM 7"
    )
    sub.add_argument(
        "--model", metavar="MODEL", help=f"page of the runs of NONMEM (the first DIR's): {MODEL}"
    )
    sub.add_argument("--data", metavar="DATA", help=f"what NONMEM read (the first DIR's): {DATA}")
    sub.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="THETA1=NAME",
        help="NONMEM's name and the page's, may be repeated; the others are matched by order",
    )
    sub.add_argument(
        "--arbiter",
        choices=("auto", "quadrature", "importance", "own"),
        default="auto",
        help="auto: quadrature up to three random effects, else importance; own: each fit's own objective",
    )

    sub = command("posterior", "folders", "posterior", "random effects of patients, without any training")
    sub.add_argument("dir", metavar="DIR", help=DIR)
    sub.add_argument("data", metavar="DATA", help=DATA)
    sub.add_argument("--out", metavar="FILE", help="write the table as csv (else it is printed)")
    sub.add_argument("--force", action="store_true", help="replace FILE when it exists")

    _simulate(command("simulate", "folders", "simulate", "draw a cohort of virtual patients"))

    sub = command("vpc", "folders", "vpc", "visual predictive check of a fit")
    sub.add_argument("dir", metavar="DIR", help=DIR)
    sub.add_argument("--draws", type=_positive, default=1000, metavar="N", help="simulated replicates (1000)")
    sub.add_argument("--stratify", metavar="COL", help="a column of the data: one panel for each value")
    sub.add_argument(
        "--prediction-corrected", action="store_true", help="bring values to their bin's typical prediction"
    )

    _bootstrap(
        command("bootstrap", "resample", "bootstrap", "estimate again on data drawn again; goes on if killed")
    )
    _sir(command("sir", "resample", "sir", "sampling importance resampling of the parameters"))
    _profile(command("profile", "resample", "profile", "likelihood profiles of the parameters"))

    sub = command("check", "catalogue", "check", "say how a table is understood and what looks odd")
    sub.add_argument("data", metavar="DATA", help=DATA)
    sub.add_argument("--figure", metavar="FILE", help="draw it too: table.png")
    sub.add_argument("--force", action="store_true", help="replace FILE when it exists")

    command("list", "catalogue", "show", "list the models and data sets of the catalogue")

    sub = command("new", "new", "run", "write a page to start from")
    sub.add_argument("name", metavar="NAME", help="writes NAME.py, never over an existing file")
    return parser


def _joined(text: str) -> str:
    """The name of a chain of methods, without blanks about its plus signs."""
    return re.sub(r"\s*\+\s*", "+", text.strip())


def _fit(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("model", metavar="MODEL", help=MODEL)
    sub.add_argument("data", metavar="DATA", help=DATA)
    sub.add_argument(
        "--method",
        type=_joined,
        default="elbo",
        metavar="METHOD",
        help="elbo (default), fo, foce, focei, laplace, agq, saem or imp; several joined by + follow each other",
    )
    sub.add_argument(
        "--compare",
        type=_joined,
        metavar="METHOD",
        help="fit by this method too: DIR/compare-METHOD, comparison.csv",
    )
    sub.add_argument("--out", metavar="DIR", help="where to write; default nlmegen-out/MODEL-METHOD")
    sub.add_argument(
        "--force", action="store_true", help="replace DIR when it is the folder of an earlier fit"
    )
    sub.add_argument("--seed", type=_seed, metavar="N", help="seed of a stochastic method")
    sub.add_argument("--device", choices=("cpu", "cuda"), help="where to compute")
    sub.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of METHOD, may be repeated; --set help lists them",
    )
    sub.add_argument(
        "--evaluate", action="store_true", help="no estimation: the objective at the page's values"
    )
    sub.add_argument(
        "--progress",
        choices=("auto", "bar", "plain", "none"),
        default="auto",
        help="auto: a bar in a terminal, else none; plain: a line every few seconds",
    )


def _simulate(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("source", metavar="DIR|MODEL", help=f"{DIR}; or {MODEL}")
    sub.add_argument("--n", type=_positive, default=100, metavar="N", help="number of patients (100)")
    sub.add_argument(
        "--regimen",
        metavar="TEXT",
        help='doses, as "100 every 24 x 7", "5/kg over 1 into central", "100 over duration every 12 ss"',
    )
    sub.add_argument("--times", metavar="TEXT", help='sampling times, as "0:168:2" or "0.5, 1, 2"')
    sub.add_argument("--covariates", metavar="DATA", help=f"draw covariates from the subjects of {DATA}")
    sub.add_argument(
        "--occasions", metavar="TEXT", help='occasions: "dose", their length, or "0, 24, 48" where they begin'
    )
    sub.add_argument("--lloq", type=float, metavar="LIMIT", help="values below it are censored (cens 1)")
    sub.add_argument("--seed", type=_seed, default=0, metavar="N", help="seed (0)")
    sub.add_argument("--out", required=True, metavar="FILE", help="cohort.csv or cohort.parquet")
    sub.add_argument("--force", action="store_true", help="replace FILE when it exists")


def _bootstrap(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("dir", metavar="DIR", help=DIR)
    sub.add_argument("--n", type=_positive, default=200, metavar="N", help="replicates (200)")
    sub.add_argument(
        "--kind",
        choices=("case", "parametric"),
        default="case",
        help="draw subjects (case), or simulate them",
    )
    sub.add_argument("--stratify", metavar="COL", help="a column of the data: draw within its values (case)")
    sub.add_argument("--seed", type=_seed, default=0, metavar="N", help="seed (0)")
    sub.add_argument(
        "--workers", type=_positive, default=1, metavar="N", help="processes that share the work (1)"
    )
    sub.add_argument(
        "--method", type=_joined, metavar="METHOD", help="estimate by this method; the fit's own unless given"
    )
    sub.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="an option of METHOD, may be repeated"
    )
    sub.add_argument("--out", metavar="PLACE", help="a folder or a csv to write to (DIR/bootstrap.csv)")
    sub.add_argument("--force", action="store_true", help="begin anew instead of going on")
    _level_and_progress(sub)


def _sir(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("dir", metavar="DIR", help=DIR)
    sub.add_argument(
        "--samples", type=_positive, default=1000, metavar="N", help="vectors an iteration (1000)"
    )
    sub.add_argument("--resamples", type=_positive, default=1000, metavar="N", help="vectors kept (1000)")
    sub.add_argument("--iterations", type=_positive, default=3, metavar="N", help="proposals (3)")
    sub.add_argument(
        "--inflation", type=float, default=1.0, metavar="X", help="multiplies the first covariance (1)"
    )
    sub.add_argument(
        "--cap", type=_positive, metavar="N", help="keep a vector at most so often; 1: no repeats"
    )
    sub.add_argument("--seed", type=_seed, default=0, metavar="N", help="seed (0)")
    _level_and_progress(sub)


def _profile(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("dir", metavar="DIR", help=DIR)
    sub.add_argument("--names", metavar="A,B", help="parameters, as in parameters.csv; all unless given")
    sub.add_argument(
        "--sides", choices=("both", "lower", "upper"), default="both", help="one side or both (both)"
    )
    _level_and_progress(sub)


def _level_and_progress(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--level", type=float, default=0.95, metavar="X", help="coverage of the intervals (0.95)"
    )
    sub.add_argument(
        "--progress",
        choices=("auto", "bar", "plain", "none"),
        default="auto",
        help="auto: a bar in a terminal, else none; plain: a line every few seconds",
    )


def _positive(text: str) -> int:
    return _whole(text, 1)


def _seed(text: str) -> int:
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"expected a whole number of {least} or more, got {text!r}")
    return number
