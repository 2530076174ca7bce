"""Standard input, named by "-": one image, or a list of images.

It is an image when its first bytes are those of an image format. Otherwise it is a list: of names
that end in NUL (`find -print0`) when there is a NUL in the first piece that arrives, of JSON rows
when it begins with "{", and else of paths and addresses, one on each line. Paths start in the
current folder. A list is taken row by row as it arrives.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from itertools import chain
from typing import TypeAlias, cast

from annotary.errors import UnreachableImage, UsageError
from annotary.records import Failure, Item
from annotary.sources._options import SourceOptions
from annotary.sources._rows import LONGEST_ROW, PIECE, Form, images, split

_NAME = "stdin"

READS_IMAGES = True
"""It can be read once only."""

Signature: TypeAlias = tuple[tuple[int, bytes], ...]

SIGNATURES: tuple[Signature, ...] = (
    ((0, b"\xff\xd8\xff"),),  # JPEG
    ((0, b"\x89PNG\r\n\x1a\n"),),
    ((0, b"GIF87a"),),
    ((0, b"GIF89a"),),
    ((0, b"RIFF"), (8, b"WEBP")),
    # "BM" alone may begin a path; the four reserved bytes of the file header are zero.
    ((0, b"BM"), (6, b"\0\0\0\0")),
    ((0, b"II*\0"),),  # TIFF
    ((0, b"MM\0*"),),
    ((0, b"\0\0\0"), (4, b"ftyp")),  # AVIF, HEIC
    ((0, b"\xff\x0a"),),  # JPEG XL, bare
    ((0, b"\0\0\0\x0cJXL \r\n\x87\n"),),
    ((0, b"\0\0\0\x0cjP  \r\n\x87\n"),),  # JPEG 2000
    ((0, b"\0\0\1\0"),),  # ICO
    *(((0, b"P%d\n" % kind),) for kind in range(1, 7)),  # PBM, PGM, PPM
)
"""The first bytes of image formats: each is a set of offsets and what must stand there."""


def accepts(argument: str) -> bool:
    """Whether the argument is "-"."""
    return argument == "-"


def items(argument: str, options: SourceOptions) -> Iterator[Item | Failure]:  # noqa: ARG001 - the room's contract
    """The image that standard input is, or the images that it names.

    Raises:
        UsageError: There is no standard input.
    """
    if sys.stdin is None:
        raise UsageError("there is no standard input to read")
    # Not through the buffer: its lock, held by a thread that waits, would crash Python's end.
    raw = cast(io.BufferedReader, sys.stdin.buffer).raw
    pieces = iter(lambda: raw.read(PIECE) or b"", b"")
    head = b""
    for piece in pieces:
        head += piece
        if _is_image(head) or not _may_be_image(head):
            break
    if _is_image(head):
        yield _image(chain((head,), pieces), options.max_bytes)
        return
    # A first row that is not blank tells what the others are.
    while b"\n" not in head.lstrip() and b"\0" not in head and len(head) <= LONGEST_ROW:
        piece = next(pieces, b"")
        if not piece:
            break
        head += piece
    rows = chain((head,), pieces)
    is_utf_16 = head.startswith((b"\xff\xfe", b"\xfe\xff"))  # full of NUL, and refused as a list
    if b"\0" in head and not is_utf_16:
        yield from images(split(rows, b"\0"), Form.NAME, _NAME, "")
    else:
        is_json = head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")
        yield from images(split(rows, b"\n"), Form.JSON if is_json else Form.TEXT, _NAME, "")


def looked_for(options: SourceOptions) -> str:  # noqa: ARG001 - the room's contract
    """What is taken from standard input, for the message that nothing was found."""
    return "an image, or rows with a path or an address"


def _is_image(head: bytes) -> bool:
    return any(
        all(head[at : at + len(mark)] == mark for at, mark in signature) for signature in SIGNATURES
    )


def _may_be_image(head: bytes) -> bool:
    """Whether bytes to come could still make it an image."""
    return any(
        all(mark.startswith(head[at : at + len(mark)]) for at, mark in signature)
        for signature in SIGNATURES
    )


def _image(pieces: Iterator[bytes], max_bytes: int) -> Item | Failure:
    data = bytearray()
    for piece in pieces:
        data += piece
        if len(data) > max_bytes:
            message = f"larger than {max_bytes:,} bytes (--max-bytes)"
            return Failure.of(_NAME, UnreachableImage(message))
    return Item(image=_NAME, data=bytes(data))
