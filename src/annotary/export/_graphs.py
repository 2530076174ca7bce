"""Changes to ONNX graphs: networks of torch written down, integer arithmetic taken out, outputs named."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from annotary.errors import MissingExtra, ModelError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto
    from torch import nn

OPSET = 18
"""ONNX operator set of networks that come from torch; ONNX Runtime knows it since 1.14."""


def write_torch(
    network: nn.Module, outputs: tuple[str, ...], size: tuple[int, int], path: Path
) -> None:
    """Write a network of torch as an ONNX file that takes any number of images float32[n, 3, h, w].

    Args:
        network: Ready for use, on the processor, in float32.
        outputs: Names of what it gives, in its order.
        size: Height and width in pixels.
        path: Where it goes.

    Raises:
        MissingExtra: What writes ONNX files is not installed.
        ModelError: torch cannot write the network; the message is its reason alone.
        OSError: The file cannot be written.
    """
    try:
        import onnxscript  # noqa: F401 - torch needs it
        import torch
    except ImportError as error:
        raise MissingExtra("Writing ONNX files", "export") from error
    # Two images, because torch takes a size of one for fixed.
    images = torch.zeros(2, 3, *size)
    with _quiet():
        try:
            torch.onnx.export(
                network,
                (images,),
                os.fspath(path),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                external_data=False,
                input_names=["image"],
                output_names=list(outputs),
                dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
            )
        except OSError:
            raise
        except Exception as error:  # of torch.export, of the translation, or of protobuf
            raise ModelError(_reason(error)) from error


def _reason(error: BaseException) -> str:
    """What torch could not do, in one line: its own error only tells at which of several steps it was."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """For torch, which tells its progress, what else could be installed, and what will change in later versions."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)  # many loggers of theirs, of which some have levels of their own
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(
                io.StringIO()
            ),  # where it prints networks that it cannot write
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def read_model(path: Path) -> ModelProto:
    """An ONNX file.

    Raises:
        MissingExtra: onnx is not installed.
        ModelError: It cannot be read.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingExtra("Changing ONNX files", "export") from error
    try:
        return onnx.load(path)
    except Exception as error:  # protobuf's own errors have no common name that can be imported
        told = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(f"cannot read {path}: {told}") from error


def name_outputs(model: ModelProto, scores: str, features: str | None) -> None:
    """Let a network give `scores`, and `features` where they are known, and nothing else.

    Args:
        model: It is changed in place.
        scores: The name of the output that is the scores.
        features: The name of the value that is the embedding.
    """
    import onnx

    graph = model.graph
    found = {output.name: output for output in graph.output}
    given = {"scores": scores} | ({"features": features} if features else {})
    _free_names(graph, {name for name, value in given.items() if name != value})
    outputs = []
    for name, value in given.items():
        if name == value and value in found:
            outputs.append(found[value])
            continue
        graph.node.append(onnx.helper.make_node("Identity", [value], [name]))
        kind = onnx.TensorProto.FLOAT
        outputs.append(onnx.helper.make_tensor_value_info(name, kind, ["n", None]))
    del graph.output[:]
    graph.output.extend(outputs)


def _free_names(graph: GraphProto, names: set[str]) -> None:
    """Rename values inside a graph that have a name which an output is to have."""
    for node in graph.node:
        for values in (node.input, node.output):
            for place, value in enumerate(values):
                if value in names:
                    values[place] = f"{value}_inside"


def store_biases(model: ModelProto) -> None:
    """Store the biases of quantised convolutions in 32-bit integers, as ONNX Runtime's integer convolution wants them.

    With biases in floats it computes the whole convolution in floats.

    Args:
        model: In quantise / dequantise form; it is changed in place.
    """
    import onnx
    from onnx import numpy_helper

    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    nodes: list[NodeProto] = []
    for node in graph.node:
        scales = [_stored_scale(makers.get(name), stored) for name in node.input[:2]]
        bias = stored.get(node.input[2]) if len(node.input) > 2 else None
        if node.op_type == "Conv" and bias is not None and scales[0] is not None:
            values = numpy_helper.to_array(bias)
            if scales[1] is not None and scales[0].size == 1 and values.dtype == np.float32:
                scale = np.broadcast_to(scales[0].reshape(()) * scales[1].reshape(-1), values.shape)
                scale = np.maximum(scale, np.float32(1e-12)).astype(np.float32)
                limits = np.iinfo(np.int32)
                integers = np.clip(
                    np.rint(values / scale.astype(np.float64)), limits.min, limits.max
                )
                names = [
                    f"{node.output[0]}_bias{end}" for end in ("_integers", "_scale", "_zero", "")
                ]
                zeros = np.zeros(values.shape, np.int32)
                for name, held in zip(
                    names, (integers.astype(np.int32), scale, zeros), strict=False
                ):
                    graph.initializer.append(numpy_helper.from_array(held, name))
                nodes.append(
                    onnx.helper.make_node("DequantizeLinear", names[:3], names[3:], axis=0)
                )
                node.input[2] = names[3]
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unused(graph)


def _stored_scale(node: NodeProto | None, stored: dict[str, Any]) -> npt.NDArray[Any] | None:
    """The scale of a dequantiser, if it is stored and not computed."""
    from onnx import numpy_helper

    if node is None or node.op_type != "DequantizeLinear" or node.input[1] not in stored:
        return None
    return numpy_helper.to_array(stored[node.input[1]])


def make_unsigned(model: ModelProto) -> None:
    """Store what lies between layers in uint8 instead of int8: the same values, moved by 128.

    On x86 ONNX Runtime multiplies unsigned activations by signed weights, and computes all else in floats.

    Args:
        model: In quantise / dequantise form; it is changed in place.
    """
    from onnx import numpy_helper

    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    moved: set[str] = set()
    for node in graph.node:
        is_after = node.op_type == "DequantizeLinear" and node.input[0] in moved
        if not (node.op_type == "QuantizeLinear" or is_after) or len(node.input) != 3:
            continue
        if node.input[2] not in stored:
            continue
        zero = numpy_helper.to_array(stored[node.input[2]])
        if zero.dtype == np.int8:
            name = f"{node.input[2]}_unsigned"
            if name not in stored:
                shifted = (zero.astype(np.int16) + 128).astype(np.uint8)
                stored[name] = numpy_helper.from_array(shifted, name)
                graph.initializer.append(stored[name])
            node.input[2] = name
            if node.op_type == "QuantizeLinear":
                moved.add(node.output[0])
    kept = [value for value in graph.value_info if value.name not in moved]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    _drop_unused(graph)


def drop_clips(model: ModelProto) -> None:
    """Leave out limits before a quantiser that has the same ones.

    ONNX Runtime fuses a layer with its quantiser only where nothing stands between them.

    Args:
        model: In quantise / dequantise form; it is changed in place.
    """
    from onnx import numpy_helper

    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        clip = makers.get(node.input[0]) if node.op_type == "QuantizeLinear" else None
        if clip is None or clip.op_type != "Clip" or not set(node.input[1:]) <= set(stored):
            continue
        if len(clip.input) != 3 or not set(clip.input[1:]) <= set(stored) or len(node.input) != 3:
            continue
        low, high = (float(numpy_helper.to_array(stored[name])) for name in clip.input[1:])
        scale, zero = (numpy_helper.to_array(stored[name]) for name in node.input[1:])
        if scale.size == 1:
            limits = np.array([np.iinfo(zero.dtype).min, np.iinfo(zero.dtype).max])
            least, most = _real(limits, scale.reshape(()), zero.reshape(()), 0)
            step = float(scale.reshape(()))
            if least >= low - step and most <= high + step:
                node.input[0] = clip.input[0]
    used = {name for node in graph.node for name in node.input}
    used |= {output.name for output in graph.output}
    kept = [node for node in graph.node if node.op_type != "Clip" or node.output[0] in used]
    del graph.node[:]
    graph.node.extend(kept)


_POOLING = ("ReduceMean", "GlobalAveragePool", "GlobalMaxPool", "ReduceMax")


def tail_of(model: ModelProto) -> list[str]:
    """Names of the nodes between the last pooling and the outputs, which turn the description of an image into scores.

    Where the network does not end with a pooling, it is the last linear layer and what follows it. Nodes without a
    name are given one.

    Args:
        model: It is changed in place.
    """
    graph = model.graph
    for place, node in enumerate(graph.node):
        node.name = node.name or f"{node.op_type}_{place}"
    outputs = [output.name for output in graph.output]
    tail, _ = _before(graph, outputs, _POOLING)
    if any(node.op_type in ("Conv", "LayerNormalization", "Softmax") for node in tail):
        layers = ("Gemm", "MatMul", "Conv", "LayerNormalization")
        tail, last = _before(graph, outputs[:1], layers)
        tail += [node for node in last if node.op_type in ("Gemm", "MatMul")]
    return [node.name for node in tail]


def _before(
    graph: GraphProto, outputs: list[str], ends: tuple[str, ...]
) -> tuple[list[NodeProto], list[NodeProto]]:
    """The nodes that lead to some values, back to those of some operators; and these themselves."""
    makers = {output: node for node in graph.node for output in node.output}
    found: dict[str, NodeProto] = {}
    last: dict[str, NodeProto] = {}
    waiting = list(outputs)
    while waiting:
        node = makers.get(waiting.pop())
        if node is None or node.name in found:
            continue
        if node.op_type in ends:
            last[node.name] = node
            continue
        found[node.name] = node
        waiting.extend(node.input)
    return list(found.values()), list(last.values())


def without_integers(model: ModelProto) -> ModelProto:
    """A network in quantise / dequantise form, in fp32: stored integers become the numbers that they stand for.

    Rounding between layers goes, but its limits stay: a network may rely on them instead of a ReLU6.

    Args:
        model: It is changed in place.

    Raises:
        ModelError: It has integer arithmetic in another form.
    """
    import onnx
    from onnx import numpy_helper

    graph = model.graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    ranks: dict[str, int] = {}
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type.startswith("QLinear") or node.op_type in ("ConvInteger", "MatMulInteger"):
            raise ModelError(f"networks with {node.op_type} cannot be made fp32")
        if node.op_type == "QuantizeLinear":
            continue  # its dequantiser speaks for both
        if node.op_type != "DequantizeLinear":
            nodes.append(node)
            continue
        scale, zero = (_constant(stored, name) for name in (node.input[1], _third(node)))
        source = makers.get(node.input[0])
        if node.input[0] in stored:
            values = _real(stored[node.input[0]], scale, zero, _axis(node))
            graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
        elif source is not None and source.op_type == "QuantizeLinear":
            kind = np.uint8 if zero is None else zero.dtype
            limits = np.array([np.iinfo(kind).min, np.iinfo(kind).max])
            low, high = (float(v) for v in _real(limits, scale, zero, 0))
            nodes.append(_clip(onnx, graph, source.input[0], node.output[0], low, high))
        else:  # a quantised input, such as the bytes of an image, or integers that are worked out
            rank = 0
            if scale is not None and scale.size > 1:
                ranks = ranks or _ranks(onnx, model)
                if node.input[0] not in ranks:
                    raise ModelError(
                        "networks whose integers have no known shape cannot be made fp32"
                    )
                rank = ranks[node.input[0]]
            nodes.extend(_opened(onnx, graph, node, scale, zero, rank))
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unused(graph)
    return model


def _constant(stored: dict[str, npt.NDArray[Any]], name: str) -> npt.NDArray[Any] | None:
    if name and name not in stored:
        raise ModelError("networks whose scales are computed cannot be made fp32")
    return stored.get(name)


def _third(node: NodeProto) -> str:
    return node.input[2] if len(node.input) > 2 else ""


def _axis(node: NodeProto) -> int:
    return next((int(entry.i) for entry in node.attribute if entry.name == "axis"), 1)


def _real(
    values: npt.NDArray[Any],
    scale: npt.NDArray[Any] | None,
    zero: npt.NDArray[Any] | None,
    axis: int,
) -> npt.NDArray[np.float32]:
    """What integers stand for: `scale * (value - zero)`, with one scale or one a channel."""
    assert scale is not None
    if scale.size > 1:
        shape = [1] * values.ndim
        shape[axis] = -1
        scale = scale.reshape(shape)
        zero = zero.reshape(shape) if zero is not None else None
    centred = values.astype(np.float64) - (0 if zero is None else zero.astype(np.float64))
    real: npt.NDArray[np.float32] = (centred * scale).astype(np.float32)
    return real


def _clip(
    onnx: Any, graph: GraphProto, source: str, name: str, low: float, high: float
) -> NodeProto:
    limits = []
    for side, value in (("low", low), ("high", high)):
        limits.append(f"{name}_{side}")
        array = np.array(value, np.float32)
        graph.initializer.append(onnx.numpy_helper.from_array(array, limits[-1]))
    node: NodeProto = onnx.helper.make_node("Clip", [source, *limits], [name])
    return node


def _opened(
    onnx: Any, graph: GraphProto, node: NodeProto, scale: Any, zero: Any, rank: int
) -> list[NodeProto]:
    """Nodes that work out what integers stand for; `rank` is how many axes they have, where each channel is scaled."""
    name = node.output[0]
    shape = [1] * rank
    if rank:
        shape[_axis(node)] = -1
    offset = np.array(0 if zero is None else zero, np.float32)
    for what, value in (("scale", np.asarray(scale, np.float32)), ("zero", offset)):
        spread = value.reshape(shape) if value.size > 1 else value
        graph.initializer.append(onnx.numpy_helper.from_array(spread, f"{name}_{what}"))
    make = onnx.helper.make_node
    return [
        make("Cast", [node.input[0]], [f"{name}_wide"], to=onnx.TensorProto.FLOAT),
        make("Sub", [f"{name}_wide", f"{name}_zero"], [f"{name}_centred"]),
        make("Mul", [f"{name}_centred", f"{name}_scale"], [name]),
    ]


def _ranks(onnx: Any, model: ModelProto) -> dict[str, int]:
    """How many axes each value has, where it can be told."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info)
        if value.type.tensor_type.HasField("shape")
    }


def _drop_unused(graph: GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    used |= {output.name for output in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
