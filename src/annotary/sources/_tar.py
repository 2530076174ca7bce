"""Tars as streams: one member after the other, no more than one in memory, and every damage told.

Python's `tarfile` does the reading. What is changed here is what a stream of many images from anywhere needs: a header
that is damaged is an error and not the end; tars that were joined are read to the last; a header can claim neither more
memory than names need nor an endless way to the next; and members that were passed are forgotten.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, Self

LONGEST_HEADER = 1024 * 1024
"""Bytes of a member's headers, long names and other texts included."""

ERRORS = (
    tarfile.TarError, zlib.error, EOFError, ValueError, LookupError, OverflowError, RecursionError,
)  # fmt: skip
"""What reading damaged archives raises, next to `OSError`."""

_PIECE = 64 * 1024


class Tar(tarfile.TarFile):
    """A tar that is read from its begin to its end.

    Args:
        stream: What it is read from.
    """

    members: list[tarfile.TarInfo]

    def __init__(self, stream: _Forward) -> None:
        self._stream = stream
        self.has_ended = False  # whether the last block that was read marks an end
        super().__init__(
            fileobj=stream,  # type: ignore[arg-type]  # the part of a file that reading needs
            tarinfo=_Member,
            ignore_zeros=True,
            encoding="utf-8",
            errors="surrogateescape",
        )

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        """The members; the content of each can be read until the next is asked for.

        Raises:
            tarfile.ReadError: The archive is damaged. So are other `ERRORS`.
        """
        while (member := self.next()) is not None:
            self.members = []
            if member.size < 0:
                raise tarfile.ReadError("damaged, a size below zero")
            yield member

    def next(self) -> tarfile.TarInfo | None:
        """The next member; None at the end."""
        self._stream.allow(LONGEST_HEADER)
        return super().next()

    def content(self, member: tarfile.TarInfo) -> bytes:
        """The bytes of a regular file that is not sparse.

        Raises:
            tarfile.ReadError: The archive is damaged.
        """
        self._stream.seek(member.offset_data)
        self._stream.allow(member.size)
        data = self._stream.read(member.size)
        if len(data) < member.size:
            raise tarfile.ReadError("unexpected end of data")
        return data

    def met(self, error: tarfile.HeaderError) -> Exception:
        """What an error in a header amounts to. `TarFile.next` would take most for the end of the archive."""
        kind = type(error).__name__
        if kind == "EOFHeaderError":  # a block of zeros, of which any number marks an end
            self.has_ended = True
            self._stream.allow(LONGEST_HEADER)
            return error
        if kind == "EmptyHeaderError":  # no block
            if self.has_ended or self.offset == 0:
                return error
            return tarfile.ReadError("it ends without the mark of its end")
        return tarfile.ReadError(f"damaged, {error}")


class _Member(tarfile.TarInfo):
    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        assert isinstance(archive, Tar)
        try:
            member = super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            raise archive.met(error) from error
        archive.has_ended = False
        return member


@contextmanager
def open_tar(file: io.BufferedReader) -> Iterator[Tar]:
    """A tar, plain or compressed with gzip, from a file that need not be able to seek.

    Raises:
        tarfile.ReadError: It is damaged from its first byte on, or no tar. So are other `ERRORS`.
    """
    source = _Headed(file)
    is_packed = source.head == b"\x1f\x8b"
    unpacked: Any = gzip.GzipFile(fileobj=source, mode="rb") if is_packed else source  # type: ignore[call-overload]
    with Tar(_Forward(unpacked)) as archive:
        yield archive


class _Source(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Headed:
    """A file whose first two bytes can be looked at before it is read."""

    def __init__(self, file: io.BufferedReader) -> None:
        self.head = file.read(2)
        self._file = file
        self._unread = self.head

    def read(self, size: int, /) -> bytes:
        unread, self._unread = self._unread[:size], self._unread[size:]
        # What has arrived is not kept back until more has: that may never come.
        return unread or self._file.read1(size)


class _Forward:
    """A file that can be read and passed over, no more than is allowed at a time."""

    def __init__(self, source: _Source) -> None:
        self._source = source
        self._position = 0
        self._allowed = 0
        self._held = b""

    def allow(self, size: int) -> None:
        """From here on, so many bytes may be read."""
        self._allowed = size

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        """So many bytes, or fewer at the end."""
        self._allowed -= size
        if size < 0 or self._allowed < 0:
            raise tarfile.ReadError(f"damaged, a header of more than {LONGEST_HEADER:,} bytes")
        pieces = []
        while size and (piece := self._piece(size)):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def seek(self, position: int) -> int:
        """Pass over what lies before a position.

        Raises:
            tarfile.ReadError: It lies behind us, or behind the end.
        """
        if position < self._position:
            raise tarfile.ReadError("damaged, a way back")
        while self._position < position:
            if not self._piece(min(position - self._position, _PIECE)):
                raise tarfile.ReadError("unexpected end of data")
        return position

    def _piece(self, size: int) -> bytes:
        held = self._held or self._source.read(_PIECE)
        self._held = held[size:]
        self._position += min(size, len(held))
        return held[:size]
