"""Files of captions: those that people wrote, those that a model wrote, and what people think of them.

References are a table (`CaptionedImages`) or the JSON of COCO captions. Written captions are what annotary writes (JSON
Lines, CSV, Parquet, COCO captions), a list of results as COCO's server takes it, or any table of images and captions.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from annotary.errors import NothingToDo, UsageError
from annotary.evaluation._tables import Row, Table
from annotary.evaluation.labelled import CAPTION_COLUMNS, CaptionedImages
from annotary.records import Failure, Item
from annotary.sources._paths import reason
from annotary.sources._rows import image_at


class References(Protocol):
    """Images with captions.

    Attributes:
        captions: All of them.
        owners: The image of each, by its place in `items()`.
        images: How many there are.
    """

    captions: list[str]
    owners: list[int]
    images: int

    def items(self) -> Iterator[Item | Failure]:
        """The images, each once."""


class CocoCaptions:
    """Images with captions in the JSON of COCO: `images` and `annotations`.

    Args:
        place: The file.
        folder: Where names of images start; where the file is when nothing is said.

    Attributes:
        captions: All of them, in the order of the file.
        owners: The image of each, by its place in `items()`.
        images: How many images have captions.
        ids: COCO's number of each.

    Raises:
        UsageError: It cannot be read, or is no such file.
        NothingToDo: It has no captions.
    """

    def __init__(self, place: Path, *, folder: Path | None = None) -> None:
        if folder is not None and not folder.is_dir():
            raise UsageError(f"--images: no such folder: {str(folder)!r}")
        value = read_json(place)
        try:
            names = {one["id"]: str(one["file_name"]) for one in value["images"]}
            told = [(one["image_id"], one["caption"]) for one in value["annotations"]]
        except (KeyError, TypeError) as error:
            raise UsageError(
                f"{place} holds no COCO captions, which are images (id, file_name) and annotations"
                f" (image_id, caption): {error}"
            ) from error
        self._folder = os.fspath(place.parent if folder is None else folder)
        self.captions: list[str] = []
        self.owners: list[int] = []
        known: dict[Any, int] = {}
        for number, caption in told:
            if number not in names:
                raise UsageError(f"{place}: a caption is of image {number}, which is not there")
            if not isinstance(caption, str):
                raise UsageError(f"{place}: captions must be text, but got {caption!r}")
            if caption.strip():
                self.captions.append(caption.strip())
                self.owners.append(known.setdefault(number, len(known)))
        self.ids = list(known)
        self._names = [names[number] for number in known]
        self.images = len(known)
        if not self.captions:
            raise NothingToDo(f"{place} has no captions")

    def items(self) -> Iterator[Item | Failure]:
        """The images, each once, in the order of their first captions."""
        for name in self._names:
            yield image_at(name, self._folder)


def open_references(
    place: Path,
    *,
    folder: Path | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    split: str | None = None,
) -> References:
    """Captions that people wrote, of a table or of COCO's JSON.

    Raises:
        UsageError: It is neither, or cannot be read.
        NothingToDo: It has no captions.
    """
    if place.suffix.lower() != ".json":
        return CaptionedImages(
            place,
            folder=folder,
            image_column=image_column,
            caption_column=caption_column,
            split=split,
        )
    for flag, told in (
        ("--image-column", image_column),
        ("--caption-column", caption_column),
        ("--split", split),
    ):
        if told is not None:
            raise UsageError(f"{flag} is for tables; {place} is JSON")
    return CocoCaptions(place, folder=folder)


class WrittenCaption(NamedTuple):
    """A caption that is measured.

    Attributes:
        image: The name of its image, or COCO's number.
        text: The caption; empty when there is none.
        judgements: What people think of it, in numbers of their own.
    """

    image: str | int
    text: str
    judgements: tuple[float, ...] = ()


def read_written(
    place: Path,
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    judgements: str | None = None,
) -> list[WrittenCaption]:
    """Captions that are measured; of several of one image in a row the first, which is the best.

    Args:
        place: A table, or JSON of COCO.
        image_column: Of a table, the column with the images.
        caption_column: Of a table, the column with captions.
        judgements: Of a table, the column with what people think: a number or a list of them.

    Raises:
        UsageError: It is no such file, or cannot be read.
        NothingToDo: It has no captions.
    """
    if place.suffix.lower() == ".json":
        if judgements is not None:
            raise UsageError(f"--judgements is a column of a table; {place} is JSON")
        found = list(_of_json(place))
    else:
        if not place.exists():
            raise UsageError(f"no such file: {str(place)!r}")
        found = list(_of_table(Table(place), image_column, caption_column, judgements))
    if not found:
        raise NothingToDo(f"{place} has no captions")
    return found


def read_json(place: Path) -> Any:
    """What a file of JSON holds.

    Raises:
        UsageError: It cannot be read.
    """
    try:
        return json.loads(place.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{place}: {reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{place} is not JSON: {error}") from error


def _of_json(place: Path) -> Iterator[WrittenCaption]:
    value = read_json(place)
    names: Mapping[Any, str] = {}
    results = value
    try:
        if isinstance(value, Mapping):
            names = {one["id"]: str(one["file_name"]) for one in value["images"]}
            results = value["annotations"]
        told = [(one["image_id"], one["caption"]) for one in results]
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"{place} holds no captions; expected a list of image_id and caption, or COCO captions: {error}"
        ) from error
    seen: set[Any] = set()
    for number, caption in told:
        if not isinstance(caption, str) or not isinstance(number, int | str):
            raise UsageError(
                f"{place}: expected image_id and a text, but got {number!r}: {caption!r}"
            )
        if number not in seen:  # the first of several is the best
            seen.add(number)
            yield WrittenCaption(names.get(number, number), caption.strip())
    yield from (WrittenCaption(name, "") for number, name in names.items() if number not in seen)


def _of_table(
    table: Table, image_column: str | None, caption_column: str | None, judgements: str | None
) -> Iterator[WrittenCaption]:
    image = table.image_column(image_column)
    caption = table.column(caption_column, CAPTION_COLUMNS, "--caption-column", "captions")
    columns = [image, caption]
    has_lines = (
        "caption_score" in table.columns
    )  # in CSV of ours, each caption is a line of its cell
    if judgements is not None:
        columns.append(table.column(judgements, (), "--judgements", "judgements"))
    for row in table.rows(columns):
        name = row.cells[image]
        if isinstance(name, Mapping):
            name = name.get("path")
        if not isinstance(name, str) or not name.strip():
            raise UsageError(f"{table.path}: row {row.number} names no image")
        numbers = () if judgements is None else _judgements(table, row, row.cells[judgements])
        text = _first(table, row, row.cells[caption])
        if has_lines:
            text = text.split("\n", 1)[0].strip()
        yield WrittenCaption(name.strip(), text, numbers)


def _first(table: Table, row: Row, cell: Any) -> str:
    """The caption in a cell, or the first of several; records of ours have them as `{"text": ...}`."""
    cells = list(cell) if isinstance(cell, list | tuple) else [cell]
    first = cells[0] if cells else None
    if isinstance(first, Mapping):
        first = first.get("text")
    if first is not None and not isinstance(first, str):
        raise UsageError(
            f"{table.path}: row {row.number}: captions must be text, but got {first!r}"
        )
    return (first or "").strip()


def _judgements(table: Table, row: Row, cell: Any) -> tuple[float, ...]:
    cells: Sequence[Any] = cell if isinstance(cell, list | tuple) else [cell]
    try:
        found = tuple(float(one) for one in cells if one is not None and one != "")
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{table.path}: row {row.number}: judgements must be numbers, but got {cell!r}"
        ) from error
    if not all(math.isfinite(one) for one in found):
        raise UsageError(f"{table.path}: row {row.number}: judgements must be finite")
    return found
