"""Coefficients of the Radau IIA method with three stages, and the products its Newton iteration is made of.

Hairer & Wanner, Solving Ordinary Differential Equations II, 2nd ed. (1996), section IV.8,
doi:10.1007/978-3-642-05221-7.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Radau:
    """Radau IIA with three stages.

    Attributes:
        c: nodes `[3]`.
        inverse: A^-1 `[3, 3]`.
        real: its real eigenvalue; pair: its complex one.
        real_in, real_out: row of V^-1 and column of V for the real eigenvalue `[3]`; pair_in, pair_out likewise.
        error: weights of the stages in the error estimate `[3]`.
    """

    c: Tensor
    inverse: Tensor
    real: float
    pair: complex
    real_in: Tensor
    real_out: Tensor
    pair_in: Tensor
    pair_out: Tensor
    error: Tensor

    @classmethod
    def build(cls, dtype: torch.dtype, device: torch.device) -> Radau:
        """Coefficients for tensors of this kind (their last digits do not matter: they are iterated upon)."""
        s = 6**0.5
        a = torch.tensor(
            [
                [(88 - 7 * s) / 360, (296 - 169 * s) / 1800, (-2 + 3 * s) / 225],
                [(296 + 169 * s) / 1800, (88 + 7 * s) / 360, (-2 - 3 * s) / 225],
                [(16 - s) / 36, (16 + s) / 36, 1 / 9],
            ],
            dtype=torch.float64,
        )
        inverse = torch.linalg.inv(a)
        values, vectors = torch.linalg.eig(inverse)
        back = torch.linalg.inv(vectors)
        k = int(values.imag.abs().argmin())
        j = int(values.imag.argmax())
        pair = torch.complex128 if dtype == torch.float64 else torch.complex64
        return cls(
            c=torch.tensor([(4 - s) / 10, (4 + s) / 10, 1.0], dtype=dtype, device=device),
            inverse=inverse.to(device, dtype),
            real=float(values[k].real),
            pair=complex(values[j]),
            # scaled so that both are real
            real_in=(back[k] * vectors[2, k]).real.to(device, dtype),
            real_out=(vectors[:, k] / vectors[2, k]).real.to(device, dtype),
            pair_in=back[j].to(device, pair),
            pair_out=vectors[:, j].to(device, pair),
            error=torch.tensor([(-13 - 7 * s) / 3, (-13 + 7 * s) / 3, -1 / 3], dtype=dtype, device=device),
        )


def mixed(matrix: Tensor, stages: Tensor) -> Tensor:
    """A matrix `[3, 3]` on the stages `[component, amount, 3, row]`."""
    return torch.einsum("ij,cdjn->cdin", matrix, stages)


def applied(inverse: Tensor, x: Tensor) -> Tensor:
    """Matrices `[row, amount, amount]` on `[component, amount, row]`."""
    return torch.einsum("nij,cjn->cin", inverse, x)
