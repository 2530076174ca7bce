"""Directories of TIFF files, and of EXIF, which is a TIFF without a picture: the orientation, and what is where.

Pillow reads them too, with warnings for damaged ones that a run over a million photos must not print.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

ORIENTATION = 274
"""The tag that tells how a picture is turned."""

_IN_XMP = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')

_WIDTHS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_WIDTHS |= {16: 8, 17: 8, 18: 8}
"""Bytes a value, of each type of a tag."""


class Directory(NamedTuple):
    """The first directory of a TIFF."""

    order: str  # of bytes, as `struct` writes it
    large: bool  # BigTIFF
    start: int
    tags: list[tuple[int, int, int, int, bytes]]  # tag, bytes a value, values, where, entry


def read_directory(data: bytes) -> Directory:
    """The first directory of the bytes of a TIFF, or of EXIF, which is one.

    Raises:
        KeyError: They are no TIFF.
        struct.error: They end too early.
    """
    order = {b"II": "<", b"MM": ">"}[data[:2]]
    large = struct.unpack_from(order + "H", data, 2)[0] == 43
    offset, total, inline, size = ("Q", "Q", 8, 20) if large else ("I", "H", 4, 12)
    (start,) = struct.unpack_from(order + offset, data, 8 if large else 4)
    (count,) = struct.unpack_from(order + total, data, start)
    at = start + struct.calcsize(order + total)
    tags = []
    for entry_at in range(at, at + size * min(count, 4096), size):
        tag, kind, values, _ = struct.unpack_from(f"{order}HH{offset}{inline}s", data, entry_at)
        width = _WIDTHS.get(kind, 0)
        where = entry_at + size - inline
        if width * values > inline:
            (where,) = struct.unpack_from(order + offset, data, where)
        if width and values:
            tags.append((tag, width, values, where, data[entry_at : entry_at + size]))
    return Directory(order, large, start, tags)


def first_values(data: bytes, directory: Directory, wanted: set[int]) -> dict[int, int]:
    """The first value of each wanted tag that is there, as an unsigned whole number."""
    letters = {1: "B", 2: "H", 4: "I", 8: "Q"}
    return {
        tag: struct.unpack_from(directory.order + letters[width], data, where)[0]
        for tag, width, _, where, _ in directory.tags
        if tag in wanted
    }


def orientation(exif: bytes, xmp: bytes = b"") -> int:
    """1..8; 1 when there is none, or EXIF is damaged.

    Args:
        exif: A block of EXIF, or nothing.
        xmp: A packet of XMP, or nothing; it counts where EXIF does not say it, as in Pillow's `exif_transpose`.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    try:
        found = first_values(exif, read_directory(exif), {ORIENTATION})
    except (KeyError, struct.error):
        found = {}
    if ORIENTATION in found:
        return found[ORIENTATION]
    told = _IN_XMP.search(xmp)
    return int(told[1]) if told else 1
