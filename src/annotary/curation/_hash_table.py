"""A table of exact 64-bit keys that looks up whole arrays of them at once."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
Values = NDArray[np.uint32]

EMPTY: Final = 0x2020202020202020
"""The key of a free slot. Eight spaces are no piece of a word, and as two ids of 32 bits it is beyond every number of states."""

NONE: Final = 0xFFFFFFFF
"""The value of a key that is not there."""

MULTIPLIER: Final = 0x9E3779B97F4A7C15
"""2^64 divided by the golden ratio, odd: the upper bits of the product are the hash (Knuth, TAOCP volume 3, 6.4)."""

_SLOTS_PER_KEY = 3


class HashTable(NamedTuple):
    """Open addressing with linear probing. Keys are compared whole: the hash only says where to begin.

    Attributes:
        keys: One a slot, `EMPTY` where the slot is free; the last slot is always free.
        values: One a slot.
        shift: How far a product is shifted right to give the slot where looking begins.
        multiplier: What a key is multiplied with.
    """

    keys: Keys
    values: Values
    shift: int
    multiplier: int

    @classmethod
    def build(cls, keys: Keys, values: Values, *, multiplier: int = MULTIPLIER) -> HashTable:
        """A table of distinct keys.

        In the order of their slots every key takes its own slot, or the one after the key before it if that is
        further. Then all slots from a key's own to the one it has are taken, as linear probing needs, and no key
        wraps round, because the table goes on behind its last slot for as long as it takes.

        Args:
            keys: Distinct, none of them `EMPTY`.
            values: As many, none of them `NONE`.
            multiplier: Another hash, to see that results do not depend on it.
        """
        bits = max(4, int(_SLOTS_PER_KEY * keys.size).bit_length())
        shift = 64 - bits
        home = ((keys * np.uint64(multiplier)) >> np.uint64(shift)).astype(np.int64)
        order = np.argsort(home, kind="stable")
        rank = np.arange(keys.size)
        slots = np.maximum.accumulate(home[order] - rank) + rank
        last = int(slots[-1]) if keys.size else 0
        size = max(1 << bits, last + 1) + 1
        table = cls(
            np.full(size, EMPTY, np.uint64), np.full(size, NONE, np.uint32), shift, multiplier
        )
        table.keys[slots] = keys[order]
        table.values[slots] = values[order]
        return table

    def find(self, wanted: Keys) -> Values:
        """The values of many keys, `NONE` for those that are not there."""
        slots = wanted * np.uint64(self.multiplier)
        slots >>= np.uint64(self.shift)
        places = slots.view(np.int64)
        seen = self.keys.take(places)
        values = self.values.take(places)
        other = np.flatnonzero(seen != wanted)
        if not other.size:
            return values
        taken = seen.take(other) != np.uint64(EMPTY)
        values[other] = NONE
        open_ones = other[taken]
        places = places.take(open_ones)
        asked = wanted.take(open_ones)
        while open_ones.size:
            places += 1
            seen = self.keys.take(places)
            is_found = seen == asked
            values[open_ones[is_found]] = self.values.take(places[is_found])
            goes_on = ~is_found & (seen != np.uint64(EMPTY))
            open_ones, places, asked = open_ones[goes_on], places[goes_on], asked[goes_on]
        return values


def pair_keys(states: Values, ids: Values) -> Keys:
    """States and what follows them as one key each: exact, as both have 32 bits."""
    keys = states.astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= ids
    return keys
