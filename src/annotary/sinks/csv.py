"""CSV: one row an image, in the order of the input: `image,width,height`, and columns for what a run finds.

Names and their scores are lists in one cell each, in descending order of score, joined by the separator (", " unless
told otherwise). A file name that is not valid UTF-8 is written with escapes, as in JSON.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import BinaryIO

from annotary.errors import OutputError
from annotary.records import Annotation, Label, Reason, Tag
from annotary.sinks._appending import AppendingFile
from annotary.sinks._contract import SinkOptions, TagsOfImage

SUFFIXES = (".csv",)
OPTIONS = ("separator",)
PARTS = ("tags", "labels", "decision")


def columns_of(parts: Sequence[str]) -> tuple[str, ...]:
    """The columns of a table of these parts."""
    columns = ["image", "width", "height"]
    if "tags" in parts:
        columns += ["tags", "scores"]
    if "labels" in parts:
        columns += ["labels", "label_scores" if "tags" in parts else "scores"]
    if "decision" in parts:
        columns += ["decision", "reasons"]
    return tuple(columns)


HEADINGS = tuple(
    columns_of(parts) for count in range(len(PARTS) + 1) for parts in combinations(PARTS, count)
)
"""The columns of all tables."""


class CsvRows:
    """Records as rows, each ended by a line feed; a cell may hold line feeds when it is quoted.

    Args:
        separator: What stands between two names, and between two scores.
        columns: What a row holds, from `columns_of`.
    """

    between = b""
    closing = b""

    def __init__(self, separator: str, columns: tuple[str, ...]) -> None:
        self.opening = _heading(columns)
        self._separator = separator
        self._columns = columns

    def name(self, image: str) -> str:
        """The name with what is not valid UTF-8 escaped."""
        return image.encode("utf-8", "backslashreplace").decode()

    def encode(self, annotation: Annotation) -> bytes:
        """One row."""
        decision = annotation.decision
        label_scores = self._scores(annotation.labels)
        has_tags = "tags" in self._columns
        cells: dict[str, object] = {
            "image": self.name(annotation.image),
            "width": annotation.width,
            "height": annotation.height,
            "tags": self._separator.join(tag.name for tag in annotation.tags),
            "scores": self._scores(annotation.tags) if has_tags else label_scores,
            "labels": self._separator.join(label.name for label in annotation.labels),
            "label_scores": label_scores,
            "decision": decision.action if decision else "",
            "reasons": self._separator.join(map(_told, decision.reasons if decision else ())),
        }
        row = [cells[column] for column in self._columns]
        text = io.StringIO()
        csv.writer(text, lineterminator="\r\n").writerow(row)  # so that it quotes both characters
        return text.getvalue().removesuffix("\r\n").encode() + b"\n"

    def recover(self, file: BinaryIO) -> Iterator[tuple[str, int]]:
        """Name and end of every whole row."""
        return ((row[0], end) for row, end in _rows(file, len(self._columns)))

    def _scores(self, found: Sequence[Tag | Label]) -> str:
        return self._separator.join(f"{entry.score:g}" for entry in found)


def open(  # noqa: A001
    output: Path | None, options: SinkOptions, parts: tuple[str, ...]
) -> AppendingFile:
    """A sink that continues the file."""
    assert output is not None
    columns = columns_of(parts)
    _check_columns(output, columns)
    return AppendingFile(output, CsvRows(options.separator, columns))


def read(output: Path, options: SinkOptions) -> Iterator[TagsOfImage]:
    """The tags of every row; the labels where there is no column of tags."""
    try:
        with output.open("rb") as file:
            columns = _columns_in(file.readline())
            if not {"tags", "labels"}.intersection(columns):
                raise OutputError(f"{output} has no tags among its columns")
            for row, _ in _rows(file, len(columns)):
                yield TagsOfImage(row[0], _named(row[3:5], row[0], options.separator))
    except OSError as error:
        raise OutputError(f"cannot read {output}: {error.strerror}") from error
    except ValueError as error:
        raise OutputError(f"{output} cannot be read: {error}") from error


def _heading(columns: Sequence[str]) -> bytes:
    return (",".join(columns) + "\n").encode()


def _columns_in(line: bytes) -> tuple[str, ...]:
    """The columns that the first line of a table of annotary names; none when it is another table."""
    return next((columns for columns in HEADINGS if _heading(columns) == line), ())


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    """Refuse a table of annotary that has other columns.

    Raises:
        OutputError: It has.
    """
    try:
        with path.open("rb") as file:
            there = _columns_in(file.readline(1000))
    except OSError:
        return  # opening it tells what is wrong
    if there and there != columns:
        raise OutputError(
            f"{path} has the columns {', '.join(there)}, and this run writes {', '.join(columns)};"
            " choose another --output"
        )


def _told(reason: Reason) -> str:
    return f"{reason.name} {reason.score:g} >= {reason.threshold:g} ({reason.action})"


def _named(cells: list[str], image: str, separator: str) -> tuple[tuple[str, float], ...]:
    """The names and scores in two cells.

    Raises:
        ValueError: They are not parted by this separator.
    """
    names, scores = (cell.split(separator) if cell else [] for cell in cells)
    try:
        return tuple(zip(names, map(float, scores), strict=True))
    except ValueError as error:
        told = f"{separator!r} does not part the tags and scores of {image!r}"
        raise ValueError(f"{told}; say the --separator that it was written with") from error


def _rows(file: BinaryIO, cells: int) -> Iterator[tuple[list[str], int]]:
    """Every whole row after the head, with so many cells, and where it ends.

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
        if len(row) != cells:
            raise ValueError(f"a row of {len(row)} cells where {cells} belong, at byte {end}")
        end += sum(map(len, parts))
        parts = []
        yield row, end
    # A tail that was cut off is a part of one row. If whole rows are in it, a quote before them is wrong.
    if any(len(_cells(line)) == cells for line in parts[1:-1]):
        raise ValueError(f"a quote is not closed after byte {end}")


def _cells(row: bytes) -> list[str]:
    before = csv.field_size_limit(max(len(row), csv.field_size_limit()))
    try:
        return next(csv.reader([row.decode("utf-8", "replace")]), [])
    except csv.Error:
        return []
    finally:
        csv.field_size_limit(before)
