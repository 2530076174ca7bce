"""Clusters: images in groups by what they show, with k-means or HDBSCAN of scikit-learn, however many there are.

Both learn from a random sample, which fits in memory, and then go through all vectors in blocks. k-means starts from
the sample's clusters and moves the centres by the means of all images, pass by pass (Lloyd, "Least squares quantization
in PCM", 1982), so that the order of the images does not matter. HDBSCAN (Campello, Moulavi and Sander, "Density-Based
Clustering Based on Hierarchical Density Estimates", 2013) finds the clusters of the sample and what belongs to none;
every other image goes to the cluster of the sampled one that is nearest to it, if it is as near to it as the members of
that cluster are to each other, and else to none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from annotary.errors import MissingExtra, UsageError

Vectors: TypeAlias = npt.NDArray[np.float32]

Method: TypeAlias = Literal["kmeans", "hdbscan"]

NOISE = -1
"""The label of what is in no cluster."""

TRIED = (2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50)
"""Numbers of clusters that are tried when none is told."""

MOST_CLUSTERS = 10_000

LEAST_SIZE = 10
"""Images that make a cluster of HDBSCAN when nothing is said."""

_BLOCK = 4_096
_DISTANCES = 2**22  # that are held at a time
_JUDGED = 1_500  # vectors whose silhouettes are computed, which takes all distances between them
_STARTS = 2
_ROUNDS = 50
_CLEARLY = 1.5  # times as high a silhouette as at the highest peak
_PASSES = 20
_STILL = 1e-4  # squared movement of the centres, of the squared spread, after which nothing changes any more
_COMPONENTS = 50  # in more dimensions, distances tell little of density


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """How images are put into clusters."""

    method: Method = "kmeans"
    """What finds clusters: kmeans puts every image into one; hdbscan leaves out what is like nothing else."""

    clusters: int | None = field(default=None, metadata={"metavar": "N"})
    """For kmeans: how many clusters.

    When nothing is said, a number from 2 to 50 whose clusters are far apart (a peak of their silhouettes).
    """

    min_size: int | None = field(default=None, metadata={"metavar": "N"})
    """For hdbscan: how many images make a cluster, at least; 10 when nothing is said. Of a sample, so many of the
    sample."""

    sample: int = field(default=10_000, metadata={"metavar": "N"})
    """Learn from so many images, chosen at random, and put the others to theirs."""

    seed: int = 0
    """Of everything that is chosen at random."""

    def __post_init__(self) -> None:
        if self.clusters is not None and not 1 <= self.clusters <= MOST_CLUSTERS:
            raise ValueError(f"clusters must be 1..{MOST_CLUSTERS:,}, but got {self.clusters}")
        if self.clusters is not None and self.method != "kmeans":
            raise ValueError("clusters is for --method kmeans; hdbscan finds out by itself")
        if self.min_size is not None and self.method != "hdbscan":
            raise ValueError("min_size is for --method hdbscan; kmeans takes --clusters")
        if self.min_size is not None and self.min_size < 2:
            raise ValueError(f"min_size must be at least 2, but got {self.min_size}")
        if self.sample < 100:
            raise ValueError(f"sample must be at least 100, but got {self.sample}")
        if self.clusters is not None and self.sample < self.clusters:
            raise ValueError(f"sample must be at least the number of clusters, {self.clusters}")


@dataclass(frozen=True, slots=True)
class Clusters:
    """What became of vectors.

    Attributes:
        labels: int32[n], 0..k-1 in descending order of size, or `NOISE`.
        distances: float32[n], 1 - cosine to the centre of the own cluster, 0..2; of noise to the nearest one.
        centres: float32[k, d], unit means of the members.
        sizes: int64[k], members.
        silhouettes: Mean silhouette, -1..1, by number of clusters, where the number was chosen by it.
    """

    labels: npt.NDArray[np.int32]
    distances: npt.NDArray[np.float32]
    centres: Vectors
    sizes: npt.NDArray[np.int64]
    silhouettes: dict[int, float] = field(default_factory=dict)


def find_clusters(vectors: Vectors, options: ClusterOptions = ClusterOptions()) -> Clusters:
    """Put unit vectors into clusters.

    Args:
        vectors: float32[n, d], rows of length 1; it may be a file mapped into memory, which is read in blocks. Memory
            is the sample and about 16 bytes a vector.
        options: How.

    Raises:
        UsageError: There are no vectors, or fewer than clusters.
        MissingExtra: scikit-learn is not installed.
    """
    if not len(vectors):
        raise UsageError("there are no vectors to put into clusters")
    if options.clusters is not None and options.clusters > len(vectors):
        raise UsageError(
            f"--clusters {options.clusters:,} needs as many images, but there are {len(vectors):,}"
        )
    _need_sklearn()
    generator = np.random.default_rng(options.seed)
    count = min(len(vectors), options.sample)
    rows = np.sort(generator.choice(len(vectors), count, replace=False))
    sample = np.asarray(vectors[rows], np.float32)
    silhouettes: dict[int, float] = {}
    if options.method == "kmeans":
        number = options.clusters
        if number is None:
            silhouettes = _silhouettes(sample, options.seed)
            number = _best_number(silhouettes)
        labels = _by_means(vectors, _means(sample, number, options.seed))
    else:
        labels = _by_density(vectors, sample, rows, options)
    return _described(vectors, labels, silhouettes)


def _need_sklearn() -> None:
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise MissingExtra("Clustering", "catalog") from error


def _silhouettes(sample: Vectors, seed: int) -> dict[int, float]:
    """How far apart clusters of the sample are, by their number (Rousseeuw, "Silhouettes", 1987)."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    rows = np.random.default_rng(seed).permutation(len(sample))[:_JUDGED]
    judged = _projected(sample[rows], *_components(sample, seed))
    different = len(np.unique(judged, axis=0))
    found = {}
    for number in TRIED:
        if number < min(len(judged), different + 1):
            model = KMeans(number, n_init=1, max_iter=_ROUNDS, random_state=seed).fit(judged)
            found[number] = float(silhouette_score(judged, model.labels_))
    return found


def _best_number(silhouettes: dict[int, float]) -> int:
    """The number whose clusters are the farthest apart, but two only if they are so clearly.

    Pictures of all kinds nearly always have a seam that parts them in two, and silhouettes fall from there; what is
    looked for is the number at which they rise again.
    """
    if not silhouettes:
        return 1
    best = max(silhouettes, key=lambda number: (silhouettes[number], -number))
    numbers = list(silhouettes)
    peaks = [
        number
        for before, number, after in zip(numbers, numbers[1:], numbers[2:], strict=False)
        if silhouettes[number] > max(silhouettes[before], silhouettes[after])
        and silhouettes[number] * _CLEARLY >= silhouettes[best]
    ]
    return max(peaks, key=lambda number: silhouettes[number], default=best)


def _means(sample: Vectors, number: int, seed: int) -> Vectors:
    from sklearn.cluster import KMeans

    # More clusters than different vectors: the rest stays empty.
    number = min(number, len(np.unique(sample, axis=0)))
    model = KMeans(number, n_init=_STARTS, max_iter=_ROUNDS, random_state=seed).fit(sample)
    centres: Vectors = model.cluster_centers_.astype(np.float32)
    return centres


def _by_means(vectors: Vectors, centres: Vectors) -> npt.NDArray[np.int32]:
    """The nearest centre of every vector, after the centres have come to rest."""
    labels = np.empty(len(vectors), np.int32)
    for _ in range(_PASSES):
        sums = np.zeros(centres.shape, np.float64)
        counts = np.zeros(len(centres), np.int64)
        spread = 0.0
        for start, block in _blocks(vectors, _together(centres)):
            own, squares = _nearest(block, centres)
            labels[start : start + len(block)] = own
            spread += float(squares.sum())
            counts += np.bincount(own, minlength=len(centres))
            _add_rows(sums, own, block)
        means = sums / np.maximum(counts, 1)[:, None]
        # A centre that nothing is nearest to stays where it was.
        moved = np.where(counts[:, None] > 0, means, centres).astype(np.float32)
        movement = float(np.square(moved - centres).sum(axis=1).max())
        centres = moved
        if movement <= _STILL * spread / len(vectors):
            break
    return labels


def _by_density(
    vectors: Vectors, sample: Vectors, rows: npt.NDArray[np.int64], options: ClusterOptions
) -> npt.NDArray[np.int32]:
    """The clusters of the sample, and of all others the cluster of the nearest in the sample, or none."""
    from sklearn.cluster import HDBSCAN

    mean, directions = _components(sample, options.seed)
    points = _projected(sample, mean, directions)
    least = LEAST_SIZE if options.min_size is None else options.min_size
    if len(points) <= least:
        # Too few to be of different density: all are one.
        sampled = np.full(len(points), 0 if len(points) == least else NOISE, np.int32)
    else:
        # Trees need memory for the points alone, comparing all with all for their square.
        model = HDBSCAN(min_cluster_size=least, algorithm="kd_tree", copy=True)
        sampled = model.fit(points.astype(np.float64)).labels_.astype(np.int32)
    labels = np.full(len(vectors), NOISE, np.int32)
    labels[rows] = sampled
    members, own = points[sampled != NOISE], sampled[sampled != NOISE]
    if len(sample) == len(vectors) or not len(members):
        return labels
    reach = _reaches(members, own)
    is_sampled = np.zeros(len(vectors), np.bool_)
    is_sampled[rows] = True
    for start, block in _blocks(vectors, _together(members)):
        nearest, squares = _nearest(_projected(block, mean, directions), members)
        found = np.where(np.sqrt(squares) <= reach[own[nearest]], own[nearest], NOISE)
        here = slice(start, start + len(block))
        labels[here] = np.where(is_sampled[here], labels[here], found)
    return labels


def _components(sample: Vectors, seed: int) -> tuple[Vectors, Vectors]:
    """The mean of a sample float32[d], and the directions float32[c, d] in which it is spread most."""
    mean = np.asarray(sample.mean(axis=0), np.float32)
    dimensions = sample.shape[1]
    if dimensions <= _COMPONENTS or len(sample) <= _COMPONENTS:
        return mean, np.eye(dimensions, dtype=np.float32)
    from sklearn.decomposition import PCA

    model = PCA(_COMPONENTS, svd_solver="randomized", random_state=seed).fit(sample)
    return mean, model.components_.astype(np.float32)


def _projected(rows: Vectors, mean: Vectors, directions: Vectors) -> Vectors:
    return np.asarray((rows - mean) @ directions.T, np.float32)


def _reaches(members: Vectors, labels: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """For each cluster how far a member is from the nearest other one, at most."""
    reach = np.zeros(int(labels.max()) + 1)
    for cluster in range(len(reach)):
        own = members[labels == cluster]
        for start, block in _blocks(own, _together(own)):
            squares = _squares(block, own)
            squares[np.arange(len(block)), np.arange(start, start + len(block))] = np.inf
            nearest = squares.min(axis=1)
            reach[cluster] = max(
                reach[cluster], math.sqrt(float(nearest[np.isfinite(nearest)].max(initial=0.0)))
            )
    return reach


def _described(
    vectors: Vectors, labels: npt.NDArray[np.int32], silhouettes: dict[int, float]
) -> Clusters:
    """The clusters in descending order of size, with their centres and everyone's distance from them."""
    sizes = np.bincount(labels[labels != NOISE])
    order = np.argsort(-sizes, kind="stable")
    order = order[sizes[order] > 0]
    renamed = np.full(len(sizes) + 1, NOISE, np.int32)  # the last one is that of noise
    renamed[order] = np.arange(len(order))
    labels = renamed[labels]
    sums = np.zeros((len(order), vectors.shape[1]), np.float64)
    for start, block in _blocks(vectors):
        own = labels[start : start + len(block)]
        _add_rows(sums, own[own != NOISE], block[own != NOISE])
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    centres = (sums / np.maximum(lengths, 1e-12)).astype(np.float32)
    distances = np.full(len(vectors), 2.0, np.float32)
    for start, block in _blocks(vectors, _together(centres)):
        if not len(centres):
            break
        own = labels[start : start + len(block)]
        cosines = block @ centres.T
        chosen = np.where(own == NOISE, cosines.argmax(axis=1), own)
        to_own = cosines[np.arange(len(block)), chosen]
        distances[start : start + len(block)] = np.clip(1.0 - to_own, 0.0, 2.0)
    return Clusters(labels, distances, centres, sizes[order].astype(np.int64), silhouettes)


def _blocks(vectors: Vectors, size: int = _BLOCK) -> Iterator[tuple[int, Vectors]]:
    for start in range(0, len(vectors), size):
        yield start, np.asarray(vectors[start : start + size], np.float32)


def _together(points: Vectors) -> int:
    """How many rows are compared with all of some points at a time."""
    return max(64, min(_BLOCK, _DISTANCES // max(len(points), 1)))


def _nearest(rows: Vectors, points: Vectors) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The nearest point of every row, and the square of its distance."""
    squares = _squares(rows, points)
    nearest = squares.argmin(axis=1)
    return nearest, squares[np.arange(len(rows)), nearest]


def _squares(rows: Vectors, points: Vectors) -> npt.NDArray[np.float32]:
    """Squared distances float32[rows, points]."""
    products = rows @ points.T
    lengths = np.square(rows).sum(axis=1)[:, None] + np.square(points).sum(axis=1)[None]
    squares: npt.NDArray[np.float32] = np.maximum(lengths - 2.0 * products, 0.0)
    return squares


def _add_rows(sums: npt.NDArray[np.float64], labels: npt.NDArray[np.int32], rows: Vectors) -> None:
    """Add every row to the sum of its label."""
    order = np.argsort(labels, kind="stable")
    present, starts = np.unique(labels[order], return_index=True)
    if len(present):
        sums[present] += np.add.reduceat(rows[order].astype(np.float64), starts, axis=0)
