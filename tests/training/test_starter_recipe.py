"""The parts of the starter's recipe that need no data: integers, graphs, calibration."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

sys.path.insert(0, str(Path(__file__).parents[2]))

from annotary.models._efficientnet_lite import EfficientNetLite, EfficientNetLiteConfig  # noqa: E402
from recipes.starter import calibrate, quantise, tables  # noqa: E402
from recipes.starter.bytes import ByteMatrix  # noqa: E402
from recipes.starter.graph import GraphBuilder, TensorProto, add_tower  # noqa: E402
from recipes.starter.heads import Labels  # noqa: E402
from recipes.starter.memory import EMBEDDING, make_memory  # noqa: E402


def run(graph: GraphBuilder, outputs: dict[str, int], **inputs: np.ndarray) -> list[np.ndarray]:
    kinds = {np.dtype(np.uint8): TensorProto.UINT8, np.dtype(np.float32): TensorProto.FLOAT}
    described = {name: (kinds[v.dtype], ["n", *v.shape[1:]]) for name, v in inputs.items()}
    session = onnxruntime.InferenceSession(graph.model(described, outputs).SerializeToString())
    found: list[np.ndarray] = session.run(list(outputs), inputs)
    return found


@pytest.mark.parametrize("kernel", [1, 3])
def test_no_two_neighbouring_weights_can_overflow(kernel: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(20, 24, kernel, kernel) * torch.logspace(-9, 1, 20)[:, None, None, None]
    integers, scale = quantise.round_weights(weight)
    flat = integers.reshape(20, -1).astype(int)
    for sign in (1, -1):
        positive = np.maximum(sign * flat, 0)
        assert (positive[:, 1:] + positive[:, :-1]).max() <= 128
    restored = integers * scale[:, None, None, None]
    coarse = np.abs(weight.numpy()).reshape(20, -1).max(1) / 63
    error = np.abs(restored - weight.numpy()).reshape(20, -1).max(1)
    assert (error <= np.maximum(coarse * 1.01, 1e-6)).all()


def test_zero_is_stored_exactly() -> None:
    values = torch.tensor([-1.3, 0.0, 2.7])
    stored = quantise.choose_range(values, is_positive=False)
    assert quantise.store(values, stored)[1] == 0
    assert (quantise.store(values, stored) - values).abs().max() < 0.02


def test_the_integer_graph_follows_the_network() -> None:
    torch.manual_seed(0)
    network = (
        EfficientNetLite(EfficientNetLiteConfig(width=0.5, depth=0.4, classes=5)).eval().fold()
    )
    side = 64
    images = torch.randint(0, 256, (6, side, side, 3), dtype=torch.uint8)
    tower = quantise.quantise(network, images)
    graph = GraphBuilder()
    stages = add_tower(graph, tower, "image", side)
    axes = graph.constant(np.array([2, 3], np.int64))
    graph.node("ReduceMean", stages[-1], axes, keepdims=0, name="pooled")
    (found,) = run(graph, {"pooled": 1280}, image=images.numpy())
    with torch.inference_mode():
        expected = network.stages((images.permute(0, 3, 1, 2).float() - 127) / 128)[-1].mean((2, 3))
    assert np.corrcoef(found.ravel(), expected.numpy().ravel())[0, 1] > 0.99
    assert np.abs(found.mean(0) - expected.numpy().mean(0)).max() < 0.05


def test_bits_and_bytes_come_back() -> None:
    generator = np.random.default_rng(0)
    matrix = generator.random((7, 13)) < 0.3
    rows = generator.normal(size=(3, 7)).astype(np.float32)
    graph = GraphBuilder()
    graph.node("MatMul", "rows", graph.bits(matrix), name="product")
    (found,) = run(graph, {"product": 13}, rows=rows)
    np.testing.assert_allclose(found, rows @ matrix, rtol=1e-5, atol=1e-6)
    real = generator.normal(size=(7, 5)).astype(np.float32)
    np.testing.assert_allclose(ByteMatrix.of(real).multiply(rows), rows @ real, atol=0.1)


def test_lines_find_the_true_calibration_and_hold_rare_tags_to_the_others() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(-1, 2, (4000, 3))
    targets = generator.random(logits.shape) < calibrate.sigmoid(2 * logits - 1)
    weights = np.ones(logits.shape)
    lines = calibrate.fit_lines(logits, targets, weights)
    np.testing.assert_allclose(lines.slope, 2, rtol=0.1)
    np.testing.assert_allclose(lines.offset, -1, atol=0.15)
    weights[:, 2] = 0
    targets[:, 2] = True
    without = calibrate.fit_lines(logits, targets, weights)
    assert without.slope[2] == pytest.approx(2, abs=0.2)
    assert without.offset[2] == pytest.approx(-1, abs=0.2)


def test_rank_shift_raises_rare_tags_and_leaves_unknown_ones() -> None:
    targets = np.zeros((1000, 3), np.float32)
    targets[:20, 0] = 1
    targets[:2, 1] = 1
    labels = Labels(targets, np.ones(targets.shape, bool), np.ones(targets.shape, np.float32))
    shift = calibrate.rank_shift(labels, np.ones(1000, bool), 0.5, 0.02)
    assert shift[0] == pytest.approx(0, abs=0.02)
    assert 0.9 < shift[1] < 1.2
    assert shift[2] == 0


def test_memory_gives_the_tags_of_the_nearest_photo() -> None:
    generator = np.random.default_rng(0)
    standard = generator.normal(size=(400, 300)).astype(np.float32)
    targets = (generator.random((400, 4)) < 0.5).astype(np.float32)
    columns = np.array([0, 2])
    memory = make_memory(standard, np.arange(400) < 350, targets, columns)
    assert memory.keys.values.shape == (EMBEDDING, 350)
    found = memory.logits(standard[:20], 4)
    assert (found[:, [1, 3]] == 0).all()
    assert ((found[:, columns] > 3) == (targets[:20, columns] > 0)).all()


def test_the_vocabulary_reads_into_one_table() -> None:
    vocabulary = tables.read_vocabulary()
    assert len(vocabulary.names) >= 1500
    assert list(vocabulary.names) == sorted(set(vocabulary.names))
    assert vocabulary.members.shape == (1000, len(vocabulary.names))
    assert vocabulary.members.any(1).all()
    animals = vocabulary.names.index("animals")
    assert vocabulary.members[:398, animals].all()
    named_or_learned = vocabulary.is_named | vocabulary.is_learned()
    assert named_or_learned.all()
