"""Reads the four sources and the vocabulary into one table: which image has which tag, and how sure that is."""

from __future__ import annotations

import csv
import json
import struct
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from recipes.starter.build_vocabulary import (
    caption_phrases,
    drawing_phrases,
    openclipart_keywords,
)

Source = Literal["corel", "flickr", "coco", "emoji", "clipart"]
Treatment = Literal["none", "grey", "sepia"]
Floats = npt.NDArray[np.float32]

VOCABULARY = Path(__file__).parent / "vocabulary"
CLASSES = 1000

MOST_CLIPART = 3000
"""Images taken of Open Clip Art, evenly from all its folders."""

_MOST_PIXELS = 10_000_000
"""Larger drawings are left out; a few have hundreds of millions of pixels."""

_EVERY_GREY = 7
_EVERY_SEPIA = 13
"""Of the photos, every seventh is seen again without colour, and every thirteenth in brown."""

_PHOTOS = ("corel", "flickr", "coco")
WORDS_OF: dict[Source, str] = {
    "corel": "corel",
    "flickr": "flickr",
    "coco": "coco",
    "emoji": "drawing",
    "clipart": "drawing",
}


@dataclass(frozen=True)
class Example:
    """One image of the training data."""

    source: Source
    """Where it comes from."""

    path: Path
    """The image file."""

    words: frozenset[str]
    """Words of the source: tags, class names of boxes, words of captions, keywords."""

    is_held_aside: bool
    """Whether it is kept for measuring and calibrating."""

    treatment: Treatment = "none"
    """What is done to its colours."""


@dataclass(frozen=True)
class Vocabulary:
    """The tags, in the order of the model's outputs."""

    names: tuple[str, ...]
    """All tags, alphabetically."""

    categories: tuple[str, ...]
    """One per tag."""

    members: Floats
    """``[1000, tags]``: 1 where an ImageNet class is evidence for the tag."""

    is_named: npt.NDArray[np.bool_]
    """``[tags]``: whether the tag is an ImageNet class or a hypernym."""

    words: dict[str, dict[str, tuple[int, ...]]]
    """Source (corel, coco, flickr, drawing) to word to the numbers of its tags."""

    styles: frozenset[str]
    """Tags that say how the image was made."""

    def teaches(self, source: str) -> npt.NDArray[np.bool_]:
        """``[tags]``: whether the images of a source of words say if they have the tag."""
        mask = np.zeros(len(self.names), bool)
        for tags in self.words[source].values():
            mask[list(tags)] = True
        return mask

    def is_learned(self) -> npt.NDArray[np.bool_]:
        """``[tags]``: whether any source has examples; the others rest on ImageNet alone."""
        mask = np.array([name in self.styles for name in self.names])
        for source in self.words:
            mask |= self.teaches(source)
        return mask


def read_vocabulary(folder: Path = VOCABULARY) -> Vocabulary:
    """Read the CSV files of the vocabulary."""
    categories: dict[str, str] = {}
    members: dict[str, set[int]] = defaultdict(set)
    named: set[str] = set()
    for row in _rows(folder / "imagenet.csv"):
        categories[row["name"]] = row["category"]
        members[row["name"]].add(int(row["index"]))
        named.add(row["name"])
    for row in _rows(folder / "hypernyms.csv"):
        categories[row["name"]] = row["category"]
        members[row["name"]] |= {int(index) for index in row["members"].split()}
        named.add(row["name"])
    for row in _rows(folder / "evidence.csv"):
        members[row["tag"]] |= {int(index) for index in row["members"].split()}
    word_rows = list(_rows(folder / "words.csv"))
    for row in word_rows:
        categories[row["tag"]] = row["category"]
    styles = list(_rows(folder / "styles.csv"))
    for row in styles:
        categories[row["name"]] = row["category"]
    names = tuple(sorted(categories))
    number = {name: index for index, name in enumerate(names)}
    words: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
    for row in word_rows:
        known = words[row["source"]].get(row["word"], ())
        words[row["source"]][row["word"]] = (*known, number[row["tag"]])
    matrix = np.zeros((CLASSES, len(names)), np.float32)
    for name, indices in members.items():
        matrix[sorted(indices), number[name]] = 1
    return Vocabulary(
        names,
        tuple(categories[name] for name in names),
        matrix,
        np.array([name in named for name in names]),
        dict(words),
        frozenset(row["name"] for row in styles),
    )


def read_examples(data: Path, clipart: Path) -> list[Example]:
    """Read the index of every source; ``clipart`` is the folder that holds ``png`` and ``svg``."""
    examples = []
    for number, row in enumerate(_lines(data / "corel5k")):
        path = data / "corel5k" / row["file"]
        examples.append(Example("corel", path, frozenset(row["tags"]), number % 9 == 8))
    for row in _lines(data / "flickr8k"):
        words = frozenset(caption_phrases(row["captions"]))
        path = data / "flickr8k" / row["file"]
        examples.append(Example("flickr", path, words, row["split"] == "dev"))
    for number, row in enumerate(_lines(data / "coco")):
        words = frozenset(box[0] for box in row["boxes_xywh_orig"])
        examples.append(Example("coco", data / "coco" / row["file"], words, number % 4 == 3))
    for number, row in enumerate(_lines(data / "noto_emoji")):
        words = frozenset(drawing_phrases([*row["keywords"], row["label"]]))
        words |= {row["category"].lower(), row["subcategory"]}
        examples.append(
            Example("emoji", data / "noto_emoji" / row["file"], words, number % 10 == 9)
        )
    examples += read_clipart(clipart)
    photos = [example for example in examples if example.source in _PHOTOS]
    grey = [replace(example, treatment="grey") for example in photos[3::_EVERY_GREY]]
    sepia = [replace(example, treatment="sepia") for example in photos[5::_EVERY_SEPIA]]
    return [*examples, *grey, *sepia]


def read_clipart(clipart: Path) -> list[Example]:
    """Read titles and keywords of the drawings that exist both as SVG and as PNG; links are left out."""
    found = []
    for path in sorted((clipart / "svg").rglob("*.svg")):
        picture = (clipart / "png" / path.relative_to(clipart / "svg")).with_suffix(".png")
        if path.is_symlink() or picture.is_symlink() or not picture.is_file():
            continue
        if _png_pixels(picture) <= _MOST_PIXELS:
            found.append((path, picture))
    step = max(1.0, len(found) / MOST_CLIPART)
    chosen = [found[int(number * step)] for number in range(int(len(found) / step))]
    return [
        Example(
            "clipart",
            picture,
            frozenset(drawing_phrases(openclipart_keywords(clipart / "svg", path))),
            number % 10 == 9,
        )
        for number, (path, picture) in enumerate(chosen)
    ]


def label(
    examples: Sequence[Example], vocabulary: Vocabulary
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Return targets ``[n, tags]`` (0 or 1) and whether they are known ``[n, tags]``; styles are left unknown."""
    targets = np.zeros((len(examples), len(vocabulary.names)), np.float32)
    known = np.zeros(targets.shape, bool)
    teaches = {source: vocabulary.teaches(source) for source in vocabulary.words}
    is_colour = np.array([category == "colour" for category in vocabulary.categories])
    for row, example in enumerate(examples):
        source = WORDS_OF[example.source]
        known[row] = teaches[source]
        if example.treatment != "none":
            known[row, is_colour] = False
        for word in example.words & vocabulary.words[source].keys():
            targets[row, list(vocabulary.words[source][word])] = 1
    return targets, known


def is_photo(examples: Iterable[Example]) -> npt.NDArray[np.bool_]:
    """``[n]``: whether each image comes from a source of photographs."""
    return np.array([example.source in _PHOTOS for example in examples])


def _png_pixels(path: Path) -> int:
    """Width times height, from the header."""
    with path.open("rb") as file:
        width, height = struct.unpack(">II", file.read(24)[16:])
    return int(width * height)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "index.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
