"""How the rows of tables of pairs are read, as batches of Arrow.

* Parquet: as it is, page by page.
* CSV: every cell is text, so that nothing is guessed and nothing lost: "1,100" and "007" stay what they are. The
  delimiter is the commonest of comma, semicolon and tab in the head; of .tsv it is a tab.
* JSON Lines: columns have the type of their values; where types are mixed the column is text: texts as they are, of
  other values the JSON. A line that is no JSON object is skipped and told.
* WebDataset: a row for each sample: `__key__`, `image` (the tar and the path in it, as the source of tars has it), a
  column for each member that is text (`txt`, `caption`, `cls`), and one for each field of the `json`.
"""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
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
from annotary.sources._members import inner_path
from annotary.sources._rows import LONGEST_ROW
from annotary.sources._tar import ERRORS, open_tar
from annotary.sources.folder import IMAGE_SUFFIXES

if TYPE_CHECKING:
    import pyarrow as pa

Skipped = list[tuple[str, str]]
Row = Mapping[str, Any]

TEXT_MEMBERS = ("txt", "text", "caption", "cls")
"""Endings of members of a tar that are columns of text."""

_MIXED = b"annotary.mixed_columns"

_BLOCK = 16 * 1024 * 1024


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

    def schema(self) -> pa.Schema:
        with told(self._part), open_parquet(self._part.file) as table:
            return table.schema_arrow

    def batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        with open_parquet(self._part.file) as table:
            first, last = self._part.groups or (0, table.num_row_groups)
            for group in range(first, last):
                yield from table.iter_batches(
                    self._rows_at_once(table, group, schema.names),
                    row_groups=[group],
                    columns=schema.names,
                    use_threads=False,
                )

    def _rows_at_once(self, table: Any, group: int, columns: Iterable[str]) -> int:
        """How many rows may be held: of images few, of texts many."""
        described = table.metadata.row_group(group)
        wanted = set(columns)
        size = sum(
            max(0, described.column(place).total_uncompressed_size)
            for place in range(described.num_columns)
            if described.column(place).path_in_schema.split(".")[0] in wanted
        )
        fitting: int = BATCH_BYTES * described.num_rows // max(1, size)
        return min(BATCH_ROWS, max(1, fitting))


class _Csv:
    def __init__(self, part: Part, skipped: Skipped) -> None:
        self._part = part
        self._skipped = skipped
        self._is_told = False

    def schema(self) -> pa.Schema:
        import pyarrow as pa

        with told(self._part):
            return pa.schema([(name, pa.string()) for name in self._head()])

    def batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa
        from pyarrow import csv

        names = self._head()
        if not names:
            return
        with _opened(self._part.file) as file:
            stream = csv.open_csv(
                file,
                read_options=csv.ReadOptions(
                    use_threads=False, block_size=_BLOCK, column_names=names, skip_rows=0
                ),
                parse_options=csv.ParseOptions(
                    delimiter=self._delimiter,
                    newlines_in_values=True,
                    invalid_row_handler=self._skip,
                ),
                convert_options=csv.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.string()),
                    include_columns=schema.names or None,
                    strings_can_be_null=False,
                ),
            )
            is_first = True
            for block in stream:
                batch = block.slice(1) if is_first else block  # the head
                is_first = False
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    yield batch.slice(start, BATCH_ROWS)

    def _head(self) -> list[str]:
        import csv

        with _opened(self._part.file) as file:
            line = file.readline(LONGEST_ROW).decode("utf-8-sig")
        suffix = self._part.file.lower().removesuffix(".gz")
        self._delimiter = "\t" if suffix.endswith(".tsv") else max(",;\t", key=line.count)
        return next(csv.reader([line], delimiter=self._delimiter), [])

    def _skip(self, row: Any) -> str:
        where = self._part.file if row.number is None else f"{self._part.file}:{row.number}"
        why = f"{row.actual_columns} cells in place of {row.expected_columns}: {row.text[:60]}"
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
        with told(self._part):
            for rows in _chunks(self._rows([])):
                for name in dict.fromkeys(name for row in rows for name in row):
                    values = [row.get(name) for row in rows]
                    found[name] = _together(found.get(name, pa.null()), _type_of(values))
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

    def _rows(self, skipped: Skipped) -> Iterator[tuple[Row, int]]:
        """The rows, and about how many bytes each takes."""
        raise NotImplementedError


class _JsonLines(_Typed):
    def _rows(self, skipped: Skipped) -> Iterator[tuple[Row, int]]:
        with _opened(self._part.file) as file:
            number = 0
            while line := file.readline(LONGEST_ROW):
                number += 1
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip():
                    where = f"{self._part.file}:{number}"
                    row = _object(line, where, skipped)
                    if row is not None:
                        yield row, len(line)


class _WebDataset(_Typed):
    def _rows(self, skipped: Skipped) -> Iterator[tuple[Row, int]]:
        sample: dict[str, Any] = {}
        size = 0
        try:
            with open(self._part.file, "rb") as file, open_tar(file) as archive:
                for member in archive:
                    path = inner_path(member.name) if member.isreg() else ""
                    if not path:
                        continue
                    key, ending = _split(path)
                    if sample and key != sample["__key__"]:
                        yield sample, size
                        sample, size = {}, 0
                    sample.setdefault("__key__", key)
                    size += self._add(sample, archive, member, path, ending, skipped)
        except ERRORS as error:
            if sample:
                yield sample, size
            raise BrokenPart(f"{self._part.file}: {first_line(error)}") from error
        if sample:
            yield sample, size

    def _add(
        self,
        sample: dict[str, Any],
        archive: Any,
        member: Any,
        path: str,
        ending: str,
        skipped: Skipped,
    ) -> int:
        """Put a member into its sample; about how many bytes it takes there."""
        where = f"{self._part.file}/{path}"
        if f".{ending}" in IMAGE_SUFFIXES:
            sample.setdefault("image", where)
            return len(where)
        if ending not in (*TEXT_MEMBERS, "json"):
            return 0
        if member.size > LONGEST_ROW:
            skipped.append((where, f"more than {LONGEST_ROW:,} bytes"))
            return 0
        data = archive.content(member)
        if ending != "json":
            sample[ending] = data.decode("utf-8", "replace").rstrip("\r\n")
            return len(data)
        fields = _object(data, where, skipped) or {}
        for name, value in fields.items():
            # What the tar itself says of a sample stands above what is written in it.
            sample.setdefault(name, value)
        return len(data)


def _object(data: bytes, where: str, skipped: Skipped) -> dict[str, Any] | None:
    try:
        value = json.loads(data)
        if b"\\ud" in data or b"\\uD" in data:  # half a character, which no other format can hold
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


def _type_of(values: list[Any]) -> pa.DataType | None:
    """The type of values of a column; None when they are mixed."""
    import pyarrow as pa

    try:
        return pa.array(values).type
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return None


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
    return gzip.open(file, "rb") if file.lower().endswith(".gz") else open(file, "rb")


def _split(path: str) -> tuple[str, str]:
    """The key of a member's sample, and the ending of its name in lower case."""
    start = path.rfind("/") + 1
    stem, _, ending = path[start:].partition(".")
    return path[:start] + stem, ending.lower()
