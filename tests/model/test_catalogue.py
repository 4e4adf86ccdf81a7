"""Pages by name and by file."""

from __future__ import annotations

from pathlib import Path

import pytest

import nlmegen as nl
from nlmegen.errors import ModelError

GOOD = (Path(__file__).parents[2] / "models" / "theophylline.py").read_text(encoding="utf-8")


def test_the_catalogue_lists_its_pages_with_titles() -> None:
    pages = {page.name: page.title for page in nl.list_models()}
    assert {"theophylline", "phenobarbital"} <= set(pages)
    assert all(len(title) > 20 for title in pages.values())


def test_load_by_name_and_by_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(GOOD, encoding="utf-8")
    model = nl.load_model(path)
    assert model.name == "mine"
    assert model.source == GOOD
    assert nl.load_model("theophylline").name == "theophylline"
    path.write_text(GOOD.replace("tvka", "tvabs"), encoding="utf-8")
    assert "tvabs" in nl.load_model(path).theta_names, "a changed file is read again"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            GOOD.replace("def observe(self, t, a, p):", "def observe(self, t, a, p)"),
            r"page bad.py, line \d+: .*not valid Python",
        ),
        (GOOD + "\n1/0\n", r"line \d+: .*ZeroDivisionError"),
        ("import nlmegen as nl\n", "exactly one class"),
        (GOOD + GOOD.replace("class Theophylline", "class Second"), "exactly one class .* found 2"),
        (GOOD.replace("nl.Theta(1.0, lower=0", "nl.Theta(-1.0, lower=0"), r"line \d+: .*strictly inside"),
        (GOOD.replace("tvka = nl.Theta", "half = nl.Theta"), r"line \d+: .*taken by torch"),
    ],
)
def test_a_bad_file_names_its_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=says):
        nl.load_model(path)


def test_unknown_names_suggest() -> None:
    with pytest.raises(ModelError, match="Did you mean 'theophylline'"):
        nl.load_model("teophylline")
    with pytest.raises(ModelError, match="there is no page"):
        nl.load_model("nowhere/page.py")
