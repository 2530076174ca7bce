"""Which found boxes are right: the matching of COCO at one overlap, and what follows for thresholds.

Boxes of one label in one image are gone through from the surest down; each takes the drawn box with which it overlaps
most among those that are left, if that is enough. So what is right among boxes from a score on does not depend on those
below, and one matching serves all thresholds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from annotary.evaluation.box_files import DrawnBox, DrawnBoxes, FoundBox

Floats: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int64]
Booleans: TypeAlias = npt.NDArray[np.bool_]

ENOUGH = 0.5
"""The overlap (intersection over union) from which on a box is right, 0..1."""


class Matches(NamedTuple):
    """Found boxes and whether they are right; those that are neither right nor wrong are left out.

    Attributes:
        images: int64[n], by place.
        labels: int64[n], by place.
        scores: float64[n].
        are_right: bool[n].
        drawn: int64[images, labels], how many boxes there are to be found.
    """

    images: Integers
    labels: Integers
    scores: Floats
    are_right: Booleans
    drawn: Integers

    def of_images(self, are_chosen: Booleans) -> Matches:
        """What some of the images give.

        Args:
            are_chosen: bool[images].
        """
        kept = are_chosen[self.images]
        return Matches(
            self.images[kept],
            self.labels[kept],
            self.scores[kept],
            self.are_right[kept],
            self.drawn * are_chosen[:, None],
        )


def match_boxes(
    drawn: DrawnBoxes, found: Sequence[FoundBox], *, at_least: float = ENOUGH
) -> Matches:
    """Say of each found box whether it is right.

    Left out are boxes in crowds and, of LVIS, those of labels that were not looked for in their image, and wrong ones
    of labels of which not all were drawn.

    Args:
        drawn: The truth.
        found: What is measured.
        at_least: The overlap from which on a box is right, 0..1.
    """
    truth: dict[tuple[int, int], list[DrawnBox]] = defaultdict(list)
    for box in drawn.boxes:
        truth[box.image, box.label].append(box)
    candidates: dict[tuple[int, int], list[FoundBox]] = defaultdict(list)
    for one in found:
        candidates[one.image, one.label].append(one)
    rows: list[tuple[int, int, float, bool]] = []
    for (image, label), own in candidates.items():
        there = truth.get((image, label), [])
        whole = drawn.images[image]
        if drawn.is_lvis and not there and label not in whole.absent:
            continue
        own.sort(key=lambda one: -one.score)
        for one, is_right in zip(own, _are_right(own, there, at_least), strict=True):
            if is_right is None or (not is_right and label in whole.unfinished):
                continue
            rows.append((image, label, one.score, is_right))
    counts = np.zeros((len(drawn.images), len(drawn.labels)), dtype=np.int64)
    for box in drawn.boxes:
        counts[box.image, box.label] += not box.is_crowd
    columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
    return Matches(
        np.array(columns[0], dtype=np.int64),
        np.array(columns[1], dtype=np.int64),
        np.array(columns[2], dtype=np.float64),
        np.array(columns[3], dtype=np.bool_),
        counts,
    )


def _are_right(
    found: Sequence[FoundBox], drawn: Sequence[DrawnBox], at_least: float
) -> list[bool | None]:
    """Whether boxes of one label in one image are right, the surest first; None for those in a crowd."""
    if not drawn:
        return [False] * len(found)
    overlaps = overlaps_of(found, drawn)
    crowds = np.array([box.is_crowd for box in drawn])
    is_free = ~crowds
    right: list[bool | None] = []
    for row in overlaps:
        best = int(np.argmax(np.where(is_free, row, -1.0)))
        if is_free[best] and row[best] >= at_least:
            is_free[best] = False
            right.append(True)
        else:
            right.append(None if (row[crowds] >= at_least).any() else False)
    return right


def overlaps_of(found: Sequence[FoundBox], drawn: Sequence[DrawnBox]) -> Floats:
    """Intersection over union float64[found, drawn]; with a crowd, intersection over what was found, as COCO has it."""
    first = np.array([box.xywh for box in found], dtype=np.float64).reshape(-1, 4)
    second = np.array([box.xywh for box in drawn], dtype=np.float64).reshape(-1, 4)
    ends = [boxes[:, :2] + boxes[:, 2:] for boxes in (first, second)]
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(ends[0][:, None], ends[1][None])
    shared = np.clip(high - low, 0.0, None).prod(axis=2)
    areas = [boxes[:, 2] * boxes[:, 3] for boxes in (first, second)]
    crowds = np.array([box.is_crowd for box in drawn], dtype=np.bool_)
    union = np.where(crowds, areas[0][:, None], areas[0][:, None] + areas[1] - shared)
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0))
