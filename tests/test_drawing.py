"""Pictures with boxes: where lines and labels are, colours, names of files, and what is never written over."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from annotary.drawing import (
    COLOURS,
    Drawn,
    _font_for,
    _fonts,
    _ink,
    _lacking,
    _lettering,
    _library,
    _placed,
    draw_boxes,
)
from annotary.errors import OutputError
from annotary.records import Box, Item
from annotary.tasks import Picture
from tests.tasks.detectors import SQUASH

pytest.importorskip("supervision")

GREY = 90


def grey(width, height):
    return np.full((height, width, 3), GREY, np.uint8)


def rgb(place):
    code = COLOURS[place]
    return tuple(int(code[i : i + 2], 16) for i in (1, 3, 5))


class Found:
    """A task that finds the same boxes everywhere."""

    part = "boxes"
    source = "found@1"
    inputs = (SQUASH,)
    streams = 1
    batch_size = 2

    def __init__(self, *boxes):
        self._boxes = boxes

    def annotate(self, pictures, *batches):
        return [{"boxes": self._boxes} for _ in pictures]


CAT = Box("cat", 0.9, (20, 30, 60, 70))


def drawn(folder, *items, task=None):
    """Have pictures of items written; all are grey."""
    pixels = grey(120, 90)
    task = task or Drawn(Found(CAT), folder, ("cat",))
    pictures = [Picture(item, 120, 90, pixels) for item in items]
    return task.annotate(pictures, np.zeros((len(items), 3, 4, 4)))


def written(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def of_path(relative, root="photos"):
    return Item(f"{root}/{relative}", path=Path(root) / relative, relative=relative)


@pytest.mark.parametrize(("width", "height"), [(200, 150), (640, 480), (4000, 3000), (33, 900)])
def test_lines_lie_on_the_edges_of_boxes(width, height):
    pixels = grey(width, height)
    box = Box("cat", 0.5, (width * 0.25, height * 0.5, width * 0.75, height * 0.9))
    found = draw_boxes(pixels, [box], ["cat"])
    assert (pixels == GREY).all()
    assert found.shape == pixels.shape
    assert found.dtype == np.uint8
    left, _, right, bottom = (round(edge) for edge in box.xyxy)
    middle = height * 0.7
    row = found[round(middle)]
    assert tuple(row[left]) == rgb(0)
    assert tuple(row[right]) == rgb(0)
    assert tuple(found[min(bottom, height - 1), width // 2]) == rgb(0)
    assert (row[(left + right) // 2] == GREY).all()
    thickness = (row[: (left + right) // 2] != GREY).any(axis=1).sum()
    assert thickness == pytest.approx((width * height) ** 0.5 / 280, abs=2)


def test_boxes_at_the_edges_of_the_picture_are_seen():
    found = draw_boxes(grey(200, 200), [Box("cat", 0.5, (0, 0, 200, 200))], ["cat"])
    for line in (found[100, 0], found[100, -1], found[-1, 100], found[0, 150]):
        assert tuple(line) == rgb(0)


def test_nothing_found_is_the_picture_as_it_is():
    pixels = grey(50, 40)
    found = draw_boxes(pixels, [])
    np.testing.assert_array_equal(found, pixels)
    assert found is not pixels


def test_a_label_has_one_colour_in_all_pictures():
    """By the order of the labels, however many others are found; without that order by its name."""
    names = [f"l{number}" for number in range(30)]
    alone = draw_boxes(grey(200, 200), [Box("l3", 0.5, (50, 90, 150, 150))], names)
    second = [Box("l7", 0.9, (10, 160, 40, 190)), Box("l3", 0.5, (50, 90, 150, 150))]
    among = draw_boxes(grey(200, 200), second, names)
    assert tuple(alone[150, 100]) == tuple(among[150, 100]) == rgb(3)
    assert tuple(among[190, 25]) == rgb(7)
    strange = [draw_boxes(grey(200, 200), [Box(n, 0.5, (50, 90, 150, 150))]) for n in "abcdef"]
    again = draw_boxes(grey(200, 200), [Box("a", 0.5, (50, 90, 150, 150))])
    np.testing.assert_array_equal(strange[0], again)
    assert len({tuple(found[150, 100]) for found in strange}) > 2


def test_colours_are_different_and_letters_stand_out():
    assert len(set(COLOURS)) == 20

    def light(code):
        shares = [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    for place, code in enumerate(COLOURS):
        high, low = sorted((light(code), light(_ink(rgb(place)))), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, code


boxes_in = st.lists(
    st.tuples(st.text(min_size=1, max_size=30), *[st.floats(0, 1)] * 4), min_size=1, max_size=12
)


@settings(max_examples=25)
@given(boxes_in, st.integers(120, 500), st.integers(40, 400))
def test_labels_stay_in_the_picture(told, width, height):
    boxes = [
        Box(name, 0.5, (a * width, b * height, a * width + c * 99, b * height + d * 99))
        for name, a, b, c, d in told
    ]
    assert draw_boxes(grey(width, height), boxes).shape == (height, width, 3)
    places = np.array([box.xyxy for box in boxes]).clip(0, (width, height, width, height))
    lettering = _lettering(boxes, places, (width, height))
    # An anchor is the foot of a label.
    assert (lettering.anchors[:, 0] >= 0).all()
    assert (lettering.anchors[:, 0] < width).all()
    assert (lettering.anchors[:, 1] <= height).all()
    assert all("\n" not in text for text in lettering.texts)


def test_labels_do_not_hide_each_other_where_there_is_room():
    boxes = np.array([[100, 100, 140, 140]] * 4 + [[102, 100, 150, 139]] * 4, np.float64)
    corners, hidden = _placed(boxes, [(60.0, 14.0)] * 8, (400, 400))
    assert hidden == 0.0
    assert len(set(corners)) == 8
    assert corners[0] == (100.0, 86.0)  # above its box


def test_letters_grow_with_the_picture_and_shrink_where_it_is_crowded():
    one = [Box("cat", 0.9, (100, 100, 200, 200))]

    def size(width, boxes):
        places = np.array([box.xyxy for box in boxes])
        return _lettering(boxes, places, (width, width * 3 // 4)).size

    assert size(200, one) == 10
    assert size(640, one) == 14
    assert size(4000, one) == 87
    crowd = [Box("a long label", 0.9, (100 + i, 100, 140 + i, 140)) for i in range(40)]
    assert size(640, crowd) == 10


def test_labels_in_any_script_and_of_any_length():
    names = ["größer", "日本", "кошка", "a\nb", "x" * 300, "🐈"]
    boxes = [Box(name, 0.9, (10, 40 + 20 * i, 100, 60 + 20 * i)) for i, name in enumerate(names)]
    found = draw_boxes(grey(300, 200), boxes, names)
    for place in range(len(names)):
        assert (found == rgb(place)).all(axis=2).any()
    letters = [_fonts()[_font_for(text)] for text in ("cat", "größer", "кошка")]
    for font, text in zip(letters, ("cat", "größer", "кошка"), strict=True):
        assert _lacking(font, frozenset(text)) == 0, text
    assert _font_for("cat 0.90") is None
    lettering = _lettering(boxes, np.array([box.xyxy for box in boxes]), (300, 200))
    assert lettering.texts[4].startswith("xxx")
    assert lettering.texts[4].endswith("… 0.90")


def test_pictures_are_named_as_images_below_the_folder(tmp_path):
    items = [
        of_path("2024/a.jpg"),
        of_path("2024/a.png"),
        of_path("2024/a.webp"),
        of_path("b.JPEG"),
        Item(
            "https://example.org/x/y/cat.png?size=3", url="https://example.org/x/y/cat.png?size=3"
        ),
        Item("image-1", data=b"x"),
    ]
    answers = drawn(tmp_path, *items)
    assert [answer["boxes"] for answer in answers] == [(CAT,)] * len(items)
    assert written(tmp_path) == [
        "2024/a.jpg",
        "2024/a.png",
        "2024/a.webp.jpg",
        "b.JPEG",
        "image-1.jpg",
        "x/y/cat.png",
    ]
    with Image.open(tmp_path / "2024/a.png") as image:
        assert (image.format, image.size) == ("PNG", (120, 90))
        expected = draw_boxes(grey(120, 90), [CAT], ["cat"])
        np.testing.assert_array_equal(np.asarray(image), expected)
    with Image.open(tmp_path / "b.JPEG") as image:
        assert image.format == "JPEG"
        assert np.abs(np.asarray(image).astype(int) - expected).mean() < 3


def test_what_is_too_long_for_a_jpeg_does_not_stop_a_run(tmp_path):
    long = Picture(of_path("long.tif"), 65_501, 1, grey(65_501, 1))
    Drawn(Found(CAT), tmp_path, ("cat",)).annotate([long], np.zeros((1, 3, 4, 4)))
    assert written(tmp_path) == ["long.tif.png"]
    with Image.open(tmp_path / "long.tif.png") as image:
        assert (image.format, image.size) == ("PNG", (65_501, 1))


def test_images_of_one_name_have_a_picture_each(tmp_path):
    both = [of_path("a.jpg", "one"), of_path("a.jpg", "two"), of_path("A.JPG", "three")]
    drawn(tmp_path, *both)
    first = written(tmp_path)
    assert len(first) == 3
    assert "a.jpg" in first
    # A run that goes on in their middle finds the same names again.
    drawn(tmp_path, *both)
    drawn(tmp_path, *both[1:])
    assert written(tmp_path) == first


def test_what_is_there_is_not_written_over(tmp_path):
    """A folder that holds the photos themselves, for one."""
    photo = tmp_path / "a.jpg"
    Image.fromarray(grey(50, 50)).save(photo)
    (tmp_path / "b.png").write_bytes(b"no image")
    before = photo.read_bytes()
    drawn(tmp_path, of_path("a.jpg"), of_path("b.png"))
    assert photo.read_bytes() == before
    assert (tmp_path / "b.png").read_bytes() == b"no image"
    assert len(written(tmp_path)) == 4
    # Its own picture of an earlier run is.
    drawn(tmp_path, of_path("a.jpg"), task=Drawn(Found(), tmp_path))
    assert len(written(tmp_path)) == 4


def test_names_that_lead_elsewhere_stay_in_the_folder(tmp_path):
    told = ["../../up.jpg", "/etc/x.jpg", "c:\\d\\e.jpg", "con.jpg", "a/../../b.jpg"]
    items = [Item(name, data=b"x", relative=name) for name in told]
    drawn(tmp_path / "in", *items)
    assert len(written(tmp_path / "in")) == len(told)
    assert written(tmp_path) == [f"in/{name}" for name in written(tmp_path / "in")]


def test_pictures_that_cannot_be_written_end_the_run(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        drawn(tmp_path / "file", of_path("a.jpg"))


def test_it_is_the_task_that_it_draws(tmp_path):
    task = Drawn(Found(CAT), tmp_path)
    assert (task.part, task.source, task.inputs) == ("boxes", "found@1", (SQUASH,))
    assert (task.streams, task.batch_size, task.needs_pixels) == (1, 2, True)


def test_nothing_is_told_of_libraries_that_are_not_needed(tmp_path, monkeypatch):
    """supervision warns on standard error, among the lines of a run, that OpenCV is missing."""
    (tmp_path / "supervision.py").write_text(
        "import warnings\nwarnings.warn('OpenCV (`opencv-python`) is not installed', stacklevel=2)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "supervision")
    assert _library().__file__ == str(tmp_path / "supervision.py")
