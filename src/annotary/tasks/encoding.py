"""Images and texts as points on one sphere: what an encoder is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt

from annotary.cards import Card, Similarity
from annotary.errors import UsageError
from annotary.models import Model
from annotary.models._texts import Texts as Texts

Vectors = npt.NDArray[np.float32]
"""float32[n, d]; the length of every row is 1."""


class ImageEncoder(Protocol):
    """A model that embeds images."""

    card: Card
    streams: int
    batch_size: int

    def embed_images(self, batch: npt.NDArray[np.generic]) -> Vectors:
        """Unit vectors float32[b, d] for a batch prepared as the card says. Thread-safe."""


class DualEncoder(ImageEncoder, Protocol):
    """A model that embeds images and texts alike, so that the cosine tells how well they fit."""

    @property
    def similarity(self) -> Similarity:
        """How a cosine becomes a score."""

    def embed_texts(self, texts: Sequence[str]) -> Texts:
        """Unit vectors of any number of texts, in their order. Thread-safe.

        It works through them in batches of its own; memory grows with the result alone. No template is added.
        """


def image_encoder(model: Model) -> ImageEncoder:
    """A model as an encoder of images.

    Raises:
        UsageError: It has not that ability.
    """
    if not hasattr(model, "embed_images"):
        raise UsageError(f"{model.card.id} does not embed images; choose another model")
    return cast(ImageEncoder, model)


def dual_encoder(model: Model) -> DualEncoder:
    """A model as an encoder of images and texts.

    Raises:
        UsageError: It has not that ability.
    """
    if not hasattr(model, "embed_images") or not hasattr(model, "embed_texts"):
        raise UsageError(
            f"{model.card.id} does not know texts; choose a model that embeds images and texts, such as starter"
        )
    return cast(DualEncoder, model)
