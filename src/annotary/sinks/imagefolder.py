"""Hugging Face's imagefolder: a `metadata.jsonl` that lies above the images and says something of each.

`datasets.load_dataset("imagefolder", data_dir=FOLDER)` reads the folder that it lies in, with the images. Paths are
relative to that folder, with forward slashes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from annotary.errors import SidecarError, UsageError
from annotary.records import Annotation, Item
from annotary.sinks import _text
from annotary.sinks._appending import AppendingRecords
from annotary.sinks._contract import SinkOptions, TagsOfImage
from annotary.sinks._reading import read_lines
from annotary.sinks.kohya_jsonl import ImageLines

SUFFIXES = ()
IS_ONE_FILE = True
OPTIONS = _text.OPTIONS

FILE = "metadata.jsonl"
"""The only name that datasets looks for."""


class ImageFolder:
    """Rows of a table whose key is the path of an image below the table's own folder.

    Args:
        output: The file.
        options: How tags are joined to a text.

    Raises:
        UsageError: The file has another name than `metadata.jsonl`.
        OutputError: It cannot be read, or does not hold what the format writes.
    """

    def __init__(self, output: Path, options: SinkOptions) -> None:
        if output.name != FILE:
            raise UsageError(
                f"--format imagefolder writes {FILE} above the images; say --output FOLDER/{FILE}"
            )
        self._folder = os.path.abspath(output.parent)  # noqa: PTH100
        self._options = options
        self._rows = AppendingRecords(output, ImageLines("file_name"))

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
        row = {
            "file_name": name,
            "width": annotation.width,
            "height": annotation.height,
            "tags": [tag.name for tag in annotation.tags],
            "scores": [float(tag.score) for tag in annotation.tags],
            "categories": [tag.category for tag in annotation.tags],
            "text": _text.caption_of(annotation, self._options),
        }
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


def open(output: Path | None, options: SinkOptions) -> ImageFolder:  # noqa: A001
    """A sink that continues the file."""
    assert output is not None
    return ImageFolder(output, options)


def read(output: Path, options: SinkOptions) -> Iterator[TagsOfImage]:  # noqa: ARG001
    """The tags of every row."""

    def image(line: bytes) -> TagsOfImage:
        row = json.loads(line)
        return TagsOfImage(row["file_name"], tuple(zip(row["tags"], row["scores"], strict=True)))

    return read_lines(output, image)


def _below(folder: str, path: Path) -> str | None:
    """A path relative to a folder, with forward slashes; None when it is elsewhere.

    Links to folders are followed only where the path as it is written is not below the folder.
    """
    written = Path(os.path.abspath(path))  # noqa: PTH100
    if written.is_relative_to(folder):
        return written.relative_to(folder).as_posix()
    real, above = Path(os.path.realpath(written.parent), written.name), os.path.realpath(folder)
    return real.relative_to(above).as_posix() if real.is_relative_to(above) else None
