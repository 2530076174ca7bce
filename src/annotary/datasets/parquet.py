"""Parquet: a table for each part, `train.parquet` and so on, which says where every image is and what it is."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from annotary.datasets._contract import Row
from annotary.datasets._tables import COLUMNS, values_of
from annotary.errors import MissingExtra, OutputError
from annotary.sinks._atomic import replacing

PLACES_IMAGES = False

_AT_ONCE = 10_000
"""Rows of a row group, which are kept until they are that many."""


class ParquetTables:
    """A table for each part, made when its first row comes.

    Args:
        output: The dataset.
    """

    def __init__(self, output: Path) -> None:
        check()
        self._output = output
        self._open_files = ExitStack()
        self._writers: dict[str, Any] = {}
        self._waiting: dict[str, list[dict[str, str | float | int]]] = {}

    def add(self, row: Row) -> None:
        """Write a row.

        Raises:
            OutputError: It cannot be written.
        """
        waiting = self._waiting.setdefault(row.part, [])
        values = values_of(row)
        for name, value in values.items():
            if isinstance(value, str):
                values[name] = value.encode("utf-8", "backslashreplace").decode()
        waiting.append(values)
        if len(waiting) == _AT_ONCE:
            self._write(row.part)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            with self._open_files:
                if error is not None:
                    raise error
                for part in self._waiting:
                    self._write(part)
        except OSError as failed:
            raise OutputError(f"cannot write {self._output}: {failed.strerror}") from failed

    def _write(self, part: str) -> None:
        import pyarrow
        from pyarrow import parquet

        kinds = {"score": pyarrow.float64(), "width": pyarrow.int64(), "height": pyarrow.int64()}
        schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in COLUMNS])
        try:
            if part not in self._writers:
                path = self._output / f"{part}.parquet"
                file = self._open_files.enter_context(replacing(path))
                writer = self._open_files.enter_context(parquet.ParquetWriter(file, schema))
                self._writers[part] = writer
            table = pyarrow.Table.from_pylist(self._waiting[part], schema)
            self._writers[part].write_table(table)
        except OSError as error:
            raise OutputError(f"cannot write {self._output}: {error.strerror}") from error
        self._waiting[part] = []


def check() -> None:
    """Find out whether it can be written.

    Raises:
        MissingExtra: pyarrow is not installed.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise MissingExtra("Writing Parquet", "parquet") from error


def open(output: Path) -> ParquetTables:  # noqa: A001
    """The tables of all parts."""
    return ParquetTables(output)
