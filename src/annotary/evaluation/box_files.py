"""Files of boxes: those that people drew, in COCO, LVIS, YOLO and Pascal VOC, and those that a model found.

Found boxes are what annotary writes (JSON Lines, CSV, Parquet, COCO JSON) or a list of results as COCO's server takes
it. Boxes are `xywh` in pixels of the upright image. Labels are compared by name: as they are written, else without
regard to capitals, with spaces for underscores.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from annotary.errors import NothingToDo, UsageError
from annotary.evaluation._box_tables import TABLE_SUFFIXES, records_of_table
from annotary.evaluation.box_folders import coco_of_folder
from annotary.evaluation.caption_files import read_json
from annotary.evaluation.image_names import ImageNames
from annotary.records import Annotation, Failure, Item, from_line
from annotary.sources._paths import reason
from annotary.sources._rows import image_at

XYWH: TypeAlias = tuple[float, float, float, float]

_FARTHEST = 1e9
"""Pixels: no image is so large, and the products of larger numbers are none."""


class DrawnBox(NamedTuple):
    """A box that somebody drew.

    Attributes:
        image: By its place in `DrawnBoxes.images`.
        label: By its place in `DrawnBoxes.labels`.
        xywh: Left, top, width, height, in pixels.
        area: Pixels of the thing itself where they are known, else of the box: by it COCO tells small from large.
        is_crowd: Whether it holds a crowd; finding it or not is neither right nor wrong.
    """

    image: int
    label: int
    xywh: XYWH
    area: float
    is_crowd: bool = False


class FoundBox(NamedTuple):
    """A box that a model found.

    Attributes:
        image: By its place in `DrawnBoxes.images`.
        label: By its place in `DrawnBoxes.labels`.
        xywh: Left, top, width, height, in pixels.
        score: How sure the model is; finite.
    """

    image: int
    label: int
    xywh: XYWH
    score: float


@dataclass(frozen=True)
class DrawnImage:
    """An image whose boxes are known.

    Attributes:
        name: As the file calls it.
        number: COCO's id.
        size: Width and height in pixels; None where the file does not say.
        absent: Of LVIS, labels that are known not to be there, by place.
        unfinished: Of LVIS, labels of which not all were drawn, by place.
    """

    name: str
    number: int | str
    size: tuple[int, int] | None = None
    absent: frozenset[int] = frozenset()
    unfinished: frozenset[int] = frozenset()


@dataclass(frozen=True)
class DrawnBoxes:
    """Images with all boxes that somebody drew.

    Attributes:
        images: All of them, also those without boxes; in the order of their numbers, where they have numbers.
        labels: Names, in the order of the file.
        numbers: COCO's id of each label.
        boxes: Of all images.
        frequencies: Of LVIS, for each label `r`, `c` or `f`: rare, common or frequent in the training images; else
            nothing.
        folder: Where names of images start.
    """

    images: list[DrawnImage]
    labels: list[str]
    numbers: list[int]
    boxes: list[DrawnBox]
    frequencies: list[str] = field(default_factory=list)
    folder: str = ""

    @property
    def is_lvis(self) -> bool:
        """Whether only some labels were looked for in each image, as in LVIS."""
        return bool(self.frequencies)

    def items(self) -> Iterator[Item | Failure]:
        """The images, each once, in their order."""
        for image in self.images:
            yield image_at(image.name, self.folder)


def read_drawn(place: Path, *, folder: Path | None = None, split: str | None = None) -> DrawnBoxes:
    """Boxes of a file of COCO or LVIS, or of a dataset of YOLO or Pascal VOC.

    Args:
        place: The file, or the folder of the dataset.
        folder: Where names of images start; where the file is when nothing is said.
        split: Which part of a dataset; `val` or the like when nothing is said.

    Raises:
        UsageError: It cannot be read, or is no such file.
        NothingToDo: It has no images or no labels.
    """
    if folder is not None and not folder.is_dir():
        raise UsageError(f"--images: no such folder: {str(folder)!r}")
    is_folder = place.is_dir() or place.suffix.lower() in (".yaml", ".yml")
    if is_folder:
        value, own = coco_of_folder(place, split)
    elif split is not None:
        raise UsageError(f"--split is for datasets of YOLO and Pascal VOC; {place} is one file")
    else:
        value, own = read_json(place), place.parent
    what = f"{place} has broken boxes" if is_folder else f"{place} is no COCO JSON of boxes"
    try:
        drawn = _drawn(value, os.fspath(own if folder is None else folder))
    except KeyError as error:
        raise UsageError(f"{what}: {error} is missing") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{what}: {error}") from error
    if not drawn.images or not drawn.labels:
        raise NothingToDo(f"{place} has no {'images' if not drawn.images else 'categories'}")
    return drawn


def _drawn(value: Any, folder: str) -> DrawnBoxes:
    """What a file of COCO holds.

    Raises:
        KeyError: A part is missing.
        TypeError: A part is something else.
        ValueError: It makes no sense; the message says why.
    """
    categories, told = list(value["categories"]), list(value["images"])
    if all(isinstance(one["id"], int) for one in told):
        told.sort(
            key=lambda one: one["id"]
        )  # in which boxes of equal scores are taken, as COCO does
    label_of = {one["id"]: place for place, one in enumerate(categories)}
    image_of = {one["id"]: place for place, one in enumerate(told)}
    for what, known, all_of in (("categories", label_of, categories), ("images", image_of, told)):
        if len(known) != len(all_of):
            raise ValueError(f"two {what} have the same id")
    labels = [str(one["name"]) for one in categories]
    twice = [name for name, count in Counter(labels).items() if count > 1]
    if twice:
        raise ValueError(f"two categories are called {twice[0]!r}")
    is_lvis = bool(categories) and all("frequency" in one for one in categories)
    boxes: list[DrawnBox] = []
    for one in value["annotations"]:
        number = one.get("id", len(boxes) + 1)
        if one["image_id"] not in image_of or one["category_id"] not in label_of:
            raise ValueError(f"annotation {number} is of an image or a category that is not there")
        xywh = _box(one["bbox"], f"annotation {number}")
        area = float(one.get("area", xywh[2] * xywh[3]))
        if not math.isfinite(area) or area < 0:
            raise ValueError(f"annotation {number}: an area must be pixels, but got {area!r}")
        places = image_of[one["image_id"]], label_of[one["category_id"]]
        boxes.append(DrawnBox(*places, xywh, area, bool(one.get("iscrowd", 0))))
    return DrawnBoxes(
        images=[_image(one, label_of if is_lvis else {}) for one in told],
        labels=labels,
        numbers=[one["id"] for one in categories],
        boxes=boxes,
        frequencies=[_frequency(one["frequency"]) for one in categories] if is_lvis else [],
        folder=folder,
    )


def _image(value: Mapping[str, Any], label_of: Mapping[int, int]) -> DrawnImage:
    name = value.get("file_name")
    if name is None:  # LVIS tells the address in COCO alone
        name = "/".join(str(value["coco_url"]).split("/")[-2:])
    sizes = value.get("width"), value.get("height")
    absent, unfinished = (
        frozenset(label_of[number] for number in value.get(key, ()) if number in label_of)
        for key in ("neg_category_ids", "not_exhaustive_category_ids")
    )
    size = (int(sizes[0]), int(sizes[1])) if sizes[0] and sizes[1] else None
    return DrawnImage(str(name), value["id"], size, absent, unfinished)


def _frequency(value: Any) -> str:
    if value not in ("r", "c", "f"):
        raise ValueError(f"frequency must be r, c or f, but got {value!r}")
    return str(value)


def _box(value: Any, what: str) -> XYWH:
    """A box of COCO.

    Raises:
        ValueError: It is none.
    """
    numbers = tuple(float(edge) for edge in value)
    is_box = len(numbers) == 4 and all(abs(edge) <= _FARTHEST for edge in numbers)
    if not is_box or min(numbers[2:]) < 0:
        raise ValueError(f"{what}: a box must be left, top, width and height, but got {value!r}")
    return numbers[0], numbers[1], numbers[2], numbers[3]


@dataclass(frozen=True)
class FoundBoxes:
    """Boxes that a model found in images of which the truth is known.

    Attributes:
        boxes: Of all images, in the order of the file.
        images: How many images were looked at; of a list of results, how many have a box.
        unknown_images: Images that the truth does not have; their boxes are left out.
        unknown_labels: Labels that the truth does not have, and how many boxes of each were left out.
        other_sizes: Names of images that had another size when they were looked at.
        source: The id of the card that found them, where the records say so; else empty.
        called: How labels of which boxes were found are called there, by their place in the truth.
    """

    boxes: list[FoundBox]
    images: int
    unknown_images: list[str]
    unknown_labels: dict[str, int]
    other_sizes: list[str]
    source: str = ""
    called: dict[int, str] = field(default_factory=dict)


def read_found(place: Path, drawn: DrawnBoxes) -> FoundBoxes:
    """Boxes that a model found, from a file.

    Args:
        place: JSON Lines or a table of annotary, a list of results of COCO, or COCO JSON with scores.
        drawn: The truth.

    Raises:
        UsageError: It cannot be read, is no such file, or none of its images or labels is known.
    """
    finder = _Finder(drawn)
    try:
        if place.suffix.lower() == ".json":
            finder.take_json(read_json(place))
        else:
            for record in _records(place):
                finder.take(record)
    except KeyError as error:
        raise UsageError(f"{place} holds no boxes: {error} is missing") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{place} holds no boxes: {error}") from error
    return finder.found(str(place))


def found_in(records: Iterable[Annotation], drawn: DrawnBoxes) -> FoundBoxes:
    """Boxes that a model found, from its records.

    Raises:
        UsageError: None of the images or labels is known.
    """
    finder = _Finder(drawn)
    for record in records:
        finder.take(record)
    return finder.found("what was found")


def _records(place: Path) -> Iterator[Annotation]:
    """The records of a file of JSON Lines or of a table.

    Raises:
        UsageError: It cannot be read.
        ValueError: A line or a row is no record; the message says which.
    """
    if place.suffix.lower() in TABLE_SUFFIXES and place.exists():
        yield from records_of_table(place)
        return
    try:
        with place.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    record = from_line(line)
                except ValueError as error:
                    raise ValueError(f"line {number}: {error}") from error
                if isinstance(record, Annotation):
                    yield record
    except OSError as error:
        raise UsageError(f"{place}: {reason(error)}") from error


class _Finder:
    """Gathers found boxes, and finds the image and the label of each in the truth."""

    def __init__(self, drawn: DrawnBoxes) -> None:
        self._drawn = drawn
        self._names = ImageNames([image.name for image in drawn.images])
        self._numbers = {image.number: place for place, image in enumerate(drawn.images)}
        self._categories = {number: place for place, number in enumerate(drawn.numbers)}
        self._labels = {_plain(name): place for place, name in enumerate(drawn.labels)}
        self._labels.update({name: place for place, name in enumerate(drawn.labels)})
        self._boxes: list[FoundBox] = []
        self._images: set[int] = set()
        self._unknown_images: dict[str, None] = {}
        self._unknown_labels: Counter[str] = Counter()
        self._other_sizes: list[str] = []
        self._source = ""
        self._called: dict[int, str] = {}

    def take(self, record: Annotation) -> None:
        """Take a record.

        Raises:
            ValueError: Another record is of the same image.
        """
        place = self._image(record.image)
        if place is None:
            return
        if place in self._images:
            raise ValueError(f"two records are of {self._drawn.images[place].name}")
        self._images.add(place)
        self._source = self._source or record.sources.get("boxes", "")
        self._compare_size(place, (record.width, record.height))
        for box in record.boxes:
            label = self._label(box.label)
            if label is not None:
                left, top, right, bottom = map(float, box.xyxy)
                xywh = left, top, right - left, bottom - top
                self._boxes.append(FoundBox(place, label, xywh, float(box.score)))

    def take_json(self, value: Any) -> None:
        """Take a list of results, or COCO JSON whose annotations have scores.

        Raises:
            KeyError: A part is missing.
            ValueError: A part is something else.
        """
        names: dict[Any, str] = {}
        labels: dict[Any, str] = {}
        results = value
        if isinstance(value, Mapping):
            names = {one["id"]: str(one["file_name"]) for one in value["images"]}
            labels = {one["id"]: str(one["name"]) for one in value["categories"]}
            results = value["annotations"]
            for one in value["images"]:
                place = self._image(names[one["id"]])
                if place is not None:
                    self._images.add(place)
                    if one.get("width") and one.get("height"):
                        self._compare_size(place, (int(one["width"]), int(one["height"])))
        for row, one in enumerate(results, 1):
            number, category = one["image_id"], one["category_id"]
            place = self._image(names.get(number, number))
            label = None if place is None else self._label(labels.get(category, category))
            if place is None or label is None:
                continue
            self._images.add(place)
            xywh, score = _box(one["bbox"], f"result {row}"), float(one["score"])
            if not math.isfinite(score):
                raise ValueError(f"result {row}: a score must be finite, but got {one['score']!r}")
            self._boxes.append(FoundBox(place, label, xywh, score))

    def found(self, what: str) -> FoundBoxes:
        """What was gathered.

        Args:
            what: Where it is from, for messages.

        Raises:
            UsageError: None of the images or labels is known.
        """
        if not self._images and self._unknown_images:
            theirs, ours = next(iter(self._unknown_images)), self._drawn.images[0].name
            raise UsageError(
                f"no image of {what} is one of the truth, which has {ours!r} and so on; it has {theirs!r}"
            )
        if not self._boxes and self._unknown_labels:
            theirs, ours = next(iter(self._unknown_labels)), self._drawn.labels[0]
            raise UsageError(
                f"no label of {what} is one of the truth, which has {ours!r} and so on; it has {theirs!r}"
            )
        return FoundBoxes(
            self._boxes,
            len(self._images),
            list(self._unknown_images),
            dict(self._unknown_labels),
            self._other_sizes,
            self._source,
            self._called,
        )

    def _image(self, told: Any) -> int | None:
        place = self._numbers.get(told)
        if place is None and isinstance(told, str):
            place = self._names.find(told)
        if place is None:
            self._unknown_images.setdefault(str(told))
        return place

    def _label(self, told: Any) -> int | None:
        if not isinstance(told, str):
            place = self._categories.get(told)
        else:
            place = self._labels.get(told, self._labels.get(_plain(told)))
        if place is None:
            self._unknown_labels[str(told)] += 1
        else:
            self._called.setdefault(
                place, told if isinstance(told, str) else self._drawn.labels[place]
            )
        return place

    def _compare_size(self, place: int, size: tuple[int, int]) -> None:
        image = self._drawn.images[place]
        if image.size is not None and image.size != size:
            self._other_sizes.append(image.name)


def _plain(label: str) -> str:
    return " ".join(label.casefold().replace("_", " ").split())


def counts_of(boxes: Sequence[DrawnBox], labels: int) -> list[int]:
    """How many boxes each label has; crowds do not count.

    Args:
        boxes: All of them.
        labels: How many labels there are.
    """
    counted = Counter(box.label for box in boxes if not box.is_crowd)
    return [counted[place] for place in range(labels)]
