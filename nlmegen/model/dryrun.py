"""The dry run of a page before any fit: two subjects, three draws; names, shapes, finiteness, subjects apart."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import DataError, ModelError, nearest
from ..maths.taylor import NO_FLOAT, NO_TRUTH, Taylor
from .binding import nonpositive
from .declare import page_file
from .endpoints import Predicted, Residual
from .named import Named, tensor_of

if TYPE_CHECKING:
    from .problem import Problem

DRAWS = 3


def dry_run(problem: Problem) -> set[str]:
    """Evaluate the page on two subjects and say what is wrong with it.

    Returns:
        The names of the covariates that the page reads.

    Raises:
        ModelError: naming the page's line and the remedy.
        DataError: when the page asks for a covariate that the data do not have.
    """
    n = problem.n_subjects
    small = problem.select(torch.tensor([0, n - 1] if n > 1 else [0, 0]))
    used: dict[str, set[str]] = {"theta": set(), "eta": set(), "cov": set(), "kappa": set()}
    q = small.q
    start = small.layout.values(problem.fixed_vector)
    generator = torch.Generator().manual_seed(3)
    eta = 0.1 * torch.randn(DRAWS, 2, q, generator=generator, dtype=torch.float64)
    theta = {k: v.expand(2, 1) for k, v in start.theta.items()}
    etas = {k: eta[..., j : j + 1] for j, k in enumerate(small.eta_names)}

    p = _call(small, "individual", lambda: small.parameters(theta, etas, used=used))
    _check_parameters(small, p)
    # What varies in time gives parameters by segment to the structure, by observation time to `observe`.
    p_segment = small.parameters(theta, etas, where="segment") if small.varies else p
    a = small.structure.solve(
        Named("p", {k: tensor_of(p_segment[k]) for k in small.structure.parameters}), small.schedule
    )
    out = _call(small, "observe", lambda: small.model.observe(small.time, Named("a", a), Named("p", p)))
    _check_endpoints(small, out)
    problem.scaled = small.scaled = any(isinstance(value, Predicted) for value in out.values())
    _check_used(small, used)
    whole = _call(small, "observe", lambda: small.evaluate(theta, etas))
    _check_finite(problem, p, whole, used["cov"])
    _check_subjects_apart(small, theta, etas, whole)
    if q:
        seeds = dict(zip(small.eta_names, Taylor.seed(eta, 1), strict=True))
        _call(small, "individual", lambda: small.evaluate(theta, seeds))
    return used["cov"]


def _call(problem: Problem, method: str, function: Callable[[], Any]) -> Any:
    """Run a method of the page and turn what goes wrong into a ModelError with the page's line."""
    try:
        return function()
    except DataError as error:
        page, line = _place(error, type(problem.model), method)
        raise DataError(f"{error} (read by page {page}, line {line})") from None
    except Exception as error:
        raise translate(error, type(problem.model), method) from error


def translate(error: Exception, page_class: type, method: str) -> ModelError:
    """A ModelError that names the page's line and, where it is known, the remedy."""
    if isinstance(error, ModelError) and error.page is not None:
        return error  # which knows its place already
    page, line = _place(error, page_class, method)
    text = str(error)
    if isinstance(error, ModelError):
        message = text
    elif "Boolean value of Tensor" in text:
        message = NO_TRUTH
    elif (
        "converted to Python scalar" in text or "only one element tensors" in text or "only length-1" in text
    ):
        message = NO_FLOAT
    else:
        message = f"{method} fails: {type(error).__name__}: {text}"
    return ModelError(message, page=page, line=line)


def _place(error: Exception, page_class: type, method: str) -> tuple[str | None, int | None]:
    """The page's file and the last of its lines that the error passed through."""
    code = getattr(getattr(page_class, method), "__code__", None)
    path = page_file(page_class) or (code.co_filename if code else None)
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    return path.rsplit("/", 1)[-1] if path else None, lines[-1] if lines else None


def _fail(problem: Problem, method: str, message: str) -> ModelError:
    code = getattr(type(problem.model), method).__code__
    return ModelError(message, page=code.co_filename.rsplit("/", 1)[-1], line=code.co_firstlineno)


def _check_parameters(problem: Problem, p: Any) -> None:
    if not isinstance(p, dict):
        raise _fail(
            problem,
            "individual",
            f"individual must return a dict of parameters by name, got {type(p).__name__}",
        )
    needed = problem.structure.parameters
    for name in needed:
        if name not in p:
            raise _fail(
                problem,
                "individual",
                f"the structure {problem.structure.describe()} needs the parameter {name!r}, which individual does not "
                f"return; add {name}=... to the dict it returns (now: {', '.join(p) or 'nothing'})",
            )
    times = {1, problem.time.shape[-1]}
    for name, value in p.items():
        if isinstance(value, (int, float)):
            continue
        if not isinstance(value, Tensor):
            raise _fail(
                problem,
                "individual",
                f"the parameter {name!r} must be a number or a tensor, got {type(value).__name__}",
            )
        shape = tuple(value.shape)
        fits = len(shape) in (0, 2, 3) and all(
            size in ok for size, ok in zip(reversed(shape), (times, {1, 2}, {1, DRAWS}), strict=False)
        )
        if not fits:
            raise _fail(
                problem,
                "individual",
                f"the parameter {name!r} has shape {shape}; expected [draw, subject, 1] (here up to ({DRAWS}, 2, 1)): "
                "write formulas of theta, eta and cov without reshaping, summing or indexing",
            )


def _check_endpoints(problem: Problem, out: Any) -> None:
    if not isinstance(out, dict):
        raise _fail(
            problem,
            "observe",
            f"observe must return a dict of predictions by endpoint, got {type(out).__name__}",
        )
    endpoints = tuple(problem.endpoints)
    for name in out:
        if name not in endpoints:
            raise _fail(
                problem,
                "observe",
                f"observe returns {name!r}, which is not a declared endpoint.{nearest(str(name), endpoints)}",
            )
    for name in endpoints:
        if name not in out:
            raise _fail(
                problem,
                "observe",
                f"observe does not return the declared endpoint {name!r}; "
                f"it returns {', '.join(map(str, out)) or 'nothing'}",
            )
        value = out[name]
        if isinstance(value, Predicted):
            _check_scale(problem, name, value.scale)
            value = value.f
        _check_prediction(problem, f"the endpoint {name!r}", value)


def _check_prediction(problem: Problem, what: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise _fail(problem, "observe", f"{what} must be a tensor, got {type(value).__name__}")
    shape, full = tuple(value.shape), (DRAWS, *problem.time.shape)
    if len(shape) > 3 or any(a not in (1, b) for a, b in zip(reversed(shape), reversed(full), strict=False)):
        raise _fail(
            problem,
            "observe",
            f"{what} has shape {shape}; expected [draw, subject, time], here {full}: "
            "write formulas of t, a and p without reshaping, summing or indexing",
        )


def _check_scale(problem: Problem, name: str, scale: Any) -> None:
    """The size of residuals that a page gives with a prediction."""
    if not isinstance(problem.endpoints[name], Residual):
        raise _fail(
            problem,
            "observe",
            f"the endpoint {name!r} ({type(problem.endpoints[name]).__name__}) has no residual error that "
            "Predicted(scale=...) could multiply; return the prediction alone",
        )
    if not isinstance(scale, (int, float)):
        _check_prediction(problem, f"the scale of the endpoint {name!r}", scale)
    if not bool((tensor_of(scale) > 0).all()):
        raise _fail(
            problem,
            "observe",
            f"the scale of the endpoint {name!r} must be positive, for example exp(eta) carried through p",
        )


def _check_used(problem: Problem, used: dict[str, set[str]]) -> None:
    for kind, names in (
        ("theta", problem.layout.theta_names),
        ("eta", problem.layout.eta_names),
        ("kappa", problem.layout.kappa_names),
    ):
        for name in names:
            if name not in used[kind]:
                close = difflib.get_close_matches(name, used[kind], n=1)
                raise _fail(
                    problem,
                    "individual",
                    f"{kind}.{name} is declared and never used, so no data can say what it is; use it or remove it"
                    f"{f' (did you mean it where {kind}.{close[0]} stands?)' if close else ''}",
                )


def _check_finite(problem: Problem, p: dict[str, Any], whole: Any, read: set[str]) -> None:
    for name, value in p.items():
        if not bool((finite := torch.isfinite(tensor_of(value))).all()):
            ends = ~finite.expand(DRAWS, 2, finite.shape[-1] if finite.ndim else 1).all(-1).all(0)
            lost = torch.zeros(problem.n_subjects, dtype=torch.bool)
            lost[0], lost[-1] = ends[0], ends[1] | (lost[0] & (problem.n_subjects == 1))
            raise _fail(
                problem,
                "individual",
                f"the parameter {name!r} is not finite at the starting values; check the starts and the covariates"
                f"{nonpositive(problem, read, lost)}",
            )
    if whole.ndim < 2 or not isinstance(whole, Tensor):
        raise _fail(problem, "observe", "the predictions must depend on time or on individual parameters")


def _check_subjects_apart(
    problem: Problem, theta: dict[str, Tensor], etas: dict[str, Tensor], whole: Tensor
) -> None:
    """One subject alone must equal its row in the batch: a formula that mixes subjects (a mean, a norm) does not."""
    share = problem.structure.shared_error
    for n in range(2):
        alone = problem.select(torch.tensor([n]))
        row = alone.evaluate(
            {k: v[n : n + 1] for k, v in theta.items()}, {k: v[:, n : n + 1] for k, v in etas.items()}
        )
        batch = whole.expand(DRAWS, *problem.row_mask.shape)[:, n : n + 1]
        row = row.expand(batch.shape)
        seen = batch.masked_select(problem.row_mask[n])
        size = float(seen.nan_to_num().abs().amax()) if len(seen) else 0.0
        same = torch.isclose(row, batch, rtol=1e-9, atol=share * size, equal_nan=True)
        if not bool((same | ~problem.row_mask[n]).all()):
            raise _fail(
                problem,
                "observe",
                "a subject alone and the same subject among others get different predictions: a formula mixes subjects "
                "(a mean, a sum, a norm over the batch); write it per subject",
            )
