"""Which tags of a dataset and of models are the same: by name, whatever stands between words, over an alias table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from annotary.errors import UsageError
from annotary.evaluation.tagging import Booleans, Integers
from annotary.tasks.tag_rules import with_spaces


@dataclass(frozen=True, eq=False)
class Columns:
    """Where the tags that all have in common are among those of one of them.

    Attributes:
        first: int64[t], the place of each.
        more: Further places of some: common tag, place. Several names may mean one tag.
        unmatched: Places of tags that not all have.
    """

    first: Integers
    more: tuple[tuple[int, int], ...]
    unmatched: Integers

    def scores(self, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Scores of the common tags, float32[b, t]; of several names the highest counts.

        Args:
            scores: float32[b, v].
        """
        found = np.ascontiguousarray(scores[:, self.first], dtype=np.float32)
        for tag, place in self.more:
            np.maximum(found[:, tag], scores[:, place], out=found[:, tag])
        return found

    def thresholds(self, thresholds: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Thresholds of the common tags, float32[t]; of several names the lowest counts.

        Args:
            thresholds: float32[v].
        """
        found = np.array(thresholds[self.first], dtype=np.float32)
        for tag, place in self.more:
            found[tag] = min(found[tag], thresholds[place])
        return found


@dataclass(frozen=True, eq=False)
class TagMatch:
    """The tags that a dataset and models have in common.

    Attributes:
        names: As the dataset calls them, in its order.
        dataset: Where they are in the dataset.
        models: Where they are in the vocabulary of each model.
    """

    names: tuple[str, ...]
    dataset: Columns
    models: tuple[Columns, ...]

    def targets(self, rows: Sequence[Sequence[int]]) -> Booleans:
        """Which images have which common tags, bool[b, t].

        Args:
            rows: The tags of each image, by their place in the dataset.
        """
        place = {int(at): tag for tag, at in enumerate(self.dataset.first)}
        place |= {at: tag for tag, at in self.dataset.more}
        found = np.zeros((len(rows), len(self.names)), np.bool_)
        for row, tags in enumerate(rows):
            found[row, [place[tag] for tag in tags if tag in place]] = True
        return found

    def known(self, mask: Booleans | None) -> Booleans | None:
        """Of which images it is known whether they have the common tags, bool[b, t]; None where all is known.

        Args:
            mask: The same of the tags of the dataset; of several names of a tag one that is known is enough.
        """
        if mask is None:
            return None
        found: Booleans = mask[:, self.dataset.first]
        for tag, place in self.dataset.more:
            found[:, tag] |= mask[:, place]
        return found


def match_tags(
    dataset: Sequence[str],
    vocabularies: Mapping[str, Sequence[str]],
    aliases: Mapping[str, str] | None = None,
) -> TagMatch:
    """Find the tags that a dataset and all models have.

    Two names are the same where only case, or underscores for spaces, differ; faces such as ^_^ stay as they are.

    Args:
        dataset: Names of the tags of the dataset.
        vocabularies: Model to the names of its tags.
        aliases: A name to what it is called instead, of both.

    Raises:
        UsageError: They have none in common, or aliases go in circles.
    """
    known = _chained({key(old): key(new) for old, new in (aliases or {}).items()})
    sides = [
        _by_key(names, known) for names in (dataset, *(list(one) for one in vocabularies.values()))
    ]
    common = [name for name in sides[0] if all(name in side for side in sides[1:])]
    if not common:
        told = ", ".join(map(repr, dataset[:5]))
        raise UsageError(
            f"the dataset and {' and '.join(vocabularies)} have no tag in common; the dataset has {told}"
        )
    columns = [_columns(common, side) for side in sides]
    return TagMatch(
        names=tuple(dataset[int(place)] for place in columns[0].first),
        dataset=columns[0],
        models=tuple(columns[1:]),
    )


def key(name: str) -> str:
    """What is compared of a name."""
    return with_spaces(name.strip().casefold())


def _by_key(names: Sequence[str], aliases: Mapping[str, str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        own = key(name)
        found.setdefault(aliases.get(own, own), []).append(place)
    return found


def _columns(common: Sequence[str], side: Mapping[str, Sequence[int]]) -> Columns:
    chosen = set(common)
    return Columns(
        first=np.array([side[name][0] for name in common], np.int64),
        more=tuple((tag, place) for tag, name in enumerate(common) for place in side[name][1:]),
        unmatched=np.array(
            [place for name, places in side.items() if name not in chosen for place in places],
            np.int64,
        ),
    )


def _chained(aliases: Mapping[str, str]) -> dict[str, str]:
    """Every name to the end of its chain."""
    found = {}
    for name in aliases:
        seen = [name]
        while (following := aliases.get(seen[-1])) is not None and following != seen[-1]:
            if following in seen:
                raise UsageError(f"aliases go in circles: {' -> '.join([*seen, following])}")
            seen.append(following)
        found[name] = seen[-1]
    return found
