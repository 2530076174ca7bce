"""One progress bar on standard error: images, images per second, failures. Quiet when that is not a terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from annotary.errors import AnnotaryError
from annotary.pipeline import Outcome


class Progress(Protocol):
    """What a run reports to."""

    def update(self, outcome: Outcome) -> None:
        """Show the counts."""


class _Silent:
    def update(self, outcome: Outcome) -> None:
        """Show nothing."""


@contextmanager
def progress_bar(verb: str, count: Callable[[], int] | None, *, quiet: bool) -> Iterator[Progress]:
    """A bar while the context lasts.

    Args:
        verb: What is being done ("tagging").
        count: Tells how many images there are, in a thread of its own, so that the run need not wait for it; None when
            nobody can know.
        quiet: Show nothing.
    """
    if quiet or not sys.stderr.isatty():
        yield _Silent()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn(verb),
        BarColumn(),
        TextColumn("{task.fields[told]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(verb, total=None, told="")
        if count is not None:
            counting = threading.Thread(
                target=_count,
                args=(count, lambda total: bar.update(task, total=total)),
                daemon=True,
            )
            counting.start()
        started = time.monotonic()

        class _Bar:
            def update(self, outcome: Outcome) -> None:
                told = _told(outcome, time.monotonic() - started)
                bar.update(task, completed=outcome.seen, told=told)

        yield _Bar()


def _count(count: Callable[[], int], show: Callable[[int], None]) -> None:
    """Count, if that is possible; what is wrong with the images is told by the run itself."""
    try:
        show(count())
    except (AnnotaryError, OSError):
        return


def _told(outcome: Outcome, seconds: float) -> str:
    finished = outcome.done + outcome.failed
    told = f"{outcome.seen:,} images, {finished / max(seconds, 1e-6):.1f}/s"
    return told + (f", {outcome.failed:,} failed" if outcome.failed else "")
