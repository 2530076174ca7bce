"""Several taggers on the same images: the table of JoyTag's arena, who wins which tag, and how certain that is.

The reference compares two models on 32,768 posts: of the tags that both know and at least 10 images have, the means of
precision, recall, F1 and average precision, each model at its own threshold. Here any number of models is compared, and
images are drawn with replacement again and again (Efron 1979), of all models the same ones, so that differences of two
models are as certain as they can be: what makes images hard is hard for both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from annotary.evaluation.resampling import interval
from annotary.evaluation.tagging import Booleans, Floats, Integers, TagCounts, _ratio
from annotary.evaluation.tagging_files import ModelRates
from annotary.evaluation.tagging_streams import BoundedPrecision, TaggingStream

MINIMUM_SUPPORT = 10
"""Images that must have a tag; as in the reference."""

RATES = ("precision", "recall", "f1", "ap")

_TIE = 1e-8
"""F1 and average precision that are nearer than this are equal; the reference adds as much to what it divides by."""

_AT_ONCE = 32
"""Rounds that are worked out together."""

_MOST_RANKED = 2_000_000_000
"""Scores that are gone through for intervals of average precision; beyond, there are none."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A model in the arena.

    Attributes:
        name: What it is called.
        rule: Of its thresholds, in words.
        thresholds: float32[t], of the common tags.
    """

    name: str
    rule: str
    thresholds: npt.NDArray[np.float32]


class Arena:
    """Adds up what models make of the same images.

    Args:
        contenders: The models.
        keeps: Bytes up to which scores of each are held, for exact average precision and its intervals.

    Attributes:
        contenders: The models.
        streams: What is measured of each.
        images: How many images there were.
    """

    def __init__(self, contenders: Sequence[Contender], *, keeps: int = 256 << 20) -> None:
        names = [one.name for one in contenders]
        if len(names) < 1 or len(set(names)) < len(names):
            raise ValueError(f"contenders must be different, but got {names}")
        self.contenders = tuple(contenders)
        self.streams = [
            TaggingStream({one.rule: one.thresholds}, keeps=keeps, worst=1) for one in contenders
        ]
        self.images = 0
        self._truth = _Pairs()
        self._given = [_Pairs() for _ in contenders]
        self._hits = [_Pairs() for _ in contenders]

    def update(
        self,
        scores: Sequence[npt.NDArray[np.float32]],
        targets: Booleans,
        known: Booleans | None = None,
    ) -> None:
        """Add a batch.

        Args:
            scores: Probabilities of each model, float32[b, t].
            targets: Whether the image has the tag, [b, t].
            known: Whether the target is known, [b, t]; None means all are.
        """
        if known is not None:
            targets = targets & known
        self._truth.add(targets, self.images)
        for place, (own, stream) in enumerate(zip(scores, self.streams, strict=True)):
            given = own >= self.contenders[place].thresholds
            if known is not None:
                given &= known
            self._given[place].add(given, self.images)
            self._hits[place].add(given & targets, self.images)
            stream.update(own, targets, known=known)
        self.images += len(targets)

    def counts(self, place: int) -> TagCounts:
        """The counts of a model."""
        return self.streams[place].counts[self.contenders[place].rule]

    def result(
        self,
        names: Sequence[str],
        *,
        minimum_support: int = MINIMUM_SUPPORT,
        rounds: int = 1000,
        seed: int = 0,
    ) -> ArenaResult:
        """What came of it.

        Args:
            names: Of the tags.
            minimum_support: Images that must have a tag.
            rounds: How often images are drawn; 0 for no intervals.
            seed: Of the drawing.

        Raises:
            ValueError: No tag has enough images.
        """
        chosen = self.counts(0).support >= minimum_support
        if not chosen.any():
            most = int(self.counts(0).support.max())
            raise ValueError(
                f"no tag has {minimum_support} images; the most frequent one has {most}"
            )
        precisions = [stream.average_precision() for stream in self.streams]
        standings = []
        drawn = self._drawn(chosen, rounds, seed) if rounds else None
        ranked = self._drawn_precisions(chosen, rounds, seed) if rounds else None
        for place, one in enumerate(self.contenders):
            rates = _rates(self.counts(place), precisions[place][0])[:, chosen]
            part = _summaries(self.counts(place), chosen)
            intervals = {} if drawn is None else _intervals(drawn[place])
            if ranked is not None:
                intervals["ap"] = list(interval(ranked[place]))
            standings.append(
                Standing(
                    name=one.name,
                    rule=one.rule,
                    rates=rates,
                    macro=dict(zip(RATES, map(float, np.nanmean(rates, axis=1)), strict=True)),
                    micro=part["micro"],
                    weighted=part["weighted"],
                    intervals=intervals,
                    is_exact=precisions[place][1],
                    bounds=precisions[place][0],
                )
            )
        return ArenaResult(
            tags=tuple(name for name, is_in in zip(names, chosen, strict=True) if is_in),
            chosen=chosen,
            support=self.counts(0).support[chosen],
            images=self.images,
            standings=tuple(standings),
            duels=tuple(_duels(standings, drawn)),
        )

    def _drawn(self, chosen: Booleans, rounds: int, seed: int) -> list[Floats]:
        """Of each model, macro precision, recall and F1, and micro and weighted F1 of drawn images, [rounds, 5]."""
        found: list[list[Floats]] = [[] for _ in self.contenders]
        tags = len(chosen)
        truth = self._truth.arrays()
        pairs = [(a.arrays(), b.arrays()) for a, b in zip(self._given, self._hits, strict=True)]
        for weights in _weights(self.images, rounds, seed):
            for drawn in weights:
                support = _sums(truth, drawn, tags)[chosen]
                for place, (given, hits) in enumerate(pairs):
                    called = _sums(given, drawn, tags)[chosen]
                    right = _sums(hits, drawn, tags)[chosen]
                    found[place].append(_means(support, called, right))
        return [np.array(one) for one in found]

    def _drawn_precisions(self, chosen: Booleans, rounds: int, seed: int) -> list[Floats] | None:
        """Of each model, mean average precision of drawn images, [rounds]; None where that would take too long."""
        if self.images * int(chosen.sum()) * rounds * len(self.streams) > _MOST_RANKED:
            return None
        held = [stream.held() for stream in self.streams]
        found = []
        for one in held:
            if one is None:
                return None
            scores, targets = one
            means = [
                _mean_precision(scores[:, chosen], targets[:, chosen], weights)
                for weights in _weights(self.images, rounds, seed)
            ]
            found.append(np.concatenate(means))
        return found


@dataclass(frozen=True, eq=False)
class Standing:
    """What a model reaches.

    Attributes:
        name: Of the model.
        rule: Of its thresholds.
        rates: [4, t], of each tag precision, recall, F1 and average precision.
        macro: Their means over the tags.
        micro: Precision, recall and F1 of all decisions together.
        weighted: Means over the tags, each weighing as much as images have it.
        intervals: Where macro rates, `micro_f1` and `weighted_f1` lie with 95 % certainty; empty when not asked for,
            and without `ap` where it would take too long.
        is_exact: Whether average precision is exact.
        bounds: Between which values it is, of all tags.
    """

    name: str
    rule: str
    rates: Floats
    macro: Mapping[str, float]
    micro: Mapping[str, float]
    weighted: Mapping[str, float]
    intervals: Mapping[str, list[float]]
    is_exact: bool
    bounds: BoundedPrecision


class Duel(NamedTuple):
    """Two models compared, tag by tag.

    Attributes:
        first: A model.
        second: Another.
        f1_wins: Tags at which the first has the higher F1.
        f1_losses: Tags at which the second has.
        f1_ties: All others.
        ap_wins: The same of average precision.
        ap_losses: The same.
        ap_ties: The same.
        f1_difference: Of the macro F1 of the first and the second.
        interval: Where it lies with 95 % certainty; None when not asked for.
    """

    first: str
    second: str
    f1_wins: int
    f1_losses: int
    f1_ties: int
    ap_wins: int
    ap_losses: int
    ap_ties: int
    f1_difference: float
    interval: list[float] | None


@dataclass(frozen=True, eq=False)
class ArenaResult:
    """What came of an arena.

    Attributes:
        tags: That enough images have.
        chosen: bool, which of all common tags these are.
        support: How many images have each.
        images: How many images there were.
        standings: Of the models, in their order.
        duels: Of every two models.
    """

    tags: tuple[str, ...]
    chosen: Booleans
    support: Integers
    images: int
    standings: tuple[Standing, ...]
    duels: tuple[Duel, ...]

    @property
    def ranked(self) -> list[Standing]:
        """The best macro F1 first."""
        return sorted(self.standings, key=lambda one: -one.macro["f1"])

    def wins(self, rate: str) -> dict[str, int]:
        """Model to the tags at which it alone is best; and `""` to those at which several are.

        Args:
            rate: One of `RATES`.
        """
        table = np.stack([one.rates[RATES.index(rate)] for one in self.standings])
        best = table >= np.nanmax(table, axis=0) - _TIE
        alone = best.sum(axis=0) == 1
        found = {
            one.name: int((best[place] & alone).sum()) for place, one in enumerate(self.standings)
        }
        return {**found, "": int((~alone).sum())}

    def detailed(self) -> dict[str, dict[str, ModelRates]]:
        """Tag to model to what it reaches, as `detailed_metrics.txt` holds it."""
        return {
            tag: {one.name: ModelRates(*map(float, one.rates[:, k])) for one in self.standings}
            for k, tag in enumerate(self.tags)
        }

    def to_json(self) -> dict[str, Any]:
        """Everything but what each tag reaches."""
        return {
            "models": [
                {
                    "name": one.name,
                    "rule": one.rule,
                    "macro": dict(one.macro),
                    "micro": dict(one.micro),
                    "weighted": dict(one.weighted),
                    "intervals": dict(one.intervals),
                    "average_precision": "exact" if one.is_exact else "of scores in bins",
                    "ap_bounds": [
                        float(np.nanmean(one.bounds.low[self.chosen])),
                        float(np.nanmean(one.bounds.high[self.chosen])),
                    ],
                }
                for one in self.ranked
            ],
            "wins": {rate: _named_ties(self.wins(rate)) for rate in ("f1", "ap")},
            "duels": [one._asdict() for one in self.duels],
        }


class _Pairs:
    """Images and tags that belong together, added up compactly."""

    def __init__(self) -> None:
        self._images: list[npt.NDArray[np.int32]] = []
        self._tags: list[npt.NDArray[np.int32]] = []

    def add(self, table: Booleans, first: int) -> None:
        rows, tags = np.nonzero(table)
        self._images.append((rows + first).astype(np.int32))
        self._tags.append(tags.astype(np.int32))

    def arrays(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        empty = [np.zeros(0, np.int32)]
        return np.concatenate(self._images or empty), np.concatenate(self._tags or empty)


def _weights(images: int, rounds: int, seed: int) -> Iterator[Floats]:
    """How often each image is drawn, float64[r, images], some rounds at a time; of one seed always the same."""
    generator = np.random.default_rng(seed)
    shares = np.full(images, 1.0 / images)
    for start in range(0, rounds, _AT_ONCE):
        count = min(_AT_ONCE, rounds - start)
        yield generator.multinomial(images, shares, size=count).astype(np.float64)


def _sums(
    pairs: tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]], weights: Floats, tags: int
) -> Floats:
    images, of = pairs
    sums: Floats = np.asarray(
        np.bincount(of, weights=weights[images], minlength=tags), dtype=np.float64
    )
    return sums


def _means(support: Floats, called: Floats, right: Floats) -> Floats:
    """Macro precision, recall and F1, micro F1, weighted F1; tags that no drawn image has count nowhere."""
    f1 = _ratio(2 * right, support + called)
    seen = support > 0
    macro = [_ratio(right, called)[seen].mean(), _ratio(right, support)[seen].mean()]
    micro = 2 * right.sum() / max(support.sum() + called.sum(), 1)
    weighted = f1 @ support / max(support.sum(), 1)
    return np.array([*macro, f1[seen].mean(), micro, weighted])


def _mean_precision(scores: npt.NDArray[Any], targets: Booleans, weights: Floats) -> Floats:
    """Mean average precision of images that count several times, [rounds]; as of tables that hold them so often."""
    total, seen = np.zeros(len(weights)), np.zeros(len(weights))
    for tag in range(scores.shape[1]):
        order = np.argsort(-scores[:, tag], kind="stable")
        ranked = scores[order, tag]
        last = np.append(ranked[1:] != ranked[:-1], True)
        own = weights[:, order]
        hits = np.cumsum(own * targets[order, tag], axis=1)[:, last]
        called = np.cumsum(own, axis=1)[:, last]
        rises = np.diff(hits, prepend=0.0, axis=1)
        total += _ratio((rises * _ratio(hits, called)).sum(axis=1), hits[:, -1])
        seen += hits[:, -1] > 0
    return _ratio(total, seen)


def _rates(counts: TagCounts, precision: BoundedPrecision) -> Floats:
    rates = counts.rates()
    return np.stack([rates.precision, rates.recall, rates.f1, precision.value])


def _summaries(counts: TagCounts, chosen: Booleans) -> dict[str, dict[str, float]]:
    from annotary.evaluation.tagging_results import means

    return means(counts, chosen)


def _intervals(drawn: Floats) -> dict[str, list[float]]:
    names = ("precision", "recall", "f1", "micro_f1", "weighted_f1")
    return {name: list(interval(drawn[:, place])) for place, name in enumerate(names)}


def _duels(standings: Sequence[Standing], drawn: Sequence[Floats] | None) -> Iterator[Duel]:
    for one, other in combinations(range(len(standings)), 2):
        first, second = standings[one], standings[other]
        by_f1, by_ap = (_won(first.rates[rate] - second.rates[rate]) for rate in (2, 3))
        between = None if drawn is None else drawn[one][:, 2] - drawn[other][:, 2]
        apart_f1 = first.macro["f1"] - second.macro["f1"]
        certain = None if between is None else list(interval(between))
        yield Duel(first.name, second.name, *by_f1, *by_ap, apart_f1, certain)


def _won(apart: Floats) -> tuple[int, int, int]:
    """How many tags the first wins, the second wins, and neither."""
    wins, losses = int((apart > _TIE).sum()), int((apart < -_TIE).sum())
    return wins, losses, apart.size - wins - losses


def _named_ties(wins: Mapping[str, int]) -> dict[str, Any]:
    return {"wins": {name: count for name, count in wins.items() if name}, "ties": wins[""]}


def number_or_none(value: float) -> float | None:
    """A number that JSON can hold."""
    return None if math.isnan(value) else value
