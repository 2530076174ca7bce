"""One file an image: where it stands, whose it is, and how it is written.

What stands in it is a `Content`: each format of sidecars is one.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from annotary.errors import OutputError, SidecarError
from annotary.records import Annotation, Item
from annotary.sinks._atomic import write_atomically
from annotary.sinks._contract import SinkOptions
from annotary.sinks._names import NameSet

MAX_BYTES = 64 * 2**20
"""The largest file that is merged with; a sidecar has some kilobytes, and what is larger is something else."""

_FULL_NAMES = "say --full-names"

_SETTINGS_FILE = "annotary.run.json"
"""What the settings of a run are called in its folder; no sidecar may have that name."""


class Content(Protocol):
    """What a format writes into its files."""

    suffix: str
    """Of the files, with its dot."""

    has_full_names: bool
    """Whether files are named a.jpg.SUFFIX rather than a.SUFFIX."""

    merges: bool
    """Whether a file that is there is changed rather than replaced."""

    def is_done(self, place: Path) -> bool:
        """Whether an existing file is a result, which a run that skips leaves alone.

        Raises:
            SidecarError: It cannot be read.
        """

    def new(self, annotation: Annotation) -> bytes:
        """A file where there was none, or where the one that was is replaced."""

    def merged(self, before: bytes, annotation: Annotation) -> bytes:
        """What a file becomes: all that a person wrote stays.

        Raises:
            ValueError: It is nothing that can be merged with; the message goes on after its name.
        """


class Sidecars:
    """A sink that writes one file an image.

    Args:
        folder: Where the files go, under the images' paths below the folder that was asked for; None: beside each
            image.
        options: What to do with existing files.
        content: What is written.
        remedy: What a person can do where two files want one name; without it files can have full names.
    """

    def __init__(
        self,
        folder: Path | None,
        options: SinkOptions,
        content: Content,
        *,
        remedy: str = _FULL_NAMES,
    ) -> None:
        self._folder = folder
        self._skips = options.on_existing == "skip"
        self._content = content
        self._remedy = remedy
        self._claims = Claims()
        self._inputs: set[tuple[int, int]] = set()

    def protect(self, inputs: Iterable[str | Path]) -> None:
        """Never write over these files, such as a list that lies between its images.

        Args:
            inputs: What the run reads; "-" is what standard input comes from. Only files that are there count.
        """
        for path in inputs:
            if (identity := _identity(0 if path == "-" else path)) is not None:
                self._inputs.add(identity)

    def place(self, item: Item) -> Path:
        """The sidecar of an image.

        Raises:
            SidecarError: The image is no file and no folder was given, or the sidecar would be the image or something
                else that is read.
        """
        if self._folder is not None:
            image = self._folder / (item.relative or name_for(item.image))
        elif item.path is not None:
            image = item.path
        else:
            raise SidecarError("this is no file to put a sidecar beside; say --output FOLDER")
        suffix = self._content.suffix
        has_full_name = self._content.has_full_names or not image.suffix
        place = image.with_name(image.name + suffix) if has_full_name else image.with_suffix(suffix)
        if _is_same(place, item.path):
            raise SidecarError(f"its sidecar would be the image itself; {self._remedy}")
        if self._folder is not None and place == self._folder / _SETTINGS_FILE:
            raise SidecarError(f"its sidecar would be the settings of the run; {self._remedy}")
        if self._inputs and _identity(place) in self._inputs:
            can_be_full = self._remedy == _FULL_NAMES and not self._content.has_full_names
            remedy = "say --full-names or --output" if can_be_full else "say --output"
            raise SidecarError(f"its sidecar would be {place}, which is read; {remedy}")
        return place

    def holds(self, item: Item) -> bool:
        """Whether the sidecar exists and is to be left alone. The first image that wants a sidecar has it."""
        try:
            place = self.place(item)
            if not self._claims.claim(item, place) or not self._skips:
                return False
            is_there = os.path.islink(place) or os.path.isfile(place)  # noqa: PTH113, PTH114 - never raise
            return is_there and self._content.is_done(place)
        except SidecarError:
            return False  # writing says what is wrong

    def write(self, item: Item, annotation: Annotation) -> None:
        """Write the sidecar, or change the one that is there."""
        place = self.place(item)
        self._claims.check(item, place, "" if self._content.has_full_names else f"; {self._remedy}")
        try:
            if self._content.merges:
                self._merge(place, annotation)
            elif not (self._skips and os.path.isfile(place)):  # noqa: PTH113 - a person may have written it meanwhile
                write_atomically(place, self._content.new(annotation))
        except OutputError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno in (errno.ENAMETOOLONG, errno.EISDIR):
                raise SidecarError(f"its sidecar cannot be {place}: {cause.strerror}") from error
            raise

    def close(self, *, complete: bool) -> None:
        """Nothing is open."""

    def _merge(self, place: Path, annotation: Annotation) -> None:
        before = read_existing(place)
        if before is None:
            write_atomically(place, self._content.new(annotation))
            return
        try:
            after = self._content.merged(before, annotation)
        except ValueError as error:
            raise SidecarError(f"{place} {error}") from error
        if after != before:
            write_atomically(place, after)


class Claims:
    """Which image a sidecar belongs to: the first of the run that wants it."""

    def __init__(self) -> None:
        self._claimed = NameSet()
        self._folded = NameSet()
        self._late = NameSet()
        self._doubtful = NameSet()

    def claim(self, item: Item, place: Path) -> bool:
        """Claim a place for an image; false when another image has it."""
        name = os.fspath(place)
        if not self._claimed.add(name):
            self._late.add(item.image)
            return False
        if not self._folded.add(name.casefold()):
            # Another name differs in case alone; whether that is another file is the file system's to say.
            self._doubtful.add(item.image)
            return _is_listed(place) or not os.path.lexists(place)
        return True

    def check(self, item: Item, place: Path, remedy: str = "") -> None:
        """Refuse to write what another image has.

        Args:
            item: The image.
            place: What it wants.
            remedy: The end of the message.

        Raises:
            SidecarError: Another image was first.
        """
        is_other = item.image in self._doubtful and os.path.lexists(place) and not _is_listed(place)
        if item.image in self._late or is_other:
            raise SidecarError(f"another image of this run wants the sidecar {place}, too{remedy}")


def read_existing(place: Path) -> bytes | None:
    """What a sidecar holds; None where there is none.

    Raises:
        SidecarError: It cannot be read, or is larger than a sidecar can be.
    """
    try:
        if place.exists() and not place.is_file():
            what = os.strerror(errno.EISDIR) if place.is_dir() else "it is no ordinary file"
            raise SidecarError(f"its sidecar cannot be {place}: {what}")
        with place.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise SidecarError(f"its sidecar cannot be {place}: {error.strerror}") from error
        raise SidecarError(f"cannot read {place}: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise SidecarError(f"{place} is larger than {MAX_BYTES:,} bytes, so nothing is added to it")
    return content


def _is_listed(place: Path) -> bool:
    """Whether a folder has an entry of exactly this name; where case is ignored, a file also answers to others."""
    try:
        with os.scandir(place.parent) as entries:
            return any(entry.name == place.name for entry in entries)
    except OSError:
        return False


def _is_same(place: Path, image: Path | None) -> bool:
    """Whether a sidecar would be its image, which only an image with a sidecar's suffix can be."""
    if image is None or image.suffix.lower() != place.suffix.lower():
        return False
    return place == image or (os.path.exists(place) and os.path.samefile(place, image))  # noqa: PTH110, PTH121


def _identity(path: str | Path | int) -> tuple[int, int] | None:
    """What tells a file from all others, whatever it is called; None when it is no file."""
    try:
        found = os.stat(path)  # noqa: PTH116 - 0 is standard input
    except (OSError, ValueError):
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) else None


def name_for(address: str) -> str:
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
