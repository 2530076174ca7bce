"""How well boxes are found: average precision and recall as COCO and LVIS count them, and thresholds that do best.

Lin et al. 2014 (COCO) and Gupta et al. 2019 (LVIS, where an image says only of some labels whether they are there, 300
boxes an image count, and labels are rare, common or frequent). The counting is done by faster-coco-eval (Apache-2.0,
C++, needs only NumPy), which gives the numbers of pycocotools and of lvis; tests compare with both.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from annotary.errors import MissingExtra
from annotary.evaluation.box_files import DrawnBoxes, FoundBox
from annotary.evaluation.box_matching import Matches, match_boxes
from annotary.evaluation.detection_thresholds import best_f1

Floats: TypeAlias = npt.NDArray[np.float64]

SIZES = {
    "all": (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}
"""Areas in pixels, both ends included, by which COCO tells small things from large ones."""

COCO_DEPTHS = (1, 10, 100)
"""Boxes of a label in an image that count."""

LVIS_DEPTH = 300
"""Boxes of all labels in an image that count."""

_FREQUENCIES = {"ap_rare": "r", "ap_common": "c", "ap_frequent": "f"}


class LabelResult(NamedTuple):
    """How well one label is found.

    Attributes:
        label: Its name.
        drawn: Boxes that are there.
        found: Boxes that were found.
        ap: Average precision over overlaps of 0.5 to 0.95, 0..1; None of a label without boxes.
        ap50: At an overlap of 0.5.
        threshold: The score from which on F1 at an overlap of 0.5 is best; None where nothing is right.
        f1: With that threshold, 0..1, on the very images it was chosen on.
        precision: With that threshold, 0..1.
        recall: With that threshold, 0..1.
    """

    label: str
    drawn: int
    found: int
    ap: float | None
    ap50: float | None
    threshold: float | None
    f1: float | None
    precision: float | None
    recall: float | None


@dataclass(frozen=True, eq=False)
class DetectionResult:
    """How well boxes are found.

    Attributes:
        metrics: Name to share 0..1; None where nothing of the kind is there.
        labels: Each label by itself.
        matches: What is right at an overlap of 0.5.
    """

    metrics: dict[str, float | None]
    labels: list[LabelResult]
    matches: Matches


def measure_detection(drawn: DrawnBoxes, found: Sequence[FoundBox]) -> DetectionResult:
    """Count how well boxes are found.

    Images without found boxes count, and so do images without drawn ones. Of LVIS the rules of LVIS hold.

    Args:
        drawn: The truth.
        found: What is measured, in any order; of boxes of equal scores in an image the first counts first.

    Raises:
        MissingExtra: faster-coco-eval is not installed.
    """
    kept = _surest(found) if drawn.is_lvis else list(found)
    precision, recall = _counted(drawn, kept)
    matches = match_boxes(drawn, kept)
    return DetectionResult(
        _metrics(precision, recall, drawn), _labels(precision[..., 0, -1], drawn, matches), matches
    )


def _surest(found: Sequence[FoundBox]) -> list[FoundBox]:
    """The boxes of each image that count in LVIS."""
    of_images: dict[int, list[FoundBox]] = defaultdict(list)
    for box in found:
        of_images[box.image].append(box)
    return [
        box
        for own in of_images.values()
        for box in sorted(own, key=lambda one: -one.score)[:LVIS_DEPTH]
    ]


def _counted(drawn: DrawnBoxes, found: Sequence[FoundBox]) -> tuple[Floats, Floats]:
    """Precision float64[overlaps, recalls, labels, sizes, depths], and recall, which has no second axis.

    What is not defined is -1.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtra("Measuring detection", "evaluate") from error
    evaluation = COCOeval_faster(
        COCO(_truth_of(drawn)),
        COCO(_results_of(drawn, found)),
        "bbox",
        lvis_style=drawn.is_lvis,
    )
    parameters = evaluation.params
    parameters.imgIds = [place + 1 for place in range(len(drawn.images))]
    parameters.catIds = [place + 1 for place in range(len(drawn.labels))]
    parameters.maxDets = [LVIS_DEPTH] if drawn.is_lvis else list(COCO_DEPTHS)
    parameters.areaRng = [list(ends) for ends in SIZES.values()]
    parameters.areaRngLbl = list(SIZES)
    evaluation.evaluate()
    evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"]), np.asarray(evaluation.eval["recall"])


def _truth_of(drawn: DrawnBoxes) -> dict[str, Any]:
    """The truth in COCO's form, with numbers of our own: pycocotools takes id 0 for "not matched"."""
    images = [
        {
            "id": place + 1,
            "neg_category_ids": [label + 1 for label in sorted(image.absent)],
            "not_exhaustive_category_ids": [label + 1 for label in sorted(image.unfinished)],
        }
        for place, image in enumerate(drawn.images)
    ]
    annotations = [
        {
            "id": place + 1,
            "image_id": box.image + 1,
            "category_id": box.label + 1,
            "bbox": list(box.xywh),
            "area": box.area,
            "iscrowd": int(box.is_crowd),
        }
        for place, box in enumerate(drawn.boxes)
    ]
    return {"images": images, "annotations": annotations, "categories": _categories(drawn)}


def _results_of(drawn: DrawnBoxes, found: Sequence[FoundBox]) -> dict[str, Any]:
    annotations = [
        {
            "id": place + 1,
            "image_id": box.image + 1,
            "category_id": box.label + 1,
            "bbox": list(box.xywh),
            "area": box.xywh[2] * box.xywh[3],
            "score": box.score,
            "iscrowd": 0,
        }
        for place, box in enumerate(found)
    ]
    images = [{"id": place + 1} for place in range(len(drawn.images))]
    return {"images": images, "annotations": annotations, "categories": _categories(drawn)}


def _categories(drawn: DrawnBoxes) -> list[dict[str, Any]]:
    categories: list[dict[str, Any]] = [
        {"id": place + 1, "name": name} for place, name in enumerate(drawn.labels)
    ]
    for category, frequency in zip(categories, drawn.frequencies, strict=False):
        category["frequency"] = frequency
    return categories


def _metrics(precision: Floats, recall: Floats, drawn: DrawnBoxes) -> dict[str, float | None]:
    sizes = {name: place for place, name in enumerate(SIZES)}
    overall = precision[..., 0, -1]
    found: dict[str, float | None] = {
        "ap": _mean(overall),
        "ap50": _mean(overall[0]),
        "ap75": _mean(overall[5]),
    }
    for name in ("small", "medium", "large"):
        found[f"ap_{name}"] = _mean(precision[..., sizes[name], -1])
    if drawn.is_lvis:
        kinds = np.array(drawn.frequencies)
        for name, kind in _FREQUENCIES.items():
            found[name] = _mean(overall[:, :, kinds == kind])
    depths = (LVIS_DEPTH,) if drawn.is_lvis else COCO_DEPTHS
    for place, depth in enumerate(depths):
        found[f"ar_{depth}"] = _mean(recall[:, :, 0, place])
    for name in ("small", "medium", "large"):
        found[f"ar_{name}"] = _mean(recall[:, :, sizes[name], -1])
    return found


def _labels(precision: Floats, drawn: DrawnBoxes, matches: Matches) -> list[LabelResult]:
    found = []
    for place, label in enumerate(drawn.labels):
        own = matches.labels == place
        there = int(matches.drawn[:, place].sum())
        best = best_f1(matches.scores[own], matches.are_right[own], there)
        found.append(
            LabelResult(
                label,
                there,
                int(own.sum()),
                _mean(precision[:, :, place]),
                _mean(precision[0, :, place]),
                *(best if best is not None else (None, None, None, None)),
            )
        )
    return found


def _mean(values: Floats) -> float | None:
    """The mean of what there is."""
    there = values[values > -1]
    return float(there.mean()) if there.size else None
