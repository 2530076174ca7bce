"""Tables of images: which column holds them. What CSV and Parquet have in common."""

from __future__ import annotations

from collections.abc import Sequence

from annotary.errors import UsageError
from annotary.sources._options import SourceOptions

COLUMNS = (
    "image", "path", "file", "file_name", "filename", "image_path", "url", "image_url",
    "bytes", "image_bytes", "jpg", "png",
)  # fmt: skip
"""Usual names of a column with images, the likeliest first."""

_MOST_NAMED = 20


def column_of(
    table: str,
    columns: Sequence[str],
    options: SourceOptions,
    *,
    usable: Sequence[str] | None = None,
) -> str:
    """The column of a table that holds its images.

    Args:
        table: The table's name, for messages.
        columns: All of its columns.
        options: May name the column.
        usable: The columns that can hold images; all when nothing is said.

    Raises:
        UsageError: There is none; the message lists the columns.
    """
    known = _listed(columns)
    if options.image_column is not None:
        if options.image_column not in columns:
            raise UsageError(
                f"{table} has no column {options.image_column!r} (--image-column); its columns are {known}"
            )
        return options.image_column
    for name in COLUMNS:
        if name in (columns if usable is None else usable):
            return name
    raise UsageError(
        f"none of the columns of {table} has a usual name for images; "
        f"choose one with --image-column: {known}"
    )


def _listed(columns: Sequence[str]) -> str:
    names = ", ".join(repr(name) for name in columns[:_MOST_NAMED])
    more = len(columns) - _MOST_NAMED
    return (names or "none") + (f" and {more:,} more" if more > 0 else "")
