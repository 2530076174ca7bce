"""The number that decides about a pair: as its definition says, spread evenly, and the pair's own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pa = pytest.importorskip("pyarrow")

from annotary.curation._draws import BASE, draws, hashes, polynomials  # noqa: E402

MASK = 2**64 - 1


def mixed(value):
    value ^= value >> 33
    value = value * 0xFF51AFD7ED558CCD & MASK
    value ^= value >> 33
    value = value * 0xC4CEB9FE1A85EC53 & MASK
    return value ^ value >> 33


def defined(seed, *texts):
    """The hash, as the module's docstring defines it."""
    found = mixed((seed + BASE) & MASK)
    for text in texts:
        if text is None:
            own = 0x2545F4914F6CDD1D
        else:
            own = sum((byte + 1) * pow(BASE, i, 2**64) for i, byte in enumerate(text.encode()))
        found = mixed((found * 0xD1342543DE82EF95 + own) & MASK)
    return found


TEXTS = st.lists(st.one_of(st.none(), st.text(max_size=40)), min_size=1, max_size=20)


@given(TEXTS, st.integers(-(2**70), 2**70))
def test_hashes_are_what_the_definition_says(texts, seed):
    found = hashes(seed, [pa.array(texts, pa.string()), pa.array(texts[::-1], pa.large_string())])
    expected = [defined(seed, *pair) for pair in zip(texts, texts[::-1], strict=True)]
    assert found.tolist() == expected


@given(TEXTS, st.integers(0, 10), st.integers(0, 10))
def test_a_slice_has_the_hashes_of_its_rows(texts, start, length):
    whole = pa.array(texts, pa.string())
    expected = hashes(3, [whole])[start : start + length]
    np.testing.assert_array_equal(hashes(3, [whole.slice(start, length)]), expected)


def test_long_texts_and_many_go_over_the_edges_of_blocks():
    texts = ["x" * 700_000, "", "y" * 700_000, "z" * 3_000_000, "z" * 3_000_000, "end"]
    data = np.frombuffer("".join(texts).encode(), np.uint8)
    offsets = np.cumsum([0, *map(len, texts)])
    found = polynomials(data, offsets)
    for text, value in zip(texts, found, strict=True):
        alone = polynomials(np.frombuffer(text.encode(), np.uint8), np.array([0, len(text)]))
        assert value == alone[0]
    assert len({*found.tolist()}) == 5


def test_numbers_bytes_and_texts_can_be_ids():
    numbers = draws(0, [pa.array([1, 2, None])])
    texts = draws(0, [pa.array(["1", "2", None])])
    np.testing.assert_array_equal(numbers, texts)
    kinds = [pa.array([b"\x01\xff"]), pa.array(["01ff"]), pa.array(["01ff"]).dictionary_encode()]
    assert len({draws(0, [one])[0] for one in kinds}) == 1


def test_draws_are_spread_evenly_and_seeds_have_nothing_in_common():
    ids = pa.array([f"https://example.org/{number}.jpg" for number in range(100_000)])
    first, second = draws(0, [ids]), draws(1, [ids])
    assert first.min() >= 0
    assert first.max() < 1
    for found in (first, second):
        counts = np.bincount((found * 100).astype(int), minlength=100)
        # Chi-square with 99 degrees of freedom: above 149 once in a thousand.
        assert ((counts - 1000) ** 2 / 1000).sum() < 149
    # The bits of neighbouring ids, and of the same id under two seeds, differ by half.
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.02
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.02


def test_columns_are_told_apart():
    a, b = pa.array(["ab", "a"]), pa.array(["c", "bc"])
    assert len(set(draws(0, [a, b]).tolist())) == 2
    assert draws(0, [a, b])[0] != draws(0, [b, a])[0]


@given(TEXTS)
def test_texts_longer_than_a_block_are_hashed_piece_by_piece(texts):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("annotary.curation._draws._AT_ONCE", 7)
        found = hashes(1, [pa.array(texts, pa.string())])
    assert found.tolist() == [defined(1, text) for text in texts]
