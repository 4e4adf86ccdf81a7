"""Every malformed table gets a message of its own, with row, column and remedy; its valid near-neighbour is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nlmegen.data.nonmem import read_nonmem
from nlmegen.data.population import Population
from nlmegen.errors import DataError


def table(*lines: str, head: str = "ID,TIME,AMT,DV,EVID") -> str:
    return "\n".join((head, *lines)) + "\n"


DOSE, SAMPLE = "1,0,100,.,1", "1,2,.,5.5,0"
GOOD = table(DOSE, SAMPLE)


@dataclass(frozen=True)
class Case:
    """A malformed table, where and how it is reported, and a table next to it that is right."""

    name: str
    bad: str | bytes
    says: tuple[str, ...]
    good: str | bytes = GOOD
    row: int | None = None
    column: str | None = None
    bad_options: dict[str, Any] = field(default_factory=dict)
    good_options: dict[str, Any] = field(default_factory=dict)


def cell(
    name: str,
    head: str,
    wrong: str,
    right: str,
    column: str,
    *says: str,
    row: int = 3,
    before: str = DOSE,
    bad: dict[str, Any] | None = None,
    good: dict[str, Any] | None = None,
) -> Case:
    """A case of one wrong line: the same header and first record, line 3 wrong or right (row 0: no place to blame)."""
    first = before + ",0" * (head.count(",") - 4) if before == DOSE else before
    bad_text, good_text = table(first, wrong, head=head), table(first, right, head=head)
    return Case(name, bad_text, says, good_text, row or None, column or None, bad or {}, good or {})


BASE = "ID,TIME,AMT,DV,EVID"
SS, LIM, LOQ = BASE + ",SS,II,RATE,ADDL", BASE + ",CENS,LIMIT", BASE + ",CENS,LLOQ,ULOQ"
DATED = "ID,DATE,TIME,AMT,DV"
MORE = [
    # steady states
    cell("SS without II", SS, "1,2,100,.,1,1,0,0,0", "1,2,100,.,1,1,12,0,0", "SS", "interval II with SS=1", "into II"),
    cell("SS=2 without II", SS, "1,2,100,.,1,2,.,5,0", "1,2,100,.,1,2,12,5,0", "SS", "interval II with SS=2"),
    cell("SS 3", SS, "1,2,100,.,1,3,12,0,0", "1,2,100,.,1,1,12,0,0", "SS", "SS=1 or SS=2", "got 3", "write 1"),
    cell("SS no code", SS, "1,2,100,.,1,4,12,0,0", "1,2,100,.,1,2,12,0,0", "SS", "1 (replaces", "got 4"),
    cell("SS negative", SS, "1,2,100,.,1,-1,12,0,0", "1,2,100,.,1,0,12,0,0", "SS", "0 (no steady state)", "got -1"),
    cell("SS no whole number", SS, "1,2,100,.,1,1.5,12,0,0", "1,2,100,.,1,1.0,12,0,0", "SS", "got 1.5"),
    cell("SS as text", SS, "1,2,100,.,1,yes,12,0,0", "1,2,100,.,1,1,12,0,0", "SS", "a number", "'yes'"),
    cell("SS on an observation", SS, "1,2,.,5,0,1,12,0,0", "1,2,.,5,0,0,0,0,0", "SS", "no dose", "got SS=1", "EVID=1"),
    cell("SS on an other record", SS, "1,2,.,.,2,1,12,0,0", "1,2,.,.,2,0,0,0,0", "SS", "no dose", "SS=1"),
    cell("SS on a reset", SS, "1,2,.,.,3,2,12,0,0", "1,2,9,.,4,2,12,0,0", "SS", "no dose", "SS=2"),
    cell("constant infusion with II", SS, "1,2,0,.,1,1,12,5,0", "1,2,0,.,1,1,0,5,0", "II", "constant infusion",
         "got 12"),
    cell("constant infusion with ADDL", SS, "1,2,0,.,1,1,0,5,3", "1,2,0,.,1,1,0,5,0", "ADDL", "constant infusion",
         "got 3"),
    cell("constant infusion of a modelled rate", SS, "1,2,0,.,1,1,0,-1,0", "1,2,0,.,1,1,0,5,0", "RATE", "RATE -1",
         "an amount"),
    cell("SS of nothing", SS, "1,2,0,.,1,1,12,0,0", "1,2,10,.,1,1,12,0,0", "AMT", "steady state of some dose",
         "neither"),
    cell("SS of nothing after a reset", SS, "1,2,.,.,4,2,.,.,.", "1,2,10,.,4,2,12,.,.", "AMT", "neither AMT nor RATE"),
    cell("SS with a negative interval", SS, "1,2,10,.,1,1,-12,0,0", "1,2,10,.,1,1,12,0,0", "II", "0 or more", "-12"),
    cell("SS before its time", SS, "1,-2,10,.,1,1,12,0,0", "1,-2,10,.,4,1,12,0,0", "TIME", "not decrease",
         "-2 after 0"),
    cell("empirical steady state", SS, "1,2,10,.,1,0,12,0,-50", "1,2,10,.,1,1,12,0,50", "ADDL", "got -50", "SS=1"),
    Case("SS on an observation without EVID", "ID,TIME,AMT,DV,SS\n1,0,100,.,0\n1,2,.,5,1\n", ("neither AMT nor RATE",),
         "ID,TIME,AMT,DV,SS\n1,0,100,.,0\n1,2,.,5,0\n", 3, "AMT"),
    # modelled and other rates
    cell("RATE -1 without an amount", SS, "1,2,0,.,1,0,0,-1,0", "1,2,9,.,1,0,0,-1,0", "RATE", "RATE -1", "into AMT"),
    cell("RATE -2 without an amount", SS, "1,2,.,.,4,0,0,-2,0", "1,2,9,.,4,0,0,-2,0", "RATE", "RATE -2", "into AMT"),
    cell("RATE -3", SS, "1,2,9,.,1,0,0,-3,0", "1,2,9,.,1,0,0,-2,0", "RATE", "-1 (the page's rate)", "got -3"),
    cell("RATE negative", SS, "1,2,9,.,1,0,0,-1.5,0", "1,2,9,.,1,0,0,1.5,0", "RATE", "got -1.5", "0 (bolus)"),
    cell("RATE -2 on an observation", SS, "1,2,.,5,0,0,0,-2,0", "1,2,.,5,0,0,0,0,0", "RATE", "no dose", "got -2"),
    cell("RATE -1 on a reset", SS, "1,2,.,.,3,0,0,-1,0", "1,2,5,.,4,0,0,-1,0", "RATE", "no dose", "got -1"),
    cell("an endless infusion", SS, "1,2,0,.,1,0,0,5,0", "1,2,10,.,1,0,0,5,0", "AMT", "never end", "SS=1"),
    cell("an infusion beyond all numbers", SS, "1,2,1e300,.,1,0,0,1e-300,0", "1,2,1e300,.,1,0,0,1e300,0", "RATE",
         "ends"),
    cell("modelled ADDL without II", SS, "1,2,9,.,1,0,0,-2,3", "1,2,9,.,1,0,6,-2,3", "ADDL", "interval II with 3"),
    # compartments switched off
    cell("a compartment off on an observation", BASE + ",CMT", "1,2,.,5,0,-2", "1,2,.,5,0,2", "CMT",
         "negative CMT", "-2"),
    cell("a compartment off at a reset", BASE + ",CMT", "1,2,.,.,3,-1", "1,2,.,.,3,1", "CMT", "negative CMT", "-1"),
    cell("no compartment off", BASE + ",CMT", "1,2,.,.,2,-1.5", "1,2,.,.,2,-depot", "CMT", "compartment", "1.5"),
    # limits
    cell("CENS no flag", LIM, "1,2,.,5,0,2,.", "1,2,.,5,0,1,.", "CENS", "1 (below the limit)", "got 2"),
    cell("CENS as text", LIM, "1,2,.,5,0,yes,.", "1,2,.,5,0,1,.", "CENS", "a number", "'yes'"),
    cell("BLQ -1", BASE + ",BLQ", "1,2,.,5,0,-1", "1,2,.,5,0,1", "BLQ", "0 or 1", "got -1"),
    cell("BQL no flag", BASE + ",BQL", "1,2,.,5,0,0.1", "1,2,.,5,0,0", "BQL", "0 or 1", "got 0.1"),
    cell("flags that differ", BASE + ",CENS,BLQ", "1,2,.,5,0,-1,1", "1,2,.,5,0,1,1", "BLQ", "the same as in CENS"),
    cell("a censored record without a limit", LIM, "1,2,.,.,0,1,.", "1,2,.,5,0,1,.", "DV", "limit in DV", "got none"),
    cell("LIMIT above DV", LIM, "1,2,.,5,0,1,7", "1,2,.,5,0,1,2", "LIMIT", "below DV", "CENS=1", "got 7"),
    cell("LIMIT at DV", LIM, "1,2,.,5,0,1,5", "1,2,.,5,0,1,0", "LIMIT", "below DV", "got 5"),
    cell("LIMIT below DV above", LIM, "1,2,.,5,0,-1,2", "1,2,.,5,0,-1,9", "LIMIT", "above DV", "CENS=-1", "'.'"),
    cell("LIMIT as text", LIM, "1,2,.,5,0,1,low", "1,2,.,5,0,1,.", "LIMIT", "a number", "'low'"),
    cell("DV above LLOQ though below it", LOQ, "1,2,.,5,0,1,0.5,.", "1,2,.,0.5,0,1,0.5,.", "DV", "0.5 (LLOQ)", "got 5"),
    cell("DV below ULOQ though above it", LOQ, "1,2,.,5,0,-1,.,50", "1,2,.,50,0,-1,.,50", "DV", "50 (ULOQ)", "got 5"),
    cell("LLOQ above ULOQ", LOQ, "1,2,.,5,0,0,8,4", "1,2,.,5,0,0,4,8", "LLOQ", "LLOQ below ULOQ", "got 8"),
    cell("LLOQ as text", LOQ, "1,2,.,5,0,0,low,.", "1,2,.,5,0,0,0.5,.", "LLOQ", "a number", "'low'"),
    cell("BLQ in DV without a limit", BASE, "1,2,.,BLQ,0", "1,2,.,<0.5,0", "DV", "limit in DV", "LLOQ"),
    cell("ALQ in DV without a limit", LOQ, "1,2,.,ALQ,0,.,.,.", "1,2,.,ALQ,0,.,.,90", "DV", "ULOQ", "got none"),
    cell("< without a number", BASE, "1,2,.,<,0", "1,2,.,<1,0", "DV", "'<'", "'<0.5'"),
    cell("a unit behind a limit", BASE, "1,2,.,<0.5 mg/L,0", "1,2,.,< 0.5,0", "DV", "'<0.5 mg/L'"),
    cell("a limit that is not LLOQ", LOQ, "1,2,.,<0.3,0,.,0.5,.", "1,2,.,<0.5,0,.,0.5,.", "DV", "<0.5", "'<0.3'"),
    cell("a limit that is not ULOQ", LOQ, "1,2,.,>80,0,.,.,90", "1,2,.,>90,0,.,.,90", "DV", ">90", "'>80'"),
    cell("< with CENS 0", LOQ, "1,2,.,<0.5,0,0,.,.", "1,2,.,<0.5,0,1,.,.", "CENS", "expected 1 or no value", "'<0.5'"),
    cell("< with BLQ 0", BASE + ",BLQ", "1,2,.,<0.5,0,0", "1,2,.,<0.5,0,1", "BLQ", "expected 1 or no value", "got 0"),
    cell("> with CENS 1", LOQ, "1,2,.,>9,0,1,.,.", "1,2,.,>9,0,-1,.,.", "CENS", "expected -1 or no value", "got 1"),
    # dates and clock times
    cell("no clock time", BASE, "1,8h30,.,5,0", "1,8:30,.,5,0", "TIME", "a number", "'8h30'"),
    cell("minutes beyond 59", BASE, "1,8:75,.,5,0", "1,8:57,.,5,0", "TIME", "clock time", "'8:75'"),
    cell("am and pm", BASE, "1,2:30 PM,.,5,0", "1,14:30,.,5,0", "TIME", "clock time", "write 14:30"),
    Case("a clock without a date past midnight", "ID,TIME,AMT,DV\n1,23:00,100,.\n1,1:00,.,5\n",
         ("1:00 after 23:00", "DATE"), "ID,DATE,TIME,AMT,DV\n1,1,23:00,100,.\n1,2,1:00,.,5\n", 3, "TIME"),
    Case("two columns of dates",
         "ID,DATE,DAT1,TIME,AMT,DV\n1,5/1/2024,1/5/2024,8:00,9,.\n1,5/1/2024,1/5/2024,9:00,.,5\n",
         ("one column of dates", "DATE and DAT1"), f"{DATED}\n1,5/1/2024,8:00,9,.\n1,5/1/2024,9:00,.,5\n", None,
         "DAT1"),
    Case("no such month", f"{DATED}\n1,13/1/2024,8:00,9,.\n1,13/1/2024,9:00,.,5\n", ("month/day/year", "DAT1 is dmy"),
         "ID,DAT1,TIME,AMT,DV\n1,13/1/2024,8:00,9,.\n1,13/1/2024,9:00,.,5\n", 2, "DATE"),
    Case("no such day", f"{DATED}\n1,2/30/2024,8:00,9,.\n1,3/1/2024,9:00,.,5\n", ("'2/30/2024'",),
         f"{DATED}\n1,2/29/2024,8:00,9,.\n1,3/1/2024,9:00,.,5\n", 2, "DATE"),
    Case("no 29 February without a year", f"{DATED}\n1,2/29,8:00,9,.\n1,3/1,9:00,.,5\n", ("'2/29'",),
         f"{DATED}\n1,2/28,8:00,9,.\n1,3/1,9:00,.,5\n", 2, "DATE"),
    Case("a date without separators", f"{DATED}\n1,20240501,8:00,9,.\n1,20240501,9:00,.,5\n", ("'/' in between",),
         f"{DATED}\n1,2024-05-01,8:00,9,.\n1,2024-05-01,9:00,.,5\n", 2, "DATE"),
    Case("half a day as a date", f"{DATED}\n1,1,8:00,9,.\n1,1.5,9:00,.,5\n", ("whole number of a day", "1.5"),
         f"{DATED}\n1,1,8:00,9,.\n1,2,9:00,.,5\n", 3, "DATE"),
    Case("months by name", f"{DATED}\n1,1-May-2024,8:00,9,.\n1,1-May-2024,9:00,.,5\n", ("'1-May-2024'",),
         f"{DATED}\n1,5-1-2024,8:00,9,.\n1,5-1-2024,9:00,.,5\n", 2, "DATE"),
    Case("a date missing", f"{DATED}\n1,5/1/2024,8:00,9,.\n1,.,9:00,.,5\n", ("a date on every record",),
         f"{DATED}\n1,.,8:00,9,.\n1,.,9:00,.,5\n", 3, "DATE"),
    Case("elapsed time beside a date", f"{DATED}\n1,5/1/2024,0,9,.\n1,5/2/2024,26,.,5\n", ("0 to 24 h", "got 26 h"),
         f"{DATED}\n1,5/1/2024,0,9,.\n1,5/2/2024,2,.,5\n", 3, "TIME"),
    Case("dates that go back", f"{DATED}\n1,5/2/2024,8:00,9,.\n1,5/1/2024,9:00,.,5\n", ("-23 after 0",),
         f"{DATED}\n1,5/1/2024,8:00,9,.\n1,5/1/2024,9:00,.,5\n", 3, "TIME"),
    Case("a column CLOCK beside clock times", "ID,TIME,CLOCK,AMT,DV\n1,8:00,a,9,.\n1,9:00,b,.,5\n", ("CLOCK", "rename"),
         "ID,TIME,CLOCK,AMT,DV\n1,8,a,9,.\n1,9,b,.,5\n", None, "CLOCK"),
    Case("clock times in days", table("1,8:00,100,.,1", "1,9:00,.,5,0"), ("time_unit='h'", "'day'"),
         table("1,8:00,100,.,1", "1,9:00,.,5,0"), bad_options={"time_unit": "day"}, good_options={"time_unit": "h"}),
    cell("a clock time missing", BASE, "1,.,.,5,0", "1,9:00,.,5,0", "TIME", "a time on every record",
         before="1,8:00,9,.,1"),
    # occasions, groups
    cell("an occasion missing", BASE + ",OCC", "1,2,.,5,0,.", "1,2,.,5,0,2", "OCC", "an occasion on every record"),
    cell("L2 as text", BASE + ",L2", "1,2,.,5,0,a", "1,2,.,5,0,1", "L2", "a number", "'a'"),
    cell("PCMT", BASE + ",PCMT", "1,2,.,5,0,2", "1,2,.,5,0,0", "PCMT", "not supported", "DVID"),
    cell("CALL", BASE + ",CALL", "1,2,.,5,0,1", "1,2,.,5,0,.", "CALL", "not supported", "leave the column out"),
    cell("CONT", BASE + ",CONT", "1,2,.,5,0,1", "1,2,.,5,0,0", "CONT", "not supported", "one record a line"),
    # what is filled in, and ids that come again
    cell("a rule that is none", BASE + ",WT", "1,2,.,5,0,.", "1,2,.,5,0,.", "", "'median', 'carry' or a number",
         "'mean'",
         row=0, before=DOSE + ",70", bad={"missing": {"wt": "mean"}}, good={"missing": {"wt": "median"}}),
    cell("a rule for no column", BASE + ",WT", "1,2,.,5,0,.", "1,2,.,5,0,.", "", "a covariate in missing=", "'wgt'",
         row=0, before=DOSE + ",70", bad={"missing": {"wgt": "carry"}}, good={"missing": {"WT": "carry"}}),
    cell("a rule for AMT", BASE + ",WT", "1,2,.,5,0,.", "1,2,.,5,0,.", "", "a covariate in missing=", "'amt'",
         row=0, before=DOSE + ",70", bad={"missing": {"amt": 5}}, good={"missing": {"wt": 5}}),
    cell("no mapping", BASE + ",WT", "1,2,.,5,0,.", "1,2,.,5,0,.", "", "missing={'wt': 'median'}", "got 'median'",
         row=0, before=DOSE + ",70", bad={"missing": "median"}, good={"missing": {"wt": 70.0}}),
    cell("an infinite filling", BASE + ",WT", "1,2,.,5,0,.", "1,2,.,5,0,.", "", "or a number", "got inf",
         row=0, before=DOSE + ",70", bad={"missing": {"wt": float("inf")}}, good={"missing": {"wt": 70}}),
    Case("nothing to carry", table("1,0,9,.,1,70", "1,1,.,5,0,70", "2,0,9,.,1,.", head=BASE + ",WT"), ("id 2 at all",),
         table("1,0,9,.,1,70", "1,1,.,5,0,.", "2,0,9,.,1,50", head=BASE + ",WT"), 4, "WT", {"missing": {"wt": "carry"}},
         {"missing": {"wt": "carry"}}),
    Case("no median", table("1,0,9,.,1,.", "1,1,.,5,0,.", head=BASE + ",WT"), ("choose a number",),
         table("1,0,9,.,1,.", "1,1,.,5,0,.", head=BASE + ",WT"), None, "WT", {"missing": {"wt": "median"}},
         {"missing": {"wt": 70}}),
    Case("the median of a text", table("1,0,9,.,1,m", "1,1,.,5,0,.", head=BASE + ",SEX"), ("'carry'", "for a text"),
         table("1,0,9,.,1,m", "1,1,.,5,0,.", head=BASE + ",SEX"), None, "SEX", {"missing": {"sex": "median"}},
         {"missing": {"sex": "carry"}}),
    Case("ids apart, no such rule", GOOD, ("'refuse' or 'separate'", "'merge'"), bad_options={"repeated_ids": "merge"},
         good_options={"repeated_ids": "separate"}),
    Case("ids apart, refused", table("1,0,9,.,1", "1,1,.,5,0", "2,0,9,.,1", "1,3,.,5,0"), ("stand together",
         "separate"),
         table("1,0,9,.,1", "1,1,.,5,0", "2,0,9,.,1", "1,3,.,5,0"), 5, "ID", {}, {"repeated_ids": "separate"}),
    Case("ids apart, the new one taken", table("1,0,9,.,1", "1 (2),0,9,.,1", "1,3,.,5,0"), ("1 (2) twice",),
         table("1,0,9,.,1", "1 (3),0,9,.,1", "1,3,.,5,0"), 4, "ID", {"repeated_ids": "separate"},
         {"repeated_ids": "separate"}),
]  # fmt: skip

CASES = [
    Case("no ID column", "SUBJ,TIME,AMT,DV\n1,0,100,.\n1,2,.,5\n", ("column ID", "rename=", "SUBJ"),
         "ID,TIME,AMT,DV\n1,0,100,.\n1,2,.,5\n", None, "ID"),
    Case("no TIME column", "ID,HOURS,AMT,DV\n1,0,100,.\n1,2,.,5\n", ("column TIME", "rename="),
         "ID,HOURS,AMT,DV\n1,0,100,.\n1,2,.,5\n", None, "TIME", {}, {"rename": {"HOURS": "time"}}),
    Case("no DV column", "ID,TIME,AMT,CONC\n1,0,100,.\n1,2,.,5\n", ("column DV", "rename="),
         "ID,TIME,AMT,CONC\n1,0,100,.\n1,2,.,5\n", None, "DV", {}, {"rename": {"conc": "DV"}}),
    cell("text in DV", BASE, "1,2,.,high,0", "1,2,.,5,0", "DV", "a number", "'high'", "correct the cell"),
    cell("text in TIME", BASE, "1,noon,.,5,0", "1,12,.,5,0", "TIME", "a number", "'noon'"),
    cell("text in AMT", BASE, "1,2,100mg,.,1", "1,2,100,.,1", "AMT", "a number", "'100mg'"),
    cell("digit groups", BASE, "1,2,1_000,.,1", "1,2,1000,.,1", "AMT", "a number", "'1_000'"),
    cell("decimal comma in quotes", BASE, '1,2,.,"5,5",0', '1,2,.,"5.5",0', "DV", "decimal point"),
    cell("text in EVID", BASE, "1,2,.,5,obs", "1,2,.,5,0", "EVID", "a number", "'obs'"),
    cell("unsorted times", BASE, "1,-1,.,5,0", "1,0,.,5,0", "TIME", "not decrease", "-1 after 0", "sort"),
    cell("unsorted times after a reset", BASE, "1,-1,.,5,2", "1,-1,.,5,3", "TIME", "not decrease", "EVID 3"),
    cell("negative amount", BASE, "1,2,-100,.,1", "1,2,100,.,1", "AMT", "0 or more", "-100", "correct"),
    Case("duplicate header", "ID,TIME,AMT,DV,dv\n1,0,100,.,.\n", ("twice", "rename or remove"),
         "ID,TIME,AMT,DV,dv2\n1,0,100,.,1\n1,1,0,2,1\n", 1, "dv"),
    Case("nameless column", ",ID,TIME,AMT,DV\n1,1,0,100,.\n", ("empty", "position 1", "row.names"),
         "N,ID,TIME,AMT,DV\n1,1,0,100,.\n1,1,1,0,2\n", 1),
    cell("unknown EVID", BASE, "1,2,.,5,7", "1,2,.,5,2", "EVID", "0 (observation), 1 (dose)", "got 7"),
    cell("EVID no whole number", BASE, "1,2,.,5,0.5", "1,2,.,5,0", "EVID", "0 (observation)", "got 0.5"),
    cell("dose of 0", BASE, "1,2,0,.,1", "1,2,10,.,1", "AMT", "amount on a dose", "got 0", "EVID=2"),
    cell("dose without amount", BASE, "1,2,.,.,1", "1,2,.,.,2", "AMT", "amount on a dose", "EVID=2"),
    cell("reset-dose without amount", BASE, "1,2,.,.,4", "1,2,.,.,3", "AMT", "amount on a dose"),
    cell("amount on an observation", BASE, "1,2,100,5,0", "1,2,0,5,0", "AMT", "no dose", "got 100", "EVID=1"),
    cell("amount on an other record", BASE, "1,2,100,.,2", "1,2,.,.,2", "AMT", "no dose", "got 100"),
    cell("RATE on an observation", BASE + ",RATE", "1,2,.,5,0,10", "1,2,.,5,0,0", "RATE", "no dose", "got 10"),
    cell("ADDL without II", BASE + ",ADDL,II", "1,2,100,.,1,3,0", "1,2,100,.,1,3,12", "ADDL", "II", "time between"),
    cell("ADDL without the column II", BASE + ",ADDL", "1,2,100,.,1,3", "1,2,100,.,1,0", "ADDL", "interval II"),
    cell("negative ADDL", BASE + ",ADDL,II", "1,2,100,.,1,-3,12", "1,2,100,.,1,3,12", "ADDL", "0 or more", "-3"),
    cell("ADDL no whole number", BASE + ",ADDL,II", "1,2,100,.,1,2.5,12", "1,2,100,.,1,2,12", "ADDL", "whole number"),
    cell("ADDL out of bounds", BASE + ",ADDL,II", "1,2,100,.,1,1e9,12", "1,2,100,.,1,100000,12", "ADDL", "at most"),
    cell("ADDL on an observation", BASE + ",ADDL,II", "1,2,.,5,0,3,12", "1,2,.,5,0,0,12", "ADDL", "no dose"),
    cell("II negative", BASE + ",ADDL,II", "1,2,100,.,1,3,-12", "1,2,100,.,1,3,12", "II", "0 or more", "-12"),
    cell("DV missing", BASE, "1,2,.,.,0", "1,2,.,.,2", "DV", "measurement", "got none", "MDV=1"),
    cell("DV missing with MDV 0", BASE + ",MDV", "1,2,.,.,0,0", "1,2,.,.,0,1", "DV", "measurement", "MDV=1",
         before="1,0,100,.,1,1"),
    cell("DV infinite", BASE, "1,2,.,inf,0", "1,2,.,1e300,0", "DV", "finite number", "'inf'", "'.'"),
    cell("DV NaN", BASE, "1,2,.,NaN,0", "1,2,.,.,2", "DV", "finite number", "'NaN'", "MDV=1"),
    cell("DV NA", BASE, "1,2,.,NA,2", "1,2,.,,2", "DV", "a number", "'NA'", "'.'"),
    cell("TIME infinite", BASE, "1,-Infinity,.,5,0", "1,5,.,5,0", "TIME", "finite number", "'-Infinity'"),
    cell("TIME overflow", BASE, "1,1e999,.,5,0", "1,1e99,.,5,0", "TIME", "finite number", "'1e999'"),
    cell("TIME missing", BASE, "1,.,.,5,0", "1,1,.,5,0", "TIME", "a time on every record", "elapsed"),
    Case("empty file", b"", ("empty file",)),
    Case("blank file", b" \n\n ", ("empty file",)),
    Case("header only", "ID,TIME,AMT,DV,EVID\n", ("records below the header",), row=1),
    Case("comments only", "# ID only\n# nothing\n", ("only comment lines",)),
    Case("no header", "1,0,100,.,1\n1,2,.,5,0\n".replace(".", "0"), ("names of the columns", "add a header"), row=1),
    Case("UTF-16", GOOD.encode("utf-16"), ("UTF-8", "UTF-16"), GOOD.encode("utf-8-sig")),
    Case("UTF-16 without mark", GOOD.encode("utf-16-le"), ("NUL byte", "UTF-16"), row=1),
    Case("UTF-32", GOOD.encode("utf-32"), ("UTF-8", "UTF-32")),
    Case("Latin-1", "ID,TIME,DV,SITE\n1,0,1,Zürich\n".encode("latin-1"), ("UTF-8", "0xfc", "Latin-1"),
         "ID,TIME,DV,AMT,SITE\n1,0,1,0,Zürich\n1,1,0,5,Zürich\n".encode(), 2),
    Case("binary", b"PK\x03\x04\n\x14\x00\x06\x00", ("NUL byte", "workbook"), row=2),
    Case("one enormous line", GOOD + "1,2,.," + "5" * 200_000 + ",0\n", ("200,008 characters", "line ends"),
         GOOD + "1,2,.," + "5" * 200 + ",0\n", 4),
    Case("too many fields", table(DOSE, "1,2,.,5,0,9"), ("5 fields", "got 6", "quote"), row=3),
    Case("too few fields", table(DOSE, "1,2,.,5"), ("5 fields", "got 4", "'.'"), row=3),
    Case("decimal commas", table(DOSE, "1,2,0,5,5,0"), ("5 fields", "decimal points"), table(DOSE, "1,2,0,5.5,0"), 3),
    Case("open quote", table(DOSE, '1,2,.,"5,0', SAMPLE), ("closing quotation mark",), table(DOSE, '1,2,.,"5",0'), 3),
    cell("ids apart", BASE, "2,0,100,.,1\n2,1,.,2,0\n1,3,.,4,0", "2,0,100,.,1\n2,1,.,2,0\n3,3,1,.,1\n3,4,.,1,0", "ID",
         "stand together", "id 1 again", "sort", row=6, before="1,0,100,.,1\n1,2,.,5,0"),
    cell("id missing", BASE, ".,2,.,5,0", "1,2,.,5,0", "ID", "id on every record"),
    cell("covariate missing", BASE + ",WT", "1,2,.,5,0,.", "1,2,.,5,0,70", "WT", "covariate's value", "drop",
         before=DOSE + ",70"),
    cell("covariate NA", BASE + ",WT", "1,2,.,5,0,NA", "1,2,.,5,0,70", "WT", "a number", "'NA'", before=DOSE + ",70"),
    Case("ignore and accept", GOOD, ("ignore or in accept", "both"), bad_options={"ignore": ["dv == 0"],
         "accept": ["dv > 0"]}, good_options={"ignore": "#", "accept": ["evid == 1", "dv > 0"]}),
    Case("ignore leaves nothing", GOOD, ("none after ignore", "id > 0"), bad_options={"ignore": ["id > 0"]},
         good_options={"ignore": ["id > 1"]}),
    Case("accept leaves nothing", GOOD, ("none after accept",), bad_options={"accept": "id == 7"},
         good_options={"accept": "id == 1"}),
    Case("malformed condition", GOOD, ("dv == 0", "dv is small"), bad_options={"ignore": "dv is small"},
         good_options={"ignore": "dv .LT. 1"}),
    Case("condition on no column", GOOD, ("'dvv'", "Did you mean 'DV'"), bad_options={"ignore": "dvv == 0"},
         good_options={"ignore": "DV == 0"}),
    Case("two comment characters", GOOD, ("one comment character",), bad_options={"ignore": ["#", "C"]},
         good_options={"ignore": ["C", "dv == 0"]}),
    Case("rename to a taken name", table(DOSE + ",1", SAMPLE + ",1", head=BASE + ",CONC"), ("no column has", "'dv'"),
         table(DOSE + ",1", SAMPLE + ",1", head=BASE + ",CONC"), None, "CONC", {"rename": {"CONC": "dv"}},
         {"rename": {"CONC": "dv", "DV": "drop"}}),
    Case("rename of no column", GOOD, ("'CONC'", "Legal names"), bad_options={"rename": {"CONC": "dv"}},
         good_options={"rename": {"DV": "dv"}}),
    Case("semicolons", GOOD.replace(",", ";"), ("semicolons", "decimal points"), row=1),
    Case("tabs", GOOD.replace(",", "\t"), ("tabs", "commas"), row=1),
    Case("blanks", GOOD.replace(",", " "), ("blanks", "commas"), row=1),
    cell("CMT negative on a dose", BASE + ",CMT", "1,2,100,.,1,-1", "1,2,.,.,2,-1", "CMT", "EVID 2", "-1"),
    cell("CMT no whole number", BASE + ",CMT", "1,2,100,.,1,1.5", "1,2,100,.,1,central", "CMT", "number", "1.5"),
    cell("endpoints by CMT alone", BASE + ",CMT", "1,2,.,5,0,2\n1,3,.,5,0,3", "1,2,.,5,0,2\n1,3,.,5,0,2", "CMT", "DVID",
         row=4),
    cell("MDV not 0 or 1", BASE + ",MDV", "1,2,.,5,0,2", "1,2,.,5,0,1", "MDV", "0 (DV is an observation)", "got 2",
         before=DOSE + ",1"),
    cell("MDV 0 on a dose", BASE + ",MDV", "1,2,10,5,1,0", "1,2,10,5,1,1", "MDV", "no observation", "MDV=1",
         before=DOSE + ",1"),
    cell("DVID missing", BASE + ",DVID", "1,2,.,5,0,.", "1,2,.,5,0,2", "DVID", "an endpoint", "got none"),
    cell("DVID no whole number", BASE + ",DVID", "1,2,.,5,0,1.5", "1,2,.,5,0,pca", "DVID", "an endpoint", "1.5"),
    *MORE,
    Case("unknown interpolation", GOOD, ("'locf'", "'spline'"), bad_options={"interpolation": "spline"},
         good_options={"interpolation": "linear"}),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::nlmegen.data.columns.DataWarning")
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_malformed_table_and_its_valid_neighbour(case: Case, tmp_path: Path) -> None:
    bad, good = tmp_path / "bad.csv", tmp_path / "good.csv"
    bad.write_bytes(case.bad if isinstance(case.bad, bytes) else case.bad.encode())
    good.write_bytes(case.good if isinstance(case.good, bytes) else case.good.encode())

    with pytest.raises(DataError) as caught:
        read_nonmem(bad, **case.bad_options)

    assert type(caught.value) is DataError
    assert caught.value.row == case.row
    assert caught.value.column == case.column
    for words in case.says:
        assert words in str(caught.value)
    assert caught.value.__cause__ is None, "the message stands alone"
    assert read_nonmem(good, **case.good_options).n_subjects >= 1


@pytest.mark.filterwarnings("ignore::nlmegen.data.columns.DataWarning")
def test_every_message_is_its_own(tmp_path: Path) -> None:
    names: dict[str, list[str]] = {}
    for number, case in enumerate(CASES):
        path = tmp_path / f"{number}.csv"
        path.write_bytes(case.bad if isinstance(case.bad, bytes) else case.bad.encode())
        with pytest.raises(DataError) as caught:
            read_nonmem(path, **case.bad_options)
        names.setdefault(str(caught.value).replace(str(path), "FILE"), []).append(case.name)
    shared = [group for group in names.values() if len(group) > 1]
    assert shared == [  # several ways of making one and the same mistake
        ["unsorted times", "unsorted times after a reset"],
        ["dose without amount", "reset-dose without amount"],
        ["amount on an observation", "amount on an other record"],
        ["ADDL without II", "ADDL without the column II", "modelled ADDL without II"],
        ["II negative", "SS with a negative interval"],
        ["DV missing", "DV missing with MDV 0"],
        ["TIME missing", "a clock time missing"],
        ["empty file", "blank file"],
        ["CMT negative on a dose", "a compartment off at a reset"],
        ["CMT no whole number", "no compartment off"],
        ["SS on an observation", "SS on an other record"],
        ["constant infusion of a modelled rate", "RATE -1 without an amount"],
        ["SS of nothing", "SS of nothing after a reset", "SS on an observation without EVID"],
        ["a censored record without a limit", "BLQ in DV without a limit", "ALQ in DV without a limit"],
    ]


def test_missing_file_suggests_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "warfarin.csv").write_text(GOOD)
    with pytest.raises(DataError, match="did you mean .*warfarin.csv"):
        read_nonmem(tmp_path / "warfarn.csv")
    with pytest.raises(DataError, match="csv files there: warfarin.csv"):
        read_nonmem(tmp_path / "zzz")
    with pytest.raises(DataError, match="folder .* does not exist"):
        read_nonmem(tmp_path / "nowhere" / "warfarin.csv")


def test_folder_instead_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="got the folder"):
        read_nonmem(tmp_path)


def test_neither_path_nor_frame() -> None:
    with pytest.raises(DataError, match="a path or a DataFrame, got a dict"):
        read_nonmem({"id": [1]})  # type: ignore[arg-type]


FRAME = pd.DataFrame({"ID": [1, 1], "TIME": [0.0, 2.0], "AMT": [100.0, 0.0], "DV": [np.nan, 5.0]})


@pytest.mark.parametrize(
    ("change", "row", "column", "says"),
    [
        (lambda f: f.iloc[:0], None, None, "empty table"),
        (lambda f: f.assign(DV=[np.nan, np.inf]), 3, "DV", "finite number"),
        (lambda f: f.assign(TIME=pd.to_datetime(["2024-01-01", "2024-01-02"])), None, "TIME", "elapsed time"),
        (lambda f: f.assign(DV=[None, "x"]), 3, "DV", "got 'x'"),
        (lambda f: f.assign(NOTE=["a", ["b"]]), 3, "NOTE", "got a list"),
        (lambda f: f.assign(NOTE=["a", "b\nc"]), 3, "NOTE", "line break"),
        (lambda f: f.assign(ID=[1, np.nan]), 3, "ID", "id on every record"),
        (lambda f: f.assign(WT=[70.0, np.nan]), 3, "WT", "covariate's value"),
        (lambda f: pd.concat([f, f[["DV"]]], axis=1), None, "DV", "twice"),
        (lambda f: f.set_axis(pd.MultiIndex.from_product([["a"], f.columns]), axis=1), None, None, "levels"),
        (lambda f: f.assign(DV=[0, 1 + 2j]), 2, "DV", "complex"),
    ],
)
def test_malformed_frame(
    change: Callable[[pd.DataFrame], pd.DataFrame], row: int | None, column: str | None, says: str
) -> None:
    with pytest.raises(DataError, match=says) as caught:
        Population.from_table(change(FRAME))
    assert (caught.value.row, caught.value.column) == (row, column)
    assert Population.from_table(FRAME).n_observations == 1
