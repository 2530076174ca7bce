"""WD taggers: SmilingWolf's taggers of drawings, versions 2 and 3, as ONNX files with `selected_tags.csv`.

Original code: SmilingWolf's SW-CV-ModelZoo (v2) and JAX-CV (v3); the weights are on Hugging Face (Apache-2.0).

Other than the networks for photos these take blue before green before red, 0..255, channels last. The file holds the
sigmoid. Tags are in the three categories of the file, `rating`, `general` and `character`; the four ratings exclude
each other. Version 2 takes one image at a time.
"""

from __future__ import annotations

import csv
from collections.abc import Collection
from pathlib import Path

import numpy as np
import numpy.typing as npt

from annotary.cards import Card, PreprocessSpec, Vocabulary
from annotary.errors import ModelError
from annotary.models._onnx_graph import check_input, read_graph
from annotary.models._probabilities import probabilities
from annotary.runtime import Choice, RuntimeOptions, Session, open_onnx

MODEL_FILE = "model.onnx"
TAGS_FILE = "selected_tags.csv"
LOOKED_FOR = f"{TAGS_FILE} with {MODEL_FILE}"

CATEGORIES = {
    "0": "general",
    "1": "artist",
    "3": "copyright",
    "4": "character",
    "5": "meta",
    "9": "rating",
}
"""The numbers in `selected_tags.csv`: Danbooru's, and 9. SmilingWolf's have 0, 4 and 9, others may have more."""

THRESHOLDS = {"balanced": {"general": 0.35, "character": 0.85, "*": 0.35}}
"""What SmilingWolf's own demonstration starts with (huggingface.co/spaces/SmilingWolf/wd-tagger); ratings, of which it
shows all four, have the threshold of general tags."""


class WdTagger:
    """A WD tagger.

    Attributes:
        card: What it is.
        vocabulary: Its tags, with the names of `selected_tags.csv`.
    """

    def __init__(self, card: Card, vocabulary: Vocabulary, session: Session) -> None:
        self.card = card
        self.vocabulary = vocabulary
        self.streams = session.choice.streams
        self.batch_size = session.fixed_batch or session.choice.batch_size
        self._session = session

    @property
    def choice(self) -> Choice:
        """What it runs on, and why."""
        return self._session.choice

    def tag_scores(self, batch: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """Probabilities float32[b, t], 0..1, for a batch prepared as the card says."""
        scores = self._session.run(batch, self._session.outputs[0])
        return probabilities(self.card, scores, len(batch), len(self.vocabulary))


def files(names: Collection[str], options: RuntimeOptions) -> tuple[str, ...] | None:
    """`model.onnx` and `selected_tags.csv`; without both it is not this family's, and torch cannot run it."""
    needed = (MODEL_FILE, TAGS_FILE)
    return needed if set(needed) <= set(names) and options.runtime != "torch" else None


def describe(directory: Path) -> Card:
    """A card for a directory that has none; the network tells its size.

    Raises:
        ModelError: The network is damaged, or takes no images as this family does.
    """
    path = directory / MODEL_FILE
    shape = read_graph(path).inputs[0].shape
    if len(shape) != 4 or shape[3] != 3 or shape[1] is None or shape[2] is None:
        raise ModelError(
            f"{path} is no WD tagger: it does not take images [images, height, width, 3]; annotary"
            f" models add {directory} writes a card for others"
        )
    return Card(
        name=directory.name or "wd",
        version="unversioned",
        family="wd",
        licence="unknown",
        description="A WD tagger.",
        preprocess=preprocess_of((shape[1], shape[2])),
        thresholds=THRESHOLDS,
    )


def preprocess_of(size: tuple[int, int]) -> PreprocessSpec:
    """How WD taggers want their images: a white square, bicubic, BGR 0..255, channels last."""
    return PreprocessSpec(
        size=size,
        fit="pad",
        resample="bicubic",
        pad_colour=(255, 255, 255),
        channel_order="bgr",
        layout="nhwc",
        dtype="float32",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )


def load(card: Card, directory: Path, options: RuntimeOptions) -> WdTagger:
    """The tagger of a directory or a repository.

    Raises:
        ModelError: A file is missing, damaged, or does not fit the others.
    """
    path = directory / MODEL_FILE
    session = open_onnx(path, options, name=card.name)
    check_input(path, card)
    return WdTagger(card, read_tags(directory / TAGS_FILE, card), session)


def read_tags(path: Path, card: Card) -> Vocabulary:
    """The vocabulary of a `selected_tags.csv`: columns `name` and `category`, which is a number.

    Raises:
        ModelError: It cannot be read, or holds something else.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        if not rows or not {"name", "category"} <= set(rows[0]):
            raise ValueError("it has no rows, or not the columns 'name' and 'category'")
        numbers = [row["category"].strip() for row in rows]
        if unknown := sorted(set(numbers) - set(CATEGORIES)):
            raise ValueError(f"it has unknown categories: {', '.join(unknown)}")
        vocabulary = Vocabulary(
            names=tuple(row["name"] for row in rows),
            categories=tuple(CATEGORIES[number] for number in numbers),
        )
        return vocabulary.with_thresholds(card.thresholds)
    except (OSError, AttributeError, csv.Error, ValueError) as error:
        raise ModelError(f"cannot read the tags of {path}: {error}") from error
