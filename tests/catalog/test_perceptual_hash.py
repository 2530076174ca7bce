"""The banded search among hashes finds exactly what comparing all with all finds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from annotary.catalog import perceptual_hash
from annotary.catalog.perceptual_hash import near_hashes


def found(hashes: np.ndarray, most: int, **options) -> list[tuple[int, int, int]]:
    blocks = near_hashes(hashes, most, **options)
    return sorted(
        pair for block in blocks for pair in zip(*(c.tolist() for c in block), strict=True)
    )


def by_comparing_all(hashes: np.ndarray, most: int) -> list[tuple[int, int, int]]:
    values = sorted(hashes.tolist())
    return sorted(
        (one, other, (one ^ other).bit_count())
        for i, one in enumerate(values)
        for other in values[i + 1 :]
        if (one ^ other).bit_count() <= most
    )


@st.composite
def near_each_other(draw) -> np.ndarray:
    """Hashes that are a few bits from a few others, and some extreme ones."""
    roots = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4))
    values = set(draw(st.sets(st.sampled_from([0, 1, 2**63, 2**64 - 1, 2**64 - 2]), max_size=5)))
    for root in roots:
        for flips in draw(st.lists(st.lists(st.integers(0, 63), max_size=9), max_size=12)):
            value = root
            for bit in flips:
                value ^= 1 << bit
            values.add(value)
    return np.array(draw(st.permutations(sorted(values))), np.uint64)


@given(near_each_other(), st.integers(0, 16), st.sampled_from([1, 7, 2**24]))
@example(np.empty(0, np.uint64), 6, 2**24)
def test_it_finds_each_pair_that_comparing_all_with_all_finds_once(hashes, most, in_memory):
    expected = by_comparing_all(hashes, most) if most else []
    assert found(hashes, most, in_memory=in_memory) == expected


def test_thousands_in_any_number_of_bands(monkeypatch):
    generator = np.random.default_rng(5)
    roots = generator.integers(0, 2**64, 200, np.uint64)
    flips = [np.uint64(1) << generator.integers(0, 64, 200).astype(np.uint64) for _ in range(5)]
    near = [roots]
    for flip in flips:
        near.append(near[-1] ^ flip)
    hashes = np.unique(np.concatenate(near))
    expected = by_comparing_all(hashes, 4)
    assert len(expected) > 2000
    for shared in (1, 2, 3):
        monkeypatch.setattr(perceptual_hash, "_shared_bands", lambda *_, s=shared: s)
        monkeypatch.setattr(perceptual_hash, "_AT_ONCE", 400)
        assert found(hashes, 4) == expected
        assert found(hashes, 4, in_memory=300) == expected


def test_more_hashes_take_more_bands():
    """So that neighbours with equal bands stay few."""
    numbers = [perceptual_hash._shared_bands(count, 6) for count in (10, 10**5, 10**6, 10**8)]
    assert numbers == sorted(numbers)
    assert numbers[-1] > numbers[0]


def test_bits_are_counted_alike_without_the_function_of_new_numpy(monkeypatch):
    generator = np.random.default_rng(1)
    first, second = generator.integers(0, 2**64, (2, 1000), np.uint64)
    counted = perceptual_hash._bits(first, second)
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert np.array_equal(perceptual_hash._bits(first, second), counted)
    assert counted.tolist() == [
        (a ^ b).bit_count() for a, b in zip(first.tolist(), second.tolist(), strict=True)
    ]


@pytest.mark.parametrize("most", [-1, 17])
def test_distances_out_of_range_are_refused(most):
    with pytest.raises(ValueError, match=r"most must be 0\.\.16 bits"):
        list(near_hashes(np.zeros(2, np.uint64), most))
