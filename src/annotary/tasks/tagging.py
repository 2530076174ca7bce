"""Tagging: which words of a vocabulary are true of an image, each independently of the others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt

from annotary.cards import PRESETS, Card, PreprocessSpec, Vocabulary
from annotary.errors import UnknownName, UsageError
from annotary.models import Model
from annotary.records import Tag

DEFAULT_PRESET = "balanced"
DEFAULT_THRESHOLD = 0.4
"""For vocabularies without presets: what JoyTag's README uses."""


class Tagger(Protocol):
    """A model that scores every tag of a vocabulary."""

    card: Card
    vocabulary: Vocabulary
    streams: int
    batch_size: int

    def tag_scores(self, batch: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """Probabilities float32[b, t], 0..1, for a batch prepared as the card says. Thread-safe."""


def tagger(model: Model) -> Tagger:
    """A model as a tagger.

    Raises:
        UsageError: It has not that ability.
    """
    if not hasattr(model, "tag_scores"):
        raise UsageError(f"{model.card.id} is no tagger; choose another model")
    return cast(Tagger, model)


@dataclass(frozen=True, slots=True)
class TaggingOptions:
    """Which tags an image gets."""

    threshold: float | None = None
    """Keep tags whose probability is at least this, 0..1. Takes the place of the preset."""

    preset: str | None = None
    """A set of thresholds, one a tag, that came with the model: balanced (best F1; what is used when nothing is
    said), precise (few wrong tags) or broad (few missed tags)."""

    top: int | None = None
    """Keep at most this many tags. With --threshold 0: exactly this many."""

    exclude: tuple[str, ...] = ()
    """Leave out tags that match this pattern, such as 'dog' or '*fish*'. May be given several times."""

    def __post_init__(self) -> None:
        if self.threshold is not None and self.preset is not None:
            raise UsageError("--threshold and --preset exclude each other; say one of them")
        if self.threshold is not None and not 0.0 <= self.threshold <= 1.0:
            raise UsageError(f"--threshold must be in 0..1, but got {self.threshold}")
        if self.preset is not None and self.preset not in PRESETS:
            raise UnknownName("preset", self.preset, PRESETS)
        if self.top is not None and self.top < 1:
            raise UsageError(f"--top must be at least 1, but got {self.top}")


class Tagging:
    """The task of tagging with one model.

    Args:
        model: The tagger.
        options: Which tags an image gets.

    Raises:
        UsageError: The options do not fit the model; the message says what would.
    """

    part = "tags"

    def __init__(self, model: Tagger, options: TaggingOptions) -> None:
        self._model = model
        self._top = options.top
        self._thresholds = _thresholds(model, options)
        self._kept = _kept(model.vocabulary, options.exclude)

    @property
    def source(self) -> str:
        """The id of the model's card."""
        return self._model.card.id

    @property
    def preprocess(self) -> PreprocessSpec:
        """How the model's images are prepared."""
        return self._model.card.preprocess

    @property
    def streams(self) -> int:
        """How many batches the network works on at once, at its best."""
        return self._model.streams

    @property
    def batch_size(self) -> int:
        """How many images the network takes at once, at its best."""
        return self._model.batch_size

    def annotate(self, batch: npt.NDArray[np.generic]) -> list[tuple[Tag, ...]]:
        """The tags of every image of a batch, in descending order of score."""
        return [self._select(scores) for scores in self._model.tag_scores(batch)]

    def _select(self, scores: npt.NDArray[np.float32]) -> tuple[Tag, ...]:
        vocabulary = self._model.vocabulary
        chosen = np.flatnonzero((scores >= self._thresholds) & self._kept)
        order = chosen[np.argsort(-scores[chosen], kind="stable")][: self._top]
        return tuple(
            Tag(vocabulary.names[i], round(float(scores[i]), 6), vocabulary.categories[i])
            for i in order.tolist()
        )


def _thresholds(model: Tagger, options: TaggingOptions) -> npt.NDArray[np.float32]:
    """One threshold a tag, float32[t]."""
    known = model.vocabulary.thresholds
    if options.threshold is None and (options.preset or known):
        preset = options.preset or DEFAULT_PRESET
        if preset not in known:
            raise UsageError(f"{model.card.id} has no preset {preset!r}; say --threshold")
        return np.asarray(known[preset], dtype=np.float32)
    threshold = DEFAULT_THRESHOLD if options.threshold is None else options.threshold
    return np.full(len(model.vocabulary), threshold, dtype=np.float32)


def _kept(vocabulary: Vocabulary, exclude: Iterable[str]) -> npt.NDArray[np.bool_]:
    """Which tags no pattern excludes, bool[t]."""
    kept = np.ones(len(vocabulary), dtype=np.bool_)
    for pattern in exclude:
        matches = [fnmatchcase(name, pattern) for name in vocabulary.names]
        if not any(matches):
            raise UsageError(f"--exclude {pattern!r} matches none of the {len(vocabulary)} tags")
        kept &= ~np.asarray(matches)
    return kept
