"""The ways in which rows may be the same, and the columns that tell it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from annotary.curation._dedup_keys import KeyWay
from annotary.curation.columns import is_scalar, is_text_or_list, text_columns
from annotary.curation.tables import Part, column_types, no_column
from annotary.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_WAYS = ("exact", "phash", "embedding")

WAYS = ("text", "url", "pair", *IMAGE_WAYS)
"""How rows may be the same; beside them `column:NAME`."""

COLUMN = "column:"

URLS = ("url", "URL", "image_url", "image_link", "link")
"""Usual names of a column with addresses, the likeliest first."""

_WHY = {
    "text": "duplicate text",
    "url": "duplicate url",
    "pair": "duplicate pair of url and text",
    "exact": "duplicate image (exact)",
    "phash": "near image (phash)",
    "embedding": "near image (embedding)",
}


def is_way(name: str) -> bool:
    """Whether something is a way."""
    return name in WAYS or (name.startswith(COLUMN) and name != COLUMN)


def why(way: str) -> str:
    """Why a row goes that is the same as another."""
    return _WHY.get(way) or f"duplicate in column {way.removeprefix(COLUMN)}"


def stages(ways: Sequence[str]) -> list[list[str]]:
    """The ways in the order in which they are gone through; those of images, and those of columns, go together."""
    found: list[list[str]] = []
    for way in ways:
        if found and (found[-1][0] in IMAGE_WAYS) == (way in IMAGE_WAYS):
            found[-1].append(way)
        else:
            found.append([way])
    return found


def key_ways(
    part: Part, ways: Sequence[str], text_column: str | None, url_column: str | None
) -> list[KeyWay]:
    """The columns that each way compares.

    Args:
        part: One of the parts, which stands for all.
        ways: Ways that compare columns.
        text_column: What the user calls the column with texts.
        url_column: What the user calls the column with addresses.

    Raises:
        UsageError: A column is not there, or cannot be compared; the message lists what there is.
    """
    kinds = column_types(part)
    found = []
    for way in ways:
        if way.startswith(COLUMN):
            name = way.removeprefix(COLUMN)
            if name not in kinds:
                raise UsageError(no_column(part.file, name, list(kinds), f"--by {way}"))
            found.append(KeyWay(way, why(way), (name,), (False,)))
            continue
        columns, is_text = [], []
        if way in ("url", "pair"):
            columns.append(_url(part, kinds, url_column))
            is_text.append(False)
        if way in ("text", "pair"):
            (text,) = text_columns(part, () if text_column is None else (text_column,))
            columns.append(text)
            is_text.append(is_text_or_list(kinds[text]))
        found.append(KeyWay(way, why(way), tuple(columns), tuple(is_text)))
    return found


def _url(part: Part, kinds: Mapping[str, pa.DataType], named: str | None) -> str:
    if named is not None:
        if named not in kinds:
            raise UsageError(no_column(part.file, named, list(kinds), "--url-column"))
        return named
    for name in URLS:
        if name in kinds and is_scalar(kinds[name]):
            return name
    known = ", ".join(map(repr, list(kinds)[:20]))
    raise UsageError(
        f"none of the columns of {part.file} has a usual name for addresses;"
        f" choose one with --url-column: {known}"
    )
