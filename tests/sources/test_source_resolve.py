from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from annotary import registry
from annotary.errors import NothingToDo, UsageError
from annotary.records import Failure, Item
from annotary.sources import SourceOptions, folder, open_sources


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos/in").mkdir(parents=True)
    Path("photos/in/b.jpg").touch()
    Path("photos/a.jpg").touch()
    Path("notes.dat").touch()


def opened(*arguments: str, **options: object) -> list[Item | Failure]:
    return list(open_sources(arguments, SourceOptions(**options)))  # type: ignore[arg-type]


def test_the_room() -> None:
    assert {"files", "folder", "lists", "stdin", "urls"} <= set(registry.names("sources"))


def test_one_after_the_other_and_twice_is_twice() -> None:
    Path("list.txt").write_text("photos/a.jpg\n")
    results = opened("notes.dat", "https://x.org/c", "photos", "list.txt", "./photos/a.jpg")
    assert [result.image for result in results] == [
        "notes.dat", "https://x.org/c", "photos/a.jpg", "photos/in/b.jpg", "photos/a.jpg",
        "./photos/a.jpg",
    ]  # fmt: skip


def test_patterns_do_not_apply_to_files_that_are_named() -> None:
    assert len(opened("photos/a.jpg", exclude_files=("*.jpg",))) == 1


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("phtos", "no such file or folder: 'phtos'; did you mean 'photos'?"),
        ("Photos", "no such file or folder: 'Photos'; did you mean 'photos'?"),
        ("phtos/a.jpg", "no such file or folder: 'phtos/a.jpg'; did you mean 'photos/a.jpg'?"),
        ("photos/aa.jpg", "no such file or folder: 'photos/aa.jpg'; did you mean 'photos/a.jpg'?"),
        ("zzz", "no such file or folder: 'zzz'"),
        ("notes.dat/x", "no such file or folder: 'notes.dat/x'"),
        ("a\0b", "no such file or folder: 'a\\x00b'"),
        ("new\nline", "no such file or folder: 'new\\nline'"),
        ("pipe", "neither a file nor a folder: 'pipe'"),
        ("broken.jpg", "a broken link: 'broken.jpg'"),
        ("x" * 5000, f"File name too long: {'x' * 5000!r}"),
        ("ftp://x.org/a.jpg", "no such file or folder: 'ftp://x.org/a.jpg'"),
        ("", "an argument is empty; name an image, a folder or a web address"),
    ],
)
def test_what_nobody_takes(argument: str, message: str) -> None:
    os.mkfifo("pipe")
    Path("broken.jpg").symlink_to("nowhere")
    with pytest.raises(UsageError) as caught:
        open_sources(["photos", argument], SourceOptions())
    assert str(caught.value) == message


def test_no_arguments() -> None:
    with pytest.raises(UsageError, match="name at least one"):
        open_sources([], SourceOptions())


def test_what_could_be_two_things() -> None:
    Path("-").mkdir()
    with pytest.raises(UsageError, match="'-' could be read in more than one way: folder, stdin"):
        open_sources(["-"], SourceOptions())


def test_a_file_is_an_image_only_when_no_other_source_takes_it() -> None:
    Path("list.jsonl").write_text('"photos/a.jpg"')
    assert [result.image for result in opened("list.jsonl")] == ["photos/a.jpg"]


def test_nothing_to_do() -> None:
    Path("empty").mkdir()
    Path("empty/notes.txt").touch()
    suffixes = ", ".join(sorted(folder.IMAGE_SUFFIXES))
    with pytest.raises(NothingToDo) as caught:
        opened("empty")
    message = f"no images in empty: looked for {suffixes} in it and its folders"
    assert str(caught.value) == message
    with pytest.raises(NothingToDo) as caught:
        opened("empty", "photos", include_files=("*.x",), exclude_files=("y",), recursive=False)
    assert str(caught.value) == (
        "no images in empty, photos: looked for files that match '*.x' but not 'y' "
        "in it alone (--no-recursive)"
    )
    with pytest.raises(NothingToDo) as caught:
        opened("empty", "empty/notes.txt", include_files=("*.x",))
    assert str(caught.value) == (
        "no images in empty: looked for files that match '*.x' in it and its folders; "
        "no images in empty/notes.txt: looked for rows with a path or an address"
    )
    with pytest.raises(NothingToDo, match="no images in empty, empty, empty and 2 more: "):
        opened(*["empty"] * 5)


def test_a_failure_is_something() -> None:
    Path("list.jsonl").write_text("{")
    (result,) = opened("list.jsonl")
    assert isinstance(result, Failure)


def test_no_http_client_without_an_address() -> None:
    script = """
import sys
from annotary.sources import Reader, SourceOptions, open_sources
with Reader(SourceOptions()) as reader:
    for item in open_sources(["photos"], SourceOptions()):
        reader.read(item)
print(sorted(name for name in sys.modules if name.startswith("http") or name == "torch"))
"""
    package = str(Path(folder.__file__).parents[2])
    command = [sys.executable, "-W", "error", "-c", script]
    environment = {**os.environ, "PYTHONPATH": package}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "[]\n"
