"""Saved scores gone over again: tags are chosen anew and written, and no network runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import TracebackType
from typing import Self

from annotary.errors import ImageError, UnreachableImage
from annotary.pipeline.output import Output
from annotary.pipeline.run import Outcome
from annotary.pipeline.scores import SavedScores
from annotary.records import Failure, Item, Record
from annotary.sources import Reader
from annotary.tasks.tag_selection import TagSelector


class Reapply:
    """One pass over saved scores. Use it as a context manager, which ends the output, and iterate over it once.

    Args:
        saved: The scores.
        selector: Chooses the tags.
        output: Where records go.
        reader: Reads images, for outputs that hold them.

    Attributes:
        outcome: The counts, up to date whenever a record is yielded.
    """

    def __init__(
        self, saved: SavedScores, selector: TagSelector, output: Output, reader: Reader
    ) -> None:
        self.outcome = Outcome()
        self._saved = saved
        self._selector = selector
        self._output = output
        self._reader = reader

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._output.close(complete=error is None)

    def __iter__(self) -> Iterator[Record]:
        """Choose and write; each record is yielded when it is written."""
        for item, untagged, scores in self._saved:
            standing = self._output.standing(item)
            if standing == "done":
                self.outcome.done_before += 1
                continue
            if standing == "failed":
                self.outcome.failed_before += 1
                continue
            tags = self._selector.select(scores)
            record = replace(untagged, tags=tags, sources={"tags": self._saved.source})
            written = self._write(item, record)
            if written.ok:
                self.outcome.done += 1
            else:
                self.outcome.failed += 1
            yield written

    def _write(self, item: Item, record: Record) -> Record:
        if self._output.needs_bytes:
            try:
                data = self._reader.read(item)
                if not data:
                    raise UnreachableImage(
                        "it was in memory or in an archive, which scores do not keep"
                    )
            except ImageError as error:
                return self._output.write(item, Failure.of(item.image, error))
            item = replace(item, path=None, url=None, data=data)
        return self._output.write(item, record)
