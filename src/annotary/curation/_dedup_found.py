"""Which rows go, and for which rows that stay: in files on disk that are read part by part."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from annotary.errors import OutputError
from annotary.sources._paths import reason

Numbers = npt.NDArray[np.int64]

STAYS, GONE = 0, 1
"""What stands for a row in `Standing`; greater numbers are for the work of one stage."""

_BYTES = 21
_AT_ONCE = 2**21  # rows
_SUFFIX, _KEPT_SUFFIX = ".found", ".stays"


class Found(NamedTuple):
    """Rows that go.

    Attributes:
        rows: int64[n], numbers among the rows of all parts, ascending.
        of: int64[n], the row that each is the same as; or the number of an image of an evaluation set.
        distance: float32[n], by the way: bits, 1 - cosine, or 0.
        way: uint8[n], the number of the reason.
    """

    rows: Numbers
    of: Numbers
    distance: npt.NDArray[np.float32]
    way: npt.NDArray[np.uint8]

    def take(self, chosen: Any) -> Found:
        """Some of them.

        Args:
            chosen: Their places, a slice, or bool[n].
        """
        return Found(self.rows[chosen], self.of[chosen], self.distance[chosen], self.way[chosen])

    @classmethod
    def one_way(cls, rows: Numbers, of: Numbers, way: int) -> Found:
        """Rows that go for one reason and are exactly the same, in any order."""
        order = np.argsort(rows)
        count = len(rows)
        zero = np.zeros(count, np.float32)
        return cls(rows[order], of[order], zero, np.full(count, way, np.uint8))


class FoundFiles:
    """Rows that go, in a folder; each file is sorted by row, and a row is in one file.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0

    def write(self, found: Found, *, is_known: bool = False) -> None:
        """Add a file.

        Args:
            found: Rows that go.
            is_known: Whether they go because of an evaluation set, and not because of other rows.

        Raises:
            OutputError: The disk does not take it.
        """
        if not len(found.rows):
            return
        path = self._folder / f"{self._number:06d}{_SUFFIX}"
        self._number += 1
        try:
            path.write_bytes(b"".join(column.tobytes() for column in found))
            if not is_known:
                path.with_suffix(_KEPT_SUFFIX).write_bytes(np.unique(found.of).tobytes())
        except OSError as failed:
            raise OutputError(f"cannot write {path}: {reason(failed)}") from failed

    def gather(self, rows: int) -> None:
        """Put all files into one, so that whoever reads a part opens one file.

        Args:
            rows: How many rows there are.

        Raises:
            OutputError: The disk does not take it.
        """
        found, stays = (sorted(self._folder.glob(f"*{end}")) for end in (_SUFFIX, _KEPT_SUFFIX))
        if len(found) < 2:
            return
        count = sum(path.stat().st_size for path in found) // _BYTES
        # Both are called by another name until they are whole.
        new_found, new_stays = self._folder / "found", self._folder / "stays"
        columns = _columns(mapped(new_found, np.uint8, (_BYTES * count,)))
        done = 0
        try:
            with new_stays.open("wb") as file:
                for first in range(0, rows, _AT_ONCE):
                    some = self.between(first, first + _AT_ONCE)
                    place = slice(done, done + len(some.rows))
                    columns.rows[place], columns.of[place] = some.rows, some.of
                    columns.distance[place], columns.way[place] = some.distance, some.way
                    done = place.stop
                    file.write(self.stood_for(first, first + _AT_ONCE).tobytes())
        except OSError as failed:
            raise OutputError(f"cannot write {new_stays}: {reason(failed)}") from failed
        for path in (*found, *stays):
            path.unlink()
        new_found.rename(self._folder / f"all{_SUFFIX}")
        new_stays.rename(self._folder / f"all{_KEPT_SUFFIX}")

    def between(self, first: int, last: int) -> Found:
        """The rows that go from the first up to, not including, the last."""
        pieces = list(self._pieces(first, last))
        empty = np.empty(0, np.int64)
        joined = Found(
            np.concatenate([empty, *(found.rows for found in pieces)]),
            np.concatenate([empty, *(found.of for found in pieces)]),
            np.concatenate([empty.astype(np.float32), *(found.distance for found in pieces)]),
            np.concatenate([empty.astype(np.uint8), *(found.way for found in pieces)]),
        )
        return joined.take(np.argsort(joined.rows))

    def stood_for(self, first: int, last: int) -> Numbers:
        """The rows from the first up to, not including, the last that others go for, ascending."""
        pieces = [np.empty(0, np.int64)]
        for path in sorted(self._folder.glob(f"*{_KEPT_SUFFIX}")):
            if not path.stat().st_size:
                continue  # all of them are in evaluation sets
            rows = np.memmap(path, np.int64, "r")
            begin, end = np.searchsorted(rows, [first, last]).tolist()
            pieces.append(np.array(rows[begin:end]))
        return np.unique(np.concatenate(pieces))

    def _pieces(self, first: int, last: int) -> Iterator[Found]:
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            found = _columns(np.memmap(path, np.uint8, "r"))
            begin, end = np.searchsorted(found.rows, [first, last]).tolist()
            yield found.take(slice(begin, end))


def _columns(data: npt.NDArray[np.uint8]) -> Found:
    """The columns of a file."""
    count = len(data) // _BYTES
    return Found(
        data[: 8 * count].view(np.int64),
        data[8 * count : 16 * count].view(np.int64),
        data[16 * count : 20 * count].view(np.float32),
        data[20 * count :],
    )


def mapped(path: Path, kind: Any, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """A new file of zeros, mapped into memory.

    Raises:
        OutputError: The disk has no room for it. Were that not asked first, writing to it would end the process.
    """
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    try:
        with path.open("wb") as file:
            file.truncate(size)
            with suppress(AttributeError):  # systems other than Linux
                _reserve(file.fileno(), size)
        return np.memmap(path, kind, "r+", shape=shape)
    except OSError as failed:
        raise OutputError(f"cannot write {path}: {reason(failed)}") from failed


def _reserve(descriptor: int, size: int) -> None:
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as failed:
        if failed.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # file systems that cannot
            raise


class Standing:
    """Whether each row stays or goes, a byte a row, in a file mapped into memory.

    Args:
        path: The file.
        rows: How many rows there are.
    """

    def __init__(self, path: Path, rows: int) -> None:
        self.of: npt.NDArray[np.uint8] = mapped(path, np.uint8, (max(1, rows),))

    def left(self, rows: Numbers) -> npt.NDArray[np.bool_]:
        """Which rows have not gone."""
        still: npt.NDArray[np.bool_] = self.of[rows] != GONE
        return still

    def go(self, rows: Numbers) -> None:
        """Let rows go."""
        self.of[rows] = GONE
