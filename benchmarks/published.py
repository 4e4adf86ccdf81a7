"""Published objective functions and estimates: computed, reference, difference.

Takes the folder of the tables that the project does not carry (nlmixr2data 2.0.9: Wang2007.csv, warfarin.csv,
Oral_1CPT.csv, Bolus_2CPT.csv, Infusion_1CPTMM.csv):

    python benchmarks/published.py VALIDATION [--cases wang warfarin oral ...]

A figure that is not met to half a unit of its last printed digit is marked, and the reason stands below the table
of its case. The tables that the project carries are held to their figures by tests/reference.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from designs import Bolus, Oral, Saturable, Warfarin
from outside_tables import schoemaker, wang, warfarin
from torch import exp

import nlmegen as nl

LOG_2PI = math.log(2 * math.pi)


# -- pages ----------------------------------------------------------------------------------------------------------
class Wang(nl.Model):
    """f = 10 exp(-0.5 e^eta t) (Wang 2007, doi:10.1007/s10928-007-9060-6), error in proportion."""

    rate = nl.Theta(0.5, lower=0, fixed=True)
    iiv = nl.Omega(k=0.04, fixed=True)
    cp = nl.Proportional(0.1**0.5, fixed=True)
    structure = nl.OneCompartment()

    def individual(self, theta, eta, cov):
        return dict(cl=theta.rate * exp(eta.k), v=1.0)

    def observe(self, t, a, p):
        return dict(cp=a.central)


class WangAdditive(Wang):
    """The same with additive error."""

    cp = nl.Additive(0.1**0.5, fixed=True)


class WarfarinProportional(Warfarin):
    """The same, error in proportion."""

    cp = nl.Proportional(0.2)


class WarfarinSd(Warfarin):
    """The same, standard deviations added."""

    cp = nl.Combined(additive=0.7, proportional=0.12, form="sd")


class WarfarinResponse(type(nl.load_model("warfarin"))):
    """The page of the catalogue, Emax without its upper bound."""

    emax = nl.Theta(0.999, lower=0)


# -- reference figures ----------------------------------------------------------------------------------------------
Row = tuple[str, float, float, float]
"""Label, computed, reference, tolerance: half a unit of the last printed digit unless said."""


def printed(label: str, computed: float, reference: str) -> Row:
    """A row whose tolerance is half a unit of the last digit of `reference`."""
    decimals = len(reference.partition(".")[2])
    return label, computed, float(reference), 0.5 * 10.0**-decimals


def minus2ll(model: nl.Model, data: nl.Population, nodes: int = 9) -> float:
    problem = nl.Problem(model, data)
    return -2 * nl.quadrature(problem, problem.values(problem.start), nodes).total


def estimates(
    fit: nl.Fit, logs: dict[str, str], omega: dict[str, str], sigma: dict[str, str]
) -> Iterator[Row]:
    for name, value in logs.items():
        yield printed(f"log {name}", math.log(float(fit.model.theta[name])), value)
    for name, value in omega.items():
        k = fit.model.eta_names.index(name)
        yield printed(f"omega^2 {name}", float(fit.model.omega[k, k]), value)
    for name, value in sigma.items():
        yield printed(name, float(fit.model.sigma[name]), value)


def at(model: nl.Model, logs: dict[str, str], omega: dict[str, str], sigma: dict[str, str]) -> nl.Model:
    """A model at printed estimates."""
    return model.with_values(
        theta={name: math.exp(float(value)) for name, value in logs.items()},
        omega={name: float(value) for name, value in omega.items()},
        sigma={name: float(value) for name, value in sigma.items()},
    )


def elsewhere(
    fit: nl.Fit, ofv: str, logs: dict[str, str], omega: dict[str, str], sigma: dict[str, str]
) -> Iterator[Row | str]:
    """The objective at the printed estimates beside the printed objective: the same function, where both agree."""
    there = nl.fit(at(fit.model, logs, omega, sigma), fit.population, nl.FOCEI(evaluate=True)).ofv
    yield "the objective at the reference's estimates", there, float(ofv), 2e-3
    yield f"the reference stopped {there - fit.ofv:.4f} above the least found here, and there its estimates lie"


def set_of(
    name: str, folder: Path, page: type[nl.Model], ofv: str, *values: dict[str, str]
) -> Iterator[Row | str]:
    """A single-dose set: objective, estimates, and what the objective is at the reference's own estimates."""
    fit = nl.fit(page(), schoemaker(folder, name), nl.FOCEI())
    yield printed("single dose, FOCEI, OFV", fit.ofv, ofv)
    yield from estimates(fit, *values)
    yield from elsewhere(fit, ofv, *values)
    if name == "Bolus_2CPT":
        nonmem = (
            {"tvcl": "1.37034", "tvv": "4.19815", "tvq": "1.38003", "tvv2": "3.87657"},
            {"cl": "0.101251", "v": "0.0993872", "q": "0.101303", "v2": "0.0730497"},
            {"cp.proportional": "0.196446"},
        )
        there = nl.fit(at(fit.model, *nonmem), fit.population, nl.FOCEI(evaluate=True)).ofv
        yield f"NONMEM's estimates (nlmixr2/courses, pull request 1) have {there:.4f}, beside ours; the reference's"
        yield "omega^2 of q and v2 do not belong to the objective printed with them"


def case_wang(folder: Path) -> Iterator[Row | str]:
    data = wang(folder)
    table = {
        Wang: {"FO": "39.213", "FOCE": "39.207", "FOCEI": "39.458", "Laplace": "39.227", "AGQ": "39.355"},
        WangAdditive: {
            "FO": "0.026",
            "FOCE": "-2.059",
            "FOCEI": "-2.059",
            "Laplace": "-1.936",
            "AGQ": "-1.990",
        },
    }
    for page, values in table.items():
        for name, value in values.items():
            options = {"nodes": 41} if name == "AGQ" else {}
            fit = nl.fit(page(), data, getattr(nl, name)(evaluate=True, **options))
            yield printed(f"{'additive' if page is WangAdditive else 'proportional'} {name}", fit.ofv, value)


def case_warfarin(folder: Path) -> Iterator[Row | str]:
    data = warfarin(folder)
    fit = nl.fit(Warfarin(), data, nl.FOCEI())
    values = (
        {"tvka": "-0.5759", "tvcl": "-2.0071", "tvv": "2.0588"},
        {"ka": "0.4761", "cl": "0.0790", "v": "0.0489"},
        {"cp.proportional": "0.1169", "cp.additive": "0.7205"},
    )
    yield printed("combined, FOCEI, OFV", fit.ofv, "423.3310")
    yield printed("combined, FOCEI, -2LL", fit.ofv + 251 * LOG_2PI, "884.638")
    yield from estimates(fit, *values)
    yield printed("quadrature there, 17 nodes, -2LL", minus2ll(fit.model, data, 17), "886.38")
    yield from elsewhere(fit, "423.3310", *values)
    yield printed(
        "quadrature at the reference's estimates", minus2ll(at(fit.model, *values), data, 17), "886.38"
    )
    fit = nl.fit(WarfarinProportional(), data, nl.FOCEI())
    logs = {k: str(math.log(x)) for k, x in {"tvka": 0.6483, "tvcl": 0.1356, "tvv": 8.168}.items()}
    values = logs, {"ka": "0.4345", "cl": "0.0727", "v": "0.0383"}, {"cp.proportional": str(0.0505**0.5)}
    yield printed("proportional, FOCEI, OFV", fit.ofv, "474.612")
    for name, value in {"tvka": "0.6483", "tvcl": "0.1356", "tvv": "8.168"}.items():
        yield printed(f"proportional, {name}", float(fit.model.theta[name]), value)
    yield from estimates(fit, {}, values[1], {})
    yield printed("proportional, sigma^2", float(fit.model.sigma["cp.proportional"]) ** 2, "0.0505")
    yield from elsewhere(fit, "474.612", *values)
    best = nl.fit(Warfarin(), data, nl.AGQ(covariance=None))
    yield "combined, AGQ, -2LL", -2 * best.log_likelihood, 886.3169, 2e-3
    for name, value in {"tvka": "-0.54889", "tvcl": "-2.01307", "tvv": "2.04921"}.items():
        yield printed(f"AGQ, log {name}", math.log(float(best.model.theta[name])), value)
    for name, value in {"cl": "0.28187", "v": "0.21980", "ka": "0.70828"}.items():
        k = best.model.eta_names.index(name)
        yield printed(f"AGQ, omega_sd {name}", float(best.model.omega[k, k]) ** 0.5, value)
    close = minus2ll(nl.fit(best.model, data, nl.AGQ(nodes=21, covariance=None)).model, data, 31)
    yield f"with 21 nodes the maximum is {close:.4f}: nine nodes, as in the reference, leave .017 here"
    for method in (nl.SAEM(covariance=None), nl.Importance(covariance=None)):
        found = nl.fit(Warfarin(), data, method)
        yield (
            f"combined, {method.name}, 31 nodes there, beside that",
            minus2ll(found.model, data, 31),
            close,
            0.02,
        )
    peer = {
        "theta": {"tvka": 0.5665, "tvv": 7.751, "tvcl": 0.1337},
        "omega": {"ka": 0.511, "v": 0.049, "cl": 0.081},
        "sigma": {"cp.additive": 0.718, "cp.proportional": 0.118},
    }
    judged = [minus2ll(page().with_values(**peer), data, 31) for page in (Warfarin, WarfarinSd)]
    yield "SAEM peer's estimates, -2LL", judged[0], 886.37, 0.005
    yield "the SAEM peer's -2LL is not met: 31 nodes are converged, and half a digit of an estimate moves it by .006"
    yield f"the peer's error is that of variances added: with sd = a + b f its estimates have -2LL {judged[1]:.2f}"


def case_response(folder: Path) -> Iterator[Row | str]:
    data = warfarin(folder, ("cp", "pca"))
    there = nl.fit(WarfarinResponse(), data, nl.FOCEI(evaluate=True))
    yield "FOCEI at the published estimates, OFV", there.ofv, 1427.96, 0.005
    ends = [
        nl.fit(there.model.with_values(theta={"emax": x}), data, nl.FOCEI(evaluate=True)).ofv
        for x in (0.9985, 0.9995)
    ]
    yield f"Emax is printed as .999: within that digit the objective goes from {ends[0]:.3f} to {ends[1]:.3f}"
    best = nl.fit(WarfarinResponse(), data, nl.FOCEI(covariance=None))
    emax = float(best.model.theta["emax"])
    yield f"the published estimates are no optimum: {best.ofv:.3f} is found from them, at Emax {emax:.3f}"


def case_oral(folder: Path) -> Iterator[Row | str]:
    yield from set_of(
        "Oral_1CPT",
        folder,
        Oral,
        "19365.196",
        {"tvcl": "1.3900", "tvv": "4.1930", "tvka": "-0.0266"},
        {"v": "0.0749", "cl": "0.0646", "ka": "0.1038"},
        {"cp.proportional": "0.1986"},
    )


def case_full(folder: Path) -> Iterator[Row | str]:
    fit = nl.fit(Oral(), schoemaker(folder, "Oral_1CPT", single=False), nl.FOCEI())
    yield printed("full, FOCEI, OFV", fit.ofv, "62204.947")
    yield f"{fit.ofv:.5f} rounds down where the reference, a little above the least, was rounded up"


def case_bolus(folder: Path) -> Iterator[Row | str]:
    yield from set_of(
        "Bolus_2CPT",
        folder,
        Bolus,
        "20167.6405",
        {"tvcl": "1.3702", "tvv": "4.1987", "tvq": "1.3778", "tvv2": "3.8759"},
        {"v": "0.0995", "cl": "0.1014", "v2": "0.0742", "q": "0.0973"},
        {"cp.proportional": "0.1964"},
    )


def case_infusion(folder: Path) -> Iterator[Row | str]:
    yield from set_of(
        "Infusion_1CPTMM",
        folder,
        Saturable,
        "21858.3104",
        {"tvvm": "6.9306", "tvkm": "5.5193", "tvv": "4.2605"},
        {"v": "0.0922", "vm": "0.0780", "km": "0.0787"},
        {"cp.proportional": "0.2015"},
    )


CASES: dict[str, Callable[[Path], Iterator[Row | str]]] = {
    "wang": case_wang,
    "warfarin": case_warfarin,
    "response": case_response,
    "oral": case_oral,
    "full": case_full,
    "bolus": case_bolus,
    "infusion": case_infusion,
}


def show(title: str, rows: Iterator[Row | str]) -> tuple[int, int]:
    """Print a case; the number of figures, and of those met."""
    met = count = 0
    notes = []
    print(f"\n{title}\n{'':<50}{'computed':>14}{'reference':>14}{'difference':>13}")
    begin = time.process_time()
    for row in rows:
        if isinstance(row, str):
            notes.append(row)
            continue
        label, computed, reference, tolerance = row
        # a reference is itself rounded: half a unit more for the digits in which computed and true value differ
        good = abs(computed - reference) <= 1.001 * tolerance
        met, count = met + good, count + 1
        print(
            f"{label:<50}{computed:>14.6g}{reference:>14.6g}{computed - reference:>+13.2g}{'' if good else '  *'}"
            if abs(reference) < 1000
            else f"{label:<50}{computed:>14.4f}{reference:>14.4f}{computed - reference:>+13.2g}{'' if good else '  *'}",
            flush=True,
        )
    for note in notes:
        print(f"  {note}")
    print(f"  {time.process_time() - begin:.2f} CPU s")
    return met, count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of the tables")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    total = [0, 0]
    for name in options.cases:
        for k, number in enumerate(show(name, CASES[name](options.folder))):
            total[k] += number
    print(
        f"\n{total[0]} of {total[1]} figures to the last digit printed; the others (*) are explained below their table"
    )


if __name__ == "__main__":
    main()
