"""The table that CapFilt writes, one row a text: Parquet, JSON Lines or CSV, there in whole or not at all."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from annotary.curation.tables import PartWriter, arrow, first_line, open_parquet
from annotary.errors import OutputError, UsageError
from annotary.sinks._atomic import replacing
from annotary.sources._rows import LONGEST_ROW

COLUMNS = {
    "image": "string",
    "text": "string",
    "origin": "string",
    "kept": "bool",
    "score": "double",
    "why": "string",
    "cosine": "double",
    "certainty": "double",
    "is_cut": "bool",
    "table": "string",
    "row": "int64",
    "column": "string",
    "captioner": "string",
    "matcher": "string",
}
"""The columns and their types in Parquet."""

SUFFIXES = (".parquet", ".pq", ".jsonl", ".ndjson", ".csv")
"""Endings of file names that are written."""

_NEEDED = ("image", "text", "origin", "kept", "why")
_ROWS_AT_ONCE = 10_000

Row = Mapping[str, Any]


def check_place(path: Path) -> None:
    """Refuse what can never be written.

    Raises:
        UsageError: The suffix says no format.
        MissingExtra: It is Parquet, and there is no pyarrow.
        OutputError: It is a folder.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--output {path} must end in {', '.join(SUFFIXES)}")
    if path.is_dir():
        raise OutputError(f"{path} is a folder, and this format needs a file")
    if path.suffix.lower() in (".parquet", ".pq"):
        arrow()


def write_rows(path: Path, rows: Iterable[Row], told: Mapping[str, Any]) -> int:
    """Write a table, which takes the place of an earlier one when it is whole.

    Args:
        path: The file.
        rows: One for each text.
        told: What they were made with; Parquet holds it as `annotary.capfilt` in its metadata.

    Returns:
        How many rows were written.

    Raises:
        OutputError: The disk does not take it.
    """
    suffix = path.suffix.lower()
    try:
        if suffix in (".parquet", ".pq"):
            return _write_parquet(path, rows, told)
        with replacing(path) as file:
            return (_write_csv if suffix == ".csv" else _write_json)(file, rows)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a table that was written so.

    Raises:
        UsageError: It cannot be read, or is another table.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES or not path.is_file():
        raise UsageError(f"{path} is no table that annotary curate capfilt wrote")
    reader = {".csv": _read_csv, ".parquet": _read_parquet, ".pq": _read_parquet}
    try:
        for row in reader.get(suffix, _read_json)(path):
            if not all(name in row for name in _NEEDED):
                raise ValueError(f"it has not the columns {', '.join(_NEEDED)}")
            yield row
    except (OSError, ValueError, csv.Error) as error:
        told = f"{path} is no table that annotary curate capfilt wrote: {first_line(error)}"
        raise UsageError(told) from error


def _write_parquet(path: Path, rows: Iterable[Row], told: Mapping[str, Any]) -> int:
    pa = arrow()
    schema = pa.schema(
        [(name, pa.type_for_alias(kind)) for name, kind in COLUMNS.items()],
        {"annotary.capfilt": json.dumps(told)},
    )
    every = iter(rows)
    with PartWriter(path, schema) as writer:
        while some := list(islice(every, _ROWS_AT_ONCE)):
            columns = [
                pa.array([_escaped(row.get(name)) for row in some], schema.field(name).type)
                for name in COLUMNS
            ]
            writer.write(pa.RecordBatch.from_arrays(columns, schema=schema))
    return writer.rows


def _write_json(file: Any, rows: Iterable[Row]) -> int:
    count = 0
    for row in rows:
        line = json.dumps({name: row.get(name) for name in COLUMNS}, ensure_ascii=False)
        file.write(line.encode("utf-8", "backslashreplace") + b"\n")
        count += 1
    return count


def _write_csv(file: Any, rows: Iterable[Row]) -> int:
    held = io.StringIO(newline="")
    writer = csv.writer(held, lineterminator="\n")
    writer.writerow(COLUMNS)
    count = 0
    for row in rows:
        writer.writerow([_cell(row.get(name)) for name in COLUMNS])
        file.write(held.getvalue().encode("utf-8", "backslashreplace"))
        held.seek(0)
        held.truncate()
        count += 1
    file.write(held.getvalue().encode())
    return count


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else value


def _escaped(value: Any) -> Any:
    """A name that is no text as text; sources read it back."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return value


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    pa = arrow()
    try:
        with open_parquet(str(path)) as table:
            names = [name for name in COLUMNS if name in table.schema_arrow.names]
            for batch in table.iter_batches(_ROWS_AT_ONCE, columns=names, use_threads=False):
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise ValueError(first_line(error)) from error


def _read_json(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for line in file:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("a line is no JSON object")
            yield row


def _read_csv(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_ROW))
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found: dict[str, Any] = {name: value or None for name, value in row.items()}
            for name in ("score", "cosine", "certainty"):
                found[name] = float(found[name]) if found.get(name) else None
            yield {**found, "kept": found.get("kept") == "yes", "text": row.get("text")}
