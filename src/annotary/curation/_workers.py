"""Processes of this machine that do parts of a step.

Each process is a Python of its own that is given parts through a pipe, one after the other, by a thread that waits for
it. So nothing of the caller's program is run again in it (as `multiprocessing` would), and when a process dies it is
known which part it was at: that part is tried once more in a new process, then listed, and the others go on.
"""

from __future__ import annotations

import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from annotary.curation.tables import BrokenPart, Part
from annotary.errors import AnnotaryError
from annotary.records import Failure

_TRIES = 2

Finish = Callable[[Part, Any], None]


def run_in_processes(
    step: Any, parts: Sequence[Part], folder: Path, workers: int, finish: Finish
) -> None:
    """Do a step for parts in several processes.

    Args:
        step: What is done.
        parts: The parts, which are begun in this order.
        folder: Where it is written.
        workers: How many processes.
        finish: Is told, in the caller's thread, what came of each part.

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
        self._process: subprocess.Popen[bytes] | None = None
        self._must_stop = False
        self._lock = threading.Lock()

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
            self._end()

    def stop(self) -> None:
        """End the process, whatever it is at."""
        self._must_stop = True
        self._end()

    def _outcome(self, part: Part) -> Any:
        for _ in range(_TRIES):
            process = self._process_at_hand()
            try:
                assert process.stdin is not None
                assert process.stdout is not None
                pickle.dump(part, process.stdin)
                process.stdin.flush()
                kind, outcome = pickle.load(process.stdout)
            except (OSError, EOFError, pickle.UnpicklingError):
                code = self._end()
                if self._must_stop:
                    raise AnnotaryError("stopped") from None
                continue
            if kind == "error":
                raise outcome
            return outcome
        told = f"the process that worked on it ended with {code}; is there enough memory?"
        return Failure.of(part.file, BrokenPart(told))

    def _process_at_hand(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._must_stop:
                raise AnnotaryError("stopped")
            if self._process is None:
                environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "annotary.curation._worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=environment,
                )
                assert self._process.stdin is not None
                self._process.stdin.write(self._job)
            return self._process

    def _end(self) -> int | None:
        """End the process and take leave of it; its exit code."""
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return None
        process.terminate()
        code = process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            try:
                stream.close()
            except OSError:  # what it was to be told goes with it
                continue
        return code
