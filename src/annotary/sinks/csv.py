"""CSV: one row an image, in the order of the input, with the columns `image,width,height,tags,scores`.

Tags and their scores are lists in one cell each, in descending order of score, joined by the separator (", " unless
told otherwise). A file name that is not valid UTF-8 is written with escapes, as in JSON.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from annotary.records import Annotation, Item
from annotary.sinks._appending import AppendingFile
from annotary.sinks._contract import SinkOptions

SUFFIXES = (".csv",)
COLUMNS = ("image", "width", "height", "tags", "scores")


class CsvRows:
    """Records as rows, each ended by a line feed; a cell may hold line feeds when it is quoted."""

    opening = (",".join(COLUMNS) + "\n").encode()
    between = b""
    closing = b""

    def recover(self, file: BinaryIO) -> Iterator[tuple[str, int]]:
        """Name and end of every whole row."""
        end = file.tell()
        parts: list[bytes] = []
        is_open = False  # whether a quote is
        for line in file:
            parts.append(line)
            is_open ^= line.count(b'"') % 2 == 1
            if is_open or not line.endswith(b"\n"):
                continue
            row = _cells(b"".join(parts))
            if len(row) != len(COLUMNS):
                raise ValueError(
                    f"a row of {len(row)} cells where {len(COLUMNS)} belong, at byte {end}"
                )
            end += sum(map(len, parts))
            parts = []
            yield row[0], end
        # A tail that was cut off is a part of one row. If whole rows are in it, a quote before them is wrong.
        if any(len(_cells(line)) == len(COLUMNS) for line in parts[1:-1]):
            raise ValueError(f"a quote is not closed after byte {end}")


class CsvSink:
    """Appends annotations to a CSV file."""

    def __init__(self, path: Path, separator: str) -> None:
        self._file = AppendingFile(path, CsvRows())
        self._separator = separator

    def holds(self, item: Item) -> bool:
        """Whether a row has this image."""
        return _writable(item.image) in self._file

    def write(self, item: Item, annotation: Annotation) -> None:
        """Append one row."""
        name = _writable(item.image)
        tags = self._separator.join(tag.name for tag in annotation.tags)
        scores = self._separator.join(f"{tag.score:g}" for tag in annotation.tags)
        text = io.StringIO()
        row = (name, annotation.width, annotation.height, tags, scores)
        csv.writer(text, lineterminator="\r\n").writerow(row)  # so that it quotes both characters
        self._file.append(name, text.getvalue().removesuffix("\r\n").encode() + b"\n")

    def close(self, *, complete: bool) -> None:
        """Have the disk take it all."""
        self._file.close(complete=complete)


def open(output: Path | None, options: SinkOptions) -> CsvSink:  # noqa: A001
    """A sink that continues the file."""
    assert output is not None
    return CsvSink(output, options.separator)


def _cells(row: bytes) -> list[str]:
    before = csv.field_size_limit(max(len(row), csv.field_size_limit()))
    try:
        return next(csv.reader([row.decode("utf-8", "replace")]), [])
    except csv.Error:
        return []
    finally:
        csv.field_size_limit(before)


def _writable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()
