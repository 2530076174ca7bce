"""Embedding: every image as a point on the unit sphere, near to what is like it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from annotary.cards import PreprocessSpec
from annotary.records import Embedding, Item
from annotary.tasks.encoding import ImageEncoder


class Embed:
    """The task of embedding.

    Args:
        model: The encoder.
    """

    part = "embedding"

    def __init__(self, model: ImageEncoder) -> None:
        self._model = model

    @property
    def source(self) -> str:
        """The id of the model's card."""
        return self._model.card.id

    @property
    def inputs(self) -> tuple[PreprocessSpec, ...]:
        """How the model's images are prepared."""
        return (self._model.card.preprocess,)

    @property
    def streams(self) -> int:
        """How many batches the network works on at once, at its best."""
        return self._model.streams

    @property
    def batch_size(self) -> int:
        """How many images the network takes at once, at its best."""
        return self._model.batch_size

    def annotate(
        self, items: Sequence[Item], *batches: npt.NDArray[np.generic]
    ) -> list[Mapping[str, Any]]:
        """The `embedding` of every image."""
        (batch,) = batches
        # Eight decimals are more than float32 holds of most numbers, and a third of the text of float64.
        vectors = np.round(self._model.embed_images(batch).astype(np.float64), 8)
        return [{"embedding": Embedding(tuple(vector.tolist()))} for vector in vectors]

    def settings(self) -> dict[str, Any]:
        """What vectors depend on beside the model: nothing."""
        return {}
