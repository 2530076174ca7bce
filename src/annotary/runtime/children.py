"""Processes of this machine that work for the one that started them, and are asked through a pipe.

Each is a Python of its own, so nothing of the caller's program is run again in it (as `multiprocessing` would). When
the caller dies, of whatever, the pipe is closed, and the process ends at once. What it and its libraries print is not
shown, but its last line is told when it dies.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

_LAST_WORDS = 4096  # bytes


class Child:
    """A process that does what a module of ours says.

    Args:
        module: What is run; its `main` begins with `serve`.
        inherited: Descriptors of files that it gets.

    Attributes:
        process: It. Objects are pickled to its standard input, and its answers from its standard output.
    """

    def __init__(self, module: str, inherited: Sequence[int] = ()) -> None:
        path = [place or os.getcwd() for place in sys.path]  # noqa: PTH109
        self.process = subprocess.Popen(
            # -P: a file in the current folder that is called as a library is none
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=inherited,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        )
        self._tail = b""
        self._listener = threading.Thread(target=self._listen, name="annotary-words", daemon=True)
        self._listener.start()

    def tell(self, data: bytes) -> None:
        """Give it pickled objects.

        Raises:
            OSError: It has ended, or is about to.
        """
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def answer(self) -> Any:
        """What it answers next.

        Raises:
            OSError, ValueError, EOFError, pickle.UnpicklingError: It has ended, or is about to.
        """
        assert self.process.stdout is not None
        return pickle.load(self.process.stdout)

    def take_leave(self, patience: float, *, grace: float) -> str:
        """End it, if it does not by itself, and close its pipes; how it ended.

        Args:
            patience: Seconds that it may take once it is asked to.
            grace: Seconds that it may take before it is: one that has closed its pipes is about to end, and its own
                code says more.
        """
        process = self.process
        try:
            code = process.wait(grace)
        except subprocess.TimeoutExpired:
            process.terminate()
            try:
                code = process.wait(patience)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):  # what it was to be told goes with it
                stream.close()
        self._listener.join(1.0)
        return _told(code, self._last_words())

    def _listen(self) -> None:
        """Take what it says until there is no more, and keep the end of it."""
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            while piece := os.read(stream.fileno(), 65536):
                self._tail = (self._tail + piece)[-_LAST_WORDS:]

    def _last_words(self) -> str:
        """The last line that says something."""
        lines = self._tail.decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")[-300:]


def serve() -> tuple[Callable[[], Any], Callable[[Any], None]]:
    """Be the process of a `Child`: what takes the next object that it was told, and what answers.

    The process ends when the one that started it is at its end, or gone; then nobody waits for an answer.
    """
    # Ctrl-C is for the one that started us, which ends us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tasks = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not stand between the answers
    told: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def listen() -> None:
        try:
            while True:
                told.put((pickle.load(tasks), None))
        except (OSError, EOFError):
            return
        except Exception as error:  # noqa: BLE001 - such as an object of a module that is not found here
            told.put((None, error))
            tasks.read()  # where the next object would begin is not known
        finally:
            os._exit(0)

    def take() -> Any:
        found, error = told.get()
        if error is not None:
            raise error
        return found

    def answer(found: Any) -> None:
        pickle.dump(found, answers)
        answers.flush()

    threading.Thread(target=listen, daemon=True).start()
    return take, answer


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
