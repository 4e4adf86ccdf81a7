"""Does FOCEI arrive from starts that are not good?

Every theta, every variance of a random effect and every residual standard deviation is drawn log-uniformly within a
factor (ten) of the answer, by a fixed seed, and fitted. A start arrives when its objective is within .01 of the
published one.

    python benchmarks/focei_starts.py [--starts 50] [--seed 0] [--factor 10]
"""

from __future__ import annotations

import argparse
import math
import time

import torch

import nlmegen as nl

CASES = (
    ("theophylline", "theophylline", 104.3221),
    ("theophylline, additive", "theophylline", 116.8034),
    ("phenobarbital", "phenobarbital", 586.2761),
)


def page(title: str) -> nl.Model:
    if "additive" not in title:
        return nl.load_model(title)

    class Additive(type(nl.load_model("theophylline"))):
        """Theophylline with additive error."""

        cp = nl.Additive(0.7)

    return Additive()


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--factor", type=float, default=10.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'case':<24}{'arrived':>12}{'ofv':>12}{'mean ms':>10}{'max ms':>10}  elsewhere")
    for title, data_name, published in CASES:
        data = nl.load_data(data_name)
        answer = nl.fit(page(title), data, nl.FOCEI(covariance=None))
        generator = torch.Generator().manual_seed(options.seed)
        arrived, seconds, elsewhere = 0, [], []
        for _ in range(options.starts):
            problem = nl.Problem(drawn(answer.model, options.factor, generator), data)
            begin = time.process_time()
            try:
                found = nl.FOCEI().estimate(problem)
            except nl.FitError as error:
                elsewhere.append(str(error)[:40])
                continue
            seconds.append(time.process_time() - begin)
            if found.converged and abs(found.ofv - published) < 0.01:
                arrived += 1
            else:
                elsewhere.append(f"{found.ofv:.3f}")
        mean, worst = 1e3 * sum(seconds) / len(seconds), 1e3 * max(seconds)
        count = f"{arrived} of {options.starts}"
        print(f"{title:<24}{count:>12}{answer.ofv:>12.4f}{mean:>10.0f}{worst:>10.0f}  {', '.join(elsewhere)}")


if __name__ == "__main__":
    main()
