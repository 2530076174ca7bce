"""From the scores of a vocabulary to the tags of an image: thresholds, counts and patterns, then rules.

It needs no network, so that saved scores can be gone over again with other wishes.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from annotary.cards import PRESETS, Preset, Vocabulary
from annotary.errors import UsageError
from annotary.records import Tag
from annotary.tasks.tag_rules import RuledNames, TagRules, digest_of

DEFAULT_PRESET = "balanced"
DEFAULT_THRESHOLD = 0.4
"""For vocabularies without presets: what JoyTag's README uses."""

RATING = "rating"
"""The category whose tags exclude each other."""

MCUT_FLOOR = 0.15
"""Where MCut may not cut below, for categories that an image may have nothing of: characters, artists (the published
space of the WD taggers)."""

Scores = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class TaggingOptions:
    """Which tags an image gets."""

    threshold: float | None = None
    """Keep tags whose probability is at least this, 0..1. Takes the place of the preset."""

    preset: Preset | None = None
    """A set of thresholds, one a tag, that came with the model: balanced (best F1; what is used when nothing is
    said), precise (few wrong tags) or broad (few missed tags)."""

    top: int | None = None
    """Keep at most this many tags. With --min-tags of the same number: exactly this many."""

    exclude: tuple[str, ...] = field(default=(), metadata={"metavar": "PATTERN"})
    """Leave out tags that match this pattern, such as 'dog' or '*fish*'; '@FILE' names a file with one on each
    line. May be given several times."""

    keep: tuple[str, ...] = field(default=(), metadata={"metavar": "PATTERN"})
    """Keep only tags that match this pattern, or one of '@FILE'. May be given several times."""

    category_threshold: tuple[str, ...] = field(default=(), metadata={"metavar": "NAME=X"})
    """The threshold of one category, such as character=0.85. May be given several times."""

    tag_thresholds: Path | None = None
    """A CSV file with thresholds of single tags: 'name,threshold' on each line. They come before all others."""

    mcut: bool = False
    """Cut each category of each image where the scores fall most steeply (MCut), instead of at a threshold."""

    min_tags: int | None = None
    """Give at least this many tags: the best of those below their thresholds fill up."""

    rating: Literal["out", "in", "first", "last"] = "out"
    """What becomes of the rating, for models that have one: left out, or the likeliest one among the tags, before or
    behind them."""

    def __post_init__(self) -> None:
        if self.threshold is not None and self.preset is not None:
            raise ValueError("threshold takes the place of preset; give one of them")
        if self.mcut and (self.threshold is not None or self.preset is not None):
            raise ValueError("mcut takes the place of threshold and preset; give one of them")
        if self.threshold is not None and (
            not isinstance(self.threshold, Real) or not 0.0 <= float(self.threshold) <= 1.0
        ):
            raise ValueError(f"threshold must be in 0..1, but got {self.threshold!r}")
        if self.preset is not None and self.preset not in PRESETS:
            known = ", ".join(PRESETS)
            raise ValueError(f"preset must be one of {known}, but got {self.preset!r}")
        for name in ("top", "min_tags"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be whole and at least 1, but got {value!r}")
        if self.top is not None and self.min_tags is not None and self.min_tags > self.top:
            raise ValueError(f"min_tags is {self.min_tags}, and top only {self.top}")
        for name in ("exclude", "keep", "category_threshold"):
            if isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be several texts, not one")
        if self.rating not in ("out", "in", "first", "last"):
            raise ValueError(f"rating must be out, in, first or last, but got {self.rating!r}")


class TagSelector:
    """Chooses the tags of images by their scores.

    Args:
        vocabulary: What the scores are of.
        options: Which tags are chosen.
        rules: What they are called, and their order.
        name: What the vocabulary is called in messages: the model's id.

    Raises:
        UsageError: Options do not fit the vocabulary; the message says what would.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        options: TaggingOptions,
        rules: TagRules | None = None,
        name: str = "the model",
    ) -> None:
        self._options = options
        self._rules = rules or TagRules()
        self._vocabulary = vocabulary
        self._ruled = RuledNames(vocabulary, self._rules)
        self._thresholds = thresholds_of(vocabulary, options, name)
        categories = np.asarray(vocabulary.categories, dtype=object)
        is_rating = np.asarray(categories == RATING, dtype=np.bool_)
        kept = self._kept()
        self._eligible = kept & ~is_rating
        self._ratings = np.flatnonzero(kept & is_rating) if options.rating != "out" else None
        fixed = _fixed_categories(options)
        own = [tag for tag, _ in _tag_thresholds(options.tag_thresholds)]
        self._own = np.flatnonzero(np.isin(np.asarray(vocabulary.names, dtype=object), own))
        # All of a category, so that what is excluded changes nothing for the others. One score has no gap.
        cut_at = {
            category: np.flatnonzero(categories == category)
            for category in (dict.fromkeys(vocabulary.categories) if options.mcut else ())
            if category not in fixed and category != RATING
        }
        self._cut_at = {name: places for name, places in cut_at.items() if len(places) > 1}

    def select(self, scores: Scores) -> tuple[Tag, ...]:
        """The tags of one image.

        Args:
            scores: [t], probabilities 0..1 of the vocabulary.
        """
        scores = np.asarray(scores, dtype=np.float32)
        thresholds = self._cut(scores) if self._cut_at else self._thresholds
        chosen = np.flatnonzero((scores >= thresholds) & self._eligible)
        indices = _best_first(chosen, scores)
        kept = self._ruled.without_superfluous(indices)
        if self._options.min_tags is not None and len(kept) < self._options.min_tags:
            kept = self._filled(indices, scores, self._options.min_tags)
        best = _best_first(np.asarray(kept[: self._options.top], dtype=np.intp), scores)
        found = self._ruled.ordered(best)
        if self._ratings is not None and len(self._ratings):
            found = self._with_rating(found, scores)
        shown, categories = self._ruled.shown, self._vocabulary.categories
        return tuple(Tag(shown[i], round(float(scores[i]), 6), categories[i]) for i in found)

    def settings(self) -> dict[str, Any]:
        """What the tags depend on beside the scores, in one way of writing: equal settings give equal tags."""
        chosen = self._options
        known = self._vocabulary.thresholds
        by_preset = not chosen.mcut and chosen.threshold is None and (chosen.preset or known)
        by_number = not by_preset and not chosen.mcut
        return {
            "preset": (chosen.preset or DEFAULT_PRESET) if by_preset else None,
            "threshold": _threshold(chosen) if by_number else None,
            "top": chosen.top,
            "exclude": sorted(set(_patterns(chosen.exclude))),
            "keep": sorted(set(_patterns(chosen.keep))),
            "category_threshold": sorted(set(chosen.category_threshold)),
            "tag_thresholds": digest_of(chosen.tag_thresholds),
            "mcut": chosen.mcut,
            "min_tags": chosen.min_tags,
            "rating": None if chosen.rating == "out" else chosen.rating,
            **self._rules.settings(),
        }

    def _kept(self) -> npt.NDArray[np.bool_]:
        """Which tags may be chosen at all, bool[t]."""
        kept = np.asarray([bool(name) for name in self._ruled.names])
        kept[self._matching(self._options.exclude, "to be excluded")] = False
        if self._options.keep:
            is_wanted = np.zeros_like(kept)
            is_wanted[self._matching(self._options.keep, "to be kept")] = True
            kept &= is_wanted
        return kept

    def _matching(self, told: Iterable[str], purpose: str) -> list[int]:
        """The tags that patterns match. A file may be made for several vocabularies: one entry has to match."""
        found: list[int] = []
        for pattern in told:
            listed = _listed(pattern)
            if listed is None:
                found += self._ruled.matching(pattern, purpose)
                continue
            matches = [place for entry in listed for place in self._ruled.places(entry)]
            if listed and not matches:
                total = len(self._vocabulary)
                raise UsageError(
                    f"no entry of {pattern[1:]}, {purpose}, is any of the {total:,} tags"
                )
            found += matches
        return found

    def _cut(self, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Thresholds for one image: in each category the middle of the largest gap between its sorted scores.

        MCut: Largeron, Moulin and Géry, "MCut: a thresholding strategy for multi-label classification" (2012).
        """
        thresholds = self._thresholds.copy()
        for category, places in self._cut_at.items():
            cut = mcut(scores[places])
            thresholds[places] = cut if category in ("", "general") else max(cut, MCUT_FLOOR)
        thresholds[self._own] = self._thresholds[self._own]
        return thresholds

    def _filled(
        self, indices: Sequence[int], scores: npt.NDArray[np.float32], least: int
    ) -> list[int]:
        """As many tags as asked for, with the best of those below their thresholds that make none superfluous."""
        given = set(indices)
        others = (i for i in np.flatnonzero(self._eligible).tolist() if i not in given)
        kept = self._ruled.without_superfluous(indices)
        for index in _best_first(np.fromiter(others, dtype=np.intp), scores):
            if len(kept) >= least:
                break
            grown = self._ruled.without_superfluous([*kept, index])
            if grown == [*kept, index]:
                kept = grown
        return kept

    def _with_rating(self, found: list[int], scores: npt.NDArray[np.float32]) -> list[int]:
        assert self._ratings is not None
        best = int(self._ratings[np.argmax(scores[self._ratings])])
        found = [index for index in found if self._ruled.names[index] != self._ruled.names[best]]
        if self._options.rating == "first":
            return [best, *found]
        if self._options.rating == "last":
            return [*found, best]
        together = [*found, best]
        return self._ruled.ordered(_best_first(np.asarray(together), scores))


def mcut(scores: Scores) -> float:
    """The middle of the largest gap between sorted scores; 1 where there are fewer than two."""
    if len(scores) < 2:
        return 1.0
    ordered = np.sort(scores)[::-1]
    widest = int(np.argmax(ordered[:-1] - ordered[1:]))
    return float((ordered[widest] + ordered[widest + 1]) / 2)


def _best_first(places: npt.NDArray[np.intp], scores: npt.NDArray[np.float32]) -> list[int]:
    order: list[int] = places[np.argsort(-scores[places], kind="stable")].tolist()
    return order


def thresholds_of(
    vocabulary: Vocabulary, options: TaggingOptions, name: str
) -> npt.NDArray[np.float32]:
    """One threshold a tag, float32[t].

    Args:
        vocabulary: Of the tags.
        options: By which thresholds tags are chosen.
        name: What the vocabulary is called in messages.

    Raises:
        UsageError: Options do not fit the vocabulary; the message says what would.
    """
    known = vocabulary.thresholds
    if options.threshold is None and not options.mcut and (options.preset or known):
        preset = options.preset or DEFAULT_PRESET
        if preset not in known:
            raise UsageError(f"{name} has no preset {preset!r}; give a threshold")
        thresholds = np.asarray(known[preset], dtype=np.float32)
    else:
        thresholds = np.full(len(vocabulary), _threshold(options), dtype=np.float32)
    thresholds = thresholds.copy()
    categories = np.asarray(vocabulary.categories, dtype=object)
    for category, value in _fixed_categories(options).items():
        if category not in vocabulary.categories:
            listed = ", ".join(sorted({c for c in vocabulary.categories if c})) or "none"
            raise UsageError(f"{name} has no category {category!r}; it has: {listed}")
        thresholds[categories == category] = value
    places = {tag: place for place, tag in enumerate(vocabulary.names)}
    for tag, value in _tag_thresholds(options.tag_thresholds):
        if tag not in places:
            raise UsageError(f"{options.tag_thresholds}: {name} has no tag {tag!r}")
        thresholds[places[tag]] = value
    return thresholds


def _threshold(options: TaggingOptions) -> float:
    return DEFAULT_THRESHOLD if options.threshold is None else options.threshold


def _fixed_categories(options: TaggingOptions) -> dict[str, float]:
    """The categories whose thresholds are given.

    Raises:
        UsageError: One is not `category=number`.
    """
    found = {}
    for told in options.category_threshold:
        category, _, number = told.rpartition("=")
        value = _number(number)
        if not category or value is None:
            raise UsageError(f"--category-threshold must be like character=0.85, but got {told!r}")
        found[category] = value
    return found


def _tag_thresholds(path: Path | None) -> Iterable[tuple[str, float]]:
    """Tags and thresholds of a CSV file, with or without a head; none without a file."""
    if path is None:
        return
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    for number, row in enumerate(rows, 1):
        if not row or (number == 1 and row[:2] == ["name", "threshold"]):
            continue
        value = _number(row[1]) if len(row) >= 2 else None
        if value is None:
            told = ",".join(row)[:60]
            raise UsageError(f"{path}, line {number}: expected name,threshold, but got {told!r}")
        yield row[0], value


def _number(text: str) -> float | None:
    """A number in 0..1, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0.0 <= value <= 1.0 else None


def _listed(pattern: str) -> list[str] | None:
    """The patterns of '@FILE'; None for what is a pattern itself.

    Raises:
        UsageError: The file cannot be read.
    """
    path = Path(pattern[1:])
    if not pattern.startswith("@") or (not path.suffix and not path.is_file()):
        return None  # a tag may begin with the sign, such as @_@
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("# ")]


def _patterns(told: Iterable[str]) -> list[str]:
    """Patterns, with those of files in the place of '@FILE'."""
    return [entry for pattern in told for entry in (_listed(pattern) or [pattern])]
