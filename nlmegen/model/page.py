"""The one-page model: a class whose body declares parameters, structure and endpoints; its methods are formulas."""

from __future__ import annotations

import copy
import hashlib
import html
import inspect
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..structure.closed import Closed, Structure
from ..structure.solver import Solver
from ..structure.stepped import Stepped
from ..structure.system import Page
from .correlation import Correlation
from .declare import check_page, declared, is_stepped, page_file
from .dryrun import translate
from .endpoints import Endpoint
from .named import Named
from .neural import Networks, Neural
from .parameters import Layout, Omega, Theta, Values


class Model(nn.Module):
    """Base class of every page.

    A page declares `Theta`s, `Omega`s, endpoints (`Additive`, `Combined`, `LogNormal`, `Poisson`, ...) and a
    `structure` as class attributes, and writes two methods, in which every quantity is `[*draw, subject, 1 or time]`:

        individual(self, theta, eta, cov) -> dict of individual parameters      NONMEM's $PK
                  (theta, eta, cov, kappa)   with random effects between occasions, Omega(..., level="occ")
        observe(self, t, a, p)            -> dict of predictions by endpoint    NONMEM's $ERROR

    In place of `structure` it may write differential equations (and set `solver = nl.Solver(...)`):

        dynamics(self, t, a, p)           -> dict of time derivatives of the amounts (compartments 1, 2, ...)
        initial(self, p)                  -> dict of amounts at the start, zero where nothing is said       (optional)

    Pages of either kind may say when and how much of the doses arrives:

        dosing(self, p)                   -> dict of `Dose(bioavailability, lag, duration, rate)` by compartment

    Networks are declared as `net = nl.Neural(...)` and called as `self.net(x)` in any method; their weights are one
    vector `weights` apart from `free`.

    Declarations stay on the class, values live in `free` (one unconstrained vector) and are read as `model.theta.tvcl`,
    `model.omega`, `model.sigma`. `fit` never changes the model it was handed.

    Raises:
        ModelError: at class creation, naming the line of the page, when a declaration or method is missing,
            misspelt or not supported.

    Example:
        >>> import nlmegen as nl
        >>> from torch import exp
        >>> class Bolus(nl.Model):
        ...     tvcl = nl.Theta(1.0, lower=0)
        ...     tvv = nl.Theta(10.0, lower=0)
        ...     iiv = nl.Omega(cl=0.1)
        ...     cp = nl.Proportional(0.1)
        ...     structure = nl.OneCompartment()
        ...     def individual(self, theta, eta, cov):
        ...         return dict(cl=theta.tvcl * exp(eta.cl), v=theta.tvv)
        ...     def observe(self, t, a, p):
        ...         return dict(cp=a.central / p.v)
        >>> Bolus().theta.tvv.item()
        10.0
    """

    structure: Structure
    layout: ClassVar[Layout]
    networks: ClassVar[Networks]
    solver: Solver = Solver()
    _closed_form: Closed | None = None
    known_levels: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    """Levels of categorical covariates in the data that the page has been fitted to: other data may be without some."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_page(cls, Model)
        cls.layout = Layout(
            declared(cls, Theta), declared(cls, Omega), declared(cls, Endpoint), declared(cls, Correlation)
        )
        cls.networks = Networks(declared(cls, Neural))

    def __init__(self) -> None:
        if type(self) is Model:
            raise ModelError(
                "nl.Model is the base of pages; write a class of your own or call nl.load_model(name)"
            )
        super().__init__()
        self.free = nn.Parameter(self.layout.start(), requires_grad=False)
        self._weights = self.networks.start()
        if is_stepped(type(self)):
            self._step()
        elif type(self).dosing is not Model.dosing:
            self._dose()

    def _step(self) -> None:
        try:
            stepped = Stepped(cast(Page, self), self.solver, Named)
        except Exception as error:
            raise translate(error, type(self), "dynamics") from error
        stepped.closed_form = self._closed_form
        self.__dict__["structure"] = stepped

    def _dose(self) -> None:
        try:
            dosed = cast(Closed, type(self).structure).dosed_by(self, Named)
        except Exception as error:
            raise translate(error, type(self), "dosing") from error
        self.__dict__["structure"] = dosed

    def individual(self, theta: Any, eta: Any, cov: Any) -> dict[str, Any]:
        """Individual parameters by name; every page writes its own, with a further argument `kappa` where it declares
        random effects between occasions.
        """
        raise NotImplementedError

    def parameters_of(self, theta: Any, eta: Any, cov: Any, kappa: Any) -> dict[str, Any]:
        """What the page's `individual` returns; kappa is for pages with random effects between occasions."""
        asked: Any = self.individual
        found: dict[str, Any] = asked(theta, eta, cov, kappa) if self.kappa_names else asked(theta, eta, cov)
        return found

    def observe(self, t: Any, a: Any, p: Any) -> dict[str, Any]:
        """Predictions by endpoint; every page writes its own."""
        raise NotImplementedError

    def initial(self, p: Any) -> dict[str, Any]:
        """Amounts at the start by compartment, zero where nothing is said."""
        return {}

    def dosing(self, p: Any) -> dict[str, Any]:
        """`Dose` by compartment: modelled bioavailability, lag, and duration or rate of infusions."""
        return {}

    # -- values ---------------------------------------------------------------------------------------------------
    @property
    def values(self) -> Values:
        """The model's values, each theta and sigma of shape `[1, 1]`."""
        return self.layout.values(self.free.detach())

    @property
    def theta(self) -> Named:
        """Natural fixed effects by name, as scalars."""
        return Named("theta", {k: v.reshape(()) for k, v in self.values.theta.items()})

    @property
    def omega(self) -> Tensor:
        """Covariance matrix of the random effects `[q, q]`, in the order of `effect_names`."""
        return self.values.omega

    @property
    def sigma(self) -> dict[str, Tensor]:
        """Residual standard deviations by name, for example "cp.additive"."""
        return {k: v.reshape(()) for k, v in self.values.sigma.items()}

    @property
    def eta_names(self) -> tuple[str, ...]:
        """Names of the random effects between subjects."""
        return self.layout.eta_names

    @property
    def kappa_names(self) -> tuple[str, ...]:
        """Names of the random effects between occasions."""
        return self.layout.kappa_names

    @property
    def effect_names(self) -> tuple[str, ...]:
        """Names of the rows of `omega`: the etas, then "occ.ka" for the kappa called ka."""
        return self.layout.effect_names

    @property
    def theta_names(self) -> tuple[str, ...]:
        """Names of the fixed effects."""
        return self.layout.theta_names

    @property
    def sigma_names(self) -> tuple[str, ...]:
        """Names of the residual standard deviations."""
        return self.layout.sigma_names

    @property
    def weights(self) -> Tensor:
        """Weights of all networks of the page `[W]`, in the order of their declaration."""
        return self._weights

    def with_weights(self, weights: Tensor) -> Self:
        """A copy of the model with network weights `weights [W]`, through which gradients pass."""
        if weights.shape != self._weights.shape:
            raise ModelError(
                f"with_weights: the networks of {self.name} have {len(self._weights)} weights, got "
                f"{tuple(weights.shape)}"
            )
        other = copy.copy(self)
        other.__dict__["_weights"] = weights
        if "structure" in self.__dict__:
            other.__dict__["structure"] = self.structure.on(other)
        return other

    def with_solver(self, solver: Solver) -> Self:
        """A copy of a page with `dynamics` that is solved otherwise.

        Raises:
            ModelError: on a page with a closed form, or a route that cannot solve the page.
        """
        if not isinstance(self.structure, Stepped):
            raise ModelError(
                f"with_solver: {self.name} has a closed form and needs no solver; model.as_ode() is the same page "
                "stepped"
            )
        other = copy.copy(self)
        other.__dict__["solver"] = solver
        other._step()
        return other

    @property
    def stepped(self) -> bool:
        """Whether differential equations are solved for the amounts, and no closed form is used."""
        return isinstance(self.structure, Stepped)

    def as_ode(self, solver: Solver | None = None) -> Model:
        """The same page with its closed form replaced by the differential equations that it solves.

        Args:
            solver: settings of the solver.
        """
        if isinstance(self.structure, Stepped):
            return self if solver is None else self.with_solver(solver)
        closed = cast(Closed, self.structure)
        body = {
            "dynamics": lambda page, t, a, p: closed.dynamics(t, a, p),
            "solver": solver or Solver(),
            "__module__": type(self).__module__,
            "__doc__": type(self).__doc__,
        }
        other: Model = type(type(self).__name__, (type(self),), body)()
        other.__dict__["_closed_form"] = other.structure.closed_form = closed
        other.__dict__.update({k: v for k, v in self.__dict__.items() if k == "_name"})
        return other.knowing(self.known_levels).with_free(self.free).with_weights(self.weights)

    def knowing(self, levels: Mapping[str, tuple[str, ...]]) -> Self:
        """A copy of the model that knows these levels of categorical covariates by column."""
        other = copy.copy(self)
        other.__dict__["known_levels"] = {**self.known_levels, **levels}
        return other

    def with_free(self, free: Tensor) -> Self:
        """A copy of the model at the unconstrained vector `free [P]` (fixed parameters included)."""
        other = copy.copy(self)
        other._parameters = dict(self._parameters)
        other.free = nn.Parameter(free.detach().clone(), requires_grad=False)
        return other

    def with_values(
        self,
        source: Any = None,
        *,
        theta: Mapping[str, float] | None = None,
        omega: Tensor | Mapping[str, float] | None = None,
        sigma: Mapping[str, float] | None = None,
    ) -> Self:
        """A copy of the model that starts elsewhere.

        Args:
            source: a fit or a model of the same page, whose values are taken over first.
            theta: natural values by name.
            omega: a covariance matrix `[q, q]` in the order of `effect_names`, or variances by those names ("occ.ka"
                for that of the kappa called ka); correlations are kept.
            sigma: residual standard deviations by name.

        Raises:
            ModelError: on an unknown name, or a value outside its bounds.
        """
        layout = self.layout
        base = self if source is None else getattr(source, "model", source)
        if base.layout.names != layout.names:
            raise ModelError(
                f"values of the page {base.name} do not belong to {self.name}: its parameters are "
                f"{', '.join(base.layout.names)}, here {', '.join(layout.names)}"
            )
        other = self.with_weights(base.weights)
        now = layout.values(base.free.detach())
        thetas, sigmas = dict(theta or {}), dict(sigma or {})
        layout.check_names(thetas, layout.theta_names, "Theta")
        layout.check_names(sigmas, layout.sigma_names, "residual standard deviation")
        matrix = now.omega.clone()
        if isinstance(omega, Mapping):
            layout.check_names(omega, layout.effect_names, "random effect")
            scale = torch.ones(len(layout.effect_names), dtype=torch.float64)
            for name, variance in omega.items():
                if not float(variance) > 0:
                    raise ModelError(f"with_values: the variance of {name} must be positive, got {variance}")
                k = layout.effect_names.index(name)
                scale[k] = (float(variance) / matrix[k, k]).sqrt()
            matrix = matrix * scale[:, None] * scale
        elif omega is not None:
            matrix = torch.as_tensor(omega, dtype=torch.float64)
            q = len(layout.effect_names)
            if matrix.shape != (q, q) or not bool(torch.linalg.cholesky_ex(matrix)[1] == 0):
                raise ModelError(f"with_values: omega must be a positive definite {q} x {q} matrix")
            inside = torch.eye(q, dtype=torch.bool)
            for i, j in layout.positions:
                inside[i, j] = inside[j, i] = True
            if not torch.equal(matrix, matrix.mT) or bool((matrix[~inside] != 0).any()):
                raise ModelError(
                    "with_values: omega must be symmetric, its covariances inside the blocks that the page declares"
                )
        thetas = {k: float(v) for k, v in now.theta.items()} | thetas
        sigmas = {k: float(v) for k, v in now.sigma.items()} | sigmas
        free = layout.pack(thetas, matrix, sigmas)
        if not bool(torch.isfinite(free).all()):
            bad = layout.names[int((~torch.isfinite(free)).nonzero()[0])]
            raise ModelError(
                f"with_values: {bad} is outside its bounds or not finite; give a value inside them"
            )
        return other.with_free(free)

    # -- identity -------------------------------------------------------------------------------------------------
    @property
    def name(self) -> str:
        """Name of the page: its file's stem when it was loaded from a file, else the class's name in lower case."""
        return getattr(self, "_name", type(self).__name__.lower())

    @property
    def source(self) -> str:
        """The text of the page (of its whole file when it stands in one), "" when Python cannot find it."""
        path = page_file(type(self))
        try:
            if path is not None and getattr(self, "_name", None) is not None:
                return Path(path).read_text(encoding="utf-8")
            return inspect.getsource(type(self))
        except (OSError, TypeError):
            return ""

    @property
    def sha256(self) -> str:
        """Hash of `source`."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    @property
    def title(self) -> str:
        """First line of the page's docstring."""
        return (inspect.getdoc(type(self)) or type(self).__name__).splitlines()[0]

    def _rows(self) -> list[tuple[str, str, str]]:
        values, layout = self.values, self.layout
        rows = [
            ("theta", k, f"{float(values.theta[k]):.6g} {t.unit}{' (fixed)' if t.fixed else ''}".strip())
            for k, t in layout.thetas.items()
        ]
        omega = values.omega
        for (i, j), name in zip(layout.positions, layout.omega_names, strict=True):
            rows.append(("omega", name.removeprefix("omega."), f"{float(omega[i, j]):.6g}"))
        rows += [("sigma", k, f"{float(v):.6g}") for k, v in values.sigma.items()]
        return rows

    def __repr__(self) -> str:
        body = "\n".join(f"  {kind:<6}{name:<18}{value}" for kind, name, value in self._rows())
        return f"{type(self).__name__}: {self.title}\n  {self.structure.describe()}\n{body}"

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><td>{kind}</td><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>"
            for kind, name, value in self._rows()
        )
        return (
            f"<b>{html.escape(type(self).__name__)}</b>: {html.escape(self.title)}<br>"
            f"{html.escape(self.structure.describe())}<table>{cells}</table>"
        )
