"""Thresholds that are fitted never do worse on their images than one for all, and say how they do on others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotary.evaluation.box_matching import Matches
from annotary.evaluation.detection_thresholds import best_f1, fit_box_thresholds


@st.composite
def matches(draw: st.DrawFn) -> Matches:
    """Boxes of some labels in some images, many with equal scores; at least one is right."""
    generator = np.random.default_rng(draw(st.integers(0, 10_000)))
    images, labels, count = (
        draw(st.integers(1, 12)),
        draw(st.integers(1, 5)),
        draw(st.integers(1, 80)),
    )
    digits = draw(st.sampled_from([1, 6]))
    are_right = generator.random(count) < 0.5
    are_right[0] = True
    own = generator.integers(0, labels, count)
    shift = generator.uniform(-0.3, 0.3, labels)
    scores = np.clip(0.3 + 0.3 * are_right + shift[own] + generator.normal(0, 0.15, count), 0, 1)
    where = generator.integers(0, images, count)
    drawn = generator.integers(0, 3, (images, labels))
    np.add.at(drawn, (where[are_right], own[are_right]), 1)
    return Matches(where, own, scores.round(digits), are_right, drawn)


def f1_of(found: Matches, thresholds: np.ndarray) -> float:
    """The mean of labels, by a loop."""
    values = []
    for label, threshold in enumerate(thresholds):
        there = found.drawn[:, label].sum()
        if there:
            is_given = (found.labels == label) & (found.scores >= threshold)
            values.append(2 * found.are_right[is_given].sum() / (is_given.sum() + there))
    return float(np.mean(values))


@settings(deadline=None)
@given(matches(), st.integers(1, 8))
def test_training_f1_is_never_worse_than_with_the_best_single_threshold(found, minimum):
    fit = fit_box_thresholds(found, minimum_boxes=minimum)
    labels = found.drawn.shape[1]
    singles = [f1_of(found, np.full(labels, cut)) for cut in np.unique(found.scores)]
    one = f1_of(found, np.full(labels, fit.single))
    assert one == pytest.approx(max(singles))
    assert f1_of(found, fit.thresholds) >= one - 1e-12
    assert fit.measured["fitted_each"]["macro_f1"] == pytest.approx(f1_of(found, fit.thresholds))
    assert fit.measured["fitted_single"]["macro_f1"] == pytest.approx(one)
    few = found.drawn.sum(axis=0) < minimum
    assert not fit.is_own[few].any()
    assert (fit.thresholds[~fit.is_own] == fit.single).all()
    assert ((fit.thresholds >= 0) & (fit.thresholds <= 1)).all()


@given(matches())
def test_the_best_f1_of_a_label_is_that_of_a_loop(found):
    there = int(found.are_right.sum()) + 2
    best = best_f1(found.scores, found.are_right, there)
    loop = max(
        2 * found.are_right[found.scores >= cut].sum() / ((found.scores >= cut).sum() + there)
        for cut in found.scores
    )
    assert best is not None
    assert best.f1 == pytest.approx(loop)
    is_given = found.scores >= best.threshold
    assert best.f1 == pytest.approx(2 * found.are_right[is_given].sum() / (is_given.sum() + there))


def test_nothing_right_has_no_threshold():
    assert best_f1(np.array([0.5]), np.array([False]), 3) is None
    assert best_f1(np.zeros(0), np.zeros(0, np.bool_), 3) is None
    nothing = Matches(
        *(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.bool_)),
        np.ones((2, 1), np.int64),
    )
    with pytest.raises(ValueError, match="nothing to learn"):
        fit_box_thresholds(nothing)


def test_labels_that_differ_gain_on_images_that_were_not_fitted_on():
    generator = np.random.default_rng(5)
    count, labels = 4000, 4
    own, where = generator.integers(0, labels, count), generator.integers(0, 60, count)
    are_right = generator.random(count) < 0.5
    level = np.array([0.2, 0.4, 0.6, 0.8])[own]
    scores = np.clip(
        level + np.where(are_right, 0.1, -0.1) + generator.normal(0, 0.05, count), 0, 1
    )
    drawn = np.zeros((60, labels), np.int64)
    np.add.at(drawn, (where[are_right], own[are_right]), 1)
    fit = fit_box_thresholds(Matches(where, own, scores, are_right, drawn))
    assert fit.parts == 10
    assert fit.is_helpful
    assert fit.thresholds == pytest.approx([0.2, 0.4, 0.6, 0.8], abs=0.06)
    measured = fit.measured
    assert measured["held_out_each"]["macro_f1"] > measured["held_out_single"]["macro_f1"] + 0.1
    assert measured["held_out_each"]["macro_f1"] <= measured["fitted_each"]["macro_f1"] + 0.01


def test_chance_does_not_help_and_is_not_taken_for_help():
    """Where labels are alike, thresholds of their own gain on their images and nothing on others."""
    generator = np.random.default_rng(2)
    count, labels = 300, 15
    own, where = generator.integers(0, labels, count), generator.integers(0, 30, count)
    are_right = generator.random(count) < 0.5
    scores = np.clip(
        0.5 + np.where(are_right, 0.08, -0.08) + generator.normal(0, 0.12, count), 0, 1
    )
    drawn = np.zeros((30, labels), np.int64)
    np.add.at(drawn, (where[are_right], own[are_right]), 1)
    fit = fit_box_thresholds(Matches(where, own, scores, are_right, drawn))
    assert fit.measured["fitted_each"]["macro_f1"] > fit.measured["fitted_single"]["macro_f1"]
    assert not fit.is_helpful


def test_one_image_says_nothing_of_others():
    one = Matches(
        *(np.zeros(4, np.int64), np.zeros(4, np.int64), np.array([0.9, 0.8, 0.3, 0.2])),
        np.array([True, True, False, False]),
        np.array([[2]]),
    )
    fit = fit_box_thresholds(one, minimum_boxes=1)
    assert fit.parts == 0
    assert set(fit.measured) == {"fitted_single", "fitted_each"}
    assert 0.3 < fit.thresholds[0] < 0.8
