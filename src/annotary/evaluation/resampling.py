"""How far a number would move with other images: the bootstrap, and the correlation of two orders.

Efron 1979; Kendall 1945 (tau-b) and Stuart 1953 (tau-c) for orders with ties; Spearman 1904.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from annotary.evaluation.zero_shot import Interval

Floats: TypeAlias = npt.NDArray[np.float64]

_AT_ONCE = 64
"""Rounds that are drawn together."""

_PAIRS = 1 << 24
"""Pairs that are compared together."""


class Correlation(NamedTuple):
    """How far two orders agree, -1..1; None where one of them is the same all over.

    Attributes:
        pairs: How many values there are in each.
        kendall_b: Kendall's tau-b.
        kendall_c: Stuart's tau-c, with which Hessel et al. 2021 report on Flickr8k-Expert.
        spearman: Of the ranks, of equals the mean rank.
    """

    pairs: int
    kendall_b: float | None
    kendall_c: float | None
    spearman: float | None


def resampled_sums(
    values: Floats, groups: npt.NDArray[np.int64], *, seed: int, rounds: int
) -> Floats:
    """Sums over as many groups as there are, drawn with replacement, again and again.

    Args:
        values: float64[n, k].
        groups: int64[n]: rows of one group are drawn together.
        seed: Of the drawing.
        rounds: How often.

    Returns:
        float64[rounds, k].
    """
    _, place = np.unique(groups, return_inverse=True)
    count = int(place.max()) + 1
    sums = np.zeros((count, values.shape[1]))
    np.add.at(sums, place, values)
    generator = np.random.default_rng(seed)
    shares = np.full(count, 1.0 / count)
    drawn = [
        generator.multinomial(count, shares, size=min(_AT_ONCE, rounds - start)) @ sums
        for start in range(0, rounds, _AT_ONCE)
    ]
    return np.concatenate(drawn)


def interval(drawn: Floats) -> Interval:
    """Where the middle 95 % of some numbers lie."""
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(low), float(high))


def correlation(first: Floats, second: Floats) -> Correlation:
    """How far two orders of the same things agree.

    Args:
        first: Finite numbers.
        second: As many.

    Raises:
        ValueError: They are not as many, or not finite.
    """
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"expected as many values, but got {first.shape} and {second.shape}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("values must be finite")
    pairs = len(first)
    if pairs < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return Correlation(pairs, None, None, None)
    agreement = _agreement(first, second)
    total = pairs * (pairs - 1) // 2
    untied = math.sqrt(total - _ties(first)) * math.sqrt(total - _ties(second))
    least = min(len(np.unique(first)), len(np.unique(second)))
    ranks = np.corrcoef(_ranks(first), _ranks(second))[0, 1]
    return Correlation(
        pairs,
        agreement / untied,
        2.0 * agreement / (pairs**2 * (least - 1) / least),
        float(np.clip(ranks, -1.0, 1.0)),
    )


def _agreement(first: Floats, second: Floats) -> int:
    """Pairs in the same order less pairs in the opposite one."""
    places = [
        np.unique(values, return_inverse=True)[1].astype(np.int32) for values in (first, second)
    ]
    step = max(1, _PAIRS // len(first))
    found = 0
    for start in range(0, len(first), step):
        rows = slice(start, start + step)
        signs = [np.sign(own[rows, None] - own[None, :]).astype(np.int8) for own in places]
        found += int((signs[0] * signs[1]).sum(dtype=np.int64))
    return found // 2


def _ties(values: Floats) -> int:
    """Pairs of equals."""
    _, counts = np.unique(values, return_counts=True)
    return int((counts * (counts - 1) // 2).sum())


def _ranks(values: Floats) -> Floats:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean = last - (counts - 1) / 2.0
    return np.asarray(mean[place], dtype=np.float64)
