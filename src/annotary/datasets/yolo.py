"""YOLO: `train/images/a.jpg`, its boxes in `train/labels/a.txt`, and a `data.yaml` that tells parts and classes.

As ultralytics, YOLOv5 to YOLOv12, RF-DETR and supervision read it: the boxes of an image are found by putting `labels`
in the place of `images`, and `.txt` in that of the suffix. `data.yaml` has no `path`, which makes ultralytics look
beside the file itself, so that the folder may be moved.
https://docs.ultralytics.com/datasets/detect/
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

from annotary.datasets._contract import Row
from annotary.sinks import write_atomically

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
        if error is None:
            write_atomically(self._output / DATA_FILE, self._text)


def open(output: Path, classes: Sequence[str], parts: Sequence[str]) -> DataFile:  # noqa: A001
    """The list of parts and classes."""
    return DataFile(output, classes, parts)


def beside(row: Row, classes: Sequence[str]) -> tuple[str, bytes]:
    """The boxes of an image, one on each line: class, centre and size as shares 0..1 of the image's."""
    folder, _, name = row.file.rpartition("/images/")
    place = {label: number for number, label in enumerate(classes)}
    lines = []
    for box in row.boxes:
        left, top, right, bottom = box.xyxy
        values = (
            *((left + right) / 2 / row.width, (top + bottom) / 2 / row.height),
            *((right - left) / row.width, (bottom - top) / row.height),
        )
        lines.append(f"{place[box.label]} {' '.join(f'{value:.6f}' for value in values)}\n")
    return f"{folder}/labels/{PurePosixPath(name).stem}.txt", "".join(lines).encode()


def data_yaml(classes: Sequence[str], parts: Sequence[str]) -> str:
    """What ultralytics asks for: `train` and `val`, whatever the parts are called, and the names of classes."""
    training = "train" if "train" in parts else parts[0]
    validation = next((name for name in _VALIDATION if name in parts), parts[-1])
    keys = {"train": training, "val": validation}
    keys |= {part: part for part in parts if part not in keys and part not in keys.values()}
    if "test" in parts:
        keys["test"] = "test"
    lines = [f"{key}: {part}/images" for key, part in keys.items()]
    lines += [f"nc: {len(classes)}", "names:"]
    # A text of JSON is one of YAML, where all but plain letters is told by numbers.
    lines += [f"  {number}: {_quoted(label)}" for number, label in enumerate(classes)]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A text in double quotes; what YAML takes in no text, and letters beyond 16 bits, by their numbers."""
    letters = []
    for letter in text:
        code = ord(letter)
        if letter in '"\\':
            letters.append("\\" + letter)
        elif letter.isprintable() and code < 0x10000:
            letters.append(letter)
        else:
            letters.append(f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
    return '"' + "".join(letters) + '"'
