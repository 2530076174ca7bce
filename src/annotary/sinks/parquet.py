"""Parquet: one row an image, with the columns `image`, `width`, `height`, `tags` and `sources`.

A Parquet file cannot be read before its end is written, and nothing can be appended to it. So while a run goes on its
records are appended to a journal:

    out.parquet               the rows of runs that ended; one line of text until the first one does
    out.parquet.part.jsonl    the records since then, as JSON Lines

When the run ends, or is stopped by Ctrl-C, both become a new file that takes the place of the old one at once, and the
journal goes. A run that is killed leaves its journal, and the next one continues it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from annotary import __version__
from annotary.errors import MissingExtra, OutputError
from annotary.records import Annotation, Item, from_line
from annotary.sinks._appending import AppendingFile
from annotary.sinks._atomic import replacing, write_atomically
from annotary.sinks._contract import SinkOptions, TagsOfImage
from annotary.sinks._names import NameSet
from annotary.sinks._reading import read_lines
from annotary.sinks.jsonl import JsonLines, tags_of

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

SUFFIXES = (".parquet",)

SCHEMA_VERSION = "1"
"""Of the columns; it is in the file's metadata as `annotary.schema`."""

GROUP_ROWS = 10_000
GROUP_TAGS = 500_000
"""A row group ends before it would hold more rows or more tags: it is what a reader, or the next run, has in memory."""

_READ_ROWS = 500
"""Records of the journal that are Python objects at once."""

_UNFINISHED = b"annotary has not finished this file"


class ParquetSink:
    """Appends records to a journal, and makes a Parquet file of it at the end.

    Args:
        path: The file; what it holds stays.
        overwrites: Whether a journal whose file was thrown away may be thrown away as well.

    Raises:
        OutputError: It cannot be read, or holds something else.
        MissingExtra: pyarrow is not installed.
    """

    def __init__(self, path: Path, *, overwrites: bool = False) -> None:
        _pyarrow()
        self._path = Path(os.path.realpath(path))
        self._journal_path = self._path.with_name(self._path.name + ".part.jsonl")
        self._finished = NameSet()
        self._is_there, self._is_parquet = _look_at(path)
        if self._is_parquet:
            with _told(path):
                for table in _row_groups(self._path, ["image"]):
                    for name in table["image"].to_pylist():
                        self._finished.add(name)
        self._journal = AppendingFile(self._journal_path, JsonLines())
        if not self._is_there and self._journal_path.exists():
            self._settle_orphan(overwrites=overwrites)

    def holds(self, item: Item) -> bool:
        """Whether the file or the journal has this image."""
        return _text(item.image) in self._finished or self._journal.holds(item)

    def write(self, item: Item, annotation: Annotation) -> None:
        """Append a record to the journal.

        Raises:
            OutputError: It cannot be written.
        """
        if not self._is_there:
            # So that it is known whose the journal is, and nobody takes an unfinished table for an empty one.
            note = f"; its records are in {self._journal_path.name}, and the same command goes on\n"
            write_atomically(self._path, _UNFINISHED.decode() + _text(note))
            self._is_there = True
        self._journal.write(item, annotation)

    def close(self, *, complete: bool) -> None:
        """Make a Parquet file of what there is.

        Raises:
            OutputError: It cannot be written; the records stay in the journal.
        """
        self._journal.close(complete=False)
        if self._journal_path.exists() or (complete and not self._is_parquet):
            with _told(self._path):
                self._convert()
                self._journal_path.unlink(missing_ok=True)

    def _settle_orphan(self, *, overwrites: bool) -> None:
        """Deal with a journal whose file is gone."""
        if not overwrites:
            raise OutputError(
                f"{self._journal_path} holds records of a run whose {self._path.name} is gone; move it away"
            )
        with _told(self._journal_path):
            with self._journal_path.open("rb") as lines:
                is_ours = all(map(_is_record, lines))
            if is_ours:
                self._journal_path.unlink()
        if not is_ours:
            raise OutputError(self._told_foreign())
        self._journal = AppendingFile(self._journal_path, JsonLines())

    def _convert(self) -> None:
        """Write the rows of the file and of the journal to a new file, and let that take the old one's place."""
        import pyarrow.parquet as pq

        with (
            replacing(self._path, is_durable=True) as file,
            pq.ParquetWriter(file, _schema(), compression="zstd") as writer,
        ):
            groups = _RowGroups(writer)
            if self._is_parquet:
                for table in _row_groups(self._path):
                    groups.add(table)
            for records in self._journaled():
                groups.add(self._rows(records))
            groups.flush()

    def _rows(self, records: list[dict[str, Any]]) -> pyarrow.Table:
        try:
            return _table(records)
        except (KeyError, TypeError, AttributeError) as error:
            raise OutputError(self._told_foreign()) from error

    def _told_foreign(self) -> str:
        return f"{self._journal_path} holds other lines than records of annotary; move it away"

    def _journaled(self) -> Iterator[list[dict[str, Any]]]:
        """The records of the journal that the file does not hold, some at a time.

        It holds them when a run was killed between making the file and removing its journal.
        """
        if not self._journal_path.exists():
            return
        with self._journal_path.open("rb") as lines:
            records = (json.loads(line) for line in lines)
            new = (record for record in records if _text(record["image"]) not in self._finished)
            while some := list(islice(new, _READ_ROWS)):
                yield some


def open(output: Path | None, options: SinkOptions) -> ParquetSink:  # noqa: A001
    """A sink that continues the file."""
    assert output is not None
    return ParquetSink(output, overwrites=options.on_existing == "overwrite")


def read(output: Path, options: SinkOptions) -> Iterator[TagsOfImage]:  # noqa: ARG001
    """The tags of every row, and of the records that a run which was stopped has left in the journal."""
    _pyarrow()
    journal = output.with_name(output.name + ".part.jsonl")
    held = NameSet()
    if _look_at(output)[1]:
        with _told(output):
            for table in _row_groups(output, ["image", "tags"]):
                for row in table.to_pylist():
                    found = tuple((tag["name"], tag["score"]) for tag in row["tags"])
                    held.add(row["image"])
                    yield TagsOfImage(row["image"], found)
    if journal.is_file():
        # A run that was killed may have made the file, and not yet removed what is in it.
        new = (found for found in read_lines(journal, tags_of) if _text(found.image) not in held)
        yield from new


class _RowGroups:
    """Writes rows in groups whose limits depend on the rows alone, and not on how they arrive."""

    def __init__(self, writer: pyarrow.parquet.ParquetWriter) -> None:
        self._writer = writer
        self._tables: list[pyarrow.Table] = []
        self._rows = 0
        self._tags = 0

    def add(self, table: pyarrow.Table) -> None:
        """Add rows, and write the groups that are full."""
        import pyarrow.compute as pc

        start = 0
        for row, tags in enumerate(pc.list_value_length(table["tags"]).to_pylist()):
            is_full = self._rows == GROUP_ROWS or self._tags + tags > GROUP_TAGS
            if self._rows and is_full:
                self._tables.append(table.slice(start, row - start))
                self.flush()
                start = row
            self._rows += 1
            self._tags += tags
        self._tables.append(table.slice(start))

    def flush(self) -> None:
        """Write the last group."""
        import pyarrow as pa

        if self._rows:
            group = pa.concat_tables(self._tables).combine_chunks()
            self._writer.write_table(group, row_group_size=self._rows)
        self._tables, self._rows, self._tags = [], 0, 0


def _pyarrow() -> Any:
    """pyarrow, with its part for Parquet.

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra("Writing Parquet", "parquet") from error
    return pa


def _schema() -> pyarrow.Schema:
    """The columns. `sources` is a list and no map, which Hugging Face's datasets cannot read."""
    pa = _pyarrow()
    tag = pa.struct([("name", pa.string()), ("score", pa.float32()), ("category", pa.string())])
    source = pa.struct([("part", pa.string()), ("model", pa.string())])
    columns = [
        ("image", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("tags", pa.list_(tag)),
        ("sources", pa.list_(source)),
    ]
    metadata = {"annotary.version": __version__, "annotary.schema": SCHEMA_VERSION}
    return pa.schema(columns, metadata=metadata)


def _table(records: list[dict[str, Any]]) -> pyarrow.Table:
    """Records of the journal as rows."""
    pa = _pyarrow()
    schema = _schema()
    tags = [record.get("tags", ()) for record in records]
    sources = [record.get("sources", {}).items() for record in records]
    columns = [
        pa.array([_text(record["image"]) for record in records], pa.string()),
        pa.array([record["width"] for record in records], pa.int32()),
        pa.array([record["height"] for record in records], pa.int32()),
        _lists(
            schema.field("tags").type,
            [len(row) for row in tags],
            [_text(tag["name"]) for row in tags for tag in row],
            [tag["score"] for row in tags for tag in row],
            [_text(tag.get("category", "")) or None for row in tags for tag in row],
        ),
        _lists(
            schema.field("sources").type,
            [len(row) for row in sources],
            [_text(part) for row in sources for part, _ in row],
            [_text(model) for row in sources for _, model in row],
        ),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _lists(kind: pyarrow.ListType, lengths: list[int], *values: list[Any]) -> pyarrow.ListArray:
    """A column of lists of structs, from the length of each list and the values of each field one after the other."""
    pa = _pyarrow()
    fields = list(kind.value_type)
    arrays = [pa.array(part, field.type) for part, field in zip(values, fields, strict=True)]
    offsets = [0]
    for length in lengths:
        offsets.append(offsets[-1] + length)
    flat = pa.StructArray.from_arrays(arrays, fields=fields)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat, type=kind)


def _is_record(line: bytes) -> bool:
    """Whether a line of a journal is a record of ours, or the beginning of one that was cut off."""
    beginning = b'{"image": "'
    if not line.endswith(b"\n"):
        return line.startswith(beginning) or beginning.startswith(line)
    try:
        return isinstance(from_line(line), Annotation)
    except ValueError:
        return False


def _look_at(path: Path) -> tuple[bool, bool]:
    """Whether a file is there, and whether it is a Parquet file of ours.

    Raises:
        OutputError: It is something else.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _told(path):
        try:
            with path.open("rb") as file:
                start = file.read(len(_UNFINISHED))
        except FileNotFoundError:
            return False, False
        if start == _UNFINISHED or not start:
            return bool(start), False
        try:
            with pq.ParquetFile(path, pre_buffer=False) as file:
                found = file.schema_arrow
        except pa.ArrowInvalid as error:
            raise OutputError(f"{path} holds something else; choose another --output") from error
    version = (found.metadata or {}).get(b"annotary.schema", b"").decode()
    if version != SCHEMA_VERSION or not found.equals(_schema()):
        raise OutputError(
            f"{path} has other columns than this version of annotary writes; choose another --output"
        )
    return True, True


def _row_groups(path: Path, columns: list[str] | None = None) -> Iterator[pyarrow.Table]:
    """The rows of a Parquet file, one group in memory at a time."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, pre_buffer=False) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn errors of the system, and what damaged files provoke, into one line."""
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException) as error:
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise OutputError(
            f"cannot read or write {path}: {why}; the same command continues once this is mended"
        ) from error


def _text(name: str) -> str:
    """Text with what is not valid Unicode escaped, as a column of text must be."""
    return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode()
