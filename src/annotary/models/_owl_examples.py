"""Which of a detector's many boxes stands for an example: the rule of OWL-ViT's own code.

Of the boxes that cover the example best, one is good, and the others are of the background: training matches one box
to each thing. OWL-ViT's rule takes the one that is least like all places of the image together (scenic,
`notebooks/inference.py`, `embed_image_query`); OWLv2 has learned to tell things from the background, and the highest
of that decides.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

_NEAR = 0.8
"""Share of the best overlap from which on a box covers the example, too."""

_NEAR_APART = 1.2
"""The same where nothing overlaps: what measures how far boxes are apart is below 0, and 0.8 of the best is better than
the best, so that nothing is left (huggingface/transformers#25490)."""


def chosen_place(boxes: Floats, example: Floats, classes: Floats, objectness: Floats | None) -> int:
    """The place whose box stands for an example.

    Args:
        boxes: float32[n, 4], `xyxy`.
        example: float32[4], `xyxy`, in the same measure.
        classes: float32[n, e]: what is at each place, of any length.
        objectness: float32[n]: how much each looks like a thing; None for a detector that does not say.
    """
    overlaps, apart = overlap(boxes, example)
    if (overlaps == 0.0).all():
        near = np.flatnonzero(apart >= apart.max() * (_NEAR_APART if apart.max() < 0 else _NEAR))
    else:
        near = np.flatnonzero(overlaps >= overlaps.max() * _NEAR)
    if objectness is not None:
        return int(near[np.argmax(objectness[near])])
    return int(near[np.argmin(classes[near] @ classes.mean(axis=0))])


def overlap(boxes: Floats, example: Floats) -> tuple[Floats, Floats]:
    """Intersection over union with an example, 0..1, and the generalised one, -1..1 (Rezatofighi et al., 2019).

    Args:
        boxes: float32[n, 4], `xyxy`.
        example: float32[4].
    """
    inner = np.minimum(boxes[:, 2:], example[2:]) - np.maximum(boxes[:, :2], example[:2])
    outer = np.maximum(boxes[:, 2:], example[2:]) - np.minimum(boxes[:, :2], example[:2])
    shared = np.prod(np.maximum(inner, 0.0), axis=1)
    sizes = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0.0), axis=1)
    union = np.maximum(sizes + np.prod(example[2:] - example[:2]) - shared, 1e-12)
    around = np.maximum(np.prod(outer, axis=1), 1e-12)
    return shared / union, shared / union - (around - union) / around
