"""docs/formats-tables.md: its samples are what is written, and its code reads it."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from annotary.records import Annotation, Item, Tag
from annotary.sinks import SinkOptions, format_named, formats, open_sink

PAGE = Path(__file__).parent.parent.parent / "docs" / "formats-tables.md"
NAME = "photos/2024/dog.jpg"
OUTPUTS = {
    "csv": "tags.csv",
    "parquet": "tags.parquet",
    "kohya": "meta.json",
    "kohya-jsonl": "meta.jsonl",
    "imagefolder": "photos/metadata.jsonl",
    "webdataset": "photos.tar",
}


def section(form: str) -> str:
    pattern = rf"^## {form}\n(.*?)(?=^## |\Z)"
    (found,) = re.findall(pattern, PAGE.read_text("utf-8"), re.S | re.M)
    return found


def blocks(form: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", section(form), re.S | re.M)


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """Every format that this installation can write, of one photo."""
    photo = tmp_path / NAME
    photo.parent.mkdir(parents=True)
    encoded = io.BytesIO()
    Image.new("RGB", (4032, 3024)).save(encoded, "JPEG")
    photo.write_bytes(encoded.getvalue())
    tags = (Tag("dog", 0.961304, "animal"), Tag("beach", 0.874021, "place"))
    annotation = Annotation(NAME, 4032, 3024, tags=tags, sources={"tags": "starter@1.0"})
    for form, output in OUTPUTS.items():
        if form == "parquet":
            pytest.importorskip("pyarrow")
        item = Item(NAME, path=Path(NAME), relative="2024/dog.jpg")
        if format_named(form).needs_bytes:
            item = Item(NAME, data=encoded.getvalue(), relative="2024/dog.jpg")
        sink = open_sink(form, Path(output), SinkOptions())
        sink.write(item, annotation)
        sink.close(complete=True)
    return tmp_path


def test_the_samples_are_what_is_written(outputs):
    assert Path("tags.csv").read_text() == blocks("csv", "csv")[0]
    for form, output in OUTPUTS.items():
        samples = blocks(form, "json")
        assert bool(samples) == (form in ("kohya", "kohya-jsonl", "imagefolder"))
        if samples:
            written = Path(output).read_text().replace(f"{outputs}/", "/data/")
            assert json.loads(written) == json.loads(samples[0])
    (listing,) = blocks("webdataset", "text")
    shutil.unpack_archive("photos.tar", "unpacked")
    unpacked = sorted(path.as_posix() for path in Path("unpacked").rglob("*.*"))
    assert unpacked == sorted("unpacked/" + line.split()[0] for line in listing.splitlines())
    assert Path("unpacked/2024/dog.txt").read_text() == "dog, beach"


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # webdataset leaves files open
@pytest.mark.parametrize("form", OUTPUTS)
def test_the_code_of_the_page_reads_it(form, outputs, monkeypatch, capsys):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(outputs / "cache"))
    codes = blocks(form, "python")
    assert codes
    for code in codes:
        (library,) = re.findall(r"^import (\w+)$", code, re.M)
        pytest.importorskip(library)
        found: dict = {}
        exec(code, found)
        if "dogs" in found:
            assert list(found["dogs"]["image"]) == [NAME]
        if library == "json":
            assert found["tags"] == {str(outputs / NAME): ["dog", "beach"]}
        elif "print" in code:
            assert capsys.readouterr().out


def test_every_table_format_has_a_section():
    listed = re.findall(r"^\| \[([\w-]+)\]\(#\1\) \|", PAGE.read_text("utf-8"), re.M)
    assert listed == list(OUTPUTS)
    assert set(OUTPUTS) <= set(formats())
