"""Names for clusters: the tags that set their images apart, or the words that are nearest to their centres."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from annotary.catalog.clusters import NOISE

Vectors = npt.NDArray[np.float32]

LEAST_SHARE = 0.1
"""Of the images of a cluster that must have a tag which names it."""

LEAST_LIFT = 1.2
"""How many times more frequent a tag must be in a cluster that it names than it is on the whole."""


def names_by_tags(
    images: Iterable[tuple[int, Iterable[str]]], clusters: int, top: int = 3
) -> list[tuple[str, ...]]:
    """The tags that set clusters apart, the best first.

    A tag's worth is its share in the cluster times the logarithm of its lift, which is that share over its share in all
    images. So a tag that all images have names nothing, and neither does one that a single image has.

    Args:
        images: Cluster and tags of every image; a cluster of -1 is none, but counts among all images.
        clusters: How many there are.
        top: Names of each, at most.

    Returns:
        For each cluster its names; none where no tag sets it apart.
    """
    sizes, total = Counter[int](), 0
    found: list[Counter[str]] = [Counter() for _ in range(clusters)]
    overall: Counter[str] = Counter()
    for cluster, tags in images:
        different = set(tags)
        total += 1
        overall.update(different)
        if cluster != NOISE:
            sizes[cluster] += 1
            found[cluster].update(different)
    names = []
    for cluster, counts in enumerate(found):
        worth = {}
        for tag, count in counts.items():
            share = count / sizes[cluster]
            lift = share * total / overall[tag]
            if share >= LEAST_SHARE and lift >= LEAST_LIFT:
                worth[tag] = share * math.log(lift)
        # With one cluster nothing sets it apart: what is frequent tells what it is.
        if not worth and sizes[cluster] == total:
            worth = {tag: count / total for tag, count in counts.items() if count * 2 >= total}
        names.append(tuple(sorted(worth, key=lambda tag: (-worth[tag], tag))[:top]))
    return names


def names_by_texts(
    centres: Vectors, mean: Vectors, names: Sequence[str], texts: Vectors, top: int = 3
) -> list[tuple[str, ...]]:
    """The words that are nearest to the centres of clusters, the nearest first.

    Images and texts lie in two cones of their own (Liang et al., "Mind the Gap", 2022), and what all images have in
    common says nothing of one cluster; so from either side its mean is taken away first.

    Args:
        centres: float32[k, d], of the clusters.
        mean: float32[d], of all images.
        names: The words.
        texts: float32[t, d], their unit vectors.
        top: Names of each, at most.
    """
    if not len(names):
        return [()] * len(centres)
    away = _unit(centres - mean) if len(centres) > 1 else _unit(centres)
    words = _unit(texts - texts.mean(axis=0)) if len(names) > 1 else texts
    order = np.argsort(-(away @ words.T), axis=1, kind="stable")[:, :top]
    return [tuple(names[place] for place in row) for row in order.tolist()]


def _unit(rows: Vectors) -> Vectors:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Vectors = (rows / np.maximum(lengths, 1e-12)).astype(np.float32)
    return unit
