"""What a tagger's network gives, as probabilities."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from annotary.cards import Card
from annotary.errors import ModelError


def probabilities(
    card: Card, scores: npt.NDArray[np.float32], images: int, tags: int
) -> npt.NDArray[np.float32]:
    """Scores float32[b, t] of a network as probabilities 0..1, by the activation that its card says.

    Args:
        card: Of the network.
        scores: As the network gives them.
        images: How many images went in.
        tags: How many tags the vocabulary has.

    Raises:
        ModelError: There is not one score a tag, or they are no probabilities.
    """
    if scores.shape != (images, tags):
        raise ModelError(f"{card.id} gives scores {scores.shape} for {tags} tags")
    if card.activation == "sigmoid":
        # Beyond 80 float32 would overflow, and the probability is 0 or 1 anyway.
        scores = np.float32(1.0) / (np.float32(1.0) + np.exp(-np.clip(scores, -80, 80)))
    if np.isnan(scores).any():
        raise ModelError(
            f"{card.id} gives scores that are no numbers; does it need --precision fp32?"
        )
    if not ((scores >= 0.0) & (scores <= 1.0)).all():
        raise ModelError(
            f'{card.id} gives scores outside of 0..1; does its card lack activation = "sigmoid"?'
        )
    return scores
