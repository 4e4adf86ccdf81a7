"""Dose records: AMT, RATE, ADDL, II, SS and the compartments that are switched off, as PREDPP means them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nlmegen.data.columns import Bools, Floats, Ints, Table, check

MOST_ADDITIONAL = 100_000  # a slip of the keyboard should not fill the memory


@dataclass(frozen=True)
class Doses:
    """What the columns of doses say, on every record, R of them.

    The rules are PREDPP's (NONMEM Users Guide, part VI, chapter V, and the help pages AMT, RATE, SS, SS DOSE, ADDL):

    ======  ==============  ====  =====================================================================================
    AMT     RATE            II    with SS = 1 or 2
    ======  ==============  ====  =====================================================================================
    > 0     0               > 0   steady state of boluses; ADDL may go on with the pattern
    > 0     > 0, -1, -2     > 0   steady state of infusions, shorter or longer than II; ADDL may go on with the pattern
    0       > 0             0     steady state of a constant infusion, which ends at the time of the record; no ADDL
    ======  ==============  ====  =====================================================================================

    SS = 3 (PREDPP's SS = 1 with starting values from the records before), AMT = 0 with RATE = 0 or -1 (a steady state
    without a dose) and a negative ADDL (NONMEM 7.5's empirical steady state) are refused.

    Attributes:
        amount, rate, interval: [R] AMT, RATE (0 where it is modelled) and II; 0 where there is none.
        additional: [R] ADDL.
        steady: [R] SS: 0, 1 or 2.
        modelled: [R] 0, 1 (RATE = -1, the rate is the page's) or 2 (RATE = -2, the duration is).
    """

    amount: Floats
    rate: Floats
    interval: Floats
    additional: Ints
    steady: Ints
    modelled: Ints

    @classmethod
    def read(cls, table: Table, dosed: Bools) -> Doses:
        """Read the columns.

        Args:
            table: The table.
            dosed: [R] true for EVID 1 and 4.

        Raises:
            DataError: a value that no record may have, or a combination that contradicts itself.
        """
        columns = (table.numbers(name) for name in ("amt", "rate", "ii", "addl", "ss"))
        amount, rate, interval, additional, steady = (np.nan_to_num(x) for x in columns)
        _check_amounts(table, dosed, amount, rate, steady)
        _check_rates(table, dosed, amount, rate)
        _check_additional(table, dosed, interval, additional, steady)
        _check_steady(table, dosed, amount, interval, additional, steady)
        return cls(
            amount=amount,
            rate=np.maximum(rate, 0.0),
            interval=interval,
            additional=additional.astype(np.int64),
            steady=steady.astype(np.int64),
            modelled=np.where(rate < 0, -rate, 0.0).astype(np.int64),
        )

    def odd(self, table: Table, dosed: Bools) -> Iterator[str]:
        """Say where II has no effect."""
        idle = (self.interval > 0) & (self.additional == 0) & (self.steady == 0)
        for rows, what, why in (
            (np.flatnonzero(idle & dosed), "dose records", "but no ADDL"),
            (np.flatnonzero(idle & ~dosed), "records", "that are no doses"),
        ):
            if len(rows):
                yield (
                    f"{len(rows)} {what} with II {why}, the first on line {table.line[rows[0]]}: II has no effect there"
                )


def _check_amounts(table: Table, dosed: Bools, amount: Floats, rate: Floats, steady: Floats) -> None:
    check(table, "amt", amount < 0, "expected a dose of 0 or more, got {}; correct the amount", amount)
    check(
        table,
        "amt",
        ~dosed & (amount > 0),
        "expected no amount on a record that is no dose (EVID 0, 2 or 3), got {}; set EVID=1, or AMT=0",
        amount,
    )
    nothing = dosed & (amount == 0)
    check(
        table,
        "rate",
        nothing & ((rate == -1) | (rate == -2)),
        "expected an amount with RATE {} (the page models how long it takes), got none; write the dose into AMT",
        rate,
    )
    check(
        table,
        "amt",
        nothing & (steady > 0) & (rate == 0),
        "expected a steady state of some dose, got SS with neither AMT nor RATE; write the dose into AMT and its "
        "interval into II, or the rate of a constant infusion into RATE",
    )
    check(
        table,
        "amt",
        nothing & (steady == 0) & (rate > 0),
        "expected an amount with a RATE, got {}: the infusion would never end; write AMT, or SS=1 for the steady state "
        "of a constant infusion",
        table.numbers("amt"),
    )
    check(
        table,
        "amt",
        nothing & (steady == 0),
        "expected an amount on a dose record (EVID 1 or 4), got {}; write the dose, or set EVID=2 if none was given",
        table.numbers("amt"),
    )


def _check_rates(table: Table, dosed: Bools, amount: Floats, rate: Floats) -> None:
    check(
        table,
        "rate",
        (rate < 0) & (rate != -1) & (rate != -2),
        "expected 0 (bolus), the rate of an infusion, -1 (the page's rate) or -2 (the page's duration), got {}; "
        "correct the rate",
        rate,
    )
    check(
        table,
        "rate",
        ~dosed & (rate != 0),
        "expected no rate on a record that is no dose, got {}; set RATE=0, or EVID=1 with an amount",
        rate,
    )
    with np.errstate(over="ignore"):
        endless = (rate > 0) & ~np.isfinite(amount / np.where(rate > 0, rate, 1.0))
    check(table, "rate", endless, "expected an infusion that ends, got the rate {}; check AMT and RATE", rate)


def _check_additional(
    table: Table, dosed: Bools, interval: Floats, additional: Floats, steady: Floats
) -> None:
    check(table, "ii", interval < 0, "expected a dosing interval of 0 or more, got {}; correct it", interval)
    check(
        table,
        "addl",
        additional < 0,
        "expected 0 or more additional doses, got {}; correct the number (for a steady state write SS=1 and II)",
        additional,
    )
    check(
        table,
        "addl",
        additional != np.floor(additional),
        "expected a whole number of additional doses, got {}; correct the number",
        additional,
    )
    check(
        table,
        "addl",
        additional > MOST_ADDITIONAL,
        f"expected at most {MOST_ADDITIONAL:,} additional doses, got {{}}; as many as fit before the last record do",
        additional,
    )
    check(
        table,
        "addl",
        ~dosed & (additional > 0),
        "expected no additional doses on a record that is no dose, got {}; set ADDL=0, or EVID=1 with an amount",
        additional,
    )
    check(
        table,
        "addl",
        (additional > 0) & (interval == 0) & (steady == 0),
        "expected a dosing interval II with {} additional doses, got none; write the time between doses into II",
        additional,
    )


def _check_steady(
    table: Table, dosed: Bools, amount: Floats, interval: Floats, additional: Floats, steady: Floats
) -> None:
    check(
        table,
        "ss",
        steady == 3,
        "expected SS=1 or SS=2, got 3, which only differs from 1 in how NONMEM searches for the steady state; write 1",
    )
    check(
        table,
        "ss",
        ~np.isin(steady, (0, 1, 2)),
        "expected 0 (no steady state), 1 (replaces what is there) or 2 (adds to it), got {}; correct the flag",
        steady,
    )
    check(
        table,
        "ss",
        ~dosed & (steady > 0),
        "expected no steady state on a record that is no dose, got SS={}; set SS=0, or EVID=1 with a dose",
        steady,
    )
    constant = (steady > 0) & (amount == 0)
    check(
        table,
        "ss",
        (steady > 0) & (amount > 0) & (interval == 0),
        "expected a dosing interval II with SS={}, got none; write the time between doses into II",
        steady,
    )
    check(
        table,
        "addl",
        constant & (additional > 0),
        "expected no additional doses after a constant infusion (SS with AMT=0), got {}; set ADDL=0, or write "
        "AMT and II",
        additional,
    )
    check(
        table,
        "ii",
        constant & (interval > 0),
        "expected no interval with the steady state of a constant infusion (SS with AMT=0), got {}; set II=0, or write "
        "AMT",
        interval,
    )
