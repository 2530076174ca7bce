"""The texts that go with the images: captions as they are, names alone, and phrases made of names."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.starter.build_vocabulary import openclipart_keywords
from recipes.starter.tables import Example

_SEED = 0

_MOST_NAMES = 8
_NAMES_IN_A_PHRASE = 5

_NO_TEXT = frozenset(
    [
        *("appicon", "clip art", "clipart", "computer", "icons", "image"),
        *("media", "png", "public domain", "svg", "unsorted"),
    ]
)
"""Keywords of Open Clip Art that say nothing of what is drawn."""

_LONGEST = 60
"""Longer keywords are remarks."""


@dataclass(frozen=True)
class ImageTexts:
    """The texts of one image."""

    captions: tuple[str, ...] = ()
    """Sentences that people wrote."""

    names: tuple[str, ...] = ()
    """What is seen: tags, classes of boxes, keywords, titles."""

    phrases: tuple[str, ...] = ()
    """Made of the names: lists, and "a photo of ..."."""


def read_texts(examples: Sequence[Example], data: Path, clipart: Path) -> list[ImageTexts]:
    """The texts of all images, in their order; the same every time.

    Args:
        examples: The images.
        data: Folder with `corel5k`, `flickr8k`, `coco` and `noto_emoji`.
        clipart: Folder with `png` and `svg`.
    """
    rows = {}
    for folder in ("corel5k", "flickr8k", "coco", "noto_emoji"):
        text = (data / folder / "index.jsonl").read_text(encoding="utf-8")
        for row in map(json.loads, text.splitlines()):
            rows[data / folder / row["file"]] = row
    generator = random.Random(_SEED)
    return [
        _texts_of(example, rows.get(example.path, {}), clipart, generator) for example in examples
    ]


def numbered(groups: Iterable[Iterable[str]]) -> dict[str, int]:
    """All texts that differ, with a number each, in the order in which they come."""
    return {
        text: number
        for number, text in enumerate(dict.fromkeys(t for group in groups for t in group))
    }


def _texts_of(
    example: Example, row: dict[str, Any], clipart: Path, generator: random.Random
) -> ImageTexts:
    if example.source == "clipart":
        names = _keywords(example.path, clipart)
        drawn = (f"a drawing of {generator.choice(names)}",) if names else ()
        return ImageTexts(names=names[:_MOST_NAMES], phrases=drawn)
    if example.source == "emoji":
        label = row["label"]
        listed = ", ".join(row["keywords"][:_NAMES_IN_A_PHRASE])
        phrases = (f"a drawing of {label}", f"emoji of {label}", listed)
        return ImageTexts(names=_cleaned([label, *row["keywords"]]), phrases=_cleaned(phrases))
    captions = tuple(caption.rstrip(" .") for caption in row.get("captions") or ())
    names = _cleaned(row.get("tags") or sorted({b[0] for b in row.get("boxes_xywh_orig", ())}))
    return ImageTexts(_cleaned(captions), names, _photo_phrases(names, generator))


def _photo_phrases(names: tuple[str, ...], generator: random.Random) -> tuple[str, ...]:
    """Three ways to name several things at once, in orders that chance decides."""
    if not names:
        return ()
    phrases = []
    for form in ("{all}", "a photo of {most} and {last}", "{most} and {last}"):
        some = generator.sample(names, min(len(names), _NAMES_IN_A_PHRASE))
        if len(some) == 1:
            phrases.append(f"a photo of {some[0]}")
        else:
            most = ", ".join(some[:-1])
            phrases.append(form.format(all=", ".join(some), most=most, last=some[-1]))
    return _cleaned(phrases)


def _keywords(path: Path, clipart: Path) -> tuple[str, ...]:
    """Title and keywords of a drawing of Open Clip Art, without what says nothing."""
    source = clipart / "svg" / path.relative_to(clipart / "png").with_suffix(".svg")
    found = []
    for keyword in openclipart_keywords(clipart / "svg", source):
        words = re.sub(r"[_\-]+", " ", keyword).strip()
        words = re.sub(r"\s*\d+$", "", words)
        if 2 < len(words) < _LONGEST and words.lower() not in _NO_TEXT and "HASH" not in words:
            found.append(words)
    return _cleaned(found)


def _cleaned(texts: Iterable[str]) -> tuple[str, ...]:
    """Without empty ones, each once."""
    return tuple(dict.fromkeys(text.strip() for text in texts if text.strip()))
