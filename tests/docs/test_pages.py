"""Every page of the documentation runs and prints what it shows; its links lead somewhere."""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from docs.runner import agree, blocks, compare, continues, run

import nlmegen as nl
from nlmegen.cli.parser import build_parser

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TUTORIAL = DOCS / "tutorials" / "first-fit.md"

Ran = Callable[[Path], "Outcome"]


@dataclass
class Outcome:
    """What a page that has run leaves: its directory, what it printed otherwise than shown, or why it broke off."""

    place: Path
    complaints: list[str]
    failure: str = ""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Runs a page, once, after the page that it continues."""
    known: dict[Path, Outcome] = {}

    def ran(page: Path) -> Outcome:
        if page not in known:
            place = tmp_path_factory.mktemp(page.stem)
            found = known[page] = Outcome(place, [])
            before = continues(page.read_text(encoding="utf-8"))
            try:
                if before is not None:
                    other = ran((page.parent / before).resolve())
                    assert not other.failure, f"{before} fails"
                    shutil.copytree(other.place, place, dirs_exist_ok=True)
                with pytest.MonkeyPatch.context() as patch:
                    patch.chdir(place)
                    found.complaints = run(page, place)
            except AssertionError as error:
                found.failure = str(error)
        return known[page]

    return ran


def _prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def _slow(page: Path) -> bool:
    """Whether a page needs the fit of the tutorial, the only one that takes longer."""
    return page == TUTORIAL or continues(page.read_text(encoding="utf-8")) is not None


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(p, id=str(p.relative_to(DOCS)), marks=[pytest.mark.slow] if _slow(p) else [])
        for p in PAGES
    ],
)
def test_page_runs_and_prints_what_it_shows(page: Path, outcome: Ran) -> None:
    result = outcome(page)
    assert not result.failure, result.failure
    assert not result.complaints, "\n".join(result.complaints)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(DOCS)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", _prose(page)):
        if re.match(r"https?://", target):
            continue
        file, _, heading = target.partition("#")
        other = (page.parent / file).resolve() if file else page
        assert other.exists(), f"{page.name} links to {target}"
        if heading:
            titles = re.findall(r"^#+ (.+)$", other.read_text(encoding="utf-8"), flags=re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in anchors, f"{page.name} links to {target}; there are {sorted(anchors)}"


def test_the_index_names_every_page() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    for page in PAGES:
        if page.name != "README.md":
            assert f"({page.relative_to(DOCS)})" in index


def _words(page: str) -> set[str]:
    """Everything that stands between backticks on a page of the reference, cut into names and options."""
    text = _prose(DOCS / "reference" / page)
    return set(re.findall(r"--[a-z-]+|[A-Za-z_0-9]+", " ".join(re.findall(r"`([^`]+)`", text))))


def test_every_public_name_is_in_the_reference() -> None:
    assert set(nl.__all__) - {"__version__"} <= _words("python.md")


def test_every_command_and_option_is_in_the_reference() -> None:
    commands = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    wanted = {
        o for c in commands.values() for a in c._actions for o in a.option_strings if o.startswith("--")
    }
    assert {*commands, *wanted} <= _words("command-line.md")


@pytest.mark.slow
def test_every_key_of_fit_json_is_in_the_reference(outcome: Ran) -> None:
    content = json.loads((outcome(TUTORIAL).place / "nlmegen-out" / "first" / "fit.json").read_text())
    inner = {key for name in ("data", "omega", "elbo") for key in content[name]}
    inner |= {key for name in ("theta", "sigma") for entry in content[name].values() for key in entry}
    assert {*content, *inner} <= _words("fit-folder.md")


def test_what_is_not_run_says_why() -> None:
    for page in PAGES:
        for block in blocks(page.read_text(encoding="utf-8")):
            assert len(block.marks.get("not run", "a reason in words").split()) > 2, (
                f"{page.name}:{block.line}"
            )


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("104.32", "104.3221", True),
        ("104.32", "104.3321", False),
        ("0.95", "0.949", True),
        ("0.95", "0.94", True),
        ("0.95", "0.93", False),
        ("1.2e-05", "1.23e-05", True),
        ("1.2e-05", "1.4e-05", False),
        ("12", "12", True),
        ("12", "13", False),
    ],
)
def test_numbers_agree_to_the_digits_shown(shown: str, printed: str, same: bool) -> None:
    assert agree(shown, printed) is same


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("OFV 104.32; 5 iterations, ... s\n", "OFV 104.3221;  5 iterations, 1.45 s\n", True),
        ("OFV 104.32; 5 iterations, ... s\n", "OFV 104.3221;  6 iterations, 1.45 s\n", False),
        ("-2*ELBO 347... >=\n", "-2*ELBO 347.465 >=\n", True),
        ("-2*ELBO 347... >=\n", "-2*ELBO 349.465 >=\n", False),
        ("a\n...\nd\n", "a\nb\nc\nd\n", True),
        ("a\n...\nd\n", "a\nb\nc\n", False),
        ("v2 0.5\n", "v2 0.5\n", True),
        ("v2 0.5\n", "v3 0.5\n", False),
    ],
)
def test_text_agrees_but_for_dots_and_blanks(shown: str, printed: str, same: bool) -> None:
    if same:
        compare(shown, printed, "here")
    else:
        with pytest.raises(AssertionError, match="here"):
            compare(shown, printed, "here")
