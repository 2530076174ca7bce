"""Tagging: the task, from a model's scores to the tags of images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotary.cards import Card, PreprocessSpec, Vocabulary
from annotary.errors import UsageError
from annotary.records import Tag
from annotary.tasks.tag_selection import TaggingOptions
from annotary.tasks.tagging import SingleTagger, Tagging, tagger

NAMES = ("dog", "cat", "fish bowl", "goldfish", "sky")


class Scores:
    """A tagger that says what it is told."""

    streams = 1
    batch_size = 1
    card = Card("told", "1", "none", "MIT", PreprocessSpec((1, 1)))

    def __init__(self, presets: bool = True) -> None:
        thresholds = {"balanced": (0.5, 0.2, 0.5, 0.5, 0.9), "precise": (0.9,) * 5}
        categories = ("animal", "animal", "object", "animal", "scene")
        self.vocabulary = Vocabulary(NAMES, categories, thresholds if presets else {})

    def tag_scores(self, batch):
        return np.asarray(batch, dtype=np.float32)


def tags_of(options: TaggingOptions, batch, presets: bool = True) -> list[tuple[Tag, ...]]:
    task = Tagging(SingleTagger(Scores(presets)), options)
    answers = task.annotate((), np.array(batch))
    assert all(answer.keys() == {"tags"} for answer in answers)
    return [answer["tags"] for answer in answers]


def names(scores, options, presets: bool = True) -> list[str]:
    return [tag.name for tag in tags_of(TaggingOptions(**options), [scores], presets)[0]]


EVEN = [0.6, 0.3, 0.5, 0.4, 0.8]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["dog", "fish bowl", "cat"]),  # balanced, >=
        ({"preset": "precise"}, []),
        ({"threshold": 0.4}, ["sky", "dog", "fish bowl", "goldfish"]),
        ({"threshold": 0.0}, ["sky", "dog", "fish bowl", "goldfish", "cat"]),
        ({"threshold": 1.0}, []),
        ({"top": 2}, ["dog", "fish bowl"]),
        ({"top": 99}, ["dog", "fish bowl", "cat"]),
        ({"threshold": 0, "top": 3}, ["sky", "dog", "fish bowl"]),
        ({"threshold": 0, "exclude": ("*fish*",)}, ["sky", "dog", "cat"]),
        ({"threshold": 0, "exclude": ("dog", "s?y")}, ["fish bowl", "goldfish", "cat"]),
    ],
)
def test_selection(options, expected):
    assert names(EVEN, options) == expected


def test_without_presets_the_threshold_is_the_one_of_joytag():
    assert names(EVEN, {}, presets=False) == ["sky", "dog", "fish bowl", "goldfish"]


def test_categories_and_scores_travel():
    (tags,) = tags_of(TaggingOptions(top=1), [EVEN])
    assert [(tag.name, tag.score, tag.category) for tag in tags] == [("dog", 0.6, "animal")]


@given(
    st.lists(st.lists(st.floats(0, 1, width=32), min_size=5, max_size=5), min_size=1, max_size=4)
)
def test_every_image_by_itself_sorted_with_ties_in_the_order_of_the_vocabulary(batch):
    options = TaggingOptions(threshold=0.25)
    together = tags_of(options, batch)
    assert together == [tags_of(options, [row])[0] for row in batch]
    for row, tags in zip(np.array(batch, dtype=np.float32), together, strict=True):
        chosen = [i for i in range(5) if row[i] >= np.float32(0.25)]
        expected = sorted(chosen, key=lambda i: (-row[i], i))
        assert [tag.name for tag in tags] == [NAMES[i] for i in expected]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"threshold": 0.5, "preset": "broad"}, ValueError, "takes the place of preset"),
        ({"threshold": 1.5}, ValueError, r"in 0\.\.1"),
        ({"threshold": float("nan")}, ValueError, r"in 0\.\.1"),
        ({"preset": "best"}, ValueError, "preset must be one of balanced, precise, broad"),
        ({"exclude": "bird"}, ValueError, "several texts"),
        ({"preset": "broad"}, UsageError, "told@1 has no preset 'broad'"),
        ({"top": 0}, ValueError, "at least 1"),
        ({"exclude": ("bird",)}, UsageError, "matches none of the 5 tags"),
    ],
)
def test_what_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        Tagging(SingleTagger(Scores()), TaggingOptions(**options))


def test_a_model_without_the_ability_is_refused():
    class Mute:
        card = Scores.card
        choice = None

    with pytest.raises(UsageError, match="told@1 is no tagger"):
        tagger(Mute())
    assert tagger(Scores()).vocabulary.names == NAMES


def test_settings_are_equal_where_the_tags_are():
    def settings(presets=True, **options):
        return Tagging(SingleTagger(Scores(presets)), TaggingOptions(**options)).settings()

    assert settings() == settings(preset="balanced")
    assert settings(presets=False) == settings(presets=False, threshold=0.4)
    assert settings(exclude=("dog", "cat")) == settings(exclude=("cat", "dog", "cat"))
    assert settings() != settings(threshold=0.4)
    assert settings() != settings(top=3)


def test_scores_are_kept_beside_the_tags_where_that_is_asked_for():
    task = Tagging(SingleTagger(Scores()), TaggingOptions(), keeps_scores=True)
    (answer,) = task.annotate((), np.array([EVEN]))
    assert answer["scores"].dtype == np.float16
    assert answer["scores"] == pytest.approx(EVEN, abs=5e-4)
    assert [tag.name for tag in answer["tags"]] == ["dog", "fish bowl", "cat"]
