"""EfficientNet-Lite as what a tagger's head reads: folded, without a classifier, with the numbers of several stages.

The network is that of `_efficientnet_lite.py`, which says where it comes from. `stages` reads what the heads of the
starter read: the mean of the last map, and the mean and spread of the maps of stages 2 to 6 over all positions
(`recipes/starter/tower.py` makes the same numbers), each less a fixed mean and times a fixed scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from annotary.cards import PreprocessSpec
from annotary.errors import ModelError
from annotary.models._checkpoint_files import CONFIG_FILE, read_json
from annotary.models._efficientnet_lite import (
    IMAGE_MEAN,
    IMAGE_SCALE,
    EfficientNetLite,
    EfficientNetLiteConfig,
)

MODEL_TYPE = "efficientnet_lite"
"""What `config.json` calls it."""

LitePooling = Literal["pooled", "mean", "stages"]
"""What a head can read; its summary is a mean, so `pooled` and `mean` are the same."""

POOLED_STAGES = (2, 3, 4, 5, 6)
"""Stages whose mean and spread are read, counted from 0."""

_LEAST_VARIANCE = 1e-6


class EfficientNetBackbone(EfficientNetLite):
    """The folded network, and what a head reads of it.

    Args:
        config: Its size.
        pooling: What the head reads.

    Attributes:
        pooling: As the argument.
        feature_mean: float[d], taken off what is read.
        feature_scale: float[d], what is left is multiplied by it.
    """

    feature_mean: Tensor
    feature_scale: Tensor

    def __init__(self, config: EfficientNetLiteConfig, pooling: LitePooling = "stages") -> None:
        if pooling not in get_args(LitePooling):
            raise ModelError(
                f"of an EfficientNet-Lite a head reads pooled, mean or stages, and not {pooling!r}"
            )
        super().__init__(config)
        del self.classifier
        self.fold()
        self.pooling = pooling
        self.register_buffer("feature_mean", torch.zeros(self.width))
        self.register_buffer("feature_scale", torch.ones(self.width))

    @property
    def width(self) -> int:
        """How many numbers a head reads."""
        pooled = POOLED_STAGES if self.pooling == "stages" else ()
        return self.stage_channels[-1] + 2 * sum(self.stage_channels[stage] for stage in pooled)

    def forward(self, images: Tensor) -> Tensor:
        """What the head reads, float[b, d], of images float[b, 3, h, w], prepared as `preprocess_of` says."""
        maps = self.stages(images)
        # In float32, also with autocast, which leaves such operations alone: squares lose too much in 16 bits.
        parts = [maps[-1].float().mean(dim=(2, 3))]
        for stage in POOLED_STAGES if self.pooling == "stages" else ():
            parts += mean_and_spread(maps[stage].float())
        pooled = torch.cat(parts, dim=1)
        found = (pooled - self.feature_mean.float()) * self.feature_scale.float()
        return found.to(images.dtype)

    def check_size(self, height: int, width: int) -> None:
        """Check that it takes images of this size: it takes all in which there is something."""
        if min(height, width) < 1:
            raise ModelError(f"images must have pixels, but got {height}x{width}")

    def standardise(self, mean: Tensor, scale: Tensor) -> None:
        """Set what is taken off and multiplied by.

        Args:
            mean: float[d], or of more numbers that begin with these.
            scale: As `mean`.
        """
        self.feature_mean.copy_(mean[: self.width])
        self.feature_scale.copy_(scale[: self.width])


def is_efficientnet(directory: Path) -> bool:
    """Whether the `config.json` of a directory is that of an EfficientNet-Lite.

    Raises:
        ModelError: It cannot be read.
    """
    return read_json(directory / CONFIG_FILE).get("model_type") == MODEL_TYPE


def config_table(config: EfficientNetLiteConfig) -> dict[str, Any]:
    """What a `config.json` says of a network."""
    return {
        "model_type": MODEL_TYPE,
        "width": config.width,
        "depth": config.depth,
        "image_size": config.image_size,
    }


def config_of(directory: Path) -> EfficientNetLiteConfig:
    """The size that a `config.json` says; nothing else than what the backbone has.

    Raises:
        ModelError: It cannot be read, or makes no sense.
    """
    table: Mapping[str, Any] = read_json(directory / CONFIG_FILE)
    try:
        width, depth = float(table["width"]), float(table["depth"])
        return EfficientNetLiteConfig(width, depth, int(table["image_size"]), classes=1)
    except (TypeError, KeyError, ValueError) as error:
        told = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ModelError(f"{directory / CONFIG_FILE}: {told}") from error


def preprocess_of(side: int) -> PreprocessSpec:
    """How images of this side in pixels are prepared: as those that Google's weights were trained with."""
    return PreprocessSpec(
        size=(side, side), fit="squash", mean=(IMAGE_MEAN,) * 3, std=(IMAGE_SCALE,) * 3
    )


def mean_and_spread(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [b, c] over all positions of maps [b, c, h, w]."""
    mean = values.mean(dim=(2, 3))
    variance = (values - mean[:, :, None, None]).square().mean(dim=(2, 3))
    return mean, variance.clamp(min=_LEAST_VARIANCE).sqrt()
