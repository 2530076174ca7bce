"""JSON Lines: one record a line, in the order of the input."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from annotary.records import Annotation, from_line, to_line
from annotary.sinks._appending import AppendingFile
from annotary.sinks._contract import SinkOptions, TagsOfImage
from annotary.sinks._parts import ALL_PARTS, counted
from annotary.sinks._reading import read_lines

SUFFIXES = (".jsonl", ".ndjson")
PARTS = ALL_PARTS

_DECODER = json.JSONDecoder()
_BEGINNING = '{"image": '


class JsonLines:
    """Records as lines of JSON, each ended by a line feed."""

    opening = b""
    between = b""
    closing = b""

    def name(self, image: str) -> str:
        """The name as it is."""
        return image

    def encode(self, annotation: Annotation) -> bytes:
        """One line."""
        return to_line(annotation).encode() + b"\n"

    def recover(self, file: BinaryIO) -> Iterator[tuple[str, int]]:
        """Name and end of every whole line."""
        end = file.tell()
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            end += len(line)
            yield _name_of_line(line, f"line {number}"), end


def open(  # noqa: A001
    output: Path | None,
    options: SinkOptions,  # noqa: ARG001
    parts: tuple[str, ...],  # noqa: ARG001
) -> AppendingFile:
    """A sink that continues the file."""
    assert output is not None
    return AppendingFile(output, JsonLines())


def read(output: Path, options: SinkOptions) -> Iterator[TagsOfImage]:  # noqa: ARG001
    """The tags of every record."""
    return read_lines(output, tags_of)


def tags_of(record: bytes) -> TagsOfImage:
    """The tags of a record in JSON; the labels of one without tags, or of its boxes.

    Raises:
        ValueError: It is no record.
    """
    annotation = from_line(record)
    found = counted(annotation) if isinstance(annotation, Annotation) else ()
    return TagsOfImage(annotation.image, found)


def _name_of_line(line: bytes, where: str) -> str:
    """The image of a whole line. Of our own lines only the name is decoded, which is eight times faster."""
    text = line.decode("utf-8", "replace")
    if text.startswith(_BEGINNING) and text.endswith("}\n"):
        try:
            name, _ = _DECODER.raw_decode(text, len(_BEGINNING))
        except ValueError as error:
            raise ValueError(f"{where} is no record of an image") from error
        if isinstance(name, str):
            return name
    return name_of(line, where)


def name_of(record: bytes, where: str) -> str:
    """The image of a record in JSON.

    Raises:
        ValueError: It is no record; the message says where it stands.
    """
    try:
        name = json.loads(record)["image"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{where} is no record of an image") from error
    if not isinstance(name, str):
        raise ValueError(f"{where} is no record of an image")
    return name
