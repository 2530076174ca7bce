"""The bytes of an image, from wherever they are."""

from __future__ import annotations

import os
import stat
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Self

from annotary.errors import UnreachableImage
from annotary.records import Item
from annotary.sources._options import SourceOptions
from annotary.sources._paths import reason

if TYPE_CHECKING:
    from annotary.sources._download import Downloader

_PIECE = 1024 * 1024


class Reader:
    """Reads the encoded bytes of images; many threads may share one.

    A download is given up after `patience` times the time-out in all, tries and pauses included, so
    that a server that sends a byte now and then cannot hold a thread for ever.

    Args:
        options: Time-out, number of retries and the largest size.
        backoff: Seconds before the first retry of a download; each further pause is twice as long,
            give or take half.
        patience: How many times the time-out one download may take in all.
    """

    def __init__(
        self, options: SourceOptions, *, backoff: float = 0.5, patience: float = 10.0
    ) -> None:
        self._options = options
        self._backoff = backoff
        self._patience = patience
        self._lock = threading.Lock()
        self._downloader: Downloader | None = None
        self._is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; downloads that wait for a retry give up. Twice does no harm."""
        with self._lock:
            self._is_closed = True
            downloader, self._downloader = self._downloader, None
        if downloader is not None:
            downloader.close()

    def read(self, item: Item) -> bytes:
        """The encoded bytes of an image.

        Raises:
            UnreachableImage: They cannot be had; the message is one line without the image's name.
            ValueError: The item holds pixels, which have no encoded bytes, or the reader is closed.
        """
        if item.data is not None:
            return item.data
        if item.path is not None:
            return _read_file(os.fspath(item.path), self._options.max_bytes)
        if item.url is not None:
            return self._open_downloader().fetch(item.url)
        raise ValueError(f"item {item.image!r} holds pixels, which have no encoded bytes")

    def _open_downloader(self) -> Downloader:
        with self._lock:
            if self._is_closed:
                raise ValueError("the reader is closed")
            if self._downloader is None:
                # Imported here: most runs are on local files and need no HTTP client.
                from annotary.sources._download import Downloader

                self._downloader = Downloader(self._options, self._backoff, self._patience)
            return self._downloader


def _read_file(path: str, max_bytes: int) -> bytes:
    try:
        _check_regular(os.stat(path))  # noqa: PTH116 - before opening: that alone can wake a device
        with open(path, "rb", buffering=0, opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            _check_regular(status)
            if status.st_size > max_bytes:
                raise UnreachableImage(f"larger than {max_bytes:,} bytes (--max-bytes)")
            pieces: list[bytes] = []
            left = max_bytes + 1
            while left and (piece := file.read(min(left, max(status.st_size + 1, _PIECE)))):
                pieces.append(piece)
                left -= len(piece)
    except OSError as error:
        raise UnreachableImage(reason(error)) from error
    except ValueError as error:
        raise UnreachableImage("not a valid file name") from error
    if not left:
        raise UnreachableImage(f"larger than {max_bytes:,} bytes (--max-bytes)")
    return b"".join(pieces)


def _check_regular(status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise UnreachableImage("a folder, not a file")
    if not stat.S_ISREG(status.st_mode):
        raise UnreachableImage("a pipe or a device, not a file")


def _open_without_waiting(path: str, flags: int) -> int:
    """Open a file; should it have become a pipe meanwhile, without waiting for its other end."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
