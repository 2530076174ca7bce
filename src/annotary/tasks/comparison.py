"""How alike two things are, images or texts: the cosine, and what the model makes of it."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from annotary.tasks.encoding import DualEncoder, Vectors
from annotary.tasks.label_sets import DEFAULT_BACKGROUND


class Comparison(NamedTuple):
    """How alike two things are.

    Attributes:
        cosine: Of their vectors, -1..1.
        probability: How probably an image and a text belong together, 0..1; None for two images or two texts, of which
            models say nothing.
    """

    cosine: float
    probability: float | None


class Comparer:
    """Compares an image and a text as the weights say.

    Weights whose scores are sigmoids say it themselves: `sigmoid(scale * cosine + bias)`. Where texts compete, the text
    competes with sentences that fit any image: `sigmoid(logit - log(mean(exp(their logits))))`.

    Args:
        model: Embeds images and texts.
        background: Those sentences.
    """

    def __init__(
        self, model: DualEncoder, background: tuple[str, ...] = DEFAULT_BACKGROUND
    ) -> None:
        self._similarity = model.similarity
        self._background: Vectors | None = None
        if self._similarity.kind == "softmax":
            self._background = model.embed_texts(background).vectors

    def match(self, image: Vectors, text: Vectors) -> Comparison:
        """Compare an image float32[d] and a text float32[d], both of length 1."""
        cosine = cosine_of(image, text)
        logit = self._similarity.scale * cosine + self._similarity.bias
        if self._background is not None:
            others = (self._background @ image).astype(np.float64) * self._similarity.scale
            highest = others.max()
            logit -= float(highest + np.log(np.mean(np.exp(others - highest))))
        return Comparison(cosine, 0.5 * (1.0 + math.tanh(0.5 * logit)))


def cosine_of(one: Vectors, other: Vectors) -> float:
    """The cosine of two vectors float32[d] of length 1."""
    return float(np.clip(one.astype(np.float64) @ other.astype(np.float64), -1.0, 1.0))
