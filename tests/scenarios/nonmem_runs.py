"""What NONMEM itself predicted for dosing records, read off runs that others have published.

    mrgsolve   github.com/mrgsolve/nmtests, dosing/results/1001-nm.csv (NONMEM 7.5, ADVAN2 TRANS2, five digits): CL 1.1,
               V 20, KA 1.5, CP = 1000 A(2)/V; lag, bioavailability and duration belong to compartment 2
    ferx       github.com/FeRx-NLME/ferx-core, nonmem_anchor/results/*.sdtab (NONMEM 7.6, ADVAN2, sixteen digits):
               CL 2, V 20, KA 0.15, D1 8, F = A(2)/V; 100 into the depot unless said otherwise
    weights    the same, *.tab (ADVAN13, five digits), PRED: CL 10 (WT/70)^.75, V 50, KA (WT/70)^.75, ALAG1 0.7

Records are (time, event); figures are (time, prediction).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from scenarios.table import record

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """One subject of a run.

    Attributes:
        name: of the run and the subject in it.
        doses: the records that are no observations, in order.
        seen: time and prediction.
        lag, f, duration: by number of the compartment.
        parameters: cl, v, ka; scale: the prediction is scale A(2) / V.
        digits: how many NONMEM printed.
    """

    name: str
    doses: Rows
    seen: dict[float, float]
    parameters: dict[str, float] = field(default_factory=lambda: dict(cl=1.1, v=20.0, ka=1.5))
    scale: float = 1000.0
    lag: dict[int, float] = field(default_factory=dict)
    f: dict[int, float] = field(default_factory=dict)
    duration: dict[int, float] = field(default_factory=dict)
    digits: int = 5

    def __str__(self) -> str:
        return self.name

    def records(self) -> Rows:
        """Observations among the doses, after those of the same time."""
        rows = [*self.doses]
        for time in self.seen:
            later = [k for k, r in enumerate(rows) if r["time"] > time]
            rows.insert(later[0] if later else len(rows), record(time, 0, cmt=2))
        return rows


def give(time: float, amt: float, cmt: int = 1, **more: Any) -> dict[str, Any]:
    return record(time, more.pop("evid", 1), amt=float(amt), cmt=cmt, **more)


def _ferx(name: str, doses: Rows, seen: dict[float, float], **more: Any) -> Run:
    return Run(f"ferx {name}", doses, seen, dict(cl=2.0, v=20.0, ka=0.15), 1.0, digits=14, **more)


RUNS = (
    Run(
        "mrgsolve 1",
        [give(0, 100, addl=3, ii=24)],
        {1: 3754.4, 24: 1386.5, 25: 5066.8, 73: 5511.0, 130: 290.1},
    ),
    Run(
        "mrgsolve 2",
        [give(0, 100, 2, addl=3, ii=24)],
        {12: 0.0, 13: 10629.0, 36: 2999.9, 37: 13468.0, 85: 14430.0, 130: 1214.4},
        lag={2: 12.13},
        f={2: 2.23},
    ),
    Run(
        "mrgsolve 3",
        [give(0, 100, 2, addl=3, ii=24, rate=10.0)],
        {1: 486.5, 10: 3845.9, 24: 1780.7, 82: 5221.1, 130: 372.58},
    ),
    Run(
        "mrgsolve 4",
        [give(0, 480, 2, rate=10.0)],
        {1: 486.5, 24: 6662.4, 25: 6305.9, 130: 19.575},
        f={2: 0.5},
    ),
    Run(
        "mrgsolve 5",
        [give(0, 480, 2, rate=-2.0)],
        {1: 243.25, 24: 3331.2, 48: 4221.1, 49: 3995.2, 130: 46.425},
        f={2: 0.5},
        duration={2: 48.0},
    ),
    Run(
        "mrgsolve 6",
        [give(0, 100, addl=3, ii=24, rate=100 / 12)],
        {1: 196.84, 12: 3511.2, 36: 4526.2, 84: 4869.7, 130: 410.89},
    ),
    Run(
        "mrgsolve 7",
        [give(0, 100, 2, addl=3, ii=24, rate=10.0)],
        {4: 0.0, 5: 415.22, 14: 3802.5, 28: 1795.5, 86: 5189.0, 130: 468.11},
        lag={2: 4.15},
    ),
    Run(
        "mrgsolve 8",
        [give(0, 100, 2, addl=3, ii=24, rate=10.0)],
        {3: 0.0, 4: 367.37, 7: 1694.3, 8: 1780.5, 31: 2196.8, 130: 154.52},
        lag={2: 3.25},
        f={2: 0.412},
    ),
    Run(
        "mrgsolve 9",
        [give(0, 100, 2, addl=3, ii=24, rate=10.0, ss=1)],
        {0: 1002.7, 3: 850.22, 4: 1215.2, 8: 2417.5, 27: 850.22, 100: 804.72, 130: 154.55},
        lag={2: 3.16},
        f={2: 0.412},
    ),
    Run(
        "mrgsolve 10",
        [give(0, 100, 2, addl=4, ii=12, rate=2.0, ss=1)],
        {0: 6014.5, 4: 6263.0, 5: 6277.4, 12: 6014.5, 60: 6014.5, 64: 5903.9, 76: 4839.9, 130: 344.68},
        f={2: 0.812},
    ),
    Run(
        "mrgsolve 11",
        [give(0, 100, 2, addl=3, ii=12, rate=2.0, ss=1)],
        {0: 7498.9, 2: 7664.7, 3: 7643.7, 12: 7498.9, 48: 7498.9, 51: 7367.2, 90: 2827.0, 130: 313.24},
    ),
    Run(
        "mrgsolve 12",
        [give(0, 100, 2, addl=12, ii=6, rate=8.3333, ss=1)],
        {0: 15152.0, 78: 15152.0, 79: 14746.0, 84: 13022.0, 85: 12325.0, 130: 1037.3},
    ),
    Run(
        "mrgsolve 13",
        [give(0, 100, 2, addl=8, ii=10, rate=4.12, ss=1)],
        {0: 3745.5, 45: 3745.5, 90: 3745.5, 91: 3545.0, 130: 415.01},
        f={2: 0.412},
    ),
    Run(
        "mrgsolve 14",
        [give(0, 100, 2, addl=8, ii=10, rate=10.0, ss=1)],
        {0: 9090.9, 90: 9090.9, 91: 8604.4, 130: 1007.3},
    ),
    Run(
        "mrgsolve 15",
        [give(0, 100, 2, addl=3, ii=24, ss=1)],
        {0: 935.66, 3: 793.34, 4: 2810.9, 28: 2810.9, 99: 793.34, 130: 144.21},
        lag={2: 4.0},
        f={2: 0.412},
    ),
    Run(
        "mrgsolve 16",
        [give(0, 100, 2, addl=3, ii=24)],
        {4: 0.0, 5: 2060.0, 28: 581.41, 29: 2610.3, 77: 2796.6, 130: 151.59},
        lag={2: 5.0},
        f={2: 0.412},
    ),
    Run(
        "mrgsolve 17",
        [give(0, 100, 2), give(13, 50, addl=2, ii=24, rate=24.0)],
        {0: 0.0, 1: 5000.0, 12: 2730.4, 15: 3885.2, 40: 3338.8, 64: 3076.2, 130: 86.893},
        lag={2: 1.0},
    ),
    Run(
        "mrgsolve 18",
        [give(0, 100, 2, addl=3, ii=24, rate=-2.0)],
        {5: 0.0, 6: 329.74, 14: 2405.7, 15: 2276.9, 86: 3265.8, 130: 290.4},
        lag={2: 5.0},
        f={2: 0.61},
        duration={2: 9.0},
    ),
    Run(
        "mrgsolve 19",
        [give(0, 100, 2, addl=3, ii=24, rate=-2.0, ss=1)],
        {0: 1438.5, 9: 3282.6, 10: 3106.9, 24: 1438.5, 96: 1438.5, 130: 221.71},
        f={2: 0.61},
        duration={2: 9.0},
    ),
    Run(
        "mrgsolve 20",
        [give(0, 100, addl=2, ii=12, rate=50.0), give(50, 120, evid=4, addl=3, ii=12)],
        {1: 1181.0, 24: 4301.4, 49: 2474.8, 50: 0.0, 51: 4505.3, 63: 7552.2, 88: 10414.0, 130: 1064.5},
    ),
    Run(
        "mrgsolve 26",
        [give(0, 100, addl=3, ii=12, rate=50.0), record(50, 3, cmt=2), give(54, 120, addl=2, ii=16)],
        {38: 7803.0, 49: 5158.7, 53: 0.0, 55: 4505.3, 71: 6950.5, 130: 878.84},
    ),
    Run(
        "mrgsolve 28",
        [give(0, 100, addl=3, ii=24, ss=1), give(12, 50, addl=3, ii=24, ss=2)],
        {0: 1891.9, 1: 5545.1, 11: 3867.4, 12: 4606.4, 13: 6237.1, 25: 7277.4, 36: 4606.4, 130: 573.67},
    ),
    Run(
        "mrgsolve 29",
        [give(0, 0, rate=100.0, ss=1)],
        {0: 90909.0, 1: 88547.0, 2: 84367.0, 60: 3480.6, 130: 74.067},
    ),
    _ferx(
        "evid_reset_lag 1",
        [give(9, 100), record(10, 3), give(10.001, 100)],
        {9.5: 0.0, 11.5: 0.0, 12.5: 0.35162840865497108, 14: 1.1682491774645698, 20: 2.2220175724163957},
        lag={1: 2.0},
    ),
    _ferx("evid_reset_lag 2", [give(9, 100), record(10, 3)], {10.5: 0.0, 12.5: 0.0, 20: 0.0}, lag={1: 2.0}),
    _ferx(
        "evid_reset_lag 4",
        [give(9, 100), record(12, 3)],
        {10.5: 0.0, 11.5: 0.35228907258241909, 12.5: 0.0, 20: 0.0},
        lag={1: 2.0},
    ),
    _ferx(
        "evid_reset_lag 5",
        [give(9, 100), give(10, 100, evid=4)],
        {11.5: 0.0, 12.5: 0.35228907258241909, 14: 1.1686879859439625, 20: 2.2220212830752923},
        lag={1: 2.0},
    ),
    _ferx(
        "evid_reset_lag 6",
        [give(8.5, 100, evid=4), give(9, 100)],
        {10.5: 0.0, 11.5: 1.0142306967459473, 14: 3.2448419161776476, 20: 4.4034293901129997},
        lag={1: 2.0},
    ),
    _ferx(
        "evid_reset_lag 14",
        [give(10, 100, ii=12, ss=1)],
        {10: 3.9551518979304232, 16: 4.3707407381421977, 22: 3.9551518979304241, 30: 4.0684173239887640},
        lag={1: 11.0},
    ),
    _ferx(
        "evid_reset_lag 18",
        [give(9, 100, rate=50.0), record(10, 3)],
        {14: 0.0, 15: 0.0, 20: 0.0},
        lag={1: 5.0},
    ),
    _ferx(
        "evid_reset_lag 19",
        [give(9, 100, rate=50.0)],
        {14: 0.0, 15: 0.17259246855592567, 16: 0.63610455323725967, 20: 2.0010319279496036},
        lag={1: 5.0},
    ),
    _ferx(
        "ss_infusion_stop 3",
        [give(0, 200, 2, rate=10.0), give(10, 100, ii=12, ss=1)],
        {
            5: 1.9673467014368327,
            9.5: 3.0662948827274938,
            10.5: 3.7463032710843924,
            15: 4.5306314936372178,
            30: 2.0102990282000506,
        },
    ),
    _ferx(
        "ss_infusion_stop 4",
        [give(10, 100, 2, rate=10.0), give(10, 100, ii=12, ss=1)],
        {10: 3.4946870126749054, 13: 4.4433054044126239, 40: 0.86905468113407436},
    ),
    _ferx(
        "ss_infusion_stop 5",
        [give(10, 100, ii=12, ss=1), give(10, 100, 2, rate=10.0)],
        {10: 3.4946870126749054, 13: 5.7392143010040346, 19.9: 7.0477200320995310, 40: 1.2967957554778180},
    ),
    _ferx(
        "ss_infusion_stop 9",
        [give(10, 100, ii=12, ss=1), give(15, 200, 2, rate=10.0), give(22, 100, ii=12, ss=1)],
        {15: 4.5306314936372178, 21: 5.9498496186444587, 22.5: 3.7463032710843924, 30: 4.2323203112753420},
    ),
    _ferx(
        "ss_reset 41",
        [give(12.0 * k, 100, ii=12, ss=1) for k in range(4)],
        {6: 4.4740849586630320, 12.5: 3.7463032710843924, 30: 4.4740849586630320, 60: 1.4562571573156748},
    ),
    _ferx(
        "ss_reset 51",
        [give(10, 100), give(10, 100, ii=12, ss=1)],
        {10.5: 3.7463032710843924, 15: 4.5306314936372187},
    ),
    _ferx(
        "ss_reset 52",
        [give(10, 100, ii=12, ss=1), give(10, 100)],
        {10.5: 4.0985923436668115, 15: 6.5430930982115001},
    ),
)

WEIGHED = {
    "tvcov_lag_saltation_multidose": (
        [
            *((0, 100.0, 0, 0, 70.0, 0.0), (1, 0, 0, 0, 140.0, 0.75058), (1.5, 0, 0, 0, 140.0, 1.2591)),
            *((2, 0, 0, 0, 140.0, 1.3337), (3, 0, 0, 0, 140.0, 1.1011), (4, 0, 0, 0, 150.0, 0.80044)),
            *((5, 0, 0, 0, 150.0, 0.56641), (6, 100.0, 0, 0, 150.0, 0.39826), (7, 0, 0, 0, 75.0, 0.84689)),
            *((7.5, 0, 0, 0, 75.0, 1.3262), (8, 0, 0, 0, 75.0, 1.5268), (10, 0, 0, 0, 75.0, 1.3419)),
            *((12, 0, 0, 0, 80.0, 0.90361), (16, 0, 0, 0, 80.0, 0.37661), (24, 0, 0, 0, 80.0, 0.064260)),
        ]
    ),
    "dose_form_lag_ss": (
        [
            *((0, 100.0, 1, 12.0, 70.0, 0.28687), (1, 0, 0, 0, 140.0, 0.95553), (2, 0, 0, 0, 140.0, 1.4801)),
            *((4, 0, 0, 0, 150.0, 0.85896), (8, 0, 0, 0, 150.0, 0.21023), (11, 0, 0, 0, 150.0, 0.072646)),
            *((12, 100.0, 0, 0, 150.0, 0.050977), (13, 0, 0, 0, 75.0, 0.56544), (14, 0, 0, 0, 75.0, 1.2988)),
            *((16, 0, 0, 0, 75.0, 1.1922), (20, 0, 0, 0, 80.0, 0.52343), (24, 0, 0, 0, 80.0, 0.21656)),
        ]
    ),
}
"""By run, the records of a subject: time, AMT, SS, II, WT and the prediction after them."""
