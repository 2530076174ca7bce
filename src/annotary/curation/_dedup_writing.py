"""Writing what a de-duplication leaves, and the list of what goes."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from annotary.curation._dedup_found import Found
from annotary.curation._dedup_plan import Plan, PlannedPart, Reason, dedup_folder, read_plan
from annotary.curation.columns import IDS, as_text, is_scalar
from annotary.curation.looks import read_looks
from annotary.curation.steps import MOST_LISTED, Tally
from annotary.curation.tables import BrokenPart, Part, PartWriter, Rows, no_column
from annotary.errors import UsageError
from annotary.records import Failure

if TYPE_CHECKING:
    import pyarrow as pa

DUPLICATES = "_duplicates.parquet"

MARKS = ("duplicate_by", "duplicate_of", "duplicate_distance")
"""Columns that mark rows, where none are left out."""

_LISTED, _KEPT = "listed", "kept"


@dataclass(slots=True)
class WriteStep:
    """The step that writes the rows that stay.

    Attributes:
        told: What decides which rows go, as JSON.
        id: The column that tells a row; the first with a usual name when nothing is said.
        keeps_all: Whether rows that go are marked and not left out.
        looks: Where measures of pictures are; None where none were needed.
        name: Of the step.
    """

    told: dict[str, Any]
    id: str | None
    keeps_all: bool
    looks: Path | None
    name: str = "dedup"

    def settings(self) -> dict[str, Any]:
        """What decides which rows go."""
        return self.told

    def run(self, part: Part, target: Path) -> Tally:
        """Write the rows of a part that stay, and list those that go.

        Raises:
            BrokenPart: It cannot be read, or has changed since its rows were compared.
            UsageError: It has no column of ids of that name.
        """
        plan = read_plan(target.parent)
        planned = plan.part(part.name)
        place = dedup_folder(target.parent)
        rows = Rows(part)
        work = _Part(plan, planned, _id_column(rows, self.id), keeps_all=self.keeps_all)
        tally = Tally()
        with ExitStack() as stack:
            writer = stack.enter_context(PartWriter(target))
            listed = stack.enter_context(
                PartWriter(_beside(place, _LISTED, part.name), _list_schema())
            )
            kept = stack.enter_context(PartWriter(_beside(place, _KEPT, part.name), _kept_schema()))
            for batch in rows.batches():
                first = tally.rows_in
                tally.rows_in += batch.num_rows
                work.check(batch, tally.rows_in)
                listed.write(work.listed(batch, first, tally))
                kept.write(work.stood_for(batch, first))
                writer.write(work.left(batch, first))
            work.check(None, tally.rows_in)
            tally.rows_out = writer.rows
        if self.looks is not None:
            _list_failures(self.looks / f"{part.name}.parquet", planned, tally)
        tally.skip(rows.skipped)
        return tally


class _Part:
    """The rows of a part that go.

    Args:
        plan: The plan.
        part: The part.
        id_column: The column that tells a row, if there is one.
        keeps_all: Whether rows are marked and not left out.
    """

    def __init__(
        self, plan: Plan, part: PlannedPart, id_column: str | None, *, keeps_all: bool
    ) -> None:
        self._plan = plan
        self._part = part
        self._id_column = id_column
        self._keeps_all = keeps_all
        self._found = plan.found(part)
        self._stood_for = plan.stood_for(part)

    def check(self, batch: pa.RecordBatch | None, rows: int) -> None:
        """Refuse a table that is not what it was when its rows were compared.

        Args:
            batch: The next rows; None at the end.
            rows: How many rows there are, with these.
        """
        if rows > self._part.rows or (batch is None and rows < self._part.rows):
            raise BrokenPart(f"{self._part.file} has changed meanwhile; run it again")
        taken = [name for name in MARKS if batch is not None and name in batch.schema.names]
        if taken and self._keeps_all:
            raise UsageError(
                f"{self._part.file} has a column {taken[0]!r} already; was it marked before?"
            )

    def left(self, batch: pa.RecordBatch, first: int) -> pa.RecordBatch:
        """The rows that stay; or all of them, marked.

        Args:
            batch: Rows.
            first: The number of the first in the part.
        """
        import pyarrow as pa

        found = self._within(first, batch.num_rows)
        places = found.rows - first
        if not self._keeps_all:
            if not len(places):
                return batch
            stays = np.ones(batch.num_rows, np.bool_)
            stays[places] = False
            return batch.filter(pa.array(stays))
        told = self._told(found)
        marks: list[list[Any]] = [[None] * batch.num_rows for _ in MARKS]
        for place, (by, of, distance) in zip(
            places.tolist(), zip(told.by, told.of, told.distance, strict=True), strict=True
        ):
            for mark, value in zip(marks, (by, of, distance), strict=True):
                mark[place] = value
        kinds = (pa.string(), pa.string(), pa.float32())
        for name, mark, kind in zip(MARKS, marks, kinds, strict=True):
            batch = batch.append_column(name, pa.array(mark, kind))
        return batch

    def listed(self, batch: pa.RecordBatch, first: int, tally: Tally) -> pa.RecordBatch:
        """The rows that go, as they are listed, and counted."""
        import pyarrow as pa

        found = self._within(first, batch.num_rows)
        told = self._told(found)
        for why, rows in Counter(told.reasons).items():
            if self._keeps_all:
                tally.beside[f"marked: {why}"] = tally.beside.get(f"marked: {why}", 0) + rows
            else:
                tally.drop(why, rows)
        columns = [
            [self._part.file] * len(found.rows),
            (found.rows + self._part.first_in_file).tolist(),
            _ids(batch, self._id_column, found.rows - first),
            told.by,
            told.distance,
            told.whys,
            told.of_tables,
            told.of_rows,
            told.of_sets,
            found.of.tolist(),
        ]
        schema = _list_schema()
        arrays = [pa.array(c, field.type) for c, field in zip(columns, schema, strict=True)]
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

    def stood_for(self, batch: pa.RecordBatch, first: int) -> pa.RecordBatch:
        """The rows that stay and that others go for, with what tells them."""
        import pyarrow as pa

        begin, end = np.searchsorted(self._stood_for, [first, first + batch.num_rows]).tolist()
        rows = self._stood_for[begin:end]
        columns = [(rows + self._part.first).tolist(), _ids(batch, self._id_column, rows - first)]
        schema = _kept_schema()
        arrays = [pa.array(c, field.type) for c, field in zip(columns, schema, strict=True)]
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

    def _within(self, first: int, count: int) -> Found:
        begin, end = np.searchsorted(self._found.rows, [first, first + count]).tolist()
        return self._found.take(slice(begin, end))

    def _told(self, found: Found) -> _Told:
        return _Told(self._plan, found)


class _Told:
    """Rows that go, in words.

    Args:
        plan: The plan.
        found: They.
    """

    def __init__(self, plan: Plan, found: Found) -> None:
        reasons = [plan.reasons[way] for way in found.way.tolist()]
        is_known = np.array([reason.against is not None for reason in reasons], np.bool_)
        names = plan.names() if is_known.any() else []
        rows = iter(plan.places(found.of[~is_known]))
        self.reasons = [reason.why for reason in reasons]
        self.by = [reason.by for reason in reasons]
        self.distance = found.distance.tolist()
        self.of_tables: list[str | None] = []
        self.of_rows: list[int | None] = []
        self.of_sets: list[str | None] = []
        self.of: list[str] = []
        self.whys = [
            _in_words(reason, distance)
            for reason, distance in zip(reasons, self.distance, strict=True)
        ]
        for known, of in zip(is_known.tolist(), found.of.tolist(), strict=True):
            table, row = (None, None) if known else next(rows)
            self.of_tables.append(table)
            self.of_rows.append(row)
            self.of_sets.append(names[of] if known else None)
            self.of.append(names[of] if known else f"{table}/{row}")


def write_duplicates(folder: Path, names: Sequence[str]) -> int:
    """Put the lists of all parts together, with what tells the rows that stay.

    Args:
        folder: What was written to.
        names: Of the parts that were written, in their order.

    Returns:
        How many rows go.
    """
    import pyarrow as pa

    place = dedup_folder(folder)
    with tempfile.TemporaryDirectory(prefix="list-", dir=place) as work:
        ids = _Ids(Path(work), [_beside(place, _KEPT, name) for name in names])
        with PartWriter(folder / DUPLICATES, _told_schema()) as writer:
            for batch in _batches(_beside(place, _LISTED, name) for name in names):
                of = batch.column("of").to_numpy()
                is_row = batch.column("of_table").is_valid().to_numpy(zero_copy_only=False)
                told = pa.array(ids.of(of, is_row), pa.string())
                columns = [*(batch.column(name) for name in _told_schema().names[:-1]), told]
                writer.write(pa.RecordBatch.from_arrays(columns, schema=_told_schema()))
            rows = writer.rows
        ids.close()
    return rows


class _Ids:
    """What tells rows, by their numbers, in files.

    Args:
        folder: For the files.
        paths: The tables with numbers, ascending over all of them, and what tells each.
    """

    def __init__(self, folder: Path, paths: Sequence[Path]) -> None:
        files = [folder / name for name in ("rows", "ends", "texts")]
        end = 0
        with ExitStack() as stack:
            rows, ends, texts = (stack.enter_context(file.open("wb")) for file in files)
            for batch in _batches(paths):
                cells = [(cell or "").encode() for cell in batch.column(1).to_pylist()]
                rows.write(batch.column(0).to_numpy().tobytes())
                sizes = np.array([len(cell) for cell in cells], np.int64)
                ends.write((np.cumsum(sizes) + end).tobytes())
                end += int(sizes.sum())
                texts.write(b"".join(cells))
        self._rows, self._ends = (_mapped(file, np.int64) for file in files[:2])
        self._texts = _mapped(files[2], np.uint8)

    def of(self, rows: npt.NDArray[np.int64], is_row: npt.NDArray[np.bool_]) -> list[str | None]:
        """What tells rows; None where nothing does."""
        found: list[str | None] = [None] * len(rows)
        places = np.searchsorted(self._rows, rows)
        for number in np.flatnonzero(is_row).tolist():
            place = int(places[number])
            start = int(self._ends[place - 1]) if place else 0
            text = self._texts[start : int(self._ends[place])].tobytes().decode()
            found[number] = text or None
        return found

    def close(self) -> None:
        """Let go of the files."""
        del self._rows, self._ends, self._texts


def _mapped(path: Path, kind: Any) -> npt.NDArray[Any]:
    return np.memmap(path, kind, "r") if path.stat().st_size else np.empty(0, kind)


def _batches(paths: Any) -> Iterator[pa.RecordBatch]:
    for path in paths:
        yield from Rows(Part(str(path), "parquet", path.stem)).batches()


def _beside(place: Path, what: str, name: str) -> Path:
    return place / what / f"{name}.parquet"


def _id_column(rows: Rows, named: str | None) -> str | None:
    """The column that tells a row.

    Raises:
        UsageError: There is none of that name.
    """
    kinds = {field.name: field.type for field in rows.schema}
    if named is not None and named not in kinds:
        raise UsageError(no_column(rows.part.file, named, list(kinds), "--id"))
    usual = (name for name in IDS if name in kinds and is_scalar(kinds[name]))
    return named or next(usual, None)


def _ids(
    batch: pa.RecordBatch, name: str | None, places: npt.NDArray[np.int64]
) -> list[str | None]:
    """What tells the rows at some places."""
    import pyarrow as pa

    if name is None or not len(places):
        return [None] * len(places)
    cells = batch.column(name).take(pa.array(places))
    if not is_scalar(cells.type):
        return [None if cell is None else str(cell) for cell in cells.to_pylist()]
    found: list[str | None] = as_text(cells).to_pylist()
    return found


def _list_failures(path: Path, part: PlannedPart, tally: Tally) -> None:
    """List the images that could not be compared: their rows stay."""
    row = part.first_in_file
    for batch in read_looks(path):
        errors = batch.column("error")
        for place in np.flatnonzero(errors.is_valid().to_numpy(zero_copy_only=False)).tolist():
            count = tally.beside["unreadable_images"] = tally.beside.get("unreadable_images", 0) + 1
            if count <= MOST_LISTED:
                message = errors[place].as_py()
                tally.failures.append(
                    Failure(f"{part.file}/{row + place}", "UnreadableImage", message)
                )
        row += batch.num_rows


def _in_words(reason: Reason, distance: float) -> str:
    """Why a row goes, and how near it is: "near image (phash, distance 2)", "in evaluation set val (same bytes)"."""
    far = {
        "exact": "same bytes",
        "phash": f"distance {int(distance)}",
        "embedding": f"cosine {1.0 - distance:.3f}",
    }.get(reason.by)
    if reason.against is not None:
        return reason.why if far is None else f"{reason.why} ({far})"
    if reason.by in ("phash", "embedding"):
        return f"{reason.why[:-1]}, {far})"
    return reason.why


def _list_schema() -> pa.Schema:
    """The columns of what is listed of a part."""
    import pyarrow as pa

    return pa.schema([*list(_told_schema())[:-1], ("of", pa.int64())])


def _told_schema() -> pa.Schema:
    """The columns of `_duplicates.parquet`."""
    import pyarrow as pa

    return pa.schema(
        [
            ("table", pa.string()),
            ("row", pa.int64()),
            ("id", pa.string()),
            ("by", pa.string()),
            ("distance", pa.float32()),
            ("why", pa.string()),
            ("of_table", pa.string()),
            ("of_row", pa.int64()),
            ("of_evaluation", pa.string()),
            ("of_id", pa.string()),
        ]
    )


def _kept_schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema([("row", pa.int64()), ("id", pa.string())])
