"""Taggers that are an ONNX file and a table of tags: the starter, and any directory with a card that says so.

The file takes images as the card's `[preprocess]` says and gives `scores` [b, t], one for each row of `tags.csv`, and
may give `features` [b, d]. `annotary models add` writes such a card.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import numpy.typing as npt

from annotary.cards import CARD_FILE, TAGS_FILE, Card, Vocabulary, read_card, read_vocabulary
from annotary.errors import ModelError
from annotary.models._onnx_graph import check_input
from annotary.models._probabilities import probabilities
from annotary.runtime import Choice, RuntimeOptions, Session, open_onnx

MODEL_FILE = "model.onnx"


class OnnxTagger:
    """A tagger in ONNX.

    Attributes:
        card: What it is.
        vocabulary: Its tags.
    """

    def __init__(self, card: Card, vocabulary: Vocabulary, session: Session) -> None:
        self.card = card
        self.vocabulary = vocabulary
        self.streams = session.choice.streams
        self.batch_size = session.fixed_batch or session.choice.batch_size
        self._session = session
        if "scores" not in session.outputs and len(session.outputs) > 1:
            raise ModelError(f"{card.id} has several outputs and none is called scores")
        self._scores = "scores" if "scores" in session.outputs else session.outputs[0]

    @property
    def choice(self) -> Choice:
        """What it runs on, and why."""
        return self._session.choice

    def tag_scores(self, batch: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """Probabilities float32[b, t], 0..1, for a batch prepared as the card says."""
        scores = self._session.run(batch, self._scores)
        return probabilities(self.card, scores, len(batch), len(self.vocabulary))

    def features(self, batch: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """The pooled embedding float32[b, d], not normalised.

        Raises:
            ModelError: The file has no output `features`.
        """
        if "features" not in self._session.outputs:
            raise ModelError(f"{self.card.id} gives no features")
        return self._session.run(batch, "features")


def files(names: Collection[str], options: RuntimeOptions) -> tuple[str, ...] | None:
    """The files of a directory with a card of this family; without a card it is nobody's, and torch cannot run it.

    Of several networks that have names of their own the card says which it is.
    """
    networks = [name for name in names if name.lower().endswith(".onnx")]
    if not {CARD_FILE, TAGS_FILE} <= set(names) or not networks or options.runtime == "torch":
        return None
    network = (MODEL_FILE,) if MODEL_FILE in networks else networks if len(networks) == 1 else ()
    return (CARD_FILE, *network, TAGS_FILE)


def describe(directory: Path) -> Card:
    """The card, which this family cannot do without."""
    return read_card(directory)


def load(card: Card, directory: Path, options: RuntimeOptions) -> OnnxTagger:
    """The tagger of a model directory."""
    session, vocabulary = open_parts(card, directory, options)
    return OnnxTagger(card, vocabulary, session)


def open_parts(card: Card, directory: Path, options: RuntimeOptions) -> tuple[Session, Vocabulary]:
    """The network and the tags of a model directory.

    Raises:
        ModelError: They do not fit the card.
    """
    path = directory / network_file(card)
    session = open_onnx(path, options, name=card.name)
    check_input(path, card)
    try:
        return session, read_vocabulary(directory).with_thresholds(card.thresholds)
    except ValueError as error:
        raise ModelError(f"{card.id}: {error}") from error


def network_file(card: Card) -> str:
    """The network: the only ONNX file that the card lists, or `model.onnx`."""
    listed = [name for name in card.files if name.lower().endswith(".onnx")]
    return listed[0] if len(listed) == 1 else MODEL_FILE
