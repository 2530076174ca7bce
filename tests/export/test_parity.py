"""The comparison of two models, and the photos that it is made on."""

from __future__ import annotations

import json

import numpy as np
import pytest

from annotary.cards import PreprocessSpec, Vocabulary
from annotary.errors import UsageError
from annotary.export._parity import compare
from annotary.export._photos import Photos, _sample, drawn
from annotary.records import Failure, Item
from annotary.runtime import Choice

SPEC = PreprocessSpec(size=(8, 8))


class Given:
    """A tagger that gives scores as they are told."""

    def __init__(self, scores: list[list[float]]) -> None:
        self.vocabulary = Vocabulary(("red", "green", "blue"), ("",) * 3)
        self.choice = Choice("Given 1.0", "cpu", "fp32", 1, 1, "told")
        self._scores = iter(np.array(scores, np.float32))

    def tag_scores(self, batch: np.ndarray) -> np.ndarray:
        return np.stack([next(self._scores) for _ in batch])


def test_differences_and_flips_are_counted():
    before = Given([[0.9, 0.5, 0.1], [0.8, 0.2, 0.1], [0.7, 0.1, 0.6]])
    now = Given([[0.8, 0.3, 0.1], [0.8, 0.45, 0.1], [0.7, 0.1, 0.3]])
    images = np.zeros((1, 3, 8, 8), np.float32)
    thresholds = np.array([0.4, 0.4, 0.5], np.float32)
    found = compare(before, now, [images, images, images], thresholds, calibrated_on=7)
    assert (found.compared_on, found.calibrated_on) == (3, 7)
    assert found.largest_difference == pytest.approx(0.3)
    assert found.mean_difference == pytest.approx((0.1 + 0.2 + 0.25 + 0.3) / 9)
    assert (found.tags, found.flips) == (5, 3)
    assert found.flipped_share == pytest.approx(3 / 6)
    assert [(w.name, w.flips) for w in found.worst] == [("green", 2), ("blue", 1)]
    assert found.worst[0].largest_difference == pytest.approx(0.25)
    assert found.speed_ratio > 0
    text = "\n".join(found.lines())
    assert "compared on 3 photos, apart from the 7 that calibrated" in text
    assert "3 tags appear or disappear at the threshold, of 5 (50.0%)" in text
    assert "most: green (2), blue (1)" in text
    assert json.loads(found.to_json())["worst"][1]["name"] == "blue"


def test_the_same_scores_have_no_difference():
    scores = [[0.9, 0.5, 0.1]]
    images = np.zeros((1, 3, 8, 8), np.float32)
    found = compare(
        Given(scores), Given(scores), [images], np.full(3, 0.4, np.float32), calibrated_on=0
    )
    assert (found.largest_difference, found.flips, found.worst) == (0.0, 0, ())
    assert "most:" not in "\n".join(found.lines())


def test_photos_that_calibrate_are_not_compared_on(calibration):
    with Photos([str(calibration)], SPEC, 12) as photos:
        used = [batch.tobytes() for batch in photos.calibrating()]
        apart = [batch.tobytes() for batch in photos.comparing()]
        again = [batch.tobytes() for batch in photos.calibrating()]
    assert (len(used), photos.calibrated) == (12, 12)
    assert 5 <= len(apart) <= 6  # the file that is none may be among those that were chosen
    assert not set(used) & set(apart)
    assert used == again
    assert next(drawn(SPEC, 1)).shape == (1, 3, 8, 8)


def test_few_photos_are_shared_out(calibration):
    with Photos([str(calibration)], SPEC, 1000) as photos:
        assert photos.calibrated == 16
        assert len(list(photos.comparing())) == 8


def test_a_place_without_photos_is_refused(tmp_path):
    with pytest.raises(UsageError):
        Photos([str(tmp_path / "nowhere")], SPEC, 12)


def test_a_sample_is_fair_bounded_and_always_the_same():
    items = [Item(str(i), data=b"x") for i in range(1000)]
    failures = [Failure("broken", "UnreachableImage", "gone")]
    first = _sample([*items, *failures], 50)
    assert [i.image for i in first] == [i.image for i in _sample(iter(items), 50)]
    assert len({i.image for i in first}) == 50
    halves = sum(int(i.image) < 500 for i in first)
    assert 12 <= halves <= 38
    assert len(_sample(items[:9], 50)) == 9


def test_drawn_pictures_are_always_the_same():
    uint8 = PreprocessSpec(size=(5, 7), layout="nhwc", dtype="uint8")
    first, second = (np.concatenate(list(drawn(uint8, 3))) for _ in range(2))
    assert first.shape == (3, 5, 7, 3)
    assert np.array_equal(first, second)
    assert first.std() > 10
