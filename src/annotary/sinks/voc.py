"""Pascal VOC: the boxes of `photo.jpg` in `photo.xml`, beside it or mirrored in another folder.

Pixels of the upright image are counted from 1, and the last one belongs to the box, as in the development kit of the
challenge: a box from edge 0 to edge 10 is `xmin` 1 and `xmax` 10. Reading it back, one is taken off `xmin` and `ymin`
alone, as detectron2 and supervision do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from annotary.records import Annotation, Box
from annotary.sinks import _xml
from annotary.sinks._classes import clipped
from annotary.sinks._contract import SinkOptions, TagsOfImage
from annotary.sinks._parts import best_of
from annotary.sinks._reading import read_files
from annotary.sinks._sidecars import Sidecars

SUFFIXES = ()
OPTIONS = ("full_names",)
PARTS = ("boxes",)


class VocContent:
    """One image and its objects.

    Args:
        options: How files are named.
    """

    suffix = ".xml"
    merges = False

    def __init__(self, options: SinkOptions) -> None:
        self.has_full_names = options.full_names

    def is_done(self, place: Path) -> bool:
        """Whether the file is left alone: always."""
        return True

    def new(self, annotation: Annotation) -> bytes:
        """The document; one without objects where there are no boxes."""
        image = PurePosixPath(annotation.image)
        objects = (_object(box, annotation) for box in annotation.boxes)
        return (
            "<annotation>\n"
            f"  <folder>{_xml.content(image.parent.name)}</folder>\n"
            f"  <filename>{_xml.content(image.name or annotation.image)}</filename>\n"
            f"  <path>{_xml.content(annotation.image)}</path>\n"
            "  <source>\n    <database>annotary</database>\n  </source>\n"
            "  <size>\n"
            f"    <width>{annotation.width}</width>\n"
            f"    <height>{annotation.height}</height>\n"
            "    <depth>3</depth>\n"
            "  </size>\n"
            "  <segmented>0</segmented>\n"
            f"{''.join(objects)}"
            "</annotation>\n"
        ).encode()

    def merged(self, before: bytes, annotation: Annotation) -> bytes:
        """Nothing is merged."""
        raise NotImplementedError


def open(  # noqa: A001
    output: Path | None,
    options: SinkOptions,
    parts: tuple[str, ...],  # noqa: ARG001
) -> Sidecars:
    """A sink that writes into a folder, or beside the images."""
    return Sidecars(output, options, VocContent(options))


def read(output: Path, options: SinkOptions) -> Iterator[TagsOfImage]:  # noqa: ARG001
    """The labels of the objects of every file in a folder, whoever wrote it."""

    def tags_of(content: bytes) -> tuple[tuple[str, float | None], ...]:
        try:
            root = ElementTree.fromstring(content)
        except SyntaxError as error:
            raise ValueError(f"it is damaged XML: {error}") from error
        scored: list[tuple[str, float]] = []
        names: dict[str, None] = {}
        for found in root.iter("object"):
            name, score = found.findtext("name", ""), found.findtext("score")
            names[name] = None
            if score is not None:
                scored.append((name, float(score)))
        best = dict(best_of(scored))
        return tuple((_xml.recovered(name), best.get(name)) for name in names)

    return read_files(output, VocContent.suffix, tags_of)


def pixels(box: Box, width: int, height: int) -> tuple[int, int, int, int] | None:
    """The first and the last pixel of a box, from 1 on, as `xmin`, `ymin`, `xmax` and `ymax`.

    Edges go to the nearest one between two pixels; a box that is left without a pixel has the one of its middle. None
    where it is not in the picture.
    """
    edges = clipped(box, width, height)
    if edges is None:
        return None
    left, top, right, bottom = edges
    (xmin, xmax), (ymin, ymax) = _from_one(left, right, width), _from_one(top, bottom, height)
    return xmin, ymin, xmax, ymax


def _from_one(start: float, end: float, side: int) -> tuple[int, int]:
    first, last = math.floor(start + 0.5) + 1, math.floor(end + 0.5)
    if last < first:
        first = last = min(math.floor((start + end) / 2) + 1, side)
    return first, last


def _object(box: Box, annotation: Annotation) -> str:
    sides = pixels(box, annotation.width, annotation.height)
    if sides is None:
        return ""
    xmin, ymin, xmax, ymax = sides
    return (
        "  <object>\n"
        f"    <name>{_xml.content(box.label)}</name>\n"
        "    <pose>Unspecified</pose>\n"
        "    <truncated>0</truncated>\n"
        "    <difficult>0</difficult>\n"
        f"    <score>{box.score:.6g}</score>\n"
        "    <bndbox>\n"
        f"      <xmin>{xmin}</xmin>\n"
        f"      <ymin>{ymin}</ymin>\n"
        f"      <xmax>{xmax}</xmax>\n"
        f"      <ymax>{ymax}</ymax>\n"
        "    </bndbox>\n"
        "  </object>\n"
    )
