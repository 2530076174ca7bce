"""Matrices in 2 or 4 bits, for what is a part of a sum: heads that are averaged, and what fine-tuning changes.

The levels lie half a step on either side of 0: with 4 bits at -7.5 to 7.5 steps, with 2 at -1.5, -0.5, 0.5 and 1.5. The
step of a column is that of least squared error, which leaves about a hundredth of the squares of numbers that lie as
those of a bell curve with 4 bits, and about an eighth with 2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

_TRIED = 60
"""Steps that are tried for each column."""


@dataclass(frozen=True)
class FewBits:
    """A matrix in few bits: ``(codes - middle) * scale``, with one scale per column."""

    codes: npt.NDArray[np.uint8]
    """``[inputs, outputs]``, 0 to ``2**bits - 1``."""

    scale: Floats
    """``[outputs]``: one step."""

    bits: int
    """2 or 4."""

    @classmethod
    def of(cls, matrix: npt.NDArray[np.floating], bits: int) -> FewBits:
        """Round a matrix ``[inputs, outputs]``."""
        values = np.asarray(matrix, np.float64)
        spread = np.maximum(values.std(0), 1e-12)
        scale, least = spread, np.full(values.shape[1], np.inf)
        # A step of 4 spreads over the number of levels is near the best for a bell curve.
        for factor in np.linspace(0.4, 2.4, _TRIED):
            step = spread * factor * 4 / 2**bits
            error = ((_levels(values / step, bits) * step - values) ** 2).sum(0)
            scale, least = np.where(error < least, step, scale), np.minimum(error, least)
        codes = _levels(values / scale, bits) + middle(bits)
        return cls(codes.astype(np.uint8), scale.astype(np.float32), bits)

    def values(self) -> Floats:
        """The matrix, float32[inputs, outputs]."""
        return (self.codes.astype(np.float32) - np.float32(middle(self.bits))) * self.scale

    def multiply(self, rows: Floats) -> Floats:
        """``rows @ matrix``."""
        return np.asarray(
            (rows @ (self.codes.astype(np.float32) - np.float32(middle(self.bits)))) * self.scale,
            np.float32,
        )

    def times(self, factors: npt.NDArray[np.floating]) -> FewBits:
        """The matrix with each column multiplied by a number."""
        return replace(self, scale=(self.scale * factors).astype(np.float32))


def middle(bits: int) -> float:
    """Where 0 would lie among the codes: between the two in the middle."""
    return (int(2**bits) - 1) / 2


def _levels(steps: npt.NDArray[np.float64], bits: int) -> npt.NDArray[np.float64]:
    """The nearest level of each number, in steps."""
    return np.clip(np.floor(steps), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) + 0.5
