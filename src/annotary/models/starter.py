"""The starter: a tagger in ONNX that embeds images and texts, too, so that the two can be compared, and writes captions.

Its files are those of a tagger (`onnx_tagger`); for texts `text.onnx` and `tokenizer.json.gz`; and for captions
`caption.onnx` and `caption_words.txt`. They are read when the first text or caption is asked for: tagging starts as
fast as without them. The card says how a cosine becomes a score.
"""

from __future__ import annotations

import hashlib
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
from annotary.models._generation import Decoding, Written
from annotary.models._texts import Texts
from annotary.models.onnx_tagger import OnnxTagger
from annotary.runtime import RuntimeOptions, Session

if TYPE_CHECKING:
    from annotary.models._starter_captions import CaptionWriter
    from annotary.models._text_tower import TextTower

TEXT_FILE = "text.onnx"
TOKENIZER_FILE = "tokenizer.json.gz"
CAPTION_FILE = "caption.onnx"
WORDS_FILE = "caption_words.txt"
OUTPUT = "image_embeds"

_STOPS = " .。"
"""What ends a sentence and is left out, as in training (`recipes/starter/pairs.py`)."""


class Starter(OnnxTagger):
    """A tagger that embeds images and texts alike, and writes simple captions.

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
        open_captions: Opens the decoder of captions, once.
    """

    def __init__(
        self,
        card: Card,
        vocabulary: Vocabulary,
        session: Session,
        similarity: Similarity,
        open_texts: Callable[[], TextTower],
        open_captions: Callable[[], CaptionWriter],
    ) -> None:
        super().__init__(card, vocabulary, session)
        self.similarity = similarity
        self._open_texts = open_texts
        self._texts: TextTower | None = None
        self._open_captions = open_captions
        self._captions: CaptionWriter | None = None
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

    def check_prompt(self, prompt: str, decoding: Decoding) -> None:
        """Check that a caption can go on from a prompt.

        Raises:
            UsageError: A word is none that the starter writes, or no room is left.
            ModelError: The decoder cannot be run.
        """
        self._writer().beginning(prompt, decoding)

    def write_captions(
        self, batch: npt.NDArray[np.generic], prompts: Sequence[str], decoding: Decoding
    ) -> list[list[Written]]:
        """Captions of every image, best first, each text once. Thread-safe.

        They are experimental: see the card for how often they are right.

        Args:
            batch: b images.
            prompts: b beginnings, which are continued and left out of the texts; they may be of different lengths.
            decoding: How.

        Raises:
            UsageError: A word of a prompt is none that the starter writes, or no room is left.
            ModelError: The decoder cannot be run.
        """
        writer = self._writer()
        beginnings = [writer.beginning(prompt, decoding) for prompt in prompts]
        seeds = [hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest() for image in batch]
        return writer.write(self.embed_images(batch), beginnings, decoding, seeds)

    def _writer(self) -> CaptionWriter:
        with self._lock:
            if self._captions is None:
                self._captions = self._open_captions()
        return self._captions


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

    def open_captions() -> CaptionWriter:
        from annotary.models._starter_captions import CaptionWriter

        own = replace(options, runtime="onnxruntime") if options.runtime == "auto" else options
        return CaptionWriter(directory / CAPTION_FILE, directory / WORDS_FILE, own)

    return Starter(card, vocabulary, session, card.similarity, open_texts, open_captions)
