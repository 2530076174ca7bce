"""The images of a catalogue as `find_duplicates` takes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from annotary.catalog._columns import recovered
from annotary.catalog.duplicates import Fingerprint

if TYPE_CHECKING:
    from annotary.catalog._table import Catalog

COLUMNS = ("image", "path", "bytes", "width", "height", "sha256", "phash")


def fingerprints(catalog: Catalog, *, with_vectors: bool) -> Iterator[Fingerprint]:
    """The images of a catalogue, a batch in memory at a time.

    Args:
        catalog: Those that are gone from the disk are left out.
        with_vectors: Whether their vectors come, too.
    """
    columns = [*COLUMNS, *(["embedding"] if with_vectors else [])]
    for batch in catalog.rows(columns):
        vectors = [None] * len(batch)
        if with_vectors:
            column = batch.column("embedding")
            dense = column.flatten().to_numpy().reshape(-1, column.type.list_size)
            # Only what is there was flattened.
            rows = iter(dense)
            vectors = [next(rows) if there else None for there in column.is_valid().to_pylist()]
        for row, vector in zip(batch.select(list(COLUMNS)).to_pylist(), vectors, strict=True):
            yield Fingerprint(
                image=recovered(row["image"]),
                path=recovered(row["path"]) if row["path"] else None,
                bytes=row["bytes"],
                width=row["width"],
                height=row["height"],
                sha256=row["sha256"],
                phash=row["phash"],
                vector=vector,
            )
