from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from annotary.records import Failure, Item, from_line, to_line
from annotary.sources import SourceOptions
from annotary.sources import folder as source


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(root: Path, **options: object) -> list[str]:
    """What is found, relative to the folder."""
    results = list(source.items(str(root), SourceOptions(**options)))  # type: ignore[arg-type]
    assert all(isinstance(result, Item) for result in results)
    return [result.image.removeprefix(f"{root}/") for result in results]


def test_files_first_then_folders_each_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "b.jpg", "a.png", "z/1.gif", "m/2.webp", "m/k/3.tif", "m/a.bmp", "notes.txt")
    assert found(tmp_path) == ["a.png", "b.jpg", "m/2.webp", "m/a.bmp", "m/k/3.tif", "z/1.gif"]


def test_without_its_folders(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "m/b.jpg")
    assert found(tmp_path, recursive=False) == ["a.jpg"]


@pytest.mark.parametrize("argument", ["photos", "photos/", "./photos", "../photos/../photos", "."])
def test_names_are_as_typed(tmp_path: Path, argument: str, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "photos/in/a.jpg")
    monkeypatch.chdir(tmp_path / "photos" if argument.startswith("..") else tmp_path)
    (result,) = source.items(argument, SourceOptions())
    end = "photos/in/a.jpg" if argument == "." else "in/a.jpg"
    assert result.image == argument.rstrip("/") + "/" + end
    assert isinstance(result, Item)
    assert result.path == Path(result.image)


def test_suffixes_in_any_case(tmp_path: Path) -> None:
    touch(tmp_path, "a.JPG", "b.JpEg", "c.HEIC", "jpg", "d.jpg.txt", "e.mp4")
    assert found(tmp_path) == ["a.JPG", "b.JpEg", "c.HEIC"]


def test_patterns(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "a.dat", "2024/b.jpg", "2024/raw/c.jpg", "raw/d.jpg")
    assert found(tmp_path, include_files=("*.dat",)) == ["a.dat"]
    assert found(tmp_path, include_files=("2024/*.jpg", "a.jpg")) == ["a.jpg", "2024/b.jpg"]
    assert found(tmp_path, exclude_files=("raw",)) == ["a.jpg", "2024/b.jpg"]
    assert found(tmp_path, exclude_files=("raw/", "a.*")) == ["2024/b.jpg", "2024/raw/c.jpg"]


def test_left_out_folders_are_not_entered(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "out/b.jpg", "gone/c.jpg", ".hidden/d.jpg", ".e.jpg")
    entered: list[str] = []

    def scan(path: str) -> Counting:
        entered.append(path)
        return Counting(path)

    options = SourceOptions(exclude_files=("out", "gone/**"))
    results = list(source.walk(str(tmp_path), options, scan=scan))
    assert [result.image for result in results] == [f"{tmp_path}/a.jpg"]
    assert entered == [str(tmp_path)]


def test_a_hidden_folder_that_is_named_is_entered(tmp_path: Path) -> None:
    touch(tmp_path, ".cache/a.jpg")
    assert found(tmp_path / ".cache") == ["a.jpg"]


def test_links(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/a.jpg", "photos/b.jpg")
    photos = tmp_path / "photos"
    (photos / "c.jpg").symlink_to(tmp_path / "elsewhere/a.jpg")
    (photos / "d").symlink_to(tmp_path / "elsewhere")
    (photos / "e.jpg").symlink_to(tmp_path / "elsewhere")
    (photos / "loop").symlink_to(photos)
    assert found(photos) == ["b.jpg", "c.jpg"]
    (tmp_path / "way").symlink_to(photos)
    assert found(tmp_path / "way") == ["b.jpg", "c.jpg"]


def test_what_has_an_image_s_name_and_is_none_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "circle.jpg").symlink_to("circle.jpg")
    (tmp_path / "broken.txt").symlink_to("nowhere.txt")
    os.mkfifo(tmp_path / "pipe.jpg")
    results = {
        Path(result.image).name: result
        for result in source.items(str(tmp_path), SourceOptions())
        if isinstance(result, Failure)
    }
    assert sorted(results) == ["broken.jpg", "circle.jpg", "pipe.jpg"]
    assert results["broken.jpg"].error == "UnreachableImage"
    assert results["broken.jpg"].message == "a broken link to 'nowhere.jpg'"
    assert "symbolic links" in results["circle.jpg"].message
    assert results["pipe.jpg"].message == "a pipe or a device, not a file"


def test_names_of_any_bytes(tmp_path: Path) -> None:
    names = [b"caf\xe9.jpg", b"new\nline.jpg", b" space .jpg", "日本.jpg".encode()]
    for name in names:
        os.close(os.open(os.fsencode(tmp_path) + b"/" + name, os.O_CREAT | os.O_WRONLY))
    results = list(source.items(str(tmp_path), SourceOptions()))
    assert {os.fsencode(result.image.rsplit("/", 1)[1]) for result in results} == set(names)
    for result in results:
        assert isinstance(result, Item)
        assert result.path is not None
        assert result.path.exists()
        failure = Failure(result.image, "UnreadableImage", "x")
        assert from_line(to_line(failure).encode()) == failure


class Counting:
    """A listing that counts what is taken from it."""

    def __init__(self, path: str) -> None:
        self._entries = os.scandir(path)
        self.taken = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._entries.close()

    def __iter__(self) -> Iterator[os.DirEntry[str]]:
        for entry in self._entries:
            self.taken += 1
            yield entry


def test_a_large_folder_starts_at_once(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{number:04}.jpg" for number in range(2000)))
    listings: list[Counting] = []

    def scan(path: str) -> Counting:
        listings.append(Counting(path))
        return listings[-1]

    results = source.walk(str(tmp_path), SourceOptions(), chunk=50, scan=scan)
    first = [next(results).image for _ in range(50)]
    assert listings[0].taken == 50
    assert first == sorted(first)
    rest = [result.image for result in results]
    assert listings[0].taken == 2000
    assert len({*first, *rest}) == 2000


def test_a_folder_that_vanishes_is_a_failure_and_the_walk_goes_on(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b/1.jpg", "c/2.jpg")
    results = source.items(str(tmp_path), SourceOptions())
    assert next(results).image.endswith("a.jpg")
    (tmp_path / "b/1.jpg").unlink()
    (tmp_path / "b").rmdir()
    gone, image = results
    assert isinstance(gone, Failure)
    assert gone.image == f"{tmp_path}/b"
    assert gone.message == "this folder cannot be listed: No such file or directory"
    assert image.image == f"{tmp_path}/c/2.jpg"


FORBIDDEN = """
import os, sys
os.chdir(sys.argv[1])
from pathlib import Path
from annotary.errors import UnreachableImage
from annotary.records import Failure, Item
from annotary.sources import Reader, SourceOptions, folder, lists, open_sources
list(open_sources(["."], SourceOptions()))
if os.geteuid() == 0:
    os.seteuid(65534)
for result in folder.items("photos", SourceOptions()):
    print(result.image, result.message if isinstance(result, Failure) else "ok", sep=": ")
for result in lists.items("forbidden.txt", SourceOptions()):
    print(result.image, result.message, sep=": ")
with Reader(SourceOptions()) as reader:
    try:
        reader.read(Item.from_path("forbidden.txt"))
    except UnreachableImage as error:
        print(error)
try:
    open_sources(["photos/locked/a.jpg"], SourceOptions())
except Exception as error:
    print(error)
"""


def test_permission_denied(tmp_path: Path) -> None:
    touch(tmp_path, "photos/a.jpg", "photos/locked/b.jpg", "photos/z/c.jpg", "forbidden.txt")
    tmp_path.chmod(0o755)
    (tmp_path / "photos/locked").chmod(0)
    (tmp_path / "forbidden.txt").chmod(0)
    command = [sys.executable, "-W", "error", "-c", FORBIDDEN, str(tmp_path)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment()
        )
    finally:
        (tmp_path / "photos/locked").chmod(0o755)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "photos/a.jpg: ok",
        "photos/locked: this folder cannot be listed: Permission denied",
        "photos/z/c.jpg: ok",
        "forbidden.txt: this list cannot be read: Permission denied",
        "Permission denied",
        "Permission denied: 'photos/locked/a.jpg'",
    ]


def environment() -> dict[str, str]:
    """This one, with the package on the path of a child that changes its folder."""
    package = str(Path(source.__file__).parents[2])
    return {**os.environ, "PYTHONPATH": package, "PYTHONDONTWRITEBYTECODE": "1"}
