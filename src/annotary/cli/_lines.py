"""Records as lines for people: a line an image, with what was asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from annotary.cli._output import one_line, tell
from annotary.records import Annotation, Record
from annotary.tasks.label_sets import shortened

Line: TypeAlias = Callable[[Record], str | None]

MOST_PRINTED = 5
"""Labels, and boxes, of an image on a line."""


def as_line(*parts: str) -> Line:
    """What makes a line of a record. Failures are told on standard error instead, and give none.

    Args:
        parts: Those that are told ("tags"), of those that the record has. What a policy decides stands before them.
    """

    def line(record: Record) -> str | None:
        if not isinstance(record, Annotation):
            tell(f"{record.image}: {record.message}")
            return None
        # A record of one part alone may not say who found it.
        told = [part for part in parts if part in record.sources or len(parts) == 1]
        found = " | ".join(_TELLERS[part](record) for part in told)
        return one_line(f"{record.image}: {_decided(record)}{found}")

    return line


def _decided(record: Annotation) -> str:
    """What a policy decides, and why."""
    if record.decision is None:
        return ""
    reasons = ", ".join(
        f"{reason.name} {reason.score:.2f} >= {reason.threshold:g}"
        for reason in record.decision.reasons
    )
    return record.decision.action.upper() + (f" ({reasons})" if reasons else "") + "; "


def _tags(record: Annotation) -> str:
    return ", ".join(f"{tag.name} {tag.score:.2f}" for tag in record.tags) or "(no tags)"


def _labels(record: Annotation) -> str:
    best = record.labels[:MOST_PRINTED]
    return ", ".join(f"{label.name} {label.score:.2f}" for label in best) or "(no labels)"


def _captions(record: Annotation) -> str:
    told = (
        caption.text
        + ("" if caption.score is None else f" {caption.score:.2f}")
        + ("" if caption.match is None else f", match {caption.match:.2f}")
        for caption in record.captions
    )
    return "; ".join(told) or "(no captions)"


def _answers(record: Annotation) -> str:
    """Each question once, with what was answered."""
    told: dict[str, list[str]] = {}
    for answer in record.answers:
        score = "" if answer.score is None else f" {answer.score:.2g}"
        told.setdefault(answer.question, []).append(f"{answer.text or '(no words)'}{score}")
    lines = (f"{question} {', '.join(some)}" for question, some in told.items())
    return "; ".join(lines) or "(no questions)"


def _matches(record: Annotation) -> str:
    told = (
        f"{match.text} {match.score:.2f}"
        + ("" if match.cosine is None else f" (cosine {match.cosine:.2f})")
        for match in record.matches
    )
    return "; ".join(told) or "(no texts)"


def _boxes(record: Annotation) -> str:
    """The best, with `left,top,right,bottom` in pixels."""
    told = [
        f"{shortened(box.label)} {box.score:.2f} at {','.join(f'{edge:.0f}' for edge in box.xyxy)}"
        for box in record.boxes[:MOST_PRINTED]
    ]
    if more := len(record.boxes) - len(told):
        told.append(f"{more} more")
    return "; ".join(told) or "(nothing found)"


def _embedding(record: Annotation) -> str:
    return f"{len(record.embedding.vector) if record.embedding else 0} numbers"


_TELLERS: dict[str, Callable[[Annotation], str]] = {
    "tags": _tags,
    "labels": _labels,
    "captions": _captions,
    "answers": _answers,
    "matches": _matches,
    "boxes": _boxes,
    "embedding": _embedding,
}
