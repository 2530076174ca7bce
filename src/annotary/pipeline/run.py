"""A run: everything of the inputs that the output does not hold yet, annotated and written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from annotary.images import DecodeOptions
from annotary.pipeline.local import PipelineOptions, annotate
from annotary.pipeline.output import Output, Standing
from annotary.pipeline.scores import ScoreWriter
from annotary.records import Annotation, Failure, Item, Record
from annotary.sinks import NameSet
from annotary.sources import Reader
from annotary.tasks import Task


@dataclass(slots=True)
class Outcome:
    """Counts of a run, in images of its inputs.

    Attributes:
        done: Annotated and written by this run.
        failed: Could not be annotated by this run.
        done_before: Were in the output already.
        failed_before: Were in the list of failures already.
    """

    done: int = 0
    failed: int = 0
    done_before: int = 0
    failed_before: int = 0

    @property
    def seen(self) -> int:
        """All of them."""
        return self.done + self.failed + self.done_before + self.failed_before


class Run:
    """One pass over the inputs. Use it as a context manager, which ends the output, and iterate over it once.

    Args:
        items: The images, from `annotary.sources`.
        tasks: What is asked of each.
        output: Where records go.
        reader: Reads the bytes.
        decode_options: How bytes are decoded.
        options: How the work is spread.
        scores: Where the scores of all tags are kept, too.

    Attributes:
        outcome: The counts, up to date whenever a record is yielded.
    """

    def __init__(
        self,
        items: Iterable[Item | Failure],
        tasks: Sequence[Task],
        output: Output,
        reader: Reader,
        decode_options: DecodeOptions,
        options: PipelineOptions,
        scores: ScoreWriter | None = None,
    ) -> None:
        self.outcome = Outcome()
        self._output = output
        self._scores = scores
        self._only_scores = NameSet()
        self._results = annotate(
            self._new(items),
            tasks,
            reader,
            decode_options,
            options,
            keeps_bytes=output.needs_bytes,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._results.close()
        try:
            if self._scores is not None:
                self._scores.close(complete=error is None)
        finally:
            self._output.close(complete=error is None)

    def __iter__(self) -> Iterator[Record]:
        """Annotate and write; each record is yielded when it is written."""
        with contextlib.closing(self._results) as results:
            for item, record, beside in results:
                if self._scores is not None and item is not None and isinstance(record, Annotation):
                    # Before the record: an image counts as done when its record is written.
                    self._scores.write(item, record, beside["scores"])
                is_written = record.ok and item is not None and item.image in self._only_scores
                written = record if is_written else self._output.write(item, record)
                if written.ok:
                    self.outcome.done += 1
                else:
                    self.outcome.failed += 1
                yield written

    def _new(self, items: Iterable[Item | Failure]) -> Iterator[Item | Failure]:
        """The items that are neither done nor named before in this run."""
        seen = NameSet()
        for item in items:
            if isinstance(item, Item) and not seen.add(_identity(item)):
                continue
            match self._standing(item):
                case "done":
                    self.outcome.done_before += 1
                case "failed":
                    self.outcome.failed_before += 1
                case "new":
                    yield item

    def _standing(self, item: Item | Failure) -> Standing:
        """Whether an image is still to be done, for its record or for its scores."""
        standing = self._output.standing(item)
        if self._scores is None or isinstance(item, Failure):
            return standing
        if self._scores.holds(item.image):
            return standing if self._output.can_continue else "done"
        if standing == "done":
            self._only_scores.add(item.image)
            return "new"
        return standing


def _identity(item: Item) -> str:
    """What tells an image from others, however its path is written."""
    if item.path is not None:
        return os.path.abspath(item.path)  # noqa: PTH100 - a hundred times faster than Path's
    return item.image
