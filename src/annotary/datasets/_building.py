"""The second half of a dataset: every labelled image gets its part, and images and tables are written."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from annotary.datasets._boxes import BoxedImages
from annotary.datasets._classes import LabelledImages
from annotary.datasets._contract import Row, Tables, beside, has_files_beside, open_tables
from annotary.datasets._dataset import Dataset
from annotary.datasets._images import Placer
from annotary.datasets._journal import Entry
from annotary.datasets._split import Split, position
from annotary.datasets._tables import LineFiles, csv_line
from annotary.errors import ImageError, SidecarError
from annotary.pipeline import Outcome
from annotary.records import Failure
from annotary.sinks import write_atomically

TABLE_FILE = "labels.csv"


class Contents(Protocol):
    """What a dataset of some kind of labels is made of.

    Attributes:
        columns: Of `labels.csv`.
    """

    columns: tuple[str, ...]

    @property
    def strata(self) -> Sequence[str]:
        """What is split evenly, each by itself, in their order."""

    def plan(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """Decide what the strata are.

        Args:
            told: What `dataset.json` says of the split.

        Returns:
            What it has to say beside seed, shares and cuts.
        """

    def stratum(self, entry: Entry) -> str | None:
        """What an image counts for; None where it is in no part."""

    def row(self, entry: Entry, part: str | None) -> Row:
        """An image with its place. Called once for each, in the order of the journal."""

    def is_in_tables(self, row: Row) -> bool:
        """Whether the format's tables tell of an image."""

    def count(self, row: Row) -> None:
        """Count an image that is in its place."""

    def values(self, row: Row) -> Sequence[object]:
        """An image in `labels.csv`."""

    def empty_folders(self) -> Iterator[str]:
        """Folders that have to be there even where no image is in them."""

    def found(self) -> dict[str, Any]:
        """The counts, as `dataset.json` tells them."""


class Building:
    """Makes a dataset of its journal. Iterate over it once.

    The journal is read to find where the parts begin, and once more to write. What an earlier run completed is left
    alone, so that corrections by hand stay.

    Args:
        dataset: Which.

    Attributes:
        outcome: The counts, up to date whenever an image is yielded.
        summary: What `dataset.json` holds, when all is done.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.outcome = Outcome()
        self.summary: dict[str, Any] = {}
        self._dataset = dataset
        self._placer = Placer(dataset.folder, dataset.store, dataset.options.placing)
        self._has_boxes = dataset.description.task == "detect"
        self._contents: Contents = (BoxedImages if self._has_boxes else LabelledImages)(dataset)
        self._writes_beside = self._has_boxes and has_files_beside(dataset.form)

    def __iter__(self) -> Iterator[Entry]:
        """Write; each image is yielded when it is in its place.

        Raises:
            OutputError: Something cannot be written; the same command goes on.
        """
        dataset, contents = self._dataset, self._contents
        before = dataset.read_description()
        done, told = int(before.get("placed", 0)), before.get("split", {})
        split = Split(dataset.shares, told.get("cuts"))
        planned = contents.plan(told)
        part_of = self._parts(split, planned, told, done)
        number = 0
        opening = csv_line(contents.columns)
        labels = LineFiles(
            lambda _: dataset.folder / TABLE_FILE,
            lambda row: csv_line(contents.values(row)),
            opening,
        )
        with labels, self._open_tables() as tables:
            for number, entry in enumerate(dataset.journal, start=1):
                is_in_part = contents.stratum(entry) is not None
                row = contents.row(entry, part_of(entry.sha256) if is_in_part else None)
                if self._is_there(entry, row, is_old=number <= done):
                    contents.count(row)
                    labels.add(row)
                    if contents.is_in_tables(row) and not self._was_removed(row):
                        tables.add(row)
                yield entry
            if dataset.places_images:
                for folder in contents.empty_folders():
                    (dataset.folder / folder).mkdir(parents=True, exist_ok=True)
        found = {"complete": True, **contents.found()}
        self.summary = dataset.write_description(_said(split, planned), number, found)
        dataset.store.remove()

    def _open_tables(self) -> Tables:
        dataset = self._dataset
        classes, parts = dataset.description.classes, tuple(dataset.shares)
        return open_tables(dataset.form, dataset.folder, classes, parts)

    def _parts(
        self, split: Split, planned: Mapping[str, Any], told: Mapping[str, Any], done: int
    ) -> Callable[[str], str]:
        """A function of a sha256 that tells the part; strata that are new are split."""
        dataset, strata = self._dataset, self._contents.strata
        place = {name: number for number, name in enumerate(strata)}
        where, numbers = array("d"), array("l")
        for entry in dataset.journal:
            stratum = self._contents.stratum(entry)
            if stratum is not None:
                where.append(position(entry.sha256, dataset.options.seed))
                numbers.append(place[stratum])
        # The same content is in the same part, whatever else a second look may have made of it.
        known, first = np.unique(np.frombuffer(where, np.float64), return_index=True)
        owner: npt.NDArray[np.int_] = np.frombuffer(numbers, np.dtype("l"))[first]
        is_new = split.put_cuts({name: known[owner == place[name]] for name in strata})
        if is_new or any(told.get(name) != value for name, value in planned.items()):
            # Before the first image is placed: a run that is stopped must go on with the same split.
            dataset.write_description(_said(split, planned), done, {"complete": False})

        def part(sha256: str) -> str:
            here = position(sha256, dataset.options.seed)
            found = int(owner[np.searchsorted(known, here)])
            return split.part(strata[found], here)

        return part

    def _is_there(self, entry: Entry, row: Row, *, is_old: bool) -> bool:
        """Whether an image is in the dataset now; it is put there if need be."""
        dataset = self._dataset
        is_listed = entry.original in dataset.failures
        if is_old and is_listed and not dataset.retry_failed:
            self.outcome.failed_before += 1
            return False
        if is_old and not is_listed:
            self.outcome.done_before += 1
            return True
        try:
            if row.file and dataset.places_images:
                self._place(entry, row)
        except ImageError as error:
            dataset.failures.add(Failure.of(entry.original, error))
            self.outcome.failed += 1
            return False
        dataset.failures.settle(entry.original)
        self.outcome.done += 1
        return True

    def _was_removed(self, row: Row) -> bool:
        """Whether somebody has taken an image of a dataset of boxes away; trainers stop at lists that still name it."""
        return self._has_boxes and not os.path.lexists(self._dataset.folder / row.file)

    def _place(self, entry: Entry, row: Row) -> None:
        """Put an image in its place, and what is said of it beside it."""
        if not self._writes_beside:
            self._placer.place(entry, row.file)
            return
        name, content = beside(self._dataset.form, row, self._dataset.description.classes)
        path = self._dataset.folder / name
        # First, as an image without it would be taken for one that nothing is in.
        _write_once(path, name, content)
        try:
            self._placer.place(entry, row.file)
        except ImageError:
            path.unlink(missing_ok=True)
            raise


def _write_once(path: Path, name: str, content: bytes) -> None:
    """Write a file, unless it is there already.

    Raises:
        SidecarError: Another file has the place.
        OutputError: It cannot be written.
    """
    try:
        is_there = os.path.lexists(path) and path.read_bytes() == content
    except OSError:
        is_there = False
    if is_there:
        return
    if os.path.lexists(path):
        raise SidecarError(f"another file is where its boxes belong, {name}; move that away")
    write_atomically(path, content)


def _said(split: Split, planned: Mapping[str, Any]) -> dict[str, Any]:
    """What `dataset.json` says of the split."""
    return {**planned, "cuts": {name: list(told) for name, told in split.cuts.items()}}
