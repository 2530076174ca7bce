"""Captions and boxes of real photos: what people draw is found perfectly, and people come near each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from annotary.evaluation.box_files import read_drawn, read_found
from annotary.evaluation.captions import measure_captions
from annotary.evaluation.detection import measure_detection

DATA = Path(__file__).parents[3] / "shared" / "data"


def rows_of(name: str) -> list[dict[str, Any]]:
    path = DATA / name / "index.jsonl"
    if not path.exists():
        pytest.skip(f"no photos of {name} beside the repository")
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.mark.parametrize(("name", "low", "high"), [("flickr8k", 0.8, 1.0), ("coco", 0.9, 1.15)])
def test_people_come_near_each_other(name, low, high):
    said = [row["captions"][:5] for row in rows_of(name) if row["captions"]][:300]
    found = []
    for place in range(5):
        others = [[*own[:place], *own[place + 1 :]] for own in said]
        captions = [own[place] for own in said]
        found.append(measure_captions(captions, range(len(said)), others).metrics()["cider_d"])
    assert low < sum(found) / 5 < high


def test_what_people_drew_is_found_perfectly(tmp_path):
    pytest.importorskip("faster_coco_eval")
    rows = [row for row in rows_of("coco") if row["boxes_xywh_orig"]]
    labels = sorted({box[0] for row in rows for box in row["boxes_xywh_orig"]})
    annotations, records = [], []
    for number, row in enumerate(rows, 1):
        width, height = row["orig_size"]
        boxes = []
        for label, left, top, *size, is_crowd in row["boxes_xywh_orig"]:
            annotations.append(
                {
                    "image_id": number,
                    "category_id": labels.index(label),
                    "bbox": [left, top, *size],
                    "iscrowd": is_crowd,
                }
            )
            edges = [left, top, left + size[0], top + size[1]]
            if not is_crowd:
                boxes.append({"label": label, "score": 0.5, "xyxy": edges})
        records.append({"image": row["file"], "width": width, "height": height, "boxes": boxes})
    images = [{"id": number, "file_name": row["file"]} for number, row in enumerate(rows, 1)]
    categories = [{"id": place, "name": name} for place, name in enumerate(labels)]
    truth = {"images": images, "categories": categories, "annotations": annotations}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "found.jsonl").write_text("\n".join(map(json.dumps, records)))
    drawn = read_drawn(tmp_path / "truth.json")
    metrics = measure_detection(drawn, read_found(tmp_path / "found.jsonl", drawn).boxes).metrics
    for name, value in metrics.items():
        if name not in ("ar_1", "ar_10"):
            assert value == pytest.approx(1.0), name
    assert metrics["ar_1"] < metrics["ar_10"] < 1.0
