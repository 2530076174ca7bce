"""Thresholds, counts and patterns, over the names of JoyTag and over a small vocabulary with categories."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotary.cards import Vocabulary
from annotary.errors import UsageError
from annotary.tasks.tag_rules import TagRules
from annotary.tasks.tag_selection import MCUT_FLOOR, TaggingOptions, TagSelector, mcut
from tests.tasks.joytag_names import names  # noqa: F401 - a fixture

RATED = Vocabulary(
    names=("safe", "explicit", "dog", "cat", "sky", "saber", "rin"),
    categories=("rating", "rating", "general", "general", "general", "character", "character"),
)
SCORES = np.array([0.3, 0.2, 0.9, 0.5, 0.1, 0.7, 0.05])


def chosen(scores=SCORES, vocabulary=RATED, rules: TagRules | None = None, **options) -> list[str]:
    selector = TagSelector(vocabulary, TaggingOptions(**options), rules)
    return [tag.name for tag in selector.select(np.asarray(scores))]


def plain(known: tuple[str, ...]) -> Vocabulary:
    return Vocabulary(known, ("",) * len(known))


# Over all names


def test_every_tag_is_given_at_its_threshold_and_not_below(names):  # noqa: F811
    vocabulary = plain(names)
    selector = TagSelector(vocabulary, TaggingOptions(threshold=0.4))
    at, below = np.full(len(names), 0.4, np.float32), np.full(len(names), 0.3999, np.float32)
    assert [tag.name for tag in selector.select(at)] == list(names)
    assert selector.select(below) == ()


def test_every_tag_can_be_excluded_and_kept_by_its_name(names, tmp_path):  # noqa: F811
    every_third = [name for name in names[::3] if not name.startswith("@")]
    (tmp_path / "list.txt").write_text("\n".join(["# a comment", "", *every_third]), "utf-8")
    scores = np.ones(len(names))
    file = (f"@{tmp_path / 'list.txt'}",)
    kept = chosen(scores, plain(names), keep=file)
    left = chosen(scores, plain(names), exclude=file)
    assert kept == every_third
    assert left == [name for name in names if name not in set(every_third)]


def test_a_pattern_that_is_a_name_is_that_tag_alone():
    marks = plain(("?", "!", "a", "[b]", "b"))
    assert chosen(np.ones(5), marks, exclude=("?",)) == ["!", "a", "[b]", "b"]
    assert chosen(np.ones(5), marks, keep=("[b]",)) == ["[b]"]
    assert chosen(np.ones(5), marks, keep=("[ab]",)) == ["a", "b"]


def test_patterns_find_names_that_differ_in_case_and_underscores():
    few = plain(("long_hair", "Dog", "dog"))
    assert chosen(np.ones(3), few, exclude=("Long hair",)) == ["Dog", "dog"]
    assert chosen(np.ones(3), few, exclude=("dog",)) == ["long_hair", "Dog"]
    with pytest.raises(UsageError, match="matches none of the 3 tags; did you mean 'long_hair'"):
        chosen(np.ones(3), few, exclude=("long_hare",))
    with pytest.raises(UsageError, match="give the option once for each pattern"):
        chosen(np.ones(3), few, exclude=("dog,cat",))


def test_a_file_of_patterns_may_name_tags_of_other_vocabularies(tmp_path):
    (tmp_path / "list.txt").write_text("dog\nsolo\n")
    assert "dog" not in chosen(exclude=(f"@{tmp_path}/list.txt",))
    (tmp_path / "other.txt").write_text("solo\nwatermark\n")
    with pytest.raises(
        UsageError, match=r"no entry of .*other.txt, to be excluded, is any of the 7 tags"
    ):
        chosen(exclude=(f"@{tmp_path}/other.txt",))


def test_what_fills_up_stands_where_its_score_belongs():
    rare = Vocabulary(("a", "b", "c"), ("",) * 3, {"balanced": (0.1, 0.9, 0.9)})
    assert chosen([0.2, 0.7, 0.5], rare, min_tags=2) == ["b", "a"]


def test_every_tag_can_have_a_threshold_of_its_own(names, tmp_path):  # noqa: F811
    import csv

    with (tmp_path / "thresholds.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("name", "threshold"))
        writer.writerows((name, (i % 100) / 100) for i, name in enumerate(names))
    scores = np.full(len(names), 0.5)
    found = chosen(scores, plain(names), tag_thresholds=tmp_path / "thresholds.csv")
    assert found == [name for i, name in enumerate(names) if (i % 100) / 100 <= 0.5]


def test_counts_hold_over_all_names(names):  # noqa: F811
    scores = np.random.default_rng(0).random(len(names))
    best = [names[i] for i in np.argsort(-scores, kind="stable")]
    few = chosen(scores, plain(names), threshold=0.99, min_tags=30, top=30)
    assert few == best[:30]
    assert chosen(scores, plain(names), threshold=0.0) == best


# Categories, ratings, MCut


def test_a_category_has_its_own_threshold():
    assert chosen(threshold=0.35) == ["dog", "saber", "cat"]
    assert chosen(threshold=0.35, category_threshold=("character=0.85",)) == ["dog", "cat"]
    told = ("character=0.01", "general=0.95")
    assert chosen(threshold=0.35, category_threshold=told) == ["saber", "rin"]


def test_a_tags_own_threshold_comes_before_its_categorys(tmp_path):
    (tmp_path / "t.csv").write_text("rin,0.05\n")
    told = {"category_threshold": ("character=0.85",), "tag_thresholds": tmp_path / "t.csv"}
    assert chosen(**told) == ["dog", "cat", "rin"]


@pytest.mark.parametrize(
    ("rating", "expected"),
    [
        ("out", ["dog", "saber", "cat"]),
        ("in", ["dog", "saber", "cat", "safe"]),
        ("first", ["safe", "dog", "saber", "cat"]),
        ("last", ["dog", "saber", "cat", "safe"]),
    ],
)
def test_the_likeliest_rating_and_no_other(rating, expected):
    assert chosen(rating=rating) == expected
    likely = np.where(np.arange(7) == 0, 0.95, SCORES)
    if rating == "in":
        assert chosen(likely, rating=rating) == ["safe", "dog", "saber", "cat"]


def test_a_rating_counts_for_no_limit():
    assert chosen(rating="first", top=1) == ["safe", "dog"]
    assert chosen(rating="last", threshold=1.0, min_tags=2) == ["dog", "saber", "safe"]


def test_mcut_cuts_each_category_where_its_scores_fall():
    assert chosen(mcut=True) == ["dog", "saber", "cat"]  # general: .9 .5 | .1, character: .7 | .05
    low = [0.3, 0.2, 0.9, 0.5, 0.1, 0.1, 0.01]
    assert chosen(low, mcut=True) == ["dog", "cat"]  # no character: the cut is not below the floor
    assert MCUT_FLOOR == 0.15
    assert chosen(low, mcut=True, category_threshold=("character=0.05",)) == ["dog", "cat", "saber"]


@given(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=50))
def test_mcut_is_in_the_middle_of_the_largest_gap(scores):
    cut = mcut(np.array(scores, dtype=np.float64))
    ordered = sorted(scores)
    gaps = [b - a for a, b in itertools.pairwise(ordered)]
    above = [s for s in scores if s >= cut]
    below = [s for s in scores if s < cut]
    if max(gaps) > 1e-6:
        assert min(above) - max(below) == pytest.approx(max(gaps))


def test_mcut_leaves_thresholds_of_single_tags_alone(tmp_path):
    (tmp_path / "t.csv").write_text("dog,0.95\nsky,0\n")
    assert chosen(mcut=True, tag_thresholds=tmp_path / "t.csv") == ["saber", "cat", "sky"]


def test_mcut_does_not_depend_on_what_is_excluded():
    assert chosen(mcut=True, exclude=("sky",)) == ["dog", "saber", "cat"]
    alone = Vocabulary(("dog", "saber"), ("general", "character"))
    assert chosen([0.6, 0.3], alone, mcut=True) == ["dog"]  # single tags have no gap: 0.4


def test_the_best_fill_up_to_the_least_number():
    assert chosen(threshold=0.8, min_tags=3) == ["dog", "saber", "cat"]
    assert chosen(threshold=0.8, min_tags=1) == ["dog"]
    assert chosen(threshold=0.8, min_tags=99) == ["dog", "saber", "cat", "sky", "rin"]


def test_what_fills_up_keeps_the_rules(tmp_path):
    (tmp_path / "i.csv").write_text("dog,cat\n")
    rules = TagRules(implications=tmp_path / "i.csv")
    assert chosen(threshold=0.8, min_tags=3, rules=rules) == ["dog", "saber", "sky"]


def test_what_fills_up_never_drives_out_what_was_chosen(tmp_path):
    (tmp_path / "i.csv").write_text("cat,dog\n")
    for rules in (
        TagRules(implications=tmp_path / "i.csv"),
        TagRules(replace=("cat=a dog",), drop_substrings=True),
    ):
        assert chosen(threshold=0.8, min_tags=2, rules=rules) == ["dog", "saber"]
        assert chosen(threshold=0.6, min_tags=3, rules=rules) == ["dog", "saber", "sky"]


def test_a_rating_that_is_called_like_a_tag_is_given_once():
    rules = TagRules(replace=("safe=dog",))
    assert chosen(rating="last", rules=rules) == ["saber", "cat", "dog"]


@given(
    st.lists(st.floats(0, 1, width=32), min_size=7, max_size=7),
    st.integers(1, 7),
    st.integers(1, 7),
    st.floats(0, 1),
)
def test_counts_are_between_least_and_most(scores, least, extra, threshold):
    most = least + extra
    found = chosen(scores, threshold=threshold, min_tags=least, top=most)
    assert min(least, 5) <= len(found) <= most
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"category_threshold": ("animal=0.5",)}, UsageError, "no category 'animal'; it has: char"),
        ({"category_threshold": ("general",)}, UsageError, r"must be like character=0\.85"),
        ({"category_threshold": ("general=2",)}, UsageError, r"must be like character=0\.85"),
        ({"keep": ("bird",)}, UsageError, "'bird', to be kept, matches none of the 7 tags"),
        ({"exclude": ("@no.txt",)}, UsageError, "cannot read no.txt: No such file"),
        ({"exclude": ("@no",)}, UsageError, "matches none of the 7 tags"),
        ({"mcut": True, "threshold": 0.5}, ValueError, "mcut takes the place of threshold"),
        ({"min_tags": 5, "top": 3}, ValueError, "min_tags is 5, and top only 3"),
        ({"rating": "maybe"}, ValueError, "rating must be out, in, first or last"),
    ],
)
def test_what_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        TagSelector(RATED, TaggingOptions(**options))


def test_a_file_of_thresholds_is_checked(tmp_path):
    for text, message in (
        ("bird,0.5\n", "no tag 'bird'"),
        ("dog,2\n", "line 1: expected name,threshold, but got 'dog,2'"),
        ("dog\n", "line 1"),
        ('"' + "x" * 200_000, "cannot read"),
    ):
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(UsageError, match=message):
            TagSelector(RATED, TaggingOptions(tag_thresholds=tmp_path / "t.csv"))
    with pytest.raises(UsageError, match="cannot read"):
        TagSelector(RATED, TaggingOptions(tag_thresholds=tmp_path / "none.csv"))


def test_settings_tell_apart_what_gives_other_tags(tmp_path):
    def settings(rules=None, **options):
        return TagSelector(RATED, TaggingOptions(**options), rules).settings()

    (tmp_path / "t.csv").write_text("dog,0.5\n")
    first = settings(tag_thresholds=tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("dog,0.6\n")
    assert first != settings(tag_thresholds=tmp_path / "t.csv")
    assert settings() != settings(mcut=True)
    assert settings() != settings(rating="in")
    assert settings() != settings(min_tags=3)
    assert settings() != settings(keep=("dog",))
    assert settings() != settings(rules=TagRules(spaces=True))
    assert settings(threshold=0.4) == settings()
