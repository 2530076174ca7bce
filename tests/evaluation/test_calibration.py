"""Calibration finds the temperature that data was made with, agrees with SciPy, and never makes scores worse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from annotary.evaluation import calibration as module
from annotary.evaluation.calibration import CalibrationOptions, Measured, Scale, calibrate
from annotary.tasks.calibration import Calibration
from annotary.tasks.label_sets import LabelSet
from annotary.tasks.zero_shot import ZeroShot, ZeroShotOptions
from tests.small_encoder import COLOURS, SmallEncoder, plain

LABELS = 5


def competing(count: int, temperature: float, seed: int = 0) -> tuple[Any, Any]:
    """Logits, and true labels drawn from their softmax at a temperature."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 4, (count, LABELS)).astype(np.float32)
    shares = Scale(LABELS, competes=True).scores(logits, temperature, 0.0)
    drawn = (shares.cumsum(axis=1) > generator.random((count, 1))).argmax(axis=1)
    return logits, np.eye(LABELS, dtype=bool)[drawn]


def independent(
    count: int, temperature: float, bias: float, backgrounds: int = 0
) -> tuple[Any, Any]:
    """Logits, and labels drawn one by one."""
    generator = np.random.default_rng(1)
    logits = generator.normal(0, 4, (count, LABELS + backgrounds)).astype(np.float32)
    scores = Scale(LABELS, competes=False).scores(logits, temperature, bias)
    return logits, generator.random(scores.shape) < scores


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_that_data_was_made_with_is_found(temperature):
    logits, targets = competing(4000, temperature)
    found = calibrate(logits, targets, Scale(LABELS, competes=True))
    assert found.temperature == pytest.approx(temperature, rel=0.1)
    assert found.bias == 0
    assert found.thresholds is None
    assert found.after.accuracy == found.before.accuracy
    assert found.after.nll <= found.before.nll
    if temperature != 1:
        assert found.after.calibration_error < found.before.calibration_error / 2


@pytest.mark.parametrize(("temperature", "bias", "backgrounds"), [(2.5, -2.0, 0), (0.5, 1.0, 3)])
def test_temperature_and_bias_that_data_was_made_with_are_found(temperature, bias, backgrounds):
    logits, targets = independent(4000, temperature, bias, backgrounds)
    found = calibrate(logits, targets, Scale(LABELS, competes=False))
    assert found.temperature == pytest.approx(temperature, rel=0.1)
    assert found.bias == pytest.approx(bias, abs=0.15)
    assert found.after.nll < found.before.nll
    assert found.after.calibration_error < found.before.calibration_error / 3
    assert found.after.accuracy is None


def test_fits_agree_with_scipy():
    optimize = pytest.importorskip("scipy.optimize")
    logits, targets = competing(60, 2.0)
    smooth = 1 / 62

    def loss_of_slope(slope: float) -> float:
        wide = logits.astype(np.float64) * slope
        wanted = (1 - smooth) * wide[targets] + smooth * wide.mean(axis=1)
        highest = wide.max(axis=1)
        powers = np.exp(wide - highest[:, None]).sum(axis=1)
        return float((highest + np.log(powers) - wanted).mean())

    best = optimize.minimize_scalar(loss_of_slope, bounds=(0.01, 100), method="bounded").x
    found = calibrate(logits, targets, Scale(LABELS, competes=True))
    assert 1 / found.temperature == pytest.approx(best, rel=1e-3)

    logits, targets = independent(60, 2.0, -1.0, 2)
    high, low = (targets.sum() + 1) / (targets.sum() + 2), 1 / ((~targets).sum() + 2)

    def platt(place: Any) -> float:
        slope = np.exp(place[0])
        scaled = logits.astype(np.float64) * slope
        level = np.log(np.exp(scaled[:, LABELS:]).mean(axis=1, keepdims=True))
        values = scaled[:, :LABELS] - level + place[1]
        wanted = np.where(targets, high, low)
        return float((np.logaddexp(0, values) - wanted * values).mean())

    best = optimize.minimize(platt, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-6})
    found = calibrate(logits, targets, Scale(LABELS, competes=False))
    assert np.log(found.temperature) == pytest.approx(-best.x[0], abs=2e-3)
    assert found.bias == pytest.approx(best.x[1], abs=2e-3)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("multi_label", [False, True])
def test_scores_are_those_of_the_task_with_the_calibration(kind, multi_label):
    model = SmallEncoder(kind)
    backgrounds = ("a photo.", "something") if kind == "softmax" else ()
    labels = LabelSet.of(list(COLOURS), background=backgrounds)
    options = ZeroShotOptions(multi_label=multi_label)
    raw = ZeroShot(model, labels, options)
    known = Calibration(model.card.id, multi_label, temperature=1.7, bias=-0.6)
    corrected = ZeroShot(model, labels, options, calibration=known)
    images = np.concatenate([model.embed_images(plain(colour)) for colour in COLOURS.values()])
    scale = Scale(len(COLOURS), competes=kind == "softmax" and not multi_label)
    scores = scale.scores(raw.logits(images), 1.7, -0.6)
    for row, logits in zip(scores, corrected.logits(images), strict=True):
        np.testing.assert_allclose(row, corrected.scores(logits)[0], atol=2e-6)


def test_thresholds_are_those_of_the_calibrated_scores():
    logits, targets = independent(1500, 2.0, -2.5)
    found = calibrate(logits, targets, Scale(LABELS, competes=False))
    assert found.thresholds is not None
    assert found.thresholds.shape == (LABELS,)
    assert found.before.macro_f1 is not None
    assert found.after.macro_f1 is not None
    assert found.after.macro_f1 >= found.before.macro_f1
    assert not found.unreachable
    without = CalibrationOptions(thresholds="none")
    plainly = calibrate(logits, targets, Scale(LABELS, competes=False), without)
    assert plainly.thresholds is plainly.after.macro_f1 is None
    assert plainly.temperature == found.temperature


def test_a_precision_is_kept_on_other_images():
    logits, targets = competing(4000, 2.0)
    options = CalibrationOptions(target_precision=0.9)
    found = calibrate(logits[:2000], targets[:2000], Scale(LABELS, competes=True), options)
    assert found.thresholds is not None
    scores = Scale(LABELS, competes=True).scores(logits[2000:], found.temperature, 0.0)
    given = scores >= found.thresholds
    precision = (given & targets[2000:]).sum() / given.sum()
    assert precision == pytest.approx(0.9, abs=0.04)
    assert found.after.precision == pytest.approx(0.9, abs=0.04)
    assert found.after.recall == pytest.approx(given[targets[2000:]].mean(), abs=0.05)


def test_a_precision_that_no_threshold_gives_is_told():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(200, 2)).astype(np.float32)
    targets = np.zeros((200, 2), bool)
    targets[:, 0] = generator.random(200) < 0.05
    targets[:, 1] = ~targets[:, 0]
    logits[:, 0] = -5.0  # never tells one image from another
    options = CalibrationOptions(target_precision=0.99)
    found = calibrate(logits, targets, Scale(2, competes=False), options)
    assert found.unreachable == (0,)
    assert found.thresholds is not None
    assert found.thresholds[0] == 1.0


def is_left(found: Any, message: str) -> bool:
    return (
        (found.temperature, found.bias, found.thresholds) == (1.0, 0.0, None)
        and found.before == found.after
        and any(message in note for note in found.notes)
    )


def test_too_little_says_nothing():
    scale = Scale(2, competes=True)
    logits = np.array([[3.0, 1.0]] * 3, np.float32)
    three = calibrate(logits, np.array([[True, False]] * 3), scale)
    assert is_left(three, "3 images are too few")
    many = np.repeat(logits, 10, axis=0)
    one_class = calibrate(many, np.array([[True, False]] * 30), scale)
    assert is_left(one_class, "all images have the same label")
    none = calibrate(many, np.zeros((30, 2), bool), Scale(2, competes=False))
    assert is_left(none, "all labels or none")
    one = np.zeros((30, 2), bool)
    one[7, 0] = True  # whichever part it is dealt to, the others have none
    assert is_left(calibrate(many, one, Scale(2, competes=False)), "only one image has a label")


def test_what_is_all_right_is_made_neither_infinitely_sure_nor_worse():
    generator = np.random.default_rng(0)
    targets = np.eye(2, dtype=bool)[generator.integers(0, 2, 40)]
    unsure = np.where(targets, 0.5, 0.0).astype(np.float32)
    found = calibrate(unsure, targets, Scale(2, competes=True))
    assert found.after.nll < found.before.nll
    confidence = Scale(2, competes=True).scores(unsure, found.temperature, 0.0).max()
    # all of 40 were right: of the next one that says 41 of 42, shared with the other label
    assert confidence == pytest.approx(1 - 0.5 / 42, abs=1e-4)
    sure = np.where(targets, 30.0, 0.0).astype(np.float32)
    kept = calibrate(sure, targets, Scale(2, competes=True))
    assert kept.temperature == 1.0
    assert "no better with a temperature" in kept.notes[0]


def test_what_is_worse_than_chance_ends_at_the_border():
    logits, targets = competing(300, 0.5)
    found = calibrate(-logits, targets, Scale(LABELS, competes=True))
    assert found.temperature == pytest.approx(100, rel=0.01)
    assert found.after.nll < found.before.nll


@pytest.mark.parametrize("competes", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_it_is_never_worse_than_before(competes, seed):
    generator = np.random.default_rng(seed)
    count = int(generator.integers(10, 60))
    logits = generator.normal(0, 3, (count, LABELS)).astype(np.float32)
    targets = np.eye(LABELS, dtype=bool)[generator.integers(0, LABELS, count)]
    options = CalibrationOptions(seed=seed)
    scale = Scale(LABELS, competes=competes)
    found = calibrate(logits, targets, scale, options)
    assert found.after.nll <= found.before.nll
    if found.thresholds is not None:
        assert found.after.macro_f1 >= found.before.macro_f1
    again = calibrate(logits, targets, scale, options)
    assert (found.temperature, found.bias, found.after) == (
        again.temperature,
        again.bias,
        again.after,
    )


def test_it_is_the_same_however_it_is_cut(monkeypatch):
    logits, targets = independent(333, 2.0, -1.0, 2)
    scale = Scale(LABELS, competes=False)
    whole = calibrate(logits, targets, scale)
    monkeypatch.setattr(module, "_ENTRIES", LABELS * 10)
    parts = calibrate(logits, targets, scale)
    assert parts.temperature == pytest.approx(whole.temperature, rel=1e-9)
    assert parts.bias == pytest.approx(whole.bias, abs=1e-9)
    assert parts.after.nll == pytest.approx(whole.after.nll, rel=1e-9)


def test_every_part_has_some_of_each_label():
    targets = np.eye(3, dtype=bool)[np.repeat([0, 1, 2], [50, 20, 7])]
    work = module._Work(
        np.zeros((77, 3)), targets, Scale(3, competes=True), CalibrationOptions(seed=4)
    )
    parts = work.parts()
    assert np.sum(parts, axis=0).tolist() == [1] * 77
    for part in parts:
        had = targets[part].sum(axis=0)
        assert (np.abs(had - np.array([10, 4, 1.4])) < 1).all()


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (np.zeros((0, 2), bool), "targets has shape"),
        (np.zeros((3, 3), bool), "targets has shape"),
        (np.zeros((3, 2), bool), "exactly one"),
        (np.ones((3, 2), bool), "exactly one"),
    ],
)
def test_what_does_not_fit_is_refused(targets, message):
    with pytest.raises(ValueError, match=message):
        calibrate(np.zeros((len(targets), 2)), targets, Scale(2, competes=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thresholds": "best"}, "thresholds must be auto, f1 or none"),
        ({"target_precision": 0.0}, "target_precision must be in"),
        ({"target_precision": 0.9, "thresholds": "f1"}, "target_precision chooses thresholds"),
        ({"seed": -1}, "seed must not be negative"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        CalibrationOptions(**options)


def test_too_many_scores_for_thresholds_are_refused(monkeypatch):
    monkeypatch.setattr(module, "MOST_SCORES", 100)
    logits, targets = independent(50, 1.0, 0.0)
    with pytest.raises(MemoryError, match="5 labels and 50 images"):
        calibrate(logits, targets, Scale(LABELS, competes=False))
    options = CalibrationOptions(thresholds="none")
    assert isinstance(
        calibrate(logits, targets, Scale(LABELS, competes=False), options).after, Measured
    )
