"""Rules: aliases over several steps, closure of implications, wildcards, categories; from files and from TOML."""

from __future__ import annotations

from pathlib import Path

import pytest

from annotary.errors import UsageError
from annotary.training.dataset.tag_lists import TagListOptions, TagLists, expanded


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_aliases_come_first_and_implications_close(tmp_path):
    lists = TagLists(
        TagListOptions(
            aliases=written(tmp_path / "a", "kitty,kitten\nkitten,cat\nbeast,animal\n"),
            implications=written(
                tmp_path / "i", "tabby,kitty\ncat,beast\nanimal,thing\nthing,animal\n"
            ),
        )
    )
    raw = [("tabby", ""), ("kitty", "pet"), ("rock", "stone")]
    names, categories, follows = expanded(raw, lists)
    found = [{names[place] for place in one} for one in follows]
    assert found == [{"tabby", "cat", "animal", "thing"}, {"cat", "animal", "thing"}, {"rock"}]
    assert [names[one[0]] for one in follows] == ["tabby", "cat", "rock"]
    assert dict(zip(names, categories, strict=True))["cat"] == "pet"


def test_circles_of_aliases_are_refused(tmp_path):
    lists = TagLists(TagListOptions(aliases=written(tmp_path / "a", "a,b\nb,c\nc,a\n")))
    with pytest.raises(UsageError, match="aliases go in circles: a -> b -> c -> a"):
        lists.canonical("a")


def test_what_is_left_out(tmp_path):
    lists = TagLists(
        TagListOptions(
            blacklist=written(tmp_path / "b", "# why\nbad_id\n*_commission\n:[\n"),
            tag_categories=written(tmp_path / "c", "tag,category\nhatsune_miku,4\n"),
            without_category=("meta",),
        )
    )
    assert [lists.why_not(name, "general") for name in ("bad_id", "skeb_commission", ":[", "fine")] == [
        "blacklist", "blacklist", "blacklist", "",
    ]  # fmt: skip
    assert lists.why_not("highres", "meta") == "category meta"
    assert lists.category("hatsune_miku", "") == "character"
    only = TagLists(TagListOptions(category=("character",)))
    assert only.why_not("fine", "") == "category (none)"
    assert only.why_not("miku", "character") == ""


def test_toml_holds_all_rules_and_options_count_more(tmp_path):
    written(tmp_path / "pairs.csv", "old,new\n")
    path = written(
        tmp_path / "rules.toml",
        'aliases = "pairs.csv"\nimplications = { new = ["a b", "c"] }\nblacklist = ["x*"]\n'
        'without_category = ["meta"]\nminimum_count = 9\nminimum_tags = 3\nunderscores = true\n',
    )
    lists = TagLists(TagListOptions(rules=path, minimum_count=2))
    assert lists.canonical("old") == "new"
    assert lists.closure("new") == {"a_b", "c"}
    assert lists.why_not("xyz", "") == "blacklist"
    assert (lists.minimum_count, lists.minimum_tags) == (2, 3)
    with pytest.raises(UsageError, match="unknown rule 'alias'"):
        TagLists(TagListOptions(rules=written(tmp_path / "bad.toml", "alias = 1")))
    with pytest.raises(UsageError, match="minimum_count must be a whole number"):
        TagLists(TagListOptions(rules=written(tmp_path / "bad.toml", "minimum_count = true")))
