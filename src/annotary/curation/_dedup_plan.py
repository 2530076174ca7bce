"""The plan of a de-duplication: which parts there are, how their rows are numbered, and which rows go.

    OUT/_state/dedup/keys/     hashes of rows, until the step is complete
    OUT/_state/dedup/looks/    what is measured of pictures, a table for each part
    OUT/_state/dedup/plan/     plan.json and the rows that go

A plan appears whole or not at all. It holds for tables that have not changed since.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from annotary.curation._dedup_found import Found, FoundFiles, Numbers
from annotary.curation.steps import STATE
from annotary.curation.tables import BATCH_ROWS, BrokenPart, Part, PartWriter, Rows, open_parquet
from annotary.errors import OutputError
from annotary.sources._paths import reason

_FILE, _NAMES, _UNDER_WAY = "plan.json", "names.parquet", "plan-"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why rows go.

    Attributes:
        why: In words: "duplicate text".
        by: The way: "text".
        against: Which of the evaluation sets, from 0; None where rows are compared with each other.
    """

    why: str
    by: str
    against: int | None = None


@dataclass(frozen=True, slots=True)
class PlannedPart:
    """A part whose rows were compared.

    Attributes:
        name: Of the part.
        file: Its table.
        signature: Of the table when it was read.
        rows: How many rows there are.
        first: The number of the first among the rows of all parts.
        first_in_file: The number of the first in its table.
        broken: Why it could not be read; None when it could.
    """

    name: str
    file: str
    signature: list[int] | None
    rows: int
    first: int
    first_in_file: int
    broken: str | None = None


class Plan:
    """Which rows go.

    Args:
        folder: Of the plan.

    Raises:
        OutputError: It is damaged.
    """

    def __init__(self, folder: Path) -> None:
        try:
            told = json.loads((folder / _FILE).read_text(encoding="utf-8"))
            self.reasons = [Reason(**one) for one in told["reasons"]]
            self.parts = [PlannedPart(**one) for one in told["parts"]]
            self.against: list[Any] = told["against"]
            self.beside: dict[str, Any] = told["beside"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            told = "say --on-existing overwrite to begin anew"
            raise OutputError(f"{folder / _FILE} cannot be read; {told}") from error
        self._folder = folder
        self._names: list[str] | None = None
        self._firsts = np.array([part.first for part in self.parts], np.int64)
        self._of_name = {part.name: part for part in self.parts}
        self._found = FoundFiles(folder)

    def part(self, name: str) -> PlannedPart:
        """A part.

        Raises:
            BrokenPart: It could not be read when rows were compared.
        """
        part = self._of_name[name]
        if part.broken is not None:
            raise BrokenPart(part.broken)
        return part

    def found(self, part: PlannedPart) -> Found:
        """The rows of a part that go, numbered from its first."""
        found = self._found.between(part.first, part.first + part.rows)
        return found._replace(rows=found.rows - part.first)

    def stood_for(self, part: PlannedPart) -> Numbers:
        """The rows of a part that stay and are the same as rows that go, numbered from its first, ascending."""
        return self._found.stood_for(part.first, part.first + part.rows) - part.first

    def places(self, rows: Numbers) -> list[tuple[str, int]]:
        """The table of each row, and the row's number in it.

        Args:
            rows: Numbers among the rows of all parts.
        """
        # Of parts without rows, which begin where the next does, it is none.
        found = np.searchsorted(self._firsts, rows, side="right") - 1
        parts = (self.parts[place] for place in found.tolist())
        return [
            (part.file, part.first_in_file + row - part.first)
            for part, row in zip(parts, rows.tolist(), strict=True)
        ]

    def names(self) -> list[str]:
        """The names of all that evaluation sets hold."""
        if self._names is None:
            part = Part(str(self._folder / _NAMES), "parquet", "names")
            batches = Rows(part).batches()
            self._names = [name for batch in batches for name in batch.column(0).to_pylist()]
        return self._names


def dedup_folder(folder: Path) -> Path:
    """Where the state of a de-duplication is.

    Args:
        folder: What it is written to.
    """
    return folder / STATE / "dedup"


def plan_folder(folder: Path) -> Path:
    """Where the plan is."""
    return dedup_folder(folder) / "plan"


def read_plan(folder: Path) -> Plan:
    """The plan of a de-duplication, remembered as long as it does not change.

    Args:
        folder: What it is written to.
    """
    place = plan_folder(folder)
    try:
        changed = (place / _FILE).stat().st_mtime_ns
    except OSError as error:
        raise OutputError(f"cannot read {place / _FILE}: {reason(error)}") from error
    return _remembered(place, changed)


@lru_cache(maxsize=1)
def _remembered(place: Path, changed: int) -> Plan:  # noqa: ARG001 - another time, another plan
    return Plan(place)


def has_plan(folder: Path, parts: Sequence[Part], against: Any) -> bool:
    """Whether there is a plan that holds for tables as they are now.

    Args:
        folder: What is written to.
        parts: All parts.
        against: What tells evaluation sets from others, as JSON.
    """
    if not (plan_folder(folder) / _FILE).exists():
        return False
    plan = read_plan(folder)
    known = [(part.name, part.file, part.signature, part.broken) for part in plan.parts]
    return plan.against == against and known == [
        (part.name, os.path.abspath(part.file), signature_of(part), None)  # noqa: PTH100
        for part in parts
    ]


def is_planned(folder: Path, parts: Sequence[PlannedPart], against: Any) -> bool:
    """Whether there is a plan of these parts, of which some may be broken."""
    if not (plan_folder(folder) / _FILE).exists():
        return False
    plan = read_plan(folder)
    return plan.against == against and plan.parts == list(parts)


def write_names(folder: Path, names: Sequence[str]) -> None:
    """Put down the names of all that evaluation sets hold.

    Args:
        folder: Of a plan.
        names: They, in the order of their numbers.
    """
    import pyarrow as pa

    with PartWriter(folder / _NAMES) as writer:
        for start in range(0, max(1, len(names)), BATCH_ROWS):
            texts = [
                name.encode("utf-8", "backslashreplace").decode()
                for name in names[start : start + BATCH_ROWS]
            ]
            writer.write(pa.RecordBatch.from_pydict({"name": pa.array(texts, pa.string())}))


def clear(folder: Path, *, is_complete: bool = False) -> None:
    """Remove what is needed no more.

    Args:
        folder: What is written to, by this process alone or by all machines to its end.
        is_complete: Whether all is written; else only plans go that a killed process has left.
    """
    place = dedup_folder(folder)
    needless = [*place.glob(f"{_UNDER_WAY}*")]
    if is_complete:
        needless += [place / name for name in ("keys", "vectors")]
    for one in needless:
        shutil.rmtree(one, ignore_errors=True)


def signature_of(part: Part) -> list[int] | None:
    """What changes with a part's table; None when it is gone."""
    try:
        return part.signature
    except BrokenPart:
        return None


def numbered(
    parts: Sequence[Part], rows: Sequence[int], broken: Sequence[str | None]
) -> list[PlannedPart]:
    """The parts with their rows numbered one after the other.

    Args:
        parts: All parts, in their order.
        rows: How many rows each has.
        broken: Why each could not be read.
    """
    planned, first = [], 0
    for part, count, why in zip(parts, rows, broken, strict=True):
        file = os.path.abspath(part.file)  # noqa: PTH100
        start = 0 if why is not None else _first_row(part)
        planned.append(PlannedPart(part.name, file, signature_of(part), count, first, start, why))
        first += count
    return planned


@contextmanager
def new_plan(
    folder: Path,
    parts: Sequence[PlannedPart],
    reasons: Sequence[Reason],
    against: Any,
    beside: Mapping[str, Any],
    is_made: Callable[[], bool],
) -> Iterator[Path]:
    """A folder for the files of a plan, which becomes the plan when the context ends without an error.

    What was written by an older plan is done again.

    Args:
        folder: What is written to.
        parts: All parts.
        reasons: Why rows go.
        against: What tells evaluation sets from others, as JSON.
        beside: More for the report, which may be filled in the context.
        is_made: Whether another machine has made the plan meanwhile, which is the same.
    """
    place = plan_folder(folder)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=_UNDER_WAY, dir=place.parent))
    except OSError as error:
        raise OutputError(f"cannot write {place}: {reason(error)}") from error
    try:
        yield temporary
        told = {
            "parts": [asdict(part) for part in parts],
            "reasons": [asdict(one) for one in reasons],
            "against": against,
            "beside": beside,
        }
        (temporary / _FILE).write_text(json.dumps(told), encoding="utf-8")
        if is_made():
            return
        shutil.rmtree(folder / STATE / "parts", ignore_errors=True)
        shutil.rmtree(place, ignore_errors=True)
        temporary.rename(place)
    except OSError as error:
        raise OutputError(f"cannot write {place}: {reason(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _first_row(part: Part) -> int:
    """The number in its file of the first row of a part, from 0."""
    if part.groups is None:
        return 0
    with open_parquet(part.file) as table:
        return sum(table.metadata.row_group(group).num_rows for group in range(part.groups[0]))
