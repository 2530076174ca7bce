"""What commands share that fill a catalogue: the bar, and the counts at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from annotary.catalog import Filled, Filling
    from annotary.cli._progress import Progress
    from annotary.pipeline import Outcome

_SECONDS = 0.3
"""Between two looks at the counts: an image that is known already yields nothing that would show that it was met."""


def watch_filling(
    filling: Filling,
    verbs: tuple[str, str],
    count: Callable[[], int] | None,
    *,
    quiet: bool,
) -> int:
    """Let a filling go on under a bar, and tell its counts.

    Args:
        filling: It.
        verbs: What it does and has done ("embedding", "embedded").
        count: Tells how many images there are; None when nobody can know.
        quiet: Show nothing.

    Returns:
        The exit code.
    """
    from annotary.cli import Stopped
    from annotary.cli._output import tell
    from annotary.cli._progress import progress_bar

    started = time.monotonic()
    try:
        with progress_bar(verbs[0], count, quiet=quiet) as bar, _updated(bar, filling):
            for _ in filling:
                pass
    except KeyboardInterrupt as error:
        raise Stopped("stopped; the same command goes on where it stopped") from error
    outcome = filling.outcome
    has_failed = bool(outcome.failed + outcome.failed_before)
    if not quiet:
        listed = f"; see {filling.failures_path}" if has_failed else ""
        tell(told(outcome, verbs[1], time.monotonic() - started) + listed)
    return 1 if has_failed else 0


def told(outcome: Filled, verb: str, seconds: float) -> str:
    """The counts of a filling as a line.

    Args:
        outcome: The counts.
        verb: What was done with what is new or changed ("embedded").
        seconds: How long it took.
    """
    worked = outcome.new + outcome.changed + outcome.completed
    rate = f", {worked / max(seconds, 1e-6):.1f}/s" if worked else ""
    done = [f"{outcome.new:,} new and {outcome.changed:,} changed {verb}"]
    if outcome.completed:
        done = [*(done if worked > outcome.completed else ()), f"{outcome.completed:,} completed"]
    parts = [f"{', '.join(done)} in {seconds:.1f} s{rate}"]
    kinds = ("moved", "back", "gone", "unchanged", "failed")
    parts += [f"{number:,} {kind}" for kind in kinds if (number := getattr(outcome, kind))]
    if outcome.failed_before:
        parts.append(f"{outcome.failed_before:,} failed before (--retry-failed tries them again)")
    return "; ".join(parts)


@contextmanager
def _updated(bar: Progress, filling: Filling) -> Iterator[None]:
    """Keep a bar at the counts of a filling, and at the end once more."""
    is_over = threading.Event()

    def update() -> None:
        while not is_over.wait(_SECONDS):
            bar.update(_outcome(filling.outcome))

    watching = threading.Thread(target=update, name="annotary-bar", daemon=True)
    watching.start()
    try:
        yield
    finally:
        is_over.set()
        watching.join()
        bar.update(_outcome(filling.outcome))


def _outcome(filled: Filled) -> Outcome:
    """The counts as a bar shows them."""
    from annotary.pipeline import Outcome

    return Outcome(filled.done, filled.failed, filled.unchanged, filled.failed_before)
