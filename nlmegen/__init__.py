"""Population pharmacokinetics on generative models: one page, one Population, one `fit`.

A model is a page of Python (a subclass of `Model`), data are a NONMEM-format table, and every estimator is an
object handed to `fit`. The public names are loaded when they are first used: `import nlmegen` is cheap.

Example:
    >>> import nlmegen as nl
    >>> model, data = nl.load_model("theophylline"), nl.load_data("theophylline")
    >>> nl.fit(model, data, nl.FOCEI()).converged
    True
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nlmegen.check.residuals import residuals
    from nlmegen.check.table.report import check_table
    from nlmegen.check.vpc import vpc
    from nlmegen.data.catalogue import list_data, load_data
    from nlmegen.data.nonmem import read_nonmem, write_nonmem
    from nlmegen.data.population import Population
    from nlmegen.errors import DataError, FitError, ModelError, Status
    from nlmegen.exchange import read_nonmem_run
    from nlmegen.fit import Fit, compare, fit, likelihood_ratio
    from nlmegen.inference.agq import AGQ, Laplace
    from nlmegen.inference.elbo import ELBO
    from nlmegen.inference.foce import FO, FOCE, FOCEI
    from nlmegen.inference.imp import Importance
    from nlmegen.inference.marginal import quadrature
    from nlmegen.inference.saem import SAEM
    from nlmegen.model.catalogue import list_models, load_model
    from nlmegen.model.correlation import Correlation
    from nlmegen.model.discrete import Bernoulli, NegativeBinomial, Ordered, Poisson
    from nlmegen.model.effects import allometric, boxcox, centred, logit_normal, tlike
    from nlmegen.model.endpoints import Additive, Combined, LogNormal, Predicted, Proportional
    from nlmegen.model.neural import Neural
    from nlmegen.model.page import Model
    from nlmegen.model.parameters import Omega, Theta
    from nlmegen.model.problem import Problem
    from nlmegen.model.residuals import BoxCox, Power, StudentT
    from nlmegen.report.html import report
    from nlmegen.resample.bootstrap import bootstrap
    from nlmegen.resample.profile import profile
    from nlmegen.resample.sir import sir
    from nlmegen.results import load_fit, save_fit
    from nlmegen.simulate.cohort import Cohort
    from nlmegen.simulate.regimen import Regimen
    from nlmegen.simulate.trial import simulate
    from nlmegen.structure.closed import OneCompartment, ThreeCompartment, TwoCompartment
    from nlmegen.structure.dose import Dose
    from nlmegen.structure.solver import Solver

__version__ = "0.1.0"

_PLACES = {
    "nlmegen.model.page": ("Model",),
    "nlmegen.model.parameters": ("Theta", "Omega"),
    "nlmegen.model.endpoints": ("Additive", "Proportional", "Combined", "LogNormal", "Predicted"),
    "nlmegen.model.residuals": ("Power", "BoxCox", "StudentT"),
    "nlmegen.model.discrete": ("Poisson", "NegativeBinomial", "Bernoulli", "Ordered"),
    "nlmegen.model.correlation": ("Correlation",),
    "nlmegen.model.effects": ("allometric", "boxcox", "centred", "logit_normal", "tlike"),
    "nlmegen.structure.closed": ("OneCompartment", "TwoCompartment", "ThreeCompartment"),
    "nlmegen.structure.dose": ("Dose",),
    "nlmegen.structure.solver": ("Solver",),
    "nlmegen.model.neural": ("Neural",),
    "nlmegen.model.problem": ("Problem",),
    "nlmegen.model.catalogue": ("load_model", "list_models"),
    "nlmegen.data.population": ("Population",),
    "nlmegen.data.nonmem": ("read_nonmem", "write_nonmem"),
    "nlmegen.data.catalogue": ("load_data", "list_data"),
    "nlmegen.fit": ("fit", "Fit", "compare", "likelihood_ratio"),
    "nlmegen.inference.foce": ("FO", "FOCE", "FOCEI"),
    "nlmegen.inference.agq": ("Laplace", "AGQ"),
    "nlmegen.inference.saem": ("SAEM",),
    "nlmegen.inference.imp": ("Importance",),
    "nlmegen.inference.elbo": ("ELBO",),
    "nlmegen.inference.marginal": ("quadrature",),
    "nlmegen.simulate.regimen": ("Regimen",),
    "nlmegen.simulate.cohort": ("Cohort",),
    "nlmegen.simulate.trial": ("simulate",),
    "nlmegen.check.residuals": ("residuals",),
    "nlmegen.check.table.report": ("check_table",),
    "nlmegen.check.vpc": ("vpc",),
    "nlmegen.exchange": ("read_nonmem_run",),
    "nlmegen.resample.bootstrap": ("bootstrap",),
    "nlmegen.resample.sir": ("sir",),
    "nlmegen.resample.profile": ("profile",),
    "nlmegen.results": ("save_fit", "load_fit"),
    "nlmegen.report.html": ("report",),
    "nlmegen.errors": ("DataError", "ModelError", "FitError", "Status"),
}
_PLACE_OF = {name: place for place, names in _PLACES.items() for name in names}

__all__ = [
    "AGQ",
    "ELBO",
    "FO",
    "FOCE",
    "FOCEI",
    "SAEM",
    "Additive",
    "Bernoulli",
    "BoxCox",
    "Cohort",
    "Combined",
    "Correlation",
    "DataError",
    "Dose",
    "Fit",
    "FitError",
    "Importance",
    "Laplace",
    "LogNormal",
    "Model",
    "ModelError",
    "NegativeBinomial",
    "Neural",
    "Omega",
    "OneCompartment",
    "Ordered",
    "Poisson",
    "Population",
    "Power",
    "Predicted",
    "Problem",
    "Proportional",
    "Regimen",
    "Solver",
    "Status",
    "StudentT",
    "Theta",
    "ThreeCompartment",
    "TwoCompartment",
    "__version__",
    "allometric",
    "bootstrap",
    "boxcox",
    "centred",
    "check_table",
    "compare",
    "fit",
    "likelihood_ratio",
    "list_data",
    "list_models",
    "load_data",
    "load_fit",
    "load_model",
    "logit_normal",
    "profile",
    "quadrature",
    "read_nonmem",
    "read_nonmem_run",
    "report",
    "residuals",
    "save_fit",
    "simulate",
    "sir",
    "tlike",
    "vpc",
    "write_nonmem",
]


class _Package(ModuleType):
    """This package's own type: a subpackage never hides the public function that bears its name.

    Importing `nlmegen.fit` (or `.simulate`, `.report`) makes Python bind that module as an attribute here,
    and `nl.fit(...)` would then call a module. `from nlmegen.fit import Fit` works either way.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if isinstance(value, ModuleType) and name in _PLACE_OF:
            return
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    place = _PLACE_OF.get(name)
    if place is None:
        raise AttributeError(f"module 'nlmegen' has no attribute '{name}'")
    value = getattr(importlib.import_module(place), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
