"""Rows of tables with more than images in them: CSV, JSON Lines, Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from annotary.errors import MissingExtra, UsageError
from annotary.records import Failure, Item
from annotary.sources._columns import COLUMNS, place_in
from annotary.sources._paths import reason
from annotary.sources._rows import LONGEST_ROW, image_at

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".pq")
"""Endings of file names, in lower case, that are taken for tables."""

_ROWS_AT_ONCE = 32
"""Of Parquet, where a row may hold an encoded image."""


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        number: From 1, without the head.
        cells: Column to value.
    """

    number: int
    cells: Mapping[str, Any]


class Table:
    """A table that can be gone through several times.

    Args:
        path: Of a file with one of `SUFFIXES`.

    Attributes:
        path: The file.
        columns: Their names; of JSON Lines those of the first row.

    Raises:
        UsageError: It cannot be read, or is no table.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._suffix = path.suffix.lower()
        if self._suffix not in SUFFIXES:
            raise UsageError(f"{path} is no table; a table ends in {', '.join(SUFFIXES)}")
        self.columns = self._columns()
        if not self.columns:
            raise UsageError(f"{path} is empty")

    def column(self, told: str | None, usual: Sequence[str], flag: str, what: str) -> str:
        """The column that was told, or the first with a usual name.

        Args:
            told: By the user.
            usual: The likeliest first.
            flag: The option that tells it, for messages.
            what: What is looked for, in the plural, for messages.

        Raises:
            UsageError: There is none; the message lists the columns.
        """
        known = ", ".join(map(repr, self.columns[:20]))
        if told is not None:
            if told not in self.columns:
                raise UsageError(f"{self.path} has no column {told!r} ({flag}); it has {known}")
            return told
        for name in usual:
            if name in self.columns:
                return name
        raise UsageError(
            f"none of the columns of {self.path} has a usual name for {what}; choose one with {flag}: {known}"
        )

    def image_column(self, told: str | None) -> str:
        """The column that holds the images."""
        return self.column(told, COLUMNS, "--image-column", "images")

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        """The rows with some of their columns; a cell that is not there is None.

        Raises:
            UsageError: It cannot be read to its end.
        """
        try:
            if self._suffix in (".csv", ".tsv"):
                yield from self._csv_rows(columns)
            elif self._suffix in (".parquet", ".pq"):
                yield from self._parquet_rows(columns)
            else:
                yield from self._json_rows(columns)
        except OSError as error:
            raise UsageError(f"{self.path}: {reason(error)}") from error

    def names_of_numbers(self, column: str) -> tuple[str, ...]:
        """What whole numbers in a column stand for, where a dataset of Hugging Face says so; else nothing."""
        if self._suffix not in (".parquet", ".pq"):
            return ()
        with self._open_parquet() as file:
            told = (file.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
        try:
            names = json.loads(told)["info"]["features"][column]["names"]
            return tuple(names) if all(isinstance(name, str) for name in names) else ()
        except (ValueError, KeyError, TypeError):
            return ()

    def item(self, row: Row, cell: Any, folder: str | None) -> Item | Failure:
        """The image of a row.

        Args:
            row: Which one it is.
            cell: A path, an address, encoded bytes, or a table with `bytes` and `path`.
            folder: Where paths start; that of the table when nothing is said.
        """
        from annotary.errors import UnreachableImage

        name = f"{self.path}:{row.number}"
        path = cell.get("path") if isinstance(cell, Mapping) else cell
        data = cell.get("bytes") if isinstance(cell, Mapping) else cell
        if isinstance(data, bytes) and data:
            end = Path(path).name if isinstance(path, str) and path else ""
            return Item(f"{self.path}/{row.number - 1}" + (f"-{end}" if end else ""), data=data)
        if isinstance(path, str) and path.strip():
            place = str(self.path.parent) if folder is None else folder
            return image_at(place_in(path, place), place)
        return Failure.of(name, UnreachableImage("this row names no image"))

    def _columns(self) -> tuple[str, ...]:
        try:
            if self._suffix in (".csv", ".tsv"):
                with self._open_text() as file:
                    return tuple(name.strip() for name in next(self._reader(file), ()))
            if self._suffix in (".parquet", ".pq"):
                with self._open_parquet() as file:
                    return tuple(file.schema_arrow.names)
            with self._open_text() as file:
                for line in file:
                    if line.strip():
                        return tuple(self._object(line, 1))
        except OSError as error:
            raise UsageError(f"{self.path}: {reason(error)}") from error
        except (csv.Error, ValueError) as error:
            raise UsageError(f"{self.path} cannot be read: {error}") from error
        return ()

    def _csv_rows(self, columns: Sequence[str]) -> Iterator[Row]:
        with self._open_text() as file:
            reader = self._reader(file)
            head = [name.strip() for name in next(reader, ())]
            places = {column: head.index(column) for column in columns}
            number = 0
            while True:
                try:
                    cells = next(reader, None)
                except csv.Error as error:
                    raise UsageError(f"{self.path}: row {number + 1} is broken: {error}") from error
                if cells is None:
                    return
                if cells:
                    number += 1
                    found = {
                        column: cells[place] if place < len(cells) else None
                        for column, place in places.items()
                    }
                    yield Row(number, found)

    def _json_rows(self, columns: Sequence[str]) -> Iterator[Row]:
        with self._open_text() as file:
            lines = (line for line in file if line.strip())
            for number, line in enumerate(lines, 1):
                found = self._object(line, number)
                yield Row(number, {column: found.get(column) for column in columns})

    def _object(self, line: str, number: int) -> dict[str, Any]:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{self.path}: row {number} is not JSON: {error}") from error
        if not isinstance(found, dict):
            raise UsageError(f"{self.path}: row {number} is no JSON object")
        return found

    def _parquet_rows(self, columns: Sequence[str]) -> Iterator[Row]:
        import pyarrow

        with self._open_parquet() as file:
            number = 0
            try:
                wanted = list(dict.fromkeys(columns))
                for batch in file.iter_batches(_ROWS_AT_ONCE, columns=wanted, use_threads=False):
                    for cells in batch.to_pylist():
                        number += 1
                        yield Row(number, cells)
            except pyarrow.ArrowException as error:
                told = " ".join(str(error).split())
                raise UsageError(f"{self.path}: row {number + 1} cannot be read: {told}") from error

    def _open_text(self) -> Any:
        # Names of files are bytes to the system, which need not be UTF-8.
        return self.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")

    def _reader(self, file: Any) -> Any:
        # The limit is one for the process; it is raised and never lowered.
        csv.field_size_limit(max(csv.field_size_limit(), LONGEST_ROW))
        first = file.readline(LONGEST_ROW)
        file.seek(0)
        delimiter = "\t" if self._suffix == ".tsv" else max(",;\t", key=first.count)
        return csv.reader(file, delimiter=delimiter)

    def _open_parquet(self) -> Any:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError as error:
            raise MissingExtra("Reading Parquet", "parquet") from error
        try:
            # Else a whole group of rows, which may be the whole table, is read at once.
            return parquet.ParquetFile(self.path, buffer_size=1 << 20, pre_buffer=False)
        except pyarrow.ArrowException as error:
            told = " ".join(str(error).split())
            raise UsageError(f"{self.path} cannot be read: {told}") from error
