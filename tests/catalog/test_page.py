"""The page about the catalogue says what it does."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from annotary.catalog import Catalog, Note
from annotary.catalog._columns import schema_of
from tests.small_encoder import SmallEncoder

pytest.importorskip("lancedb")

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "catalog.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.S | re.M)


def test_its_columns_are_told():
    rows = re.findall(r"^\| (`[a-z_0-9`, ]+`) \| [a-z0-9]", PAGE, re.M)
    told = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert told == set(schema_of(8).names)


def test_its_conditions_can_be_used(tmp_path):
    catalog = Catalog.create(tmp_path / "c", Note())
    (listed,) = (block for block in blocks("text") if "array_has" in block)
    catalog.append(
        [
            {"id": 0, "image": "a", "path": "/photos/2024/a.jpg", "tag_names": ["dog"]},
            {"id": 1, "image": "b", "path": "", "width": 2000, "height": 2000, "label": "beach"},
        ]
    )
    counts = [catalog.count(line) for line in listed.splitlines()]
    assert counts == [1, 1, 1, 1, 0, 0]


def test_its_python_runs(tmp_path, monkeypatch, capsys):
    class Found:
        def fingerprint(self):
            return "0123"

    monkeypatch.setattr("annotary.models.find", lambda name: Found())
    monkeypatch.setattr("annotary.models.load_model", lambda found: SmallEncoder())
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (code,) = blocks("python")
    exec(compile(code, "catalog.md", "exec"), {})
    count = len(list((ROOT / "examples").glob("*.jpg")))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(" True")
    assert f"Filled(new={count}, " in lines[count]
    assert len(Catalog.open("photos.catalog")) == count
