"""Folders as the loader `imagefolder` of Hugging Face datasets has them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from annotary.records import Failure, Item
from annotary.sources import SourceOptions, open_sources

FILES = ["train/cat/0001.jpg", "train/dog/0001.jpg", "train/dog/0002.png"]


def opened(*arguments: str, **options: object) -> list[Item | Failure]:
    return list(open_sources(arguments, SourceOptions(**options)))  # type: ignore[arg-type]


@pytest.fixture
def names() -> list[str]:
    for name in FILES:
        path = Path("data", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    rows = [{"file_name": name.removeprefix("train/"), "text": "an animal"} for name in FILES]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    Path("data/train/metadata.jsonl").write_text(lines)
    cells = "".join(f'"{row["file_name"]}",{row["text"]}\n' for row in rows)
    Path("data/train/metadata.csv").write_text("file_name,text\n" + cells)
    return [f"data/{name}" for name in FILES]


@pytest.mark.parametrize(
    "argument", ["data", "data/train", "data/train/metadata.jsonl", "data/train/metadata.csv"]
)
def test_the_folder_and_its_lists(argument: str, names: list[str]) -> None:
    assert [item.image for item in opened(argument)] == names


def test_metadata_in_parquet(names: list[str]) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = {"text": ["x"] * 3, "file_name": [name.removeprefix("train/") for name in FILES]}
    parquet.write_table(arrow.table(rows), "data/train/metadata.parquet")
    assert [item.image for item in opened("data/train/metadata.parquet")] == names


def test_names_that_begin_in_the_folder_of_images() -> None:
    for name in ("set/images/a.jpg", "set/images/b.jpg"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    rows = [{"file_name": "images/a.jpg"}, {"file_name": "images/b.jpg"}, {"file_name": "c.jpg"}]
    Path("set/annotations.jsonl").write_text("\n".join(map(json.dumps, rows)))
    *found, missing = opened("set/annotations.jsonl")
    assert [item.image for item in found] == ["set/images/a.jpg", "set/images/b.jpg"]
    assert isinstance(missing, Failure)
    assert missing.image == "c.jpg"


def test_a_zip_in_the_folder_is_named_by_itself(names: list[str]) -> None:
    with zipfile.ZipFile("data/train.zip", "w") as archive:
        for name in FILES:
            archive.write(f"data/{name}", name)
        archive.write("data/train/metadata.csv", "train/metadata.csv")
    assert [item.image for item in opened("data")] == names
    results = opened("data/train.zip")
    assert [item.image for item in results] == [f"data/train.zip/{name}" for name in FILES]
    assert [item.data for item in results] == [name.encode() for name in FILES]
