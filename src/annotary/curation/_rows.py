"""How the rows of tables of pairs are read, as batches of Arrow.

* Parquet: as it is, page by page. A row whose text is not UTF-8 is skipped and told.
* CSV: every cell is text, so that nothing is guessed and nothing lost: "1,100" and "007" stay what they are. The
  delimiter is the commonest of comma, semicolon and tab in the head; of .tsv it is a tab. A row with another number of
  cells, or that is not UTF-8, is skipped and told by its number; the head is number 1, empty lines have none.
* JSON Lines: columns have the type of their values; where types are mixed, or Parquet has none for them, the column is
  text: texts as they are, of other values the JSON. A line that is no JSON object is skipped and told.
* WebDataset: a row for each sample: `__key__`, `image` (the tar and the path in it, as the source of tars has it), a
  column for each member that is text (`txt`, `caption`, `cls`), and one for each field of the `json`. What the tar
  itself says of a sample stands above what is written in it. A second image of a sample, and what leads outside, is
  told.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

from annotary.curation.tables import (
    BATCH_BYTES,
    BATCH_ROWS,
    BrokenPart,
    Part,
    first_line,
    open_parquet,
    told,
)
from annotary.sources._members import OUTSIDE, inner_path
from annotary.sources._rows import LONGEST_ROW, split
from annotary.sources._tar import ERRORS, open_tar
from annotary.sources.folder import IMAGE_SUFFIXES

if TYPE_CHECKING:
    import pyarrow as pa

Skipped = list[tuple[str, str]]
Row = Mapping[str, Any]

TEXT_MEMBERS = ("txt", "text", "caption", "cls")
"""Endings of members of a tar that are columns of text."""

_MIXED = b"annotary.mixed_columns"

_BLOCK = LONGEST_ROW
_PIECE = 1024 * 1024

_MOST_COLUMNS = 4_096

_HALF = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")
"""Half a character of UTF-16, as JSON can write it, and no other format."""


def reader(part: Part, skipped: Skipped) -> Any:
    """What reads a part: it has `schema()` and `batches(schema)`.

    Args:
        part: The part.
        skipped: Gets what is no row.
    """
    return {
        "parquet": _Parquet,
        "csv": _Csv,
        "jsonl": _JsonLines,
        "webdataset": _WebDataset,
    }[part.form](part, skipped)


class _Parquet:
    def __init__(self, part: Part, skipped: Skipped) -> None:
        self._part = part
        self._skipped = skipped

    def schema(self) -> pa.Schema:
        import pyarrow as pa

        with told(self._part), open_parquet(self._part.file) as table:
            schema = table.schema_arrow
        # Of views, Arrow cannot take or filter rows (version 26).
        plain = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
        fields = [field.with_type(plain.get(field.type, field.type)) for field in schema]
        return pa.schema(fields, schema.metadata)

    def batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        with open_parquet(self._part.file) as table:
            first, last = self._part.groups or (0, table.num_row_groups)
            counts = [table.metadata.row_group(number).num_rows for number in range(last)]
            row = sum(counts[:first])
            for group in range(first, last):
                end = row + counts[group]
                for batch in table.iter_batches(
                    self._rows_at_once(table, group, schema.names),
                    row_groups=[group],
                    columns=schema.names,
                    use_threads=False,
                ):
                    yield self._sound(batch.cast(schema, safe=False), row)
                    row += batch.num_rows
                if row != end:
                    raise BrokenPart(f"{self._part.file}: it holds fewer rows than its footer says")

    def _sound(self, batch: pa.RecordBatch, first: int) -> pa.RecordBatch:
        """The rows that are what their types say: Parquet does not check that text is UTF-8, others rely on it."""
        import pyarrow as pa

        try:
            batch.validate(full=True)
        except pa.ArrowInvalid:
            broken = _not_utf8(batch)
            for place in broken:
                where = f"{self._part.file}:{first + place + 1}"
                self._skipped.append((where, "its text is not UTF-8"))
            batch = _without(batch, broken)
            batch.validate(full=True)
        return batch

    def _rows_at_once(self, table: Any, group: int, columns: Iterable[str]) -> int:
        """How many rows may be held: of images few, of texts many."""
        described = table.metadata.row_group(group)
        wanted = set(columns)
        size = 0
        for place in range(described.num_columns):
            column = described.column(place)
            path = (
                column.path_in_schema
            )  # of a column in a column, the names with dots between them
            if path in wanted or path.split(".")[0] in wanted:
                size += max(0, column.total_uncompressed_size)
        fitting: int = BATCH_BYTES * described.num_rows // max(1, size)
        return min(BATCH_ROWS, max(1, fitting))


class _Csv:
    def __init__(self, part: Part, skipped: Skipped) -> None:
        self._part = part
        self._skipped = skipped
        self._numbers: list[int] = []  # of rows that Arrow has passed over
        self._delimiter = ","

    def schema(self) -> pa.Schema:
        import pyarrow as pa

        with told(self._part):
            return pa.schema([(name, pa.string()) for name in self._head()])

    def batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa
        from pyarrow import csv as arrow_csv

        names = self._head()
        if not names:
            return
        with _opened(self._part.file) as file:
            stream = arrow_csv.open_csv(
                file,
                read_options=arrow_csv.ReadOptions(
                    use_threads=False, block_size=_BLOCK, column_names=names
                ),
                parse_options=arrow_csv.ParseOptions(
                    delimiter=self._delimiter,
                    newlines_in_values=True,
                    invalid_row_handler=self._skip,
                ),
                convert_options=arrow_csv.ConvertOptions(
                    # As bytes: of text, one row that is not UTF-8 would end all.
                    column_types=dict.fromkeys(names, pa.binary()),
                    include_columns=schema.names,
                    strings_can_be_null=False,
                ),
            )
            given = 0
            for block in stream:
                batch = block if given else block.slice(1)  # the head
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    piece = batch.slice(start, BATCH_ROWS)
                    yield self._texts(piece, schema, max(given, 1) + start)
                given += block.num_rows

    def _texts(self, batch: pa.RecordBatch, schema: pa.Schema, before: int) -> pa.RecordBatch:
        """Bytes as text; `before` counts the rows that stand above, but for those that were passed over."""
        import pyarrow as pa

        try:
            return batch.cast(schema)
        except pa.ArrowInvalid:
            broken = _not_utf8(batch, are_bytes_text=True)
        for place in broken:
            number = before + place + 1
            for passed in self._numbers:
                number += passed <= number
            self._skipped.append((f"{self._part.file}:{number}", "its text is not UTF-8"))
        return _without(batch, broken).cast(schema)

    def _head(self) -> list[str]:
        file = self._part.file
        with (
            _opened(file) as data,
            io.TextIOWrapper(data, "utf-8-sig", "surrogateescape", newline="") as text,
        ):
            _refuse_utf16(data.peek(2))
            lines = iter(lambda: text.readline(LONGEST_ROW), "")
            first = next((line for line in lines if line.strip("\r\n")), "")
            if file.lower().removesuffix(".gz").endswith(".tsv"):
                self._delimiter = "\t"
            else:
                unquoted = re.sub(r'"[^"]*"?', "", first)
                self._delimiter = max(",;\t", key=unquoted.count)
            try:
                names = next(csv.reader(chain([first], lines), delimiter=self._delimiter), [])
                "".join(names).encode("utf-8")
            except (csv.Error, UnicodeError) as error:
                raise BrokenPart(f"{file}: its head is broken: {error}") from error
            return names if first else []

    def _skip(self, row: Any) -> str:
        number = row.number or 0
        if number == 1:
            return "error"
        self._numbers.append(number)
        where = f"{self._part.file}:{number}"
        cells = "cell" if row.actual_columns == 1 else "cells"
        why = f"{row.actual_columns} {cells} in place of {row.expected_columns}: {row.text[:60]}"
        self._skipped.append((where, why))
        return "skip"


class _Typed:
    """Rows that are objects of Python, of which the types are to be found: they are gone through twice.

    Args:
        part: The part.
        skipped: Gets what is no row.
    """

    def __init__(self, part: Part, skipped: Skipped) -> None:
        self._part = part
        self._skipped = skipped

    def schema(self) -> pa.Schema:
        import pyarrow as pa

        found: dict[str, pa.DataType | None] = {}
        unsure: set[str] = set()  # columns of which one chunk has another type than the next
        with told(self._part):
            for rows in _chunks(self._rows([])):
                for name in dict.fromkeys(name for row in rows for name in row):
                    kind = _type_of([row.get(name) for row in rows])
                    before = found.get(name, pa.null())
                    found[name] = _together(before, kind)
                    if kind != before and before != pa.null():
                        unsure.add(name)
                if len(found) > _MOST_COLUMNS:
                    raise BrokenPart(f"{self._part.file} has more than {_MOST_COLUMNS:,} columns")
            self._settle(found, unsure)
        for name, kind in found.items():
            if kind is not None and not _has_place(kind):
                found[name] = None
        return pa.schema(
            [
                (name, pa.string() if kind is None or kind == pa.null() else kind)
                for name, kind in found.items()
            ],
            {_MIXED: json.dumps([name for name, kind in found.items() if kind is None])},
        )

    def batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        mixed = set(json.loads((schema.metadata or {}).get(_MIXED, b"[]")))
        for rows in _chunks(self._rows(self._skipped)):
            columns = []
            for field in schema:
                values = [row.get(field.name) for row in rows]
                if field.name in mixed:
                    values = [_text_of(value) for value in values]
                columns.append(pa.array(values, field.type))
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    def _settle(self, found: dict[str, pa.DataType | None], unsure: set[str]) -> None:
        """See that the types hold all values: whole numbers beyond 2^53 are no floating-point numbers."""
        import pyarrow as pa

        unsure = {name for name in unsure if found[name] is not None}
        if not unsure:
            return
        for rows in _chunks(self._rows([])):
            for name in sorted(unsure):
                try:
                    pa.array([row.get(name) for row in rows], found[name])
                except _NO_TYPE:
                    found[name] = None
                    unsure.discard(name)

    def _rows(self, skipped: Skipped) -> Iterator[tuple[Row, int]]:
        """The rows, and about how many bytes each takes."""
        raise NotImplementedError


class _JsonLines(_Typed):
    def _rows(self, skipped: Skipped) -> Iterator[tuple[Row, int]]:
        with _opened(self._part.file) as file:
            _refuse_utf16(file.peek(2))
            pieces = iter(lambda: file.read1(_PIECE), b"")
            for number, line in enumerate(split(pieces, b"\n"), 1):
                where = f"{self._part.file}:{number}"
                if line is None:
                    skipped.append((where, f"more than {LONGEST_ROW:,} bytes"))
                    continue
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip():
                    row = _object(line, where, skipped)
                    if row is not None:
                        yield row, len(line)


class _WebDataset(_Typed):
    def _rows(self, skipped: Skipped) -> Iterator[tuple[Row, int]]:
        sample: _Sample | None = None
        try:
            with open(self._part.file, "rb") as file, open_tar(file) as archive:
                for member in archive:
                    if not member.isreg():
                        continue
                    path = inner_path(member.name)
                    why = OUTSIDE if not path else _no_name(path)
                    if why:
                        skipped.append((f"{self._part.file}/{member.name}", why))
                        continue
                    key, ending = _split(path)
                    if sample is not None and key != sample.key:
                        yield sample.row()
                        sample = None
                    if sample is None:
                        sample = _Sample(key, self._part.file, skipped)
                    sample.add(archive, member, path, ending)
        except ERRORS as error:
            raise BrokenPart(f"{self._part.file}: {first_line(error)}") from error
        if sample is not None:
            yield sample.row()


class _Sample:
    """Members of a tar that follow each other and have one key.

    Args:
        key: The path in the tar up to the first dot of the name.
        file: The tar.
        skipped: Gets what is broken.
    """

    def __init__(self, key: str, file: str, skipped: Skipped) -> None:
        self.key = key
        self._file = file
        self._skipped = skipped
        self._of_tar: dict[str, Any] = {"__key__": key}
        self._of_json: dict[str, Any] = {}
        self._size = len(key)

    def add(self, archive: Any, member: Any, path: str, ending: str) -> None:
        """Take a member in."""
        where = f"{self._file}/{path}"
        if f".{ending}" in IMAGE_SUFFIXES:
            if "image" in self._of_tar:
                self._skipped.append((where, "a second image of its sample"))
            self._of_tar.setdefault("image", where)
            self._size += len(where)
        elif ending in (*TEXT_MEMBERS, "json"):
            if member.size > LONGEST_ROW:
                self._skipped.append((where, f"more than {LONGEST_ROW:,} bytes"))
                return
            data = archive.content(member)
            self._size += len(data)
            if ending == "json":
                self._of_json.update(_object(data, where, self._skipped) or {})
            else:
                self._of_tar[ending] = data.decode("utf-8", "replace").rstrip("\r\n")

    def row(self) -> tuple[Row, int]:
        """All of them together, and about how many bytes they take."""
        return {**self._of_tar, **self._of_json, **self._of_tar}, self._size


def _no_name(path: str) -> str:
    """Why a path cannot stand in a table; empty when it can."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    return ""


def _object(data: bytes, where: str, skipped: Skipped) -> dict[str, Any] | None:
    try:
        value = json.loads(data)
        if _HALF.search(data):
            text = json.dumps(value, ensure_ascii=False)
            value = json.loads(text.encode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        skipped.append((where, f"not JSON: {error}"))
        return None
    if not isinstance(value, dict):
        skipped.append((where, "no JSON object"))
        return None
    return value


def _chunks(rows: Iterator[tuple[Row, int]]) -> Iterator[list[Row]]:
    """Rows that are held together."""
    held: list[Row] = []
    size = 0
    for row, bytes_of_row in rows:
        held.append(row)
        size += bytes_of_row
        if len(held) >= BATCH_ROWS or size >= BATCH_BYTES:
            yield held
            held, size = [], 0
    if held:
        yield held


_NO_TYPE = (ValueError, TypeError, OverflowError)
"""What Arrow raises where values have no type in common, or not the one that is asked for."""


def _type_of(values: list[Any]) -> pa.DataType | None:
    """The type of values of a column; None when they are mixed."""
    import pyarrow as pa

    try:
        return pa.array(values).type
    except _NO_TYPE:
        return None


def _has_place(kind: pa.DataType) -> bool:
    """Whether Parquet can hold a type: objects without any field it cannot."""
    import pyarrow as pa

    if not pa.types.is_nested(kind):
        return True
    inner = [kind.field(place).type for place in range(kind.num_fields)]
    return bool(inner) and all(map(_has_place, inner))


def _text_of(value: Any) -> str | None:
    """A value of a column of mixed types, as text."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _together(first: pa.DataType | None, second: pa.DataType | None) -> pa.DataType | None:
    """The type that holds values of both; None when there is none."""
    import pyarrow as pa

    if first is None or second is None or first == second:
        return first if first == second else None
    with contextlib.suppress(pa.ArrowException):
        schemas = [pa.schema([("x", kind)]) for kind in (first, second)]
        return pa.unify_schemas(schemas, promote_options="permissive").field("x").type
    return None


def _opened(file: str) -> Any:
    """A file as a buffered stream of what it holds."""
    if file.lower().endswith(".gz"):
        return io.BufferedReader(gzip.open(file, "rb"), _PIECE)
    return open(file, "rb", buffering=_PIECE)


def _refuse_utf16(start: bytes) -> None:
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError("it is UTF-16; save it as UTF-8")


def _not_utf8(batch: pa.RecordBatch, *, are_bytes_text: bool = False) -> list[int]:
    """Rows with a text that is not UTF-8."""
    import pyarrow as pa

    kinds = pa.types
    broken = set()
    for column in batch.columns:
        if kinds.is_dictionary(column.type):
            column = column.dictionary_decode()
        if kinds.is_string(column.type):
            column = column.view(pa.binary())
        elif kinds.is_large_string(column.type):
            column = column.view(pa.large_binary())
        elif not (are_bytes_text and kinds.is_binary(column.type)):
            continue
        for place, value in enumerate(column.to_pylist()):
            try:
                (value or b"").decode("utf-8")
            except UnicodeDecodeError:
                broken.add(place)
    return sorted(broken)


def _without(batch: pa.RecordBatch, rows: list[int]) -> pa.RecordBatch:
    """A batch without some of its rows."""
    import pyarrow as pa

    gone = set(rows)
    kept = [place for place in range(batch.num_rows) if place not in gone]
    left = batch.take(pa.array(kept, pa.int64()))
    columns = [
        # Its dictionary may hold what no row has now.
        column.dictionary_decode().dictionary_encode().cast(column.type)
        if pa.types.is_dictionary(column.type)
        else column
        for column in left.columns
    ]
    return pa.RecordBatch.from_arrays(columns, schema=left.schema)


def _split(path: str) -> tuple[str, str]:
    """The key of a member's sample, and the ending of its name in lower case."""
    start = path.rfind("/") + 1
    stem, _, ending = path[start:].partition(".")
    return path[:start] + stem, ending.lower()
