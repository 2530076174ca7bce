"""docs/formats-sidecars.md shows what is written, and has a section for every format of sidecars."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from annotary.records import Annotation, Caption, Item, Tag
from annotary.sinks import SinkOptions, format_named, formats, open_sink
from annotary.sinks.hydrus import NAMESPACES

PAGE = Path(__file__).parent.parent.parent / "docs" / "formats-sidecars.md"
FILES = {
    "txt": "dog.txt",
    "caption": "dog.caption",
    "hydrus": "dog.jpg.txt",
    "json-files": "dog.json",
    "xmp": "dog.xmp",
}


def section(name: str) -> str:
    (found,) = re.findall(rf"^## {name}\n(.*?)(?=^## |\Z)", PAGE.read_text("utf-8"), re.S | re.M)
    return found


def test_every_format_has_a_section():
    listed = re.findall(r"^\| \[([\w-]+)\]\(#\1\) \| `([^`]+)`", PAGE.read_text("utf-8"), re.M)
    assert dict(listed) == FILES
    assert {form for form in formats() if format_named(form).can_append} == set(FILES)


@pytest.mark.parametrize("form", FILES)
def test_the_sample_is_what_is_written(form, tmp_path):
    item = Item("photos/2024/dog.jpg", path=tmp_path / "dog.jpg")
    tags = (Tag("dog", 0.961304, "animal"), Tag("beach", 0.874021, "place"))
    annotation = Annotation(item.image, 4032, 3024, tags=tags, sources={"tags": "starter@1.1"})
    open_sink(form, None, SinkOptions()).write(item, annotation)
    sample = re.findall(r"^```(?:text|json|xml)\n(.*?)^```$", section(form), re.S | re.M)[0]
    assert (tmp_path / FILES[form]).read_text("utf-8") == sample


def test_the_line_of_a_caption_is_what_is_written(tmp_path):
    tags = (Tag("dog", 0.961304, "animal"), Tag("beach", 0.874021, "place"))
    caption = Caption("a dog on a beach")
    item = Item("photos/2024/dog.jpg", path=tmp_path / "dog.jpg")
    annotation = Annotation(item.image, 4032, 3024, tags=tags, captions=(caption,))
    open_sink("txt", None, SinkOptions(), ("tags", "captions")).write(item, annotation)
    (sample,) = re.findall(r"^```text\n(.*?)^```$", section("Captions"), re.S | re.M)
    assert (tmp_path / "dog.txt").read_text("utf-8") == sample


def test_the_namespaces_of_the_page_are_those_of_the_code():
    listed = re.findall(r"^\| `(\w+)`.* \| (?:`(\w+):`|none) \|$", section("hydrus"), re.M)
    assert dict(listed) == NAMESPACES


@pytest.mark.parametrize("form", FILES)
def test_every_option_of_a_format_is_on_the_page(form):
    for option in format_named(form).options:
        assert f"--{option.replace('_', '-')}" in PAGE.read_text("utf-8")
