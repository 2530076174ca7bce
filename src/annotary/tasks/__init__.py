"""What images are annotated with. A task asks a model for an ability, never for a family."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from annotary.cards import PreprocessSpec


class Task(Protocol):
    """One part of an annotation: what the network needs, and what its answer means."""

    @property
    def part(self) -> str:
        """The field of `Annotation` that it fills ("tags")."""

    @property
    def source(self) -> str:
        """The id of the card that answers."""

    @property
    def preprocess(self) -> PreprocessSpec:
        """How images are prepared."""

    @property
    def streams(self) -> int:
        """How many batches the network works on at once, at its best."""

    @property
    def batch_size(self) -> int:
        """How many images it takes at once, at its best."""

    def annotate(self, batch: npt.NDArray[np.generic]) -> list[Any]:
        """The part's value for every image of a prepared batch. Safe to call from several threads."""
