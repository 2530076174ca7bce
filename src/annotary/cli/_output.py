"""Records on standard output, and the counts at the end of a run."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

from annotary.pipeline import Outcome, Standing
from annotary.records import Annotation, Failure, Item, Record, to_line


class Printed:
    """Prints every record on standard output as it comes; nothing is kept, so nothing is continued.

    Args:
        line: What is printed for a record; None prints nothing.
    """

    can_continue = False
    needs_bytes = False
    failures_path: Path | None = None

    def __init__(self, line: Callable[[Record], str | None]) -> None:
        self._line = line

    def standing(self, item: Item | Failure) -> Standing:
        """Whether an image is still to be done: always."""
        return "new"

    def write(self, item: Item | None, record: Record) -> Record:
        """Print a record."""
        line = self._line(record)
        if line is not None:
            sys.stdout.buffer.write(line.encode("utf-8", "backslashreplace") + b"\n")
            sys.stdout.buffer.flush()
        return record

    def close(self, *, complete: bool) -> None:
        """Nothing is open."""


def as_json(record: Record) -> str:
    """A record as a line of JSON."""
    return to_line(record)


def as_tags(record: Record) -> str | None:
    """An image's tags as a line for people; failures are told on standard error."""
    if not isinstance(record, Annotation):
        tell(f"{record.image}: {record.message}")
        return None
    tags = ", ".join(f"{tag.name} {tag.score:.2f}" for tag in record.tags)
    return f"{one_line(record.image)}: {one_line(_decided(record))}{tags or '(no tags)'}"


MOST_PRINTED = 5
"""Labels of an image on a line for people."""


def as_labels(record: Record) -> str | None:
    """An image's best labels as a line for people, after what a policy decides; failures are told on standard error."""
    if not isinstance(record, Annotation):
        tell(f"{record.image}: {record.message}")
        return None
    labels = ", ".join(f"{label.name} {label.score:.2f}" for label in record.labels[:MOST_PRINTED])
    return one_line(f"{record.image}: {_decided(record)}{labels or '(no labels)'}")


def as_boxes(record: Record) -> str | None:
    """An image's best boxes as a line for people, `left,top,right,bottom` in pixels; failures go to standard error."""
    if not isinstance(record, Annotation):
        tell(f"{record.image}: {record.message}")
        return None
    from annotary.tasks.label_sets import shortened

    boxes = [
        f"{shortened(box.label)} {box.score:.2f} at {','.join(f'{edge:.0f}' for edge in box.xyxy)}"
        for box in record.boxes[:MOST_PRINTED]
    ]
    if more := len(record.boxes) - len(boxes):
        boxes.append(f"{more} more")
    return one_line(f"{record.image}: {'; '.join(boxes) or '(nothing found)'}")


def _decided(record: Annotation) -> str:
    """What a policy decides, and why, before what else is said of an image."""
    if record.decision is None:
        return ""
    reasons = ", ".join(
        f"{reason.name} {reason.score:.2f} >= {reason.threshold:g}"
        for reason in record.decision.reasons
    )
    return record.decision.action.upper() + (f" ({reasons})" if reasons else "") + "; "


def as_size(record: Record) -> str | None:
    """How many numbers an image became; failures are told on standard error."""
    if not isinstance(record, Annotation):
        tell(f"{record.image}: {record.message}")
        return None
    return one_line(f"{record.image}: {len(record.embedding.vector) if record.embedding else 0}")


def one_line(text: str) -> str:
    """A text on one line, without what would command a terminal; letters of any script stay."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def tell(text: str) -> None:
    """One line on standard error, if anybody can read it."""
    with contextlib.suppress(OSError):
        sys.stderr.write(one_line(text).encode("utf-8", "backslashreplace").decode() + "\n")
        sys.stderr.flush()


def counts(
    outcome: Outcome, verb: str, seconds: float, failures: Path | None, *, is_beside: bool = False
) -> str:
    """The line at the end of a run.

    Args:
        outcome: The counts.
        verb: What was done ("tagged").
        seconds: How long it took.
        failures: The list of failures.
        is_beside: Whether results stand beside the images, where nobody knows who wrote what is there.
    """
    finished = outcome.done + outcome.failed
    rate = f", {finished / max(seconds, 1e-6):.1f}/s" if finished else ""
    parts = [f"{outcome.done:,} {verb} in {seconds:.1f} s{rate}"]
    if outcome.done_before:
        if is_beside:
            there = "had a result already (--on-existing append or overwrite changes them)"
        else:
            there = "done before"
        parts.append(f"{outcome.done_before:,} {there}")
    if outcome.failed:
        parts.append(f"{outcome.failed:,} failed")
    if outcome.failed_before:
        parts.append(f"{outcome.failed_before:,} failed before (--retry-failed tries them again)")
    listed = failures is not None and (outcome.failed or outcome.failed_before)
    return "; ".join(parts) + (f"; see {failures}" if listed else "")
