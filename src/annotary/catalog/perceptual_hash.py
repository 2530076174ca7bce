"""All pairs of 64-bit hashes that differ in few bits, found exactly and without comparing every pair.

The method of Manku, Jain and Das Sarma ("Detecting Near-Duplicates for Web Crawling", WWW 2007, section 3): the 64 bits
are cut into bands; two hashes that differ in at most N bits have at least k of N + k bands in common, so for every
choice of k bands the hashes are sorted by those and only neighbours with equal bands are compared. How many bands are
best follows from how many hashes there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise
from math import comb
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.uint64]

MOST_DISTANCE = 16
"""Above this half of all pictures would be near to some other, and no bands help."""

_IN_MEMORY = 2**24
"""Hashes that are sorted at a time: 128 MiB, and about as much again while they are."""

_AT_ONCE = 2**20
"""Places in the sorted hashes that are compared at a time."""

# Nanoseconds, measured on one core: permuting and sorting a hash, and comparing two.
_SORTING, _COMPARING = 40.0, 8.0


class HashPairs(NamedTuple):
    """Pairs of near hashes.

    Attributes:
        first: uint64[p], the smaller hash.
        second: uint64[p], the greater one.
        distance: uint8[p], bits in which they differ, 1..64.
    """

    first: Values
    second: Values
    distance: npt.NDArray[np.uint8]


def near_hashes(hashes: Values, most: int, *, in_memory: int = _IN_MEMORY) -> Iterator[HashPairs]:
    """Every pair of different hashes that differ in at most `most` bits, each pair once.

    Args:
        hashes: uint64[n], all different, in any order; it may be a file mapped into memory.
        most: 0..16 bits.
        in_memory: How many hashes are sorted at a time. Memory is about 30 bytes a hash of these; more hashes are gone
            through several times.

    Yields:
        The pairs, a block at a time, in no particular order.

    Raises:
        ValueError: `most` is out of range.
    """
    if not 0 <= most <= MOST_DISTANCE:
        raise ValueError(f"most must be 0..{MOST_DISTANCE} bits, but got {most}")
    if most == 0 or len(hashes) < 2:
        return
    bands = _bands(most + _shared_bands(len(hashes), most))
    for chosen in combinations(range(len(bands)), len(bands) - most):
        order = [bands[i] for i in chosen] + [b for i, b in enumerate(bands) if i not in chosen]
        bits = sum(bands[i].bits for i in chosen)
        # Of all tables that a pair meets in, the first tells it: there, every band before the last chosen one that was
        # not chosen differs.
        differing = [bands[i] for i in range(chosen[-1]) if i not in chosen]
        for rows in _parts(hashes, order, bits, in_memory):
            rows.sort()
            for first, second in _neighbours(rows, bits, most):
                pair = HashPairs(
                    _restored(first, order), _restored(second, order), _bits(first, second)
                )
                changed = pair.first ^ pair.second
                is_first = np.ones(len(changed), np.bool_)
                for band in differing:
                    is_first &= (changed >> np.uint64(band.shift)) & np.uint64(band.mask) != 0
                if is_first.any():
                    yield _ordered(pair, is_first)


class _Band(NamedTuple):
    """Neighbouring bits of a hash, counted from the lowest."""

    shift: int
    bits: int

    @property
    def mask(self) -> int:
        return (1 << self.bits) - 1


def _bands(count: int) -> list[_Band]:
    edges = [64 * i // count for i in range(count + 1)]
    return [_Band(low, high - low) for low, high in pairwise(edges)]


def _shared_bands(count: int, most: int) -> int:
    """How many bands hashes must share, so that the work is least if they are spread evenly."""

    def work(shared: int) -> float:
        bands = most + shared
        pairs = count / 2 ** (64 * shared / bands + 1)
        return comb(bands, shared) * (_SORTING + pairs * _COMPARING)

    return min(range(1, 9), key=work)


def _parts(hashes: Values, order: list[_Band], bits: int, in_memory: int) -> Iterator[Values]:
    """The hashes with their bands in another order, from the highest bits down; equal leading bits come together."""
    cuts = 0
    while len(hashes) >> cuts > in_memory and cuts < bits:
        cuts += 1
    for part in range(1 << cuts):
        found = []
        for start in range(0, len(hashes), _AT_ONCE):
            rows = _permuted(np.asarray(hashes[start : start + _AT_ONCE], np.uint64), order)
            found.append(rows[rows >> np.uint64(64 - cuts) == part] if cuts else rows)
        yield np.concatenate(found)


def _permuted(rows: Values, order: list[_Band]) -> Values:
    result = np.zeros(len(rows), np.uint64)
    left = 64
    for band in order:
        left -= band.bits
        result |= ((rows >> np.uint64(band.shift)) & np.uint64(band.mask)) << np.uint64(left)
    return result


def _restored(rows: Values, order: list[_Band]) -> Values:
    """What `_permuted` was given."""
    result = np.zeros(len(rows), np.uint64)
    left = 64
    for band in order:
        left -= band.bits
        result |= ((rows >> np.uint64(left)) & np.uint64(band.mask)) << np.uint64(band.shift)
    return result


def _neighbours(rows: Values, bits: int, most: int) -> Iterator[tuple[Values, Values]]:
    """Pairs of sorted rows that share their first bits and differ in at most `most` of the others."""
    shift = np.uint64(64 - bits)
    for start in range(0, len(rows) - 1, _AT_ONCE):
        places = np.arange(start, min(start + _AT_ONCE, len(rows)))
        step = 1
        while len(places):
            places = places[: np.searchsorted(places, len(rows) - step)]
            first, second = rows[places], rows[places + step]
            is_shared = (first ^ second) >> shift == 0
            places = places[is_shared]
            first, second = first[is_shared], second[is_shared]
            is_near = _bits(first, second) <= most
            if is_near.any():
                yield first[is_near], second[is_near]
            step += 1


def _bits(first: Values, second: Values) -> npt.NDArray[np.uint8]:
    """In how many bits hashes differ."""
    changed = first ^ second
    if hasattr(np, "bitwise_count"):
        counted: npt.NDArray[np.uint8] = np.bitwise_count(changed)
        return counted
    # NumPy before 2.0 counts no bits: by adding neighbours, as in Warren, "Hacker's Delight", figure 5-2.
    for width, mask in ((1, 0x5555555555555555), (2, 0x3333333333333333), (4, 0x0F0F0F0F0F0F0F0F)):
        chosen = np.uint64(mask)
        changed = (changed & chosen) + ((changed >> np.uint64(width)) & chosen)
    return ((changed * np.uint64(0x0101010101010101)) >> np.uint64(56)).astype(np.uint8)


def _ordered(pairs: HashPairs, chosen: npt.NDArray[np.bool_]) -> HashPairs:
    """Some of the pairs, each with its smaller hash first."""
    first, second = pairs.first[chosen], pairs.second[chosen]
    return HashPairs(np.minimum(first, second), np.maximum(first, second), pairs.distance[chosen])
