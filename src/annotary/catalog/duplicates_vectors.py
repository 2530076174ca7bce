"""All pairs of unit vectors that lie near each other: exactly for some, cell by cell for many."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

EXACT_UP_TO = 30_000
"""Vectors among which every pair is looked at. The work grows with the square of their number."""

CELL = 1_000
"""Vectors of a cell, on average."""

VISITS = 8
"""How many cells each vector is compared with; its neighbours nearly always live in one of the nearest.
`benchmarks/duplicates.py` measures how many pairs that finds."""

_BLOCK = 2_048
_CELLS_AT_ONCE = 1_000
_SCANNED = 2**18
_ROUNDS = 4
_PER_CELL = 32
_ROUNDING = 2e-6  # of float32 products of unit vectors


class VectorPairs(NamedTuple):
    """Pairs of near vectors.

    Attributes:
        first: int64[p], rows.
        second: int64[p], greater rows.
        cosine: float32[p], at most 1.
    """

    first: Rows
    second: Rows
    cosine: npt.NDArray[np.float32]


def near_vectors(
    vectors: Vectors,
    least: float,
    *,
    exact_up_to: int = EXACT_UP_TO,
    visits: int = VISITS,
    seed: int = 0,
) -> Iterator[VectorPairs]:
    """Every pair of vectors whose cosine is at least `least`, each pair once.

    Up to `exact_up_to` vectors all pairs are found, whatever their order. Beyond, vectors are put into cells around
    means (as an inverted file has them: Jégou, Douze and Schmid, "Product Quantization for Nearest Neighbor Search",
    2011, section IV), and each is compared with what lives in the cells nearest to it; few pairs are missed as long as
    `least` is high.

    Args:
        vectors: float32[n, d], rows of length 1; it may be a file mapped into memory, which is read in blocks.
        least: Cosine, -1..1.
        exact_up_to: From how many vectors on cells are used.
        visits: How many cells each vector is compared with.
        seed: Of the choice of means.

    Yields:
        The pairs, a block at a time, in no particular order.
    """
    if len(vectors) <= exact_up_to:
        yield from _all_pairs(vectors, least)
    else:
        yield from _pairs_in_cells(vectors, least, visits, seed)


def _all_pairs(vectors: Vectors, least: float) -> Iterator[VectorPairs]:
    for top in range(0, len(vectors), _BLOCK):
        rows = np.asarray(vectors[top : top + _BLOCK])
        for left in range(top, len(vectors), _BLOCK):
            columns = rows if left == top else np.asarray(vectors[left : left + _BLOCK])
            first, second, cosine = _near(rows, columns, least)
            first, second = first + top, second + left
            yield from _told(first, second, cosine, first < second)


def _pairs_in_cells(
    vectors: Vectors, least: float, visits: int, seed: int
) -> Iterator[VectorPairs]:
    with tempfile.TemporaryDirectory(prefix="annotary-", ignore_cleanup_errors=True) as folder:
        cells = _Cells(vectors, visits, seed, Path(folder))
        for hosts, guests in cells.meetings():
            for top in range(0, len(hosts), _BLOCK):
                own = hosts[top : top + _BLOCK]
                rows = cells.vectors(own)
                for left in range(0, len(guests), _BLOCK):
                    others = guests[left : left + _BLOCK]
                    at, by, cosine = _near(rows, cells.vectors(others), least)
                    first, second = own[at], others[by]
                    is_told = cells.counts(first, second)
                    first, second = np.minimum(first, second), np.maximum(first, second)
                    yield from _told(first, second, cosine, is_told)


class _Cells:
    """Vectors in cells around means; each lives in the nearest cell and visits the nearest ones.

    Args:
        vectors: float32[n, d].
        visits: How many cells each visits, its own included.
        seed: Of the choice of means.
        folder: For temporary files, as large as the vectors and a little more.
    """

    def __init__(self, vectors: Vectors, visits: int, seed: int, folder: Path) -> None:
        means = _means(vectors, max(1, len(vectors) // CELL), seed)
        self._cells = len(means)
        self._near = np.lib.format.open_memmap(
            folder / "cells.npy", "w+", np.int32, (len(vectors), min(visits, len(means)))
        )
        for start in range(0, len(vectors), _BLOCK):
            rows = np.asarray(vectors[start : start + _BLOCK])
            self._near[start : start + len(rows)] = _nearest(rows, means, self._near.shape[1])
        self._home = np.argsort(self._near[:, 0], kind="stable")
        self._edges = np.searchsorted(self._near[self._home, 0], np.arange(self._cells + 1))
        # Those of one cell stand together in the file, so that a cell is read at once.
        self._vectors = np.lib.format.open_memmap(
            folder / "vectors.npy", "w+", np.float32, vectors.shape
        )
        self._places = np.empty(len(vectors), np.int64)
        for start in range(0, len(vectors), _BLOCK):
            chosen = self._home[start : start + _BLOCK]
            self._vectors[start : start + len(chosen)] = vectors[chosen]
            self._places[chosen] = np.arange(start, start + len(chosen))

    def meetings(self) -> Iterator[tuple[Rows, Rows]]:
        """For every cell the rows that live in it and the rows that visit it."""
        for first in range(0, self._cells, _CELLS_AT_ONCE):
            last = min(first + _CELLS_AT_ONCE, self._cells)
            cells, rows = self._visits(first, last)
            edges = np.searchsorted(cells, np.arange(first, last + 1))
            for cell in range(first, last):
                hosts = self._home[self._edges[cell] : self._edges[cell + 1]]
                yield hosts, rows[edges[cell - first] : edges[cell - first + 1]]

    def vectors(self, rows: Rows) -> Vectors:
        """float32[b, d]."""
        return np.asarray(self._vectors[self._places[rows]])

    def counts(self, hosts: Rows, guests: Rows) -> npt.NDArray[np.bool_]:
        """Which meetings count: two that visit each other's cells meet twice, and once is enough."""
        is_mutual = (self._near[hosts] == self._near[guests, :1]).any(axis=1)
        is_counted: npt.NDArray[np.bool_] = (hosts < guests) | ((hosts > guests) & ~is_mutual)
        return is_counted

    def _visits(self, first: int, last: int) -> tuple[Rows, Rows]:
        """Who visits the cells from the first to the last: cells and rows, sorted by cell and then by row."""
        cells, rows = [], []
        for start in range(0, len(self._near), _SCANNED):
            near = self._near[start : start + _SCANNED]
            row, column = np.nonzero((near >= first) & (near < last))
            cells.append(near[row, column].astype(np.int64))
            rows.append(row + start)
        cell, row = np.concatenate(cells), np.concatenate(rows)
        order = np.argsort(cell, kind="stable")
        return cell[order], row[order]


def _nearest(rows: Vectors, means: Vectors, count: int) -> npt.NDArray[np.int32]:
    """The nearest means, the nearest first."""
    likeness = rows @ means.T
    chosen = np.argpartition(-likeness, count - 1, axis=1)[:, :count]
    order = np.argsort(-np.take_along_axis(likeness, chosen, axis=1), axis=1, kind="stable")
    return np.take_along_axis(chosen, order, axis=1).astype(np.int32)


def _near(
    rows: Vectors, columns: Vectors, least: float
) -> tuple[Rows, Rows, npt.NDArray[np.float32]]:
    cosines = rows @ columns.T
    first, second = np.nonzero(cosines >= least - _ROUNDING)
    return first, second, np.minimum(cosines[first, second], np.float32(1.0))


def _told(
    first: Rows,
    second: Rows,
    cosine: npt.NDArray[np.float32],
    is_told: npt.NDArray[np.bool_],
) -> Iterator[VectorPairs]:
    if is_told.any():
        yield VectorPairs(first[is_told], second[is_told], cosine[is_told])


def _means(vectors: Vectors, count: int, seed: int) -> Vectors:
    """Unit means of some vectors after a few rounds of k-means on a sample."""
    generator = np.random.default_rng(seed)
    size = min(len(vectors), count * _PER_CELL)
    sample = np.asarray(vectors[np.sort(generator.choice(len(vectors), size, replace=False))])
    means = sample[generator.choice(size, count, replace=False)]
    for _ in range(_ROUNDS):
        sums = np.zeros_like(means)
        for start in range(0, size, _BLOCK):
            rows = sample[start : start + _BLOCK]
            np.add.at(sums, np.argmax(rows @ means.T, axis=1), rows)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        # A mean that nothing is nearest to stays where it was.
        means = np.where(lengths > 0, sums / np.maximum(lengths, 1e-12), means)
    return means.astype(np.float32)
