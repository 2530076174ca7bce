"""Tagging: which words of a vocabulary are true of an image, each independently of the others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from annotary.cards import PRESETS, Card, PreprocessSpec, Preset, Vocabulary
from annotary.errors import UsageError
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

    preset: Preset | None = None
    """A set of thresholds, one a tag, that came with the model: balanced (best F1; what is used when nothing is
    said), precise (few wrong tags) or broad (few missed tags)."""

    top: int | None = None
    """Keep at most this many tags. With --threshold 0: exactly this many."""

    exclude: tuple[str, ...] = ()
    """Leave out tags that match this pattern, such as 'dog' or '*fish*'. May be given several times."""

    def __post_init__(self) -> None:
        if self.threshold is not None and self.preset is not None:
            raise ValueError("threshold takes the place of preset; give one of them")
        if self.threshold is not None and not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"threshold must be in 0..1, but got {self.threshold}")
        if self.preset is not None and self.preset not in PRESETS:
            known = ", ".join(PRESETS)
            raise ValueError(f"preset must be one of {known}, but got {self.preset!r}")
        if self.top is not None and self.top < 1:
            raise ValueError(f"top must be at least 1, but got {self.top}")
        if isinstance(self.exclude, str):
            raise ValueError("exclude must be several patterns, not one text")


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
        self._options = options
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

    def settings(self) -> dict[str, Any]:
        """What the tags depend on beside the model, in one way of writing: equal settings give equal tags."""
        chosen = self._options
        known = self._model.vocabulary.thresholds
        by_preset = chosen.threshold is None and (chosen.preset or known)
        return {
            "preset": (chosen.preset or DEFAULT_PRESET) if by_preset else None,
            "threshold": None if by_preset else _threshold(chosen),
            "top": chosen.top,
            "exclude": sorted(set(chosen.exclude)),
        }

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
            raise UsageError(f"{model.card.id} has no preset {preset!r}; give a threshold")
        return np.asarray(known[preset], dtype=np.float32)
    return np.full(len(model.vocabulary), _threshold(options), dtype=np.float32)


def _threshold(options: TaggingOptions) -> float:
    return DEFAULT_THRESHOLD if options.threshold is None else options.threshold


def _kept(vocabulary: Vocabulary, exclude: Iterable[str]) -> npt.NDArray[np.bool_]:
    """Which tags no pattern excludes, bool[t]."""
    kept = np.ones(len(vocabulary), dtype=np.bool_)
    for pattern in exclude:
        matches = [fnmatchcase(name, pattern) for name in vocabulary.names]
        if not any(matches):
            raise UsageError(
                f"{pattern!r}, to be excluded, matches none of the {len(vocabulary)} tags"
            )
        kept &= ~np.asarray(matches)
    return kept
