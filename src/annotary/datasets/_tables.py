"""Files of lines that take their places together when all is written."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from annotary.datasets._contract import Row
from annotary.errors import OutputError
from annotary.sinks._atomic import replacing

COLUMNS = ("image", "label", "score", "original", "width", "height", "sha256")
"""Of the tables of parts."""


def values_of(row: Row) -> dict[str, str | float | int]:
    """A row of a part's table."""
    values = (
        *(row.file, row.label, row.score, row.original),
        *(row.width, row.height, row.sha256),
    )
    return dict(zip(COLUMNS, values, strict=True))


def csv_line(values: Sequence[object]) -> bytes:
    """A row of CSV; what is no valid UTF-8 is written with escapes."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(values)  # so that it quotes both characters
    line = text.getvalue().removesuffix("\r\n") + "\n"
    return line.encode("utf-8", "backslashreplace")


class LineFiles:
    """Files of lines, each made when its first row comes.

    Args:
        path: Of the file for a part; several parts may have one file.
        line: A row as it stands there.
        opening: What each begins with.
    """

    def __init__(
        self, path: Callable[[str], Path], line: Callable[[Row], bytes], opening: bytes = b""
    ) -> None:
        self._path = path
        self._line = line
        self._opening = opening
        self._files: dict[Path, BinaryIO] = {}
        self._open_files = ExitStack()

    def add(self, row: Row) -> None:
        """Write a row.

        Raises:
            OutputError: It cannot be written.
        """
        path = self._path(row.part)
        try:
            if path not in self._files:
                self._files[path] = self._open_files.enter_context(replacing(path))
                self._files[path].write(self._opening)
            self._files[path].write(self._line(row))
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._open_files.__exit__(kind, error, trace)
        except OSError as failed:
            where = ", ".join(map(str, self._files))
            raise OutputError(f"cannot write {where}: {failed.strerror}") from failed
