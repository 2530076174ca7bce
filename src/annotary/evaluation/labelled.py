"""Images that somebody has labelled or captioned: folders with a folder for each class, and tables."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from annotary.errors import NothingToDo, UsageError
from annotary.evaluation._tables import Row, Table
from annotary.records import Failure, Item
from annotary.sources import SourceOptions
from annotary.sources._paths import join, reason
from annotary.sources.folder import walk
from annotary.tasks.label_sets import split_labels

LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target", "tags")
"""Usual names of a column with labels, the likeliest first."""

CAPTION_COLUMNS = ("captions", "caption", "texts", "text", "sentences", "title", "alt")
"""Usual names of a column with captions, the likeliest first."""


class Labelled(NamedTuple):
    """An image and what is true of it.

    Attributes:
        item: The image, or why it cannot be had.
        labels: As the dataset calls them; of a folder its name.
    """

    item: Item | Failure
    labels: tuple[str, ...]


class LabelledImages:
    """A labelled dataset, which can be gone through several times.

    Args:
        place: A folder with a folder for each class, in which images may lie in further folders; or a table.
        image_column: Of a table, the column with the images.
        label_column: Of a table, the column with the labels.
        is_multi_label: Whether a cell of text may hold several labels, with commas between them.
        label_flag: The option that tells the column with the labels, for messages.

    Attributes:
        classes: All labels, sorted; whole numbers by their value.
        unlabelled: Images that have no label and are left out: those that lie in no class folder, rows without a label.

    Raises:
        UsageError: It is no such thing, or cannot be read.
        NothingToDo: It has no labels.
    """

    def __init__(
        self,
        place: Path,
        *,
        image_column: str | None = None,
        label_column: str | None = None,
        is_multi_label: bool = False,
        label_flag: str = "--label-column",
    ) -> None:
        self._place = place
        self._is_multi_label = is_multi_label
        self._table = None if place.is_dir() else Table(_existing(place))
        if self._table is None:
            if image_column is not None or label_column is not None:
                raise UsageError(f"{place} is a folder; columns are for tables")
            self.classes, self.unlabelled = _class_folders(place)
        else:
            self._image = self._table.image_column(image_column)
            self._label = self._table.column(label_column, LABEL_COLUMNS, label_flag, "labels")
            self._names = self._table.names_of_numbers(self._label)
            self.classes, self.unlabelled = self._labels_of_rows()
        if not self.classes:
            raise NothingToDo(f"{place} has no labels")

    def __iter__(self) -> Iterator[Labelled]:
        """The images that have labels."""
        if self._table is None:
            for name in self.classes:
                for item in walk(join(os.fspath(self._place), name), SourceOptions()):
                    yield Labelled(item, (name,))
            return
        for row in self._table.rows([self._image, self._label]):
            labels = self._labels(row)
            if labels or self._is_multi_label:
                yield Labelled(self._table.item(row, row.cells[self._image], None), labels)

    def count(self) -> int:
        """How many images there are; of a folder they are looked for, of a table it is known."""
        return sum(1 for _ in self) if self._table is None else self._rows - self.unlabelled

    def _labels_of_rows(self) -> tuple[tuple[str, ...], int]:
        assert self._table is not None
        found: dict[str, None] = dict.fromkeys(self._names)
        unlabelled = self._rows = 0
        for row in self._table.rows([self._label]):
            self._rows += 1
            labels = self._labels(row)
            unlabelled += not labels and not self._is_multi_label
            found.update(dict.fromkeys(labels))
        return sorted_labels(found), unlabelled

    def _labels(self, row: Row) -> tuple[str, ...]:
        """The labels of a row.

        Raises:
            UsageError: They are neither texts nor numbers.
        """
        cell = row.cells[self._label]
        if isinstance(cell, str) and self._is_multi_label:
            cell = split_labels(cell)
        cells = cell if isinstance(cell, list | tuple) else [cell]
        if len(cells) > 1 and not self._is_multi_label:
            raise UsageError(
                f"{self._place}: row {row.number} has {len(cells)} labels, where there may be one"
            )
        try:
            told = [self._text(one) for one in cells]
        except ValueError as error:
            raise UsageError(f"{self._place}: row {row.number}: {error}") from error
        return tuple(dict.fromkeys(label for label in told if label))

    def _text(self, value: Any) -> str:
        if isinstance(value, Mapping) and "name" in value:  # a label of our own records
            value = value["name"]
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return ""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return self._names[value] if 0 <= value < len(self._names) else str(value)
        if not isinstance(value, str):
            raise ValueError(f"a label must be text or a whole number, but got {value!r}")
        return value.strip()


class CaptionedImages:
    """Images with captions, of a table in which an image may stand in several rows.

    Args:
        place: The table.
        folder: Where paths of images start; where the table is when nothing is said.
        image_column: The column with the images.
        caption_column: The column with a caption or a list of them.
        split: Take only rows whose column `split` says this.

    Attributes:
        captions: All of them, in the order of the rows.
        owners: The image of each, by its place in `items()`.
        images: How many there are.

    Raises:
        UsageError: It is no such table, or cannot be read.
        NothingToDo: It has no captions.
    """

    def __init__(
        self,
        place: Path,
        *,
        folder: Path | None = None,
        image_column: str | None = None,
        caption_column: str | None = None,
        split: str | None = None,
    ) -> None:
        table = Table(_existing(place))
        if folder is not None and not folder.is_dir():
            raise UsageError(f"--images: no such folder: {str(folder)!r}")
        image = table.image_column(image_column)
        caption = table.column(caption_column, CAPTION_COLUMNS, "--caption-column", "captions")
        if split is not None and "split" not in table.columns:
            raise UsageError(f"{place} has no column 'split', which --split needs")
        self._table, self._image, self._caption, self._split = table, image, caption, split
        self._folder = None if folder is None else os.fspath(folder)
        self.captions: list[str] = []
        self.owners: list[int] = []
        known: dict[str, int] = {}
        for item, captions in self._rows():
            self.captions += captions
            self.owners += [known.setdefault(item.image, len(known))] * len(captions)
        self.images = len(known)
        if not self.captions:
            told = f" with the split {split!r}" if split is not None else ""
            raise NothingToDo(f"{place} has no captions{told}")

    def items(self) -> Iterator[Item | Failure]:
        """The images, each once, in the order in which the table names them first."""
        known = set()
        for item, _ in self._rows():
            if item.image not in known:
                known.add(item.image)
                yield item

    def _rows(self) -> Iterator[tuple[Item | Failure, list[str]]]:
        """The image and the captions of each row that has captions."""
        table, split = self._table, self._split
        columns = [self._image, self._caption, *(["split"] if split is not None else ())]
        for row in table.rows(columns):
            if split is None or row.cells["split"] == split:
                captions = _captions(table, row, row.cells[self._caption])
                if captions:
                    yield table.item(row, row.cells[self._image], self._folder), captions


def _captions(table: Table, row: Row, cell: Any) -> list[str]:
    cells = cell if isinstance(cell, list | tuple) else [cell]
    if not all(one is None or isinstance(one, str) for one in cells):
        raise UsageError(f"{table.path}: row {row.number}: captions must be text, but got {cell!r}")
    return [one.strip() for one in cells if one is not None and one.strip()]


def sorted_labels(labels: Mapping[str, Any] | Sequence[str]) -> tuple[str, ...]:
    """Labels in the order of the alphabet; when all are whole numbers, in theirs."""
    if all(label.isdecimal() for label in labels):
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    return tuple(sorted(labels))


def _class_folders(folder: Path) -> tuple[tuple[str, ...], int]:
    """The class folders of a dataset, and how many images lie beside them."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_dir() and entry.name[0] != "."]
    except OSError as error:
        raise UsageError(f"{folder}: {reason(error)}") from error
    if not names:
        raise UsageError(
            f"{folder} has no class folders; a dataset is a folder with one for each class"
        )
    beside = sum(1 for _ in walk(os.fspath(folder), SourceOptions(recursive=False)))
    return tuple(sorted(names)), beside


def _existing(path: Path) -> Path:
    if not path.exists():
        raise UsageError(f"no such file or folder: {str(path)!r}")
    return path
