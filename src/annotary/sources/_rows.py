"""Rows that name images: what a list file and standard input have in common.

A row is a path or an http or https address. A path that is not absolute is looked for in the folder
of the list, and if there is nothing, in the current folder; the image is named by the path where it
was found, which is valid in the current folder. So a list may lie beside its images, and a result
file, whose paths start in the current folder, is a list wherever it lies.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from enum import Enum

from annotary.errors import UnreachableImage
from annotary.records import Failure, Item
from annotary.sources._paths import is_there, join

PIECE = 64 * 1024
"""How many bytes are read at a time, at most."""

LONGEST_ROW = 16 * 1024 * 1024
"""Bytes of a row; a longer one is a failure, so that what is no list cannot fill the memory."""

KEYS = ("image", "path", "file", "file_name", "image_path", "url")
"""Where a JSON object may name its image; the first that holds text counts."""


class Form(Enum):
    """How a row names its image."""

    TEXT = "text"
    """A path or an address. A row that is blank, is "#" or begins with "# " says nothing."""

    JSON = "json"
    """JSON text, or a JSON object with one of `KEYS`. A blank row says nothing."""

    NAME = "name"
    """A path or an address, every byte of it (`find -print0`). A row without any says nothing."""


def is_address(text: str) -> bool:
    """Whether a text is a web address by its look."""
    return text[:8].lower().startswith(("http://", "https://"))


def split(pieces: Iterable[bytes], separator: bytes) -> Iterator[bytes | None]:
    """The rows of a stream, each as soon as it is complete.

    Args:
        pieces: The bytes of the stream, cut anywhere.
        separator: One byte.

    Yields:
        A row without its separator, or None for one that is longer than `LONGEST_ROW`.
    """
    held = bytearray()
    is_too_long = False
    for piece in pieces:
        *ends, rest = piece.split(separator)
        for end in ends:
            held += end
            yield None if is_too_long or len(held) > LONGEST_ROW else bytes(held)
            held.clear()
            is_too_long = False
        held += rest
        if len(held) > LONGEST_ROW:
            held.clear()
            is_too_long = True
    if held or is_too_long:
        yield None if is_too_long else bytes(held)


def images(
    rows: Iterable[bytes | None], form: Form, name: str, folder: str
) -> Iterator[Item | Failure]:
    """The images that rows name.

    Args:
        rows: The rows, as `split` gives them.
        form: How a row names its image.
        name: What failures of broken rows are called: "name:17" for the seventeenth row.
        folder: Where paths that are not absolute start; empty for the current folder.
    """
    for number, row in enumerate(rows, 1):
        if number == 1 and row is not None and form is not Form.NAME:
            if row.startswith((b"\xff\xfe", b"\xfe\xff")):
                yield Failure.of(name, UnreachableImage("the list is UTF-16; save it as UTF-8"))
                return
            row = row.removeprefix(b"\xef\xbb\xbf")
        try:
            if row is None:
                raise ValueError(f"a row of more than {LONGEST_ROW:,} bytes")
            place = _place(row, form)
        except ValueError as error:
            yield Failure.of(f"{name}:{number}", UnreachableImage(str(error)))
        else:
            if place:
                yield image_at(place, folder)


def image_at(place: str, folder: str) -> Item | Failure:
    """The image at a path or an address.

    Args:
        place: As it was written.
        folder: Where a path that is not absolute starts, if it is there; else it starts in the current folder. Empty
            for the current folder alone.
    """
    if is_address(place):
        return Item(image=place, url=place)
    if folder in ("", "."):
        return Item.from_path(place)
    beside = join(folder, place)
    if beside == place or is_there(beside):
        return Item.from_path(beside)
    if is_there(place):
        return Item.from_path(place)
    message = f"nothing has this name, neither in {folder!r} nor in the current folder"
    return Failure.of(place, UnreachableImage(message))


def _place(row: bytes, form: Form) -> str:
    """The path or address of a row; empty when the row says nothing.

    Raises:
        ValueError: The row is broken; the message says how.
    """
    text = row.decode("utf-8", "surrogateescape")
    if form is Form.NAME:
        return text
    text = text.removesuffix("\r")
    if not text.strip():
        return ""
    if form is Form.JSON:
        return _place_in_json(text)
    if text == "#" or text.startswith("# "):
        return ""
    address = text.strip()
    return address if is_address(address) else text


def _place_in_json(text: str) -> str:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos + 1}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    candidates = [value.get(key) for key in KEYS] if isinstance(value, dict) else [value]
    for candidate in candidates:
        if isinstance(candidate, str) and candidate:
            return candidate
    if isinstance(value, dict):
        raise ValueError(f"no path or address in any of {', '.join(KEYS)}")
    raise ValueError("a row must be a JSON object, or JSON text that is a path or an address")
