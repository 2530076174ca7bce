"""The pages about the catalogue and its search say what they do."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from annotary.api import Annotator
from annotary.catalog import Catalog, Note
from annotary.catalog._columns import schema_of
from annotary.cli import annotary
from annotary.cli._annotating import Loaded
from tests.small_encoder import SmallEncoder

pytest.importorskip("lancedb")

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "catalog.md").read_text("utf-8")


def blocks(language: str, page: str = PAGE) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.S | re.M)


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
    # What Python makes the command continues.
    model = Loaded(SmallEncoder(), "0123", "0123")
    monkeypatch.setattr("annotary.cli.embed.loaded", lambda name, options: model)
    arguments = ["embed", "examples", "--catalog", "photos.catalog"]
    result = CliRunner().invoke(annotary, arguments)
    assert result.exit_code == 0, result.exception
    assert result.stderr.rstrip().endswith(f"{count} unchanged")
    result = CliRunner().invoke(annotary, [*arguments, "--no-reduce"])
    assert "reduce" in str(result.exception)
    # And the page of the search finds in it.
    monkeypatch.setattr("annotary.load", lambda name: Annotator(SmallEncoder()))
    (code,) = blocks("python", (ROOT / "docs" / "search.md").read_text("utf-8"))
    exec(compile(code, "search.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(Path(line.split()[1]).is_file() for line in lines)
    assert lines == sorted(lines, key=lambda line: -float(line.split()[0]))
