"""Sidecars of text and JSON: what a person wrote stays, twice is once, and no file of another image is taken."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annotary.errors import OutputError, SidecarError
from annotary.records import Annotation, Item, Tag, from_line
from annotary.sinks import (
    SinkOptions,
    format_named,
    formats,
    open_sink,
    read_tags,
    write_atomically,
)
from annotary.sinks._atomic import replacing
from tests.conftest import child_environment

FORMATS = {
    "txt": ".txt",
    "caption": ".caption",
    "hydrus": ".jpg.txt",
    "json-files": ".json",
    "xmp": ".xmp",
}

# Anything but lone surrogates, which no text file holds.
texts = st.text(st.characters(blacklist_categories=["Cs"]), max_size=30)
names = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=12)
in_one_folder = settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


def annotation_of(item: Item, *tags: Tag) -> Annotation:
    return Annotation(item.image, 40, 30, tags=tags, sources={"tags": "starter@1.0"})


DOG, RED = Tag("dog", 0.9, "animal"), Tag("red", 0.8)


def written(form: str, place: Path, *tags: Tag, **options) -> bytes:
    """What a format makes of the sidecar of `a.jpg`."""
    item = Item.from_path(place / "a.jpg")
    sink = open_sink(form, None, SinkOptions(**options))
    if not sink.holds(item):
        sink.write(item, annotation_of(item, *(tags or (DOG, RED))))
    sink.close(complete=True)
    return (place / f"a{FORMATS[form]}").read_bytes()


def test_every_format_of_sidecars_is_tested():
    found = {
        name
        for name in formats()
        if not format_named(name).is_one_file and format_named(name).can_append
    }
    assert found == set(FORMATS)


def test_what_each_format_writes(tmp_path):
    tags = (
        Tag("long_hair", 0.9, "general"),
        Tag("saber_(fate)", 0.8, "character"),
        Tag("^_^", 0.7),
    )
    assert (
        written("txt", tmp_path, *tags, escape=True) == rb"long_hair, saber_\(fate\), ^_^" + b"\n"
    )
    line = b"trigger, long_hair, saber_(fate), ^_^, end,\n"
    options = {"prefix": "trigger", "suffix": "end", "trailing_separator": True}
    assert written("caption", tmp_path, *tags, **options) == line
    assert written("hydrus", tmp_path, *tags) == b"long hair\ncharacter:saber (fate)\n^_^\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.caption", "a.jpg.txt", "a.txt"]


@pytest.mark.parametrize(
    ("name", "category", "expected"),
    [
        ("hatsune_miku", "character", "character:hatsune miku"),
        ("vocaloid", "copyright", "series:vocaloid"),
        ("some_one", "artist", "creator:some one"),
        ("general", "rating", "rating:general"),
        ("highres", "meta", "meta:highres"),
        ("dog", "animal", "animal:dog"),
        ("o_o", "general", "o_o"),
        (">_<", "", ">_<"),
        ("24_7", "", "24_7"),
        ("\u72ac_\u732b", "", "\u72ac \u732b"),
        ("two\nlines_", "", "two lines"),
    ],
)
def test_hydrus_has_namespaces(name, category, expected, tmp_path):
    content = written("hydrus", tmp_path, Tag(name, 0.5, category))
    assert content.decode() == expected + "\n"


def test_a_json_file_is_the_record(tmp_path):
    record = from_line(written("json-files", tmp_path))
    assert isinstance(record, Annotation)
    assert record.tags == (DOG, RED)
    assert record.sources == {"tags": "starter@1.0"}
    strange = os.fsdecode(b"b\xff.jpg")
    item = Item.from_path(tmp_path / strange)
    open_sink("json-files", tmp_path, SinkOptions()).write(item, annotation_of(item))
    (path,) = tmp_path.glob("b*")
    assert json.loads(path.read_bytes())["image"] == item.image


# --- appending


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"my dog", b"my dog, dog, red\n"),
        (b"my dog, Dog,\n", b"my dog, Dog, red\n"),
        (b"  my dog,dog \r\n", b"  my dog,dog, red\r\n"),
        (b"\xef\xbb\xbfRED\n", b"\xef\xbb\xbfRED, dog\n"),
        (b"b\nmy dog\n", b"b\nmy dog\ndog\nred\n"),
        (b"b\r\nred\r\n", b"b\r\nred\r\ndog\r\n"),
        (b"A dog sits on a red sofa.\n", b"A dog sits on a red sofa., dog, red\n"),
        (b"a, b\nc\n", b"a, b\nc, dog, red\n"),
        (b"", b"dog, red\n"),
        (b" \n", b"dog, red\n"),
        (b"\xef\xbb\xbf", b"\xef\xbb\xbfdog, red\n"),
        (b"red,   dog", b"red,   dog"),
        ("Straße, rot".encode(), "Straße, rot, dog, red\n".encode()),
    ],
)
def test_what_a_person_wrote_stays_as_it_is(before, after, tmp_path):
    for form in ("txt", "caption"):
        (tmp_path / f"a{FORMATS[form]}").write_bytes(before)
        assert written(form, tmp_path, on_existing="append") == after
        assert written(form, tmp_path, on_existing="append") == after


def test_names_are_the_same_whatever_their_spelling(tmp_path):
    (tmp_path / "a.txt").write_text("Long hair, saber \\(fate\\)\n")
    tags = (Tag("long_hair", 0.9), Tag("saber_(fate)", 0.8), Tag("dog, or cat", 0.7))
    after = b"Long hair, saber \\(fate\\), dog, or cat\n"
    assert written("txt", tmp_path, *tags, on_existing="append") == after
    assert written("txt", tmp_path, *tags, on_existing="append") == after


def test_a_trigger_word_goes_to_the_front_and_is_there_once(tmp_path):
    (tmp_path / "a.txt").write_text("my dog\n")
    options = {"on_existing": "append", "prefix": "sks", "suffix": "4k", "trailing_separator": True}
    assert written("txt", tmp_path, **options) == b"sks, my dog, dog, red, 4k,\n"
    assert written("txt", tmp_path, **options) == b"sks, my dog, dog, red, 4k,\n"


def test_hydrus_adds_lines(tmp_path):
    (tmp_path / "a.jpg.txt").write_bytes(b"creator:me\r\nAnimal:Dog\r\n")
    after = b"creator:me\r\nAnimal:Dog\r\nred\r\n"
    assert written("hydrus", tmp_path, on_existing="append") == after


@pytest.mark.parametrize("form", ["txt", "caption", "hydrus"])
@given(
    text=texts,
    tags=st.lists(names, max_size=4),
    separator=st.sampled_from([", ", ",", " ", "; ", "\n"]),
)
@in_one_folder
def test_appending_loses_nothing_and_twice_is_once(form, text, tags, separator, tmp_path):
    place = tmp_path / f"a{FORMATS[form]}"
    place.write_bytes(text.encode())
    added = [Tag(name, 0.5) for name in tags] or [RED]
    first = written(form, tmp_path, *added, on_existing="append", separator=separator)
    assert first.decode().startswith(text.rstrip())
    assert written(form, tmp_path, *added, on_existing="append", separator=separator) == first


@pytest.mark.parametrize("form", ["txt", "caption", "hydrus", "json-files"])
def test_what_is_no_text_is_not_appended_to(form, tmp_path):
    place = tmp_path / f"a{FORMATS[form]}"
    for content in (b"\xff\xfea\0", b"caf\xe9"):
        place.write_bytes(content)
        with pytest.raises(SidecarError, match="nothing is a"):
            written(form, tmp_path, on_existing="append")
        assert place.read_bytes() == content


def test_a_record_keeps_all_that_is_in_it(tmp_path):
    place = tmp_path / "a.json"
    mine = {"note": "mine", "tags": [{"name": "Dog"}, {"name": "my_cat", "by": "me"}], "width": 7}
    place.write_text(json.dumps(mine), encoding="utf-8-sig")
    after = written("json-files", tmp_path, on_existing="append")
    found = json.loads(after)
    assert found["tags"] == [*mine["tags"], {"name": "red", "score": 0.8}]
    assert (found["note"], found["width"], found["height"]) == ("mine", 7, 30)
    assert found["sources"] == {"tags": "starter@1.0"}
    assert written("json-files", tmp_path, on_existing="append") == after


def test_a_second_model_adds_its_tags_and_its_name(tmp_path):
    written("json-files", tmp_path)
    item = Item.from_path(tmp_path / "a.jpg")
    other = Annotation(item.image, 40, 30, tags=(Tag("cat", 0.7),), sources={"tags": "joytag@1.0"})
    for _ in range(2):
        open_sink("json-files", None, SinkOptions(on_existing="append")).write(item, other)
    found = from_line((tmp_path / "a.json").read_bytes())
    assert isinstance(found, Annotation)
    assert [tag.name for tag in found.tags] == ["dog", "red", "cat"]
    assert found.sources == {"tags": "starter@1.0 + joytag@1.0"}


def test_names_are_added_where_only_names_are(tmp_path):
    (tmp_path / "a.json").write_text('{"tags": ["my dog", "RED"]}')
    found = json.loads(written("json-files", tmp_path, on_existing="append"))
    assert found["tags"] == ["my dog", "RED", "dog"]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(
    mine=st.dictionaries(
        names.filter(lambda name: name not in ("tags", "sources")), values, max_size=4
    ),
    tags=st.lists(
        st.builds(lambda name, more: {**more, "name": name}, names, st.dictionaries(names, values))
    ),
)
@in_one_folder
def test_a_record_loses_nothing_and_twice_is_once(mine, tags, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({**mine, "tags": tags}))
    first = written("json-files", tmp_path, on_existing="append")
    found = json.loads(first)
    assert {name: found[name] for name in mine} == mine
    assert found["tags"][: len(tags)] == tags
    assert {"dog", "red"} <= {tag["name"].casefold().strip().strip("_") for tag in found["tags"]}
    assert written("json-files", tmp_path, on_existing="append") == first


@pytest.mark.parametrize(
    "content",
    [
        "[1]",
        '{"tags": "a b"}',
        '{"tags": [1]}',
        '{"tags": [{"score": 1}]}',
        '{"a": 1, "a": 2}',
        '{"a": ',
        "[" * 100_000,
        "hello",
    ],
)
def test_json_of_another_form_is_left_alone(content, tmp_path):
    place = tmp_path / "a.json"
    place.write_text(content)
    with pytest.raises(SidecarError, match=r"a\.json (is|has) .*nothing is added to it"):
        written("json-files", tmp_path, on_existing="append")
    assert place.read_text() == content


# --- existing files, whose they are, and writes that fail


@pytest.mark.parametrize("form", ["txt", "caption", "hydrus", "json-files"])
def test_what_is_there_is_skipped_or_overwritten(form, tmp_path):
    place = tmp_path / f"a{FORMATS[form]}"
    place.write_bytes(b"mine \xff")
    assert written(form, tmp_path) == b"mine \xff"
    after = written(form, tmp_path, on_existing="overwrite")
    place.unlink()
    assert after == written(form, tmp_path)


def test_a_file_that_a_person_wrote_during_the_run_is_not_lost(tmp_path):
    item = Item.from_path(tmp_path / "a.jpg")
    sink = open_sink("txt", None, SinkOptions())
    assert not sink.holds(item)
    (tmp_path / "a.txt").write_text("mine\n")
    sink.write(item, annotation_of(item, DOG))
    assert (tmp_path / "a.txt").read_text() == "mine\n"


def test_names_that_differ_in_case_alone_are_two_files_where_they_are(tmp_path):
    sink = open_sink("txt", None, SinkOptions())
    items = [Item.from_path(tmp_path / name) for name in ("a.jpg", "A.png")]
    for item in items:
        assert not sink.holds(item)
    for item in items:
        sink.write(item, annotation_of(item, DOG))
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "A.txt"}
    again = open_sink("txt", None, SinkOptions())
    assert all(again.holds(item) for item in items)


@pytest.mark.parametrize("is_done_before", [True, False])
def test_names_that_differ_in_case_alone_are_one_file_where_case_is_ignored(
    is_done_before, tmp_path, monkeypatch
):
    class Entries(list):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    # Such a file system opens a file by any case and lists it by one: here by a second link that is not listed.
    real = os.scandir
    monkeypatch.setattr(
        os, "scandir", lambda path: Entries(e for e in real(path) if e.name != "A.txt")
    )
    first, second = (Item.from_path(tmp_path / name) for name in ("a.jpg", "A.png"))
    sink = open_sink("txt", None, SinkOptions())
    if is_done_before:
        sink.write(first, annotation_of(first, DOG))
        os.link(tmp_path / "a.txt", tmp_path / "A.txt")
    assert sink.holds(first) == is_done_before
    assert not sink.holds(second)
    if not is_done_before:
        sink.write(first, annotation_of(first, DOG))
        os.link(tmp_path / "a.txt", tmp_path / "A.txt")
    with pytest.raises(SidecarError, match="another image of this run wants the sidecar"):
        sink.write(second, annotation_of(second, RED))
    assert (tmp_path / "a.txt").read_text() == "dog\n"


def test_a_sidecar_never_is_the_settings_of_the_run(tmp_path):
    (tmp_path / "annotary.run.json").write_text("{}")
    item = Item.from_path("annotary.run.jpg")
    for mode in ("skip", "append", "overwrite"):
        with pytest.raises(SidecarError, match="the settings of the run"):
            open_sink("json-files", tmp_path, SinkOptions(on_existing=mode)).write(
                item, annotation_of(item)
            )
    assert (tmp_path / "annotary.run.json").read_text() == "{}"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(SidecarError, match="no ordinary file"):
        written("txt", tmp_path, on_existing="append")


@pytest.mark.parametrize("step", ["write", "copystat", "replace"])
@pytest.mark.parametrize("form", FORMATS)
def test_a_write_that_fails_anywhere_leaves_the_old_file(form, step, tmp_path, monkeypatch):
    place = tmp_path / f"a{FORMATS[form]}"
    before = written(form, tmp_path)

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if step == "write":
            patch.setattr("pathlib.Path.open", lambda path, *_: Full(path))
        else:
            patch.setattr(f"{'shutil' if step == 'copystat' else 'os'}.{step}", fail)
        with pytest.raises(OutputError, match="No space left"):
            written(form, tmp_path, Tag("new", 0.5), on_existing="overwrite")
    assert place.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [place.name]
    assert b"new" in written(form, tmp_path, Tag("new", 0.5), on_existing="overwrite")


def test_a_killed_process_leaves_the_old_file_and_its_leavings_are_used_up(tmp_path):
    code = """
import os, sys
from pathlib import Path
from annotary.sinks import write_atomically
os.replace = lambda *_: os.kill(os.getpid(), 9)
write_atomically(Path(sys.argv[1]), b"new")
"""
    before = written("txt", tmp_path)
    killed = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.txt"], env=child_environment(), check=False
    )
    assert killed.returncode == -9
    assert (tmp_path / "a.txt").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2
    written("txt", tmp_path, on_existing="overwrite")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


WRITE_OFTEN = """
import sys
from pathlib import Path
from annotary.sinks import write_atomically
for _ in range(200):
    write_atomically(Path(sys.argv[1]), sys.argv[2] * 300_000)
"""


def test_processes_that_write_one_file_tear_nothing(tmp_path):
    place = tmp_path / "a.txt"
    write_atomically(place, "a" * 300_000)
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITE_OFTEN, place, letter], env=child_environment()
        )
        for letter in "abc"
    ]
    while any(writer.poll() is None for writer in writers):
        content = place.read_bytes()
        assert len(content) == content.count(content[:1]) == 300_000
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("has_locks", [True, False])
def test_a_second_writer_does_not_write_into_the_file_of_the_first(
    has_locks, tmp_path, monkeypatch
):
    if not has_locks:
        monkeypatch.setitem(sys.modules, "fcntl", None)
        monkeypatch.setattr(os, "getpid", threading.get_ident)  # as if threads were processes
    place = tmp_path / "a.txt"
    second = threading.Thread(target=write_atomically, args=(place, b"second"))
    with replacing(place) as file:
        file.write(b"one ")
        second.start()
        second.join(0.1 if has_locks else None)
        file.write(b"whole")
        file.flush()
        assert {path.read_bytes() for path in tmp_path.iterdir()} <= {b"one whole", b"second", b""}
    second.join()
    assert place.read_bytes() == (b"second" if has_locks else b"one whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_leavings_that_cannot_be_written_do_not_stop_anybody(tmp_path):
    place, other = tmp_path / "a.txt", tmp_path / "mine.txt"
    other.write_bytes(b"mine")
    with replacing(place):
        (temporary,) = [path for path in tmp_path.iterdir() if path != other]
    place.unlink()
    temporary.symlink_to(other)
    write_atomically(place, b"new")
    assert (place.read_bytes(), other.read_bytes()) == (b"new", b"mine")


# --- what is read


@pytest.mark.parametrize("on_existing", ["skip", "append", "overwrite"])
@pytest.mark.parametrize("spelling", ["list.txt", "./list.txt", "link", "-"])
def test_a_list_beside_its_images_is_not_written_over(spelling, on_existing, tmp_path):
    code = """
import sys
from annotary.errors import SidecarError
from annotary.records import Annotation, Item
from annotary.sinks import SinkOptions, open_sink
for full_names in (False, True):
    sink = open_sink("txt", None, SinkOptions(on_existing=sys.argv[1], full_names=full_names))
    sink.protect([sys.argv[2], "no.jpg", "https://x.org/a.jpg"])
    item = Item.from_path("list.jpg")
    assert not sink.holds(item)
    try:
        sink.write(item, Annotation("list.jpg", 1, 1))
    except SidecarError as error:
        print(error)
"""
    (tmp_path / "list.txt").write_bytes(b"list.jpg\n")
    (tmp_path / "link").symlink_to("list.txt")
    with (tmp_path / "list.txt").open("rb") as standard_input:
        run = subprocess.run(
            [sys.executable, "-c", code, on_existing, spelling],
            env=child_environment(),
            stdin=standard_input if spelling == "-" else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            check=True,
        )
    message = b"its sidecar would be list.txt, which is read; say --full-names or --output\n"
    assert run.stdout == message
    assert (tmp_path / "list.txt").read_bytes() == b"list.jpg\n"
    assert (tmp_path / "list.jpg.txt").exists()


def test_a_list_in_the_folder_of_the_output_is_not_written_over_either(tmp_path):
    place = tmp_path / "tags" / "a.jpg.txt"
    place.parent.mkdir()
    place.write_bytes(b"a.jpg\n")
    sink = open_sink("hydrus", place.parent, SinkOptions())
    sink.protect([place])
    item = Item.from_path("a.jpg")
    assert not sink.holds(item)
    with pytest.raises(SidecarError, match=r"a\.jpg\.txt, which is read; say --output"):
        sink.write(item, annotation_of(item))
    assert place.read_bytes() == b"a.jpg\n"


def test_settings_of_runs_are_no_sidecars(tmp_path):
    for name in ("a.jpg", "dog.run.jpg"):
        item = Item.from_path(tmp_path / name)
        open_sink("json-files", None, SinkOptions()).write(item, annotation_of(item, DOG))
    settings = {"settings": {"model": "m"}, "failures": "failures.jsonl", "complete": True}
    for name in ("annotary.run.json", "out.jsonl.run.json"):
        (tmp_path / name).write_text(json.dumps(settings, indent=1) + "\n")
    found = list(read_tags("json-files", tmp_path, SinkOptions()))
    assert [(image, tags) for image, tags in found] == [
        ("a", (("dog", 0.9),)),
        ("dog.run", (("dog", 0.9),)),
    ]


class Full:
    """A file on a disk that is full: half of what is written stands."""

    def __init__(self, path: Path) -> None:
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT), "rb+")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)

    def write(self, data: bytes) -> int:
        self._file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
