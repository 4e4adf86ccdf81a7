"""Runs a page of the documentation: its Python, its commands, and whether they print what the page shows.

In a page
    ```python      is executed; the blocks of a page share one namespace, and the page one working directory
    ```sh          holds `nlmegen ...` commands, run in this process
    ```text        directly after one of them is what it prints: numbers to the digits shown, `...` for anything
and a comment directly before a block changes what happens to it:
    <!-- not run: REASON -->       nothing
    <!-- file: NAME -->            it is written to NAME
    <!-- exit status: 2 -->        its last command ends so, and not with 0
A page that says `<!-- continues: OTHER.md -->` begins with the files that OTHER.md leaves.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
import types
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from nlmegen.cli import main
from nlmegen.data.columns import DataWarning

_FENCE = re.compile(r"^```(\w*)\s*$")
_MARK = re.compile(r"^<!-- (not run|file|exit status): (.+?) -->$")
_CONTINUES = re.compile(r"^<!-- continues: (\S+) -->$", re.MULTILINE)
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?!\w)")


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, text, first line in the page, and the comments before it."""

    language: str
    text: str
    line: int
    marks: dict[str, str] = field(default_factory=dict)
    adjoining: bool = False  # nothing but blank lines between it and the block before


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found: list[Block] = []
    marks: dict[str, str] = {}
    inside: list[str] | None = None
    language, first, adjoining = "", 0, False
    for number, line in enumerate(page.splitlines(), start=1):
        fence = _FENCE.match(line)
        if inside is not None:
            if fence and not fence[1]:
                found.append(Block(language, "\n".join(inside) + "\n", first, marks, adjoining))
                inside, marks, adjoining = None, {}, True
            else:
                inside.append(line)
        elif fence:
            inside, language, first = [], fence[1], number + 1
        elif mark := _MARK.match(line):
            marks[mark[1]] = mark[2]
        elif line.strip():
            marks, adjoining = {}, False
    if inside is not None:
        raise AssertionError(f"line {first - 1}: the block is not closed")
    return found


def continues(page: str) -> str | None:
    """The page whose files this one begins with, relative to it."""
    found = _CONTINUES.search(page)
    return found[1] if found else None


def run(path: Path, place: Path) -> list[str]:
    """Run every block of the page `path` in the directory `place` (the current one).

    Returns:
        What is not printed as the page shows it, a complaint a block.

    Raises:
        AssertionError: naming page and line, when a block fails.
    """
    text = path.read_text(encoding="utf-8")
    name = "docs_page_" + re.sub(r"\W", "_", "_".join(path.with_suffix("").parts[-2:]))
    module = types.ModuleType(name)
    # as a script, at the lines of the page: a class on it has a source, and a traceback says where to look
    script = place / f".{name}.py"
    module.__file__ = str(script)
    found = blocks(text)
    script.write_text(_script(text, found), encoding="utf-8")
    sys.modules[name] = module
    printed: str | None = None
    complaints = []
    try:
        for block in found:
            where = f"{path.name}, line {block.line}"
            if block.language == "text" and block.adjoining and printed is not None:
                try:
                    compare(block.text, printed, where)
                except AssertionError as error:
                    complaints.append(str(error))
            elif block.language in ("python", "sh", "csv") and "not run" not in block.marks:
                printed = _perform(block, module, script, where)
            else:
                printed = None
    finally:
        del sys.modules[name]
    return complaints


def _script(page: str, found: list[Block]) -> str:
    """The Python of a page, every line where it stands in the page."""
    lines = [""] * len(page.splitlines())
    for block in found:
        if block.language == "python" and not {"not run", "file"} & set(block.marks):
            body = block.text.splitlines()
            lines[block.line - 1 : block.line - 1 + len(body)] = body
    return "\n".join(lines) + "\n"


def _perform(block: Block, module: types.ModuleType, script: Path, where: str) -> str | None:
    """What a block prints, standard error included; None when it is a file."""
    if "file" in block.marks:
        script.with_name(block.marks["file"]).write_text(block.text, encoding="utf-8")
        return None
    out = io.StringIO()
    status = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), warnings.catch_warnings():
            warnings.simplefilter("always", DataWarning)
            warnings.showwarning = _show_warning
            if block.language == "python":
                code = compile("\n" * (block.line - 1) + block.text, str(script), "exec")
                exec(code, vars(module))
            else:
                status = _commands(block.text)
    except Exception as error:
        raise AssertionError(f"{where}: the block fails: {type(error).__name__}: {error}") from error
    wanted = int(block.marks.get("exit status", "0"))
    said = out.getvalue()
    assert status == wanted, f"{where}: exit status {status}, expected {wanted}\n{said}"
    return said


def _show_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    """A warning about data as a reader sees it, without the place in the code that raised it."""
    print(f"{category.__name__}: {message}", file=sys.stderr)


def _commands(text: str) -> int:
    """Run commands one by one until one fails; the exit status of the last."""
    status = 0
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[0] != "nlmegen":
            raise AssertionError(f"only nlmegen commands are run here, got: {line}")
        status = main(words[1:])
        if status:
            break
    return status


def compare(shown: str, printed: str, where: str) -> None:
    """Whether a page shows what was printed.

    Numbers agree to the digits shown (see `agree`), runs of blanks count as one, `...` stands for anything: alone on a
    line for any number of lines, directly after a number for its further digits.

    Raises:
        AssertionError: with what was shown and what was printed.
    """
    wanted: list[tuple[str, bool]] = []
    pattern = "".join(_pattern(line, wanted) for line in shown.splitlines() if line.strip())
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    text = "".join(f"{line}\n" for line in lines if line)
    match = re.fullmatch(pattern, text)
    complaint = f"{where}: the page shows\n{shown}\nbut this is printed\n{printed}"
    assert match is not None, complaint
    for (number, loose), came in zip(wanted, match.groups(), strict=True):
        assert agree(number, came, loose), f"{complaint}\n{number} is shown, {came} is printed"


def _pattern(line: str, wanted: list[tuple[str, bool]]) -> str:
    """A line of a page as a regular expression; its numbers are added to `wanted`, with whether `...` follows."""
    if line.strip() == "...":
        return r"(?:.*\n)*?"
    parts = []
    pieces = " ".join(line.split()).split("...")
    for place, piece in enumerate(pieces):
        dotted = place + 1 < len(pieces)
        at = 0
        for number in _NUMBER.finditer(piece):
            parts.append(re.escape(piece[at : number.start()]))
            parts.append(rf"({_NUMBER.pattern})")
            wanted.append((number[0], dotted and number.end() == len(piece)))
            at = number.end()
        parts.append(re.escape(piece[at:]) + (r".*?" if dotted else ""))
    return "".join(parts) + r"\n"


def agree(shown: str, printed: str, loose: bool = False) -> bool:
    """Whether a printed number is the one shown, within one unit of the last digit shown.

    A whole number must be equal, unless it is `loose` ("347...": further digits are left out).

    Example:
        >>> agree("104.32", "104.3221"), agree("104.32", "104.3321"), agree("12", "12.0"), agree("12", "12.0", True)
        (True, False, False, True)
    """
    mantissa, exponential, power = shown.lower().partition("e")
    if "." not in mantissa and not exponential and not loose:
        return shown.lstrip("+") == printed.lstrip("+")
    decimals = len(mantissa.partition(".")[2]) - int(power or 0)
    return abs(float(shown) - float(printed)) <= 1.001 * 10.0**-decimals
