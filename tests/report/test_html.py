"""The report is one file that needs nothing, says what happened, and lets no text become markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

import nlmegen as nl
from nlmegen.check.residuals import residuals
from nlmegen.check.vpc import vpc
from nlmegen.report.figures import draw
from nlmegen.report.html import html, report
from nlmegen.report.words import number


class _Outline(HTMLParser):
    """Tags, attributes and text; complains about tags that are not closed."""

    VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)


@pytest.fixture(scope="module")
def fit() -> Any:
    return nl.fit(nl.load_model("theophylline"), nl.load_data("theophylline"), nl.FOCEI())


@pytest.fixture(scope="module")
def made(fit: Any) -> dict[str, Any]:
    """What takes time to make, made once."""
    table, check = residuals(fit, draws=40), vpc(fit, draws=30)
    return {"predictions": table, "vpc": check, "drawn": draw(fit, table, check)}


@pytest.fixture(scope="module")
def page(fit: Any, made: dict[str, Any]) -> str:
    return html(fit, **made)


def _outline(page: str) -> _Outline:
    outline = _Outline()
    outline.feed(page)
    assert outline.open == []
    return outline


def test_nothing_is_fetched_or_run(page: str) -> None:
    outline = _outline(page)
    assert not {"script", "link", "iframe", "object", "form"} & {tag for tag, _ in outline.seen}
    for tag, attributes in outline.seen:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href"):
                assert tag == "img"
                assert value is not None
                assert value.startswith("data:image/png;base64,")
    assert "url(" not in page
    assert "@import" not in page
    assert any(attributes.get("name") == "viewport" for tag, attributes in outline.seen if tag == "meta")


def test_every_figure_is_there_and_described(page: str) -> None:
    pictures = [attributes for tag, attributes in _outline(page).seen if tag == "img"]
    assert len(pictures) >= 8
    assert all(attributes["alt"] for attributes in pictures)
    assert "Not drawn" not in page


def test_it_says_what_happened(fit: Any, page: str) -> None:
    text = " ".join(" ".join(_outline(page).text).split())
    assert "12 subjects gave 132 observations (11 each) after 12 doses." in text
    assert "Converged" in text
    assert "104.32" in text
    assert fit.reason in text
    for name, row in fit.parameters.iterrows():
        assert str(name) in text
        assert number(row["estimate"]) in text
    assert "tvcl = nl.Theta" in text
    assert "nlmegen fit model.py data.csv --method focei" in text
    assert re.search(r"torch \d+\.\d+", text)


def test_a_failed_fit_says_so(fit: Any, made: dict[str, Any]) -> None:
    text = html(_changed(fit, converged=False, reason="the objective is not finite"), **made)
    assert "Not converged" in text
    assert "the objective is not finite" in text
    assert "are not to be used as estimates" in text


def test_no_text_becomes_markup(fit: Any, made: dict[str, Any]) -> None:
    nasty = "<script>alert(1)</script>"
    text = html(_changed(fit, notes=[nasty], reason=nasty), **made, command=nasty)
    assert nasty not in text
    assert text.count("&lt;script&gt;") >= 3
    _outline(text)


def test_the_ladder_of_a_variational_fit(fit: Any, made: dict[str, Any]) -> None:
    bounds = {
        "elbo": -175.0, "iwelbo": -174.0, "k": 64, "importance_log_likelihood": -173.5, "importance_se": 0.02,
        "khat_max": 0.81, "ess_median": 0.97, "ess_min": 0.6,
    }  # fmt: skip
    text = " ".join(_outline(html(_changed(fit, bounds=bounds), **made)).text)
    assert "IW-ELBO, 64 draws" in text
    assert "347.0" in text
    assert "largest k-hat is 0.81" in text


def test_the_correlation_of_the_estimates_is_shown(fit: Any, made: dict[str, Any], page: str) -> None:
    rho = fit.correlation.loc["cp.proportional", "cp.additive"]
    assert "Correlation of the estimates" in page
    assert f"<td>{number(rho, 2)}</td>" in page
    assert "<strong>" not in page
    plain = nl.fit(fit.model, fit.population, nl.FOCEI(evaluate=True))
    assert "Correlation of the estimates" not in html(plain, **made)


def test_the_prior_is_told_apart_from_the_likelihood(fit: Any, made: dict[str, Any], page: str) -> None:
    assert "log prior" not in page
    assert "3.25000" in " ".join(_outline(html(_changed(fit, penalty=3.25), **made)).text)


def test_a_comparison_is_shown(fit: Any, made: dict[str, Any]) -> None:
    other = nl.fit(fit.model.with_values(theta={"tvcl": 3.0}), fit.population, nl.FOCEI(evaluate=True))
    compared = nl.compare(fit, other, names=["best", "elsewhere"])
    text = " ".join(_outline(html(fit, compare=compared, **made)).text)
    assert "Comparison" in text
    assert "elsewhere" in text


def test_what_cannot_be_drawn_is_said(fit: Any) -> None:
    table = residuals(fit, draws=0).assign(ipred="none")
    drawn = draw(fit, table, None)
    assert [name for name, shown in drawn.items() if not shown.png] == ["observed-ipred"]
    text = html(fit, predictions=table, drawn=drawn)
    assert "Not drawn (observations against individual predictions)" in text
    _outline(text)


def test_it_is_written(fit: Any, made: dict[str, Any], tmp_path: Any) -> None:
    path = report(fit, tmp_path / "report.html", **made)
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


def _changed(fit: Any, **changes: Any) -> Any:
    """A copy of a fit with some attributes replaced."""
    other = nl.Fit(fit.model, fit.population, fit.settings, fit.estimate, fit.seconds)
    for name, value in changes.items():
        setattr(other, name, value)
    return other
