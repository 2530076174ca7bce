"""A process that does parts of a step: `python -m annotary.curation._worker`, as `_workers` starts it."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
from typing import Any

from annotary.errors import AnnotaryError


def main() -> None:
    """Take a step and a folder from standard input, then parts, and answer what came of each on standard output."""
    from annotary.curation.steps import do_part

    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is for the one that started us, which ends us
    tasks = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not stand between the answers
    with contextlib.suppress(ImportError):
        import pyarrow

        pyarrow.set_cpu_count(1)
        pyarrow.set_io_thread_count(1)
    step, folder = pickle.load(tasks)
    while True:
        try:
            part = pickle.load(tasks)
        except EOFError:  # the one that started us is at its end, or gone
            return
        try:
            answer: tuple[str, Any] = ("done", do_part(step, part, folder))
        except AnnotaryError as error:
            answer = ("error", _plain(error))
        pickle.dump(answer, answers)
        answers.flush()


def _plain(error: AnnotaryError) -> AnnotaryError:
    """An error that can go to another process: those with arguments of their own are told as their parent."""
    try:
        copy = pickle.loads(pickle.dumps(error))
        assert str(copy) == str(error)
    except Exception:  # noqa: BLE001 - whatever cannot be copied
        return AnnotaryError(str(error))
    return error


if __name__ == "__main__":
    main()
