"""Rows whose images are the same or nearly so, and which of them stay: the rule of `annotary.catalog.duplicates`.

Rows are gone through from the best (the most pixels, then the first) to the worst. One that no row that stays is near
to stays, too. So groups are no chains: whatever goes is itself within the limits of one that stays and is as good.

Hashes of images lie in files of keys, and only rows that have a near one are held in memory, about 200 bytes each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from annotary.catalog.duplicates_vectors import near_vectors
from annotary.catalog.perceptual_hash import near_hashes
from annotary.curation._dedup_found import Found, FoundFiles, Numbers, Standing, mapped
from annotary.curation._dedup_groups import buckets, equal_rows
from annotary.curation._dedup_keys import SUFFIX, KeyFile, Keys, KeyWriter, keys_of
from annotary.curation._dedup_plan import PlannedPart
from annotary.curation.looks import read_looks

if TYPE_CHECKING:
    import pyarrow as pa

GREY, COLOURED = 6, 24
"""Up to which chroma an image is grey, and from which on it has colours, as in `annotary.catalog.duplicates`. A photo
without its colours has the hash of the photo; neither stands for the other."""

_IS_GREY, _IS_EITHER, _IS_COLOURED = 0, 1, 2

_ALIKE = {0: (0, 1), 1: (0, 1, 2), 2: (1, 2)}

_AT_ONCE = 2**14


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """What images are compared by, of all parts, in files.

    Attributes:
        exact: Keys of their bytes.
        phash: Keys of their looks: the perceptual hash above, whether it has colours below.
        pixels: int64[rows], width times height; 0 where it is not known.
    """

    exact: KeyFile
    phash: KeyFile
    pixels: npt.NDArray[np.int64]


class Vectors(NamedTuple):
    """Vectors of rows.

    Attributes:
        rows: int64[n], ascending.
        vectors: float32[n, d], of length 1.
    """

    rows: Numbers
    vectors: npt.NDArray[np.float32]


class Neighbours(NamedTuple):
    """Which keys are near to which.

    Attributes:
        keys: [k], ascending.
        edges: int64[k + 1]; those near to `keys[i]` stand from `edges[i]` up to `edges[i + 1]`, the nearest first.
        others: int64[m], their places among the keys.
        distance: float32[m].
    """

    keys: npt.NDArray[Any]
    edges: Numbers
    others: Numbers
    distance: npt.NDArray[np.float32]


class Candidates(NamedTuple):
    """Rows that are near to others in one way.

    Attributes:
        rows: int64[n].
        keys: [n], what each is the same by.
        kinds: uint8[n], whether it is grey, coloured, or either.
        near: Which keys are near to which.
    """

    rows: Numbers
    keys: npt.NDArray[Any]
    kinds: npt.NDArray[np.uint8]
    near: Neighbours


def image_files(looks: Path, parts: Sequence[PlannedPart], rows: int, folder: Path) -> ImageFiles:
    """What images are compared by, from what was measured of them.

    Args:
        looks: The folder of `LooksStep`.
        parts: All parts.
        rows: How many rows they have.
        folder: For the files.
    """
    exact, phash = folder / f"exact{SUFFIX}", folder / f"phash{SUFFIX}"
    pixels = mapped(folder / "pixels", np.int64, (max(1, rows),))
    with ExitStack() as stack:
        exact_file = stack.enter_context(KeyWriter(exact))
        phash_file = stack.enter_context(KeyWriter(phash))
        for first, batch in look_batches(looks, parts):
            exact_file.write(exact_keys(batch, first))
            phash_file.write(phash_keys(batch, first))
            width, height = (_filled(batch.column(name)) for name in ("width", "height"))
            pixels[first : first + batch.num_rows] = width * height
    return ImageFiles(KeyFile(exact, 0), KeyFile(phash, 0), pixels)


def look_batches(looks: Path, parts: Sequence[PlannedPart]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """What was measured of all rows, in their order, with the number of the first of each batch."""
    for part in parts:
        if part.broken is None:
            first = part.first
            for batch in read_looks(looks / f"{part.name}.parquet"):
                yield first, batch
                first += batch.num_rows


def exact_keys(batch: pa.RecordBatch, first: int) -> Keys:
    """The keys of the bytes of images: half of their sha256.

    What could not be read has none: the answer of a server that an image is gone is the same for many.
    """
    column, errors = batch.column("sha256"), batch.column("error")
    is_read = column.is_valid().to_numpy(zero_copy_only=False)
    is_read &= errors.is_null().to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(is_read)
    digests = b"".join(column.take(rows).to_pylist())
    halves = np.frombuffer(digests, "<u8").reshape(-1, 4)
    return Keys(halves[:, 0], halves[:, 1], rows + first)


def phash_keys(batch: pa.RecordBatch, first: int) -> Keys:
    """The keys of the looks of images that are not flat."""
    hashes = batch.column("phash")
    rows = np.flatnonzero(hashes.is_valid().to_numpy(zero_copy_only=False))
    chroma = batch.column("chroma").fill_null((GREY + COLOURED) // 2).to_numpy()[rows]
    kinds = np.full(len(rows), _IS_EITHER, np.uint64)
    kinds[chroma <= GREY] = _IS_GREY
    kinds[chroma >= COLOURED] = _IS_COLOURED
    return Keys(hashes.drop_null().to_numpy().astype(np.uint64), kinds, rows + first)


def equal_images(file: KeyFile, rows: int, standing: Standing) -> Candidates:
    """Images with the same bytes."""
    found, keys = [], []
    for part in buckets([file], rows, standing):
        groups = equal_rows(part)
        found.append(groups.rows)
        keys.append(groups.rows[groups.is_first][groups.numbers])
    return _candidates(found, keys)


def near_images(
    file: KeyFile, rows: int, standing: Standing, distance: int, folder: Path
) -> Candidates:
    """Images that look the same.

    Args:
        file: The keys of their looks.
        rows: How many rows there are.
        standing: Which rows have gone.
        distance: In how many bits their hashes may differ.
        folder: For a file of all hashes.
    """
    place = folder / "hashes"
    with place.open("wb") as all_hashes:
        for part in buckets([file], rows, standing):
            all_hashes.write(np.unique(part.high).tobytes())
    hashes = np.memmap(place, np.uint64, "r") if place.stat().st_size else np.empty(0, np.uint64)
    pairs = [(pair.first, pair.second, pair.distance) for pair in near_hashes(hashes, distance)]
    paired = np.unique(np.concatenate([hashes[:0], *(side for pair in pairs for side in pair[:2])]))
    found, keys, kinds = [], [], []
    for part in buckets([file], rows, standing):
        _, inverse, counts = np.unique(part.high, return_inverse=True, return_counts=True)
        chosen = (counts[inverse] > 1) | np.isin(part.high, paired)
        found.append(part.rows[chosen])
        keys.append(part.high[chosen])
        kinds.append(part.low[chosen])
    return _candidates(found, keys, kinds, pairs)


def near_by_vectors(
    vectors: Vectors, rows: int, standing: Standing, cosine: float, folder: Path
) -> Candidates:
    """Images whose vectors point nearly the same way.

    Args:
        vectors: Of rows.
        rows: How many rows there are.
        standing: Which rows have gone.
        cosine: How alike they must be.
        folder: For files as large as the vectors, and what `near_vectors` needs.
    """
    path = folder / f"vectors{SUFFIX}"
    with KeyWriter(path) as file:
        for start in range(0, len(vectors.rows), _AT_ONCE):
            block = np.asarray(vectors.vectors[start : start + _AT_ONCE])
            keys = keys_of([vector.tobytes() for vector in block], 0)
            file.write(keys._replace(rows=vectors.rows[start : start + _AT_ONCE]))
    # Of equal vectors one stands for all, or their pairs would be as many as their number squared.
    found, keys_found, doubles = [], [], []
    for part in buckets([KeyFile(path, 0)], rows, standing):
        groups = equal_rows(part)
        found.append(groups.rows)
        keys_found.append(groups.rows[groups.is_first][groups.numbers])
        doubles.append(groups.rows[~groups.is_first])
    is_searched = standing.left(vectors.rows)
    is_searched[np.searchsorted(vectors.rows, _joined(doubles))] = False
    places = np.flatnonzero(is_searched)
    searched = vectors.vectors
    if len(places) < len(vectors.rows):
        shape = (len(places), vectors.vectors.shape[1])
        searched = mapped(folder / "searched", np.float32, shape)
        for start in range(0, len(places), _AT_ONCE):
            chosen = places[start : start + _AT_ONCE]
            searched[start : start + len(chosen)] = vectors.vectors[chosen]
    numbers = vectors.rows[places]
    pairs = [
        (numbers[first], numbers[second], 1 - likeness)
        for first, second, likeness in near_vectors(searched, cosine)
    ]
    paired = np.unique(_joined([side for pair in pairs for side in pair[:2]]))
    alone = np.setdiff1d(paired, _joined(found))
    return _candidates([*found, alone], [*keys_found, alone], None, pairs)


def settle_images(
    ways: Sequence[tuple[int, Candidates]],
    pixels: npt.NDArray[np.int64],
    standing: Standing,
    found: FoundFiles,
) -> None:
    """Let all images go for which a better one that stays is near.

    Args:
        ways: The number of the reason of each way, in the order in which they are told, and what is near in it.
        pixels: int64[rows].
        standing: Which rows have gone; it is told which go.
        found: Gets them.
    """
    every = np.unique(_joined([candidates.rows for _, candidates in ways]))
    order = np.lexsort((every, -np.asarray(pixels[every])))
    kept = [(way, _Kept(candidates, every)) for way, candidates in ways]
    of = np.full(len(every), -1, np.int64)
    distance = np.zeros(len(every), np.float32)
    way_of = np.zeros(len(every), np.uint8)
    for start in range(0, len(order), _AT_ONCE):
        for rank, place in enumerate(order[start : start + _AT_ONCE].tolist(), start):
            for way, one in kept:
                near = one.near(place)
                if near is not None:
                    distance[place], of[place], way_of[place] = *near, way
                    break
            else:
                for _, one in kept:
                    one.keep(place, rank)
    goes = of >= 0
    gone = Found(every[goes], every[order[of[goes]]], distance[goes], way_of[goes])
    found.write(gone)
    standing.go(gone.rows)


class _Kept:
    """The images that stay, by one way.

    Args:
        candidates: What is near in it.
        every: int64[n], the rows that are near to others in any way, ascending.
    """

    def __init__(self, candidates: Candidates, every: Numbers) -> None:
        near = candidates.near
        places = np.searchsorted(every, candidates.rows)
        keys = np.full(len(every), -1, np.int64)
        keys[places] = np.searchsorted(near.keys, candidates.keys)
        kinds = np.zeros(len(every), np.uint8)
        kinds[places] = candidates.kinds
        # Single numbers are had faster from a view than from an array.
        self._keys, self._kinds = keys.data, kinds.data
        self._edges, self._others = near.edges.data, near.others.data
        self._distance = near.distance.data
        self._ranks = np.full(3 * len(near.keys), -1, np.int64).data

    def near(self, place: int) -> tuple[float, int] | None:
        """The distance and the rank of the nearest that stays, of several the best; None when there is none.

        Args:
            place: Of the row among all that are near to others.
        """
        key = self._keys[place]
        if key < 0:
            return None
        alike = _ALIKE[self._kinds[place]]
        best = self._best(key, alike)
        far = 0.0
        for number in range(self._edges[key], self._edges[key + 1]):
            if best >= 0 and self._distance[number] > far:
                break
            rank = self._best(self._others[number], alike)
            if rank >= 0 and (best < 0 or rank < best):
                best, far = rank, self._distance[number]
        return (far, best) if best >= 0 else None

    def keep(self, place: int, rank: int) -> None:
        """Note that a row stays. Better ones come first."""
        key = self._keys[place]
        if key >= 0 and self._ranks[3 * key + self._kinds[place]] < 0:
            self._ranks[3 * key + self._kinds[place]] = rank

    def _best(self, key: int, alike: Sequence[int]) -> int:
        """The best that stays with a key, of some kinds; -1 when there is none."""
        ranks = [rank for kind in alike if (rank := self._ranks[3 * key + kind]) >= 0]
        return min(ranks, default=-1)


def _candidates(
    rows: Sequence[npt.NDArray[Any]],
    keys: Sequence[npt.NDArray[Any]],
    kinds: Sequence[npt.NDArray[Any]] | None = None,
    pairs: Sequence[tuple[npt.NDArray[Any], ...]] = (),
) -> Candidates:
    """Rows that are near to others, from pieces.

    Args:
        rows: They.
        keys: What each is the same by.
        kinds: Whether it is grey, coloured, or either; all are either when nothing is said.
        pairs: Keys that are near to each other, and how far they are apart.
    """
    joined = np.concatenate([*keys, np.empty(0, keys[0].dtype if keys else np.int64)])
    kinds_of = [np.full(len(joined), _IS_EITHER)] if kinds is None else kinds
    known = np.unique(joined)
    # Each pair is told from both sides.
    sides = [((first, second, far), (second, first, far)) for first, second, far in pairs]
    empty = np.empty(0, np.int64)
    one = np.concatenate([empty, *(np.searchsorted(known, s[0]) for both in sides for s in both)])
    other = np.concatenate([empty, *(np.searchsorted(known, s[1]) for both in sides for s in both)])
    far = np.concatenate([empty.astype(np.float32), *(s[2] for both in sides for s in both)])
    order = np.lexsort((other, far, one))
    edges = np.searchsorted(one[order], np.arange(len(known) + 1)).astype(np.int64)
    near = Neighbours(known, edges, other[order], far[order].astype(np.float32))
    return Candidates(_joined(rows), joined, np.concatenate([*kinds_of]).astype(np.uint8), near)


def _joined(arrays: Sequence[Numbers]) -> Numbers:
    return np.concatenate([np.empty(0, np.int64), *arrays])


def _filled(column: pa.Array) -> npt.NDArray[np.int64]:
    filled: npt.NDArray[np.int64] = column.fill_null(0).to_numpy().astype(np.int64)
    return filled
