"""Options that the other tests do not go over all names with: aliases, implications, order, and lines of text."""

from __future__ import annotations

import csv
import itertools
import re
from pathlib import Path

import numpy as np

from annotary.cards import Vocabulary
from annotary.records import Annotation, Item, Tag
from annotary.sinks import SinkOptions, open_sink
from annotary.sinks._text import caption_of
from annotary.tasks.tag_rules import TagRules
from annotary.tasks.tag_selection import TaggingOptions, TagSelector
from tests.tasks.joytag_names import names  # noqa: F401 - a fixture


def chosen(known: tuple[str, ...], rules: TagRules, scores=None, **options) -> list[str]:
    kinds = tuple(("general", "character", "meta")[i % 3] for i in range(len(known)))
    selector = TagSelector(Vocabulary(known, kinds), TaggingOptions(**options), rules)
    return [tag.name for tag in selector.select(np.ones(len(known)) if scores is None else scores)]


def pairs(path: Path, rows) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_every_name_has_an_alias(names, tmp_path):  # noqa: F811
    file = pairs(tmp_path / "a.csv", ((name, f"new_{i}") for i, name in enumerate(names)))
    assert chosen(names, TagRules(aliases=file)) == [f"new_{i}" for i in range(len(names))]


def test_every_name_follows_from_the_one_before(names, tmp_path):  # noqa: F811
    links = list(itertools.pairwise(names[:51]))
    file = pairs(tmp_path / "i.csv", links)
    expected = [names[0], *names[len(links) + 1 :]]
    assert chosen(names, TagRules(implications=file)) == expected
    file = pairs(tmp_path / "all.csv", ((name, names[0]) for name in names[1:]))
    assert chosen(names, TagRules(implications=file)) == list(names[1:])


def test_every_order_keeps_every_name_once(names):  # noqa: F811
    scores = np.random.default_rng(1).random(len(names), dtype=np.float32)
    by_score = [names[i] for i in np.argsort(-scores, kind="stable")]
    assert chosen(names, TagRules(), scores, threshold=0.0) == by_score
    assert chosen(names, TagRules(order="vocabulary"), scores, threshold=0.0) == list(names)
    by_category = chosen(names, TagRules(order="category"), scores, threshold=0.0)
    assert sorted(by_category) == sorted(names)
    kinds = [names.index(name) % 3 for name in by_category[:: max(1, len(names) // 40)]]
    assert kinds == sorted(kinds, key=[1, 0, 2].index)
    last = chosen(names, TagRules(first=(names[-1], names[5])), scores, threshold=0.0)
    assert last[:2] == [names[-1], names[5]]


def test_mcut_and_category_thresholds_go_over_all_names(names):  # noqa: F811
    scores = np.where(np.arange(len(names)) % 2, 0.9, 0.05)
    odd = [name for i, name in enumerate(names) if i % 2]
    assert sorted(chosen(names, TagRules(), scores, mcut=True)) == sorted(odd)
    told = ("general=1", "meta=1", "character=0")
    characters = [name for i, name in enumerate(names) if i % 3 == 1]
    assert sorted(chosen(names, TagRules(), scores, category_threshold=told)) == sorted(characters)


def test_a_line_of_text_holds_every_name_and_gives_it_back(names):  # noqa: F811
    record = Annotation("a.png", 1, 1, tags=tuple(Tag(name, 0.5) for name in names))
    plain = caption_of(record, SinkOptions(prefix="sks", suffix="end", trailing_separator=True))
    assert plain.removesuffix(",").split(", ") == ["sks", *names, "end"]
    escaped = caption_of(record, SinkOptions(escape=True)).split(", ")
    assert [re.sub(r"\\([\\()])", r"\1", name) for name in escaped] == list(names)
    assert not re.search(r"(?<!\\)(?:\\\\)*[()]", ", ".join(escaped))
    lines = caption_of(record, SinkOptions(separator="\n")).split("\n")
    assert lines == list(names)


def test_appending_every_name_again_changes_nothing(names, tmp_path):  # noqa: F811
    item = Item.from_path(tmp_path / "a.png")
    record = Annotation("a.png", 1, 1, tags=tuple(Tag(name, 0.5) for name in names[:400]))
    for options in (SinkOptions(on_existing="append"), SinkOptions("append", escape=True)):
        place = tmp_path / "a.txt"
        place.unlink(missing_ok=True)
        for _ in range(2):
            open_sink("txt", None, options).write(item, record)
            first = place.read_text("utf-8")
        assert len(first.strip().split(", ")) == len(record.tags)
