"""The images of a dataset: copied or linked one by one, each whole or not at all, and their originals never touched."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import threading
from pathlib import Path

from annotary.datasets._journal import Entry
from annotary.datasets._upright import orientation_of, upright
from annotary.errors import OutputError, SidecarError, UnreachableImage
from annotary.records import Item
from annotary.sinks import write_atomically
from annotary.sinks._contract import Placing
from annotary.sinks._signatures import BEGINNING
from annotary.sinks._signatures import suffix_of as suffix_of_bytes
from annotary.sources import Reader, SourceOptions

STORE = ".images"
"""A folder in the dataset where images wait that are no files of their own; it goes when the dataset is complete."""


class ImageStore:
    """Images that would have to be fetched again, by the sha256 of their bytes.

    Args:
        folder: Where; it is made when the first comes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, sha256: str) -> Path:
        """Where an image is, or would be."""
        return self._folder / sha256[:2] / sha256

    def put(self, data: bytes) -> None:
        """Keep an image. Several threads may do so.

        Raises:
            OutputError: It cannot be written.
        """
        path = self.path(hashlib.sha256(data).hexdigest())
        if not path.exists():
            write_atomically(path, data)

    def remove(self) -> None:
        """Remove all of them."""
        shutil.rmtree(self._folder, ignore_errors=True)


class StoringReader(Reader):
    """Reads images, and keeps those that are no files of their own.

    Args:
        options: How they are read.
        store: Where they are kept.
        notes_orientation: Whether it is noted how pictures are turned.
    """

    def __init__(
        self, options: SourceOptions, store: ImageStore, *, notes_orientation: bool = False
    ) -> None:
        super().__init__(options)
        self._store = store
        self._notes_orientation = notes_orientation
        self._turned: dict[str, int] = {}
        self._lock = threading.Lock()

    def orientation(self, item: Item) -> int:
        """How the picture of an image that was read is turned, 1..8 as in EXIF. It is forgotten then."""
        with self._lock:
            return self._turned.pop(item.image, 1)

    def read(self, item: Item) -> bytes:
        """The encoded bytes of an image.

        Raises:
            UnreachableImage: They cannot be had.
            OutputError: They cannot be kept.
        """
        data = super().read(item)
        if item.path is None:
            self._store.put(data)
        if self._notes_orientation and (orientation := orientation_of(data)) != 1:
            with self._lock:
                self._turned[item.image] = orientation
        return data


class Placer:
    """Puts images where they belong in a dataset.

    Args:
        folder: The dataset.
        store: Where images are that are no files.
        placing: Whether files are copies or links.
    """

    def __init__(self, folder: Path, store: ImageStore, placing: Placing) -> None:
        self._folder = folder
        self._store = store
        self._placing = placing
        self._reader = Reader(SourceOptions(max_bytes=sys.maxsize - 1))  # it was read already

    def place(self, entry: Entry, name: str) -> None:
        """Put an image in its place, unless it is there already.

        Args:
            entry: The image.
            name: Its place below the dataset, with forward slashes.

        Raises:
            UnreachableImage: The original is gone, or has changed since it was labelled.
            UnreadableImage: It has to be turned, and cannot be decoded any more.
            SidecarError: Another file has the place.
            OutputError: The place cannot be written.
        """
        target, source = self._folder / name, self._source(entry)
        if os.path.lexists(target):
            if not self._is_there(target, source, entry):
                raise SidecarError(f"another file is where it belongs, {name}; move that away")
            return
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write {target.parent}: {error.strerror}") from error
        if entry.orientation != 1:
            write_atomically(target, upright(self._data(source, entry), name))
        elif not entry.is_file:
            self._take_from_store(source, target, entry)
        elif self._placing == "copy":
            self._copy(source, target, entry)
        else:
            self._make_link(source, target)

    def _source(self, entry: Entry) -> Path:
        if not entry.is_file:
            return self._store.path(entry.sha256)
        return Path(os.path.normpath(self._folder / entry.original))

    def _is_there(self, target: Path, source: Path, entry: Entry) -> bool:
        """Whether a file is what would be put there."""
        try:
            if self._placing == "symlink" and entry.is_file and entry.orientation == 1:
                return target.is_symlink() and target.samefile(source)
            if target.is_symlink() or not target.is_file():
                return False
            if entry.orientation != 1:
                return target.read_bytes() == upright(self._data(source, entry), target.name)
            with target.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256
        except OSError:
            return False

    def _copy(self, source: Path, target: Path, entry: Entry) -> None:
        write_atomically(target, self._data(source, entry))

    def _data(self, source: Path, entry: Entry) -> bytes:
        """The encoded bytes of an image, which are those that were labelled."""
        try:
            data = self._reader.read(Item.from_path(source))
        except UnreachableImage as error:
            raise UnreachableImage(_gone(str(error))) from error
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise UnreachableImage("it has changed since it was labelled")
        return data

    def _take_from_store(self, source: Path, target: Path, entry: Entry) -> None:
        """Images of the store are linked, so that they need their space only once."""
        try:
            os.link(source, target)
        except FileNotFoundError as error:
            raise UnreachableImage("it has to be fetched again; use another --output") from error
        except OSError:
            self._copy(source, target, entry)

    def _make_link(self, source: Path, target: Path) -> None:
        try:
            if self._placing == "symlink":
                source.stat()
                # Relative, so that dataset and originals can be moved together.
                target.symlink_to(os.path.relpath(source, os.path.realpath(target.parent)))
            else:
                os.link(os.path.realpath(source), target)
        except FileNotFoundError as error:
            raise UnreachableImage(_gone(error.strerror or "it cannot be read")) from error
        except OSError as error:
            told = f"{error.strerror}; say --placing copy"
            raise OutputError(f"cannot link {target}: {told}") from error


def _gone(reason: str) -> str:
    return f"it was there to be labelled, and now: {reason}"


def suffix_of(path: Path) -> str:
    """The suffix that an image's first bytes ask for; empty where they cannot be had or tell none."""
    try:
        with path.open("rb") as file:
            head = file.read(BEGINNING)
    except OSError:
        return ""
    found = suffix_of_bytes(head)
    return f".{found}" if found else ""
