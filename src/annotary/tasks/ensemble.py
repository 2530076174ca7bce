"""Several taggers asked together: the mean where they know the same tag, and what each knows alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from annotary.cards import PreprocessSpec, Vocabulary
from annotary.errors import UsageError
from annotary.tasks.tag_rules import with_spaces
from annotary.tasks.tag_selection import DEFAULT_PRESET, DEFAULT_THRESHOLD
from annotary.tasks.tagging import Tagger


class Ensemble:
    """Taggers as one scorer.

    Two tags are the same when their names differ only in case and in underscores for spaces. A tag is called, and
    categorised, as by the first model that knows it. Its score is the mean of the scores of the models that know it,
    and so are its thresholds; a model without presets counts with the threshold 0.4.

    Args:
        models: Two or more, each once.

    Raises:
        UsageError: There are fewer than two, or one is named twice.
    """

    def __init__(self, models: Sequence[Tagger]) -> None:
        if len({id(model) for model in models}) < max(2, len(models)):
            listed = ", ".join(model.card.id for model in models) or "none"
            raise UsageError(f"an ensemble needs two or more different models, but got {listed}")
        self._models = tuple(models)
        self.vocabulary, self._places = _united([model.vocabulary for model in models])
        self._counts = np.zeros(len(self.vocabulary), dtype=np.float32)
        for places in self._places:
            self._counts[places] += 1

    @property
    def source(self) -> str:
        """The ids of the models' cards, with a plus between them."""
        return "+".join(model.card.id for model in self._models)

    @property
    def inputs(self) -> tuple[PreprocessSpec, ...]:
        """How each model's images are prepared."""
        return tuple(model.card.preprocess for model in self._models)

    @property
    def streams(self) -> int:
        """As many batches at once as the model that takes the fewest."""
        return min(model.streams for model in self._models)

    @property
    def batch_size(self) -> int:
        """As many images at once as the model that takes the fewest."""
        return min(model.batch_size for model in self._models)

    def scores(self, *batches: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """Probabilities float32[b, t], 0..1; one batch for each model, of the same images."""
        total = np.zeros((len(batches[0]), len(self.vocabulary)), dtype=np.float32)
        for model, places, batch in zip(self._models, self._places, batches, strict=True):
            total[:, places] += model.tag_scores(batch)
        total /= self._counts
        return np.clip(total, 0.0, 1.0, out=total)


def _united(
    vocabularies: Sequence[Vocabulary],
) -> tuple[Vocabulary, list[npt.NDArray[np.intp]]]:
    """All tags, and for each vocabulary the places of its tags among them."""
    place_of: dict[str, int] = {}
    names: list[str] = []
    categories: list[str] = []
    places: list[npt.NDArray[np.intp]] = []
    for vocabulary in vocabularies:
        own: dict[int, None] = {}
        for name, category in zip(vocabulary.names, vocabulary.categories, strict=True):
            key = with_spaces(name.casefold())
            if key not in place_of or place_of[key] in own:
                # A vocabulary may hold two names that differ only in case: they stay two tags.
                key = key if key not in place_of else f"{key}\0{name}"
                place_of[key] = len(names)
                names.append(name)
                categories.append(category)
            place = place_of[key]
            categories[place] = categories[place] or category
            own[place] = None
        places.append(np.fromiter(own, dtype=np.intp))
    presets = dict.fromkeys(name for vocabulary in vocabularies for name in vocabulary.thresholds)
    thresholds = {
        preset: _mean_thresholds(preset, vocabularies, places, len(names)) for preset in presets
    }
    return Vocabulary(tuple(names), tuple(categories), thresholds), places


def _mean_thresholds(
    preset: str,
    vocabularies: Sequence[Vocabulary],
    places: Sequence[npt.NDArray[np.intp]],
    size: int,
) -> tuple[float, ...]:
    total, count = np.zeros(size), np.zeros(size)
    for vocabulary, own in zip(vocabularies, places, strict=True):
        known = vocabulary.thresholds.get(preset, vocabulary.thresholds.get(DEFAULT_PRESET))
        total[own] += np.full(len(own), DEFAULT_THRESHOLD) if known is None else known
        count[own] += 1
    mean: list[float] = np.clip(total / count, 0.0, 1.0).tolist()
    return tuple(mean)
