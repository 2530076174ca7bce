"""Texts of single images: tables of all kinds, and which image is which."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotary.errors import UsageError
from annotary.records import Item
from annotary.tasks.answering import Question, read_questions
from annotary.tasks.matching import read_texts
from annotary.tasks.own_texts import OwnTexts, read_rows

CELL = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(
    lambda text: text.strip()
)


@given(
    rows=st.lists(st.tuples(CELL, CELL), min_size=1, max_size=8),
    suffix=st.sampled_from(["csv", "jsonl"]),
)
def test_all_that_is_in_a_table_is_read(tmp_path_factory, rows, suffix):
    import csv

    path = tmp_path_factory.mktemp("tables") / f"table.{suffix}"
    if suffix == "csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("image", "text"), *rows])
    else:
        lines = [json.dumps({"image": image, "text": text}) for image, text in rows]
        path.write_text("\n".join(lines), encoding="utf-8")
    assert read_rows(path, ("image", "text")) == rows
    own = read_texts(path)
    assert own.every == tuple(dict.fromkeys(text for _, text in _by_image(rows)))


def _by_image(rows):
    order = list(dict.fromkeys(image for image, _ in rows))
    return sorted(rows, key=lambda row: order.index(row[0]))


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "questions.parquet"
    table = {"image": ["a.jpg", "b.jpg"], "question": ["what?", "why?"]}
    parquet.write_table(pyarrow.table({**table, "answers": [["yes", "no"], None]}), path)
    own = read_questions(path)
    assert own.every == (Question("what?", ("yes", "no")), Question("why?"))
    parquet.write_table(pyarrow.table(table), path)
    assert read_questions(path, ["left"]).every == (
        Question("what?", ("left",)),
        Question("why?", ("left",)),
    )


def test_answers_are_texts_with_commas_or_lists(tmp_path):
    path = tmp_path / "questions.csv"
    path.write_text('image,question,answers\na.jpg,what?,"yes, no"\na.jpg,why?,\n')
    assert read_questions(path).every == (Question("what?", ("yes", "no")), Question("why?"))
    path = tmp_path / "questions.jsonl"
    for told, match in (
        (3, "must be texts, but are 3"),
        (["a", [3]], r"must be a text: \[3\]"),
        (["a", ""], "is empty"),
    ):
        row = {"image": "a.jpg", "question": "what?", "answers": told}
        path.write_text(json.dumps(row) + "\n")
        with pytest.raises(UsageError, match=match):
            read_questions(path)


def test_an_answer_that_is_told_twice_counts_once(tmp_path):
    path = tmp_path / "questions.csv"
    path.write_text('image,question,answers\na.jpg,what?,"yes, no, yes"\n')
    assert read_questions(path).every == (Question("what?", ("yes", "no")),)


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("a.csv", "image,question\na.jpg,\n", "row 1 needs question"),
        ("a.csv", "image,words\na.jpg,what?\n", "row 1 needs question, but has None"),
        ("a.csv", "image,question\na.jpg,what,why\n", "line 2 has more cells than the head"),
        ("a.csv", "image,question\n", "it has no rows"),
        ("a.jsonl", "{}\n", "row 1 needs image"),
        ("a.jsonl", "nothing\n", "line 1 is not JSON"),
        ("a.jsonl", "[1]\n", "line 1 must be a JSON object"),
        ("a.txt", "a.jpg what?\n", r"must be \.csv"),
        ("a.parquet", "no\n", "a.parquet: "),
    ],
)
def test_tables_that_are_none(tmp_path, name, text, match):
    path = tmp_path / name
    path.write_text(text)
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    with pytest.raises(UsageError, match=match) as caught:
        read_questions(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="No such file"):
        read_questions(tmp_path / "missing.csv")


class TestNames:
    def test_an_image_is_known_by_any_path_to_it(self, tmp_path):
        folder = tmp_path / "photos"
        folder.mkdir()
        (folder / "a.jpg").touch()
        told = {
            "a.jpg": ["beside the table"],
            str(folder / "a.jpg"): ["absolute"],
            "b.jpg": ["other"],
        }
        own = OwnTexts(told, str(folder))
        item = Item.from_path(os.path.relpath(folder / "a.jpg"))
        assert own.of(item) == ("beside the table", "absolute")
        assert own.unmet == ("b.jpg",)

    def test_a_path_below_the_folder_that_was_asked_for(self, tmp_path):
        own = OwnTexts({"2024/a.jpg": ["one"], "b.jpg": ["two"]})
        item = Item("photos/2024/a.jpg", path=tmp_path / "a.jpg", relative="2024/a.jpg")
        assert own.of(item) == ("one",)
        assert own.of(Item("https://example.org/x.jpg", url="https://example.org/x.jpg")) == ()

    def test_addresses_and_data(self):
        own = OwnTexts({"https://example.org/x.jpg": ["one"], "drawn": ["two"]})
        assert own.of(Item("https://example.org/x.jpg", url="https://example.org/x.jpg")) == (
            "one",
        )
        assert own.of(Item("drawn", data=b"...")) == ("two",)
        assert own.unmet == ()

    def test_images_that_cannot_be_read_are_met(self, tmp_path):
        own = OwnTexts({"a.jpg": ["one"]}, str(tmp_path))
        own.meet(os.fspath(Path("a.jpg")))
        assert own.unmet == ()

    def test_the_digest_changes_with_all_that_is_told(self):
        told = {"a": ["one"], "b": ["two"]}
        digest = OwnTexts(told).digest
        assert OwnTexts(dict(reversed(told.items()))).digest == digest
        assert OwnTexts({**told, "b": ["three"]}).digest != digest
        assert OwnTexts({**told, "c": ["two"]}).digest != digest
