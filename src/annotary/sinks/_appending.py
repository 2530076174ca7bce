"""A file that records are appended to one by one, and that a killed process leaves repairable.

Every record goes to the operating system before the next one is begun. So whenever a process
dies, the file holds whole records and at most one broken tail, which the next run cuts off.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from annotary.errors import OutputError
from annotary.records import Annotation, Item
from annotary.sinks._names import NameSet

_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
"""Read and write, without the translation of line ends that Windows does."""


class Layout(Protocol):
    """How records stand in a file, one after the other."""

    opening: bytes
    """What the file begins with."""
    between: bytes
    """What stands between two records."""
    closing: bytes
    """What ends a file that is complete."""

    def recover(self, file: BinaryIO) -> Iterator[tuple[str, int]]:
        """The name of every whole record after the opening, and the offset in bytes of the record's end.

        Stops before a tail that was cut off.

        Raises:
            ValueError: Something else than a cut-off tail is wrong; the file is not ours.
        """


class RecordFormat(Layout, Protocol):
    """A layout whose records are made of an annotation alone, and named by the image's name alone."""

    def name(self, image: str) -> str:
        """What an image is called in the file."""

    def encode(self, annotation: Annotation) -> bytes:
        """A record as it stands in the file."""


class AppendingRecords:
    """Named records in a file: appends to them, and knows which ones there are.

    Args:
        path: The file; made with its folders when the first record comes.
        layout: How records stand in it.

    Raises:
        OutputError: The file cannot be read, or does not hold what the format writes.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path = path
        self._layout = layout
        self._names = NameSet()
        self._descriptor: int | None = None
        self._end = 0
        self._recover()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def append(self, name: str, record: bytes) -> None:
        """Append one record.

        Args:
            name: What `recover` will call it.
            record: As it stands in the file.

        Raises:
            OutputError: It cannot be written; the file ends with the record before.
        """
        start = self._layout.between if self._end > len(self._layout.opening) else b""
        self._write(start + record)
        self._names.add(name)

    def close(self, *, complete: bool) -> None:
        """Write the end of the file, have the disk take it, and close.

        Args:
            complete: Whether to write the end also where nothing was appended: a file without a record is a result.
        """
        if complete and self._descriptor is None:
            self._write(b"")
        if self._descriptor is None:
            return
        try:
            if self._end >= len(self._layout.opening):
                self._write(self._layout.closing)
            os.fsync(self._descriptor)
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}") from error
        finally:
            os.close(self._descriptor)
            self._descriptor = None

    def _recover(self) -> None:
        if self.path.exists() and not self.path.is_file():
            raise OutputError(f"{self.path} is no ordinary file; choose another --output")
        try:
            with self.path.open("rb") as file:
                opening = file.read(len(self._layout.opening))
                if not self._layout.opening.startswith(opening):
                    raise OutputError(f"{self.path} holds something else; choose another --output")
                if opening != self._layout.opening:
                    return
                self._end = len(opening)
                for name, end in self._layout.recover(file):
                    self._names.add(name)
                    self._end = end
        except FileNotFoundError:
            return
        except ValueError as error:
            raise OutputError(f"{self.path} cannot be continued: {error}") from error
        except OSError as error:
            raise OutputError(f"cannot read {self.path}: {error.strerror}") from error

    def _write(self, data: bytes) -> None:
        try:
            if self._descriptor is None:
                self._open()
            assert self._descriptor is not None
            _write_all(self._descriptor, data)
            self._end += len(data)
        except OSError as error:
            self._cut_tail()
            raise OutputError(
                f"cannot write {self.path}: {error.strerror}; the same command continues once this is mended"
            ) from error

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self.path, _FLAGS, 0o666)
        os.ftruncate(self._descriptor, self._end)
        os.lseek(self._descriptor, self._end, os.SEEK_SET)
        if self._end == 0:
            _write_all(self._descriptor, self._layout.opening)
            self._end = len(self._layout.opening)

    def _cut_tail(self) -> None:
        """Leave whole records only; where even that fails, the next run does it."""
        if self._descriptor is None:
            return
        try:
            os.ftruncate(self._descriptor, self._end)
            os.lseek(self._descriptor, self._end, os.SEEK_SET)
        except OSError:
            return


class AppendingFile(AppendingRecords):
    """A sink that appends records to a file, and knows which images it holds.

    Args:
        path: The file; made with its folders when the first record comes.
        style: How records stand in it.

    Raises:
        OutputError: The file cannot be read, or does not hold what the format writes.
    """

    def __init__(self, path: Path, style: RecordFormat) -> None:
        self._style = style
        super().__init__(path, style)

    def holds(self, item: Item) -> bool:
        """Whether the file has a record of this image."""
        return self._style.name(item.image) in self

    def write(self, item: Item, annotation: Annotation) -> None:
        """Append one record.

        Raises:
            OutputError: It cannot be written; the file ends with the record before.
        """
        self.append(self._style.name(item.image), self._style.encode(annotation))


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
