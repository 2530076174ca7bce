"""A catalogue of an older version opens and goes on."""

from __future__ import annotations

import pytest

from annotary.catalog import Catalog, Filled
from annotary.catalog._columns import LATER_COLUMNS, PARTS
from annotary.catalog._known import bits_of
from annotary.records import Caption, Match
from annotary.tasks.embedding import Embed
from tests.catalog.test_filling import Labelled, filled
from tests.small_encoder import SmallEncoder

pytest.importorskip("lancedb")

CAPTIONS = (Caption("a dog", 0.5, 0.75), Caption("a cat", 0.25))
MATCHES = (Match("a dog", 0.75, 0.5), Match("a cat", 0.25))


class Written(Labelled):
    """A task that writes captions, or matches texts."""

    def __init__(self, part, found):
        super().__init__()
        self.part = part
        self._found = found

    def annotate(self, pictures, *batches):
        self.images += len(pictures)
        return [{self.part: self._found}] * len(pictures)


def older(path, photos):
    """A catalogue with the columns of version 0.3, of four photos."""
    folder = photos(4)
    filled(path, [folder], [Embed(SmallEncoder())])
    Catalog.open(path).table.drop_columns(list(LATER_COLUMNS))
    assert not set(LATER_COLUMNS) & set(Catalog.open(path).columns)
    return folder


def test_it_opens_and_goes_on_with_what_it_had(tmp_path, photos):
    path = tmp_path / "c"
    folder = older(path, photos)
    assert Catalog.open(path).records([0])[0].matches == ()
    assert filled(path, [folder], [Embed(SmallEncoder())]) == Filled(unchanged=4)
    assert filled(path, [folder], [Labelled()]) == Filled(completed=4)
    catalog = Catalog.open(path)
    assert not set(LATER_COLUMNS) & set(catalog.columns)
    assert catalog.records([3])[0].labels[0].name == "thing"


@pytest.mark.parametrize(("part", "found"), [("captions", CAPTIONS), ("matches", MATCHES)])
def test_it_gets_a_column_with_the_first_row_that_has_something_for_it(
    part, found, tmp_path, photos
):
    path = tmp_path / "c"
    folder = older(path, photos)
    vectors = Catalog.open(path).fetch(range(4), ["embedding"])["embedding"].to_pylist()
    task, made = Written(part, found), {part: {"weights": "1"}}
    assert filled(path, [folder], [task], settings=made) == Filled(completed=4)
    assert filled(path, [folder], [task], settings=made) == Filled(unchanged=4)
    assert task.images == 4
    catalog = Catalog.open(path)
    assert all(getattr(record, part) == found for record in catalog.records(range(4)))
    assert catalog.fetch(range(4), ["embedding"])["embedding"].to_pylist() == vectors
    added = {"captions": "caption_matches", "matches": "matches"}[part]
    assert set(catalog.columns) & set(LATER_COLUMNS) == {added}
    # A part that is made anew takes its column with it.
    outcome = filled(
        path,
        [folder],
        [Written(part, found[:1])],
        settings={part: {"weights": "2"}},
        replace_parts=True,
    )
    assert outcome == Filled(completed=4)
    assert all(getattr(record, part) == found[:1] for record in Catalog.open(path).records([0, 3]))


def test_captions_without_a_judge_need_no_new_column(tmp_path, photos):
    path = tmp_path / "c"
    folder = older(path, photos)
    filled(path, [folder], [Written("captions", CAPTIONS[1:])])
    catalog = Catalog.open(path)
    assert not set(LATER_COLUMNS) & set(catalog.columns)
    assert catalog.records([0])[0].captions == CAPTIONS[1:]


def test_the_bits_of_parts_keep_their_order():
    known = ("tags", "labels", "captions", "answers", "boxes", "embedding", "decision")
    assert PARTS[: len(known)] == known
    assert bits_of(["decision"]) == 64
    assert bits_of(["matches"]) == 128
