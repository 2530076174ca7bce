"""Folders: `train/LABEL/a.jpg`, as torchvision, Keras, fastai and timm read them."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from annotary.datasets._contract import Row

PLACES_IMAGES = True


class NoTables:
    """Folders say it all."""

    def add(self, row: Row) -> None:
        """Nothing is written."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing is open."""


def open(output: Path) -> NoTables:  # noqa: A001, ARG001
    """Nothing but the images."""
    return NoTables()
