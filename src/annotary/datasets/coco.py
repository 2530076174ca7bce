"""COCO: a folder of images for each part, with `_annotations.coco.json` in it, as RF-DETR and Roboflow have it.

torchvision, detectron2, MMDetection and supervision are told the folder and the file, and read it as well. Images
without a box are in the file, too. Numbers of categories begin with 1, as in COCO itself; those of images and boxes are
each there once in the whole dataset. A box has the `score` of the model that found it, which readers pass over. A file
that somebody has changed is kept beside the new one when images are added.
https://cocodataset.org/#format-data
"""

from __future__ import annotations

import hashlib
import json
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

_CHUNK = 1 << 20

_IN_MEMORY = 1 << 16
"""Bytes of a part's boxes that are kept in memory; more wait on the disk until all images are written."""


_SEAL = ',\n"written_by": {{"annotary": "{digest}"}}}}\n'
"""The end of a file: the sha256 of all before it, so that a file that somebody has changed since is known."""


class _List:
    """A list that grows in a file; commas stand between its entries.

    Args:
        file: Where it is open.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self._digest = hashlib.sha256()
        self._between = b"\n"

    def append(self, value: dict[str, Any]) -> None:
        """Write another entry."""
        self.write(self._between + _text(value).encode())
        self._between = b",\n"

    def write(self, data: bytes) -> None:
        """Write what is no entry."""
        self._digest.update(data)
        self.file.write(data)

    def seal(self) -> None:
        """Write the end of the file."""
        self.file.write(_SEAL.format(digest=self._digest.hexdigest()).encode())


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
                    images.write(b'\n],\n"annotations": [')
                    boxes.file.seek(0)
                    while chunk := boxes.file.read(_CHUNK):
                        images.write(chunk)
                    images.write(b"\n]")
                    images.seal()
                    _keep_changed(self._output / part / ANNOTATIONS_FILE)
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
            self._lists[part] = _List(file), _List(boxes)
            self._lists[part][0].write(f'{opening},\n"images": ['.encode())
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


def _keep_changed(path: Path) -> None:
    """Move a file away that somebody has corrected: those who label by hand do so in it.

    Raises:
        OSError: It cannot be moved.
    """
    if not path.is_file() or _is_as_written(path):
        return
    number, kept = 1, path.with_name(f"{path.stem}.changed.json")
    while kept.exists():
        number += 1
        kept = path.with_name(f"{path.stem}.changed-{number}.json")
    path.rename(kept)


def _is_as_written(path: Path) -> bool:
    """Whether a file is as annotary wrote it."""
    digest = hashlib.sha256()
    left = path.stat().st_size - len(_SEAL.format(digest=digest.hexdigest()))
    with path.open("rb") as file:
        while left > 0 and (chunk := file.read(min(left, _CHUNK))):
            digest.update(chunk)
            left -= len(chunk)
        return file.read() == _SEAL.format(digest=digest.hexdigest()).encode()


def _text(value: object) -> str:
    return json.dumps(value, allow_nan=False)
