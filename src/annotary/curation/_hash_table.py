"""A table of exact 64-bit keys that looks up whole arrays of them at once, each with one look."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
Values = NDArray[np.uint32]

EMPTY: Final = 0x2020202020202020
"""The key of a free slot. Eight spaces are no piece of a word, and a pair of ids is below it."""

NONE: Final = 0xFFFFFFFF
"""The value of a key that is not there."""

MULTIPLIER: Final = 0x9E3779B97F4A7C15
"""2^64 divided by the golden ratio, odd: the upper bits of the product are the hash (Knuth, TAOCP volume 3, 6.4)."""

_KEYS_PER_BUCKET = 3
_FULLEST = 0.8
_TRIES = 256


class HashTable(NamedTuple):
    """Hash and displace (Belazzougui, Botelho, Dietzfelbinger 2009), with the keys kept.

    A first hash puts each key in a bucket of a few keys. Every bucket has a choice among 256 second hashes, made such
    that no two keys share a slot. So a key is in one slot or nowhere, and looking up is the same few array operations
    for all keys, without a second round for those that clash. Keys are compared whole: hashes only say where to look.

    Attributes:
        keys: One a slot, `EMPTY` where the slot is free.
        values: One a slot.
        choices: One a bucket: which of the second hashes its keys have.
        rest: Keys of buckets for which no choice was found, ascending; with a sound hash there are none.
        rest_values: Their values.
        multiplier: What a key is multiplied with for the first hash.
    """

    keys: Keys
    values: Values
    choices: NDArray[np.uint8]
    rest: Keys
    rest_values: Values
    multiplier: int

    @classmethod
    def build(cls, keys: Keys, values: Values, *, multiplier: int = MULTIPLIER) -> HashTable:
        """A table of distinct keys.

        Args:
            keys: Distinct, none of them `EMPTY`.
            values: As many, none of them `NONE`.
            multiplier: Another hash, to see that results do not depend on it.
        """
        slots = 1 << max(4, int(keys.size / _FULLEST).bit_length())
        buckets = 1 << max(2, (keys.size // _KEYS_PER_BUCKET).bit_length())
        table = cls(
            np.full(slots, EMPTY, np.uint64),
            np.full(slots, NONE, np.uint32),
            np.zeros(buckets, np.uint8),
            np.zeros(0, np.uint64),
            np.zeros(0, np.uint32),
            multiplier,
        )
        bucket = _hashed(keys, np.uint64(multiplier), buckets)
        order = np.argsort(bucket, kind="stable")
        sizes = np.bincount(bucket, minlength=buckets)
        first = np.cumsum(sizes) - sizes
        left = []
        # Large buckets first, while there is room.
        for size in range(int(sizes.max(initial=0)), 0, -1):
            same = np.flatnonzero(sizes == size)
            members = order[first[same][:, None] + np.arange(size)]
            left.append(members[table._place(same, keys[members], values[members])].reshape(-1))
        rest = np.concatenate(left) if left else np.zeros(0, np.int64)
        rest = rest[np.argsort(keys[rest])]
        return table._replace(rest=keys[rest], rest_values=values[rest])

    def _place(self, buckets: NDArray[np.int64], keys: Keys, values: Values) -> NDArray[np.int64]:
        """Find a choice for buckets of one size; rows of keys are buckets. Returns the rows for which there is none."""
        rows = np.arange(buckets.size)
        claims = np.empty(self.keys.size, np.int64)
        for choice in range(_TRIES if keys.shape[1] < _TRIES else 0):
            if not rows.size:
                break
            slots = _hashed(keys[rows], _SECOND[choice], self.keys.size)
            number = np.arange(slots.size).reshape(slots.shape)
            # Whoever claims a slot last has it; a bucket that has all the slots that it claims is placed.
            claims[slots] = number
            is_placed = ((claims[slots] == number) & (self.keys[slots] == np.uint64(EMPTY))).all(
                axis=1
            )
            placed = rows[is_placed]
            self.keys[slots[is_placed]] = keys[placed]
            self.values[slots[is_placed]] = values[placed]
            self.choices[buckets[placed]] = choice
            rows = rows[~is_placed]
        return rows

    def find(self, wanted: Keys) -> Values:
        """The values of many keys, `NONE` for those that are not there."""
        bucket = _hashed(wanted, np.uint64(self.multiplier), self.choices.size)
        slots = _hashed(wanted, _SECOND.take(self.choices.take(bucket)), self.keys.size)
        is_other = self.keys.take(slots) != wanted
        # All bits set is `NONE`; this is several times faster than assigning with a mask.
        values = self.values.take(slots)
        values |= np.negative(is_other.view(np.uint8).astype(np.uint32))
        if self.rest.size:
            other = np.flatnonzero(is_other)
            asked = wanted.take(other)
            at = np.minimum(np.searchsorted(self.rest, asked), self.rest.size - 1)
            is_there = self.rest.take(at) == asked
            values[other[is_there]] = self.rest_values.take(at[is_there])
        return values

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What has to be kept, all but the multiplier, by name."""
        return {
            "keys": self.keys,
            "values": self.values,
            "choices": self.choices,
            "rest": self.rest,
            "rest_values": self.rest_values,
        }


def pair_keys(states: Values, ids: Values) -> Keys:
    """States and what follows them as one key each: exact, as both have 32 bits."""
    keys = states.astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= ids
    return keys


def _hashed(keys: Keys, multiplier: np.uint64 | Keys, size: int) -> NDArray[np.int64]:
    """The upper bits of products, as places in a table whose size is a power of two."""
    products = keys * multiplier
    products >>= np.uint64(65 - size.bit_length())
    return products.view(np.int64)


def _second_hashes() -> Keys:
    # Steps of SplitMix64 (Steele, Lea, Flood 2014) from 0, made odd: fixed numbers, as indices are kept on disk.
    numbers = []
    state, mask = 0, (1 << 64) - 1
    for _ in range(_TRIES):
        state = (state + MULTIPLIER) & mask
        mixed = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & mask
        mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) & mask
        numbers.append((mixed ^ mixed >> 31) | 1)
    return np.array(numbers, np.uint64)


_SECOND: Final = _second_hashes()
