"""docs/formats-tables.md: its samples are what is written, and its code reads it."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from annotary.records import (
    Annotation,
    Box,
    Caption,
    Decision,
    Embedding,
    Item,
    Label,
    Reason,
    Tag,
)
from annotary.sinks import SinkOptions, format_named, formats, open_sink

PAGE = Path(__file__).parent.parent.parent / "docs" / "formats-tables.md"
NAME = "photos/2024/dog.jpg"
LABELS = (Label("dog", 0.81), Label("cat", 0.12))
WRITTEN = Annotation(
    NAME,
    4032,
    3024,
    captions=(Caption("a dog on a beach", 0.7213, 0.9634),),
    boxes=(
        Box("dog", 0.8712, (412.5, 980.25, 2210, 2890.75)),
        Box("ball", 0.4105, (2500, 2700.5, 2755.25, 2950)),
    ),
)
OUTPUTS = {
    "csv": "tags.csv",
    "parquet": "tags.parquet",
    "kohya": "meta.json",
    "kohya-jsonl": "meta.jsonl",
    "imagefolder": "photos/metadata.jsonl",
    "webdataset": "photos.tar",
    "npy": "vectors.npy",
    "folders": "sorted",
}
PARTS = {"npy": ("embedding",), "folders": ("labels",)}


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
    annotation = Annotation(NAME, 4032, 3024, tags=tags, sources={"tags": "starter@1.1"})
    others = {
        "npy": Annotation(NAME, 4032, 3024, embedding=Embedding((0.6, 0.8))),
        "folders": Annotation(NAME, 4032, 3024, labels=LABELS, sources={"labels": "starter@1.1"}),
    }
    for form, output in OUTPUTS.items():
        if form in ("parquet", "npy"):
            pytest.importorskip("pyarrow")
        item = Item(NAME, path=Path(NAME), relative="2024/dog.jpg")
        if format_named(form).needs_bytes:
            item = Item(NAME, data=encoded.getvalue(), relative="2024/dog.jpg")
        sink = open_sink(form, Path(output), SinkOptions(), PARTS.get(form, ("tags",)))
        sink.write(item, others.get(form, annotation))
        sink.close(complete=True)
    sink = open_sink("csv", Path("boxes.csv"), SinkOptions(), ("boxes",))
    sink.write(Item(NAME, path=Path(NAME)), WRITTEN)
    sink.close(complete=True)
    Path("vectors.jsonl").write_text(json.dumps({"image": NAME, "width": 4032, "height": 3024}))
    return tmp_path


def test_the_samples_are_what_is_written(outputs):
    assert Path("tags.csv").read_text() == blocks("csv", "csv")[0]
    decision = Decision("review", (Reason("dog", 0.81, 0.5, "review"),))
    sink = open_sink("csv", Path("labels.csv"), SinkOptions(), ("labels", "decision"))
    found = Annotation(NAME, 4032, 3024, labels=LABELS, decision=decision)
    sink.write(Item(NAME, path=Path(NAME)), found)
    sink.close(complete=True)
    assert Path("labels.csv").read_text() == blocks("csv", "csv")[1]
    for output, part, sample in (("c.csv", "captions", 2), ("b.csv", "boxes", 3)):
        sink = open_sink("csv", Path(output), SinkOptions(), (part,))
        for found in (WRITTEN, Annotation("photos/sky.jpg", 1600, 1200))[: sample - 1]:
            sink.write(Item(found.image, path=Path(found.image)), found)
        sink.close(complete=True)
        assert Path(output).read_text() == blocks("csv", "csv")[sample]
    for form, output in OUTPUTS.items():
        samples = blocks(form, "json")
        assert bool(samples) == (form in ("kohya", "kohya-jsonl", "imagefolder", "folders"))
        if samples:
            place = Path(output, "labels.jsonl") if form == "folders" else Path(output)
            written = place.read_text().replace(f"{outputs}/", "/data/")
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
        libraries = re.findall(r"^import (\w+)$", code, re.M)
        for library in libraries:
            pytest.importorskip(library)
        found: dict = {}
        exec(code, found)
        if "dogs" in found:
            assert list(found["dogs"]["image"]) == [NAME]
        if libraries == ["json"]:
            assert found["tags"] == {str(outputs / NAME): ["dog", "beach"]}
        elif "print" in code:
            assert capsys.readouterr().out


def test_every_table_format_has_a_section():
    listed = re.findall(r"^\| \[([\w-]+)\]\(#\1\) \|", PAGE.read_text("utf-8"), re.M)
    assert listed == list(OUTPUTS)
    assert set(OUTPUTS) <= set(formats())


@pytest.mark.parametrize("form", OUTPUTS)
def test_every_option_of_a_format_is_on_the_page(form):
    for option in format_named(form).options:
        assert f"--{option.replace('_', '-')}" in PAGE.read_text("utf-8")


def test_the_page_says_what_formats_hold():
    """The table of parts has a row for each, and is right."""
    page = PAGE.read_text("utf-8")
    (table,) = re.findall(r"^\| format \| tags \|.*?\n\|.*?\n(.*?)\n\n", page, re.S | re.M)
    columns = (
        *(("tags",), ("labels",), ("captions",), ("answers", "matches"), ("boxes",)),
        *(("decision",), ("embedding",)),
    )
    said = {}
    for row in table.splitlines():
        names, *cells = (cell.strip() for cell in row.strip("|").split("|"))
        cells_of = zip(columns, cells, strict=True)
        held = {part for parts, cell in cells_of if cell for part in parts}
        said |= dict.fromkeys(re.findall(r"`([\w-]+)`", names), held)
    for form, held in said.items():
        assert held == set(format_named(form).parts)
    assert set(said) == {*OUTPUTS, "jsonl", "json"}
