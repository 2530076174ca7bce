"""Two models on one box: a detector says where things are, a zero-shot classifier looks at each of them and says what.

A detector is good at places, an image-text model at words. The square around each box is cut out of the full-resolution
image, and classified among the labels. Where the classifier is sure, its label and score take the place
of the detector's; what both said is kept beside the record.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from annotary import preprocess
from annotary.cards import PreprocessSpec
from annotary.errors import UsageError
from annotary.records import Box, Json, Label
from annotary.tasks import Picture, Task
from annotary.tasks.zero_shot import ZeroShot

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class ComposeOptions:
    """Whether a classifier looks at each box."""

    compose: bool = False
    """Have a zero-shot classifier look at each box; where it is sure, its label and score take the place of the
    detector's."""

    compose_model: str = field(default="starter", metadata={"metavar": "NAME"})
    """The classifier: a name of `annotary models`, hf:OWNER/NAME or dir:PATH."""

    compose_threshold: float = 0.7
    """From which score on the classifier is sure, 0..1."""

    compose_margin: float = 0.0
    """How much more than the square around a box is shown to the classifier: a share of the longer side, on each
    side."""

    def __post_init__(self) -> None:
        if not isinstance(self.compose_threshold, Real) or not 0.0 <= self.compose_threshold <= 1.0:
            raise ValueError(f"compose_threshold must be in 0..1, but got {self.compose_threshold}")
        if not isinstance(self.compose_margin, Real) or not 0.0 <= self.compose_margin <= 10.0:
            raise ValueError(f"compose_margin must be in 0..10, but got {self.compose_margin}")


@dataclass(frozen=True, slots=True)
class ComposedBox:
    """A box, and what both models make of it.

    Attributes:
        found: What the detector says.
        classified: The classifier's best label, and its score 0..1.
    """

    found: Box
    classified: Label

    def chosen(self, threshold: float) -> Box:
        """The box with the label and score that count.

        Args:
            threshold: From which score on those of the classifier do, 0..1.
        """
        if self.classified.score < threshold:
            return self.found
        return Box(self.classified.name, self.classified.score, self.found.xyxy)

    def to_json(self) -> Json:
        """The detector's box as a JSON object, with what the classifier says of it."""
        return {**self.found.to_json(), "classified": self.classified.to_json()}


class Composed:
    """A task that finds boxes, and has each of them classified.

    Args:
        detection: Finds boxes.
        classifier: Judges crops; its options say how labels compete, and it should keep no more than the best.
        options: When it is sure, and what it is shown.

    Attributes:
        truncated: Labels with a prompt that one of the two models cannot read to its end.

    Raises:
        UsageError: The task finds no boxes, or there is one label and nothing that it competes with.
    """

    part = "boxes"
    needs_pixels = True

    def __init__(
        self, detection: Task, classifier: ZeroShot, options: ComposeOptions | None = None
    ) -> None:
        if detection.part != "boxes":
            raise UsageError(f"boxes can be composed, but the task finds {detection.part}")
        if classifier.always_wins:
            raise UsageError(
                "--compose has nothing to choose from: say two labels, or a --background"
            )
        self._detection = detection
        self._classifier = classifier
        self._options = options or ComposeOptions()
        cut = (*getattr(detection, "truncated", ()), *classifier.truncated)
        self.truncated: tuple[str, ...] = tuple(dict.fromkeys(cut))

    @property
    def source(self) -> str:
        """The ids of both cards."""
        return f"{self._detection.source}+{self._classifier.source}"

    @property
    def inputs(self) -> tuple[PreprocessSpec, ...]:
        """How whole images are prepared: as the detector's are."""
        return self._detection.inputs

    @property
    def streams(self) -> int:
        """How many batches are worked on at once, at best."""
        return self._detection.streams

    @property
    def batch_size(self) -> int:
        """How many images are taken at once, at best."""
        return self._detection.batch_size

    def annotate(
        self, pictures: Sequence[Picture], *batches: npt.NDArray[np.generic]
    ) -> list[Mapping[str, Any]]:
        """The `boxes` of every image, the best first; beside the record `composed`, a `ComposedBox` for each box found.

        The crops of all images are classified together.
        """
        found = self._detection.annotate(pictures, *batches)
        crops = [
            (picture, box)
            for picture, parts in zip(pictures, found, strict=True)
            for box in parts["boxes"]
        ]
        labels = iter(self._classified(crops))
        answers: list[Mapping[str, Any]] = []
        for parts in found:
            composed = tuple(ComposedBox(box, next(labels)) for box in parts["boxes"])
            boxes = chosen_boxes(composed, self._options.compose_threshold)
            answers.append({**parts, "boxes": boxes, "composed": composed})
        return answers

    def settings(self) -> dict[str, Any]:
        """What the boxes depend on beside the detector: all but the threshold, which `composed` is kept from before."""
        told: dict[str, Any] = getattr(self._detection, "settings", dict)()
        own = {
            "model": self._classifier.source,
            "margin": self._options.compose_margin,
            **self._classifier.settings(),
        }
        return {**told, "compose": own}

    def _classified(self, crops: Sequence[tuple[Picture, Box]]) -> Iterator[Label]:
        """The best label of each crop, in their order."""
        (spec,) = self._classifier.inputs
        size = self._classifier.batch_size
        for some in (crops[start : start + size] for start in range(0, len(crops), size)):
            fitted = [
                preprocess.fit(cut_out(picture, box.xyxy, self._options.compose_margin), spec)
                for picture, box in some
            ]
            batch = preprocess.to_batch(fitted, spec)
            answers = self._classifier.annotate([picture for picture, _ in some], batch)
            for (_, box), answer in zip(some, answers, strict=True):
                best: tuple[Label, ...] = answer["labels"]
                # An image whose labels come from a table may have none; then the detector is believed.
                yield best[0] if best else Label(box.label, 0.0)


def chosen_boxes(composed: Sequence[ComposedBox], threshold: float) -> tuple[Box, ...]:
    """The boxes that count, the best first. Of boxes at one place that have the same label now, the best remains.

    Args:
        composed: What both models say.
        threshold: From which score on the classifier is believed, 0..1.
    """
    boxes = sorted((one.chosen(threshold) for one in composed), key=lambda box: -box.score)
    best: dict[tuple[str, tuple[float, ...]], Box] = {}
    for box in boxes:
        best.setdefault((box.label, box.xyxy), box)
    return tuple(best.values())


def cut_out(picture: Picture, xyxy: tuple[float, float, float, float], margin: float) -> Pixels:
    """A square around a box, as far as the image goes, uint8[h, w, 3], RGB, of one pixel at least.

    Classifiers see squares. Of a long box they would see the middle, or all of it with padding or out of shape; what is
    beside it tells more (`benchmarks/composed_crops.py`).

    Args:
        picture: With its pixels in full size.
        xyxy: The box, in pixels of the upright image.
        margin: How much more is shown: a share of the box's longer side, on each side.
    """
    assert picture.pixels is not None
    height, width = picture.pixels.shape[:2]
    left, top, right, bottom = xyxy
    half = max(right - left, bottom - top) * (0.5 + margin)
    across, down = (left + right) / 2, (top + bottom) / 2
    first, last = _whole(across - half, across + half, width)
    highest, lowest = _whole(down - half, down + half, height)
    return picture.pixels[highest:lowest, first:last]


def _whole(start: float, end: float, size: int) -> tuple[int, int]:
    """The whole pixels that an interval touches, one at least, of those that there are."""
    first = min(max(0, math.floor(start)), size - 1)
    return first, max(first + 1, min(size, math.ceil(end)))
