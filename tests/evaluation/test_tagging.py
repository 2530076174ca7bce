"""Tagging metrics equal loops that can be read at a glance, and scikit-learn."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from annotary.evaluation import (
    TagCounts,
    average_precision,
    calibration_error,
    fit_thresholds,
    five_tag_protocol,
    reliability,
)

Table = tuple[npt.NDArray[Any], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]


@st.composite
def tables(draw: st.DrawFn, rows: int = 12, tags: int = 5) -> Table:
    """Draw scores with many ties, targets, and which targets are known."""
    shape = (draw(st.integers(1, rows)), draw(st.integers(1, tags)))
    levels = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0])
    scores = draw(
        hnp.arrays(draw(st.sampled_from([np.float32, np.float64])), shape, elements=levels)
    )
    return scores, draw(hnp.arrays(np.bool_, shape)), draw(hnp.arrays(np.bool_, shape))


def divide(top: float, bottom: float) -> float:
    return top / bottom if bottom else 0.0


def tally(predicted: Any, true: Any) -> tuple[int, int, int]:
    """Return true positives, false positives and false negatives of a column."""
    pairs = list(zip(predicted, true, strict=True))
    return pairs.count((True, True)), pairs.count((True, False)), pairs.count((False, True))


def filled(table: Table) -> TagCounts:
    scores, targets, known = table
    counts = TagCounts(scores.shape[1])
    counts.update(scores >= 0.5, targets, known)
    return counts


@given(tables())
def test_counts_equal_a_loop(table: Table) -> None:
    scores, targets, known = table
    counts = filled(table)
    rates = counts.rates()
    for tag in range(scores.shape[1]):
        seen = known[:, tag]
        hits, false, missed = tally(
            (scores[seen, tag] >= 0.5).tolist(), targets[seen, tag].tolist()
        )
        assert counts.true_positives[tag] == hits
        assert counts.false_positives[tag] == false
        assert counts.false_negatives[tag] == missed
        assert counts.true_negatives[tag] == seen.sum() - hits - false - missed
        precision, recall = divide(hits, hits + false), divide(hits, hits + missed)
        assert rates.precision[tag] == pytest.approx(precision)
        assert rates.recall[tag] == pytest.approx(recall)
        assert rates.f1[tag] == pytest.approx(divide(2 * precision * recall, precision + recall))
        assert rates.support[tag] == hits + missed
    assert counts.true_positives.dtype == np.int64


@given(tables())
def test_summaries_equal_scikit_learn(table: Table) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    scores, targets, _ = table
    predicted = scores >= 0.5
    counts = TagCounts(scores.shape[1])
    counts.update(predicted, targets)
    for average in ("macro", "micro", "weighted"):
        summary = getattr(counts, average)()
        # A column of zeros more keeps a single tag a table of tags, and is left out of the means.
        expected = metrics.precision_recall_fscore_support(
            np.pad(targets, ((0, 0), (0, 1))),
            np.pad(predicted, ((0, 0), (0, 1))),
            average=average,
            labels=range(scores.shape[1]),
            zero_division=0,
        )
        assert (summary.precision, summary.recall, summary.f1) == pytest.approx(expected[:3])


@given(tables(), st.integers(0, 12))
def test_batches_and_parts_add_up(table: Table, cut: int) -> None:
    scores, targets, known = table
    whole, batches, part = filled(table), TagCounts(scores.shape[1]), TagCounts(scores.shape[1])
    batches.update(scores[:cut] >= 0.5, targets[:cut], known[:cut])
    part.update(scores[cut:] >= 0.5, targets[cut:], known[cut:])
    batches.merge(part)
    for name, counted in vars(whole).items():
        np.testing.assert_array_equal(counted, getattr(batches, name))


def test_micro_rates_are_those_of_joytag() -> None:
    """The sums over the 5,813 records of JoyTag's ``full-metrics.txt``, and the rates they give."""
    counts = TagCounts(1)
    counts.true_positives[:], counts.false_positives[:] = 676_275, 385_339
    counts.false_negatives[:], counts.true_negatives[:] = 244_326, 189_174_444
    found = counts.micro()
    assert (found.precision, found.recall, found.f1) == pytest.approx(
        (0.637025, 0.734602, 0.682343), abs=5e-7
    )
    images = sum(int(array[0]) for array in vars(counts).values()) / 5813
    assert images == 32_768


def test_nothing_by_nothing_is_zero() -> None:
    counts = TagCounts(2)
    counts.update([[0, 1], [0, 0]], [[0, 0], [0, 0]])
    rates = counts.rates()
    assert [rates.precision.tolist(), rates.recall.tolist(), rates.f1.tolist()] == [[0.0, 0.0]] * 3
    assert counts.macro() == counts.micro() == counts.weighted()
    assert counts.macro().f1 == 0


def test_macro_leaves_out_rare_tags_on_request() -> None:
    counts = TagCounts(3)
    counts.update([[1, 1, 0], [1, 0, 0]], [[1, 0, 0], [1, 1, 0]])
    assert counts.macro().f1 == pytest.approx(1 / 3)
    assert counts.macro(minimum_support=1).f1 == pytest.approx(1 / 2)
    assert counts.macro(minimum_support=2).f1 == 1
    assert counts.macro(minimum_support=3).f1 == 0


@given(tables())
def test_average_precision_equals_scikit_learn(table: Table) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    scores, targets, known = table
    found = average_precision(scores, targets, known)
    for tag, value in enumerate(found):
        seen = known[:, tag]
        if targets[seen, tag].any():
            expected = metrics.average_precision_score(targets[seen, tag], scores[seen, tag])
            assert value == pytest.approx(expected, abs=1e-12)
        else:
            assert np.isnan(value)
    np.testing.assert_array_equal(
        average_precision(scores, targets),
        average_precision(scores, targets, np.ones_like(targets)),
    )


def test_average_precision_ranks_ties_together() -> None:
    assert average_precision([[0.5], [0.5], [0.1]], [[1], [0], [1]])[0] == pytest.approx(
        0.5 * 0.5 + 0.5 * 2 / 3
    )


@given(st.integers(1, 500), st.integers(0, 5))
def test_average_precision_of_a_perfect_order_is_one(positives: int, negatives: int) -> None:
    targets = np.arange(positives + negatives)[:, None] < positives
    scores = 1 - np.arange(positives + negatives)[:, None] / 1000
    assert average_precision(scores, targets)[0] == 1.0


@given(tables(), st.integers(1, 5))
def test_five_tag_protocol_equals_a_loop(table: Table, best: int) -> None:
    scores, targets, _ = table
    best = min(best, scores.shape[1])
    given_words = [
        sorted(range(scores.shape[1]), key=lambda word: (-row[word], word))[:best] for row in scores
    ]
    precisions, recalls = [], []
    for word in np.flatnonzero(targets.any(axis=0)):
        hits, false, missed = tally([word in row for row in given_words], targets[:, word].tolist())
        precisions.append(divide(hits, hits + false))
        recalls.append(divide(hits, hits + missed))
    found = five_tag_protocol(scores, targets, best)
    precision = divide(sum(precisions), len(precisions))
    recall = divide(sum(recalls), len(recalls))
    assert found.precision == pytest.approx(precision)
    assert found.recall == pytest.approx(recall)
    assert found.f1 == pytest.approx(divide(2 * precision * recall, precision + recall))
    assert found.words_recalled == sum(value > 0 for value in recalls)
    assert found.words == len(recalls)


def test_five_tag_protocol_gives_words_that_never_occur() -> None:
    """A word of no image takes a place, and no part in the means."""
    found = five_tag_protocol([[0.9, 0.8, 0.1]], [[0, 1, 1]], tags_per_image=2)
    assert (found.precision, found.recall, found.words_recalled, found.words) == (0.5, 0.5, 1, 2)


def test_five_tag_protocol_ranks_in_blocks() -> None:
    generator = np.random.default_rng(0)
    scores = generator.random((2100, 7)).round(1)
    targets = generator.random((2100, 7)) < 0.3
    order = np.lexsort((np.broadcast_to(np.arange(7), scores.shape), -scores), axis=1)[:, :5]
    counts = TagCounts(7)
    counts.update((order[:, :, None] == np.arange(7)).any(axis=1), targets)
    assert five_tag_protocol(scores, targets).precision == pytest.approx(counts.macro().precision)


def naive_threshold(
    scores: Any, targets: Any, rule: str, at_least: float
) -> tuple[float, float] | None:
    """Return the lowest score let through and the highest one kept out."""
    best: tuple[float, float] | None = None
    best_f1 = -1.0
    levels = sorted(set(scores.tolist()), reverse=True)
    before = 0
    for level, below in zip(levels, [*levels[1:], levels[-1]], strict=True):
        hits, false, missed = tally((scores >= level).tolist(), targets.tolist())
        precision, recall = divide(hits, hits + false), divide(hits, hits + missed)
        f1 = divide(2 * hits, 2 * hits + false + missed)
        if rule == "f1" and f1 > best_f1:
            best, best_f1 = (level, below), f1
        if rule == "precision" and precision >= at_least and hits > before:
            best = level, below
        if rule == "recall" and recall >= at_least and best is None:
            best = level, below
        before = hits
    return best


@given(
    tables(), st.sampled_from(["f1", "precision", "recall"]), st.sampled_from([0.0, 0.5, 0.8, 1])
)
def test_thresholds_equal_a_loop(table: Table, rule: Any, at_least: float) -> None:
    scores, targets, known = table
    if not (targets & known).any():
        return
    found = fit_thresholds(
        scores,
        targets,
        known,
        rule=rule,
        at_least=None if rule == "f1" else at_least,
        minimum_support=1,
        shrinkage=0,
    )
    columns = [(scores[known[:, i], i], targets[known[:, i], i]) for i in range(scores.shape[1])]
    pairs = [(found.pooled, scores[known], targets[known])]
    pairs += [(v, *c) for v, c in zip(found.values, columns, strict=True) if c[1].any()]
    for value, column, true in pairs:
        expected = naive_threshold(column, true, rule, at_least)
        if expected is None:
            assert value == np.inf
        else:
            assert value == pytest.approx((expected[0] + expected[1]) / 2)
            np.testing.assert_array_equal(column >= value, column >= expected[0])
    for tag, (_, true) in enumerate(columns):
        assert found.support[tag] == true.sum()
        assert true.any() or found.values[tag] == found.pooled


def test_rare_tags_are_drawn_towards_the_pooled_threshold() -> None:
    generator = np.random.default_rng(1)
    targets = generator.random((400, 3)) < [0.5, 0.1, 0.005]
    scores = generator.random((400, 3)) * 0.5 + targets * [0.1, 0.3, 0.45]
    own = fit_thresholds(scores, targets, minimum_support=1, shrinkage=0)
    drawn = fit_thresholds(scores, targets, minimum_support=5, shrinkage=10)
    assert drawn.pooled == own.pooled
    assert 0 < drawn.support[2] < 5
    assert drawn.values[2] == drawn.pooled
    share = drawn.support[:2] / (drawn.support[:2] + 10)
    expected = share * own.values[:2] + (1 - share) * own.pooled
    np.testing.assert_allclose(drawn.values[:2], expected)


def test_a_precision_out_of_reach_is_never_predicted() -> None:
    scores = [[0.9, 0.9], [0.8, 0.8], [0.7, 0.7]]
    targets = [[0, 1], [1, 1], [0, 0]]
    found = fit_thresholds(
        scores, targets, rule="precision", at_least=0.8, minimum_support=1, shrinkage=0
    )
    assert found.values[0] == np.inf
    assert found.values[1] == pytest.approx(0.75)


@given(tables(), st.integers(1, 6))
def test_calibration_equals_a_loop(table: Table, bins: int) -> None:
    scores, targets, known = table
    entries = sorted(zip(scores[known].tolist(), targets[known].tolist(), strict=True))
    places: dict[int, list[tuple[float, bool]]] = {}
    for score, true in entries:
        ranks = [rank for rank, entry in enumerate(entries) if entry[0] == score]
        place = int((ranks[0] + ranks[-1] + 1) / 2 * bins / len(entries))
        places.setdefault(place, []).append((score, true))
    distance = sum(
        abs(sum(score for score, _ in bin_) - sum(true for _, true in bin_))
        for bin_ in places.values()
    )
    found = reliability(scores, targets, known, bins=bins)
    assert found.entries.tolist() == [len(places[place]) for place in sorted(places)]
    assert found.error == pytest.approx(divide(distance, len(entries)), abs=1e-6)
    assert calibration_error(scores, targets, known, bins=bins) == found.error


def test_bins_hold_equally_many() -> None:
    scores = np.linspace(0, 1, 100)[:, None] ** 3
    found = reliability(scores, scores > 0.5, bins=10)
    assert found.entries.tolist() == [10] * 10
    assert np.all(np.diff(found.score) > 0)


def test_calibration_does_not_depend_on_the_order_of_images() -> None:
    generator = np.random.default_rng(2)
    scores = generator.random((200, 4)).round(1)
    targets = generator.random((200, 4)) < scores
    order = generator.permutation(200)
    assert calibration_error(scores, targets) == calibration_error(scores[order], targets[order])
    assert calibration_error(scores, targets) < 0.1
    assert calibration_error(1 - scores, targets) > 0.3


SCORES = np.full((3, 5), 0.5)
TARGETS = np.eye(3, 5, dtype=bool)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: average_precision(SCORES, TARGETS[:, :4]), r"targets has shape \(3, 4\); expected \(3, 5\)"),
        (lambda: average_precision(SCORES[0], TARGETS), r"scores has shape \(5,\); expected \(n, t\)"),
        (lambda: average_precision(SCORES, TARGETS, TARGETS[:2]), r"known has shape \(2, 5\); expected \(3, 5\)"),
        (lambda: average_precision(SCORES * np.nan, TARGETS), "NaN"),
        (lambda: average_precision(SCORES, TARGETS * 2), "targets holds numbers other than 0 and 1"),
        (lambda: five_tag_protocol(SCORES, TARGETS, 6), r"tags_per_image is 6; expected 1\.\.5"),
        (lambda: five_tag_protocol(SCORES, TARGETS, 0), r"tags_per_image is 0"),
        (lambda: TagCounts(0), "tags is 0"),
        (lambda: TagCounts(4).update(TARGETS, TARGETS), r"predictions has shape \(3, 5\); expected \(b, 4\)"),
        (lambda: TagCounts(5).update(TARGETS, TARGETS[0]), r"targets has shape \(5,\); expected \(3, 5\)"),
        (lambda: TagCounts(5).update(SCORES, TARGETS), "predictions holds numbers other than 0 and 1"),
        (lambda: TagCounts(5).merge(TagCounts(4)), "other counts 4 tags; expected 5"),
        (lambda: fit_thresholds(SCORES, TARGETS, rule=cast(Any, "best")), "rule is 'best'"),
        (lambda: fit_thresholds(SCORES, TARGETS, rule="recall"), "needs one"),
        (lambda: fit_thresholds(SCORES, TARGETS, at_least=0.5), "takes none"),
        (lambda: fit_thresholds(SCORES, TARGETS, rule="recall", at_least=80), r"at_least is 80; expected 0\.\.1"),
        (lambda: fit_thresholds(SCORES, TARGETS, shrinkage=-1), "shrinkage -1"),
        (lambda: fit_thresholds(SCORES * np.inf, TARGETS), "infinite"),
        (lambda: fit_thresholds(SCORES, TARGETS, ~TARGETS), "no known positive"),
        (lambda: calibration_error(SCORES + 1, TARGETS), r"scores lies in 1\.5\.\.1\.5"),
        (lambda: calibration_error(SCORES, TARGETS, bins=0), "bins is 0"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_refused_batch_leaves_the_counts_alone() -> None:
    counts = TagCounts(5)
    with pytest.raises(ValueError, match="targets"):
        counts.update(TARGETS, TARGETS[:2])
    assert not any(array.any() for array in vars(counts).values())
