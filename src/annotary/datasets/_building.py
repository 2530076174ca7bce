"""The second half of a dataset: every labelled image gets its part, and images and tables are written."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from annotary.datasets._contract import Row, open_tables
from annotary.datasets._dataset import Dataset
from annotary.datasets._images import Placer
from annotary.datasets._journal import Entry
from annotary.datasets._names import FileNames, stem_and_suffix
from annotary.datasets._split import UNSURE, Split, position
from annotary.datasets._tables import LineFiles, csv_line
from annotary.errors import ImageError
from annotary.pipeline import Outcome
from annotary.records import Failure
from annotary.sinks._placing import FolderNames

TABLE_FILE = "labels.csv"
_RESERVED = ("metadata.jsonl",)
"""What no folder of a label may be called, as it stands beside them."""
_COLUMNS = ("file", "label", "score", "part", "original")


class Building:
    """Makes a dataset of its journal. Iterate over it once.

    The journal is read twice: to find where the parts of each label begin, and to write. What an earlier run completed
    is left alone, so that corrections by hand stay.

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
        self._names = FileNames()
        names = FolderNames(*_RESERVED)
        self._folders = {label: names.name_of(label) for label in dataset.description.classes}
        self._counts: dict[str, dict[str, int]] = {
            label: dict.fromkeys(dataset.shares, 0) for label in dataset.description.classes
        }
        self._unsure = 0

    def __iter__(self) -> Iterator[Entry]:
        """Write; each image is yielded when it is in its place.

        Raises:
            OutputError: Something cannot be written; the same command goes on.
        """
        dataset = self._dataset
        before = dataset.read_description()
        done = int(before.get("placed", 0))
        split = Split(dataset.shares, before.get("split", {}).get("cuts"))
        part_of = self._parts(split, done)
        number = 0
        labels = LineFiles(lambda _: dataset.folder / TABLE_FILE, _table_line, csv_line(_COLUMNS))
        with labels, open_tables(dataset.form, dataset.folder) as tables:
            for number, entry in enumerate(dataset.journal, start=1):
                row = self._row(entry, part_of)
                if self._is_there(entry, row, is_old=number <= done):
                    self._count(row)
                    labels.add(row)
                    if row.part != UNSURE or dataset.options.unsure == "keep":
                        tables.add(row)
                yield entry
            if dataset.places_images:
                self._make_empty_folders()
        self.summary = dataset.write_description(split.cuts, number, self._found())
        dataset.store.remove()

    def _parts(self, split: Split, done: int) -> Callable[[str], str]:
        """A function of a sha256 that tells the part; labels that are new are split."""
        dataset, classes = self._dataset, self._dataset.description.classes
        place = {label: number for number, label in enumerate(classes)}
        where, labels = array("d"), array("l")
        for entry in dataset.journal:
            label, _, is_sure = dataset.description.choose(entry)
            if is_sure:
                where.append(position(entry.sha256, dataset.options.seed))
                labels.append(place[label])
        # The same content is in the same part, whatever else a second look may have made of it.
        known, first = np.unique(np.frombuffer(where, np.float64), return_index=True)
        owner: npt.NDArray[np.int_] = np.frombuffer(labels, np.dtype("l"))[first]
        if split.put_cuts({label: known[owner == place[label]] for label in classes}):
            # Before the first image is placed: a run that is stopped must go on with the same cuts.
            dataset.write_description(split.cuts, done, {"complete": False})

        def part(sha256: str) -> str:
            here = position(sha256, dataset.options.seed)
            found = int(owner[np.searchsorted(known, here)])
            return split.part(classes[found], here)

        return part

    def _row(self, entry: Entry, part_of: Callable[[str], str]) -> Row:
        dataset = self._dataset
        label, score, is_sure = dataset.description.choose(entry)
        part = part_of(entry.sha256) if is_sure else UNSURE
        file = entry.original
        if dataset.places_images and (is_sure or dataset.options.unsure == "keep"):
            file = self._name(entry, part, label)
        elif dataset.places_images:
            file = ""
        rest = (entry.width, entry.height, entry.sha256)
        return Row(file, label, round(score, 6), part, entry.original, *rest)

    def _name(self, entry: Entry, part: str, label: str) -> str:
        folder = f"{part}/{self._folders[label]}" if label else part
        stem, suffix = stem_and_suffix(entry.name)
        name = self._names.take(folder, stem, suffix or entry.suffix, entry.original)
        return f"{folder}/{name}"

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
                self._placer.place(entry, row.file)
        except ImageError as error:
            dataset.failures.add(Failure.of(entry.original, error))
            self.outcome.failed += 1
            return False
        dataset.failures.settle(entry.original)
        self.outcome.done += 1
        return True

    def _count(self, row: Row) -> None:
        if row.part == UNSURE:
            self._unsure += 1
        else:
            self._counts[row.label][row.part] += 1

    def _make_empty_folders(self) -> None:
        """A folder for each label in each part, as readers number labels by the folders that they see."""
        for label, counts in self._counts.items():
            if any(counts.values()):
                for part in counts:
                    folder = self._dataset.folder / part / self._folders[label]
                    folder.mkdir(parents=True, exist_ok=True)

    def _found(self) -> dict[str, Any]:
        return {
            "complete": True,
            "folders": {label: name for label, name in self._folders.items() if label != name},
            "images": sum(sum(counts.values()) for counts in self._counts.values()),
            "unsure": self._unsure,
            "counts": self._counts,
        }


def _table_line(row: Row) -> bytes:
    values = asdict(row)
    return csv_line([values[name] for name in _COLUMNS])
