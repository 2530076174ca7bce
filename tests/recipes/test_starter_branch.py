"""A second network in the starter's file: it shares the first stages, its scores are mixed in, and it can go again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

import onnx
import onnxruntime
import torch
from onnx import TensorProto
from torch import nn

from annotary.models._efficientnet_backbone import EfficientNetBackbone
from annotary.models._efficientnet_lite import (
    ConvNorm,
    EfficientNetLite,
    EfficientNetLiteConfig,
)
from annotary.training._integer_tower import read_tower
from recipes.starter import export, features
from recipes.starter.branch import (
    FIRST_STAGE,
    LOGITS,
    Branch,
    Mix,
    add_branch,
    mix_scores,
    remove_branch,
)
from recipes.starter.calibrate import EvidenceLine, Lines
from recipes.starter.few_bits import FewBits
from recipes.starter.graph import GraphBuilder
from recipes.starter.heads import Labels
from recipes.starter.quantise import QuantisedTower, quantise
from recipes.starter.scoring import SHARE, Calibration
from recipes.starter.tables import Vocabulary
from recipes.starter.tower import IMAGE_TYPE, add_features
from recipes.starter.tuning import make_mix, round_changes

CONFIG = EfficientNetLiteConfig(width=0.3, depth=0.4, classes=5)
RANDOM = np.random.default_rng(4)
IMAGES = RANDOM.integers(0, 256, (3, features.SIZE, features.SIZE, 3), np.uint8)
LEARNED, OTHERS = 4, 2
PLACES = np.array([2, 0], np.int64)

Changes = tuple[FewBits | None, ...]


def made_network(seed: int) -> EfficientNetLite:
    torch.manual_seed(seed)
    network = EfficientNetLite(CONFIG).eval().fold()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)  # so that something comes out at the end
    return network


def tuned_network(tower: QuantisedTower, change: float) -> tuple[EfficientNetLite, Changes]:
    """The frozen network, with weights of its upper stages changed by a share of their spread."""
    network = made_network(0)
    layers = [one for one in network.modules() if isinstance(one, ConvNorm)]
    stored = [tower.stem, *(layer for block in tower.blocks for layer in block.layers), tower.head]
    with torch.no_grad():
        for layer, integers in zip(layers, stored, strict=True):
            scale = integers.weight_scale[:, None, None, None]
            layer.conv.weight.copy_(torch.from_numpy(integers.weight * scale))
    frozen = {name: value.clone() for name, value in network.named_parameters()}
    torch.manual_seed(7)
    with torch.no_grad():
        for number in range(network.stage_ends[FIRST_STAGE - 1] + 1, len(network.blocks)):
            for value in network.blocks[number].parameters():
                if value.ndim > 1:
                    value.add_(torch.randn_like(value) * value.std() * change)
    return network, round_changes(network, frozen)


@pytest.fixture(scope="module")
def tower() -> QuantisedTower:
    return quantise(made_network(0), torch.from_numpy(IMAGES))


@pytest.fixture(scope="module")
def tagger(tower: QuantisedTower) -> onnx.ModelProto:
    """Features, and scores that end as those of the starter do."""
    graph = GraphBuilder()
    raw, _, width = add_features(graph, tower, "pooled")
    mean, scale = standardising(width)
    centred = graph.node("Sub", raw, graph.constant(mean))
    standard = graph.node("Mul", centred, graph.constant(scale), name="features")
    weight = RANDOM.normal(0, 0.05, (width, 2 * LEARNED + OTHERS)).astype(np.float32)
    logits = graph.node("MatMul", standard, graph.constant(weight))
    names = ["learned", "evidence", "others"]
    graph.split(logits, names, [LEARNED, LEARNED, OTHERS], axis=1)
    largest = graph.node("Max", "learned", "evidence")
    joined = graph.node("Sigmoid", graph.node("Concat", largest, "others", axis=1))
    order = graph.constant(np.array([5, 0, 1, 4, 2, 3], np.int64))
    graph.node("Gather", joined, order, axis=1, name="scores")
    inputs = {"image": (IMAGE_TYPE, ["n", features.SIZE, features.SIZE, 3])}
    outputs = {"scores": LEARNED + OTHERS, "features": width}
    outputs |= {"learned": LEARNED, "evidence": LEARNED, "others": OTHERS}
    return graph.model(inputs, outputs)


def standardising(width: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    return random.normal(0, 0.1, width).astype(np.float32), random.uniform(0.5, 2, width).astype(
        np.float32
    )


def made_branch(tower: QuantisedTower, width: int, tags: int, change: float = 0.3) -> Branch:
    head = FewBits.of(RANDOM.normal(0, 0.1, (width, tags)), 4)
    network, changes = tuned_network(tower, change)
    tuned = quantise(network, torch.from_numpy(IMAGES))
    bias = RANDOM.normal(size=tags).astype(np.float32)
    return Branch(tuned, *standardising(width), changes, head, bias)


def run(model: onnx.ModelProto, *outputs: str) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    found: list[np.ndarray] = session.run(list(outputs), {"image": IMAGES})
    return found


def width_of(tagger: onnx.ModelProto) -> int:
    (entry,) = [one for one in tagger.graph.output if one.name == "features"]
    width: int = entry.type.tensor_type.shape.dim[1].dim_value
    return width


def test_without_a_change_it_reads_the_same_features(tagger, tower):
    branch = made_branch(tower, width_of(tagger), 2, change=0.0)
    logits, seen = run(add_branch(tagger, branch), LOGITS, "features")
    # Its integers are chosen anew on the same images, and are nearly those of the frozen network.
    expected = branch.head.multiply(seen) + branch.bias
    assert np.abs(logits - expected).max() < 0.15 * np.abs(expected - branch.bias).max()


def test_changes_give_the_integers_of_the_tuned_network(tagger, tower):
    branch = made_branch(tower, width_of(tagger), 2)
    changed = add_branch(tagger, branch)
    first = branch.tower.stage_ends[FIRST_STAGE - 1] + 1
    layers = [layer for block in branch.tower.blocks[first:] for layer in block.layers]
    layers.append(branch.tower.head)
    nodes = [node for node in changed.graph.node if node.op_type == "Conv"][-len(layers) :]
    makers = {name: node for node in changed.graph.node for name in node.output}
    names = [makers[node.input[1]].input[0] for node in nodes]
    made = [name for name, change in zip(names, branch.changes, strict=True) if change is not None]
    for name in made:
        changed.graph.output.append(
            onnx.helper.make_tensor_value_info(name, TensorProto.INT8, None)
        )
    found = iter(run(changed, *made))
    for layer, change in zip(layers, branch.changes, strict=True):
        assert (change is None) == (layer.groups > 1)
        if change is not None:
            integers = next(found)
            apart = np.abs(integers.astype(int) - layer.weight)
            assert apart.max() <= 1  # halves may be rounded otherwise in 32 bits
            assert (apart > 0).mean() < 1e-3
            assert np.ptp(integers.astype(int)) > 20
    logits, seen = run(add_branch(tagger, branch), LOGITS, "features")
    assert np.abs(logits - branch.head.multiply(seen) - branch.bias).max() > 0.1


def test_no_bytes_are_made_floats_and_multiplied(tagger, tower):
    """OpenVINO would take them for weights to be widened while it runs, and gave garbage on busy processors."""
    changed = add_branch(tagger, made_branch(tower, width_of(tagger), 2))
    stored = {one.name: one.data_type for one in changed.graph.initializer}
    casts = [node for node in changed.graph.node if node.op_type == "Cast"]
    added = [node for node in casts if node.output[0].startswith("tuned_")]
    from_bytes = [
        node for node in added if stored.get(node.input[0]) in (TensorProto.INT8, TensorProto.UINT8)
    ]
    assert len(from_bytes) > 10
    assert {node.attribute[0].i for node in from_bytes} == {TensorProto.INT32}


def test_it_follows_the_tuned_network(tagger, tower):
    network, _ = tuned_network(tower, 0.3)
    width = width_of(tagger)
    branch = made_branch(tower, width, 2)
    (logits,) = run(add_branch(tagger, branch), LOGITS)
    backbone = EfficientNetBackbone(CONFIG)
    backbone.load_state_dict(network.state_dict(), strict=False)
    mean, scale = standardising(width)
    backbone.standardise(torch.from_numpy(mean), torch.from_numpy(scale))
    with torch.inference_mode():
        seen = backbone((torch.from_numpy(IMAGES).permute(0, 3, 1, 2).float() - 127) / 128)
    expected = branch.head.multiply(seen.numpy())
    apart = np.abs(logits - branch.bias - expected)
    assert apart.mean() < 0.1 * np.abs(expected).mean()


def test_scores_are_mixed_and_the_branch_can_go(tagger, tower):
    branch = made_branch(tower, width_of(tagger), len(PLACES))
    keep, gain, offset = (
        RANDOM.uniform(0.3, 1, size).astype(np.float32) for size in (LEARNED, len(PLACES), LEARNED)
    )
    with_branch = add_branch(tagger, branch)
    mixed = mix_scores(with_branch, Mix(keep, gain, offset, PLACES))
    learned, evidence, others, before = run(tagger, "learned", "evidence", "others", "scores")
    (logits,) = run(with_branch, LOGITS)
    total = learned * keep + offset
    total[:, PLACES] += logits * gain
    joined = np.concatenate([np.maximum(total, evidence), others], axis=1)
    expected = 1 / (1 + np.exp(-joined[:, [5, 0, 1, 4, 2, 3]]))
    scores, same = run(mixed, "scores", "features")
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert np.abs(scores - before).max() > 0.01
    np.testing.assert_array_equal(same, run(tagger, "features")[0])
    assert [one.name for one in mixed.graph.output] == [one.name for one in tagger.graph.output]
    for model in (mixed, tagger):
        assert remove_branch(model) == tagger


def test_training_reads_the_frozen_network(tagger, tower, tmp_path: Path):
    branch = made_branch(tower, width_of(tagger), len(PLACES))
    path = tmp_path / "model.onnx"
    onnx.save(add_branch(tagger, branch), path)
    found = read_tower(path, [CONFIG])
    weight = tower.head.weight * tower.head.weight_scale[:, None, None, None]
    np.testing.assert_allclose(found.weights["head.conv.weight"].numpy(), weight, rtol=1e-6)


def made_calibration() -> tuple[Calibration, np.ndarray]:
    """Three learned tags of 400 images, of which one network knows all and the other the last two, better."""
    names = ("a", "b", "drawing")
    vocabulary = Vocabulary(
        names,
        ("",) * 3,
        np.zeros((1000, 3), np.float32),
        np.zeros(3, bool),
        {"corel": {name: (number,) for number, name in enumerate(names)}},
        frozenset(),
    )
    truth = (RANDOM.random((400, 3)) < 0.3).astype(np.float32)
    frozen = (2 * truth - 1 + RANDOM.normal(0, 2, truth.shape)).astype(np.float32)
    tuned = (4 * truth - 2 + RANDOM.normal(0, 1, truth.shape)).astype(np.float32)
    labels = Labels(truth, np.ones(truth.shape, bool), np.ones(truth.shape, np.float32))
    model = export.Model(
        vocabulary,
        None,  # type: ignore[arg-type]
        Lines(np.ones(3), np.zeros(3)),
        EvidenceLine(1.0, -5.0, 1.0, -5.0),
        np.array([0.3, -0.2, 0.0]),
        None,  # type: ignore[arg-type]
    )
    held = np.arange(400) >= 200
    evidence = np.zeros(truth.shape, np.float32)
    return Calibration.of(model, frozen, evidence, labels, held), tuned


def test_the_mix_gives_the_scores_that_were_calibrated():
    frozen, tuned = made_calibration()
    places = np.array([2, 1], np.int64)
    mixed = frozen.mixed_with(tuned[:, places], places)
    mix = make_mix(frozen.model, mixed.model, places)
    shift = frozen.model.shift
    lines = frozen.model.lines
    total = (frozen.logits * lines.slope + lines.offset + shift) * mix.keep + mix.offset
    total[:, places] += tuned[:, places] * mix.gain
    np.testing.assert_allclose(1 / (1 + np.exp(-total)), mixed.scores(), atol=1e-6)
    np.testing.assert_array_equal(mixed.scores()[:, 0], frozen.scores()[:, 0])
    assert 0 < SHARE < 1


def test_what_both_say_is_better_and_no_image_is_calibrated_with_itself():
    frozen, tuned = made_calibration()
    places = np.array([1, 2], np.int64)
    mixed = frozen.mixed_with(tuned[:, places], places)
    truth, held = frozen.labels.targets, frozen.held

    def loss(scores: np.ndarray) -> float:
        shift = frozen.model.shift
        odds = np.log(scores / (1 - scores)) - shift
        chance = 1 / (1 + np.exp(-odds))
        told = np.where(truth > 0, chance, 1 - chance)[held][:, places]
        return float(-np.log(told).mean())

    assert loss(mixed.cross_fitted) < 0.9 * loss(frozen.cross_fitted)
    assert loss(mixed.scores()) <= loss(mixed.cross_fitted)
    thresholds = mixed.thresholds()
    assert {name: limits.shape for name, limits in thresholds.items()} == dict.fromkeys(
        ("balanced", "precise", "broad"), (3,)
    )
