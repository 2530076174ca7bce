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

from annotary.errors import OutputError
from annotary.records import Annotation
from annotary.sinks._appending import AppendingFile
from annotary.sinks._contract import SinkOptions, TagsOfImage

SUFFIXES = (".csv",)
OPTIONS = ("separator",)
COLUMNS = ("image", "width", "height", "tags", "scores")


class CsvRows:
    """Records as rows, each ended by a line feed; a cell may hold line feeds when it is quoted.

    Args:
        separator: What stands between two tags, and between two scores.
    """

    opening = (",".join(COLUMNS) + "\n").encode()
    between = b""
    closing = b""

    def __init__(self, separator: str) -> None:
        self._separator = separator

    def name(self, image: str) -> str:
        """The name with what is not valid UTF-8 escaped."""
        return image.encode("utf-8", "backslashreplace").decode()

    def encode(self, annotation: Annotation) -> bytes:
        """One row."""
        tags = self._separator.join(tag.name for tag in annotation.tags)
        scores = self._separator.join(f"{tag.score:g}" for tag in annotation.tags)
        row = (self.name(annotation.image), annotation.width, annotation.height, tags, scores)
        text = io.StringIO()
        csv.writer(text, lineterminator="\r\n").writerow(row)  # so that it quotes both characters
        return text.getvalue().removesuffix("\r\n").encode() + b"\n"

    def recover(self, file: BinaryIO) -> Iterator[tuple[str, int]]:
        """Name and end of every whole row."""
        return ((row[0], end) for row, end in _rows(file))


def open(output: Path | None, options: SinkOptions) -> AppendingFile:  # noqa: A001
    """A sink that continues the file."""
    assert output is not None
    return AppendingFile(output, CsvRows(options.separator))


def read(output: Path, options: SinkOptions) -> Iterator[TagsOfImage]:
    """The tags of every row."""
    style = CsvRows(options.separator)
    try:
        with output.open("rb") as file:
            if file.readline() != style.opening:
                raise OutputError(f"{output} has other columns than {', '.join(COLUMNS)}")
            for row, _ in _rows(file):
                yield TagsOfImage(row[0], _tags_of(row, options.separator))
    except OSError as error:
        raise OutputError(f"cannot read {output}: {error.strerror}") from error
    except ValueError as error:
        raise OutputError(f"{output} cannot be read: {error}") from error


def _tags_of(row: list[str], separator: str) -> tuple[tuple[str, float], ...]:
    """The tags and scores of a row.

    Raises:
        ValueError: They are not parted by this separator.
    """
    tags, scores = (cell.split(separator) if cell else [] for cell in row[3:])
    try:
        return tuple(zip(tags, map(float, scores), strict=True))
    except ValueError as error:
        told = f"{separator!r} does not part the tags and scores of {row[0]!r}"
        raise ValueError(f"{told}; say the --separator that it was written with") from error


def _rows(file: BinaryIO) -> Iterator[tuple[list[str], int]]:
    """Every whole row after the head, and where it ends.

    Raises:
        ValueError: There is something else than rows of ours and a tail that was cut off.
    """
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
        yield row, end
    # A tail that was cut off is a part of one row. If whole rows are in it, a quote before them is wrong.
    if any(len(_cells(line)) == len(COLUMNS) for line in parts[1:-1]):
        raise ValueError(f"a quote is not closed after byte {end}")


def _cells(row: bytes) -> list[str]:
    before = csv.field_size_limit(max(len(row), csv.field_size_limit()))
    try:
        return next(csv.reader([row.decode("utf-8", "replace")]), [])
    except csv.Error:
        return []
    finally:
        csv.field_size_limit(before)
