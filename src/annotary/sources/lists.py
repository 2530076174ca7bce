"""A file that lists images: .txt and .lst with a path on each line, .jsonl and .ndjson with JSON.

A JSON row is text, or an object that names its image in "image", "path", "file", "file_name",
"image_path" or "url". So results and failures that annotary wrote are lists, too.
`annotary.sources._rows` says where paths start and what is a comment.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from annotary.errors import UnreachableImage
from annotary.records import Failure, Item
from annotary.sources._options import SourceOptions
from annotary.sources._paths import kind_of, reason
from annotary.sources._rows import PIECE, Form, images, split

LIST_SUFFIXES = {".txt": Form.TEXT, ".lst": Form.TEXT, ".jsonl": Form.JSON, ".ndjson": Form.JSON}
"""Endings of file names, in lower case, and how the rows of such a file name images."""


def accepts(argument: str) -> bool:
    """Whether the argument is a file with the suffix of a list."""
    return Path(argument).suffix.lower() in LIST_SUFFIXES and kind_of(argument) == "file"


def items(argument: str, options: SourceOptions) -> Iterator[Item | Failure]:  # noqa: ARG001 - the room's contract
    """The images that the list names, row by row."""
    path = Path(argument)
    form = LIST_SUFFIXES[path.suffix.lower()]
    try:
        with path.open("rb") as file:
            rows = split(iter(lambda: file.read1(PIECE), b""), b"\n")
            yield from images(rows, form, argument, str(path.parent))
    except OSError as error:
        message = f"this list cannot be read: {reason(error)}"
        yield Failure.of(argument, UnreachableImage(message))


def looked_for(options: SourceOptions) -> str:  # noqa: ARG001 - the room's contract
    """What is taken from a list, for the message that nothing was found."""
    return "rows with a path or an address"
