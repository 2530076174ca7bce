"""What images are annotated with. A task asks a model for an ability, never for a family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from annotary.cards import PreprocessSpec
from annotary.records import Item


class Picture(NamedTuple):
    """An image as tasks see it, beside what the networks are given.

    Attributes:
        item: Which image it is.
        width: Pixels of the upright image.
        height: Pixels of the upright image.
        pixels: uint8[H, W, 3], RGB, upright and in full size, where the task asks for them; else None.
    """

    item: Item
    width: int
    height: int
    pixels: npt.NDArray[np.uint8] | None = None


class Task(Protocol):
    """One part of an annotation: what the networks need, and what their answer means."""

    @property
    def part(self) -> str:
        """The field of `Annotation` that it fills ("tags"); empty when all it finds stands beside the record."""

    @property
    def source(self) -> str:
        """The id of the card that answers."""

    @property
    def inputs(self) -> tuple[PreprocessSpec, ...]:
        """How images are prepared, once for each network that is asked."""

    @property
    def streams(self) -> int:
        """How many batches are worked on at once, at best."""

    @property
    def batch_size(self) -> int:
        """How many images are taken at once, at best."""

    def annotate(
        self, pictures: Sequence[Picture], *batches: npt.NDArray[np.generic]
    ) -> list[Mapping[str, Any]]:
        """What is found in the same images, prepared as `inputs` says. Safe to call from several threads.

        A task with an attribute `needs_pixels` that is true gets the pixels of all images in full size, too.

        Args:
            pictures: Which images they are.
            batches: Their pixels, once for each of `inputs`.

        Returns:
            For every image the value of its part, and of other fields of `Annotation` that follow from it, by name;
            what has another name is handed on beside the record.
        """
