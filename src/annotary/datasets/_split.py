"""A split of images into parts: seeded, even in every label, and the same again when images are added.

An image has a position in 0..1 that follows from the seed and its content alone. Every label has cuts, and how many of
them lie before the position tells the part. When a label is split first, its cuts are put between the positions of its
images so that each part has its share, exactly but for rounding, and as near as that allows to the shares themselves.
From then on the cuts stay: images that come later are split by them, and no image moves. The price: later images fill
the parts as chance has it, and a dataset that is made anew of other images has its cuts elsewhere, by a little.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

DEFAULT_SPLIT = "train=0.8,val=0.1,test=0.1"

UNSURE = "unsure"
"""Where images go that no label is sure of; no part may have the name."""

_TAKEN = frozenset({UNSURE, "annotary", "dataset", "failures", "labels", "metadata", "readme"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_BITS = 52
"""Of a position, so that 1 and all positions are exact in a float64."""
_STEP = 2.0**-_BITS

Positions = npt.NDArray[np.float64]


def parse_shares(text: str) -> dict[str, float]:
    """The parts of "train=0.8,val=0.1,test=0.1", in their order.

    Raises:
        ValueError: It is something else, a name cannot be that of a folder, or the shares do not add up to 1.
    """
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, told = (piece.strip() for piece in part.partition("="))
        try:
            share = float(told)
        except ValueError:
            raise ValueError(f"split must be like {DEFAULT_SPLIT}, but got {text!r}") from None
        if not _NAME.fullmatch(name) or name.lower() in _TAKEN:
            raise ValueError(f"split has a part {name!r}, which cannot be the name of a part")
        if name.lower() in map(str.lower, shares):
            raise ValueError(f"split names the part {name!r} twice")
        if not 0.0 < share <= 1.0:
            raise ValueError(f"split must give {name} a share above 0 and up to 1, but got {told}")
        shares[name] = share
    total = math.fsum(shares.values())
    if abs(total - 1.0) > 1e-3:
        raise ValueError(f"split must have shares that add up to 1, but they make {total:g}")
    return {name: share / total for name, share in shares.items()}


def position(sha256: str, seed: int) -> float:
    """Where an image stands, 0 <= position < 1: a digest of its content, another one for each seed."""
    key = seed.to_bytes(16, "big")
    digest = hashlib.blake2b(bytes.fromhex(sha256), digest_size=8, key=key).digest()
    return (int.from_bytes(digest, "big") >> (64 - _BITS)) * _STEP


class Split:
    """Which part an image belongs to.

    Args:
        shares: Part to share; they add up to 1.
        cuts: Label to the positions where its second, third, ... part begins, of labels that were split before.

    Attributes:
        cuts: The same, of all labels that were split.
    """

    def __init__(
        self, shares: Mapping[str, float], cuts: Mapping[str, Sequence[float]] | None = None
    ) -> None:
        self._shares = dict(shares)
        self.cuts = {label: tuple(told) for label, told in (cuts or {}).items()}

    def part(self, label: str, where: float) -> str:
        """The part of an image.

        Args:
            label: The label that its content had first.
            where: Its position.
        """
        number = sum(cut <= where for cut in self.cuts[label])
        return list(self._shares)[number]

    def put_cuts(self, positions: Mapping[str, Positions]) -> bool:
        """Split the labels that were never split before.

        Args:
            positions: Label to the different positions of its images, sorted; in the order of the labels.

        Returns:
            Whether there were any.
        """
        new = {
            label: found
            for label, found in positions.items()
            if label not in self.cuts and len(found)
        }
        counts = quotas([len(found) for found in new.values()], list(self._shares.values()))
        for (label, found), given in zip(new.items(), counts, strict=True):
            self.cuts[label] = _cuts(found, given, list(self._shares.values()))
        return bool(new)


def quotas(sizes: Sequence[int], shares: Sequence[float]) -> list[list[int]]:
    """How many images of each label go to each part.

    A label with as many images as there are parts has one in each at least: a label without an image to test on cannot
    be measured, and readers of folders number labels by the folders of each part. Beyond that, a number differs from
    its share by less than 1, and what rounding takes from a part in one label it gets back in others.

    Args:
        sizes: Images of each label.
        shares: Of each part, adding up to 1.
    """
    owed = [0.0] * len(shares)
    result = []
    for size in sizes:
        exact = [size * share for share in shares]
        has_all = size >= len(shares)
        given = [max(int(has_all), math.floor(value + 1e-9)) for value in exact]
        while sum(given) > size:
            most = max(range(len(given)), key=lambda i: (given[i] > 1, given[i] - exact[i]))
            given[most] -= 1
        lacking = [value - count for value, count in zip(exact, given, strict=True)]
        wanted = [lack + debt * has_all for lack, debt in zip(lacking, owed, strict=True)]
        order = sorted(range(len(given)), key=lambda i: (lacking[i] <= 1e-9, -wanted[i], i))
        for place in order[: size - sum(given)]:
            given[place] += 1
        owed = [debt + value - count for debt, value, count in zip(owed, exact, given, strict=True)]
        result.append(given)
    return result


def _cuts(positions: Positions, given: Sequence[int], shares: Sequence[float]) -> tuple[float, ...]:
    """Cuts that give every part its number of images, each as near to the sum of the shares before it as can be."""
    cuts = []
    before, nominal = 0, 0.0
    for count, share in zip(given[:-1], shares[:-1], strict=True):
        before, nominal = before + count, nominal + share
        least = float(positions[before - 1]) + _STEP if before else 0.0
        most = float(positions[before]) if before < len(positions) else 1.0
        cuts.append(min(max(nominal, least), most))
    return tuple(cuts)
