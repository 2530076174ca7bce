"""BLIP's texts as numbers and back: BERT's word pieces in lower case, with the two tokens that BLIP adds.

What a text begins with says what is done with it (Li et al., "BLIP", 2022; `init_tokenizer` of its code): [DEC] is
written on from, [ENC] is read together with an image, [CLS] is read alone. The tokenizers that are published with the
checkpoints know neither [DEC] nor [ENC]; their numbers follow those of BERT.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordPiece

from annotary.errors import ModelError, UsageError
from annotary.models._checkpoint_files import SETTINGS_FILES, TOKENIZER_FILE, read_json

VOCABULARY_FILE = "vocab.txt"

MOST_WORDS = 30
"""Words of a text that is judged, as in BLIP's `pre_caption`."""

MOST_TOKENS = 35
"""Tokens of a text that is judged and of a question, with the two around it (`models/blip_itm.py`, `blip_vqa.py`)."""

_PART = "##"

_MARKS = re.compile(r"[.!\"()*#:;~]")
_SPACES = re.compile(r"\s{2,}")


class BertTokens:
    """Makes numbers of texts, and texts of numbers.

    Attributes:
        start: [DEC]: begins what is written.
        alone: [CLS]: begins what is read without an image.
        together: [ENC]: begins what is read with one.
        end: [SEP]: ends a text.

    Args:
        directory: With `tokenizer.json`, or with `vocab.txt`.
        text_config: Of the checkpoint.

    Raises:
        ModelError: A file is missing or damaged, or does not fit the checkpoint.
    """

    def __init__(self, directory: Path, text_config: Any) -> None:
        self._tokenizer = _open(directory)
        self.start, self.end = int(text_config.bos_token_id), int(text_config.sep_token_id)
        words = int(text_config.vocab_size)
        known = {name: self._tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]", "[ENC]")}
        if known["[CLS]"] is None or known["[SEP]"] != self.end:
            raise ModelError(
                f"{directory}: its tokenizer ends texts with {known['[SEP]']}, but its config.json with {self.end}"
            )
        self.alone: int = known["[CLS]"]
        # Where the tokenizer does not know it, [ENC] comes next to [DEC], as BLIP's code adds them.
        self.together: int = self.start + 1 if known["[ENC]"] is None else known["[ENC]"]
        for name, number in (("[DEC]", self.start), ("[ENC]", self.together)):
            if not 0 <= number < words:
                raise ModelError(f"{directory}: {name} is token {number} of {words}")

    def numbers(self, text: str) -> list[int]:
        """The numbers of a text, without what begins and ends it.

        Raises:
            UsageError: It holds what is no Unicode.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"a text holds what is no Unicode: {text[:80]!r}") from error
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def text(self, numbers: Sequence[int]) -> str:
        """The text of some numbers in one line; tokens that are no words are left out."""
        numbers = list(numbers)
        told = self._tokenizer.decode(numbers, skip_special_tokens=True)
        # What goes on a word of a prompt is no part of another word here.
        return " ".join(told.split()).removeprefix(_PART)


def read_question(question: str) -> str:
    """A question as BLIP was trained to read it: in lower case, without the marks .!"()*#:;~ (its `pre_question`)."""
    return _MARKS.sub("", question.lower()).rstrip(" ")


def read_caption(text: str) -> str:
    """A text as BLIP was trained to judge it (its `pre_caption`).

    In lower case, with spaces for the marks .!"()*#:;~, single spaces, and no more than 30 words.
    """
    return " ".join(_words(text)[:MOST_WORDS])


def is_longer(text: str) -> bool:
    """Whether a text has more words than are judged."""
    return len(_words(text)) > MOST_WORDS


def _words(text: str) -> list[str]:
    return _SPACES.sub(" ", _MARKS.sub(" ", text.lower())).strip().split(" ")


def _open(directory: Path) -> Tokenizer:
    """The tokenizer of a directory.

    Raises:
        ModelError: There is none, or it is damaged.
    """
    path = directory / TOKENIZER_FILE
    try:
        if path.is_file():
            tokenizer = Tokenizer.from_file(str(path))
        else:
            path = directory / VOCABULARY_FILE
            tokenizer = _word_pieces(directory, path)
    except ModelError:
        raise
    except Exception as error:  # the library raises Exception itself
        told = (str(error).strip() or type(error).__name__).split("\n", 1)[0]
        raise ModelError(f"cannot read the tokenizer {path}: {told}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _word_pieces(directory: Path, path: Path) -> Tokenizer:
    """BERT's tokenizer from its older file."""
    if not path.is_file():
        raise ModelError(f"{directory} has no tokenizer: {TOKENIZER_FILE} or {VOCABULARY_FILE}")
    settings: dict[str, Any] = {}
    for file in reversed(SETTINGS_FILES):
        if (directory / file).is_file():
            settings |= read_json(directory / file)
    words = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    vocabulary = {word.rstrip("\r"): number for number, word in enumerate(words)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=bool(settings.get("do_lower_case", True))
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=_PART)
    tokenizer.add_special_tokens(
        [word for word in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if word in vocabulary]
    )
    return tokenizer
