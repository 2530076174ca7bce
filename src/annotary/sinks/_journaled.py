"""A table that can only be written whole, and the journal that makes it one that records are appended to.

While a run goes on its records are appended to a journal:

    out.parquet               the rows of runs that ended; one line of text until the first one does
    out.parquet.part.jsonl    the records since then, as JSON Lines

When the run ends, or is stopped by Ctrl-C, both become a new file that takes the place of the old one at once, and the
journal goes. A run that is killed leaves its journal, and the next one continues it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from annotary.errors import OutputError
from annotary.records import Annotation, Item
from annotary.sinks._appending import AppendingFile
from annotary.sinks._atomic import replacing, write_atomically
from annotary.sinks._contract import TagsOfImage
from annotary.sinks._names import NameSet
from annotary.sinks._parts import counted
from annotary.sinks._reading import read_lines
from annotary.sinks.jsonl import JsonLines

UNFINISHED = b"annotary has not finished this file"
"""What a table begins with until the first run ends."""

PLACE = "relative"
"""Where the image lies below the folder that was asked for, in a line of a journal that keeps it."""

READ_ROWS = 500
"""Records of the journal that are Python objects at once."""


class Table(Protocol):
    """A kind of table."""

    def check(self, path: Path) -> None:
        """Refuse what this run cannot go on with.

        Raises:
            OutputError: The file is no table of this kind, or has other columns.
        """

    def names(self, path: Path) -> Iterator[str]:
        """The images of a finished table, in its order."""

    def write(
        self, file: BinaryIO, finished: Path | None, records: Iterator[list[dict[str, Any]]]
    ) -> None:
        """Write a table with the rows of a finished one and those of records.

        Raises:
            KeyError, TypeError, AttributeError: What comes is no record.
        """

    def told(self, path: Path) -> AbstractContextManager[None]:
        """Turns errors of the system, and what damaged files provoke, into an OutputError."""


class JournaledTable:
    """A sink that appends records to a journal, and makes a table of it at the end.

    Args:
        path: The table; what it holds stays.
        table: Which kind it is.
        overwrites: Whether a journal whose table was thrown away may be thrown away as well.
        most_rows: Rows that count; what the journal has beyond them is cut off. None: all.
        keeps_places: Whether records come with a `relative`, the image's place below the folder that was asked for.

    Attributes:
        finished_rows: How many rows the table had when it was opened.
        rows: How many it has with those of the journal.

    Raises:
        OutputError: It cannot be read, or holds something else.
    """

    def __init__(
        self,
        path: Path,
        table: Table,
        *,
        overwrites: bool = False,
        most_rows: int | None = None,
        keeps_places: bool = False,
    ) -> None:
        self._path = Path(os.path.realpath(path))
        self._journal_path = journal_of(self._path)
        self._table = table
        self._keeps_places = keeps_places
        self._finished = NameSet()
        self.finished_rows = 0
        self._is_there, self._is_finished = _look_at(path, table)
        if self._is_finished:
            with table.told(path):
                for name in table.names(self._path):
                    self._finished.add(name)
                    self.finished_rows += 1
        limit = None if most_rows is None else max(0, most_rows - self.finished_rows)
        self._layout = _NewLines(self._finished, limit)
        if not self._is_there and self._journal_path.exists():
            self._settle_orphan(overwrites=overwrites)
        self._journal = AppendingFile(self._journal_path, self._layout)

    @property
    def rows(self) -> int:
        """How many rows there are, with those of the journal."""
        return self.finished_rows + self._layout.count

    def holds(self, item: Item) -> bool:
        """Whether the table or the journal has this image."""
        return as_text(item.image) in self._finished or self._journal.holds(item)

    def write(self, item: Item, annotation: Annotation) -> None:
        """Append a record to the journal.

        Raises:
            OutputError: It cannot be written.
        """
        if not self._is_there:
            # So that it is known whose the journal is, and nobody takes an unfinished table for an empty one.
            note = f"; its records are in {self._journal_path.name}, and the same command goes on\n"
            write_atomically(self._path, UNFINISHED.decode() + as_text(note))
            self._is_there = True
        line = self._layout.encode(annotation)
        if self._keeps_places and item.relative:
            line = _with_place(line, item.relative)
        self._journal.append(item.image, line)
        self._layout.count += 1

    def close(self, *, complete: bool) -> None:
        """Make a table of what there is.

        Raises:
            OutputError: It cannot be written; the records stay in the journal.
        """
        self._journal.close(complete=False)
        if self._journal_path.exists() or (complete and not self._is_finished):
            with self._table.told(self._path):
                self._convert()
                self._journal_path.unlink(missing_ok=True)

    def _settle_orphan(self, *, overwrites: bool) -> None:
        """Deal with a journal whose table is gone."""
        if not overwrites:
            raise OutputError(
                f"{self._journal_path} holds records of a run whose {self._path.name} is gone; move it away"
            )
        with self._table.told(self._journal_path):
            with self._journal_path.open("rb") as lines:
                is_ours = all(map(_is_record, lines))
            if is_ours:
                self._journal_path.unlink()
        if not is_ours:
            raise OutputError(self._told_foreign())

    def _convert(self) -> None:
        """Write the rows of the table and of the journal to a new file, and let that take the old one's place."""
        finished = self._path if self._is_finished else None
        with replacing(self._path, is_durable=True) as file:
            try:
                self._table.write(file, finished, self._journaled())
            except (KeyError, TypeError, AttributeError) as error:
                raise OutputError(self._told_foreign()) from error

    def _told_foreign(self) -> str:
        return f"{self._journal_path} holds other lines than records of annotary; move it away"

    def _journaled(self) -> Iterator[list[dict[str, Any]]]:
        """The records of the journal that the table does not hold, some at a time.

        It holds them when a run was killed between making the table and removing its journal.
        """
        if not self._journal_path.exists():
            return
        with self._journal_path.open("rb") as lines:
            records = (json.loads(line) for line in lines if line.endswith(b"\n"))
            new = (record for record in records if as_text(record["image"]) not in self._finished)
            counted = islice(new, self._layout.count)
            while some := list(islice(counted, READ_ROWS)):
                yield some


class _NewLines(JsonLines):
    """The lines of a journal, and how many of them the table does not hold.

    Args:
        finished: What the table holds.
        limit: How many new lines count.
    """

    def __init__(self, finished: NameSet, limit: int | None) -> None:
        self.count = 0
        self._finished = finished
        self._limit = limit

    def recover(self, file: BinaryIO) -> Iterator[tuple[str, int]]:
        """Name and end of every whole line that counts."""
        for name, end in super().recover(file):
            if as_text(name) not in self._finished:
                if self.count == self._limit:
                    return
                self.count += 1
            yield name, end


def journal_of(path: Path) -> Path:
    """Where the records of a table are until it is finished."""
    return path.with_name(path.name + ".part.jsonl")


def read_journaled(
    path: Path, table: Table, finished: Callable[[], Iterator[TagsOfImage]]
) -> Iterator[TagsOfImage]:
    """What a table is counted under, image by image, and the records that a run which was stopped has left.

    Args:
        path: The table.
        table: Which kind it is.
        finished: Reads a finished one.

    Raises:
        OutputError: It cannot be read, or is something else.
    """
    held = NameSet()
    if _look_at(path, table)[1]:
        with table.told(path):
            for found in finished():
                held.add(as_text(found.image))
                yield found
    if (journal := journal_of(path)).is_file():
        # A run that was killed may have made the table, and not yet removed what is in it.
        for found in read_lines(journal, _counted):
            if as_text(found.image) not in held:
                yield found


def _counted(line: bytes) -> TagsOfImage:
    record = json.loads(line)
    record.pop(PLACE, None)
    annotation = Annotation.from_json(record)
    return TagsOfImage(annotation.image, counted(annotation))


def as_text(name: str) -> str:
    """Text with what is not valid Unicode escaped, as a column of text must be."""
    return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode()


def _look_at(path: Path, table: Table) -> tuple[bool, bool]:
    """Whether a file is there, and whether it is a finished table.

    Raises:
        OutputError: It is something else.
    """
    with table.told(path):
        try:
            with path.open("rb") as file:
                start = file.read(len(UNFINISHED))
        except FileNotFoundError:
            return False, False
        if start == UNFINISHED or not start:
            return bool(start), False
        table.check(path)
    return True, True


def _with_place(line: bytes, relative: str) -> bytes:
    """The line of a record with the image's place behind the rest."""
    place = json.dumps({PLACE: relative}, ensure_ascii=False).encode("utf-8", "backslashreplace")
    return line.removesuffix(b"}\n") + b", " + place[1:] + b"\n"


def _is_record(line: bytes) -> bool:
    """Whether a line of a journal is a record of ours, or the beginning of one that was cut off."""
    beginning = b'{"image": "'
    if not line.endswith(b"\n"):
        return line.startswith(beginning) or beginning.startswith(line)
    try:
        record = json.loads(line)
        record.pop(PLACE, None)
        return isinstance(Annotation.from_json(record), Annotation)
    except (ValueError, AttributeError, RecursionError):
        return False
