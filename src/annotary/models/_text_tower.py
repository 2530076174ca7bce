"""The text half of an image-text encoder as an ONNX file with a `tokenizer.json`."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from annotary.errors import ModelError, UsageError
from annotary.models._texts import Texts
from annotary.models._tokens import TextTokens, TokenRule
from annotary.runtime import RuntimeOptions, open_onnx

INPUT_IDS, ATTENTION_MASK = "input_ids", "attention_mask"
OUTPUT = "text_embeds"

MOST_TOKENS = 256
"""Pieces of a text that are read, with those that begin and end it; what follows is cut off."""

_TEXTS_IN_A_BATCH = 32


class TextTower:
    """Embeds texts. Safe to call from several threads.

    The file takes `input_ids` and `attention_mask` int64[b, t] and gives `text_embeds` float32[b, d]; places where the
    mask is 0 change nothing.

    Args:
        path: The ONNX file.
        tokenizer_path: The `tokenizer.json` of the library `tokenizers`, which also adds what begins and ends a text;
            as it is, or compressed as `.gz`.
        options: How it runs.
        most_tokens: As `MOST_TOKENS`.
        end: What ends a text, by name.

    Raises:
        ModelError: A file is missing, damaged, or no such network.
        UsageError: What the options ask for cannot be had.
    """

    def __init__(
        self,
        path: Path,
        tokenizer_path: Path,
        options: RuntimeOptions,
        *,
        most_tokens: int = MOST_TOKENS,
        end: str = "</s>",
    ) -> None:
        rule = TokenRule(most_tokens, is_padded=False, end=(end,))
        self._path = path
        self._tokens = TextTokens(_read(tokenizer_path), rule, {}, str(tokenizer_path))
        self._session = open_onnx(path, options)
        wanted = {INPUT_IDS, ATTENTION_MASK}
        if set(self._session.inputs) != wanted or OUTPUT not in self._session.outputs:
            raise ModelError(
                f"{path} is no text tower: it must take {INPUT_IDS} and {ATTENTION_MASK} and give {OUTPUT}"
            )

    def embed(self, texts: Sequence[str]) -> Texts:
        """Unit vectors of any number of texts, in their order.

        Texts of about the same length go through the network together, 32 at a time; memory grows with the result.

        Raises:
            UsageError: A text is empty, or is no text.
            ModelError: The network gives what is no vector.
        """
        check_texts(texts)
        found: npt.NDArray[np.float32] | None = None
        is_truncated = np.zeros(len(texts), np.bool_)
        # An empty list still needs the width, which a text tells.
        for batch, cut in self._tokens.batches(texts or ["-"], _TEXTS_IN_A_BATCH):
            vectors = self._session.run(batch.numbers, OUTPUT, {ATTENTION_MASK: batch.mask})
            lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
            if vectors.ndim != 2 or not np.isfinite(lengths).all() or not lengths.all():
                raise ModelError(f"{self._path} gives embeddings that are no numbers")
            if found is None:
                found = np.zeros((len(texts), vectors.shape[1]), np.float32)
            if texts:
                found[batch.places] = vectors / lengths
                is_truncated[list(cut)] = True
        assert found is not None
        return Texts(found, is_truncated)


def check_texts(texts: Sequence[str]) -> None:
    """Check that there is something in every text.

    Raises:
        UsageError: There is not; the message says which one.
    """
    if isinstance(texts, str):
        raise UsageError("texts must be several texts, but got one; put it in a list")
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str) or not text.strip():
            raise UsageError(
                f"text {number} of {len(texts)} is empty: {text!r}; say what to look for"
            )


def _read(path: Path) -> Tokenizer:
    if not path.is_file():
        raise ModelError(f"{path} is missing")
    try:
        content = path.read_bytes()
        return Tokenizer.from_buffer(gzip.decompress(content) if path.suffix == ".gz" else content)
    except Exception as error:  # the library raises Exception itself
        told = (str(error).strip() or type(error).__name__).split("\n", 1)[0]
        raise ModelError(f"cannot read the tokenizer {path}: {told}") from error
