"""The first half of a dataset: every image is labelled, once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from types import TracebackType
from typing import Self

from annotary.datasets._dataset import Dataset
from annotary.datasets._images import StoringReader, suffix_of
from annotary.datasets._journal import original_of
from annotary.datasets._names import stem_and_suffix
from annotary.images import DecodeOptions
from annotary.pipeline import Outcome, PipelineOptions, annotate
from annotary.records import Annotation, Failure, Item, Record
from annotary.sinks import NameSet
from annotary.sources import Reader, SourceOptions
from annotary.tasks import Task


class Labelling:
    """Labels the images that a dataset does not know yet. Use it as a context manager, and iterate over it once.

    Args:
        dataset: Where what is said of them is kept.
        items: The images, from `annotary.sources`.
        task: Gives labels or boxes, whatever the threshold is.
        source_options: How images are read.
        decode_options: How bytes are decoded.
        options: How the work is spread.

    Attributes:
        outcome: The counts, up to date whenever a record is yielded.
    """

    def __init__(
        self,
        dataset: Dataset,
        items: Iterable[Item | Failure],
        task: Task,
        source_options: SourceOptions,
        decode_options: DecodeOptions,
        options: PipelineOptions,
    ) -> None:
        self.outcome = Outcome()
        self._dataset = dataset
        store = dataset.store
        self._reader: Reader = Reader(source_options)
        if dataset.places_images:
            finds_boxes = dataset.description.task == "detect"
            self._reader = StoringReader(source_options, store, notes_orientation=finds_boxes)
        self._results = annotate(
            self._new(items), [task], self._reader, decode_options, options, keeps_digest=True
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
        self._reader.close()
        self._dataset.journal.close(complete=error is None)

    def __iter__(self) -> Iterator[Record]:
        """Label and write; each record is yielded when it is written."""
        dataset, folder = self._dataset, os.fspath(self._dataset.folder)
        with closing(self._results) as results:
            for item, record, beside in results:
                # Named as in the dataset, so that the command may be given again in another folder.
                original = None if item is None else original_of(item, folder)
                if isinstance(record, Annotation):
                    assert item is not None
                    assert original is not None
                    sha256 = beside["sha256"]
                    suffix = self._lacking_suffix(item, sha256)
                    dataset.journal.add(
                        *(original, item, record, sha256, suffix),
                        composed=beside.get("composed"),
                        orientation=self._orientation(item),
                    )
                    self.outcome.done += 1
                else:
                    if item is not None:
                        self._orientation(item)
                    dataset.failures.add(replace(record, image=original or record.image))
                    self.outcome.failed += 1
                yield record

    def _new(self, items: Iterable[Item | Failure]) -> Iterator[Item | Failure]:
        """The items that are neither done nor named before in this run."""
        seen = NameSet()
        dataset, folder = self._dataset, os.fspath(self._dataset.folder)
        for item in items:
            name = original_of(item, folder) if isinstance(item, Item) else item.image
            if isinstance(item, Item) and not seen.add(name):
                continue
            if isinstance(item, Item) and name in dataset.journal:
                self.outcome.done_before += 1
            elif not dataset.retry_failed and name in dataset.failures:
                self.outcome.failed_before += 1
            elif isinstance(item, Item) and self._is_known(item, name):
                self.outcome.done_before += 1
            else:
                yield item

    def _is_known(self, item: Item, original: str) -> bool:
        """Whether another dataset has said what an image is; then it is taken over."""
        known = self._dataset.known
        if known is None or item.path is None:
            return False
        value = known.find(os.path.abspath(item.path))  # noqa: PTH100 - keeps links as they are
        if value is None:
            return False
        suffix = self._lacking_suffix(item, value["sha256"])
        self._dataset.journal.take(original, item, value, suffix)
        return True

    def _orientation(self, item: Item) -> int:
        """How a picture is turned, where that matters."""
        reader = self._reader
        return reader.orientation(item) if isinstance(reader, StoringReader) else 1

    def _lacking_suffix(self, item: Item, sha256: str) -> str:
        """What the name of an image lacks to be known as one."""
        if not self._dataset.places_images or stem_and_suffix(item.relative or item.image)[1]:
            return ""
        return suffix_of(item.path or self._dataset.store.path(sha256))
