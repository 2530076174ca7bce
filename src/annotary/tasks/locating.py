"""Where things are in images: what detectors are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt

from annotary.cards import Card
from annotary.errors import UsageError
from annotary.models import Model
from annotary.models._located import Located as Located
from annotary.models._texts import Texts

Queries = npt.NDArray[np.float32]
"""float32[q, d]: what is looked for, one row a query. A mean of rows gives the mean of their logits."""


class Detector(Protocol):
    """A model that finds what words say, anywhere in images."""

    card: Card
    streams: int
    batch_size: int

    def embed_queries(self, texts: Sequence[str]) -> Texts:
        """Texts as queries, in their order, and which of them were too long. Thread-safe. No template is added."""

    def locate(self, batch: npt.NDArray[np.generic], queries: Queries) -> Located:
        """All places of all images, in one pass of the network however many queries there are. Thread-safe.

        Args:
            batch: b images, prepared as the card says.
            queries: float32[q, d].
        """


class ImageGuidedDetector(Detector, Protocol):
    """A detector that finds what an example shows, too."""

    def queries_like(
        self, batch: npt.NDArray[np.generic], boxes: npt.NDArray[np.float32]
    ) -> Queries:
        """What is in a box of each image, as queries float32[b, d]. Thread-safe.

        Args:
            batch: b images, prepared as the card says.
            boxes: float32[b, 4], `xyxy`, 0..1 of the network's input.
        """


def detector(model: Model) -> Detector:
    """A model as a detector.

    Raises:
        UsageError: It has not that ability.
    """
    if not hasattr(model, "locate"):
        raise UsageError(
            f"{model.card.id} finds no boxes; say --model owlv2-base-patch16-ensemble or another detector, which"
            " annotary pull fetches (--detect-model in annotary annotate)"
        )
    return cast(Detector, model)


def image_guided_detector(model: Detector) -> ImageGuidedDetector:
    """A detector as one that takes examples.

    Raises:
        UsageError: It has not that ability.
    """
    if not hasattr(model, "queries_like"):
        raise UsageError(f"{model.card.id} takes no example image; say labels in words")
    return cast(ImageGuidedDetector, model)
