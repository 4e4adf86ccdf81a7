"""Does a method arrive from starts that are not good?

Every theta, every variance of a random effect and every residual standard deviation is drawn log-uniformly within a
factor (ten) of the answer, by a fixed seed, and fitted; correlations stay. A start arrives when the method says that
it has converged and its objective is within .01 of the least that any start found (SAEM and Importance: within .1 by
9-node quadrature, for they stop at a Monte Carlo error). Four problems: theophylline with combined and with additive
error, warfarin's design and estimates simulated (32 subjects), two compartments simulated (the rich design of
`designs`, 120 subjects).

    python benchmarks/starts.py [--starts 100] [--seed 0] [--factor 10] [--methods focei ...] [--cases ...]
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from typing import Any

import torch
from designs import Bolus, Warfarin, rich_bolus, warfarin_like

import nlmegen as nl

METHODS = {
    "fo": nl.FO,
    "foce": nl.FOCE,
    "focei": nl.FOCEI,
    "laplace": nl.Laplace,
    "agq": nl.AGQ,
    "saem": nl.SAEM,
    "imp": nl.Importance,
}
STOCHASTIC = ("saem", "imp")


class Additive(type(nl.load_model("theophylline"))):
    """Theophylline with additive error."""

    cp = nl.Additive(0.7)


def problems() -> dict[str, tuple[nl.Model, nl.Population]]:
    """Pages and data by name."""
    theophylline = nl.load_data("theophylline")
    return {
        "theophylline": (nl.load_model("theophylline"), theophylline),
        "theophylline-additive": (Additive(), theophylline),
        "warfarin-like": (Warfarin(), nl.read_nonmem(warfarin_like(1))),
        "two-compartment": (Bolus(), nl.read_nonmem(rich_bolus(1))),
    }


def drawn(model: nl.Model, factor: float, generator: torch.Generator) -> nl.Model:
    """The model at values drawn log-uniformly within `factor` of its own."""

    def off() -> float:
        return math.exp(math.log(factor) * (2 * torch.rand((), generator=generator).item() - 1))

    values = model.values
    sd = torch.tensor([off() ** 0.5 for _ in model.eta_names], dtype=torch.float64)
    return model.with_values(
        theta={k: float(v) * off() for k, v in values.theta.items()},
        omega=model.omega * sd * sd[:, None],
        sigma={k: float(v) * off() for k, v in values.sigma.items()},
    )


def objective(problem: nl.Problem, found: Any, name: str) -> float:
    """The number by which ends are compared: the method's own, or for a stochastic one the quadrature's."""
    if name not in STOCHASTIC:
        return found.ofv
    return problem.ofv(nl.quadrature(problem, problem.values(found.free), 9).total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--factor", type=float, default=10.0)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=["focei"])
    parser.add_argument("--cases", nargs="+", choices=list(problems()), default=list(problems()))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'case':<24}{'method':<9}{'arrived':>12}{'least':>13}{'mean ms':>10}{'max ms':>10}  elsewhere")
    for title, (model, data) in problems().items():
        if title not in options.cases:
            continue
        for name in options.methods:
            method = METHODS[name](covariance=None)
            answer = nl.fit(model, data, method)
            generator = torch.Generator().manual_seed(options.seed)
            ends, seconds, failed = [], [], Counter()
            for _ in range(options.starts):
                problem = nl.Problem(drawn(answer.model, options.factor, generator), data)
                begin = time.process_time()
                try:
                    found = method.estimate(problem)
                except nl.FitError as error:
                    failed[str(error)[:50]] += 1
                    continue
                finally:
                    seconds.append(time.process_time() - begin)
                ends.append((objective(problem, found, name), found.converged))
            first = objective(answer.problem, answer.estimate, name)
            least = min([first, *(value for value, converged in ends if converged)])
            near = 0.1 if name in STOCHASTIC else 0.01
            arrived = sum(converged and value - least <= near for value, converged in ends)
            elsewhere = Counter(
                f"{value - least:+.3f}{'' if converged else ' not converged'}"
                for value, converged in ends
                if not (converged and value - least <= near)
            )
            others = ", ".join(f"{count} x {end}" for end, count in (elsewhere + failed).most_common())
            mean, worst = 1e3 * sum(seconds) / len(seconds), 1e3 * max(seconds)
            count = f"{arrived} of {options.starts}"
            print(
                f"{title:<24}{name:<9}{count:>12}{least:>13.4f}{mean:>10.0f}{worst:>10.0f}  {others}",
                flush=True,
            )


if __name__ == "__main__":
    main()
