"""How a dataset is made of labelled images."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from annotary.datasets._split import DEFAULT_SPLIT, parse_shares
from annotary.sinks._contract import Placing

Unsure = Literal["keep", "leave-out"]
Backgrounds = Literal["keep", "leave-out"]


@dataclass(frozen=True, slots=True)
class DatasetOptions:
    """How the dataset is made."""

    split: str = field(default=DEFAULT_SPLIT, metadata={"metavar": "NAME=SHARE,..."})
    """The parts and their shares of every label, which add up to 1."""

    seed: int = 0
    """Which of the possible splits is made; the same images and seed give the same split."""

    unsure: Unsure = "keep"
    """What becomes of images whose best label does not reach the threshold: kept in a folder or table of their own,
    or left out. They are counted and listed either way."""

    backgrounds: Backgrounds = "keep"
    """What becomes of images in which no box reaches its threshold: kept, as examples of nothing, or left out. They are
    counted and listed either way."""

    placing: Placing = "copy"
    """How images come into the dataset: as copies, or as links to the originals. Images that are no files of their
    own, and those of a dataset of boxes that have to be turned upright, are always written."""

    labels_of: Path | None = field(default=None, metadata={"metavar": "DATASET"})
    """Another dataset of the same labels, prompts and model: what it says of files is taken over, and the network runs
    for others alone. To try other thresholds, splits and formats."""

    def __post_init__(self) -> None:
        parse_shares(self.split)
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, but got {self.seed}")
        of_what = {"unsure": Unsure, "backgrounds": Backgrounds, "placing": Placing}
        for name, kind in of_what.items():
            value, known = getattr(self, name), get_args(kind)
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, but got {value!r}")
