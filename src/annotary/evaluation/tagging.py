"""Metrics of multi-label tagging: counts, average precision, Corel5k's protocol, thresholds, calibration.

Every function takes arrays of shape [n, t], a row per image and a column per tag:

* `scores`: any real numbers, higher means more likely. NaN is refused.
* `targets`: whether the image has the tag, as bool or as the numbers 0 and 1.
* `known`: whether the target is known; None means all are. Entries that are not known count nowhere.

A tag is predicted where its score is at or above the threshold. A ratio of 0 to 0 is 0, as in JoyTag's
``full-metrics.txt``, unless said otherwise. The mean over tags (macro) and the ratio of sums (micro) of one model
differ by ten points and more, so a result always names which it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Scores: TypeAlias = npt.NDArray[np.floating[Any]]
Integers: TypeAlias = npt.NDArray[np.int64]
Booleans: TypeAlias = npt.NDArray[np.bool_]

_ROWS_AT_ONCE = 1024
"""Rows that are ranked at a time, so that the ranks of a large table never lie in memory as a whole."""


@dataclass(frozen=True)
class Summary:
    """Precision, recall and F1 over many tags.

    Attributes:
        precision: In 0..1.
        recall: In 0..1.
        f1: In 0..1. For a macro or weighted summary the mean of the tags' F1, not the F1 of the means.
    """

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, eq=False)
class TagRates:
    """Precision, recall and F1 of each tag.

    Attributes:
        precision: [t], in 0..1; 0 for a tag that was never predicted.
        recall: [t], in 0..1; 0 for a tag that no image has.
        f1: [t], in 0..1.
        support: [t], the images that have the tag.
    """

    precision: Floats
    recall: Floats
    f1: Floats
    support: Integers


class TagCounts:
    """True and false positives and negatives of each tag, added up batch by batch in flat memory.

    Args:
        tags: How many tags there are.
    """

    def __init__(self, tags: int) -> None:
        if tags < 1:
            raise ValueError(f"tags is {tags}; expected at least 1")
        self.true_positives: Integers = np.zeros(tags, dtype=np.int64)
        self.false_positives: Integers = np.zeros(tags, dtype=np.int64)
        self.false_negatives: Integers = np.zeros(tags, dtype=np.int64)
        self.true_negatives: Integers = np.zeros(tags, dtype=np.int64)

    @property
    def tags(self) -> int:
        """How many tags there are."""
        return int(self.true_positives.size)

    @property
    def support(self) -> Integers:
        """Images that have the tag, [t]."""
        return self.true_positives + self.false_negatives

    def update(
        self,
        predictions: npt.ArrayLike,
        targets: npt.ArrayLike,
        known: npt.ArrayLike | None = None,
    ) -> None:
        """Add a batch.

        Args:
            predictions: Whether the tag was predicted, bool or 0 and 1, [b, t].
            targets: Whether the image has the tag, [b, t].
            known: Whether the target is known, [b, t]; None means all are.

        Raises:
            ValueError: A shape does not fit, or an entry is neither true nor false. Nothing was added.
        """
        predicted = _booleans("predictions", predictions)
        if predicted.ndim != 2 or predicted.shape[1] != self.tags:
            raise ValueError(f"predictions has shape {predicted.shape}; expected (b, {self.tags})")
        true, mask = _targets(targets, known, predicted.shape, "predictions")
        seen = np.full(self.tags, len(mask)) if known is None else mask.sum(axis=0)
        hits = (predicted & true & mask).sum(axis=0)
        called = (predicted & mask).sum(axis=0)
        had = (true & mask).sum(axis=0)
        self.true_positives += hits
        self.false_positives += called - hits
        self.false_negatives += had - hits
        self.true_negatives += seen - called - had + hits

    def merge(self, other: TagCounts) -> None:
        """Add the counts of another part of the same data.

        Raises:
            ValueError: The other counts a different number of tags.
        """
        if other.tags != self.tags:
            raise ValueError(f"other counts {other.tags} tags; expected {self.tags}")
        self.true_positives += other.true_positives
        self.false_positives += other.false_positives
        self.false_negatives += other.false_negatives
        self.true_negatives += other.true_negatives

    def rates(self) -> TagRates:
        """Return precision, recall and F1 of each tag."""
        errors = self.false_positives + self.false_negatives
        return TagRates(
            precision=_ratio(self.true_positives, self.true_positives + self.false_positives),
            recall=_ratio(self.true_positives, self.support),
            f1=_ratio(2 * self.true_positives, 2 * self.true_positives + errors),
            support=self.support,
        )

    def macro(self, *, minimum_support: int = 0) -> Summary:
        """Return the means over the tags, each tag counting the same.

        Args:
            minimum_support: Leave out tags that fewer images have. JoyTag's F1 of 0.578 leaves out none.
        """
        rates = self.rates()
        kept = rates.support >= minimum_support
        if not kept.any():
            return Summary(0.0, 0.0, 0.0)
        return Summary(*(float(x[kept].mean()) for x in (rates.precision, rates.recall, rates.f1)))

    def micro(self) -> Summary:
        """Return the rates of the summed counts, each decision counting the same."""
        hits = self.true_positives.sum()
        called = hits + self.false_positives.sum()
        had = hits + self.false_negatives.sum()
        return Summary(
            *(
                float(_ratio(a, b))
                for a, b in ((hits, called), (hits, had), (2 * hits, called + had))
            )
        )

    def weighted(self) -> Summary:
        """Return the means over the tags, each weighing as much as it has images."""
        rates = self.rates()
        total = rates.support.sum()
        return Summary(
            *(
                float(_ratio(x @ rates.support, total))
                for x in (rates.precision, rates.recall, rates.f1)
            )
        )


def average_precision(
    scores: npt.ArrayLike, targets: npt.ArrayLike, known: npt.ArrayLike | None = None
) -> Floats:
    """Return the average precision of each tag: the mean of the precision at each rise of recall.

    Equals scikit-learn's ``average_precision_score``, ties included: images with the same score are ranked together.

    Args:
        scores: Real numbers, [n, t].
        targets: [n, t].
        known: [n, t], or None.

    Returns:
        [t], in 0..1; NaN for a tag that no image has. `numpy.nanmean` of it is the mAP over tags that occur.
    """
    values, true, mask = _table(scores, targets, known)
    result = np.full(values.shape[1], np.nan)
    for tag in range(values.shape[1]):
        column = _Curve.of(values[mask[:, tag], tag], true[mask[:, tag], tag])
        if column.positives:
            # Divided at the end: shares of hits that are added up may come to a little less than 1.
            rises = np.diff(column.hits, prepend=0)
            result[tag] = float(rises @ (column.hits / column.called)) / column.positives
    return result


@dataclass(frozen=True)
class AnnotationScore:
    """The result of the image annotation protocol.

    Attributes:
        precision: Mean over the words of the share of images given the word that have it; 0 for a word never given.
        recall: Mean over the words of the share of images with the word that were given it.
        f1: The harmonic mean of the two means.
        words_recalled: N+, how many words have a recall above 0.
        words: How many words occur in the targets; the means are over these.
    """

    precision: float
    recall: float
    f1: float
    words_recalled: int
    words: int


def five_tag_protocol(
    scores: npt.ArrayLike, targets: npt.ArrayLike, tags_per_image: int = 5
) -> AnnotationScore:
    """Score the best tags of each image as the literature on Corel5k does.

    Each image is given exactly `tags_per_image` words, whatever their scores. Only words that occur in the targets
    are averaged over, but the others take places among the five. Of two words with the same score the one with the
    lower index is given, so that the result does not depend on the machine.

    Protocol of Duygulu et al., "Object Recognition as Machine Translation", ECCV 2002; numbers to compare with in
    Guillaumin et al., "TagProp", ICCV 2009, Table 1.

    Args:
        scores: Real numbers, [n, t].
        targets: [n, t].
        tags_per_image: How many words each image is given; at most t.
    """
    values, true, _ = _table(scores, targets, None)
    if not 1 <= tags_per_image <= values.shape[1]:
        raise ValueError(f"tags_per_image is {tags_per_image}; expected 1..{values.shape[1]}")
    counts = TagCounts(values.shape[1])
    for start in range(0, len(values), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        best = np.argsort(-values[rows], axis=1, kind="stable")[:, :tags_per_image]
        given = np.zeros(values[rows].shape, dtype=np.bool_)
        np.put_along_axis(given, best, values=True, axis=1)
        counts.update(given, true[rows])
    rates = counts.rates()
    occurs = rates.support > 0
    if not occurs.any():
        return AnnotationScore(0.0, 0.0, 0.0, 0, 0)
    precision, recall = float(rates.precision[occurs].mean()), float(rates.recall[occurs].mean())
    return AnnotationScore(
        precision=precision,
        recall=recall,
        f1=float(_ratio(2 * precision * recall, precision + recall)),
        words_recalled=int((rates.recall > 0).sum()),
        words=int(occurs.sum()),
    )


@dataclass(frozen=True, eq=False)
class Thresholds:
    """A threshold for each tag.

    Attributes:
        values: [t]; a tag is predicted where its score is at or above. Infinite for a tag that cannot reach the
            precision asked for, and so is never predicted.
        pooled: The one threshold that the rule gives for all tags together.
        support: [t], the images that have the tag among those it was fitted on.
    """

    values: Floats
    pooled: float
    support: Integers


def fit_thresholds(
    scores: npt.ArrayLike,
    targets: npt.ArrayLike,
    known: npt.ArrayLike | None = None,
    *,
    rule: Literal["f1", "precision", "recall"] = "f1",
    at_least: float | None = None,
    minimum_support: int = 5,
    shrinkage: float = 10.0,
) -> Thresholds:
    """Choose a threshold for each tag, drawn towards that of all tags together where examples are few.

    A tag with s positives gets ``(s * own + shrinkage * pooled) / (s + shrinkage)``; one with fewer than
    `minimum_support` gets the pooled threshold. Ten positives say little about where F1 is best, the pooled curve says
    a lot; the cost is that a shrunk threshold keeps a promised precision or recall only nearly. A threshold lies midway
    between the scores that it parts.

    Args:
        scores: Finite numbers, [n, t], on data that the model was not trained on.
        targets: [n, t].
        known: [n, t], or None.
        rule: "f1": the best F1 (of equals the highest threshold). "precision": the lowest threshold whose precision is
            at least `at_least`, going no lower than the last positive that it lets through. "recall": the highest
            threshold whose recall is at least `at_least`.
        at_least: In 0..1, for the rules "precision" and "recall".
        minimum_support: Positives below which a tag has no threshold of its own.
        shrinkage: How many positives the pooled threshold is worth; 0 trusts each tag alone.

    Raises:
        ValueError: Shapes do not fit, an option is out of range, or no known target is true.
    """
    values, true, mask = _table(scores, targets, known)
    _check_options(rule, at_least, minimum_support, shrinkage)
    if not np.isfinite(values).all():
        raise ValueError("scores holds infinite numbers; expected finite ones")
    support: Integers = (true & mask).sum(axis=0).astype(np.int64)
    if not support.any():
        raise ValueError("targets holds no known positive; expected at least 1")
    pooled = _Curve.of(values[mask], true[mask]).threshold(rule, at_least or 0.0)
    chosen = np.full(values.shape[1], pooled)
    for tag in np.flatnonzero(support >= max(minimum_support, 1)):
        curve = _Curve.of(values[mask[:, tag], tag], true[mask[:, tag], tag])
        own = curve.threshold(rule, at_least or 0.0)
        share = support[tag] / (support[tag] + shrinkage)
        # With all tags together out of reach of the precision, a tag that reaches it stands alone.
        chosen[tag] = (
            share * own + (1 - share) * pooled if np.isfinite([own, pooled]).all() else own
        )
    return Thresholds(values=chosen, pooled=pooled, support=support)


def _check_options(
    rule: str, at_least: float | None, minimum_support: int, shrinkage: float
) -> None:
    """Refuse options of `fit_thresholds` that make no sense."""
    if rule not in ("f1", "precision", "recall"):
        raise ValueError(f"rule is {rule!r}; expected 'f1', 'precision' or 'recall'")
    if (rule == "f1") != (at_least is None):
        raise ValueError(
            f"at_least is {at_least}; rule {rule!r} {'takes none' if rule == 'f1' else 'needs one'}"
        )
    if at_least is not None and not 0 <= at_least <= 1:
        raise ValueError(f"at_least is {at_least}; expected 0..1")
    if shrinkage < 0 or minimum_support < 0:
        raise ValueError(
            f"shrinkage {shrinkage} and minimum_support {minimum_support}; expected 0 or more"
        )


@dataclass(frozen=True, eq=False)
class Reliability:
    """Scores against what came true, in bins of about equally many entries.

    Attributes:
        score: [bins], the mean score of each bin, ascending.
        frequency: [bins], the share of the bin that is true, in 0..1.
        entries: [bins], how many entries the bin holds.
    """

    score: Floats
    frequency: Floats
    entries: Integers

    @property
    def error(self) -> float:
        """The mean distance between score and frequency over all entries, in 0..1."""
        return float(_ratio(self.entries @ np.abs(self.score - self.frequency), self.entries.sum()))


def reliability(
    scores: npt.ArrayLike,
    targets: npt.ArrayLike,
    known: npt.ArrayLike | None = None,
    *,
    bins: int = 15,
) -> Reliability:
    """Sort the entries of all tags together into bins of equal mass.

    Bins of equal width would hold almost all entries in the lowest one, as most tags are absent from most images.
    Entries with the same score share a bin, so that the result does not depend on the order of the images. Bins that
    stay empty for that reason are left out.

    Args:
        scores: Probabilities in 0..1, [n, t].
        targets: [n, t].
        known: [n, t], or None.
        bins: How many bins, at least 1.
    """
    values, true, mask = _table(scores, targets, known)
    if bins < 1:
        raise ValueError(f"bins is {bins}; expected at least 1")
    pooled, hit = values[mask], true[mask]
    if pooled.size and not (pooled.min() >= 0 and pooled.max() <= 1):
        raise ValueError(
            f"scores lies in {pooled.min()}..{pooled.max()}; expected probabilities in 0..1"
        )
    _, group, size = np.unique(pooled, return_inverse=True, return_counts=True)
    middle = np.cumsum(size) - size / 2
    place = np.minimum((middle * bins / max(pooled.size, 1)).astype(np.int64), bins - 1)[
        group.reshape(-1)
    ]
    entries = np.bincount(place, minlength=bins).astype(np.int64)
    filled = entries > 0
    return Reliability(
        score=_ratio(np.bincount(place, weights=pooled, minlength=bins), entries)[filled],
        frequency=_ratio(np.bincount(place, weights=hit, minlength=bins), entries)[filled],
        entries=entries[filled],
    )


def calibration_error(
    scores: npt.ArrayLike,
    targets: npt.ArrayLike,
    known: npt.ArrayLike | None = None,
    *,
    bins: int = 15,
) -> float:
    """Return the expected calibration error over all known entries, in 0..1; 0 is perfectly calibrated.

    See `reliability` for the bins.
    """
    return reliability(scores, targets, known, bins=bins).error


@dataclass(frozen=True, eq=False)
class _Curve:
    """What a falling threshold lets through, one point for each distinct score.

    Attributes:
        scores: [p], distinct, descending.
        called: [p], the entries at or above the score.
        hits: [p], those of them that are true.
        positives: The entries that are true.
    """

    scores: Scores
    called: Integers
    hits: Integers
    positives: int

    @classmethod
    def of(cls, scores: Scores, targets: Booleans) -> _Curve:
        """Return the curve of a column of scores and targets, both [n]."""
        order = np.argsort(-scores, kind="stable")
        ranked = scores[order]
        last = np.append(ranked[1:] != ranked[:-1], True)[: len(ranked)]
        hits = np.cumsum(targets[order], dtype=np.int64)
        return cls(
            scores=ranked[last],
            called=np.flatnonzero(last).astype(np.int64) + 1,
            hits=hits[last],
            positives=int(targets.sum()),
        )

    def threshold(self, rule: Literal["f1", "precision", "recall"], at_least: float) -> float:
        """Return the threshold of a rule of `fit_thresholds`; infinite where no score fulfils it."""
        if rule == "f1":
            point = int(np.argmax(_ratio(2 * self.hits, self.called + self.positives)))
        elif rule == "precision":
            # A point that only adds misses is never worth its place, so the last one with a hit is chosen.
            enough = (_ratio(self.hits, self.called) >= at_least) & (
                np.diff(self.hits, prepend=0) > 0
            )
            if not enough.any():
                return float("inf")
            point = int(np.flatnonzero(enough)[-1])
        else:
            point = int(np.argmax(_ratio(self.hits, self.positives) >= at_least))
        above = float(self.scores[point])
        if point + 1 == len(self.scores):
            return above
        below = float(self.scores[point + 1])
        middle = below + (above - below) / 2
        return middle if middle > below else above


def _ratio(numerator: npt.ArrayLike, denominator: npt.ArrayLike) -> Floats:
    """Return the quotient, 0 where both are 0."""
    top, bottom = np.broadcast_arrays(numerator, denominator)
    quotient: Floats = np.divide(top, bottom, out=np.zeros(bottom.shape), where=bottom != 0)
    return quotient


def _booleans(name: str, values: npt.ArrayLike) -> Booleans:
    """Return an array of truth values, which may have come as the numbers 0 and 1."""
    array = np.asarray(values)
    if array.dtype != np.bool_:
        if not ((array == 0) | (array == 1)).all():
            raise ValueError(f"{name} holds numbers other than 0 and 1; expected truth values")
        array = array.astype(np.bool_)
    return array


def _targets(
    targets: npt.ArrayLike, known: npt.ArrayLike | None, shape: tuple[int, ...], like: str
) -> tuple[Booleans, Booleans]:
    """Return targets and the mask of the known ones, both of the shape that `like` has."""
    true = _booleans("targets", targets)
    mask = np.broadcast_to(np.True_, shape) if known is None else _booleans("known", known)
    for name, array in (("targets", true), ("known", mask)):
        if array.shape != shape:
            raise ValueError(
                f"{name} has shape {array.shape}; expected {shape}, the shape of {like}"
            )
    return true, mask


def _table(
    scores: npt.ArrayLike, targets: npt.ArrayLike, known: npt.ArrayLike | None
) -> tuple[Scores, Booleans, Booleans]:
    """Return scores, targets and the mask of the known ones, all [n, t]; floats keep their precision."""
    values = np.asarray(scores)
    if not np.issubdtype(values.dtype, np.floating):
        values = values.astype(np.float64)
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(f"scores has shape {values.shape}; expected (n, t) with at least one tag")
    if np.isnan(values).any():
        raise ValueError("scores holds NaN; expected numbers")
    return values, *_targets(targets, known, values.shape, "scores")
