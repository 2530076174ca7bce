"""Taking a part of the records out of a catalogue, so that it can be made anew with other settings."""

from __future__ import annotations

import json
from collections.abc import Collection

from annotary.catalog._columns import columns_of_part
from annotary.catalog._table import Catalog

_ROWS_AT_ONCE = 1000


def clear(catalog: Catalog, parts: Collection[str]) -> None:
    """Take parts out of all rows, those of images that are gone included; all else stays.

    Rows are written some at a time. After a kill some of them lack the parts, and a run with the settings that the
    catalogue still notes makes them again.

    Args:
        catalog: Of which the lock is held.
        parts: Parts of the records, such as "tags".

    Raises:
        OutputError: It cannot be written.
    """
    columns = [c for part in parts for c in columns_of_part(part) if c in catalog.columns]
    ids: list[int] = []
    for batch in catalog.rows(["id", "sources"], with_deleted=True):
        rows = zip(batch["id"].to_pylist(), batch["sources"].to_pylist(), strict=True)
        ids += [one for one, sources in rows if not {*parts}.isdisjoint(_sources(sources))]
    for start in range(0, len(ids), _ROWS_AT_ONCE):
        held = catalog.fetch(ids[start : start + _ROWS_AT_ONCE], catalog.columns).to_pylist()
        catalog.replace([_without(row, parts, columns) for row in held])
    if "embedding" in columns:
        catalog.drop_vectors_column()  # those to come may be of another length


def _without(
    row: dict[str, object], parts: Collection[str], columns: Collection[str]
) -> dict[str, object]:
    left = {part: card for part, card in _sources(row["sources"]).items() if part not in parts}
    return {**row, **dict.fromkeys(columns), "sources": json.dumps(left, sort_keys=True)}


def _sources(text: object) -> dict[str, str]:
    found: dict[str, str] = json.loads(str(text or "{}"))
    return found
