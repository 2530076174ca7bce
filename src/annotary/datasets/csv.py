"""CSV: a table for each part, `train.csv` and so on, which says where every image is and what it is."""

from __future__ import annotations

from pathlib import Path

from annotary.datasets._tables import COLUMNS, LineFiles, csv_line, values_of

PLACES_IMAGES = False


def open(output: Path) -> LineFiles:  # noqa: A001
    """The tables of all parts."""
    return LineFiles(
        lambda part: output / f"{part}.csv",
        lambda row: csv_line(list(values_of(row).values())),
        csv_line(COLUMNS),
    )
