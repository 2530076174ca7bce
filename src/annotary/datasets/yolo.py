"""YOLO: `train/images/a.jpg`, its boxes in `train/labels/a.txt`, and a `data.yaml` that tells parts and classes.

As ultralytics, YOLOv5 to YOLOv12, RF-DETR and supervision read it: the boxes of an image are found by putting `labels`
in the place of `images`, and `.txt` in that of the suffix. `data.yaml` has no `path`, which makes ultralytics look
beside the file itself, so that the folder may be moved. It is written once, so that settings may be added.
https://docs.ultralytics.com/datasets/detect/
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

import yaml

from annotary.datasets._contract import Row
from annotary.records import Annotation
from annotary.sinks import write_atomically
from annotary.sinks._classes import Classes
from annotary.sinks.yolo import YoloContent

TASK = "detect"
PLACES_IMAGES = True
FOLDERS = ("{part}/images", "{part}/labels")

DATA_FILE = "data.yaml"

_VALIDATION = ("val", "valid", "validation", "dev", "test")
"""What the part is called that is looked at during training, the likeliest first; without any it is the last."""


class DataFile:
    """`data.yaml`, which nothing of single images is in.

    Args:
        output: The dataset.
        classes: All labels, in their order.
        parts: All parts, in their order.
    """

    def __init__(self, output: Path, classes: Sequence[str], parts: Sequence[str]) -> None:
        self._output = output
        self._text = data_yaml(classes, parts)

    def add(self, row: Row) -> None:
        """Nothing is written."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        path = self._output / DATA_FILE
        if error is None and not path.exists():  # nothing in it changes but by hand
            write_atomically(path, self._text)


def open(output: Path, classes: Sequence[str], parts: Sequence[str]) -> DataFile:  # noqa: A001
    """The list of parts and classes."""
    return DataFile(output, classes, parts)


def beside(row: Row, classes: Sequence[str]) -> tuple[str, bytes]:
    """The boxes of an image, one on each line: class, centre and size as shares 0..1 of the image's."""
    folder, _, name = row.file.rpartition("/images/")
    record = Annotation(row.file, row.width, row.height, boxes=row.boxes)
    return f"{folder}/labels/{PurePosixPath(name).stem}.txt", _content(tuple(classes)).new(record)


def data_yaml(classes: Sequence[str], parts: Sequence[str]) -> str:
    """What ultralytics asks for: `train` and `val`, whatever the parts are called, and the names of classes."""
    training = "train" if "train" in parts else parts[0]
    validation = next((name for name in _VALIDATION if name in parts), parts[-1])
    keys = {"train": training, "val": validation}
    keys |= {part: part for part in parts if part not in keys and part not in keys.values()}
    if "test" in parts:
        keys["test"] = "test"
    told = {key: f"{part}/images" for key, part in keys.items()}
    value = {**told, "nc": len(classes), "names": dict(enumerate(classes))}
    return yaml.safe_dump(value, allow_unicode=True, sort_keys=False)


@lru_cache(maxsize=1)
def _content(classes: tuple[str, ...]) -> YoloContent:
    numbers = Classes()
    numbers.add(classes)
    return YoloContent(numbers)
