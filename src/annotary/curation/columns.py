"""Which columns of a table of pairs hold what: its texts, its images, and what a pair is known by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from annotary.curation.tables import Part, column_types, no_column
from annotary.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

TEXTS = (
    "caption", "text", "txt", "TEXT", "captions", "texts", "alt", "alt_text", "title", "description",
)  # fmt: skip
"""Usual names of a column with texts, the likeliest first."""

IDS = (
    "id",
    "uuid",
    "uid",
    "key",
    "__key__",
    "url",
    "URL",
    "image_url",
    "image",
    "image_path",
    "path",
    "file_name",
)
"""Usual names of a column that tells a pair, the likeliest first."""

ENTRIES = "_entries"
"""What is put behind the name of a column of texts for the ids of the entries that they match."""


def text_columns(part: Part, named: Sequence[str]) -> tuple[str, ...]:
    """The columns with texts: those that were named, else the first with a usual name.

    Args:
        part: One of the parts, which stands for all.
        named: By the user (`--text-column`).

    Raises:
        UsageError: One is not there or holds no text, or none has a usual name; the message lists what there is.
    """
    kinds = column_types(part)
    if len(set(named)) < len(named):
        raise UsageError("--text-column names a column twice")
    chosen = tuple(named) or _usual(part, kinds, TEXTS, "texts", "--text-column", is_text_or_list)
    for name in chosen:
        if name not in kinds:
            raise UsageError(no_column(part.file, name, list(kinds), "--text-column"))
        if not is_text_or_list(kinds[name]):
            raise UsageError(f"the column {name!r} of {part.file} holds {kinds[name]}, not text")
        if is_list(kinds[name]) and len(chosen) > 1:
            raise UsageError(
                f"the column {name!r} of {part.file} holds lists of texts, which stand alone (--text-column)"
            )
    return chosen


def id_columns(part: Part, named: Sequence[str]) -> tuple[str, ...]:
    """The columns that tell a pair: those that were named, else the first with a usual name.

    Raises:
        UsageError: One is not there, or none has a usual name.
    """
    kinds = column_types(part)
    chosen = tuple(named) or _usual(part, kinds, IDS, "ids", "--id", is_scalar)
    for name in chosen:
        if name not in kinds:
            raise UsageError(no_column(part.file, name, list(kinds), "--id"))
        if not is_scalar(kinds[name]):
            raise UsageError(
                f"the column {name!r} of {part.file} holds {kinds[name]}, which is no id"
            )
    return chosen


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of a type holds text, or nothing at all, as where all texts of a table are missing."""
    from pyarrow import types

    if types.is_dictionary(kind):
        return is_text(kind.value_type)
    return types.is_null(kind) or str(kind) in ("string", "large_string", "string_view")


def is_scalar(kind: pa.DataType) -> bool:
    """Whether a column of a type holds texts, numbers or bytes, which can be an id."""
    import pyarrow as pa
    from pyarrow import types

    if isinstance(kind, pa.BaseExtensionType):  # such as a UUID
        return is_scalar(kind.storage_type)
    if types.is_dictionary(kind):
        return is_scalar(kind.value_type)
    return not (types.is_nested(kind) or types.is_null(kind) or types.is_floating(kind))


def is_text_or_list(kind: pa.DataType) -> bool:
    """Whether a column of a type holds text, or lists of texts, or lists of texts with their kinds (MetaCLIP)."""
    while is_list(kind):
        kind = kind.value_type
    return is_text(kind)


def is_list(kind: pa.DataType) -> bool:
    """Whether a column of a type holds lists."""
    from pyarrow import types

    return bool(types.is_list(kind) or types.is_large_list(kind))


def refuse_column(part: Part, batch: pa.RecordBatch, name: str, done: str) -> None:
    """Refuse to add a column to a table that has one with its name.

    Args:
        part: The table.
        batch: Rows of it.
        name: Of the column.
        done: What has been done to the table, it seems ("matched").

    Raises:
        UsageError: There is one.
    """
    if name in batch.schema.names:
        raise UsageError(f"{part.file} has a column {name!r} already; was the table {done} before?")


def as_text(array: pa.Array) -> pa.Array:
    """A column of texts with the layout of strings: a buffer of UTF-8, and where each begins."""
    import pyarrow as pa
    from pyarrow import types

    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    if types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = array.type
    if types.is_string(kind) or types.is_large_string(kind):
        return array
    if (
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
    ):
        # Bytes are told apart by their digits: they need not be text.
        return pa.array(
            [None if one is None else one.hex() for one in array.to_pylist()], pa.string()
        )
    return array.cast(pa.large_string() if types.is_string_view(kind) else pa.string())


def _usual(
    part: Part,
    kinds: Mapping[str, pa.DataType],
    usual: Iterable[str],
    what: str,
    flag: str,
    fits: Callable[[pa.DataType], bool],
) -> tuple[str, ...]:
    for name in usual:
        if name in kinds and fits(kinds[name]):
            return (name,)
    known = ", ".join(map(repr, list(kinds)[:20])) or "none"
    raise UsageError(
        f"none of the columns of {part.file} has a usual name for {what}; choose one with {flag}: {known}"
    )
