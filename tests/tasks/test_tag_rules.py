"""What tags are called, which are superfluous, and their order."""

from __future__ import annotations

import json

import numpy as np
import pytest

from annotary.cards import Vocabulary
from annotary.errors import UsageError
from annotary.tasks.tag_rules import TagRules, read_pairs, with_spaces
from annotary.tasks.tag_selection import TaggingOptions, TagSelector
from tests.tasks.joytag_names import all_names, names  # noqa: F401 - a fixture

FACES = ("^_^", ">_<", "o_o", "=_=", "+_+", "|_|", "@_@", "0_0", ">_o", "x_x")
SMALL = ("dog", "puppy", "animal", "long_hair", "hair", "cat_ears", "cat")


def tags(rules: TagRules, vocabulary=SMALL, scores=None, categories=None, **options) -> list[str]:
    given = Vocabulary(tuple(vocabulary), categories or ("",) * len(vocabulary))
    values = np.linspace(1.0, 0.5, len(vocabulary)) if scores is None else np.asarray(scores)
    found = TagSelector(given, TaggingOptions(**options), rules).select(values)
    return [tag.name for tag in found]


# Underscores


def test_spaces_leave_exactly_the_faces_alone(names):  # noqa: F811
    found = tags(TagRules(spaces=True), names)
    assert len(found) == len(names)
    kept = [name for name, shown in zip(names, found, strict=True) if "_" in shown]
    assert sorted(kept) == sorted(set(FACES) & set(names))
    for name, shown in zip(names, found, strict=True):
        assert shown in (name, name.replace("_", " "))


def test_spaces_keep_all_names_apart():
    every = all_names()
    assert len({with_spaces(name) for name in every}) == len(every)


@pytest.mark.parametrize(
    "face", ["(o)_(o)", "+_-", "._.", "<o>_<o>", "<|>_<|>", "3_3", "6_9", "u_u", "||_||"]
)
def test_faces_of_other_vocabularies(face):
    assert with_spaces(face) == face


@pytest.mark.parametrize(
    ("name", "shown"),
    [("_", "_"), ("a__b_cd", "a  b cd"), ("_hair_", "hair"), ("v_arms", "v arms")],
)
def test_odd_underscores(name, shown):
    assert with_spaces(name) == shown


# Replacing


def test_every_name_can_be_replaced(names):  # noqa: F811
    rules = TagRules(replace=tuple(f"{name}=new {i}" for i, name in enumerate(names[:300])))
    assert tags(rules, names[:300]) == [f"new {i}" for i in range(min(300, len(names)))]


@pytest.mark.parametrize("name", ["=_=", "=3", ":>=", "^_^", "\\m/", "(9)"])
def test_names_with_the_sign_in_them_can_be_replaced(name):
    assert (
        tags(TagRules(replace=(f"{name}=face",)), ("=_=", "=3", ":>=", "^_^", "\\m/", "(9)")).count(
            "face"
        )
        == 1
    )


def test_a_replacement_by_nothing_leaves_a_tag_out():
    assert "dog" not in tags(TagRules(replace=("dog=",)))


def test_two_tags_of_one_name_become_the_better_one():
    assert tags(TagRules(replace=("puppy=dog",))) == [n for n in SMALL if n != "puppy"]


def test_replaced_names_can_be_excluded_kept_and_counted_by_either_name():
    rules = TagRules(replace=("dog=hound",))
    assert "hound" not in tags(rules, exclude=("hound",))
    assert "hound" not in tags(rules, exclude=("dog",))
    assert tags(rules, keep=("hound",)) == ["hound"]
    assert tags(TagRules(spaces=True), keep=("long hair",)) == ["long hair"]


@pytest.mark.parametrize(
    ("told", "message"),
    [("dog", "must be 'old=new'"), ("bird=dog", "'bird', to be replaced, is none of the 7 tags")],
)
def test_replacements_are_checked(told, message):
    with pytest.raises(UsageError, match=message):
        tags(TagRules(replace=(told,)))


# Aliases and implications


def test_aliases_are_followed_to_their_end(tmp_path):
    (tmp_path / "a.csv").write_text("dog,hound\nhound,canine\nunknown,thing\n")
    assert tags(TagRules(aliases=tmp_path / "a.csv"))[0] == "canine"


def test_aliases_in_circles_are_told(tmp_path):
    (tmp_path / "a.csv").write_text("dog,hound\nhound,dog\n")
    with pytest.raises(UsageError, match="circles: dog -> hound -> dog"):
        tags(TagRules(aliases=tmp_path / "a.csv"))


def test_what_follows_from_another_tag_is_left_out(tmp_path):
    (tmp_path / "i.csv").write_text("puppy,dog\ndog,animal\n")
    rules = TagRules(implications=tmp_path / "i.csv")
    assert tags(rules) == ["puppy", "long_hair", "hair", "cat_ears", "cat"]
    # Over a tag that is not given, too.
    assert "animal" not in tags(rules, exclude=("dog",))


def test_implications_hold_after_aliases(tmp_path):
    (tmp_path / "a.csv").write_text("puppy,young_dog\n")
    (tmp_path / "i.csv").write_text("puppy,dog\nyoung_dog,animal\n")
    found = tags(TagRules(aliases=tmp_path / "a.csv", implications=tmp_path / "i.csv"))
    assert found == ["young_dog", "long_hair", "hair", "cat_ears", "cat"]


def test_tags_that_imply_each_other_stay(tmp_path):
    (tmp_path / "i.csv").write_text("dog,puppy\npuppy,dog\npuppy,animal\n")
    found = tags(TagRules(implications=tmp_path / "i.csv"))
    assert found[:2] == ["dog", "puppy"]
    assert "animal" not in found


def test_dumps_of_danbooru_are_read(tmp_path):
    rows = [
        {"antecedent_name": "puppy", "consequent_name": "dog", "status": "active"},
        {"antecedent_name": "dog", "consequent_name": "animal", "status": "deleted"},
    ]
    (tmp_path / "i.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert tags(TagRules(implications=tmp_path / "i.jsonl"))[:2] == ["puppy", "animal"]
    (tmp_path / "t.tsv").write_text(
        "# comment\nantecedent_name\tconsequent_name\n\nsteins;gate\ta,b\n"
    )
    assert list(read_pairs(tmp_path / "t.tsv")) == [("steins;gate", "a,b")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bird,animal_bird\n", "has no implication of any|renames none of the 7 tags"),
        ("dog\n", "line 1: expected two names"),
        ("{bad json\n", "line 1: expected two names"),
        ('"' + "x" * 200_000 + "\n", "line 1: expected two names"),
        ("\ufeff\n", "has no implication|renames none"),
    ],
)
@pytest.mark.parametrize("kind", ["aliases", "implications"])
def test_files_of_pairs_are_checked(tmp_path, kind, text, message):
    (tmp_path / "p.csv").write_text(text, "utf-8")
    with pytest.raises(UsageError, match=message):
        tags(TagRules(**{kind: tmp_path / "p.csv"}))


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(UsageError, match=r"cannot read .*none.csv"):
        tags(TagRules(aliases=tmp_path / "none.csv"))


def test_words_within_longer_tags_are_left_out():
    assert tags(TagRules(drop_substrings=True)) == [
        "dog",
        "puppy",
        "animal",
        "long_hair",
        "cat_ears",
    ]


def test_words_within_longer_tags_over_all_names():
    every = all_names()
    found = set(tags(TagRules(drop_substrings=True), every))
    assert {"very_long_hair", "^_^", "steins;gate", "photo_(medium)"} <= found
    assert not {"long_hair", "hair"} & found
    spaced = [f" {name.replace('_', ' ')} " for name in every]
    for name in every[::40]:
        needle = f" {name.replace('_', ' ')} "
        is_within = any(needle in other and needle != other for other in spaced)
        assert (name in found) != is_within, name


# Order


def test_orders():
    scores = [0.6, 0.9, 0.7, 0.8, 0.95, 0.5, 0.99]
    best = ["cat", "hair", "puppy", "long_hair", "animal", "dog", "cat_ears"]
    assert tags(TagRules(), scores=scores) == best
    assert tags(TagRules(order="vocabulary"), scores=scores) == list(SMALL)
    kinds = ("general", "character", "", "meta", "artist", "general", "rating-like")
    by_category = tags(TagRules(order="category"), scores=scores, categories=kinds)
    assert by_category == ["puppy", "hair", "dog", "cat_ears", "animal", "long_hair", "cat"]


def test_always_first_in_the_order_that_is_given():
    rules = TagRules(first=("cat", "*hair"))
    assert tags(rules) == ["cat", "long_hair", "hair", "dog", "puppy", "animal", "cat_ears"]
    assert tags(TagRules(first=("long hair",), spaces=True))[0] == "long hair"
    with pytest.raises(UsageError, match="'bird', to stand first, matches none"):
        tags(TagRules(first=("bird",)))


def test_always_first_does_not_give_what_is_not_there():
    assert tags(TagRules(first=("cat",)), exclude=("cat",))[0] == "dog"


def test_the_limit_takes_the_best_whatever_the_order():
    assert tags(
        TagRules(order="vocabulary"), scores=[0.6, 0.9, 0.7, 0.8, 0.95, 0.5, 0.99], top=2
    ) == ["hair", "cat"]


def test_what_is_refused():
    with pytest.raises(ValueError, match="order must be"):
        TagRules(order="random")
    with pytest.raises(ValueError, match="several texts"):
        TagRules(first="dog")
