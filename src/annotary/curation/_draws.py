"""Chance that belongs to a pair: a number that follows from a seed and what the pair is known by, and nothing else.

The bytes b[0..n) of a text are the polynomial of b[i] + 1 in an odd number, modulo 2^64; that, the seed and the other
texts of the pair are mixed by the finaliser of MurmurHash3 (Appleby, public domain), of which every bit depends on
every bit. A draw is the upper 53 bits as a number in [0, 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from annotary.curation._arrays import buffer_of

if TYPE_CHECKING:
    import pyarrow as pa

Hashes = npt.NDArray[np.uint64]

BASE = 0x9E3779B97F4A7C15
"""The odd number of the polynomial: 2^64 divided by the golden ratio."""

_STEP = 0xD1342543DE82EF95
_ABSENT = 0x2545F4914F6CDD1D
_AT_ONCE = 2**20  # bytes, of which the powers are kept
_MASK = 2**64 - 1


def draws(seed: int, columns: Sequence[pa.Array]) -> npt.NDArray[np.float64]:
    """A number for each pair, float64[n] in [0, 1), spread evenly.

    Args:
        seed: Another seed, other numbers; any integer.
        columns: What a pair is known by: texts, or what can be told as text; all of the same length.
    """
    found = hashes(seed, columns)
    return (found >> np.uint64(11)).astype(np.float64) * 2.0**-53


def hashes(seed: int, columns: Sequence[pa.Array]) -> Hashes:
    """A hash for each pair, uint64[n].

    Args:
        seed: Another seed, other hashes.
        columns: What a pair is known by.
    """
    found = np.full(len(columns[0]), _mixed_number(seed), np.uint64)
    for column in columns:
        texts = buffer_of(column)
        own = polynomials(texts.data, texts.offsets)
        if texts.is_valid is not None:
            own = np.where(texts.is_valid, own, np.uint64(_ABSENT))
        found = mixed(found * np.uint64(_STEP) + own)
    return found


def polynomials(data: npt.NDArray[np.uint8], offsets: npt.NDArray[Any]) -> Hashes:
    """The polynomial of each text, uint64[n].

    Args:
        data: uint8[bytes].
        offsets: int[n + 1].
    """
    starts = np.asarray(offsets, np.int64)
    found = np.zeros(len(starts) - 1, np.uint64)
    powers, inverse = _powers(_AT_ONCE)
    first = 0
    while first < len(found):
        last = int(np.searchsorted(starts, starts[first] + _AT_ONCE, "right")) - 1
        if last == first:
            found[first] = _polynomial_of_long(data[starts[first] : starts[first + 1]])
            first += 1
            continue
        own = starts[first : last + 1] - starts[first]
        terms = data[starts[first] : starts[last]].astype(np.uint64)
        terms += np.uint64(1)
        terms *= powers[: len(terms)]
        sums = np.zeros(len(terms) + 1, np.uint64)
        np.cumsum(terms, out=sums[1:])
        found[first:last] = (sums[own[1:]] - sums[own[:-1]]) * inverse[own[:-1]]
        first = last
    return found


def _polynomial_of_long(data: npt.NDArray[np.uint8]) -> int:
    """The polynomial of one text, piece by piece."""
    found = 0
    powers, _ = _powers(_AT_ONCE)
    for start in range(0, len(data), _AT_ONCE):
        terms = data[start : start + _AT_ONCE].astype(np.uint64) + np.uint64(1)
        terms *= powers[: len(terms)]
        found += int(terms.sum()) * pow(BASE, start, 2**64)
    return found & _MASK


def mixed(values: Hashes) -> Hashes:
    """The finaliser of MurmurHash3, of each value."""
    values = values ^ (values >> np.uint64(33))
    values = values * np.uint64(0xFF51AFD7ED558CCD)
    values = values ^ (values >> np.uint64(33))
    values = values * np.uint64(0xC4CEB9FE1A85EC53)
    result: Hashes = values ^ (values >> np.uint64(33))
    return result


def _mixed_number(value: int) -> int:
    return int(mixed(np.array([(value + BASE) & _MASK], np.uint64))[0])


@lru_cache(maxsize=2)
def _powers(count: int) -> tuple[Hashes, Hashes]:
    """The powers 0..count of the base, and of its inverse."""
    return _power_table(BASE, count), _power_table(pow(BASE, -1, 2**64), count)


def _power_table(base: int, count: int) -> Hashes:
    table = np.ones(count + 1, np.uint64)
    table[1:] = base
    result: Hashes = np.cumprod(table, dtype=np.uint64)
    return result
