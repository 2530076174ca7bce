"""Texts that belong to single images, such as the questions of a table: which image has which."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from annotary.errors import MissingExtra, UsageError
from annotary.records import Item

Told = TypeVar("Told")

_LONGEST_CELL = 16 * 1024 * 1024


class OwnTexts(Generic[Told]):
    """What belongs to single images, by name.

    Args:
        of_name: Image name to what belongs to it. An image has what is told of its name, of its path below the folder
            that was asked for, and of any path that leads to the same file.
        folder: Where paths start that are not absolute, if they are there; else in the current folder.
    """

    def __init__(self, of_name: Mapping[str, Sequence[Told]], folder: str = "") -> None:
        self._of_name = {name: tuple(told) for name, told in of_name.items()}
        self._names_at: dict[str, list[str]] = {}
        for name in self._of_name:
            self._names_at.setdefault(_place(name, folder), []).append(name)
        self._met: set[str] = set()
        self._lock = threading.Lock()

    @property
    def every(self) -> tuple[Told, ...]:
        """All that is told, each once, in its order."""
        return tuple(dict.fromkeys(one for told in self._of_name.values() for one in told))

    @property
    def digest(self) -> str:
        """What changes with all that is told."""
        return hashlib.sha256(json.dumps(sorted(self._of_name.items())).encode()).hexdigest()[:16]

    @property
    def unmet(self) -> tuple[str, ...]:
        """The names of which no image was seen so far."""
        with self._lock:
            return tuple(name for name in self._of_name if name not in self._met)

    def of(self, item: Item) -> tuple[Told, ...]:
        """What belongs to an image; nothing where nothing is told. Thread-safe."""
        names = [name for name in (item.image, item.relative) if name in self._of_name]
        if item.path is not None:
            names += self._names_at.get(os.path.abspath(item.path), ())  # noqa: PTH100
        names = list(dict.fromkeys(names))
        with self._lock:
            self._met.update(names)
        return tuple(one for name in names for one in self._of_name[name])

    def meet(self, name: str) -> None:
        """Note that an image of a name was seen, which may be one that cannot be read."""
        with self._lock:
            self._met.update(self._names_at.get(os.path.abspath(name), ()))  # noqa: PTH100
            self._met.add(name)


def _place(name: str, folder: str) -> str:
    """The absolute path that a name leads to."""
    beside = os.path.join(folder, name)  # noqa: PTH118
    found = beside if os.path.exists(beside) else name  # noqa: PTH110
    return os.path.abspath(found)  # noqa: PTH100


def read_rows(
    path: Path, needed: Sequence[str], optional: Sequence[str] = ()
) -> list[tuple[Any, ...]]:
    """The rows of a table: .csv, .tsv, .jsonl or .parquet.

    Args:
        path: The table.
        needed: Columns that it must have.
        optional: Columns that it may have; their cells are None where it has not.

    Returns:
        The cells of these columns, row by row.

    Raises:
        UsageError: It cannot be read, or lacks a column or a cell that is needed; the message says which.
        MissingExtra: It is Parquet, and there is no pyarrow.
    """
    try:
        rows = []
        for number, row in enumerate(_rows(path, (*needed, *optional)), 1):
            for column in needed:
                if not isinstance(row.get(column), str) or not row[column].strip():
                    raise ValueError(f"row {number} needs {column}, but has {row.get(column)!r}")
            rows.append(tuple(row.get(column) for column in (*needed, *optional)))
        if not rows:
            raise ValueError("it has no rows")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except (ValueError, csv.Error) as error:
        raise UsageError(f"{path}: {error}") from error
    return rows


def _rows(path: Path, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from _parquet_rows(path, columns)
    elif suffix in (".jsonl", ".ndjson"):
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _json_row(line, number)
    elif suffix in (".csv", ".tsv"):
        with path.open(encoding="utf-8-sig", newline="") as file:
            csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))
            reader = csv.DictReader(file, delimiter="\t" if suffix == ".tsv" else ",")
            for row in reader:
                if None in row:
                    raise ValueError(
                        f"line {reader.line_num} has more cells than the head; put texts with commas in quotes"
                    )
                yield row
    else:
        raise ValueError("the table must be .csv, .tsv, .jsonl or .parquet")


def _json_row(line: str, number: int) -> Mapping[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"line {number} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"line {number} must be a JSON object")
    return value


def _parquet_rows(path: Path, columns: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra("Reading Parquet", "parquet") from error
    try:
        with parquet.ParquetFile(path) as file:
            names = [name for name in columns if name in file.schema_arrow.names]
            for batch in file.iter_batches(columns=names, batch_size=10_000):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, KeyError) as error:  # KeyError: a column is there twice
        raise ValueError(" ".join(str(error).split())) from error
