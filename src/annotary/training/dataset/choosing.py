"""Which images and tags a dataset has, and why it has not the others: rules, copies, rare tags, the split.

The order is that of JoyTag's dataset, and each step works on what the one before left:

    trainable? ─▶ copies go, their tags to the first ─▶ rules ─▶ images with few tags go ─▶ rare tags go
               ─▶ validation set ─▶ training images near to a validation image go
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from annotary.catalog.perceptual_hash import MOST_DISTANCE
from annotary.errors import NothingToDo, UsageError
from annotary.sources._paths import reason
from annotary.training.dataset.collecting import UNTAGGED, PostTable
from annotary.training.dataset.knowledge import InputKnowledge, Sources, sources_of
from annotary.training.dataset.near import copies, near_any
from annotary.training.dataset.pictures import Picture, PictureBook
from annotary.training.dataset.splitting import validation_rows
from annotary.training.dataset.tables import Rows
from annotary.training.dataset.tag_lists import TagLists, expanded

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SplitOptions:
    """Copies, and the validation set."""

    duplicate_distance: int = field(default=0, metadata={"metavar": "BITS"})
    """Images whose perceptual hashes differ in at most so many of 64 bits are one image, with the tags of all of them;
    so are equal files."""

    validation: float = field(default=0.05, metadata={"metavar": "SIZE"})
    """How many images are for measuring: a share below 1, or a number. JoyTag had 32,768."""

    positives: int = field(default=5, metadata={"metavar": "IMAGES"})
    """Validation images that each tag should have; never more than half of its images."""

    validation_distance: int = field(default=6, metadata={"metavar": "BITS"})
    """Training images whose hashes differ from a validation image's in at most so many bits are left out."""

    validation_ids: Path | None = field(default=None, metadata={"metavar": "FILE"})
    """A file of ids, one a line: the validation set of an earlier dataset, to be the validation set again."""

    seed: int = 42
    """Of the shuffle that the validation set is taken from."""

    def __post_init__(self) -> None:
        for name in ("duplicate_distance", "validation_distance"):
            if not 0 <= getattr(self, name) <= MOST_DISTANCE:
                told = f"{name} must be 0..{MOST_DISTANCE} bits, but got {getattr(self, name)}"
                raise ValueError(told)
        if not self.validation >= 0 or (self.validation >= 1 and self.validation % 1):
            raise ValueError(f"validation must be a share or a number, but got {self.validation}")
        for name in ("positives", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, but got {getattr(self, name)}")


class Dropped(NamedTuple):
    """An image that is not in the dataset.

    Attributes:
        place: Among the posts.
        why: In a word or two, for counting.
        told: More of it.
        of: The place of the image that it is the same as, or near to; -1 for none.
    """

    place: int
    why: str
    told: str = ""
    of: int = -1


class NothingLeft(NothingToDo):
    """No image is left to train on, or no tag.

    Args:
        message: What is missing, and why most was left out.
        dropped_images: All that was left out, as a `Choice` has it.
        dropped_tags: The same of tags.
    """

    def __init__(
        self,
        message: str,
        dropped_images: Sequence[Dropped],
        dropped_tags: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__(f"{message}; {_told(dropped_images)}")
        self.dropped_images = sorted(dropped_images)
        self.dropped_tags = list(dropped_tags)

    @property
    def reasons(self) -> dict[str, int]:
        """Why images were left out to how many, the most frequent first."""
        return _counted(self.dropped_images)


@dataclass(slots=True)
class Choice:
    """What was chosen.

    Attributes:
        tags: The tags, in the order of their places.
        categories: Of each.
        train: Places of the training images among the posts, ascending.
        validation: Places of the validation images, ascending.
        offsets: int64[n + 1], where the tags of each image of `kept` begin.
        tag_places: int32[m], ascending in each image.
        kept: Places of all images that have a tag, ascending; those near to the validation set are among them.
        dropped_images: Which are not in it, by place.
        dropped_tags: Which are not in it: `tag`, `category`, `images`, `why`; those with most images first.
        renamed: Tags of the sources to what they are called.
        unknown_ids: Ids that were asked for the validation set and are not in the dataset.
        sources: What the inputs know; None where all of them know all tags.
        source_places: int32[n], of which of the sources each image of `kept` is; None without sources.
    """

    tags: list[str]
    categories: list[str]
    train: Numbers
    validation: Numbers
    offsets: Numbers
    tag_places: npt.NDArray[np.int32]
    kept: Numbers
    dropped_images: list[Dropped]
    dropped_tags: list[dict[str, Any]]
    renamed: dict[str, str]
    unknown_ids: list[str]
    sources: Sources | None = None
    source_places: npt.NDArray[np.int32] | None = None

    def rows(self, places: Numbers, table: PostTable, book: PictureBook) -> Rows:
        """The images at some places, as they are written."""
        inside = np.searchsorted(self.kept, places)
        lengths = self.offsets[inside + 1] - self.offsets[inside]
        digests = b"".join(book.picture(table.rows[place]).sha256 for place in places.tolist())
        return Rows(
            [table.ids[place] for place in places.tolist()],
            [table.images[place] for place in places.tolist()],
            np.frombuffer(digests, np.uint8).reshape(-1, 32),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            gathered(self.tag_places, self.offsets, inside),
            None if self.source_places is None else self.source_places[inside],
        )

    @property
    def reasons(self) -> dict[str, int]:
        """Why images were left out to how many, the most frequent first."""
        return _counted(self.dropped_images)


def choose(
    table: PostTable,
    book: PictureBook,
    lists: TagLists,
    options: SplitOptions,
    knowledge: Sequence[InputKnowledge] | None = None,
) -> Choice:
    """Choose images and tags.

    Args:
        table: All posts.
        book: Their pictures.
        lists: The rules.
        options: Copies, and the split.
        knowledge: What each input is said to know; None where all of them know all tags.

    Raises:
        NothingLeft: Nothing is left.
        UsageError: The file of validation ids cannot be read, or names no image that is left.
    """
    dropped: list[Dropped] = []
    good: list[int] = []
    pictures: list[Picture] = []
    for place, row in enumerate(table.rows):
        picture = Picture() if row == UNTAGGED else book.picture(row)
        if row == UNTAGGED:
            dropped.append(Dropped(place, "no tags"))
        elif picture.why:
            dropped.append(Dropped(place, picture.why, picture.told))
        else:
            good.append(place)
            pictures.append(picture)
    if not good:
        raise NothingLeft("no image can be trained on", dropped)
    places = np.array(good, np.int64)
    owner = places.copy()
    found = copies(
        [one.sha256 for one in pictures],
        [one.phash for one in pictures],
        [one.chroma for one in pictures],
        options.duplicate_distance,
    )
    for which, copy in found.items():
        owner[which] = good[copy.of]
        why = "same file" if copy.bits < 0 else "same picture"
        told = "" if copy.bits < 0 else f"{copy.bits} bits of the hash differ"
        dropped.append(Dropped(good[which], why, told, good[copy.of]))
    ruled = _ruled(table, lists, places, owner, dropped)
    sources, source_places = None, None
    if knowledge is not None:
        is_in = np.isin(owner, ruled.kept)
        sources, source_places = sources_of(
            *(knowledge, table, ruled.tags, ruled.stands_for), (places[is_in], owner[is_in])
        )
    validation, unknown = _validation(table, ruled, options)
    is_validation = np.zeros(len(ruled.kept), np.bool_)
    is_validation[validation] = True
    rest = np.flatnonzero(~is_validation)
    hash_of = {place: picture.phash for place, picture in zip(good, pictures, strict=True)}
    near = near_any(
        [hash_of[place] for place in ruled.kept[rest].tolist()],
        [hash_of[place] for place in ruled.kept[validation].tolist()],
        options.validation_distance,
    )
    for which, (other, bits) in near.items():
        of = int(ruled.kept[validation[other]])
        told = f"{bits} bits of the hash differ"
        dropped.append(Dropped(int(ruled.kept[rest[which]]), "near a validation image", told, of))
    is_train = np.ones(len(rest), np.bool_)
    is_train[list(near)] = False
    train = ruled.kept[rest[is_train]]
    if not len(train):
        raise NothingLeft("no image is left to train on", dropped, ruled.dropped_tags)
    return Choice(
        tags=ruled.tags,
        categories=ruled.categories,
        train=train,
        validation=ruled.kept[validation],
        offsets=ruled.offsets,
        tag_places=ruled.tag_places,
        kept=ruled.kept,
        dropped_images=sorted(dropped),
        dropped_tags=ruled.dropped_tags,
        renamed=ruled.renamed,
        unknown_ids=unknown,
        sources=sources,
        source_places=source_places,
    )


def gathered(
    values: npt.NDArray[np.int32], offsets: Numbers, rows: Numbers
) -> npt.NDArray[np.int32]:
    """The values of some rows of a list of lists, one row after the other.

    Args:
        values: int32[m].
        offsets: int64[n + 1], where each row begins.
        rows: int64[r], 0..n-1.
    """
    lengths = offsets[rows + 1] - offsets[rows]
    ends = np.cumsum(lengths)
    steps = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)
    found: npt.NDArray[np.int32] = values[np.repeat(offsets[rows], lengths) + steps]
    return found


class _Ruled(NamedTuple):
    """Images and tags that the rules leave; the parts of a `Choice`.

    Of the tags before the rules, which are numbered in another way: `follows` has for each tag of the sources those
    that it stands for, and `places`, int64[names], where each is in `tags`, or -1.
    """

    tags: list[str]
    categories: list[str]
    kept: Numbers
    offsets: Numbers
    tag_places: npt.NDArray[np.int32]
    dropped_tags: list[dict[str, Any]]
    renamed: dict[str, str]
    follows: list[list[int]]
    places: Numbers

    @property
    def stands_for(self) -> list[list[int]]:
        """Of each tag of the sources, the places of the tags of the dataset that it stands for."""
        found = self.places.tolist()
        return [[found[one] for one in every if found[one] >= 0] for every in self.follows]


def _ruled(
    table: PostTable, lists: TagLists, places: Numbers, owner: Numbers, dropped: list[Dropped]
) -> _Ruled:
    """Apply the rules.

    Args:
        table: All posts.
        lists: The rules.
        places: Of the posts that can be trained on.
        owner: The place of the post that gets the tags of each.
        dropped: Gets the images that go.
    """
    raw = table.raw
    names, categories, follows = expanded(raw, lists)
    count = max(1, len(names))
    # What each tag of the sources stands for, as a list of lists, and with it the tags of each post.
    ends = np.concatenate([[0], np.cumsum([len(one) for one in follows])]).astype(np.int64)
    flat = np.array([one for every in follows for one in every], np.int32)
    own = gathered(table.tags, table.offsets, places).astype(np.int64)
    owners = np.repeat(owner, table.offsets[places + 1] - table.offsets[places])
    owners = np.repeat(owners, ends[own + 1] - ends[own])
    pairs = _distinct(owners * count + gathered(flat, ends, own))
    post, tag = pairs // count, pairs % count
    seen = np.bincount(tag, minlength=count)
    why = [lists.why_not(*one) for one in zip(names, categories, strict=True)]
    is_ruled_out = np.array([bool(one) for one in why] or [True])
    post, tag = post[~is_ruled_out[tag]], tag[~is_ruled_out[tag]]

    owners_left = np.unique(owner)
    numbers = np.bincount(np.searchsorted(owners_left, post), minlength=len(owners_left))
    for place, number in zip(owners_left.tolist(), numbers.tolist(), strict=True):
        if number < lists.minimum_tags:
            told = f"{number} tags, and {lists.minimum_tags} are wanted"
            dropped.append(Dropped(place, "too few tags", told))
    owners_left = owners_left[numbers >= lists.minimum_tags]
    is_left = np.isin(post, owners_left)
    post, tag = post[is_left], tag[is_left]

    counts = np.bincount(tag, minlength=count)
    is_kept = ~is_ruled_out & (counts >= max(1, lists.minimum_count))
    post, tag = post[is_kept[tag]], tag[is_kept[tag]]
    if lists.minimum_tags > 0:
        without = np.setdiff1d(owners_left, post)
        dropped += [Dropped(place, "only rare tags") for place in without.tolist()]
        owners_left = np.setdiff1d(owners_left, without)
    chosen = sorted(np.flatnonzero(is_kept).tolist(), key=lambda one: (-counts[one], names[one]))
    rare = f"fewer than {max(1, lists.minimum_count)} images"
    dropped_tags = [
        {
            "tag": names[one],
            "category": categories[one],
            "images": int(seen[one]),
            "why": why[one] or rare,
        }
        for one in np.argsort(-seen, kind="stable").tolist()
        if one < len(names) and not is_kept[one]
    ]
    if not chosen:
        least = f"with a minimum count of {max(1, lists.minimum_count):,}"
        raise NothingLeft(f"no tag is left of {len(names):,}, {least}", dropped, dropped_tags)
    new = np.full(count, -1)
    new[chosen] = np.arange(len(chosen))
    inside = np.searchsorted(owners_left, post)
    order = np.sort(inside * len(chosen) + new[tag])
    lengths = np.bincount(inside, minlength=len(owners_left))
    return _Ruled(
        [names[one] for one in chosen],
        [categories[one] for one in chosen],
        owners_left,
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        (order % len(chosen)).astype(np.int32),
        dropped_tags,
        {name: called for name, _ in raw if (called := lists.canonical(name)) != name},
        follows,
        new,
    )


def _distinct(values: Numbers) -> Numbers:
    """The different values, ascending. `numpy.unique` may hash them, which is slow for so many."""
    values = np.sort(values)
    is_first = np.ones(len(values), np.bool_)
    np.not_equal(values[1:], values[:-1], out=is_first[1:])
    return values[is_first]


def _validation(
    table: PostTable, ruled: _Ruled, options: SplitOptions
) -> tuple[Numbers, list[str]]:
    """The validation images, as places in `kept`, ascending; and ids that are not there.

    Raises:
        UsageError: None would be left to learn from, or the file of ids cannot be read or names none that is there.
    """
    rows = len(ruled.kept)
    if options.validation_ids is not None:
        try:
            text = options.validation_ids.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            why = reason(error) if isinstance(error, OSError) else "it is no UTF-8 text"
            raise UsageError(f"cannot read {options.validation_ids}: {why}") from error
        wanted = [line for line in text.split("\n") if line]
        place = {table.ids[one]: inside for inside, one in enumerate(ruled.kept.tolist())}
        found = sorted(place[one] for one in dict.fromkeys(wanted) if one in place)
        if not found:
            first = table.ids[int(ruled.kept[0])]
            listed = f"no id of {len(wanted):,}, such as {wanted[0]}," if wanted else "no id"
            raise UsageError(
                f"{options.validation_ids} (--validation-ids) has {listed} that is in the dataset;"
                f" its ids are such as {first}"
            )
        return np.array(found, np.int64), [one for one in wanted if one not in place]
    size = int(options.validation if options.validation >= 1 else round(options.validation * rows))
    if size >= rows > 1:
        raise UsageError(
            f"{size:,} validation images are asked for, and there are {rows:,} images in all;"
            f" take fewer (--validation), or a share of them, such as 0.1"
        )
    chosen = validation_rows(
        ruled.offsets,
        ruled.tag_places,
        len(ruled.tags),
        size,
        positives=options.positives,
        seed=options.seed,
    )
    return chosen, []


def _told(dropped: Sequence[Dropped]) -> str:
    """Why images were left out, for a message."""
    counted = _counted(dropped)
    return "left out: " + (", ".join(f"{n:,} {why}" for why, n in counted.items()) or "nothing")


def _counted(dropped: Sequence[Dropped]) -> dict[str, int]:
    return dict(Counter(one.why for one in dropped).most_common())
