"""Taggers that are an ONNX file and a table of tags: the starter, and any directory with a card that says so.

The file takes images as the card's `[preprocess]` says and gives `scores` [b, t], one for each row of `tags.csv`, and
may give `features` [b, d].
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from annotary.cards import Card, Vocabulary, read_vocabulary
from annotary.errors import ModelError
from annotary.runtime import Choice, RuntimeOptions
from annotary.runtime.onnx_runtime import OnnxSession

MODEL_FILE = "model.onnx"


class OnnxTagger:
    """A tagger in ONNX.

    Attributes:
        card: What it is.
        vocabulary: Its tags.
    """

    def __init__(self, card: Card, vocabulary: Vocabulary, session: OnnxSession) -> None:
        self.card = card
        self.vocabulary = vocabulary
        self.streams = session.choice.streams
        self.batch_size = session.fixed_batch or (4 if session.choice.device == "cpu" else 32)
        self._session = session
        if "scores" not in session.outputs and len(session.outputs) > 1:
            raise ModelError(f"{card.id} has several outputs and none is called scores")
        self._scores = "scores" if "scores" in session.outputs else session.outputs[0]

    @property
    def choice(self) -> Choice:
        """What it runs on, and why."""
        return self._session.choice

    def tag_scores(self, batch: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """Probabilities float32[b, t], 0..1, for a batch prepared as the card says."""
        scores = self._session.run(batch, self._scores)
        expected = (len(batch), len(self.vocabulary))
        if scores.shape != expected:
            raise ModelError(f"{self.card.id} gives scores {scores.shape} for {expected[1]} tags")
        if self.card.activation == "sigmoid":
            # Beyond 80 float32 would overflow, and the probability is 0 or 1 anyway.
            scores = np.float32(1.0) / (np.float32(1.0) + np.exp(-np.clip(scores, -80, 80)))
        if not ((scores >= 0.0) & (scores <= 1.0)).all():
            raise ModelError(
                f"{self.card.id} gives scores outside of 0..1; does its card lack"
                ' activation = "sigmoid"?'
            )
        return scores

    def features(self, batch: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """The pooled embedding float32[b, d], not normalised.

        Raises:
            ModelError: The file has no output `features`.
        """
        if "features" not in self._session.outputs:
            raise ModelError(f"{self.card.id} gives no features")
        return self._session.run(batch, "features")


def load(card: Card, directory: Path, options: RuntimeOptions) -> OnnxTagger:
    """The tagger of a model directory."""
    session = OnnxSession(directory / MODEL_FILE, options)
    return OnnxTagger(card, read_vocabulary(directory), session)
