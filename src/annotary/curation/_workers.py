"""Processes of this machine that do parts of a step.

Each process is a Python of its own that is given parts through a pipe, one after the other, by a thread that waits for
it. So nothing of the caller's program is run again in it (as `multiprocessing` would), and when a process dies it is
known which part it was at: that part is tried once more in a new process, then listed, and the others go on. When the
caller dies, of whatever, the pipe is closed, and the processes end at once. What they and their libraries print is not
shown, but its last line is told when one dies.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
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

_PATIENCE = 10.0  # seconds that a process may take to end
_LAST_WORDS = 4096  # bytes

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
        self._process: subprocess.Popen[bytes] | None = None
        self._words = _Words(None)
        self._must_stop = False
        self._lock = threading.Lock()

    def start_process(self) -> None:
        """Start the process, which imports what the step needs while nothing is asked of it."""
        self._process_at_hand()

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
            process = self._process_at_hand()
            try:
                assert process.stdin is not None
                assert process.stdout is not None
                pickle.dump(part, process.stdin)
                process.stdin.flush()
                kind, outcome = pickle.load(process.stdout)
            except (OSError, ValueError, EOFError, pickle.UnpicklingError):
                ended = self._end()
                if self._must_stop:
                    raise AnnotaryError("stopped") from None
                continue
            return outcome_of(kind, outcome)
        return Failure.of(part.file, BrokenPart(f"the process that worked on it {ended}"))

    def _process_at_hand(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._must_stop:
                raise AnnotaryError("stopped")
            if self._process is None:
                path = [place or os.getcwd() for place in sys.path]  # noqa: PTH109
                self._process = subprocess.Popen(
                    # -P: a file in the current folder that is called as a library is none
                    [sys.executable, "-P", "-m", "annotary.curation._worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
                )
                self._words = _Words(self._process.stderr)
                self._words.start()
                try:
                    assert self._process.stdin is not None
                    self._process.stdin.write(self._job)
                    self._process.stdin.flush()
                except OSError:  # it has ended already: whoever waits for its answer finds out
                    pass
            return self._process

    def _end(self) -> str:
        """End the process and take leave of it; how it ended, if it did so by itself."""
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return ""
        try:
            # One that has closed its pipes is about to end, and its own code says more.
            code = process.wait(0 if self._must_stop else 1.0)
        except subprocess.TimeoutExpired:
            process.terminate()
            try:
                code = process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            try:
                stream.close()
            except OSError:  # what it was to be told goes with it
                continue
        self._words.join(1.0)
        return _told(code, self._words.last)


class _Words(threading.Thread):
    """A thread that takes what a process says, and keeps the end of it.

    Args:
        stream: Its standard error.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(name="annotary-curation-words", daemon=True)
        self._stream = stream
        self._tail = b""

    def run(self) -> None:
        """Take it until there is no more."""
        with self._stream:
            while piece := self._stream.read1(_LAST_WORDS):
                self._tail = (self._tail + piece)[-_LAST_WORDS:]

    @property
    def last(self) -> str:
        """The last line that says something."""
        lines = self._tail.decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")[-300:]


def _told(code: int, words: str) -> str:
    """How a process ended."""
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        told = f"was ended by {name}" + ("; is there enough memory?" if name == "SIGKILL" else "")
    else:
        told = f"ended with {code}"
    return f"{told}: {words}" if words else told
