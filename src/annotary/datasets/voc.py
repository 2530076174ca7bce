"""Pascal VOC: `JPEGImages/a.jpg`, its boxes in `Annotations/a.xml`, and a list of names for each part.

The lists are `ImageSets/Main/PART.txt`, names without suffixes. Edges are whole pixels, the first and the last that
belong to a box, counted from 1, as in the original data set and as detectron2 and supervision read them.
http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

from annotary.datasets._contract import Row
from annotary.datasets._tables import LineFiles
from annotary.records import Box
from annotary.sinks import write_atomically
from annotary.sinks._xml import content

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
    lines = [
        "<annotation>",
        "\t<folder>JPEGImages</folder>",
        f"\t<filename>{content(PurePosixPath(row.file).name)}</filename>",
        "\t<size>",
        f"\t\t<width>{row.width}</width>",
        f"\t\t<height>{row.height}</height>",
        "\t\t<depth>3</depth>",
        "\t</size>",
        "\t<segmented>0</segmented>",
        *(line for box in row.boxes for line in _object(box)),
        "</annotation>",
    ]
    return f"Annotations/{_stem(row)}.xml", ("\n".join(lines) + "\n").encode()


def _object(box: Box) -> list[str]:
    left, right = _whole(box.xyxy[0], box.xyxy[2])
    top, bottom = _whole(box.xyxy[1], box.xyxy[3])
    edges = {"xmin": left + 1, "ymin": top + 1, "xmax": right, "ymax": bottom}
    return [
        "\t<object>",
        f"\t\t<name>{content(box.label)}</name>",
        "\t\t<pose>Unspecified</pose>",
        "\t\t<truncated>0</truncated>",
        "\t\t<difficult>0</difficult>",
        "\t\t<bndbox>",
        *(f"\t\t\t<{name}>{edge}</{name}>" for name, edge in edges.items()),
        "\t\t</bndbox>",
        "\t</object>",
    ]


def _whole(start: float, end: float) -> tuple[int, int]:
    """An interval in whole pixels, one at least."""
    first, last = round(start), round(end)
    return (first, last) if first < last else (math.floor(start), math.floor(start) + 1)


def _stem(row: Row) -> str:
    return PurePosixPath(row.file).stem
