from __future__ import annotations

import csv as csv_module
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotary.errors import NothingToDo, UsageError
from annotary.records import Annotation, Failure, Item, Tag
from annotary.sinks import SinkOptions, open_sink
from annotary.sources import SourceOptions, csv, open_sources


def table(name: str, content: bytes | str, **options: object) -> list[Item | Failure]:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(open_sources([name], SourceOptions(**options)))  # type: ignore[arg-type]


def names(results: list[Item | Failure]) -> list[str]:
    assert all(isinstance(result, Item) for result in results), results
    return [result.image for result in results]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "id,image,note\n1,a.jpg,\n2,b.jpg,x"),
        ("T.CSV", 'image\r\n"a.jpg"\r\n\r\nb.jpg\r\n'),
        ("t.csv", "\ufeffimage;size\na.jpg;1,5\nb.jpg;2,5\n"),
        ("t.csv", "id\timage\n1\ta.jpg\n2\tb.jpg\n"),
        ("t.tsv", "id, x\timage\n1\ta.jpg\n2\tb.jpg\n"),
        ("t.tab", " image \turl\na.jpg\thttp://x\nb.jpg\t\n"),
        ("metadata.csv", "file_name,text\na.jpg,a dog\nb.jpg,a cat\n"),
    ],
)
def test_rows(name: str, content: str) -> None:
    assert table(name, content) == [Item.from_path("a.jpg"), Item.from_path("b.jpg")]


def test_places() -> None:
    for path in ("in/a.jpg", "b.jpg", "in/sub/c.jpg"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()
    rows = ["a.jpg", "b.jpg", "sub/c.jpg", " https://x.org/d ", str(Path("b.jpg").absolute()), "no"]
    *found, missing = table("in/t.csv", "path\n" + "\n".join(rows) + "\n")
    assert names(found) == [
        "in/a.jpg", "b.jpg", "in/sub/c.jpg", "https://x.org/d", str(Path("b.jpg").absolute()),
    ]  # fmt: skip
    assert found[3].url == "https://x.org/d"
    assert isinstance(missing, Failure)
    assert missing.image == "no"
    assert "neither in 'in' nor in the current folder" in missing.message


@pytest.mark.parametrize(
    ("header", "options", "taken"),
    [
        ("png,url,path", {}, 2),
        ("url,file_name,bytes", {}, 1),
        ("image_url,id,filename", {}, 2),
        ("image,picture,url", {"image_column": "picture"}, 1),
    ],
)
def test_which_column(header: str, options: dict[str, str], taken: int) -> None:
    results = table("t.csv", f"{header}\n0.jpg,1.jpg,2.jpg\n", **options)
    assert names(results) == [f"{taken}.jpg"]


NO_COLUMN = (
    "none of the columns of t.csv has a usual name for images; choose one with --image-column: "
)
MANY = ",".join(map(str, range(30)))


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("id,Image\n1,a\n", {}, NO_COLUMN + "'id', 'Image'"),
        ("\n1,a\n", {}, NO_COLUMN + "none"),
        (MANY, {}, NO_COLUMN + ", ".join(f"'{n}'" for n in range(20)) + " and 10 more"),
        (
            "image\na.jpg\n",
            {"image_column": "x"},
            "t.csv has no column 'x' (--image-column); its columns are 'image'",
        ),
    ],
)
def test_no_column(content: str, options: dict[str, str], message: str) -> None:
    Path("t.csv").write_text(content)
    Path("a.jpg").touch()
    with pytest.raises(UsageError) as caught:  # before the first image is given
        open_sources(["a.jpg", "t.csv"], SourceOptions(**options))
    assert str(caught.value) == message


def test_rows_that_name_nothing() -> None:
    content = 'id,image,text\n1,a.jpg,"two\nlines"\n2,,x\n3\n\n4,"  ",\n5,b.jpg\n'
    results = table("t.csv", content)
    assert [result.image for result in results] == [
        "a.jpg", "t.csv:4", "t.csv:5", "t.csv:7", "b.jpg",
    ]  # fmt: skip
    messages = {result.message for result in results if isinstance(result, Failure)}
    assert messages == {"this row names no image"}


def test_a_cell_that_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv, "LONGEST_ROW", 200_000)
    before = csv_module.field_size_limit(1000)
    try:
        content = f'image,x\na.jpg,{"y" * 150_000}\nb.jpg,"{("z" * 99 + chr(10)) * 2100}"\nc.jpg,\n'
        results = table("t.csv", content)
    finally:
        csv_module.field_size_limit(before)
    assert results[0].image == "a.jpg"
    assert isinstance(results[1], Failure)
    assert results[1].image == "t.csv:3"
    assert results[1].message.startswith("this row is broken: field larger than field limit")


def test_what_is_no_table() -> None:
    (utf_16,) = table("t.csv", "image\na.jpg\n".encode("utf-16"))
    message = "the table is UTF-16; save it as UTF-8"
    assert utf_16 == Failure("t.csv", "UnreachableImage", message)
    with pytest.raises(
        NothingToDo, match=r"no images in t.csv: looked for rows with a path or an address"
    ):
        table("t.csv", "")
    with pytest.raises(NothingToDo):
        table("t.csv", "image,id\n")
    (gone,) = csv.items("gone.csv", SourceOptions())
    assert gone.message == "this table cannot be read: No such file or directory"


def test_a_file_without_lines_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv, "LONGEST_ROW", 100_000)
    Path("t.csv").write_bytes(b"image\na.jpg\n" + b"x" * 20_000_000)
    tracemalloc.start()
    first, failure = csv.items("t.csv", SourceOptions())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert first.image == "a.jpg"
    assert failure == Failure("t.csv", "UnreachableImage", "a line of more than 100,000 characters")
    assert peak < 2_000_000


def test_what_annotary_writes_is_a_table() -> None:
    odd = os.fsdecode(b"photos/caf\xe9.jpg")
    written = ["photos/a.jpg", "photos/b, c.jpg", 'photos/"d"\n.jpg', odd, "https://x.org/e.jpg"]
    sink = open_sink("csv", Path("out.csv"), SinkOptions())
    for name in written:
        sink.write(Item.from_path(name), Annotation(name, 4, 3, (Tag("dog", 0.5), Tag("cat", 0.2))))
    sink.close(complete=True)
    results = list(open_sources(["out.csv"], SourceOptions()))
    assert names(results) == written
    assert results[-1].url == written[-1]


@given(
    st.lists(
        st.lists(st.text(alphabet='a,;"\n\r\t #é\u2028.', max_size=6), min_size=2, max_size=2),
        max_size=8,
    )
)
def test_what_python_writes(cells: list[list[str]]) -> None:
    with open("t.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv_module.writer(file)
        writer.writerow(["id", "image"])
        writer.writerows(cells)
    results = list(csv.items("t.csv", SourceOptions()))
    assert len(results) == len(cells)
    for result, (_, image) in zip(results, cells, strict=True):
        if image.strip():
            assert result == Item.from_path(image)
        else:
            assert isinstance(result, Failure)
