"""Texts as the numbers that an image-text encoder's text tower reads, with the `tokenizers` library alone.

The rules are those of the papers' own code, as transformers' tokenizer classes have them: CLIP's byte pairs in lower
case (Radford et al., 2021), SigLIP's sentencepiece without punctuation (Zhai et al., 2023; big_vision's
`_canonicalize`), SigLIP 2's Gemma tokens in lower case (Tschannen et al., 2025), MetaCLIP 2's XLM-V tokens.
"""

from __future__ import annotations

import string
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram

from annotary.errors import ModelError, UsageError
from annotary.models._checkpoint_files import (
    BYTE_PAIR_FILES,
    SENTENCEPIECE_FILE,
    SETTINGS_FILES,
    TOKENIZER_FILE,
    read_json,
)
from annotary.models._sentencepiece import read_sentencepiece

LOOKED_FOR = f"{TOKENIZER_FILE}, {' with '.join(BYTE_PAIR_FILES)}, or {SENTENCEPIECE_FILE}"

Numbers: TypeAlias = npt.NDArray[np.int64]

_CLIP_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
"""What CLIP's byte pairs are within: words, single digits, runs of signs (openai/CLIP, `simple_tokenizer.py`)."""

_CLIP_START, _CLIP_END = "<|startoftext|>", "<|endoftext|>"

_NUMBERS_IN_A_BATCH = 4096
"""So much that cores compute more than they wait for each other, and little memory."""

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Tokens(NamedTuple):
    """Texts of about the same length.

    Attributes:
        places: int64[n]; which of the texts they are.
        numbers: int64[n, l].
        mask: int64[n, l]; 1 where a number is of the text, 0 where it only fills the row.
    """

    places: Numbers
    numbers: Numbers
    mask: Numbers


@dataclass(frozen=True, slots=True)
class TokenRule:
    """What a family's texts are like.

    Attributes:
        length: The most tokens of a text, with those that begin and end it.
        is_padded: Whether every text is filled up to `length`: SigLIP was trained so and reads the last place. Else
            only to the longest one of a batch, which nothing depends on, because CLIP reads the end of the text.
        end: What may end a text, by name.
        fill: What fills up, by name; the first that there is. Empty: what ends the text.
    """

    length: int
    is_padded: bool
    end: tuple[str, ...]
    fill: tuple[str, ...] = ()


class TextTokens:
    """Makes numbers of texts.

    Attributes:
        end: The number of what ends a text.

    Args:
        tokenizer: Does it, with what begins and ends a text, without cutting and filling.
        rule: Of the family.
        settings: What `tokenizer_config.json` and `special_tokens_map.json` hold.
        is_canonical: Whether texts lose their punctuation before, as SigLIP's do.
        name: Where it comes from, for messages.

    Raises:
        ModelError: A text does not end with what the network reads the meaning at.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        rule: TokenRule,
        settings: Mapping[str, Any],
        name: str,
        *,
        is_canonical: bool = False,
    ) -> None:
        self._rule = rule
        self._is_canonical = is_canonical
        self._has_lower_case = bool(settings.get("do_lower_case", True))
        self._is_left = settings.get("padding_side") == "left"
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self.end = self._with_end(settings, name)
        self._fill = self._number_of(_named(settings, "pad_token"), *rule.fill)
        if self._fill is None or not rule.is_padded:
            self._fill = self.end
        tokenizer.enable_truncation(rule.length)

    def batches(
        self, texts: Sequence[str], size: int, numbers: int = _NUMBERS_IN_A_BATCH
    ) -> Iterator[tuple[Tokens, Collection[int]]]:
        """All texts, in batches of about the same length, and which of each were cut.

        Args:
            texts: Any number; they are worked through a few thousand at a time.
            size: The most texts of a batch.
            numbers: The most numbers of a batch of several texts, those that only fill it up included.

        Yields:
            A batch, and the places of those of its texts whose end was left out.

        Raises:
            UsageError: A text holds what is no Unicode, such as a byte of a damaged name.
        """
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            some = [
                self._prepared(_checked(text)) for text in texts[start : start + _TEXTS_AT_ONCE]
            ]
            found = self._tokenizer.encode_batch(some)
            for places in self._parts([len(one.ids) for one in found], size, numbers):
                rows = [found[i].ids for i in places]
                cut = [start + i for i in places if found[i].overflowing]
                yield self._filled(rows, [start + i for i in places]), cut

    def _parts(self, lengths: Sequence[int], size: int, numbers: int) -> Iterator[list[int]]:
        """Places of texts, sorted by length, in parts of at most so many texts and numbers."""
        part: list[int] = []
        for place in sorted(range(len(lengths)), key=lengths.__getitem__):
            width = self._rule.length if self._rule.is_padded else lengths[place]
            if part and (len(part) == size or (len(part) + 1) * width > numbers):
                yield part
                part = []
            part.append(place)
        if part:
            yield part

    def _filled(self, rows: Sequence[list[int]], places: Sequence[int]) -> Tokens:
        length = self._rule.length if self._rule.is_padded else max(len(row) for row in rows)
        numbers = np.full((len(rows), length), self._fill, np.int64)
        mask = np.zeros((len(rows), length), np.int64)
        for row, target, kept in zip(rows, numbers, mask, strict=True):
            where = slice(length - len(row), None) if self._is_left else slice(len(row))
            target[where], kept[where] = row, 1
        return Tokens(np.asarray(places, np.int64), numbers, mask)

    def _prepared(self, text: str) -> str:
        if not self._is_canonical:
            return text
        lower = text.lower() if self._has_lower_case else text
        return " ".join(lower.translate(_NO_PUNCTUATION).split())

    def _number_of(self, *names: str) -> int | None:
        numbers = (self._tokenizer.token_to_id(name) for name in names if name)
        return next((number for number in numbers if number is not None), None)

    def _with_end(self, settings: Mapping[str, Any], name: str) -> int:
        """See to it that what ends a text is there; gives its number."""
        names = (_named(settings, "eos_token"), *self._rule.end)
        end = self._number_of(*names)
        if end is None:
            raise ModelError(f"{name} knows no token that ends a text, such as {names[-1]!r}")
        if self._tokenizer.encode("a").ids[-1:] != [end]:
            if not self._rule.is_padded:  # what begins a text would be missing, too
                raise ModelError(f"{name} does not end texts with {names[0] or names[1]!r}")
            own = self._tokenizer.id_to_token(end)
            self._tokenizer.post_processor = processors.TemplateProcessing(
                single=f"$A {own}", special_tokens=[(own, end)]
            )
        return end


_TEXTS_AT_ONCE = 4096
"""Texts that are tokens at the same time: enough to sort them by length, few enough for the memory."""


def open_tokens(directory: Path, rule: TokenRule, *, is_sigmoid: bool) -> TextTokens:
    """The tokenizer of a checkpoint's directory.

    Args:
        directory: With `tokenizer.json`; or `vocab.json` and `merges.txt` of CLIP; or `spiece.model` of SigLIP.
        rule: Of the family.
        is_sigmoid: Whether it is of SigLIP's kind, with rules of its own for letters and signs.

    Raises:
        ModelError: There is none, or it is damaged; the message says what.
    """
    settings: dict[str, Any] = {}
    for file in reversed(SETTINGS_FILES):
        if (directory / file).is_file():
            settings |= read_json(directory / file)
    path = directory / TOKENIZER_FILE
    try:
        if path.is_file():
            tokenizer = Tokenizer.from_file(str(path))
        elif all((directory / name).is_file() for name in BYTE_PAIR_FILES):
            path = directory / BYTE_PAIR_FILES[0]
            tokenizer = _clip_byte_pairs(directory, settings)
        elif (directory / SENTENCEPIECE_FILE).is_file():
            path = directory / SENTENCEPIECE_FILE
            tokenizer = read_sentencepiece(path)
        else:
            raise ModelError(f"{directory} has no tokenizer: {LOOKED_FOR}")
    except ModelError:
        raise
    except Exception as error:  # the library raises Exception itself
        raise ModelError(f"cannot read the tokenizer {path}: {_first_line(error)}") from error
    is_pieces = isinstance(tokenizer.model, Unigram)
    if is_sigmoid and not is_pieces:
        # Gemma's tokens tell cases apart, but SigLIP 2 was trained in lower case (huggingface/transformers#43101).
        own = tokenizer.normalizer
        lower = normalizers.Lowercase()
        tokenizer.normalizer = normalizers.Sequence([lower, own]) if own else lower
    return TextTokens(tokenizer, rule, settings, str(path), is_canonical=is_sigmoid and is_pieces)


def _clip_byte_pairs(directory: Path, settings: Mapping[str, Any]) -> Tokenizer:
    """CLIP's tokenizer from its two older files."""
    vocabulary = read_json(directory / BYTE_PAIR_FILES[0])
    lines = (directory / BYTE_PAIR_FILES[1]).read_text(encoding="utf-8").split("\n")
    parts = [line.split() for line in lines if line.strip() and not line.startswith("#version")]
    pairs = [(pair[0], pair[1]) for pair in parts if len(pair) == 2]
    if len(pairs) < len(parts):
        raise ModelError(f"{directory / BYTE_PAIR_FILES[1]} does not hold two parts a line")
    unknown = _named(settings, "unk_token") or _CLIP_END
    start = _named(settings, "bos_token") or _CLIP_START
    end = _named(settings, "eos_token") or _CLIP_END
    for token in (unknown, start, end):
        if token not in vocabulary:
            raise ModelError(f"{directory / BYTE_PAIR_FILES[0]} has no {token!r}")
    tokenizer = Tokenizer(
        BPE(
            vocab=vocabulary,
            merges=pairs,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            fuse_unk=False,
            unk_token=unknown,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.post_processor = processors.RobertaProcessing(
        (end, vocabulary[end]),
        (start, vocabulary[start]),
        trim_offsets=False,
        add_prefix_space=False,
    )
    special = [AddedToken(token, normalized=False, special=True) for token in (start, end)]
    tokenizer.add_special_tokens(special)
    return tokenizer


def _named(settings: Mapping[str, Any], what: str) -> str:
    """The text of a token in the settings, which may be a table."""
    told = settings.get(what) or ""
    return str(told.get("content", "")) if isinstance(told, Mapping) else str(told)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0]


def _checked(text: str) -> str:
    """A text that can be written down."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"a text holds what is no Unicode: {text[:80]!r}") from error
    return text
