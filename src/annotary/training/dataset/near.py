"""Which pictures are the same, or nearly so: for leaving out copies, and training images near to validation images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from annotary.catalog.perceptual_hash import near_hashes
from annotary.tasks.perceptual_hash import distance

GREY, COLOURED = 6, 24
"""Up to which chroma a picture is grey, and from which on it has colours, as for `annotary duplicates`: a photo without
its colours has the hash of the photo, but other tags."""


class Copy(NamedTuple):
    """A picture that is the same as an earlier one.

    Attributes:
        of: The place of the earlier one, which stays.
        bits: In which their hashes differ; -1 where the files are equal.
    """

    of: int
    bits: int


def copies(
    sha256: Sequence[bytes], phash: Sequence[int | None], chroma: Sequence[int], most: int
) -> dict[int, Copy]:
    """The pictures that are the same as an earlier one, which itself is the same as none.

    So groups are no chains: whatever goes is itself within the limit of one that stays.

    Args:
        sha256: Of the files.
        phash: The perceptual hashes; None where a picture is flat, and only equal files are the same.
        chroma: How far pictures are from grey, 0..255.
        most: Bits in which hashes of the same picture may differ.
    """
    found: dict[int, Copy] = {}
    first: dict[bytes, int] = {}
    for place, digest in enumerate(sha256):
        owner = first.setdefault(digest, place)
        if owner != place:
            found[place] = Copy(owner, -1)
    near = _neighbours([value for value in phash if value is not None], most)
    kept: dict[int, list[int]] = {}
    for place, value in enumerate(phash):
        if value is None or place in found:
            continue
        candidates = [
            (distance(value, other), owner)
            for other in (value, *near.get(value, ()))
            for owner in kept.get(other, ())
            if _alike(chroma[place], chroma[owner])
        ]
        if candidates:
            bits, owner = min(candidates)
            found[place] = Copy(owner, bits)
        else:
            kept.setdefault(value, []).append(place)
    for place, copy in found.items():
        # An equal file may be of a picture that a later look found to be a copy itself.
        while copy.of in found:
            copy = Copy(found[copy.of].of, copy.bits)
        found[place] = copy
    return found


def near_any(
    phash: Sequence[int | None], others: Sequence[int | None], most: int
) -> dict[int, tuple[int, int]]:
    """The pictures that are near to any of some others: place to the place of the nearest other, and bits.

    Args:
        phash: Of the pictures; one without is near to none.
        others: Of the others.
        most: Bits in which near ones may differ.
    """
    owner: dict[int, int] = {}
    for place, value in enumerate(others):
        if value is not None:
            owner.setdefault(value, place)
    every = [value for value in (*phash, *others) if value is not None]
    near = _neighbours(every, most)
    found = {}
    for place, value in enumerate(phash):
        if value is None:
            continue
        candidates = [
            (distance(value, other), owner[other])
            for other in (value, *near.get(value, ()))
            if other in owner
        ]
        if candidates:
            bits, which = min(candidates)
            found[place] = (which, bits)
    return found


def _neighbours(hashes: Sequence[int], most: int) -> dict[int, list[int]]:
    """The other hashes that are near to each; hashes that have none are not in it."""
    found: dict[int, list[int]] = {}
    values: npt.NDArray[np.uint64] = np.unique(np.array(hashes, np.uint64))
    for pairs in near_hashes(values, most):
        for one, other in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True):
            found.setdefault(one, []).append(other)
            found.setdefault(other, []).append(one)
    return found


def _alike(one: int, other: int) -> bool:
    """Whether both may be the same picture by their colours."""
    return min(one, other) > GREY or max(one, other) < COLOURED
