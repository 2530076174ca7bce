"""What a dataset of single labels is made of: each image has one, and a folder of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from annotary.datasets._contract import Row
from annotary.datasets._dataset import Dataset
from annotary.datasets._journal import Entry
from annotary.datasets._names import FileNames, stem_and_suffix
from annotary.datasets._split import UNSURE
from annotary.sinks._placing import FolderNames

_RESERVED = ("metadata.jsonl",)
"""What no folder of a label may be called, as it stands beside them."""


class LabelledImages:
    """The images of a dataset by their labels, as `_building.Contents`.

    Args:
        dataset: Which.
    """

    columns: tuple[str, ...] = ("file", "label", "score", "part", "original")

    def __init__(self, dataset: Dataset) -> None:
        classes = dataset.description.classes
        self._dataset = dataset
        self._file_names = FileNames()
        names = FolderNames(*_RESERVED)
        self._folders = {label: names.name_of(label) for label in classes}
        self._counts: dict[str, dict[str, int]] = {
            label: dict.fromkeys(dataset.shares, 0) for label in classes
        }
        self._unsure = 0

    @property
    def strata(self) -> Sequence[str]:
        """The labels: each is split by itself."""
        return self._dataset.description.classes

    def plan(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """The strata are known from the beginning."""
        return {}

    def stratum(self, entry: Entry) -> str | None:
        """The label of an image that is sure."""
        label, _, is_sure = self._dataset.description.choose(entry)
        return label if is_sure else None

    def row(self, entry: Entry, part: str | None) -> Row:
        """An image with its place."""
        dataset = self._dataset
        label, score, _ = dataset.description.choose(entry)
        file = entry.original
        if dataset.places_images and (part is not None or dataset.options.unsure == "keep"):
            file = self._name(entry, part or UNSURE, label)
        elif dataset.places_images:
            file = ""
        rest = (entry.width, entry.height, entry.sha256)
        return Row(file, label, round(score, 6), part or UNSURE, entry.original, *rest)

    def is_in_tables(self, row: Row) -> bool:
        """Whether tables tell of an image."""
        return row.part != UNSURE or self._dataset.options.unsure == "keep"

    def count(self, row: Row) -> None:
        """Count an image that is in its place."""
        if row.part == UNSURE:
            self._unsure += 1
        else:
            self._counts[row.label][row.part] += 1

    def values(self, row: Row) -> Sequence[object]:
        """An image in `labels.csv`."""
        return row.file, row.label, row.score, row.part, row.original

    def empty_folders(self) -> Iterator[str]:
        """A folder for each label in each part, as readers number labels by the folders that they see."""
        for label, counts in self._counts.items():
            if any(counts.values()):
                for part in counts:
                    yield f"{part}/{self._folders[label]}"

    def found(self) -> dict[str, Any]:
        """The counts."""
        return {
            "folders": {label: name for label, name in self._folders.items() if label != name},
            "images": sum(sum(counts.values()) for counts in self._counts.values()),
            "unsure": self._unsure,
            "counts": self._counts,
        }

    def _name(self, entry: Entry, part: str, label: str) -> str:
        folder = f"{part}/{self._folders[label]}" if label else part
        stem, suffix = stem_and_suffix(entry.name)
        name = self._file_names.take(folder, stem, suffix or entry.suffix, entry.original)
        return f"{folder}/{name}"
