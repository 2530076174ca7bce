"""The starter's packed table of pieces, made of a small invented one."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

pytest.importorskip("onnx")
pytest.importorskip("torch")

ROOT = Path(__file__).parents[2]

PIECES = 1400
"""Fewer than the 17 parts hold: the last rows of the parts belong to no piece."""


@pytest.fixture(scope="module")
def text_tower() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        return importlib.import_module("recipes.starter.text_tower")


@pytest.fixture(scope="module")
def weights(text_tower, tmp_path_factory) -> Path:
    """What the package keeps: bytes of 0 to 63 in 17 parts, each with a scale and a lowest value."""
    random = np.random.default_rng(5)
    rows = -(-PIECES // text_tower.CHUNKS) + 3
    steps = random.integers(0, 64, (text_tower.CHUNKS * rows, text_tower.WIDTH), dtype=np.uint8)
    narrow = slice(text_tower.WHOLE_ROWS, text_tower.WHOLE_ROWS + 200)
    first = random.integers(0, 48, (200, 1))
    steps[narrow] = first + random.integers(0, 16, steps[narrow].shape)
    arrays: dict[str, Any] = {
        f"q{part + 1}": steps[part :: text_tower.CHUNKS] for part in range(text_tower.CHUNKS)
    }
    arrays["scale"] = random.uniform(0.01, 0.02, text_tower.CHUNKS)
    arrays["lo"] = random.uniform(-0.6, -0.3, text_tower.CHUNKS)
    path = tmp_path_factory.mktemp("package") / "weights.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def table(text_tower, weights) -> Any:
    return text_tower.PackedTable.read(weights, PIECES)


@pytest.fixture(scope="module")
def original(text_tower, weights) -> npt.NDArray[np.float32]:
    sentences = importlib.import_module("recipes.starter.sentences")
    return sentences.read_table(weights)[:PIECES]


def test_most_rows_take_half_the_bytes(text_tower, table, original):
    rest = PIECES - text_tower.WHOLE_ROWS
    assert table.whole.shape == (text_tower.WHOLE_ROWS, text_tower.WIDTH)
    assert table.halves.shape == (rest, text_tower.WIDTH // 2)
    assert table.levels.shape == (rest,)
    assert {part.dtype for part in (table.whole, table.halves, table.levels)} == {np.dtype("u1")}
    assert table.rows().shape == original.shape


def test_frequent_pieces_and_narrow_rows_are_exact(text_tower, table, original):
    exact = slice(0, text_tower.WHOLE_ROWS + 200)
    np.testing.assert_allclose(table.rows()[exact], original[exact], atol=1e-6)


def test_wide_rows_are_off_by_at_most_half_a_level(text_tower, table, original):
    """With all 64 steps in use, levels are four steps apart, and the outermost steps are up to three away."""
    wide = slice(text_tower.WHOLE_ROWS + 200, None)
    scale = table.scale[np.arange(PIECES) % text_tower.CHUNKS][wide, None]
    steps = (table.rows()[wide] - original[wide]) / scale
    assert np.abs(steps).max() < 3.01
    assert np.sqrt((steps**2).mean()) < 1.3  # rounding to every fourth step gives 1.22
    assert steps.any()


def test_the_levels_are_the_best_there_are(text_tower):
    """Held against trying every first step and width on every row."""
    random = np.random.default_rng(6)
    middle, spread = random.integers(10, 54, (40, 1)), random.uniform(1, 14, (40, 1))
    steps = np.clip(np.rint(random.normal(middle, spread, (40, 96))), 0, 63).astype(np.int16)

    def error(first: npt.NDArray[Any], width: npt.NDArray[Any]) -> npt.NDArray[Any]:
        level = np.clip(np.rint((steps - first) / width), 0, text_tower.LEVELS - 1)
        return ((steps - first - width * level) ** 2).sum(1)

    found = error(*(part[:, None] for part in text_tower._best_levels(steps)))
    tried = [
        error(np.full((40, 1), first), np.full((40, 1), width))
        for first in range(text_tower.STEPS)
        for width in range(1, text_tower.WIDEST + 1)
    ]
    np.testing.assert_array_equal(found, np.min(tried, axis=0))


def test_the_graph_looks_up_what_the_table_says(text_tower, table):
    graph = text_tower.GraphBuilder()
    rows = text_tower.add_lookup(graph, table)
    last = graph.node(
        "ReduceMean", rows, text_tower._whole(graph, 1), keepdims=0, name="text_embeds"
    )
    assert last == "text_embeds"
    model = text_tower.finish(graph, text_tower.WIDTH)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    ids = np.arange(PIECES, dtype=np.int64)[:, None]
    unused = {"attention_mask": np.ones_like(ids)}
    asked = {"input_ids": ids, **unused}
    asked = {one.name: asked[one.name] for one in session.get_inputs()}
    np.testing.assert_allclose(session.run(None, asked)[0], table.rows(), atol=1e-6)
