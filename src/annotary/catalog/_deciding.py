"""What becomes of each image of a filling's sources, decided by what the catalogue holds.

    path known, same size and time ──────────────────▶ unchanged (back again, if it was gone)
    path known, same content ────────────────────────▶ unchanged; size and time are noted
    path new, content of a file that is gone ────────▶ moved: the row gets the new path
    path new or changed, content of another file ────▶ the other's annotations are copied
    anything else ───────────────────────────────────▶ annotated

An address that is known is not fetched again to see whether it has changed; members of archives are compared by
content.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from annotary.catalog._columns import stored
from annotary.catalog._known import Content, Known, Row, Stat, content_of, is_missing, key_of
from annotary.catalog._table import Catalog
from annotary.records import Item

NO_STAT = Stat(-1, -1)

_ASKED_AT_MOST = 100
"""Rows whose paths are asked for one by one."""


@dataclass(slots=True)
class Filled:
    """Counts of a filling, in images.

    Attributes:
        new: Are in the catalogue now, and were not before.
        changed: Had other content.
        completed: Lacked a part that was asked for, and got it.
        moved: Are files that have another path now.
        back: Were gone, and are there again as they were.
        unchanged: Were as the catalogue has them.
        gone: Were in the folders that were asked for, and are no more.
        failed: Could not be annotated.
        failed_before: Are listed as failed, and were not tried again.
    """

    new: int = 0
    changed: int = 0
    completed: int = 0
    moved: int = 0
    back: int = 0
    unchanged: int = 0
    gone: int = 0
    failed: int = 0
    failed_before: int = 0

    @property
    def done(self) -> int:
        """All that something was done for."""
        return self.new + self.changed + self.completed + self.moved + self.back

    @property
    def seen(self) -> int:
        """All images of the sources so far."""
        return self.done + self.unchanged + self.failed + self.failed_before


class Counter:
    """Counts from several threads.

    Attributes:
        filled: The counts.
    """

    def __init__(self) -> None:
        self.filled = Filled()
        self._lock = threading.Lock()

    def add(self, name: str, number: int = 1) -> None:
        """Count some more of a kind."""
        with self._lock:
            setattr(self.filled, name, getattr(self.filled, name) + number)


class Awaited(NamedTuple):
    """An image on its way through the networks.

    Attributes:
        row: Its row; None for a new one.
        stat: Of its file.
        keeps: Whether the content is what it was, so that other parts of the row stay.
        is_moved: Whether the row was another path's.
    """

    row: Row | None
    stat: Stat
    keeps: bool = False
    is_moved: bool = False


class Copied(NamedTuple):
    """A row that takes over what is known of some content.

    Attributes:
        source: The row that has it.
        target: The row that gets it; None for a new one.
        values: The columns that differ.
        image: The image's name.
    """

    source: int
    target: int | None
    values: Mapping[str, Any]
    image: str


class Decider:
    """Decides what becomes of images; in one thread.

    Args:
        catalog: Asked for what `known` does not hold.
        known: The rows as they were at the beginning.
        wanted: The parts that are asked for, as bits.
        copy: Takes what can be written without annotating.
        counter: Counts what is done with.
    """

    def __init__(
        self,
        catalog: Catalog,
        known: Known,
        wanted: int,
        copy: Callable[[Copied], None],
        counter: Counter,
    ) -> None:
        self._catalog = catalog
        self._known = known
        self._wanted = wanted
        self._copy = copy
        self._count = counter.add
        # Rows that this run gives other content or another path: what is known of them holds no more.
        self._changing: set[int] = set()
        self._missing: npt.NDArray[np.bool_] | None = None
        self._asked = 0

    def decide(self, item: Item, place: str) -> Awaited | None:
        """What has to be done for an image; None when it is done with.

        Args:
            item: The image, which was not decided about before.
            place: Its absolute path as the column holds it; empty for what is no file.
        """
        awaited = self._decided(item, place)
        if awaited is not None and awaited.row is not None:
            self._changing.add(awaited.row.id)
        return awaited

    def knows(self, item: Item, place: str) -> bool:
        """Whether an image has a row."""
        return self._row(item, place) is not None

    def _row(self, item: Item, place: str) -> Row | None:
        row = self._known.find(key_of(place, stored(item.image)))
        # Its row may have gone with a file that moved.
        return None if row is None or row.id in self._changing else row

    def _decided(self, item: Item, place: str) -> Awaited | None:
        row = self._row(item, place)
        now = stat_of(item)
        if row is not None:
            self._known.see(row)
            if item.url is not None or (item.path is not None and now == row.stat):
                return self._as_before(item, row, row.stat)
        sha256 = self._content_of(item, now, row)
        if not sha256:
            return Awaited(row, now or NO_STAT)
        content = content_of(sha256)
        if row is not None and row.content == content:
            return self._as_before(item, row, now or NO_STAT)
        other, is_gone = self._with_content(content)
        if other is None:
            return Awaited(row, now or NO_STAT)
        return self._taken_over(item, place, now or NO_STAT, row, other, is_gone=is_gone)

    def _content_of(self, item: Item, now: Stat | None, row: Row | None) -> str:
        """The sha256 of an image where the catalogue may know it; empty when that is not worth a look."""
        if item.data is not None:
            return hashlib.sha256(item.data).hexdigest() if row is not None else ""
        if item.path is None or now is None:
            return ""
        if row is None and not self._known.has_size(now.bytes):
            return ""
        try:
            with open(item.path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except (OSError, ValueError):
            return ""  # who reads it for the networks tells what is wrong

    def _as_before(self, item: Item, row: Row, now: Stat) -> Awaited | None:
        """An image whose content is what it was."""
        if self._wanted & ~row.parts:
            return Awaited(row, now, keeps=True)
        if row.is_deleted or now != row.stat:
            values = {"deleted": None, **columns_of(item, now)}
            self._copy(Copied(row.id, row.id, values, item.image))
        self._count("back" if row.is_deleted else "unchanged")
        return None

    def _taken_over(
        self, item: Item, place: str, now: Stat, row: Row | None, other: Row, *, is_gone: bool
    ) -> Awaited | None:
        """An image whose content another row has."""
        is_moved = row is None and is_gone and bool(place)
        if is_moved:
            self._known.see(other)
        if self._wanted & ~other.parts:
            return Awaited(other, now, keeps=True, is_moved=True) if is_moved else Awaited(row, now)
        values = {"deleted": None, "path": place, **columns_of(item, now)}
        if is_moved:
            row = other
        self._copy(Copied(other.id, None if row is None else row.id, values, item.image))
        if row is not None:
            self._changing.add(row.id)
        self._count("moved" if is_moved else "new" if row is None else "changed")
        return None

    def _with_content(self, content: Content) -> tuple[Row | None, bool]:
        """A row with this content and whether its file is gone; rather one whose file is."""
        first = None
        for row in self._known.with_content(content):
            if row.id in self._changing:
                continue
            if self._is_gone(row):
                return row, True
            first = first or row
        return first, False

    def _is_gone(self, row: Row) -> bool:
        """Whether the file of a row is where it was no more."""
        if row.is_deleted:
            return True
        if self._missing is not None:
            return bool(self._missing[row.place])
        self._asked += 1
        if self._asked > _ASKED_AT_MOST:
            # Whole folders moved: to look at all files once is quicker than to ask for one path after the other.
            self._missing = self._known.missing(self._catalog)
            return bool(self._missing[row.place])
        path = self._catalog.fetch([row.id], ["path"])["path"][0].as_py()
        return bool(path) and is_missing(path)


def columns_of(item: Item, now: Stat) -> dict[str, Any]:
    """The columns that tell which image it is, but for its path."""
    return {
        "image": stored(item.image),
        "bytes": now.bytes if now.bytes >= 0 else None,
        "modified_ns": now.modified_ns if now.modified_ns >= 0 else None,
    }


def stat_of(item: Item) -> Stat | None:
    """Size and time of a file, size alone of bytes in memory; None when there is nothing to look at."""
    if item.data is not None:
        return Stat(len(item.data), -1)
    if item.path is None:
        return None
    try:
        found = os.stat(item.path)  # noqa: PTH116
    except (OSError, ValueError):
        return None
    return Stat(found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None
