"""The two towers of an image-text checkpoint in torch, with the networks of transformers.

Weights come from files in the directory alone: safetensors, or `pytorch_model.bin` of which nothing is executed. No
code of a repository is run, and no connection is opened. Weights that are missing, or of other shapes than
`config.json` says, are an error here, where transformers goes on with random ones and a warning.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from annotary.cards import Similarity
from annotary.errors import MissingExtra, ModelError

_NAMED_AT_MOST = 5


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
    model = _load(directory, model_type)
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


def _load(directory: Path, model_type: str) -> Any:
    transformers = _library()
    classes = {
        "clip": transformers.CLIPModel,
        "metaclip_2": transformers.MetaClip2Model,
        "siglip": transformers.SiglipModel,
        "siglip2": transformers.Siglip2Model,
    }
    safe = ("model.safetensors", "model.safetensors.index.json")
    is_safe = any((directory / name).is_file() for name in safe)
    with quiet():
        try:
            model, told = classes[model_type].from_pretrained(
                directory,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=is_safe,
                weights_only=True,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # they are named below
                output_loading_info=True,
            )
        except Exception as error:  # transformers raises whatever its parts raise
            told_error = _first_line(error)
            raise ModelError(f"transformers cannot load {directory}: {told_error}") from error
    wrong = {
        "lack": told.get("missing_keys"),
        "have other shapes than config.json says for": told.get("mismatched_keys"),
    }
    for what, keys in wrong.items():
        if keys:
            raise ModelError(f"the weights of {directory} {what} {_listed(keys)}")
    return model.eval()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without progress bars and warnings of transformers on the terminal; what matters of them is an error here."""
    transformers = _library()
    logger = logging.getLogger("transformers")
    before, bars = logger.level, transformers.utils.logging.is_progress_bar_enabled()
    logger.setLevel(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(before)
        if bars:
            transformers.utils.logging.enable_progress_bar()


def _library() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("Image-text checkpoints in torch", "torch") from error
    return transformers


def _listed(keys: Any) -> str:
    names = sorted(key[0] if isinstance(key, tuple) else str(key) for key in keys)
    more = f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else ""
    return ", ".join(names[:_NAMED_AT_MOST]) + more


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0]
