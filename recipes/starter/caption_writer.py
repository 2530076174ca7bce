"""Writes captions with the decoder as ONNX, which takes an image's vector and the words written so far.

Nothing is kept between two words: with some twenty words and two small blocks it is as fast to read them all again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from annotary.errors import ModelError, UsageError
from annotary.models import _decoding
from annotary.models._generation import Decoding, Written
from annotary.runtime import RuntimeOptions, open_onnx

IMAGE, NUMBERS, OUTPUT = "image_embeds", "numbers", "logits"

START, END, FIRST_WORD = 1, 2, 4
"""Numbers of what begins and ends a caption, and of the first word (`annotary.training.captioner`)."""

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")

_NEVER = np.float32(-1e4)
"""Log-odds of what is no word."""

_UNKNOWN_TOLD = 5
"""Words of a prompt that a message names at most."""


class CaptionWriter:
    """Writes captions of image vectors. Safe to call from several threads.

    The file takes `numbers` int64[r, t] and `image_embeds` float32[r, d], and gives `logits` float32[r, v] of the word
    that follows.

    Args:
        path: The ONNX file.
        words_path: The words, one a line, in the order of their numbers.
        options: How it runs.

    Raises:
        ModelError: A file is missing, damaged, or no such network.
        UsageError: What the options ask for cannot be had.
    """

    def __init__(self, path: Path, words_path: Path, options: RuntimeOptions) -> None:
        if not words_path.is_file():
            raise ModelError(f"{words_path} is missing")
        self._words = words_path.read_text(encoding="utf-8").splitlines()
        self._numbers = {word: number for number, word in enumerate(self._words)}
        self._session = open_onnx(path, options)
        if set(self._session.inputs) != {IMAGE, NUMBERS} or OUTPUT not in self._session.outputs:
            raise ModelError(
                f"{path} is no decoder of captions: it must take {NUMBERS} and {IMAGE} and give {OUTPUT}"
            )

    def beginning(self, prompt: str, decoding: Decoding) -> list[int]:
        """The numbers of a prompt, with the start.

        Raises:
            UsageError: A word is not among those that can be written, or no room is left.
        """
        words = [word.replace("’", "'") for word in _WORD.findall(prompt.lower())]
        unknown = [word for word in words if self._numbers.get(word, 0) < FIRST_WORD]
        if unknown:
            told = ", ".join(dict.fromkeys(unknown[:_UNKNOWN_TOLD]))
            known = len(self._words) - FIRST_WORD
            raise UsageError(
                f"the decoder writes {known:,} words, and these of the prompt are none of them: {told}"
            )
        if len(words) + 1 >= decoding.max_length:
            raise UsageError(
                f"the prompt takes {len(words) + 1} tokens with its start, and max_length is"
                f" {decoding.max_length}: allow more, or say less"
            )
        return [START, *(self._numbers[word] for word in words)]

    def write(
        self,
        vectors: npt.NDArray[np.float32],
        beginnings: Sequence[Sequence[int]],
        decoding: Decoding,
        seeds: Sequence[bytes],
    ) -> list[list[Written]]:
        """Captions of images, best first, each text once.

        Args:
            vectors: float32[b, d].
            beginnings: Of each caption; they may be of different lengths.
            decoding: How.
            seeds: Some bytes of each image, for drawing.
        """
        found: list[list[Written]] = [[] for _ in beginnings]
        for length in dict.fromkeys(map(len, beginnings)):
            places = [place for place, own in enumerate(beginnings) if len(own) == length]
            step = _Step(self, vectors[places])
            first = np.array([beginnings[place] for place in places], np.int64)
            written = _decoding.write(step, first, decoding, END, [seeds[p] for p in places])
            for place, texts in zip(places, written, strict=True):
                each: dict[str, Written] = {}
                for text in texts:
                    words = " ".join(self._words[number] for number in text.tokens)
                    each.setdefault(words, Written(words, float(np.exp(text.score))))
                found[place] = list(each.values())
        return found

    def logits(
        self, vectors: npt.NDArray[np.float32], numbers: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """Logits float32[r, v] of the word that follows each text."""
        logits = self._session.run(numbers, OUTPUT, {IMAGE: vectors}).copy()
        logits[:, [place for place in range(FIRST_WORD) if place != END]] = _NEVER
        return logits


class _Step:
    """What is written about some images, for `_decoding.Step`."""

    def __init__(self, writer: CaptionWriter, vectors: npt.NDArray[np.float32]) -> None:
        self._writer = writer
        self._vectors = vectors
        self._numbers = np.zeros((0, 0), np.int64)

    def begin(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        self._numbers = tokens
        return self._writer.logits(self._vectors, self._numbers)

    def follow(
        self, tokens: npt.NDArray[np.int64], earlier: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        self._numbers = np.concatenate([self._numbers[earlier], tokens[:, None]], axis=1)
        self._vectors = self._vectors[earlier]
        return self._writer.logits(self._vectors, self._numbers)
