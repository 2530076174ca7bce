"""What the weights of a query do: what stands among the first images found, by their tags.

python -m benchmarks.query_weights --photos ../shared/data/coco/images

Tags and vectors are the starter's. Subtracting: for each pair, how many of the first ten images have the tag that is
wanted, and how many the one that is to be away. Adding: for photos with a tag and words for something else, how many of
the first five have the tag of the photo, and how many that of the words.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from annotary.api import Annotator, load
from annotary.catalog.query import Term, combined
from annotary.records import Annotation

MINUS = (
    ("animals", "an animal", "dog", "a dog"),
    ("animals", "an animal", "cat", "a cat"),
    ("vehicle", "a vehicle", "cars", "a car"),
    ("food", "food on a table", "pizza", "a pizza"),
    ("sports", "people doing sports", "baseball", "baseball"),
    ("furniture", "furniture", "bed", "a bed"),
    ("animals", "animals", "person", "a person"),
    ("vehicle", "a vehicle", "person", "a person"),
)
"""The tag and the words that are wanted, and those that are to be away."""

PLUS = (
    ("dog", "snow", "in the snow"),
    ("cat", "bed", "on a bed"),
    ("person", "street", "on a street"),
    ("cars", "snow", "in the snow"),
    ("food", "person", "with a person"),
    ("vehicle", "water", "on the water"),
)
"""The tag of photos, and the tag and the words that are added."""

SURE, LIKELY, POSSIBLE = 0.6, 0.4, 0.3
"""Scores of a tag from which on a photo is taken for one of a query, has what is wanted, and has what is added."""


class Photos:
    """Photos with their vectors and the scores of their tags.

    Args:
        model: Embeds and tags.
        folder: Of the photos.
    """

    def __init__(self, model: Annotator, folder: Path) -> None:
        embedded = [record for record in model.embed(folder) if isinstance(record, Annotation)]
        rows = [record.embedding.vector for record in embedded if record.embedding]
        self.vectors = np.array(rows, dtype=np.float32)
        self._tags = {
            record.image: {tag.name: tag.score for tag in record.tags}
            for record in model.tag(folder, threshold=0.05)
            if isinstance(record, Annotation)
        }
        self._names = [record.image for record in embedded]

    def scores(self, tag: str) -> npt.NDArray[np.float64]:
        """The score of a tag for each photo."""
        return np.array([self._tags[name].get(tag, 0.0) for name in self._names])


def shares_of_minus(photos: Photos, model: Annotator, weight: float) -> tuple[float, float]:
    """The shares of what is wanted and of what is to be away among the first ten."""
    shares = []
    for tag, words, away, away_words in MINUS:
        plus, minus = model.embed_texts([words, away_words])
        query = combined([Term(plus, 1.0), Term(minus, -weight)])
        top = np.argsort(-(photos.vectors @ query), kind="stable")[:10]
        shares.append([(photos.scores(name)[top] > LIKELY).mean() for name in (tag, away)])
    return _mean(shares)


def shares_of_plus(photos: Photos, model: Annotator, weight: float) -> tuple[float, float]:
    """The shares of what the photo shows and of what the words say among the first five, without the photo itself."""
    shares = []
    for tag, added, words in PLUS:
        (text,) = model.embed_texts(words)
        for place in np.flatnonzero(photos.scores(tag) > SURE)[:4]:
            query = combined([Term(photos.vectors[place], 1.0), Term(text, weight)])
            cosines = photos.vectors @ query
            cosines[place] = -2
            top = np.argsort(-cosines, kind="stable")[:5]
            shares.append([(photos.scores(name)[top] > POSSIBLE).mean() for name in (tag, added)])
    return _mean(shares)


def _mean(shares: Sequence[Sequence[float]]) -> tuple[float, float]:
    first, second = np.mean(shares, axis=0).tolist()
    return first, second


def tables(photos: Photos, model: Annotator) -> Iterator[str]:
    """The lines of both tables."""
    yield "| `--minus-weight` | what was wanted | what was to be away |\n|---|---|---|"
    for weight in (0.0, 0.25, 0.5, 0.75, 1.0):
        wanted, away = shares_of_minus(photos, model, weight)
        yield f"| {weight:g} | {wanted:.0%} | {away:.0%} |"
    yield "\n| `--text-weight` | what the photo shows | what the words say |\n|---|---|---|"
    for weight in (0.0, 0.5, 1.0, 1.5, 2.0):
        shown, said = shares_of_plus(photos, model, weight)
        yield f"| {weight:g} | {shown:.0%} | {said:.0%} |"


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--photos", type=Path, required=True, help="a folder of real photos")
    options = parser.parse_args()
    model = load("starter")
    for line in tables(Photos(model, options.photos), model):
        print(line, flush=True)


if __name__ == "__main__":
    main()
