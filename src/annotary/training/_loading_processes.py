"""The workers of the loader: processes of this machine that make pictures, or the caller itself.

Processes and not threads: a file that brings a decoder down costs one image and not the training, and what decoding and
augmentation hold of Python's lock is not taken from the training (docs/augmentation.md has numbers of both). Each is a
Python of its own that is asked through a pipe by a thread that waits for it: nothing of the caller's program is run
again in it, and when the caller dies, of whatever, the pipe is closed and the processes end at once.
"""

from __future__ import annotations

import contextlib
import pickle
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

from annotary.errors import AnnotaryError, UnreadableImage
from annotary.records import Failure
from annotary.runtime.children import Child
from annotary.training._preparing import (
    WHITE,
    Broken,
    Layout,
    Pictures,
    Preparation,
    Shared,
    Wanted,
)

_PATIENCE = 5.0  # seconds that a process may take to end


class Task(NamedTuple):
    """A part of a batch.

    Attributes:
        slot: Where the batch is made.
        first: Place of the part's first picture in the batch.
        epoch: Of what is drawn.
        rows: Of the dataset.
    """

    slot: int
    first: int
    epoch: int
    rows: tuple[int, ...]


WantedOf = Callable[[Sequence[int]], list[Wanted]]


class Workers(Protocol):
    """Whoever makes pictures."""

    pictures: Pictures

    def submit(self, task: Task) -> Future[list[Broken]]:
        """Have a part of a batch made; what could not be had comes with its place in the batch."""

    def close(self) -> None:
        """End it, whatever it is at."""


class Here:
    """The caller itself, who makes pictures when they are asked for.

    Args:
        preparation: How.
        layout: Of the memory.
        wanted_of: From rows to images.
    """

    def __init__(self, preparation: Preparation, layout: Layout, wanted_of: WantedOf) -> None:
        self.pictures = Pictures(bytearray(layout.bytes), layout)
        self._preparation = preparation
        self._wanted_of = wanted_of

    def submit(self, task: Task) -> Future[list[Broken]]:
        """Make a part of a batch."""
        target = self.pictures.slots[task.slot, task.first : task.first + len(task.rows)]
        wanted = self._wanted_of(task.rows)
        future: Future[list[Broken]] = Future()
        found = self._preparation.fill(target, wanted, task.epoch, self.pictures)
        future.set_result([one._replace(place=one.place + task.first) for one in found])
        return future

    def close(self) -> None:
        """There is nothing to end."""


class Processes:
    """Processes that make pictures.

    Args:
        preparation: How.
        layout: Of the memory.
        wanted_of: From rows to images; it is called in other threads.
        count: How many processes.
    """

    def __init__(
        self, preparation: Preparation, layout: Layout, wanted_of: WantedOf, count: int
    ) -> None:
        self._shared = Shared(layout.bytes)
        self.pictures = Pictures(self._shared.memory, layout)
        self._tasks: queue.SimpleQueue[tuple[Task, Future[list[Broken]]] | None]
        self._tasks = queue.SimpleQueue()
        job = pickle.dumps((preparation, layout, self._shared.handle))
        self._hands = [_Hand(job, self, wanted_of) for _ in range(count)]
        for hand in self._hands:
            hand.start()

    @property
    def tasks(self) -> queue.SimpleQueue[tuple[Task, Future[list[Broken]]] | None]:
        """What nobody has begun; None ends whoever takes it."""
        return self._tasks

    @property
    def inherited(self) -> tuple[int, ...]:
        """The files that a process is given."""
        return self._shared.inherited

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids of the processes that run."""
        return tuple(hand.pid for hand in self._hands if hand.pid is not None)

    def submit(self, task: Task) -> Future[list[Broken]]:
        """Have a part of a batch made."""
        future: Future[list[Broken]] = Future()
        self._tasks.put((task, future))
        return future

    def close(self) -> None:
        """End the processes."""
        for _ in self._hands:
            self._tasks.put(None)
        for hand in self._hands:
            hand.stop()
        for hand in self._hands:
            hand.join()
        del self.pictures
        self._shared.close()


class _Ended(Exception):
    """A process has ended by itself; the message says how."""


class _Hand(threading.Thread):
    """A thread that asks a process of its own.

    Args:
        job: What the process is told first.
        processes: Where tasks come from.
        wanted_of: From rows to images.
    """

    def __init__(self, job: bytes, processes: Processes, wanted_of: WantedOf) -> None:
        super().__init__(name="annotary-loading", daemon=True)
        self._job = job
        self._processes = processes
        self._wanted_of = wanted_of
        self._child: Child | None = None
        self._must_stop = False
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """The id of its process."""
        child = self._child
        return None if child is None else child.process.pid

    def run(self) -> None:
        """Do tasks until there is None."""
        with contextlib.suppress(AnnotaryError, _Ended):  # it is told to whoever asks for a task
            self._start_process()
        while not self._must_stop and (found := self._processes.tasks.get()) is not None:
            task, future = found
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._outcome(task))
            except BaseException as error:  # noqa: BLE001 - it is raised where the caller waits
                future.set_exception(error)
        self._must_stop = True
        self._end()

    def stop(self) -> None:
        """End the process, whatever it is at; the thread ends by itself."""
        self._must_stop = True
        with self._lock:
            if self._child is not None:
                self._child.process.kill()  # it holds nothing that could be lost

    def _outcome(self, task: Task) -> list[Broken]:
        wanted = self._wanted_of(task.rows)
        try:
            found = self._ask(task, wanted)
        except _Ended:
            # Which of the images it was at is not known, so each is tried by itself.
            found = [
                broken
                for place in range(len(wanted))
                for broken in self._single(task, wanted, place)
            ]
        return [one._replace(place=one.place + task.first) for one in found]

    def _single(self, task: Task, wanted: list[Wanted], place: int) -> list[Broken]:
        """Make one picture of a part, or take note that its image brings a process down."""
        try:
            own = task._replace(first=task.first + place)
            found = self._ask(own, wanted[place : place + 1])
            return [one._replace(place=place) for one in found]
        except _Ended as error:
            self._processes.pictures.slots[task.slot, task.first + place] = WHITE
            told = UnreadableImage(f"the process that prepared it {error}")
            return [Broken(place, Failure.of(wanted[place].identity, told))]

    def _ask(self, task: Task, wanted: list[Wanted]) -> list[Broken]:
        """What the process answers.

        Raises:
            _Ended: It ended.
            AnnotaryError: No process can be had.
        """
        if self._child is None:
            self._start_process()
        kind, outcome = self._exchange((task.slot, task.first, task.epoch, wanted))
        if kind == "bug":
            error = RuntimeError(f"an image of the dataset could not be prepared: {outcome[0]}")
            error.add_note(outcome[1])
            raise error
        found: list[Broken] = outcome
        return found

    def _exchange(self, told: Any) -> tuple[str, Any]:
        """Tell the process something, unless it is None, and take its answer."""
        child = self._child
        if child is None:
            raise AnnotaryError("the loader is closed")
        try:
            if told is not None:
                child.tell(pickle.dumps(told))
            answer: tuple[str, Any] = child.answer()
        except (OSError, ValueError, EOFError, pickle.UnpicklingError) as error:
            ended = self._end()
            if self._must_stop:
                raise AnnotaryError("the loader is closed") from error
            raise _Ended(ended) from error
        return answer

    def _start_process(self) -> None:
        with self._lock:
            if self._must_stop:
                raise AnnotaryError("the loader is closed")
            self._child = Child("annotary.training._loading_worker", self._processes.inherited)
        with contextlib.suppress(OSError):  # it has ended already, as its answer shows
            self._child.tell(self._job)
        try:
            self._exchange(None)
        except _Ended as error:
            raise AnnotaryError(f"a worker of the loader cannot be started: it {error}") from error

    def _end(self) -> str:
        """Take leave of the process; how it ended, if it did so by itself."""
        with self._lock:
            child, self._child = self._child, None
        if child is None:
            return "has ended"
        if self._must_stop:
            child.process.kill()
        return child.take_leave(_PATIENCE, grace=_PATIENCE)
