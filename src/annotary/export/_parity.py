"""How close an exported model is to the one it came from: scores, tags at their thresholds, and speed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from annotary.cards import Vocabulary
from annotary.runtime import Choice

WORST = 10
"""Tags that are named."""


class Tagger(Protocol):
    """What of a tagger is needed here."""

    vocabulary: Vocabulary

    @property
    def choice(self) -> Choice:
        """What it runs on."""

    def tag_scores(self, batch: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """Probabilities float32[b, t]."""


@dataclass(frozen=True, slots=True)
class WorstTag:
    """A tag that changed.

    Attributes:
        name: Of the tag.
        flips: Photos on which it appears with one model and not with the other.
        largest_difference: Of its scores, 0..1.
    """

    name: str
    flips: int
    largest_difference: float


@dataclass(frozen=True, slots=True)
class Parity:
    """A comparison of two models on the same photos.

    Attributes:
        compared_on: Photos, none of which calibrated; 0 when pictures were made up.
        calibrated_on: Photos that calibrated.
        largest_difference: Of all scores, 0..1.
        mean_difference: Of all scores, 0..1.
        tags: How many the model it came from gives these photos at their thresholds.
        flips: How many of these or others appear with one model and not with the other.
        flipped_share: `flips` of all that either gives, 0..1.
        worst: The tags with most flips and differences, of those that changed.
        speed_ratio: How many times faster one image is, with `now` in place of `before`.
        before: What the model it came from ran on.
        now: What the exported one ran on.
    """

    compared_on: int
    calibrated_on: int
    largest_difference: float
    mean_difference: float
    tags: int
    flips: int
    flipped_share: float
    worst: tuple[WorstTag, ...]
    speed_ratio: float
    before: str
    now: str

    def to_json(self) -> str:
        """The text of a `parity.json`."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"

    def lines(self) -> Iterator[str]:
        """What a person reads."""
        photos = "pictures that were made up"
        if self.compared_on:
            photos = "1 photo" if self.compared_on == 1 else f"{self.compared_on} photos"
        apart = (
            f", apart from the {self.calibrated_on} that calibrated" if self.calibrated_on else ""
        )
        yield f"compared on {photos}{apart}"
        yield (
            f"  scores differ by {self.mean_difference:.5f} on average,"
            f" {self.largest_difference:.4f} at most"
        )
        yield (
            f"  {self.flips} tags appear or disappear at the threshold, of {self.tags}"
            f" ({self.flipped_share:.1%})"
        )
        if self.worst:
            yield f"  most: {', '.join(f'{w.name} ({w.flips})' for w in self.worst if w.flips)}"
        yield f"  {self.speed_ratio:.2f} times as fast: {self.now} instead of {self.before}"


def compare(
    source: Tagger,
    made: Tagger,
    batches: Iterable[npt.NDArray[Any]],
    thresholds: npt.NDArray[np.float32],
    *,
    calibrated_on: int,
    is_made_up: bool = False,
) -> Parity:
    """Run two taggers on the same images, in turns, so that both meet the same load of the machine.

    Args:
        source: The one that is right.
        made: The other.
        batches: Prepared images, a batch each.
        thresholds: One a tag, float32[t].
        calibrated_on: Photos that calibrated.
        is_made_up: Whether the images are no photos.
    """
    tags = len(source.vocabulary)
    flips = np.zeros(tags, np.int64)
    largest = np.zeros(tags, np.float32)
    total = 0.0
    chosen = either = images = 0
    seconds: list[tuple[float, float]] = []
    for batch in batches:
        started = time.perf_counter()
        before = source.tag_scores(batch)
        between = time.perf_counter()
        now = made.tag_scores(batch)
        seconds.append((between - started, time.perf_counter() - between))
        difference = np.abs(before - now)
        total += float(difference.sum(dtype=np.float64))
        largest = np.maximum(largest, difference.max(axis=0))
        has, gets = before >= thresholds, now >= thresholds
        flips += (has != gets).sum(axis=0)
        chosen += int(has.sum())
        either += int((has | gets).sum())
        images += len(batch)
    order = np.lexsort((-largest, -flips))[:WORST]
    return Parity(
        compared_on=0 if is_made_up else images,
        calibrated_on=calibrated_on,
        largest_difference=float(largest.max(initial=0.0)),
        mean_difference=total / max(1, images * tags),
        tags=chosen,
        flips=int(flips.sum()),
        flipped_share=float(flips.sum()) / max(1, either),
        worst=tuple(
            WorstTag(source.vocabulary.names[i], int(flips[i]), float(largest[i]))
            for i in order.tolist()
            if flips[i]
        ),
        # The first image also pays for what libraries prepare when they run first.
        speed_ratio=_ratio(seconds[1:] or seconds),
        before=_told(source.choice),
        now=_told(made.choice),
    )


def _ratio(seconds: list[tuple[float, float]]) -> float:
    return float(np.median([before / max(now, 1e-9) for before, now in seconds] or [1.0]))


def _told(choice: Choice) -> str:
    return f"{choice.library}, {choice.device}, {choice.precision}"
