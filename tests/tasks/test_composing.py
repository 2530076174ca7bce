"""Boxes that a classifier looks at: what it is shown, when it is believed, and that nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotary.errors import UsageError
from annotary.records import Box, Item, Label
from annotary.tasks import Picture
from annotary.tasks.composing import (
    Composed,
    ComposedBox,
    ComposeOptions,
    chosen_boxes,
    cut_out,
)
from annotary.tasks.embedding import Embed
from annotary.tasks.label_sets import LabelSet
from annotary.tasks.zero_shot import ZeroShot, ZeroShotOptions
from tests.datasets.spots import SpotFinder
from tests.small_encoder import COLOURS, SmallEncoder

LABELS = ("red", "green", "blue")


def picture(*spots, size=(64, 48), name="a.png") -> Picture:
    pixels = np.full((size[1], size[0], 3), 128, np.uint8)
    for colour, (left, top, right, bottom) in spots:
        pixels[top:bottom, left:right] = COLOURS[colour]
    return Picture(Item(name, pixels=pixels), *size, pixels)


def composed(finder, encoder=None, labels=LABELS, **options) -> Composed:
    label_set = labels if isinstance(labels, LabelSet) else LabelSet.of(labels)
    classifier = ZeroShot(encoder or SmallEncoder(), label_set, ZeroShotOptions(top=1))
    return Composed(finder, classifier, ComposeOptions(compose=True, **options))


def annotated(task, *pictures):
    return task.annotate(pictures, np.zeros((len(pictures), 3, 8, 8), np.float32))


def test_the_classifier_corrects_the_detector_where_it_is_sure():
    """As a detector takes blue things for green ones."""
    finder = SpotFinder(("red", "green"), mistakes={"green": "blue"})
    spots = (("red", (4, 4, 30, 20)), ("blue", (34, 4, 60, 40)))
    (found,) = annotated(composed(finder, compose_margin=0.0), picture(*spots))
    assert {box.label: box.xyxy for box in found["boxes"]} == {
        "red": (4, 4, 30, 20),
        "blue": (34, 4, 60, 40),
    }
    assert [box.score for box in found["boxes"]] == sorted(
        (one.classified.score for one in found["composed"]), reverse=True
    )
    (bare,) = annotated(finder, picture(*spots))
    assert tuple(one.found for one in found["composed"]) == bare["boxes"]
    assert [one.classified.name for one in found["composed"]] == ["blue", "red"]
    (found,) = annotated(composed(finder, compose_threshold=1.0), picture(*spots))
    assert (
        found["boxes"] == bare["boxes"]
    )  # label and score are the detector's where it is not sure


def test_all_crops_of_all_images_are_classified_together():
    finder, encoder = SpotFinder(LABELS), SmallEncoder(batch_size=4)
    sizes = []
    embed = encoder.embed_images
    encoder.embed_images = lambda batch: (sizes.append(len(batch)), embed(batch))[1]
    pictures = [
        picture(("red", (4, 4, 20, 20)), ("blue", (24, 4, 60, 40)), ("green", (4, 30, 18, 46))),
        picture(),
        picture(("green", (1, 1, 62, 40))),
        picture(("red", (4, 4, 20, 20)), ("blue", (24, 4, 60, 40))),
    ]
    found = annotated(composed(finder, encoder, compose_margin=0.0), *pictures)
    assert sizes == [4, 2]
    assert encoder.texts == 3  # once
    assert [{box.label for box in answer["boxes"]} for answer in found] == [
        {"red", "blue", "green"},
        set(),
        {"green"},
        {"red", "blue"},
    ]


def test_nothing_is_written(tmp_path, monkeypatch):
    """autodistill keeps its crops in one temp.jpeg in the folder where it runs."""
    monkeypatch.chdir(tmp_path)
    annotated(composed(SpotFinder(LABELS)), picture(("red", (4, 4, 20, 20))))
    assert list(Path.cwd().iterdir()) == []


def test_it_stands_for_the_detector_in_a_run():
    finder = SpotFinder(LABELS)
    task = composed(finder)
    assert task.needs_pixels
    assert task.part == "boxes"
    assert (task.inputs, task.streams, task.batch_size) == (finder.inputs, 1, 4)
    assert task.source == "spots@1.0+small@1.0"
    told = task.settings()
    assert told["labels"] == list(LABELS)
    assert told["compose"]["model"] == "small@1.0"
    assert told["compose"]["margin"] == 0.0
    assert composed(finder, compose_threshold=0.9).settings() == told
    assert composed(finder, compose_margin=0.2).settings() != told
    assert composed(finder, labels=("red", "blue")).settings() != told


def test_labels_that_are_too_long_for_either_are_named():
    long = "a " * 20 + "red"
    finder = SpotFinder((long, "blue"))
    finder.truncated = ("blue",)
    assert composed(finder, labels=(long, "blue")).truncated == ("blue", long)


def test_a_choice_of_one_is_refused_and_one_against_a_background_is_not():
    with pytest.raises(UsageError, match="--compose has nothing to choose from"):
        composed(SpotFinder(("red",)), labels=("red",))
    labels = LabelSet.of("red", background=["blue", "green"])
    task = composed(SpotFinder(("red",), mistakes={"red": "blue"}), labels=labels)
    (found,) = annotated(task, picture(("blue", (4, 4, 50, 40))))
    assert found["composed"][0].classified.score < 0.5
    assert found["boxes"] == (found["composed"][0].found,)


def test_a_task_without_boxes_is_refused():
    with pytest.raises(UsageError, match="boxes can be composed, but the task finds embedding"):
        composed(Embed(SmallEncoder()))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"compose_threshold": 1.5}, "compose_threshold must be in 0..1"),
        ({"compose_threshold": float("nan")}, "compose_threshold must be in 0..1"),
        ({"compose_margin": -0.1}, "compose_margin must be in 0..10"),
    ],
)
def test_options_have_bounds(options, said):
    with pytest.raises(ValueError, match=said):
        ComposeOptions(**options)


def test_boxes_at_one_place_that_become_one_label_are_one():
    place, other = (0.0, 0.0, 9.0, 9.0), (0.0, 0.0, 9.0, 8.0)
    told = [
        ComposedBox(Box("dog", 0.9, place), Label("cat", 0.7)),
        ComposedBox(Box("cat", 0.8, place), Label("cat", 0.7)),
        ComposedBox(Box("cat", 0.3, other), Label("dog", 0.2)),
    ]
    assert chosen_boxes(told, 0.5) == (Box("cat", 0.7, place), Box("cat", 0.3, other))
    assert chosen_boxes(told, 0.8) == tuple(one.found for one in told)
    assert told[0].to_json() == {
        "label": "dog",
        "score": 0.9,
        "xyxy": list(place),
        "classified": {"name": "cat", "score": 0.7},
    }


@given(
    st.tuples(*(st.floats(-20, 90) for _ in range(4))),
    st.floats(0, 3),
)
def test_every_crop_has_pixels_and_holds_the_box(edges, margin):
    left, right = sorted((edges[0], edges[2]))
    top, bottom = sorted((edges[1], edges[3]))
    height, width = 48, 64
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows, columns, rows * 0], axis=2).astype(np.uint8)
    seen = Picture(Item("a", pixels=pixels), width, height, pixels)
    crop = cut_out(seen, (left, top, right, bottom), margin)
    assert crop.size
    assert crop.dtype == np.uint8
    first, last = crop[0, 0], crop[-1, -1]
    if 0 <= left < right <= width and 0 <= top < bottom <= height:
        assert first[0] <= top
        assert first[1] <= left
        assert last[0] >= bottom - 1
        assert last[1] >= right - 1
        side = max(right - left, bottom - top) * (1 + 2 * margin)
        assert max(crop.shape[:2]) <= side + 2.001  # beside the three colours


def test_a_crop_is_a_square_as_far_as_the_image_goes():
    seen = picture(("red", (20, 10, 40, 30)))
    assert cut_out(seen, (20.0, 10.0, 40.0, 30.0), 0.0).shape == (20, 20, 3)
    crop = cut_out(seen, (20.0, 10.0, 40.0, 30.0), 0.1)
    assert crop.shape == (24, 24, 3)
    assert (crop[:2] == 128).all()
    assert (crop[2:-2, 2:-2] == COLOURS["red"]).all()
    crop = cut_out(seen, (28.0, 10.0, 32.0, 30.0), 0.0)  # a narrow part of it
    assert crop.shape == (20, 20, 3)
    assert (crop == COLOURS["red"]).all()
    assert cut_out(seen, (0.0, 0.0, 64.0, 48.0), 0.5).shape == (48, 64, 3)
    assert cut_out(seen, (60.0, 0.0, 64.0, 4.0), 0.5).shape == (6, 6, 3)
