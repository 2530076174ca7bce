"""A format of datasets from another package: the example of docs/extending.md, as it is written there."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from annotary import registry
from annotary.datasets import formats
from tests.datasets.spots import make_boxes, photo

PAGE = Path(__file__).parent.parent.parent / "docs" / "extending.md"


class Entry:
    """An entry point, as far as the registry looks at it."""

    name, value = "createml", "extras_createml"

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def load(self) -> ModuleType:
        return self._module


@pytest.fixture
def createml(tmp_path, monkeypatch):
    """The module, joined to the room."""
    (code,) = re.findall(
        r"^```python\n(# extras_createml\.py\n.*?)^```$", PAGE.read_text(), re.S | re.M
    )
    path = tmp_path / "extras_createml.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location("extras_createml", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "extras_createml", module)
    spec.loader.exec_module(module)
    plugins = registry._plugins
    monkeypatch.setattr(
        registry,
        "_plugins",
        lambda room: {"createml": Entry(module)} if room == "datasets" else plugins(room),
    )


def test_the_format_of_the_docs_makes_datasets_and_goes_on(createml, tmp_path):
    assert formats("detect") == ("coco", "createml", "voc", "yolo")
    photos = tmp_path / "photos"
    for i in range(4):
        photo(photos / f"a{i}.png", ("red", (4, 6, 30 + i, 20)), ("blue", (40, 10, 60, 40)))
    photo(photos / "nothing.png")
    make_boxes(photos, tmp_path / "out", "createml", split="train=0.6,test=0.4")
    photo(photos / "b.png", ("green", (0, 0, 64, 48)))
    found = make_boxes(photos, tmp_path / "out", "createml", split="train=0.6,test=0.4")
    assert found["images"] == 6
    read = {}
    for part in ("train", "test"):
        folder = tmp_path / "out" / part
        told = json.loads((folder / "annotations.json").read_text())
        assert sorted(image["image"] for image in told) == sorted(
            path.name for path in folder.iterdir() if path.suffix == ".png"
        )
        read |= {image["image"]: image["annotations"] for image in told}
    assert read["b.png"] == [
        {"label": "green", "coordinates": {"x": 32.0, "y": 24.0, "width": 64.0, "height": 48.0}}
    ]
    assert read["nothing.png"] == []
    assert [box["label"] for box in read["a0.png"]] == ["blue", "red"]
