"""Every page of the documentation runs and prints what it shows; its links lead somewhere."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from docs.runner import agree, blocks, compare, continues, run

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TUTORIAL = DOCS / "tutorials" / "first-fit.md"

Place = Callable[[Path], Path]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """The directory that a page leaves behind when it has run; a page runs once."""
    left: dict[Path, Path] = {}

    def after(page: Path) -> Path:
        if page not in left:
            place = tmp_path_factory.mktemp(page.stem)
            before = continues(page.read_text(encoding="utf-8"))
            if before is not None:
                shutil.copytree(after((page.parent / before).resolve()), place, dirs_exist_ok=True)
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(place)
                run(page, place)
            left[page] = place
        return left[page]

    return after


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
def test_page_runs_and_prints_what_it_shows(page: Path, results: Place) -> None:
    results(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(DOCS)))
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
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


def test_what_is_not_run_says_why() -> None:
    for page in PAGES:
        for block in blocks(page.read_text(encoding="utf-8")):
            assert len(block.marks.get("not run", "a reason in words").split()) > 2, f"{page.name}:{block.line}"


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
