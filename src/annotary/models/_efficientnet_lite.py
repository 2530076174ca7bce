"""EfficientNet-Lite: the convolutional image tower of the starter tagger.

Paper: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (2019). Original code
and weights: Google's ``efficientnet/lite`` (Apache-2.0). The Lite variants drop squeeze-and-excitation, use ReLU6
instead of swish and keep the stem and the head unscaled, so that they quantise well.

What differs here: the padding is TensorFlow's "same" for every input size (worked out when the network runs, so 300 px
works with 260 px weights), the pooled outputs of every stage can be had from one forward pass, and batch
normalisation can be folded into the convolutions for export.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

IMAGE_MEAN = 127.0
"""Subtracted from 0..255 pixel values of all three channels."""

IMAGE_SCALE = 128.0
"""Divides the pixel values after the mean is subtracted."""

# (repeats, kernel, stride, expansion, input channels, output channels) of EfficientNet-B0, which all variants scale.
_STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
_STEM_CHANNELS = 32
_HEAD_CHANNELS = 1280
_LARGEST = 10.0


@dataclass(frozen=True)
class EfficientNetLiteConfig:
    """Size of one EfficientNet-Lite."""

    width: float = 1.1
    """Multiplies the channels of every stage (1.1 in Lite2)."""

    depth: float = 1.2
    """Multiplies the repeats of every stage but the first and the last (1.2 in Lite2)."""

    image_size: int = 260
    """Side in pixels of the square input that the weights were trained with."""

    classes: int = 1000
    """Outputs of the classifier."""

    norm_epsilon: float = 1e-3
    """Added to the variance in batch normalisation, as in the TensorFlow original."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("width", "depth"):
            value = getattr(self, name)
            if not 0.0 < value <= _LARGEST:
                raise ValueError(
                    f"{name} must be above 0 and at most {_LARGEST:g}, but got {value}"
                )
        if min(self.image_size, self.classes) < 1:
            raise ValueError("image_size and classes must be at least 1")


class ConvNorm(nn.Module):
    """A convolution with TensorFlow's "same" padding, batch normalisation and, unless told otherwise, ReLU6."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        epsilon: float = 1e-3,
        has_activation: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, groups=groups, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(outputs, eps=epsilon, momentum=0.01)
        self.kernel = kernel
        self.stride = stride
        self.has_activation = has_activation

    def forward(self, image: Tensor) -> Tensor:
        """Map ``[b, inputs, h, w]`` to ``[b, outputs, ceil(h / stride), ceil(w / stride)]``."""
        top, bottom = same_padding(int(image.shape[2]), self.kernel, self.stride)
        left, right = same_padding(int(image.shape[3]), self.kernel, self.stride)
        if top == bottom == left == right:
            convolved = functional.conv2d(
                image, self.conv.weight, self.conv.bias, self.stride, top, 1, self.conv.groups
            )
        else:
            convolved = self.conv(functional.pad(image, (left, right, top, bottom)))
        normalised: Tensor = self.norm(convolved)
        return functional.relu6(normalised) if self.has_activation else normalised

    @torch.no_grad()
    def fold(self) -> None:
        """Move the batch normalisation into the convolution's weight and bias; the output stays the same."""
        if not isinstance(self.norm, nn.BatchNorm2d):
            return
        running_variance, running_mean = self.norm.running_var, self.norm.running_mean
        assert running_variance is not None
        assert running_mean is not None
        factor = self.norm.weight / torch.sqrt(running_variance + self.norm.eps)
        self.conv.weight.mul_(factor[:, None, None, None])
        self.conv.bias = nn.Parameter(self.norm.bias - running_mean * factor)
        self.norm = nn.Identity()


class InvertedResidual(nn.Module):
    """Expand with 1×1, filter each channel, project with 1×1; the input is added where the shapes agree."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, epsilon: float
    ) -> None:
        super().__init__()
        middle = inputs * expansion
        self.expand: nn.Module = (
            ConvNorm(inputs, middle, 1, epsilon=epsilon) if expansion != 1 else nn.Identity()
        )
        self.depthwise = ConvNorm(
            middle, middle, kernel, stride=stride, groups=middle, epsilon=epsilon
        )
        self.project = ConvNorm(middle, outputs, 1, epsilon=epsilon, has_activation=False)
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, image: Tensor) -> Tensor:
        """Map ``[b, inputs, h, w]`` to ``[b, outputs, ceil(h / stride), ceil(w / stride)]``."""
        projected = self.branch(image)
        return image + projected if self.has_shortcut else projected

    def branch(self, image: Tensor) -> Tensor:
        """What is added to the input where the shapes agree, and else is the output."""
        projected: Tensor = self.project(self.depthwise(self.expand(image)))
        return projected


class EfficientNetLite(nn.Module):
    """The network: stem, seven stages of inverted residuals, a 1×1 head, the mean over positions, a classifier.

    Attributes:
        config: Its size.
        stage_channels: Channels of the seven stages' outputs and of the head's.
    """

    block_class: ClassVar[type[InvertedResidual]] = InvertedResidual
    """What the stages are made of."""

    def __init__(self, config: EfficientNetLiteConfig | None = None) -> None:
        super().__init__()
        self.config = config or EfficientNetLiteConfig()
        epsilon = self.config.norm_epsilon
        self.stem = ConvNorm(3, _STEM_CHANNELS, 3, stride=2, epsilon=epsilon)
        blocks: list[nn.Module] = []
        ends: list[int] = []
        channels: list[int] = []
        last = len(_STAGES) - 1
        for number, (repeats, kernel, stride, expansion, inputs, outputs) in enumerate(_STAGES):
            inputs = _STEM_CHANNELS if number == 0 else self._round_channels(inputs)
            outputs = self._round_channels(outputs)
            if 0 < number < last:
                repeats = math.ceil(repeats * self.config.depth)
            blocks += [
                self.block_class(
                    inputs if repeat == 0 else outputs,
                    outputs,
                    kernel,
                    stride if repeat == 0 else 1,
                    expansion,
                    epsilon,
                )
                for repeat in range(repeats)
            ]
            ends.append(len(blocks) - 1)
            channels.append(outputs)
        self.blocks = nn.ModuleList(blocks)
        self.stage_ends = tuple(ends)
        self.stage_channels = (*channels, _HEAD_CHANNELS)
        self.head = ConvNorm(outputs, _HEAD_CHANNELS, 1, epsilon=epsilon)
        self.classifier = nn.Linear(_HEAD_CHANNELS, self.config.classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return class logits ``[b, classes]`` for RGB ``[b, 3, h, w]`` less `IMAGE_MEAN`, by `IMAGE_SCALE`."""
        logits: Tensor = self.classifier(self.stages(image)[-1].mean(dim=(2, 3)))
        return logits

    def stages(self, image: Tensor) -> list[Tensor]:
        """Return the outputs of the seven stages and of the head, each ``[b, channels, h, w]``."""
        hidden = self.stem(image)
        outputs = []
        for number, block in enumerate(self.blocks):
            hidden = block(hidden)
            if number in self.stage_ends:
                outputs.append(hidden)
        outputs.append(self.head(hidden))
        return outputs

    def fold(self) -> EfficientNetLite:
        """Fold every batch normalisation into its convolution, in place, for export and fast inference."""
        for module in list(self.modules()):
            if isinstance(module, ConvNorm):
                module.fold()
        return self

    def load_reference(self, state: Mapping[str, Tensor]) -> EfficientNetLite:
        """Load a state dict with the names of the ``efficientnet-lite-pytorch`` package; every key must match."""
        self.load_state_dict(rename_reference(state))
        return self

    def _round_channels(self, channels: int) -> int:
        scaled = channels * self.config.width
        rounded = max(8, int(scaled + 4) // 8 * 8)
        return int(rounded + 8 if rounded < 0.9 * scaled else rounded)


def rename_reference(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of ``efficientnet-lite-pytorch`` under this module's names."""
    top = {"_conv_stem": "stem.conv", "_bn0": "stem.norm", "_conv_head": "head.conv"}
    top |= {"_bn1": "head.norm", "_fc": "classifier"}
    inner = {"_expand_conv": "expand.conv", "_bn0": "expand.norm", "_bn1": "depthwise.norm"}
    inner |= {"_depthwise_conv": "depthwise.conv"}
    inner |= {"_project_conv": "project.conv", "_bn2": "project.norm"}
    renamed = {}
    for name, value in state.items():
        parts = name.split(".")
        if parts[0] == "_blocks":
            parts = ["blocks", parts[1], inner[parts[2]], *parts[3:]]
        else:
            parts = [top[parts[0]], *parts[1:]]
        renamed[".".join(parts)] = value
    return renamed


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after one axis, as TensorFlow pads: the odd one goes after."""
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2
