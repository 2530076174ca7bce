"""Thresholds of a tagger that are fitted to labelled images: one for all tags, one a category, or one a tag.

They are searched among the edges of `annotary.evaluation.tagging_streams`, at which counts are exact. The rules:

* `macro-f1`: the best mean of the tags' F1, each tag counting the same.
* `micro-f1`: the best F1 of all decisions together. Of several thresholds at once it is found by Dinkelbach's method
  (1967): what is called is worth it where its precision is above half of the best F1.
* `p=r`: where as many tags are given as there are, so that precision equals recall, as the numbers of the WD taggers
  are reported. It is found exactly, not by bisection.

Thresholds of single tags are drawn towards that of all tags on the scale of logits: one with s positives gets
``(s * own + shrinkage * pooled) / (s + shrinkage)``, and one with fewer than `minimum_support` the pooled one. Unless
it is told, `shrinkage` is the one of `SHRINKAGES` that does best when one half of the images chooses and the other
judges: empirical Bayes by trial. All of the way (one threshold for all) and none of it are among the choices.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from annotary.cards import Vocabulary, vocabulary_text
from annotary.evaluation.tagging import Floats, Integers, TagCounts, _ratio
from annotary.evaluation.tagging_streams import BINS, ScoreHistograms, edges

Rule = Literal["macro-f1", "micro-f1", "p=r"]
Scope = Literal["all", "category", "tag"]

RULES: tuple[str, ...] = get_args(Rule)
SCOPES: tuple[str, ...] = get_args(Scope)

SHRINKAGES = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 1000.0, math.inf)
"""Positives that the pooled threshold is worth, of which the best is chosen."""

_ROUNDS = 20  # of Dinkelbach's method, which needs about four


@dataclass(frozen=True, slots=True)
class FittingOptions:
    """Thresholds that are fitted to these images."""

    fit: Rule | None = None
    """Fit thresholds by this rule, too: the best mean of the tags' F1, the best F1 of all decisions together, or
    where precision equals recall."""

    per: Scope = "all"
    """Fit one threshold for all tags, one for each category, or one for each tag."""

    fit_support: int = 5
    """With --per tag: images that must have a tag before it gets a threshold of its own."""

    shrinkage: float | None = None
    """With --per tag: how many images the threshold of all tags is worth, towards which those of single tags are
    drawn. Otherwise that which does best on the half of the images that it was not fitted to."""

    def __post_init__(self) -> None:
        if self.fit is not None and self.fit not in RULES:
            raise ValueError(f"fit must be one of {', '.join(RULES)}, but got {self.fit!r}")
        if self.per not in SCOPES:
            raise ValueError(f"per must be one of {', '.join(SCOPES)}, but got {self.per!r}")
        if self.fit_support < 0:
            raise ValueError(f"fit_support must be 0 or more, but got {self.fit_support}")
        if self.shrinkage is not None and not self.shrinkage >= 0:
            raise ValueError(f"shrinkage must be 0 or more, but got {self.shrinkage}")


@dataclass(frozen=True, eq=False)
class FittedThresholds:
    """Thresholds of a rule.

    Attributes:
        rule: By which they were found.
        per: What has a threshold of its own.
        places: [t], of each tag's edge.
        pooled: The one threshold of all tags, 0..1.
        groups: Category to its threshold; empty unless they are by category.
        shrinkage: How many positives the pooled threshold is worth; None unless they are by tag.
        own: Tags with a threshold of their own; 0 unless they are by tag.
    """

    rule: Rule
    per: Scope
    places: Integers
    pooled: float
    groups: Mapping[str, float]
    shrinkage: float | None
    own: int

    @property
    def values(self) -> npt.NDArray[np.float32]:
        """[t]; a tag is given where its score is at or above. In 0..1."""
        return np.minimum(edges()[self.places], np.float32(1.0))

    @property
    def told(self) -> str:
        """The rule in words."""
        scope = {"all": "one threshold", "category": "one a category", "tag": "one a tag"}[self.per]
        drawn = "" if self.shrinkage is None else f", shrinkage {self.shrinkage:g}"
        return f"fitted, {self.rule}, {scope}{drawn}"


def fit(
    histograms: ScoreHistograms,
    options: FittingOptions,
    categories: Sequence[str],
    halves: Sequence[ScoreHistograms] = (),
) -> FittedThresholds:
    """Fit thresholds.

    Args:
        histograms: Of all images.
        options: The rule, and what gets a threshold of its own.
        categories: Of the tags, [t].
        halves: Of two halves of the images, by which the shrinkage is chosen; without them it is 10.

    Raises:
        ValueError: No rule is told, or no image has a tag.
    """
    if options.fit is None:
        raise ValueError("fit is None; expected a rule")
    if not histograms.support.any():
        raise ValueError("no image has a tag; expected at least 1")
    shrinkage = options.shrinkage
    if options.per == "tag" and shrinkage is None:
        shrinkage = _best_shrinkage(options, halves) if len(halves) == 2 else 10.0
    return _fitted(histograms, options, categories, shrinkage)


def held_out(
    options: FittingOptions,
    categories: Sequence[str],
    halves: Sequence[ScoreHistograms],
    shrinkage: float | None,
) -> TagCounts | None:
    """Counts of all images, each judged by thresholds that the half to which it does not belong was fitted to.

    Args:
        options: As for `fit`.
        categories: Of the tags, [t].
        halves: Two halves of the images.
        shrinkage: That of the thresholds; of it alone it was known what does well on the other half.

    Returns:
        None where a half has no positives.
    """
    if not all(half.support.any() for half in halves):
        return None
    counts = TagCounts(halves[0].tags)
    for one, other in ((0, 1), (1, 0)):
        found = _fitted(halves[one], options, categories, shrinkage)
        counts.merge(halves[other].counts_at(found.places))
    return counts


def thresholds_text(names: Sequence[str], values: npt.ArrayLike) -> str:
    """A table of `name,threshold`, which `annotary tag --tag-thresholds` reads."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("name", "threshold"))
    told = np.asarray(values, np.float64).tolist()
    writer.writerows((name, _told(value)) for name, value in zip(names, told, strict=True))
    return text.getvalue()


def tags_text(vocabulary: Vocabulary, places: Integers, fitted: FittedThresholds) -> str:
    """The `tags.csv` of a model, with the thresholds as its preset `balanced`.

    Args:
        vocabulary: Of the model; its other presets are kept.
        places: [t], which of its tags each fitted threshold is of. All others get the pooled one.
        fitted: The thresholds.
    """
    values = np.full(len(vocabulary), fitted.pooled)
    values[places] = fitted.values
    told = tuple(float(_told(value)) for value in values.tolist())
    presets = {**vocabulary.thresholds, "balanced": told}
    return vocabulary_text(Vocabulary(vocabulary.names, vocabulary.categories, presets))


def card_text(fitted: FittedThresholds) -> str:
    """The table of a `card.toml` that states the thresholds as its preset `balanced`.

    Raises:
        ValueError: They are by tag, and a card states none of single tags.
    """
    import json

    if fitted.per == "tag":
        raise ValueError("a card states thresholds of categories, not of single tags")
    lines = [
        f"{json.dumps(name, ensure_ascii=False)} = {_told(value)}"
        for name, value in {**fitted.groups, "*": fitted.pooled}.items()
    ]
    return "[thresholds.balanced]\n" + "\n".join(lines) + "\n"


def _told(value: float) -> str:
    """A threshold as the shortest text that is the same float32: cut shorter, scores between would fall over."""
    return str(np.float32(value))


def _fitted(
    histograms: ScoreHistograms,
    options: FittingOptions,
    categories: Sequence[str],
    shrinkage: float | None,
) -> FittedThresholds:
    assert options.fit is not None
    tags, support = histograms.tags, histograms.support
    everything = np.zeros(tags, np.int64)
    pooled = int(_group_places(histograms, options.fit, everything, 1)[0])
    groups: dict[str, float] = {}
    places, own = np.full(tags, pooled), 0
    if options.per == "category":
        names = list(dict.fromkeys(categories))
        group = np.array([names.index(name) for name in categories])
        found = _group_places(histograms, options.fit, group, len(names))
        has_any = np.bincount(group, weights=support, minlength=len(names)) > 0
        found = np.where(has_any, found, pooled)
        places = found[group]
        groups = {name: float(_value(place)) for name, place in zip(names, found, strict=True)}
    elif options.per == "tag":
        assert shrinkage is not None
        single = _group_places(histograms, options.fit, np.arange(tags), tags)
        places, own = _shrunk(single, pooled, support, options.fit_support, shrinkage)
    return FittedThresholds(
        rule=options.fit,
        per=options.per,
        places=places.astype(np.int64),
        pooled=float(_value(pooled)),
        groups=groups,
        shrinkage=shrinkage if options.per == "tag" else None,
        own=own,
    )


def _value(place: int) -> np.float32:
    return min(edges()[place], np.float32(1.0))


def _shrunk(
    single: Integers, pooled: int, support: Integers, least: int, shrinkage: float
) -> tuple[Integers, int]:
    """Places between those of single tags and the pooled one, and how many tags have one of their own.

    Places are steps on the scale of logits, so that the mean of places is one of logits.
    """
    has_own = (support >= max(least, 1)) & np.isfinite(shrinkage)
    share = np.where(has_own, _ratio(support, support + shrinkage), 0.0)
    return np.rint(share * single + (1 - share) * pooled).astype(np.int64), int(has_own.sum())


def _best_shrinkage(options: FittingOptions, halves: Sequence[ScoreHistograms]) -> float:
    """The shrinkage that does best where one half of the images chooses and the other judges; of equals the largest."""
    assert options.fit is not None
    counts = {shrinkage: TagCounts(halves[0].tags) for shrinkage in SHRINKAGES}
    if not all(half.support.any() for half in halves):
        return 10.0
    tags = halves[0].tags
    for one, other in ((0, 1), (1, 0)):
        single = _group_places(halves[one], options.fit, np.arange(tags), tags)
        pooled = int(_group_places(halves[one], options.fit, np.zeros(tags, np.int64), 1)[0])
        support = halves[one].support
        for shrinkage, added in counts.items():
            # A half has half of the positives of the whole, and so is drawn half as far by the same number.
            places, _ = _shrunk(single, pooled, 2 * support, options.fit_support, shrinkage)
            added.merge(halves[other].counts_at(places))
    results = {
        shrinkage: (one.micro() if options.fit == "micro-f1" else one.macro(minimum_support=1)).f1
        for shrinkage, one in counts.items()
    }
    return max(results, key=lambda shrinkage: (results[shrinkage], shrinkage))


def _group_places(
    histograms: ScoreHistograms, rule: Rule, groups: Integers, count: int
) -> Integers:
    """The best edge of each group of tags, int64[count].

    Args:
        histograms: Of the tags.
        rule: What is best.
        groups: [t], the group of each tag, 0..count-1.
        count: How many groups there are.
    """
    found = np.zeros(count, np.int64)
    if rule == "micro-f1":
        return _best_micro(histograms, groups, count)
    if rule == "macro-f1":
        for own, worth in _macro_worth(histograms, groups, count):
            found[own] = _plateau(worth)
        return found
    for own, called, hits in _group_curves(histograms, groups, count):
        found[own] = _plateau(-np.abs(called - hits[:, :1]))
    return found


def _macro_worth(
    histograms: ScoreHistograms, groups: Integers, count: int
) -> Iterator[tuple[Integers, Floats]]:
    """Sums of the F1 of the tags of each group at each edge, some groups at a time."""
    if count == histograms.tags:
        for own, called, hits in _group_curves(histograms, groups, count):
            yield own, _ratio(2 * hits, called + hits[:, :1])
        return
    sums: Floats = np.zeros((count, BINS + 1))
    for rows, called, hits in histograms.curves():
        np.add.at(sums, groups[rows], _ratio(2 * hits, called + hits[:, :1]))
    yield np.arange(count), sums


def _best_micro(histograms: ScoreHistograms, groups: Integers, count: int) -> Integers:
    positives = int(histograms.support.sum())
    best, found = 0.0, np.zeros(count, np.int64)
    # Curves of a few groups are kept; those of single tags would be large.
    kept = None if count == histograms.tags else list(_group_curves(histograms, groups, count))
    for _ in range(_ROUNDS):
        right = given = 0
        for own, called, hits in kept or _group_curves(histograms, groups, count):
            found[own] = places = _plateau(hits - best / 2 * called)
            right += int(np.take_along_axis(hits, places[:, None], axis=1).sum())
            given += int(np.take_along_axis(called, places[:, None], axis=1).sum())
        reached = 2 * right / max(given + positives, 1)
        if reached <= best:
            break
        best = reached
    return found


def _group_curves(
    histograms: ScoreHistograms, groups: Integers, count: int
) -> Iterator[tuple[Integers, Integers, Integers]]:
    """For some groups at a time: which they are, and what each edge lets through, both int64[c, BINS + 1]."""
    if count == histograms.tags:  # nothing to add up, and a table of all tags would be large
        for rows, called, hits in histograms.curves():
            yield groups[rows], called, hits
        return
    all_called = np.zeros((count, BINS + 1), np.int64)
    all_hits = np.zeros((count, BINS + 1), np.int64)
    for rows, called, hits in histograms.curves():
        np.add.at(all_called, groups[rows], called)
        np.add.at(all_hits, groups[rows], hits)
    yield np.arange(count), all_called, all_hits


def _plateau(worth: Floats | Integers) -> Integers:
    """The middle of the highest run of best edges of each row: as far as can be from what would change the result."""
    best = worth == worth.max(axis=1, keepdims=True)
    width = best.shape[1]
    last = width - 1 - np.argmax(best[:, ::-1], axis=1)
    other = ~best & (np.arange(width) < last[:, None])
    before = np.where(other.any(axis=1), width - 1 - np.argmax(other[:, ::-1], axis=1), -1)
    # What no score reaches, at either end, is no place to be in the middle of.
    first = np.maximum(before + 1, 0)
    found: Integers = np.where(last == width - 1, first, (first + last + 1) // 2)
    return found
