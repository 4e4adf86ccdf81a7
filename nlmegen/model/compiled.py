"""The compiled route of a problem: its page as symbols, and predictions by machine code.

Pages with a closed form of one or two compartments, parameters that are constant in time and formulas that can be
traced run compiled where llvmlite is installed (`structure.plans`, `structure.kernel`); every other page runs in Taylor
arithmetic, which is also the reference. Compiling takes a moment, so that a problem is compiled when a method says that
it will evaluate many times (`Problem.hasten`), or when its modes are searched for the second time.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor as is_wrapped
from torch.autograd.forward_ad import unpack_dual

from ..errors import ModelError
from ..structure.blueprint import Blueprint
from ..structure.closed import Closed
from ..structure.graph import Graph
from ..structure.paths import Amounts, rates_of
from ..structure.plans import triangle
from ..structure.reading import Reader, call
from ..structure.symbols import Symbol, Untraceable
from .endpoints import Residual
from .named import Named

if TYPE_CHECKING:
    from ..structure.kernel.closed import Programs
    from ..structure.kernel.patients import Patients
    from .parameters import Values
    from .problem import Directions, Problem

REMEMBERED = 64
"""Pages whose programs are kept in memory."""


class Route:
    """How the predictions of a problem, and of every part of it, are computed.

    Attributes:
        programs: the machine code, None where predictions run in torch.
        covariates: names of those that the page reads.
        parts: whether there may be rows that only Taylor arithmetic can predict.
        reason: why there is no machine code, in words; "" while nobody has asked.
        searches: how often modes have been searched without machine code.
    """

    def __init__(self, reason: str = "") -> None:
        self.programs: Programs | None = None
        self.covariates: tuple[str, ...] = ()
        self.parts = False
        self.reason = reason
        self.searches = 0

    def __getstate__(self) -> dict[str, Any]:
        """What a copy for another process takes along: no machine code."""
        return self.__dict__ | {"programs": None}

    def prepare(self, problem: Problem) -> Programs | None:
        """Trace the page, once."""
        if self.programs is None and not self.reason:
            try:
                blueprint, self.covariates = traced(problem)
            except (Untraceable, ModelError) as reason:
                self.reason = str(reason) or "the page cannot be traced"
            else:
                self.programs = _programs(blueprint)
                self.parts = blueprint.meeting.op != "const"
        return self.programs


_KEPT: dict[str, Programs] = {}


def _programs(blueprint: Blueprint) -> Programs:
    from ..structure.kernel.closed import Programs

    key = blueprint.digest
    if key not in _KEPT:
        if len(_KEPT) >= REMEMBERED:
            del _KEPT[next(iter(_KEPT))]
        _KEPT[key] = Programs(blueprint)
    return _KEPT[key]


class _Lazy(Mapping[str, Symbol]):
    """Symbols by name, made when they are read."""

    def __init__(self, names: Sequence[str], make: Callable[[str], Symbol]) -> None:
        self._names, self._make = tuple(names), make
        self._made: dict[str, Symbol] = {}

    def __getitem__(self, name: str) -> Symbol:
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def traced(problem: Problem) -> tuple[Blueprint, tuple[str, ...]]:
    """The page of a problem as symbols, and the names of the covariates that it reads.

    Raises:
        Untraceable: where the page has no compiled form, with the reason in words.
    """
    structure, schedule = problem.structure, problem.schedule.root[0].essential
    if not isinstance(structure, Closed):
        raise Untraceable("the page has no closed form")
    for wrong, reason in (
        (not importlib.util.find_spec("llvmlite"), "llvmlite is not installed"),
        (structure.doses is not None, "the page models its doses"),
        (not schedule.plain, "doses are at steady state or modelled, or a compartment is switched off"),
        (problem.levels.changes, "a random effect changes with the occasion"),
        (problem.varies, "a covariate varies in time"),
        (not problem.plain, unusual(problem)),
        (len(problem.weights) > 0, "the page has networks"),
        (problem.q == 0, "the page has no random effect"),
        (not _ordered(problem), "observations are not in the order of time"),
    ):
        if wrong:
            raise Untraceable(reason)
    g, layout = Graph(), problem.layout
    theta = {name: g.leaf("theta", j) for j, name in enumerate(layout.theta_names)}
    eta = {name: g.leaf("eta", k) for k, name in enumerate(problem.eta_names)}
    seen: dict[str, Symbol] = {}
    kappa = (Named("kappa", problem.levels.kappa(eta)),) if problem.levels.r else ()
    given = call(
        problem.model.individual,
        "individual",
        Named("theta", theta),
        Named("eta", problem.levels.eta(eta)),
        problem.categories.symbols(Reader("cov", seen, lambda c: g.leaf("covariate", c))),
        *kappa,
    )
    p = {name: g.number(x) for name, x in given.items()}
    rates = rates_of(structure, p, g)
    quantities: list[Symbol] = list(rates.symbols)

    def quantity(name: str) -> Symbol:
        x = p[name]
        if x.op == "const":
            return x
        if not any(x is y for y in quantities):
            quantities.append(x)
        return g.param(next(k for k, y in enumerate(quantities) if x is y))

    count, several = len(structure.compartments), not schedule.single
    given_here = [b is not None for b in schedule.bolus]
    runs = [r is not None for r in schedule.rate]
    fed = [a or b for a, b in zip(given_here, runs, strict=True)]
    first = 1 if structure.absorption else 0
    live = [fed[i] if i < first else any(fed) for i in range(count)]
    state = [g.state(i) if (live if several else given_here)[i] else g.zero for i in range(count)]
    running = [g.forcing(i) if runs[i] else g.zero for i in range(count)]
    own = [g.param(k) for k in range(len(rates.symbols))]
    amounts = Amounts(structure, own, state, running, g.step(), g)
    out = call(
        problem.model.observe,
        "observe",
        g.time(),
        Named(
            "a",
            _Lazy(structure.compartments, lambda name: amounts.amount(structure.compartments.index(name))),
        ),
        Named("p", _Lazy(tuple(p), quantity)),
    )
    prediction, variance = _endpoints(problem, g, out)
    carried = tuple(amounts.amount(i) if several and live[i] else g.zero for i in range(count))
    blueprint = Blueprint(
        g,
        len(theta),
        problem.q,
        len(seen),
        len(layout.sigma_names),
        tuple(layout.positions),
        tuple(quantities),
        rates.meeting,
        prediction,
        carried,
        several,
        variance,
    )
    return blueprint, tuple(seen)


def unusual(problem: Problem) -> str:
    """What keeps the observations from being Gaussian, measured and independent, in words."""
    kinds = [
        f"{name} is {type(e).__name__}"
        for name, e in problem.endpoints.items()
        if not (isinstance(e, Residual) and e.gaussian)
    ]
    if kinds:
        return f"the endpoint {' and '.join(kinds)}"
    if problem.limits is not None:
        return "observations are censored, or conditional on positive values"
    return "random effects act on the residual error" if problem.scaled else "residuals are correlated"


def _ordered(problem: Problem) -> bool:
    """Whether the observations of every subject come segment after segment."""
    segment = problem.schedule.segment
    latest = torch.where(problem.observed, segment, 0).cummax(-1).values
    return bool(((segment == latest) | ~problem.observed).all())


def _endpoints(
    problem: Problem, g: Graph, out: Mapping[str, Any]
) -> tuple[Symbol, tuple[Symbol, Symbol, Symbol]]:
    """The prediction on the scale of its residual error, and R, dR/df and d2R/df2."""
    names = problem.layout.sigma_names
    f, which = g.leaf("prediction", 0), g.leaf("endpoint", 0)
    total: Symbol | None = None
    parts: list[Symbol] = []
    for number, (name, endpoint) in enumerate(problem.endpoints.items()):
        sigma: Any = {s: g.leaf("sigma", names.index(f"{name}.{s}")) for s in endpoint.start}
        linked = g.number(endpoint.link(g.number(out[name])))
        mine = [g.number(x) for x in endpoint.variance(f, sigma)]  # type: ignore[arg-type]
        if total is None:
            total, parts = linked, mine
        else:
            here = g.compare("eq", which, g.const(float(number)))
            total = g.where(here, linked, total)
            parts = [g.where(here, x, old) for x, old in zip(mine, parts, strict=True)]
    assert total is not None
    return total, (parts[0], parts[1], parts[2])


def patients_of(problem: Problem) -> Patients:
    """The subjects of a problem, as the machine code reads them; kept as long as nothing about them changes."""
    from ..structure.kernel.patients import Patients

    now = (problem.schedule, problem.observed, problem.y, problem.cov_observation)
    kept = problem.__dict__.get("_patients")
    if kept is None or any(a is not b for a, b in zip(kept[0], now, strict=True)):
        endpoint = None
        if problem.endpoint_masks is not None and len(problem.endpoint_masks) > 1:
            endpoint = torch.zeros_like(problem.y)
            for number, mask in enumerate(problem.endpoint_masks):
                endpoint = torch.where(mask, float(number), endpoint)
        made = Patients(
            problem.schedule,
            problem.observed,
            problem.y,
            endpoint,
            [problem.cov_observation[name] for name in problem.route.covariates],
        )
        kept = problem.__dict__["_patients"] = (now, made)
    patients: Patients = kept[1]
    return patients


class _Predict(torch.autograd.Function):
    """f and f_d as a function of eta, of the directions and of the thetas."""

    @staticmethod
    def forward(
        ctx: Any, programs: Programs, patients: Patients, eta: Tensor, along: Tensor | None, *theta: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The numbers of `Programs.predict`, and where they must not be used."""
        ctx.programs, ctx.patients = programs, patients
        out, meeting = programs.predict(patients, theta, eta, along, 0 if along is None else 1)
        ctx.save_for_backward(eta, along, meeting, *theta)
        ctx.mark_non_differentiable(meeting)
        return out, meeting

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        """Cotangents of eta, of the directions and of the thetas."""
        eta, along, meeting, *theta = ctx.saved_tensors
        ends = ctx.programs.pull(ctx.patients, theta, eta, along, cotangents[0])
        if bool(meeting.any()):
            ends = torch.where(meeting[..., None], 0.0, ends)
        if torch.is_grad_enabled():  # somebody wants a graph of these numbers, too
            ends = _Once.apply(ends, cotangents[0], eta, along, *theta)  # type: ignore[no-untyped-call]
        n, q = len(theta), eta.shape[-1]
        by_theta = [
            ends[..., j : j + 1].sum_to_size(x.shape) if need else None
            for j, (x, need) in enumerate(zip(theta, ctx.needs_input_grad[4:], strict=True))
        ]
        by_along = None
        if along is not None and ctx.needs_input_grad[3]:
            parts = ends[..., n + q :].unflatten(-1, (along.shape[0], q)).movedim(-2, 0)
            by_along = parts.sum_to_size(along.shape)
        by_eta = ends[..., n : n + q] if ctx.needs_input_grad[2] else None
        return None, None, by_eta, by_along, *by_theta


class _Once(torch.autograd.Function):
    """Derivatives by machine code as a function of what they depend on, which cannot be differentiated again."""

    @staticmethod
    def forward(ctx: Any, ends: Tensor, *given: Tensor | None) -> Tensor:
        """The derivatives."""
        return ends.clone()

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        """An error: without it second derivatives would silently lack this part."""
        raise RuntimeError(
            "predictions by machine code can be differentiated once by reverse mode; take problem.uncompiled() for"
            " more, or order=2 for second derivatives in eta"
        )


@lru_cache(maxsize=32)
def _full(count: int) -> Tensor:
    """Of predictions along `count` directions the places of all second derivatives, row by row."""
    place = {pair: 1 + count + k for k, pair in enumerate(triangle(count))}
    return torch.tensor([place[min(i, j), max(i, j)] for i in range(count) for j in range(count)])


def _suits(order: int, eta: Tensor, along: Tensor | None, theta: Sequence[Tensor]) -> bool:
    """Whether machine code can take these arguments."""
    given = (eta, *theta) if along is None else (eta, along, *theta)
    if order == 2 and torch.is_grad_enabled() and any(x.requires_grad for x in given):
        return False  # there is no third derivative
    return eta.ndim > 1 and readable(given)


def readable(given: Sequence[Tensor]) -> bool:
    """Whether machine code can read these tensors where they stand, and nothing rides on them that it would lose."""
    return all(
        x.dtype == torch.float64
        and x.device.type == "cpu"
        and not is_wrapped(x)
        and unpack_dual(x).tangent is None  # type: ignore[no-untyped-call]
        for x in given
    )


def predict(
    problem: Problem, eta: Tensor, values: Values, order: int, directions: Directions | None
) -> tuple[Tensor, Tensor | None, Tensor | None] | None:
    """The numbers of `Problem.predict` by machine code, None where only Taylor arithmetic will do."""
    programs, theta = problem.route.programs, [values.theta[name] for name in problem.layout.theta_names]
    if programs is None or (directions is not None and directions.theta):
        return None
    q = problem.q
    along = None if directions is None or not order else directions.eta
    if order and along is None:
        along = torch.eye(q, dtype=eta.dtype).reshape((q,) + (1,) * (eta.ndim - 1) + (q,))
    if not _suits(order, eta, along, theta):
        return None
    patients = patients_of(problem)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (eta, along, *theta)):
        out, meeting = _Predict.apply(programs, patients, eta, along, *theta)  # type: ignore[no-untyped-call]
    else:
        out, meeting = programs.predict(patients, theta, eta, along, order)
    if problem.route.parts and bool(meeting.any()):
        index = meeting.flatten().nonzero().squeeze(-1)
        rest = _of_rows(problem, index, eta, values, order, directions)
        flat = out.flatten(1, -2).index_copy(1, index, rest)
        out = flat.reshape(out.shape[:1] + eta.shape[:-1] + out.shape[-1:])
    d = 0 if along is None else along.shape[0]
    jac = out[1 : 1 + d] if order else None
    return out[0], jac, out.index_select(0, _full(d)).unflatten(0, (d, d)) if order == 2 else None


def _of_rows(
    problem: Problem, index: Tensor, eta: Tensor, values: Values, order: int, directions: Directions | None
) -> Tensor:
    """In Taylor arithmetic the numbers `[number, M, time]` of the rows `index [M]` of a flattened batch."""
    shape = eta.shape[:-1]

    def flat(x: Tensor, lead: int) -> Tensor:
        wide = x.expand(x.shape[:lead] + shape + x.shape[-1:])
        return wide.flatten(lead, -2).index_select(lead, index)

    part = problem.select(index % problem.n_subjects).uncompiled()
    some = replace(values, theta={name: flat(x, 0) for name, x in values.theta.items()})
    along = None if directions is None else replace(directions, eta=flat(directions.eta, 1))
    found = part.predict(flat(eta, 0), some, order, along)
    numbers = [found.f[None]]
    if found.jac is not None:
        numbers.append(found.jac)
    if found.hess is not None:
        pairs = torch.tensor(triangle(found.hess.shape[0])).reshape(-1, 2)
        numbers.append(found.hess[pairs[:, 0], pairs[:, 1]])
    return torch.cat(numbers)
