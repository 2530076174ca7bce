"""Which of boxes that lie on each other stay: the best, as non-maximum suppression chooses."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Boxes = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]


def kept_boxes(
    boxes: Boxes, scores: npt.NDArray[np.float64], labels: Places | None, overlap: float
) -> Places:
    """Which boxes stay, the best first. Of equal scores the first counts as better.

    Args:
        boxes: float64[n, 4], `xyxy` in any measure.
        scores: float64[n].
        labels: One a box; boxes of different labels leave each other alone. None: all are compared.
        overlap: A box goes that shares more than this with a better one that stays: intersection over union, 0..1.
    """
    order = np.argsort(-scores, kind="stable")
    # Boxes in the order of scores, so that whatever is compared is a piece of memory.
    sorted_boxes = boxes[order]
    sorted_labels = None if labels is None else labels[order]
    is_left = np.ones(len(order), np.bool_)
    kept = []
    for place in range(len(order)):
        if not is_left[place]:
            continue
        kept.append(place)
        rest = np.flatnonzero(is_left[place + 1 :]) + place + 1
        if sorted_labels is not None:
            rest = rest[sorted_labels[rest] == sorted_labels[place]]
        shares = overlaps(sorted_boxes[place], sorted_boxes[rest])
        is_left[rest[shares > overlap]] = False
    return np.asarray(order[kept], dtype=np.intp)


def overlaps(box: Boxes, others: Boxes) -> Boxes:
    """Intersection over union of a box float64[4] and others float64[n, 4], 0..1; 0 where both have no area."""
    shared = intersections(box, others)
    together = areas(box) + areas(others) - shared
    return np.divide(shared, together, out=np.zeros_like(shared), where=together > 0.0)


def intersections(box: Boxes, others: Boxes) -> Boxes:
    """The area that a box float64[4] shares with others float64[n, 4]."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    return np.asarray(np.prod(np.maximum(sides, 0.0), axis=1))


def areas(boxes: Boxes) -> Boxes:
    """The areas of boxes float64[..., 4]."""
    return np.asarray(np.prod(np.maximum(boxes[..., 2:] - boxes[..., :2], 0.0), axis=-1))
