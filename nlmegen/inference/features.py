"""What the encoder reads: a patient's record as tokens, whatever the design.

One token an observation (times, residual, sensitivities, endpoint, covariates that vary), one a dose (amount, rate,
time, compartment), one context (covariates, the linearised posterior). Values enter as standardised residuals and
sensitivities J L at the current parameters, so that the tokens move with the parameters and the network need not be
trained anew for every step of theta. All numbers are pressed into a few units; padding is masked.

Where observations are not Gaussian their score takes the residual's place, and a token says more of them (`marks`);
where there are occasions, every token says to which it belongs; and doses say what steady state they bring and what of
them the page gives.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..data.events import Kind
from .linearise import Linearised, linearise
from .marks import DOSE_MARKS, MARKS, dose_marks, marks, occasion_marks

if TYPE_CHECKING:
    from ..model.parameters import Values
    from ..model.problem import Problem


@dataclass(frozen=True)
class Record:
    """Tokens of N patients (float32), and the affine map of their linearised posteriors (float64).

    Args:
        observations: `[subject, time, ...]`.
        mask: `[subject, time]`.
        doses: `[subject, event, ...]`.
        dosed: `[subject, event]`.
        context: `[subject, ...]`.
        location: eta of the linearised posterior mean, `[subject, q]`.
        scale: lower triangular factor of its covariance, `[subject, q, q]`.
    """

    observations: Tensor
    mask: Tensor
    doses: Tensor
    dosed: Tensor
    context: Tensor
    location: Tensor
    scale: Tensor

    def select(self, index: slice | Tensor) -> Record:
        """Some of the patients."""
        return Record(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Reader:
    """The constants by which records become tokens: taken from the patients an encoder was made for, then kept.

    Args:
        q: number of etas.
        endpoints: how many endpoints the page has.
        compartments: how many compartments.
        covariates: (name, centre, spread, varies in time) of every covariate read.
        time_scale: the median observation time; dose_scale and rate_scale: the median amount and infusion rate.
        steps: Gauss-Newton steps of the linearisation.
        occasions: most occasions of a patient, 1 on a page without effects between them.
        rows: rows of a prediction for each observation.
        general: whether observations may be other than Gaussian; events: doses other than plain ones.
    """

    q: int
    endpoints: int
    compartments: int
    covariates: tuple[tuple[str, float, float, bool], ...]
    time_scale: float
    dose_scale: float
    rate_scale: float
    steps: int = 4
    occasions: int = 1
    rows: int = 1
    general: bool = False
    events: bool = False

    @classmethod
    def of(cls, problem: Problem, steps: int = 4) -> Reader:
        """The constants of a problem's patients."""
        covariates = []
        for name, values in problem.cov_observation.items():
            spread = float(values.std(correction=0))
            if spread > 0 and math.isfinite(spread):
                varies = bool((values != values[:, :1]).any())
                covariates.append((name, float(values.mean()), spread, varies))
        amount, rate = _doses(problem)
        return cls(
            q=problem.q,
            endpoints=1 if problem.endpoint_masks is None else len(problem.endpoint_masks),
            compartments=amount.shape[-1],
            covariates=tuple(covariates),
            time_scale=_typical(problem.time[problem.mask > 0]),
            dose_scale=_typical(amount),
            rate_scale=_typical(rate),
            steps=steps,
            occasions=problem.levels.count,
            rows=2 if problem.scaled else 1,
            general=not problem.plain,
            events=not problem.schedule.plain,
        )

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Lengths of an observation token, a dose token and the context."""
        varying = sum(varies for *_, varies in self.covariates)
        occasions = self.occasions if self.occasions > 1 else 0
        more = (MARKS if self.general else 0) + (self.rows - 1) * (self.q + 1)
        return (
            7 + self.q + self.endpoints + varying + occasions + more,
            3 + 2 * self.compartments + occasions + (DOSE_MARKS if self.events else 0),
            3 * self.q + 2 + len(self.covariates) - varying,
        )

    def config(self) -> dict[str, Any]:
        """The constants as JSON can hold them; `Reader.from_config` is the way back."""
        return asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Reader:
        """A reader from `config()`."""
        covariates = tuple((str(n), float(m), float(s), bool(v)) for n, m, s, v in config["covariates"])
        return cls(**{**config, "covariates": covariates})

    def read(
        self,
        problem: Problem,
        values: Values,
        y: Tensor | None = None,
        mask: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> Record:
        """The records of a problem's patients, or of simulated ones on their designs.

        Args:
            problem: designs, and the observations unless `y` is given.
            values: parameters at which to standardise.
            y: simulated observations on the residual scale, `[subject, time]`.
            mask: samples kept, `[subject, time]`.
            offsets: log factors on the prior SD of each whitened eta and (last) on the residual SD, `[subject, q + 1]`.
        """
        y = problem.y if y is None else y
        mask = problem.mask if mask is None else mask
        if offsets is None:
            offsets = torch.zeros(y.shape[0], self.q + 1, dtype=y.dtype)
        here = linearise(
            problem,
            values,
            y,
            mask,
            steps=self.steps,
            general=self.general or not problem.plain,
            spread=offsets[:, :-1].exp(),
            noise=offsets[:, -1:].exp(),
        )
        prior = values.factor
        doses, dosed = self._dose_tokens(problem)
        return Record(
            observations=_tidy(self._observation_tokens(problem, here, y, values)),
            mask=mask.float(),
            doses=_tidy(doses),
            dosed=dosed.float(),
            context=_tidy(self._context(problem, here, mask, offsets)),
            location=here.mean.nan_to_num() @ prior.mT,
            scale=prior @ here.factor,
        )

    def dosed(self, problem: Problem) -> Tensor:
        """Which segments open with a dose or run an infusion, `[subject, event]`."""
        return self._dose_tokens(problem)[1]

    def _observation_tokens(self, problem: Problem, here: Linearised, y: Tensor, values: Values) -> Tensor:
        time, width = problem.time, problem.time.shape[-1]
        sd = here.variance.sqrt()
        design = here.design / sd.unsqueeze(-1)
        pull = (y - here.f) / sd if here.score is None else here.score * sd
        further, design = design[:, width:], design[:, :width]
        reach = (1.0 + (design * design).sum(-1)).sqrt()
        residual = pull[:, :width]
        columns = [
            torch.log1p(time.clamp_min(0) / self.time_scale),
            time / (4.0 * self.time_scale),
            torch.log1p(problem.schedule.elapsed.clamp_min(0) / self.time_scale),
            torch.asinh(residual),
            torch.asinh(residual / reach),
            reach.log(),
            torch.asinh((here.slope / sd)[:, :width]),
        ]
        if problem.endpoint_masks is None:
            columns.append(torch.ones_like(time))
        else:
            columns += [mask.to(time.dtype) for mask in problem.endpoint_masks]
        columns += [self._covariate(problem, *c[:3]).expand_as(time) for c in self.covariates if c[3]]
        parts = [torch.stack(columns, -1), torch.asinh(design)]
        if self.occasions > 1:
            parts.append(occasion_marks(problem, self.occasions))
        if self.general:
            parts.append(marks(problem, here, values))
        for row in range(1, self.rows):
            other = pull[:, row * width : (row + 1) * width].unsqueeze(-1)
            parts += [torch.asinh(other), torch.asinh(further[:, (row - 1) * width : row * width])]
        return torch.cat(parts, -1)

    def _dose_tokens(self, problem: Problem) -> tuple[Tensor, Tensor]:
        amount, rate = _doses(problem)
        time = problem.schedule.start
        columns = [
            torch.log1p(time.clamp_min(0) / self.time_scale),
            time / (4.0 * self.time_scale),
            torch.log1p(problem.schedule.length.clamp_min(0) / self.time_scale),
        ]
        given = torch.cat([amount / self.dose_scale, rate / self.rate_scale], -1)
        dosed = (given > 0).any(-1)
        parts = [torch.stack(columns, -1), torch.log(given + 0.01) / math.log(100.0)]
        if self.occasions > 1:
            parts.append(occasion_marks(problem, self.occasions, segments=True))
        if self.events:
            more, marked = dose_marks(problem, self.time_scale)
            parts.append(more)
            dosed = dosed | marked
        return torch.cat(parts, -1), dosed

    def _context(self, problem: Problem, here: Linearised, mask: Tensor, offsets: Tensor) -> Tensor:
        diagonal = here.factor.diagonal(dim1=-2, dim2=-1).log()
        count = torch.log1p(mask.sum(-1, keepdim=True)) / 2.0
        still = [self._covariate(problem, *c[:3])[:, :1] for c in self.covariates if not c[3]]
        return torch.cat([here.mean, diagonal, offsets, count, *still], -1)

    @staticmethod
    def _covariate(problem: Problem, name: str, centre: float, spread: float) -> Tensor:
        values = problem.cov_observation.get(name)
        if values is None:  # the page does not read it, else the Problem would have refused these patients
            return torch.zeros(problem.n_subjects, 1, dtype=torch.float64)
        return (values - centre) / spread


def _doses(problem: Problem) -> tuple[Tensor, Tensor]:
    """Bolus amounts and running infusion rates `[subject, event, compartment]`; of steady states and of infusions whose
    rate the page gives, the amounts as well.
    """
    schedule = problem.schedule
    none = torch.zeros_like(schedule.start)
    amounts = [none if x is None else x for x in schedule.bolus]
    rates = [none if x is None else x for x in schedule.rate]
    if not schedule.plain:
        events = schedule.events
        opens = (events.kind == Kind.STEADY) | ((events.kind == Kind.START) & (events.modelled > 0))
        whole = torch.where(opens, events.amount, 0.0)
        amounts = [x + torch.where(schedule.target == c, whole, 0.0) for c, x in enumerate(amounts)]
    return torch.stack(amounts, -1), torch.stack(rates, -1)


def _typical(x: Tensor) -> float:
    """The median of what is positive, 1 if nothing is."""
    positive = x[x > 0]
    return float(positive.median()) if positive.numel() else 1.0


def _tidy(x: Tensor) -> Tensor:
    """float32 within +-8; what is not finite (a wild linearisation) reads as zero."""
    return x.nan_to_num(0.0, 8.0, -8.0).clamp(-8.0, 8.0).float()
