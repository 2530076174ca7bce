"""Embedding: every image as a point on the unit sphere, near to what is like it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from annotary.records import Embedding
from annotary.tasks import Picture
from annotary.tasks.asking import AsksOneModel
from annotary.tasks.encoding import ImageEncoder


class Embed(AsksOneModel[ImageEncoder]):
    """The task of embedding.

    Args:
        model: The encoder.
    """

    part = "embedding"

    def annotate(
        self, pictures: Sequence[Picture], *batches: npt.NDArray[np.generic]
    ) -> list[Mapping[str, Any]]:
        """The `embedding` of every image."""
        (batch,) = batches
        # Eight decimals are more than float32 holds of most numbers, and a third of the text of float64.
        vectors = np.round(self._model.embed_images(batch).astype(np.float64), 8)
        return [{"embedding": Embedding(tuple(vector.tolist()))} for vector in vectors]

    def settings(self) -> dict[str, Any]:
        """What vectors depend on beside the model: nothing."""
        return {}
