"""docs/formats-boxes.md: its samples are what is written, and its code reads it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from annotary.records import Annotation, Box, Caption
from annotary.sinks import format_named, formats
from annotary.sinks.label_studio import FROM, TO
from tests.sinks.boxes import write

PAGE = Path(__file__).parent.parent.parent / "docs" / "formats-boxes.md"
OUTPUTS = {
    "coco": "boxes.json",
    "coco-captions": "captions.json",
    "yolo": "dataset",
    "voc": "voc",
    "label-studio": "tasks.json",
    "cvat": "annotations.xml",
}
CLASSES = ("dog", "ball", "kite")
SOURCES = {"boxes": "owlv2-base-patch16-ensemble@1"}
DOG = Annotation(
    "photos/2024/dog.jpg",
    4032,
    3024,
    boxes=(
        Box("dog", 0.8712, (412.5, 980.25, 2210, 2890.75)),
        Box("ball", 0.4105, (2500, 2700.5, 2755.25, 2950)),
    ),
    captions=(Caption("a dog with a ball on a beach", 0.7213, 0.9634),),
    sources=SOURCES,
)
SKY = Annotation("photos/sky.jpg", 1600, 1200, sources=SOURCES)


def section(form: str) -> str:
    (found,) = re.findall(rf"^## {form}\n(.*?)(?=^## |\Z)", PAGE.read_text("utf-8"), re.S | re.M)
    return found


def blocks(form: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", section(form), re.S | re.M)


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """Every format, of two photos."""
    for form, output in OUTPUTS.items():
        part = "captions" if form == "coco-captions" else "boxes"
        write(form, Path(output), (DOG, SKY), classes=CLASSES, parts=(part,))
    for record in (DOG, SKY):
        for place in (Path(record.image), Path("dataset/images", record.image[7:])):
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (record.width, record.height)).save(place)
    return tmp_path


def test_the_samples_are_what_is_written(outputs):
    for form in ("coco", "coco-captions"):
        assert Path(OUTPUTS[form]).read_text() == blocks(form, "json")[0]
    assert Path("annotations.xml").read_text() == blocks("cvat", "xml")[0]
    assert Path("voc/2024/dog.xml").read_text() == blocks("voc", "xml")[0]
    assert json.loads(Path("tasks.json").read_text())[:1] == json.loads(
        blocks("label-studio", "json")[0]
    )
    tree, lines = blocks("yolo", "text")
    assert Path("dataset/labels/2024/dog.txt").read_text() == lines
    assert Path("dataset/data.yaml").read_text() == blocks("yolo", "yaml")[0]
    listed = {line.split()[0] for line in tree.splitlines()}
    written = Path("dataset").rglob("*.*")
    assert {path.as_posix() for path in written if path.suffix != ".jpg"} == listed


@pytest.mark.parametrize("form", OUTPUTS)
def test_the_code_of_the_page_reads_it(form, outputs, capsys):
    codes = blocks(form, "python")
    assert codes
    for code in codes:
        for library in re.findall(r"^(?:import|from) (\w+)", code, re.M):
            pytest.importorskip(library)
        exec(code, {})
        assert ("dog" in capsys.readouterr().out) == (form != "coco-captions")


def test_the_numbers_of_evaluation_servers(tmp_path, capsys):
    found = [
        Annotation("photos/COCO_val2014_000000391895.jpg", 9, 9, captions=DOG.captions),
        Annotation("photos/000000000042.jpg", 9, 9, captions=(Caption("a"), Caption("b"))),
        Annotation("photos/sky.jpg", 9, 9, captions=(Caption("c"),)),
    ]
    write("coco-captions", Path("captions.json"), found, parts=("captions",))
    exec(blocks("coco-captions", "python")[0], {})
    assert json.loads(capsys.readouterr().out) == [
        {"image_id": 391895, "caption": DOG.captions[0].text},
        {"image_id": 42, "caption": "a"},
    ]


def test_the_labelling_interface_has_the_names_of_the_tasks():
    root = ElementTree.fromstring(blocks("label-studio", "xml")[0])
    image, labels = root.find("Image"), root.find("RectangleLabels")
    assert image is not None
    assert labels is not None
    assert image.attrib == {"name": TO, "value": "$image"}
    assert labels.attrib == {"name": FROM, "toName": TO}
    assert [label.get("value") for label in labels] == list(CLASSES)


def test_every_format_has_a_section_and_its_options():
    page = PAGE.read_text("utf-8")
    listed = re.findall(r"^\| \[([\w-]+)\]\(#\1\) \|", page, re.M)
    assert listed == list(OUTPUTS)
    assert set(OUTPUTS) <= set(formats())
    for form in OUTPUTS:
        for option in format_named(form).options:
            assert f"`--{option.replace('_', '-')}`" in section(form)
    rows = re.findall(r"^\| `([\w-]+)` \| .* \| (yes)? ?\|$", page, re.M)
    assert {name for name, _ in rows} == set(OUTPUTS) - {"coco-captions"}
    assert {name for name, has_score in rows if not has_score} == {"yolo"}
