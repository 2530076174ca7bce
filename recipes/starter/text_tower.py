"""Writes the text tower as ONNX: the sentence encoder with its table in 4 bits, and what was trained after it.

The package keeps the table in 6 bits a number. Most rows use few of the 64 steps, so 16 of them, from a first step that
is the row's own, hold seven rows in eight exactly. The rows that do not fit are those of the most frequent pieces;
the first rows are kept whole. (The pieces are numbered by frequency.)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from recipes.starter.bytes import ByteMatrix
from recipes.starter.graph import GraphBuilder
from recipes.starter.sentences import BRANCH, CHUNKS, ORDERS, WIDTH, SentenceEncoder

Floats = npt.NDArray[np.float32]

STEPS = 64
"""Steps of the package's numbers."""

LEVELS = 16
"""Of them kept in a row, in 4 bits."""

WIDEST = 4
"""Most steps between two levels: then all 64 are spanned."""

WHOLE_ROWS = 1024
"""Rows of the most frequent pieces, which are kept in 8 bits."""


@dataclass(frozen=True)
class PackedTable:
    """The table of pieces, ``value = scale[id % 17] · step + low[id % 17]``."""

    whole: npt.NDArray[np.uint8]
    """``[1024, 512]``: steps of the first rows."""

    halves: npt.NDArray[np.uint8]
    """``[pieces - 1024, 256]``: levels of the others; the lower 4 bits are the first half of a row."""

    levels: npt.NDArray[np.uint8]
    """``[pieces - 1024]``: the step of level 0, plus 64 times (the steps between levels less 1)."""

    scale: Floats
    """``[17]``."""

    low: Floats
    """``[17]``."""

    @classmethod
    def read(cls, weights: Path, pieces: int) -> PackedTable:
        """Pack the package's table."""
        with np.load(weights, allow_pickle=False) as stored:
            steps = np.empty((CHUNKS * len(stored["q1"]), WIDTH), np.uint8)
            for part in range(CHUNKS):
                steps[part::CHUNKS] = stored[f"q{part + 1}"]
            scale, low = stored["scale"], stored["lo"]
        rest = steps[WHOLE_ROWS:pieces].astype(np.int16)
        first, width = _best_levels(rest)
        levels = np.clip(np.rint((rest - first[:, None]) / width[:, None]), 0, LEVELS - 1)
        packed = levels.astype(np.uint8)
        return cls(
            steps[:WHOLE_ROWS],
            (packed[:, : WIDTH // 2] | packed[:, WIDTH // 2 :] << 4).astype(np.uint8),
            (first + STEPS * (width - 1)).astype(np.uint8),
            scale.astype(np.float32),
            low.astype(np.float32),
        )

    def rows(self) -> Floats:
        """The table as the graph sees it, ``[pieces, 512]``."""
        levels = np.concatenate([self.halves & 15, self.halves >> 4], axis=1).astype(np.float32)
        first = (self.levels % STEPS)[:, None].astype(np.float32)
        width = (self.levels // STEPS + 1)[:, None].astype(np.float32)
        steps = np.concatenate([self.whole.astype(np.float32), levels * width + first])
        part = np.arange(len(steps)) % CHUNKS
        return np.asarray(steps * self.scale[part, None] + self.low[part, None], np.float32)


def _best_levels(steps: npt.NDArray[np.int16]) -> tuple[npt.NDArray[np.int64], ...]:
    """For each row the first level and the distance of levels, in steps, with the least squared error."""
    counts = np.stack([(steps == value).sum(1) for value in range(STEPS)], axis=1)
    values = np.arange(STEPS)
    choices = [(first, width) for width in range(1, WIDEST + 1) for first in range(STEPS)]
    errors = []
    for first, width in choices:
        level = np.clip(np.rint((values - first) / width), 0, LEVELS - 1)
        errors.append((values - first - width * level) ** 2)
    best = (counts.astype(np.float32) @ np.array(errors, np.float32).T).argmin(1)
    return tuple(np.array(choices).T[:, best])


def add_encoder(graph: GraphBuilder, encoder: SentenceEncoder, table: PackedTable) -> str:
    """Add the encoder from `input_ids` and `attention_mask` [b, t] on; returns its unit vectors ``[b, 512]``."""
    mask = graph.node("Cast", "attention_mask", to=TensorProto.FLOAT)
    kept = graph.node("Unsqueeze", mask, _whole(graph, 1))
    vectors = graph.node("Transpose", add_lookup(graph, table), perm=[0, 2, 1])
    vectors = graph.node("Mul", vectors, kept)
    state = {name: value.detach().numpy() for name, value in encoder.named_parameters()}
    entered = _add_conv(graph, vectors, state["enter.weight"][:, :, None], state["enter.bias"])
    entered = _add_norm(graph, entered, state["enter_norm.weight"], state["enter_norm.bias"])
    parts = [vectors]
    cuts = [BRANCH] * len(ORDERS)
    names = [f"branch_{number}" for number in range(len(ORDERS))]
    graph.split(entered, names, cuts, axis=1)
    for number, (order, left) in enumerate(ORDERS):
        seen = names[number]
        for layer in ("first", "second"):
            convolved = _add_conv(
                graph,
                graph.node("Mul", seen, kept),
                state[f"{layer}.{number}.weight"],
                state[f"{layer}.{number}.bias"],
                (left, order - 1 - left),
            )
            seen = graph.node("Add", graph.node("Relu", convolved), seen)
        parts.append(seen)
    joined = _add_norm(
        graph, graph.node("Concat", *parts, axis=1), state["norm.weight"], state["norm.bias"]
    )
    summed = graph.node("ReduceSum", graph.node("Mul", joined, kept), _whole(graph, 2), keepdims=0)
    length = graph.node("ReduceSum", mask, _whole(graph, 1), keepdims=1)
    left_out = graph.node("Mul", length, graph.constant(state["leave.bias"]))
    total = graph.node("Add", add_product(graph, summed, state["leave.weight"]), left_out)
    return _add_last(graph, graph.node("Div", total, graph.node("Sqrt", length)), state)


def add_lookup(graph: GraphBuilder, table: PackedTable, places: str = "input_ids") -> str:
    """Rows of the table ``[b, t, 512]``.

    Args:
        graph: Where to add it.
        table: The rows.
        places: Where the pieces stand in the table.
    """
    whole_rows = len(table.whole)
    limit = graph.constant(np.array(whole_rows, np.int64))
    last = graph.constant(np.array(whole_rows - 1, np.int64))
    place = graph.node(
        "Max", graph.node("Sub", places, limit), graph.constant(np.array(0, np.int64))
    )
    halves = _float(graph, graph.node("Gather", graph.constant(table.halves), place))
    upper = graph.node("Floor", graph.node("Mul", halves, _number(graph, 1 / 16)))
    lower = graph.node("Sub", halves, graph.node("Mul", upper, _number(graph, 16.0)))
    level = graph.node("Concat", lower, upper, axis=2)
    code = _float(graph, graph.node("Gather", graph.constant(table.levels), place))
    width = graph.node("Floor", graph.node("Mul", code, _number(graph, 1 / STEPS)))
    first = graph.node("Sub", code, graph.node("Mul", width, _number(graph, float(STEPS))))
    width = graph.node("Add", width, _number(graph, 1.0))
    axis = _whole(graph, 2)
    step = graph.node(
        "Add",
        graph.node("Mul", level, graph.node("Unsqueeze", width, axis)),
        graph.node("Unsqueeze", first, axis),
    )
    whole = graph.node("Gather", graph.constant(table.whole), graph.node("Min", places, last))
    is_whole = graph.node("Unsqueeze", graph.node("Less", places, limit), axis)
    step = graph.node("Where", is_whole, _float(graph, whole), step)
    part = graph.node("Mod", "input_ids", graph.constant(np.array(CHUNKS, np.int64)))
    scale = graph.node("Gather", graph.constant(table.scale[:, None]), part)
    low = graph.node("Gather", graph.constant(table.low[:, None]), part)
    return graph.node("Add", graph.node("Mul", step, scale), low)


def _add_conv(
    graph: GraphBuilder, values: str, weight: Floats, bias: Floats, pads: tuple[int, int] = (0, 0)
) -> str:
    """A convolution over the pieces; its weights are bytes, with one scale per channel."""
    matrix = ByteMatrix.of(weight.reshape(len(weight), -1).T)
    bytes_ = graph.wide(np.ascontiguousarray(matrix.values.T.reshape(weight.shape)))
    convolved = graph.node("Conv", values, bytes_, pads=list(pads))
    scaled = graph.node("Mul", convolved, graph.constant(matrix.scale[:, None]))
    return graph.node("Add", scaled, graph.constant(bias[:, None]))


def _add_norm(graph: GraphBuilder, values: str, gain: Floats, offset: Floats) -> str:
    """Mean 0 and spread 1 over the channels ``[b, c, t]``."""
    axis = _whole(graph, 1)
    centred = graph.node("Sub", values, graph.node("ReduceMean", values, axis, keepdims=1))
    square = graph.node("ReduceMean", graph.node("Mul", centred, centred), axis, keepdims=1)
    spread = graph.node("Sqrt", graph.node("Add", square, _number(graph, 1e-12)))
    standard = graph.node("Div", centred, spread)
    scaled = graph.node("Mul", standard, graph.constant(gain[:, None]))
    return graph.node("Add", scaled, graph.constant(offset[:, None]))


def _add_last(graph: GraphBuilder, mean: str, state: dict[str, Floats]) -> str:
    first = graph.node("Relu", add_product(graph, mean, state["d0.weight"]))
    direct = add_product(graph, mean, state["p1.weight"])
    second = graph.node(
        "Relu", graph.node("Add", direct, add_product(graph, first, state["d1.weight"]))
    )
    third = graph.node("Relu", add_product(graph, second, state["d2.weight"]))
    direct = add_product(graph, second, state["p3.weight"])
    last = graph.node("Add", direct, add_product(graph, third, state["d3.weight"]))
    return add_unit(graph, graph.node("Tanh", last))


def add_product(graph: GraphBuilder, rows: str, weight: Floats) -> str:
    """Rows ``[n, i]`` times a weight ``[o, i]`` as torch keeps it, in bytes."""
    matrix = ByteMatrix.of(weight.T)
    product = graph.node("MatMul", rows, graph.wide(matrix.values))
    return graph.node("Mul", product, graph.constant(matrix.scale))


def add_unit(graph: GraphBuilder, rows: str, name: str | None = None) -> str:
    """Rows of length 1."""
    length = graph.node("ReduceL2", rows, _whole(graph, 1), keepdims=1)
    return graph.node("Div", rows, graph.node("Max", length, _number(graph, 1e-12)), name=name)


def finish(graph: GraphBuilder, width: int) -> onnx.ModelProto:
    """The model from `input_ids` and `attention_mask` int64[b, t] to `text_embeds` float32[b, width]."""
    kind, shape = int(TensorProto.INT64), ["n", "t"]
    inputs = {"input_ids": (kind, shape), "attention_mask": (kind, shape)}
    return graph.model(inputs, {"text_embeds": width})


def _float(graph: GraphBuilder, values: str) -> str:
    return graph.node("Cast", values, to=TensorProto.FLOAT)


def _whole(graph: GraphBuilder, value: int) -> str:
    return graph.constant(np.array([value], np.int64))


def _number(graph: GraphBuilder, value: float) -> str:
    return graph.constant(np.array(value, np.float32))
