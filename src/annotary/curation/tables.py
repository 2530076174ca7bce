"""Tables of image-text pairs: found, cut in parts, read in batches, and written.

A part is what one worker reads and one file of output holds: a table, or some groups of rows of a large Parquet file.
Parquet, JSON Lines, CSV and WebDataset tars are read (`annotary.curation._rows` says how); Parquet is written. Needs
pyarrow.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

from annotary.errors import AnnotaryError, MissingExtra, NothingToDo, OutputError, UsageError
from annotary.sinks._atomic import replacing
from annotary.sources._braces import expand
from annotary.sources._paths import kind_of, reason

if TYPE_CHECKING:
    import pyarrow as pa

Form: TypeAlias = Literal["parquet", "jsonl", "csv", "webdataset"]

SUFFIXES: dict[str, Form] = {
    ".parquet": "parquet", ".pq": "parquet",
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".jsonl.gz": "jsonl", ".ndjson.gz": "jsonl",
    ".csv": "csv", ".tsv": "csv", ".csv.gz": "csv", ".tsv.gz": "csv",
    ".tar": "webdataset", ".tar.gz": "webdataset", ".tgz": "webdataset",
}  # fmt: skip
"""Endings of file names, in lower case, that are taken for tables of pairs."""

PART_ROWS = 250_000
"""Rows of a Parquet file from which on it is cut: at its groups of rows, so that each part has as many or more."""

BATCH_ROWS = 16_384
"""The most rows that are held at a time."""

BATCH_BYTES = 16 * 1024 * 1024
"""Bytes that they may take, unless a single row takes more."""

GROUP_ROWS = 131_072
"""Rows of a group in what is written."""

_GROUP_BYTES = 64 * 1024 * 1024  # with images, a group has fewer rows

_MOST_PARTS = 1_000_000
_LONGEST_NAME = 200  # bytes; with its suffix, most file systems take 255
_CUT_FROM = 16 * 1024 * 1024  # bytes of a file that may hold so many rows
_PAGES = 1024 * 1024  # bytes of a file that are buffered, in the place of a whole group of rows


class BrokenPart(AnnotaryError):
    """A part cannot be read, or not to its end. A step lists it and goes on with the others."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one worker reads, and one file of output holds.

    Attributes:
        file: The table's path.
        form: How its rows stand in it.
        name: The name of what is written of it, without suffix; no two parts of a step have the same.
        groups: The first of some groups of rows of a Parquet file, and the one behind the last; None for all rows.
    """

    file: str
    form: Form
    name: str
    groups: tuple[int, int] | None = None

    @property
    def signature(self) -> list[int]:
        """What changes with the file: its size in bytes, and the time of its last change in nanoseconds."""
        try:
            status = os.stat(self.file)  # noqa: PTH116
        except OSError as error:
            raise BrokenPart(f"{self.file}: {reason(error)}") from error
        return [status.st_size, status.st_mtime_ns]


def find_parts(paths: Sequence[str | os.PathLike[str]]) -> list[Part]:
    """The parts of tables.

    Args:
        paths: Tables; folders, of which all tables are taken, but for names that begin with "_" or "." and for folders
            in them that steps have written; names with braces, such as `shards/{00000..00146}.tar`.

    Raises:
        NothingToDo: There is no table.
        UsageError: One is not there, or is no table, or two would be written under one name; a folder is of a step that
            has not come to its end.
    """
    arrow()
    named: dict[str, str] = {}
    parts = []
    for part in (part for file, name in _tables(paths) for part in _cut(file, _safe(name))):
        # Names of file systems that ignore case would collide as well.
        other = named.setdefault(part.name.casefold(), part.file)
        if other != part.file:
            raise UsageError(
                f"{other} and {part.file} would both be written as {part.name}.parquet;"
                " rename one, or name the folder that holds both"
            )
        if len(named) > _MOST_PARTS:
            raise UsageError(f"these are more than {_MOST_PARTS:,} parts; name fewer tables")
        parts.append(part)
    if not parts:
        told = ", ".join(os.fspath(path) for path in paths[:3])
        raise NothingToDo(f"no table in {told}; tables end in {', '.join(SUFFIXES)}")
    return list({(part.file, part.groups): part for part in parts}.values())


def column_types(part: Part) -> dict[str, pa.DataType]:
    """The columns of a part; of JSON Lines and tars all that any row has.

    Raises:
        BrokenPart: It cannot be read.
    """
    return {field.name: field.type for field in Rows(part).schema}


def sound_part(parts: Sequence[Part]) -> Part:
    """The first part that is neither broken nor empty, which tells the columns of all; if there is none, the first."""
    for part in parts:
        with suppress(BrokenPart):
            if column_types(part):
                return part
    return parts[0]


class Rows:
    """The rows of a part.

    Args:
        part: The part.
        columns: Those that are read, in this order; all when nothing is said. One that is not there is an error.

    Attributes:
        skipped: What was no row, so far: where it stands, and why.

    Raises:
        UsageError: A column is not there; the message lists those that are.
    """

    def __init__(self, part: Part, columns: Sequence[str] | None = None) -> None:
        self.part = part
        self.columns = None if columns is None else tuple(columns)
        self.skipped: list[tuple[str, str]] = []
        self._schema: pa.Schema | None = None

    @property
    def schema(self) -> pa.Schema:
        """The columns and their types.

        Raises:
            BrokenPart: It cannot be read.
        """
        if self._schema is None:
            self._schema = self._chosen(self._reader().schema())
        return self._schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows in their order, at most `BATCH_ROWS` at a time; at least one batch, which may be empty.

        Raises:
            BrokenPart: It cannot be read to its end.
        """
        import pyarrow as pa

        schema = self.schema
        is_empty = True
        with told(self.part):
            for batch in self._reader().batches(schema):
                is_empty = False
                yield batch
        if is_empty:
            yield pa.RecordBatch.from_pylist([], schema=schema)

    def _reader(self) -> Any:
        # Imported here: they need the names of this module.
        from annotary.curation import _rows

        return _rows.reader(self.part, self.skipped)

    def _chosen(self, schema: pa.Schema) -> pa.Schema:
        import pyarrow as pa

        if len(set(schema.names)) < len(schema.names):
            twice = next(name for name in schema.names if schema.names.count(name) > 1)
            raise BrokenPart(f"{self.part.file} has the column {twice!r} twice")
        if self.columns is None:
            return schema
        for name in self.columns:
            if name not in schema.names:
                raise UsageError(no_column(self.part.file, name, schema.names))
        return pa.schema([schema.field(name) for name in self.columns], schema.metadata)


class PartWriter:
    """A Parquet file that is there in whole when the context ends, and not at all when it ends in an error.

    Args:
        path: The file. Folders that are missing are made.
        schema: The columns; those of the first batch when nothing is said.

    Attributes:
        rows: How many were written.
    """

    def __init__(self, path: Path, schema: pa.Schema | None = None) -> None:
        self.path = path
        self.rows = 0
        self._schema = schema
        self._held: list[pa.RecordBatch] = []
        self._held_rows = self._held_bytes = 0
        self._stack = ExitStack()
        self._writer: Any = None

    def __enter__(self) -> Self:
        return self

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows; all batches have the same columns.

        Raises:
            OutputError: The disk does not take them.
        """
        if self._schema is None:
            self._schema = batch.schema
        self._held.append(batch)
        self.rows += batch.num_rows
        self._held_rows += batch.num_rows
        self._held_bytes += batch.nbytes
        if self._held_rows >= GROUP_ROWS or self._held_bytes >= _GROUP_BYTES:
            self._flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._told():
            try:
                if kind is None:
                    self._flush()
                    self._writer.close()
            except BaseException as failed:
                self._give_up(failed)
                raise
            if error is None:
                self._stack.close()
            else:
                self._give_up(error)

    def _flush(self) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        schema = pa.schema([]) if self._schema is None else self._schema
        with self._told():
            if self._writer is None:
                file = self._stack.enter_context(replacing(self.path))
                # Level 1 of zstd makes files a third smaller than snappy, at about its speed. Texts seldom repeat, so
                # a dictionary of them is time lost; of ids of entries they are short, and packed without one.
                self._writer = parquet.ParquetWriter(
                    file,
                    schema,
                    compression="zstd",
                    compression_level=1,
                    use_dictionary=False,
                    write_page_checksum=True,
                )
            if self._held_rows:
                table = pa.Table.from_batches(self._held, schema)
                self._writer.write_table(table, row_group_size=self._held_rows)
        self._held = []
        self._held_rows = self._held_bytes = 0

    def _give_up(self, error: BaseException) -> None:
        """Leave nothing behind."""
        if self._writer is not None:
            # Else it writes the end of the file when it is thrown away, which nobody is there to hear fail.
            self._writer.is_open = False
        self._stack.__exit__(type(error), error, error.__traceback__)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {reason(error)}") from error


_DAMAGE = (OSError, ValueError, EOFError, OverflowError, csv.Error, zlib.error)
"""What damaged files lead to, beside errors of Arrow."""


class told:  # noqa: N801 - it reads as a statement: with told(part)
    """What goes wrong while a part is read is a `BrokenPart`, in one line.

    Args:
        part: It.
    """

    def __init__(self, part: Part) -> None:
        self._part = part

    def __enter__(self) -> None:
        """Nothing is opened."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, (OutputError, UsageError, BrokenPart)):
            return
        if isinstance(error, OSError) and error.strerror:
            raise BrokenPart(f"{self._part.file}: {reason(error)}") from error
        if isinstance(error, (*_DAMAGE, arrow().ArrowException)):
            raise BrokenPart(f"{self._part.file}: {first_line(error)}") from error


def arrow() -> Any:
    """The library that reads and writes tables.

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra("Reading tables of pairs", "curate") from error
    return pyarrow


def first_line(error: BaseException) -> str:
    """What a library says, without the places in its source code that follow."""
    return str(error).strip().split("\n", 1)[0] or type(error).__name__


def no_column(file: str, name: str, known: Sequence[str], flag: str = "") -> str:
    """The message that a table lacks a column."""
    listed = ", ".join(map(repr, known[:20])) or "none"
    more = f" and {len(known) - 20:,} more" if len(known) > 20 else ""
    return (
        f"{file} has no column {name!r}"
        + (f" ({flag})" if flag else "")
        + f"; its columns are {listed}{more}"
    )


def _tables(paths: Sequence[str | os.PathLike[str]]) -> Iterator[tuple[str, str]]:
    """Every table, and what is written of it is called."""
    for path in (os.fspath(path) for path in paths):
        if kind_of(path) == "folder":
            refuse_unfinished(Path(path))
            yield from _tables_below(path)
            continue
        for file in [path] if kind_of(path) else expand(path):
            kind = kind_of(file)
            if not kind:
                raise UsageError(f"no such file or folder: {file!r}")
            if kind != "file" or _suffix(file) is None:
                raise UsageError(f"{file} is no table; tables end in {', '.join(SUFFIXES)}")
            yield file, _stem(PurePath(file).name)


def _tables_below(folder: str) -> Iterator[tuple[str, str]]:
    def complain(error: OSError) -> None:
        raise UsageError(f"{error.filename}: {reason(error)}") from error

    for place, folders, files in os.walk(folder, onerror=complain):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(("_", ".")) and not is_of_a_step(Path(place, name))
        )
        for name in sorted(files):
            if not name.startswith(("_", ".")) and _suffix(name) is not None:
                file = os.path.join(place, name)  # noqa: PTH118
                below = PurePath(os.path.relpath(file, folder))
                yield file, "_".join((*below.parts[:-1], _stem(below.name)))


def is_of_a_step(folder: Path) -> bool:
    """Whether a step has written a folder: what was made of tables is not among them, unless it is named."""
    return (folder / "_state" / "settings.json").is_file()


def refuse_unfinished(folder: Path) -> None:
    """A step that was killed, or of which a machine has done its share alone, has written only some of its rows.

    Raises:
        UsageError: A folder is of such a step.
    """
    if not is_of_a_step(folder):
        return
    try:
        missing = json.loads((folder / "_report.json").read_text("utf-8")).get("parts_missing")
    except FileNotFoundError:
        told = "was not written to its end"
    except (OSError, ValueError, AttributeError):
        return  # it is there, so there was an end
    else:
        told = f"lacks {missing:,} parts" if missing else ""
    if told:
        raise UsageError(f"{folder} {told}: first give the command again that writes it")


def _suffix(name: str) -> str | None:
    """The longest of the known endings that a name has."""
    lower = name.lower()
    return max((end for end in SUFFIXES if lower.endswith(end)), key=len, default=None)


def _stem(name: str) -> str:
    return name[: -len(_suffix(name) or "")] or name


def _safe(name: str) -> str:
    """A name that a file can have, and that is no hidden one."""
    if name.startswith(("_", ".")):
        name = f"table{name}"
    data = os.fsencode(name)
    if len(data) <= _LONGEST_NAME:
        return name
    digest = hashlib.blake2b(data, digest_size=8).hexdigest()
    return f"{data[: _LONGEST_NAME - 40].decode('utf-8', 'ignore')}-{digest}"


def _cut(file: str, name: str) -> list[Part]:
    """The parts of a table."""
    form = SUFFIXES[_suffix(file) or ""]
    whole = [Part(file, form, name)]
    if form != "parquet" or os.stat(file).st_size < _CUT_FROM:  # noqa: PTH116
        return whole
    try:
        with open_parquet(file) as table:
            counts = [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
    except (OSError, ValueError, arrow().ArrowException):
        return whole  # whoever reads it tells
    edges, rows = [0], 0
    for number, count in enumerate(counts, 1):
        rows += count
        if rows >= PART_ROWS and number < len(counts):
            edges.append(number)
            rows = 0
    if len(edges) > 1 and rows < PART_ROWS // 2:
        edges.pop()  # what is left at the end goes with the part before
    edges.append(len(counts))
    if len(edges) < 3:
        return whole
    return [
        Part(file, form, f"{name}-{number:05d}", (edges[number], edges[number + 1]))
        for number in range(len(edges) - 1)
    ]


def open_parquet(file: str) -> Any:
    """A Parquet file that is read page by page: else a whole group, which may be all, is read at once."""
    from pyarrow import parquet

    return parquet.ParquetFile(
        file,
        buffer_size=_PAGES,
        pre_buffer=False,
        memory_map=False,
        page_checksum_verification=True,  # of pages that have one
    )
