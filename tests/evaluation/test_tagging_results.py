"""Means of some tags and of all decisions are what counting by hand gives."""

from __future__ import annotations

import numpy as np
import pytest

from annotary.evaluation import TagCounts, average_precision
from annotary.evaluation.tagging_results import (
    Tags,
    calibration,
    mean_precision,
    means,
    per_tag,
    precision_recall,
    slices,
)
from annotary.evaluation.tagging_streams import BoundedPrecision, ScoreHistograms

TRAINED = np.array([5, 60, 2_000, 4_999, 5_000, 100_000])


def measured() -> tuple[np.ndarray, np.ndarray, TagCounts, ScoreHistograms, BoundedPrecision, Tags]:
    """Six tags, of which no image has the last one, which is given all the same."""
    generator = np.random.default_rng(2)
    scores = generator.random((400, 6)).astype(np.float32)
    targets = generator.random((400, 6)) < scores**2
    targets[:, 5] = False
    counts, histograms = TagCounts(6), ScoreHistograms(6)
    counts.update(scores >= 0.5, targets)
    histograms.update(scores, targets)
    exact = average_precision(scores, targets)
    tags = Tags(tuple("abcdef"), ("x", "x", "y", "y", "", ""), np.arange(6), TRAINED, 1)
    return scores, targets, counts, histograms, BoundedPrecision(exact, exact, exact), tags


def test_a_tag_that_no_image_has_counts_in_micro_rates_alone():
    scores, targets, counts, *_ = measured()
    chosen = counts.support > 0
    found = means(counts, chosen, np.ones(6, bool))
    given = scores >= 0.5
    hits = (given & targets).sum()
    assert found["micro"]["precision"] == pytest.approx(hits / given.sum())
    assert found["micro"]["recall"] == pytest.approx(hits / targets.sum())
    expected = [(given & targets)[:, k].sum() / given[:, k].sum() for k in range(5)]
    assert found["macro"]["precision"] == pytest.approx(np.mean(expected))
    assert means(counts, chosen)["micro"]["precision"] > found["micro"]["precision"]
    nothing = means(counts, np.zeros(6, bool))
    assert nothing["macro"] == {"precision": None, "recall": None, "f1": None}


def test_slices_hold_every_tag_once():
    *_, counts, _, precision, tags = measured()
    found = slices(counts, precision, tags)
    assert [(one["name"], one["tags"]) for one in found["category"]] == [
        ("x", 2),
        ("y", 2),
        ("(none)", 1),
    ]
    assert [(one["name"], one["tags"]) for one in found["frequency"]] == [
        ("< 10", 1),
        ("50 to 99", 1),
        ("2,000 to 4,999", 2),
        ("5,000 to 19,999", 1),
    ]
    assert found["category"][0]["map"] == pytest.approx(precision.value[:2].mean())


def test_the_curve_is_what_each_threshold_gives():
    scores, targets, counts, histograms, *_ = measured()
    chosen = counts.support > 0
    points = precision_recall(histograms, chosen, np.ones(6, bool))
    assert len(points) > 50
    for point in points[:: len(points) // 7]:
        at = TagCounts(6)
        at.update(scores >= np.float32(point["threshold"]), targets)
        expected = means(at, chosen, np.ones(6, bool))
        for kind in ("micro", "macro"):
            for rate in ("precision", "recall", "f1"):
                assert point[f"{kind}_{rate}"] == pytest.approx(expected[kind][rate]), point


def test_mean_precision_calibration_and_every_tag():
    scores, targets, counts, histograms, precision, tags = measured()
    chosen = counts.support > 0
    found = mean_precision(precision, histograms, chosen)
    weights = targets.sum(axis=0)[:5]
    assert found["macro"] == pytest.approx(np.nanmean(precision.value))
    assert found["weighted"] == pytest.approx((precision.value[:5] @ weights) / weights.sum())
    assert found["macro_bounds"] == [found["macro"], found["macro"]]
    assert mean_precision(precision, histograms, np.zeros(6, bool))["macro"] is None
    bins = calibration(histograms)["by_width"]
    assert sum(one["entries"] for one in bins) == scores.size
    inside = (scores >= 0.5) & (scores < 0.6)
    (own,) = (one for one in bins if 0.5 <= one["score"] < 0.6)
    assert own["frequency"] == pytest.approx(targets[inside].mean(), abs=0.02)
    rows = per_tag(counts, precision, tags, np.full(6, 0.5, np.float32))
    assert [one["ap"] is None for one in rows] == [False] * 5 + [True]
    assert all(one["tp"] + one["tn"] + one["fp"] + one["fn"] == 400 for one in rows)
    assert rows[3]["trained"] == 4_999
