"""Turns the folded EfficientNet-Lite into 8-bit integers: weights per output channel, activations per tensor.

The choices, each measured on the held-aside photos (see `docs/models/starter.md`):

* Weights are rounded with the scale of least squared error per output channel.
* On processors without 8-bit dot products, two neighbouring products are added in 16 bits with saturation. The usual
  cure is 7-bit weights everywhere. Here a channel's scale is only made coarser until no two neighbouring weights can
  overflow, which keeps nearly all of the eighth bit.
* ReLU6 costs nothing: its range is the range of the tensor's type.
* After each layer the mean error per channel on the calibration images is subtracted from the bias.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from annotary.models._efficientnet_lite import (
    IMAGE_MEAN,
    IMAGE_SCALE,
    ConvNorm,
    EfficientNetLite,
    InvertedResidual,
    same_padding,
)

_PAIR_LIMIT = 128
"""255 · (w0 + w1) must stay below 2**15 for two neighbouring weights of one sign."""

_SMALLEST_SCALE = 1e-6
"""Keeps the biases of dead channels inside 32 bits."""

_SHRINKS = np.linspace(1.0, 0.6, 17)
"""Tried factors of the widest range."""

_SAMPLES = 400_000
"""Values looked at when a range is chosen."""


@dataclass(frozen=True)
class TensorRange:
    """How the real values of a tensor are stored as bytes: ``real = scale * (byte - zero)``."""

    scale: float
    """Real value of one step; above 0."""

    zero: int
    """The byte of real 0, in 0..255."""


@dataclass(frozen=True)
class QuantisedConv:
    """One convolution of the integer tower."""

    weight: npt.NDArray[np.int8]
    """``[outputs, inputs / groups, kernel, kernel]``."""

    weight_scale: npt.NDArray[np.float32]
    """``[outputs]``: real value of one step of each output channel's weights."""

    bias: npt.NDArray[np.float32]
    """``[outputs]``, real values."""

    stride: int
    """Step in both directions, in pixels."""

    groups: int
    """Channels that do not see each other; equal to the outputs in depthwise convolutions."""

    output: TensorRange
    """How the output is stored; where ReLU6 follows, its range is inside 0..6."""


@dataclass(frozen=True)
class QuantisedBlock:
    """One inverted residual of the integer tower."""

    layers: tuple[QuantisedConv, ...]
    """Expand (if any), depthwise and project."""

    total: TensorRange | None
    """How the sum with the block's input is stored; None where there is no shortcut."""


@dataclass(frozen=True)
class QuantisedTower:
    """The whole integer tower, in the order of the network."""

    image: TensorRange
    """The image bytes themselves: scale 1/128, zero 127 is exactly the network's normalisation."""

    stem: QuantisedConv
    """The first convolution."""

    blocks: tuple[QuantisedBlock, ...]
    """All inverted residuals."""

    stage_ends: tuple[int, ...]
    """Index of the last block of every stage."""

    head: QuantisedConv
    """The 1×1 convolution to the features."""


@torch.no_grad()
def quantise(network: EfficientNetLite, images: Tensor) -> QuantisedTower:
    """Quantise a folded network on calibration images.

    Args:
        network: With batch normalisation folded.
        images: RGB bytes ``uint8[n, h, w, 3]``; about a hundred suffice.
    """
    exact = (images.permute(0, 3, 1, 2).float() - IMAGE_MEAN) / IMAGE_SCALE
    rounded = exact.clone()
    stem, exact, rounded = _quantise_layer(network.stem, exact, rounded)
    blocks = []
    for block in network.blocks:
        assert isinstance(block, InvertedResidual)
        before_exact, before_rounded = exact, rounded
        layers = []
        for layer in (block.expand, block.depthwise, block.project):
            if isinstance(layer, ConvNorm):
                quantised, exact, rounded = _quantise_layer(layer, exact, rounded)
                layers.append(quantised)
        total = None
        if block.has_shortcut:
            exact = exact + before_exact
            rounded = rounded + before_rounded
            total = choose_range(rounded, is_positive=False)
            rounded = store(rounded, total)
        blocks.append(QuantisedBlock(tuple(layers), total))
    head, _, _ = _quantise_layer(network.head, exact, rounded)
    return QuantisedTower(
        TensorRange(1 / IMAGE_SCALE, int(IMAGE_MEAN)), stem, tuple(blocks), network.stage_ends, head
    )


def choose_range(values: Tensor, *, is_positive: bool) -> TensorRange:
    """Return the storage of least squared error for a tensor's values.

    Args:
        values: Any shape; a fixed subset of them is looked at.
        is_positive: Whether the values end at 0 and 6, as after ReLU6.
    """
    flat = values.flatten()
    sample = flat[:: max(1, flat.numel() // _SAMPLES)]
    low, high = (
        (0.0, min(6.0, float(flat.max())))
        if is_positive
        else (float(flat.min()), float(flat.max()))
    )
    low, high = min(low, 0.0), max(high, 1e-6)
    best, least = TensorRange(1.0, 0), float("inf")
    for shrink in _SHRINKS:
        scale = (high - low) * float(shrink) / 255
        candidate = TensorRange(scale, round(-low * float(shrink) / scale))
        error = float((store(sample, candidate) - sample).square().mean())
        if error < least:
            best, least = candidate, error
    return best


def store(values: Tensor, stored: TensorRange) -> Tensor:
    """Return the values as they come back from bytes."""
    return ((values / stored.scale).round() + stored.zero).clamp(0, 255).sub(
        stored.zero
    ) * stored.scale


def round_weights(weight: Tensor) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Round weights ``[outputs, inputs, kernel, kernel]`` per output channel so that no pair can overflow.

    Returns:
        The integers and the scale ``[outputs]``, with ``weight ≈ integers * scale``.
    """
    flat = weight.detach().reshape(weight.shape[0], -1).double().numpy()
    has_order = weight.shape[2] == 1
    largest = np.maximum(np.abs(flat).max(1), 127 * _SMALLEST_SCALE)
    best = np.zeros_like(flat)
    best_scale = largest / 63
    least = np.full(len(flat), np.inf)
    for divisor in np.linspace(63, 190, 128):
        scale = np.maximum(largest / divisor, _SMALLEST_SCALE)
        integers = np.clip(np.rint(flat / scale[:, None]), -127, 127)
        error = ((integers * scale[:, None] - flat) ** 2).sum(1)
        error[_pair_sum(integers, has_order) > _PAIR_LIMIT] = np.inf
        is_better = error < least
        best[is_better], best_scale[is_better], least[is_better] = (
            integers[is_better],
            scale[is_better],
            error[is_better],
        )
    return best.reshape(weight.shape).astype(np.int8), best_scale.astype(np.float32)


def _pair_sum(integers: npt.NDArray[np.float64], has_order: bool) -> npt.NDArray[np.float64]:
    """The largest sum of two weights of one sign: neighbours where the order is known (1×1), else any two."""
    largest = np.zeros(len(integers))
    for sign in (1, -1):
        positive = np.maximum(sign * integers, 0)
        if has_order:
            sums = (positive[:, 1:] + positive[:, :-1]).max(1)
        else:
            sums = np.sort(positive, 1)[:, -2:].sum(1)
        largest = np.maximum(largest, sums)
    return largest


def _quantise_layer(
    layer: ConvNorm, exact: Tensor, rounded: Tensor
) -> tuple[QuantisedConv, Tensor, Tensor]:
    """Quantise one convolution; return it with its exact and its rounded outputs."""
    integers, scale = round_weights(layer.conv.weight)
    weight = torch.from_numpy(integers).float() * torch.from_numpy(scale)[:, None, None, None]
    bias = layer.conv.bias
    assert bias is not None
    exact = _convolve(layer, exact, layer.conv.weight, bias)
    rounded = _convolve(layer, rounded, weight, bias)
    if layer.has_activation:
        shift = (rounded.clamp(0, 6) - exact.clamp(0, 6)).mean((0, 2, 3))
    else:
        shift = (rounded - exact).mean((0, 2, 3))
    bias = bias - shift
    rounded = rounded - shift[:, None, None]
    if layer.has_activation:
        exact, rounded = exact.clamp_(0, 6), rounded.clamp_(0, 6)
    output = choose_range(rounded, is_positive=layer.has_activation)
    quantised = QuantisedConv(
        integers, scale, bias.numpy(), layer.stride, layer.conv.groups, output
    )
    return quantised, exact, store(rounded, output)


def _convolve(layer: ConvNorm, image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    top, bottom = same_padding(int(image.shape[2]), layer.kernel, layer.stride)
    left, right = same_padding(int(image.shape[3]), layer.kernel, layer.stride)
    padded = functional.pad(image, (left, right, top, bottom))
    return functional.conv2d(padded, weight, bias, layer.stride, 0, 1, layer.conv.groups)
