"""Adds the upper stages of the network a second time, fine-tuned, and scores that both networks give together.

The frozen network stays as it is, with its features and the vector that texts are compared with. The first stages are
shared: the fine-tuned ones go on from the same map. Fine-tuning changes weights little, so the file has the changes
alone, in 2 bits each, and the fine-tuned network's integers are worked out when it is loaded. What is added has names
of its own (`PREFIX`), so that it can be taken away again, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from recipes.starter import features
from recipes.starter.few_bits import FewBits
from recipes.starter.graph import FeatureMap, GraphBuilder, add_stages, first_block
from recipes.starter.quantise import QuantisedConv, QuantisedTower
from recipes.starter.tower import POOLED_STAGES, add_pooling

PREFIX = "tuned_"
"""Of the names of all that is added."""

FIRST_STAGE = 4
"""The first stage that is fine-tuned, counted from 0: the recipe's `frozen_depths` less one, as the stem is a depth."""

LOGITS = f"{PREFIX}logits"
"""What the fine-tuned network says alone, float[n, tuned]."""

FROZEN_SCORES = f"{PREFIX}frozen_scores"
"""The scores of the frozen network alone, which the vector of an image is made from."""

SCORES = "scores"

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Branch:
    """The fine-tuned network."""

    tower: QuantisedTower
    """All of it; the stages before `FIRST_STAGE` are not looked at."""

    mean: Floats
    """``[d]``: taken off what is pooled."""

    scale: Floats
    """``[d]``: what is left is multiplied by it."""

    changes: tuple[FewBits | None, ...]
    """Of each layer of the fine-tuned stages and the head, in their order: what is added to the frozen layer's weights,
    ``[inputs, outputs]``; None where a layer's weights are stored whole."""

    head: FewBits
    """``[d, tuned]``."""

    bias: Floats
    """``[tuned]``."""


@dataclass(frozen=True)
class Mix:
    """How log-odds of learned tags come about: ``keep * frozen + gain * tuned + offset``."""

    keep: Floats
    """``[learned]``: of the frozen network's calibrated log-odds, shift and all."""

    gain: Floats
    """``[tuned]``: of the fine-tuned network's logits."""

    offset: Floats
    """``[learned]``."""

    places: npt.NDArray[np.int64]
    """``[tuned]``: which of the learned tags the fine-tuned network knows."""


def add_branch(tagger: onnx.ModelProto, branch: Branch) -> onnx.ModelProto:
    """The tagger with one more output, `LOGITS`."""
    graph = GraphBuilder(PREFIX)
    frozen = _Frozen.of(tagger, branch.tower)
    store = _changed(graph, frozen, branch.changes)
    stages = add_stages(graph, branch.tower, frozen.shared, FIRST_STAGE, store)
    pooled = graph.node("Concat", *add_pooling(graph, stages[:-1], stages[-1]), axis=1)
    own, shared = _columns(branch.tower)
    centred = graph.node("Sub", pooled, graph.constant(branch.mean[own]))
    standard = graph.node("Mul", centred, graph.constant(branch.scale[own]))
    ends = [graph.constant(np.array([end], np.int64)) for end in (shared[0], shared[-1] + 1, 1)]
    below = graph.node("Slice", "features", ends[0], ends[1], ends[2])
    both = graph.node("Concat", standard, below, axis=1)
    rows = np.concatenate([own, shared])
    matrix = graph.few_bits(replace(branch.head, codes=branch.head.codes[rows]))
    product = graph.node("Mul", graph.node("MatMul", both, matrix), _row(graph, branch.head.scale))
    graph.node("Add", product, _row(graph, branch.bias), name=LOGITS)
    model = _copy(tagger)
    _append(model, graph)
    model.graph.output.append(
        helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["n", len(branch.bias)])
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def mix_scores(model: onnx.ModelProto, mix: Mix) -> onnx.ModelProto:
    """What `add_branch` gives, with scores of both networks, and without the output `LOGITS`."""
    mixed = _copy(model)
    _rename(mixed, SCORES, FROZEN_SCORES)
    frozen = _Ends.of(mixed)
    graph = GraphBuilder(f"{PREFIX}mixed_")
    scaled = graph.node("Mul", LOGITS, _row(graph, mix.gain))
    # A tag that the fine-tuned network does not know takes the column of zeros behind the others.
    axis = graph.constant(np.array([1], np.int64))
    summed = graph.node("ReduceSum", scaled, axis, keepdims=1)
    zeros = graph.node("Mul", summed, _row(graph, np.zeros(1)))
    columns = np.full(len(mix.keep), len(mix.places))
    columns[mix.places] = np.arange(len(mix.places))
    tuned = graph.node("Concat", scaled, zeros, axis=1)
    tuned = graph.node("Gather", tuned, graph.constant(columns.astype(np.int64)), axis=1)
    kept = graph.node("Mul", frozen.learned, _row(graph, mix.keep))
    total = graph.node("Add", graph.node("Add", kept, tuned), _row(graph, mix.offset))
    logits = graph.node("Max", total, frozen.evidence)
    joined = graph.node("Sigmoid", graph.node("Concat", logits, frozen.others, axis=1))
    graph.node("Gather", joined, frozen.order, axis=1, name=SCORES)
    _append(mixed, graph)
    outputs = [one for one in mixed.graph.output if one.name != LOGITS]
    del mixed.graph.output[:]
    mixed.graph.output.extend(outputs)
    onnx.checker.check_model(mixed, full_check=True)
    return mixed


def remove_branch(model: onnx.ModelProto) -> onnx.ModelProto:
    """The tagger as it was before; one without a branch stays as it is."""
    before = _copy(model)
    graph = before.graph
    if any(name.startswith(PREFIX) for node in graph.node for name in node.output):
        for part in (graph.node, graph.initializer, graph.output):
            kept = [entry for entry in part if not _is_added(entry)]
            del part[:]
            part.extend(kept)
        _rename(before, FROZEN_SCORES, SCORES)
    return before


@dataclass(frozen=True)
class _Ends:
    """Tensors that the scores of the frozen network are made from."""

    learned: str
    """Calibrated log-odds ``[n, learned]``."""

    evidence: str
    """What ImageNet's classes say of the same tags."""

    others: str
    """Log-odds of the tags that rest on ImageNet alone."""

    order: str
    """The constant that sorts both."""

    @classmethod
    def of(cls, model: onnx.ModelProto) -> _Ends:
        makers = _makers(model)
        gather = makers[FROZEN_SCORES]
        concat = makers[makers[gather.input[0]].input[0]]
        learned, evidence = makers[concat.input[0]].input
        return cls(learned, evidence, concat.input[1], gather.input[1])


@dataclass(frozen=True)
class _Frozen:
    """The frozen network, as far as the fine-tuned one goes on from it."""

    shared: FeatureMap
    """What the first fine-tuned stage reads."""

    layers: tuple[tuple[str, Floats], ...]
    """Of each frozen layer from there on: the name of its integers, and their scale ``[outputs]``."""

    @classmethod
    def of(cls, tagger: onnx.ModelProto, tower: QuantisedTower) -> _Frozen:
        blocks = tower.blocks[: first_block(tower, FIRST_STAGE)]
        below = [tower.stem, *(layer for block in blocks for layer in block.layers)]
        size = features.SIZE
        for layer in below:
            size = -(-size // layer.stride)
        makers = _makers(tagger)
        constants = {one.name: one for one in tagger.graph.initializer}

        def scale(name: str) -> Floats:
            found: Floats = numpy_helper.to_array(constants[makers[name].input[1]])
            return found

        nodes = [node for node in tagger.graph.node if node.op_type == "Conv"][len(below) :]
        start = nodes[0].input[0]
        layers = tuple((makers[n.input[1]].input[0], scale(n.input[1])) for n in nodes)
        return cls(FeatureMap(start, float(scale(start)), size), layers)


def _changed(
    graph: GraphBuilder, frozen: _Frozen, changes: Sequence[FewBits | None]
) -> Callable[[QuantisedConv], str]:
    """What stores layers as the frozen network's integers and what was changed; called for each in its order.

    The sum is worked out once, when the model is loaded, and gives the integers of the layer.
    """
    waiting = iter(zip(frozen.layers, changes, strict=True))

    def store(layer: QuantisedConv) -> str:
        (name, scale), change = next(waiting)
        if change is None:
            return graph.constant(layer.weight)
        outputs = (-1, 1, 1, 1)
        # By way of 32 bits: OpenVINO takes bytes that are made floats and multiplied for weights to be widened while
        # it runs, and two of its threads may then read what one of them has not finished.
        before = graph.node("Cast", name, to=TensorProto.INT32)
        before = graph.node("Cast", before, to=TensorProto.FLOAT)
        ratio = (scale / layer.weight_scale).astype(np.float32).reshape(outputs)
        before = graph.node("Mul", before, graph.constant(ratio))
        codes = graph.node("Transpose", graph.few_bits(change), perm=[1, 0])
        shape = graph.constant(np.array(layer.weight.shape, np.int64))
        step = (change.scale / layer.weight_scale).astype(np.float32).reshape(outputs)
        added = graph.node("Mul", graph.node("Reshape", codes, shape), graph.constant(step))
        summed = graph.node("Round", graph.node("Add", before, added))
        ends = [graph.constant(np.array(end, np.float32)) for end in (-127, 127)]
        return graph.node("Cast", graph.node("Clip", summed, *ends), to=TensorProto.INT8)

    return store


def _columns(tower: QuantisedTower) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Which columns of the features come from fine-tuned stages, and which, all in one piece, from shared ones."""
    head = len(tower.head.weight)
    widths = {stage: 2 * _channels(tower, stage) for stage in POOLED_STAGES}
    shared = sum(width for stage, width in widths.items() if stage < FIRST_STAGE)
    total = head + sum(widths.values())
    own = np.concatenate([np.arange(head), np.arange(head + shared, total)])
    return own, np.arange(head, head + shared)


def _channels(tower: QuantisedTower, stage: int) -> int:
    return len(tower.blocks[tower.stage_ends[stage]].layers[-1].weight)


def _makers(model: onnx.ModelProto) -> dict[str, NodeProto]:
    return {output: node for node in model.graph.node for output in node.output}


def _is_added(entry: Any) -> bool:
    names = entry.output if isinstance(entry, NodeProto) else [entry.name]
    return any(name.startswith(PREFIX) and name != FROZEN_SCORES for name in names) or (
        isinstance(entry, NodeProto) and SCORES in names
    )


def _rename(model: onnx.ModelProto, before: str, after: str) -> None:
    """Give a tensor between nodes another name."""
    for node in model.graph.node:
        for names in (node.input, node.output):
            renamed = [after if name == before else name for name in names]
            del names[:]
            names.extend(renamed)


def _append(model: onnx.ModelProto, graph: GraphBuilder) -> None:
    model.graph.node.extend(graph.nodes)
    model.graph.initializer.extend(graph.constants)


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


def _row(graph: GraphBuilder, values: npt.NDArray[np.floating[Any]]) -> str:
    return graph.constant(values.astype(np.float32))
