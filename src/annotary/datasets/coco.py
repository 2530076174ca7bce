"""COCO: a folder of images for each part, with `_annotations.coco.json` in it, as RF-DETR and Roboflow have it.

torchvision, detectron2, MMDetection and supervision are told the folder and the file, and read it as well. Images
without a box are in the file, too. Numbers of categories begin with 1, as in COCO itself; those of images and boxes are
each there once in the whole dataset. A box has the `score` of the model that found it, which readers pass over.
https://cocodataset.org/#format-data
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from annotary.datasets._contract import Row
from annotary.errors import OutputError
from annotary.records import Box
from annotary.sinks._atomic import replacing

TASK = "detect"
PLACES_IMAGES = True
FOLDERS = ("{part}",)

ANNOTATIONS_FILE = "_annotations.coco.json"

_IN_MEMORY = 1 << 16
"""Bytes of a part's boxes that are kept in memory; more wait on the disk until all images are written."""


class _List:
    """A list that grows in a file; commas stand between its entries.

    Args:
        file: Where it is open.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self._between = b"\n"

    def append(self, value: dict[str, Any]) -> None:
        """Write another entry."""
        self.file.write(self._between + _text(value).encode())
        self._between = b",\n"


class Annotations:
    """A file for each part. Images are written as they come, and behind the last of them all boxes.

    Args:
        output: The dataset.
        classes: All labels, in their order.
        parts: All parts.
    """

    def __init__(self, output: Path, classes: Sequence[str], parts: Sequence[str]) -> None:
        self._output = output
        self._numbers = {label: number for number, label in enumerate(classes, start=1)}
        self._parts = parts
        self._lists: dict[str, tuple[_List, _List]] = {}
        self._open_files = ExitStack()
        self._images = 0
        self._count = 0

    def add(self, row: Row) -> None:
        """Write an image and its boxes.

        Raises:
            OutputError: It cannot be written.
        """
        try:
            images, boxes = self._lists_of(row.part)
            self._images += 1
            image = {
                "id": self._images,
                "file_name": row.file.partition("/")[2],  # below the part's folder
                "width": row.width,
                "height": row.height,
            }
            images.append(image)
            for box in row.boxes:
                self._count += 1
                boxes.append(self._annotation(box))
        except OSError as error:
            raise OutputError(f"cannot write {self._output}: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            with self._open_files:
                if error is not None:
                    raise error
                for part in self._parts:
                    images, boxes = self._lists_of(part)
                    images.file.write(b'\n],\n"annotations": [')
                    boxes.file.seek(0)
                    shutil.copyfileobj(boxes.file, images.file)
                    images.file.write(b"\n]}\n")
        except OSError as failed:
            raise OutputError(f"cannot write {self._output}: {failed.strerror}") from failed

    def _lists_of(self, part: str) -> tuple[_List, _List]:
        """The images and boxes of a part."""
        if part not in self._lists:
            path = self._output / part / ANNOTATIONS_FILE
            boxes = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115
            self._open_files.enter_context(boxes)
            file = self._open_files.enter_context(replacing(path))
            # Some readers leave out categories whose supercategory is "none" (RF-DETR).
            categories = [
                {"id": number, "name": label, "supercategory": "object"}
                for label, number in self._numbers.items()
            ]
            info = {"description": "labelled by annotary", "version": "1.0"}
            opening = (
                f'{{"info": {_text(info)},\n"licenses": [],\n"categories": {_text(categories)}'
            )
            file.write(f'{opening},\n"images": ['.encode())
            self._lists[part] = _List(file), _List(boxes)
        return self._lists[part]

    def _annotation(self, box: Box) -> dict[str, Any]:
        left, top, right, bottom = box.xyxy
        width, height = round(right - left, 2), round(bottom - top, 2)
        return {
            "id": self._count,
            "image_id": self._images,
            "category_id": self._numbers[box.label],
            "bbox": [left, top, width, height],
            "area": round(width * height, 2),
            "iscrowd": 0,
            "score": round(box.score, 6),
        }


def open(output: Path, classes: Sequence[str], parts: Sequence[str]) -> Annotations:  # noqa: A001
    """The files of all parts."""
    return Annotations(output, classes, parts)


def _text(value: object) -> str:
    return json.dumps(value, allow_nan=False)
