from __future__ import annotations

import os
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotary.errors import MissingExtra, NothingToDo, UsageError
from annotary.records import Annotation, Failure, Item
from annotary.sinks import SinkOptions, open_sink
from annotary.sources import SourceOptions, open_sources, parquet

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""How the feature Image of datasets is stored."""


def written(name: str, **columns: Any) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), name)
    return name


def opened(*arguments: str, **options: object) -> list[Item | Failure]:
    return list(open_sources(arguments, SourceOptions(**options)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "kind",
    [pa.binary(), pa.large_binary(), pa.binary(2)],
    ids=str,
)
def test_bytes(kind: Any) -> None:
    written("in/t.parquet", id=[7, 8], image=pa.array([b"AA", b"BB"], kind))
    assert opened("in/t.parquet") == [
        Item("in/t.parquet/0", data=b"AA", relative="t.parquet/0"),
        Item("in/t.parquet/1", data=b"BB", relative="t.parquet/1"),
    ]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_paths_and_addresses(kind: Any) -> None:
    for path in ("in/a.jpg", "b.jpg"):
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).touch()
    places = ["a.jpg", "b.jpg", "https://x.org/c", "no.jpg", "", None, " "]
    results = opened(written("in/t.pq", image=pa.array(places, pa.string()).cast(kind)))
    assert results[:3] == [
        Item.from_path("in/a.jpg"),
        Item.from_path("b.jpg"),
        Item("https://x.org/c", url="https://x.org/c"),
    ]
    assert [result.image for result in results[3:]] == [
        "no.jpg", "in/t.pq/4", "in/t.pq/5", "in/t.pq/6",
    ]  # fmt: skip
    assert {result.message for result in results[4:]} == {"this row holds no image"}


def test_images_of_datasets() -> None:
    rows = [
        {"bytes": b"A", "path": "dog.jpg"},
        {"bytes": b"B", "path": "dog.jpg"},
        {"bytes": b"C", "path": None},
        {"bytes": b"D", "path": "/home/somebody/../cat.png"},
        {"bytes": b"E", "path": "C:\\photos\\cat.png"},
        {"bytes": b"F", "path": ".."},
        {"bytes": None, "path": "here.jpg"},
        {"bytes": b"", "path": None},
        {"bytes": None, "path": None},
        None,
    ]
    results = opened(written("t.parquet", label=[0] * 10, image=pa.array(rows, IMAGE)))
    assert [result.image for result in results] == [
        "t.parquet/0-dog.jpg", "t.parquet/1-dog.jpg", "t.parquet/2", "t.parquet/3-cat.png",
        "t.parquet/4-cat.png", "t.parquet/5", "here.jpg", "t.parquet/7", "t.parquet/8",
        "t.parquet/9",
    ]  # fmt: skip
    assert [result.data for result in results[:6]] == [b"A", b"B", b"C", b"D", b"E", b"F"]
    assert [result.relative for result in results[:6]] == [result.image for result in results[:6]]
    assert results[6] == Item.from_path("here.jpg")
    assert all(isinstance(result, Failure) for result in results[7:])


def test_several_tables_never_share_a_name() -> None:
    tables = [written(f"data/{n}.parquet", jpg=[b"x", b"y"]) for n in range(3)]
    results = opened(*tables)
    assert len({result.image for result in results}) == len({r.relative for r in results}) == 6


def test_which_column() -> None:
    written("t.parquet", image=[1, 2], path=["a.jpg", "b.jpg"], picture=[b"A", b"B"])
    assert [item.image for item in opened("t.parquet")] == ["a.jpg", "b.jpg"]
    assert [item.data for item in opened("t.parquet", image_column="picture")] == [b"A", b"B"]
    written("s.parquet", image=pa.array([{"bytes": "text", "path": "a.jpg", "height": 3}]))
    assert [item.image for item in opened("s.parquet")] == ["a.jpg"]


COLUMNS = "'id', 'picture', 'image', 'jpg'"
NO_COLUMN = (
    "none of the columns of t.parquet has a usual name for images; "
    f"choose one with --image-column: {COLUMNS}"
)
OTHER_COLUMN = f"t.parquet has no column 'url' (--image-column); its columns are {COLUMNS}"
WRONG_COLUMN = (
    "the column 'image' of t.parquet holds list<element: double>, "
    "which is neither a path or an address nor an encoded image"
)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, NO_COLUMN),
        ({"image_column": "url"}, OTHER_COLUMN),
        ({"image_column": "image"}, WRONG_COLUMN),
    ],
)
def test_no_column(options: dict[str, str], message: str) -> None:
    columns = {"id": [1], "picture": [b"x"], "image": pa.array([[1.0]]), "jpg": [{"x": 1}]}
    written("t.parquet", **columns)
    with pytest.raises(UsageError) as caught:  # before the first image is given
        open_sources(["t.parquet"], SourceOptions(**options))
    assert str(caught.value).replace("<item:", "<element:") == message


def test_images_that_are_too_large() -> None:
    written("t.parquet", image=[b"x" * 11, b"x" * 10])
    large, fitting = opened("t.parquet", max_bytes=10)
    message = "larger than 10 bytes (--max-bytes)"
    assert large == Failure("t.parquet/0", "UnreachableImage", message)
    assert isinstance(fitting, Item)


def test_memory_stays_flat() -> None:
    size, count = 50_000, 600
    rows = [bytes([n % 256]) * size for n in range(count)]
    pq.write_table(
        pa.table({"image": rows, "other": rows}), "t.parquet", use_dictionary=False,
        compression="none", row_group_size=count, data_page_size=size, write_batch_size=8,
    )  # fmt: skip
    del rows
    items = parquet.items("t.parquet", SourceOptions())
    next(items)
    tracemalloc.start()
    most = pa.total_allocated_bytes()
    taken = 1
    for _ in items:
        taken += 1
        most = max(most, pa.total_allocated_bytes())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken == count
    assert peak < 10 * size
    assert most < 100 * size


@pytest.mark.parametrize("use_dictionary", [True, False])
def test_large_rows_are_read_one_by_one(use_dictionary: bool, monkeypatch: Any) -> None:
    size, count = 3_000_000, 20
    monkeypatch.setattr(parquet, "HELD", 1_000_000)
    pq.write_table(
        pa.table({"image": [bytes(size)] * count}), "t.parquet", compression="zstd",
        use_dictionary=use_dictionary, write_batch_size=1,
    )  # fmt: skip
    assert Path("t.parquet").stat().st_size < 100_000
    before = most = pa.total_allocated_bytes()
    for number, item in enumerate(parquet.items("t.parquet", SourceOptions(max_bytes=size))):
        assert item == Item(f"t.parquet/{number}", data=bytes(size), relative=f"t.parquet/{number}")
        most = max(most, pa.total_allocated_bytes())
    assert number == count - 1
    assert most - before < 8 * size


def test_a_group_of_rows_that_are_far_too_large_is_not_read(monkeypatch: Any) -> None:
    monkeypatch.setattr(parquet, "HELD", 1000)
    schema = pa.schema([("image", IMAGE)])
    with pq.ParquetWriter("t.parquet", schema, use_dictionary=False, compression="zstd") as writer:
        for rows in ([5_000_000, 1], [5], [2_000_000], [1]):
            values = [{"bytes": b"x" * length, "path": "a.jpg"} for length in rows]
            writer.write_table(pa.table([pa.array(values, IMAGE)], schema))
    first, second, third, fourth = opened("t.parquet", max_bytes=10)
    told = "of this table: larger than 1,000 bytes (--max-bytes)"
    assert first == Failure("t.parquet", "UnreachableImage", f"rows 0 to 1 {told} on average")
    assert second.image == "t.parquet/2-a.jpg"
    assert third == Failure("t.parquet", "UnreachableImage", f"row 3 {told}")
    assert fourth.image == "t.parquet/4-a.jpg"


def test_damage() -> None:
    written("t.parquet", image=[b"x" * 1000] * 10)
    data = Path("t.parquet").read_bytes()
    Path("next.jpg").touch()
    for broken in (b"", b"no table", data[: len(data) // 2], data[:4] + bytes(40) + data[44:]):
        Path("t.parquet").write_bytes(broken)
        *_, failure, after = opened("t.parquet", "next.jpg")
        assert isinstance(failure, Failure)
        assert failure.image == "t.parquet"
        assert failure.message.startswith("this table cannot be read: ")
        assert "\n" not in failure.message
        assert after.image == "next.jpg"


@given(st.data())
def test_any_damage_is_told(data: st.DataObject) -> None:
    written("whole.parquet", image=["a.jpg", "b.jpg"] * 20, bytes=[b"x" * n for n in range(40)])
    content = bytearray(Path("whole.parquet").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    Path("t.parquet").write_bytes(content)
    for column in ("image", "bytes"):
        options = SourceOptions(image_column=column)
        try:
            parquet.check("t.parquet", options)
            results = list(parquet.items("t.parquet", options))
        except UsageError:  # the column has another name now, or another type
            continue
        assert all(isinstance(result, Item | Failure) for result in results)


def test_names_that_are_not_utf_8() -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    raw = pa.array([name.encode("utf-8", "surrogateescape")], pa.binary()).view(pa.string())
    struct = pa.StructArray.from_arrays([pa.array([b"x"]), raw], ["bytes", "path"])
    dictionary = pa.DictionaryArray.from_arrays(pa.array([0]), raw)
    written("t.parquet", text=raw, struct=struct)
    assert [item.image for item in opened("t.parquet", image_column="text")] == [name]
    (item,) = opened("t.parquet", image_column="struct")
    assert item.image == f"t.parquet/0-{name}"
    assert parquet._parts(dictionary[0]) == (None, name)


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_what_annotary_writes_names_its_images(form: str) -> None:
    odd = os.fsdecode(b"nu/a\xff.jpg")
    written = ["nu/b.jpg", odd, "https://x.org/e.jpg", "nu/c\\udcff.jpg"]
    Path("nu").mkdir()
    for name in (written[0], odd, written[3]):
        Path(name).touch()
    sink = open_sink(form, Path(f"out.{form}"), SinkOptions())
    for name in written:
        sink.write(Item.from_path(name), Annotation(name, 4, 3))
    sink.close(complete=True)
    assert [item.image for item in opened(f"out.{form}")] == written


def test_nothing_found() -> None:
    written("t.parquet", image=pa.array([], pa.binary()))
    with pytest.raises(
        NothingToDo, match="looked for rows with a path, an address or an encoded image"
    ):
        opened("t.parquet")
    assert not parquet.accepts("no.parquet")


def test_without_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    written("t.parquet", image=[b"x"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra) as caught:
        open_sources(["t.parquet"], SourceOptions())
    message = "Reading Parquet needs an optional part: pip install 'annotary[parquet]'"
    assert str(caught.value) == message
