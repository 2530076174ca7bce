from __future__ import annotations

import gzip
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
import unicodedata
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from annotary.cli.curate import command
from annotary.curation import _dedup_found, _dedup_groups, _dedup_keys
from annotary.curation._dedup_keys import normalised
from annotary.curation.dedup import DedupOptions, dedup
from annotary.curation.steps import StepOptions, read_report
from annotary.curation.tables import find_parts
from annotary.errors import OutputError, UsageError

Row = dict[str, Any]

ONE = StepOptions(workers=1)


def write(folder: Path, rows: Sequence[Row], parts: int = 1) -> Path:
    """Rows as tables of about the same length."""
    folder.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([(name, pa.string()) for name in ("id", "url", "text")])
    for number in range(parts):
        chosen = rows[len(rows) * number // parts : len(rows) * (number + 1) // parts]
        table = pa.Table.from_pylist(list(chosen), schema=schema)
        parquet.write_table(table, folder / f"{number:03d}.parquet")
    return folder


def read(folder: Path) -> list[Row]:
    """All rows of a folder of tables, in the order of their names."""
    return [
        row
        for path in sorted(folder.glob("*.parquet"))
        if not path.name.startswith("_")
        for row in parquet.read_table(path).to_pylist()
    ]


def listed(folder: Path) -> list[Row]:
    """The rows that have gone."""
    found: list[Row] = parquet.read_table(folder / "_duplicates.parquet").to_pylist()
    return found


def key_of(row: Row, way: str, is_normalised: bool) -> Any:
    url, text = row["url"], row["text"]
    if text and is_normalised:
        text = unicodedata.normalize("NFKC", text).casefold()
        text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    if way == "pair":
        return (url, text) if url and text else None
    return (text if way == "text" else url) or None


def naive(
    rows: Sequence[Row], ways: Sequence[str], is_normalised: bool = False
) -> tuple[list[str], dict[str, tuple[str, str]]]:
    """Rows one after the other: which stay; which go, with the way and the row that they are the same as."""
    seen: dict[tuple[str, Any], str] = {}
    stays, goes = [], {}
    for row in rows:
        keys = [(way, key_of(row, way, is_normalised)) for way in ways]
        known = [key for key in keys if key[1] is not None and key in seen]
        if known:
            goes[row["id"]] = (known[0][0], seen[known[0]])
            continue
        stays.append(row["id"])
        for key in keys:
            if key[1] is not None:
                seen[key] = row["id"]
    return stays, goes


cells = st.sampled_from(
    [None, "", "a", "A", " a ", "b", "c d", "c  d", "ﬁn", "fin", "Straße", "STRASSE"]
)
tables = st.lists(st.tuples(cells, cells), max_size=40).map(
    lambda pairs: [{"id": f"r{i}", "url": u, "text": t} for i, (u, t) in enumerate(pairs)]
)
ways = st.lists(
    st.sampled_from(["text", "url", "pair", "column:url"]), min_size=1, max_size=3, unique=True
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=tables,
    ways=ways.map(
        lambda found: [way for way in found if way != "column:url" or "url" not in found]
    ),
    parts=st.sampled_from([1, 3, 7]),
    is_normalised=st.booleans(),
    few=st.sampled_from([0, 3, 1000]),
    size=st.sampled_from([2, 5, 1000]),
)
def test_same_as_row_by_row(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rows: list[Row],
    ways: list[str],
    parts: int,
    is_normalised: bool,
    few: int,
    size: int,
) -> None:
    monkeypatch.setattr(_dedup_groups, "FEW_ROWS", few)
    monkeypatch.setattr(_dedup_groups, "BUCKET_ROWS", size)
    monkeypatch.setattr(_dedup_groups, "_ROWS_OF_FILE", 0)
    monkeypatch.setattr(_dedup_found, "_AT_ONCE", size * 3)
    monkeypatch.setattr(_dedup_keys, "BLOCK_ROWS", size * 2)
    work = tmp_path / str(time.monotonic_ns())
    write(work / "in", rows, parts)
    options = DedupOptions(by=",".join(ways), normalise=is_normalised)
    result = dedup([work / "in"], work / "out", options, ONE)
    expected = [way.replace("column:", "") for way in ways]
    stays, goes = naive(rows, expected, is_normalised)
    assert [row["id"] for row in read(work / "out")] == stays
    found = {
        row["id"]: (row["by"].replace("column:", ""), row["of_id"]) for row in listed(work / "out")
    }
    assert found == goes
    assert (result.total.rows_in, result.total.rows_out) == (len(rows), len(stays))
    assert sum(result.total.dropped.values()) == len(goes)


def web_rows(count: int, seed: int = 0) -> list[Row]:
    rng = random.Random(seed)
    return [
        {"id": f"r{i}", "url": f"u{rng.randrange(count)}", "text": f"t{rng.randrange(count)}"}
        for i in range(count)
    ]


def test_long_chains_are_settled_in_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row has the text of the one before or its address, in turn: whether it stays depends on all before."""
    rows = [{"id": f"r{i}", "url": f"u{i // 2}", "text": f"t{(i + 1) // 2}"} for i in range(101)]
    write(tmp_path / "in", rows, 3)
    stays, _ = naive(rows, ["text", "url"])
    for few in (0, 10, 1000):
        monkeypatch.setattr(_dedup_groups, "FEW_ROWS", few)
        dedup([tmp_path / "in"], tmp_path / f"out-{few}", DedupOptions(by="text,url"), ONE)
        assert [row["id"] for row in read(tmp_path / f"out-{few}")] == stays
    assert len(stays) == 51


def test_same_for_any_number_of_parts_and_processes(tmp_path: Path) -> None:
    rows = web_rows(3000)
    stays, goes = naive(rows, ["text", "url"])
    for parts, workers in ((1, 1), (3, 1), (7, 2)):
        source = write(tmp_path / f"in-{parts}", rows, parts)
        out = tmp_path / f"out-{parts}"
        dedup([source], out, DedupOptions(by="text,url"), StepOptions(workers=workers))
        assert [row["id"] for row in read(out)] == stays
        assert {row["id"]: (row["by"], row["of_id"]) for row in listed(out)} == goes


def test_hashes_that_agree_in_their_upper_half(tmp_path: Path) -> None:
    """Rows whose hashes begin alike are not the same."""
    numbers = _dedup_groups.np.array
    high = numbers([5, 5, 5, 5, 7, 7, 9], "u8")
    low = numbers([1, 2, 1, 2, 3, 3, 0], "u8")
    keys = _dedup_keys.Keys(high, low, numbers(range(7), "i8"))
    groups = _dedup_groups.equal_rows(keys)
    assert groups.rows.tolist() == [0, 2, 1, 3, 4, 5]
    assert groups.is_first.tolist() == [True, False] * 3


def test_skewed_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text that most rows have is in one bucket, however small buckets are."""
    monkeypatch.setattr(_dedup_groups, "BUCKET_ROWS", 50)
    monkeypatch.setattr(_dedup_groups, "_ROWS_OF_FILE", 0)
    rows = [
        {"id": f"r{i}", "url": f"u{i}", "text": "image" if i % 10 else f"t{i}"} for i in range(1000)
    ]
    write(tmp_path / "in", rows, 3)
    dedup([tmp_path / "in"], tmp_path / "out", DedupOptions(by="text"), ONE)
    assert [row["id"] for row in read(tmp_path / "out")] == naive(rows, ["text"])[0]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("A Dog", "a  dog"),
        ("ﬁne", "FINE"),
        ("Ｗｉｄｅ", "wide"),
        ("e\u0301", "É"),
        ("a\u00a0b\n", "A B"),
        ("ς", "Σ"),
    ],
)
def test_normalised_texts(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)
    assert normalised(normalised(one)) == normalised(one)


@given(st.text(max_size=20))
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)


def test_texts_are_as_they_are_without_normalising(tmp_path: Path) -> None:
    rows = [
        {"id": str(i), "url": None, "text": text} for i, text in enumerate(["a", "A", "a ", "a"])
    ]
    write(tmp_path / "in", rows)
    dedup([tmp_path / "in"], tmp_path / "out", DedupOptions(by="text"), ONE)
    assert [row["id"] for row in read(tmp_path / "out")] == ["0", "1", "2"]


def test_all_formats_at_once(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.csv").write_text('url,text,n\nu1,"one, two",7\nu2,two,8\n')
    with gzip.open(source / "b.jsonl.gz", "wt") as file:
        file.write(
            '{"url": "u3", "text": "one, two", "n": 7}\n{"url": "u4", "text": "two!"}\nno json\n'
        )
    table = pa.table(
        {
            "url": pa.array(["u5", "u6"]).dictionary_encode(),
            "text": pa.array(["two", "three"], pa.large_string()),
            "n": pa.array([9, 8], pa.int8()),
        }
    )
    parquet.write_table(table, source / "c.parquet")
    result = dedup([source], tmp_path / "out", DedupOptions(by="text"), ONE)
    assert [row["url"] for row in read(tmp_path / "out")] == ["u1", "u2", "u4", "u6"]
    assert result.total.dropped == {"duplicate text": 2, "broken row": 1}
    assert result.total.rows_in == 7
    dedup([source], tmp_path / "numbers", DedupOptions(by="column:n"), ONE)
    assert [row["url"] for row in read(tmp_path / "numbers")] == ["u1", "u2", "u4", "u5"]


def test_columns_of_lists_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    table = pa.table(
        {
            "texts": [["a", "B"], ["A", "b"], ["a"], [], [], None],
            "digest": [b"\x00", b"\x00", b"\xff", b"\xff", None, None],
        }
    )
    parquet.write_table(table, tmp_path / "in" / "a.parquet")
    dedup([tmp_path / "in"], tmp_path / "lists", DedupOptions(by="text", normalise=True), ONE)
    assert [row["digest"] for row in read(tmp_path / "lists")] == [
        b"\x00",
        b"\xff",
        b"\xff",
        None,
        None,
    ]
    dedup([tmp_path / "in"], tmp_path / "bytes", DedupOptions(by="column:digest"), ONE)
    assert [row["texts"] for row in read(tmp_path / "bytes")] == [["a", "B"], ["a"], [], None]


def test_shards_of_webdataset(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(2):
        with tarfile.open(tmp_path / "in" / f"{number}.tar", "w") as tar:
            for name, data in (
                ("a.jpg", b"no picture"),
                ("a.txt", b"a dog\n"),
                ("b.txt", f"a cat {number}".encode()),
                ("b.json", b'{"url": "u"}'),
            ):
                member = tarfile.TarInfo(f"{number}{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    dedup([tmp_path / "in"], tmp_path / "out", DedupOptions(by="text,url"), ONE)
    assert [row["__key__"] for row in read(tmp_path / "out")] == ["0a", "0b"]
    told = [(row["id"], row["by"], row["of_id"]) for row in listed(tmp_path / "out")]
    assert told == [("1a", "text", "0a"), ("1b", "url", "0b")]


def test_columns_of_all_kinds(tmp_path: Path) -> None:
    """Whatever can be in a column can be compared."""
    day = datetime(2024, 2, 29, 12, 30)
    kinds: dict[str, list[Any]] = {
        "whole": [1, 2, 1, None],
        "real": [0.5, 1.5, 0.5, None],
        "truth": [True, False, True, None],
        "time": [day, day + timedelta(seconds=1), day, None],
        "span": [timedelta(seconds=1), timedelta(seconds=2), timedelta(seconds=1), None],
        "exact": [Decimal("1.10"), Decimal("1.11"), Decimal("1.10"), None],
        "parts": [{"a": 1}, {"a": 2}, {"a": 1}, None],
    }
    (tmp_path / "in").mkdir()
    table = pa.table({**kinds, "none": pa.nulls(4), "row": [0, 1, 2, 3]})
    parquet.write_table(table, tmp_path / "in" / "a.parquet")
    for name in (*kinds, "none"):
        dedup([tmp_path / "in"], tmp_path / name, DedupOptions(by=f"column:{name}"), ONE)
        rows = [row["row"] for row in read(tmp_path / name)]
        assert rows == ([0, 1, 2, 3] if name == "none" else [0, 1, 3]), name


def test_marked_and_not_left_out(tmp_path: Path) -> None:
    rows = [{"id": "1", "url": "u", "text": "x"}, {"id": "2", "url": "v", "text": "x"}]
    write(tmp_path / "in", rows)
    options = DedupOptions(by="text", keep_duplicates=True)
    result = dedup([tmp_path / "in"], tmp_path / "out", options, ONE)
    first, second = read(tmp_path / "out")
    assert (first["duplicate_by"], first["duplicate_of"], first["duplicate_distance"]) == (
        None,
    ) * 3
    assert second["duplicate_by"] == "text"
    assert second["duplicate_of"] == f"{tmp_path / 'in' / '000.parquet'}/0"
    assert second["duplicate_distance"] == 0.0
    assert result.total.dropped == {}
    assert read_report(tmp_path / "out")["marked: duplicate text"] == 1
    again = dedup([tmp_path / "out"], tmp_path / "again", options, ONE)
    assert "has a column 'duplicate_by' already" in again.total.failures[0].message
    arguments = ["--by", "text", "--keep-duplicates", "--workers", "1"]
    told = CliRunner().invoke(
        command,
        ["dedup", str(tmp_path / "in"), "--output", str(tmp_path / "told"), *arguments],
    )
    assert "2 written; 1 are marked in the column 'duplicate_by'" in told.stderr, told.output


def test_rows_are_numbered_in_their_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large table is read in parts; rows are told by their place in the table."""
    monkeypatch.setattr("annotary.curation.tables._CUT_FROM", 0)
    monkeypatch.setattr("annotary.curation.tables.PART_ROWS", 4)
    rows = web_rows(20, seed=3)
    (tmp_path / "in").mkdir()
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "in/a.parquet", row_group_size=2)
    assert len(find_parts([tmp_path / "in"])) > 2
    dedup([tmp_path / "in"], tmp_path / "out", DedupOptions(by="text,url"), ONE)
    for found in listed(tmp_path / "out"):
        assert rows[found["row"]]["id"] == found["id"]
        assert rows[found["of_row"]]["id"] == found["of_id"]
        assert found["table"] == found["of_table"] == str(tmp_path / "in/a.parquet")
    assert [row["id"] for row in read(tmp_path / "out")] == naive(rows, ["text", "url"])[0]


def test_nothing_to_compare(tmp_path: Path) -> None:
    """Empty tables, and rows without texts."""
    write(tmp_path / "in", [])
    assert (
        dedup([tmp_path / "in"], tmp_path / "out", DedupOptions(by="text,url"), ONE).total.rows_in
        == 0
    )
    assert listed(tmp_path / "out") == []
    write(tmp_path / "none", [{"id": str(i), "url": None, "text": None} for i in range(3)])
    dedup([tmp_path / "none"], tmp_path / "all", DedupOptions(by="text,url,pair"), ONE)
    assert len(read(tmp_path / "all")) == 3


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    write(tmp_path / "in", web_rows(3))
    for options, message in (
        (
            DedupOptions(by="column:nope"),
            "no column 'nope' (--by column:nope); its columns are 'id', 'url', 'text'",
        ),
        (DedupOptions(by="text", text_column="nope"), "no column 'nope' (--text-column)"),
        (DedupOptions(by="url", url_column="nope"), "no column 'nope' (--url-column)"),
        (DedupOptions(by="text", id="nope"), "no column 'nope' (--id)"),
        (DedupOptions(by="embedding", vector_column="nope"), "no column 'nope' (--vector-column)"),
        (DedupOptions(by="embedding", vector_column="text"), "no vectors"),
    ):
        if "no vectors" in message:
            result = dedup([tmp_path / "in"], tmp_path / "out", options, ONE)
            assert message in result.total.failures[0].message
            continue
        with pytest.raises(UsageError) as error:
            dedup([tmp_path / "in"], tmp_path / "out", options, ONE)
        assert message in str(error.value)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "by must say how rows are compared"),
        ({"by": "txt"}, "by must be of text, url, pair"),
        ({"by": "column:"}, "by must be of"),
        ({"by": "phash", "distance": 17}, "distance must be 0..16"),
        ({"by": "embedding"}, "say either --vector-column NAME or --model NAME"),
        ({"by": "embedding", "vector_column": "v", "cosine": 0.0}, "cosine must be"),
    ],
)
def test_options_out_of_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DedupOptions(**values)


def test_one_part_lacks_the_column(tmp_path: Path) -> None:
    """It is listed, nothing is written of it, and the others are compared."""
    write(
        tmp_path / "in",
        [{"id": "1", "url": "u", "text": "x"}, {"id": "2", "url": "u", "text": "x"}],
        2,
    )
    parquet.write_table(pa.table({"id": ["3"], "url": ["u"]}), tmp_path / "in" / "0005.parquet")
    result = dedup([tmp_path / "in"], tmp_path / "out", DedupOptions(by="text"), ONE)
    assert result.failed == ("0005",)
    assert "has no column 'text'; its columns are 'id', 'url'" in result.total.failures[0].message
    assert [row["id"] for row in read(tmp_path / "out")] == ["1"]
    assert read_report(tmp_path / "out")["parts_failed"] == ["0005"]


def test_a_broken_part_is_taken_when_it_is_whole(tmp_path: Path) -> None:
    rows = web_rows(60)
    write(tmp_path / "in", rows, 3)
    first = tmp_path / "in" / "000.parquet"
    whole = first.read_bytes()
    first.write_bytes(whole[:-30])
    result = dedup([tmp_path / "in"], tmp_path / "out", DedupOptions(by="text"), ONE)
    assert result.failed == ("000",)
    assert [row["id"] for row in read(tmp_path / "out")] == naive(rows[20:], ["text"])[0]
    first.write_bytes(whole)
    result = dedup([tmp_path / "in"], tmp_path / "out", DedupOptions(by="text"), ONE)
    assert result.failed == ()
    assert [row["id"] for row in read(tmp_path / "out")] == naive(rows, ["text"])[0]


def test_a_table_that_has_changed(tmp_path: Path) -> None:
    """What was written of other tables is written again: other rows may be the first now."""
    rows = web_rows(40)
    write(tmp_path / "in", rows, 2)
    options = DedupOptions(by="text,url")
    dedup([tmp_path / "in"], tmp_path / "out", options, ONE)
    again = dedup([tmp_path / "in"], tmp_path / "out", options, ONE)
    assert again.done_before == 2
    changed = web_rows(40, seed=5)[:20] + rows[20:]
    parquet.write_table(
        pa.Table.from_pylist(changed[:20]), tmp_path / "in" / "000.parquet", row_group_size=7
    )
    result = dedup([tmp_path / "in"], tmp_path / "out", options, ONE)
    assert result.done_before == 0
    assert [row["id"] for row in read(tmp_path / "out")] == naive(changed, ["text", "url"])[0]


def test_other_settings_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "in", web_rows(20))
    dedup([tmp_path / "in"], tmp_path / "out", DedupOptions(by="text"), ONE)
    with pytest.raises(OutputError, match="of other settings"):
        dedup([tmp_path / "in"], tmp_path / "out", DedupOptions(by="url"), ONE)
    with pytest.raises(OutputError, match="of other settings"):
        dedup([tmp_path / "in"], tmp_path / "out", DedupOptions(by="text", normalise=True), ONE)
    anew = StepOptions(workers=1, on_existing="overwrite")
    dedup([tmp_path / "in"], tmp_path / "out", DedupOptions(by="url"), anew)
    assert [row["id"] for row in read(tmp_path / "out")] == naive(web_rows(20), ["url"])[0]


def test_shards_wait_for_each_other(tmp_path: Path) -> None:
    rows = web_rows(200)
    write(tmp_path / "in", rows, 8)
    options, out = DedupOptions(by="text"), tmp_path / "out"

    def run(number: int) -> Any:
        return dedup([tmp_path / "in"], out, options, StepOptions(workers=1, shard=f"{number}/2"))

    first = run(1)
    assert 0 < first.missing < 8
    assert read(out) == []
    assert (
        run(2).missing == 8 - first.missing
    )  # now all rows are known, and the second writes its share
    assert not (out / "_duplicates.parquet").exists()
    assert run(1).missing == 0
    assert [row["id"] for row in read(out)] == naive(rows, ["text"])[0]
    assert len(listed(out)) == 200 - len(read(out))


SLOW = """
import sys, time
from pathlib import Path
from annotary.curation import {module}
was = {module}.{name}
def slow(*arguments, **named):
    time.sleep(0.15)
    return was(*arguments, **named)
{module}.{name} = slow
from annotary.curation.dedup import DedupOptions, dedup
from annotary.curation.steps import StepOptions
dedup([Path("in")], Path("out"), DedupOptions(by="text,url"), StepOptions(workers=1))
"""


@pytest.mark.parametrize(
    ("module", "name", "is_there"),
    [
        (
            "_dedup_keys",
            "key_file",
            lambda out: len(list(out.glob("_state/dedup/keys/*.keys"))) > 3,
        ),
        (
            "_dedup_groups",
            "equal_rows",
            lambda out: any(out.glob("_state/dedup/plan-*/work/*.groups")),
        ),
        ("_dedup_writing", "_id_column", lambda out: len(list(out.glob("*.parquet"))) > 1),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="no such signal")
def test_killed_and_called_again(
    tmp_path: Path, module: str, name: str, is_there: Callable[[Path], bool]
) -> None:
    rows = web_rows(400)
    write(tmp_path / "in", rows, 5)
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", SLOW.format(module=module, name=name)])
    try:
        deadline = time.monotonic() + 60
        while not (out.exists() and is_there(out)):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert not (out / "_duplicates.parquet").exists()
    assert not (out / "_report.json").exists()
    noted = {path.stem for path in out.glob("_state/parts/*.json")}
    done = {p: p.stat().st_mtime_ns for p in out.glob("*.parquet") if p.stem in noted}
    result = dedup([tmp_path / "in"], out, DedupOptions(by="text,url"), ONE)
    left = {path.name for path in (out / "_state" / "dedup").iterdir()}
    assert left == {"plan", "listed", "kept"}
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert result.is_complete
    stays, goes = naive(rows, ["text", "url"])
    assert [row["id"] for row in read(out)] == stays
    assert {row["id"]: (row["by"], row["of_id"]) for row in listed(out)} == goes


def test_texts_of_evaluation_sets(tmp_path: Path) -> None:
    rows = [
        {"id": str(i), "url": f"u{i}", "text": text}
        for i, text in enumerate(["A dog", "a cat", "a dog", "a bird", "a cat", "a fish"])
    ]
    write(tmp_path / "in", rows, 2)
    (tmp_path / "captions.txt").write_text("a  dog\nan owl\n")
    (tmp_path / "test.jsonl").write_text(
        json.dumps({"captions": ["no", "A BIRD"]})
        + "\n"
        + json.dumps({"captions": ["a fish"]})
        + "\n"
    )
    options = DedupOptions(by="text", against_texts=("captions.txt", "test.jsonl"), normalise=True)
    result = dedup([tmp_path / "in"], tmp_path / "out", options, ONE)
    assert [row["id"] for row in read(tmp_path / "out")] == ["1"]
    assert result.total.dropped == {
        "text in evaluation set captions.txt": 2,
        "text in evaluation set test.jsonl": 2,
        "duplicate text": 1,
    }
    of = {row["id"]: row["of_evaluation"] for row in listed(tmp_path / "out")}
    assert of == {
        "0": "captions.txt:1",
        "2": "captions.txt:1",
        "3": "test.jsonl/0",
        "4": None,
        "5": "test.jsonl/1",
    }
    only = DedupOptions(against_texts=("captions.txt",))
    dedup([tmp_path / "in"], tmp_path / "only", only, ONE)
    assert len(read(tmp_path / "only")) == 6
    (tmp_path / "captions.txt").write_text("a cat\n")
    dedup([tmp_path / "in"], tmp_path / "only", only, ONE)
    assert [row["id"] for row in read(tmp_path / "only")] == ["0", "2", "3", "5"]


def test_command(tmp_path: Path) -> None:
    write(tmp_path / "in", [{"id": str(i), "url": f"u{i}", "text": "x"} for i in range(3)])
    runner = CliRunner()
    arguments = ["dedup", "in", "--output", "out", "--by", "text", "--json", "--workers", "1"]
    done = runner.invoke(command, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["dropped"] == {"duplicate text": 2}
    assert "3 rows compared" in done.stderr
    wrong = runner.invoke(command, ["dedup", "in", "--output", "out2"])
    assert isinstance(wrong.exception, UsageError)
    assert str(wrong.exception).startswith("--by must say how rows are compared")
    waiting = runner.invoke(
        command, ["dedup", "in", "--output", "o", "--by", "text", "--shard", "1/2"]
    )
    other = runner.invoke(
        command, ["dedup", "in", "--output", "o", "--by", "text", "--shard", "2/2"]
    )
    assert {waiting.exit_code, other.exit_code} == {0}
    assert read(tmp_path / "o")[0]["id"] == "0"
