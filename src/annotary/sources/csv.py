"""A table of images as text: .csv, and .tsv or .tab with tabs.

The first row names the columns. One column holds a path or an address for each image: the one that
`--image-column` names, else the first with a usual name (`annotary.sources._columns`). So what annotary writes as CSV
is a list of images, too. In a .csv the cells may stand between semicolons or tabs as well; what the first row has most
of counts. Where paths start says `annotary.sources._rows`. A row that is broken or names nothing is a failure,
`table.csv:17` for the line in which it begins.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from annotary.errors import UnreachableImage
from annotary.records import Failure, Item
from annotary.sources._columns import column_of, place_in
from annotary.sources._options import SourceOptions
from annotary.sources._paths import kind_of, reason
from annotary.sources._rows import LONGEST_ROW, image_at

SUFFIXES = {".csv": ",;\t", ".tsv": "\t", ".tab": "\t"}
"""Endings of file names, in lower case, and what may stand between cells."""


class _Broken(Exception):
    """This is no text that can be read as a table."""


def accepts(argument: str) -> bool:
    """Whether the argument is a file with the suffix of such a table."""
    return Path(argument).suffix.lower() in SUFFIXES and kind_of(argument) == "file"


def check(argument: str, options: SourceOptions) -> None:
    """Look for the column.

    Raises:
        UsageError: There is none that could hold images.
    """
    try:
        with _open(argument) as file:
            _header(file, argument, options)
    except (OSError, _Broken):
        return  # `items` tells


def items(argument: str, options: SourceOptions) -> Iterator[Item | Failure]:
    """The images that the rows name.

    Raises:
        UsageError: No column could hold images.
    """
    folder = str(Path(argument).parent)
    try:
        with _open(argument) as file:
            header = _header(file, argument, options)
            if header is None:
                return
            rows, place = header
            yield from _images(rows, place, argument, folder)
    except OSError as error:
        yield _failure(argument, f"this table cannot be read: {reason(error)}")
    except _Broken as error:
        yield _failure(argument, str(error))


def looked_for(options: SourceOptions) -> str:  # noqa: ARG001 - the room's contract
    """What is taken from a table, for the message that nothing was found."""
    return "rows with a path or an address"


class _Rows:
    """The rows of a table, and the line in which the last one began.

    Args:
        file: The table; what was read of it is not read again.
        delimiter: What stands between cells.
    """

    def __init__(self, file: IO[str], first: str, delimiter: str) -> None:
        self._lines = _lines(file, first)
        self._reader = csv.reader(self._lines, delimiter=delimiter)
        self.line = 0

    def next(self) -> list[str] | None:
        """The cells of the next row; None at the end.

        Raises:
            csv.Error: The row is broken; the next can be read.
        """
        self.line = self._reader.line_num + 1
        return next(self._reader, None)


def _open(argument: str) -> IO[str]:
    # Names are bytes to the system, which need not be UTF-8.
    return open(argument, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _lines(file: IO[str], first: str) -> Iterator[str]:
    line = first
    while line:
        if len(line) > LONGEST_ROW:
            raise _Broken(f"a line of more than {LONGEST_ROW:,} characters")
        yield line
        line = file.readline(LONGEST_ROW + 1)


def _header(file: IO[str], argument: str, options: SourceOptions) -> tuple[_Rows, int] | None:
    """The rows behind the first, and which cell of each holds the image; None for an empty file."""
    # The limit is one for the process. It is raised and never lowered, so that tables can be read at the same time.
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_ROW))
    first = file.readline(LONGEST_ROW + 1)
    if first.startswith(("\udcff\udcfe", "\udcfe\udcff")):
        raise _Broken("the table is UTF-16; save it as UTF-8")
    if not first:
        return None
    delimiter = max(SUFFIXES[Path(argument).suffix.lower()], key=first.count)
    rows = _Rows(file, first, delimiter)
    try:
        columns = [name.strip() for name in rows.next() or ()]
    except csv.Error as error:
        raise _Broken(f"its first row is broken: {error}") from error
    return rows, columns.index(column_of(argument, columns, options))


def _images(rows: _Rows, place: int, argument: str, folder: str) -> Iterator[Item | Failure]:
    while True:
        try:
            row = rows.next()
        except csv.Error as error:
            yield _failure(f"{argument}:{rows.line}", f"this row is broken: {error}")
            continue
        if row is None:
            return
        if not row:  # a blank line
            continue
        cell = row[place].strip() if place < len(row) else ""
        if cell:
            yield image_at(place_in(row[place], folder), folder)
        else:
            yield _failure(f"{argument}:{rows.line}", "this row names no image")


def _failure(name: str, message: str) -> Failure:
    return Failure.of(name, UnreachableImage(message))
