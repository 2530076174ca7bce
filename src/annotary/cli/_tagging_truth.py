"""Images whose tags are known, for commands that measure taggers: a training dataset, a table, a folder with texts."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from annotary.errors import NothingToDo, UsageError
from annotary.records import Failure, Item

if TYPE_CHECKING:
    from annotary.evaluation.labelled import LabelledImages
    from annotary.training.dataset.index import Split, TagDataset


_OTHERS = "of posts, databases, archives and COCO, `annotary train dataset` makes a folder that is read here"
"""Ends a message about a place of images that this command does not read."""


class Tagged(NamedTuple):
    """An image and its tags.

    Attributes:
        item: The image, or why it cannot be had.
        tags: Places in the list of tags.
        original: What the image is called elsewhere; empty where it has no other name.
    """

    item: Item | Failure
    tags: Sequence[int]
    original: str = ""


class Truth(Protocol):
    """Images whose tags are known; they can be gone through several times, in the same order.

    Attributes:
        tags: All of them.
        categories: Of the tags; empty where nobody says.
        trained: Training images of each tag; None where nobody knows.
        told: What was read, in words.
    """

    tags: tuple[str, ...]
    categories: tuple[str, ...]
    trained: npt.NDArray[np.int64] | None
    told: str

    def __iter__(self) -> Iterator[Tagged]:
        """The images."""

    def __len__(self) -> int:
        """How many they are."""

    def known(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_] | None:
        """Of which images it is known whether they have which tags, bool[b, t]; None where all is known."""


class DatasetTruth:
    """The validation images of a folder that `annotary train dataset` wrote.

    Args:
        folder: It.
        split: Which of its images.
    """

    def __init__(self, folder: Path, split: str) -> None:
        from annotary.training.dataset.index import TAGS, TagDataset

        dataset: TagDataset = TagDataset(folder)
        self._split: Split = dataset.train if split == "train" else dataset.validation
        self.tags = dataset.tags
        self.categories, self.trained = _tags_table(folder / TAGS, dataset.tags)
        if self.trained is None:
            self.trained = dataset.train.counts()
        self.told = f"{split} images of a training dataset"
        if not len(self._split):
            raise NothingToDo(f"{folder} has no {split} images")

    def __iter__(self) -> Iterator[Tagged]:
        """The images."""
        split = self._split
        for row in range(len(split)):
            path = split.path(row)
            tags = split.tags[split.offsets[row] : split.offsets[row + 1]].tolist()
            place = split.images[row]
            if "://" in place and not path.exists():
                yield Tagged(Item(place, url=place), tags)
            else:
                yield Tagged(Item.from_path(str(path)), tags, place)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._split)

    def known(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_] | None:
        """Of which images it is known whether they have which tags: all, unless labels are partial."""
        weights = self._split.weights(numbers)
        return None if weights is None else weights > 0


class TableTruth:
    """The images of a table with tags in it.

    Args:
        images: They.
    """

    def __init__(self, images: LabelledImages) -> None:
        self._images = images
        self.tags = images.classes
        self.categories = ("",) * len(self.tags)
        self.trained: npt.NDArray[np.int64] | None = None
        self.told = "images of a table"
        self._place = {name: place for place, name in enumerate(self.tags)}

    def __iter__(self) -> Iterator[Tagged]:
        """The images."""
        for item, labels in self._images:
            yield Tagged(item, [self._place[label] for label in labels])

    def __len__(self) -> int:
        """How many there are."""
        return self._images.count()

    def known(self, numbers: npt.NDArray[np.int64]) -> None:
        """Nothing is unknown."""


class TextsTruth:
    """The images of a folder, with a text of tags with commas between them beside each.

    Args:
        folder: It.
        suffix: Of the texts.

    Attributes:
        bare: Images without a text, which are left out.
    """

    def __init__(self, folder: Path, suffix: str = ".txt") -> None:
        self._folder = folder
        self._suffix = suffix
        names: dict[str, None] = {}
        self.bare = self._count = 0
        for _, labels in self._all():
            self.bare += labels is None
            self._count += labels is not None
            names.update(dict.fromkeys(labels or ()))
        if not names:
            raise NothingToDo(
                f"{folder} is no training dataset, and no image in it has tags in a {suffix} beside"
                f" it; {_OTHERS}"
            )
        self.tags = tuple(sorted(names))
        self.categories = ("",) * len(self.tags)
        self.trained: npt.NDArray[np.int64] | None = None
        self.told = f"images with {suffix} beside them"
        self._place = {name: place for place, name in enumerate(self.tags)}

    def __iter__(self) -> Iterator[Tagged]:
        """The images."""
        for item, labels in self._all():
            if labels is not None:
                yield Tagged(item, [self._place[label] for label in labels])

    def __len__(self) -> int:
        """How many there are."""
        return self._count

    def known(self, numbers: npt.NDArray[np.int64]) -> None:
        """Nothing is unknown."""

    def _all(self) -> Iterator[tuple[Item | Failure, list[str] | None]]:
        from annotary.sources import SourceOptions
        from annotary.sources.folder import walk
        from annotary.training.dataset.posts import split_tags, without_namespace

        for item in walk(str(self._folder), SourceOptions()):
            text = None
            if isinstance(item, Item) and item.path is not None:
                for place in (item.path.with_suffix(self._suffix), _added(item.path, self._suffix)):
                    try:
                        text = place.read_text(encoding="utf-8-sig")
                    except FileNotFoundError:
                        continue
                    except (OSError, ValueError) as error:
                        raise UsageError(f"cannot read {place}: {error}") from error
                    break
            # As `annotary train dataset` reads them, whose names a model that was trained so has.
            labels = None if text is None else split_tags(text, "auto")
            names = [without_namespace(label)[0] for label in labels or ()]
            yield item, None if labels is None else list(dict.fromkeys(names))


def read_truth(
    place: Path, *, split: str, image_column: str | None, tag_column: str | None
) -> Truth:
    """The images of a place, whatever it is.

    Args:
        place: A folder that `annotary train dataset` wrote, one with texts beside its images, or a table.
        split: Of a training dataset, which images.
        image_column: Of a table.
        tag_column: Of a table.

    Raises:
        UsageError: It is no such thing, or cannot be read.
        NothingToDo: It has no images with tags.
    """
    from annotary.evaluation.labelled import LabelledImages

    if not place.exists():
        raise UsageError(f"no such file or folder: {str(place)!r}")
    if place.is_dir():
        if image_column is not None or tag_column is not None:
            raise UsageError(f"{place} is a folder; columns are for tables")
        is_dataset = (place / "validation.parquet").exists() or (place / "dataset.json").exists()
        return DatasetTruth(place, split) if is_dataset else TextsTruth(place)
    try:
        images = LabelledImages(
            *(place,),
            image_column=image_column,
            label_column=tag_column,
            is_multi_label=True,
            label_flag="--tag-column",
        )
    except UsageError as error:
        if _is_plain_table(place, image_column, tag_column):
            raise
        raise UsageError(f"{error}; {_OTHERS}") from error
    return TableTruth(images)


def _is_plain_table(place: Path, image_column: str | None, tag_column: str | None) -> bool:
    """Whether a file is a table whose columns tell what they hold, or of which the user tells it."""
    from annotary.evaluation._tables import SUFFIXES, Table
    from annotary.evaluation.labelled import LABEL_COLUMNS
    from annotary.sources._columns import COLUMNS

    if place.suffix.lower() not in SUFFIXES:
        return False
    columns = set(Table(place).columns)
    return (image_column is not None or not columns.isdisjoint(COLUMNS)) and (
        tag_column is not None or not columns.isdisjoint(LABEL_COLUMNS)
    )


def names_of(truth: Truth, numbers: Collection[int]) -> dict[int, str]:
    """What some images are called.

    Args:
        truth: All images.
        numbers: Places in it.
    """
    last = max(numbers, default=-1)
    return {
        number: one.item.image
        for number, one in enumerate(islice(truth, last + 1))
        if number in numbers
    }


def _tags_table(
    path: Path, tags: Sequence[str]
) -> tuple[tuple[str, ...], npt.NDArray[np.int64] | None]:
    """Categories and training images of the tags, of a dataset's `tags.csv`."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows: dict[str, dict[str, Any]] = {row["tag"]: row for row in csv.DictReader(file)}
        categories = tuple(rows[tag].get("category") or "" for tag in tags)
        return categories, np.array([int(rows[tag]["train"]) for tag in tags], np.int64)
    except FileNotFoundError:
        return ("",) * len(tags), None
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error


def _added(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
