"""The vectors nearest to one: by comparing all of them, or by an index whose candidates are compared exactly."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import lancedb

LEAST_FOR_INDEX = 5_000
"""Vectors without which no index is made: its parts could not be learned."""

EXACT_UP_TO = 50_000
"""Rows that meet a condition up to which all of them are compared: an index would find only some of them."""

_LEAST_IN_PART = 64
"""Vectors that a part of an index has on average, at least; so many for each part are looked at to learn it."""

_LEAST_FOR_BITS = 256
"""Dimensions from which on a bit for each is enough."""

BITS = 4
"""Of the code, for each number of a vector."""

NPROBES = 40
REFINE = 5


@dataclass(frozen=True, slots=True)
class Probing:
    """How thoroughly an index is searched.

    Attributes:
        nprobes: How many parts of it are looked into.
        refine: How many times as many candidates as are wanted are compared exactly.
    """

    nprobes: int = NPROBES
    refine: int = REFINE

    @classmethod
    def of(cls, nprobes: int | None, refine: int | None, share: float = 1.0) -> Self:
        """The settings with what was said.

        Args:
            nprobes: A good number when nothing is said.
            refine: The same.
            share: Of the rows that meet the condition, 0..1. The fewer do, the further apart the nearest of them lie.
        """
        return cls(nprobes or math.ceil(NPROBES / math.sqrt(share)), refine or REFINE)


def among(
    batches: Iterable[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]],
    vector: npt.NDArray[np.float32],
    top: int,
) -> list[tuple[int, float]]:
    """The nearest of a stream of vectors, by comparing all.

    Args:
        batches: Ids int64[n] and unit vectors float32[n, d].
        vector: float32[d], of length 1.
        top: How many.

    Returns:
        Ids and cosines, the best first; of equal ones the smaller id first, however the stream is cut into batches.
    """
    ids = np.empty(0, np.int64)
    scores = np.empty(0, np.float32)
    for own, vectors in batches:
        # Products of equal vectors may differ in the last bit with their place in a batch.
        found = np.round(vectors @ vector, 6)
        if len(ids) == top and top:
            # Most batches have little to offer: look at what is not worse than the last of the best.
            good = found >= scores[-1]
            own, found = own[good], found[good]
        ids, scores = best(np.concatenate([ids, own]), np.concatenate([scores, found]), top)
    return list(zip(ids.tolist(), scores.tolist(), strict=True))


def best(
    ids: npt.NDArray[np.int64], scores: npt.NDArray[np.float32], top: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The best of some ids int64[n] and scores float32[n], sorted; of equal scores the smaller id first."""
    if len(ids) > top > 0:
        least = np.partition(scores, len(scores) - top)[len(scores) - top]
        good = scores >= least  # ties with the last one are all kept until they are sorted
        ids, scores = ids[good], scores[good]
    order = np.lexsort((ids, -scores))[:top]
    return ids[order], scores[order]


def build(table: lancedb.table.LanceTable, count: int, dimensions: int) -> None:
    """Make an index: parts that are learned by k-means, and in them a code of each vector.

    The code is RaBitQ's (Gao and Long 2024) with a few bits a number: it needs no learning, so that a million vectors
    take minutes, and comparing the best candidates exactly makes up for its coarseness. Its error falls with the root
    of the dimensions, and it wants them in eights; vectors with few numbers get a byte for each.

    Args:
        table: With the column `embedding`.
        count: Of its vectors.
        dimensions: Of its vectors.
    """
    from lancedb.index import IvfRq, IvfSq

    parts = max(1, min(round(math.sqrt(count)), count // _LEAST_IN_PART))
    config: IvfRq | IvfSq
    if dimensions % 8 == 0 and dimensions >= _LEAST_FOR_BITS:
        config = IvfRq("dot", parts, BITS, max_iterations=20, sample_rate=_LEAST_IN_PART)
    else:
        config = IvfSq("dot", parts, max_iterations=20, sample_rate=_LEAST_IN_PART)
    table.create_index("embedding", config=config, replace=True)


def by_index(
    table: lancedb.table.LanceTable,
    vector: npt.NDArray[np.float32],
    top: int,
    condition: str | None,
    probing: Probing,
) -> list[tuple[int, float]]:
    """The nearest by the index; its candidates are compared exactly, and so are rows it does not know yet.

    Args:
        table: With the column `embedding` and an index of it.
        vector: float32[d], of length 1.
        top: How many.
        condition: What must hold for rows.
        probing: How thoroughly the index is searched.
    """
    query = (
        table.search(vector, vector_column_name="embedding")
        .distance_type("dot")
        .refine_factor(probing.refine)
        .limit(top)
        .select(["id", "embedding", "_distance"])
    )
    if condition is not None:
        query = query.where(condition, prefilter=True)
    found = query.nprobes(probing.nprobes).to_arrow()
    if len(found) < top:  # few rows of those parts meet the condition
        found = query.minimum_nprobes(probing.nprobes).maximum_nprobes(0).to_arrow()
    if not len(found):
        return []
    vectors = found["embedding"].combine_chunks().flatten().to_numpy().reshape(len(found), -1)
    return among([(found["id"].to_numpy(), vectors)], vector, top)
