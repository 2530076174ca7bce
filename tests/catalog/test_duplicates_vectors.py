"""Near pairs of vectors: all of them among few, nearly all among many."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotary.catalog import duplicates_vectors
from annotary.catalog.duplicates_vectors import near_vectors


def found(vectors: np.ndarray, least: float, **options) -> dict[tuple[int, int], float]:
    pairs = [
        (first, second, cosine)
        for block in near_vectors(vectors, least, **options)
        for first, second, cosine in zip(*(c.tolist() for c in block), strict=True)
    ]
    told = {(first, second): cosine for first, second, cosine in pairs}
    assert len(told) == len(pairs)
    assert all(first < second for first, second in told)
    assert all(cosine <= 1.0 for cosine in told.values())
    return told


def planted(count: int, dimensions: int = 32) -> np.ndarray:
    """Vectors in clouds, a tenth of which have a near twin."""
    generator = np.random.default_rng(3)
    clouds = generator.normal(size=(20, dimensions))
    vectors = clouds[generator.integers(0, 20, count)] + generator.normal(size=(count, dimensions))
    twins = count // 10
    vectors[-twins:] = vectors[:twins] + generator.normal(size=(twins, dimensions)) * 0.1
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@given(st.integers(0, 40), st.floats(-1.0, 0.999), st.integers(0, 2**32))
def test_among_few_every_pair_is_found(count, least, seed):
    vectors = np.random.default_rng(seed).normal(size=(count, 3))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    cosines = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    pairs = found(vectors, least)
    for i in range(count):
        for j in range(i + 1, count):
            if abs(cosines[i, j] - least) > 1e-5:
                assert ((i, j) in pairs) == (cosines[i, j] >= least)
    assert all(cosine == pytest.approx(cosines[pair], abs=1e-6) for pair, cosine in pairs.items())


def test_blocks_do_not_matter(monkeypatch):
    vectors = planted(500)
    whole = found(vectors, 0.9)
    assert len(whole) >= 50
    monkeypatch.setattr(duplicates_vectors, "_BLOCK", 64)
    assert found(vectors, 0.9).keys() == whole.keys()


def test_among_many_the_cells_find_nearly_all_pairs_once(monkeypatch):
    monkeypatch.setattr(duplicates_vectors, "CELL", 40)
    monkeypatch.setattr(duplicates_vectors, "_CELLS_AT_ONCE", 17)
    monkeypatch.setattr(duplicates_vectors, "_SCANNED", 999)
    vectors = planted(2000)
    every = found(vectors, 0.95)
    assert len(every) >= 190
    in_cells = found(vectors, 0.95, exact_up_to=0)
    assert in_cells.keys() <= every.keys()
    assert len(in_cells) >= 0.99 * len(every)
    # With every cell visited nothing is left out.
    assert found(vectors, 0.95, exact_up_to=0, visits=10**6).keys() == every.keys()
    assert found(vectors, 0.95, exact_up_to=0) == in_cells


def test_equal_vectors_are_found_in_cells_even_when_there_is_nothing_else():
    vectors = np.tile(np.eye(1, 4, dtype=np.float32), (30, 1))
    assert len(found(vectors, 1.0, exact_up_to=0)) == 30 * 29 // 2


def test_no_vectors():
    assert not found(np.empty((0, 1), np.float32), 0.9)
