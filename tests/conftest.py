"""What tests share: a tiny tagger that really runs, and photos made on the spot."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

settings.register_profile("annotary", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("annotary")


@pytest.fixture(autouse=True)
def _working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test works in a folder of its own, and with Python's limit on cells of CSV, which readers may raise."""
    csv.field_size_limit(131_072)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ANNOTARY_CACHE", str(tmp_path / "annotary-cache"))


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory whose scores are the mean red, green and blue of an image, 0..1."""
    return make_colours(tmp_path_factory.mktemp("models") / "colours")


def make_colours(directory: Path, *, version: str = "1.0") -> Path:
    """Write a tagger with the tags `red`, `green` and `blue` as a real ONNX file with its card."""
    import onnx
    from onnx import TensorProto, helper

    directory.mkdir(parents=True)
    size = 16
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["features"], keepdims=0),
        helper.make_node("Div", ["features", "most"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", size, size, 3])],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 3]),
        ],
        [
            helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2]),
            helper.make_tensor("most", TensorProto.FLOAT, [], [255.0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, directory / "model.onnx")
    (directory / "tags.csv").write_text(
        "name,category,balanced,precise,broad\n"
        "red,colour,0.5,0.8,0.2\ngreen,colour,0.5,0.8,0.2\nblue,colour,0.5,0.8,0.2\n"
    )
    files = "".join(
        f'"{name}" = "{hashlib.sha256((directory / name).read_bytes()).hexdigest()}"\n'
        for name in ("model.onnx", "tags.csv")
    )
    (directory / "card.toml").write_text(
        f'name = "colours"\nversion = "{version}"\nfamily = "onnx_tagger"\nlicence = "Apache-2.0"\n'
        f"[preprocess]\nsize = [{size}, {size}]\n"
        'layout = "nhwc"\ndtype = "uint8"\n'
        f"[files]\n{files}"
    )
    return directory


@pytest.fixture
def photos(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder of plain photos: `photos(5)`; photo i has the colour that `colour_of(i)` tells."""

    def make(count: int, name: str = "photos", size: tuple[int, int] = (24, 18)) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", size, colour_of(i)).save(folder / f"{i:05}.png")
        return folder

    return make


def colour_of(index: int) -> tuple[int, int, int]:
    """A colour that tells one photo from its neighbours."""
    generator = np.random.default_rng(index)
    red, green, blue = generator.integers(0, 256, 3).tolist()
    return red, green, blue


def child_environment() -> dict[str, str]:
    """The environment for a child process that imports annotary as this process does."""
    import annotary

    source = str(Path(annotary.__file__).parent.parent)
    return {**os.environ, "PYTHONPATH": source}
