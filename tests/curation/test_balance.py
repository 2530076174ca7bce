"""Balancing tables: what is kept belongs to the pair, as many as expected, and the report says what there was."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
from pyarrow import parquet as pq  # noqa: E402

from annotary.curation.balance import (  # noqa: E402
    BalanceOptions,
    Balancer,
    balance,
    draw,
    read_counts_file,
)
from annotary.curation.entries import Entries  # noqa: E402
from annotary.curation.match import COUNTS, MatchOptions, match  # noqa: E402
from annotary.curation.probabilities import entry_probabilities, text_probabilities  # noqa: E402
from annotary.curation.steps import StepOptions, read_report  # noqa: E402
from annotary.errors import UsageError  # noqa: E402

WORDS = [f"word{number}" for number in range(300)]
ENTRIES = Entries(tuple(WORDS[:250]))
ONE = StepOptions(workers=1)


def texts(count=4_000, seed=0):
    """Texts whose words follow Zipf's law; some have none of the entries."""
    generator = np.random.default_rng(seed)
    chance = 1 / np.arange(1, 301)
    rows = generator.choice(300, (count, 4), p=chance / chance.sum())
    lengths = generator.integers(0, 5, count)
    return [
        " ".join(WORDS[one] for one in row[:length])
        for row, length in zip(rows, lengths, strict=True)
    ]


def matched(folder, all_texts, shards=1, order=None):
    """The folder of a matched table, cut into shards."""
    (folder / "in").mkdir(parents=True)
    rows = [
        {"url": f"https://example.org/{n}", "caption": text} for n, text in enumerate(all_texts)
    ]
    if order is not None:
        rows = [rows[place] for place in order]
    for shard in range(shards):
        table = pa.Table.from_pylist(
            rows[shard::shards], pa.schema({"url": pa.string(), "caption": pa.string()})
        )
        pq.write_table(table, folder / "in" / f"{shard:03d}.parquet")
    match([folder / "in"], ENTRIES, folder / "matched", steps=ONE)
    return folder / "matched"


def rows_of(folder):
    return [
        row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()
    ]


def kept_of(folder):
    return {row["url"] for row in rows_of(folder)}


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return matched(tmp_path_factory.mktemp("pool"), texts())


def test_the_same_pairs_whatever_the_shards_and_the_order(tmp_path, pool):
    balance(pool, tmp_path / "kept", BalanceOptions(t=40), ONE)
    expected = kept_of(tmp_path / "kept")
    assert 0 < len(expected) < 4_000
    order = np.random.default_rng(1).permutation(4_000)
    for shards, workers in ((7, 2), (64, 1)):
        place = tmp_path / str(shards)
        again = matched(place, texts(), shards, order)
        balance(again, place / "kept", BalanceOptions(t=40), StepOptions(workers=workers))
        assert kept_of(place / "kept") == expected
        np.testing.assert_array_equal(
            np.load(place / "kept" / COUNTS), np.load(tmp_path / "kept" / COUNTS)
        )


def test_a_greater_t_keeps_all_that_a_smaller_one_kept(tmp_path, pool):
    before = set()
    for t in (0.5, 5, 50, 500, 5_000):
        out = tmp_path / f"t{t}"
        balance(pool, out, BalanceOptions(t=t), ONE)
        kept = kept_of(out)
        assert before < kept or t == 5_000
        before = kept
    assert len(before) == read_report(pool)["texts_matched"]


def test_as_many_are_kept_as_the_probabilities_say(tmp_path, pool):
    counts = np.load(pool / COUNTS)
    lists = [row["caption_entries"] for row in rows_of(pool)]
    offsets = np.cumsum([0, *map(len, lists)])
    entries = np.array([one for row in lists for one in row], np.uint32)
    chance = text_probabilities((offsets, entries), entry_probabilities(counts, 40))
    deviation = np.sqrt((chance * (1 - chance)).sum())
    sizes, seen = [], []
    for seed in range(30):
        out = tmp_path / str(seed)
        result = balance(pool, out, BalanceOptions(t=40, seed=seed), ONE)
        assert result.total.beside["texts_expected"] == pytest.approx(chance.sum(), rel=1e-9)
        kept = kept_of(out)
        sizes.append(len(kept))
        seen.append([row["url"] in kept for row in rows_of(pool)])
    # Each size is a sum of 4,000 independent draws; the seeds are independent of each other.
    scores = (np.array(sizes) - chance.sum()) / deviation
    assert np.abs(scores).max() < 4
    assert abs(scores.mean()) < 4 / np.sqrt(30)
    assert 0.6 < scores.std() < 1.5
    # Each text by itself is kept in its share of the seeds: where nothing is sure, squares of scores are about 1.
    unsure = (chance > 0.1) & (chance < 0.9)
    errors = (np.mean(seen, axis=0) - chance)[unsure] / np.sqrt(
        (chance * (1 - chance) / 30)[unsure]
    )
    assert (errors**2).mean() == pytest.approx(1, abs=0.15)


def test_of_each_entry_about_t_or_more_are_kept(tmp_path, pool):
    balance(pool, tmp_path / "kept", BalanceOptions(t=40), ONE)
    before, after = np.load(pool / COUNTS), np.load(tmp_path / "kept" / COUNTS)
    assert (after[before <= 40] == before[before <= 40]).all()
    head = before > 400
    assert (after[head] >= 20).all()
    assert (after[head] < before[head]).all()


def test_no_entry_no_pair(tmp_path, pool):
    result = balance(pool, tmp_path / "kept", BalanceOptions(t=10**9), ONE)
    unmatched = sum(not row["caption_entries"] for row in rows_of(pool))
    assert result.total.dropped == {"no entry matched": unmatched}


def test_t_for_a_size(tmp_path, pool):
    for size in (60, 1_000, 2_500):
        out = tmp_path / str(size)
        balance(pool, out, BalanceOptions(target_size=size), ONE)
        assert len(kept_of(out)) == pytest.approx(size, abs=4 * np.sqrt(size))
        report = read_report(out)
        assert size * (1 - 1e-9) <= report["texts_expected"] < size * 1.005
    with pytest.raises(UsageError, match="fewer than --target-size 1,000,000"):
        balance(pool, tmp_path / "more", BalanceOptions(target_size=1_000_000), ONE)


def test_t_for_a_size_by_a_sample(tmp_path, pool, monkeypatch):
    monkeypatch.setattr("annotary.curation.balance.SAMPLE", 1_000)
    balance(pool, tmp_path / "out", BalanceOptions(target_size=1_000), ONE)
    assert len(kept_of(tmp_path / "out")) == pytest.approx(1_000, rel=0.2)
    samples = [path for path in (tmp_path / "out" / "_state").iterdir() if "sample" in path.name]
    assert 800 < len(pq.read_table(samples[0])) < 1_200


def test_t_by_the_share_of_the_tail(tmp_path, pool):
    balance(pool, tmp_path / "out", BalanceOptions(tail_share=0.06), ONE)
    report = read_report(tmp_path / "out")
    assert report["tail_share"] <= 0.06
    assert report["t"] in np.load(pool / COUNTS)


def test_the_report(tmp_path, pool):
    balance(pool, tmp_path / "out", BalanceOptions(t=40), ONE)
    report = read_report(tmp_path / "out")
    before, after = np.load(pool / COUNTS), np.load(tmp_path / "out" / COUNTS)
    assert report["entries_head"] == (before > 40).sum()
    assert report["kept_share"] == len(kept_of(tmp_path / "out")) / report["texts"]
    assert report["unmatched_share"] == report["dropped"]["no entry matched"] / 4_000
    assert report["tail_share"] == before[before < 40].sum() / before.sum()
    assert report["tail_share_kept"] == after[before < 40].sum() / after.sum()
    first = report["head"][0]
    assert first == {
        "id": 0, "entry": "word0", "before": int(before[0]), "after": int(after[0]),
        "probability": pytest.approx(40 / before[0], rel=1e-5),
    }  # fmt: skip
    ranks = [rank for rank, *_ in report["curve"]]
    assert ranks == sorted(set(ranks))
    assert ranks[-1] == np.count_nonzero(before)


def test_online_nothing_is_drawn(tmp_path, pool):
    balance(pool, tmp_path / "out", BalanceOptions(t=40, online=True), ONE)
    balance(pool, tmp_path / "drawn", BalanceOptions(t=40, seed=3), ONE)
    drawn = kept_of(tmp_path / "drawn")
    balancer = Balancer.of(pool, 40, seed=3)
    rows = rows_of(tmp_path / "out")
    assert len(rows) == read_report(pool)["texts_matched"]
    epochs = []
    for row in rows[:400]:
        ids, text = row["caption_entries"], row["caption"]
        assert row["caption_probability"] == pytest.approx(balancer.probability(ids), rel=1e-12)
        is_kept = balancer.keeps(ids, text, row["url"])
        assert is_kept == (row["url"] in drawn)
        epochs.append([balancer.keeps(ids, text, row["url"], epoch=epoch) for epoch in range(20)])
    # Another epoch draws anew, and each keeps its share.
    expected = np.mean([row["caption_probability"] for row in rows[:400]])
    assert np.mean(epochs) == pytest.approx(expected, abs=0.03)
    assert len({tuple(one) for one in np.array(epochs).T}) == 20


def test_a_text_that_is_not_drawn_leaves_its_row(tmp_path):
    rows = [{"url": str(n), "alt": "word0", "title": "word1"} for n in range(500)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    options = MatchOptions(text_column=("alt", "title"))
    match([tmp_path / "p.parquet"], ENTRIES, tmp_path / "m", options, ONE)
    result = balance(tmp_path / "m", tmp_path / "out", BalanceOptions(t=250), ONE)
    found = rows_of(tmp_path / "out")
    kinds = {(row["alt"], row["title"]) for row in found}
    assert kinds == {("word0", "word1"), ("word0", None), (None, "word1")}
    for row in found:
        assert (row["alt_entries"] == [0]) == (row["alt"] is not None)
    assert len(found) == pytest.approx(375, abs=50)  # one half or the other
    counts = np.load(tmp_path / "out" / COUNTS)
    assert counts[0] == sum(row["alt"] is not None for row in found)
    assert result.total.dropped == {"not drawn": 500 - len(found)}


def test_what_later_steps_left_is_balanced_by_the_counts_of_all(tmp_path, pool):
    rest = pq.read_table(next(pool.glob("*.parquet"))).slice(0, 100)
    (tmp_path / "rest").mkdir()
    pq.write_table(rest, tmp_path / "rest" / "x.parquet")
    balance(pool, tmp_path / "all", BalanceOptions(t=40), ONE)
    balance(pool, tmp_path / "out", BalanceOptions(t=40), ONE, tables=[tmp_path / "rest"])
    assert kept_of(tmp_path / "out") == kept_of(tmp_path / "all") & set(rest["url"].to_pylist())


def test_counts_of_a_larger_pool(tmp_path, pool):
    counts = np.load(pool / COUNTS) * 1_000
    balance(pool, tmp_path / "out", BalanceOptions(t=40_000), ONE, counts=counts)
    balance(pool, tmp_path / "own", BalanceOptions(t=40), ONE)
    assert kept_of(tmp_path / "out") == kept_of(tmp_path / "own")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "t, target_size or tail_share must be said, one of them .--t, --target-size or"),
        ({"t": 1, "target_size": 5}, "must be said, not t and target_size together"),
        ({"t": 0}, "t must be above 0, but got 0"),
        ({"t": float("nan")}, "t must be above 0"),
        ({"target_size": 0}, "target_size must be at least 1"),
        ({"tail_share": 1.0}, "tail_share must be above 0 and below 1"),
    ],
)
def test_options_that_make_no_sense(options, told):
    with pytest.raises(ValueError, match=told):
        BalanceOptions(**options)


def test_what_was_not_matched(tmp_path, pool):
    with pytest.raises(UsageError, match="holds no report"):
        balance(tmp_path, tmp_path / "out", BalanceOptions(t=1))
    balance(pool, tmp_path / "once", BalanceOptions(t=1), ONE)
    with pytest.raises(
        UsageError, match="no output of annotary curate match, but of balance; name that of"
    ):
        balance(tmp_path / "once", tmp_path / "out", BalanceOptions(t=1))
    (tmp_path / "rest").mkdir()
    pq.write_table(pa.table({"url": ["a"], "caption": ["b"]}), tmp_path / "rest" / "x.parquet")
    with pytest.raises(UsageError, match="no column 'caption_entries'"):
        balance(pool, tmp_path / "out", BalanceOptions(t=1), tables=[tmp_path / "rest"])
    with pytest.raises(UsageError, match=r"no column 'uuid' \(--id\)"):
        balance(pool, tmp_path / "out", BalanceOptions(t=1, id=("uuid",)))


def test_counts_that_are_not_of_these_entries(tmp_path, pool):
    with pytest.raises(UsageError, match="counts of 3 entries, but"):
        balance(pool, tmp_path / "out", BalanceOptions(t=1), ONE, counts=np.array([1, 2, 3]))


def test_a_draw_is_the_same_for_ever():
    """Sets that were published can be made again: these numbers must never change."""
    assert draw(0, "a black cat", "https://example.org/1.jpg") == 0.5807227555071731
    assert draw(7, "", "1", "x", epoch=2) == 0.11400582462691033


def test_the_command(tmp_path, pool):
    from click.testing import CliRunner

    from annotary.cli.curate import command

    arguments = ["balance", str(pool), "--output", str(tmp_path / "out"), "--t", "40", "--json"]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    assert "t = 40" in result.stderr
    assert json.loads(result.stdout)["rows_out"] == len(kept_of(tmp_path / "out"))
    assert "4,000 rows balanced" in result.stderr


def test_ids_of_every_type(tmp_path):
    texts_of_all = ["word0", "word1"]
    keys = {
        "uuid": pa.ExtensionArray.from_storage(
            pa.uuid(), pa.array([b"\xff" * 16, bytes(16)], pa.binary(16))
        ),
        "bytes": pa.array([b"\xff", None]),
        "codes": pa.array([b"\xff", b"x"]).dictionary_encode(),
        "number": pa.array([2**64 - 1, 0], pa.uint64()),
        "time": pa.array([0, 1], pa.timestamp("ns", "UTC")),
    }
    pq.write_table(pa.table({**keys, "caption": texts_of_all}), tmp_path / "p.parquet")
    match([tmp_path / "p.parquet"], ENTRIES, tmp_path / "m", steps=ONE)
    balancer = Balancer.of(tmp_path / "m", 0.5, seed=5)
    told = {"uuid": ["ff" * 16, "00" * 16], "codes": ["ff", "78"], "number": [str(2**64 - 1), "0"]}
    for name in keys:
        out = tmp_path / name
        balance(tmp_path / "m", out, BalanceOptions(t=0.5, seed=5, id=(name,)), ONE)
        if name in told:
            pairs = zip(texts_of_all, told[name], strict=True)
            kept = [text for n, (text, key) in enumerate(pairs) if balancer.keeps([n], text, key)]
            assert [row["caption"] for row in rows_of(out)] == kept


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        ([[2**32], [0]], "ids of entries of another list"),
        ([[-1], [0]], "ids of entries of another list"),
        ([[250], [0]], "ids of entries of another list"),
        ([[0, None], [0]], "in which one is missing"),
        ([["0"], ["1"]], "a column of list<.*string> where ids of entries are expected"),
    ],
)
def test_ids_of_other_entries(tmp_path, pool, ids, told):
    (tmp_path / "rest").mkdir()
    table = pa.table({"url": ["a", "b"], "caption": ["word0", "x"], "caption_entries": ids})
    pq.write_table(table, tmp_path / "rest" / "x.parquet")
    result = balance(pool, tmp_path / "out", BalanceOptions(t=1), ONE, tables=[tmp_path / "rest"])
    (failure,) = result.total.failures
    assert re.search(told, failure.message)


def test_lists_of_ids_that_are_empty_or_missing(tmp_path, pool):
    (tmp_path / "rest").mkdir()
    rows = [{"url": "a", "caption": "x", "caption_entries": []}, {"url": "b", "caption": "y"}]
    (tmp_path / "rest" / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = balance(pool, tmp_path / "out", BalanceOptions(t=1), ONE, tables=[tmp_path / "rest"])
    assert result.total.dropped == {"no entry matched": 2}


def test_a_column_of_probabilities_is_not_doubled(tmp_path, pool):
    options = BalanceOptions(t=40, online=True)
    balance(pool, tmp_path / "once", options, ONE)
    result = balance(pool, tmp_path / "twice", options, ONE, tables=[tmp_path / "once"])
    assert (
        "'caption_probability' already; was the table balanced" in result.total.failures[0].message
    )


@pytest.mark.parametrize("sample", [1_000_000, 1_000])
def test_a_size_that_later_tables_do_not_have(tmp_path, pool, monkeypatch, sample):
    monkeypatch.setattr("annotary.curation.balance.SAMPLE", sample)
    rest = pq.read_table(next(pool.glob("*.parquet"))).slice(0, 400)
    (tmp_path / "rest").mkdir()
    pq.write_table(rest, tmp_path / "rest" / "x.parquet")
    tables = [tmp_path / "rest"]
    there = sum(bool(ids) for ids in rest["caption_entries"].to_pylist())
    with pytest.raises(UsageError, match=f"only {there} texts match any entry"):
        balance(pool, tmp_path / "o", BalanceOptions(target_size=there + 1), ONE, tables=tables)
    balance(pool, tmp_path / "o", BalanceOptions(target_size=150), ONE, tables=tables)
    assert len(kept_of(tmp_path / "o")) == pytest.approx(150, abs=40)


def test_machines_that_share_the_parts(tmp_path):
    again = matched(tmp_path, texts(400), 8)
    balance(again, tmp_path / "whole", BalanceOptions(target_size=100), ONE)
    for number in (1, 2):
        options = StepOptions(workers=1, shard=f"{number}/2")
        balance(again, tmp_path / "shared", BalanceOptions(target_size=100), options)
        assert (tmp_path / "shared" / COUNTS).exists() == (number == 2)
    assert kept_of(tmp_path / "shared") == kept_of(tmp_path / "whole")
    assert read_report(tmp_path / "shared") == read_report(tmp_path / "whole")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", r"no array of NumPy \(.npy\), or is damaged"),
        (b"1 2 3", r"no array of NumPy"),
        (np.array([1, -2]), "holds counts below 0"),
        (np.array([1.5]), r"holds float64\[1\], not counts"),
        (None, "counts.npy cannot be read: "),
    ],
)
def test_files_that_are_no_counts(tmp_path, data, told):
    path = tmp_path / "counts.npy"
    if isinstance(data, bytes):
        path.write_bytes(data)
    elif data is not None:
        np.save(path, data)
    with pytest.raises(UsageError, match=told):
        read_counts_file(path)


def test_a_t_so_small_that_nothing_is_kept(tmp_path, pool):
    result = balance(pool, tmp_path / "out", BalanceOptions(t=5e-324), ONE)
    unmatched = 4_000 - read_report(pool)["texts_matched"]
    assert result.total.dropped["no entry matched"] == unmatched


def test_tables_that_are_being_matched_anew(tmp_path, monkeypatch):
    """What was counted before a table changed is no more."""
    again = matched(tmp_path, texts(40), 4)
    table = tmp_path / "in" / "001.parquet"
    pq.write_table(pq.read_table(table).slice(0, 3), table)
    monkeypatch.setattr("annotary.curation.match.MatchStep.run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        match([tmp_path / "in"], ENTRIES, again, steps=ONE)
    monkeypatch.undo()
    with pytest.raises(
        UsageError, match="was not written to its end: first give the command again"
    ):
        balance(again, tmp_path / "out", BalanceOptions(t=1), ONE)
    match([tmp_path / "in"], ENTRIES, again, steps=ONE)
    balance(again, tmp_path / "out", BalanceOptions(t=10**9), ONE)
    assert np.load(again / COUNTS).sum() == np.load(tmp_path / "out" / COUNTS).sum()


def interrupted(*_):
    raise KeyboardInterrupt


def test_ids_that_one_part_alone_has_otherwise(tmp_path):
    (tmp_path / "in").mkdir()
    kinds = {"a": ["1", "2"], "b": [1, 2], "c": [[1], [2]], "d": [None, None], "e": [1.0, 2.0]}
    for name, ids in kinds.items():
        table = pa.table({"id": ids, "caption": ["word0", "word1"]})
        pq.write_table(table, tmp_path / "in" / f"{name}.parquet")
    match([tmp_path / "in"], ENTRIES, tmp_path / "m", steps=ONE)
    result = balance(tmp_path / "m", tmp_path / "out", BalanceOptions(t=1, seed=3), ONE)
    assert result.failed == ("c",)
    assert "int64>, which is neither text nor an id" in result.total.failures[0].message
    kept = [
        pq.read_table(tmp_path / "out" / f"{name}.parquet")["caption"].to_pylist() for name in "abe"
    ]
    assert kept[0] == kept[1] == kept[2]


@pytest.mark.parametrize("content", ["[", "[]", "5", '["one"]'])
def test_entries_that_do_not_stand_beside(tmp_path, content):
    again = matched(tmp_path, texts(20))
    (again / "_entries.json").write_text(content)
    balance(again, tmp_path / "out", BalanceOptions(t=1), ONE)
    assert {one["entry"] for one in read_report(tmp_path / "out")["head"]} == {None}
