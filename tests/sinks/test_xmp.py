"""XMP sidecars: independent readers find the tags, and everything that others wrote stays byte for byte."""

from __future__ import annotations

import json
import shutil
import subprocess
import unicodedata
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annotary.errors import SidecarError, UsageError
from annotary.records import Annotation, Item, Tag
from annotary.sinks import SinkOptions, open_sink
from tests.sinks.xmp_samples import DIGIKAM, LIGHTROOM, RATING, WITH_TAGS

R = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
SUBJECT = "{http://purl.org/dc/elements/1.1/}subject"
HIERARCHY = "{http://ns.adobe.com/lightroom/1.0/}hierarchicalSubject"
TAGS_LIST = "{http://www.digikam.org/ns/1.0/}TagsList"
TAGGED = "{urn:annotary:xmp:1.0/}tagged"

TAGS = (Tag("dog", 0.9, "animal"), Tag("long hair", 0.8, "general"), Tag(":|", 0.7))


def write(place: Path, tags=TAGS, source="starter@1.0", **options) -> bytes:
    """What becomes of the sidecar `a.xmp`."""
    item = Item.from_path(place.with_name("a.jpg"))
    sink = open_sink("xmp", None, SinkOptions(**options))
    if not sink.holds(item):
        sink.write(item, Annotation(item.image, 4, 3, tags=tags, sources={"tags": source}))
    sink.close(complete=True)
    return place.read_bytes()


def entries(content: bytes, name: str) -> list[str]:
    """A list's entries, or a property's value, as Python's own parser finds them."""
    found = []
    for element in ElementTree.fromstring(content.decode("utf-8-sig").strip()).iter(name):
        found += [entry.text or "" for entry in element.iter(f"{R}li")] or [element.text or ""]
    return found


def test_a_new_sidecar(tmp_path):
    content = write(tmp_path / "a.xmp")
    assert entries(content, SUBJECT) == ["dog", "long hair", ":|"]
    assert entries(content, HIERARCHY) == ["animal|dog", "general|long hair", ":\uff5c"]
    assert entries(content, TAGS_LIST) == ["animal/dog", "general/long hair", ":|"]
    assert entries(content, TAGGED) == ["starter@1.0"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.xmp"]
    write(tmp_path / "a.jpg.xmp", full_names=True)
    assert (tmp_path / "a.jpg.xmp").read_bytes() == content


def test_separators_in_names_are_look_alikes(tmp_path):
    content = write(tmp_path / "a.xmp", (Tag("fate/stay|night", 0.9, "a|b/c"),))
    assert entries(content, SUBJECT) == ["fate/stay|night"]
    assert entries(content, HIERARCHY) == ["a\uff5cb/c|fate/stay\uff5cnight"]
    assert entries(content, TAGS_LIST) == ["a|b\uff0fc/fate\uff0fstay|night"]


@pytest.mark.parametrize("sample", WITH_TAGS.values(), ids=WITH_TAGS)
@pytest.mark.parametrize("mode", ["skip", "append", "overwrite"])
def test_all_that_others_wrote_stays(sample, mode, tmp_path):
    place = tmp_path / "a.xmp"
    place.write_bytes(sample.encode())
    content = write(place, on_existing=mode)
    assert [entry.casefold() for entry in entries(content, SUBJECT)] == [
        "dog",
        "wien",
        "long hair",
        ":|",
    ]
    # Without what was put in, it is the same, byte for byte.
    left = iter(content.decode())
    assert all(letter in left for letter in sample)
    assert write(place, on_existing=mode) == content
    hierarchy = entries(content, HIERARCHY)
    assert not {"animal|dog"} & set(hierarchy)  # a person has put it elsewhere
    assert "general|long hair" in hierarchy
    if "TagsList" in sample:
        assert entries(content, TAGS_LIST) == ["Tiere/dog", "Orte/Wien", "general/long hair", ":|"]
    else:
        assert not entries(content, TAGS_LIST)


def test_overwriting_takes_away_only_what_annotary_wrote(tmp_path):
    place = tmp_path / "a.xmp"
    for sample in WITH_TAGS.values():
        place.write_bytes(sample.encode())
        write(place)
        content = write(place, (Tag("cat", 0.9, "animal"),), "joytag@1.0", on_existing="overwrite")
        subjects = [entry.casefold() for entry in entries(content, SUBJECT)]
        assert subjects == ["dog", "wien", "cat"]
        assert entries(content, TAGGED) == ["joytag@1.0"]
        content = write(place, (), "joytag@1.0", on_existing="overwrite")
        assert [entry.casefold() for entry in entries(content, SUBJECT)] == ["dog", "wien"]
        assert sorted(entries(content, HIERARCHY)) == sorted(
            entries(sample.encode(), HIERARCHY) or ["dog", "Wien"]
        )


def test_appending_of_a_second_model_adds_to_the_first(tmp_path):
    place = tmp_path / "a.xmp"
    write(place)
    content = write(place, (Tag("Dog", 0.9), Tag("cat", 0.8)), "joytag@1.0", on_existing="append")
    assert entries(content, SUBJECT) == ["dog", "long hair", ":|", "cat"]
    assert entries(content, TAGGED) == ["starter@1.0 + joytag@1.0"]


def test_a_tag_that_a_person_took_out_is_not_put_back(tmp_path):
    place = tmp_path / "a.xmp"
    text = write(place).decode()
    place.write_text(text.replace("     <rdf:li>dog</rdf:li>\n", "", 1))
    content = write(place, on_existing="append")
    assert entries(content, SUBJECT) == ["long hair", ":|"]
    content = write(place, on_existing="overwrite")
    assert sorted(entries(content, SUBJECT)) == [":|", "dog", "long hair"]


def test_a_sidecar_of_another_program_is_not_done_and_one_of_ours_is(tmp_path):
    place = tmp_path / "a.xmp"
    item = Item.from_path(tmp_path / "a.jpg")
    sinks = (open_sink("xmp", None, SinkOptions()) for _ in range(4))
    assert not next(sinks).holds(item)
    place.write_text(LIGHTROOM)
    assert not next(sinks).holds(item)
    write(place)
    assert next(sinks).holds(item)
    place.write_text("<broken")
    assert not next(sinks).holds(item)
    assert open_sink("xmp", None, SinkOptions(on_existing="append")).holds(item) is False


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize(
    ("properties", "is_done"),
    [
        ('xmlns:a="urn:annotary:xmp:1.0/" a:tagged="starter@1.0"/>', True),
        ("xmlns:b.c = 'urn:annotary:xmp:1.0/'><b.c:tagged>x</b.c:tagged></rdf:Description>", True),
        ('xmlns:a="urn:annotary:xmp:1.0/" a:tag="x"/>', False),
        ('xmlns:a="urn:annotary:xmp:1.0/" xmlns:b="urn:b/" b:tagged="x"/>', False),
        ('xmlns:annotary="urn:b/" annotary:tagged="x"/>', False),
    ],
)
def test_what_is_done_is_told_whoever_wrote_it_anew(properties, is_done, encoding, tmp_path):
    text = (
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" {properties}</rdf:RDF>'
    )
    (tmp_path / "a.xmp").write_text(text, encoding=encoding)
    assert (
        open_sink("xmp", None, SinkOptions()).holds(Item.from_path(tmp_path / "a.jpg")) == is_done
    )
    after = write(tmp_path / "a.xmp", source="joytag@1.0", on_existing="overwrite")
    assert entries(after.decode(encoding).encode(), TAGGED) == ["joytag@1.0"]


def test_an_image_without_tags_is_done(tmp_path):
    content = write(tmp_path / "a.xmp", ())
    assert entries(content, TAGGED) == ["starter@1.0"]
    assert not entries(content, SUBJECT)
    assert open_sink("xmp", None, SinkOptions()).holds(Item.from_path(tmp_path / "a.jpg"))


QUALIFIED = '<rdf:li rdf:parseType="Resource"><rdf:value>b</rdf:value></rdf:li>'


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ('<rdf:Description rdf:about="" dc:subject="dog"/>', ["dog"]),
        ('<rdf:Description rdf:about="" dc:subject="dog"></rdf:Description>', ["dog"]),
        (
            "<rdf:Description><dc:subject>a dog &amp; cat</dc:subject></rdf:Description>",
            ["a dog & cat"],
        ),
        ("<rdf:Description><dc:subject/></rdf:Description>", []),
        ("<rdf:Description><dc:subject><rdf:Bag/></dc:subject></rdf:Description>", []),
        ("<rdf:Description><dc:subject><rdf:Bag  /></dc:subject></rdf:Description>", []),
        ("<rdf:Description><dc:subject><rdf:Alt></rdf:Alt></dc:subject></rdf:Description>", []),
        (
            f"<rdf:Description><dc:subject><rdf:Bag>{QUALIFIED}</rdf:Bag></dc:subject></rdf:Description>",
            ["b"],
        ),
        ("", []),
    ],
)
def test_every_form_of_a_list_is_understood(form, expected, tmp_path):
    place = tmp_path / "a.xmp"
    exiv2 = pytest.importorskip("exiv2")
    place.write_text(
        '<?xml version="1.0"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"'
        f' xmlns:dc="http://purl.org/dc/elements/1.1/">{form}</rdf:RDF></x:xmpmeta>'
    )
    content = write(place, (Tag("red", 0.9),))
    image = exiv2.ImageFactory.open(str(place))
    image.readMetadata()
    found = list(image.xmpData()["Xmp.dc.subject"].value())
    assert sorted(found) == sorted([*expected, "red"])
    assert write(place, (Tag("red", 0.9),), on_existing="append") == content


@pytest.mark.parametrize(
    "subject",
    [
        '<dc:subject rdf:resource="http://x/dog"/>',
        '<dc:subject rdf:parseType="Resource"><rdf:value>dog</rdf:value></dc:subject>',
        "<dc:subject>dog<!-- mine --></dc:subject>",
        '<dc:subject xml:lang="en">dog</dc:subject>',
    ],
)
def test_a_form_that_would_lose_something_is_refused(subject, tmp_path):
    place = tmp_path / "a.xmp"
    place.write_text(
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"'
        ' xmlns:dc="http://purl.org/dc/elements/1.1/">'
        f"<rdf:Description>{subject}</rdf:Description></rdf:RDF>"
    )
    before = place.read_bytes()
    with pytest.raises(SidecarError, match="has keywords in a form that is not known"):
        write(place)
    assert place.read_bytes() == before


def test_prefixes_that_an_element_declares_stay(tmp_path):
    place = tmp_path / "a.xmp"
    rdf = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
    for tagged in (">x@1</a:tagged>", "/>"):
        own = f'<a:tagged xmlns:a="urn:annotary:xmp:1.0/"{tagged}'
        subject = f'<d:subject xmlns:d="http://purl.org/dc/elements/1.1/"><o:Seq xmlns:o="{rdf}"/></d:subject>'
        place.write_text(
            f'<rdf:RDF xmlns:rdf="{rdf}"><rdf:Description>{own}{subject}</rdf:Description></rdf:RDF>'
        )
        content = write(place, on_existing="overwrite")
        assert entries(content, TAGGED) == ["starter@1.0"]
        assert entries(content, SUBJECT) == ["dog", "long hair", ":|"]


def test_an_image_without_tags_changes_no_list_of_others(tmp_path):
    place = tmp_path / "a.xmp"
    place.write_bytes(WITH_TAGS["exiftool"].encode())
    content = write(place, ())
    assert entries(content, SUBJECT) == ["dog", "Wien"]
    assert not entries(content, HIERARCHY)


def test_an_empty_rdf_and_an_empty_file_are_filled(tmp_path):
    place = tmp_path / "a.xmp"
    for content in (
        b"",
        b" \n",
        b'<R:RDF xmlns:R="http://www.w3.org/1999/02/22-rdf-syntax-ns#"/>',
        b'<RDF xmlns="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><Description/></RDF>',
        RATING.encode(),
    ):
        place.write_bytes(content)
        assert entries(write(place), SUBJECT) == ["dog", "long hair", ":|"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "iso-8859-1", "ascii"])
def test_a_document_keeps_its_encoding(encoding, tmp_path):
    place = tmp_path / "a.xmp"
    text = RATING if "utf" in encoding else f'<?xml version="1.0" encoding="{encoding}"?>{RATING}'
    place.write_bytes(text.encode(encoding))
    content = write(place, (Tag("Straße", 0.9), Tag("犬", 0.8)))
    root = ElementTree.fromstring(content)
    assert [entry.text for entry in next(root.iter(SUBJECT)).iter(f"{R}li")] == ["Straße", "犬"]
    if encoding != "utf-8-sig":
        content.decode(encoding)
    assert write(place, (Tag("Straße", 0.9),), on_existing="append") == content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<x", "is damaged XML"),
        (LIGHTROOM.encode()[:-20], "is damaged XML"),
        (b"hello", "is damaged XML"),
        (b"\xff\xd8\xff\xe0", "is damaged: it is no UTF-8 text"),
        (RATING.encode() + b"<a/>", "is damaged XML"),
        (b"<html/>", "is no XMP: it has no rdf:RDF"),
        (b"<!DOCTYPE a [<!ENTITY b 'c'>]>" + RATING.encode(), "has a document type"),
        (b"<!DOCTYPE a SYSTEM 'file:///etc/passwd'><a>&b;</a>", "has a document type"),
        (b"<?xml version='1.0' encoding='x-odd'?><a/>", "is in the encoding x-odd"),
        (b"<a>" + RATING.encode() * 2 + b"</a>", "is no XMP: it has more than one rdf:RDF"),
        (b"<a>" * 200_000, "is damaged XML"),
    ],
)
def test_what_is_no_whole_xmp_is_left_as_it_is(content, message, tmp_path):
    place = tmp_path / "a.xmp"
    place.write_bytes(content)
    for mode in ("skip", "append", "overwrite"):
        with pytest.raises(SidecarError, match=rf"a\.xmp {message}.*it is left as it is$"):
            write(place, on_existing=mode)
        assert place.read_bytes() == content


def test_entities_do_not_grow(tmp_path):
    place = tmp_path / "a.xmp"
    levels = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))
    place.write_text(f'<!DOCTYPE a [<!ENTITY l0 "x">{levels}]><a>&l11;</a>')
    with pytest.raises(SidecarError, match="document type"):
        write(place)


names = st.text(min_size=1, max_size=12)


@given(tags=st.lists(st.tuples(names, st.sampled_from(["", "general", "a/b|c"])), max_size=4))
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_name_is_written_once_and_comes_back(tags, tmp_path):
    place = tmp_path / "a.xmp"
    place.write_text(DIGIKAM, encoding="utf-8")
    given_tags = tuple(Tag(name, 0.5, category) for name, category in tags)
    content = write(place, given_tags, on_existing="append")
    found = entries(content, SUBJECT)
    assert found[:2] == ["dog", "Wien"]
    assert len(entries(content, HIERARCHY)) == len(entries(content, TAGS_LIST))
    expected = {"".join(c if is_xml(c) else "\ufffd" for c in name) for name, _ in tags}
    assert set(found[2:]) <= expected
    keys = {key(name) for name in found}
    assert {key(name) for name in expected} <= keys
    assert len(keys) == len(found)
    assert write(place, given_tags, on_existing="append") == content


def key(name: str) -> str:
    """What makes two names the same."""
    plain = unicodedata.normalize("NFC", name)
    return " ".join(plain.replace("_", " ").casefold().split()) or plain


def is_xml(letter: str) -> bool:
    """Whether XML 1.0 can hold a character."""
    code = ord(letter)
    return (
        code in (9, 10, 13) or 0x20 <= code <= 0xD7FF or 0xE000 <= code <= 0xFFFD or code > 0xFFFF
    )


@given(tags=st.lists(names, max_size=4, unique_by=key))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_exiv2_reads_what_was_written(tags, tmp_path):
    exiv2 = pytest.importorskip("exiv2")
    place = tmp_path / "a.xmp"
    place.unlink(missing_ok=True)
    content = write(place, tuple(Tag(name, 0.5, "kind") for name in tags))
    image = exiv2.ImageFactory.open(str(place))
    image.readMetadata()
    found = {datum.key(): datum for datum in image.xmpData()}
    for name, form in (("Xmp.dc.subject", SUBJECT), ("Xmp.digiKam.TagsList", TAGS_LIST)):
        read = list(found[name].value()) if name in found else []
        assert read == entries(content, form)


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")
@pytest.mark.parametrize("sample", [None, *WITH_TAGS.values()], ids=["new", *WITH_TAGS])
def test_exiftool_reads_what_was_written(sample, tmp_path):
    place = tmp_path / "a.xmp"
    if sample is not None:
        place.write_bytes(sample.encode())
    content = write(place)
    command = ["exiftool", "-json", "-validate", "-warning", "-a", "-XMP:all", str(place)]
    printed = subprocess.run(command, capture_output=True, check=True).stdout
    (found,) = json.loads(printed)
    assert found["Subject"] == entries(content, SUBJECT)
    assert found["HierarchicalSubject"] == entries(content, HIERARCHY)
    assert found.get("TagsList", []) == entries(content, TAGS_LIST)
    if sample is not None and "Rating" in sample:
        assert found["Rating"] in (1, 4, 5)
    if sample == LIGHTROOM:
        assert found["GPSLatitude"]


def test_embedding_and_a_folder_exclude_each_other(tmp_path):
    with pytest.raises(UsageError, match="leave --output out"):
        open_sink("xmp", tmp_path, SinkOptions(embed=True))
