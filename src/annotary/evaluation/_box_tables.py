"""Boxes in the tables that annotary writes: CSV with a row for each box or a list in a cell, and Parquet."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from annotary.evaluation._tables import SUFFIXES, Row, Table
from annotary.records import Annotation, Box

Made = TypeVar("Made")

TABLE_SUFFIXES = tuple(suffix for suffix in SUFFIXES if suffix not in (".jsonl", ".ndjson"))
"""Endings of file names, in lower case, of tables that are no JSON Lines."""

_IMAGE = ("image", "width", "height")
_EDGES = ("left", "top", "right", "bottom")


def records_of_table(place: Path) -> Iterator[Annotation]:
    """The records of a table, with their boxes alone.

    Raises:
        UsageError: It cannot be read.
        ValueError: It holds no boxes; the message says why.
    """
    table = Table(place)
    lacks = [name for name in (*_IMAGE, "boxes") if name not in table.columns]
    if lacks:
        raise ValueError(f"there is no column {lacks[0]!r}, as tables of boxes of annotary have")
    has_row_each = all(name in table.columns for name in ("label", "score", *_EDGES))
    columns = [*_IMAGE, "boxes", *(("label", "score", *_EDGES) if has_row_each else ())]
    if has_row_each:
        for _, rows in groupby(table.rows(columns), key=lambda row: row.cells["image"]):
            own = list(rows)
            boxes = tuple(_box(row, row.cells) for row in own if row.cells["label"])
            yield _record(own[0], boxes)
        return
    for row in table.rows(columns):
        cell = row.cells["boxes"]
        listed = json.loads(cell) if isinstance(cell, str) and cell else cell or ()
        yield _record(row, tuple(_box(row, one) for one in listed))


def _record(row: Row, boxes: tuple[Box, ...]) -> Annotation:
    image, width, height = (row.cells[name] for name in _IMAGE)
    return _checked(row, lambda: Annotation(image, int(width), int(height), boxes=boxes))


def _box(row: Row, value: Mapping[str, Any]) -> Box:
    def made() -> Box:
        edges = value["xyxy"] if "xyxy" in value else [value[name] for name in _EDGES]
        left, top, right, bottom = (float(edge) for edge in edges)
        return Box(value["label"], float(value["score"]), (left, top, right, bottom))

    return _checked(row, made)


def _checked(row: Row, make: Callable[[], Made]) -> Made:
    """What a row makes.

    Raises:
        ValueError: It makes no sense; the message says which row it is.
    """
    try:
        return make()
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"row {row.number}: {error}") from error
