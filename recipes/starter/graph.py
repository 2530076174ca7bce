"""Writes ONNX graphs by hand: a small builder, and the integer tower in quantise / dequantise form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from annotary.models._efficientnet_lite import same_padding
from recipes.starter.bytes import ByteMatrix
from recipes.starter.few_bits import FewBits, middle
from recipes.starter.quantise import QuantisedConv, QuantisedTower, TensorRange

OPSET = 21
"""ONNX operator set of all graphs."""

IR_VERSION = 10
"""ONNX file format version that goes with the operator set."""


class GraphBuilder:
    """Collects nodes and constants; every method returns the name of the tensor that it makes.

    Args:
        prefix: Of the names of all that gets none, for nodes that are added to another graph.
    """

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._known: dict[bytes, str] = {}

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        """The nodes, in their order."""
        return self._nodes

    @property
    def constants(self) -> list[onnx.TensorProto]:
        """The arrays."""
        return self._constants

    def constant(self, values: npt.NDArray[Any]) -> str:
        """Store an array; equal small arrays are stored once."""
        key = str((values.dtype, values.shape)).encode() + values.tobytes()
        if key not in self._known:
            self._known[key] = f"{self._prefix}constant_{len(self._constants)}"
            self._constants.append(
                numpy_helper.from_array(np.array(values, order="C"), self._known[key])
            )
        return self._known[key]

    def node(self, operator: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Add a node with one output, which is called `name` if given."""
        output = name or f"{self._prefix}{operator.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def split(self, values: str, names: list[str], widths: list[int], axis: int) -> None:
        """Add a node that cuts a tensor into parts, which are called `names`."""
        cuts = self.constant(np.array(widths, np.int64))
        self._nodes.append(helper.make_node("Split", [values, cuts], names, axis=axis))

    def wide(self, values: npt.NDArray[np.int8] | npt.NDArray[np.float16]) -> str:
        """Store numbers in 8 or 16 bits and widen them to floats, once, when the model is loaded."""
        return self.node("Cast", self.constant(values), to=TensorProto.FLOAT)

    def few_bits(self, matrix: FewBits) -> str:
        """Store a matrix's codes as they are and widen them to floats around 0, once, when the model is loaded.

        Each byte is looked up in a table of what it stands for. What comes out has to be multiplied by the matrix's
        scale.
        """
        rows, columns = matrix.codes.shape
        together = 8 // matrix.bits
        short = -columns % together
        padded = np.pad(matrix.codes, ((0, 0), (0, short))).reshape(rows, -1, together)
        places = matrix.bits * np.arange(together)
        packed = (padded.astype(np.int64) << places).sum(-1).astype(np.uint8)
        meant = (np.arange(256)[:, None] >> places) & (2**matrix.bits - 1)
        table = self.constant((meant - middle(matrix.bits)).astype(np.float32))
        index = self.node("Cast", self.constant(packed), to=TensorProto.INT32)
        shape = self.constant(np.array([rows, columns + short], np.int64))
        wide = self.node("Reshape", self.node("Gather", table, index, axis=0), shape)
        return self._columns(wide, columns) if short else wide

    def matrix(self, matrix: ByteMatrix | FewBits) -> str:
        """A matrix as floats that have to be multiplied by its scale."""
        return self.wide(matrix.values) if isinstance(matrix, ByteMatrix) else self.few_bits(matrix)

    def bits(self, values: npt.NDArray[np.bool_]) -> str:
        """Store a matrix of zeros and ones in bits and widen it to floats, once, when the model is loaded."""
        rows, columns = values.shape
        packed = np.packbits(values, axis=1)
        masks = np.array([128, 64, 32, 16, 8, 4, 2, 1], np.uint8)
        taken = self.node("BitwiseAnd", self.constant(packed[:, :, None]), self.constant(masks))
        shape = self.constant(np.array([rows, packed.shape[1] * 8], np.int64))
        flat = self.node("Reshape", self.node("Cast", taken, to=TensorProto.BOOL), shape)
        return self._columns(self.node("Cast", flat, to=TensorProto.FLOAT), columns)

    def _columns(self, values: str, count: int) -> str:
        """The first columns of a matrix."""
        ends = [np.array([value], np.int64) for value in (0, count, 1)]
        return self.node(
            "Slice", values, *(self.constant(end) for end in ends), self.constant(ends[2])
        )

    def model(
        self, inputs: Mapping[str, tuple[int, list[Any]]], outputs: dict[str, int]
    ) -> onnx.ModelProto:
        """Finish the graph.

        Args:
            inputs: Name to ONNX type and shape (strings are free sizes).
            outputs: Name of a float32 output to its width; all are ``[n, width]``.
        """
        graph = helper.make_graph(
            self._nodes,
            "annotary",
            [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in inputs.items()],
            [
                helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", w])
                for n, w in outputs.items()
            ],
            self._constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        model.ir_version = IR_VERSION
        model.producer_name = "annotary recipes/starter"
        onnx.checker.check_model(model, full_check=True)
        return model


@dataclass(frozen=True)
class FeatureMap:
    """What lies between two layers: floats ``[n, channels, size, size]`` that are whole steps."""

    name: str
    """Of the tensor."""

    scale: float
    """Real value of one step."""

    size: int
    """Side in positions."""


def add_tower(graph: GraphBuilder, tower: QuantisedTower, image: str, size: int) -> list[str]:
    """Add the integer tower.

    Args:
        graph: Where to add it.
        tower: The integers.
        image: Name of the input, RGB bytes ``uint8[n, size, size, 3]``.
        size: Side of the image in pixels.

    Returns:
        Names of the float outputs ``[n, channels, h, w]`` of the seven stages and of the head.
    """
    current = graph.node("Transpose", image, perm=[0, 3, 1, 2])
    current = _dequantise(graph, current, tower.image)
    current, scale, size = _add_conv(graph, tower.stem, current, tower.image.scale, size)
    return add_stages(graph, tower, FeatureMap(current, scale, size), 0)


def add_stages(
    graph: GraphBuilder,
    tower: QuantisedTower,
    start: FeatureMap,
    first: int,
    store: Callable[[QuantisedConv], str] | None = None,
) -> list[str]:
    """Add the stages of a tower from the one that is numbered `first` on, and the head.

    Args:
        graph: Where to add them.
        tower: The integers.
        start: What the first of them reads.
        first: Its number.
        store: Gives the name of the tensor of a layer's integers; constants of the graph when not given. It is called
            for the layers in their order.

    Returns:
        Names of their float outputs ``[n, channels, h, w]``.
    """
    current, scale, size = start.name, start.scale, start.size
    outputs = []
    for number in range(first_block(tower, first), len(tower.blocks)):
        block = tower.blocks[number]
        before = current
        for layer in block.layers:
            current, scale, size = _add_conv(graph, layer, current, scale, size, store)
        if block.total is not None:
            summed = graph.node("Add", current, before)
            current = _dequantise(graph, _quantise(graph, summed, block.total), block.total)
            scale = block.total.scale
        if number in tower.stage_ends:
            outputs.append(current)
    current, _, _ = _add_conv(graph, tower.head, current, scale, size, store)
    return [*outputs, current]


def first_block(tower: QuantisedTower, stage: int) -> int:
    """Number of the first block of a stage."""
    return tower.stage_ends[stage - 1] + 1 if stage else 0


def _add_conv(
    graph: GraphBuilder,
    layer: QuantisedConv,
    current: str,
    input_scale: float,
    size: int,
    store: Callable[[QuantisedConv], str] | None = None,
) -> tuple[str, float, int]:
    """Add one convolution; returns its dequantised output, the output's scale and its side."""
    kernel = int(layer.weight.shape[2])
    before, after = same_padding(size, kernel, layer.stride)
    channels = len(layer.weight)
    weight_scale = graph.constant(layer.weight_scale)
    zeros = graph.constant(np.zeros(channels, np.int8))
    integers = graph.constant(layer.weight) if store is None else store(layer)
    weight = graph.node("DequantizeLinear", integers, weight_scale, zeros, axis=0)
    bias_scale = (np.float32(input_scale) * layer.weight_scale).astype(np.float32)
    bias_integers = np.rint(layer.bias.astype(np.float64) / bias_scale).astype(np.int32)
    bias = graph.node(
        "DequantizeLinear",
        graph.constant(bias_integers),
        graph.constant(bias_scale),
        graph.constant(np.zeros(channels, np.int32)),
        axis=0,
    )
    convolved = graph.node(
        "Conv",
        current,
        weight,
        bias,
        group=layer.groups,
        kernel_shape=[kernel, kernel],
        strides=[layer.stride, layer.stride],
        pads=[before, before, after, after],
    )
    stored = _quantise(graph, convolved, layer.output)
    size = -(-size // layer.stride)
    return _dequantise(graph, stored, layer.output), layer.output.scale, size


def _quantise(graph: GraphBuilder, values: str, stored: TensorRange) -> str:
    return graph.node("QuantizeLinear", values, *_storage(graph, stored))


def _dequantise(graph: GraphBuilder, values: str, stored: TensorRange) -> str:
    return graph.node("DequantizeLinear", values, *_storage(graph, stored))


def _storage(graph: GraphBuilder, stored: TensorRange) -> tuple[str, str]:
    return (
        graph.constant(np.array(stored.scale, np.float32)),
        graph.constant(np.array(stored.zero, np.uint8)),
    )
