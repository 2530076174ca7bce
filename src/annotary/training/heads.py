"""Heads of taggers by the names of tags: which rows of another checkpoint stay, and where new ones start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from annotary.cards import read_card
from annotary.errors import ModelError

HEAD_DEVIATION = 0.02
"""Standard deviation of a head's weights where the body starts from chance, too (Dosovitskiy et al. and most since)."""

_NAMED_AT_MOST = 5


@dataclass(frozen=True, slots=True)
class HeadReport:
    """What became of a checkpoint's tags.

    Attributes:
        kept: Tags whose rows were taken over, in the order of the new list.
        renamed: Of these, the ones that had another name: new name to old name.
        new: Tags that start anew.
        dropped: Tags of the checkpoint that the new list does not have.
    """

    kept: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    new: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    def __str__(self) -> str:
        """In words, for a run's first lines: how many of each, and some names."""
        parts = [f"{len(self.kept)} tags keep their weights"]
        if self.renamed:
            parts.append(_some(f"{len(self.renamed)} of them by an alias", self.renamed))
        parts.append(_some(f"{len(self.new)} are new", self.new))
        parts.append(_some(f"{len(self.dropped)} of the checkpoint are left out", self.dropped))
        return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class StartReport:
    """What a network starts from.

    Attributes:
        source: Where its weights come from; empty when they are chance.
        head: What became of the tags.
        notes: What else was done to the weights, a sentence each.
        licence: Of the weights, which what is made of them keeps; empty where nobody says.
    """

    source: str = ""
    head: HeadReport = field(default_factory=HeadReport)
    notes: tuple[str, ...] = ()
    licence: str = ""

    def __str__(self) -> str:
        """In words, a line for each thing."""
        first = f"starts from {self.source}" if self.source else "starts from chance"
        return "\n".join((first, *self.notes, str(self.head)))


def licence_in(directory: Path) -> str:
    """The licence of the weights of a model directory; empty where it has no card that says one."""
    try:
        licence = read_card(directory).licence
    except ModelError:
        return ""
    return "" if licence == "unknown" else licence


def _some(told: str, names: Sequence[str] | Mapping[str, str]) -> str:
    listed = list(names)[:_NAMED_AT_MOST]
    more = ", ..." if len(names) > _NAMED_AT_MOST else ""
    return f"{told} ({', '.join(listed)}{more})" if listed else told


def match_tags(
    old: Sequence[str], new: Sequence[str], aliases: Mapping[str, str] | None = None
) -> tuple[dict[int, int], HeadReport]:
    """Which row of an old head is which of a new one.

    A tag keeps the row of its own name; where there is none, that of a name which means the same.

    Args:
        old: Tags of the checkpoint, in the order of its rows.
        new: Tags that are trained, in the order of the new rows.
        aliases: Other names, each with the name that it stands for; several may stand for the same.

    Returns:
        New row to old row, and the same in words.
    """
    aliases = aliases or {}
    places = {name: place for place, name in enumerate(old)}
    by_meaning: dict[str, int] = {}
    for place, name in enumerate(old):
        by_meaning.setdefault(aliases.get(name, name), place)
    rows: dict[int, int] = {}
    renamed: dict[str, str] = {}
    for place, name in enumerate(new):
        found = places.get(name)
        if found is None:
            found = by_meaning.get(aliases.get(name, name))
            if found is None:
                continue
            renamed[name] = old[found]
        rows[place] = found
    used = set(rows.values())
    report = HeadReport(
        kept=tuple(new[place] for place in rows),
        renamed=renamed,
        new=tuple(name for place, name in enumerate(new) if place not in rows),
        dropped=tuple(name for place, name in enumerate(old) if place not in used),
    )
    return rows, report


def frequency_bias(positives: npt.ArrayLike, images: npt.ArrayLike) -> Tensor:
    """Biases float32[t] with which a head's first answer is how often each tag is used.

    The log of the odds, with half an image added on both sides, so that a tag that none or all have is a number, too.
    It is that of `training.tagger`; Lin et al., "Focal Loss" (2017), 3.3, say why it matters where tags are rare.

    Args:
        positives: [t], how many images have each tag.
        images: How many there are; or [t], how many count for each tag.
    """
    counts = np.asarray(positives, np.float64)
    odds = (counts + 0.5) / (np.maximum(np.asarray(images, np.float64) - counts, 0.0) + 0.5)
    return torch.from_numpy(np.log(odds).astype(np.float32))


@torch.no_grad()
def fill_head(
    head: nn.Linear,
    *,
    bias: Tensor | None = None,
    deviation: float = HEAD_DEVIATION,
    generator: torch.Generator | None = None,
    old: tuple[Tensor, Tensor] | None = None,
    rows: Mapping[int, int] | None = None,
) -> None:
    """Set a head to its start: chance and frequencies, then the rows that stay.

    Args:
        head: From the embedding to one logit a tag.
        bias: float[t], of new tags; 0 when nothing is said.
        deviation: Of the weights of new tags, of a normal distribution cut off at twice this; 0 sets them to 0, so that
            they say `bias` whatever the image.
        generator: Of the chance.
        old: Weight [t', d] and bias [t'] of another head.
        rows: New row to row of `old`.
    """
    if deviation:
        nn.init.trunc_normal_(
            head.weight, std=deviation, a=-2 * deviation, b=2 * deviation, generator=generator
        )
    else:
        head.weight.zero_()
    if bias is None:
        head.bias.zero_()
    else:
        head.bias.copy_(bias)
    if old is not None and rows:
        targets, sources = torch.tensor(list(rows)), torch.tensor(list(rows.values()))
        for parameter, before in zip((head.weight, head.bias), old, strict=True):
            parameter[targets] = before[sources].to(parameter)
