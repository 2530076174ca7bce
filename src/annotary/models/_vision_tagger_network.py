"""A vision network with a linear head: what a fine-tuned backbone is, for training and for use.

The network is one of transformers, or an EfficientNet-Lite of ours, for which transformers is not imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from annotary.errors import MissingExtra, ModelError
from annotary.models._checkpoint_files import CONFIG_FILE
from annotary.models._efficientnet_backbone import (
    EfficientNetBackbone,
    LitePooling,
    config_of,
    is_efficientnet,
)
from annotary.models._transformers_loading import load_network, quiet
from annotary.models._vision_tagger_files import WEIGHTS_FILE, Pooling, read_tagger

KNOWN = (
    *("dinov2", "dinov2_with_registers", "dinov3_vit", "vit"),
    *("siglip_vision_model", "clip_vision_model"),
)
"""Kinds of networks (`model_type`) that are known to work; of an image-text checkpoint its `vision_config` counts."""

_INTERPOLATED = ("vit", "siglip_vision_model", "clip_vision_model")
"""Those with learned positions that must be told that an image has another size."""


class VisionTaggerNetwork(nn.Module):
    """A backbone and a head.

    Args:
        backbone: Of transformers, which takes `pixel_values` [b, 3, h, w], or an `EfficientNetBackbone`.
        tags: How many outputs the head has.
        pooling: What the head reads: `pooled` is the network's own summary (a class token, or a pooling layer), `mean`
            the mean of the patches' tokens, `both` one after the other. An EfficientNet-Lite was made for one.

    Raises:
        ModelError: The network has no stages to read.
    """

    def __init__(self, backbone: Any, tags: int, pooling: Pooling = "pooled") -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.pooling = pooling
        if isinstance(backbone, EfficientNetBackbone):
            width = backbone.width
        elif pooling == "stages":
            raise ModelError(
                f"of {backbone.config.model_type} a head reads pooled, mean or both, and not 'stages'"
            )
        else:
            width = backbone.config.hidden_size * (2 if pooling == "both" else 1)
        self.head = nn.Linear(width, tags)

    def embed(self, images: Tensor) -> Tensor:
        """What the head reads, float[b, d], of images float[b, 3, h, w]."""
        if isinstance(self.backbone, EfficientNetBackbone):
            return cast(Tensor, self.backbone(images))
        config = self.backbone.config
        more: dict[str, Any] = {}
        if config.model_type in _INTERPOLATED and images.shape[-1] != config.image_size:
            more["interpolate_pos_encoding"] = True
        found = self.backbone(pixel_values=images, **more)
        tokens = cast(Tensor, found.last_hidden_state)
        parts = []
        if self.pooling != "mean":
            pooled = getattr(found, "pooler_output", None)
            parts.append(tokens[:, 0] if pooled is None else pooled)
        if self.pooling != "pooled":
            patches = (images.shape[2] // config.patch_size) * (
                images.shape[3] // config.patch_size
            )
            parts.append(tokens[:, -patches:].mean(dim=1))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def check_size(self, height: int, width: int) -> None:
        """Check that the network takes images of this size.

        Raises:
            ModelError: It does not.
        """
        if isinstance(self.backbone, EfficientNetBackbone):
            self.backbone.check_size(height, width)
            return
        patch = self.backbone.config.patch_size
        if min(height, width) < patch or height % patch or width % patch:
            raise ModelError(
                f"the backbone takes images whose sides are multiples of {patch} pixels, but got {height}x{width}"
            )


class VisionTaggerForUse(VisionTaggerNetwork):
    """The network for use."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [b, t] and what the head reads [b, d]."""
        embedding = self.embed(images)
        return cast(Tensor, self.head(embedding)), embedding


def load_backbone(directory: Path, settings: Mapping[str, Any] | None = None) -> Any:
    """The image network of a checkpoint as it is published, in float32.

    Args:
        directory: With `config.json` and weights.
        settings: What shall differ from `config.json`; what the kind of network does not know is passed over.

    Raises:
        MissingExtra: transformers is not installed.
        ModelError: The weights are missing, damaged, or of no network that is known here.
    """
    config = vision_config(directory)
    kind, more = _class_of(config)
    known = {name: value for name, value in (settings or {}).items() if hasattr(config, name)}
    return load_network(directory, kind, {**known, **more})


def empty_backbone(directory: Path, settings: Mapping[str, Any] | None = None) -> Any:
    """The image network that a `config.json` tells, whose weights are yet to come.

    Args:
        directory: With `config.json`; of an EfficientNet-Lite also with `tagger.json`.
        settings: As for `load_backbone`; an EfficientNet-Lite knows none.

    Raises:
        MissingExtra: transformers is not installed.
        ModelError: The settings are damaged, or of no network that is known here.
    """
    if is_efficientnet(directory):
        pooling, _ = read_tagger(directory)
        return EfficientNetBackbone(config_of(directory), cast(LitePooling, pooling))
    config = vision_config(directory)
    kind, more = _class_of(config)
    for name, value in (settings or {}).items():
        if hasattr(config, name):
            setattr(config, name, value)
    import transformers

    with quiet():
        try:
            return getattr(transformers, kind)(config, **more)
        except Exception as error:  # transformers raises whatever its parts raise
            told = _first_line(error)
            raise ModelError(
                f"transformers cannot make the network of {directory}: {told}"
            ) from error


def vision_config(directory: Path) -> Any:
    """The settings of a checkpoint's image network, as transformers has them.

    Raises:
        MissingExtra: transformers is not installed.
        ModelError: They are damaged, or of no network that is known here.
    """
    try:
        from transformers import AutoConfig
    except ImportError as error:
        raise MissingExtra("Backbones of Hugging Face", "torch") from error
    with quiet():
        try:
            config = AutoConfig.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # as above
            told = _first_line(error)
            raise ModelError(f"transformers cannot read {directory}: {told}") from error
    config = getattr(config, "vision_config", config)
    if config.model_type not in KNOWN:
        raise ModelError(
            f"{directory} is of the type {config.model_type!r}, which cannot be trained here; known:"
            f" {', '.join(KNOWN)}"
        )
    return config


def _class_of(config: Any) -> tuple[str, Mapping[str, Any]]:
    """The class of transformers for some settings, and what else it is made with."""
    names = {
        "dinov2": "Dinov2Model",
        "dinov2_with_registers": "Dinov2WithRegistersModel",
        "dinov3_vit": "DINOv3ViTModel",
        "vit": "ViTModel",
        "siglip_vision_model": "SiglipVisionModel",
        "clip_vision_model": "CLIPVisionModel",
    }
    # ViT's pooling layer is not in checkpoints that were trained to classify; the class token is.
    more = {"add_pooling_layer": False} if config.model_type == "vit" else {}
    return names[config.model_type], more


def load_weights(network: VisionTaggerNetwork, directory: Path) -> None:
    """Take the weights of a fine-tuned network.

    Raises:
        ModelError: They are missing, damaged, or of another network; the message names some.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = directory / WEIGHTS_FILE
    try:
        network.load_state_dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {_first_line(error)}") from error
    except RuntimeError as error:  # torch tells which do not fit, a line each
        told = " ".join(str(error).split())[:300]
        raise ModelError(f"the weights of {path} do not fit its {CONFIG_FILE}: {told}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0]
