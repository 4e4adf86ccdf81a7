"""`nlmegen new NAME`: a page to start from."""

from __future__ import annotations

import argparse
import keyword
import re
from pathlib import Path
from string import Template

from nlmegen.errors import ModelError

PAGE = Template('''"""$title: say here which drug, which population, which source."""

import nlmegen as nl
from torch import exp


class $title(nl.Model):
    """One compartment, first-order absorption. Time h, amount mg, concentration mg/L."""

    # $$THETA: typical values to start from, bounds, units
    tvcl = nl.Theta(3.0, lower=0, unit="L/h")
    tvv = nl.Theta(30.0, lower=0, unit="L")
    tvka = nl.Theta(1.0, lower=0, unit="1/h")
    # $$OMEGA: variances of the random effects; a block: nl.Omega(cl=0.1, v=0.1, cov=[0.01])
    iiv = nl.Omega(cl=0.1, v=0.1, ka=0.3)
    # $$ERROR: the endpoint cp and its residual standard deviations
    cp = nl.Combined(additive=0.5, proportional=0.1)
    structure = nl.OneCompartment(absorption="first-order")

    def individual(self, theta, eta, cov):
        """Return the individual parameters ($$PK); a covariate column WT of the data is cov.wt."""
        return dict(
            cl=theta.tvcl * exp(eta.cl),
            v=theta.tvv * exp(eta.v),
            ka=theta.tvka * exp(eta.ka),
        )

    def observe(self, t, a, p):
        """Return the prediction of each endpoint from the amounts in the compartments."""
        return dict(cp=a.central / p.v)
''')


def run(args: argparse.Namespace) -> int:
    """Write NAME.py in the current directory, never over an existing file."""
    name = args.name.removesuffix(".py")
    stem = Path(name).name
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", stem) or keyword.iskeyword(stem):
        raise ModelError(
            f"'{args.name}' cannot name a page: use a letter, then letters, digits or _ (as warfarin_pk)"
        )
    path = Path(name).with_name(f"{stem}.py")
    title = "".join(word[:1].upper() + word[1:] for word in stem.split("_"))
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(PAGE.substitute(title=title))
    except FileExistsError:
        raise ModelError(
            f"{path} exists and is left as it is; choose another name or remove the file"
        ) from None
    except FileNotFoundError:
        raise ModelError(f"there is no directory {path.parent}; make it first") from None
    print(f"wrote {path}; try: nlmegen fit {path} theophylline --method focei")
    return 0
