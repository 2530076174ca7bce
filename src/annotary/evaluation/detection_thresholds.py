"""Thresholds of detectors that are fitted on labelled images: for each label the score from which on its F1 is best.

F1 is that of boxes at an overlap of 0.5. Few boxes say little about where F1 is best, all labels together say a lot: so
a label is fitted as if it had, beside its own boxes, three more that are like those of all labels; what is chosen is
never worse on the images it was fitted on than the one threshold that is best for all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from annotary.evaluation.box_matching import Matches

Floats: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int64]
Booleans: TypeAlias = npt.NDArray[np.bool_]

_DIGITS = 4
"""Of a threshold below all scores."""

_LIKE_ALL = 3.0
"""Boxes of all labels that count beside a label's own."""

_MOST_CANDIDATES = 2000
"""Thresholds that are tried for all labels together."""


class BestF1(NamedTuple):
    """The threshold with the best F1, and what it comes to.

    Attributes:
        threshold: Boxes from this score on are given.
        f1: In 0..1.
        precision: In 0..1.
        recall: In 0..1.
    """

    threshold: float
    f1: float
    precision: float
    recall: float


@dataclass(frozen=True)
class ThresholdFit:
    """What labelled images say about thresholds.

    Attributes:
        thresholds: Of each label, in their order, 0..1.
        single: The one threshold that is best for all labels.
        is_own: Whether each label has a threshold of its own.
        measured: `macro_f1` (the mean of labels), and `f1`, `precision` and `recall` of all boxes together: with
            `single` and with `thresholds` on the images that were fitted on (`fitted_single`, `fitted_each`), and on
            images that were not (`held_out_single`, `held_out_each`).
        parts: Into how many parts images were dealt, each of which was scored with what the others give; 0 for none.
    """

    thresholds: Floats
    single: float
    is_own: Booleans
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    parts: int = 0

    @property
    def is_helpful(self) -> bool:
        """Whether thresholds of their own do better on images that were not fitted on; true when nobody knows."""
        if not self.parts:
            return bool(self.is_own.any())
        own, one = self.measured["held_out_each"], self.measured["held_out_single"]
        return own["macro_f1"] > one["macro_f1"]


def best_f1(scores: Floats, are_right: Booleans, there: int) -> BestF1 | None:
    """The threshold with the best F1, midway between the scores that it parts; None where nothing is right.

    Args:
        scores: float64[n], finite.
        are_right: bool[n].
        there: How many boxes are to be found.
    """
    order = np.argsort(-scores, kind="stable")
    ordered, right = scores[order], np.cumsum(are_right[order])
    if not there or not len(ordered) or not right[-1]:
        return None
    is_end = np.append(ordered[1:] < ordered[:-1], True)  # equal scores are given together
    ends = np.flatnonzero(is_end)
    f1 = 2.0 * right[ends] / (ends + 1 + there)
    best = int(np.argmax(f1))
    end = int(ends[best])
    below = float(ordered[end + 1]) if end + 1 < len(ordered) else None
    return BestF1(
        _between(float(ordered[end]), below),
        float(f1[best]),
        float(right[end] / (end + 1)),
        float(right[end] / there),
    )


def fit_box_thresholds(
    matches: Matches, *, minimum_boxes: int = 5, parts: int = 10, seed: int = 0
) -> ThresholdFit:
    """Choose a threshold for each label.

    Args:
        matches: What is right among boxes that were found with a threshold as low as can be.
        minimum_boxes: Labels with fewer drawn boxes take the one threshold that is best for all.
        parts: Into how many parts images are dealt, to measure on what was not fitted on; at most one an image.
        seed: Of the dealing; it changes what is told, not what is chosen.

    Raises:
        ValueError: No found box is right.
    """
    if not matches.are_right.any():
        raise ValueError("no found box is right, so there is nothing to learn from")
    thresholds, single, is_own = _fit(matches, minimum_boxes)
    measured = {
        "fitted_single": _measure(matches, np.full(len(thresholds), single)),
        "fitted_each": _measure(matches, thresholds),
    }
    images = np.arange(len(matches.drawn))
    parts = min(parts, len(images))
    dealt = np.random.default_rng(seed).permutation(len(images)) % max(parts, 1)
    rests = [matches.of_images(dealt != part) for part in range(parts)] if parts > 1 else []
    if not rests or not all(rest.are_right.any() for rest in rests):
        return ThresholdFit(thresholds, single, is_own, measured)
    each, one = np.empty((2, len(images), len(thresholds)))
    for part, rest in enumerate(rests):
        own, together, _ = _fit(rest, minimum_boxes)
        each[dealt == part], one[dealt == part] = own, together
    measured["held_out_single"] = _measure_rows(matches, one)
    measured["held_out_each"] = _measure_rows(matches, each)
    return ThresholdFit(thresholds, single, is_own, measured, parts)


def _fit(matches: Matches, minimum_boxes: int) -> tuple[Floats, float, Booleans]:
    there = matches.drawn.sum(axis=0)
    single = _single(matches, there)
    curve = _Curve(matches.scores, matches.are_right)
    total = int(there.sum())
    chosen = np.full(len(there), single)
    is_own = np.zeros(len(there), dtype=np.bool_)
    for label in np.flatnonzero(there >= max(minimum_boxes, 1)):
        own = matches.labels == label
        scores, are_right = matches.scores[own], matches.are_right[own]
        if not are_right.any():
            continue
        candidates = np.unique(scores)
        own_curve, count = _Curve(scores, are_right), int(there[label])
        given, right = own_curve.at(candidates)
        of_all, right_of_all = curve.at(candidates)
        weight = _LIKE_ALL / total
        smooth = (
            2.0 * (right + weight * right_of_all) / (given + weight * of_all + count + _LIKE_ALL)
        )
        best = int(np.flatnonzero(smooth >= smooth.max() - 1e-12)[-1])
        below = float(candidates[best - 1]) if best else None
        threshold = _between(float(candidates[best]), below)
        is_own[label] = own_curve.f1(threshold, count) >= own_curve.f1(single, count)
        chosen[label] = threshold if is_own[label] else single
    return chosen, single, is_own


def _single(matches: Matches, there: Integers) -> float:
    """The threshold whose F1, the mean over labels that are there, is best; of equals the highest."""
    candidates = np.unique(matches.scores)
    if len(candidates) > _MOST_CANDIDATES:
        places = np.linspace(0, len(candidates) - 1, _MOST_CANDIDATES).round().astype(np.int64)
        candidates = candidates[np.unique(places)]
    total = np.zeros(len(candidates))
    for label in np.flatnonzero(there):
        own = matches.labels == label
        given, right = _Curve(matches.scores[own], matches.are_right[own]).at(candidates)
        total += 2.0 * right / (given + there[label])
    best = int(np.flatnonzero(total >= total.max() - 1e-12)[-1])
    lower = matches.scores[matches.scores < candidates[best]]
    return _between(float(candidates[best]), float(lower.max()) if len(lower) else None)


class _Curve:
    """How many boxes a threshold gives, and how many of them are right."""

    def __init__(self, scores: Floats, are_right: Booleans) -> None:
        order = np.argsort(scores)
        self._scores = scores[order]
        self._right = np.append(np.cumsum(are_right[order][::-1])[::-1], 0)

    def at(self, thresholds: Floats) -> tuple[Integers, Integers]:
        """What each threshold gives."""
        start = np.searchsorted(self._scores, thresholds, side="left")
        return len(self._scores) - start, self._right[start]

    def f1(self, threshold: float, there: int) -> float:
        """F1 with a threshold."""
        given, right = self.at(np.array([threshold]))
        return float(2.0 * right[0] / (given[0] + there))


def _measure(matches: Matches, thresholds: Floats) -> dict[str, float]:
    """F1, precision and recall with a threshold for each label."""
    return _measure_rows(matches, np.broadcast_to(thresholds, matches.drawn.shape))


def _measure_rows(matches: Matches, thresholds: Floats) -> dict[str, float]:
    """F1, precision and recall with a threshold for each image and label."""
    is_given = matches.scores >= thresholds[matches.images, matches.labels]
    labels = matches.drawn.shape[1]
    given = np.bincount(matches.labels[is_given], minlength=labels)
    right = np.bincount(matches.labels[is_given & matches.are_right], minlength=labels)
    there = matches.drawn.sum(axis=0)
    are_there = there > 0
    f1 = 2.0 * right[are_there] / (given[are_there] + there[are_there])
    return {
        "macro_f1": float(f1.mean()),
        "f1": float(2.0 * right.sum() / (given.sum() + there.sum())),
        "precision": float(right.sum() / given.sum()) if given.sum() else 1.0,
        "recall": float(right.sum() / there.sum()),
    }


def _between(score: float, below: float | None) -> float:
    """A threshold of few digits that is above `below` and below `score`, so that "above" and "from" mean the same.

    Where nothing is below, it is a little under the score; 0 at the least.
    """
    if below is None:
        step = 10.0**_DIGITS
        return max(0.0, (math.ceil(score * step) - 1) / step)
    for digits in (3, 4, 6, 9):
        short = round((score + below) / 2.0, digits)
        if below < short < score:
            return short
    return score
