"""How often a classifier names what is in a box, by what it is shown of it, on boxes that people drew.

python -m benchmarks.composed_crops --data ../shared/data/coco

The folder has photos in `images`, and `index.jsonl` with their boxes: `boxes_xywh_orig`, a list of name, left, top,
width, height and whether it is a crowd, in pixels of `orig_size`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from annotary.images import decode
from annotary.models import load_model
from annotary.records import Box, Item
from annotary.tasks import Picture, composing
from annotary.tasks.composing import Composed, ComposeOptions
from annotary.tasks.encoding import dual_encoder
from annotary.tasks.label_sets import LabelSet
from annotary.tasks.zero_shot import ZeroShot, ZeroShotOptions

MARGINS = (0.0, 0.1, 0.25, 0.5)
THRESHOLDS = (0.5, 0.7, 0.9)
SMALLEST = 16
"""Pixels of the shorter side of a box; smaller things nobody would know either."""


class Drawn:
    """A detector that is always right: it gives the boxes that people drew."""

    part = "boxes"
    source = "people"
    inputs = ()
    streams = 1
    batch_size = 8

    def __init__(self, boxes: Mapping[str, Sequence[Box]]) -> None:
        self._boxes = boxes

    def annotate(
        self, pictures: Sequence[Picture], *batches: npt.NDArray[np.generic]
    ) -> list[Mapping[str, Any]]:
        """The boxes of every image."""
        return [{"boxes": tuple(self._boxes[picture.item.image])} for picture in pictures]


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder of photos with boxes")
    parser.add_argument("--model", default="starter", help="the classifier")
    options = parser.parse_args()
    found = list(read(options.data))
    boxes = {picture.item.image: own for picture, own in found}
    names = sorted({box.label for own in boxes.values() for box in own})
    model = dual_encoder(load_model(options.model))
    classifier = ZeroShot(model, LabelSet.of(names), ZeroShotOptions(top=1))
    count = sum(map(len, boxes.values()))
    print(f"{count:,} boxes of {len(names)} labels in {len(found)} photos, {model.card.id}\n")
    cells = " | ".join(f"{share} from {least:g} on" for least in THRESHOLDS for share in _SHARES)
    print(f"| shown | margin | right | {cells} |\n|{'---|' * (3 + 2 * len(THRESHOLDS))}")
    square = composing.cut_out
    for shown, cut_out in (("box", box_alone), ("square", square)):
        composing.cut_out = cut_out
        for margin in MARGINS:
            task = Composed(Drawn(boxes), classifier, ComposeOptions(compose_margin=margin))
            answers = task.annotate([picture for picture, _ in found])
            both = [one for answer in answers for one in answer["composed"]]
            right = np.array([one.classified.name == one.found.label for one in both])
            scores = np.array([one.classified.score for one in both])
            row = [f"{right.mean():.3f}"]
            for least in THRESHOLDS:
                sure = scores >= least
                row += [f"{sure.mean():.3f}", f"{right[sure].mean():.3f}"]
            print(f"| {shown} | {margin:g} | {' | '.join(row)} |", flush=True)


_SHARES = ("sure", "right of those")


def read(folder: Path) -> Iterator[tuple[Picture, list[Box]]]:
    """The photos with their boxes; crowds and what is very small are left out."""
    for line in (folder / "index.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        path = folder / "images" / Path(row["file"]).name
        decoded = decode(path.read_bytes())
        across, down = decoded.width / row["orig_size"][0], decoded.height / row["orig_size"][1]
        boxes = []
        for name, left, top, width, height, is_crowd in row["boxes_xywh_orig"]:
            if not is_crowd and min(width * across, height * down) >= SMALLEST:
                edges = (left * across, top * down, (left + width) * across, (top + height) * down)
                boxes.append(Box(name, 1.0, edges))
        if boxes:
            item = Item(path.name, pixels=decoded.pixels)
            yield Picture(item, decoded.width, decoded.height, decoded.pixels), boxes


def box_alone(
    picture: Picture, xyxy: tuple[float, float, float, float], margin: float
) -> npt.NDArray[np.uint8]:
    """A box with a share of its width and height around it."""
    assert picture.pixels is not None
    left, top, right, bottom = xyxy
    across, down = margin * (right - left), margin * (bottom - top)
    rows = slice(int(max(0, top - down)), int(np.ceil(bottom + down)))
    columns = slice(int(max(0, left - across)), int(np.ceil(right + across)))
    return picture.pixels[rows, columns]


if __name__ == "__main__":
    main()
