"""JSON: one array that holds all records, one a line, in the order of the input.

While a run goes on the array lacks its closing bracket; a run that is stopped by Ctrl-C closes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from annotary.records import Annotation, to_line
from annotary.sinks._appending import AppendingFile
from annotary.sinks._contract import SinkOptions, TagsOfImage
from annotary.sinks._parts import ALL_PARTS
from annotary.sinks._reading import read_lines
from annotary.sinks.jsonl import name_of, tags_of

SUFFIXES = (".json",)
PARTS = ALL_PARTS


class JsonArray:
    """Records as the elements of an array, each on a line of its own."""

    opening = b"[\n"
    between = b",\n"
    closing = b"\n]\n"

    def name(self, image: str) -> str:
        """The name as it is."""
        return image

    def encode(self, annotation: Annotation) -> bytes:
        """One element."""
        return to_line(annotation).encode()

    def name_in(self, element: bytes, where: str) -> str:
        """The image of an element.

        Raises:
            ValueError: It is not whole, or something else.
        """
        return name_of(element, where)

    def recover(self, file: BinaryIO) -> Iterator[tuple[str, int]]:
        """Name and end of every whole element. A part of an element is no JSON, so what parses is whole."""
        end = file.tell()
        lines = iter(file)
        for number, line in enumerate(lines, start=2):
            record = line.rstrip(b",\n")
            if record in (b"", b"]"):
                if any(rest.strip() not in (b"", b"]") for rest in lines):
                    raise ValueError(f"line {number} ends the array, and there is more")
                return
            try:
                name = self.name_in(record, f"line {number}")
            except ValueError:
                if next(lines, b""):
                    raise
                return
            yield name, end + len(record)
            end += len(line)


def open(  # noqa: A001
    output: Path | None,
    options: SinkOptions,  # noqa: ARG001
    parts: tuple[str, ...],  # noqa: ARG001
) -> AppendingFile:
    """A sink that continues the file."""
    assert output is not None
    return AppendingFile(output, JsonArray())


def read(output: Path, options: SinkOptions) -> Iterator[TagsOfImage]:  # noqa: ARG001
    """The tags of every record of an array that annotary wrote: one on each line."""

    def element(line: bytes) -> TagsOfImage | None:
        return None if line.strip() in (b"[", b"]") else tags_of(line.rstrip(b",\n"))

    return read_lines(output, element)
