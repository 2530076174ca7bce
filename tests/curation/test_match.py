"""Matching tables: the rule over files, counts, lists of texts, and what is wrong with tables."""

from __future__ import annotations

import csv
import io
import json
import tarfile

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
from pyarrow import parquet as pq  # noqa: E402

from annotary.curation.balance import BalanceOptions, balance  # noqa: E402
from annotary.curation.entries import Entries  # noqa: E402
from annotary.curation.match import (  # noqa: E402
    COUNTS,
    ENTRY_LIST,
    MatchOptions,
    counts_of_part,
    english_entries,
    match,
)
from annotary.curation.steps import StepOptions, read_report, run_step  # noqa: E402
from annotary.errors import OutputError, UsageError  # noqa: E402
from tests.curation.naive import matches  # noqa: E402

ENTRIES = Entries(("cat", "dog", "black cat", "a", "New York", "i.e.", "cat", "1"))
TEXTS = ["a black cat.", "dog?", None, "", "New York,City", "cats", "1,100 cat"]


def expected(text):
    (found,) = matches([text], ENTRIES)
    return found


def write(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        with tarfile.open(path, "w") as tar:
            for number, row in enumerate(rows):
                data = json.dumps(row).encode()
                member = tarfile.TarInfo(f"{number:06d}.json")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def rows_of(folder):
    return [
        row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()
    ]


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv", ".tar"])
def test_every_form_of_table(tmp_path, suffix):
    rows = [{"id": str(number), "caption": text} for number, text in enumerate(TEXTS)]
    table = write(tmp_path / f"pairs{suffix}", rows)
    result = match([table], ENTRIES, tmp_path / "out", steps=StepOptions(workers=1))
    found = rows_of(tmp_path / "out")
    assert [row["caption_entries"] for row in found] == [expected(text) for text in TEXTS]
    told = [None if suffix != ".csv" or text is not None else "" for text in TEXTS]
    assert [row["caption"] for row in found] == [
        text if text is not None else empty for text, empty in zip(TEXTS, told, strict=True)
    ]
    assert [row["id"] for row in found] == [str(number) for number in range(len(TEXTS))]
    counts = np.load(tmp_path / "out" / COUNTS)
    ids = [one for text in TEXTS for one in expected(text)]
    np.testing.assert_array_equal(counts, np.bincount(ids, minlength=len(ENTRIES)))
    assert counts.dtype == np.uint64
    assert json.loads((tmp_path / "out" / ENTRY_LIST).read_text()) == list(ENTRIES)
    assert result.total.rows_in == result.total.rows_out == len(TEXTS)


def test_the_report_says_what_there_was(tmp_path):
    rows = [{"id": number, "caption": text} for number, text in enumerate(TEXTS)]
    write(tmp_path / "pairs.parquet", rows)
    match([tmp_path / "pairs.parquet"], ENTRIES, tmp_path / "out", steps=StepOptions(workers=1))
    report = read_report(tmp_path / "out")
    assert report["texts"] == 6
    assert report["texts_matched"] == 4
    assert report["matches"] == sum(len(expected(text)) for text in TEXTS)
    assert report["entries"] == 8
    assert report["entries_dead"] == 1
    assert report["entries_duplicate"] == 1
    assert report["entries_matched"] == 6


def test_several_columns_and_rows_without_any_match(tmp_path):
    rows = [
        {"url": "a", "alt": "a cat", "title": "nothing"},
        {"url": "b", "alt": "nothing", "title": None},
        {"url": "c", "alt": None, "title": "dog"},
    ]
    write(tmp_path / "pairs.parquet", rows)
    options = MatchOptions(text_column=("alt", "title"), matched_only=True)
    result = match(
        [tmp_path / "pairs.parquet"], ENTRIES, tmp_path / "out", options, StepOptions(workers=1)
    )
    found = rows_of(tmp_path / "out")
    assert [(row["url"], row["alt_entries"], row["title_entries"]) for row in found] == [
        ("a", [0, 3], []),
        ("c", [], [1]),
    ]
    assert result.total.dropped == {"no entry matched": 1}


def test_lists_of_texts_become_rows(tmp_path):
    rows = [
        {"uuid": "x", "texts": [["alt", "a dog"], ["title", "cat"], ["broken"]]},
        {"uuid": "y", "texts": []},
        {"uuid": "z", "texts": [["alt", "New York"]]},
    ]
    write(tmp_path / "pairs.jsonl", rows)
    result = match([tmp_path / "pairs.jsonl"], ENTRIES, tmp_path / "out")
    found = [
        (row["uuid"], row["texts_kind"], row["texts"], row["texts_entries"])
        for row in rows_of(tmp_path / "out")
    ]
    assert found == [
        ("x", "alt", "a dog", [1, 3]),
        ("x", "title", "cat", [0]),
        ("z", "alt", "New York", [4]),
    ]
    assert result.total.rows_in == 3
    assert result.total.dropped == {"no text": 1}


def test_a_plain_list_of_texts(tmp_path):
    pq.write_table(
        pa.table({"id": [1, 2], "captions": [["cat", "a dog"], None]}), tmp_path / "p.parquet"
    )
    match([tmp_path / "p.parquet"], ENTRIES, tmp_path / "out")
    found = [(row["id"], row["captions"]) for row in rows_of(tmp_path / "out")]
    assert found == [(1, "cat"), (1, "a dog")]


@pytest.mark.parametrize("shards", [1, 7, 64])
def test_counts_and_matches_do_not_depend_on_shards(tmp_path, shards):
    generator = np.random.default_rng(0)
    words = ["a", "cat", "dog", "black", "New", "York", "1", "tree", ","]
    texts = [" ".join(generator.choice(words, generator.integers(0, 9))) for _ in range(500)]
    (tmp_path / "in").mkdir()
    for shard in range(shards):
        rows = [{"id": n, "text": text} for n, text in enumerate(texts) if n % shards == shard]
        write(tmp_path / "in" / f"{shard:03d}.parquet", rows)
    match([tmp_path / "in"], ENTRIES, tmp_path / "out", steps=StepOptions(workers=2))
    counts = np.load(tmp_path / "out" / COUNTS)
    ids = [one for text in texts for one in expected(text)]
    np.testing.assert_array_equal(counts, np.bincount(ids, minlength=len(ENTRIES)))
    found = {row["id"]: row["text_entries"] for row in rows_of(tmp_path / "out")}
    assert found == {number: expected(text) for number, text in enumerate(texts)}


def test_texts_of_a_language_without_spaces(tmp_path):
    entries = Entries(("手机", "苹果"))
    write(tmp_path / "p.parquet", [{"id": 1, "caption": "买苹果手机吧"}])
    for language, ids in ((None, []), ("zh", [0, 1])):
        out = tmp_path / f"out-{language}"
        match([tmp_path / "p.parquet"], entries, out, MatchOptions(language=language))
        assert rows_of(out)[0]["caption_entries"] == ids


def test_broken_rows_are_counted_and_a_broken_table_is_listed(tmp_path):
    (tmp_path / "in").mkdir()
    good = write(tmp_path / "in" / "a.jsonl", [{"id": 1, "caption": "cat"}])
    good.write_text(good.read_text() + "no json\n")
    (tmp_path / "in" / "b.parquet").write_bytes(b"PAR1 and nothing more")
    write(tmp_path / "in" / "c.parquet", [{"id": 2, "other": "cat"}])
    write(tmp_path / "in" / "d.parquet", [{"id": 3, "caption": 5}])
    result = match([tmp_path / "in"], ENTRIES, tmp_path / "out", steps=StepOptions(workers=1))
    assert [row["id"] for row in rows_of(tmp_path / "out")] == [1]
    assert set(result.failed) == {"b", "c", "d"}
    failures = (tmp_path / "out" / "_failures.jsonl").read_text()
    for told in ("a.jsonl:2", "not JSON", "b.parquet", "no column 'caption'", "int64, not text"):
        assert told in failures
    assert result.total.dropped == {"broken row": 1}


@pytest.mark.parametrize(
    ("rows", "columns", "told"),
    [
        ([{"id": 1, "words": "x"}], (), "usual name for texts; choose one with --text-column: 'id', 'words'"),
        ([{"id": 1, "caption": "x"}], ("alt",), "no column 'alt' \\(--text-column\\); its columns are 'id', 'caption'"),
        ([{"id": 1, "caption": 3}], ("caption",), "the column 'caption' of .* holds int64, not text"),
        ([{"caption": "x"}], ("caption", "caption"), "names a column twice"),
    ],
)  # fmt: skip
def test_a_column_that_is_not_there(tmp_path, rows, columns, told):
    write(tmp_path / "p.parquet", rows)
    with pytest.raises(UsageError, match=told):
        match([tmp_path / "p.parquet"], ENTRIES, tmp_path / "out", MatchOptions(columns))
    assert not (tmp_path / "out").exists()


def test_other_entries_are_refused_and_matched_tables_too(tmp_path):
    write(tmp_path / "p.parquet", [{"id": 1, "caption": "cat"}])
    match([tmp_path / "p.parquet"], ENTRIES, tmp_path / "out")
    with pytest.raises(OutputError, match="other settings \\(entries was"):
        match([tmp_path / "p.parquet"], Entries(("dog",)), tmp_path / "out")
    match(
        *([tmp_path / "p.parquet"], Entries(("dog",)), tmp_path / "out"),
        steps=StepOptions(on_existing="overwrite"),
    )
    assert rows_of(tmp_path / "out")[0]["caption_entries"] == []
    result = match([tmp_path / "out"], ENTRIES, tmp_path / "again")
    assert "has a column 'caption_entries' already" in result.total.failures[0].message


def test_the_english_list_is_at_hand():
    entries = english_entries()
    assert len(entries) == 86_654
    assert list(entries[:3]) == ["0", "1", "2"]
    assert "golden retriever" in entries.texts


@pytest.mark.parametrize("when", ["before", "behind"])
def test_machines_that_share_the_parts_count_them_all(tmp_path, monkeypatch, when):
    (tmp_path / "in").mkdir()
    for number in range(8):
        write(tmp_path / "in" / f"{number}.parquet", [{"id": number, "caption": "cat"}])
    shards = [StepOptions(workers=1, shard=f"{number}/2") for number in (1, 2)]
    out = tmp_path / "out"

    def on_other(*arguments, **settings):
        """The other machine comes to its end while this one, at its own, is about to count."""
        monkeypatch.setattr("annotary.curation.match.run_step", run_step)
        result = run_step(*arguments, **settings)
        match([tmp_path / "in"], ENTRIES, out, steps=shards[1])
        return result

    if when == "behind":
        match([tmp_path / "in"], ENTRIES, out, steps=shards[0])
        assert not (out / COUNTS).exists()
        with pytest.raises(UsageError, match=r"lacks . parts: match them first"):
            balance(out, tmp_path / "kept", BalanceOptions(t=1))
        match([tmp_path / "in"], ENTRIES, out, steps=shards[1])
    else:
        monkeypatch.setattr("annotary.curation.match.run_step", on_other)
        match([tmp_path / "in"], ENTRIES, out, steps=shards[0])
    assert np.load(out / COUNTS)[0] == 8
    report = read_report(out)
    assert (report["parts_missing"], report["entries_matched"]) == (0, 1)


def test_counts_of_a_part_that_are_gone(tmp_path):
    write(tmp_path / "p.parquet", [{"id": 1, "caption": "cat"}])
    match([tmp_path / "p.parquet"], ENTRIES, tmp_path / "out")
    counts_of_part(tmp_path / "out" / "p.parquet").unlink()
    with pytest.raises(OutputError, match="gone or damaged; say --on-existing overwrite"):
        match([tmp_path / "p.parquet"], ENTRIES, tmp_path / "out")


def test_a_table_without_any_text(tmp_path):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.jsonl", [{"id": 1, "texts": [["alt", "a dog"]]}])
    write(tmp_path / "in" / "b.jsonl", [{"id": 2, "texts": []}, {"id": 3, "texts": None}])
    write(tmp_path / "in" / "c.jsonl", [{"id": 4, "texts": [["too short"]]}])
    result = match([tmp_path / "in"], ENTRIES, tmp_path / "out", steps=StepOptions(workers=1))
    assert [row["id"] for row in rows_of(tmp_path / "out")] == [1]
    assert (result.total.rows_in, result.total.dropped) == (4, {"no text": 3})
    nothing = pa.table({"id": [1, 2], "caption": pa.nulls(2)})
    pq.write_table(nothing, tmp_path / "none.parquet")
    match([tmp_path / "none.parquet"], ENTRIES, tmp_path / "none")
    assert [row["caption_entries"] for row in rows_of(tmp_path / "none")] == [[], []]


def test_columns_are_not_doubled(tmp_path):
    rows = [{"id": 1, "texts": [["alt", "a dog"]], "texts_kind": "x"}]
    write(tmp_path / "p.parquet", rows)
    result = match([tmp_path / "p.parquet"], ENTRIES, tmp_path / "out")
    assert "has a column 'texts_kind' already" in result.total.failures[0].message


def test_long_lists_of_texts_beside_large_cells(tmp_path, monkeypatch):
    monkeypatch.setattr("annotary.curation.match.BATCH_BYTES", 1_000)
    rows = [
        {"id": n, "image": bytes(100), "texts": [f"cat {n} {k}" for k in range(n * 20)]}
        for n in range(4)
    ]
    write(tmp_path / "p.parquet", rows)
    result = match([tmp_path / "p.parquet"], ENTRIES, tmp_path / "out")
    found = [(row["id"], row["texts"], row["texts_entries"]) for row in rows_of(tmp_path / "out")]
    assert found == [(row["id"], text, expected(text)) for row in rows for text in row["texts"]]
    assert result.total.dropped == {"no text": 1}
    assert result.total.beside["rows_unrolled"] == len(found) == 120


def test_what_is_written_below_the_tables_is_not_read_again(tmp_path):
    write(tmp_path / "p.parquet", [{"id": 1, "caption": "cat"}])
    for _ in range(2):
        result = match([tmp_path], ENTRIES, tmp_path / "out", steps=StepOptions(workers=1))
        assert result.total.rows_in == 1
    assert match([tmp_path / "out"], ENTRIES, tmp_path / "x").total.failures  # named, it is read
