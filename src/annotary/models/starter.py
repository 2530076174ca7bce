"""The starter: a tagger in ONNX that embeds images and texts, too, so that the two can be compared.

Its files are those of a tagger (`onnx_tagger`) and, for texts, `text.onnx` and `tokenizer.json.gz`, which are read when
the first text is embedded: tagging starts as fast as without them. The card says how a cosine becomes a score.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from annotary.cards import Card, Similarity, Vocabulary
from annotary.errors import ModelError
from annotary.models import onnx_tagger
from annotary.models._texts import Texts
from annotary.models.onnx_tagger import OnnxTagger
from annotary.runtime import RuntimeOptions, Session

if TYPE_CHECKING:
    from annotary.models._text_tower import TextTower

TEXT_FILE = "text.onnx"
TOKENIZER_FILE = "tokenizer.json.gz"
OUTPUT = "image_embeds"

_STOPS = " .。"
"""What ends a sentence and is left out, as in training (`recipes/starter/pairs.py`)."""


class Starter(OnnxTagger):
    """A tagger that embeds images and texts alike.

    Attributes:
        card: What it is.
        vocabulary: Its tags.
        similarity: How a cosine becomes a score.

    Args:
        card: What it is.
        vocabulary: Its tags.
        session: Of the tagger; it gives `image_embeds` [b, d], too.
        similarity: As the attribute.
        open_texts: Opens the text tower, once.
    """

    def __init__(
        self,
        card: Card,
        vocabulary: Vocabulary,
        session: Session,
        similarity: Similarity,
        open_texts: Callable[[], TextTower],
    ) -> None:
        super().__init__(card, vocabulary, session)
        self.similarity = similarity
        self._open_texts = open_texts
        self._texts: TextTower | None = None
        self._lock = threading.Lock()

    def embed_images(self, batch: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """Unit vectors float32[b, d] for a batch prepared as the card says. Thread-safe.

        Raises:
            ModelError: The network gives what is no vector.
        """
        vectors = self._session.run(batch, OUTPUT)
        lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
        if vectors.ndim != 2 or not np.isfinite(lengths).all() or not lengths.all():
            raise ModelError(f"{self.card.id} gives embeddings that are no numbers")
        return np.asarray(vectors / lengths, np.float32)

    def embed_texts(self, texts: Sequence[str]) -> Texts:
        """Unit vectors of any number of texts, in their order. Thread-safe.

        It works through them in batches of its own; memory grows with the result alone. No template is added. A full
        stop at the end says nothing: the captions that it was trained with have none.

        Raises:
            UsageError: A text is empty.
            ModelError: The text tower cannot be run.
        """
        with self._lock:
            if self._texts is None:
                self._texts = self._open_texts()
        return self._texts.embed(_without_stops(texts))


def _without_stops(texts: Sequence[str]) -> Sequence[str]:
    """Texts without blanks and full stops at their ends; one that is nothing else stays as it is."""
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        return texts  # which is told where texts are checked
    return [text.rstrip(_STOPS) or text for text in texts]


def load(card: Card, directory: Path, options: RuntimeOptions) -> Starter:
    """The starter of a model directory.

    Raises:
        ModelError: A file is missing, damaged, or does not fit the card.
    """
    if card.similarity is None:
        raise ModelError(f"{card.id}: the card must say [similarity]")
    session, vocabulary = onnx_tagger.open_parts(card, directory, options)
    if OUTPUT not in session.outputs:
        raise ModelError(f"{card.id} gives no {OUTPUT}")

    def open_texts() -> TextTower:
        from annotary.models._text_tower import TextTower  # it brings the library tokenizers

        # Texts are few, short and of many lengths: with nothing asked they run in what starts first, to the last bit.
        is_free = (options.runtime, options.precision) == ("auto", "auto")
        own = replace(options, runtime="onnxruntime") if is_free else options
        return TextTower(directory / TEXT_FILE, directory / TOKENIZER_FILE, own)

    return Starter(card, vocabulary, session, card.similarity, open_texts)
