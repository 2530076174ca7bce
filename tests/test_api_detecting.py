"""Detection from Python: what may be looked for, and how it may be said."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import annotary
from annotary.api import Annotator
from annotary.errors import UnreadableImage, UsageError
from annotary.tasks.label_sets import LabelSet
from tests.tasks.detectors import PAD, ColourDetector, scene

PHOTO = scene(300, 200, ("red", (10, 10, 60, 60)), ("green", (100, 100, 180, 180)))


@pytest.fixture
def model() -> Annotator:
    return Annotator(ColourDetector(PAD))


def labels_of(records) -> list[list[str]]:
    return [[box.label for box in record.boxes] for record in records]


def test_words(model):
    assert labels_of(model.detect([PHOTO, PHOTO[:80]], "green, red", threshold=0.5)) == [
        ["green", "red"],
        ["red"],
    ]
    ontology = {"warm": ["red"], "cold": ["blue", "green"]}
    # The mean of two queries is half as sure of each.
    assert labels_of(model.detect(PHOTO, ontology, threshold=0.4)) == [["warm", "cold"]]
    own = LabelSet.of(["red"], "one {}")
    (record,) = model.detect(PHOTO, own, threshold=0.5)
    assert record.boxes[0].xyxy == pytest.approx((10, 10, 60, 60), abs=4)
    assert record.sources == {"boxes": "colours@1.0"}


def test_templates(model):
    seen = model._models[0].texts
    with pytest.warns(UserWarning, match="does not read all"):  # it reads four words
        list(model.detect(PHOTO, "red", templates="owl"))
    assert len(seen[-1]) == 7
    list(model.detect(PHOTO, "red", template=["a {}", "the {}"]))
    assert seen[-1] == ("a red", "the red")
    for options in ({"template": "a {}", "templates": "owl"}, {"templates": "nowhere.txt"}):
        with pytest.raises(UsageError):
            model.detect(PHOTO, "red", **options)
    with pytest.raises(UsageError, match="a LabelSet has its own"):
        model.detect(PHOTO, LabelSet.of(["red"]), template="a {}")


def test_examples(model, tmp_path):
    path = tmp_path / "leaf.png"
    Image.fromarray(scene(90, 60, ("green", (40, 10, 80, 50)), ("red", (0, 0, 30, 30)))).save(path)
    box = (40, 10, 80, 50)
    for like, name in (
        ((path, box), "leaf"),
        ((str(path), list(box)), "leaf"),
        ((Image.open(path), box), "example"),
        ({"thing": (path, box)}, "thing"),
        ({"thing": [(path, box), (path, box)]}, "thing"),
        ({"thing": np.asarray(Image.open(path))[10:50, 40:80]}, "thing"),
    ):
        assert labels_of(model.detect(PHOTO, like=like, threshold=0.5)) == [[name]], like
    both = labels_of(model.detect(PHOTO, "red", like=(path, box), threshold=0.5))
    assert both == [["leaf", "red"]]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "say what to look for"),
        ({"labels": ""}, "no labels"),
        ({"labels": []}, "no labels"),
        ({"labels": [3]}, "must be text"),
        ({"labels": "a", "threshold": 2}, r"threshold must be in 0\.\.1"),
        ({"labels": "a", "tile": 1}, "tile must be pixels"),
        ({"labels": "a", "label_thresholds": {"b": 0.5}}, "no label"),
        ({"like": (PHOTO, (1, 1, 1, 9))}, "has no area"),
        ({"like": (PHOTO, (1, 1, 9))}, "four numbers"),
        ({"like": (PHOTO, (1, 1, 900, 9))}, "not within its image"),
        ({"like": [PHOTO, PHOTO]}, None),
        ({"like": "nowhere.jpg"}, "nowhere.jpg"),
    ],
)
def test_what_makes_no_sense(model, arguments, told):
    if told is None:  # a list is several examples of one name
        assert labels_of(model.detect(PHOTO, threshold=0.5, **arguments)) == [["example"]]
        return
    with pytest.raises(UsageError, match=told):
        model.detect(PHOTO, **arguments)


def test_examples_that_cannot_be_read(model, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(UnreadableImage, match=r"broken\.jpg"):
        model.detect(PHOTO, like="broken.jpg")
    (tmp_path / "other.jpg").write_bytes(b"no image")
    with pytest.raises(UsageError, match=r"one image, but .* is several"):
        model.detect(PHOTO, like=tmp_path)


def test_labels_that_are_cut_are_a_warning(model):
    with pytest.warns(UserWarning, match="does not read all of 'a b c d e'"):
        list(model.detect(PHOTO, ["a b c d e"]))


def test_a_model_without_the_ability(tmp_path):
    from tests.small_encoder import SmallEncoder

    with pytest.raises(UsageError, match="finds no boxes"):
        Annotator(SmallEncoder()).detect(PHOTO, "red")
    assert annotary.Annotator is Annotator
