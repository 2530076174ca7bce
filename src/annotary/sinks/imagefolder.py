"""Hugging Face's imagefolder: a `metadata.jsonl` that lies above the images and says something of each.

`datasets.load_dataset("imagefolder", data_dir=FOLDER)` reads the folder that it lies in, with the images. Paths are
relative to that folder, with forward slashes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from annotary.errors import SidecarError, UsageError
from annotary.records import Annotation, Item
from annotary.sinks import _text
from annotary.sinks._appending import AppendingRecords
from annotary.sinks._contract import SinkOptions, TagsOfImage
from annotary.sinks._parts import best_of, called
from annotary.sinks._reading import read_lines
from annotary.sinks.kohya_jsonl import ImageLines

SUFFIXES = ()
IS_ONE_FILE = True
OPTIONS = _text.OPTIONS
PARTS = ("tags", "labels", "captions", "boxes", "decision")

OBJECTS = "objects"
"""The column of boxes, as the guide of datasets to object detection calls it."""

FILE = "metadata.jsonl"
"""The only name that datasets looks for."""


class ImageFolder:
    """Rows of a table whose key is the path of an image below the table's own folder.

    Args:
        output: The file.
        options: How names are joined to a text.
        parts: What there are columns for.

    Raises:
        UsageError: The file has another name than `metadata.jsonl`.
        OutputError: It cannot be read, or does not hold what the format writes.
    """

    def __init__(self, output: Path, options: SinkOptions, parts: tuple[str, ...]) -> None:
        if output.name != FILE:
            raise UsageError(
                f"--format imagefolder writes {FILE} above the images; say --output FOLDER/{FILE}"
            )
        self._folder = os.path.abspath(output.parent)  # noqa: PTH100
        self._options = options
        self._parts = parts
        self._rows = AppendingRecords(output, _Rows(parts))

    def holds(self, item: Item) -> bool:
        """Whether the file has a row of this image."""
        try:
            return self._name(item) in self._rows
        except SidecarError:
            return False  # writing says what is wrong

    def write(self, item: Item, annotation: Annotation) -> None:
        """Append one row.

        Raises:
            SidecarError: The image is not below the folder, or has a name that datasets cannot read.
            OutputError: It cannot be written; the file ends with the row before.
        """
        name = self._name(item)
        row = {"file_name": name, "width": annotation.width, "height": annotation.height}
        row |= _columns(annotation, self._parts)
        row["text"] = _text.caption_of(annotation, self._options)
        line = json.dumps(row, ensure_ascii=False) + "\n"
        self._rows.append(name, line.encode("utf-8", "backslashreplace"))

    def close(self, *, complete: bool) -> None:
        """End the file."""
        self._rows.close(complete=complete)

    def _name(self, item: Item) -> str:
        """The path below the folder."""
        if item.path is None:
            raise SidecarError(f"{FILE} names images by their paths, and this is no file")
        name = _below(self._folder, item.path)
        if name is None:
            raise SidecarError(f"it is not below {self._folder}, where {FILE} can name it")
        try:
            name.encode()
        except UnicodeEncodeError as error:
            # One such row would make the whole table unreadable.
            raise SidecarError(f"its name is no valid UTF-8, and {FILE} must be") from error
        return name


class _Rows(ImageLines):
    """Rows of a table that all have the same columns.

    Args:
        parts: What there are columns for.
    """

    def __init__(self, parts: tuple[str, ...]) -> None:
        super().__init__("file_name")
        self._parts = parts

    def check(self, row: dict[str, Any], number: int) -> None:
        """Refuse a row of other parts: datasets wants the same columns in all."""
        there = tuple(part for part in PARTS if (OBJECTS if part == "boxes" else part) in row)
        if there != self._parts:
            has, writes = (
                called(parts) if parts else "sizes alone" for parts in (there, self._parts)
            )
            raise ValueError(f"line {number} has {has}, and this run writes {writes}")


def open(  # noqa: A001
    output: Path | None, options: SinkOptions, parts: tuple[str, ...]
) -> ImageFolder:
    """A sink that continues the file."""
    assert output is not None
    return ImageFolder(output, options, parts)


def read(output: Path, options: SinkOptions) -> Iterator[TagsOfImage]:  # noqa: ARG001
    """The tags of every row; the labels where there are no tags, else those of boxes."""

    def image(line: bytes) -> TagsOfImage:
        row = json.loads(line)
        if OBJECTS in row and not row.keys() & {"tags", "labels"}:
            pairs = zip(row[OBJECTS]["categories"], row[OBJECTS]["scores"], strict=True)
            return TagsOfImage(row["file_name"], best_of(pairs))
        names = row["tags"] if "tags" in row else row.get("labels", [])
        return TagsOfImage(row["file_name"], tuple(zip(names, row.get("scores", []), strict=True)))

    return read_lines(output, image)


def _columns(annotation: Annotation, parts: tuple[str, ...]) -> dict[str, Any]:
    """What a row says of the parts."""
    row: dict[str, Any] = {}
    if "tags" in parts:
        row["tags"] = [tag.name for tag in annotation.tags]
        row["scores"] = [float(tag.score) for tag in annotation.tags]
        row["categories"] = [tag.category for tag in annotation.tags]
    if "labels" in parts:
        row["label"] = annotation.labels[0].name if annotation.labels else None
        row["labels"] = [label.name for label in annotation.labels]
        scores = "label_scores" if "tags" in parts else "scores"
        row[scores] = [float(label.score) for label in annotation.labels]
    if "captions" in parts:
        row["captions"] = [caption.text for caption in annotation.captions]
        row["caption_scores"] = [caption.score for caption in annotation.captions]
        row["caption_matches"] = [caption.match for caption in annotation.captions]
    if "boxes" in parts:
        edges = [box.xyxy for box in annotation.boxes]
        row[OBJECTS] = {
            "bbox": [[left, top, right - left, bottom - top] for left, top, right, bottom in edges],
            "categories": [box.label for box in annotation.boxes],
            "scores": [float(box.score) for box in annotation.boxes],
        }
    if "decision" in parts:
        decision = annotation.decision
        row["decision"] = decision.action if decision else None
        reasons = decision.reasons if decision else ()
        row["reasons"] = [reason.to_json() for reason in reasons]
    return row


def _below(folder: str, path: Path) -> str | None:
    """A path relative to a folder, with forward slashes; None when it is elsewhere.

    Links to folders are followed only where the path as it is written is not below the folder.
    """
    written = Path(os.path.abspath(path))  # noqa: PTH100
    if written.is_relative_to(folder):
        return written.relative_to(folder).as_posix()
    real, above = Path(os.path.realpath(written.parent), written.name), os.path.realpath(folder)
    return real.relative_to(above).as_posix() if real.is_relative_to(above) else None
