"""A small detector that really computes, without weights: it sees spots of one colour, and knows the words for colours.

A place is a rectangle that differs from the grey around it, and its logit the cosine of its colour and of a text, as
`SmallEncoder` has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from annotary.cards import PreprocessSpec
from annotary.tasks.encoding import Texts
from annotary.tasks.locating import Located, Queries
from tests.small_encoder import SIDE, SmallEncoder

INPUT = 64
"""Pixels of its input, which is square."""

MOST_PLACES = 16


class SmallDetector(SmallEncoder):
    """As `annotary.tasks.locating.Detector`; queries are texts of few words.

    Args:
        name: Of its card.
        batch_size: Images at once.
    """

    def __init__(self, name: str = "small-detector", *, batch_size: int = 4) -> None:
        super().__init__(name=name, most_words=4, batch_size=batch_size)
        spec = PreprocessSpec(size=(INPUT, INPUT), fit="squash", resample="box")
        self.card = replace(self.card, preprocess=spec)
        self.located = 0

    def embed_queries(self, texts: Sequence[str]) -> Texts:
        """Texts as queries."""
        return self.embed_texts(texts)

    def locate(self, batch: npt.NDArray[np.generic], queries: Queries) -> Located:
        """The spots of images float32[b, 3, INPUT, INPUT], 0..1."""
        with self._lock:
            self.located += len(batch)
        boxes = np.zeros((len(batch), MOST_PLACES, 4), np.float32)
        logits = np.full((len(batch), MOST_PLACES, len(queries)), -20.0, np.float32)
        for image, own_boxes, own_logits in zip(batch, boxes, logits, strict=True):
            spots = _spots(np.asarray(image, np.float64))[:MOST_PLACES]
            for place, (left, top, right, bottom) in enumerate(spots):
                own_boxes[place] = np.array([left, top, right, bottom]) / INPUT
                crop = image[:, top:bottom, left:right].mean(axis=(1, 2))
                plain = np.broadcast_to(crop[None, :, None, None], (1, 3, SIDE, SIDE))
                own_logits[place] = 12.0 * (self.embed_images(plain) @ queries.T)[0] - 8.0
        return Located(boxes, logits)


def _spots(image: npt.NDArray[np.float64]) -> list[tuple[int, int, int, int]]:
    """Rectangles of one colour that is not grey: left, top, right and bottom edge."""
    waits = np.ptp(image, axis=0) > 0.2
    found = []
    while waits.any():
        top, left = (int(value) for value in np.argwhere(waits)[0])
        same = waits & (np.abs(image - image[:, top, left, None, None]).max(axis=0) < 0.1)
        right = left + _run(same[top, left:])
        bottom = top + _run(same[top:, left])
        waits[top:bottom, left:right] = False
        found.append((left, top, right, bottom))
    return found


def _run(values: npt.NDArray[np.bool_]) -> int:
    """How many are true before the first that is not."""
    return len(values) if values.all() else int(np.argmin(values))
