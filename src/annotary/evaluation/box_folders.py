"""Boxes that people drew, in datasets as trainers read them: YOLO (`data.yaml`) and Pascal VOC (`Annotations`).

What is in them is given the form of COCO. YOLO tells boxes in shares of the upright image, whose size is read from the
image's head; Pascal VOC in pixels counted from 1, of which the last belongs to the box.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from annotary.errors import UsageError
from annotary.sources._paths import reason

Json = dict[str, Any]

DATA_FILE = "data.yaml"

_ANNOTATIONS, _IMAGES, _LISTS = "Annotations", "JPEGImages", "ImageSets/Main"
_PARTS = ("val", "valid", "validation", "dev", "test", "train")
"""What is measured on when nothing is said: the first of them that is there."""

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".mpo")
_ORIENTATION = 0x0112
_LYING = (5, 6, 7, 8)
"""EXIF orientations of which width and height are the other way round."""


def coco_of_folder(place: Path, split: str | None) -> tuple[Json, Path]:
    """What a dataset holds, in the form of COCO, and where its names start.

    Args:
        place: A folder with `data.yaml` or with `Annotations`, or a `.yaml` of YOLO.
        split: Which part; `val` or the like when nothing is said, of Pascal VOC without lists all.

    Raises:
        UsageError: It is no such thing, has no such part, or cannot be read.
    """
    data = place / DATA_FILE if place.is_dir() else place
    try:
        if data.is_file():
            return _of_yolo(data, split)
        if (place / _ANNOTATIONS).is_dir():
            return _of_voc(place, split)
    except OSError as error:
        raise UsageError(f"{error.filename or place}: {reason(error)}") from error
    raise UsageError(
        f"{place} is no dataset of boxes; expected COCO JSON, or a folder with {DATA_FILE} (YOLO)"
        f" or {_ANNOTATIONS} (Pascal VOC)"
    )


def _of_yolo(data: Path, split: str | None) -> tuple[Json, Path]:
    import yaml

    try:
        value = yaml.safe_load(data.read_text(encoding="utf-8-sig"))
        names = value["names"]
        labels = dict(names) if isinstance(names, Mapping) else dict(enumerate(names))
        known = {part: value[part] for part in value if part in _PARTS or part == split}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{data}: {' '.join(str(error).split())}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{data} has no names of classes, which a {DATA_FILE} has") from error
    part = _part(data, [one for one, where in known.items() if where], split)
    start = Path(os.path.normpath(data.parent / str(value.get("path") or ".")))
    truth: Json = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": str(name)} for number, name in labels.items()],
    }
    told = known[part]
    for image in _images_of(start, told if isinstance(told, list) else [told]):
        width, height = _size(image)
        number = len(truth["images"]) + 1
        name = os.path.relpath(image, start)
        truth["images"].append({"id": number, "file_name": name, "width": width, "height": height})
        for label, box in _yolo_boxes(_label_file(image), width, height):
            if label not in labels:
                raise UsageError(f"{_label_file(image)}: {data.name} has no class {label}")
            truth["annotations"].append({"image_id": number, "category_id": label, "bbox": box})
    return truth, start


def _part(place: Path, known: Sequence[str], split: str | None) -> str:
    """The part that is measured on.

    Raises:
        UsageError: There is none.
    """
    if split is not None and split not in known:
        told = ", ".join(known) or "none"
        raise UsageError(f"{place} has no part {split!r} (--split); it has {told}")
    found = [split] if split is not None else [part for part in _PARTS if part in known]
    if not found:
        raise UsageError(f"{place} has no part to measure on, such as val; say one with --split")
    return found[0]


def _images_of(start: Path, places: Iterable[str]) -> Iterator[Path]:
    """The images of a part, in the order of the alphabet: those of folders, or of lists of names."""
    for place in places:
        path = start / str(place)
        if path.suffix.lower() == ".txt":
            lines = path.read_text(encoding="utf-8").splitlines()
            yield from sorted(path.parent / line.strip() for line in lines if line.strip())
        else:
            found = (one for one in sorted(path.rglob("*")) if one.suffix.lower() in _SUFFIXES)
            if not path.is_dir():
                raise UsageError(f"no such folder: {str(path)!r}")
            yield from found


def _label_file(image: Path) -> Path:
    """Where the boxes of an image are: `labels` in the place of the last `images`."""
    parts = list(image.parts)
    places = [place for place, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return Path(*parts).with_suffix(".txt")


def _yolo_boxes(path: Path, width: int, height: int) -> Iterator[tuple[int, list[float]]]:
    """The class and the box of each line; of outlines the box around them. A file that is not there has none.

    Raises:
        UsageError: A line is something else.
    """
    if not path.exists():
        return
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        cells = line.split()
        if not cells:
            continue
        try:
            label, numbers = int(float(cells[0])), [float(cell) for cell in cells[1:]]
            if len(numbers) >= 6 and len(numbers) % 2 == 0:
                across, down = numbers[::2], numbers[1::2]
                left, top, right, bottom = min(across), min(down), max(across), max(down)
            else:
                middle, centre, wide, high = numbers[:4]
                left, right = middle - wide / 2, middle + wide / 2
                top, bottom = centre - high / 2, centre + high / 2
        except ValueError as error:
            raise UsageError(
                f"{path}: line {number} is no class, centre, width and height: {line[:60]!r}"
            ) from error
        box = [left * width, top * height, (right - left) * width, (bottom - top) * height]
        yield label, box


def _size(image: Path) -> tuple[int, int]:
    """Width and height of the upright image, from its head.

    Raises:
        UsageError: It cannot be read.
    """
    from PIL import Image

    try:
        with Image.open(image) as opened:
            width, height = opened.size
            is_lying = opened.getexif().get(_ORIENTATION) in _LYING
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UsageError(f"{image}: its size cannot be read: {error}") from error
    return (height, width) if is_lying else (width, height)


def _of_voc(place: Path, split: str | None) -> tuple[Json, Path]:
    lists = {path.stem: path for path in sorted((place / _LISTS).glob("*.txt"))}
    if lists or split is not None:
        part = _part(place, list(lists), split)
        lines = lists[part].read_text(encoding="utf-8").splitlines()
        # Lists of one class have a second column.
        stems = [
            line.rsplit(maxsplit=1)[0] if line.endswith((" 1", " -1", " 0")) else line
            for line in lines
        ]
        files = [place / _ANNOTATIONS / f"{stem.strip()}.xml" for stem in stems if stem.strip()]
    else:
        files = sorted((place / _ANNOTATIONS).glob("*.xml"))
    read = [_voc_image(path) for path in files]
    labels = sorted({label for _, boxes in read for label, _, _ in boxes})
    numbers = {label: number for number, label in enumerate(labels, 1)}
    truth: Json = {
        "images": [{"id": number, **image} for number, (image, _) in enumerate(read, 1)],
        "categories": [{"id": number, "name": label} for label, number in numbers.items()],
        "annotations": [
            {
                "image_id": number,
                "category_id": numbers[label],
                "bbox": box,
                "iscrowd": int(is_difficult),
            }
            for number, (_, boxes) in enumerate(read, 1)
            for label, box, is_difficult in boxes
        ],
    }
    return truth, place / _IMAGES


def _voc_image(path: Path) -> tuple[Json, list[tuple[str, list[float], bool]]]:
    """An image, and the label, the box and whether it is difficult of each thing.

    Raises:
        UsageError: It is no such file.
    """
    data = path.read_bytes()
    try:
        if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
            raise ValueError("it defines entities, which no annotation needs")
        root = ElementTree.fromstring(data)
        image: Json = {"file_name": _text(root, "filename")}
        for name in ("width", "height"):
            image[name] = int(float(root.findtext(f"size/{name}") or 0))
        boxes = []
        for one in root.iter("object"):
            left, top, right, bottom = (
                float(_text(one, f"bndbox/{edge}")) for edge in ("xmin", "ymin", "xmax", "ymax")
            )
            box = [left - 1, top - 1, right - left + 1, bottom - top + 1]
            boxes.append((_text(one, "name"), box, one.findtext("difficult", "0").strip() == "1"))
    except (ElementTree.ParseError, ValueError) as error:
        raise UsageError(f"{path} is no annotation of Pascal VOC: {error}") from error
    return image, boxes


def _text(element: ElementTree.Element, name: str) -> str:
    """The text of what is inside an element.

    Raises:
        ValueError: There is none.
    """
    text = (element.findtext(name) or "").strip()
    if not text:
        raise ValueError(f"there is no {name}")
    return text
