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
    stays = np.zeros(len(order), np.bool_)
    for some in [order] if labels is None else _by_label(order, labels):
        stays[_best(boxes, some, overlap)] = True
    return np.asarray(order[stays[order]], dtype=np.intp)


def _by_label(order: Places, labels: Places) -> list[Places]:
    """The places of each label, in the order that they have: with thousands of labels, few boxes are compared."""
    together = order[np.argsort(labels[order], kind="stable")]
    return np.split(together, np.flatnonzero(np.diff(labels[together])) + 1)


def _best(boxes: Boxes, order: Places, overlap: float) -> list[int]:
    """Places of the boxes that stay.

    Args:
        boxes: float64[n, 4].
        order: Places of boxes that are compared, the best first.
        overlap: From which on one goes.
    """
    kept = []
    # Boxes in their order, so that whatever is compared is a piece of memory.
    left_boxes, left = boxes[order], order
    while len(left):
        kept.append(int(left[0]))
        stays = ~(overlaps(left_boxes[0], left_boxes[1:]) > overlap)
        left_boxes, left = left_boxes[1:][stays], left[1:][stays]
    return kept


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
