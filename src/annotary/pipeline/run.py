"""A run: everything of the inputs that the output does not hold yet, annotated and written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from annotary.errors import ImageError, OutputError
from annotary.images import DecodeOptions
from annotary.pipeline.local import PipelineOptions, annotate
from annotary.pipeline.state import FAILURES_FILE, RunState
from annotary.records import Annotation, Failure, Item, Record
from annotary.sinks import NameSet, Sink, SinkOptions, open_sink, writes_one_file
from annotary.sinks.jsonl import FailureFile
from annotary.sources import Reader
from annotary.tasks import Task


@dataclass(slots=True)
class Outcome:
    """Counts of a run, in images.

    Attributes:
        done: Annotated and written by this run.
        failed: Could not be annotated by this run.
        skipped: Were in the output already, or in its list of failures.
    """

    done: int = 0
    failed: int = 0
    skipped: int = 0


class Output(Protocol):
    """Where a run's records go."""

    def holds(self, item: Item) -> bool:
        """Whether an image is done."""

    def write(self, item: Item | None, record: Record) -> Record:
        """Write a record; the record that was written in its place, when it could not be."""

    def close(self, *, complete: bool) -> None:
        """End the output."""


class FileOutput:
    """Annotations in a sink and failures in `failures.jsonl`, continued where an earlier run stopped.

    Args:
        form: The format's name.
        output: The file or folder; None for sidecars beside the images.
        sink_options: How annotations are written.
        settings: What the records depend on.
        retry_failed: Whether images that failed before are tried again.

    Attributes:
        failed_before: Failures that an earlier part of this run has listed.

    Raises:
        OutputError: The output belongs to another run or cannot be written.
    """

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
        failures = Path(FAILURES_FILE)
        if output is not None:
            self._state = RunState(
                output,
                {**settings, "format": form},
                is_folder=not writes_one_file(form),
                overwrite=sink_options.on_existing == "overwrite",
            )
            failures = self._state.failures
        with self._released_on_error():
            if retry_failed:
                failures.unlink(missing_ok=True)
            self._sink: Sink = open_sink(form, output, sink_options)
            self._failures = FailureFile(failures)
            self.failed_before = len(self._failures) if self._state is not None else 0

    @property
    def failures_path(self) -> Path:
        """The file of failures; it exists when there are any."""
        return self._failures.path

    def holds(self, item: Item) -> bool:
        """Whether an image is done: in the output, or listed as failed by an earlier part of this run."""
        return self._sink.holds(item) or (self._state is not None and item.image in self._failures)

    def write(self, item: Item | None, record: Record) -> Record:
        """Write a record where it belongs."""
        if isinstance(record, Annotation):
            assert item is not None
            try:
                self._sink.write(item, record)
            except ImageError as error:
                record = Failure.of(record.image, error)
            else:
                return record
        self._failures.write(record)
        return record

    def close(self, *, complete: bool) -> None:
        """End the files and let other processes have them."""
        try:
            self._failures.close()
            with contextlib.nullcontext() if complete else contextlib.suppress(OutputError):
                self._sink.close()
        finally:
            if self._state is not None:
                self._state.release()

    @contextlib.contextmanager
    def _released_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            if self._state is not None:
                self._state.release()
            raise


class Run:
    """One pass over the inputs. Use it as a context manager and iterate over it once.

    Args:
        items: The images, from `annotary.sources`.
        tasks: What is asked of each.
        output: Where records go.
        reader: Reads the bytes.
        decode_options: How bytes are decoded.
        options: How the work is spread.
    """

    def __init__(
        self,
        items: Iterable[Item | Failure],
        tasks: Sequence[Task],
        output: Output,
        reader: Reader,
        decode_options: DecodeOptions,
        options: PipelineOptions,
    ) -> None:
        self.outcome = Outcome()
        self._output = output
        self._seen = NameSet()
        self._start: Callable[[], Generator[tuple[Item | None, Record], None, None]] = lambda: (
            annotate(self._new(items), tasks, reader, decode_options, options)
        )
        self._close_reader: Callable[[], None] = reader.close

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close_reader()
        self._output.close(complete=error is None)

    def __iter__(self) -> Iterator[Record]:
        """Annotate and write; each record is yielded when it is written."""
        with contextlib.closing(self._start()) as records:
            for item, record in records:
                written = self._output.write(item, record)
                if written.ok:
                    self.outcome.done += 1
                else:
                    self.outcome.failed += 1
                yield written

    def _new(self, items: Iterable[Item | Failure]) -> Iterator[Item | Failure]:
        """The items that are neither done nor named before in this run."""
        for item in items:
            if not self._seen.add(item.image):
                continue
            if isinstance(item, Item) and self._output.holds(item):
                self.outcome.skipped += 1
                continue
            yield item
