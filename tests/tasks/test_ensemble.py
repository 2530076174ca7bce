"""Several taggers asked together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotary.cards import Card, PreprocessSpec, Vocabulary
from annotary.errors import UsageError
from annotary.tasks.ensemble import Ensemble
from annotary.tasks.tag_selection import TaggingOptions
from annotary.tasks.tagging import Tagging
from tests.tasks.joytag_names import all_names


class Told:
    """A tagger that says what its batch holds."""

    streams = 2

    def __init__(self, name, names, categories=None, thresholds=None, size=1, batch_size=4) -> None:
        self.card = Card(name, "1", "none", "MIT", PreprocessSpec((size, size)))
        self.batch_size = batch_size
        kinds = categories or ("",) * len(names)
        self.vocabulary = Vocabulary(tuple(names), tuple(kinds), thresholds or {})

    def tag_scores(self, batch):
        return np.asarray(batch, dtype=np.float32)


FIRST = Told("a", ("long_hair", "dog", "sky"), ("", "animal", ""), size=2)
SECOND = Told("b", ("Dog", "long hair", "tree"), ("beast", "general", "plant"), batch_size=1)


def test_common_tags_get_the_mean_and_the_rest_are_united():
    both = Ensemble([FIRST, SECOND])
    assert both.vocabulary.names == ("long_hair", "dog", "sky", "tree")
    assert both.vocabulary.categories == ("general", "animal", "", "plant")
    scores = both.scores(np.array([[0.2, 0.4, 0.6]]), np.array([[0.8, 0.4, 0.9]]))
    assert scores[0] == pytest.approx([0.3, 0.6, 0.6, 0.9])
    assert both.source == "a@1+b@1"
    assert both.inputs == (FIRST.card.preprocess, SECOND.card.preprocess)
    assert (both.batch_size, both.streams) == (1, 2)


def test_thresholds_are_the_means_and_a_model_without_counts_as_joytag():
    tuned = Told("c", ("dog", "cat"), thresholds={"balanced": (0.2, 0.3), "precise": (0.8, 0.9)})
    both = Ensemble([FIRST, tuned])
    assert both.vocabulary.names == ("long_hair", "dog", "sky", "cat")
    assert both.vocabulary.thresholds["balanced"] == pytest.approx((0.4, 0.3, 0.4, 0.3))
    assert both.vocabulary.thresholds["precise"] == pytest.approx((0.4, 0.6, 0.4, 0.9))


def test_the_task_asks_each_network_with_its_own_input():
    task = Tagging(Ensemble([FIRST, SECOND]), TaggingOptions(threshold=0.55))
    assert len(task.inputs) == 2
    (answer,) = task.annotate((), np.array([[0.2, 0.4, 0.6]]), np.array([[0.8, 0.4, 0.9]]))
    assert [tag.name for tag in answer["tags"]] == ["tree", "dog", "sky"]
    assert task.source == "a@1+b@1"


@given(st.data())
def test_equal_models_give_what_one_gives(data):
    rows = data.draw(
        st.lists(st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3), min_size=1)
    )
    twin = Told("d", FIRST.vocabulary.names)
    batch = np.array(rows)
    assert Ensemble([FIRST, twin]).scores(batch, batch) == pytest.approx(batch, abs=1e-6)


def test_names_that_differ_only_in_case_within_a_model_stay_apart():
    odd = Told("e", ("dog", "Dog", "tree"))
    both = Ensemble([odd, SECOND])
    assert both.vocabulary.names == ("dog", "Dog", "tree", "long hair")
    scores = both.scores(np.array([[0.2, 0.4, 0.6]]), np.array([[0.8, 0.4, 0.8]]))
    assert scores[0] == pytest.approx([0.5, 0.4, 0.7, 0.4])


def test_all_names_of_joytag_are_found_again_with_spaces():
    every = all_names()
    spaced = Told("f", [name.replace("_", " ") if len(name) > 5 else name for name in every])
    both = Ensemble([Told("g", every), spaced])
    assert both.vocabulary.names == every


def test_two_models_of_one_name_are_two_models():
    twin = Told("a", ("dog",))
    assert Ensemble([FIRST, twin]).source == "a@1+a@1"


@pytest.mark.parametrize("models", [[FIRST], [FIRST, FIRST], []])
def test_an_ensemble_is_of_different_models(models):
    with pytest.raises(UsageError, match="two or more different models"):
        Ensemble(models)
