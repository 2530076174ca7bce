"""The two towers of an image-text checkpoint in torch, with the networks of transformers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from annotary.cards import Similarity
from annotary.errors import ModelError
from annotary.models._transformers_loading import load_network

_CLASSES = {
    "clip": "CLIPModel",
    "metaclip_2": "MetaClip2Model",
    "siglip": "SiglipModel",
    "siglip2": "Siglip2Model",
}
"""What `model_type` says, as a class of transformers."""


class TorchTowers(NamedTuple):
    """A checkpoint.

    Attributes:
        images: float32[b, 3, h, w], or what `fit = "patches"` gives, to float32[b, d].
        texts: int64[b, l] to float32[b, d].
        similarity: What the checkpoint says of scores.
    """

    images: nn.Module
    texts: nn.Module
    similarity: Similarity


def load_towers(directory: Path, model_type: str) -> TorchTowers:
    """The towers of a checkpoint, each by itself, so that one can be let go of.

    Args:
        directory: With `config.json` and weights.
        model_type: `clip`, `metaclip_2`, `siglip` or `siglip2`.

    Raises:
        MissingExtra: transformers is not installed.
        ModelError: The weights are missing, damaged, or are not those of the config.
    """
    model = load_network(directory, _CLASSES[model_type])
    images: nn.Module = _PatchImages(model) if model_type == "siglip2" else _Images(model)
    return TorchTowers(images, _Texts(model), _similarity(model, directory))


class _Images(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.vision_model
        self.projection = getattr(model, "visual_projection", None) or nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.projection(self.tower(pixel_values=images).pooler_output))


class _PatchImages(nn.Module):
    """SigLIP 2's NaFlex: takes float32[b, n, 3 * p * p + 2], the values of patches, then row and column, or -1."""

    casts_itself = True  # rows and columns are no pixels

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.vision_model

    def forward(self, patches: Tensor) -> Tensor:
        values, places = patches[..., :-2], patches[..., -2:]
        found = self.tower(
            pixel_values=values,
            pixel_attention_mask=(places[..., 0] >= 0).to(torch.int32),
            spatial_shapes=places.amax(dim=1).to(torch.int64) + 1,
        )
        return cast(Tensor, found.pooler_output)


class _Texts(nn.Module):
    """Without a mask: CLIP's tower looks back only, and SigLIP's was trained to look at what fills texts up, too."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.text_model
        self.projection = getattr(model, "text_projection", None) or nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        return cast(Tensor, self.projection(self.tower(input_ids=tokens).pooler_output))


def _similarity(model: Any, directory: Path) -> Similarity:
    scale = math.exp(float(model.logit_scale.detach()))
    bias = getattr(model, "logit_bias", None)
    try:
        if bias is None:
            return Similarity("softmax", scale)
        return Similarity("sigmoid", scale, float(bias.detach()))
    except ValueError as error:
        raise ModelError(f"the weights of {directory} make no scores: {error}") from error
