"""What is searched for: texts and images, added and subtracted on the sphere of the vectors.

    q = unit( text_weight * sum of unit texts  +  sum of unit images  -  minus_weight * sum of unit subtracted )

Every text and image counts as a vector of length 1, and so does what comes out, so that the score of an image is a
cosine, -1..1. Subtracted with the full weight, two texts would lose what all texts share and leave only where they
differ, which few images are near to; with half of it, what is wanted stays in front (measured in docs/search.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from annotary.errors import UsageError

Vector = npt.NDArray[np.float32]
"""float32[d], of length 1."""


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """What is found, and how much of it."""

    top: int = 20
    """How many images are shown, at most."""

    threshold: float | None = None
    """Show only images whose cosine is at least this, -1..1."""

    where: str | None = field(default=None, metadata={"metavar": "CONDITION"})
    """Only images of the catalogue for which this holds, in SQL, such as "width > 1000"."""

    text_weight: float = 1.0
    """How much texts count, where an image counts 1."""

    minus_weight: float = 0.5
    """How much is subtracted of what is to be away."""

    keep_query: bool = False
    """Show images of the query among what is found, too; otherwise they and their exact copies are left out."""

    exact: bool = False
    """Compare all vectors of a catalogue, even if it has an index."""

    def __post_init__(self) -> None:
        if self.top < 1:
            raise ValueError(f"top must be at least 1, but got {self.top}")
        if self.threshold is not None and not -1.0 <= self.threshold <= 1.0:
            raise ValueError(f"threshold must be in -1..1, but got {self.threshold}")
        for name in ("text_weight", "minus_weight"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1000.0:
                raise ValueError(f"{name} must be in 0..1000, but got {value}")
        if self.where is not None and not self.where.strip():
            raise ValueError("where must be a condition such as 'width > 1000', but is empty")


class Term(NamedTuple):
    """A text or an image of a query.

    Attributes:
        vector: Of it.
        weight: How much it counts; below 0 it is subtracted.
    """

    vector: Vector
    weight: float


def combined(terms: Sequence[Term]) -> Vector:
    """The vector of a query.

    Raises:
        UsageError: The terms cancel each other out.
    """
    total = sum(term.weight * term.vector.astype(np.float64) for term in terms)
    length = float(np.linalg.norm(total))
    if not terms or length < 1e-6:
        raise UsageError("what is added and what is subtracted cancel each other out")
    return np.asarray(total / length, dtype=np.float32)
