"""Writes the model that ships: tower, heads, ImageNet evidence and calibration in one ONNX graph; tags and card."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from annotary.models._efficientnet_lite import EfficientNetLite
from recipes.starter import features
from recipes.starter.bytes import ByteMatrix
from recipes.starter.calibrate import EvidenceLine, Lines, sigmoid
from recipes.starter.few_bits import FewBits
from recipes.starter.graph import GraphBuilder
from recipes.starter.heads import EVIDENCE_FLOOR, Ensemble
from recipes.starter.memory import EMBEDDING, FLOOR, GAIN, SHARPNESS, SINK, Memory
from recipes.starter.quantise import QuantisedTower
from recipes.starter.tables import Vocabulary
from recipes.starter.tower import IMAGE_TYPE, add_classifier, add_features

DRAWING_TAG = "drawing"

_CARD = """\
name = "starter"
version = "1.3"
family = "starter"
licence = "Apache-2.0"
description = "{tags:,} tags for photos and drawings, and search by text in 16 languages; ships with the package."
source = "recipes/starter"
revision = "1.3"
paper = "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks (Tan and Le, 2019)"
activation = "none"

[files]
{files}

[similarity]
kind = "softmax"
scale = {scale!r}

[preprocess]
size = [{side}, {side}]
fit = "squash"
resample = "bicubic"
channel_order = "rgb"
layout = "nhwc"
dtype = "uint8"
"""

FILES = ("model.onnx", "tags.csv", "text.onnx", "tokenizer.json.gz")
"""What the card lists."""


@dataclass(frozen=True)
class Model:
    """Everything that the heads need after the tower."""

    vocabulary: Vocabulary
    """The tags."""

    heads: Ensemble
    """Of the learned tags."""

    lines: Lines
    """Calibration of the learned tags."""

    evidence_line: EvidenceLine
    """Calibration of the others."""

    shift: npt.NDArray[np.float64]
    """``[tags]``: added to the calibrated log-odds, so that rare and frequent tags can be ranked together."""

    memory: Memory
    """Photos that new ones are compared with."""


def build_graph(tower: QuantisedTower, network: EfficientNetLite, model: Model) -> onnx.ModelProto:
    """Return the model: ``image`` uint8 [n, 260, 260, 3] to ``scores``, ``features`` and ``embedding``."""
    graph = GraphBuilder()
    raw, head, width = add_features(graph, tower, "pooled")
    heads, lines, line = model.heads, model.lines, model.evidence_line
    centred = graph.node("Sub", raw, _row(graph, heads.mean))
    standard = graph.node("Mul", centred, _row(graph, 1 / heads.scale), name="features")
    embedding = _add_product(graph, standard, model.memory.projection, name="embedding")
    classes = graph.node("Softmax", add_classifier(graph, network, head, "class_logits"), axis=1)
    learned = model.vocabulary.is_learned()
    evidence = _add_evidence(graph, classes, model.vocabulary)
    logits = _add_heads(graph, heads, standard, lines.slope)
    remembered = _add_memory(graph, model.memory, embedding, int(learned.sum()))
    remembered = graph.node("Mul", remembered, _row(graph, lines.slope))
    bias = _row(graph, heads.bias * lines.slope + lines.offset + model.shift[learned])
    learned_evidence = _take(graph, evidence, np.flatnonzero(learned))
    gain = graph.node("Mul", learned_evidence, _row(graph, heads.gain * lines.slope))
    total = graph.node("Add", graph.node("Add", logits, bias), graph.node("Add", gain, remembered))
    place = int(np.flatnonzero(np.array(model.vocabulary.names)[learned] == DRAWING_TAG)[0])
    drawn = graph.node("Sigmoid", _take(graph, total, np.array([place])))
    slope = _mix(graph, drawn, line.slope, line.slope_drawn)
    offset = _mix(graph, drawn, line.offset, line.offset_drawn)
    alone = graph.node("Add", graph.node("Mul", evidence, slope), offset)
    alone = graph.node("Add", alone, _row(graph, model.shift + _unless_named(model.vocabulary)))
    learned_alone = _take(graph, alone, np.flatnonzero(learned))
    learned_logits = graph.node("Max", total, learned_alone)
    others = _take(graph, alone, np.flatnonzero(~learned))
    joined = graph.node("Sigmoid", graph.node("Concat", learned_logits, others, axis=1))
    order = np.argsort(np.concatenate([np.flatnonzero(learned), np.flatnonzero(~learned)]))
    graph.node("Gather", joined, graph.constant(order.astype(np.int64)), axis=1, name="scores")
    side = features.SIZE
    inputs = {"image": (IMAGE_TYPE, ["n", side, side, 3])}
    outputs = {"scores": len(model.vocabulary.names), "features": width, "embedding": EMBEDDING}
    return graph.model(inputs, outputs)


def write_tags(model: Model, thresholds: dict[str, npt.NDArray[np.float64]], folder: Path) -> None:
    """Write tags.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    presets = ("balanced", "precise", "broad")
    columns: list[Sequence[str]] = [model.vocabulary.names, model.vocabulary.categories]
    columns += [[f"{value:.4f}" for value in thresholds[preset]] for preset in presets]
    columns.append([f"{value:.4f}" for value in model.shift])
    with (folder / "tags.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("name", "category", *presets, "shift"))
        writer.writerows(zip(*columns, strict=True))


def write_card(folder: Path, tags: int, scale: float) -> None:
    """Write card.toml, when the other files are there.

    Args:
        folder: Of the model.
        tags: How many it has.
        scale: What a cosine is multiplied by before the softmax over texts.
    """
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}
    files = "\n".join(f'"{name}" = "{value}"' for name, value in sums.items())
    card = _CARD.format(tags=tags, files=files, side=features.SIZE, scale=round(scale, 2))
    (folder / "card.toml").write_text(card, encoding="utf-8")


def _unless_named(vocabulary: Vocabulary) -> npt.NDArray[np.float64]:
    """``[tags]``: a low number for tags that classes only hint at, so that hints alone never give them."""
    return np.where(vocabulary.is_named, 0.0, -40.0)


def _add_heads(
    graph: GraphBuilder, heads: Ensemble, standard: str, slope: npt.NDArray[np.float64]
) -> str:
    """The mean of the heads' logits times the slope ``[learned]``, without biases."""
    total = ""
    for member in heads.members:
        hidden = standard
        if member.first is not None and member.first_bias is not None:
            product = _add_product(graph, standard, member.first)
            hidden = graph.node("Relu", graph.node("Add", product, _row(graph, member.first_bias)))
        scaled = member.last.times(slope / len(heads.members))
        product = _add_product(graph, hidden, scaled)
        total = graph.node("Add", total, product) if total else product
    return total


def _add_memory(graph: GraphBuilder, memory: Memory, embedding: str, learned: int) -> str:
    """The memory's logits ``[n, learned]``, as `Memory.logits`."""
    axis = graph.constant(np.array([1], np.int64))
    unit = graph.node("Div", embedding, graph.node("ReduceL2", embedding, axis, keepdims=1))
    cosine = _add_product(graph, unit, memory.keys)
    below = graph.node("Sub", cosine, _scalar(graph, 1.0))
    weights = graph.node("Exp", graph.node("Mul", below, _scalar(graph, SHARPNESS)))
    total = graph.node(
        "Add", graph.node("ReduceSum", weights, axis, keepdims=1), _scalar(graph, SINK)
    )
    share = graph.node("Div", graph.node("MatMul", weights, graph.bits(memory.values)), total)
    found = graph.node("Log", graph.node("Add", share, _scalar(graph, FLOOR)))
    found = graph.node("Sub", found, _scalar(graph, float(np.log(FLOOR))))
    found = graph.node("Mul", found, _scalar(graph, GAIN))
    # A word that is not remembered takes the column of zeros behind the others.
    zeros = graph.node("Mul", graph.node("ReduceSum", found, axis, keepdims=1), _scalar(graph, 0.0))
    place = np.full(learned, len(memory.columns))
    place[memory.columns] = np.arange(len(memory.columns))
    return _take(graph, graph.node("Concat", found, zeros, axis=1), place)


def _add_product(
    graph: GraphBuilder, rows: str, matrix: ByteMatrix | FewBits, name: str | None = None
) -> str:
    """Rows times a matrix that is stored in bytes or less; it is widened once, when the model is loaded."""
    product = graph.node("MatMul", rows, graph.matrix(matrix))
    return graph.node("Mul", product, _row(graph, matrix.scale), name=name)


def _add_evidence(graph: GraphBuilder, classes: str, vocabulary: Vocabulary) -> str:
    """Log-odds ``[n, tags]`` of the summed class probabilities, as `heads.evidence`."""
    members = vocabulary.members
    counts = members.sum(0)
    single = np.flatnonzero(counts == 1)
    several = np.flatnonzero(counts != 1)
    one = _take(graph, classes, members[:, single].argmax(0))
    matrix = graph.bits(members[:, several] > 0)
    summed = graph.node("Concat", one, graph.node("MatMul", classes, matrix), axis=1)
    order = np.argsort(np.concatenate([single, several]))
    summed = _take(graph, summed, order)
    summed = graph.node("Min", summed, _scalar(graph, 1.0))
    floor = _scalar(graph, EVIDENCE_FLOOR)
    above = graph.node("Add", summed, floor)
    below = graph.node("Sub", _scalar(graph, 1 + EVIDENCE_FLOOR), summed)
    odds = graph.node("Log", graph.node("Div", above, below))
    start = np.log(EVIDENCE_FLOOR / (1 + EVIDENCE_FLOOR))
    return graph.node("Sub", odds, _scalar(graph, start))


def _take(graph: GraphBuilder, values: str, columns: npt.NDArray[np.integer]) -> str:
    return graph.node("Gather", values, graph.constant(columns.astype(np.int64)), axis=1)


def _mix(graph: GraphBuilder, share: str, at_zero: float, at_one: float) -> str:
    scaled = graph.node("Mul", share, _scalar(graph, at_one - at_zero))
    return graph.node("Add", scaled, _scalar(graph, at_zero))


def _row(graph: GraphBuilder, values: npt.NDArray[np.floating]) -> str:
    return graph.constant(values.astype(np.float32))


def _scalar(graph: GraphBuilder, value: float) -> str:
    return graph.constant(np.array(value, np.float32))


def learned_logits(
    heads: Ensemble,
    memory: Memory,
    image_features: npt.NDArray[np.floating[Any]],
    evidence_of_learned: npt.NDArray[np.float32],
) -> npt.NDArray[np.float32]:
    """Heads and memory ``[n, learned]``, before calibration, from raw features and evidence."""
    standard = heads.standardise(image_features)
    found = heads.logits(standard, evidence_of_learned)
    return found + memory.logits(standard, found.shape[1])


def scores(
    model: Model, logits: npt.NDArray[np.float32], evidence: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """The same scores as the graph's, ``[n, tags]``, from `learned_logits` and evidence."""
    learned = model.vocabulary.is_learned()
    lines = model.lines
    own = logits * lines.slope + lines.offset + model.shift[learned]
    names = np.array(model.vocabulary.names)[learned]
    drawn = sigmoid(own[:, [int(np.flatnonzero(names == DRAWING_TAG)[0])]])
    found = model.evidence_line.logits(evidence, drawn)
    found = found + model.shift + _unless_named(model.vocabulary)
    found[:, learned] = np.maximum(found[:, learned], own)
    return sigmoid(found)
