"""How long does ELBO take on one thread, and where does it end?

For each case and seed: CPU seconds of the estimation after import, standard errors included; -2 log L by its own
importance sampling and by 9-node quadrature at its estimate; the independently known optimum.

    python benchmarks/elbo_speed.py [--seeds 3]
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

import nlmegen as nl

OPTIMA = {"theophylline, additive": 360.7015, "theophylline, combined": 347.1042, "phenobarbital": 870.7745}
"""-2 log L at the maximum likelihood, by two independent quadrature codes."""


def with_declarations(name: str, **changes: Any) -> nl.Model:
    """A catalogue page with some of its declarations replaced."""
    page = type(nl.load_model(name))
    changed = type(page.__name__, (page,), {"__module__": __name__, "__doc__": page.__doc__, **changes})
    model: nl.Model = changed()
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    cases = {
        "theophylline, additive": (with_declarations("theophylline", cp=nl.Additive(1.0)), "theophylline"),
        "theophylline, combined": (nl.load_model("theophylline"), "theophylline"),
        "phenobarbital": (nl.load_model("phenobarbital"), "phenobarbital"),
    }
    print(
        f"{'case':<24}{'seed':>5}{'CPU s':>8}{'-2LL own':>12}{'SE':>7}{'quadrature':>12}{'over optimum':>14}"
        f"{'ESS/K min':>11}{'k-hat max':>11}"
    )
    for title, (model, data) in cases.items():
        problem = nl.Problem(model, nl.load_data(data))
        for seed in range(seeds):
            before = time.process_time()
            found = nl.ELBO(seed=seed).estimate(problem)
            seconds = time.process_time() - before
            judged = -2 * nl.quadrature(problem, problem.values(found.free), 9).total
            print(
                f"{title:<24}{seed:>5}{seconds:>8.1f}{-2 * found.log_likelihood:>12.4f}{found.ofv_se:>7.3f}"
                f"{judged:>12.4f}"
                f"{judged - OPTIMA[title]:>14.4f}{found.bounds['ess_min']:>11.2f}{found.bounds['khat_max']:>11.2f}"
                f"{'' if found.converged else '  NOT CONVERGED'}",
                flush=True,
            )


if __name__ == "__main__":
    main()
