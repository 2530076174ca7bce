"""Tables of images: which column holds them, and what its cells name. What CSV and Parquet have in common."""

from __future__ import annotations

import re
from collections.abc import Sequence

from annotary.errors import UsageError
from annotary.sources._options import SourceOptions
from annotary.sources._paths import is_there, join
from annotary.sources._rows import is_address

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


def place_in(cell: str, folder: str) -> str:
    """The path or address in a cell. In what annotary writes, bytes of names that are not UTF-8 are escapes.

    Args:
        cell: Its text.
        folder: Where paths that are not absolute start; else they start in the current folder.
    """
    if is_address(cell.strip()):
        return cell.strip()
    if r"\udc" not in cell or is_there(join(folder, cell)) or is_there(cell):
        return cell
    return re.sub(r"\\udc([89a-f][0-9a-f])", lambda found: chr(0xDC00 + int(found[1], 16)), cell)


def _listed(columns: Sequence[str]) -> str:
    names = ", ".join(repr(name) for name in columns[:_MOST_NAMED])
    more = len(columns) - _MOST_NAMED
    return (names or "none") + (f" and {more:,} more" if more > 0 else "")
