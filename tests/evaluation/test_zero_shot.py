"""Metrics of zero-shot classification equal loops that can be read at a glance, scikit-learn, and published facts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from annotary.errors import UnknownName
from annotary.evaluation.protocols import PROTOCOLS, protocol_named
from annotary.evaluation.zero_shot import (
    ZeroShotClassifier,
    ZeroShotScore,
    expected_calibration_error,
    ranks,
    roc_auc,
    wilson,
)
from annotary.tasks.class_vectors import class_vectors
from annotary.tasks.label_sets import LabelSet
from annotary.tasks.zero_shot import ZeroShot
from tests.small_encoder import COLOURS, SmallEncoder, plain

Table = tuple[npt.NDArray[Any], npt.NDArray[np.int64]]


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Scores with many ties, and the true class of each row."""
    rows, classes = draw(st.integers(1, 15)), draw(st.integers(1, 8))
    levels = st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0])
    scores = draw(hnp.arrays(np.float32, (rows, classes), elements=levels))
    return scores, draw(hnp.arrays(np.int64, rows, elements=st.integers(0, classes - 1)))


def score_of(table: Table, cut: int = 7) -> ZeroShotScore:
    scores, targets = table
    found = ZeroShotScore(scores.shape[1])
    found.update(scores[:cut], targets[:cut])
    found.update(scores[cut:], targets[cut:])
    return found


@given(tables())
def test_ranks_are_places_in_a_stable_order(table: Table) -> None:
    scores, targets = table
    found = ranks(scores, targets)
    for row, target, best, rank in zip(scores, targets, found.best, found.rank, strict=True):
        order = sorted(range(len(row)), key=lambda place: (-row[place], place))
        assert order[0] == best == int(np.argmax(row))
        assert order.index(target) + 1 == rank


@given(tables())
def test_results_equal_a_loop_in_any_batches(table: Table) -> None:
    scores, targets = table
    found = score_of(table).result()
    orders = [sorted(range(len(row)), key=lambda k: (-row[k], k)) for row in scores.tolist()]
    pairs = list(zip(targets.tolist(), orders, strict=True))
    assert found.images == len(pairs)
    assert found.top1 == pytest.approx(np.mean([order[0] == true for true, order in pairs]))
    if scores.shape[1] < 5:
        assert found.top5 is found.top1_and_top5 is None
    else:
        assert found.top5 == pytest.approx(np.mean([true in order[:5] for true, order in pairs]))
        assert found.top1_and_top5 == pytest.approx((found.top1 + found.top5) / 2)
    shares = [
        np.mean([order[0] == k for true, order in pairs if true == k])
        for k in set(targets.tolist())
    ]
    assert found.mean_per_class == pytest.approx(np.mean(shares))
    assert found.class_images.sum() == len(pairs)
    wrong = [(true, order[0]) for true, order in pairs if order[0] != true]
    assert sorted((c.true, c.taken_for, c.images) for c in found.confusions) == sorted(
        (*pair, wrong.count(pair)) for pair in set(wrong)
    )
    counts = [confusion.images for confusion in found.confusions]
    assert counts == sorted(counts, reverse=True)
    assert found.mean_confidence is found.calibration_error is None


def test_a_class_without_images_counts_in_no_mean():
    scores = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)
    found = score_of((scores, np.array([0, 0, 0]))).result()
    assert found.mean_per_class == found.top1 == pytest.approx(2 / 3)
    assert found.class_images.tolist() == [3, 0, 0]
    assert found.confusions[0] == (0, 1, 1, pytest.approx(1 / 3))


def test_no_images_are_nothing():
    found = ZeroShotScore(3).result()
    assert found.images == 0
    assert math.isnan(found.top1)
    assert math.isnan(found.mean_per_class)
    assert found.top1_interval == (0, 1)


@pytest.mark.parametrize(
    ("scores", "targets", "message"),
    [
        (np.zeros((2, 3)), np.zeros(3, int), "do not fit"),
        (np.full((1, 3), np.nan), np.zeros(1, int), "NaN"),
        (np.zeros((1, 3)), np.array([3]), r"0\.\.2"),
        (np.zeros((1, 3)), np.array([-1]), r"0\.\.2"),
        (np.zeros((1, 4)), np.array([0]), r"expected \(b, 3\)"),
    ],
)
def test_what_does_not_fit_is_refused(scores, targets, message):
    score = ZeroShotScore(3)
    with pytest.raises(ValueError, match=message):
        score.update(scores, targets)
    assert score.result().images == 0


@given(tables())
def test_roc_auc_equals_scikit_learn(table: Table) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    values, targets = table[0][:, 0], table[1] % 2 == 1
    if targets.all() or not targets.any():
        with pytest.raises(ValueError, match="positives and negatives"):
            roc_auc(values, targets)
    else:
        assert roc_auc(values, targets) == pytest.approx(metrics.roc_auc_score(targets, values))


def test_roc_auc_of_two_classes_is_of_the_difference_of_their_scores():
    scores = np.array([[0.9, 0.95], [0.1, 0.3], [0.5, 0.2], [0.7, 0.72]], np.float32)
    found = score_of((scores, np.array([0, 1, 0, 1]))).result()
    assert found.roc_auc == 0.75  # .05 and -.3 against .2 and .02
    assert score_of((scores, np.zeros(4, int))).result().roc_auc is None


def test_wilson_equals_published_intervals():
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
    for right, total, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(right, total) == pytest.approx((low, high), abs=5e-5)
    assert wilson(29, 29).high == 1.0
    with pytest.raises(ValueError, match=r"0\.\.2"):
        wilson(3, 2)


@given(
    hnp.arrays(np.float64, 20, elements=st.floats(0, 1)),
    hnp.arrays(np.bool_, 20),
    st.integers(1, 6),
)
def test_the_calibration_error_equals_its_formula(confidences, right, bins):
    expected = 0.0
    for m in range(bins):
        low, high = m / bins, (m + 1) / bins
        inside = [
            i
            for i, confidence in enumerate(confidences)
            if low < confidence <= high or (m == 0 and confidence == 0)
        ]
        if inside:
            gap = np.mean(right[inside]) - np.mean(confidences[inside])
            expected += len(inside) / 20 * abs(gap)
    # on the border of two bins rounding decides; the error may jump there
    if not np.isclose((confidences * bins) % 1, 0).any():
        assert expected_calibration_error(confidences, right, bins) == pytest.approx(expected)


def test_the_calibration_error_of_what_is_known():
    sure = np.full(10, 0.9)
    right = np.arange(10) < 6
    assert expected_calibration_error(sure, right) == pytest.approx(0.3)
    assert expected_calibration_error(np.zeros(0), np.zeros(0, bool)) == 0
    with pytest.raises(ValueError, match=r"0\.\.1"):
        expected_calibration_error(np.array([1.1]), np.array([True]))


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_scores_and_confidences_are_those_of_the_task(kind):
    model = SmallEncoder(kind)
    labels = LabelSet.of(list(COLOURS))
    task = ZeroShot(model, labels)
    images = np.concatenate([model.embed_images(plain(colour)) for colour in COLOURS.values()])
    classifier = ZeroShotClassifier(model, class_vectors(model, labels.classes).vectors)
    scores = classifier.scores(images)
    confidences = classifier.confidences(scores)
    assert confidences is not None
    score = ZeroShotScore(len(COLOURS))
    score.update(scores, np.arange(len(COLOURS)), confidences)
    found = score.result()
    assert found.top1 == found.top5 == found.mean_per_class == 1.0
    for row, confidence in zip(task.logits(images), confidences, strict=True):
        assert confidence == pytest.approx(task.scores(row)[0].max(), abs=1e-6)
    assert found.mean_confidence == pytest.approx(confidences.mean())
    assert found.calibration_error == pytest.approx((1 - confidences).mean(), abs=1e-6)


def test_standardised_classes_equal_the_formula():
    model = SmallEncoder()
    labels = LabelSet.of(list(COLOURS)).classes
    vectors = class_vectors(model, labels).vectors
    images = model.embed_images(plain((200, 30, 90)))
    classifier = ZeroShotClassifier(model, vectors, normalises_classes=True)
    wide = vectors.astype(np.float64)
    mean, spread = wide.mean(0), wide.std(0, ddof=1)
    expected = ((images - mean) / spread) @ ((wide - mean) / spread).T
    np.testing.assert_allclose(classifier.scores(images), expected, rtol=1e-4)
    assert classifier.confidences(classifier.scores(images)) is None
    same = ZeroShotClassifier(model, np.repeat(vectors[:1], 2, axis=0), normalises_classes=True)
    assert np.isfinite(same.scores(images)).all()
    with pytest.raises(ValueError, match="two or more"):
        ZeroShotClassifier(model, vectors[:1], normalises_classes=True)


def test_the_protocols_are_those_of_the_26_datasets():
    assert len(PROTOCOLS) == 26
    per_class = {name for name, one in PROTOCOLS.items() if one.metric == "mean_per_class"}
    assert per_class == {"aircraft", "pets", "caltech101", "flowers"}
    assert protocol_named("imagenet").templates == 80
    found = score_of((np.array([[0.1, 0.9], [0.4, 0.2]], np.float32), np.array([1, 1]))).result()
    assert protocol_named("sst2").value(found) == 0.5
    assert protocol_named("hateful-memes").value(found) is None
    assert protocol_named("kinetics700").value(found) is None
    with pytest.raises(UnknownName, match="known: aircraft, caltech101"):
        protocol_named("imagenet-21k")
