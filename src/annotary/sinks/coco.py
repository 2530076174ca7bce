"""COCO: boxes of all images in one JSON file, as pycocotools and most trainers of detectors read it.

A box is `[left, top, width, height]` in pixels of the upright image. Images without boxes are listed like all others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

from annotary.sinks._classes import TableOfBoxes
from annotary.sinks._coco import CocoTable, Json, entries, name_of
from annotary.sinks._contract import SinkOptions, TagsOfImage
from annotary.sinks._journaled import read_journaled
from annotary.sinks._parts import best_of

SUFFIXES = ()
IS_ONE_FILE = True
PARTS = ("boxes",)

DIGITS = 6
"""Behind the point, of widths, heights and areas, which are differences and products of what is known."""


class CocoBoxes(CocoTable):
    """Boxes with the numbers of their classes, from 1 on as COCO has them."""

    def __init__(self) -> None:
        super().__init__("boxes in pixels of upright images", has_categories=True)

    def annotations_of(self, record: Json) -> Iterable[Json]:
        """The boxes of an image."""
        for box in record.get("boxes", ()):
            left, top, right, bottom = box["xyxy"]
            width, height = right - left, bottom - top
            yield {
                "category_id": self.classes.number(box["label"]) + 1,
                "bbox": [left, top, round(width, DIGITS), round(height, DIGITS)],
                "area": round(width * height, DIGITS),
                "iscrowd": 0,
                "score": box["score"],
            }


def open(  # noqa: A001
    output: Path | None,
    options: SinkOptions,
    parts: tuple[str, ...],  # noqa: ARG001
) -> TableOfBoxes:
    """A sink that continues the file."""
    assert output is not None
    return TableOfBoxes(output, CocoBoxes(), options)


def read(output: Path, options: SinkOptions) -> Iterator[TagsOfImage]:  # noqa: ARG001
    """The labels of every image's boxes, each with its best score."""
    table = CocoBoxes()

    def finished() -> Iterator[TagsOfImage]:
        for _ in table.names(output):
            pass
        names = table.classes.names
        images = (json.loads(line) for section, line in entries(output) if section == "images")
        boxes = (json.loads(line) for section, line in entries(output) if section == "annotations")
        # Boxes stand in the order of their images.
        grouped = groupby(boxes, key=lambda box: int(box["image_id"]))
        number, found = next(grouped, (0, iter(())))
        for image in images:
            mine: Iterator[Json] = iter(())
            if number == image["id"]:
                mine = iter(list(found))
                number, found = next(grouped, (0, iter(())))
            tags = best_of((names[box["category_id"] - 1], box["score"]) for box in mine)
            yield TagsOfImage(name_of(image), tags)

    return read_journaled(output, table, finished)
