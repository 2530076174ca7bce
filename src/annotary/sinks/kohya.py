"""kohya's `meta.json`: one object from image paths to `{"tags": "a, b", "image_size": [w, h]}`.

This is what the fine-tuning of kohya-ss/sd-scripts reads (`in_json`, `metadata_file`), and what its own tagger writes
with `--output_path`; captions stand in a `caption` of their own, which sd-scripts puts before the tags. Images are
named by their absolute paths, which every version of it takes with and without an `image_dir`.

While a run goes on the object lacks its closing brace; a run that is stopped by Ctrl-C closes it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from annotary.errors import SidecarError
from annotary.records import Annotation, Item
from annotary.sinks import _text
from annotary.sinks._appending import AppendingRecords, Layout
from annotary.sinks._contract import SinkOptions, TagsOfImage
from annotary.sinks._parts import TEXTS, names_in
from annotary.sinks._reading import read_lines, split_text, unscored

SUFFIXES = ()
IS_ONE_FILE = True
OPTIONS = _text.OPTIONS
PARTS = TEXTS

Size: TypeAlias = "tuple[int, int] | None"
Encode: TypeAlias = Callable[[str, Annotation, SinkOptions, Size], bytes]
"""From the path of an image, what was said of it, how that is joined, and its size to its record."""

_MOST_PIXELS = 80_000_000
"""Pillow warns of larger files when it opens them."""


class KohyaSink:
    """Records of the images that are files, named by their absolute paths.

    Args:
        output: The file.
        layout: How records stand in it.
        encode: Makes a record.
        options: How tags are joined.

    Raises:
        OutputError: The file cannot be read, or does not hold what the format writes.
    """

    def __init__(self, output: Path, layout: Layout, encode: Encode, options: SinkOptions) -> None:
        self._records = AppendingRecords(output, layout)
        self._encode = encode
        self._options = options

    def holds(self, item: Item) -> bool:
        """Whether the file has a record of this image."""
        return item.path is not None and os.path.abspath(item.path) in self._records  # noqa: PTH100

    def write(self, item: Item, annotation: Annotation) -> None:
        """Append one record.

        Raises:
            SidecarError: The image is no file.
            OutputError: It cannot be written; the file ends with the record before.
        """
        if item.path is None:
            raise SidecarError("sd-scripts finds images by their paths, and this is no file")
        path = os.path.abspath(item.path)  # noqa: PTH100
        size = _stored_size(path, annotation)
        self._records.append(path, self._encode(path, annotation, self._options, size))

    def close(self, *, complete: bool) -> None:
        """End the file."""
        self._records.close(complete=complete)


class MetaEntries:
    """The entries of one object, each on a line of its own."""

    opening = b"{\n"
    between = b",\n"
    closing = b"\n}\n"

    def recover(self, file: BinaryIO) -> Iterator[tuple[str, int]]:
        """Path and end of every whole entry. A part of an entry is no JSON, so what parses is whole."""
        end = file.tell()
        lines = iter(file)
        for number, line in enumerate(lines, start=2):
            entry = line.rstrip(b",\n")
            if entry in (b"", b"}"):
                if any(rest.strip() not in (b"", b"}") for rest in lines):
                    raise ValueError(f"line {number} ends the object, and there is more")
                return
            path = _path_of_entry(entry)
            if path is None:
                if next(lines, b""):
                    raise ValueError(f"line {number} is no entry of an image")
                return
            yield path, end + len(entry)
            end += len(line)


def open(  # noqa: A001
    output: Path | None,
    options: SinkOptions,
    parts: tuple[str, ...],  # noqa: ARG001
) -> KohyaSink:
    """A sink that continues the file."""
    assert output is not None
    return KohyaSink(output, MetaEntries(), _entry, options)


def read(output: Path, options: SinkOptions) -> Iterator[TagsOfImage]:
    """The tags of every entry, in a file that annotary wrote: one on each line."""

    def image(line: bytes) -> TagsOfImage | None:
        if line.strip() in (b"{", b"}"):
            return None
        ((path, value),) = json.loads(b"{" + line.rstrip(b",\n") + b"}").items()
        return TagsOfImage(path, unscored(split_text(value.get("tags", ""), options)))

    return read_lines(output, image)


def to_json(value: dict[str, Any]) -> bytes:
    """An object on one line; of paths that are not valid UTF-8, Python reads the same path back."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")


def with_size(value: dict[str, Any], size: Size) -> dict[str, Any]:
    """The same with an `image_size`, where that is known."""
    return value if size is None else {**value, "image_size": list(size)}


def _entry(path: str, annotation: Annotation, options: SinkOptions, size: Size) -> bytes:
    """One entry. sd-scripts puts the tags behind each line of the caption, so prefix and suffix stand at the ends."""
    if not _text.captions_of(annotation, options):
        value = {"tags": _text.caption_of(annotation, options)}
    elif not names_in(annotation):
        value = {"caption": _text.caption_of(annotation, options)}
    else:
        captions = replace(annotation, tags=(), labels=())
        bare = replace(options, suffix="", trailing_separator=False)
        value = {
            "caption": _text.caption_of(captions, bare),
            "tags": _text.caption_of(replace(annotation, captions=()), replace(options, prefix="")),
        }
    return to_json({path: with_size(value, size)})[1:-1]


def _path_of_entry(entry: bytes) -> str | None:
    """The path of a whole entry."""
    try:
        ((path, value),) = json.loads(b"{" + entry + b"}").items()
    except ValueError:
        return None
    is_ours = isinstance(value, dict) and ("tags" in value or "caption" in value)
    return path if is_ours else None


def _stored_size(path: str, annotation: Annotation) -> Size:
    """Width and height in pixels as the file stores them; None where they cannot be had.

    sd-scripts does not turn images by EXIF, and stretches one whose size is not what it was told. What it is not told,
    it finds out.
    """
    size = (annotation.width, annotation.height)
    if annotation.width * annotation.height > _MOST_PIXELS:
        return None
    from PIL import Image

    try:
        with Image.open(path) as image:
            found = image.size
    except (OSError, ValueError, SyntaxError):
        return None
    return found if found in (size, size[::-1]) else None
