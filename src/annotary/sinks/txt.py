"""Text sidecars: the tags of `photo.jpg` in `photo.txt`, beside it or mirrored in another folder.

This is what trainers of diffusion models read. Each file is written whole or not at all.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from annotary.errors import OutputError, SidecarError
from annotary.records import Annotation, Item
from annotary.sinks import _text
from annotary.sinks._atomic import write_atomically
from annotary.sinks._contract import SinkOptions
from annotary.sinks._names import NameSet

SUFFIXES = ()
OPTIONS = ("full_names", *_text.OPTIONS)
CAN_APPEND = True


class TextSidecars:
    """Writes one text file an image.

    Args:
        folder: Where the files go, under the images' paths below the folder that was asked for; None: beside each
            image.
        options: What to do with existing files, and how tags are joined.
    """

    def __init__(self, folder: Path | None, options: SinkOptions) -> None:
        self._folder = folder
        self._options = options
        self._claimed = NameSet()
        self._late = NameSet()

    def place(self, item: Item) -> Path:
        """The sidecar of an image.

        Raises:
            SidecarError: The image is no file and no folder was given, or the sidecar would be the image.
        """
        if self._folder is not None:
            image = self._folder / (item.relative or _name_for(item.image))
        elif item.path is not None:
            image = item.path
        else:
            raise SidecarError("this is no file to put a sidecar beside; say --output FOLDER")
        has_full_name = self._options.full_names or not image.suffix
        place = image.with_name(image.name + ".txt") if has_full_name else image.with_suffix(".txt")
        if _is_same(place, item.path):
            raise SidecarError("its sidecar would be the image itself; say --full-names")
        return place

    def holds(self, item: Item) -> bool:
        """Whether the sidecar exists and is to be left alone. The first image that wants a sidecar has it."""
        try:
            place = self.place(item)
        except SidecarError:
            return False  # writing says what is wrong
        if not self._claimed.add(os.fspath(place)):
            self._late.add(item.image)
            return False
        is_there = os.path.islink(place) or os.path.isfile(place)  # noqa: PTH113, PTH114 - never raise
        return self._options.on_existing == "skip" and is_there

    def write(self, item: Item, annotation: Annotation) -> None:
        """Write the sidecar; a person's tags in it stay first when appending."""
        place = self.place(item)
        if item.image in self._late:
            raise SidecarError(f"another image of this run wants the sidecar {place}, too")
        separator = self._options.separator
        names = [tag.name for tag in annotation.tags]
        if self._options.on_existing == "append":
            kept = _existing(place, separator)
            names = kept + [name for name in names if name not in kept]
        try:
            write_atomically(place, separator.join(names) + "\n")
        except OutputError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno in (errno.ENAMETOOLONG, errno.EISDIR):
                raise SidecarError(f"its sidecar cannot be {place}: {cause.strerror}") from error
            raise

    def close(self, *, complete: bool) -> None:
        """Nothing is open."""


def open(output: Path | None, options: SinkOptions) -> TextSidecars:  # noqa: A001
    """A sink that writes into a folder, or beside the images."""
    return TextSidecars(output, options)


def _is_same(place: Path, image: Path | None) -> bool:
    """Whether a sidecar would be its image, which only an image with a sidecar's suffix can be."""
    if image is None or image.suffix != place.suffix:
        return False
    return place == image or (os.path.exists(place) and os.path.samefile(place, image))  # noqa: PTH110, PTH121


def _existing(place: Path, separator: str) -> list[str]:
    try:
        text = place.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except UnicodeDecodeError as error:
        raise SidecarError(f"{place} is no UTF-8 text, so nothing is appended to it") from error
    except OSError as error:
        raise SidecarError(f"cannot read {place}: {error.strerror}") from error
    mark = separator.strip() or separator
    return [name for part in text.split(mark) if (name := part.strip())]


def _name_for(address: str) -> str:
    """A file name for an image that has no path, from the last part of its address.

    An address whose last part says too little (a query, no name) gets eight digits that tell it from others.
    """
    parts = urlsplit(address)
    name = re.sub(r"[^\w.() -]", "_", parts.path.rstrip("/").rsplit("/", 1)[-1])
    if parts.query or not name.strip("."):
        digest = hashlib.blake2b(address.encode("utf-8", "backslashreplace"), digest_size=4)
        stem, dot, suffix = name.strip(".").rpartition(".")
        name = f"{stem or suffix or 'image'}-{digest.hexdigest()}{dot and stem and dot + suffix}"
    return name[-200:]
