"""A process that makes pictures of batches: `python -m annotary.training._loading_worker`.

`_loading_processes` starts it and tells it how through a pipe; the pictures lie in memory that both share.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from typing import Any, BinaryIO

from annotary.training._preparing import Pictures, Shared


def main() -> None:
    """Take a preparation from standard input, then what is wanted, and answer what could not be had."""
    # Ctrl-C is for the one that started us, which ends us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tasks = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not stand between the answers

    def tell(answer: tuple[str, Any]) -> None:
        pickle.dump(answer, answers)
        answers.flush()

    preparation, layout, handle = pickle.load(tasks)
    pictures = Pictures(Shared(layout.bytes, handle).memory, layout)
    asked: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(tasks, asked), daemon=True).start()
    tell(("ready", None))
    while True:
        slot, first, epoch, wanted = asked.get()
        target = pictures.slots[slot, first : first + len(wanted)]
        try:
            tell(("done", preparation.fill(target, wanted, epoch, pictures)))
        except Exception as error:  # noqa: BLE001 - it is raised again by the one that started us
            tell(("bug", (repr(error), "".join(traceback.format_exception(error)))))


def _listen(tasks: BinaryIO, asked: queue.SimpleQueue[Any]) -> None:
    """Take what is wanted until the one that started us is at its end, or gone; then nobody waits for an answer."""
    try:
        while True:
            asked.put(pickle.load(tasks))
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
