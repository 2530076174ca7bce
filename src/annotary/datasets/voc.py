"""Pascal VOC: `JPEGImages/a.jpg`, its boxes in `Annotations/a.xml`, and a list of names for each part.

The lists are `ImageSets/Main/PART.txt`, names without suffixes, as torchvision, detectron2 and MMDetection read them.
http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

from annotary.datasets._contract import Row
from annotary.datasets._tables import LineFiles
from annotary.records import Annotation
from annotary.sinks import SinkOptions, write_atomically
from annotary.sinks.voc import VocContent

TASK = "detect"
PLACES_IMAGES = True
FOLDERS = ("JPEGImages", "Annotations", "ImageSets/Main")
PLAIN_NAMES = True

_LISTS = "ImageSets/Main"


class Lists:
    """The list of every part, empty ones too.

    Args:
        output: The dataset.
        parts: All parts.
    """

    def __init__(self, output: Path, parts: Sequence[str]) -> None:
        self._output = output
        self._parts = dict.fromkeys(parts, 0)
        self._lines = LineFiles(self._path, lambda row: f"{_stem(row)}\n".encode())

    def add(self, row: Row) -> None:
        """Write a row."""
        self._parts[row.part] += 1
        self._lines.add(row)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lines.__exit__(kind, error, trace)
        if error is None:
            for part, count in self._parts.items():
                if not count:
                    write_atomically(self._path(part), "")

    def _path(self, part: str) -> Path:
        return self._output / _LISTS / f"{part}.txt"


def open(output: Path, classes: Sequence[str], parts: Sequence[str]) -> Lists:  # noqa: A001, ARG001
    """The lists of all parts."""
    return Lists(output, parts)


def beside(row: Row, classes: Sequence[str]) -> tuple[str, bytes]:  # noqa: ARG001
    """The boxes of an image."""
    record = Annotation(row.file, row.width, row.height, boxes=row.boxes)
    return f"Annotations/{_stem(row)}.xml", VocContent(SinkOptions()).new(record)


def _stem(row: Row) -> str:
    return PurePosixPath(row.file).stem
