"""Calibration of zero-shot scores on labelled images: temperature, bias, thresholds, and what they are good for.

Scores follow from logits as in `annotary.tasks.zero_shot`. Labels that compete get one temperature, which minimises the
negative log-likelihood (Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2); labels that are
judged one by one get a temperature and a bias (Platt 1999). Targets are not 0 and 1 but what is to be expected after as
many examples (Platt 1999, section 2.2), so that a few images, all of them right, do not make a model infinitely sure.

What is told of the result is measured on images that it was not fitted on: the images are dealt into parts, each part
is scored with what the others give. Where that is worse than no calibration, there is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from annotary.evaluation.tagging import TagCounts, calibration_error, fit_thresholds
from annotary.evaluation.zero_shot import expected_calibration_error

Floats: TypeAlias = npt.NDArray[np.float64]
Booleans: TypeAlias = npt.NDArray[np.bool_]
Integers: TypeAlias = npt.NDArray[np.int64]

LEAST_IMAGES = 10
"""Below this nothing is fitted: a share of ten images is uncertain by 30 points."""

FOLDS = 5
"""Parts that images are dealt into."""

MOST_SCORES = 100_000_000
"""Scores that thresholds are chosen from, which lie in memory together."""

_COOLEST, _HOTTEST = 0.01, 100.0
"""Temperatures that are looked at."""

_ENTRIES = 1 << 22
"""Logits that are worked on at a time, 32 MiB."""

_STEPS = 60
_SMALL = 1e-9


class Logits(Protocol):
    """The logits of images, float[n, labels + background prompts]; an array, or what computes them when asked."""

    def __len__(self) -> int:
        """How many images."""

    def __getitem__(self, rows: slice, /) -> npt.NDArray[np.floating[Any]]:
        """Those of some images."""


@dataclass(frozen=True, slots=True)
class Measured:
    """How good scores are.

    Attributes:
        nll: The mean negative log-likelihood: of the true label, or of what is said of each label.
        calibration_error: In 0..1: of the best label (bins of equal width), or of all scores (bins of equal mass).
        accuracy: The share of images whose best label is true; None where labels are judged one by one.
        mean_confidence: The mean score of the best label; None where labels are judged one by one.
        macro_f1: The mean of the labels' F1 at their thresholds, 0.5 before; None without thresholds.
        precision: The share of all given labels that are true, at the thresholds; None without thresholds.
        recall: The share of all true labels that are given, at the thresholds; None without thresholds.
    """

    nll: float
    calibration_error: float
    accuracy: float | None = None
    mean_confidence: float | None = None
    macro_f1: float | None = None
    precision: float | None = None
    recall: float | None = None


@dataclass(frozen=True, eq=False)
class Fit:
    """What labelled images say about scores.

    Attributes:
        temperature: Logits are divided by it.
        bias: Is added to the divided logits of labels that are judged one by one.
        thresholds: float64[labels], or None.
        unreachable: Places of labels that no threshold gives the precision that was asked for; their threshold is 1.
        before: Without calibration.
        after: With what was fitted on other images.
        notes: What was not done, and why, in words.
    """

    temperature: float
    bias: float
    thresholds: Floats | None
    unreachable: tuple[int, ...]
    before: Measured
    after: Measured
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    """What is fitted."""

    thresholds: Literal["auto", "f1", "none"] = "auto"
    """A threshold for each label: f1 gives the best F1, drawn towards that of all labels where examples are few; auto
    does so when labels are judged one by one, and gives none when they compete."""

    target_precision: float | None = None
    """Thresholds from which on so large a share of what is given is right, 0..1."""

    seed: int = 0
    """Of the dealing of images into parts that are measured with what the others give."""

    def __post_init__(self) -> None:
        if self.thresholds not in ("auto", "f1", "none"):
            raise ValueError(f"thresholds must be auto, f1 or none, but got {self.thresholds!r}")
        if self.target_precision is not None and not 0.0 < self.target_precision <= 1.0:
            raise ValueError(f"target_precision must be in 0..1, but got {self.target_precision}")
        if self.target_precision is not None and self.thresholds != "auto":
            raise ValueError("target_precision chooses thresholds itself; leave out --thresholds")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, but got {self.seed}")


class Scale:
    """How logits become scores, for labels that compete or are judged one by one.

    Args:
        labels: How many columns of the logits are labels; those behind are background prompts.
        competes: Whether labels compete.
    """

    def __init__(self, labels: int, *, competes: bool) -> None:
        self.labels = labels
        self.competes = competes

    def scores(
        self, logits: npt.NDArray[np.floating[Any]], temperature: float, bias: float
    ) -> Floats:
        """Scores float64[b, labels] in 0..1 of logits [b, labels + background prompts]."""
        if self.competes:
            return np.exp(self._log_softmax(logits, 1.0 / temperature))[:, : self.labels]
        margins, _ = self.margins(logits, 1.0 / temperature)
        return _sigmoid(margins + bias)

    def margins(self, logits: npt.NDArray[np.floating[Any]], slope: float) -> tuple[Floats, Floats]:
        """Logits of labels that are judged one by one, before the bias, and how they change with the slope.

        Args:
            logits: [b, labels + background prompts].
            slope: One over the temperature.
        """
        wide = logits.astype(np.float64)
        own, others = wide[:, : self.labels], wide[:, self.labels :]
        if not others.shape[1]:
            return own * slope, own
        scaled = others * slope
        highest = scaled.max(axis=1, keepdims=True)
        powers = np.exp(scaled - highest)
        total = powers.sum(axis=1, keepdims=True)
        level = highest + np.log(total / others.shape[1])
        return own * slope - level, own - (powers * others).sum(axis=1, keepdims=True) / total

    def _log_softmax(self, logits: npt.NDArray[np.floating[Any]], slope: float) -> Floats:
        scaled = logits.astype(np.float64) * slope
        scaled -= scaled.max(axis=1, keepdims=True)
        return np.asarray(scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True)))


def calibrate(
    logits: Logits,
    targets: Booleans,
    scale: Scale,
    options: CalibrationOptions | None = None,
) -> Fit:
    """Fit a calibration.

    Args:
        logits: Of each image, without calibration.
        targets: bool[n, labels]; of labels that compete each image has exactly one.
        scale: How they become scores.
        options: What is fitted.

    Raises:
        ValueError: Shapes do not fit, there are no images, or labels compete and an image has not exactly one.
        MemoryError: Thresholds would need more scores than `MOST_SCORES`.
    """
    options = options or CalibrationOptions()
    if targets.ndim != 2 or targets.shape != (len(logits), scale.labels) or not len(targets):
        raise ValueError(
            f"targets has shape {targets.shape}; expected ({len(logits)}, {scale.labels})"
        )
    if scale.competes and not (targets.sum(axis=1) == 1).all():
        raise ValueError("of labels that compete, an image must have exactly one")
    work = _Work(logits, targets, scale, options)
    before = work.measured([(work.all, 1.0, 0.0, work.halves)])
    if reason := work.reason_to_leave():
        return Fit(1.0, 0.0, None, (), before, before, (reason,))
    _, temperature, bias, thresholds = work.part(work.all)
    parts = [work.part(kept, near=(temperature, bias)) for kept in work.parts()]
    after = work.measured(parts)
    notes: list[str] = []
    if not after.nll < before.nll:
        notes.append("the scores are no better with a temperature, so it stays 1")
        parts = [work.part(kept, is_fitted=False) for kept in work.parts()]
        _, temperature, bias, thresholds = work.part(work.all, is_fitted=False)
        after = work.measured(parts)
    if (
        thresholds is not None
        and options.target_precision is None
        and (after.macro_f1 or 0.0) < (before.macro_f1 or 0.0)
    ):
        notes.append(
            "thresholds of their own make F1 no better than 0.5 for all, so there are none"
        )
        thresholds = None
        # scores stay those of the calibration, thresholds those of before
        after = work.measured([(kept, t, b, work.halves) for kept, t, b, _ in parts])
    lost = () if thresholds is None else tuple(np.flatnonzero(~np.isfinite(thresholds)).tolist())
    if thresholds is not None:
        thresholds = np.clip(np.where(np.isfinite(thresholds), thresholds, 1.0), 0.0, 1.0)
    return Fit(temperature, bias, thresholds, lost, before, after, tuple(notes))


_Part: TypeAlias = tuple[Booleans, float, float, Floats | None]
"""The images that something was fitted for, the temperature, the bias, the thresholds."""


class _Work:
    """The parts of `calibrate`."""

    def __init__(
        self, logits: Logits, targets: Booleans, scale: Scale, options: CalibrationOptions
    ) -> None:
        self._logits, self._targets, self._scale, self._options = logits, targets, scale, options
        self.all = np.ones(len(targets), dtype=np.bool_)
        f1 = options.thresholds == "f1" or (options.thresholds == "auto" and not scale.competes)
        self._has_thresholds = f1 or options.target_precision is not None
        if self._has_thresholds and targets.size > MOST_SCORES:
            raise MemoryError(
                f"thresholds for {scale.labels:,} labels and {len(targets):,} images need too much memory"
            )
        self.halves = np.full(scale.labels, 0.5) if self._has_thresholds else None

    def reason_to_leave(self) -> str:
        """Why nothing can be fitted; empty when it can."""
        count = len(self._targets)
        if count < LEAST_IMAGES:
            return f"{count} images are too few to fit anything ({LEAST_IMAGES} are needed)"
        entries = self._targets.any(axis=0)
        if self._scale.competes and entries.sum() < 2:
            return "all images have the same label, which says nothing of the others"
        if self._targets.all() or not self._targets.any():
            return "the images have all labels or none, which says nothing of scores"
        if self._targets.any(axis=1).sum() < 2:
            # Whatever part it is dealt to, the others have no label to learn from.
            return "only one image has a label, which says too little of scores"
        return ""

    def parts(self) -> list[Booleans]:
        """The images of each part. They are dealt by label, so that every part has some of each."""
        generator = np.random.default_rng(self._options.seed)
        counts = self._targets.sum(axis=0)
        # Of several labels the rarest decides, as it is the hardest to deal.
        rarity = np.where(self._targets, counts, np.iinfo(np.int64).max)
        group = np.where(self._targets.any(axis=1), rarity.argmin(axis=1), -1)
        shuffled = generator.permutation(len(group))
        order = shuffled[np.argsort(group[shuffled], kind="stable")]
        part = np.empty(len(group), dtype=np.int64)
        part[order] = np.arange(len(group)) % FOLDS
        return [part == number for number in range(FOLDS)]

    def part(
        self, kept: Booleans, *, near: tuple[float, float] = (1.0, 0.0), is_fitted: bool = True
    ) -> _Part:
        """What other images give for some: for all images, what all give.

        Args:
            kept: Those that it is for.
            near: Temperature and bias that the best ones are near to; it only saves time.
            is_fitted: Whether there are a temperature and a bias.
        """
        rows = kept if kept.all() else ~kept
        temperature, bias = (1.0, 0.0) if not is_fitted else self._fit(rows, near)
        return kept, temperature, bias, self._thresholds(rows, temperature, bias)

    def measured(self, parts: list[_Part]) -> Measured:
        """How good the scores of images are, each with what its part was given."""
        losses, confidences, rights = [], [], []
        every = np.zeros(self._targets.shape, np.float32) if not self._scale.competes else None
        counts = TagCounts(self._scale.labels)
        for kept, temperature, bias, thresholds in parts:
            for rows, logits in self._blocks(kept):
                true = self._targets[rows]
                scores = self._scale.scores(logits, temperature, bias)
                losses.append(self._losses(scores, true))
                best = scores.argmax(axis=1)
                confidences.append(scores.max(axis=1))
                rights.append(true[np.arange(len(true)), best])
                if every is not None:
                    every[rows] = scores
                if thresholds is not None:
                    counts.update(scores >= thresholds, true)
        best, right = np.concatenate(confidences), np.concatenate(rights)
        if every is None:
            error = expected_calibration_error(np.minimum(best, 1.0), right)
        else:
            error = calibration_error(every, self._targets)
        found = Measured(float(np.concatenate(losses).mean()), error)
        if self._scale.competes:
            found = replace(found, accuracy=float(right.mean()), mean_confidence=float(best.mean()))
        if parts[0][3] is None:
            return found
        pooled, macro = counts.micro(), counts.macro(minimum_support=1)
        return replace(found, macro_f1=macro.f1, precision=pooled.precision, recall=pooled.recall)

    def _losses(self, scores: Floats, true: Booleans) -> Floats:
        tiny = np.finfo(np.float64).tiny
        if self._scale.competes:
            return -np.log(np.maximum(scores[true], tiny))
        said = np.where(true, scores, 1.0 - scores)
        return np.asarray(-np.log(np.maximum(said, 1e-16)).mean(axis=1))

    def _fit(self, rows: Booleans, near: tuple[float, float]) -> tuple[float, float]:
        if self._scale.competes:
            return self._fit_temperature(rows, near[0]), 0.0
        return self._fit_temperature_and_bias(rows, near)

    def _fit_temperature(self, rows: Booleans, near: float) -> float:
        """The temperature with the best likelihood. The likelihood has one best slope, as it is convex in it."""
        low, high, slope = 1.0 / _HOTTEST, 1.0 / _COOLEST, 1.0 / near
        for _ in range(_STEPS):
            rise, bend = self._rise(rows, slope)
            low, high = (slope, high) if rise < 0 else (low, slope)
            following = slope - rise / bend if bend > _SMALL else -1.0
            if not low < following < high:
                following = float(np.sqrt(low * high))
            if abs(following - slope) < 1e-6 * slope:
                break
            slope = following
        return 1.0 / slope

    def _rise(self, rows: Booleans, slope: float) -> tuple[float, float]:
        """How the mean loss changes with the slope, and how that does."""
        smooth = 1.0 / (rows.sum() + 2.0)
        rise = bend = 0.0
        for chosen, logits in self._blocks(rows):
            wide = logits.astype(np.float64)
            wide -= wide.max(axis=1, keepdims=True)
            powers = np.exp(wide * slope)
            shares = powers / powers.sum(axis=1, keepdims=True)
            mean = (shares * wide).sum(axis=1)
            true = wide[:, : self._scale.labels][self._targets[chosen]]
            rise += float((mean - (1 - smooth) * true - smooth * wide.mean(axis=1)).sum())
            bend += float(((shares * wide**2).sum(axis=1) - mean**2).sum())
        return rise / rows.sum(), bend / rows.sum()

    def _fit_temperature_and_bias(
        self, rows: Booleans, near: tuple[float, float]
    ) -> tuple[float, float]:
        """Temperature and bias with the best likelihood: Fisher's scoring, damped so that no step makes it worse."""
        place = np.array([-np.log(near[0]), near[1]])  # the logarithm of the slope, and the bias
        damping = 1e-3
        loss, rise, bend = self._platt(rows, place)
        for _ in range(_STEPS):
            step = np.linalg.solve(bend + damping * np.diag(np.diag(bend) + _SMALL), -rise)
            there = place + np.clip(step, -2.0, 2.0)
            there[0] = np.clip(there[0], -np.log(_HOTTEST), -np.log(_COOLEST))
            next_loss, next_rise, next_bend = self._platt(rows, there)
            if next_loss > loss:
                damping *= 10.0
                if damping > 1e8:
                    break
                continue
            gained, place = loss - next_loss, there
            loss, rise, bend = next_loss, next_rise, next_bend
            damping = max(damping / 10.0, 1e-9)
            if gained < 1e-10:
                break
        return float(np.exp(-place[0])), float(place[1])

    def _platt(self, rows: Booleans, place: Floats) -> tuple[float, Floats, Floats]:
        """The mean loss with Platt's targets, how it changes with both numbers, and how that does."""
        slope, bias = float(np.exp(place[0])), place[1]
        true_count = float(self._targets[rows].sum())
        false_count = float(rows.sum() * self._scale.labels - true_count)
        high, low = (true_count + 1) / (true_count + 2), 1 / (false_count + 2)
        loss, rise, bend = 0.0, np.zeros(2), np.zeros((2, 2))
        for chosen, logits in self._blocks(rows):
            margins, change = self._scale.margins(logits, slope)
            values, change = margins + bias, change * slope
            wanted = np.where(self._targets[chosen], high, low)
            loss += float((np.logaddexp(0.0, values) - wanted * values).sum())
            scores = _sigmoid(values)
            off, weight = scores - wanted, scores * (1 - scores)
            rise += [float((off * change).sum()), float(off.sum())]
            cross = float((weight * change).sum())
            bend += [[float((weight * change**2).sum()), cross], [cross, float(weight.sum())]]
        entries = rows.sum() * self._scale.labels
        return loss / entries, rise / entries, bend / entries

    def _thresholds(self, rows: Booleans, temperature: float, bias: float) -> Floats | None:
        if not self._has_thresholds:
            return None
        scores = np.zeros((int(rows.sum()), self._scale.labels), np.float32)
        start = 0
        for chosen, logits in self._blocks(rows):
            scores[start : start + len(chosen)] = self._scale.scores(logits, temperature, bias)
            start += len(chosen)
        least = self._options.target_precision
        rule: Literal["f1", "precision"] = "f1" if least is None else "precision"
        return fit_thresholds(scores, self._targets[rows], rule=rule, at_least=least).values

    def _blocks(self, rows: Booleans) -> Iterator[tuple[Integers, npt.NDArray[np.floating[Any]]]]:
        """Places of images and their logits, a bounded number at a time."""
        step = max(1, _ENTRIES // max(1, self._scale.labels))
        for start in range(0, len(rows), step):
            chosen = np.flatnonzero(rows[start : start + step])
            if len(chosen):
                yield chosen + start, self._logits[start : start + step][chosen]


def _sigmoid(logits: Floats) -> Floats:
    # exp of a large number would overflow; the half of a tanh is the same and does not
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)))
