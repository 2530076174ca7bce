"""Rows of a catalogue as they are compared."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from annotary.catalog.duplicates_catalog import COLUMNS, fingerprints

pa = pytest.importorskip("pyarrow")


def catalog(vectors: list) -> SimpleNamespace:
    """Something with rows, in batches of two."""
    count = len(vectors)
    table = pa.table(
        {
            "image": [f"{i}\\udcff" for i in range(count)],
            "path": ["" if i % 2 else f"/{i}" for i in range(count)],
            "bytes": pa.array(range(count), pa.int64()),
            "width": pa.array([3] * count, pa.int32()),
            "height": pa.array([2] * count, pa.int32()),
            "sha256": [f"{i}" for i in range(count)],
            "phash": pa.array(
                [None if i % 2 else 2**64 - 1 - i for i in range(count)], pa.uint64()
            ),
            "embedding": pa.array(vectors, pa.list_(pa.float32(), 2)),
        }
    )
    return SimpleNamespace(rows=lambda columns: table.select(columns).to_batches(max_chunksize=2))


def test_every_row_comes_with_its_own_vector():
    vectors = [None, [1.0, 0.0], [0.0, 1.0], None, None, [0.6, 0.8]]
    found = list(fingerprints(catalog(vectors), with_vectors=True))
    told = [None if one.vector is None else one.vector.tolist() for one in found]
    expected = [None if vector is None else np.float32(vector).tolist() for vector in vectors]
    assert told == expected
    assert [one.image for one in found] == [f"{i}\udcff" for i in range(6)]
    assert [one.path for one in found] == ["/0", None, "/2", None, "/4", None]
    assert [one.phash for one in found][:3] == [2**64 - 1, None, 2**64 - 3]


def test_vectors_are_not_read_when_nobody_compares_them():
    plain = catalog([[1.0, 0.0]])
    asked = []
    rows = plain.rows
    plain.rows = lambda columns: asked.append(tuple(columns)) or rows(columns)
    (found,) = fingerprints(plain, with_vectors=False)
    assert found.vector is None
    assert asked == [COLUMNS]
