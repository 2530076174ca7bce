"""Records on standard output, and the counts at the end of a run."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

from annotary.pipeline import Outcome, Standing
from annotary.records import Failure, Item, Record, to_line


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
