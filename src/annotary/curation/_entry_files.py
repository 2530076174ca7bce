"""Lists of entries as files: text, JSON, CSV, JSON Lines and Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from annotary.curation._entry_choice import Entry
from annotary.errors import MissingExtra, UsageError

COLUMNS = ("id", "entry", "source", "count")
"""Columns of the tables."""


def entry_file(entries: Sequence[Entry], path: Path) -> bytes:
    """The content of a file of entries; its form is told by the path's ending.

    Args:
        entries: In the order of their ids.
        path: `.txt` has an entry on each line, `.json` is a list of texts as MetaCLIP's `metadata.json`; `.csv`,
            `.jsonl` and `.parquet` have the columns id, entry, source and count.

    Raises:
        UsageError: Nothing is written in such a form.
        MissingExtra: Parquet needs pyarrow.
    """
    return writer_of(path)(entries)


def writer_of(path: Path) -> Callable[[Sequence[Entry]], bytes]:
    """What makes the content of a file with such an ending.

    Raises:
        UsageError: Nothing is written in such a form.
        MissingExtra: Parquet needs pyarrow.
    """
    writer = _WRITERS.get(path.suffix.lower())
    if writer is None:
        raise UsageError(f"{path.name} must end in {', '.join(_WRITERS)}")
    if writer is _parquet:
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise MissingExtra("Writing Parquet", "curate") from error
    return writer


def _text(entries: Sequence[Entry]) -> bytes:
    return "".join(f"{entry.text}\n" for entry in entries).encode()


def _json(entries: Sequence[Entry]) -> bytes:
    return (json.dumps([entry.text for entry in entries], ensure_ascii=False) + "\n").encode()


def _csv(entries: Sequence[Entry]) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((number, *entry) for number, entry in enumerate(entries))
    return file.getvalue().encode()


def _json_lines(entries: Sequence[Entry]) -> bytes:
    lines = (
        json.dumps(dict(zip(COLUMNS, (number, *entry), strict=True)), ensure_ascii=False) + "\n"
        for number, entry in enumerate(entries)
    )
    return "".join(lines).encode()


def _parquet(entries: Sequence[Entry]) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    columns = [
        pa.array(range(len(entries)), pa.int64()),
        pa.array([entry.text for entry in entries], pa.string()),
        pa.array([entry.source for entry in entries], pa.string()),
        pa.array([entry.count for entry in entries], pa.int64()),
    ]
    file = io.BytesIO()
    parquet.write_table(pa.table(columns, names=list(COLUMNS)), file, compression="zstd")
    return file.getvalue()


_WRITERS = {
    ".txt": _text,
    ".json": _json,
    ".csv": _csv,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}
