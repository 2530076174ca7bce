"""Makes the integer tower: the registry's weights, folded, quantised on training photos, with its pooled features."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch

from annotary.models._efficientnet_lite import EfficientNetLite
from recipes.starter import features
from recipes.starter.graph import GraphBuilder, add_tower
from recipes.starter.quantise import QuantisedTower, quantise
from recipes.starter.tables import Example

IMAGE_TYPE = int(onnx.TensorProto.UINT8)
CALIBRATION_IMAGES = 64
POOLED_STAGES = (2, 3, 4, 5, 6)
"""Stages whose mean and spread over all positions are features, beside the mean of the head."""


def load_network(weights: Path) -> EfficientNetLite:
    """Load the folded network from the registry package's state dict."""
    state = torch.load(weights, weights_only=True, map_location="cpu")
    return EfficientNetLite().load_reference(state).eval().fold()


def make_tower(
    network: EfficientNetLite,
    examples: Sequence[Example],
    path: Path,
    report: Callable[[str], None],
) -> QuantisedTower:
    """Quantise on evenly chosen training photos; the result is kept in a file."""
    if path.exists():
        kept: QuantisedTower = pickle.loads(path.read_bytes())
        return kept
    report("8-bit integers for the tower")
    photos = [e for e in examples if e.source in ("corel", "flickr") and not e.is_held_aside]
    chosen = photos[:: len(photos) // CALIBRATION_IMAGES][:CALIBRATION_IMAGES]
    pixels = np.stack(
        [features.view(features.load(e.path), features.VIEWS["whole"]) for e in chosen]
    )
    tower = quantise(network, torch.from_numpy(pixels))
    path.write_bytes(pickle.dumps(tower))
    return tower


def add_features(graph: GraphBuilder, tower: QuantisedTower, name: str) -> tuple[str, str, int]:
    """Add the tower and its pooling.

    Returns:
        The name of the features ``[n, d]`` (called `name`), of the head's mean ``[n, 1280]``, and d.
    """
    stages = add_tower(graph, tower, "image", features.SIZE)
    widths = [len(tower.blocks[end].layers[-1].weight) for end in tower.stage_ends]
    parts = add_pooling(graph, [stages[stage] for stage in POOLED_STAGES], stages[-1])
    total = len(tower.head.weight) + 2 * sum(widths[stage] for stage in POOLED_STAGES)
    return graph.node("Concat", *parts, name=name, axis=1), parts[0], total


def add_pooling(graph: GraphBuilder, stages: Sequence[str], head: str) -> list[str]:
    """Add the mean of the head's map, and mean and spread of each stage's map, over all positions; their names."""
    axes = graph.constant(np.array([2, 3], np.int64))
    parts = [graph.node("ReduceMean", head, axes, keepdims=0)]
    least = graph.constant(np.array(1e-6, np.float32))
    for stage in stages:
        mean = graph.node("ReduceMean", stage, axes, keepdims=0)
        squares = graph.node("Mul", stage, stage)
        mean_square = graph.node("ReduceMean", squares, axes, keepdims=0)
        variance = graph.node("Sub", mean_square, graph.node("Mul", mean, mean))
        parts += [mean, graph.node("Sqrt", graph.node("Max", variance, least))]
    return parts


def add_classifier(graph: GraphBuilder, network: EfficientNetLite, head: str, name: str) -> str:
    """Add the kept ImageNet head with weights in 8 bits; returns its logits ``[n, 1000]``, called `name`."""
    weight = network.classifier.weight.detach().numpy().T
    scale = (np.abs(weight).max(0) / 127).astype(np.float32)
    product = graph.node("MatMul", head, graph.wide(np.rint(weight / scale).astype(np.int8)))
    scaled = graph.node("Mul", product, graph.constant(scale))
    bias = graph.constant(network.classifier.bias.detach().numpy())
    return graph.node("Add", scaled, bias, name=name)


def save_feature_model(tower: QuantisedTower, network: EfficientNetLite, path: Path) -> None:
    """Write the ONNX file that the features of the training images are computed with."""
    graph = GraphBuilder()
    _, head, width = add_features(graph, tower, "features")
    add_classifier(graph, network, head, "logits")
    side = features.SIZE
    inputs = {"image": (IMAGE_TYPE, ["n", side, side, 3])}
    onnx.save(graph.model(inputs, {"features": width, "logits": 1000}), path)
