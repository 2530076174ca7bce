"""Turns logits into calibrated, independent probabilities, and chooses the thresholds of the presets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from annotary.evaluation.tagging import fit_thresholds
from recipes.starter.heads import Labels
from recipes.starter.tables import Vocabulary

Floats = npt.NDArray[np.float64]

_STEPS = 60
_SHRINKAGE = 50.0
"""How strongly the line of one tag is held to the line of all tags: in units of log-loss per squared difference."""

PRECISION_OF_PRECISE = 0.8
RECALL_OF_BROAD = 0.7

_LOWEST = {"balanced": 0.25, "precise": 0.5, "broad": 0.1}
"""No threshold is lower, so that a first look at the tags does not show guesses."""

_FEWEST = 3
"""Held-aside positives below which a tag's thresholds are at least those of the careful fall-back."""


@dataclass(frozen=True)
class Lines:
    """``probability = sigmoid(slope * logit + offset)`` for each tag."""

    slope: Floats
    """``[tags]``, above 0."""

    offset: Floats
    """``[tags]``."""

    def __call__(self, logits: npt.ArrayLike) -> Floats:
        """Probabilities ``[n, tags]``."""
        return sigmoid(np.asarray(logits, np.float64) * self.slope + self.offset)


def no_lines(tags: int) -> Lines:
    """Lines that leave logits as they are, where none are fitted yet."""
    return Lines(np.ones(tags), np.zeros(tags))


def sigmoid(values: npt.ArrayLike) -> Floats:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(values, np.float64)))


def fit_lines(logits: npt.ArrayLike, targets: npt.ArrayLike, weights: npt.ArrayLike) -> Lines:
    """Fit one line to all tags together, then each tag's own, held to the common one where examples are few.

    Args:
        logits: ``[n, tags]``, of held-aside images.
        targets: ``[n, tags]``, 0 or 1.
        weights: ``[n, tags]``, 0 or more.
    """
    values = np.asarray(logits, np.float64)
    truth, weight = np.asarray(targets, np.float64), np.asarray(weights, np.float64)
    slope, offset = _newton(
        values.reshape(-1, 1),
        truth.reshape(-1, 1),
        weight.reshape(-1, 1),
        np.array([0.0, 0.0]),
        1e-6,
    )
    centre = np.array([np.log(max(slope[0], 0.05)), offset[0]])
    slopes, offsets = _newton(values, truth, weight, centre, _SHRINKAGE)
    return Lines(slopes, offsets)


def _newton(
    values: Floats, truth: Floats, weight: Floats, centre: Floats, shrinkage: float
) -> tuple[Floats, Floats]:
    """Minimise log-loss plus shrinkage·distance² for every column; the slope is kept above 0 by its logarithm."""
    tags = values.shape[1]
    logarithm, offset = np.full(tags, centre[0]), np.full(tags, centre[1])
    for _ in range(_STEPS):
        slope = np.exp(logarithm)
        probability = sigmoid(values * slope + offset)
        error = weight * (probability - truth)
        curvature = weight * probability * (1 - probability)
        along = values * slope
        gradient_slope = (error * along).sum(0) + 2 * shrinkage * (logarithm - centre[0])
        gradient_offset = error.sum(0) + 2 * shrinkage * (offset - centre[1])
        # Gauss-Newton: positive definite, as the slope enters through its logarithm.
        slope_slope = (curvature * along**2).sum(0) + 2 * shrinkage + 1e-9
        slope_offset = (curvature * along).sum(0)
        offset_offset = curvature.sum(0) + 2 * shrinkage + 1e-9
        determinant = slope_slope * offset_offset - slope_offset**2
        step_slope = (offset_offset * gradient_slope - slope_offset * gradient_offset) / determinant
        step_offset = (slope_slope * gradient_offset - slope_offset * gradient_slope) / determinant
        logarithm = np.clip(logarithm - np.clip(step_slope, -0.5, 0.5), -3, 2)
        offset = offset - np.clip(step_offset, -1, 1)
    return np.exp(logarithm), offset


@dataclass(frozen=True)
class EvidenceLine:
    """Probability of tags that rest on ImageNet alone, on photos and on drawings."""

    slope: float
    """On photos."""

    offset: float
    """On photos."""

    slope_drawn: float
    """On drawings."""

    offset_drawn: float
    """On drawings."""

    def logits(self, evidence: npt.ArrayLike, is_drawing: npt.ArrayLike) -> Floats:
        """``[n, tags]`` from evidence ``[n, tags]`` and the probability ``[n, 1]`` that the image is drawn."""
        drawn = np.asarray(is_drawing, np.float64)
        slope = self.slope + (self.slope_drawn - self.slope) * drawn
        offset = self.offset + (self.offset_drawn - self.offset) * drawn
        return np.asarray(evidence, np.float64) * slope + offset


def fit_evidence(
    evidence: npt.ArrayLike, labels: Labels, vocabulary: Vocabulary, is_photo: npt.NDArray[np.bool_]
) -> EvidenceLine:
    """Fit on the tags that are ImageNet classes or hypernyms and whose truth other sources tell.

    No network of ours was trained on the evidence, so all images can be used. Tags count alike, however frequent.
    """
    values = np.asarray(evidence, np.float64)
    ends = []
    for rows in (is_photo, ~is_photo):
        positives = (labels.targets[rows] * labels.known[rows]).sum(0)
        share = positives / np.maximum(labels.known[rows].sum(0), 1)
        columns = vocabulary.is_named & (positives >= _FEWEST) & (share < 0.05)
        known = labels.known[np.ix_(rows, columns)].reshape(-1, 1).astype(float)
        truth = labels.targets[np.ix_(rows, columns)].reshape(-1, 1).astype(float)
        slope, offset = _newton(
            values[np.ix_(rows, columns)].reshape(-1, 1), truth, known, np.array([-1.0, -5.0]), 1e-6
        )
        ends += [float(slope[0]), float(offset[0])]
    return EvidenceLine(*ends)


def rank_shift(
    labels: Labels, rows: npt.NDArray[np.bool_], strength: float, centre: float
) -> Floats:
    """What is added to log-odds so that the best few of an image are not only the frequent tags.

    The calibrated probability of a tag that one photo in a thousand has is hardly ever among the five highest, even
    where the tag is right. Its score is therefore given for a collection in which it is less rare: a share `strength`
    of the log-odds of its frequency is taken out.

    Args:
        labels: Of all images.
        rows: ``[n]``, the training images.
        strength: 0 leaves probabilities as they are; 1 ranks as if all tags were equally frequent.
        centre: Frequency (0..1) whose scores stay the same.

    Returns:
        ``[tags]``; 0 for tags without training images.
    """
    positives = (labels.targets[rows] * labels.known[rows]).sum(0).astype(np.float64)
    known = labels.known[rows].sum(0)
    share = (positives + 0.5) / (known + 1)
    shift = -strength * (np.log(share / (1 - share)) - np.log(centre / (1 - centre)))
    return np.where(positives > 0, shift, 0.0)


def choose_thresholds(
    scores: npt.ArrayLike, labels: Labels, rows: npt.NDArray[np.bool_], fallback: dict[str, float]
) -> dict[str, Floats]:
    """Return preset name to thresholds ``[tags]``, chosen on held-aside images.

    Args:
        scores: ``[n, tags]``, probabilities of the images of `rows`.
        labels: Of all images.
        rows: ``[n]``, the held-aside images.
        fallback: Preset name to the careful threshold of tags with hardly any held-aside positives.
    """
    targets, known = labels.targets[rows] > 0, labels.known[rows]
    rules = {
        "balanced": {"rule": "f1"},
        "precise": {"rule": "precision", "at_least": PRECISION_OF_PRECISE},
        "broad": {"rule": "recall", "at_least": RECALL_OF_BROAD},
    }
    chosen: dict[str, Floats] = {}
    for preset, rule in rules.items():
        fitted = fit_thresholds(scores, targets, known, **rule)  # type: ignore[arg-type]
        is_rare = fitted.support < _FEWEST
        values = np.where(is_rare, np.maximum(fitted.pooled, fallback[preset]), fitted.values)
        chosen[preset] = np.clip(values, _LOWEST[preset], 0.99)
    chosen["precise"] = np.maximum(chosen["precise"], chosen["balanced"])
    chosen["broad"] = np.minimum(chosen["broad"], chosen["balanced"])
    return chosen
