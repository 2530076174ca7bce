"""What the model said of every image, line by line: the file that a run is continued from and a dataset is made of."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from annotary.errors import OutputError
from annotary.records import Annotation, Box, Item, Label
from annotary.sinks._appending import AppendingRecords
from annotary.sinks.jsonl import JsonLines
from annotary.tasks.composing import ComposedBox

JOURNAL_FILE = "labels.jsonl"


@dataclass(frozen=True, slots=True)
class Entry:
    """A labelled image.

    Attributes:
        original: Its path from the dataset's folder, with forward slashes; of what is no file its name.
        name: What it is called where it was found: a path below a folder, the name in an archive, an address.
        suffix: Of its format, where the name has none.
        is_file: Whether it is a file of its own.
        width: Pixels of the upright image.
        height: Pixels of the upright image.
        sha256: Of its encoded bytes, in hexadecimal digits.
        labels: Labels and scores 0..1, the best first, whatever the threshold is.
        boxes: What a detector says, the best first, whatever the threshold is.
        classified: What a classifier says of each of `boxes`; none where it was not asked.
        orientation: How the picture in the file is turned, 1..8 as in EXIF; noted where there are boxes.
    """

    original: str
    name: str
    suffix: str
    is_file: bool
    width: int
    height: int
    sha256: str
    labels: tuple[tuple[str, float], ...] = ()
    boxes: tuple[Box, ...] = ()
    classified: tuple[Label, ...] = ()
    orientation: int = 1


class Journal:
    """The labelled images in a file. Several threads may add to it.

    Args:
        path: The file.

    Raises:
        OutputError: It cannot be read, or is something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows = AppendingRecords(path, JsonLines())
        self._lock = threading.Lock()

    def __contains__(self, original: str) -> bool:
        return original in self._rows

    def add(
        self,
        original: str,
        item: Item,
        annotation: Annotation,
        sha256: str,
        suffix: str,
        *,
        composed: Sequence[ComposedBox] | None = None,
        orientation: int = 1,
    ) -> None:
        """Add an image; the arguments are what an `Entry` tells of it.

        Args:
            original: As there.
            item: The image.
            annotation: What was said of it.
            sha256: As there.
            suffix: As there.
            composed: What two models say of its boxes; None where one was asked.
            orientation: As there.

        Raises:
            OutputError: It cannot be written; the file ends with the image before.
        """
        value: dict[str, Any] = {
            "image": original,
            "name": item.relative or item.image,
            "suffix": suffix,
            "is_file": item.path is not None,
            "width": annotation.width,
            "height": annotation.height,
            "sha256": sha256,
        }
        if "boxes" in annotation.sources:
            boxes = annotation.boxes if composed is None else composed
            value["boxes"] = [box.to_json() for box in boxes]
            value["orientation"] = orientation
        else:
            value["labels"] = [label.to_json() for label in annotation.labels]
        value["sources"] = dict(annotation.sources)
        self._append(original, value)

    def take(self, original: str, item: Item, value: Mapping[str, Any], suffix: str) -> None:
        """Add an image by what the journal of another dataset says of it.

        Raises:
            OutputError: It cannot be written; the file ends with the image before.
        """
        name = item.relative or item.image
        self._append(original, {**value, "image": original, "name": name, "suffix": suffix})

    def _append(self, original: str, value: Mapping[str, Any]) -> None:
        line = json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"
        with self._lock:  # images are added where they are labelled, and where they are known
            self._rows.append(original, line.encode("utf-8", "backslashreplace"))

    def close(self, *, complete: bool) -> None:
        """Have the disk take it."""
        self._rows.close(complete=complete)

    def __iter__(self) -> Iterator[Entry]:
        """Every whole line.

        Raises:
            OutputError: The file cannot be read, or a line is something else.
        """
        number = 0
        try:
            with self.path.open("rb") as file:
                for number, line in enumerate(file, start=1):  # noqa: B007
                    if not line.endswith(b"\n"):
                        return
                    yield _entry(line)
        except FileNotFoundError:
            return
        except OSError as error:
            raise OutputError(f"cannot read {self.path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError(f"{self.path}, line {number}, holds no labelled image") from error


def original_of(item: Item, folder: str) -> str:
    """What an image is called in a dataset: the same wherever a command is given.

    Args:
        item: The image.
        folder: The dataset's own folder, without links in its path.
    """
    if item.path is None:
        return item.image
    path = os.path.abspath(item.path)  # noqa: PTH100 - keeps links as they are
    try:
        return os.path.relpath(path, folder).replace(os.sep, "/")
    except ValueError:  # on another drive
        return path.replace(os.sep, "/")


def _entry(line: bytes) -> Entry:
    value = json.loads(line)
    boxes = value.get("boxes")
    return Entry(
        original=value["image"],
        name=value["name"],
        suffix=value["suffix"],
        is_file=value["is_file"],
        width=value["width"],
        height=value["height"],
        sha256=value["sha256"],
        labels=tuple(_label(label) for label in (value["labels"] if boxes is None else ())),
        boxes=tuple(
            Box(box["label"], float(box["score"]), tuple(box["xyxy"])) for box in boxes or ()
        ),
        classified=tuple(
            Label(*_label(box["classified"])) for box in boxes or () if "classified" in box
        ),
        orientation=value.get("orientation", 1),
    )


def _label(value: Mapping[str, Any]) -> tuple[str, float]:
    return value["name"], float(value["score"])
