"""Does a refit of remifentanil land on the published estimates, and how long does it take?

    python benchmarks/remifentanil.py

The catalogue's page (three compartments, infusions, age and lean body mass; 65 adults, 1,992 observations) by FOCEI
with standard errors, from the estimates of Minto et al. 1997 (Anesthesiology 86:10-23,
doi:10.1097/00000542-199701000-00004) and from typical values a quarter to a third off with every slope at 0.
"""

from __future__ import annotations

import argparse
import time

import torch

import nlmegen as nl

SLOPES = ("cl_age", "v_age", "q_age", "v2_age", "q3_age", "cl_lbm", "v_lbm", "v2_lbm")


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    data, page = nl.load_data("remifentanil"), nl.load_model("remifentanil")
    published = {name: float(page.theta[name]) for name in page.theta_names}
    typical = [name for name in published if name not in SLOPES]
    off = {name: published[name] * (1.33 if k % 2 else 0.75) for k, name in enumerate(typical)}
    far = page.with_values(theta=off | dict.fromkeys(SLOPES, 0.0))
    for title, model in (("from the published estimates", page), ("from far away", far)):
        before = time.process_time()
        fit = nl.fit(model, data, nl.FOCEI())
        seconds = time.process_time() - before
        print(f"\n{title}: OFV {fit.ofv:.3f}, {fit.iterations} iterations, {seconds:.1f} CPU s; {fit.reason}")
        print(f"{'':<10}{'estimate':>12}{'se':>12}{'published':>12}{'apart':>9}{'z':>7}")
        for name, value in published.items():
            estimate, se = fit.parameters.loc[name, ["estimate", "se"]]
            print(
                f"{name:<10}{estimate:>12.5f}{se:>12.5f}{value:>12.5f}{estimate / value - 1:>9.1%}"
                f"{(estimate - value) / se:>7.1f}"
            )


if __name__ == "__main__":
    main()
