"""Metrics of zero-shot classification, as in the protocol of CLIP: one vector a class, the nearest one is the answer.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", section 3.1: the vector of
a class is the normalised mean of its normalised prompts (`annotary.tasks.class_vectors`), an image is of the class with
the highest cosine, and of equals that with the lowest index.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from annotary.tasks.calibration import Calibration
from annotary.tasks.encoding import DualEncoder, Vectors

Floats: TypeAlias = npt.NDArray[np.floating[Any]]
Integers: TypeAlias = npt.NDArray[np.integer[Any]]

BINS = 15
"""Of the calibration error, as in Guo et al. 2017, table 1."""

_NORMAL_95 = 1.959963984540054
"""97.5 % of a normal distribution lie below."""


class Interval(NamedTuple):
    """Where a share lies with a certainty of 95 %.

    Attributes:
        low: In 0..1.
        high: In 0..1.
    """

    low: float
    high: float


class Ranks(NamedTuple):
    """What the scores of some images come to.

    Attributes:
        best: int64[b], the class with the highest score; of equals the lowest.
        rank: int64[b], the place of the true class, from 1; equals with a lower index come before it.
    """

    best: npt.NDArray[np.int64]
    rank: npt.NDArray[np.int64]


class Confusion(NamedTuple):
    """Images of one class that were taken for another.

    Attributes:
        true: The class that they have.
        taken_for: The class that they were given.
        images: How many.
        share: Of the images of the true class, 0..1.
    """

    true: int
    taken_for: int
    images: int
    share: float


class ZeroShotClassifier:
    """Class vectors that images are compared with.

    Args:
        model: Whose vectors they are.
        vectors: float32[classes, d], unit length, of `annotary.tasks.class_vectors.class_vectors`.
        normalises_classes: Standardise each coordinate over the classes, and images in the same way: the option
            "classnorm" of the evaluation of SLIP (Mu et al. 2021). Scores are no cosines then and no probabilities
            follow from them.
        calibration: Corrects confidences; it changes no score.
    """

    def __init__(
        self,
        model: DualEncoder,
        vectors: Vectors,
        *,
        normalises_classes: bool = False,
        calibration: Calibration | None = None,
    ) -> None:
        self._similarity = model.similarity
        self._calibration = calibration or Calibration(model.card.id)
        self._shift: Floats | None = None
        self._spread: Floats | None = None
        if normalises_classes:
            if len(vectors) < 2:
                raise ValueError("classes can be standardised when there are two or more")
            self._shift = vectors.mean(axis=0)
            spread = vectors.std(axis=0, ddof=1)  # as torch.std has it
            self._spread = np.where(spread > 0, spread, 1.0).astype(np.float32)
            vectors = ((vectors - self._shift) / self._spread).astype(np.float32)
        self._vectors = np.ascontiguousarray(vectors.T)

    def scores(self, images: Vectors) -> Floats:
        """Scores float32[b, classes] of unit vectors float32[b, d]: cosines, unless classes are standardised."""
        if self._shift is not None and self._spread is not None:
            images = np.asarray((images - self._shift) / self._spread, dtype=np.float32)
        return np.asarray(images @ self._vectors)

    def confidences(self, scores: Floats) -> Floats | None:
        """How sure the model is of the best class: float64[b] in 0..1; None where classes are standardised."""
        if self._shift is not None:
            return None
        logits = scores.astype(np.float64) * self._similarity.scale + self._similarity.bias
        logits /= self._calibration.temperature
        highest = logits.max(axis=1)
        if self._similarity.kind == "sigmoid":
            return np.asarray(0.5 * (1.0 + np.tanh(0.5 * (highest + self._calibration.bias))))
        return np.asarray(1.0 / np.exp(logits - highest[:, None]).sum(axis=1))


def ranks(scores: Floats, targets: Integers) -> Ranks:
    """The best class and the place of the true one.

    Args:
        scores: Real numbers [b, classes], higher means more likely.
        targets: The true class of each image, [b].

    Raises:
        ValueError: Shapes do not fit, a score is NaN, or there is no such class.
    """
    if scores.ndim != 2 or targets.shape != scores.shape[:1]:
        raise ValueError(f"scores {scores.shape} and targets {targets.shape} do not fit together")
    if np.isnan(scores).any():
        raise ValueError("scores holds NaN; expected numbers")
    if targets.size and not (targets.min() >= 0 and targets.max() < scores.shape[1]):
        raise ValueError(f"targets must be in 0..{scores.shape[1] - 1}")
    own = np.take_along_axis(scores, targets[:, None].astype(np.int64), axis=1)
    before = np.arange(scores.shape[1])[None, :] < targets[:, None]
    rank = 1 + (scores > own).sum(axis=1) + ((scores == own) & before).sum(axis=1)
    return Ranks(scores.argmax(axis=1).astype(np.int64), rank.astype(np.int64))


@dataclass(frozen=True, eq=False)
class ZeroShotResult:
    """How well images were classified.

    Attributes:
        images: How many.
        top1: The share whose class has the highest score, 0..1; NaN without images, as all shares are.
        top1_interval: Where it lies with a certainty of 95 %, if the images are a random sample.
        top5: The share whose class is among the best five; None with fewer than five classes.
        mean_per_class: The mean of the classes' shares; each class that has images counts the same.
        roc_auc: Of two classes: the probability that an image of the second has a higher score for it, less that for
            the first, than an image of the first; None with other numbers of classes, or when one has no images.
        mean_confidence: The mean probability of the best class; None where there is none.
        calibration_error: The expected calibration error of that; None where there is none.
        class_images: int64[classes], the images that each class has.
        class_right: int64[classes], those of them that were given it.
        confusions: All pairs of classes that were confused, the most images first.
    """

    images: int
    top1: float
    top1_interval: Interval
    top5: float | None
    mean_per_class: float
    roc_auc: float | None
    mean_confidence: float | None
    calibration_error: float | None
    class_images: npt.NDArray[np.int64]
    class_right: npt.NDArray[np.int64]
    confusions: tuple[Confusion, ...]

    @property
    def top1_and_top5(self) -> float | None:
        """The mean of both, which is what is reported on Kinetics700."""
        return None if self.top5 is None else (self.top1 + self.top5) / 2


class ZeroShotScore:
    """Adds up what became of images, batch by batch, in a few numbers an image.

    Args:
        classes: How many there are.
    """

    def __init__(self, classes: int) -> None:
        if classes < 1:
            raise ValueError(f"classes is {classes}; expected at least 1")
        self._classes = classes
        self._targets: list[Integers] = []
        self._best: list[Integers] = []
        self._ranks: list[Integers] = []
        self._confidences: list[Floats] = []
        self._margins: list[Floats] = []

    def update(self, scores: Floats, targets: Integers, confidences: Floats | None = None) -> Ranks:
        """Add a batch.

        Args:
            scores: Real numbers [b, classes], higher means more likely.
            targets: The true class of each image, [b].
            confidences: The probability of the best class, [b], 0..1; for all batches or for none.

        Raises:
            ValueError: Shapes do not fit, a score is NaN, or there is no such class. Nothing was added.
        """
        if scores.shape[1:] != (self._classes,):
            raise ValueError(f"scores has shape {scores.shape}; expected (b, {self._classes})")
        found = ranks(scores, targets)
        self._targets.append(targets.astype(np.int32))
        self._best.append(found.best.astype(np.int32))
        self._ranks.append(found.rank.astype(np.int32))
        if confidences is not None:
            self._confidences.append(confidences.astype(np.float32))
        if self._classes == 2:
            self._margins.append(scores[:, 1].astype(np.float64) - scores[:, 0])
        return found

    def result(self) -> ZeroShotResult:
        """What all batches together come to."""
        targets, best, rank = (_joined(part) for part in (self._targets, self._best, self._ranks))
        right = best == targets
        count = len(targets)
        of_class = np.bincount(targets, minlength=self._classes).astype(np.int64)
        class_right = np.bincount(targets[right], minlength=self._classes).astype(np.int64)
        has_images = of_class > 0
        shares = class_right[has_images] / of_class[has_images]
        auc, confidences = None, None
        if self._margins and has_images.all():
            auc = roc_auc(np.concatenate(self._margins), targets == 1)
        if self._confidences:
            confidences = np.concatenate(self._confidences).astype(np.float64)
        return ZeroShotResult(
            images=count,
            top1=float(right.mean()) if count else math.nan,
            top1_interval=wilson(int(right.sum()), count),
            top5=float((rank <= 5).mean()) if self._classes >= 5 and count else None,
            mean_per_class=float(shares.mean()) if count else math.nan,
            roc_auc=auc,
            mean_confidence=None if confidences is None else float(confidences.mean()),
            calibration_error=(
                None if confidences is None else expected_calibration_error(confidences, right)
            ),
            class_images=of_class,
            class_right=class_right,
            confusions=_confusions(targets[~right], best[~right], of_class),
        )


def _confusions(
    targets: Integers, best: Integers, of_class: npt.NDArray[np.int64]
) -> tuple[Confusion, ...]:
    """All pairs of a true class and another that was given, the most images first."""
    classes = len(of_class)
    pairs, counts = np.unique(targets.astype(np.int64) * classes + best, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    found = []
    for pair, images in zip(pairs[order].tolist(), counts[order].tolist(), strict=True):
        true, other = divmod(pair, classes)
        found.append(Confusion(true, other, images, images / int(of_class[true])))
    return tuple(found)


def wilson(right: int, total: int) -> Interval:
    """Where a share lies with a certainty of 95 %: the interval of Wilson 1927, which holds for few images, too.

    Args:
        right: How many of them.
        total: Of how many; of none, nothing is known.
    """
    if not 0 <= right <= total:
        raise ValueError(f"right is {right}; expected 0..{total}")
    if total == 0:
        return Interval(0.0, 1.0)
    square = _NORMAL_95**2
    share = right / total
    middle = (share + square / (2 * total)) / (1 + square / total)
    reach = math.sqrt(share * (1 - share) / total + square / (4 * total**2))
    reach *= _NORMAL_95 / (1 + square / total)
    return Interval(max(0.0, middle - reach), min(1.0, middle + reach))


def expected_calibration_error(
    confidences: Floats, right: npt.NDArray[np.bool_], bins: int = BINS
) -> float:
    """The mean distance between confidence and accuracy, in bins of equal width: Guo et al. 2017, equation 3.

    Args:
        confidences: [n], in 0..1.
        right: [n], whether the answer was right.
        bins: At least 1. A confidence on the border of two is in the lower one.

    Returns:
        In 0..1; 0 without entries.
    """
    if bins < 1:
        raise ValueError(f"bins is {bins}; expected at least 1")
    if confidences.size and not (confidences.min() >= 0 and confidences.max() <= 1):
        raise ValueError("confidences must be in 0..1")
    place = np.clip(np.ceil(confidences * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(place, weights=confidences - right, minlength=bins)
    return float(np.abs(gaps).sum() / max(1, confidences.size))


def roc_auc(scores: Floats, targets: npt.NDArray[np.bool_]) -> float:
    """The probability that a positive has a higher score than a negative; a tie counts half.

    Args:
        scores: Real numbers [n].
        targets: [n], whether it is a positive; there must be both.

    Raises:
        ValueError: There are no positives or no negatives.
    """
    positives = int(targets.sum())
    negatives = len(targets) - positives
    if not positives or not negatives:
        raise ValueError("targets must hold positives and negatives")
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2  # the mean rank of equals, from 1
    total = float(middle[place.reshape(-1)][targets].sum())
    return (total - positives * (positives + 1) / 2) / (positives * negatives)


def _joined(parts: list[Integers]) -> Integers:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)
