"""Writing into a catalogue: some rows at a time, each time a version of the Lance table of its own."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from annotary.catalog._columns import LATER_COLUMNS, PARTS, columns_of_part
from annotary.catalog._deciding import Awaited, Copied
from annotary.catalog._table import Catalog
from annotary.pipeline.output import FailureList
from annotary.records import Failure

ROWS_AT_ONCE = 256
"""Rows that are written together."""

SECONDS_AT_MOST = 10.0
"""How long a row waits for others before it is written: with `ROWS_AT_ONCE`, what a kill can cost."""

COMPACTED_EVERY = 1000
"""Writes after which small pieces of the table are put together, so that they do not become too many."""


@dataclass(slots=True)
class _Pending:
    """What is to be written."""

    rows: list[tuple[Awaited, dict[str, Any]]] = field(default_factory=list)
    copies: list[Copied] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows) + len(self.copies)


class Writer:
    """Collects rows and writes them; from several threads.

    Args:
        catalog: Where rows go.
        failures: What is written leaves this list.
        next_id: Of the next new row.

    Attributes:
        writes: How often something was written.
    """

    def __init__(self, catalog: Catalog, failures: FailureList, next_id: int) -> None:
        self.writes = 0
        self._catalog = catalog
        self._failures = failures
        self._next_id = next_id
        self._pending = _Pending()
        self._written_at = time.monotonic()
        self._lock = threading.Lock()
        self._is_closed = False

    def add(self, awaited: Awaited, row: dict[str, Any]) -> None:
        """Write an annotated image soon."""
        with self._lock:
            self._pending.rows.append((awaited, row))
            if self._is_due():
                self._write()

    def copy(self, copied: Copied) -> None:
        """Write soon what another row knows."""
        with self._lock:
            self._pending.copies.append(copied)
            if self._is_due():
                self._write()

    def fail(self, failure: Failure) -> None:
        """List an image that could not be annotated."""
        with self._lock:
            self._failures.add(failure)

    def mark_deleted(self, ids: Sequence[int]) -> None:
        """Note that the images of rows are gone."""
        with self._lock:
            if ids:
                self._catalog.mark_deleted(ids)
                self.writes += 1

    def flush(self) -> None:
        """Write all that waits."""
        with self._lock:
            self._write()

    def close(self) -> None:
        """Write all that waits; what comes after that is not written."""
        with self._lock:
            self._write()
            self._is_closed = True
            self._failures.close()

    def abandon(self) -> None:
        """Write nothing any more."""
        with self._lock:
            self._is_closed = True

    def _is_due(self) -> bool:
        is_late = time.monotonic() - self._written_at > SECONDS_AT_MOST
        return is_late or len(self._pending) >= ROWS_AT_ONCE

    def _write(self) -> None:
        pending, self._pending = self._pending, _Pending()
        self._written_at = time.monotonic()
        if not len(pending) or self._is_closed:
            return
        now = datetime.now(UTC)
        # First what depends on rows as they are, then what changes them.
        self._write_copies(pending.copies, now)
        self._write_rows(pending.rows, now)
        for image in [copied.image for copied in pending.copies]:
            self._failures.settle(image)
        for _, row in pending.rows:
            self._failures.settle(row["image"])
        self.writes += 1
        if self.writes % COMPACTED_EVERY == 0:
            self._catalog.compact()

    def _write_copies(self, copies: Sequence[Copied], now: datetime) -> None:
        touched = {copied.source for copied in copies}
        held = self._held(touched | {c.target for c in copies if c.target is not None})
        added, replaced = [], []
        for copied in copies:
            row = {**held[copied.source], **copied.values, "changed": now}
            if copied.target is None:
                added.append({**row, "id": self._new_id(), "added": now})
            else:
                first = held[copied.target]["added"]
                replaced.append({**row, "id": copied.target, "added": first})
        self._put(added, replaced)

    def _write_rows(self, rows: Sequence[tuple[Awaited, dict[str, Any]]], now: datetime) -> None:
        held = self._held({awaited.row.id for awaited, _ in rows if awaited.row is not None})
        added, replaced = [], []
        for awaited, row in rows:
            if awaited.row is None:
                added.append({**row, "id": self._new_id(), "added": now, "changed": now})
                continue
            old = held[awaited.row.id]
            # What was read may be something else by now, as behind an address.
            is_same = awaited.keeps and old["sha256"] == row["sha256"]
            whole = _joined(old, row) if is_same else row
            first = old["added"]
            replaced.append({**whole, "id": awaited.row.id, "added": first, "changed": now})
        self._put(added, replaced)

    def _put(self, added: list[dict[str, Any]], replaced: list[dict[str, Any]]) -> None:
        for row in (*added, *replaced):
            if row.get("embedding") is not None and self._catalog.dimensions is None:
                self._catalog.add_vectors_column(len(row["embedding"]))
            for name in LATER_COLUMNS:
                if row.get(name) is not None and name not in self._catalog.columns:
                    self._catalog.add_later_column(name)
        if replaced:
            self._catalog.replace(replaced)
        if added:
            self._catalog.append(added)

    def _held(self, ids: Iterable[int]) -> dict[int, dict[str, Any]]:
        """Rows as they are, by id."""
        wanted = sorted(ids)
        if not wanted:
            return {}
        found = self._catalog.fetch(wanted, self._catalog.columns).to_pylist()
        return {row["id"]: row for row in found}

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1


def _joined(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """A row with new parts, and those of the old one that nobody was asked for now."""
    sources = json.loads(new["sources"])
    row = {**old, **new, "deleted": None}
    for part in PARTS:
        # A decision is made of labels, and goes with them.
        if part not in sources and not (part == "decision" and "labels" in sources):
            row.update({name: old.get(name) for name in columns_of_part(part)})
    row["sources"] = json.dumps({**json.loads(old["sources"] or "{}"), **sources}, sort_keys=True)
    return row
