"""Label Studio: tasks with boxes that people correct, in one JSON file that `Import` takes.

Boxes are in per cent of the upright image, as Label Studio shows it. While a run goes on the array lacks its closing
bracket; a run that is stopped by Ctrl-C closes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from annotary.records import Annotation
from annotary.sinks._appending import AppendingFile
from annotary.sinks._classes import clipped
from annotary.sinks._contract import SinkOptions, TagsOfImage
from annotary.sinks._parts import best_of
from annotary.sinks._reading import read_lines
from annotary.sinks.json import JsonArray

SUFFIXES = ()
IS_ONE_FILE = True
PARTS = ("boxes",)

FROM, TO = "label", "image"
"""What the labels and the picture are called in the labelling interface."""

LOCAL_FILES = "/data/local-files/?d="
"""Where Label Studio serves files from below its LOCAL_FILES_DOCUMENT_ROOT."""

_DIGITS = 6
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.I)


class Tasks(JsonArray):
    """A task for each image.

    All boxes are one prediction, as Label Studio shows one of each version (label-studio#8012).
    """

    def encode(self, annotation: Annotation) -> bytes:
        """One task."""
        scores = [box.score for box in annotation.boxes]
        prediction: dict[str, Any] = {"model_version": annotation.sources.get("boxes", "annotary")}
        if scores:
            prediction["score"] = round(sum(scores) / len(scores), _DIGITS)
        prediction["result"] = list(_regions(annotation))
        data = {TO: _address(annotation.image), "name": annotation.image}
        task = {"data": data, "predictions": [prediction]}
        return json.dumps(task, ensure_ascii=False).encode("utf-8", "backslashreplace")

    def name_in(self, element: bytes, where: str) -> str:
        """The image of a task."""
        try:
            name = json.loads(element)["data"]["name"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{where} is no task of an image") from error
        if not isinstance(name, str):
            raise ValueError(f"{where} is no task of an image")
        return name


def open(  # noqa: A001
    output: Path | None,
    options: SinkOptions,  # noqa: ARG001
    parts: tuple[str, ...],  # noqa: ARG001
) -> AppendingFile:
    """A sink that continues the file."""
    assert output is not None
    return AppendingFile(output, Tasks())


def read(output: Path, options: SinkOptions) -> Iterator[TagsOfImage]:  # noqa: ARG001
    """The labels of every task's boxes, each with its best score, in a file that annotary wrote: one on each line."""

    def task(line: bytes) -> TagsOfImage | None:
        if line.strip() in (b"[", b"]"):
            return None
        value = json.loads(line.rstrip(b",\n"))
        regions = (region for said in value["predictions"] for region in said["result"])
        found = ((region["value"]["rectanglelabels"][0], region["score"]) for region in regions)
        return TagsOfImage(value["data"]["name"], best_of(found))

    return read_lines(output, task)


def _regions(annotation: Annotation) -> Iterator[dict[str, Any]]:
    """The boxes that are in the picture."""
    width, height = annotation.width, annotation.height
    for number, box in enumerate(annotation.boxes, start=1):
        edges = clipped(box, width, height)
        if edges is None:
            continue
        left, top, right, bottom = edges
        yield {
            "id": f"box{number}",
            "type": "rectanglelabels",
            "from_name": FROM,
            "to_name": TO,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": box.score,
            "value": {
                "x": round(100 * left / width, _DIGITS),
                "y": round(100 * top / height, _DIGITS),
                "width": round(100 * (right - left) / width, _DIGITS),
                "height": round(100 * (bottom - top) / height, _DIGITS),
                "rotation": 0,
                "rectanglelabels": [box.label],
            },
        }


def _address(image: str) -> str:
    """Where Label Studio gets the picture: the address, or the file as it serves it."""
    if _ADDRESS.match(image):
        return image
    path = image.replace("\\", "/").encode("utf-8", "surrogateescape")
    return LOCAL_FILES + quote(path.removeprefix(b"./"))
