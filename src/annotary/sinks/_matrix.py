"""A matrix in NumPy's format that rows are appended to, and whose header says how many of them count.

    bytes 0 to 127    the header: the type of the numbers, and the numbers of rows and columns
    from there on     the rows, one after the other

The header has a fixed length, so that its count of rows can be written anew. Rows behind those that it counts are of a
run that has not ended; readers pass over them.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from annotary.errors import OutputError

HEADER_BYTES = 128
"""What NumPy takes for a matrix, too: the smallest multiple of 64 with room for it."""

_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)


class Matrix:
    """Rows of numbers in a file.

    Args:
        path: The file; made with its folders when the first row comes.
        dtype: The type of the numbers.

    Attributes:
        stored: Whole rows in the file, also those that its header does not count.
        counted: Rows that the header counts; None where there is no file.
        columns: Numbers in a row; 0 while nobody knows.

    Raises:
        OutputError: It cannot be read, or holds something else.
    """

    def __init__(self, path: Path, dtype: npt.DTypeLike) -> None:
        self.path = path
        self.stored = 0
        self.counted: int | None = None
        self.columns = 0
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._descriptor: int | None = None
        self._look()

    def cut(self, rows: int) -> None:
        """Keep only the first rows; those behind them are of a record that was never finished."""
        self.stored = min(self.stored, rows)

    def append(self, vector: npt.ArrayLike) -> None:
        """Append a row.

        Raises:
            OutputError: It is no row of this matrix, or cannot be written; the file ends with the row before.
        """
        row = np.asarray(vector, self._dtype)
        if row.ndim != 1 or not row.size or (self.stored and row.size != self.columns):
            raise OutputError(
                f"{self.path} has rows of {self.columns} numbers, and an embedding has {row.size};"
                " choose another --output"
            )
        with self._mended():
            if self._descriptor is None or not self.stored:
                self.columns = row.size
                self._open()
            assert self._descriptor is not None
            os.lseek(self._descriptor, self._end(), os.SEEK_SET)
            _write_all(self._descriptor, row.tobytes())
        self.stored += 1

    def take_back(self) -> None:
        """Cut off the last row."""
        self.stored -= 1
        self._truncate()

    def sync(self) -> None:
        """Have the disk take the rows.

        Raises:
            OutputError: It cannot.
        """
        if self._descriptor is not None:
            with self._mended():
                os.fsync(self._descriptor)

    def count(self, rows: int) -> None:
        """Let the header count so many rows; a file without a row is made where there is none.

        Raises:
            OutputError: It cannot be written.
        """
        if self.counted == rows and self._descriptor is None:
            return
        with self._mended():
            if self._descriptor is None:
                self._open()
            assert self._descriptor is not None
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            _write_all(self._descriptor, self._header(rows))
            os.fsync(self._descriptor)
            self.counted = rows

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _look(self) -> None:
        """Find out what is there."""
        if self.path.exists() and not self.path.is_file():
            raise OutputError(f"{self.path} is no ordinary file; choose another --output")
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                header = file.read(HEADER_BYTES)
        except FileNotFoundError:
            return
        except OSError as error:
            raise OutputError(f"cannot read {self.path}: {error.strerror}") from error
        beginning = self._header(0)[: self._header(0).index(b"(")]
        if size < HEADER_BYTES and (header.startswith(beginning) or beginning.startswith(header)):
            self.counted = 0  # cut off while it was made
            return
        (rows, self.columns), dtype = self._read(header)
        if dtype != self._dtype:
            remedy = "leave --half out" if dtype == np.float32 else "say --half"
            raise OutputError(
                f"{self.path} holds {dtype.name}; {remedy}, or choose another --output"
            )
        self.counted = rows
        if self.columns:
            self.stored = (size - HEADER_BYTES) // self._row_bytes()

    def _read(self, header: bytes) -> tuple[tuple[int, int], np.dtype[Any]]:
        """The rows, columns and type that a header says.

        Raises:
            OutputError: It is no header of ours.
        """
        from io import BytesIO

        stream = BytesIO(header)
        try:
            if np.lib.format.read_magic(stream) != (1, 0):
                raise ValueError("not the version that annotary writes")
            shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
            rows, columns = shape
        except (ValueError, TypeError, SyntaxError) as error:
            raise OutputError(
                f"{self.path} holds something else; choose another --output"
            ) from error
        known = (np.dtype("<f4"), np.dtype("<f2"))
        if is_fortran or stream.tell() != HEADER_BYTES or dtype not in known:
            raise OutputError(f"{self.path} holds something else; choose another --output")
        return (rows, columns), dtype

    def _header(self, rows: int) -> bytes:
        text = repr(
            {"descr": self._dtype.str, "fortran_order": False, "shape": (rows, self.columns)}
        )
        start = b"\x93NUMPY\x01\x00" + (HEADER_BYTES - 10).to_bytes(2, "little")
        return start + text.encode().ljust(HEADER_BYTES - len(start) - 1) + b"\n"

    def _row_bytes(self) -> int:
        return self.columns * self._dtype.itemsize

    def _end(self) -> int:
        return HEADER_BYTES + self.stored * self._row_bytes()

    def _open(self) -> None:
        """Open the file, and cut off what is behind the rows that stay; one without rows gets its header."""
        if self._descriptor is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, _FLAGS, 0o666)
        if self.stored == 0:
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            _write_all(self._descriptor, self._header(0))
            self.counted = 0
        os.ftruncate(self._descriptor, self._end())

    @contextlib.contextmanager
    def _mended(self) -> Any:
        """Turn errors of the system into one line, and leave whole rows only."""
        try:
            yield
        except OSError as error:
            self._truncate()
            raise OutputError(
                f"cannot write {self.path}: {error.strerror}; the same command continues once this is mended"
            ) from error

    def _truncate(self) -> None:
        """Leave whole rows only; where even that fails, the next run does it."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._end())


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
