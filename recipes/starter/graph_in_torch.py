"""Runs a small ONNX graph in torch, so that what is in it can be trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

Attributes = dict[str, Any]


def _axis(inputs: list[Tensor]) -> int:
    return int(inputs[1][0])


_OPERATORS: dict[str, Callable[[list[Tensor], Attributes], Tensor]] = {
    "Add": lambda i, _: i[0] + i[1],
    "Cast": lambda i, _: i[0].float(),
    "Concat": lambda i, a: torch.cat(i, a["axis"]),
    "Conv": lambda i, a: functional.conv1d(functional.pad(i[0], tuple(a["pads"])), i[1]),
    "Div": lambda i, _: i[0] / i[1],
    "MatMul": lambda i, _: i[0] @ i[1],
    "Max": lambda i, _: torch.maximum(i[0], i[1]),
    "Mul": lambda i, _: i[0] * i[1],
    "ReduceL2": lambda i, a: i[0].norm(dim=_axis(i), keepdim=bool(a["keepdims"])),
    "ReduceMean": lambda i, a: i[0].mean(_axis(i), keepdim=bool(a["keepdims"])),
    "ReduceSum": lambda i, a: i[0].sum(_axis(i), keepdim=bool(a["keepdims"])),
    "Relu": lambda i, _: i[0].relu(),
    "Sqrt": lambda i, _: i[0].sqrt(),
    "Sub": lambda i, _: i[0] - i[1],
    "Tanh": lambda i, _: i[0].tanh(),
    "Transpose": lambda i, a: i[0].permute(*a["perm"]),
    "Unsqueeze": lambda i, _: i[0].unsqueeze(_axis(i)),
}
"""The operators of the text tower after its table."""


class TorchGraph(nn.Module):
    """An ONNX graph from some of its tensors on; its arrays of floats are parameters.

    Args:
        path: The ONNX file.
        starts: Tensors that are given; what leads to them is left out.
        output: The tensor that is wanted.

    Raises:
        ValueError: The graph holds an operator that is not known here.
    """

    def __init__(self, path: Path, starts: list[str], output: str) -> None:
        super().__init__()
        graph = onnx.load(path).graph
        self._output = output
        self._nodes = _needed(graph, starts, output)
        used = {name for node in self._nodes for name in node.input}
        unknown = {node.op_type for node in self._nodes} - {*_OPERATORS, "Split"}
        if unknown:
            raise ValueError(f"{path} holds {', '.join(sorted(unknown))}, which is not known here")
        self.arrays = nn.ParameterDict()
        self._fixed: dict[str, Tensor] = {}
        for entry in graph.initializer:
            if entry.name in used:
                values = torch.from_numpy(numpy_helper.to_array(entry).copy())
                if entry.data_type == TensorProto.FLOAT:
                    self.arrays[entry.name] = nn.Parameter(values)
                else:
                    self._fixed[entry.name] = values

    def forward(self, given: Mapping[str, Tensor]) -> Tensor:
        """The output, for tensors by name."""
        known = {**self._fixed, **dict(self.arrays.items()), **given}
        for node in self._nodes:
            inputs = [known[name] for name in node.input]
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type == "Split":
                parts = torch.split(inputs[0], inputs[1].tolist(), attributes["axis"])
                known.update(zip(node.output, parts, strict=True))
            else:
                known[node.output[0]] = _OPERATORS[node.op_type](inputs, attributes)
        found: Tensor = known[self._output]
        return found


def _needed(graph: onnx.GraphProto, starts: list[str], output: str) -> list[onnx.NodeProto]:
    """The nodes between the given tensors and the output, in their order."""
    wanted, found = {output}, []
    for node in reversed(graph.node):
        if wanted & set(node.output) and not set(starts) & set(node.output):
            found.append(node)
            wanted.update(node.input)
    return found[::-1]
