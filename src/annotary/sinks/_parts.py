"""The parts of a record that formats hold: their order, and what they are called where people read them."""

from __future__ import annotations

from collections.abc import Iterable

from annotary.records import Annotation, Tag

ALL_PARTS = (
    *("tags", "labels", "captions", "answers", "matches", "boxes"),
    *("embedding", "decision"),
)
"""The parts of an `Annotation`, in its order."""

NAMES = ("tags", "labels")
"""The parts that are names: what keywords are made of."""

TEXTS = (*NAMES, "captions")
"""The parts that lines of text are made of."""

EDGES = ("left", "top", "right", "bottom")
"""What the edges of a box are called in tables, in the order of `Box.xyxy`."""

_WORDS = {"embedding": "embeddings", "decision": "decisions"}
"""What a part is called of which a record has one; the others are called as they are."""


def in_order(parts: Iterable[str]) -> tuple[str, ...]:
    """Parts, each once and in the order of a record.

    Raises:
        ValueError: A record has no such part.
    """
    asked = set(parts)
    if unknown := asked.difference(ALL_PARTS):
        told = ", ".join(sorted(unknown))
        raise ValueError(f"a record has no part {told}; it has {', '.join(ALL_PARTS)}")
    return tuple(part for part in ALL_PARTS if part in asked)


def called(parts: Iterable[str]) -> str:
    """Parts as people read them ("labels and embeddings")."""
    *others, last = (_WORDS.get(part, part) for part in parts)
    return f"{', '.join(others)} and {last}" if others else last


def counted(annotation: Annotation) -> tuple[tuple[str, float], ...]:
    """What an image is counted under, with scores: its tags, without any its labels, else the labels of its boxes."""
    if annotation.tags or "tags" in annotation.sources:
        return tuple((tag.name, tag.score) for tag in annotation.tags)
    if annotation.labels or "labels" in annotation.sources:
        return tuple((label.name, label.score) for label in annotation.labels)
    return best_of((box.label, box.score) for box in annotation.boxes)


def best_of(found: Iterable[tuple[str, float]]) -> tuple[tuple[str, float], ...]:
    """Each label once, with the best score of its boxes."""
    best: dict[str, float] = {}
    for label, score in found:
        best[label] = max(score, best.get(label, score))
    return tuple(best.items())


def names_in(annotation: Annotation) -> tuple[Tag, ...]:
    """The tags, and behind them the labels as if they were tags; a label that is a tag, too, is named once."""
    if not annotation.labels:
        return annotation.tags
    known = {tag.name for tag in annotation.tags}
    labels = (label for label in annotation.labels if label.name not in known)
    return (*annotation.tags, *(Tag(label.name, label.score) for label in labels))
