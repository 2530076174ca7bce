"""What the inputs of a dataset know: an image of one input says nothing about a tag that only another one names.

An input knows all tags, or those that its images have, or those of a list. Where it knows a tag that an image has not,
that counts as much as the input says: 1, or less where it leaves much unsaid, as captions do. A picture that several
inputs have is known to each of them, and what counts most is taken.

`sources.json` holds it, with tags as places in `top_tags.txt`:

    {"inputs": [{"input": "/photos", "known": [0, 2], "absent": 1.0}, {"input": "/more.csv", "known": null, …}],
     "sources": [[0], [1], [0, 1]]}

An image's `source` in the tables is a place in `sources`, and each of these names the inputs that have the image.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import translate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from annotary.errors import UsageError

if TYPE_CHECKING:
    from annotary.training.dataset.collecting import PostTable
    from annotary.training.dataset.tag_lists import TagLists

SOURCES = "sources.json"

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class InputKnowledge:
    """What an input is said to know.

    Attributes:
        name: Where it is.
        has_own: Whether it knows the tags that its images have, and no others; where there is no list.
        listed: The tags that it knows, with wildcards; None where there is no list.
        absent: How much it counts that an image has not a tag that is known, 0..1.
    """

    name: str
    has_own: bool
    listed: tuple[str, ...] | None
    absent: float


@dataclass(frozen=True, eq=False)
class Sources:
    """What a dataset's images are of.

    Attributes:
        inputs: Where each input is.
        known: Of each input the places of the tags that it knows, ascending; None where it knows all.
        absent: Of each input how much it counts that an image has not such a tag, 0..1.
        groups: Which inputs an image may be of: one, or several that have the same picture.
    """

    inputs: tuple[str, ...]
    known: tuple[tuple[int, ...] | None, ...]
    absent: tuple[float, ...]
    groups: tuple[tuple[int, ...], ...]

    def weights(self, tag_count: int) -> npt.NDArray[np.float32]:
        """How much it counts that an image of a group has not a tag, float32[groups, t]; 0 where nobody knows."""
        own = np.zeros((len(self.inputs), tag_count), np.float32)
        for row, known, absent in zip(own, self.known, self.absent, strict=True):
            row[slice(None) if known is None else list(known)] = absent
        found = [own[list(group)].max(axis=0) for group in self.groups]
        return np.array(found, np.float32).reshape(len(self.groups), tag_count)

    def text(self) -> str:
        """What `sources.json` holds."""
        inputs = [
            {"input": name, "known": None if known is None else list(known), "absent": absent}
            for name, known, absent in zip(self.inputs, self.known, self.absent, strict=True)
        ]
        told = {"inputs": inputs, "sources": [list(group) for group in self.groups]}
        return json.dumps(told, ensure_ascii=False) + "\n"


def read_sources(path: Path, tag_count: int) -> Sources:
    """The sources of a dataset.

    Args:
        path: Of `sources.json`.
        tag_count: How many tags there are.

    Raises:
        UsageError: It cannot be read, or makes no sense.
    """
    try:
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        inputs = told["inputs"]
        found = Sources(
            tuple(str(one["input"]) for one in inputs),
            tuple(None if one["known"] is None else tuple(one["known"]) for one in inputs),
            tuple(float(one["absent"]) for one in inputs),
            tuple(tuple(group) for group in told["sources"]),
        )
        weights = found.weights(tag_count)
        if not all(found.groups) or not ((weights >= 0) & (weights <= 1)).all():
            raise ValueError("a source without inputs, or a weight out of range")
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UsageError(f"{path} cannot be read; make the dataset anew") from error
    return found


def knowledge_of(inputs: Sequence[str], lists: TagLists) -> tuple[InputKnowledge, ...] | None:
    """What each input is said to know; None where all of them know all tags.

    Args:
        inputs: As they were asked for.
        lists: The rules.

    Raises:
        UsageError: The rules speak of another input.
    """
    places = [absolute(one) for one in inputs]
    told = {}
    for rule in lists.inputs:
        if rule.path not in places:
            listed = ", ".join(inputs)
            raise UsageError(f"{lists.path}: no input is {rule.path}; the inputs are {listed}")
        if rule.path in told:
            raise UsageError(f"{lists.path}: [[inputs]] speaks of {rule.path} twice")
        told[rule.path] = rule
    if not lists.partial_labels and not told:
        return None
    return tuple(
        InputKnowledge(
            place,
            lists.partial_labels,
            told[place].known if place in told else None,
            told[place].absent if place in told else 1.0,
        )
        for place in places
    )


def absolute(place: str) -> str:
    """Where an input is, wherever the work is done; an address stays what it is."""
    path = place if place.startswith(("http://", "https://")) else os.path.abspath(place)  # noqa: PTH100
    return path.encode("utf-8", "backslashreplace").decode()


def sources_of(
    inputs: Sequence[InputKnowledge],
    table: PostTable,
    tags: Sequence[str],
    stands_for: Sequence[Sequence[int]],
    images: tuple[Numbers, Numbers],
) -> tuple[Sources, npt.NDArray[np.int32]]:
    """The sources of images, and of which each is, int32[n], in the order of the images.

    Args:
        inputs: What each is said to know.
        table: All posts.
        tags: The tags of the dataset.
        stands_for: Of each tag of the posts, the places of the tags that it stands for.
        images: Places of all posts of the images, and for each the place of the post that has its tags.
    """
    counts = np.diff(table.offsets)
    of_input = np.repeat(table.inputs, counts)
    known: list[tuple[int, ...] | None] = []
    for number, one in enumerate(inputs):
        if one.listed is not None:
            wanted = re.compile("|".join(map(translate, one.listed)) or r"(?!)").match
            exact = set(one.listed)  # names may have signs of wildcards
            known.append(tuple(at for at, tag in enumerate(tags) if tag in exact or wanted(tag)))
        elif one.has_own:
            raw = np.flatnonzero(np.bincount(table.tags[of_input == number])).tolist()
            known.append(tuple(sorted({place for tag in raw for place in stands_for[tag]})))
        else:
            known.append(None)
    groups, places = _grouped(*images, table.inputs, len(inputs))
    found = Sources(
        tuple(one.name for one in inputs),
        tuple(known),
        tuple(one.absent for one in inputs),
        groups,
    )
    return found, places


def _grouped(
    posts: Numbers, owners: Numbers, inputs: Numbers, count: int
) -> tuple[tuple[tuple[int, ...], ...], npt.NDArray[np.int32]]:
    """The groups of inputs that images are of, and the group of each image, in the order of the images."""
    # `numpy.unique` may hash, which is slow for so many.
    pairs = np.sort(owners * count + inputs[posts])
    pairs = pairs[np.flatnonzero(np.diff(pairs, prepend=-1))]
    first = np.flatnonzero(np.diff(pairs // count, prepend=-1))
    ends = np.append(first[1:], len(pairs))
    number_of = (pairs % count).astype(np.int64)
    joined = {
        int(image): tuple(number_of[first[image] : ends[image]].tolist())
        for image in np.flatnonzero(ends - first > 1)
    }
    alone = {(number,) for number in set(number_of[first[ends - first == 1]].tolist())}
    groups = tuple(sorted(alone | set(joined.values()), key=lambda group: (len(group), group)))
    place = {group: number for number, group in enumerate(groups)}
    of_input = np.array([place.get((number,), 0) for number in range(count)], np.int32)
    places: npt.NDArray[np.int32] = of_input[number_of[first]]
    for image, group in joined.items():
        places[image] = place[group]
    return groups, places
