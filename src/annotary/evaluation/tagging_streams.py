"""Metrics of tagging in flat memory: images go by once, and what is kept grows with the tags alone.

Of every tag there is a histogram of the scores of its images, and one of those that have the tag. A bin is a step of
1/64 of an octave of the odds p / (1 - p), at most 0.0156 on the scale of logits, and the bins cover 64 octaves:

* Counts at a threshold that is an edge of a bin are exact, and so are thresholds that are chosen among the edges.
* Average precision is that of the scores rounded to bins. How far the exact one may be from it is known of every tag,
  as no order within a bin can take a hit further than to the ends of its bin.

6,000 tags take 200 MB, however many images there are. Which bin a score is in is read off the bits of its odds: that is
exact and monotone on every machine, which no logarithm promises.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from annotary.evaluation.tagging import (
    Booleans,
    Floats,
    Integers,
    Reliability,
    TagCounts,
    _ratio,
    _targets,
)

Counts: TypeAlias = npt.NDArray[np.uint32]

STEPS = 64
"""Bins of an octave of the odds."""

_BITS = 23 - STEPS.bit_length() + 1  # of a float32's fraction that are less than a bin
_LEAST, _OCTAVES = -40, 64  # odds from 2**-40; nearest below 1 a float32 has odds of 2**24
BINS = STEPS * _OCTAVES
"""Of a tag: 4,096."""

_LOWEST = int(np.float32(2.0**_LEAST).view(np.int32)) >> _BITS
_ROWS_AT_ONCE = 512
_TAGS_AT_ONCE = 256


def bins_of(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """The bin of each score, 0..BINS-1, ascending with the score.

    Args:
        scores: Probabilities, 0..1.
    """
    with np.errstate(divide="ignore"):
        odds = scores / (np.float32(1.0) - scores)  # rounded correctly, so monotone; infinite for 1
    # The bits of a positive float, read as a whole number, ascend with it.
    found = (odds.view(np.int32) >> _BITS) - np.int32(_LOWEST)
    return np.clip(found, 0, BINS - 1, out=found)


@cache
def edges() -> npt.NDArray[np.float32]:
    """The least score of each bin, float32[BINS + 1]; the last one, which no score reaches, is above 1.

    At and above `edges()[k]` are exactly the scores of the bins k and higher.
    """
    powers = 2.0 ** np.repeat(np.arange(_OCTAVES) + _LEAST, STEPS)
    odds = powers * (1.0 + np.tile(np.arange(STEPS), _OCTAVES) / STEPS)
    found = (odds / (1.0 + odds)).astype(np.float32)
    wanted = np.arange(BINS)
    found[0] = 0.0
    # Rounding may have taken an edge to a neighbour of the least score of its bin.
    while (low := bins_of(found) < wanted).any():
        found[low] = np.nextafter(found[low], np.float32(2.0))
    while (high := bins_of(below := np.nextafter(found, np.float32(0.0))) >= wanted)[1:].any():
        high[0] = False
        found[high] = below[high]
    found = np.append(found, np.float32(2.0))
    found.flags.writeable = False
    return found


class BoundedPrecision(NamedTuple):
    """Average precision of each tag as far as bins tell; NaN for a tag that no image has.

    Attributes:
        value: [t], of the scores rounded to bins, in 0..1.
        low: [t], the exact one is no lower.
        high: [t], the exact one is no higher.
    """

    value: Floats
    low: Floats
    high: Floats


class ScoreHistograms:
    """How scores of each tag are spread, over all images and over those that have the tag.

    Args:
        tags: How many tags there are.

    Attributes:
        all: uint32[t, BINS], images whose target is known.
        true: uint32[t, BINS], those of them that have the tag.
        sums: float64[BINS], the sum of the scores of all tags in each bin.
    """

    def __init__(self, tags: int) -> None:
        if tags < 1:
            raise ValueError(f"tags is {tags}; expected at least 1")
        self.all: Counts = np.zeros((tags, BINS), dtype=np.uint32)
        self.true: Counts = np.zeros((tags, BINS), dtype=np.uint32)
        self.sums: Floats = np.zeros(BINS)
        self._starts = np.arange(tags, dtype=np.int64) * BINS

    @property
    def tags(self) -> int:
        """How many tags there are."""
        return len(self.all)

    @property
    def support(self) -> Integers:
        """Images that have the tag, [t]."""
        support: Integers = self.true.sum(axis=1, dtype=np.int64)
        return support

    @property
    def images(self) -> Integers:
        """Images of which it is known whether they have the tag, [t]."""
        images: Integers = self.all.sum(axis=1, dtype=np.int64)
        return images

    def update(
        self,
        scores: npt.NDArray[np.floating[Any]],
        targets: npt.ArrayLike,
        known: npt.ArrayLike | None = None,
    ) -> None:
        """Add a batch.

        Args:
            scores: Probabilities in 0..1, [b, t].
            targets: Whether the image has the tag, [b, t].
            known: Whether the target is known, [b, t]; None means all are.

        Raises:
            ValueError: A shape does not fit, or a score is none. Nothing was added.
        """
        values = np.asarray(scores, dtype=np.float32)
        if values.ndim != 2 or values.shape[1] != self.tags:
            raise ValueError(f"scores has shape {values.shape}; expected (b, {self.tags})")
        if values.size and not (values.min() >= 0.0 and values.max() <= 1.0):  # NaN is neither
            raise ValueError("scores holds NaN, or what is no probability; expected 0..1")
        true, mask = _targets(targets, known, values.shape, "scores")
        for start in range(0, len(values), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            self._add(values[rows], true[rows], None if known is None else mask[rows])

    def merge(self, other: ScoreHistograms) -> None:
        """Add what another part of the same data has.

        Raises:
            ValueError: It has a different number of tags.
        """
        if other.tags != self.tags:
            raise ValueError(f"other has {other.tags} tags; expected {self.tags}")
        self.all += other.all
        self.true += other.true
        self.sums += other.sums

    def _add(self, values: npt.NDArray[np.float32], true: Booleans, mask: Booleans | None) -> None:
        bins = bins_of(values)
        places = bins + self._starts
        if mask is None:
            chosen, scored, hit = places.reshape(-1), values.reshape(-1), true
        else:
            chosen, scored, hit = places[mask], values[mask], true & mask
            bins = bins[mask]
        # An array of ones is added faster than one number.
        ones = np.ones(chosen.size, np.uint32)
        np.add.at(self.all.reshape(-1), chosen, ones)
        hits = places[hit]
        np.add.at(self.true.reshape(-1), hits, ones[: hits.size])
        self.sums += np.bincount(bins.reshape(-1), weights=scored, minlength=BINS)

    def counts_at(self, places: Integers) -> TagCounts:
        """Counts of each tag at thresholds that are edges; exact.

        Args:
            places: [t], of the edge of each tag, 0..BINS.
        """
        counts = TagCounts(self.tags)
        for rows, called, hits in self.curves():
            at = places[rows, None]
            counts.true_positives[rows] = np.take_along_axis(hits, at, axis=1)[:, 0]
            given = np.take_along_axis(called, at, axis=1)[:, 0]
            counts.false_positives[rows] = given - counts.true_positives[rows]
            counts.false_negatives[rows] = hits[:, 0] - counts.true_positives[rows]
            counts.true_negatives[rows] = called[:, 0] - given - counts.false_negatives[rows]
        return counts

    def curves(self) -> Iterator[tuple[slice, Integers, Integers]]:
        """For some tags at a time: which they are, and what each edge lets through.

        Yields:
            The tags, images at or above each edge int64[c, BINS + 1], and those of them that have the tag.
        """
        for start in range(0, self.tags, _TAGS_AT_ONCE):
            rows = slice(start, min(self.tags, start + _TAGS_AT_ONCE))
            yield rows, _from_above(self.all[rows]), _from_above(self.true[rows])

    def average_precision(self) -> BoundedPrecision:
        """Average precision of each tag, and between what bounds the exact one lies.

        The i-th of the hits of a bin has at least the hits before it and itself above it, with all misses of the bin;
        at most all hits of the bin, with none of its misses. That holds for every order within the bin, ties included.
        """
        value, low, high = (np.full(self.tags, np.nan) for _ in range(3))
        for rows, called, hits in self.curves():
            for tag in range(rows.start, rows.stop):
                c, h = called[tag - rows.start], hits[tag - rows.start]
                if h[0]:
                    value[tag], low[tag], high[tag] = _bounded(c, h)
        return BoundedPrecision(value, low, high)

    def pooled(self) -> PooledCurve:
        """What one threshold for all tags lets through, at each edge."""
        everything = self.all.sum(axis=0, dtype=np.int64)[None]
        hits = self.true.sum(axis=0, dtype=np.int64)[None]
        return PooledCurve(edges(), _from_above(everything)[0], _from_above(hits)[0])

    def reliability(self, bins: int = 15) -> Reliability:
        """Scores against what came true, of all tags together, in bins of about equally many entries.

        As `annotary.evaluation.reliability`, but that scores share a bin here that are nearer than 0.0156 in logits.

        Args:
            bins: How many bins, at least 1.
        """
        if bins < 1:
            raise ValueError(f"bins is {bins}; expected at least 1")
        size = self.all.sum(axis=0, dtype=np.int64)
        true = self.true.sum(axis=0, dtype=np.int64)
        middle = np.cumsum(size) - size / 2
        place = np.minimum((middle * bins / max(int(size.sum()), 1)).astype(np.int64), bins - 1)
        entries = np.bincount(place, weights=size, minlength=bins).astype(np.int64)
        filled = entries > 0
        return Reliability(
            score=_ratio(np.bincount(place, weights=self.sums, minlength=bins), entries)[filled],
            frequency=_ratio(np.bincount(place, weights=true, minlength=bins), entries)[filled],
            entries=entries[filled],
        )


@dataclass(frozen=True, eq=False)
class PooledCurve:
    """What thresholds let through, of all tags together.

    Attributes:
        thresholds: float32[BINS + 1], ascending.
        called: int64[BINS + 1], tags given at or above each.
        hits: int64[BINS + 1], those that are true.
    """

    thresholds: npt.NDArray[np.float32]
    called: Integers
    hits: Integers

    @property
    def precision(self) -> Floats:
        """[BINS + 1], 0 where nothing is given."""
        return _ratio(self.hits, self.called)

    @property
    def recall(self) -> Floats:
        """[BINS + 1]."""
        return _ratio(self.hits, self.hits[0])

    def average_precision(self) -> float:
        """Of all decisions together (micro); NaN where none is true."""
        return _bounded(self.called, self.hits)[0] if self.hits[0] else float("nan")


def _from_above(counts: Counts | Integers) -> Integers:
    """Sums from each bin upwards, with a 0 at the end, [c, BINS + 1]."""
    sums = np.zeros((len(counts), counts.shape[1] + 1), dtype=np.int64)
    sums[:, :-1] = np.cumsum(counts[:, ::-1], axis=1, dtype=np.int64)[:, ::-1]
    return sums


def _bounded(called: Integers, hits: Integers) -> tuple[float, float, float]:
    """Average precision of one curve, and its bounds."""
    own = hits[:-1] - hits[1:]
    filled = np.flatnonzero(own)
    new, above, upto = own[filled], hits[filled + 1], hits[filled]
    misses_above = called[filled + 1] - above
    misses = called[filled] - upto
    total = float(hits[0])
    value = float(new @ (upto / called[filled])) / total
    high = float(new @ (upto / (upto + misses_above))) / total
    # Each hit of a bin with all misses of the bin before it.
    order = np.arange(int(hits[0])) + 1  # hits from the top, of all bins
    before = np.repeat(misses[::-1], new[::-1])
    low = float((order / (order + before)).sum()) / total
    return value, low, high


class Wrong(NamedTuple):
    """An image about which a model and the truth do not agree.

    Attributes:
        image: Its number, as whoever measured counts them.
        score: Of the tag, 0..1.
    """

    image: int
    score: float


class WorstImages:
    """The images of each tag that are most wrong: given it with the highest scores, or having it with the lowest.

    Args:
        tags: How many tags there are.
        most: How many images of each kind are kept of a tag.
    """

    def __init__(self, tags: int, most: int = 4) -> None:
        shape = (2, tags, most)
        self._wrongness = np.full(shape, -np.inf, np.float32)
        self._places = np.full(shape, -1, np.int64)

    def update(
        self,
        scores: npt.NDArray[np.float32],
        targets: Booleans,
        thresholds: npt.NDArray[np.float32],
        numbers: Integers,
        known: Booleans | None = None,
    ) -> None:
        """Add a batch.

        Args:
            scores: Probabilities, [b, t].
            targets: [b, t].
            thresholds: [t].
            numbers: Of the images, [b].
            known: Whether the target is known, [b, t]; None means all are.
        """
        given = scores >= thresholds
        if known is not None:
            given, targets = given & known, targets & known
        kinds = (given & ~targets, scores), (targets & ~given, -scores)
        for kind, (wrong, wrongness) in enumerate(kinds):
            worth = wrong & (wrongness > self._wrongness[kind].min(axis=1))
            for row, tag in zip(*np.nonzero(worth), strict=True):
                held = self._wrongness[kind, tag]
                place = int(held.argmin())
                if wrongness[row, tag] > held[place]:
                    held[place] = wrongness[row, tag]
                    self._places[kind, tag, place] = numbers[row]

    def given_wrongly(self, tag: int) -> list[Wrong]:
        """Images that were given the tag and do not have it, the surest first."""
        return self._of(0, tag)

    def missed(self, tag: int) -> list[Wrong]:
        """Images that have the tag and were not given it, the lowest score first."""
        return self._of(1, tag)

    def _of(self, kind: int, tag: int) -> list[Wrong]:
        held = zip(
            self._wrongness[kind, tag].tolist(), self._places[kind, tag].tolist(), strict=True
        )
        ordered = sorted((-wrongness, place) for wrongness, place in held if place >= 0)
        sign = 1.0 if kind else -1.0
        return [Wrong(place, sign * wrongness) for wrongness, place in ordered]


class TaggingStream:
    """All that is measured of a tagger, added up batch by batch.

    Args:
        thresholds: Name of a rule to the thresholds that it gives, [t]; the first is the one that worst images are of.
        keeps: Bytes up to which scores are held for exact average precision; beyond, the histograms tell it.
        halves: Whether even and odd images are also counted apart, for thresholds that are judged on other images.
        worst: How many of the worst images of each kind are kept of a tag.

    Attributes:
        histograms: Of all images.
        halves: Of the even and the odd images; empty when not asked for.
        counts: Name of a rule to its counts.
        worst: The images that are most wrong.
        images: How many images there were.
    """

    def __init__(
        self,
        thresholds: Mapping[str, npt.NDArray[np.float32]],
        *,
        keeps: int = 256 << 20,
        halves: bool = False,
        worst: int = 4,
    ) -> None:
        if not thresholds:
            raise ValueError("thresholds is empty; expected at least one rule")
        self._thresholds = dict(thresholds)
        self._first = next(iter(self._thresholds.values()))
        tags = len(self._first)
        self.histograms = ScoreHistograms(tags)
        self.halves = tuple(ScoreHistograms(tags) for _ in range(2 if halves else 0))
        self.counts = {name: TagCounts(tags) for name in self._thresholds}
        self.worst = WorstImages(tags, worst)
        self.images = 0
        self._room = keeps
        self._held: list[tuple[npt.NDArray[np.float32], Booleans]] | None = []

    def update(
        self,
        scores: npt.NDArray[np.float32],
        targets: Booleans,
        numbers: Integers | None = None,
        known: Booleans | None = None,
    ) -> None:
        """Add a batch.

        Args:
            scores: Probabilities in 0..1, [b, t].
            targets: Whether the image has the tag, [b, t].
            numbers: Of the images, [b], by which the worst are told; they are counted from 0 when nothing is said.
            known: Whether the target is known, [b, t]; None means all are.
        """
        if numbers is None:
            numbers = np.arange(self.images, self.images + len(scores), dtype=np.int64)
        self.histograms.update(scores, targets, known)
        for half, histograms in enumerate(self.halves):
            rows = slice((half + self.images) % 2, None, 2)
            histograms.update(scores[rows], targets[rows], None if known is None else known[rows])
        for name, thresholds in self._thresholds.items():
            self.counts[name].update(scores >= thresholds, targets, known)
        self.worst.update(scores, targets, self._first, numbers, known)
        self.images += len(scores)
        if known is not None:
            # Ranked below everything, what is not known takes no place from a hit.
            scores, targets = np.where(known, scores, np.float32(-1.0)), targets & known
        if self._held is not None:
            self._room -= scores.nbytes + targets.nbytes
            if self._room >= 0:
                self._held.append((scores, targets))
            else:
                self._held = None

    def average_precision(self) -> tuple[BoundedPrecision, bool]:
        """Average precision of each tag with its bounds, and whether it is exact."""
        from annotary.evaluation.tagging import average_precision

        if not self._held:
            return self.histograms.average_precision(), False
        exact = np.concatenate(
            [
                average_precision(
                    np.concatenate([scores[:, tags] for scores, _ in self._held]),
                    np.concatenate([targets[:, tags] for _, targets in self._held]),
                )
                for tags in _slices(len(self._first), _TAGS_AT_ONCE)
            ]
        )
        return BoundedPrecision(exact, exact, exact), True

    def held(self) -> tuple[npt.NDArray[np.float32], Booleans] | None:
        """All scores and targets, both [n, t], where there was room for them; -1 and False for what is not known."""
        if not self._held:
            return None
        scores, targets = zip(*self._held, strict=True)
        return np.concatenate(scores), np.concatenate(targets)


def _slices(count: int, size: int) -> Sequence[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]
