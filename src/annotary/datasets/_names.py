"""Names of the files of a dataset, which follow from the images alone, so that a run that goes on finds them again."""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from annotary.sinks import NameSet
from annotary.sinks._placing import folded, safe_name
from annotary.sources.folder import IMAGE_SUFFIXES

_LONGEST = 180
"""Bytes of a name; a digest and a suffix come behind it."""


class FileNames:
    """Names that are used up: the image's own where it is free, else with a digest of where the image came from.

    The same images in the same order get the same names, whatever is on the disk.
    """

    def __init__(self) -> None:
        self._taken = NameSet()

    def take(self, folder: str, stem: str, suffix: str, original: str) -> str:
        """A name that nothing in the folder has, and that is taken from now on.

        Args:
            folder: Where, with forward slashes.
            stem: What it is called if that is free.
            suffix: What it ends with, with its dot.
            original: What tells the image from others.
        """
        name, number = safe_name(stem + suffix), 0
        while not self._taken.add(folded(f"{folder}/{name}")):
            name = safe_name(f"{stem}-{_digest(original, number)}{suffix}")
            number += 1
        return name


def stem_and_suffix(name: str) -> tuple[str, str]:
    """A safe stem for an image, and its suffix in the case it has; no suffix where it is none of an image's.

    Args:
        name: A path, a name in an archive, or an address.
    """
    if "://" in name:
        name = unquote(urlsplit(name).path) or name
    last = PurePosixPath(name).name
    stem, dot, ending = last.rpartition(".")
    if stem and dot + ending.lower() in IMAGE_SUFFIXES:
        return safe_name(stem, _LONGEST), dot + ending
    return safe_name(last or "image", _LONGEST), ""


def _digest(text: str, number: int) -> str:
    salt = number.to_bytes(4, "little")
    encoded = text.encode("utf-8", "backslashreplace")
    return hashlib.blake2b(encoded, digest_size=4, salt=salt).hexdigest()
