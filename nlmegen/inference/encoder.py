"""The encoder: a set network that reads a patient's whole record and returns q(eta | record).

    tokens -> phi(token) -> masked sum and maximum (observations, doses) -> rho(pooled, context) -> the family's numbers

Pooling makes it indifferent to the order and the padding of records (Zaheer et al. 2017, Deep Sets, arXiv:1703.06114).
The network is float32 and small; everything that enters a likelihood is float64.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import DataError
from .families import FAMILIES, Family
from .features import Reader, Record
from .posterior import Approximation, Posterior, log_joint

if TYPE_CHECKING:
    from ..model.parameters import Values
    from ..model.problem import Problem

EMPTY = -1e3
"""What a masked token counts for in a maximum: below every activation."""

WIDEN = 1.06
"""Draws come from q with its SDs this much larger: it costs one percent of effective sample size and keeps the largest
weights small (on 1,000 sparse records khat falls from 0.36 to below zero in the median)."""


def linear(inputs: int, outputs: int, generator: torch.Generator, gain: float = 1.0) -> nn.Linear:
    """A float32 linear layer whose start is drawn from `generator` (the global generator is left alone)."""
    layer = nn.Linear(inputs, outputs, device="meta", dtype=torch.float32).to_empty(device="cpu")
    bound = gain / math.sqrt(inputs)
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    return layer


class Pool(nn.Module):
    """Two layers a token, then the masked sum (in units of `typical` tokens) and the masked maximum."""

    def __init__(self, inputs: int, width: int, typical: float, generator: torch.Generator) -> None:
        super().__init__()
        self.typical = typical
        self.layers = nn.Sequential(
            linear(inputs, width, generator), nn.SiLU(), linear(width, width, generator), nn.SiLU()
        )

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """`[subject, token, inputs]` and `[subject, token]` to `[subject, 2 width]`."""
        keep = mask.unsqueeze(-1)
        inner = self.layers(tokens) * keep
        top = (inner + EMPTY * (1.0 - keep)).amax(1)
        return torch.cat([inner.sum(1) / self.typical, top.clamp_min(-1.0)], -1)


class Encoder(nn.Module):
    """q(eta | record) for any patient of a page, without training for that patient.

    Args:
        reader: how records become tokens.
        family: name of the family of q, "gaussian" or "mixture".
        width: of the observation network and of what follows it; doses take a quarter.
        typical: observations and doses of a typical record (they scale the sums).
        seed: of the starting weights.

    Example:
        >>> encoder = Encoder(Reader.of(problem))                          # doctest: +SKIP
        >>> encoder.posterior(problem, values, k=1000, seed=0).verdict     # doctest: +SKIP
    """

    def __init__(
        self,
        reader: Reader,
        family: str = "mixture",
        width: int = 64,
        typical: tuple[float, float] = (3.0, 1.0),
        seed: int = 0,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.reader = reader
        self.family: Family = FAMILIES[family]()
        self.settings: dict[str, Any] = {"family": family, "width": width, "typical": list(typical)}
        observation, dose, context = reader.sizes
        narrow = max(8, width // 4)
        self.observations = Pool(observation, width, typical[0], generator)
        self.doses = Pool(dose, narrow, typical[1], generator)
        self.body = nn.Sequential(
            linear(2 * width + 2 * narrow + context, width, generator),
            nn.SiLU(),
            linear(width, width, generator),
            nn.SiLU(),
        )
        self.head = linear(width, self.family.outputs(reader.q), generator, gain=0.3)

    @classmethod
    def of(
        cls, problem: Problem, family: str = "mixture", width: int = 64, steps: int = 4, seed: int = 0
    ) -> Encoder:
        """An untrained encoder for a problem's kind of patients."""
        count = float(problem.mask.sum() / max(1, problem.n_subjects))
        reader = Reader.of(problem, steps)
        doses = float(reader.dosed(problem).sum() / max(1, problem.n_subjects))
        return cls(reader, family, width, (max(1.0, count), max(1.0, doses)), seed)

    def config(self) -> dict[str, Any]:
        """All that JSON must hold to make this encoder again (its weights are `state_dict()`)."""
        return {"reader": self.reader.config(), **self.settings}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Encoder:
        """An encoder with untrained weights from `config()`."""
        return cls(
            Reader.from_config(config["reader"]),
            config["family"],
            int(config["width"]),
            (float(config["typical"][0]), float(config["typical"][1])),
        )

    def forward(self, record: Record) -> Tensor:
        """The family's numbers, float32 `[subject, outputs]`."""
        pooled = [
            self.observations(record.observations, record.mask),
            self.doses(record.doses, record.dosed),
            record.context,
        ]
        raw: Tensor = self.head(self.body(torch.cat(pooled, -1)))
        return raw

    def suits(self, problem: Problem) -> bool:
        """Whether a problem's patients have the random effects that it was trained for: as many occasions."""
        return problem.q == self.reader.q

    @torch.no_grad()
    def approximate(self, problem: Problem, values: Values, widen: float = WIDEN) -> Approximation:
        """q(eta | record) of a problem's patients at these parameters; its SDs times `widen`, for drawing.

        Raises:
            DataError: the patients have other random effects than those it was trained for.
        """
        if not self.suits(problem):
            raise DataError(
                f"the encoder was trained for {self.reader.occasions} occasions a patient, and these patients have"
                f" {problem.levels.count} (column OCC); use how='importance', which trains nothing, or fit again"
            )
        record = self.reader.read(problem, values)
        raw = self.family.widened(self(record).double(), self.reader.q, widen)
        return Approximation(self.family, raw, record.location, record.scale)

    @torch.no_grad()
    def posterior(self, problem: Problem, values: Values, k: int = 1000, seed: int = 0) -> Posterior:
        """Weighted draws of eta for a problem's patients: no training, any design.

        Args:
            problem: the page bound to the patients.
            values: the parameters, without draw axes.
            k: draws a patient.
            seed: of the draws.

        Returns:
            The posterior, with effective sample size and k-hat of each patient.
        """
        approximation = self.approximate(problem, values)
        eta, log_q = approximation.draw(k, torch.Generator().manual_seed(seed))
        eta, log_q = eta.flatten(0, 1), log_q.flatten(0, 1)
        ratio = log_joint(problem, eta, values) - log_q
        return Posterior.weigh(tuple(problem.population.ids), tuple(problem.eta_names), eta, ratio)
