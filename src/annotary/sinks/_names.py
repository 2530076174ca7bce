"""A set of names that stays small when there are millions of them."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt


class NameSet:
    """Names by a 64-bit digest, in a table with open addressing: 12 to 24 bytes a name.

    Two different names share a digest with probability n² / 2⁶⁵: 3e-8 for a million names.
    """

    def __init__(self) -> None:
        self._table = np.zeros(1024, dtype=np.uint64)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, name: str) -> bool:
        """Whether a name was added. Another thread may add other names meanwhile."""
        digest, table = _digest(name), self._table
        return int(table[_place(table, digest)]) == digest

    def add(self, name: str) -> bool:
        """Add a name; true when it is new."""
        digest, table = _digest(name), self._table
        place = _place(table, digest)
        if int(table[place]) == digest:
            return False
        table[place] = digest
        self._count += 1
        if self._count * 3 > len(table) * 2:
            self._table = _grown(table)
        return True


def _place(table: npt.NDArray[np.uint64], digest: int) -> int:
    """The place of a digest, or the empty place where it belongs."""
    mask = len(table) - 1
    place = digest & mask
    while int(table[place]) not in (0, digest):
        place = (place + 1) & mask
    return place


def _grown(table: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    larger = np.zeros(len(table) * 2, dtype=np.uint64)
    for digest in table[table != 0].tolist():
        larger[_place(larger, digest)] = digest
    return larger


def _digest(name: str) -> int:
    """64 bits of the name's BLAKE2b digest, never 0, which marks an empty place."""
    encoded = name.encode("utf-8", "backslashreplace")
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little") or 1
