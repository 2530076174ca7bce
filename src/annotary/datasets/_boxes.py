"""What a dataset of boxes is made of: an image has any number of them, of several labels, and is in one part whole.

An image counts for the rarest of its labels: these are split as the labels of single-label datasets are, each part
getting its share of every one. Which labels are rare is decided when they come first, and stays, so that no image
moves. Labels with fewer images than there are parts cannot be split evenly; their images go by what else is in them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from annotary.datasets._contract import Row, folders_of, has_files_beside, has_plain_names
from annotary.datasets._dataset import Dataset
from annotary.datasets._journal import Entry
from annotary.datasets._names import FileNames, stem_and_suffix
from annotary.datasets._upright import upright_suffix
from annotary.records import Box

BACKGROUND = ""
"""Stands for images without a box among the labels, none of which is empty."""

REST = " "
"""Stands for images all of whose labels are too rare to be split."""

_DECIMALS = 2
"""Of a pixel: what is written. A box that is empty then is no box."""

_STUMBLED_OVER = re.compile(r"[\s#]+")
"""In names: lists of names are read word by word, and a # begins a comment (`numpy.loadtxt` in detectron2)."""


class BoxedImages:
    """The images of a dataset with their boxes, as `_building.Contents`.

    Args:
        dataset: Which.
    """

    columns: tuple[str, ...] = ("file", "part", "boxes", "lowest", "turned", "original")

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._file_names = FileNames()
        self._in_order: list[str] = []
        parts = dict.fromkeys(dataset.shares, 0)
        self._images = dict(parts)
        self._backgrounds = dict(parts)
        self._left_out = 0
        self._empty = 0
        self._turned = 0
        classes = dataset.description.classes
        self._counts = {label: dict(parts) for label in classes}
        self._boxes = {label: dict(parts) for label in classes}

    @property
    def strata(self) -> Sequence[str]:
        """The labels that are split, the rarest first; then what is left."""
        return (*self._in_order, REST, BACKGROUND)

    def plan(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """Decide in which order labels are split; earlier decisions stay.

        Labels that come later go before the others: no image that was there has them, so that none moves.

        Args:
            told: What `dataset.json` says of the split.

        Returns:
            What it has to say.
        """
        before, small = list(told.get("order", ())), set(told.get("small", ()))
        least = len(self._dataset.shares)
        images = Counter(
            label for entry in self._dataset.journal for label in self._labels_of(entry)
        )
        new = [label for label in images if label not in small and label not in before]
        place = {label: i for i, label in enumerate(self._dataset.description.classes)}
        new.sort(key=lambda label: (images[label], place[label]))
        chosen = [label for label in new if images[label] >= least]
        if chosen:
            # What is left of a label by rarer ones may be too little; then its images go with other labels.
            self._in_order = [*chosen, *before]
            sizes = Counter(self.stratum(entry) for entry in self._dataset.journal)
            chosen = [label for label in chosen if sizes[label] >= least]
        self._in_order = [*chosen, *before]
        small |= set(new) - set(chosen)
        return {"order": self._in_order, "small": sorted(small)}

    def stratum(self, entry: Entry) -> str | None:
        """What an image counts for; None where it is left out."""
        labels = self._labels_of(entry)
        if not labels:
            return BACKGROUND if self._dataset.options.backgrounds == "keep" else None
        return next((label for label in self._in_order if label in labels), REST)

    def row(self, entry: Entry, part: str | None) -> Row:
        """An image with its place."""
        told = self._dataset.description.boxes(entry)
        edges = ((box, _within(box, entry)) for box in told)
        boxes = tuple(Box(box.label, box.score, found) for box, found in edges if found)
        self._empty += len(told) - len(boxes)
        is_turned = entry.orientation != 1
        name = "" if part is None else self._name(entry, part, is_turned=is_turned)
        return Row(
            *(name, "", 0.0, part or "", entry.original),
            *(entry.width, entry.height, entry.sha256),
            boxes=boxes,
            is_turned=is_turned,
        )

    def is_in_tables(self, row: Row) -> bool:
        """Whether tables tell of an image."""
        return bool(row.part)

    def count(self, row: Row) -> None:
        """Count an image that is in its place."""
        if not row.part:
            self._left_out += 1
            return
        self._images[row.part] += 1
        self._turned += row.is_turned
        self._backgrounds[row.part] += not row.boxes
        for box in row.boxes:
            self._boxes[box.label][row.part] += 1
        for label in {box.label for box in row.boxes}:
            self._counts[label][row.part] += 1

    def values(self, row: Row) -> Sequence[object]:
        """An image in `labels.csv`: with the score of its most doubtful box, which is to be looked at first."""
        lowest = round(min(box.score for box in row.boxes), 6) if row.boxes else ""
        turned = "yes" if row.part and row.is_turned else ""
        return row.file, row.part, len(row.boxes), lowest, turned, row.original

    def empty_folders(self) -> Iterator[str]:
        """The folders of every part, as trainers look for them even where nothing is in them."""
        for part in self._dataset.shares:
            yield from folders_of(self._dataset.form, part)

    def found(self) -> dict[str, Any]:
        """The counts."""
        left_out = self._dataset.options.backgrounds == "leave-out"
        return {
            "images": sum(self._images.values()),
            "parts": self._images,
            "backgrounds": self._left_out if left_out else sum(self._backgrounds.values()),
            "turned": self._turned,
            "empty_boxes": self._empty,
            "counts": self._counts,
            "boxes": self._boxes,
        }

    def _labels_of(self, entry: Entry) -> set[str]:
        """The labels of the boxes that are written."""
        boxes = self._dataset.description.boxes(entry)
        return {box.label for box in boxes if _within(box, entry)}

    def _name(self, entry: Entry, part: str, *, is_turned: bool) -> str:
        form = self._dataset.form
        folder, *_ = folders_of(form, part)
        stem, suffix = stem_and_suffix(entry.name)
        suffix = suffix or entry.suffix
        if is_turned:
            suffix = upright_suffix(suffix)
        if has_plain_names(form):
            stem = _STUMBLED_OVER.sub("_", stem)
        if not has_files_beside(form):
            return f"{folder}/{self._file_names.take(folder, stem, suffix, entry.original)}"
        # a.jpg and a.png would have one file of boxes.
        return f"{folder}/{self._file_names.take(folder, stem, '', entry.original)}{suffix}"


def _within(box: Box, image: Entry) -> tuple[float, float, float, float] | None:
    """A box as far as it is in the image, in hundredths of a pixel; None where nothing of it is."""
    left, top, right, bottom = box.xyxy
    width, height = image.width, image.height
    left, right = round(max(left, 0.0), _DECIMALS), round(min(right, width), _DECIMALS)
    top, bottom = round(max(top, 0.0), _DECIMALS), round(min(bottom, height), _DECIMALS)
    return (left, top, right, bottom) if left < right and top < bottom else None
