"""Parquet: one row an image, with `image`, `width`, `height`, a column for each part of a record, and `sources`.

A Parquet file cannot be read before its end is written, and nothing can be appended to it. So while a run goes on its
records are appended to a journal, `_journaled` says how.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from annotary.errors import OutputError
from annotary.sinks import _parquet
from annotary.sinks._contract import SinkOptions, TagsOfImage
from annotary.sinks._journaled import UNFINISHED, JournaledTable, as_text, journal_of
from annotary.sinks._names import NameSet
from annotary.sinks._parquet import ParquetTable
from annotary.sinks._parts import best_of
from annotary.sinks._reading import read_lines
from annotary.sinks.jsonl import tags_of

SUFFIXES = (".parquet",)
PARTS = _parquet.PARTS


def open(  # noqa: A001
    output: Path | None, options: SinkOptions, parts: tuple[str, ...]
) -> JournaledTable:
    """A sink that continues the file."""
    assert output is not None
    table = ParquetTable(parts)
    return JournaledTable(output, table, overwrites=options.on_existing == "overwrite")


def read(output: Path, options: SinkOptions) -> Iterator[TagsOfImage]:  # noqa: ARG001
    """The tags of every row, and of the records that a run which was stopped has left in the journal.

    Of a table without tags it is the labels, or those of boxes.
    """
    _parquet.import_pyarrow()
    journal = journal_of(output)
    held = NameSet()
    if _is_finished(output):
        with _parquet.told(output):
            known = _parquet.schema_in(output).names
            part = next((name for name in ("tags", "labels", "boxes") if name in known), "")
            if not part:
                raise OutputError(f"{output} has no tags among its columns")
            for table in _parquet.row_groups(output, ["image", part]):
                for row in table.to_pylist():
                    name = "label" if part == "boxes" else "name"
                    entries = ((entry[name], entry["score"]) for entry in row[part])
                    found = best_of(entries) if part == "boxes" else tuple(entries)
                    held.add(row["image"])
                    yield TagsOfImage(row["image"], found)
    if journal.is_file():
        # A run that was killed may have made the file, and not yet removed what is in it.
        new = (found for found in read_lines(journal, tags_of) if as_text(found.image) not in held)
        yield from new


def _is_finished(path: Path) -> bool:
    """Whether a file is there, and has more than the line that it begins with."""
    with _parquet.told(path):
        try:
            with path.open("rb") as file:
                return file.read(len(UNFINISHED)) not in (UNFINISHED, b"")
        except FileNotFoundError:
            return False
