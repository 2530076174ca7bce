"""What a stream adds up is what whole tables say; where bins round, the bounds hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from annotary.evaluation import TagCounts, average_precision, reliability
from annotary.evaluation.tagging_streams import (
    BINS,
    ScoreHistograms,
    TaggingStream,
    WorstImages,
    bins_of,
    edges,
)

PROBABILITIES = st.floats(0, 1, width=32)


def made_up(images: int, tags: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores that tell something of the tags, which are rare and frequent."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(-2, 2, (images, tags)) - np.linspace(0, 4, tags)
    targets = generator.random((images, tags)) < 1 / (1 + np.exp(-logits))
    noise = generator.normal(0, 1, (images, tags))
    return (1 / (1 + np.exp(-(logits + noise)))).astype(np.float32), targets


def test_bins_are_what_their_edges_say():
    found = edges()
    assert len(found) == BINS + 1
    assert (np.diff(found) >= 0).all()
    assert found[0] == 0
    assert found[-1] > 1
    assert (bins_of(found[:-1]) >= np.arange(BINS)).all()
    assert (bins_of(np.nextafter(found[1:-1], np.float32(0))) < np.arange(1, BINS)).all()


@given(st.lists(PROBABILITIES, min_size=1, max_size=50))
def test_a_score_is_at_or_above_exactly_the_edges_up_to_its_bin(scores):
    values = np.sort(np.array(scores, np.float32))
    bins = bins_of(values)
    assert (np.diff(bins) >= 0).all()
    assert (values >= edges()[bins]).all()
    assert (values < edges()[bins + 1]).all()


def test_a_bin_is_narrow_on_the_scale_of_logits():
    inner = edges()[(edges() > 1e-6) & (edges() < 0.999)].astype(np.float64)
    logits = np.log(inner / (1 - inner))
    assert np.diff(logits).max() < 1 / 64 + 1e-4


@given(
    arrays(np.float32, (40, 3), elements=PROBABILITIES),
    arrays(np.bool_, (40, 3)),
)
def test_the_exact_average_precision_lies_between_its_bounds(scores, targets):
    histograms = ScoreHistograms(3)
    histograms.update(scores, targets)
    found = histograms.average_precision()
    exact = average_precision(scores, targets)
    seen = ~np.isnan(exact)
    np.testing.assert_array_equal(np.isnan(found.value), ~seen)
    assert (found.low[seen] <= exact[seen] + 1e-12).all()
    assert (exact[seen] <= found.high[seen] + 1e-12).all()
    assert (found.low[seen] <= found.value[seen] + 1e-12).all()
    assert (found.value[seen] <= found.high[seen] + 1e-12).all()


def test_average_precision_is_near_the_exact_one():
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    scores, targets = made_up(4000, 20)
    histograms = ScoreHistograms(20)
    for start in range(0, 4000, 700):
        histograms.update(scores[start : start + 700], targets[start : start + 700])
    found = histograms.average_precision()
    for tag in range(20):
        exact = sklearn_metrics.average_precision_score(targets[:, tag], scores[:, tag])
        assert found.low[tag] <= exact + 1e-12
        assert exact <= found.high[tag] + 1e-12
        assert abs(found.value[tag] - exact) < 0.002
    pooled = sklearn_metrics.average_precision_score(targets, scores, average="micro")
    assert abs(histograms.pooled().average_precision() - pooled) < 0.002
    rounded = edges()[bins_of(scores)]
    np.testing.assert_allclose(found.value, average_precision(rounded, targets), atol=1e-12)


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, BINS), min_size=5, max_size=5))
def test_counts_at_edges_are_those_of_the_scores(seed, places):
    scores, targets = made_up(60, 5, seed)
    histograms = ScoreHistograms(5)
    histograms.update(scores, targets)
    found = histograms.counts_at(np.array(places))
    expected = TagCounts(5)
    expected.update(scores >= edges()[places], targets)
    for name in ("true_positives", "false_positives", "false_negatives", "true_negatives"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_unknown_targets_count_nowhere_and_parts_add_up():
    scores, targets = made_up(200, 4)
    known = np.random.default_rng(1).random(scores.shape) < 0.7
    whole, first, second = (ScoreHistograms(4) for _ in range(3))
    whole.update(scores, targets, known)
    first.update(scores[:90], targets[:90], known[:90])
    second.update(scores[90:], targets[90:], known[90:])
    first.merge(second)
    np.testing.assert_array_equal(first.all, whole.all)
    np.testing.assert_array_equal(first.true, whole.true)
    np.testing.assert_allclose(first.sums, whole.sums)
    np.testing.assert_array_equal(whole.images, known.sum(axis=0))
    np.testing.assert_array_equal(whole.support, (known & targets).sum(axis=0))


def test_calibration_is_that_of_the_whole_table():
    scores, targets = made_up(3000, 10)
    histograms = ScoreHistograms(10)
    histograms.update(scores, targets)
    found, exact = histograms.reliability(), reliability(scores, targets)
    assert abs(found.error - exact.error) < 2e-3
    assert found.entries.sum() == scores.size
    assert found.score @ found.entries == pytest.approx(scores.sum(dtype=np.float64), rel=1e-6)


@pytest.mark.parametrize(
    ("scores", "complaint"),
    [
        (np.full((2, 3), np.nan), "NaN"),
        (np.full((2, 3), 1.5), "0..1"),
        (np.full((2, 3), -0.1), "0..1"),
        (np.zeros((2, 4)), "expected"),
    ],
)
def test_what_is_no_score_is_refused_and_adds_nothing(scores, complaint):
    histograms = ScoreHistograms(3)
    with pytest.raises(ValueError, match=complaint):
        histograms.update(scores, np.zeros(scores.shape, bool))
    assert not histograms.all.any()
    with pytest.raises(ValueError, match="at least 1"):
        ScoreHistograms(0)
    with pytest.raises(ValueError, match="tags"):
        histograms.merge(ScoreHistograms(4))


def test_a_stream_holds_scores_while_there_is_room():
    scores, targets = made_up(300, 6)
    thresholds = {"half": np.full(6, 0.5, np.float32), "low": np.full(6, 0.1, np.float32)}
    exact = TaggingStream(thresholds, halves=True)
    rounded = TaggingStream(thresholds, keeps=1000)
    for start in range(0, 300, 37):
        for stream in (exact, rounded):
            stream.update(scores[start : start + 37], targets[start : start + 37])
    found, is_exact = exact.average_precision()
    assert is_exact
    np.testing.assert_allclose(found.value, average_precision(scores, targets))
    assert not rounded.average_precision()[1]
    assert rounded.held() is None
    np.testing.assert_array_equal(exact.held()[0], scores)
    expected = TagCounts(6)
    expected.update(scores >= 0.1, targets)
    np.testing.assert_array_equal(exact.counts["low"].true_positives, expected.true_positives)
    for half, histograms in enumerate(exact.halves):
        np.testing.assert_array_equal(histograms.support, targets[half::2].sum(axis=0))
    with pytest.raises(ValueError, match="thresholds"):
        TaggingStream({})


def test_a_stream_leaves_out_what_is_not_known():
    generator = np.random.default_rng(5)
    scores = generator.random((90, 4), dtype=np.float32)
    targets, known = generator.random((2, 90, 4)) < 0.4
    scores[generator.random((90, 4)) < 0.1] = 0.0
    threshold = np.full(4, 0.5, np.float32)
    stream = TaggingStream({"half": threshold}, halves=True, worst=90)
    for rows in (slice(0, 37), slice(37, 90)):
        stream.update(scores[rows], targets[rows], known=known[rows])
    found, is_exact = stream.average_precision()
    assert is_exact
    np.testing.assert_allclose(found.value, average_precision(scores, targets, known))
    expected = TagCounts(4)
    expected.update(scores >= threshold, targets, known)
    np.testing.assert_array_equal(stream.counts["half"].true_negatives, expected.true_negatives)
    np.testing.assert_array_equal(stream.counts["half"].false_positives, expected.false_positives)
    assert stream.histograms.images.tolist() == known.sum(0).tolist()
    assert sum(half.images for half in stream.halves).tolist() == known.sum(0).tolist()
    for tag in range(4):
        wrong = {one.image for one in stream.worst.given_wrongly(tag)}
        missed = {one.image for one in stream.worst.missed(tag)}
        own = known[:, tag] & ((scores[:, tag] >= 0.5) != targets[:, tag])
        assert wrong | missed == set(np.flatnonzero(own).tolist())


def test_the_worst_images_are_those_of_the_whole_table():
    scores, targets = made_up(500, 5, seed=3)
    thresholds = np.full(5, 0.3, np.float32)
    worst = WorstImages(5, most=3)
    for start in range(0, 500, 64):
        rows = slice(start, start + 64)
        numbers = 1000 + np.arange(500, dtype=np.int64)[rows]
        worst.update(scores[rows], targets[rows], thresholds, numbers)
    for tag in range(5):
        given = np.flatnonzero((scores[:, tag] >= 0.3) & ~targets[:, tag])
        missed = np.flatnonzero((scores[:, tag] < 0.3) & targets[:, tag])
        top = given[np.argsort(-scores[given, tag])][:3]
        low = missed[np.argsort(scores[missed, tag])][:3]
        assert [one.image for one in worst.given_wrongly(tag)] == (1000 + top).tolist()
        assert [one.image for one in worst.missed(tag)] == (1000 + low).tolist()
        for one in (*worst.given_wrongly(tag), *worst.missed(tag)):
            assert one.score == pytest.approx(scores[one.image - 1000, tag])


def test_memory_does_not_grow_with_the_images():
    import tracemalloc

    stream = TaggingStream({"half": np.full(50, 0.5, np.float32)}, keeps=0)
    scores, targets = made_up(500, 50)
    stream.update(scores, targets)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(20):
        stream.update(scores, targets)
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert stream.images == 10_500
    assert after - before < 20_000
