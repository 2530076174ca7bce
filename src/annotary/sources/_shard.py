"""Shards: which of several machines does an image.

An image belongs to a shard by a digest of its name below what was named, and not by its place in the stream: so that it
does not matter in which order a machine lists its files, under which folder they are mounted there, or whether images
were added while the machines worked. What that costs is that shards are of about the same size, not of exactly the
same.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import unicodedata
from dataclasses import dataclass
from typing import Self

from annotary.records import Failure, Item
from annotary.sources._paths import join


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` parts of all images.

    Attributes:
        number: Which one, 1..count.
        count: How many there are.
    """

    number: int = 1
    count: int = 1

    @classmethod
    def of(cls, text: str | None) -> Self:
        """The shard that an option names ("2/8"); all images when there is none.

        Raises:
            ValueError: It is no shard; the message says what one is.
        """
        if text is None:
            return cls()
        parts = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if not parts or not 1 <= int(parts[1]) <= int(parts[2]):
            raise ValueError(
                f"shard must be like 2/8, the second of eight machines, but got {text!r}"
            )
        return cls(int(parts[1]), int(parts[2]))

    def has(self, key: str) -> bool:
        """Whether an image belongs to this shard.

        Args:
            key: Its name below what was named, as `key_of` tells.
        """
        if self.count == 1:
            return True
        # File systems of Macs spell accents in another way.
        text = unicodedata.normalize("NFC", key).encode("utf-8", "backslashreplace")
        digest = hashlib.blake2b(text, digest_size=8, person=b"annotary shard").digest()
        return int.from_bytes(digest, "big") % self.count == self.number - 1


def key_of(found: Item | Failure, argument: str) -> str:
    """What tells the shard of an image.

    It is the path in the folder, archive or table that was named; for the row of a list the path as seen from the list;
    for a file that was named by itself its own name; for an address all of it.

    Args:
        found: What the source of the argument gave.
        argument: What was named.
    """
    if isinstance(found, Item) and found.path is None:
        return found.relative or found.image
    parent = os.path.dirname(argument)  # noqa: PTH120 - Path would drop a leading "./"
    for start in (join(argument, ""), join(parent, "")):
        if start and found.image.startswith(start):
            return _plain(found.image[len(start) :])
    return _plain(found.image)


def _plain(path: str) -> str:
    """A path with "/" between its parts on every system, and without "."."""
    if "://" in path[:8]:
        return path
    return posixpath.normpath(path.replace(os.sep, "/"))
