"""Lists of entries: every form gives the same ids, and what is wrong with a file is said in one line."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotary.curation.entries import (
    LANGUAGES_WITH_SPACES,
    LANGUAGES_WITHOUT_SPACES,
    Entries,
    language_rule,
    read_entries,
)
from annotary.errors import UnknownName, UsageError

TEXTS = ["cat", "New York", "café", 'say "hi"', "猫", "", "a, b", "x\u2028y", "form\x0cfeed"]


def write(path: Path, texts: list[str]) -> Path:
    """A file of entries by the ending of its name, by hand."""
    suffix = path.name.split(".", 1)[1].removesuffix(".gz")
    if suffix == "txt":
        content = "".join(f"{text}\n" for text in texts)
    elif suffix == "json":
        content = json.dumps(texts)
    elif suffix == "jsonl":
        content = "".join(json.dumps({"id": 1, "entry": text}) + "\n" for text in texts)
    else:
        comma = "\t" if suffix == "tsv" else ","
        cells = ['"{}"'.format(text.replace('"', '""')) for text in texts]
        content = f"id{comma}entry\r\n" + "".join(f"7{comma}{cell}\r\n" for cell in cells)
    data = content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("suffix", ["txt", "json", "jsonl", "csv", "tsv"])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_all_forms_hold_the_same(tmp_path: Path, suffix, ending):
    path = write(tmp_path / f"entries.{suffix}{ending}", TEXTS)
    entries = read_entries(path)
    assert list(entries) == TEXTS
    assert len(entries) == len(TEXTS)
    assert entries[1] == "New York"
    assert entries.source == str(path)


def test_parquet(tmp_path: Path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "entries.parquet"
    pq.write_table(pa.table({"count": range(len(TEXTS)), "entry": TEXTS}), path)
    assert list(read_entries(path)) == TEXTS
    pq.write_table(pa.table({"word": TEXTS}), path)
    with pytest.raises(UsageError, match="has no column 'entry'; its columns are 'word'"):
        read_entries(path)
    pq.write_table(pa.table({"entry": ["a", None]}), path)
    with pytest.raises(UsageError, match="entry 1 is no text but None"):
        read_entries(path)
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(UsageError, match="cannot be read"):
        read_entries(path)


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n")), min_size=1
    )
)
def test_ids_are_numbers_of_lines(tmp_path_factory, texts):
    path = tmp_path_factory.getbasetemp() / "lines.txt"
    for end in ("\n", "\r\n"):
        path.write_bytes(end.join([*texts, ""]).encode("utf-8-sig"))
        assert list(read_entries(path)) == texts


def test_the_last_line_needs_no_end(tmp_path: Path):
    path = tmp_path / "entries.txt"
    path.write_bytes(b"a\r\n\nlone\rcr\nb")
    assert list(read_entries(path)) == ["a", "", "lone\rcr", "b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("entries.xls", b"", r"is no list of entries that is known: \.txt, "),
        ("entries.parquet.gz", b"", "is no list of entries that is known"),
        ("entries.txt", b"", "holds no entries"),
        ("entries.json", b"[]", "holds no entries"),
        ("entries.txt", b"a\nb\n\xff\n", "is not UTF-8 at line 3"),
        ("entries.json", b"[1, 2", "is no JSON"),
        ("entries.json", b"[" * 200_000, "is no JSON"),
        ("entries.json", b'{"cat": 3}', "must hold a list of texts"),
        ("entries.json", b'["cat", 3]', "entry 1 is no text but 3"),
        ("entries.jsonl", b'{"entry": "a"}\n{"word": "b"}\n', "line 2 has no field 'entry'"),
        ("entries.jsonl", b'{"entry": "a"}\nb\n', "line 2 is no JSON"),
        ("entries.jsonl", b'{"entry": null}\n', "entry 0 is no text but None"),
        (
            "entries.csv",
            b"word,count\na,1\n",
            "has no column 'entry'; its columns are 'word', 'count'",
        ),
        ("entries.csv", b"", "its columns are none"),
        ("entries.csv", b"entry,count\na,1\nb\n", "line 3 has 1 cells, and the header 2"),
        ("entries.csv", b'entry\n"a\n', "line 2"),
        ("entries.txt.gz", b"not gzip", "cannot be read"),
        ("entries.txt.gz", gzip.compress(b"cat\n" * 99, mtime=0)[:-12], "cannot be read"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as raised:
        read_entries(path)
    assert "\n" not in str(raised.value)
    assert name in str(raised.value)


def test_files_that_are_not_there(tmp_path: Path):
    with pytest.raises(UsageError, match="cannot be read"):
        read_entries(tmp_path / "entries.txt")
    with pytest.raises(UsageError, match="cannot be read"):
        read_entries(tmp_path / "entries.parquet")


def test_entries_that_come_twice_keep_their_ids_and_are_named():
    entries = Entries(("cat", "dog", "cat", "dog", "cat", "Cat"), "my.txt")
    assert entries.duplicates == (2, 3, 4)
    assert len(entries) == 6
    notice = entries.notice()
    assert notice is not None
    assert notice.startswith("my.txt: 3 of 6 entries are equal to an earlier one")
    assert notice.endswith("'cat', 'dog', 'cat'")
    assert (Entries(tuple("abcdabcd")).notice() or "").endswith("'a', 'b', 'c' and 1 more")
    assert Entries(("cat", "dog")).notice() is None


def test_languages():
    assert language_rule(None) == 1
    assert {language_rule(code) for code in LANGUAGES_WITHOUT_SPACES} == {2}
    assert {language_rule(code) for code in LANGUAGES_WITH_SPACES} == {1}
    assert not LANGUAGES_WITHOUT_SPACES & LANGUAGES_WITH_SPACES
    assert language_rule("zh_Classical") == language_rule("ZH-YUE") == 2
    with pytest.raises(UnknownName, match=r"unknown language 'english'; known: .*, en, .*, zu"):
        language_rule("english")
