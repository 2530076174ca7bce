"""Where the records of a run go: annotations to a sink, failures to a list, and what is there is not done again."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from annotary.errors import ImageError, OutputError
from annotary.pipeline.state import FAILURES_FILE, RunState
from annotary.records import Annotation, Failure, Item, Record, from_line, to_line
from annotary.sinks import NameSet, Sink, SinkOptions, open_sink, write_atomically, writes_one_file

Standing: TypeAlias = Literal["new", "done", "failed"]
"""Whether an image is still to be done, is in the output, or is listed as failed by an earlier part of the run."""


class Output(Protocol):
    """Where the records of a run go."""

    @property
    def failures_path(self) -> Path | None:
        """The list of failures; None when they are only told."""

    @property
    def can_continue(self) -> bool:
        """Whether a run that is stopped goes on when it is started again."""

    def standing(self, item: Item | Failure) -> Standing:
        """Whether an image is still to be done.

        It is asked for every image, in their order and in one thread, which need not be the one that writes.
        """

    def write(self, item: Item | None, record: Record) -> Record:
        """Write a record; gives the record that was written in its place, when it could not be."""

    def close(self, *, complete: bool) -> None:
        """End the output; `complete` tells whether the run came to its end."""


class FileOutput:
    """Annotations in a sink and failures in `failures.jsonl`, continued where an earlier run stopped.

    Args:
        form: The format's name.
        output: The file or folder; None for sidecars beside the images. Then failures are listed in the current
            folder, and images that failed before are tried again.
        sink_options: How annotations are written.
        settings: What the records depend on.
        retry_failed: Whether images that failed before are tried again.

    Raises:
        OutputError: The output belongs to another run or cannot be written.
    """

    can_continue = True

    def __init__(
        self,
        form: str,
        output: Path | None,
        sink_options: SinkOptions,
        settings: dict[str, Any],
        *,
        retry_failed: bool,
    ) -> None:
        self._state: RunState | None = None
        if output is not None:
            self._state = RunState(
                output,
                {**settings, "format": form},
                is_folder=not writes_one_file(form),
                overwrite=sink_options.on_existing == "overwrite",
            )
        self._retries = retry_failed or self._state is None
        try:
            place = self._state.failures if self._state is not None else Path(FAILURES_FILE)
            self._failures = FailureList(place)
            self._sink: Sink = open_sink(form, output, sink_options)
        except BaseException:
            if self._state is not None:
                self._state.release(complete=False)
            raise

    @property
    def failures_path(self) -> Path:
        """The list of failures; it exists when there are any."""
        return self._failures.path

    def standing(self, item: Item | Failure) -> Standing:
        """Whether an image is still to be done."""
        if isinstance(item, Item) and self._sink.holds(item):
            return "done"
        return "failed" if not self._retries and item.image in self._failures else "new"

    def write(self, item: Item | None, record: Record) -> Record:
        """Write a record where it belongs."""
        if isinstance(record, Annotation):
            assert item is not None
            try:
                self._sink.write(item, record)
            except ImageError as error:
                record = Failure.of(record.image, error)
            else:
                self._failures.settle(record.image)
                return record
        self._failures.add(record)
        return record

    def close(self, *, complete: bool) -> None:
        """End the files and let other processes have them."""
        # While another error is on its way, it is the one to tell.
        told = contextlib.nullcontext() if complete else contextlib.suppress(OutputError)
        with told, contextlib.ExitStack() as stack:
            if self._state is not None:
                stack.callback(self._state.release, complete=complete)
            stack.callback(self._sink.close, complete=complete)
            stack.callback(self._failures.close)


class FailureList:
    """The images that could not be annotated, as JSON Lines, each once. There is no file until one fails.

    Args:
        path: The file.

    Raises:
        OutputError: It cannot be read, or is something else than such a list.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._names = NameSet()
        self._settled = NameSet()
        self._descriptor: int | None = None
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise OutputError(f"cannot read {path}: {error.strerror}") from error
        whole = data[: data.rfind(b"\n") + 1]
        for line in whole.splitlines():
            self._names.add(self._failure(line).image)
        if len(whole) < len(data):  # a tail that was cut off by a crash
            os.truncate(path, len(whole))

    def __contains__(self, image: str) -> bool:
        return image in self._names

    def add(self, failure: Failure) -> None:
        """List a failure, unless its image is listed.

        Raises:
            OutputError: It cannot be written.
        """
        if not self._names.add(failure.image):
            return
        line = to_line(failure).encode() + b"\n"
        try:
            if self._descriptor is None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._descriptor = os.open(self.path, flags, 0o666)
            if os.write(self._descriptor, line) < len(line):
                raise OSError(28, "No space left on device")
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}") from error

    def settle(self, image: str) -> None:
        """An image succeeded: it leaves the list when that is closed."""
        if image in self._names:
            self._settled.add(image)

    def close(self) -> None:
        """Close the list, without the images that have succeeded meanwhile.

        Raises:
            OutputError: It cannot be written; then it lists them still.
        """
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        if not len(self._settled) or not self.path.exists():
            return
        lines = self.path.read_bytes().splitlines()
        kept = [line for line in lines if self._failure(line).image not in self._settled]
        if kept:
            write_atomically(self.path, b"\n".join([*kept, b""]).decode())
        else:
            self.path.unlink()

    def _failure(self, line: bytes) -> Failure:
        with contextlib.suppress(ValueError):
            record = from_line(line)
            if isinstance(record, Failure):
                return record
        raise OutputError(f"{self.path} is no list of failures of annotary; move it away")
