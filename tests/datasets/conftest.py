"""Datasets of photos of one colour each, labelled by an encoder that knows colours."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from annotary.datasets import Building, Dataset, DatasetOptions, Labelling, label_task
from annotary.images import DecodeOptions
from annotary.pipeline import PipelineOptions
from annotary.sources import SourceOptions, open_sources
from annotary.tasks.label_sets import LabelSet
from annotary.tasks.zero_shot import ZeroShotOptions
from tests.small_encoder import COLOURS, SmallEncoder

LABELS = ("red", "green", "blue")


@pytest.fixture
def colours_in(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder of photos: `colours_in("photos", red=4, blue=2)`; no two are equal."""

    def make(name: str = "photos", start: int = 0, **counts: int) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        for colour, count in counts.items():
            for i in range(start, start + count):
                size = (16 + i % 50, 12 + i // 50)
                Image.new("RGB", size, COLOURS[colour]).save(folder / f"{colour}-{i:03}.png")
        return folder

    return make


def make_dataset(
    inputs: Path | Iterable[Path | str],
    output: Path,
    form: str = "folders",
    *,
    labels: Any = LABELS,
    none_label: str | None = None,
    threshold: float | None = None,
    model: SmallEncoder | None = None,
    retry_failed: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Label and build, as the command does; what `dataset.json` says."""
    paths = [str(path) for path in ([inputs] if isinstance(inputs, Path) else inputs)]
    task, description = label_task(
        model or SmallEncoder(),
        LabelSet.of(labels, none_label=none_label),
        ZeroShotOptions(threshold=threshold),
        settings={"command": "label"},
    )
    sources = SourceOptions(retries=0, timeout=5.0)
    with Dataset(
        output, form, DatasetOptions(**options), description, paths, retry_failed=retry_failed
    ) as dataset:
        with Labelling(
            *(dataset, open_sources(paths, sources), task),
            *(sources, DecodeOptions(), PipelineOptions()),
        ) as labelling:
            for _ in labelling:
                pass
        building = Building(dataset)
        for _ in building:
            pass
    found = json.loads((output / "dataset.json").read_text())
    assert found == building.summary
    return {**found, "labelled": labelling.outcome, "built": building.outcome}


def files_in(output: Path) -> dict[str, list[str]]:
    """The images of each folder of a dataset."""
    found: dict[str, list[str]] = {}
    for path in sorted(output.rglob("*")):
        if path.is_file() and path.parent != output and path.name != "metadata.jsonl":
            name = path.parent.relative_to(output).as_posix()
            found.setdefault(name, []).append(path.name)
    return found


def parts_of(output: Path) -> dict[str, str]:
    """The part of each image, by its name."""
    return {
        name: folder.partition("/")[0]
        for folder, names in files_in(output).items()
        for name in names
    }
