"""What an image is, by its first bytes: the suffix that readers choose a decoder by."""

from __future__ import annotations

import re

BEGINNING = 32
"""Bytes that are enough."""

_SIGNATURES = (
    (re.compile(rb"\xff\xd8\xff"), "jpg"),
    (re.compile(rb"\x89PNG\r\n"), "png"),
    (re.compile(rb"RIFF....WEBP", re.S), "webp"),
    (re.compile(rb"GIF8"), "gif"),
    (re.compile(rb"BM"), "bmp"),
    (re.compile(rb"II\*\0|MM\0\*|II\+\0|MM\0\+"), "tiff"),
    (re.compile(rb"....ftypavi[fs]", re.S), "avif"),
    (re.compile(rb"....ftyp(?:hei|hev|mif1|msf1)", re.S), "heic"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "jxl"),
    (re.compile(rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  "), "jp2"),
    (re.compile(rb"P[14]\s"), "pbm"),
    (re.compile(rb"P[25]\s"), "pgm"),
    (re.compile(rb"P[36]\s"), "ppm"),
)

_OTHER_SPELLINGS = frozenset(
    ("apng", "dib", "heif", "hif", "j2k", "jfif", "jpe", "jpeg", "jpf", "jpx", "pnm", "tif")
)

SUFFIXES = frozenset(suffix for _, suffix in _SIGNATURES) | _OTHER_SPELLINGS
"""Suffixes of images, in lower case and without their dot."""


def suffix_of(beginning: bytes) -> str | None:
    """The suffix that the first bytes of an image ask for; None when they are of nothing known."""
    start = beginning[:BEGINNING]
    return next((suffix for signature, suffix in _SIGNATURES if signature.match(start)), None)
