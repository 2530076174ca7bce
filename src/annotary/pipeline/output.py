"""Where the records of a run go: annotations to a sink, failures to a list, and what is there is not done again."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from annotary.errors import ImageError, OutputError
from annotary.pipeline.state import (
    FAILURES_FILE,
    RunState,
    claims_failures,
    is_list_of_failures,
    line_kind,
)
from annotary.records import Annotation, Failure, Item, Record, from_line, to_line
from annotary.sinks import (
    NameSet,
    Sink,
    SinkOptions,
    check_parts,
    format_named,
    in_order,
    open_sink,
    write_atomically,
)

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

    @property
    def needs_bytes(self) -> bool:
        """Whether items must come with their encoded bytes."""

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
        inputs: What the run reads, and must not be written over; "-" is standard input.
        parts: The parts of a record that the run finds, from `Task.part`.
        classes: What boxes may be labelled with, in their order, for formats that number them.

    Raises:
        UsageError: The format cannot hold one of the parts; nothing was touched.
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
        inputs: Iterable[str | Path] = (),
        parts: Iterable[str] = ("tags",),
        classes: Sequence[str] = (),
    ) -> None:
        parts = in_order(parts)
        check_parts(form, parts)
        described = format_named(form)
        # Of tags alone nothing is said, as it was before there were other parts.
        found = {} if parts == ("tags",) else {"parts": list(parts)}
        self._state: RunState | None = None
        if output is not None:
            self._state = RunState(
                output,
                {**settings, **found, "format": form},
                is_folder=not described.is_one_file,
                overwrite=sink_options.on_existing == "overwrite",
            )
            if described.is_one_file and not self._state.is_known:
                # Nothing there is known to be annotary's, so nothing may be thrown away.
                sink_options = replace(sink_options, on_existing="skip")
        self._retries = retry_failed or self._state is None
        try:
            place = self._state.failures if self._state is not None else _list_of_sidecars()
            self._failures = FailureList(place, renews=self._retries)
            self._sink: Sink = open_sink(form, output, sink_options, parts)
            if protect := getattr(self._sink, "protect", None):
                protect(inputs)
            if classes and (name_classes := getattr(self._sink, "name_classes", None)):
                name_classes(tuple(classes))
            self.needs_bytes: bool = getattr(self._sink, "needs_bytes", described.needs_bytes)
        except BaseException:
            if self._state is not None:
                self._state.abandon()
            raise

    @property
    def failures_path(self) -> Path:
        """The list of failures; it exists when there are any."""
        return self._failures.path

    def standing(self, item: Item | Failure) -> Standing:
        """Whether an image is still to be done."""
        if isinstance(item, Item) and self._sink.holds(item):
            self._failures.found_done(item.image)
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
        is_closed = False
        try:
            # While another error is on its way, it is the one to tell.
            with contextlib.nullcontext() if complete else contextlib.suppress(OutputError):
                try:
                    self._sink.close(complete=complete)
                finally:
                    self._failures.close()
                is_closed = True
        finally:
            if self._state is not None:
                self._state.release(complete=complete and is_closed)


class FailureList:
    """The images that could not be annotated, as JSON Lines, each once. There is no file until one fails.

    Args:
        path: The file.
        renews: Whether images that are listed are tried again; those that fail again get their new reason.

    Raises:
        OutputError: It cannot be read, or is something else than such a list.
    """

    def __init__(self, path: Path, *, renews: bool = False) -> None:
        self.path = path
        self._renews = renews
        self._listed = NameSet()
        self._failed = NameSet()
        self._settled = NameSet()
        self._found_done = NameSet()
        self._has_changed = False
        for image in self._read():
            self._listed.add(image)

    def __contains__(self, image: str) -> bool:
        return image in self._listed

    def add(self, failure: Failure) -> None:
        """List a failure, unless its image is listed and not tried again.

        Raises:
            OutputError: It cannot be written.
        """
        is_new = self._listed.add(failure.image)
        if not self._failed.add(failure.image) or not (is_new or self._renews):
            return
        self._has_changed |= not is_new
        line = to_line(failure).encode() + b"\n"
        try:
            self._mend_tail()
            # Opened each time: another run may have replaced the file.
            with self.path.open("ab", buffering=0) as file:
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}") from error

    def settle(self, image: str) -> None:
        """An image succeeded: it leaves the list when that is closed."""
        if image in self._listed:
            self._settled.add(image)

    def found_done(self, image: str) -> None:
        """An image is in the output already: it leaves the list. For the thread that asks what is done."""
        if image in self._listed:
            self._found_done.add(image)

    def close(self) -> None:
        """Leave in the list what belongs there: each image once, with its last reason.

        Raises:
            OutputError: It cannot be written; then it lists more.
        """
        if not (len(self._settled) or len(self._found_done) or self._has_changed):
            return
        last = {image: line for image, line in self._read().items() if self._stays(image)}
        try:
            if last:
                write_atomically(self.path, b"".join(last.values()).decode())
            else:
                self.path.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}") from error

    def _stays(self, image: str) -> bool:
        return image not in self._settled and image not in self._found_done

    def _read(self) -> dict[str, bytes]:
        """Every listed image and its last line.

        Raises:
            OutputError: The file cannot be read, or is something else.
        """
        found: dict[str, bytes] = {}
        try:
            with self.path.open("rb") as file:
                for line in file:
                    kind = line_kind(line)
                    if kind == "foreign":
                        raise OutputError(
                            f"{self.path} is no list of failures of annotary; move it away"
                        )
                    if kind == "failure":
                        found[from_line(line).image] = line.removesuffix(b"\n") + b"\n"
        except FileNotFoundError:
            pass
        except OSError as error:
            raise OutputError(f"cannot read {self.path}: {error.strerror}") from error
        return found

    def _mend_tail(self) -> None:
        """Cut off what a crash left at the end, and end a line that lacks its end."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            if file.read() in (b"", b"\n"):  # as after every failure of this run
                return
        data = self.path.read_bytes()
        tail = data[data.rfind(b"\n") + 1 :]
        if tail and line_kind(tail) == "failure":
            with self.path.open("ab") as file:
                file.write(b"\n")
        elif tail:
            os.truncate(self.path, len(data) - len(tail))


def _list_of_sidecars() -> Path:
    """The list of failures of sidecars beside images: in the current folder.

    It has another name where an output has claimed the usual one, or a file that is something else has it.
    """
    here = Path()
    usual = here / FAILURES_FILE
    is_foreign = os.path.lexists(usual) and not is_list_of_failures(usual)
    return here / f"sidecars.{FAILURES_FILE}" if is_foreign or claims_failures(here) else usual
