"""Processes of this machine that do parts of a step.

Each (`annotary.runtime.children`) is given parts one after the other, by a thread that waits for it. When one dies it
is known which part it was at: that part is tried once more in a new process, then listed, and the others go on.
"""

from __future__ import annotations

import contextlib
import pickle
import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from annotary.curation.tables import BrokenPart, Part
from annotary.errors import AnnotaryError
from annotary.records import Failure
from annotary.runtime.children import Child

_TRIES = 2

_PATIENCE = 10.0  # seconds that a process may take to end

Finish = Callable[[Part, Any], None]


def run_in_processes(
    step: Any,
    parts: Sequence[Part],
    folder: Path,
    workers: int,
    finish: Finish,
    prepare: Callable[[], None],
) -> None:
    """Do a step for parts in several processes.

    Args:
        step: What is done.
        parts: The parts, which are begun in this order.
        folder: Where it is written.
        workers: How many processes.
        finish: Is told, in the caller's thread, what came of each part.
        prepare: Is called before the first part is begun, while the processes start.

    Raises:
        AnnotaryError: The step cannot go on.
    """
    waiting: queue.SimpleQueue[Part] = queue.SimpleQueue()
    for part in parts:
        waiting.put(part)
    done: queue.SimpleQueue[tuple[Part | None, Any]] = queue.SimpleQueue()
    hands = [_Hand(step, folder, waiting, done) for _ in range(workers)]
    try:
        for hand in hands:
            hand.start_process()
        prepare()
        for hand in hands:
            hand.start()
        left = len(parts)
        while left:
            finished, outcome = done.get()
            if isinstance(outcome, BaseException):
                raise outcome
            assert finished is not None
            finish(finished, outcome)
            left -= 1
    finally:
        for hand in hands:
            hand.stop()
        for hand in hands:
            if hand.is_alive():
                hand.join()  # it may be the one that ends its process


def outcome_of(kind: str, outcome: Any) -> Any:
    """What came of a part, from the answer of a process (`_worker.answer`).

    Raises:
        AnnotaryError: The step cannot go on.
        Exception: What went wrong there and should not, with where it did as a note.
    """
    if kind == "error":
        raise outcome
    if kind == "bug":
        error, where = outcome
        error = error or RuntimeError("a step failed in a process of its own")
        error.add_note(where)
        raise error
    return outcome


class _Hand(threading.Thread):
    """A thread that gives parts to a process of its own.

    Args:
        step: What is done.
        folder: Where it is written.
        waiting: Parts that nobody has begun.
        done: Gets what came of each.
    """

    def __init__(
        self,
        step: Any,
        folder: Path,
        waiting: queue.SimpleQueue[Part],
        done: queue.SimpleQueue[tuple[Part | None, Any]],
    ) -> None:
        super().__init__(name="annotary-curation", daemon=True)
        self._job = pickle.dumps((step, folder))
        self._waiting = waiting
        self._done = done
        self._child: Child | None = None
        self._must_stop = False
        self._lock = threading.Lock()

    def start_process(self) -> None:
        """Start the process, which imports what the step needs while nothing is asked of it."""
        self._child_at_hand()

    def run(self) -> None:
        """Give parts until there are none."""
        try:
            while not self._must_stop:
                try:
                    part = self._waiting.get_nowait()
                except queue.Empty:
                    break
                self._done.put((part, self._outcome(part)))
        except BaseException as error:  # noqa: BLE001 - it is raised again where the caller sees it
            self._done.put((None, error))
        finally:
            self.stop()

    def stop(self) -> None:
        """End the process, whatever it is at."""
        self._must_stop = True
        self._end()

    def _outcome(self, part: Part) -> Any:
        ended = ""
        for _ in range(_TRIES):
            child = self._child_at_hand()
            try:
                child.tell(pickle.dumps(part))
                kind, outcome = child.answer()
            except (OSError, ValueError, EOFError, pickle.UnpicklingError):
                ended = self._end()
                if self._must_stop:
                    raise AnnotaryError("stopped") from None
                continue
            return outcome_of(kind, outcome)
        return Failure.of(part.file, BrokenPart(f"the process that worked on it {ended}"))

    def _child_at_hand(self) -> Child:
        with self._lock:
            if self._must_stop:
                raise AnnotaryError("stopped")
            if self._child is None:
                self._child = Child("annotary.curation._worker")
                # It may have ended already: whoever waits for its answer finds out.
                with contextlib.suppress(OSError):
                    self._child.tell(self._job)
            return self._child

    def _end(self) -> str:
        """End the process and take leave of it; how it ended, if it did so by itself."""
        with self._lock:
            child, self._child = self._child, None
        return (
            ""
            if child is None
            else child.take_leave(_PATIENCE, grace=0.0 if self._must_stop else 1.0)
        )
