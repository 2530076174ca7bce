"""CVAT for images 1.1: boxes of all images in one XML file, which CVAT takes as annotations of a task.

    <image id="0" name="2024/dog.jpg" width="4032" height="3024" path="photos/2024/dog.jpg">
      <box label="dog" source="auto" occluded="0" xtl="10.5" ytl="20" xbr="300" ybr="400" z_order="0">
        <attribute name="score">0.9</attribute>
      </box>
    </image>

Edges are in pixels of the upright image, as CVAT shows it. CVAT finds images by their name, which is the place below
the folder that was asked for; `path` is the name that records have, where that is another.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from xml.etree import ElementTree

from annotary.errors import OutputError
from annotary.records import Annotation, Box
from annotary.sinks import _xml
from annotary.sinks._classes import Classes, TableOfBoxes, clipped
from annotary.sinks._contract import SinkOptions, TagsOfImage
from annotary.sinks._journaled import PLACE, as_text, read_journaled
from annotary.sinks._names import NameSet
from annotary.sinks._parts import best_of

SUFFIXES = ()
IS_ONE_FILE = True
PARTS = ("boxes",)

Json = dict[str, Any]

_OPENING = b"""<?xml version="1.0" encoding="utf-8"?>
<!-- Boxes in pixels of upright images, found by annotary. -->
<annotations>
  <version>1.1</version>
  <meta>
"""
_CLOSING = b"</annotations>\n"
_IMAGE, _END_OF_IMAGE = b"  <image ", b"  </image>\n"
_IN_MEMORY = 16 * 2**20
"""Bytes of images that wait in memory while it is not known which labels there are."""


class CvatTable:
    """Images as elements, whose lines let a large file be read without having it in memory.

    Attributes:
        classes: The labels of the boxes.
    """

    def __init__(self) -> None:
        self.classes = Classes()

    def check(self, path: Path) -> None:
        """Refuse a file that is none of ours.

        Raises:
            OutputError: It is not.
        """
        with path.open("rb") as file:
            if file.read(len(_OPENING)) != _OPENING:
                raise OutputError(f"{path} holds something else; choose another --output")

    def names(self, path: Path) -> Iterator[str]:
        """The images of a finished file, in its order; the labels are known when the first is."""
        for element in images(path, self.classes):
            yield as_text(name_of(ElementTree.fromstring(element)))

    def write(self, file: BinaryIO, finished: Path | None, records: Iterator[list[Json]]) -> None:
        """Write a file with what a finished one has, and with records."""
        taken, count = NameSet(), 0
        with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as spool:
            for element in images(finished, self.classes) if finished is not None else ():
                taken.add(_xml.recovered(ElementTree.fromstring(element).get("name", "")))
                spool.write(element)
                count += 1
            for record in (record for some in records for record in some):
                spool.write(self._element(record, count, taken))
                count += 1
            file.write(_OPENING + _meta(self.classes.names, count))
            spool.seek(0)
            shutil.copyfileobj(spool, file)
        file.write(_CLOSING)

    @contextlib.contextmanager
    def told(self, path: Path) -> Iterator[None]:
        """Turns errors of the system, and what damaged files provoke, into one line."""
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"cannot read or write {path}: {error.strerror}; the same command continues once this is mended"
            ) from error
        except (ValueError, SyntaxError) as error:  # the latter is what damaged XML is
            raise OutputError(
                f"{path} was changed by something else, and cannot be continued; choose another --output"
            ) from error

    def _element(self, record: Json, number: int, taken: NameSet) -> bytes:
        name, place = record["image"], record.pop(PLACE, None)
        if place is None or not taken.add(place):
            place = name
            taken.add(name)
        annotation = Annotation.from_json(record)
        self.classes.add(box.label for box in annotation.boxes)
        path = f" path={_xml.attribute(name)}" if place != name else ""
        size = f'width="{annotation.width}" height="{annotation.height}"'
        head = f'  <image id="{number}" name={_xml.attribute(place)} {size}{path}>\n'
        boxes = (_box(box, annotation) for box in annotation.boxes)
        return "".join((head, *boxes)).encode() + _END_OF_IMAGE


def open(  # noqa: A001
    output: Path | None,
    options: SinkOptions,
    parts: tuple[str, ...],  # noqa: ARG001
) -> TableOfBoxes:
    """A sink that continues the file."""
    assert output is not None
    return TableOfBoxes(output, CvatTable(), options)


def read(output: Path, options: SinkOptions) -> Iterator[TagsOfImage]:  # noqa: ARG001
    """The labels of every image's boxes, each with its best score."""
    table = CvatTable()

    def finished() -> Iterator[TagsOfImage]:
        for element in images(output, table.classes):
            image = ElementTree.fromstring(element)
            found = (
                (_xml.recovered(box.get("label", "")), float(box.findtext("attribute", "0")))
                for box in image.iter("box")
            )
            yield TagsOfImage(name_of(image), best_of(found))

    return read_journaled(output, table, finished)


def images(path: Path, classes: Classes) -> Iterator[bytes]:
    """The element of every image of a file of ours, and before the first its labels.

    Raises:
        ValueError, SyntaxError: It is something else.
    """
    with path.open("rb") as file:
        head = _OPENING
        file.seek(len(head))
        for line in file:
            head += line
            if line == b"  </meta>\n":
                break
        meta = ElementTree.fromstring(head + _CLOSING)
        classes.add(_xml.recovered(name.text or "") for name in meta.iterfind(".//label/name"))
        lines: list[bytes] = []
        for line in file:
            if lines or line.startswith(_IMAGE):
                lines.append(line)
                if line == _END_OF_IMAGE:
                    yield b"".join(lines)
                    lines = []
            elif line != _CLOSING:
                raise ValueError("something else stands between the images")
        if line != _CLOSING:
            raise ValueError("it lacks its end")


def name_of(image: ElementTree.Element) -> str:
    """The name that a record has, of an image of the file."""
    return _xml.recovered(image.get("path", image.get("name", "")))


def _box(box: Box, annotation: Annotation) -> str:
    """A box with its score; nothing where it is not in the picture."""
    edges = clipped(box, annotation.width, annotation.height)
    if edges is None:
        return ""
    names = ("xtl", "ytl", "xbr", "ybr")
    sides = " ".join(f'{name}="{edge:.10g}"' for name, edge in zip(names, edges, strict=True))
    label = _xml.attribute(box.label)
    return (
        f'    <box label={label} source="auto" occluded="0" {sides} z_order="0">\n'
        f'      <attribute name="score">{box.score:.6g}</attribute>\n'
        "    </box>\n"
    )


def _meta(labels: tuple[str, ...], count: int) -> bytes:
    """What the task would have to know: its labels, each with a score."""
    attribute = (
        "<name>score</name><mutable>False</mutable><input_type>text</input_type>"
        "<default_value></default_value><values></values>"
    )
    listed = "".join(
        f"        <label>\n          <name>{_xml.content(label)}</name>\n"
        f"          <attributes><attribute>{attribute}</attribute></attributes>\n        </label>\n"
        for label in labels
    )
    return (
        f"    <task>\n      <size>{count}</size>\n      <mode>annotation</mode>\n"
        f"      <labels>\n{listed}      </labels>\n    </task>\n  </meta>\n"
    ).encode()
