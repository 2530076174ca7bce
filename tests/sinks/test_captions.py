"""Captions in every format that can hold them: as lines of text, as a description, and in tables."""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from annotary.records import Annotation, Caption, Item, Label, Tag
from annotary.sinks import SinkOptions, format_named, open_sink, read_tags
from tests.sinks.xmp_samples import DIGIKAM, LIGHTROOM, RATING

R = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
DESCRIPTION = "{http://purl.org/dc/elements/1.1/}description"
SUBJECT = "{http://purl.org/dc/elements/1.1/}subject"
LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"

ONE = (Caption("a dog, running (fast)\non a beach", 0.5, 0.75),)
TWO = (*ONE, Caption("a dog", 0.25), Caption("  "), Caption("a dog"))
DOG = (Tag("dog", 0.9), Tag("beach", 0.8))
LINE = "a dog, running (fast) on a beach"

in_one_folder = settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


def told(name: str, captions=ONE, tags=(), **parts) -> Annotation:
    sources = {"captions": "blip@1", **({"tags": "starter@1"} if tags else {})}
    return Annotation(name, 40, 30, captions=captions, tags=tags, sources=sources, **parts)


def write(form: str, output: Path | None, found: Annotation, *parts: str, **options) -> None:
    sink = open_sink(form, output, SinkOptions(**options), parts or ("captions",))
    item = Item(found.image, path=Path(found.image), relative=Path(found.image).name)
    if format_named(form).needs_bytes:
        item = Item(found.image, data=b"\xff\xd8\xff", relative=Path(found.image).name)
    if not sink.holds(item):
        sink.write(item, found)
    sink.close(complete=True)


# --- lines of text ---


@pytest.mark.parametrize("form", ["txt", "caption"])
def test_the_caption_is_the_line(form, tmp_path):
    place = tmp_path / f"a.{form}"
    name = str(tmp_path / "a.jpg")
    write(form, None, told(name))
    assert place.read_text() == f"{LINE}\n"
    options = {"on_existing": "overwrite", "prefix": "sks", "suffix": "end"}
    write(form, None, told(name, tags=DOG), "tags", "captions", **options)
    assert place.read_text() == f"sks, {LINE}, dog, beach, end\n"
    write(form, None, told(name), on_existing="overwrite", escape=True, trailing_separator=True)
    assert place.read_text() == "a dog, running \\(fast\\) on a beach,\n"
    write(form, None, told(name, ()), on_existing="overwrite")
    assert place.read_text() == "\n"


def test_several_captions_are_lines_as_wildcards_want_them(tmp_path):
    """With `enable_wildcard` sd-scripts takes one of the lines, and without it the first."""
    write("txt", None, told(str(tmp_path / "a.jpg"), TWO, DOG), "tags", "captions")
    lines = (tmp_path / "a.txt").read_text().splitlines()
    assert lines == [f"{LINE}, dog, beach", "a dog, dog, beach"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("my dog, beach\n", f"my dog, beach, {LINE}, dog\n"),
        (f"{LINE}\n", f"{LINE}, dog, beach\n"),
        (f"{LINE.upper()}, Dog\n", f"{LINE.upper()}, Dog, beach\n"),
        (f"mine, {LINE}, dog, beach", f"mine, {LINE}, dog, beach"),
        ("", f"{LINE}, dog, beach\n"),
    ],
)
def test_a_caption_is_added_once(before, after, tmp_path):
    place = tmp_path / "a.txt"
    place.write_text(before)
    for _ in range(2):
        write(
            *("txt", None, told(str(tmp_path / "a.jpg"), tags=DOG), "tags", "captions"),
            on_existing="append",
        )
        assert place.read_text() == after


@in_one_folder
@given(
    st.lists(st.builds(Caption, words), max_size=3).map(tuple),
    st.lists(st.builds(Tag, words, st.just(0.5)), max_size=3).map(tuple),
    st.booleans(),
)
def test_what_was_written_is_not_added_again(tmp_path, captions, tags, escape):
    place, found = tmp_path / "a.txt", told(str(tmp_path / "a.jpg"), captions, tags)
    place.unlink(missing_ok=True)
    write("txt", None, found, "tags", "captions", escape=escape)
    first = place.read_bytes()
    write("txt", None, found, "tags", "captions", escape=escape, on_existing="append")
    assert place.read_bytes() == first


def test_kohya_has_captions_and_tags_apart(tmp_path):
    """sd-scripts puts the tags behind each line of the caption by itself."""
    name, path = str(tmp_path / "a.jpg"), tmp_path / "meta.json"
    options = {"prefix": "sks", "suffix": "end", "trailing_separator": True}
    write("kohya", path, told(name, TWO, DOG), "tags", "captions", **options)
    write("kohya", path, told(f"{name}2"), "tags", "captions", **options)
    write("kohya", path, told(f"{name}3", (), DOG), "tags", "captions", **options)
    first, second, third = json.loads(path.read_bytes()).values()
    assert first == {"caption": f"sks, {LINE}\nsks, a dog", "tags": "dog, beach, end,"}
    assert second == {"caption": f"sks, {LINE}, end,"}
    assert third == {"tags": "sks, dog, beach, end,"}
    assert [len(tags) for _, tags in read_tags("kohya", path, SinkOptions())] == [3, 0, 4]
    # What sd-scripts makes of them, without and with wildcards.
    assert ", ".join((first["caption"], first["tags"])).split("\n")[0] == f"sks, {LINE}"
    lines = [f"{line}, {first['tags']}" for line in first["caption"].split("\n")]
    assert lines == [f"sks, {LINE}, dog, beach, end,", "sks, a dog, dog, beach, end,"]


@pytest.mark.parametrize(
    ("form", "output", "part"),
    [("kohya-jsonl", "meta.jsonl", "caption"), ("imagefolder", "metadata.jsonl", "text")],
)
def test_lines_of_tables(form, output, part, tmp_path):
    path = tmp_path / output
    write(form, path, told(str(tmp_path / "a.jpg"), TWO, DOG), "tags", "captions")
    row = json.loads(path.read_text())
    assert row[part] == f"{LINE}, dog, beach\na dog, dog, beach"
    if form == "imagefolder":
        assert row["captions"] == [caption.text for caption in TWO]
        assert row["caption_scores"] == [0.5, 0.25, None, None]
        assert row["caption_matches"] == [0.75, None, None, None]
        bare = tmp_path / "b" / output
        write(form, bare, told(str(tmp_path / "b" / "a.jpg")))
        assert list(read_tags(form, bare, SinkOptions())) == [("a.jpg", ())]


def test_the_text_of_a_tar(tmp_path):
    write("webdataset", tmp_path / "a.tar", told("a.jpg", tags=DOG), "tags", "captions")
    with tarfile.open(tmp_path / "a.tar") as tar:
        text = tar.extractfile("a.txt").read()  # type: ignore[union-attr]
    assert text.decode() == f"{LINE}, dog, beach"


# --- the description of XMP ---


def descriptions(content: bytes) -> list[tuple[str, str]]:
    """Language and text of each entry, as Python's own parser finds them."""
    root = ElementTree.fromstring(content.decode("utf-8-sig").strip())
    return [
        (entry.get(LANGUAGE, ""), entry.text or "")
        for element in root.iter(DESCRIPTION)
        for entry in element.iter(f"{R}li")
    ]


def described(place: Path, found: Annotation | None = None, *parts: str, **options) -> bytes:
    write("xmp", None, found or told(str(place.with_name("a.jpg"))), *parts, **options)
    return place.read_bytes()


def test_the_best_caption_is_the_description(tmp_path):
    place = tmp_path / "a.xmp"
    first = described(place, told(str(tmp_path / "a.jpg"), TWO))
    assert descriptions(first) == [("x-default", LINE)]
    item = Item.from_path(tmp_path / "a.jpg")
    assert open_sink("xmp", None, SinkOptions(), ("captions",)).holds(item)
    assert not open_sink("xmp", None, SinkOptions(), ("tags",)).holds(item)
    for mode in ("skip", "append", "overwrite"):
        assert described(place, told(str(tmp_path / "a.jpg"), TWO), on_existing=mode) == first
    tagged = described(place, told(str(tmp_path / "a.jpg"), (), DOG), "tags")
    assert descriptions(tagged) == [("x-default", LINE)]
    assert b"<rdf:li>dog</rdf:li>" in tagged


def test_annotary_replaces_what_it_wrote_when_asked(tmp_path):
    place, name = tmp_path / "a.xmp", str(tmp_path / "a.jpg")
    described(place)
    other = told(name, (Caption("a cat"),))
    assert descriptions(described(place, other, on_existing="append")) == [("x-default", LINE)]
    again = described(place, other, on_existing="overwrite")
    assert descriptions(again) == [("x-default", "a cat")]
    gone = described(place, told(name, ()), on_existing="overwrite")
    assert descriptions(gone) == []
    assert b"cat" not in gone


@pytest.mark.parametrize("mode", ["skip", "append", "overwrite"])
def test_what_a_person_wrote_stays(mode, tmp_path):
    place = tmp_path / "a.xmp"
    ours = described(place)
    # Changed, taken out, or said in another language as well.
    for person in (
        ours.replace(LINE.encode(), b"my dog Bello", 1),
        ours.replace(b"</rdf:Alt>", b'<rdf:li xml:lang="de">Hund</rdf:li></rdf:Alt>'),
    ):
        place.write_bytes(person)
        assert descriptions(described(place, on_existing=mode)) == descriptions(person)
    start, end = ours.index(b"<dc:description>"), ours.index(b"</dc:description>") + 17
    place.write_bytes(ours[:start] + ours[end:])
    expected = [("x-default", LINE)] if mode == "overwrite" else []
    assert descriptions(described(place, on_existing=mode)) == expected


@pytest.mark.parametrize(
    "sample", [LIGHTROOM, DIGIKAM, RATING], ids=["lightroom", "digikam", "rating"]
)
@pytest.mark.parametrize("mode", ["append", "overwrite"])
def test_all_else_stays(sample, mode, tmp_path):
    place = tmp_path / "a.xmp"
    place.write_bytes(sample.encode())
    before = descriptions(sample.encode())
    after = described(place, on_existing=mode)
    assert descriptions(after) == (before or [("x-default", LINE)])
    left = iter(after.decode())
    assert all(letter in left for letter in sample)


@pytest.mark.parametrize(
    "blank",
    [
        '<dc:description><rdf:Alt><rdf:li xml:lang="x-default"/></rdf:Alt></dc:description>',
        "<dc:description> </dc:description>",
    ],
)
def test_a_blank_description_is_none(blank, tmp_path):
    place = tmp_path / "a.xmp"
    described(place, told(str(tmp_path / "a.jpg"), (), DOG), "tags")
    packet = place.read_text().replace("<dc:subject>", f"{blank}<dc:subject>")
    place.write_text(packet)
    assert [text for _, text in descriptions(described(place))] == [LINE]


@pytest.mark.parametrize(
    "strange",
    [
        '<dc:description rdf:resource="http://x/dog"/>',
        "<dc:description><!-- to do --></dc:description>",
        '<dc:description rdf:parseType="Resource"> </dc:description>',
    ],
)
@pytest.mark.parametrize("mode", ["append", "overwrite"])
def test_a_description_that_is_no_text_stays(strange, mode, tmp_path):
    place = tmp_path / "a.xmp"
    described(place, told(str(tmp_path / "a.jpg"), (), DOG), "tags")
    place.write_text(place.read_text().replace("<dc:subject>", f"{strange}<dc:subject>"))
    assert strange.encode() in described(place, on_existing=mode)
    assert LINE not in place.read_text()


@in_one_folder
@given(words, words)
def test_any_text_comes_back(tmp_path, first, second):
    place, name = tmp_path / "a.xmp", str(tmp_path / "a.jpg")
    place.unlink(missing_ok=True)
    for text in (first, second):
        after = described(place, told(name, (Caption(text),)), on_existing="overwrite")
        kept = "".join(c if c.isprintable() or c == " " else "?" for c in " ".join(text.split()))
        found = [text for _, text in descriptions(after)]
        assert len(found) == bool(kept)
        if text.isprintable() and kept:
            assert found == [kept]


@pytest.mark.parametrize("embed", [False, True])
def test_exiv2_reads_the_description(embed, tmp_path):
    """Exiv2 is what digiKam and darktable read XMP with."""
    exiv2 = pytest.importorskip("exiv2")
    place = tmp_path / "a.jpg"
    Image.new("RGB", (8, 8)).save(place)
    write("xmp", None, told(str(place), tags=DOG), "tags", "captions", embed=embed)
    image = exiv2.ImageFactory.open(str(place if embed else tmp_path / "a.xmp"))
    image.readMetadata()
    data = image.xmpData()
    assert str(data["Xmp.dc.description"].toString()) == f'lang="x-default" {LINE}'
    assert "dog" in str(data["Xmp.dc.subject"].toString())


def test_a_caption_in_the_image_itself(tmp_path):
    place = tmp_path / "a.jpg"
    Image.new("RGB", (8, 8)).save(place)
    with Image.open(place) as image:
        pixels = image.tobytes()
    write("xmp", None, told(str(place)), embed=True)
    with Image.open(place) as image:
        assert image.tobytes() == pixels
        assert descriptions(image.info["xmp"].split(b"?>", 1)[1].rsplit(b"<?", 1)[0])[0][1] == LINE


# --- records ---


def test_records_keep_captions_matches_and_answers(tmp_path):
    from annotary.records import Answer, Box, Match

    found = told(
        "a.jpg",
        TWO,
        DOG,
        labels=(Label("x", 0.5),),
        answers=(Answer("how many?", "two", 0.5), Answer("where?", "there")),
        matches=(Match("a dog", 0.5, -0.25), Match("a cat", 0.125)),
        boxes=(Box("dog", 0.5, (0.5, 1.0, 3.25, 4.0)),),
    )
    parts = ("tags", "labels", "captions", "answers", "matches", "boxes")
    write("jsonl", tmp_path / "a.jsonl", found, *parts)
    write("json", tmp_path / "a.json", found, *parts)
    write("webdataset", tmp_path / "a.tar", found, *parts)
    write("json-files", tmp_path / "files", found, *parts)
    with tarfile.open(tmp_path / "a.tar") as tar:
        member = tar.extractfile("a.json").read()  # type: ignore[union-attr]
    for text in (
        (tmp_path / "a.jsonl").read_bytes(),
        json.dumps(json.loads((tmp_path / "a.json").read_bytes())[0]),
        member,
        (tmp_path / "files" / "a.json").read_bytes(),
    ):
        assert Annotation.from_json(json.loads(text)) == found
    # A part that is there stays when others are added.
    more = replace(found, captions=ONE, boxes=())
    write("json-files", tmp_path / "files", more, *parts, on_existing="append")
    kept = json.loads((tmp_path / "files" / "a.json").read_bytes())
    assert Annotation.from_json(kept) == found
