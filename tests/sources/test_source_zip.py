from __future__ import annotations

import stat
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotary.errors import NothingToDo
from annotary.records import Failure, Item
from annotary.sources import SourceOptions, open_sources
from annotary.sources import zip as zip_source
from annotary.sources._members import inner_path


def zipped(path: str, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> str:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def opened(*arguments: str, **options: object) -> list[Item | Failure]:
    return list(open_sources(arguments, SourceOptions(**options)))  # type: ignore[arg-type]


METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


@pytest.mark.parametrize("name", ["x.zip", "X.CBZ"])
@pytest.mark.parametrize("method", METHODS)
def test_items(name: str, method: int) -> None:
    large = bytes(range(256)) * 8000
    zipped(name, {"b.jpg": b"B", "in/a.PNG": large, "in/": b"", "notes.txt": b"x"}, method)
    assert opened(name) == [
        Item(f"{name}/b.jpg", data=b"B", relative="b.jpg"),
        Item(f"{name}/in/a.PNG", data=large, relative="in/a.PNG"),
    ]


def test_what_is_left_out() -> None:
    hidden = ["__MACOSX/a.jpg", "__MACOSX/in/._a.jpg", ".a.jpg", ".in/a.jpg", "in/.thumbs/a.jpg"]
    zipped("x.zip", dict.fromkeys(["./a.jpg", *hidden, "in/__MACOSX.jpg"], b"x"))
    with zipfile.ZipFile("x.zip", "a") as archive:
        link = zipfile.ZipInfo("link.jpg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "a.jpg")
    assert [item.relative for item in opened("x.zip")] == ["a.jpg", "in/__MACOSX.jpg"]


def test_patterns() -> None:
    zipped("x.zip", dict.fromkeys(["2024/a.jpg", "2025/b.jpg", "c.jpg", "c.raw"], b"x"))

    def taken(**options: object) -> list[str]:
        return [item.relative for item in opened("x.zip", **options)]

    assert taken(include_files=("2024/*.jpg", "*.raw")) == ["2024/a.jpg", "c.raw"]
    assert taken(exclude_files=("2024",)) == ["2025/b.jpg", "c.jpg"]
    assert taken(exclude_files=("/*.jpg",), recursive=False) == ["2024/a.jpg", "2025/b.jpg"]


@pytest.mark.parametrize(
    "name",
    ["../a.jpg", "in/../../a.jpg", "/etc/a.jpg", "C:/a.jpg", "c:a.jpg", "..\\a.jpg", "\\a.jpg"],
)
def test_nothing_leads_outside(name: str) -> None:
    zipped("x.zip", {name: b"x", "b.jpg": b"B"})
    outside, inside = opened("x.zip")
    message = "its path in the archive leads outside of it"
    assert outside == Failure(f"x.zip/{name}", "UnreachableImage", message)
    assert inside.image == "x.zip/b.jpg"


@given(st.text(alphabet="ab./\\:C\0", max_size=12))
def test_inner_paths_stay_inside(name: str) -> None:
    path = inner_path(name)
    place = Path("/folder", path)
    assert place.is_relative_to("/folder")
    assert ".." not in place.parts
    assert ".." not in path.replace("\\", "/").split("/")
    assert not path.startswith(("/", "\\"))
    if all(part not in ("", ".", "..") for part in name.split("/")) and not set("\\:\0") & set(
        name
    ):
        assert path == name


@pytest.mark.parametrize("method", METHODS)
def test_bombs(method: int) -> None:
    zipped("x.zip", {"bomb.jpg": bytes(40_000_000), "a.jpg": b"A"}, method)
    said = Path("x.zip").read_bytes()
    size = (40_000_000).to_bytes(4, "little")
    for data in (said, said.replace(size, (900).to_bytes(4, "little"))):  # tells the truth, lies
        Path("x.zip").write_bytes(data)
        tracemalloc.start()
        bomb, other = opened("x.zip", max_bytes=1000)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert isinstance(bomb, Failure)
        if data is said:
            assert bomb.message == "larger than 1,000 bytes (--max-bytes)"
        else:
            assert bomb.message.startswith("damaged in its archive: Bad CRC-32")
        if method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            assert peak < 3_000_000
        assert other.data == b"A"


def test_members_that_cannot_be_had() -> None:
    zipped("x.zip", {"a.jpg": b"a" * 5000, "b.jpg": b"B", "c.jpg": b"C"})
    data = bytearray(Path("x.zip").read_bytes())
    content = zlib.compress(b"a" * 5000)[2:-4]
    data[data.index(content) + 2] ^= 0xFF
    # In the directory: b is encrypted, c is packed with Deflate64.
    directory = data.index(b"PK\x01\x02")
    second = data.index(b"PK\x01\x02", directory + 4)
    data[second + 8] |= 1
    third = data.index(b"PK\x01\x02", second + 4)
    data[third + 10] = 9
    Path("x.zip").write_bytes(data)
    results = opened("x.zip")
    assert [result.image for result in results] == [f"x.zip/{name}.jpg" for name in "abc"]
    messages = [result.message for result in results]
    assert messages[0].startswith("damaged in its archive: ")
    assert messages[1] == "it is encrypted in its archive"
    assert messages[2] == "cannot be unpacked: That compression method is not supported"


@given(st.data())
def test_any_damage_is_told(data: st.DataObject) -> None:
    zipped("x.zip", {f"{n}.jpg": bytes([n]) * 300 for n in range(4)})
    content = bytearray(Path("x.zip").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    Path("x.zip").write_bytes(content[: data.draw(st.integers(0, len(content)))])
    for result in zip_source.items("x.zip", SourceOptions(max_bytes=10_000)):
        assert isinstance(result, Item | Failure)
        assert result.image.startswith("x.zip")


def test_a_member_without_a_name() -> None:
    data = Path(zipped("x.zip", {"q.jpg": b"x", "a.jpg": b"A"})).read_bytes()
    Path("x.zip").write_bytes(data.replace(b"q.jpg", b"\0.jpg"))
    assert [item.relative for item in opened("x.zip")] == ["a.jpg"]


def test_no_archive() -> None:
    Path("x.zip").write_bytes(b"no archive")
    Path("next.jpg").touch()
    failure, after = opened("x.zip", "next.jpg")
    message = "this archive cannot be read: File is not a zip file"
    assert failure == Failure("x.zip", "UnreachableImage", message)
    assert after.image == "next.jpg"
    (gone,) = zip_source.items("gone.zip", SourceOptions())
    assert gone.message == "this archive cannot be read: No such file or directory"


def test_nothing_found() -> None:
    zipped("x.zip", {"a.txt": b"x"})
    with pytest.raises(NothingToDo, match=r"no images in x.zip: looked for .avif, .*\.webp$"):
        opened("x.zip")
    Path("folder.zip").mkdir()
    assert not zip_source.accepts("folder.zip")
