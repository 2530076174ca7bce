"""The arithmetic of balancing: probabilities of entries and of texts, and which t gives which share.

Xu et al., "Demystifying CLIP Data", ICLR 2024 (arXiv 2309.16671), algorithm 1; t by the share of the tail as in
"MetaCLIP 2: A Worldwide Scaling Recipe" (arXiv 2507.22062) and its code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from annotary.errors import UsageError

Counts = npt.NDArray[np.uint64]

Lists = tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32]]
"""Lists of ids: int64[n + 1], where each begins, and uint32[m]."""


def entry_probabilities(counts: npt.NDArray[Any], t: float) -> npt.NDArray[np.float64]:
    """The probability of each entry, float64[entries]: t / max(count, t).

    Args:
        counts: How many texts match each entry.
        t: Above 0, finite.
    """
    if not 0 < t < math.inf:
        raise ValueError(f"t must be above 0 and finite, but got {t:g}")
    return t / np.maximum(np.asarray(counts, np.float64), float(t))


def text_probabilities(
    lists: Lists, probabilities: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """The probability with which each text is kept, float64[n]: that at least one of its entries is drawn.

    Args:
        lists: The ids of the entries of each text, each once.
        probabilities: Of each entry, above 0 and at most 1.
    """
    offsets, entries = lists
    found = np.zeros(len(offsets) - 1, np.float64)
    filled = np.flatnonzero(np.diff(offsets))
    if len(filled):
        with np.errstate(divide="ignore"):
            logarithms = np.log1p(-probabilities[entries])
        # Sums of logarithms, one for each text that has entries; an entry that is sure makes it minus infinity.
        found[filled] = -np.expm1(np.add.reduceat(logarithms, offsets[filled]))
    return found


def tail_share(counts: npt.NDArray[Any], t: float) -> float:
    """Which share of all matches is of entries with fewer texts than t (`t_to_p` of MetaCLIP 2), 0..1."""
    counts = np.asarray(counts, np.uint64)
    total = int(counts.sum())
    if not total:
        raise UsageError("no entry was matched by any text")
    return int(counts[counts < t].sum()) / total


def t_of_tail_share(counts: npt.NDArray[Any], share: float) -> int:
    """The greatest t whose tail share is at most `share`, at least 1.

    It is the inverse of `tail_share`: `tail_share(counts, t_of_tail_share(counts, tail_share(counts, t)))` is that of
    t, exactly, and a t that is the count of an entry comes back itself. (`p_to_t` of MetaCLIP 2 gives the greatest
    count of the tail, which is not in the tail of itself.)

    Args:
        counts: How many texts match each entry.
        share: 0..1.
    """
    values, repeats = np.unique(np.asarray(counts, np.uint64), return_counts=True)
    below = np.cumsum(
        values * repeats.astype(np.uint64)
    )  # matches of entries with at most so many texts
    if not len(below) or not below[-1]:
        raise UsageError("no entry was matched by any text")
    shares = [int(sum_) / int(below[-1]) for sum_ in below]
    for value, reached in zip(values, shares, strict=True):
        if reached > share:
            return max(1, int(value))
    return int(values[-1]) + 1


def least_t(counts: Counts, lists: Sequence[Lists], size: float) -> float:
    """The least t that is expected to keep at least `size` texts, found by halving: whole, or below 1,000 a fraction.

    Args:
        counts: How many texts match each entry.
        lists: The entries of texts.
        size: At most the number of texts.
    """

    def is_enough(t: float) -> bool:
        probabilities = entry_probabilities(counts, t)
        return sum(float(text_probabilities(one, probabilities).sum()) for one in lists) >= size

    whole = _least(1, max(1, int(counts.max(initial=1))), is_enough)
    if whole > 1_000:
        return whole
    # Where one more or less makes a difference: a fraction of so many parts is one number again in every report.
    parts = 2**20 if whole == 1 else 2**10
    below = whole - 1
    fraction = _least(1, parts, lambda part: is_enough(below + part / parts))
    return whole if fraction == parts else below + fraction / parts


def _least(low: int, high: int, is_enough: Callable[[int], bool]) -> int:
    """The least number from low to high that is enough; high, if the others are not."""
    while low < high:
        middle = (low + high) // 2
        if is_enough(middle):
            high = middle
        else:
            low = middle + 1
    return low
