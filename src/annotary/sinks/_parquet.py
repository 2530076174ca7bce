"""Rows of Parquet: the columns of the parts of a record, and groups that bound the memory of whoever reads them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from annotary import __version__
from annotary.errors import MissingExtra, OutputError
from annotary.sinks._journaled import as_text
from annotary.sinks._parts import ALL_PARTS, EDGES

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

Json = dict[str, Any]

PARTS = ALL_PARTS
"""The parts that there are columns for: all."""

SCHEMA_VERSION = "1"
"""Of the columns; it is in the file's metadata as `annotary.schema`. A column that is there for a part alone that older
versions did not know changes nothing for tables without it."""

GROUP_ROWS = 10_000
GROUP_ENTRIES = 500_000
"""A row group ends before it would hold more rows or more entries: it is what a reader, or the next run, has in memory.
An entry is a tag, a label, a caption, an answer, a match or a box, or eight numbers of an embedding."""

LISTS = ("tags", "labels", "captions", "answers", "matches", "boxes")
"""The parts of which a record has several."""

_NUMBERS_AN_ENTRY = 8


class ParquetTable:
    """Parquet with a column for each part.

    Args:
        parts: Which there are columns for.

    Raises:
        MissingExtra: pyarrow is not installed.
    """

    def __init__(self, parts: Sequence[str]) -> None:
        import_pyarrow()
        self._schema = schema_of(parts)

    def check(self, path: Path) -> None:
        """Refuse a file that is no table of ours with these columns.

        Raises:
            OutputError: It is not.
        """
        found = schema_in(path)
        if not found.equals(self._schema):
            has, writes = (", ".join(schema.names) for schema in (found, self._schema))
            told = "other types" if has == writes else f"the columns {has}"
            raise OutputError(
                f"{path} has {told}, and this run writes {writes}; choose another --output"
            )

    def names(self, path: Path) -> Iterator[str]:
        """The images of a finished table, in its order."""
        for table in row_groups(path, ["image"]):
            yield from table["image"].to_pylist()

    def write(self, file: BinaryIO, finished: Path | None, records: Iterator[list[Json]]) -> None:
        """Write a table with the rows of a finished one and those of records."""
        import pyarrow.parquet as pq

        with pq.ParquetWriter(file, self._schema, compression="zstd") as writer:
            groups = _RowGroups(writer)
            if finished is not None:
                for table in row_groups(finished):
                    groups.add(table)
            for some in records:
                groups.add(_rows(some, self._schema))
            groups.flush()

    def told(self, path: Path) -> contextlib.AbstractContextManager[None]:
        """Turns errors of the system, and what damaged files provoke, into one line."""
        return told(path)


def import_pyarrow() -> Any:
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


def schema_of(parts: Sequence[str]) -> pyarrow.Schema:
    """The columns. `sources` is a list and no map, which Hugging Face's datasets cannot read."""
    pa = import_pyarrow()
    name, score = ("name", pa.string()), ("score", pa.float32())
    text, match, cosine = ("text", pa.string()), ("match", pa.float32()), ("cosine", pa.float32())
    edges = [(edge, pa.float32()) for edge in EDGES]
    reason = pa.struct([name, score, ("threshold", pa.float32()), ("action", pa.string())])
    kinds = {
        "tags": pa.list_(pa.struct([name, score, ("category", pa.string())])),
        "labels": pa.list_(pa.struct([name, score])),
        "captions": pa.list_(pa.struct([text, score, match])),
        "answers": pa.list_(pa.struct([("question", pa.string()), text, score])),
        "matches": pa.list_(pa.struct([text, score, cosine])),
        "boxes": pa.list_(pa.struct([("label", pa.string()), score, *edges])),
        "embedding": pa.list_(pa.float32()),
        "decision": pa.struct([("action", pa.string()), ("reasons", pa.list_(reason))]),
    }
    source = pa.struct([("part", pa.string()), ("model", pa.string())])
    columns = [
        ("image", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        *((part, kinds[part]) for part in ALL_PARTS if part in parts),
        ("sources", pa.list_(source)),
    ]
    metadata = {"annotary.version": __version__, "annotary.schema": SCHEMA_VERSION}
    return pa.schema(columns, metadata=metadata)


def schema_in(path: Path) -> pyarrow.Schema:
    """The columns of a table of ours.

    Raises:
        OutputError: It is something else.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with told(path):
        try:
            with pq.ParquetFile(path, pre_buffer=False) as file:
                found = file.schema_arrow
        except pa.ArrowInvalid as error:
            raise OutputError(f"{path} holds something else; choose another --output") from error
    version = (found.metadata or {}).get(b"annotary.schema", b"").decode()
    parts = [part for part in PARTS if part in found.names]
    if version != SCHEMA_VERSION or not found.equals(schema_of(parts)):
        raise OutputError(
            f"{path} has other columns than this version of annotary writes; choose another --output"
        )
    return found


def row_groups(path: Path, columns: list[str] | None = None) -> Iterator[pyarrow.Table]:
    """The rows of a Parquet file, one group in memory at a time."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, pre_buffer=False) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns)


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Turn errors of the system, and what damaged files provoke, into one line."""
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException) as error:
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise OutputError(
            f"cannot read or write {path}: {why}; the same command continues once this is mended"
        ) from error


class _RowGroups:
    """Writes rows in groups whose limits depend on the rows alone, and not on how they arrive."""

    def __init__(self, writer: pyarrow.parquet.ParquetWriter) -> None:
        self._writer = writer
        self._tables: list[pyarrow.Table] = []
        self._rows = 0
        self._entries = 0

    def add(self, table: pyarrow.Table) -> None:
        """Add rows, and write the groups that are full."""
        start = 0
        for row, entries in enumerate(_entries(table)):
            is_full = self._rows == GROUP_ROWS or self._entries + entries > GROUP_ENTRIES
            if self._rows and is_full:
                self._tables.append(table.slice(start, row - start))
                self.flush()
                start = row
            self._rows += 1
            self._entries += entries
        self._tables.append(table.slice(start))

    def flush(self) -> None:
        """Write the last group."""
        import pyarrow as pa

        if self._rows:
            group = pa.concat_tables(self._tables).combine_chunks()
            self._writer.write_table(group, row_group_size=self._rows)
        self._tables, self._rows, self._entries = [], 0, 0


def _entries(table: pyarrow.Table) -> list[int]:
    """How many entries each row has."""
    import pyarrow.compute as pc

    counts = [0] * table.num_rows
    for part, size in (*((part, 1) for part in LISTS), ("embedding", _NUMBERS_AN_ENTRY)):
        if part in table.column_names:
            lengths = pc.list_value_length(table[part]).to_pylist()
            counts = [
                count + (length or 0) // size for count, length in zip(counts, lengths, strict=True)
            ]
    return counts


def _rows(records: list[Json], schema: pyarrow.Schema) -> pyarrow.Table:
    """Records of a journal as rows.

    Raises:
        KeyError, TypeError, AttributeError: They are something else.
    """
    columns = {name: _column(name, records, schema.field(name).type) for name in schema.names}
    return import_pyarrow().Table.from_arrays(list(columns.values()), schema=schema)


def _column(name: str, records: list[Json], kind: Any) -> pyarrow.Array:
    pa = import_pyarrow()
    if name == "image":
        return pa.array([as_text(record["image"]) for record in records], kind)
    if name in ("width", "height"):
        return pa.array([record[name] for record in records], kind)
    if name in LISTS:
        return _entered(kind, [record.get(name, ()) for record in records])
    if name == "embedding":
        return pa.array([record.get("embedding") for record in records], kind)
    if name == "decision":
        return _decisions(kind, [record.get("decision") for record in records])
    sources = [record.get("sources", {}).items() for record in records]
    return _lists(
        kind,
        [len(row) for row in sources],
        [as_text(part) for row in sources for part, _ in row],
        [as_text(model) for row in sources for _, model in row],
    )


def _entered(kind: pyarrow.ListType, rows: list[list[Json]]) -> pyarrow.ListArray:
    """A column of lists of tags, boxes, reasons and the like."""
    values: dict[str, Callable[[Any], Any]] = {
        "name": lambda entry: as_text(entry["name"]),
        "label": lambda entry: as_text(entry["label"]),
        "text": lambda entry: as_text(entry["text"]),
        "question": lambda entry: as_text(entry["question"]),
        "score": lambda entry: entry["score"] if "text" not in entry else entry.get("score"),
        "match": lambda entry: entry.get("match"),
        "cosine": lambda entry: entry.get("cosine"),
        "category": lambda entry: as_text(entry.get("category", "")) or None,
        "threshold": lambda entry: entry["threshold"],
        "action": lambda entry: entry["action"],
        **{edge: itemgetter(place) for place, edge in enumerate(EDGES)},
    }
    flat = [entry for row in rows for entry in row]
    sides = [entry["xyxy"] for entry in flat if "xyxy" in entry]
    fields = (
        list(map(values[field.name], sides if field.name in EDGES else flat))
        for field in kind.value_type
    )
    return _lists(kind, list(map(len, rows)), *fields)


def _decisions(kind: pyarrow.StructType, decisions: list[Json | None]) -> pyarrow.StructArray:
    """A column of decisions; null where there is none."""
    pa = import_pyarrow()
    actions = pa.array([found and found["action"] for found in decisions], pa.string())
    rows = [found["reasons"] if found else [] for found in decisions]
    reasons = _entered(kind.field("reasons").type, rows)
    is_absent = pa.array([found is None for found in decisions], pa.bool_())
    return pa.StructArray.from_arrays([actions, reasons], fields=list(kind), mask=is_absent)


def _lists(kind: pyarrow.ListType, lengths: list[int], *values: list[Any]) -> pyarrow.ListArray:
    """A column of lists of structs, from the length of each list and the values of each field one after the other."""
    pa = import_pyarrow()
    fields = list(kind.value_type)
    arrays = [pa.array(part, field.type) for part, field in zip(values, fields, strict=True)]
    offsets = [0]
    for length in lengths:
        offsets.append(offsets[-1] + length)
    flat = pa.StructArray.from_arrays(arrays, fields=fields)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat, type=kind)
