"""A short run of the fuzzer, and that it finds what it looks for."""

from __future__ import annotations

from pathlib import Path

import pytest
from data import fuzz

from nlmegen.data import censoring, doses, nonmem, records


def test_broken_tables_are_refused_or_read_rightly() -> None:
    tried, accepted, found = fuzz.fuzz(cases=250, seed=7)
    assert not found, str(found[0])
    assert tried == 250
    assert 30 < accepted < 200


@pytest.mark.parametrize("name", ["a lost dose", "a lost observation", "an accepted rate", "an exception"])
def test_the_fuzzer_finds_a_fault(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, content = tmp_path / "table.csv", fuzz.WHOLE.encode()
    path.write_bytes(content)
    assert fuzz.attempt(path, content, {}) == ""
    if name == "a lost dose":
        content = content.replace(b",3,12,1,", b",1,12,1,")
        says = "doses of"
    elif name == "a lost observation":
        monkeypatch.setattr(
            records, "_observed", lambda table, evid: (evid == 0) & (table.numbers("dvid") == 1)
        )
        says = "observations in the text"
    elif name == "an accepted rate":
        content = content.replace(b"31,0", b"31,0").replace(b"9:30,.,.,", b"9:30,.,5,", 1)
        path.write_bytes(content)
        monkeypatch.setattr(doses, "_check_rates", lambda *args: None)
        says = "rate on a record that is no dose"
    else:
        monkeypatch.setattr(nonmem, "typed", lambda raw: censoring.read_censoring(raw, 1, 2))
        says = "Error"
    assert says in str(fuzz.attempt(path, content, {}))
