"""Captions, answers and matches from Python."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import annotary
from annotary.errors import UsageError
from tests.blip import KINDS, make_blip

pytest.importorskip("torch")
pytest.importorskip("transformers")

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("blip")
    return {
        kind: annotary.load(
            f"dir:{make_blip(root / kind, kind)}", threads=1, precision="fp32", runtime="torch"
        )
        for kind in KINDS
    }


@pytest.fixture
def pictures(tmp_path):
    for name in ("boats.jpg", "cat.jpg"):
        shutil.copy(EXAMPLES / name, tmp_path)
    return [tmp_path / "boats.jpg", tmp_path / "missing.jpg", tmp_path / "cat.jpg"]


def test_captions_come_in_order_with_failures_between(models, pictures):
    records = list(models["captioning"].caption(pictures, captions=2))
    assert [record.ok for record in records] == [True, False, True]
    assert all(len(record.captions) == 2 for record in records if record.ok)


def test_captions_are_judged_by_a_loaded_model(models, pictures):
    (record,) = models["captioning"].caption(pictures[0], matcher=models["itm"], min_match=0.0)
    assert 0.0 < record.captions[0].match < 1.0
    (record,) = models["captioning"].caption(pictures[0], matcher=models["itm"], min_match=1.0)
    assert record.captions == ()
    assert "captions" in record.sources


def test_an_image_is_encoded_once_for_several_calls(models, pictures):
    model = models["captioning"]
    list(model.caption(pictures[2]))
    before = model._models[0].encoded
    list(model.caption(pictures[2], prompt="a photo of", nucleus=0.9, captions=3))
    assert model._models[0].encoded == before


def test_questions_for_all_and_for_single_images(models, pictures):
    boats, _, cat = models["vqa"].ask(pictures, ["what?", "Is it red?"], answers=["yes", "no"])
    for record in (boats, cat):
        assert [answer.question for answer in record.answers] == ["what?", "Is it red?"]
        assert {answer.text for answer in record.answers} <= {"yes", "no"}
    own = {str(pictures[0]): "what?", str(pictures[2]): ["who?", "why?"]}
    boats, _, cat = models["vqa"].ask(pictures, own)
    assert [answer.question for answer in boats.answers] == ["what?"]
    assert [answer.question for answer in cat.answers] == ["who?", "why?"]


def test_texts_for_all_and_for_single_images(models, pictures):
    (record,) = models["itm"].match(pictures[0], "boats")
    assert [match.text for match in record.matches] == ["boats"]
    boats, _, cat = models["itm"].match(pictures, {str(pictures[2]): ["a cat", "a dog"]})
    assert boats.matches == ()
    assert [match.text for match in cat.matches] == ["a cat", "a dog"]
    assert cat.matches[0].cosine is not None


def test_what_is_cut_is_told(models, pictures):
    with pytest.warns(UserWarning, match="does not read all of"):
        list(models["vqa"].ask(pictures[0], "is it " * 40))
    with pytest.warns(UserWarning, match="does not read all of"):
        list(models["itm"].match(pictures[0], "a cat " * 40))


def test_what_makes_no_sense(models, pictures):
    writer, answerer, judge = models["captioning"], models["vqa"], models["itm"]
    for call, match in (
        (lambda: writer.caption(pictures, captions=0), "captions must be at least 1"),
        (lambda: writer.caption(pictures, nucleus=3.0), "nucleus must be in"),
        (lambda: writer.caption(pictures, min_match=0.5), "min_match needs a matcher"),
        (lambda: writer.caption(pictures, matcher=answerer), "does not judge texts"),
        (lambda: writer.caption(pictures, matcher=3), "matcher is a model's name or a loaded"),
        (lambda: writer.ask(pictures, "what?"), "answers no questions; blip-vqa-base does"),
        (lambda: writer.match(pictures, "a cat"), "does not judge texts"),
        (lambda: judge.caption(pictures), "writes no captions"),
        (lambda: answerer.ask(pictures, []), "at least one question"),
        (lambda: answerer.ask(pictures, 3), "questions are a text or a list of texts"),
        (lambda: answerer.ask(pictures, ["what?", 3]), "questions must be texts, but got 3"),
        (lambda: answerer.ask(pictures, "what?", answers=[]), "at least one answer"),
        (lambda: answerer.ask(pictures, "what?", max_length=0), "max_length must be"),
        (lambda: judge.match(pictures, b"a cat"), "texts are a text or a list of texts"),
    ):
        with pytest.raises(UsageError, match=match):
            call()
