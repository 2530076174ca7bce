"""Metrics of retrieval between images and captions, both ways: recall at 1, 5 and 10, ranks.

The rank of what was looked for counts everything else that scores as high against the model: equals, and what differs
by less than `TIE`, because the last bits of a product of matrices depend on the machine. So a model that gives all the
same score comes last, whatever the order of the files.

* An image is found by a caption when it is among the first images that the caption gives.
* A caption is found by an image when any of the image's captions is among the first captions that the image gives
  (Karpathy and Fei-Fei 2015).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from annotary.evaluation.zero_shot import Interval, wilson
from annotary.tasks.encoding import Vectors

Integers: TypeAlias = npt.NDArray[np.int64]

TIE = 1e-6
"""Cosines that differ by less are taken for the same."""

DEPTHS = (1, 5, 10)
"""How many of the first are looked at."""

_ENTRIES = 16 * 1024 * 1024
"""Scores that are held at a time, 64 MiB."""


@dataclass(frozen=True, eq=False)
class Direction:
    """How well one kind of query finds what belongs to it.

    Attributes:
        ranks: int64[queries], the place of what was looked for, from 1.
        candidates: How many things it was among.
    """

    ranks: Integers
    candidates: int

    def recall(self, depth: int) -> float:
        """The share of queries that find it among the first `depth`, 0..1."""
        return float((self.ranks <= depth).mean())

    def interval(self, depth: int) -> Interval:
        """Where the recall lies with a certainty of 95 %, if the queries are a random sample."""
        return wilson(int((self.ranks <= depth).sum()), len(self.ranks))

    @property
    def recalls(self) -> Mapping[int, float]:
        """The recall at each of `DEPTHS`."""
        return {depth: self.recall(depth) for depth in DEPTHS}

    @property
    def median_rank(self) -> float:
        """The middle rank; 1 is the best."""
        return float(np.median(self.ranks))

    @property
    def mean_reciprocal_rank(self) -> float:
        """The mean of 1 / rank, 0..1."""
        return float((1.0 / self.ranks).mean())


@dataclass(frozen=True, eq=False)
class RetrievalResult:
    """Retrieval both ways.

    Attributes:
        text_to_image: Queries are captions, in their order.
        image_to_text: Queries are images, in their order.
    """

    text_to_image: Direction
    image_to_text: Direction

    @property
    def recall_sum(self) -> float:
        """The sum of all six recalls, 0..6."""
        both = (self.text_to_image, self.image_to_text)
        return sum(sum(direction.recalls.values()) for direction in both)


def measure_retrieval(
    images: Vectors, captions: Vectors, owners: Integers, *, entries: int = _ENTRIES
) -> RetrievalResult:
    """Look up every caption among the images and every image among the captions.

    Args:
        images: float32[n, d], unit length.
        captions: float32[m, d], unit length.
        owners: int64[m], the image that a caption belongs to. Every image has one or more captions.
        entries: How many scores are held at a time. The whole table has n * m.

    Raises:
        ValueError: Shapes do not fit, or an image has no caption.
    """
    if images.ndim != 2 or captions.ndim != 2 or images.shape[1] != captions.shape[1]:
        raise ValueError(f"images {images.shape} and captions {captions.shape} do not fit together")
    if owners.shape != captions.shape[:1]:
        raise ValueError(f"owners has shape {owners.shape}; expected {captions.shape[:1]}")
    if not len(images) or not np.array_equal(np.unique(owners), np.arange(len(images))):
        raise ValueError("every image must have a caption, and every caption an image")
    own = np.einsum("md,md->m", captions, images[owners])
    best = np.full(len(images), -np.inf, dtype=own.dtype)
    np.maximum.at(best, owners, own)
    of_captions = np.empty(len(captions), dtype=np.int64)
    of_images = np.ones(len(images), dtype=np.int64)
    turned = np.ascontiguousarray(images.T)
    step = max(1, entries // len(images))
    for start in range(0, len(captions), step):
        rows = slice(start, start + step)
        scores = captions[rows] @ turned
        # What belongs together competes with nothing of its own.
        scores[np.arange(len(scores)), owners[rows]] = -np.inf
        of_captions[rows] = 1 + (scores > own[rows, None] - TIE).sum(axis=1)
        of_images += (scores > best - TIE).sum(axis=0)
    return RetrievalResult(Direction(of_captions, len(images)), Direction(of_images, len(captions)))
