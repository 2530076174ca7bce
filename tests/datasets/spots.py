"""Photos of coloured spots, and a detector that finds them: it really looks at pixels, and has no weights."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from annotary.cards import PreprocessSpec
from annotary.datasets import Building, Dataset, DatasetOptions, Labelling, box_task
from annotary.images import DecodeOptions
from annotary.pipeline import PipelineOptions
from annotary.records import Box
from annotary.sources import SourceOptions, open_sources
from annotary.tasks import Picture, Task
from annotary.tasks.composing import Composed, ComposeOptions
from annotary.tasks.label_sets import LabelSet
from annotary.tasks.zero_shot import ZeroShot, ZeroShotOptions
from tests.small_encoder import COLOURS, SmallEncoder

Spot = tuple[str, tuple[int, int, int, int]]
"""The colour of a rectangle, and its left, top, right and bottom edge."""

GREY = (128, 128, 128)


def photo(path: Path, *spots: Spot, size: tuple[int, int] = (64, 48), **options: Any) -> Path:
    """A grey photo with spots, as it is seen; `exif` may turn it."""
    pixels = np.full((size[1], size[0], 3), GREY, np.uint8)
    for colour, (left, top, right, bottom) in spots:
        pixels[top:bottom, left:right] = COLOURS[colour]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


class SpotFinder:
    """A task that finds rectangles of the colours that labels name.

    The score of a spot is its longer side as a share of the image's: a large one is surer.

    Args:
        labels: Each is, or ends with, the name of a colour.
        lowest: From which score on boxes are given, 0..1.
        mistakes: Colours that it takes for others.
    """

    part = "boxes"
    source = "spots@1.0"
    inputs = (PreprocessSpec(size=(8, 8), fit="squash", resample="box"),)
    streams = 1
    batch_size = 4
    needs_pixels = True
    truncated = ()

    def __init__(
        self,
        labels: Sequence[str],
        lowest: float = 0.05,
        mistakes: Mapping[str, str] | None = None,
    ) -> None:
        self.labels = tuple(labels)
        self.images = 0
        self._lowest = lowest
        self._mistakes = dict(mistakes or {})
        self._lock = threading.Lock()

    def annotate(
        self, pictures: Sequence[Picture], *batches: npt.NDArray[np.generic]
    ) -> list[Mapping[str, Any]]:
        """The boxes of every image."""
        with self._lock:
            self.images += len(pictures)
        return [{"boxes": tuple(self._boxes(picture))} for picture in pictures]

    def settings(self) -> dict[str, Any]:
        """What boxes depend on."""
        return {"labels": list(self.labels)}

    def _boxes(self, picture: Picture) -> list[Box]:
        assert picture.pixels is not None
        assert picture.pixels.shape == (picture.height, picture.width, 3)
        boxes = []
        for label in self.labels:
            colour = self._mistakes.get(label, label.split()[-1])
            near = np.abs(picture.pixels.astype(int) - COLOURS[colour]).max(axis=2) < 60
            while near.any():
                top, left = (int(value) for value in np.argwhere(near)[0])
                right = left + _run(near[top, left:])
                bottom = top + _run(near[top:, left])
                near[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1] = False
                side = max((right - left) / picture.width, (bottom - top) / picture.height)
                if side >= self._lowest:
                    boxes.append(Box(label, side, (left, top, right, bottom)))
        return sorted(boxes, key=lambda box: -box.score)


def _run(values: npt.NDArray[np.bool_]) -> int:
    """How many are true before the first that is not."""
    return len(values) if values.all() else int(np.argmin(values))


def composed(
    finder: Task, labels: Any, encoder: SmallEncoder | None = None, **options: Any
) -> Composed:
    """A finder whose boxes an encoder that knows colours classifies."""
    classifier = ZeroShot(encoder or SmallEncoder(), LabelSet.of(labels), ZeroShotOptions(top=1))
    return Composed(finder, classifier, ComposeOptions(compose=True, **options))


def make_boxes(
    inputs: Path | Iterable[Path | str],
    output: Path,
    form: str = "yolo",
    *,
    labels: Any = ("red", "green", "blue"),
    threshold: float = 0.1,
    thresholds: Mapping[str, float] | None = None,
    task: Any = None,
    compose_threshold: float = 0.5,
    retry_failed: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Label and build, as the command does; what `dataset.json` says."""
    paths = [str(path) for path in ([inputs] if isinstance(inputs, Path) else inputs)]
    label_set = LabelSet.of(labels)
    task = task or SpotFinder(label_set.names)
    found = box_task(
        task,
        label_set,
        {**dict.fromkeys(label_set.names, threshold), **(thresholds or {})},
        settings={"command": "label", **task.settings()},
        compose_threshold=compose_threshold,
    )
    sources = SourceOptions(retries=0, timeout=5.0)
    with Dataset(
        *(output, form, DatasetOptions(**options), found.description, paths),
        retry_failed=retry_failed,
    ) as dataset:
        with Labelling(
            *(dataset, open_sources(paths, sources), found.task),
            *(sources, DecodeOptions(), PipelineOptions()),
        ) as labelling:
            for _ in labelling:
                pass
        building = Building(dataset)
        for _ in building:
            pass
    told: dict[str, Any] = json.loads((output / "dataset.json").read_text())
    assert told == building.summary
    return {**told, "labelled": labelling.outcome, "built": building.outcome}
