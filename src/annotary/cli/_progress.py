"""One progress bar on standard error: images, images per second, failures. Quiet when that is not a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from annotary.pipeline import Outcome


class Progress(Protocol):
    """What a run reports to."""

    def update(self, outcome: Outcome) -> None:
        """Show the counts."""


class _Silent:
    def update(self, outcome: Outcome) -> None:
        """Show nothing."""


@contextmanager
def progress_bar(verb: str, *, quiet: bool) -> Iterator[Progress]:
    """A bar while the context lasts."""
    if quiet or not sys.stderr.isatty():
        yield _Silent()
        return
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    started = time.monotonic()
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(verb)

        class _Bar:
            def update(self, outcome: Outcome) -> None:
                finished = outcome.done + outcome.failed
                rate = finished / max(time.monotonic() - started, 1e-6)
                text = f"{verb}: {finished:,} images, {rate:.1f}/s"
                if outcome.failed:
                    text += f", {outcome.failed:,} failed"
                if outcome.skipped:
                    text += f", {outcome.skipped:,} done before"
                bar.update(task, description=text)

        yield _Bar()
