"""Correlations equal those of SciPy, and intervals are those of means that are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotary.evaluation.resampling import correlation, interval, resampled_sums

numbers = st.lists(
    st.tuples(st.integers(-3, 3).map(float), st.floats(-5, 5, width=32)), min_size=2, max_size=40
)


@given(numbers)
def test_correlations_equal_those_of_scipy(pairs):
    stats = pytest.importorskip("scipy.stats")
    first, second = (np.array(column) for column in zip(*pairs, strict=True))
    found = correlation(first, second)
    assert found.pairs == len(pairs)
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        assert found[1:] == (None, None, None)
        return
    assert found.kendall_b == pytest.approx(stats.kendalltau(first, second, variant="b")[0])
    assert found.kendall_c == pytest.approx(stats.kendalltau(first, second, variant="c")[0])
    assert found.spearman == pytest.approx(stats.spearmanr(first, second)[0], abs=1e-9)


def test_correlations_are_the_same_when_pairs_are_compared_in_parts(monkeypatch):
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=300), generator.integers(0, 4, 300).astype(float)
    whole = correlation(first, second)
    monkeypatch.setattr("annotary.evaluation.resampling._PAIRS", 900)
    assert correlation(first, second) == whole


def test_correlations_of_what_makes_no_sense_are_refused():
    with pytest.raises(ValueError, match="as many"):
        correlation(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="finite"):
        correlation(np.array([0.0, np.nan]), np.zeros(2))
    assert correlation(np.zeros(1), np.zeros(1)).spearman is None


def test_the_bootstrap_of_a_mean_is_as_wide_as_its_standard_error():
    generator = np.random.default_rng(0)
    values = generator.normal(size=(400, 1))
    sums = resampled_sums(values, np.arange(400), seed=1, rounds=2000)
    low, high = interval(sums[:, 0] / 400)
    expected = 2 * 1.96 * values.std() / np.sqrt(400)
    assert high - low == pytest.approx(expected, rel=0.1)
    # Rows of one group are drawn together: with two equal rows for each image nothing is gained.
    doubled = resampled_sums(np.repeat(values, 2, axis=0), np.arange(800) // 2, seed=1, rounds=2000)
    assert doubled == pytest.approx(2 * sums)
