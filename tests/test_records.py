"""Records: what they refuse, and the round trip through JSON."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotary.errors import UnreadableImage
from annotary.records import (
    Annotation,
    Answer,
    Box,
    Caption,
    Embedding,
    Failure,
    Item,
    Label,
    Tag,
    from_line,
    to_line,
)

text = st.text(st.characters(), min_size=1, max_size=30)
probability = st.floats(0, 1)
side = st.integers(1, 100_000)


@st.composite
def boxes(draw):
    x, y = (
        sorted(draw(st.tuples(*[st.floats(0, 1e5)] * 2))),
        sorted(draw(st.tuples(*[st.floats(0, 1e5)] * 2))),
    )
    return Box(draw(text), draw(probability), (x[0], y[0], x[1], y[1]))


@st.composite
def annotations(draw):
    def some(part):
        return tuple(draw(st.lists(part, max_size=3)))

    parts = ("tags", "labels", "captions", "answers", "boxes", "embedding")
    return Annotation(
        image=draw(text),
        width=draw(side),
        height=draw(side),
        tags=some(st.builds(Tag, text, probability, st.sampled_from(["", "animal"]))),
        labels=some(st.builds(Label, text, probability)),
        captions=some(st.builds(Caption, text, st.none() | probability)),
        answers=some(st.builds(Answer, text, text, st.none() | probability)),
        boxes=some(boxes()),
        embedding=draw(st.none() | st.just(Embedding((0.6, 0.8)))),
        sources=draw(st.dictionaries(st.sampled_from(parts), text, max_size=3)),
    )


@given(annotations())
def test_annotation_round_trip(annotation):
    line = to_line(annotation)
    assert "\n" not in line
    assert from_line(line) == annotation
    assert from_line(line.encode("utf-8")) == annotation


@given(text, text, st.text(max_size=50))
def test_failure_round_trip(image, error, message):
    failure = Failure(image, error, message)
    assert from_line(to_line(failure).encode("utf-8")) == failure


def test_names_that_are_not_utf8_survive():
    name = os.fsdecode(b"caf\xe9.jpg")
    line = to_line(Annotation(name, 1, 1)).encode("utf-8")
    found = from_line(line)
    assert os.fsencode(found.image) == b"caf\xe9.jpg"


def test_the_line_of_the_design():
    annotation = Annotation(
        "photos/a.jpg",
        4032,
        3024,
        tags=(Tag("dog", 0.93, "general"),),
        boxes=(Box("dog", 0.88, (10.0, 20.5, 300.0, 400.0)),),
        sources={"tags": "starter@1.0"},
    )
    assert json.loads(to_line(annotation)) == {
        "image": "photos/a.jpg",
        "width": 4032,
        "height": 3024,
        "tags": [{"name": "dog", "score": 0.93, "category": "general"}],
        "boxes": [{"label": "dog", "score": 0.88, "xyxy": [10.0, 20.5, 300.0, 400.0]}],
        "sources": {"tags": "starter@1.0"},
    }


def test_a_part_that_was_asked_for_and_is_empty_is_written():
    assert Annotation("a", 1, 1, sources={"tags": "starter@1.0"}).to_json()["tags"] == []
    assert "tags" not in Annotation("a", 1, 1).to_json()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Tag("", 0.5), "tag name"),
        (lambda: Tag("dog", 1.5), "0..1"),
        (lambda: Tag("dog", math.nan), "0..1"),
        (lambda: Label("dog", -0.1), "0..1"),
        (lambda: Caption("a dog", 2.0), "0..1"),
        (lambda: Answer("", "two"), "question"),
        (lambda: Box("dog", 0.5, (10, 0, 5, 5)), "left, top, right, bottom"),
        (lambda: Box("dog", 0.5, (0, 0, math.inf, 5)), "finite"),
        (lambda: Embedding((1.0, 1.0)), "length 1"),
        (lambda: Embedding(()), "length 1"),
        (lambda: Annotation("a", 0, 1), "size must be whole and positive"),
        (lambda: Annotation("a", 1.5, 1), "size must be whole and positive"),
        (lambda: Annotation("a", 1, 1, tags="abc"), "tags must be a tuple of Tag"),
        (lambda: Annotation("a", 1, 1, boxes=(Tag("dog", 0.5),)), "boxes must be a tuple of Box"),
        (lambda: Tag("dog", score=True), "0..1"),
        (lambda: Annotation("", 1, 1), "image"),
        (lambda: Failure("a", "", "m"), "error"),
        (lambda: Item("a"), "exactly one"),
        (lambda: Item("a", url="http://x", data=b"x"), "exactly one"),
        (lambda: Item("", url="http://x"), "name"),
        (lambda: Item("a", pixels=np.zeros((2, 2), np.uint8)), r"\[H, W, 3\]"),
        (lambda: from_line("[]"), "JSON object"),
        (lambda: from_line('{"image": "a"}'), "not an annotation"),
        (lambda: from_line('{"image": "a", "width": 1, "height": 1, "x": 1}'), "unknown parts: x"),
        (lambda: from_line('{"image": "a", "error": "E"}'), "not a failure"),
        (lambda: from_line("{"), "Expecting"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_failure_of_an_exception_has_one_line():
    failure = Failure.of("a.jpg", UnreadableImage("truncated JPEG:\n  it ends"))
    assert failure == Failure("a.jpg", "UnreadableImage", "truncated JPEG: it ends")
    assert not failure.ok
    assert Annotation("a", 1, 1).ok


def test_scores_may_be_numbers_of_numpy():
    assert Tag("dog", np.float32(0.5)).score == 0.5


def test_records_are_frozen_and_can_be_members_of_sets():
    assert len({Annotation("a", 1, 1, sources={"tags": "x@1"}), Annotation("a", 1, 1)}) == 2
    with pytest.raises(AttributeError):
        Tag("dog", 0.5).score = 0.6  # type: ignore[misc]
