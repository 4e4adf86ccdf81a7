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

    def whole(self, slopes: Tensor, size: Tensor) -> Tensor:
        """The matrix `[row, 3 amount, 3 amount]` of the stages' equations, from dG / dy at the stages."""
        n, d = slopes.shape[1], slopes.shape[-1]
        whole = slopes.new_zeros(n, 3, d, 3, d)
        unit = torch.eye(d, dtype=slopes.dtype, device=slopes.device)
        whole += self.inverse[:, None, :, None] * unit[:, None] / size[:, None, None, None, None]
        for i in range(3):
            whole[:, i, :, i] -= slopes[i]
        return whole.reshape(n, 3 * d, 3 * d)

    def inverses(self, matrix: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """(lambda / h - dG/dy)^-1 for the real eigenvalue and one of the pair `[row, amount, amount]`."""
        unit = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        over = unit / size[:, None, None]
        real = torch.linalg.inv_ex(self.real * over - matrix).inverse
        pair = torch.linalg.inv_ex(self.pair * over - matrix).inverse
        return real, pair

    def foretold(self, past: Tensor, ratio: Tensor) -> Tensor:
        """Stages by extrapolation of the last step's polynomial; zero where there is none.

        Args:
            past: the last step's stages `[component, amount, 3, row]`.
            ratio: `[row]` length of this step over that of the last; above 4 nothing is foretold.
        """
        c, usable = self.c, ratio <= 4.0
        nodes = torch.cat((c.new_zeros(1), c))
        x = 1.0 + c.unsqueeze(-1) * torch.where(usable, ratio, 1.0)
        weights = []
        for j in range(1, 4):
            others = [k for k in range(4) if k != j]
            product = torch.ones_like(x)
            for k in others:
                product = product * (x - nodes[k]) / (nodes[j] - nodes[k])
            weights.append(product)
        found = torch.einsum("jin,cdjn->cdin", torch.stack(weights), past) - past[:, :, 2:]
        return torch.where(usable, found, 0.0)


def mixed(matrix: Tensor, stages: Tensor) -> Tensor:
    """A matrix `[3, 3]` on the stages `[component, amount, 3, row]`."""
    return torch.einsum("ij,cdjn->cdin", matrix, stages)


def applied(inverse: Tensor, x: Tensor) -> Tensor:
    """Matrices `[row, amount, amount]` on `[component, amount, row]`."""
    return torch.einsum("nij,cjn->cin", inverse, x)
