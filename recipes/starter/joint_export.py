"""Writes what joins images and texts: a new output of the tagger's file, and the text tower beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from recipes.starter import text_tower
from recipes.starter.graph import GraphBuilder
from recipes.starter.joint import JointModel
from recipes.starter.joint_inputs import ODDS_LIMIT, Normaliser
from recipes.starter.text_tower import PackedTable

OUTPUT = "image_embeds"
PREFIX = "joint_"


@torch.no_grad()
def add_image_embeds(
    tagger: onnx.ModelProto, normaliser: Normaliser, model: JointModel
) -> onnx.ModelProto:
    """The tagger with one more output, the image's vector of length 1; what it had stays as it was."""
    graph = GraphBuilder(PREFIX)
    head = model.images
    classes = graph.node("LogSoftmax", "class_logits", axis=1)
    limits = [graph.constant(np.array(limit, np.float32)) for limit in (ODDS_LIMIT, 1 - ODDS_LIMIT)]
    clipped = graph.node("Clip", "scores", *limits)
    rest = graph.node("Sub", graph.constant(np.array(1, np.float32)), clipped)
    odds = graph.node("Log", graph.node("Div", clipped, rest))
    # Each kind of input has a matrix of its own; what is subtracted and divided by goes into it.
    matrix, offset = head.direct.weight.detach().T, head.direct.bias.detach()
    sizes = [len(normaliser.mean), len(normaliser.class_mean), len(normaliser.odds_mean)]
    of_features, of_classes, of_odds = torch.split(matrix, sizes)
    of_classes, of_odds = of_classes / normaliser.class_scale, of_odds / normaliser.odds_scale
    offset = offset - normaliser.class_mean @ of_classes - normaliser.odds_mean @ of_odds
    kinds = [
        _product(graph, name, part)
        for name, part in (("features", of_features), (classes, of_classes), (odds, of_odds))
    ]
    direct = graph.node("Add", graph.node("Add", kinds[0], kinds[1]), kinds[2])
    direct = text_tower.add_unit(
        graph, graph.node("Add", direct, graph.constant(offset.float().numpy()))
    )
    vectors = head.gain.exp()[:, None] * head.tag_vectors
    known = text_tower.add_unit(graph, _product(graph, "scores", vectors))
    share = graph.constant(np.array(float(head.share), np.float32))
    both = graph.node("Concat", direct, graph.node("Mul", known, share), axis=1)
    text_tower.add_unit(graph, both, name=OUTPUT)
    return _appended(tagger, graph, sum(model.texts.widths))


def move_image_embeds(source: onnx.ModelProto, tagger: onnx.ModelProto) -> onnx.ModelProto:
    """A tagger with the output that `add_image_embeds` gave to an earlier one on the same network.

    Args:
        source: The earlier model.
        tagger: One whose features and classes are the same, and whose scores are nearly so.
    """
    moved = onnx.ModelProto()
    moved.CopyFrom(tagger)
    own = moved.graph
    parts = ((own.node, source.graph.node), (own.initializer, source.graph.initializer))
    for part, entries in (*parts, (own.output, source.graph.output)):
        part.extend(entry for entry in entries if _is_joint(entry))
    onnx.checker.check_model(moved, full_check=True)
    return moved


def remove_image_embeds(model: onnx.ModelProto) -> onnx.ModelProto:
    """The tagger alone, as it was before `add_image_embeds`."""
    before = onnx.ModelProto()
    before.CopyFrom(model)
    for part in (before.graph.node, before.graph.initializer, before.graph.output):
        kept = [entry for entry in part if not _is_joint(entry)]
        del part[:]
        part.extend(kept)
    return before


def _is_joint(entry: Any) -> bool:
    names = entry.output if isinstance(entry, onnx.NodeProto) else [entry.name]
    return any(name.startswith(PREFIX) or name == OUTPUT for name in names)


def _product(graph: GraphBuilder, rows: str, matrix: torch.Tensor) -> str:
    """Rows times a matrix in 16 bits: 8 cost a few of a thousand captions their photo."""
    return graph.node("MatMul", rows, graph.wide(matrix.half().numpy()))


def _appended(tagger: onnx.ModelProto, graph: GraphBuilder, width: int) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(tagger)
    model.graph.node.extend(graph.nodes)
    model.graph.initializer.extend(graph.constants)
    model.graph.output.append(
        helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["n", width])
    )
    onnx.checker.check_model(model, full_check=True)
    return model


@torch.no_grad()
def build_text_tower(table: PackedTable, model: JointModel) -> onnx.ModelProto:
    """The text tower: pieces to the text's vector of length 1."""
    graph = GraphBuilder()
    vectors = text_tower.add_encoder(graph, model.texts.encoder, table)
    project = model.texts.project
    weight = project.weight.numpy() * np.float32(project.in_features**0.5)
    product = text_tower.add_product(graph, vectors, weight)
    moved = graph.node("Add", product, graph.constant(project.bias.numpy()))
    graph.split(moved, ["direct", "known"], list(model.texts.widths), axis=1)
    direct, known = (text_tower.add_unit(graph, part) for part in ("direct", "known"))
    share = graph.constant(np.array(float(model.texts.share), np.float32))
    both = graph.node("Concat", direct, graph.node("Mul", known, share), axis=1)
    text_tower.add_unit(graph, both, name="text_embeds")
    return text_tower.finish(graph, project.out_features)


def write(model: onnx.ModelProto, path: Path) -> None:
    """Write a model; the same model is the same bytes."""
    path.write_bytes(model.SerializeToString(deterministic=True))
