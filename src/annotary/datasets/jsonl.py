"""JSON Lines: a file for each part, `train.jsonl` and so on, which says where every image is and what it is."""

from __future__ import annotations

import json
from pathlib import Path

from annotary.datasets._contract import Row
from annotary.datasets._tables import LineFiles, values_of

PLACES_IMAGES = False


def open(output: Path) -> LineFiles:  # noqa: A001
    """The files of all parts."""
    return LineFiles(lambda part: output / f"{part}.jsonl", line)


def line(row: Row) -> bytes:
    """A row as a line of JSON."""
    text = json.dumps(values_of(row), ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace")
