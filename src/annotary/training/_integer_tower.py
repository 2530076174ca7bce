"""Reads the integer network of a tagger like the starter back into numbers that can be trained.

`recipes/starter/graph.py` writes the network: a convolution's weights are int8 with a scale for each channel, its
biases int32, and both pass through `DequantizeLinear`. Norms are folded into them. What is read here are the
convolutions that features come from, in the order of the graph, and what features are standardised by. Weights that
are floats are read, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from annotary.errors import MissingExtra, ModelError
from annotary.models._efficientnet_lite import ConvNorm, EfficientNetLite, EfficientNetLiteConfig

VARIANTS: Mapping[str, EfficientNetLiteConfig] = {
    "Lite0": EfficientNetLiteConfig(1.0, 1.0, 224, classes=1),
    "Lite1": EfficientNetLiteConfig(1.0, 1.1, 240, classes=1),
    "Lite2": EfficientNetLiteConfig(1.1, 1.2, 260, classes=1),
    "Lite3": EfficientNetLiteConfig(1.2, 1.4, 280, classes=1),
    "Lite4": EfficientNetLiteConfig(1.4, 1.8, 300, classes=1),
}
"""The networks of Google's `efficientnet/lite`, with the side of their images in pixels."""

FEATURES = "features"
"""The output that is what heads read, standardised."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Tower:
    """A network that was read.

    Attributes:
        config: Its size.
        weights: Of its convolutions, by the names of `EfficientNetLite` when folded.
        mean: float32[d], what is taken off the features.
        scale: float32[d], what they are multiplied by.
        head: Weight float32[t, d] and bias float32[t] of a linear head on the features, as a probe has; else None.
    """

    config: EfficientNetLiteConfig
    weights: Mapping[str, Tensor]
    mean: Tensor
    scale: Tensor
    head: tuple[Tensor, Tensor] | None


def read_tower(path: Path, configs: Sequence[EfficientNetLiteConfig] = ()) -> Tower:
    """The network of an ONNX file.

    Args:
        path: Of a tagger like the starter.
        configs: Sizes that it may have; those of Google's when empty.

    Raises:
        MissingExtra: The library onnx is not installed.
        ModelError: The file is damaged, or of another network; the message says what differs.
    """
    graph = _Graph(path)
    convolutions = [
        graph.convolution(node) for node in graph.of_features() if node.op_type == "Conv"
    ]
    config = _config_of(path, [one.layout for one in convolutions], configs)
    with torch.device("meta"):
        modules = _convolutions(EfficientNetLite(config))
    weights: dict[str, Tensor] = {}
    for name, one in zip(modules, convolutions, strict=True):
        weights[f"{name}.conv.weight"] = torch.from_numpy(one.weight)
        weights[f"{name}.conv.bias"] = torch.from_numpy(one.bias)
    mean, scale = graph.standardisation()
    return Tower(config, weights, mean, scale, graph.head())


@dataclass(frozen=True)
class _Convolution:
    """Weight float32[o, i, k, k], bias float32[o], and what says which one it is: the weight's shape, and the step."""

    weight: Floats
    bias: Floats
    layout: tuple[int, ...]


class _Graph:
    """The nodes and constants of an ONNX file.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        try:
            import onnx
        except ImportError as error:
            raise MissingExtra("Training the network of an ONNX file", "train") from error
        try:
            graph = cast(Any, onnx.load(path)).graph
        except Exception as error:  # protobuf's own errors have no common name that can be imported
            told = (str(error) or type(error).__name__).splitlines()[0]
            raise ModelError(f"cannot read {path}: {told}") from error
        self.nodes = list(graph.node)
        self._path = path
        self._array = onnx.numpy_helper.to_array
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._makers = {output: node for node in graph.node for output in node.output}

    def of_features(self) -> list[Any]:
        """The nodes that the features are made by, in their order; a second network, as the starter has, is none."""
        needed = {FEATURES}
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
        return [node for node in self.nodes if needed.intersection(node.output)]

    def convolution(self, node: Any) -> _Convolution:
        """The numbers of a `Conv`."""
        if len(node.input) != 3:
            raise ModelError(f"{self._path}: the convolution {node.output[0]} has no bias")
        weight, bias = self.floats(node.input[1]), self.floats(node.input[2])
        steps = [list(one.ints) for one in node.attribute if one.name == "strides"]
        step = steps[0][0] if steps and steps[0] else 1
        return _Convolution(weight, bias, (*weight.shape, step))

    def floats(self, name: str) -> Floats:
        """A constant, as it is or dequantised by a node, in float32."""
        node = self._makers.get(name)
        if node is None:
            return np.array(self._held(name), np.float32)
        if node.op_type != "DequantizeLinear":
            raise ModelError(f"{self._path}: {name} is made by {node.op_type} and is no weight")
        values, scale, *zero = (self._held(one) for one in node.input)
        whole = values.astype(np.float64)
        # One scale a channel, or one for all.
        shape = (-1, *(1,) * (values.ndim - 1)) if scale.ndim else ()
        if zero:
            whole = whole - zero[0].astype(np.float64).reshape(shape)
        return (whole * scale.astype(np.float64).reshape(shape)).astype(np.float32)

    def standardisation(self) -> tuple[Tensor, Tensor]:
        """What features are made by from the numbers of the stages: (numbers - mean) * scale."""
        times = self._makers.get(FEATURES)
        less = self._makers.get(times.input[0]) if times is not None else None
        if times is None or less is None or (less.op_type, times.op_type) != ("Sub", "Mul"):
            raise ModelError(
                f"{self._path} does not make {FEATURES!r} by taking off a mean and multiplying by a scale"
            )
        mean, scale = (
            self.floats(less.input[1]).reshape(-1),
            self.floats(times.input[1]).reshape(-1),
        )
        return torch.from_numpy(mean), torch.from_numpy(scale)

    def head(self) -> tuple[Tensor, Tensor] | None:
        """The linear layer that reads the features, where it gives all of the scores."""
        scores = self._makers.get("scores")
        layer = self._makers.get(scores.input[0]) if scores is not None else None
        if layer is None or layer.op_type != "Gemm" or layer.input[0] != FEATURES:
            return None
        is_turned = any(one.name == "transB" and one.i for one in layer.attribute)
        weight, bias = self.floats(layer.input[1]), self.floats(layer.input[2])
        return torch.from_numpy(weight if is_turned else weight.T), torch.from_numpy(bias)

    def _held(self, name: str) -> npt.NDArray[Any]:
        if name not in self._constants:
            raise ModelError(f"{self._path}: {name} is no constant")
        return self._array(self._constants[name])


def _convolutions(network: EfficientNetLite) -> dict[str, tuple[int, ...]]:
    """The convolutions of a network in the order in which they are computed: name to shape of the weight, and step."""
    return {
        name: (*module.conv.weight.shape, module.stride)
        for name, module in network.named_modules()
        if isinstance(module, ConvNorm)
    }


def _config_of(
    path: Path, found: Sequence[tuple[int, ...]], configs: Sequence[EfficientNetLiteConfig]
) -> EfficientNetLiteConfig:
    """The size of the network that has such convolutions."""
    nearest = ""
    for config in configs or VARIANTS.values():
        with torch.device("meta"):
            wanted = list(_convolutions(EfficientNetLite(config)).values())
        if wanted == list(found):
            return config
        if len(wanted) == len(found):
            place = next(
                at for at, pair in enumerate(zip(wanted, found, strict=True)) if pair[0] != pair[1]
            )
            nearest = f"; number {place + 1} is {found[place]}, where {wanted[place]} was expected"
    raise ModelError(
        f"{path} has {len(found)} convolutions, which are those of no EfficientNet-Lite{nearest}"
    )
