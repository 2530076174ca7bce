"""A second look at what a search found first, by a model that sees image and text together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from annotary.errors import UsageError
from annotary.images import DecodeOptions
from annotary.pipeline.local import PipelineOptions
from annotary.runtime import RuntimeOptions
from annotary.sources import SourceOptions

LOOKED_AT = 128
"""The best of a search that are looked at again, as BLIP does with Flickr30k."""


def second_look(
    places: Sequence[str], text: str, values: Mapping[str, Any]
) -> list[tuple[int, float]]:
    """The order of what was found, after a second look at it.

    Args:
        places: Paths and addresses of the images, the best by cosine first; empty for what cannot be read again.
        text: What was searched for.
        values: The values of the command's options, of which `rerank` names the model.

    Returns:
        Places in what was given, each with the probability that the text belongs to the image, 0..1; the best first.
        What could not be looked at is left out.

    Raises:
        UsageError: The model does not judge texts.
    """
    import numpy as np

    from annotary.cli._annotating import loaded
    from annotary.cli._options import made
    from annotary.cli._output import tell
    from annotary.pipeline import annotate
    from annotary.records import Annotation, Item
    from annotary.sources import Reader
    from annotary.tasks.matching import SecondLook, rerank
    from annotary.tasks.writing import matcher

    model = matcher(loaded(values["rerank"], made(RuntimeOptions, values)).model)
    where = [number for number, place in enumerate(places) if place]
    items = (
        Item(place, url=place)
        if place.startswith(("http://", "https://"))
        else Item.from_path(place)
        for place in (places[number] for number in where)
    )
    kept: list[int] = []
    found = []
    with Reader(made(SourceOptions, values)) as reader:
        results = annotate(
            *(items, [SecondLook(model, text)], reader),
            *(made(DecodeOptions, values), made(PipelineOptions, values)),
        )
        for number, result in zip(where, results, strict=True):
            if isinstance(result.record, Annotation):
                kept.append(number)
                found.append(result.beside["match"])
            else:
                tell(f"{result.record.image}: {result.record.message}")
    if any(one.cosine is None or one.logit is None for one in found):
        raise UsageError(f"{model.card.id} judges texts, but does not say what --rerank adds up")
    cosines = np.array([one.cosine for one in found], np.float32)
    order = rerank(cosines, np.array([one.logit for one in found], np.float32))
    return [(kept[place], found[place].score) for place in order]
