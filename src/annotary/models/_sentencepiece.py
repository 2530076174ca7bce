"""A sentencepiece model file as a tokenizer of the `tokenizers` library: for SigLIP where there is nothing else.

The file is one message of protocol buffers (sentencepiece_model.proto, Apache-2.0), of which the pieces, their scores
and the rule that evens out characters are read.
"""

from __future__ import annotations

import struct
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import Unigram

from annotary.errors import ModelError
from annotary.models._protobuf import fields

# Numbers of fields and kinds of pieces in sentencepiece_model.proto.
_PIECE, _TRAINER, _NORMALISER = 1, 2, 3
_PIECE_TEXT, _PIECE_SCORE, _PIECE_KIND = 1, 2, 3
_TRAINER_KIND, _NORMALISER_MAP = 3, 2
_UNIGRAM = 1
_UNKNOWN, _CONTROL, _BYTE = 2, 3, 6


def read_sentencepiece(path: Path) -> Tokenizer:
    """The tokenizer of a file.

    Raises:
        ModelError: It is damaged, or of another kind than unigrams.
    """
    pieces: list[tuple[str, float]] = []
    special: list[str] = []
    unknown, kind_of_model, characters, has_bytes = None, _UNIGRAM, b"", False
    try:
        data = memoryview(path.read_bytes())
        for number, held in fields(data):
            if isinstance(held, int):
                continue
            if number == _PIECE:
                text, score, kind = _piece(held)
                unknown = len(pieces) if kind == _UNKNOWN else unknown
                has_bytes = has_bytes or kind == _BYTE
                special += [text] if kind == _CONTROL else []
                pieces.append((text, score))
            elif number == _TRAINER:
                kind_of_model = dict(_numbers(held)).get(_TRAINER_KIND, _UNIGRAM)
            elif number == _NORMALISER:
                characters = next(
                    (
                        bytes(value)
                        for part, value in fields(held)
                        if part == _NORMALISER_MAP and not isinstance(value, int)
                    ),
                    b"",
                )
    except (OSError, ValueError, IndexError, struct.error) as error:
        raise ModelError(f"cannot read the sentencepiece model {path}: {error}") from error
    if not pieces or kind_of_model != _UNIGRAM or unknown is None:
        raise ModelError(f"{path} is no sentencepiece model of unigrams; a tokenizer.json would do")
    tokenizer = Tokenizer(Unigram(pieces, unk_id=unknown, byte_fallback=has_bytes))
    evened = [normalizers.Precompiled(characters)] if characters else []
    tokenizer.normalizer = normalizers.Sequence([*evened, normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special])
    return tokenizer


def _piece(held: memoryview) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, 1
    for number, value in fields(held):
        if number == _PIECE_KIND and isinstance(value, int):
            kind = value
        elif number == _PIECE_TEXT and not isinstance(value, int):
            text = str(value, "utf-8")
        elif number == _PIECE_SCORE and not isinstance(value, int):
            (score,) = struct.unpack("<f", value)
    return text, score, kind


def _numbers(held: memoryview) -> list[tuple[int, int]]:
    return [(n, value) for n, value in fields(held) if isinstance(value, int)]
