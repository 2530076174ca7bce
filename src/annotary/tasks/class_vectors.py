"""The vectors of labels: every prompt is embedded once a run, and once at all where a cache remembers it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from annotary.errors import ModelError
from annotary.tasks.encoding import DualEncoder, Texts, Vectors
from annotary.tasks.label_sets import LabelClass
from annotary.tasks.text_cache import TextCache, key_of

_PROMPTS_AT_ONCE = 4096
"""The model is given so many prompts at a time, or all those of one label: 20,000 labels in 80 templates are 1.6
million, and their vectors before they are averaged would not fit in memory."""


class ClassVectors(NamedTuple):
    """Labels as vectors.

    Attributes:
        vectors: float32[n, d], unit length: the normalised mean of the label's normalised prompts.
        is_truncated: bool[n]; whether a prompt of the label was too long for the model.
    """

    vectors: Vectors
    is_truncated: npt.NDArray[np.bool_]


def class_vectors(
    model: DualEncoder, classes: Sequence[LabelClass], cache: TextCache | None = None
) -> ClassVectors:
    """Embed labels.

    Args:
        model: What embeds texts.
        classes: The labels with their prompts.
        cache: Remembers vectors between runs.

    Raises:
        ModelError: The prompts of a label cancel each other out, so that it has no direction.
    """
    keys = [key_of(label.prompts) for label in classes]
    known = {} if cache is None else cache.get(keys)
    lacking = [i for key, i in {key: i for i, key in enumerate(keys)}.items() if key not in known]
    for part in _in_parts(classes, lacking):
        found = _embedded(model, [classes[i] for i in part])
        own = [keys[i] for i in part]
        known.update(
            zip(own, zip(found.vectors, map(bool, found.is_truncated), strict=True), strict=True)
        )
        if cache is not None:
            cache.put(own, found)
    vectors = [known[key][0] for key in keys]
    if len({len(vector) for vector in vectors}) > 1:
        # Somebody else wrote into the cache: what it says is not believed.
        return class_vectors(model, classes)
    truncated = np.array([known[key][1] for key in keys], dtype=np.bool_)
    return ClassVectors(np.stack(vectors).astype(np.float32, copy=False), truncated)


def _in_parts(classes: Sequence[LabelClass], places: Sequence[int]) -> Iterator[list[int]]:
    """Places of labels that together have a bounded number of prompts."""
    part: list[int] = []
    count = 0
    for place in places:
        own = len(classes[place].prompts)
        if part and count + own > _PROMPTS_AT_ONCE:
            yield part
            part, count = [], 0
        part.append(place)
        count += own
    if part:
        yield part


def _embedded(model: DualEncoder, classes: Sequence[LabelClass]) -> Texts:
    """One vector a label."""
    prompts = [prompt for label in classes for prompt in label.prompts]
    texts = model.embed_texts(prompts)
    starts = np.cumsum([0, *(len(label.prompts) for label in classes[:-1])])
    sums = np.add.reduceat(texts.vectors, starts, axis=0)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    if not (has_direction := np.isfinite(lengths) & (lengths > 1e-6)).all():
        name = classes[int(np.argmin(has_direction))].name
        raise ModelError(f"{model.card.id} makes nothing of the prompts of {name!r}")
    vectors = (sums / lengths).astype(np.float32)
    return Texts(vectors, np.logical_or.reduceat(texts.is_truncated, starts))
