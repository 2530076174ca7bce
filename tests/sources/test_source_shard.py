from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotary.errors import NothingToDo
from annotary.records import Failure, Item
from annotary.sources import SourceOptions, can_be_counted, folder, open_sources
from annotary.sources._shard import Shard, key_of


def opened(*arguments: str, **options: object) -> list[Item | Failure]:
    return list(open_sources(arguments, SourceOptions(**options)))  # type: ignore[arg-type]


def make_folder(at: Path, count: int) -> str:
    for number in range(count):
        path = at / "photos" / f"{number % 3}" / f"{number // 3:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (at / "photos/broken.jpg").symlink_to("nowhere")
    return str(at / "photos")


def make_list(at: Path, count: int) -> str:
    rows = [f"in/{n}.jpg" for n in range(count)] + ["a missing one.jpg", "https://x.org/a?b"]
    for row in rows[:count]:
        (at / row).parent.mkdir(exist_ok=True)
        (at / row).touch()
    lines = [*map(json.dumps, rows), "{", "7"]
    (at / "list.jsonl").write_text("\n".join(lines))
    return str(at / "list.jsonl")


def make_csv(at: Path, count: int) -> str:
    rows = "".join(f"{n},https://x.org/{n}.jpg\n" for n in range(count))
    (at / "table.csv").write_text("id,url\n" + rows + "1,\n2,\n")
    return str(at / "table.csv")


def make_tar(at: Path, count: int) -> str:
    with tarfile.open(at / "x.tar", "w") as archive:
        for name in [*(f"in/{n}.jpg" for n in range(count)), "../a.jpg"]:
            member = tarfile.TarInfo(name)
            member.size = 3
            archive.addfile(member, io.BytesIO(b"abc"))
    return str(at / "x.tar")


def make_zip(at: Path, count: int) -> str:
    with zipfile.ZipFile(at / "x.zip", "w") as archive:
        for name in [*(f"in/{n}.jpg" for n in range(count)), "../a.jpg"]:
            archive.writestr(name, b"abc")
    return str(at / "x.zip")


def make_parquet(at: Path, count: int) -> str:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [f"{n}".encode() for n in range(count)] + [None, b""]
    parquet.write_table(arrow.table({"image": arrow.array(rows, arrow.binary())}), at / "x.parquet")
    return str(at / "x.parquet")


Maker = Callable[[Path, int], str]
MAKERS: list[Maker] = [make_folder, make_list, make_csv, make_tar, make_zip, make_parquet]


@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("make", MAKERS)
def test_together_they_are_the_whole(make: Maker, count: int) -> None:
    argument = make(Path(), 60)
    whole = opened(argument)
    assert len(whole) > 60
    assert any(isinstance(found, Failure) for found in whole)
    shards = [opened(argument, shard=f"{n}/{count}") for n in range(1, count + 1)]
    # Every image once, with the same bytes, and every failure of one image once.
    assert sorted(map(repr, chain(*shards))) == sorted(map(repr, whole))
    for shard in shards:
        assert 0 < len(shard) < 60
        assert [found for found in whole if found in shard] == shard  # in the same order


@pytest.mark.parametrize("make", MAKERS)
def test_where_things_lie_does_not_matter(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(argument: str) -> list[str]:
        results = opened(argument, shard="2/3")
        return sorted(result.image.split("/")[-1] for result in results)

    here, there = Path("here"), Path("there/and/deeper").absolute()
    here.mkdir()
    there.mkdir(parents=True)
    expected = ends(make(here, 60))
    argument = make(there, 60)
    assert ends(argument) == expected
    monkeypatch.chdir(there)
    assert ends(Path(argument).name) == expected
    assert ends("./" + Path(argument).name) == expected


def test_a_list_named_by_its_folder_or_from_within(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("in").mkdir()
    make_list(Path("in"), 30)
    outside = [item.image.removeprefix("in/") for item in opened("in/list.jsonl", shard="1/2")]
    monkeypatch.chdir("in")
    assert [item.image for item in opened("list.jsonl", shard="1/2")] == outside


@given(st.sets(st.text(min_size=1), max_size=30), st.sets(st.text(min_size=1)), st.integers(1, 9))
def test_images_that_are_added_move_no_other(names: set[str], added: set[str], count: int) -> None:
    shards = [Shard(number, count) for number in range(1, count + 1)]
    before = {name: [shard.has(name) for shard in shards] for name in names}
    assert all(sum(places) == 1 for places in before.values())
    after = {name: [shard.has(name) for shard in shards] for name in names | added}
    assert all(after[name] == places for name, places in before.items())


def test_shards_are_of_about_the_same_size() -> None:
    sizes = Counter(
        next(n for n in range(1, 9) if Shard(n, 8).has(f"in/{name:06}.jpg")) for name in range(8000)
    )
    assert all(850 < sizes[number] < 1150 for number in range(1, 9))


def test_the_partition_never_changes() -> None:
    # A run that was begun with one version must not be continued with other shards by another.
    names = ["a.jpg", "in/b.jpg", "Käse.jpg", "caf\udce9.jpg", "https://x.org/a.jpg"]
    shards = [next(n for n in range(1, 101) if Shard(n, 100).has(name)) for name in names]
    assert shards == [67, 74, 78, 52, 76]
    assert Shard(shards[2], 100).has("Ka\u0308se.jpg")


def test_a_failure_of_many_images_is_told_by_every_shard() -> None:
    tar = make_tar(Path(), 20)
    data = Path(tar).read_bytes()
    for number in range(2):
        Path(f"{number}.tar").write_bytes(data[:5000])
    Path("x.zip").write_bytes(b"no archive")
    Path("utf-16.txt").write_bytes(b"\xff\xfe")
    Path("a.jpg").touch()
    for number in range(1, 4):
        results = opened("{0..1}.tar", "x.zip", "utf-16.txt", "a.jpg", shard=f"{number}/3")
        failures = [result.image for result in results if isinstance(result, Failure)]
        assert failures == ["0.tar", "1.tar", "x.zip", "utf-16.txt"]


def test_a_folder_that_cannot_be_listed_is_told_by_every_shard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_folder(Path(), 9)

    def scan(path: str) -> object:
        if path.endswith("/1"):
            raise PermissionError(13, "no")
        return os.scandir(path)

    walk = folder.walk
    monkeypatch.setattr(folder, "walk", lambda *taken: walk(*taken, scan=scan))
    for number in range(1, 4):
        results = opened("photos", shard=f"{number}/3")
        assert "photos/1" in [result.image for result in results if isinstance(result, Failure)]


def test_an_empty_shard_is_no_error() -> None:
    Path("a.jpg").touch()
    counts = [len(opened("a.jpg", shard=f"{number}/5")) for number in range(1, 6)]
    assert sorted(counts) == [0, 0, 0, 0, 1]
    make_zip(Path(), 1)
    counts = [len(opened("x.zip", shard=f"{number}/9")) for number in range(1, 10)]
    assert sum(counts) == 2
    Path("empty").mkdir()
    with pytest.raises(NothingToDo):
        opened("empty", shard="1/2")


@pytest.mark.parametrize(
    "text", ["", "3", "0/2", "3/2", "-1/2", "1/0", "a/b", "1/2/3", " 1/2", "1.0/2", "٣/٤"]
)
def test_what_is_no_shard(text: str) -> None:
    with pytest.raises(ValueError, match="shard must be like 2/8, the second of eight machines"):
        SourceOptions(shard=text)


@pytest.mark.parametrize(
    ("name", "argument", "key"),
    [
        ("photos/in/a.jpg", "photos", "in/a.jpg"),
        ("photos/in/a.jpg", "photos/", "in/a.jpg"),
        ("/mnt/photos/in/a.jpg", "/mnt/photos/", "in/a.jpg"),
        ("./in/a.jpg", ".", "in/a.jpg"),
        ("/mnt/photos/a.jpg", "/mnt/photos/a.jpg", "a.jpg"),
        ("a.jpg", "a.jpg", "a.jpg"),
        ("lists/in/a.jpg", "lists/list.txt", "in/a.jpg"),
        ("in/a.jpg", "lists/list.txt", "in/a.jpg"),
        ("./in//a.jpg", "list.txt", "in/a.jpg"),
        ("/elsewhere/a.jpg", "/mnt/list.txt", "/elsewhere/a.jpg"),
        ("a.jpg", "-", "a.jpg"),
    ],
)
def test_keys(name: str, argument: str, key: str) -> None:
    assert key_of(Item.from_path(name), argument) == key
    assert key_of(Failure(name, "UnreachableImage", "no"), argument) == key


def test_what_can_be_counted() -> None:
    make_folder(Path(), 3)
    make_csv(Path(), 3)
    make_tar(Path(), 3)
    make_zip(Path(), 3)
    assert can_be_counted(["photos", "table.csv", "https://x.org/a.jpg"])
    assert not any(can_be_counted(["photos", other]) for other in ("-", "x.tar", "x.zip"))
