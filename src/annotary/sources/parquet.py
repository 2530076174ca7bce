"""A Parquet table of images: paths, addresses, encoded bytes, or the images of Hugging Face datasets.

One column holds the images: the one that `--image-column` names, else the first with a usual name
(`annotary.sources._columns`) that can hold them. Text is a path or an address; where paths start says
`annotary.sources._rows`. Bytes are the encoded image, named by the table and the number of the row, from 0:
`train.parquet/17`. A struct of `bytes` and `path`, as the feature `Image` of datasets has it, is its bytes, named
`train.parquet/17-dog.jpg` by the end of its path (which alone need not tell two images apart); without bytes it is its
path. A row without any of that is a failure with the row's name.

The table is read in small batches, and of its columns only this one; so large rows are read one by one. A group of
rows that are far too large to be read is one failure, with the name of the table. Needs pyarrow.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from annotary.errors import MissingExtra, UnreachableImage, UsageError
from annotary.records import Failure, Item
from annotary.sources._columns import column_of, place_in
from annotary.sources._options import SourceOptions
from annotary.sources._paths import kind_of
from annotary.sources._rows import image_at
from annotary.sources._shard import Shard

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

SUFFIXES = (".parquet", ".pq")
"""Endings of file names, in lower case, that are taken for Parquet."""

READS_IMAGES = True

BATCH = 32
"""The most rows that are held at a time."""

HELD = 64 * 1024 * 1024
"""Bytes that a batch may take, unless a single row takes more."""

_PAGES = 1024 * 1024  # bytes of the file that are buffered, in the place of a whole group of rows

Found: TypeAlias = Item | Failure | None
"""An image, why there is none, or None for one of another shard."""


def accepts(argument: str) -> bool:
    """Whether the argument is a file with the suffix of Parquet."""
    return Path(argument).suffix.lower() in SUFFIXES and kind_of(argument) == "file"


def check(argument: str, options: SourceOptions) -> None:
    """Look for the column.

    Raises:
        MissingExtra: There is no pyarrow.
        UsageError: No column could hold images.
    """
    arrow = _arrow()
    try:
        with _open(argument) as table:
            _column(table, argument, options)
    except (OSError, ValueError, arrow.ArrowException):
        return  # `items` tells


def items(argument: str, options: SourceOptions) -> Iterator[Found]:
    """The images of the rows.

    Raises:
        MissingExtra: There is no pyarrow.
        UsageError: No column could hold images.
    """
    arrow = _arrow()
    number = 0
    try:
        with _open(argument) as table:
            column = _column(table, argument, options)
            row = _Row(argument, options)
            leaves = _leaves(table, column)
            for group in range(table.num_row_groups):
                rows, size, batch_rows = _measured(table, group, leaves)
                if size > max(1, rows) * (_limit(options) + _PAGES):
                    yield _refused(argument, number, rows, options)
                    number += rows
                    continue
                batches = table.iter_batches(
                    batch_rows, row_groups=[group], columns=[column], use_threads=False
                )
                for batch in batches:
                    for value in batch.column(0):
                        yield row.image(number, value)
                        number += 1
    except (OSError, ValueError, arrow.ArrowException) as error:
        many = f"{number:,} row{'s' if number > 1 else ''}"
        told = f"only {many} of this table could be read" if number else "this table cannot be read"
        yield Failure.of(argument, UnreachableImage(f"{told}: {_first_line(error)}"))


def looked_for(options: SourceOptions) -> str:  # noqa: ARG001 - the room's contract
    """What is taken from a table, for the message that nothing was found."""
    return "rows with a path, an address or an encoded image"


class _Row:
    """How rows become images.

    Args:
        table: The table's name.
        options: The shard and the largest size.
    """

    def __init__(self, table: str, options: SourceOptions) -> None:
        self._table = table
        self._folder = str(Path(table).parent)
        self._options = options
        self._shard = Shard.of(options.shard)

    def image(self, number: int, value: pa.Scalar) -> Found:
        """The image of a row.

        Args:
            number: The row's, from 0.
            value: What stands in the column: text, bytes or a struct of both.
        """
        data, path = _parts(value)
        if data is not None and len(data.as_buffer()):
            return self._encoded(number, data, path)
        if not path.strip():
            return self._failure(str(number), "this row holds no image")
        return image_at(place_in(path, self._folder), self._folder)

    def _encoded(self, number: int, data: pa.Scalar, path: str) -> Found:
        end = re.split(r"[/\\]", path)[-1]
        name = f"{number}-{end}" if end.strip(".") else str(number)
        relative = f"{Path(self._table).name}/{name}"
        if not self._shard.has(relative):
            return None
        if len(data.as_buffer()) > self._options.max_bytes:
            limit = f"larger than {self._options.max_bytes:,} bytes (--max-bytes)"
            return self._failure(name, limit)
        return Item(f"{self._table}/{name}", data=data.as_py(), relative=relative)

    def _failure(self, name: str, message: str) -> Failure:
        return Failure.of(f"{self._table}/{name}", UnreachableImage(message))


def _arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra("Reading Parquet", "parquet") from error
    return pyarrow


def _open(argument: str) -> pq.ParquetFile:
    import pyarrow.parquet as pq

    # Else a whole group of rows, which may be the whole table, is read at once.
    return pq.ParquetFile(argument, buffer_size=_PAGES, pre_buffer=False, memory_map=False)


def _column(table: pq.ParquetFile, argument: str, options: SourceOptions) -> str:
    """The column that holds the images.

    Raises:
        UsageError: There is none.
    """
    kinds = {field.name: field.type for field in table.schema_arrow}
    usable = [name for name, kind in kinds.items() if _can_hold(kind)]
    column = column_of(argument, list(kinds), options, usable=usable)
    if column not in usable:
        raise UsageError(
            f"the column {column!r} of {argument} holds {kinds[column]}, "
            "which is neither a path or an address nor an encoded image"
        )
    return column


def _leaves(table: pq.ParquetFile, column: str) -> list[int]:
    """Which of the columns as they are stored make a column: one, or one for each field of a struct."""
    paths = [table.schema.column(place).path for place in range(len(table.schema))]
    return [
        place for place, path in enumerate(paths) if path == column or path.startswith(f"{column}.")
    ]


def _measured(table: pq.ParquetFile, group: int, leaves: Sequence[int]) -> tuple[int, int, int]:
    """The number of rows of a group, the bytes of its images before compression, and how many rows to hold at a time.

    How large a single row is does not stand in the file. It is never larger than its group; but as values that repeat
    may be stored once, each of the rows can be as large as that.
    """
    described = table.metadata.row_group(group)
    size = sum(max(0, described.column(place).total_uncompressed_size) for place in leaves)
    return described.num_rows, size, min(max(1, HELD // max(1, size)), BATCH)


def _limit(options: SourceOptions) -> int:
    """Bytes that the rows of a group may have on average; a few more are headers."""
    return max(options.max_bytes, HELD)


def _refused(argument: str, number: int, rows: int, options: SourceOptions) -> Failure:
    """The failure of a group of rows that is not read."""
    which = f"rows {number:,} to {number + rows - 1:,}" if rows > 1 else f"row {number:,}"
    limit = f"larger than {_limit(options):,} bytes (--max-bytes)"
    told = f"{limit} on average" if rows > 1 else limit
    return Failure.of(argument, UnreachableImage(f"{which} of this table: {told}"))


def _can_hold(kind: pa.DataType) -> bool:
    """Whether values of a type can be images."""
    return _is_text(kind) or _is_bytes(kind) or bool(_fields(kind))


def _fields(kind: pa.DataType) -> dict[str, pa.DataType]:
    """The fields of a struct that say what its image is."""
    from pyarrow.types import is_struct

    if not is_struct(kind):
        return {}
    fields = {field.name: field.type for field in kind}
    tests = {"bytes": _is_bytes, "path": _is_text}
    return {
        name: fields[name] for name, test in tests.items() if name in fields and test(fields[name])
    }


def _is_text(kind: pa.DataType) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return str(kind) in ("string", "large_string", "string_view")


def _is_bytes(kind: pa.DataType) -> bool:
    return str(kind).startswith(("binary", "large_binary", "fixed_size_binary"))


def _parts(value: pa.Scalar) -> tuple[pa.Scalar | None, str]:
    """The encoded bytes of a value, if it has any, and its path or address, if it has one."""
    if not value.is_valid:
        return None, ""
    if _is_text(value.type):
        return None, _text(value)
    if _is_bytes(value.type):
        return value, ""
    fields = _fields(value.type)
    data = value["bytes"] if "bytes" in fields else None
    path = _text(value["path"]) if "path" in fields else ""
    return (data if data is not None and data.is_valid else None), path


def _text(value: pa.Scalar) -> str:
    """The text of a value, whatever its bytes are: names are bytes to the system, which need not be UTF-8."""
    plain = getattr(value, "value", value)  # the value that stands in the dictionary
    if not plain.is_valid:
        return ""
    return str(plain.as_buffer().to_pybytes().decode("utf-8", "surrogateescape"))


def _first_line(error: Exception) -> str:
    """What Arrow says, without the places in its source code that follow."""
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
