"""NumPy: a matrix of embeddings in `vectors.npy`, and beside it `vectors.parquet`, whose row i tells of row i of it.

Without pyarrow the table is `vectors.jsonl`: records without their embeddings, one a line. While a run goes on

    vectors.npy                  has the rows of runs that ended, and behind them those since then, which its header
                                 does not count
    vectors.parquet              has the rows of runs that ended
    vectors.parquet.part.jsonl   has those since then

So both files always tell of the same images. A vector is written before its row, and a vector without a row is cut off
by the next run.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from annotary.errors import OutputError, UsageError
from annotary.records import Annotation, Item, to_line
from annotary.sinks._contract import SinkOptions
from annotary.sinks._journaled import UNFINISHED, JournaledTable, Table, journal_of
from annotary.sinks._matrix import Matrix
from annotary.sinks._parquet import ParquetTable

SUFFIXES = (".npy",)
OPTIONS = ("half",)
PARTS = ("embedding",)

TABLE_SUFFIXES = (".parquet", ".jsonl")
"""Of the table beside a matrix: with pyarrow, and without."""


class NpySink:
    """Appends a row to a matrix and a record to its table.

    Args:
        path: The matrix.
        options: How exact it is, and what happens to what is there.

    Raises:
        OutputError: Something there cannot be read, or is something else.
        MissingExtra: Its table is of Parquet, and pyarrow is not installed.
    """

    def __init__(self, path: Path, options: SinkOptions) -> None:
        path = Path(os.path.realpath(path))
        self._matrix = Matrix(path, np.float16 if options.half else np.float32)
        place = _place_of_rows(path)
        overwrites = options.on_existing == "overwrite"
        table: Table = BareLines() if place.suffix == ".jsonl" else ParquetTable(())
        if self._matrix.counted is None:
            _settle_orphan(path, place, table, overwrites=overwrites)
        self._rows = JournaledTable(
            place, table, overwrites=overwrites, most_rows=self._matrix.stored
        )
        finished, counted = self._rows.finished_rows, self._matrix.counted or 0
        if not counted <= finished <= self._matrix.stored:
            raise OutputError(
                f"{path} has {counted:,} rows and {place.name} {finished:,}: one of them was changed;"
                " choose another --output"
            )
        self._matrix.cut(self._rows.rows)

    def holds(self, item: Item) -> bool:
        """Whether there is a row of this image."""
        return self._rows.holds(item)

    def write(self, item: Item, annotation: Annotation) -> None:
        """Append a vector, and then its row.

        Raises:
            OutputError: There is none, it has another length than the others, or it cannot be written.
        """
        if annotation.embedding is None:
            raise OutputError(f"{annotation.image} has no embedding, of which a matrix is made")
        self._matrix.append(annotation.embedding.vector)
        told = Annotation(
            annotation.image, annotation.width, annotation.height, sources=annotation.sources
        )
        try:
            self._rows.write(item, told)
        except OutputError:
            self._matrix.take_back()
            raise

    def close(self, *, complete: bool) -> None:
        """Make the table of the rows, and let the matrix count them.

        Raises:
            OutputError: It cannot be written; the same command goes on.
        """
        try:
            self._matrix.sync()  # before the table tells of its rows
            if complete and self._matrix.counted is None:
                self._matrix.count(0)
            self._rows.close(complete=complete)
            if self._matrix.counted is not None:
                self._matrix.count(self._rows.rows)
        finally:
            self._matrix.close()


class BareLines:
    """A table without pyarrow: records of no part, one a line."""

    def check(self, path: Path) -> None:
        """Refuse what has no such lines.

        Raises:
            OutputError: It is something else.
        """
        if not _is_bare(path):
            raise OutputError(f"{path} holds something else; choose another --output")

    def names(self, path: Path) -> Iterator[str]:
        """The image of every line."""
        with path.open("rb") as lines:
            for line in lines:
                yield json.loads(line)["image"]

    def write(
        self, file: BinaryIO, finished: Path | None, records: Iterator[list[dict[str, Any]]]
    ) -> None:
        """Write the lines of a table and those of records."""
        if finished is not None:
            with finished.open("rb") as lines:
                file.writelines(lines)
        for some in records:
            made = (Annotation.from_json(record) for record in some)
            file.writelines(to_line(record).encode() + b"\n" for record in made)

    @contextlib.contextmanager
    def told(self, path: Path) -> Iterator[None]:
        """Turns errors of the system, and what is no record, into one line."""
        try:
            yield
        except OSError as error:
            raise OutputError(f"cannot read or write {path}: {error.strerror}") from error
        except ValueError as error:
            raise OutputError(f"{path} holds something else: {error}") from error


def open(  # noqa: A001
    output: Path | None,
    options: SinkOptions,
    parts: tuple[str, ...],  # noqa: ARG001
) -> NpySink:
    """A sink that continues the matrix."""
    assert output is not None
    if output.suffix in TABLE_SUFFIXES:
        raise UsageError(f"{output.name} is what the table beside it is called; say NAME.npy")
    return NpySink(output, options)


def _place_of_rows(matrix: Path) -> Path:
    """Where the table of a matrix is, or will be."""
    parquet, lines = map(matrix.with_suffix, TABLE_SUFFIXES)
    if parquet.exists():
        return parquet
    return lines if _is_bare(lines) or find_spec("pyarrow") is None else parquet


def _is_bare(path: Path) -> bool:
    """Whether a file is a table of lines: nothing but images and their sizes in its first one, or not finished."""
    try:
        with path.open("rb") as file:
            line = file.readline()
        if line.startswith(UNFINISHED):
            return True
        record = Annotation.from_json(json.loads(line))
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return False
    bare = Annotation(record.image, record.width, record.height, sources=record.sources)
    return record == bare and set(record.sources) <= {"embedding"}


def _settle_orphan(matrix: Path, place: Path, table: Table, *, overwrites: bool) -> None:
    """Deal with a table whose matrix is gone.

    Raises:
        OutputError: It may not be thrown away, or is something else.
    """
    if not place.exists():
        return
    with table.told(place), place.open("rb") as file:
        is_unfinished = file.read(len(UNFINISHED)) == UNFINISHED
    if not is_unfinished:
        table.check(place)
    if not overwrites:
        raise OutputError(
            f"{place} tells of the rows of {matrix.name}, which is gone; move it away, or choose another --output"
        )
    with table.told(place):
        place.unlink()
        journal_of(place).unlink(missing_ok=True)
