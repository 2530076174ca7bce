"""Records on standard output, and the counts at the end of a run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from annotary.pipeline import Outcome
from annotary.records import Annotation, Item, Record, to_line


class Printed:
    """Prints every record on standard output as it comes; nothing is kept, so nothing is continued.

    Args:
        line: What is printed for a record; None prints nothing.
    """

    failed_before = 0
    failures_path: Path | None = None

    def __init__(self, line: Callable[[Record], str | None]) -> None:
        self._line = line

    def holds(self, item: Item) -> bool:
        """Whether an image is done: never."""
        return False

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
    return f"{one_line(record.image)}: {tags or '(no tags)'}"


def one_line(text: str) -> str:
    """A name that may hold line breaks, on one line."""
    return text.replace("\n", "\\n").replace("\r", "\\r")


def tell(text: str) -> None:
    """One line on standard error."""
    sys.stderr.buffer.write(one_line(text).encode("utf-8", "backslashreplace") + b"\n")
    sys.stderr.flush()


def counts(
    outcome: Outcome, verb: str, seconds: float, failed_before: int, where: Path | None
) -> str:
    """The line at the end of a run."""
    finished = outcome.done + outcome.failed
    rate = f", {finished / seconds:.1f}/s" if finished else ""
    parts = [f"{outcome.done:,} {verb} in {seconds:.1f} s{rate}"]
    if outcome.skipped > failed_before:
        parts.append(f"{outcome.skipped - failed_before:,} done before")
    if outcome.failed + failed_before:
        listed = f" (see {where})" if where is not None else ""
        parts.append(f"{outcome.failed + failed_before:,} failed{listed}")
    return "; ".join(parts)
