"""kohya's JSON Lines: `{"image_path": ..., "caption": "a, b", "image_size": [w, h]}`, one image a line.

kohya-ss/sd-scripts reads it in the place of `meta.json` when the name of a `metadata_file` ends in `.jsonl`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from annotary.records import Annotation
from annotary.sinks import _text
from annotary.sinks._contract import SinkOptions, TagsOfImage
from annotary.sinks._parts import TEXTS
from annotary.sinks._reading import read_lines, split_text, unscored
from annotary.sinks.kohya import KohyaSink, Size, to_json, with_size

SUFFIXES = ()
IS_ONE_FILE = True
OPTIONS = _text.OPTIONS
PARTS = TEXTS


class ImageLines:
    """Objects that name their image in one of their parts, each on a line ended by a line feed.

    Args:
        part: The part.
    """

    opening = b""
    between = b""
    closing = b""

    def __init__(self, part: str) -> None:
        self._part = part

    def recover(self, file: BinaryIO) -> Iterator[tuple[str, int]]:
        """Path and end of every whole line."""
        end = file.tell()
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                beginning = b'{"%s": "' % self._part.encode()
                if not (line.startswith(beginning) or beginning.startswith(line)):
                    raise ValueError(f"line {number} has no {self._part}")
                return
            end += len(line)
            yield self._name_of(line, number), end

    def _name_of(self, line: bytes, number: int) -> str:
        try:
            row = json.loads(line)
            name = row[self._part]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"line {number} has no {self._part}") from error
        if not isinstance(name, str):
            raise ValueError(f"the {self._part} of line {number} is no text")
        self.check(row, number)
        return name

    def check(self, row: dict[str, Any], number: int) -> None:
        """Refuse a whole line that is not like those that this run writes.

        Raises:
            ValueError: It is not.
        """


def open(  # noqa: A001
    output: Path | None,
    options: SinkOptions,
    parts: tuple[str, ...],  # noqa: ARG001
) -> KohyaSink:
    """A sink that continues the file."""
    assert output is not None
    return KohyaSink(output, ImageLines("image_path"), _line, options)


def read(output: Path, options: SinkOptions) -> Iterator[TagsOfImage]:
    """The tags of every line."""

    def image(line: bytes) -> TagsOfImage:
        row = json.loads(line)
        return TagsOfImage(row["image_path"], unscored(split_text(row["caption"], options)))

    return read_lines(output, image)


def _line(path: str, annotation: Annotation, options: SinkOptions, size: Size) -> bytes:
    caption = _text.caption_of(annotation, options)
    return to_json(with_size({"image_path": path, "caption": caption}, size)) + b"\n"
