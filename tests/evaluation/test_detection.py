"""Average precision is that of pycocotools and of lvis, on made-up boxes and on those with published numbers.

The four images of COCO are a subset of `results/instances_val2014_fakebbox100_results.json` of cocodataset/cocoapi; the
boxes and what pycocotools says of them are published in the tests of torchmetrics (tests/unittests/detection/
test_map.py, `_inputs4`). The numbers of LVIS are what lvis 0.5.3 says of the made-up boxes, with `numpy.float = float`:

    LVISEval(gt := LVIS(path), LVISResults(gt, results), "bbox").run()
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotary.errors import NothingToDo, UsageError
from annotary.evaluation.box_files import DrawnBoxes, FoundBoxes, read_drawn, read_found
from annotary.evaluation.detection import measure_detection
from annotary.records import Annotation, Box, Item
from annotary.registry import load
from annotary.sinks import SinkOptions
from tests.conftest import child_environment
from tests.evaluation.boxes import made_up

pytest.importorskip("faster_coco_eval")

# Label, left, top, right, bottom; of found boxes the score before them.
COCO_DRAWN = {
    42: [(4, 214.15, 41.29, 562.41, 285.07)],
    73: [(2, 13.00, 22.75, 548.98, 632.42), (2, 1.66, 3.32, 270.26, 275.23)],
    74: [
        (4, 61.87, 276.25, 358.29, 379.43),
        (1, 2.75, 3.66, 162.15, 316.06),
        (0, 295.55, 93.96, 313.97, 152.79),
        (0, 326.94, 97.05, 340.49, 122.98),
        (0, 356.62, 95.47, 372.33, 147.55),
        (0, 462.08, 105.09, 493.74, 146.99),
        (0, 277.11, 103.84, 292.44, 150.72),
    ],
    133: [(5, 13.99, 2.87, 640.00, 421.52)],
}
COCO_FOUND = {
    42: [(0.236, 4, 258.15, 41.29, 606.41, 285.07)],
    73: [(0.318, 3, 61.00, 22.75, 565.00, 632.42), (0.726, 2, 12.66, 3.32, 281.26, 275.23)],
    74: [
        (0.546, 4, 87.87, 276.25, 384.29, 379.43),
        (0.3, 1, 0.00, 3.66, 142.15, 316.06),
        (0.407, 0, 296.55, 93.96, 314.97, 152.79),
        (0.611, 0, 328.94, 97.05, 342.49, 122.98),
        (0.335, 0, 356.62, 95.47, 372.33, 147.55),
        (0.805, 0, 464.08, 105.09, 495.74, 146.99),
        (0.953, 0, 276.11, 103.84, 291.44, 150.72),
    ],
    133: [(0.423, 5, 0.00, 2.87, 601.00, 421.52)],
}
PUBLISHED = {
    "ap": 0.706,
    "ap50": 0.901,
    "ap75": 0.846,
    "ap_small": 0.689,
    "ap_medium": 0.800,
    "ap_large": 0.701,
    "ar_1": 0.592,
    "ar_10": 0.716,
    "ar_100": 0.716,
    "ar_small": 0.767,
    "ar_medium": 0.800,
    "ar_large": 0.700,
}
PUBLISHED_OF_LABELS = [0.725, 0.800, 0.454, None, 0.650, 0.900]

LVIS_METRICS = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ap_rare", "ap_common"),
    *("ap_frequent", "ar_300", "ar_small", "ar_medium", "ar_large"),
)
LVIS_GOLDEN = [
    (
        {"seed": 1, "labels": 6},
        [
            *(0.2645223451, 0.4810034575, 0.2300801509, 0.1186138614, 0.3376237624, 0.3641364136),
            *(0.1784653465, 0.3426921264, 0.2724095624),
            *(0.3238636364, 0.1596666667, 0.3666666667, 0.4444444444),
        ],
    ),
    (
        {"seed": 2, "labels": 6},
        [
            *(0.3007437832, 0.5023315885, 0.3037796637, 0.3295615276, 0.431980198, 0.2753135314),
            *(0.3493651398, 0.2295780292, 0.2633946252),
            *(0.3647089947, 0.3833333333, 0.4413333333, 0.3016666667),
        ],
    ),
    (  # up to 387 boxes in an image, of which 300 count
        {"seed": 3, "labels": 6, "images": 4, "most": 500},
        [
            *(0.2328896999, 0.4326440604, 0.2176634032, 0.2494188136, 0.2291079331, 0.2468903123),
            *(0.2466463507, 0.1891892091, 0.2341049691),
            *(0.3435721185, 0.333329164, 0.3398347876, 0.3622949015),
        ],
    ),
]


def files(folder: Path, truth: Any, results: Any) -> tuple[DrawnBoxes, FoundBoxes]:
    """Boxes that went through files."""
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(results))
    drawn = read_drawn(folder / "truth.json")
    return drawn, read_found(folder / "results.json", drawn)


def xywh(left: float, top: float, right: float, bottom: float) -> list[float]:
    return [left, top, right - left, bottom - top]


def test_published_numbers_of_coco(tmp_path):
    truth = {
        "images": [{"id": number, "file_name": f"{number}.jpg"} for number in COCO_DRAWN],
        "categories": [{"id": number, "name": str(number)} for number in range(6)],
        "annotations": [
            {"image_id": number, "category_id": label, "bbox": xywh(*edges)}
            for number, boxes in COCO_DRAWN.items()
            for label, *edges in boxes
        ],
    }
    results = [
        {"image_id": number, "category_id": label, "bbox": xywh(*edges), "score": score}
        for number, boxes in COCO_FOUND.items()
        for score, label, *edges in boxes
    ]
    drawn, found = files(tmp_path, truth, results)
    measured = measure_detection(drawn, found.boxes)
    assert measured.metrics == pytest.approx(PUBLISHED, abs=5e-4)
    of_labels = [one.ap for one in measured.labels]
    assert [None if value is None else round(value, 3) for value in of_labels] == [
        None if value is None else pytest.approx(value, abs=1.1e-3) for value in PUBLISHED_OF_LABELS
    ]


def by_pycocotools(truth: Any, results: Any) -> list[float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        drawn = COCO()
        drawn.dataset = copy.deepcopy(truth)
        drawn.createIndex()
        evaluation = COCOeval(drawn, drawn.loadRes(copy.deepcopy(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return list(evaluation.stats)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_numbers_are_those_of_pycocotools(tmp_path_factory, seed):
    pytest.importorskip("pycocotools")
    truth, results = made_up(seed)
    if not results or not truth["annotations"]:
        return
    drawn, found = files(tmp_path_factory.mktemp("boxes"), truth, results)
    metrics = measure_detection(drawn, found.boxes).metrics
    told = [-1.0 if value is None else value for value in metrics.values()]
    assert told == pytest.approx(by_pycocotools(truth, results), abs=1e-12)


@pytest.mark.parametrize(("made", "expected"), LVIS_GOLDEN)
def test_numbers_are_those_of_lvis(tmp_path, made, expected):
    drawn, found = files(tmp_path, *made_up(**made, is_lvis=True))
    metrics = measure_detection(drawn, found.boxes).metrics
    assert tuple(metrics) == LVIS_METRICS
    assert list(metrics.values()) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_the_order_of_files_changes_nothing(tmp_path_factory, seed, chance):
    truth, results = made_up(seed, is_lvis=seed % 2 == 0)
    for place, one in enumerate(results):  # equal scores are taken as they come
        one["score"] = (place + 0.5) / len(results)
    drawn, found = files(tmp_path_factory.mktemp("boxes"), truth, results)
    expected = measure_detection(drawn, found.boxes)
    for part in (*truth.values(), results):
        chance.shuffle(part)
    drawn, found = files(tmp_path_factory.mktemp("boxes"), truth, results)
    again = measure_detection(drawn, found.boxes)
    assert again.metrics == pytest.approx(expected.metrics)
    by_name = {one.label: one for one in again.labels}
    for one in expected.labels:
        assert by_name[one.label][1:3] == one[1:3]
        assert by_name[one.label].f1 == pytest.approx(one.f1)


def test_the_truth_is_found_perfectly_and_nothing_is_found_not_at_all(tmp_path):
    truth, _ = made_up(4)
    results = [
        {**{key: one[key] for key in ("image_id", "category_id", "bbox")}, "score": 0.9}
        for one in truth["annotations"]
        if not one["iscrowd"]
    ]
    drawn, found = files(tmp_path, truth, results)
    measured = measure_detection(drawn, found.boxes)
    assert measured.metrics["ap"] == pytest.approx(1.0)
    assert all(one.f1 in (None, 1.0) for one in measured.labels)
    nothing = measure_detection(drawn, [])
    assert nothing.metrics["ap"] == 0.0
    assert all(one.threshold is None and one.found == 0 for one in nothing.labels)


def test_thresholds_give_what_they_promise(tmp_path):
    """F1 at the threshold that is told is that of a loop, with "above" and with "from"."""
    drawn, found = files(tmp_path, *made_up(11, images=20))
    measured = measure_detection(drawn, found.boxes)
    matches = measured.matches
    for place, one in enumerate(measured.labels):
        if one.threshold is None:
            continue
        own = matches.labels == place
        best = 0.0
        for cut in matches.scores[own]:
            given_ = own & (matches.scores >= cut)
            best = max(best, 2 * matches.are_right[given_].sum() / (given_.sum() + one.drawn))
        for given_ in (
            own & (matches.scores > one.threshold),
            own & (matches.scores >= one.threshold),
        ):
            right = matches.are_right[given_].sum()
            assert one.f1 == pytest.approx(best)
            assert one.f1 == pytest.approx(2 * right / (given_.sum() + one.drawn))
            assert one.precision == pytest.approx(right / given_.sum())
            assert one.recall == pytest.approx(right / one.drawn)


def test_records_are_read_with_names_and_labels_as_others_write_them(tmp_path):
    truth = {
        "images": [
            {"id": 7, "file_name": "val/a.jpg", "width": 100, "height": 80},
            {"id": 9, "file_name": "val/b.jpg", "width": 100, "height": 80},
        ],
        "categories": [{"id": 3, "name": "Fire_Hydrant"}, {"id": 1, "name": "cat"}],
        "annotations": [{"image_id": 7, "category_id": 3, "bbox": [10, 10, 20, 30]}],
    }
    lines = [
        {
            "image": "/data/val/a.jpg",
            "width": 100,
            "height": 80,
            "boxes": [
                {"label": "fire hydrant", "score": 0.5, "xyxy": [10, 10, 30, 40]},
                {"label": "tree", "score": 0.5, "xyxy": [0, 0, 1, 1]},
            ],
            "sources": {"boxes": "small@1"},
        },
        {"image": "b.jpg", "width": 80, "height": 100, "boxes": []},
        {"image": "c.jpg", "width": 80, "height": 100, "boxes": []},
        {"image": "d.jpg", "error": "DecodeError", "message": "broken"},
    ]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "found.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    drawn = read_drawn(tmp_path / "truth.json")
    found = read_found(tmp_path / "found.jsonl", drawn)
    assert [tuple(box) for box in found.boxes] == [(0, 0, (10.0, 10.0, 20.0, 30.0), 0.5)]
    assert found.images == 2
    assert found.unknown_images == ["c.jpg"]
    assert found.unknown_labels == {"tree": 1}
    assert found.other_sizes == ["val/b.jpg"]
    assert found.source == "small@1"
    assert measure_detection(drawn, found.boxes).metrics["ap"] == pytest.approx(1.0)
    coco = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 80}],
        "categories": [{"id": 1, "name": "fire hydrant"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 30], "score": 0.5}
        ],
    }
    (tmp_path / "found.json").write_text(json.dumps(coco))
    assert read_found(tmp_path / "found.json", drawn).boxes == found.boxes


@pytest.mark.parametrize(
    ("form", "suffix", "parts"),
    [
        ("jsonl", ".jsonl", ("boxes",)),
        ("csv", ".csv", ("boxes",)),
        ("csv", ".csv", ("captions", "boxes")),
        ("parquet", ".parquet", ("boxes",)),
        ("coco", ".json", ("boxes",)),
    ],
)
def test_what_annotary_writes_is_read(tmp_path, form, suffix, parts):
    pytest.importorskip("pyarrow")
    truth = {**TRUTH, "images": [{"id": n, "file_name": f"{n}.jpg"} for n in (1, 2, 3)]}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    drawn = read_drawn(tmp_path / "truth.json")
    sink = load("sinks", form).open(tmp_path / f"out{suffix}", SinkOptions(), parts)
    boxes = (Box("cat", 0.75, (1.0, 2.0, 9.5, 8.0)), Box("cat", 0.5, (0.0, 0.0, 4.0, 4.0)))
    for name, own in (("1.jpg", boxes), ("2.jpg", ()), ("4.jpg", boxes)):
        sink.write(
            Item.from_path(name), Annotation(name, 10, 9, boxes=own, sources={"boxes": "x@1"})
        )
    sink.close(complete=True)
    found = read_found(tmp_path / f"out{suffix}", drawn)
    assert [tuple(box) for box in found.boxes] == [
        (0, 0, (1.0, 2.0, 8.5, 6.0), 0.75),
        (0, 0, (0.0, 0.0, 4.0, 4.0), 0.5),
    ]
    assert found.images == 2
    assert found.unknown_images == ["4.jpg"]


DRAWN = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}
TRUTH = {
    "images": [{"id": 1, "file_name": "a.jpg"}],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [DRAWN],
}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"annotations": [{"image_id": 2, "category_id": 1, "bbox": [0, 0, 9, 9]}]}, "not there"),
        ({"annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, -9, 9]}]}, "a box must"),
        ({"annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 9]}]}, "a box must"),
        ({"annotations": [DRAWN | {"area": float("nan")}]}, "annotation 1: an area must be"),
        ({"annotations": [DRAWN | {"area": -1}]}, "annotation 1: an area must be"),
        ({"annotations": [DRAWN | {"bbox": [0, 0, 1e300, 1e300]}]}, "a box must be left"),
        ({"annotations": [{"image_id": 1, "category_id": 1, "bbox": "abcd"}]}, "no COCO JSON"),
        ({"annotations": [{"image_id": 1, "category_id": 1}]}, "'bbox' is missing"),
        ({"images": [{"id": 1}]}, "'coco_url' is missing"),
        ({"images": [{"id": 1, "file_name": "a"}] * 2}, "two images"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}, "called 'a'"),
        ({"categories": [{"id": 1, "name": "cat", "frequency": "x"}]}, "frequency"),
        ({"images": 5}, "no COCO JSON"),
    ],
)
def test_broken_truths_are_told_in_a_line(tmp_path, changes, told):
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(TRUTH | changes))
    with pytest.raises(UsageError, match=told) as error:
        read_drawn(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_files_that_are_no_truths(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        read_drawn(tmp_path / "none.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(UsageError, match="no COCO JSON"):
        read_drawn(tmp_path / "list.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UsageError, match="is not JSON"):
        read_drawn(tmp_path / "broken.json")
    (tmp_path / "empty.json").write_text(json.dumps({**TRUTH, "images": [], "annotations": []}))
    with pytest.raises(NothingToDo, match="no images"):
        read_drawn(tmp_path / "empty.json")
    with pytest.raises(UsageError, match="no such folder"):
        read_drawn(tmp_path / "empty.json", folder=tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        (
            "a.json",
            '[{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}]',
            "'score' is missing",
        ),
        (
            "a.json",
            '[{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": NaN}]',
            "finite",
        ),
        (
            "a.json",
            '[{"image_id": 5, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}]',
            "no image",
        ),
        (
            "a.json",
            '[{"image_id": 1, "category_id": 8, "bbox": [0, 0, 1, 1], "score": 1}]',
            "no label",
        ),
        ("a.jsonl", '{"image": "a.jpg", "width": 1, "height": 1}\nx', "line 2"),
        ("a.jsonl", '{"image": "a.jpg", "width": 1, "height": 1}\n' * 2, "two records"),
        ("a.csv", "image,width,height\n", "no column 'boxes'"),
        ("a.csv", "image,width,height,boxes\na.jpg,1,1,[5]\n", "row 1"),
        ("a.csv", "image,width,height,boxes\na.jpg,1,1,x\n", "holds no boxes"),
        ("none.jsonl", None, "No such file"),
        ("a.jsonl", '{"image": "b.jpg", "width": 1, "height": 1}', "no image of"),
    ],
)
def test_broken_results_are_told_in_a_line(tmp_path, name, text, told):
    (tmp_path / "truth.json").write_text(json.dumps(TRUTH))
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=told) as error:
        read_found(tmp_path / name, read_drawn(tmp_path / "truth.json"))
    assert "\n" not in str(error.value)


def test_without_the_extra_the_message_is_how_to_get_it(tmp_path):
    program = (
        "import sys; sys.modules['faster_coco_eval'] = None\n"
        "from annotary.evaluation.detection import measure_detection\n"
        "from annotary.evaluation.box_files import DrawnBoxes, DrawnImage\n"
        "from annotary.errors import MissingExtra\n"
        "try: measure_detection(DrawnBoxes([DrawnImage('a', 1)], ['cat'], [1], []), [])\n"
        "except MissingExtra as error: print(error)\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=child_environment(),
    )
    assert "annotary[evaluate]" in told.stdout


def test_made_up_boxes_are_the_same_everywhere():
    assert random.Random(1).random() == pytest.approx(0.13436424411240122)
