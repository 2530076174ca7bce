"""What an ONNX file says of its network, read without a library: inputs, outputs, the last layer, files of weights.

An ONNX file is one message of protocol buffers (onnx.proto, Apache-2.0). Of it only the few fields are read that are
needed here; weights are skipped, so a large file costs as little as a small one. Two messages of protocol buffers that
stand one after the other are one message with the repeated fields of both: that is how an output is added to a file.
"""

from __future__ import annotations

import mmap
import os
import shutil
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from annotary.cards import Card, check_file_name
from annotary.errors import ModelError
from annotary.models._protobuf import fields as _fields

# Numbers of fields in onnx.proto.
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 5, 11, 12
_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR = 1, 2, 4
_TENSOR_NAME = 8
_VALUE_NAME, _VALUE_TYPE = 1, 2
_TYPE_TENSOR = 1
_TENSOR_ELEMENT, _TENSOR_SHAPE = 1, 2
_SHAPE_DIMENSION, _DIMENSION_VALUE = 1, 1
_FLOAT = 1
_TENSOR_EXTERNAL, _TENSOR_PLACE = 13, 14
_TENSOR_KIND, _TENSOR_FLOATS, _TENSOR_RAW = 2, 4, 9
_ENTRY_KEY, _ENTRY_VALUE = 1, 2

_HOLDERS: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
"""The fields in which tensors are, or what holds tensors."""

NUMBER_TYPES = {1: "float32", 2: "uint8", 10: "float16", 11: "float64"}
"""Number types of inputs by onnx.proto's numbers, as far as images are given in them."""

_Bytes: TypeAlias = memoryview


@dataclass(frozen=True, slots=True)
class Value:
    """An input or output.

    Attributes:
        name: In the graph.
        shape: Axes; None for one that is open.
        element: onnx.proto's number of the number type; 0 when it is not said.
    """

    name: str
    shape: tuple[int | None, ...]
    element: int = 0


@dataclass(frozen=True, slots=True)
class Node:
    """One operation."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """A network.

    Attributes:
        inputs: Without those that are weights.
        outputs: In the file's order.
        makers: Name of a value to the operation that makes it.
    """

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    makers: Mapping[str, Node]


def read_graph(path: Path) -> Graph:
    """Read a file's network.

    Raises:
        ModelError: It is missing or no ONNX file.
    """
    try:
        with path.open("rb") as file:
            # It is closed when nothing refers to it any more.
            graph = _graph(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is no ONNX file, or is damaged: {error}") from error
    if not graph.inputs or not graph.outputs:
        raise ModelError(f"{path} is no ONNX file of a network: it has no input or no output")
    return graph


def external_files(path: Path) -> tuple[str, ...]:
    """The files beside an ONNX file that hold weights of it ("external data"); of what is no such file, none.

    Raises:
        ModelError: Weights are not directly beside it.
    """
    try:
        with path.open("rb") as file:
            held = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            found = tuple(dict.fromkeys(_external(held, "model")))
    except (OSError, ValueError, IndexError, RecursionError):
        return ()  # missing or damaged: opening it tells
    for name in found:
        try:
            check_file_name(name, folders=0)
        except ValueError as error:
            raise ModelError(
                f"{path} has weights in {name!r}; they must be in files directly beside it"
            ) from error
    return found


def scalar_weights(path: Path, endings: Collection[str]) -> dict[str, float]:
    """Weights of a file that are single numbers of float32, by what their names end with.

    Args:
        path: The file.
        endings: What is looked for; a name is taken as a whole, or after a dot.

    Raises:
        ModelError: It is missing or no ONNX file.
    """
    found: dict[str, float] = {}
    try:
        with path.open("rb") as file:
            held = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            for tensor in _inside(held, _MODEL_GRAPH, _GRAPH_INITIALIZER):
                ending = _text(tensor, _TENSOR_NAME).rpartition(".")[2]
                value = _number_in(tensor) if ending in endings else None
                if value is not None:
                    found[ending] = value
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, IndexError, struct.error) as error:
        raise ModelError(f"{path} is no ONNX file, or is damaged: {error}") from error
    return found


def _number_in(tensor: _Bytes) -> float | None:
    """The only value of a tensor of float32."""
    values = [
        bytes(value)
        for number, value in _fields(tensor)
        if number in (_TENSOR_FLOATS, _TENSOR_RAW)
        and not isinstance(value, int)
        and len(value) == 4
    ]
    kinds = [value for number, value in _fields(tensor) if number == _TENSOR_KIND]
    return float(struct.unpack("<f", values[0])[0]) if values and kinds == [_FLOAT] else None


def check_input(path: Path, card: Card) -> None:
    """Check that a file takes images of the size and layout that its card says.

    Raises:
        ModelError: It does not; the message says what it takes.
    """
    shape = read_graph(path).inputs[0].shape
    height, width = card.preprocess.size
    expected = (3, height, width) if card.preprocess.layout == "nchw" else (height, width, 3)
    fits = len(shape) in (0, 4) and all(
        has is None or has == wanted for has, wanted in zip(shape[1:], expected, strict=False)
    )
    if not fits:
        raise ModelError(
            f"{card.id}: {path} takes images {_told(shape)}, but its card says"
            f" {_told((None, *expected))} ({card.preprocess.layout})"
        )


def head_input(path: Path, output: str) -> str:
    """The name of what the last linear layer reads: the embedding.

    Args:
        path: The file.
        output: The name of the layer's output.

    Raises:
        ModelError: The network does not end with a linear layer.
    """
    makers = read_graph(path).makers
    node = makers.get(output)
    while node is not None and node.operator in ("Identity", "Cast"):
        node = makers.get(node.inputs[0])
    if node is not None and node.operator == "Add":  # a product and its bias
        products = [makers[name] for name in node.inputs if name in makers]
        node = next((made for made in products if made.operator == "MatMul"), None)
    if node is None or node.operator not in ("Gemm", "MatMul"):
        found = makers[output].operator if output in makers else "nothing"
        raise ModelError(
            f"{path} gives no features: its output {output!r} is made by {found}, not by a linear"
            " layer whose input would be the embedding"
        )
    return node.inputs[0]


def with_output(path: Path, name: str, target: Path) -> None:
    """Write a copy of a file that has one more output, a matrix of float32, with the files of its weights beside it.

    Args:
        path: The file.
        name: Of a value in its graph.
        target: Where the copy goes.

    Raises:
        ModelError: It cannot be written.
    """
    axes = _field(_TENSOR_SHAPE, 2 * _field(_SHAPE_DIMENSION, b""))
    kind = _field(_TYPE_TENSOR, _number(_TENSOR_ELEMENT, _FLOAT) + axes)
    value = _field(_VALUE_NAME, name.encode()) + _field(_VALUE_TYPE, kind)
    try:
        shutil.copyfile(path, target)
        with target.open("ab") as file:
            file.write(_field(_MODEL_GRAPH, _field(_GRAPH_OUTPUT, value)))
        for weights in external_files(path):
            _link(path.parent / weights, target.parent / weights)
    except OSError as error:
        raise ModelError(
            f"cannot write a copy of {path} with one more output: {error.strerror or error}"
        ) from error


def _link(path: Path, target: Path) -> None:
    """Give a file a second place, without a copy where that goes."""
    try:
        os.link(path.resolve(), target)
    except OSError:
        shutil.copyfile(path, target)


def _graph(model: _Bytes) -> Graph:
    inputs, outputs, weights = [], [], set()
    makers: dict[str, Node] = {}
    for number, graph in _fields(model):
        if number != _MODEL_GRAPH or isinstance(graph, int):
            continue
        for part, held in _fields(graph):
            if isinstance(held, int):
                continue
            if part == _GRAPH_NODE:
                node = _node(held)
                makers |= dict.fromkeys(node.outputs, node)
            elif part == _GRAPH_INITIALIZER:
                weights.add(_text(held, _TENSOR_NAME))
            elif part == _GRAPH_INPUT:
                inputs.append(_value(held))
            elif part == _GRAPH_OUTPUT:
                outputs.append(_value(held))
    images = tuple(value for value in inputs if value.name not in weights)
    return Graph(images, tuple(outputs), makers)


def _external(held: _Bytes, kind: str) -> Iterator[str]:
    """The files of all tensors that are elsewhere, in a message of a kind of `_HOLDERS`."""
    if kind == "tensor":
        fields = tuple(_fields(held))
        if (_TENSOR_PLACE, 1) not in fields:  # TensorProto.DataLocation.EXTERNAL
            return
        for number, entry in fields:
            if number != _TENSOR_EXTERNAL or isinstance(entry, int):
                continue
            if _text(entry, _ENTRY_KEY) == "location":
                yield _text(entry, _ENTRY_VALUE)
        return
    inside = _HOLDERS[kind]
    for number, value in _fields(held):
        if number in inside and not isinstance(value, int):
            yield from _external(value, inside[number])


def _node(held: _Bytes) -> Node:
    inputs, outputs, operator = [], [], ""
    for number, value in _fields(held):
        if isinstance(value, int):
            continue
        if number == _NODE_INPUT:
            inputs.append(str(value, "utf-8"))
        elif number == _NODE_OUTPUT:
            outputs.append(str(value, "utf-8"))
        elif number == _NODE_OPERATOR:
            operator = str(value, "utf-8")
    return Node(operator, tuple(inputs), tuple(outputs))


def _value(held: _Bytes) -> Value:
    shape: list[int | None] = []
    element = 0
    for tensor in _inside(held, _VALUE_TYPE, _TYPE_TENSOR):
        element = next(
            (v for n, v in _fields(tensor) if n == _TENSOR_ELEMENT and isinstance(v, int)), 0
        )
        for axis in _inside(tensor, _TENSOR_SHAPE, _SHAPE_DIMENSION):
            sizes = [v for n, v in _fields(axis) if n == _DIMENSION_VALUE and isinstance(v, int)]
            shape.append(sizes[-1] if sizes and sizes[-1] > 0 else None)
    return Value(_text(held, _VALUE_NAME), tuple(shape), element)


def _inside(held: _Bytes, *numbers: int) -> Iterator[_Bytes]:
    """The messages at the end of a way of field numbers."""
    first, *rest = numbers
    for number, value in _fields(held):
        if number == first and not isinstance(value, int):
            yield from _inside(value, *rest) if rest else (value,)


def _text(held: _Bytes, number: int) -> str:
    for found, value in _fields(held):
        if found == number and not isinstance(value, int):
            return str(value, "utf-8")
    return ""


def _field(number: int, content: bytes) -> bytes:
    return _encoded(number << 3 | 2) + _encoded(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _encoded(number << 3) + _encoded(value)


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _told(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("any" if axis is None else str(axis) for axis in shape) + "]"
