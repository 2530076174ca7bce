"""Rows with equal keys, and which of them stay: the first, as if rows came one after the other.

A row stays if no row that stays before it is the same in any of the ways. With one way that is the first of each group
of equal rows. With several it depends on other groups: of three rows where the second has the text of the first and the
third the address of the second, the third stays, because the second goes. So rows are settled in rounds: a row before
which nothing is unsettled in any of its groups stays, and what comes behind it in its groups goes. What a few rounds
leave is settled row by row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from annotary.curation._dedup_found import GONE, STAYS, Found, FoundFiles, Numbers, Standing
from annotary.curation._dedup_keys import KeyFile, Keys, bucket
from annotary.errors import OutputError
from annotary.sources._paths import reason

BUCKET_ROWS = 2**20
"""Rows whose keys are compared at a time, about 100 bytes each. Rows with the same key are never parted."""

MOST_BUCKET_ROWS = 2**22

_ROWS_OF_FILE = 64

FEW_ROWS = 200_000
"""So few unsettled rows are settled one after the other."""

MOST_ROUNDS = 40

_KEPT, _BEHIND, _WAYS = 2, (3, 4), 16
"""What stands for a row while its stage lasts: it stays; something unsettled is before it, in this round or the one
before; from 16 on, it goes by that way."""


class Groups(NamedTuple):
    """Groups of two rows or more that are the same.

    Attributes:
        rows: int64[n], group by group, ascending in each.
        is_first: bool[n], whether a group begins.
    """

    rows: Numbers
    is_first: npt.NDArray[np.bool_]

    @property
    def numbers(self) -> Numbers:
        """int64[n], the group of each, from 0."""
        return np.cumsum(self.is_first) - 1


def equal_rows(keys: Keys) -> Groups:
    """The groups of rows with equal keys.

    Args:
        keys: Of rows, ascending.
    """
    high, low, rows = keys.take(np.argsort(keys.high, kind="stable"))
    is_same_high = high[1:] == high[:-1]
    is_same = is_same_high & (low[1:] == low[:-1])
    if (is_same_high & ~is_same).any():
        high, low, rows = keys.take(np.lexsort((keys.rows, keys.low, keys.high)))
        is_same = (high[1:] == high[:-1]) & (low[1:] == low[:-1])
    is_first = np.ones(len(rows), np.bool_)
    is_first[1:] = ~is_same
    is_one_of_many = np.zeros(len(rows), np.bool_)
    is_one_of_many[1:] |= is_same
    is_one_of_many[:-1] |= is_same
    return Groups(rows[is_one_of_many], is_first[is_one_of_many])


def buckets(files: Sequence[KeyFile], rows: int, standing: Standing) -> Iterator[Keys]:
    """The keys of all rows that have not gone, a bucket at a time.

    Args:
        files: Of one way, of all parts.
        rows: How many rows there are.
        standing: Which rows have gone.
    """
    count = bucket_count(rows, len(files))
    for number in range(count):
        keys = bucket(files, number, count)
        is_left = standing.left(keys.rows)
        yield keys if is_left.all() else keys.take(is_left)


def bucket_count(rows: int, files: int) -> int:
    """In how many buckets rows are gone through.

    Args:
        rows: How many there are.
        files: In how many files their keys are. Each is opened for each bucket, so that of very many files fewer and
            larger buckets are made.
    """
    size = min(MOST_BUCKET_ROWS, max(BUCKET_ROWS, _ROWS_OF_FILE * files))
    return -(-max(1, rows) // size)


def settle_one(groups: Iterable[Groups], way: int, standing: Standing, found: FoundFiles) -> None:
    """Of each group let all but the first go.

    Args:
        groups: All groups of a single way.
        way: The number of its reason.
        standing: Which rows have gone; it is told which go.
        found: Gets them.
    """
    for group in groups:
        firsts = group.rows[group.is_first]
        going = group.rows[~group.is_first]
        found.write(Found.one_way(going, firsts[group.numbers[~group.is_first]], way))
        standing.go(going)


class Settling:
    """Several ways whose groups are settled together.

    Args:
        ways: The number of the reason of each, in the order in which they are told.
        folder: For temporary files, 8 bytes a row of a group and way.
        standing: Which rows have gone; it is told which go.
        few: So few unsettled rows are settled one after the other.
    """

    def __init__(
        self, ways: Sequence[int], folder: Path, standing: Standing, *, few: int | None = None
    ) -> None:
        self._ways = ways
        self._folder = folder
        self._state = standing.of
        self._few = FEW_ROWS if few is None else few
        self._files: list[list[Path]] = [[] for _ in ways]

    def add(self, place: int, groups: Groups) -> None:
        """Add groups of a way.

        Args:
            place: Of the way among the ways.
            groups: Some of its groups.
        """
        if not len(groups.rows):
            return
        path = self._folder / f"{place}-{len(self._files[place]):06d}.groups"
        try:
            # A group's first row is told by its sign.
            path.write_bytes(np.where(groups.is_first, ~groups.rows, groups.rows).tobytes())
        except OSError as failed:
            raise OutputError(f"cannot write {path}: {reason(failed)}") from failed
        self._files[place].append(path)

    def settle(self, found: FoundFiles) -> None:
        """Settle all rows, and write those that go."""
        for number in range(MOST_ROUNDS):
            left = self._look(_BEHIND[number % 2])
            if not left:
                break
            if left <= self._few or number + 1 == MOST_ROUNDS:
                self._settle_few()
                break
            self._keep(_BEHIND[number % 2])
        self._tell(found)

    def _look(self, behind: int) -> int:
        """Let go what is behind one that stays, and mark what is behind something unsettled; how much is unsettled."""
        left = 0
        for groups in self._groups():
            state = self._state[groups.rows]
            of = _kept_before(groups, state)
            is_left = _is_unsettled(state)
            self._state[groups.rows[is_left & (of >= 0)]] = GONE
            places = np.flatnonzero(is_left & (of < 0))
            group = groups.numbers[places]
            self._state[groups.rows[places[1:][group[1:] == group[:-1]]]] = behind
            left += len(places)
        return left

    def _keep(self, behind: int) -> None:
        """Keep what is unsettled and was not marked in this round."""
        for groups in self._groups():
            state = self._state[groups.rows]
            self._state[groups.rows[_is_unsettled(state) & (state != behind)]] = _KEPT

    def _settle_few(self) -> None:
        """Settle one row after the other."""
        groups_of: dict[int, list[int]] = {}
        count = 0
        for groups in self._groups():
            places = np.flatnonzero(_is_unsettled(self._state[groups.rows]))
            numbers = (groups.numbers[places] + count).tolist()
            for row, number in zip(groups.rows[places].tolist(), numbers, strict=True):
                groups_of.setdefault(row, []).append(number)
            count += int(groups.is_first.sum())
        is_taken: set[int] = set()
        for row in sorted(groups_of):
            own = groups_of[row]
            if is_taken.isdisjoint(own):
                self._state[row] = _KEPT
                is_taken.update(own)
            else:
                self._state[row] = GONE

    def _tell(self, found: FoundFiles) -> None:
        """Write what goes, with the first way in which it is the same as one that stays."""
        for place in reversed(range(len(self._ways))):
            for groups in self._groups(place):
                of = _kept_before(groups, self._state[groups.rows])
                self._state[groups.rows[of >= 0]] = _WAYS + place
        for place, way in enumerate(self._ways):
            for groups in self._groups(place):
                state = self._state[groups.rows]
                of = _kept_before(groups, state)
                is_told = (of >= 0) & (state == _WAYS + place)
                found.write(Found.one_way(groups.rows[is_told], of[is_told], way))
        for groups in self._groups():
            state = self._state[groups.rows]
            self._state[groups.rows[state == _KEPT]] = STAYS
            self._state[groups.rows[state >= _WAYS]] = GONE
        for path in (path for files in self._files for path in files):
            path.unlink()

    def _groups(self, place: int | None = None) -> Iterator[Groups]:
        """The groups of a way, or of all."""
        chosen = self._files if place is None else [self._files[place]]
        for path in (path for files in chosen for path in files):
            signed = np.fromfile(path, np.int64)
            is_first = signed < 0
            yield Groups(np.where(is_first, ~signed, signed), is_first)


def _is_unsettled(state: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    unsettled: npt.NDArray[np.bool_] = (
        (state == STAYS) | (state == _BEHIND[0]) | (state == _BEHIND[1])
    )
    return unsettled


def _kept_before(groups: Groups, state: npt.NDArray[np.uint8]) -> Numbers:
    """For each row the one of its group that stays and comes before it, or -1."""
    if not len(groups.rows):
        return groups.rows
    number = groups.numbers
    kept = np.full(int(number[-1]) + 1, -1, np.int64)
    is_kept = state == _KEPT
    kept[number[is_kept]] = groups.rows[is_kept]
    of = kept[number]
    return np.where(of < groups.rows, of, -1)
