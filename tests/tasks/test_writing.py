"""Captions, answers and matches as parts of records, with small models of BLIP's kind."""

from __future__ import annotations

import json

import numpy as np
import pytest

from annotary.errors import UsageError
from annotary.models import load_model
from annotary.records import Annotation, Item, from_line, to_line
from annotary.runtime import RuntimeOptions
from annotary.tasks import Picture
from annotary.tasks.answering import Answering, Question
from annotary.tasks.captioning import Captioning, CaptioningOptions
from annotary.tasks.matching import Matching, rerank
from annotary.tasks.own_texts import OwnTexts
from annotary.tasks.writing import Decoding, answerer, captioner, matcher
from tests.blip import KINDS, SIZE, make_blip

pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("blip")
    options = RuntimeOptions(threads=1, precision="fp32", runtime="torch")
    return {kind: load_model(f"dir:{make_blip(root / kind, kind)}", options) for kind in KINDS}


def pictures(*names):
    return [Picture(Item(name, data=b"x"), 40, 30) for name in names]


def images(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)


def survives(part, value):
    """A record with the part is the same through JSON and back."""
    record = Annotation("a.jpg", 40, 30, **{part: value}, sources={part: "x@1"})
    assert from_line(to_line(record)) == record


class TestCaptioning:
    def test_captions_are_a_part_of_records(self, models):
        task = Captioning(models["captioning"], Decoding(count=2))
        found = task.annotate(pictures("a", "b"), images(2))
        assert [len(parts["captions"]) for parts in found] == [2, 2]
        for parts in found:
            survives("captions", parts["captions"])
            assert all(0 < caption.score <= 1 for caption in parts["captions"])
            assert all(caption.match is None for caption in parts["captions"])
        assert task.source == "captioning@unversioned"
        assert len(task.inputs) == 1

    def test_a_matcher_judges_and_orders(self, models):
        """salesforce/LAVIS#17: captions carry no confidence of their own; a matcher says how well they fit."""
        how = Decoding(count=5, beams=5)
        plain = Captioning(models["captioning"], how, "a photo of")
        judged = Captioning(models["captioning"], how, "a photo of", matcher=models["itm"])
        assert judged.source == "captioning@unversioned+itm@unversioned"
        assert len(judged.inputs) == 2
        batch = images(2)
        (first, _), (found, _) = (
            plain.annotate(pictures("a", "b"), batch),
            judged.annotate(pictures("a", "b"), batch, batch),
        )
        captions = found["captions"]
        assert {one.text for one in captions} == {one.text for one in first["captions"]}
        matches = [one.match for one in captions]
        assert matches == sorted(matches, reverse=True)
        # What is judged is the whole sentence.
        ((whole,),) = models["itm"].match_texts(batch[:1], [[f"a photo of {captions[0].text}"]])
        assert captions[0].match == pytest.approx(whole.score, abs=1e-5)

    def test_captions_that_do_not_match_are_left_out(self, models):
        """The filter of CapFilt, whose code was never published (salesforce/BLIP#46, #54, #86, #226)."""
        how = Decoding(count=5, beams=5)
        batch, names = images(4), pictures("a", "b", "c", "d")
        every = Captioning(models["captioning"], how, matcher=models["itm"])
        scores = [
            one.match for parts in every.annotate(names, batch, batch) for one in parts["captions"]
        ]
        least = sorted(scores)[len(scores) // 2]
        some = Captioning(models["captioning"], how, matcher=models["itm"], min_match=least)
        kept = [
            one.match for parts in some.annotate(names, batch, batch) for one in parts["captions"]
        ]
        assert sorted(kept) == sorted(score for score in scores if score >= least)
        none = Captioning(models["captioning"], how, matcher=models["itm"], min_match=1.0)
        assert [parts["captions"] for parts in none.annotate(names, batch, batch)] == [()] * 4

    def test_what_makes_no_sense_is_told_before_the_first_image(self, models):
        with pytest.raises(UsageError, match="min_match needs a matcher"):
            Captioning(models["captioning"], min_match=0.5)
        with pytest.raises(UsageError, match="takes 21 tokens"):
            Captioning(models["captioning"], prompt="a " * 20)

    def test_settings_change_with_what_captions_depend_on(self, models):
        model, judge = models["captioning"], models["itm"]
        every = [
            Captioning(model).settings(),
            Captioning(model, Decoding(seed=1)).settings(),
            Captioning(model, Decoding(nucleus=0.9)).settings(),
            Captioning(model, prompt="a").settings(),
            Captioning(model, matcher=judge).settings(),
            Captioning(model, matcher=judge, min_match=0.5).settings(),
        ]
        assert len({json.dumps(settings) for settings in every}) == len(every)

    def test_options(self):
        assert CaptioningOptions().decoding() == Decoding()
        assert CaptioningOptions(captions=5).decoding().beams == 5
        drawn = CaptioningOptions(nucleus=0.9, captions=7).decoding()
        assert (drawn.repetition_penalty, drawn.count) == (1.1, 7)
        for wrong, match in (
            ({"captions": 0}, "captions must be at least 1"),
            ({"captions": 4, "beams": 2}, "captions must be at most beams"),
            ({"min_match": 2.0}, "min_match must be in"),
            ({"beams": 0}, "beams must be at least 1"),
            ({"max_length": 2}, "max_length must be at least"),
        ):
            with pytest.raises(ValueError, match=match):
                CaptioningOptions(**wrong)


class TestAnswering:
    def test_every_image_is_asked_everything(self, models):
        task = Answering(models["vqa"], [Question("Is it?"), Question("red?", ("yes", "no"))])
        found = task.annotate(pictures("a", "b"), images(2))
        for parts in found:
            survives("answers", parts["answers"])
            assert [answer.question for answer in parts["answers"]] == ["Is it?", "red?"]
            assert parts["answers"][1].text in ("yes", "no")

    def test_several_of_the_answers_to_choose_from(self, models):
        questions = [Question("red?", ("yes", "no", "two")), Question("what?")]
        task = Answering(models["vqa"], questions, top=2)
        (parts,) = task.annotate(pictures("a"), images(1))
        assert [answer.question for answer in parts["answers"]] == ["red?", "red?", "what?"]
        assert parts["answers"][0].score >= parts["answers"][1].score

    def test_questions_of_single_images(self, models):
        own = OwnTexts(
            {
                "a": [Question("what?"), Question("red?", ("yes", "no")), Question("why?")],
                "c": [Question("blue?", ("yes", "no"))],
                "z": [Question("never?")],
            }
        )
        task = Answering(models["vqa"], of_image=own)
        batch = images(3)
        found = task.annotate(pictures("a", "b", "c"), batch)
        asked = [[answer.question for answer in parts["answers"]] for parts in found]
        assert asked == [["what?", "red?", "why?"], [], ["blue?"]]
        assert task.unasked == 1
        assert own.unmet == ("z",)
        (alone,) = Answering(models["vqa"], [Question("why?")]).annotate(pictures("a"), batch[:1])
        assert alone["answers"][0].text == found[0]["answers"][2].text

    def test_what_makes_no_sense(self, models):
        model = models["vqa"]
        with pytest.raises(UsageError, match="at least one question"):
            Answering(model)
        with pytest.raises(UsageError, match="a question is empty"):
            Answering(model, [Question("  ")])
        with pytest.raises(UsageError, match="an answer to 'what\\?' is empty"):
            Answering(model, [Question("what?", ("yes", ""))])
        with pytest.raises(UsageError, match="top must be at least 1"):
            Answering(model, [Question("what?")], top=0)

    def test_questions_that_are_not_read_to_their_end_are_told(self, models):
        long = "is it " * 40
        assert Answering(models["vqa"], [Question("is it?"), Question(long)]).truncated == (long,)


class TestMatching:
    def test_every_image_is_compared_with_all_texts(self, models):
        task = Matching(models["itm"], ["a cat", "Two DOGS!"])
        found = task.annotate(pictures("a", "b"), images(2))
        for parts in found:
            survives("matches", parts["matches"])
            assert [match.text for match in parts["matches"]] == ["a cat", "Two DOGS!"]

    def test_pairs(self, models):
        task = Matching(models["itm"], of_image=OwnTexts({"a": ["a cat"], "b": ["dogs", "birds"]}))
        found = task.annotate(pictures("b", "a", "c"), images(3))
        texts = [[match.text for match in parts["matches"]] for parts in found]
        assert texts == [["dogs", "birds"], ["a cat"], []]
        assert task.untold == 1

    def test_what_makes_no_sense(self, models):
        with pytest.raises(UsageError, match="at least one text"):
            Matching(models["itm"])
        with pytest.raises(UsageError, match="a text to match is empty"):
            Matching(models["itm"], ["a cat", " "])
        long = "a photo of a cat " * 20
        assert Matching(models["itm"], ["a cat", long]).truncated == (long,)


class TestRerank:
    def test_the_second_look_decides(self):
        cosines = np.array([0.5, 0.4, 0.3], np.float32)
        logits = np.array([-2.0, 3.0, 2.95], np.float32)
        assert rerank(cosines, logits).tolist() == [1, 2, 0]

    def test_equal_scores_stay_in_their_order(self):
        assert rerank(np.ones(4, np.float32), np.ones(4, np.float32)).tolist() == [0, 1, 2, 3]

    def test_with_a_model(self, models):
        """The best by cosine, looked at again: as reading all pairs and adding up."""
        model, batch = models["itm"], images(6)
        cosines = (model.embed_texts(["a cat"]).vectors @ model.embed_images(batch).T)[0]
        best = np.argsort(-cosines)[:4]
        matches = [some[0] for some in model.match_texts(batch[best], [["a cat"]] * 4)]
        order = best[rerank(cosines[best], np.array([one.logit for one in matches], np.float32))]
        wanted = sorted(best, key=lambda i: -(cosines[i] + matches[list(best).index(i)].logit))
        assert order.tolist() == [int(i) for i in wanted]

    def test_other_numbers_of_each(self):
        with pytest.raises(ValueError, match="same number"):
            rerank(np.ones(4, np.float32), np.ones(3, np.float32))


def test_abilities(models):
    assert captioner(models["captioning"]) is models["captioning"]
    for check, kind, match in (
        (captioner, "vqa", "writes no captions; blip-image-captioning-base does"),
        (answerer, "itm", "answers no questions; blip-vqa-base does"),
        (matcher, "captioning", "does not judge texts; blip-itm-base-coco does"),
    ):
        with pytest.raises(UsageError, match=match):
            check(models[kind])
