"""JSON as COCO has it: images and annotations with numbers that are unique in the file, an entry a line.

    {
    "info": {...},
    "licenses": [],
    "images": [
    {"id": 1, "file_name": "2024/dog.jpg", "width": 4032, "height": 3024, "path": "photos/2024/dog.jpg"}
    ],
    "annotations": [
    {"id": 1, "image_id": 1, ...}
    ],
    "categories": [
    {"id": 1, "name": "dog", "supercategory": "object"}
    ]
    }

The lines are what lets a file of a million images be read and written again without having it in memory.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from annotary.errors import OutputError
from annotary.sinks._classes import Classes
from annotary.sinks._journaled import PLACE, as_text
from annotary.sinks._names import NameSet

Json = dict[str, Any]

_IN_MEMORY = 16 * 2**20
"""Bytes of annotations that wait in memory while the images are written; more wait in a temporary file."""

_ADDRESS = re.compile(r"https?://", re.I)
_HEADING = re.compile(rb'"(\w+)": \[\n')


class CocoTable:
    """A kind of COCO file.

    Args:
        description: What is in it; a file that says something else is not continued.
        has_categories: Whether it has classes.

    Attributes:
        classes: Of the boxes.
    """

    def __init__(self, description: str, *, has_categories: bool) -> None:
        info = {"description": description, "version": "1", "contributor": "annotary"}
        self._opening = b'{\n"info": ' + _line(info) + b',\n"licenses": [],\n'
        self._has_categories = has_categories
        self.classes = Classes()

    def annotations_of(self, record: Json) -> Iterable[Json]:
        """The annotations of an image, without their numbers."""
        raise NotImplementedError

    def check(self, path: Path) -> None:
        """Refuse a file that is none of ours.

        Raises:
            OutputError: It is not.
        """
        with path.open("rb") as file:
            if file.read(len(self._opening)) != self._opening:
                raise OutputError(f"{path} holds something else; choose another --output")

    def names(self, path: Path) -> Iterator[str]:
        """The images of a finished file, in its order; the classes are known when all were read."""
        for section, line in entries(path):
            if section == "images":
                yield as_text(name_of(json.loads(line)))
            elif section == "categories":
                self.classes.number(json.loads(line)["name"])

    def write(self, file: BinaryIO, finished: Path | None, records: Iterator[list[Json]]) -> None:
        """Write a file with what a finished one has, and with records."""
        file.write(self._opening)
        taken = NameSet()
        with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as spool:
            images, annotations = _Section(file, "images"), _Section(spool, "annotations")
            for section, line in entries(finished) if finished is not None else ():
                if section == "images":
                    images.copy(line)
                    taken.add(json.loads(line)["file_name"])
                elif section == "annotations":
                    annotations.copy(line)
            for record in (record for some in records for record in some):
                image_id = images.add(_image(record, taken))
                for annotation in self.annotations_of(record):
                    annotations.add({"image_id": image_id, **annotation})
            images.end()
            annotations.end()
            file.write(b",\n")
            spool.seek(0)
            shutil.copyfileobj(spool, file)
        if self._has_categories:
            file.write(b",\n")
            categories = _Section(file, "categories")
            for name in self.classes.names:
                categories.add({"name": name, "supercategory": "object"})
            categories.end()
        file.write(b"\n}\n")

    @contextlib.contextmanager
    def told(self, path: Path) -> Iterator[None]:
        """Turns errors of the system, and what damaged files provoke, into one line."""
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"cannot read or write {path}: {error.strerror}; the same command continues once this is mended"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError(
                f"{path} was changed by something else, and cannot be continued; choose another --output"
            ) from error


class _Section:
    """An array of entries with numbers that go on.

    Args:
        file: Where it is written.
        name: What it is called.
    """

    def __init__(self, file: Any, name: str) -> None:
        self._file = file
        self._last = 0
        self._is_empty = True
        file.write(f'"{name}": [\n'.encode())

    def copy(self, line: bytes) -> None:
        """Put in an entry as it is."""
        self._last = max(self._last, json.loads(line)["id"])
        self._put(line)

    def add(self, entry: Json) -> int:
        """Put in an entry with the next number; the number."""
        self._last += 1
        self._put(_line({"id": self._last, **entry}))
        return self._last

    def end(self) -> None:
        """Close the array."""
        self._file.write(b"]" if self._is_empty else b"\n]")

    def _put(self, line: bytes) -> None:
        self._file.write(line if self._is_empty else b",\n" + line)
        self._is_empty = False


def entries(path: Path) -> Iterator[tuple[str, bytes]]:
    """The section and the line of every entry of a file of ours.

    Raises:
        ValueError: It is something else.
    """
    section = ""
    with path.open("rb") as file:
        for line in file:
            if (heading := _HEADING.fullmatch(line)) is not None:
                section = heading[1].decode()
            elif line.startswith(b"]"):
                section = ""
            elif section:
                yield section, line.rstrip(b",\n")
        if line.strip() != b"}":
            raise ValueError("it lacks its end")


def name_of(image: Json) -> str:
    """The name that a record has, of an image of the file."""
    return str(image.get("path", image["file_name"]))


def _image(record: Json, taken: NameSet) -> Json:
    """An image without its number. Its file name is its place below the folder that was asked for, if that is free."""
    name, place = record["image"], record.get(PLACE)
    if place is None or not taken.add(place):
        place = name
        taken.add(name)
    image = {"file_name": place, "width": record["width"], "height": record["height"]}
    if place != name:
        image["path"] = name
    if _ADDRESS.match(name):
        image["coco_url"] = name
    return image


def _line(entry: Json) -> bytes:
    """An entry on a line; of names that are not valid UTF-8, JSON gives the same back."""
    text = json.dumps(entry, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace")
