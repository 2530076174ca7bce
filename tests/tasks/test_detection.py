"""Which boxes an image gets: thresholds, non-maximum suppression, tiles, examples, and where boxes are."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from annotary.cards import Card
from annotary.errors import UsageError
from annotary.images import DecodeOptions
from annotary.pipeline import PipelineOptions, annotate
from annotary.preprocess import fit, to_batch
from annotary.records import Item
from annotary.runtime import RuntimeOptions
from annotary.sources import Reader, SourceOptions
from annotary.tasks.detection import Detection, DetectionOptions
from annotary.tasks.label_sets import LabelSet
from annotary.tasks.locating import Located, detector
from annotary.tasks.nms import kept_boxes, overlaps
from annotary.tasks.queries import Example, QueryOptions, read_box, read_queries
from annotary.tasks.text_cache import TextCache
from annotary.tasks.tiles import Tile, is_cut, tiles_of, without_pieces
from tests.tasks.detectors import (
    COLOURS,
    CORNER,
    PAD,
    SQUASH,
    ColourDetector,
    pictures_of,
    scene,
)

SPECS = {"squash": SQUASH, "pad": PAD, "corner": CORNER}


class ListedDetector:
    """Gives the same boxes and logits for every image.

    Args:
        boxes: float[n, 4], `xyxy`, 0..1.
        logits: float[n, q].
    """

    def __init__(self, boxes, logits):
        self.card = Card("listed", "1.0", "listed", "Apache-2.0", SQUASH)
        self.streams, self.batch_size = 1, 4
        self._found = (np.asarray(boxes, np.float32), np.asarray(logits, np.float32))
        self.calls: list[int] = []

    def embed_queries(self, texts):
        from annotary.models._texts import Texts

        return Texts(np.ones((len(texts), 2), np.float32), np.zeros(len(texts), np.bool_))

    def locate(self, batch, queries):
        self.calls.append(len(batch))
        boxes, logits = (np.stack([one] * len(batch)) for one in self._found)
        assert logits.shape[2] == len(queries)
        return Located(boxes, logits)


def logit(score):
    return np.log(score) - np.log1p(-np.asarray(score, np.float64))


def listed(boxes, scores, names, width=100, height=100, thresholds=None, **options):
    """The boxes of one image as (label, score, xyxy)."""
    model = ListedDetector(boxes, logit(scores))
    labels = LabelSet.of(names, "{}")
    task = Detection(model, labels, DetectionOptions(**options), thresholds=thresholds)
    photo = np.zeros((height, width, 3), np.uint8)
    (answer,) = task.annotate(pictures_of([photo]), np.zeros((1, 3, 128, 128), np.float32))
    return [(box.label, box.score, box.xyxy) for box in answer["boxes"]], task


def detect(model, photos, labels=("red", "green", "blue"), **options):
    """The boxes of photos, whole images prepared as the pipeline does."""
    examples = options.pop("examples", ())
    told = LabelSet.of(list(labels), "{}") if labels else None
    task = Detection(model, told, DetectionOptions(**options), examples=examples)
    spec = model.card.preprocess
    batch = to_batch([fit(photo, spec) for photo in photos], spec)
    return [answer["boxes"] for answer in task.annotate(pictures_of(photos), batch)], task


FOUR = [[0.1, 0.1, 0.3, 0.3], [0.5, 0.1, 0.9, 0.3], [0.1, 0.5, 0.3, 0.9], [0.6, 0.6, 0.8, 0.8]]


def test_a_box_gets_its_best_label_above_the_threshold():
    found, _ = listed(FOUR, [[0.3, 0.2], [0.1001, 0.05], [0.099, 0.09], [0.2, 0.9]], ["a", "b"])
    assert [(label, score) for label, score, _ in found] == [("b", 0.9), ("a", 0.3), ("a", 0.1001)]
    assert found[0][2] == pytest.approx((60.0, 60.0, 80.0, 80.0), abs=1e-3)


def test_a_score_must_be_above_its_threshold():
    """As in transformers, strictly; 0.5 is a logit of exactly 0."""
    assert listed(FOUR[:1], [[0.5]], ["a"], threshold=0.5)[0] == []
    assert len(listed(FOUR[:1], [[0.5]], ["a"], threshold=0.4999)[0]) == 1
    assert len(listed(FOUR[:1], [[1e-9]], ["a"], threshold=0.0)[0]) == 1
    assert listed(FOUR[:1], [[1 - 1e-9]], ["a"], threshold=1.0)[0] == []


def test_boxes_with_several_labels():
    scores = [[0.8, 0.7], [0.05, 0.3], [0.01, 0.01], [0.2, 0.2]]
    found, _ = listed(FOUR, scores, ["a", "b"], multi_label=True)
    assert [(label, score) for label, score, _ in found] == [
        ("a", 0.8),
        ("b", 0.7),
        ("b", 0.3),
        ("a", 0.2),
        ("b", 0.2),
    ]


def test_thresholds_of_labels_go_before_the_other():
    scores = [[0.8, 0.7], [0.6, 0.3], [0.2, 0.15], [0.02, 0.01]]
    found, _ = listed(FOUR, scores, ["a", "b"], thresholds={"a": 0.7})
    # Of a box whose best label is not above its own threshold the next best is told.
    assert [(label, score) for label, score, _ in found] == [("a", 0.8), ("b", 0.3), ("b", 0.15)]
    ontology = {"a": {"prompts": ["x"], "threshold": 0.7}, "b": {"prompts": ["y"]}}
    model = ListedDetector(FOUR, logit(scores))
    task = Detection(model, LabelSet.of(ontology, "{}"))
    (answer,) = task.annotate(
        pictures_of([np.zeros((9, 9, 3), np.uint8)]), np.zeros((1, 3, 128, 128), np.float32)
    )
    assert [box.label for box in answer["boxes"]] == ["a", "b", "b"]
    with pytest.raises(UsageError, match="'c', which is no label"):
        listed(FOUR, scores, ["a", "b"], thresholds={"c": 0.7})
    with pytest.raises(UsageError, match=r"must be in 0\.\.1"):
        listed(FOUR, scores, ["a", "b"], thresholds={"a": 7})


def test_boxes_outside_or_without_area_are_left_out_and_counted():
    boxes = [[-0.2, -0.1, 0.5, 0.5], [1.1, 0.1, 1.2, 0.5], [0.5, 0.5, 0.5, 0.9], [0.9, 0.9, 1.4, 2]]
    found, task = listed(boxes, [[0.9]] * 4, ["a"], width=200, height=50)
    assert [xyxy for *_, xyxy in found] == [(0, 0, 100, 25), (180, 45, 200, 50)]
    assert task.empty == 2


def test_the_smallest_and_the_most():
    boxes = [[0, 0, 0.5, 0.05], [0, 0, 0.5, 0.5], [0, 0, 0.1, 0.3], [0, 0, 0.2, 0.2]]
    scores = [[0.9], [0.8], [0.7], [0.6]]
    found, _ = listed(boxes, scores, ["a"], min_size=10)
    assert [score for _, score, _ in found] == [0.8, 0.7, 0.6]
    found, _ = listed(boxes, scores, ["a"], top=2, min_size=10)
    assert [score for _, score, _ in found] == [0.8, 0.7]


NEAR = [[0, 0, 0.4, 0.4], [0, 0, 0.4, 0.36], [0.02, 0, 0.42, 0.4], [0.6, 0.6, 0.9, 0.9]]


def test_without_suppression_all_boxes_of_the_model_come():
    assert len(listed(NEAR, [[0.5], [0.6], [0.7], [0.4]], ["a"])[0]) == 4


def test_suppression_of_one_label_and_of_all():
    scores = [[0.5, 0.1], [0.6, 0.1], [0.1, 0.7], [0.4, 0.1]]
    found, _ = listed(NEAR, scores, ["a", "b"], nms=0.5)
    assert [(label, score) for label, score, _ in found] == [("b", 0.7), ("a", 0.6), ("a", 0.4)]
    found, _ = listed(NEAR, scores, ["a", "b"], nms=0.5, nms_scope="all")
    assert [(label, score) for label, score, _ in found] == [("b", 0.7), ("a", 0.4)]


def test_equal_scores_stay_in_order():
    found, _ = listed(FOUR, [[0.5]] * 4, ["a"])
    assert [xyxy[0] for *_, xyxy in found] == pytest.approx([10, 50, 10, 60], abs=1e-3)


boxes_of = st.lists(
    st.tuples(*[st.integers(0, 9)] * 4).map(
        lambda b: (b[0], b[1], b[0] + 1 + b[2], b[1] + 1 + b[3])
    ),
    min_size=1,
    max_size=12,
)


@given(boxes_of, st.integers(0, 99), st.floats(0, 1), st.booleans())
def test_suppression_is_the_plain_rule(boxes, seed, overlap, compares_all):
    """One by one, the best first: it stays unless a better one that stayed covers it."""
    random = np.random.default_rng(seed)
    every = np.array(boxes, np.float64)
    scores = random.integers(1, 6, len(boxes)) / 6
    labels = random.integers(0, 2, len(boxes))
    expected: list[int] = []
    for place in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        stayed = [i for i in expected if compares_all or labels[i] == labels[place]]
        if not any(overlaps(every[i], every[place : place + 1])[0] > overlap for i in stayed):
            expected.append(place)
    among = None if compares_all else labels
    assert kept_boxes(every, scores, among, overlap).tolist() == expected


def test_of_thousands_of_labels_each_is_compared_by_itself(monkeypatch):
    """With 2,000 labels an image may have a million boxes, of which each would be compared with all others."""
    compared = []
    monkeypatch.setattr(
        "annotary.tasks.nms.intersections",
        lambda box, others: compared.append(len(others)) or np.zeros(len(others)),
    )
    labels = np.arange(300) % 100
    boxes = np.tile([0.0, 0.0, 1.0, 1.0], (300, 1))
    assert len(kept_boxes(boxes, np.linspace(1, 0, 300), labels, 0.5)) == 300
    assert sum(compared) == 100 * (2 + 1 + 0)


@pytest.mark.parametrize("fitted", SPECS)
@pytest.mark.parametrize("size", [(400, 160), (160, 400), (256, 256), (301, 77)])
def test_boxes_are_in_pixels_of_images_of_any_shape(fitted, size):
    """huggingface/transformers#27205, #27705, #30131 (boxes of OWLv2 shifted where an image is not square: scaled
    by its own sides and not by those of the padded square) and #18553 (OWL-ViT's beside the thing)."""
    width, height = size
    box = (width // 8, height // 4, width // 2, height - height // 4)
    photo = scene(width, height, ("red", box), ("blue", (width - 40, 0, width, 30)))
    (found,), _ = detect(ColourDetector(SPECS[fitted]), [photo], threshold=0.5)
    red, blue = (next(b for b in found if b.label == label) for label in ("red", "blue"))
    pixel = 1.5 * max(width, height) / 128  # of the network's input
    assert red.xyxy == pytest.approx(box, abs=pixel)
    assert blue.xyxy == pytest.approx((width - 40, 0, width, 30), abs=pixel)


@pytest.mark.parametrize("fitted", SPECS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_are_in_pixels_of_the_upright_image(tmp_path, fitted, orientation):
    """However a camera was held: EXIF says how the stored picture is turned."""
    upright = scene(300, 120, ("red", (30, 60, 90, 110)), ("green", (200, 10, 280, 50)))
    stored = Image.fromarray(upright)
    turns = {
        1: (),
        2: (Image.Transpose.FLIP_LEFT_RIGHT,),
        3: (Image.Transpose.ROTATE_180,),
        4: (Image.Transpose.FLIP_TOP_BOTTOM,),
        5: (Image.Transpose.TRANSPOSE,),
        6: (Image.Transpose.ROTATE_90,),
        7: (Image.Transpose.TRANSVERSE,),
        8: (Image.Transpose.ROTATE_270,),
    }
    for turn in turns[orientation]:
        stored = stored.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.png"
    stored.save(path, exif=exif)
    task = Detection(ColourDetector(SPECS[fitted]), LabelSet.of("red, green", "{}"))
    with Reader(SourceOptions()) as reader:
        (result,) = annotate(
            [Item.from_path(path)], [task], reader, DecodeOptions(), PipelineOptions()
        )
    record = result.record
    assert (record.width, record.height) == (300, 120)
    edges = {box.label: box.xyxy for box in record.boxes}
    assert edges["red"] == pytest.approx((30, 60, 90, 110), abs=4)
    assert edges["green"] == pytest.approx((200, 10, 280, 50), abs=4)


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(32, 1200), st.floats(0, 0.9))
def test_tiles_cover_the_image_and_overlap(width, height, side, overlap):
    tiles = tiles_of(width, height, side, overlap)
    if width <= side and height <= side:
        assert tiles == []
        return
    assert len(set(tiles)) == len(tiles)
    for length, edges in (
        (width, sorted({(tile.left, tile.right) for tile in tiles})),
        (height, sorted({(tile.top, tile.bottom) for tile in tiles})),
    ):
        assert edges[0][0] == 0
        assert edges[-1][1] == length
        assert all(end - start == min(side, length) for start, end in edges)
        for (_, end), (start, _) in pairwise(edges):
            assert end - start >= side * overlap - 2  # they begin on whole pixels


def test_pieces_go_where_there_is_the_whole():
    boxes = np.array(
        [[0, 0, 100, 40], [60, 0, 100, 40], [60, 0, 101, 40], [60, 0, 100, 40], [300, 0, 340, 40]],
        np.float64,
    )
    cut = is_cut(boxes, Tile(0, 0, 100, 100), 500, 100)
    assert cut.tolist() == [True, True, True, True, True]
    assert not is_cut(boxes[:2], Tile(0, 0, 100, 100), 100, 100).any()
    cut = np.array([False, True, True, True, True])
    scores = np.array([0.3, 0.5, 0.5, 0.7, 0.5])
    labels = np.array([0, 0, 1, 0, 0])
    # Of another label, far more likely than the whole, or elsewhere: they stay.
    assert without_pieces(boxes, scores, labels, cut).tolist() == [0, 2, 3, 4]


TILED = {"tile": 200, "tile_overlap": 0.3, "threshold": 0.5}


def test_small_things_are_found_in_tiles():
    """At once each square is a pixel of the input, and those that lie between two are none."""
    squares = [("red", (x, y, x + 12, y + 12)) for x in (95, 370, 610) for y in (50, 330)]
    photo = scene(800, 400, *squares)
    (whole,), _ = detect(ColourDetector(), [photo], threshold=0.5, min_size=2)
    (found,), task = detect(ColourDetector(), [photo], **TILED)
    assert task.needs_pixels
    assert len(found) == len(squares)
    for _, box in squares:
        assert any(one.xyxy == pytest.approx(box, abs=1.6) for one in found), box
    assert (
        sum(any(one.xyxy == pytest.approx(box, abs=1.6) for one in whole) for _, box in squares) < 6
    )


@pytest.mark.parametrize("left", range(60, 340, 20))
def test_a_thing_where_tiles_overlap_comes_once(left):
    """Whole in one tile, cut by the edge of its neighbour, or whole in both: it is one thing."""
    photo = scene(
        480, 200, ("red", (left, 40, left + 50, 90)), ("blue", (left, 120, left + 50, 170))
    )
    (found,), _ = detect(ColourDetector(), [photo], **TILED)
    assert sorted(box.label for box in found) == ["blue", "red"]
    for box in found:
        assert box.xyxy[0] == pytest.approx(left, abs=4)
        assert box.xyxy[2] == pytest.approx(left + 50, abs=4)


def test_a_thing_that_is_larger_than_a_tile_comes_once():
    """Only the whole image shows it whole; what tiles show of it are pieces."""
    photo = scene(700, 500, ("red", (60, 50, 640, 450)))
    (found,), _ = detect(ColourDetector(), [photo], **TILED)
    assert [box.xyxy for box in found] == [pytest.approx((60, 50, 640, 450), abs=6)]


def test_things_at_the_edges_of_the_image_are_not_cut():
    photo = scene(500, 300, ("red", (0, 0, 40, 40)), ("red", (470, 260, 500, 300)))
    (found,), _ = detect(ColourDetector(), [photo], **TILED)
    assert len(found) == 2


def test_small_images_need_no_tiles():
    model = ColourDetector()
    photo = scene(180, 200, ("red", (10, 10, 60, 60)))
    (found,), _ = detect(model, [photo], **TILED)
    assert len(found) == 1
    assert model.images == [1]


def test_tiles_go_in_batches():
    model = ColourDetector(batch_size=4)
    detect(model, [scene(700, 500)], **TILED)
    tiles = len(tiles_of(700, 500, 200, 0.3))
    assert tiles == 20
    assert model.images == [1, 4, 4, 4, 4, 4]


def test_many_labels_are_asked_of_few_images_at_once():
    names = [f"l{number}" for number in range(2000)]
    model = ListedDetector(FOUR, np.full((4, 2000), -1.0))
    task = Detection(model, LabelSet.of(names, "{}"))
    task.annotate(pictures_of([np.zeros((9, 9, 3), np.uint8)] * 7), np.zeros((7, 3, 4, 4)))
    assert model.calls == [3, 3, 1]


def test_examples_find_what_is_like_them():
    photo = scene(300, 200, ("red", (10, 10, 60, 60)), ("green", (100, 100, 180, 180)))
    other = scene(90, 60, ("green", (40, 10, 80, 50)), ("red", (0, 0, 30, 30)))
    shown = Example("thing", other, (40, 10, 80, 50))
    (found,), task = detect(ColourDetector(PAD), [photo], None, examples=[shown], threshold=0.5)
    assert task.names == ("thing",)
    assert [box.label for box in found] == ["thing"]
    assert found[0].xyxy == pytest.approx((100, 100, 180, 180), abs=4)
    crop = Example("thing", other[10:50, 40:80])  # the whole of an image
    assert detect(ColourDetector(PAD), [photo], None, examples=[crop], threshold=0.5)[0] == [found]


def test_examples_of_one_name_are_one_query():
    """huggingface/transformers#29089 asks for several images of one thing."""
    red, green = (Example("it", scene(40, 40, (c, (0, 0, 40, 40)))) for c in ("red", "green"))
    photo = scene(300, 200, ("red", (10, 10, 60, 60)), ("green", (100, 100, 180, 180)))
    (found,), task = detect(ColourDetector(), [photo], None, examples=[red, green], threshold=0.1)
    assert task.names == ("it",)
    assert len(found) == 2
    with pytest.raises(UsageError, match="'red' is a label and the name of an example"):
        detect(ColourDetector(), [photo], examples=[Example("red", photo)])


def test_examples_suppress_unless_told_otherwise():
    """0.3 is what transformers takes for image-guided detection; `nms=1` keeps all."""
    photo = np.zeros((9, 9, 3), np.uint8)

    class Guided(ListedDetector):
        def queries_like(self, batch, boxes):
            return np.ones((len(batch), 2), np.float32)

    for options, expected in (({}, 2), ({"nms": 1.0}, 4), ({"nms": 0.85}, 3)):
        model = Guided(NEAR, logit([[0.5], [0.6], [0.7], [0.4]]))
        task = Detection(model, None, DetectionOptions(**options), examples=[Example("x", photo)])
        (answer,) = task.annotate(pictures_of([photo]), np.zeros((1, 3, 4, 4)))
        assert len(answer["boxes"]) == expected, options


@pytest.mark.parametrize(
    ("box", "told"),
    [
        ((5, 5, 5, 20), "has no area"),
        ((20, 5, 10, 20), "has no area"),
        ((5, 5, 400, 20), "not within its image, which has 90 x 60"),
        ((-1, 5, 40, 20), "not within"),
        ((float("nan"), 5, 40, 20), "four numbers"),
    ],
)
def test_boxes_of_examples_that_make_no_sense(box, told):
    with pytest.raises(UsageError, match=told):
        Example("x", scene(90, 60), box)


def test_boxes_in_words():
    assert read_box("1, 2,30,4.5") == (1.0, 2.0, 30.0, 4.5)
    for text in ("1,2,3", "a,b,c,d", "", "1,2,3,4,5"):
        with pytest.raises(UsageError, match="left, top, right and bottom"):
            read_box(text)
    with pytest.raises(UsageError, match="needs a name"):
        Example(" ", scene(9, 9))


def test_nothing_to_look_for():
    with pytest.raises(UsageError, match="say what to look for"):
        Detection(ColourDetector(), None)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"threshold": 1.5}, "threshold must be in 0..1"),
        ({"threshold": True}, "threshold must be in 0..1"),
        ({"nms": -0.1}, "nms must be in 0..1"),
        ({"nms_scope": "image"}, "nms_scope must be label or all"),
        ({"top": 0}, "top must be whole"),
        ({"min_size": -1}, "min_size must be pixels"),
        ({"tile": 10}, "tile must be pixels"),
        ({"tile": 640.5}, "tile must be pixels"),
        ({"tile_overlap": 0.95}, "tile_overlap must be in 0..0.9"),
        ({"multi_label": 1}, "multi_label must be"),
    ],
)
def test_options_that_make_no_sense(options, told):
    with pytest.raises(ValueError, match=told):
        DetectionOptions(**options)


def test_texts_are_embedded_once_a_run_and_remembered(tmp_path):
    """huggingface/transformers#20163, voxel51/fiftyone#5761, roboflow/inference#413: texts are embedded anew for every
    image there. Here every prompt once, though two labels have it; the next run asks the model for new ones alone."""
    model = ColourDetector()
    labels = LabelSet.of({"warm": ["red", "a red wall"], "stop": ["red", "halt"]})
    cache = TextCache("a detector", tmp_path)
    one = Detection(model, labels, cache=cache)
    assert [sorted(texts) for texts in model.texts] == [["a red wall", "halt", "red"]]
    model.texts.clear()
    more = LabelSet.of({"warm": ["red", "a red wall"], "sea": ["blue"]})
    other = Detection(model, more, cache=TextCache("a detector", tmp_path))
    assert model.texts == [("blue",)]
    np.testing.assert_array_equal(one._queries[0], other._queries[0])


def test_labels_that_are_cut_are_told():
    model = ColourDetector()
    task = Detection(model, LabelSet.of(["red", "a b c d e"], "{}"))
    assert task.truncated == ("a b c d e",)


def test_settings_say_what_boxes_depend_on():
    def settings(labels=("red",), thresholds=None, examples=(), **options):
        told = LabelSet.of(list(labels), "{}")
        return Detection(
            ColourDetector(),
            told,
            DetectionOptions(**options),
            thresholds=thresholds,
            examples=examples,
        ).settings()

    base = settings()
    assert settings() == base
    others = [
        settings(("red", "blue")),
        settings(threshold=0.2),
        settings(thresholds={"red": 0.3}),
        settings(nms=0.5),
        settings(nms_scope="all"),
        settings(top=3),
        settings(min_size=4),
        settings(multi_label=True),
        settings(tile=500),
        settings(tile=500, tile_overlap=0.1),
        settings(examples=[Example("x", scene(9, 9))]),
        settings(examples=[Example("x", scene(9, 9), (1, 1, 5, 5))]),
        settings(examples=[Example("x", scene(9, 9, ("red", (0, 0, 3, 3))))]),
    ]
    assert len({repr(one) for one in [base, *others]}) == len(others) + 1


def test_what_is_looked_for_in_words(tmp_path):
    assert read_queries(QueryOptions(labels="a cat, a dog")).classes[0].prompts == ("a cat",)
    seven = read_queries(QueryOptions(labels="cat", templates="owl")).classes[0].prompts
    assert len(seven) == 7
    assert seven[2] == "a origami cat."
    path = tmp_path / "templates.txt"
    path.write_text("the {}\nmy {}\n")
    found = read_queries(QueryOptions(labels="cat", templates=str(path)))
    assert found.classes[0].prompts == ("the cat", "my cat")
    found = read_queries(QueryOptions(labels="cat", template=("one {}",)))
    assert found.classes[0].prompts == ("one cat",)
    for options, told in (
        (QueryOptions(labels=" , "), "no labels"),
        (QueryOptions(), "in one way"),
        (QueryOptions(labels="a", labels_file=Path("x")), "in one way"),
        (QueryOptions(labels="a", templates="nowhere.txt"), "nowhere.txt"),
    ):
        with pytest.raises(UsageError, match=told):
            read_queries(options)
    with pytest.raises(ValueError, match="take the place"):
        QueryOptions(template=("{}",), templates="owl")
    with pytest.raises(ValueError, match="template must have"):
        QueryOptions(template=("photo",))


def test_models_without_the_ability_say_so():
    from annotary.models import find, load_model

    starter = load_model(find("starter"), RuntimeOptions(threads=1))
    if not hasattr(starter, "locate"):
        with pytest.raises(UsageError, match="finds no boxes; say --model owlv2"):
            detector(starter)
    unguided = ListedDetector(FOUR, np.zeros((4, 1)))
    with pytest.raises(UsageError, match="takes no example image"):
        Detection(unguided, None, examples=[Example("x", scene(9, 9))])


def test_colours_of_the_fake_are_told_apart():
    (found,), _ = detect(ColourDetector(), [scene(64, 64, *_corners())], threshold=0.5)
    assert {box.label for box in found} == set(COLOURS)


def _corners():
    return [
        ("red", (0, 0, 20, 20)),
        ("green", (40, 0, 60, 20)),
        ("blue", (0, 40, 20, 60)),
    ]
