"""A run of CapFilt: images that are done are in the journal, and the table is written when all are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from annotary.curation._capfilt_journal import SUFFIX, Journal
from annotary.curation._capfilt_judging import Asked, Judged
from annotary.curation._capfilt_options import CapFiltOptions, Models
from annotary.curation._capfilt_output import write_rows
from annotary.curation._capfilt_store import Store, told_below
from annotary.curation._capfilt_tables import Tables
from annotary.errors import UnreachableImage
from annotary.pipeline import Outcome
from annotary.pipeline.output import FailureList
from annotary.pipeline.state import RunState
from annotary.records import Failure, Item, from_line


@dataclass(frozen=True, slots=True)
class CapFiltResult:
    """What became of the texts.

    Attributes:
        outcome: The counts of images, of this run.
        texts: Of each origin (`web`, `synthetic`): `texts`, `kept`, `scored`, `noise_ratio` (the share of the scored
            texts that the filter dropped, 0..1; None without a filter) and `dropped`, why to how many.
        settings: What they depend on: the cards, the kind of score, the threshold or share.
        cut: Texts that are longer than the filter reads.
        lowest_kept: The lowest score that is kept, where a share is; None otherwise.
        output: The table.
        rows: How many it has.
        failures: The list of images that could not be had, if there are any.
    """

    outcome: Outcome
    texts: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Any]
    cut: int
    lowest_kept: float | None
    output: Path
    rows: int
    failures: Path | None

    def to_json(self) -> dict[str, Any]:
        """The same as a JSON object."""
        return {
            "command": "curate capfilt",
            "images": self.outcome.seen,
            "failed": self.outcome.failed + self.outcome.failed_before,
            "texts": {name: dict(one) for name, one in self.texts.items()},
            **self.settings,
            "cut": self.cut,
            "lowest_kept": self.lowest_kept,
            "output": str(self.output),
            "rows": self.rows,
            "failures": None if self.failures is None else str(self.failures),
        }


@dataclass(frozen=True, slots=True)
class Ended:
    """A run that came to its end, and why it dropped texts that have a score."""

    result: CapFiltResult
    below: str


class Run:
    """A run over the images of a store: what is in the journal is not done again.

    Args:
        store: Holds the texts.
        tables: Where they, and the images, come from.
        output: The table to write.
        models: What writes and what filters.
        options: What is kept.

    Attributes:
        outcome: The counts.
    """

    def __init__(
        self,
        store: Store,
        tables: Tables,
        output: Path,
        models: Models,
        options: CapFiltOptions,
    ) -> None:
        self.outcome = Outcome()
        self._store = store
        self._tables = tables
        self._output = output
        self._models = models
        self._options = options

    @contextlib.contextmanager
    def opened(self, settings: Mapping[str, Any]) -> Iterator[None]:
        """Hold the journal and the list of failures while images are done, and write the table at the end."""
        path = self._output.with_name(self._output.name + SUFFIX)
        is_new = self._options.on_existing == "overwrite"
        state = RunState(path, settings, is_folder=False, overwrite=is_new)
        is_complete = False
        try:
            with ExitStack() as open_files:
                path.touch()  # a run without any image that could be had is one that can be continued, too
                self._journal = Journal(path, self._take_known)
                open_files.callback(lambda: self._journal.close(complete=True))
                self._failures = FailureList(state.failures, renews=self._options.retry_failed)
                open_files.callback(self._failures.close)
                self._begin(_listed(state.failures))
                yield
                self._finish()
            is_complete = True
        finally:
            state.release(complete=is_complete)

    def items(self, asked: Asked) -> Iterator[Item]:
        """The images that are still to be asked about, each once."""
        if not self._store.waiting:
            return
        for row in self._tables.rows(with_images=True):
            if isinstance(row.found, Item):
                texts = self._store.begin(row.found)
                if texts is not None:
                    asked.put(row.found.image, texts if self._models.judge else ())
                    yield row.found

    def take(self, record: Any, beside: Mapping[str, Any]) -> None:
        """Write down what became of an image."""
        if isinstance(record, Failure):
            self._failures.add(record)
            self._store.fail(record.image, record.message)
            self.outcome.failed += 1
            return
        judged = beside["judged"]
        self._journal.write(record.image, judged)
        self._settle(record.image, judged)
        self._failures.settle(record.image)
        self.outcome.done += 1

    def end(self) -> Ended:
        """What came out of it; for after the files were closed."""
        return self._ended

    def _take_known(self, image: str, judged: Judged) -> None:
        """Take an image from the journal."""
        self._settle(image, judged)

    def _settle(self, image: str, judged: Judged) -> bool:
        models = self._models
        return self._store.settle(
            *(image, judged),
            is_scored=models.judge is not None,
            is_written=models.writer is not None,
        )

    def _begin(self, listed: Mapping[str, str]) -> None:
        """Count what is done, and what cannot be, before the first image."""
        for image, message in list(self._store.failures()):
            if image in listed and not self._options.retry_failed:
                self.outcome.failed_before += 1
            else:
                self._failures.add(Failure.of(image, UnreachableImage(message)))
                self.outcome.failed += 1
        for image, message in listed.items():
            if self._store.is_done(image):
                self._failures.found_done(image)
            elif not self._options.retry_failed and self._store.fail_waiting(image, message):
                self.outcome.failed_before += 1
        failed = self.outcome.failed + self.outcome.failed_before
        known = self._store.images - self._store.waiting - failed
        if self._models.writer is None:
            self._store.finish_unasked()
        done = self._store.images - self._store.waiting - failed
        # Those of which nothing is asked are in no journal: they were done before if anything was.
        if known or self.outcome.failed_before:
            self.outcome.done_before = done
        else:
            self.outcome.done = done

    def _finish(self) -> None:
        """Decide, and write the table."""
        for image in self._store.unfinished():
            why = UnreachableImage("it was no longer in its table when its turn came")
            self.take(Failure.of(image, why), {})
        models = self._models
        below = told_below(models.rule, models.kind)
        lowest = self._store.decide(models.rule)
        cards = models.weights()
        rows = (
            {
                **row,
                "captioner": cards["captioner"] if row["origin"] == "synthetic" else None,
                "matcher": cards["matcher"],
            }
            for row in self._store.rows(below)
            if row["kept"] or not self._options.kept_only
        )
        counts = self._store.counts(below)
        written = write_rows(self._output, rows, {**models.told, "texts": counts})
        has_failed = self.outcome.failed + self.outcome.failed_before
        result = CapFiltResult(
            outcome=replace(self.outcome),
            texts=counts,
            settings=models.told,
            cut=self._store.cut,
            lowest_kept=lowest,
            output=self._output,
            rows=written,
            failures=self._failures.path if has_failed else None,
        )
        self._ended = Ended(result, below)


def _listed(path: Path) -> dict[str, str]:
    """The images of a list of failures, and why they failed."""
    found = {}
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            with contextlib.suppress(ValueError):
                record = from_line(line)
                if isinstance(record, Failure):
                    found[record.image] = record.message
    return found
