"""Probabilities and shares: the figures of the papers, and t and its share as exact inverses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotary.curation.probabilities import (
    entry_probabilities,
    least_t,
    t_of_tail_share,
    tail_share,
    text_probabilities,
)
from annotary.errors import UsageError

EXAMPLE = [1, 5, 10, 20, 100, 1_000, 20_000, 40_000, 200_000, 1_000_000]


def lists(*texts):
    offsets = np.cumsum([0, *map(len, texts)])
    return offsets.astype(np.int64), np.array([one for text in texts for one in text], np.uint32)


@pytest.mark.parametrize(
    ("count", "expected"),
    [(54e6, 0.00037), (713e3, 0.028), (58e3, 0.345), (15e3, 1.0), (20_000, 1.0), (0, 1.0)],
)
def test_entries_of_the_paper(count, expected):
    (found,) = entry_probabilities(np.array([count], np.uint64), 20_000)
    assert found == pytest.approx(expected, rel=5e-3)


def test_a_text_is_kept_when_one_of_its_entries_is_drawn():
    probabilities = np.array([0.5, 0.1, 1.0, 0.25])
    found = text_probabilities(lists([0, 1], [], [2], [0, 2], [3], [0, 1, 3], []), probabilities)
    expected = [0.55, 0.0, 1.0, 1.0, 0.25, 1 - 0.5 * 0.9 * 0.75, 0.0]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_no_texts_and_no_entries():
    assert len(text_probabilities(lists(), np.array([0.5]))) == 0
    np.testing.assert_array_equal(text_probabilities(lists([], []), np.array([0.5])), [0, 0])


@given(
    st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=20),
    st.lists(st.lists(st.integers(0, 19), max_size=12, unique=True), max_size=20),
)
def test_probabilities_of_texts_are_those_of_the_formula(probabilities, texts):
    texts = [[one for one in text if one < len(probabilities)] for text in texts]
    found = text_probabilities(lists(*texts), np.array(probabilities))
    for text, probability in zip(texts, found, strict=True):
        missed = 1.0
        for one in text:
            missed *= 1 - probabilities[one]
        assert probability == pytest.approx(1 - missed, abs=1e-12)


def test_the_share_of_the_tail_in_the_example_of_the_code():
    assert tail_share(EXAMPLE, 20_000) == pytest.approx(0.000900775, abs=5e-9)
    assert t_of_tail_share(EXAMPLE, tail_share(EXAMPLE, 20_000)) == 20_000


COUNTS = st.lists(st.integers(0, 10**12), min_size=1, max_size=60).filter(any)


@given(COUNTS, st.integers(1, 10**13))
def test_t_and_share_are_inverse(counts, t):
    share = tail_share(counts, t)
    found = t_of_tail_share(counts, share)
    assert tail_share(counts, found) == share
    assert found >= t or found > max(counts)
    assert found in counts or found == max(counts) + 1


@given(COUNTS)
def test_counts_come_back_themselves(counts):
    for count in counts:
        if count:
            assert t_of_tail_share(counts, tail_share(counts, count)) == count


@given(COUNTS, st.floats(0.0, 1.0))
def test_the_greatest_t_within_a_share(counts, share):
    t = t_of_tail_share(counts, share)
    assert tail_share(counts, t) <= share
    assert t > max(counts) or tail_share(counts, t + 1) > share


def test_nothing_was_matched():
    for work in (lambda: tail_share([0, 0], 5), lambda: t_of_tail_share([0, 0], 0.5)):
        with pytest.raises(UsageError, match="no entry was matched"):
            work()


def test_t_above_nothing():
    with pytest.raises(ValueError, match="t must be above 0 and finite, but got 0"):
        entry_probabilities(np.array([1]), 0)


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5, unique=True), min_size=1),
    st.floats(0.01, 1.0),
)
def test_the_least_t_that_is_enough(texts, share):
    counts = np.bincount([one for text in texts for one in text], minlength=10).astype(np.uint64)
    size = share * len(texts)
    t = least_t(counts, [lists(*texts)], size)

    def expected(t):
        return text_probabilities(lists(*texts), entry_probabilities(counts, t)).sum()

    assert expected(t) >= size * (1 - 1e-12)
    step = 2**-10 if t > 1 else 2**-20
    assert t <= step or expected(t - step) < size
