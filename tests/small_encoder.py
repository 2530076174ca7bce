"""A small encoder of images and texts that really computes, on one sphere and without weights.

An image is what colours it has where: its mean colour, and those of its four quarters. A text is the mean of its words,
each a direction of its own that follows from a digest; a word that names a colour is what a picture of that colour is.
So "a photo of a red wall" is nearer to a red photo than to a blue one.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from annotary.cards import Card, PreprocessSpec, Similarity
from annotary.runtime import Choice
from annotary.tasks.encoding import Texts, Vectors

SIDE = 8
"""Pixels of the input, which is square."""

DIMENSIONS = 24

COLOURS = {
    "red": (230, 20, 20),
    "green": (20, 200, 30),
    "blue": (20, 40, 230),
    "yellow": (240, 230, 20),
    "white": (250, 250, 250),
    "black": (5, 5, 5),
}
"""Words that mean something: RGB 0..255."""


class SmallEncoder:
    """An image-text encoder, as `annotary.tasks.encoding.DualEncoder`.

    Args:
        kind: Whether texts compete (`softmax`, scale 20) or are judged one by one (`sigmoid`, scale 20, bias -8).
        name: Of its card; other names are other models.
        most_words: Words of a text that are read; a longer one is truncated.
        batch_size: Images at once.

    Attributes:
        calls: The texts of every call of `embed_texts`, in order.
        images: How many images were embedded.
    """

    def __init__(
        self,
        kind: Literal["softmax", "sigmoid"] = "softmax",
        *,
        name: str = "small",
        most_words: int = 16,
        batch_size: int = 4,
    ) -> None:
        self.similarity = Similarity(kind, 20.0, -8.0 if kind == "sigmoid" else 0.0)
        self.card = Card(
            name,
            "1.0",
            "small_encoder",
            "Apache-2.0",
            PreprocessSpec(size=(SIDE, SIDE), fit="squash", resample="box"),
            similarity=self.similarity,
        )
        self.streams = 1
        self.batch_size = batch_size
        self.calls: list[tuple[str, ...]] = []
        self.images = 0
        self._most_words = most_words
        self._lock = threading.Lock()

    @property
    def choice(self) -> Choice:
        """It runs on NumPy."""
        return Choice("NumPy", "cpu", "fp32", self.streams, 1, "it is small", self.batch_size)

    @property
    def texts(self) -> int:
        """How many texts were embedded."""
        return sum(map(len, self.calls))

    def embed_images(self, batch: npt.NDArray[np.generic]) -> Vectors:
        """Unit vectors float32[b, d] of pictures float32[b, 3, SIDE, SIDE], 0..1."""
        assert batch.shape[1:] == (3, SIDE, SIDE)
        with self._lock:
            self.images += len(batch)
        return _of_pictures(batch.astype(np.float64))

    def embed_texts(self, texts: Sequence[str]) -> Texts:
        """Unit vectors of texts; nothing is read behind the last word that fits in."""
        with self._lock:
            self.calls.append(tuple(texts))
        words = [text.lower().split() for text in texts]
        sums = [sum(map(_of_word, ["", *of_text[: self._most_words]])) for of_text in words]
        vectors = np.array(sums, dtype=np.float64).reshape(len(texts), DIMENSIONS)
        truncated = np.array([len(of_text) > self._most_words for of_text in words], dtype=np.bool_)
        return Texts(_unit(vectors), truncated)


def plain(colour: tuple[int, int, int]) -> npt.NDArray[np.float32]:
    """A batch of one picture that has one colour all over, RGB 0..255."""
    pixels = np.array(colour, dtype=np.float32).reshape(1, 3, 1, 1) / 255
    return np.broadcast_to(pixels, (1, 3, SIDE, SIDE)).astype(np.float32)


def _of_pictures(batch: npt.NDArray[np.float64]) -> Vectors:
    half = SIDE // 2
    quarters = batch.reshape(len(batch), 3, 2, half, 2, half).mean(axis=(3, 5))
    means = quarters.mean(axis=(2, 3))
    features = np.concatenate([2 * means - 1, quarters.reshape(len(batch), 12) - 0.5], axis=1)
    return _unit(features @ _projection() + 0.05)


@lru_cache(maxsize=1)
def _projection() -> npt.NDArray[np.float64]:
    return np.random.default_rng(1).normal(size=(15, DIMENSIONS))


@lru_cache(maxsize=1 << 16)
def _of_word(word: str) -> npt.NDArray[np.float64]:
    """The direction of a word; one that means a colour has more weight than one that means nothing."""
    word = word.strip(".,!?")
    if word in COLOURS:
        return 2 * _of_pictures(plain(COLOURS[word]).astype(np.float64))[0].astype(np.float64)
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8])
    direction = np.random.default_rng(seed).normal(size=DIMENSIONS)
    return np.asarray(0.3 * direction / np.linalg.norm(direction))


def _unit(vectors: npt.NDArray[np.float64]) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / lengths, dtype=np.float32)
