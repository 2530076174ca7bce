from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from annotary.records import Annotation, Failure, Item, to_line
from annotary.sinks import SinkOptions, open_sink
from annotary.sources import SourceOptions, lists, open_sources
from annotary.sources import _rows as rows
from annotary.sources._rows import Form


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def listed(name: str, content: bytes | str) -> list[Item | Failure]:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    assert lists.accepts(name)
    return list(lists.items(name, SourceOptions()))


def names(results: list[Item | Failure]) -> list[str]:
    assert all(isinstance(result, Item) for result in results), results
    return [result.image for result in results]


@pytest.mark.parametrize("suffix", [".txt", ".lst", ".TXT"])
def test_text(suffix: str) -> None:
    content = "a.jpg\n\n# a comment\n#\n#1.jpg\n   \n b .jpg\r\nsub/c.jpg"
    assert names(listed(f"list{suffix}", content)) == ["a.jpg", "#1.jpg", " b .jpg", "sub/c.jpg"]


def test_addresses_and_absolute_paths(tmp_path: Path) -> None:
    results = listed("in/list.txt", f" https://example.org/a.jpg \n{tmp_path}/b.jpg\n")
    assert results == [
        Item(image="https://example.org/a.jpg", url="https://example.org/a.jpg"),
        Item.from_path(f"{tmp_path}/b.jpg"),
    ]


def test_byte_order_mark_and_any_bytes() -> None:
    results = listed("list.txt", b"\xef\xbb\xbfa.jpg\ncaf\xe9.jpg\n")
    assert [os.fsencode(name) for name in names(results)] == [b"a.jpg", b"caf\xe9.jpg"]


def test_utf_16_is_refused_in_words() -> None:
    (result,) = listed("list.txt", "a.jpg\nb.jpg\n".encode("utf-16"))
    assert result == Failure("list.txt", "UnreachableImage", "the list is UTF-16; save it as UTF-8")


def test_paths_start_beside_the_list_and_else_in_the_current_folder() -> None:
    for path in ("data/a.jpg", "a.jpg", "b.jpg"):
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).touch()
    beside, here, nowhere = listed("data/list.txt", "a.jpg\nb.jpg\nc.jpg\n")
    assert beside == Item.from_path("data/a.jpg")
    assert here == Item.from_path("b.jpg")
    assert isinstance(nowhere, Failure)
    assert nowhere.image == "c.jpg"
    assert "neither in 'data' nor in the current folder" in nowhere.message


def test_json_rows() -> None:
    content = [
        {"image": "a.jpg", "path": "no.jpg"},
        {"path": "b.jpg"},
        {"file": "c.jpg"},
        {"file_name": "d.jpg", "text": "a dog"},
        {"image_path": "k.jpg", "caption": "a dog"},
        {"url": "http://example.org/e.jpg"},
        {"image": {"bytes": None}, "path": "f.jpg"},
        "g\n.jpg",
    ]
    results = listed("list.jsonl", "\r\n".join(map(json.dumps, content)) + "\n\n")
    assert names(results) == [
        "a.jpg", "b.jpg", "c.jpg", "d.jpg", "k.jpg", "http://example.org/e.jpg", "f.jpg", "g\n.jpg",
    ]  # fmt: skip


def test_broken_rows_are_failures_and_the_list_goes_on() -> None:
    deep = "[" * 100_000
    content = f'{{"image": "a.jpg"}}\n{{"image": \n{{"text": "dog"}}\n7\n{deep}\n"b.jpg"\n'
    results = listed("list.ndjson", content)
    assert [result.image for result in results] == [
        "a.jpg", "list.ndjson:2", "list.ndjson:3", "list.ndjson:4", "list.ndjson:5", "b.jpg",
    ]  # fmt: skip
    messages = [result.message for result in results if isinstance(result, Failure)]
    assert messages[0].startswith("not JSON: Expecting value at character ")
    assert (
        messages[1] == "no path or address in any of image, path, file, file_name, image_path, url"
    )
    assert messages[2].startswith("a row must be a JSON object")
    assert messages[3].startswith("not JSON")


def test_what_annotary_writes_is_a_list() -> None:
    name = os.fsdecode(b"photos/caf\xe9.jpg")
    records = [Annotation(name, 4, 3), Failure("photos/b.jpg", "UnreadableImage", "no")]
    content = "".join(to_line(record) + "\n" for record in records)
    assert names(listed("results.jsonl", content)) == [name, "photos/b.jpg"]
    Path("photos").mkdir()
    Path("photos/b.jpg").touch()
    results = listed("out/failures.jsonl", to_line(records[1]))
    assert names(results) == ["photos/b.jpg"]


def test_what_is_written_for_kohya_is_a_list() -> None:
    Path("a.jpg").touch()
    sink = open_sink("kohya-jsonl", Path("meta.jsonl"), SinkOptions())
    sink.write(Item.from_path("a.jpg"), Annotation("a.jpg", 4, 3))
    sink.close(complete=True)
    (result,) = open_sources(["meta.jsonl"], SourceOptions())
    assert result == Item.from_path(Path("a.jpg").absolute())


def test_a_list_is_read_row_by_row(tmp_path: Path) -> None:
    os.mkfifo("slow")
    reading = os.open("slow", os.O_RDONLY | os.O_NONBLOCK)
    with open("slow", "wb", buffering=0) as writing, open(reading, "rb", buffering=0) as pipe:
        os.set_blocking(reading, True)
        split = rows.split(iter(lambda: pipe.read(rows.PIECE), b""), b"\n")
        results = rows.images(split, Form.TEXT, "slow", "")
        writing.write(b"a.jpg\nb.j")
        assert next(results).image == "a.jpg"
        writing.write(b"pg\n")
        assert next(results).image == "b.jpg"


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_rows_do_not_depend_on_pieces(size: int) -> None:
    content = b"a\n\nbcd\r\n" + b"x" * 30 + b"\nlast"
    pieces = [content[start : start + size] for start in range(0, len(content), size)]
    assert list(rows.split(pieces, b"\n")) == content.split(b"\n")


def test_rows_that_are_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "LONGEST_ROW", 10)
    assert list(rows.split([b"a\n", b"b" * 8, b"b" * 8, b"b\nc\n" + b"d" * 11], b"\n")) == [
        b"a", None, b"c", None,
    ]  # fmt: skip
    (_, broken) = listed("list.txt", "a.jpg\n" + "b" * 11 + "\n")
    assert isinstance(broken, Failure)
    assert broken.message == "a row of more than 10 bytes"


def test_a_list_that_vanished_is_a_failure() -> None:
    (result,) = lists.items("gone.txt", SourceOptions())
    assert isinstance(result, Failure)
    assert result.message == "this list cannot be read: No such file or directory"


def test_a_folder_is_no_list() -> None:
    Path("photos.txt").mkdir()
    assert not lists.accepts("photos.txt")
    assert not lists.accepts("gone.txt")
