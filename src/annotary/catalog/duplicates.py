"""Duplicates: groups of images that are the same or nearly so, with a suggestion which one to keep.

Three ways of being the same are known: `exact` (the same bytes), `phash` (perceptual hashes that differ in few bits)
and `embedding` (vectors of a model that point nearly the same way). Nearness does not carry over: with a chain of
pictures, each a little different from the one before, the ends have nothing in common. So groups are no chains. Images
are gone through from the best to the worst; one that no better image is near to is kept, and a group is a kept image
with the worse images that are near to it itself. Hence nothing is ever suggested to go for which there is no image that
is kept, at least as good, and within the limits.

What is known of the images lies in a temporary database on disk, so that there may be more than memory holds.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from annotary.catalog.duplicates_found import Fingerprint as Fingerprint
from annotary.catalog.duplicates_found import Found, Kept
from annotary.catalog.duplicates_images import ImageTable
from annotary.catalog.duplicates_vectors import near_vectors
from annotary.catalog.perceptual_hash import MOST_DISTANCE, near_hashes

Kind: TypeAlias = Literal["exact", "phash", "embedding"]

KINDS: tuple[str, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class DuplicateOptions:
    """What counts as a duplicate."""

    by: str = field(default="exact,phash", metadata={"metavar": "WAY,WAY"})
    """How images are compared: exact (the same bytes), phash (the look), embedding (what a model sees)."""

    distance: int = field(default=6, metadata={"metavar": "BITS"})
    """For phash: how many of the 64 bits may differ, 0 to 16.

    It is nearly always an even number, as half the bits of a hash are set.
    """

    cosine: float = field(default=0.95, metadata={"metavar": "X"})
    """For embedding: how alike the vectors must be, 0 to 1."""

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            raise ValueError(f"by must be of {', '.join(KINDS)}, but got {self.by!r}")
        if not 0 <= self.distance <= MOST_DISTANCE:
            raise ValueError(f"distance must be 0..{MOST_DISTANCE} bits, but got {self.distance}")
        if not 0.0 < self.cosine <= 1.0:
            raise ValueError(f"cosine must be above 0 and at most 1, but got {self.cosine}")

    @property
    def kinds(self) -> tuple[str, ...]:
        """The ways, each once."""
        return tuple(dict.fromkeys(kind.strip() for kind in self.by.split(",") if kind.strip()))


@dataclass(frozen=True, slots=True)
class Member:
    """An image of a group.

    Attributes:
        image: Its name.
        is_kept: Whether it is the one to keep. An image that is not could go.
        why: The reason, in words.
        by: How it was found to be the same as the kept one: `exact`, `phash`, `embedding`, or `file` when it is the
            very same file under another name; None for the kept one.
        distance: From the kept one: bits for `phash`, 1 - cosine for `embedding`, else 0; None for the kept one.
        path: Its file, when it is one.
        bytes: Of the file, when that is known.
        width: Pixels, when that is known.
        height: Pixels, when that is known.
        also: Other names of the same file: links to it, or other ways of writing its path.
    """

    image: str
    is_kept: bool
    why: str
    by: str | None = None
    distance: float | None = None
    path: str | None = None
    bytes: int | None = None
    width: int | None = None
    height: int | None = None
    also: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The member as a JSON object; what is not known is left out, and the path where it is the name."""
        value = {
            "image": self.image,
            "keep": self.is_kept,
            "why": self.why,
            "by": self.by,
            "distance": self.distance,
            "bytes": self.bytes,
            "width": self.width,
            "height": self.height,
            "also": list(self.also) or None,
            "path": None if self.path == self.image else self.path,
        }
        return {key: part for key, part in value.items() if part is not None}


@dataclass(frozen=True, slots=True)
class Group:
    """Images that are the same or nearly so.

    Attributes:
        number: From 1.
        members: The kept one first, then the others, the nearest first.
    """

    number: int
    members: tuple[Member, ...]

    @property
    def kept(self) -> Member:
        """The one to keep."""
        return self.members[0]

    @property
    def others(self) -> tuple[Member, ...]:
        """Those that could go."""
        return self.members[1:]


def find_duplicates(
    images: Iterable[Fingerprint],
    options: DuplicateOptions = DuplicateOptions(),
    *,
    against: Iterable[Fingerprint] | None = None,
    seed: int = 0,
) -> Iterator[Group]:
    """Groups of images that are the same or nearly so.

    Which groups there are does not depend on the order of the images. The image to keep is the one with the most
    pixels, then the largest file, the oldest file, the shortest name, and the first by name; but one whose file is
    gone, as a catalogue may not know yet, only where all are. A file that comes under several names (links, another
    way of writing the path) is one image.

    Args:
        images: The images; they are taken before the first group is given, and what is known of them lies in temporary
            files (about 200 bytes an image and 4 bytes a number of its vector).
        options: What counts as a duplicate.
        against: Images of a reference, such as a test set: groups are then an image of it, which is always kept, and
            those of `images` that are near to it. Pairs on the same side do not count.
        seed: Of the search among very many vectors.

    Yields:
        Groups of two images or more, in the order of the kept ones, the best first. No image is in two groups.

    Raises:
        OutputError: The temporary files cannot be written.
    """
    with (
        tempfile.TemporaryDirectory(
            prefix="annotary-duplicates-",
            ignore_cleanup_errors=True,  # Windows keeps files that are still mapped
        ) as folder,
        closing(ImageTable(Path(folder))) as table,
    ):
        for image in images:
            table.add(image, is_reference=False)
        for image in against or ():
            table.add(image, is_reference=True)
        table.end()
        if "phash" in options.kinds:
            for pairs in near_hashes(table.hashes(), options.distance):
                table.add_hash_pairs(*pairs)
        if "embedding" in options.kinds:
            rows, vectors = table.vectors()
            for first, second, cosine in near_vectors(vectors, options.cosine, seed=seed):
                table.add_vector_pairs(rows[first], rows[second], 1.0 - cosine)
        found = table.groups(options.kinds, is_against=against is not None)
        for number, (kept, others) in enumerate(found, 1):
            yield _group(number, kept, others, is_against=against is not None)


def _group(number: int, kept: Kept, others: list[Found], *, is_against: bool) -> Group:
    first = _member(kept, _why_kept(kept, others, is_against=is_against))
    return Group(number, (first, *(_member(one, _why_found(one, kept)) for one in others)))


def _member(one: Kept | Found, why: str) -> Member:
    by, distance = (one.by, one.distance) if isinstance(one, Found) else (None, None)
    return Member(
        image=one.image,
        is_kept=by in (None, "file"),
        why=why,
        by=by,
        distance=distance,
        path=one.path,
        bytes=one.bytes,
        width=one.width,
        height=one.height,
        also=one.also,
    )


def _why_kept(kept: Kept, others: list[Found], *, is_against: bool) -> str:
    """What sets the kept one apart from the best of the others."""
    if is_against:
        return "of the reference"
    best = min(others, key=lambda other: other.rank)
    if best.is_gone and not kept.is_gone:
        return "the other file is gone" if len(others) == 1 else "the other files are gone"
    if kept.pixels != best.pixels:
        return "most pixels"
    if kept.bytes != best.bytes:
        return "largest file"
    if kept.modified != best.modified:
        return "oldest file"
    if len(os.fsencode(kept.image)) != len(os.fsencode(best.image)):
        return "shortest name"
    return "first by name"


def _why_found(one: Found, kept: Kept) -> str:
    gone = "; its file is gone already" if one.is_gone else ""
    return _how_near(one, kept) + gone


def _how_near(one: Found, kept: Kept) -> str:
    if one.by == "file":
        return f"the very same file as {kept.image}; take it out of a list, not off the disk"
    if one.by == "exact":
        return f"the same bytes as {kept.image}"
    if one.by == "phash":
        bits = int(one.distance)
        told = "the same perceptual hash as" if not bits else f"{bits} of 64 bits from"
        return f"{told} {kept.image}"
    return f"cosine {1.0 - one.distance:.3f} with {kept.image}"
