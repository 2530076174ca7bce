"""The classes of boxes: which number each label has, in every run that writes one output."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from annotary.records import Box
from annotary.sinks._contract import SinkOptions
from annotary.sinks._journaled import JournaledTable, Table


class Classes:
    """Numbers of labels from 0: first those that the output has, then those that the run names, then as they come."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def names(self) -> tuple[str, ...]:
        """The labels in the order of their numbers."""
        return tuple(self._numbers)

    def add(self, labels: Iterable[str]) -> None:
        """Give numbers to labels that have none."""
        for label in labels:
            self.number(label)

    def number(self, label: str) -> int:
        """The number of a label."""
        return self._numbers.setdefault(label, len(self._numbers))


class ClassedTable(Table, Protocol):
    """A table that numbers labels. Those of a finished table are known when its `names` have been read."""

    classes: Classes


class TableOfBoxes(JournaledTable):
    """A sink of a table that numbers labels.

    Args:
        path: The table; what it holds stays, and so do its numbers.
        table: Which kind it is.
        options: What happens to a journal whose table is gone.

    Raises:
        OutputError: It cannot be read, or holds something else.
    """

    def __init__(self, path: Path, table: ClassedTable, options: SinkOptions) -> None:
        self._classes = table.classes
        overwrites = options.on_existing == "overwrite"
        super().__init__(path, table, overwrites=overwrites, keeps_places=True)

    def name_classes(self, names: Sequence[str]) -> None:
        """Number the labels that the run asks for, in their order."""
        self._classes.add(names)


def clipped(box: Box, width: int, height: int) -> tuple[float, float, float, float] | None:
    """The part of a box that is in the picture, as left, top, right and bottom in pixels; None where there is none."""
    left, top, right, bottom = box.xyxy
    if right < 0 or bottom < 0 or left > width or top > height:
        return None
    return max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
