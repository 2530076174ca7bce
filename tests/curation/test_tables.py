"""Tables of pairs: what is written comes back whatever holds it, and what is damaged is told."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotary.curation import tables
from annotary.curation.tables import BrokenPart, Part, PartWriter, Rows, column_types, find_parts
from annotary.errors import NothingToDo, OutputError, UsageError
from tests.conftest import child_environment

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def read(path: Path | str, columns: list[str] | None = None) -> tuple[list[dict], list]:
    """All rows of a table of one part, and what was skipped."""
    (part,) = find_parts([path])
    rows = Rows(part, columns)
    found = [row for batch in rows.batches() for row in batch.to_pylist()]
    return found, rows.skipped


def tar(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


# --- which tables there are


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names(paths) -> list[str]:
    return [part.name for part in find_parts(paths)]


def test_a_folder_is_gone_through(tmp_path):
    touch(tmp_path, "b.parquet", "a.CSV", "c/d.tar.gz", "c/e.jsonl.gz", "c/f/g.tgz", "readme.md")
    touch(tmp_path, "_report.json", "_state/x.parquet", ".hid.csv", ".git/y.csv", "c/_z.csv")
    assert names([tmp_path]) == ["a", "b", "c_d", "c_e", "c_f_g"]
    forms = [part.form for part in find_parts([tmp_path])]
    assert forms == ["csv", "parquet", "webdataset", "jsonl", "webdataset"]


def test_braces_and_single_tables(tmp_path):
    touch(tmp_path, "t-08.tar", "t-09.tar", "t-10.tar")
    assert names([f"{tmp_path}/t-{{08..10}}.tar"]) == ["t-08", "t-09", "t-10"]
    assert names([tmp_path / "t-08.tar", tmp_path / "t-08.tar"]) == ["t-08"]
    with pytest.raises(UsageError, match=r"no such file or folder: '.*t-11.tar'"):
        find_parts([f"{tmp_path}/t-{{08..11}}.tar"])


@pytest.mark.parametrize(
    ("first", "second"), [("a/x.csv", "b/x.jsonl"), ("a/x.csv", "b/X.csv"), ("x.csv", "x.tsv.gz")]
)
def test_two_tables_of_one_name_collide(tmp_path, first, second):
    touch(tmp_path, first, second)
    with pytest.raises(UsageError, match=r"would both be written as [xX]\.parquet; rename one"):
        find_parts([tmp_path / first, tmp_path / second])


def test_a_folder_can_make_a_collision(tmp_path):
    touch(tmp_path, "a/b.csv", "a_b.csv")
    with pytest.raises(UsageError, match=r"a_b\.parquet"):
        find_parts([tmp_path])


def test_no_table(tmp_path):
    with pytest.raises(NothingToDo, match="no table in"):
        find_parts([tmp_path])
    touch(tmp_path, "a.png")
    with pytest.raises(UsageError, match=r"is no table; tables end in \.parquet, "):
        find_parts([tmp_path / "a.png"])
    os.mkfifo(tmp_path / "p.csv")
    with pytest.raises(UsageError, match="is no table"):
        find_parts([tmp_path / "p.csv"])


def test_names_that_would_be_hidden_or_too_long_are_changed(tmp_path):
    touch(tmp_path, "_a.csv", ".csv", "x" * 120 + "/" + "y" * 120 + ".csv")
    hidden = names([tmp_path / "_a.csv", tmp_path / ".csv"])
    assert hidden == ["table_a", "table.csv"]
    (long,) = names([tmp_path])
    assert len(long) < 200
    assert long.startswith("x" * 120 + "_y")


# --- rows come back, whatever holds them

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
texts_only = st.fixed_dictionaries({"id": words, "text": words, 'naïve, "name"': words})


@given(st.lists(texts_only, max_size=8), st.sampled_from(",;\t"), st.sampled_from(["\n", "\r\n"]))
def test_csv_comes_back(rows, delimiter, end):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            columns = ["id", "text", 'naïve, "name"']
            writer = csv.DictWriter(
                file, columns, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL
            )
            writer.writeheader()
            writer.writerows(rows)
        assert read(path) == (rows, [])


numbers = st.integers() | st.floats(allow_nan=False)
anything = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=5,
)


def same(found, written) -> bool:
    """Whether a value came back: as it is, as JSON text, or with fields of its neighbours that are absent."""
    if found == written:
        return True
    if isinstance(found, dict) and isinstance(written, dict):
        return all(same(found.get(name), written.get(name)) for name in {*found, *written})
    if isinstance(found, list) and isinstance(written, list):
        return len(found) == len(written) and all(map(same, found, written))
    return isinstance(found, str) and json.loads(found) == written


@given(st.lists(st.dictionaries(st.sampled_from("abc"), anything, max_size=3), max_size=8))
def test_json_lines_come_back(rows):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found, skipped = read(path)
        assert skipped == []
        assert len(found) == len(rows) or not any(rows)
        for got, row in zip(found, rows, strict=bool(any(rows))):
            assert all(same(got[name], row.get(name)) for name in got)
            assert set(row) <= set(got)
        # And all of it can be written.
        (part,) = find_parts([path])
        with PartWriter(Path(folder) / "copy.parquet") as writer:
            for batch in Rows(part).batches():
                writer.write(batch)
        assert read(Path(folder) / "copy.parquet")[0] == found


@given(
    st.lists(
        st.tuples(words, st.none() | words, st.binary(max_size=5), st.lists(words)), max_size=9
    ),
    st.integers(1, 4),
)
def test_parquet_comes_back(rows, group):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.parquet"
        table = pa.table(
            {
                "text.en": pa.array([row[0] for row in rows], pa.string()),
                "kind": pa.array([row[1] for row in rows], pa.string()).dictionary_encode(),
                "image": pa.array([row[2] for row in rows], pa.large_binary()),
                "more": pa.array([row[3] for row in rows], pa.list_(pa.large_string())),
                "view": pa.array([row[0] for row in rows], pa.string_view()),
            }
        )
        pq.write_table(table, path, row_group_size=group)
        assert read(path) == (table.to_pylist(), [])
        found, _ = read(path, ["view", "text.en"])
        assert [list(row) for row in found] == [["view", "text.en"]] * len(rows)
        (part,) = find_parts([path])
        types = column_types(part)
        assert types["kind"] == table.schema.field("kind").type
        assert types["view"] == pa.string()  # views can be taken from by nobody


keys = st.text("abcäß0_-", min_size=1, max_size=4).map(lambda key: "k" + key)


@given(st.dictionaries(keys, st.tuples(words, st.integers(0, 99)), min_size=1, max_size=6))
def test_samples_of_tars_come_back(samples):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.tar"
        members = []
        for key, (text, width) in samples.items():
            members.append((f"{key}.json", json.dumps({"width": width, "image": "no"}).encode()))
            members.append((f"{key}.webp", b"picture"))
            members.append((f"{key}.txt", text.encode()))
        found, skipped = read(tar(path, *members))
        assert skipped == []
        assert found == [
            {
                "__key__": key,
                "image": f"{path}/{key}.webp",
                "txt": text.rstrip("\r\n"),
                "width": width,
            }
            for key, (text, width) in samples.items()
        ]


# --- CSV that is odd or broken


def test_csv_is_text_always(tmp_path):
    (tmp_path / "t.csv").write_text("a,b,c\n007,1e5,\nNULL,true,nan\n")
    found, _ = read(tmp_path / "t.csv")
    assert found == [{"a": "007", "b": "1e5", "c": ""}, {"a": "NULL", "b": "true", "c": "nan"}]


def test_csv_rows_of_another_width_are_told_by_their_number(tmp_path):
    (tmp_path / "t.csv").write_bytes(
        b'a,b\n1,2\n\n3\n"4,\n4",5\n6,7,8\n\xff,9\nfine,"\xe4"\nlast,10'
    )
    found, skipped = read(tmp_path / "t.csv")
    assert [row["a"] for row in found] == ["1", "4,\n4", "last"]
    path = tmp_path / "t.csv"
    assert sorted(skipped) == [
        (f"{path}:3", "1 cell in place of 2: 3"),
        (f"{path}:5", "3 cells in place of 2: 6,7,8"),
        (f"{path}:6", "its text is not UTF-8"),
        (f"{path}:7", "its text is not UTF-8"),
    ]


@pytest.mark.parametrize(
    ("data", "columns", "rows"),
    [
        (b"", [], 0),
        (b"\n\n", [], 0),
        (b"a,b", ["a", "b"], 0),
        (b"a,b\r\n", ["a", "b"], 0),
        (b"\xef\xbb\xbfa;b\n1;2", ["a", "b"], 1),
        (b"\r\n\na\tb\n1\t2\n", ["a", "b"], 1),
        (b'"a\nb","c;;;"\n1,2\n', ["a\nb", "c;;;"], 1),
        (b"a,b\r1,2\r3,4\r", ["a", "b"], 2),
        (b"a,\n1,2\n", ["a", ""], 1),
    ],
)
def test_csv_heads(tmp_path, data, columns, rows):
    (tmp_path / "t.csv").write_bytes(data)
    (part,) = find_parts([tmp_path / "t.csv"])
    assert list(column_types(part)) == columns
    found, skipped = read(tmp_path / "t.csv")
    assert (len(found), skipped) == (rows, [])


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"a,b,a\n1,2,3\n", r"t.csv has the column 'a' twice"),
        (b"a,\xff\n1,2\n", r"t.csv: its head is broken: 'utf-8' codec"),
        ("a,b\n1,2\n".encode("utf-16"), r"t.csv: it is UTF-16; save it as UTF-8"),
        (b'"' + b"a" * 200_000 + b"\n1,2\n", r"t.csv: its head is broken: field larger"),
    ],
)
def test_csv_without_a_head(tmp_path, data, told):
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(BrokenPart, match=told):
        read(tmp_path / "t.csv")


def test_a_quote_that_never_ends_is_told(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n" + '3,"4\n' + "5,6\n" * 100)
    try:
        found, skipped = read(tmp_path / "t.csv")
    except BrokenPart:
        return
    assert found[:1] == [{"a": "1", "b": "2"}]
    assert skipped or "5,6\n" in found[1]["b"]  # nothing is gone without a word


def test_large_csv_is_cut_in_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("annotary.curation._rows._BLOCK", 4096)
    monkeypatch.setattr("annotary.curation._rows.BATCH_ROWS", 100)
    lines = [f'{i},"text\n{i}"' if i % 7 else f"{i}" for i in range(5000)]
    (tmp_path / "t.csv").write_text(
        "a,b\n" + "\n".join(lines) + "\n2,\udcff\n".encode("utf-8", "replace").decode()
    )
    data = (tmp_path / "t.csv").read_bytes() + b"x,\xff\n"
    (tmp_path / "t.csv").write_bytes(data)
    (part,) = find_parts([tmp_path / "t.csv"])
    rows = Rows(part)
    batches = list(rows.batches())
    assert max(batch.num_rows for batch in batches) <= 100
    found = [row["a"] for batch in batches for row in batch.to_pylist()]
    assert found == [str(i) for i in range(5000) if i % 7] + ["2"]
    broken = [int(where.rpartition(":")[2]) for where, _ in rows.skipped]
    assert broken == [i + 2 for i in range(5000) if not i % 7] + [5003]


# --- JSON Lines that are odd or broken


def test_json_lines_with_broken_ones(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": 2\n[1]\n"x"\n{"a": "\xff"}\n{"a": NaN}\n'
        + b"[" * 100_000
        + b'\n{"a": 3, "late": "yes"}'
    )
    found, skipped = read(path)
    assert [row["late"] for row in found] == [None, None, "yes"]
    assert [row["a"] for row in found[::2]] == [1.0, 3.0]
    assert [where.rpartition(":")[2] for where, _ in skipped] == ["3", "4", "5", "6", "8"]
    assert skipped[1][1] == "no JSON object"
    assert all("\n" not in why for _, why in skipped)


def test_mixed_types_become_text(tmp_path):
    path = tmp_path / "t.jsonl"
    values = [1, "one", None, {"x": [1]}, True, 1.5, "[1]"]
    path.write_text("".join(json.dumps({"a": value}) + "\n" for value in values))
    found, _ = read(path)
    assert [row["a"] for row in found] == ["1", "one", None, '{"x": [1]}', "true", "1.5", "[1]"]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2.5], "double"),
        ([1, 2**62 + 1], "int64"),
        ([0.5, 2**62 + 1], "string"),
        ([1, 2**63], "string"),
        ([10**400, 1], "string"),
        ([[], [1], ["a"]], "string"),
        ([[], [1], [0.5]], "list<item: double>"),
        ([{}, {}], "string"),
        ([{"x": {}}, {"x": {"y": 1}}], "struct<x: struct<y: int64>>"),
        ([True, 1], "string"),
        ([None, None], "string"),
    ],
)
@pytest.mark.parametrize("chunk", [1, 100])
def test_types_do_not_depend_on_how_rows_are_held(tmp_path, monkeypatch, values, kind, chunk):
    monkeypatch.setattr("annotary.curation._rows.BATCH_ROWS", chunk)
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"a": value}) + "\n" for value in values))
    (part,) = find_parts([path])
    assert str(column_types(part)["a"]).replace("element", "item") == kind
    found, _ = read(path)
    assert all(same(row["a"], value) for row, value in zip(found, values, strict=True))


def test_half_characters_become_question_marks(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(
        b'{"a": "x\\ud83dy"}\n{"a": "\\uD83D\\uDE00"}\n{"a": "\xed\xa0\x80"}\n{"a": "\xed\x95\x9c"}\n'
    )
    found, skipped = read(path)
    assert [row["a"] for row in found] == ["x?y", "😀", "?", "한"]
    assert skipped == []


def test_a_line_without_end_is_told_once(tmp_path, monkeypatch):
    monkeypatch.setattr("annotary.sources._rows.LONGEST_ROW", 1000)
    path = tmp_path / "t.jsonl"
    path.write_text('{"a": "' + "x" * 3000 + '"}\n{"a": "y"}\n')
    found, skipped = read(path)
    assert found == [{"a": "y"}]
    assert [where for where, _ in skipped] == [f"{path}:1"]


def test_endless_columns_are_refused(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({f"c{i}": i}) + "\n" for i in range(5000)))
    with pytest.raises(BrokenPart, match="more than 4,096 columns"):
        read(path)


@pytest.mark.parametrize("name", ["t.jsonl.gz", "t.csv.gz"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "none"])
def test_gzip(tmp_path, name, damage):
    path = tmp_path / name
    text = "".join(
        json.dumps({"a": os.urandom(20).hex()}) + "\n"
        if "json" in name
        else os.urandom(20).hex() + "\n"
        for _ in range(5000)
    )
    data = bytearray(gzip.compress(("" if "json" in name else "a\n").encode() + text.encode()))
    if damage == "cut":
        del data[len(data) // 2 :]
    elif damage == "flipped":
        data[len(data) // 2] ^= 255
    path.write_bytes(data)
    if damage == "none":
        assert len(read(path)[0]) == 5000
    else:
        with pytest.raises(BrokenPart, match=f"^{path}: ") as told:
            read(path)
        assert "\n" not in str(told.value)


# --- Parquet that is large or broken


def test_a_large_file_is_cut_at_its_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_CUT_FROM", 0)
    monkeypatch.setattr(tables, "PART_ROWS", 100)
    table = pa.table({"a": range(1000)})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=30)
    parts = find_parts([tmp_path])
    assert [part.groups for part in parts[:2]] == [(0, 4), (4, 8)]
    assert [part.name for part in parts[:2]] == ["t-00000", "t-00001"]
    found = [
        value
        for part in parts
        for batch in Rows(part).batches()
        for value in batch["a"].to_pylist()
    ]
    assert found == list(range(1000))
    sizes = [sum(batch.num_rows for batch in Rows(part).batches()) for part in parts]
    assert min(sizes) >= 100
    pq.write_table(table, tmp_path / "t-00001.parquet")
    with pytest.raises(UsageError, match=r"would both be written as t-00001\.parquet"):
        find_parts([tmp_path])


def test_a_table_without_rows_or_groups(tmp_path):
    pq.write_table(pa.table({"a": pa.array([], pa.string())}), tmp_path / "t.parquet")
    (part,) = find_parts([tmp_path])
    (batch,) = Rows(part).batches()
    assert (batch.num_rows, batch.schema.names) == (0, ["a"])


def test_a_missing_column_is_told(tmp_path):
    pq.write_table(pa.table({"text": ["x"], "url": ["y"]}), tmp_path / "t.parquet")
    (part,) = find_parts([tmp_path])
    with pytest.raises(UsageError, match=r"has no column 'txt'; its columns are 'text', 'url'"):
        list(Rows(part, ["txt"]).batches())


def damaged(path: Path, where: float, **options) -> Path:
    table = pa.table({"a": [os.urandom(8).hex() for _ in range(20_000)]})
    pq.write_table(table, path, row_group_size=5000, use_dictionary=False, **options)
    data = bytearray(path.read_bytes())
    place = int(len(data) * where)
    data[place : place + 64] = bytes(64)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("compression", ["zstd", "snappy", "gzip"])
def test_a_damaged_page_is_told(tmp_path, compression):
    path = damaged(tmp_path / "t.parquet", 0.55, compression=compression)
    with pytest.raises(BrokenPart, match=f"^{path}: "):
        read(path)


def test_a_damaged_page_with_a_checksum_is_told(tmp_path):
    path = damaged(tmp_path / "t.parquet", 0.55, compression="none", write_page_checksum=True)
    with pytest.raises(BrokenPart, match=f"^{path}: .*CRC"):
        read(path)


@pytest.mark.parametrize("kept", [0, 3, 100, 0.5, 0.999])
def test_a_truncated_file_is_told(tmp_path, kept):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"a": range(9999)}), path)
    data = path.read_bytes()
    path.write_bytes(data[: kept if isinstance(kept, int) else int(len(data) * kept)])
    with pytest.raises(BrokenPart, match=f"^{path}: ") as told:
        read(path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
def test_text_that_is_not_utf8_is_skipped(tmp_path, kind):
    values = pa.array([b"a", b"\xff", None, b"d", b"\xc3"], pa.binary())
    table = pa.table({"t": values, "n": range(5), "image": [b"\xff"] * 5})
    # The same bytes under a schema of Arrow, and a type of Parquet, that call them text.
    wanted = {
        "string": pa.string(),
        "large_string": pa.large_string(),
        "string_view": pa.string_view(),
        "dictionary": pa.dictionary(pa.int32(), pa.string()),
    }[kind]
    buffers = values.buffers()
    text = pa.Array.from_buffers(pa.string(), 5, buffers)
    if kind == "large_string":
        text = values.cast(pa.large_binary()).view(pa.large_string())
    elif kind == "string_view":
        text = text.cast(pa.string_view())
    elif kind == "dictionary":
        text = text.dictionary_encode()
    assert text.type == wanted
    pq.write_table(table.set_column(0, "t", text), tmp_path / "t.parquet", row_group_size=2)
    found, skipped = read(tmp_path / "t.parquet")
    assert [row["n"] for row in found] == [0, 2, 3]
    assert [row["t"] for row in found] == ["a", None, "d"]
    assert skipped == [(f"{tmp_path}/t.parquet:{row}", "its text is not UTF-8") for row in (2, 5)]


MEMORY = """
import sys
from pathlib import Path
from annotary.curation.tables import Rows, PartWriter, find_parts
(part,) = find_parts([sys.argv[1]])
with PartWriter(Path(sys.argv[2])) as writer:
    for batch in Rows(part).batches():
        writer.write(batch)
assert writer.rows == 400, writer.rows
(peak,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(int(peak.split()[1]) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_large_images_stay_in_bounded_memory(tmp_path):
    """400 MB of images in one group of rows: of those that are read 16 MB are held, of those that are written 64."""
    path = tmp_path / "t.parquet"
    image = os.urandom(1_000_000)
    schema = pa.schema([("image", pa.binary()), ("text", pa.string())])
    with pq.ParquetWriter(
        path, schema, compression="none", use_dictionary=False, write_batch_size=4
    ) as writer:
        rows = [{"image": image, "text": str(number)} for number in range(400)]
        writer.write_table(pa.Table.from_pylist(rows, schema))
    command = [sys.executable, "-c", MEMORY, str(path), str(tmp_path / "copy.parquet")]
    output = subprocess.run(command, env=child_environment(), capture_output=True, check=True)
    assert int(output.stdout) < 400  # of which Python and its libraries take a good 100


# --- WebDataset that is odd or broken


def test_samples_with_parts_missing(tmp_path):
    path = tar(
        tmp_path / "t.tar.gz",
        ("a/1.jpg", b"x"), ("a/1.txt", b"one\n"),
        ("a/2.png", b"x"),
        ("3.txt", b"thr\xffe"), ("3.json", b"{broken"),
        ("4.json", b'{"width": 5, "__key__": "no", "txt": "no"}'), ("4.txt", b"four"),
        ("5.tiff", b"x"), ("5.seg.png", b"x"),
    )  # fmt: skip
    found, skipped = read(path)
    assert [row["__key__"] for row in found] == ["a/1", "a/2", "3", "4", "5"]
    assert [row["txt"] for row in found] == ["one", None, "thr�e", "four", None]
    assert found[0]["image"] == f"{path}/a/1.jpg"
    assert found[4]["image"] == f"{path}/5.tiff"
    assert [row["width"] for row in found] == [None, None, None, 5, None]
    assert [where for where, _ in skipped] == [f"{path}/3.json"]


def test_members_that_are_not_taken_are_told(tmp_path):
    path = tar(
        tmp_path / "t.tar",
        ("../out.jpg", b"x"), ("/abs.txt", b"x"), ("1.jpg", b"x"), ("1.png", b"x"), ("n\udcff.jpg", b""),
    )  # fmt: skip
    found, skipped = read(path)
    assert found == [{"__key__": "1", "image": f"{path}/1.jpg"}]
    assert skipped == [
        (f"{path}/../out.jpg", "its path in the archive leads outside of it"),
        (f"{path}//abs.txt", "its path in the archive leads outside of it"),
        (f"{path}/1.png", "a second image of its sample"),
        (f"{path}/n\udcff.jpg", "its name is not UTF-8"),
    ]


def test_a_truncated_tar_is_told(tmp_path):
    path = tar(tmp_path / "t.tar", *((f"{i}.txt", b"x" * 900) for i in range(100)))
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(BrokenPart, match=f"^{path}: "):
        read(path)
    path.write_bytes(b"no tar at all" * 100)
    with pytest.raises(BrokenPart, match=f"^{path}: "):
        read(path)


def test_an_empty_tar_has_no_row(tmp_path):
    assert read(tar(tmp_path / "t.tar")) == ([], [])


# --- writing


def batch(*numbers: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"a": pa.array(numbers, pa.int64())})


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "below" / "t.parquet"

    def begin() -> None:
        with PartWriter(path) as writer:
            writer.write(batch(*range(tables.GROUP_ROWS)))
            assert not path.exists()
            assert len(list(path.parent.iterdir())) == 1
            raise KeyError

    with pytest.raises(KeyError):
        begin()
    assert list(path.parent.iterdir()) == []
    with PartWriter(path) as writer:
        writer.write(batch(1, 2))
        writer.write(batch())
        writer.write(batch(3))
    assert writer.rows == 3
    assert [row["a"] for row in read(path)[0]] == [1, 2, 3]
    with pytest.raises(KeyError), PartWriter(path) as writer:
        raise KeyError
    assert len(read(path)[0]) == 3


def test_a_file_without_rows(tmp_path):
    with PartWriter(tmp_path / "a.parquet", pa.schema([("a", pa.string())])):
        pass
    assert read(tmp_path / "a.parquet") == ([], [])
    with PartWriter(tmp_path / "b.parquet"):
        pass
    assert read(tmp_path / "b.parquet") == ([], [])


def test_groups_are_neither_small_nor_large(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "GROUP_ROWS", 100)
    with PartWriter(tmp_path / "t.parquet") as writer:
        for start in range(0, 1000, 30):
            writer.write(batch(*range(start, start + 30)))
    metadata = pq.read_metadata(tmp_path / "t.parquet")
    sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    assert sizes == [120] * 8 + [60]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("rows", [1, 300_000])
def test_a_full_disk_is_told(tmp_path, monkeypatch, rows):
    real = Path.open

    def open_full(self, *arguments, **options):
        if self.name.endswith(".tmp"):
            return real(Path("/dev/full"), *arguments, **options)
        return real(self, *arguments, **options)

    path = tmp_path / "t.parquet"
    monkeypatch.setattr(Path, "open", open_full)
    told = pytest.raises(OutputError, match=f"^cannot write {path}: No space left on device$")
    with told, PartWriter(path) as writer:
        writer.write(batch(*range(rows)))
    assert not path.exists()


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(OutputError, match=r"cannot write .*: (Not a directory|File exists)"),
        PartWriter(tmp_path / "file" / "t.parquet") as writer,
    ):
        writer.write(batch(1))


def test_what_is_written_does_not_depend_on_when(tmp_path):
    for name in ("a", "b"):
        with PartWriter(tmp_path / name) as writer:
            writer.write(batch(*range(5000)))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_part_knows_when_its_file_changes(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a\n1\n")
    part = Part(str(path), "csv", "t")
    before = part.signature
    os.utime(path, ns=(1, 1))
    assert part.signature != before
    path.unlink()
    with pytest.raises(BrokenPart, match="No such file"):
        _ = part.signature
