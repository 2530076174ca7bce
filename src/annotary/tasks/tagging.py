"""Tagging: which words of a vocabulary are true of an image, each independently of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from annotary.cards import Card, PreprocessSpec, Vocabulary
from annotary.errors import UsageError
from annotary.models import Model
from annotary.tasks import Picture
from annotary.tasks.asking import AsksOneModel
from annotary.tasks.judging import Judge
from annotary.tasks.tag_rules import TagRules
from annotary.tasks.tag_selection import TaggingOptions, TagSelector


class Tagger(Protocol):
    """A model that scores every tag of a vocabulary."""

    card: Card
    vocabulary: Vocabulary
    streams: int
    batch_size: int

    def tag_scores(self, batch: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """Probabilities float32[b, t], 0..1, for a batch prepared as the card says. Thread-safe."""


class Scorer(Protocol):
    """What scores a vocabulary: one tagger, or several that are asked together."""

    vocabulary: Vocabulary

    @property
    def source(self) -> str:
        """Which cards answer: `starter@1.1`, or several with a plus between them."""

    @property
    def inputs(self) -> tuple[PreprocessSpec, ...]:
        """How the images are prepared, once for each different network."""

    @property
    def streams(self) -> int:
        """How many batches it works on at once, at its best."""

    @property
    def batch_size(self) -> int:
        """How many images it takes at once, at its best."""

    def scores(self, *batches: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """Probabilities float32[b, t], 0..1, for the same images prepared as `inputs` says. Thread-safe."""


def tagger(model: Model) -> Tagger:
    """A model as a tagger.

    Raises:
        UsageError: It has not that ability.
    """
    if not hasattr(model, "tag_scores"):
        raise UsageError(f"{model.card.id} is no tagger; choose another model")
    return cast(Tagger, model)


class SingleTagger(AsksOneModel[Tagger]):
    """One tagger as a scorer.

    Args:
        model: The tagger.
    """

    def __init__(self, model: Tagger) -> None:
        super().__init__(model)
        self.vocabulary = model.vocabulary

    def scores(self, *batches: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """Probabilities float32[b, t], 0..1."""
        (batch,) = batches
        return self._model.tag_scores(batch)


class Tagging:
    """The task of tagging.

    Args:
        scorer: Who scores.
        options: Which tags an image gets.
        rules: What they are called, and their order.
        keeps_scores: Whether every image's scores are handed on beside its tags, as `scores` float16[t]. Then the tags
            are chosen by those, which are within 0.0005 of the network's.
        judge: Makes a decision of every image's scores, also of tags that the image does not get.

    Raises:
        UsageError: The options do not fit the vocabulary; the message says what would.
    """

    part = "tags"

    def __init__(
        self,
        scorer: Scorer,
        options: TaggingOptions,
        rules: TagRules | None = None,
        *,
        keeps_scores: bool = False,
        judge: Judge | None = None,
    ) -> None:
        self._scorer = scorer
        self._judge = judge
        place = {name: place for place, name in enumerate(scorer.vocabulary.names)}
        self._judged = {name: place[name] for name in judge.names} if judge else {}
        self._keeps_scores = keeps_scores
        self._selector = TagSelector(scorer.vocabulary, options, rules, scorer.source)

    @property
    def source(self) -> str:
        """Which cards answer."""
        return self._scorer.source

    @property
    def inputs(self) -> tuple[PreprocessSpec, ...]:
        """How images are prepared, once for each network."""
        return self._scorer.inputs

    @property
    def streams(self) -> int:
        """How many batches are worked on at once, at best."""
        return self._scorer.streams

    @property
    def batch_size(self) -> int:
        """How many images are taken at once, at best."""
        return self._scorer.batch_size

    def annotate(
        self, pictures: Sequence[Picture], *batches: npt.NDArray[np.generic]
    ) -> list[Mapping[str, Any]]:
        """The `tags` of every image, and its `scores` where they are kept."""
        return [self._parts(scores) for scores in self._scorer.scores(*batches)]

    def settings(self) -> dict[str, Any]:
        """What the tags depend on beside the models, in one way of writing."""
        judged = {"policy": dict(self._judge.settings())} if self._judge else {}
        return {**self._selector.settings(), **judged}

    def _parts(self, scores: npt.NDArray[np.float32]) -> dict[str, Any]:
        parts: dict[str, Any] = {}
        if self._judge is not None:
            told = {name: float(scores[place]) for name, place in self._judged.items()}
            parts["decision"] = self._judge.decide(told)
        if not self._keeps_scores:
            return {"tags": self._selector.select(scores), **parts}
        # Tags are chosen by what is kept, so that choosing again from it gives the very same.
        kept = scores.astype(np.float16)
        return {"tags": self._selector.select(kept), "scores": kept, **parts}
