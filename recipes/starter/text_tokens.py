"""Turns the sentence encoder's SentencePiece model into a `tokenizer.json`, which the library `tokenizers` reads."""

from __future__ import annotations

import base64
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UNKNOWN, START, END = 0, 1, 2
"""Numbers of the three pieces that are no text."""

_WIDE_TILDE = "\uff5e"
"""The one character of NFKC that the encoder's table leaves alone."""

_KEPT = "\ue000"
"""Stands for it meanwhile; no text has it."""


@dataclass(frozen=True)
class Pieces:
    """What a SentencePiece unigram model holds."""

    names: list[str]
    """The pieces, in the order of their numbers."""

    scores: list[float]
    """Logarithm of each piece's probability."""

    characters: bytes
    """How characters are normalised: the compiled table, as `tokenizers` takes it."""


def read_pieces(path: Path) -> Pieces:
    """Read `sp.model`: pieces in field 1 of the message (text in 1, score in 2), and in field 3 the table (in 2)."""
    names, scores, characters = [], [], b""
    for number, value in _fields(path.read_bytes()):
        if number == 1:
            entry = dict(_fields(value))
            names.append(entry[1].decode())
            scores.append(struct.unpack("<f", entry[2])[0] if 2 in entry else 0.0)
        elif number == 3:
            characters = dict(_fields(value))[2]
    return Pieces(names, scores, characters)


def tokenizer(pieces: Pieces) -> dict[str, Any]:
    """The content of a `tokenizer.json` that cuts texts as the model does.

    Characters that no piece contains are each a piece of their own: `tokenizers` would make one piece of several in a
    row, which is not what the encoder was converted with. NFKC comes first because `tokenizers` looks characters up one
    by one in the table, which joins some of several.
    """
    known = sorted(set("".join(pieces.names[END + 1 :])))
    named = {"<s>": START, "</s>": END}
    special = {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in named.items()}
    around = [{"SpecialToken": {"id": name, "type_id": 0}} for name in named]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Replace", "pattern": {"String": _WIDE_TILDE}, "content": _KEPT},
                {"type": "NFKC"},
                {"type": "Replace", "pattern": {"String": _KEPT}, "content": _WIDE_TILDE},
                {
                    "type": "Precompiled",
                    "precompiled_charsmap": base64.b64encode(pieces.characters).decode(),
                },
                {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
                {"type": "Strip", "strip_left": True, "strip_right": True},
            ],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Metaspace",
                    "replacement": "▁",
                    "prepend_scheme": "always",
                    "split": True,
                },
                {
                    "type": "Split",
                    "pattern": {"Regex": f"[^{_ranges(known)}]"},
                    "behavior": "Isolated",
                    "invert": False,
                },
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [around[0], {"Sequence": {"id": "A", "type_id": 0}}, around[1]],
            "pair": [
                around[0],
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 0}},
                around[1],
            ],
            "special_tokens": special,
        },
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
        "model": {
            "type": "Unigram",
            "unk_id": UNKNOWN,
            "vocab": [
                [name, float(f"{score:.6g}")]
                for name, score in zip(pieces.names, pieces.scores, strict=True)
            ],
            "byte_fallback": False,
        },
    }


def write_tokenizer(pieces: Pieces, path: Path) -> None:
    """Write `tokenizer.json`, without spaces, a line for a hundred pieces."""
    content = tokenizer(pieces)
    vocabulary = content["model"].pop("vocab")
    lines = [
        json.dumps(vocabulary[start : start + 100], ensure_ascii=False, separators=(",", ":"))[1:-1]
        for start in range(0, len(vocabulary), 100)
    ]
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    text = text.replace('"unk_id":0', '"vocab":[\n' + ",\n".join(lines) + '\n],"unk_id":0')
    path.write_text(text + "\n", encoding="utf-8")


def _ranges(characters: list[str]) -> str:
    """The inside of a character class that holds sorted characters."""
    spans: list[list[int]] = []
    for code in map(ord, characters):
        if spans and code == spans[-1][1] + 1:
            spans[-1][1] = code
        else:
            spans.append([code, code])
    return "".join(
        f"\\x{{{first:x}}}" if first == last else f"\\x{{{first:x}}}-\\x{{{last:x}}}"
        for first, last in spans
    )


def _fields(message: bytes) -> list[tuple[int, bytes]]:
    """The fields of a protobuf message; numbers of variable length are left out."""
    found, place = [], 0
    while place < len(message):
        key, place = _number(message, place)
        kind = key & 7
        if kind == 0:
            _, place = _number(message, place)
            continue
        size = {1: 8, 5: 4}.get(kind)
        if size is None:
            size, place = _number(message, place)
        found.append((key >> 3, message[place : place + size]))
        place += size
    return found


def _number(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
