"""Taggers of vision networks that others trained: DINOv2 and 3, SigLIP, CLIP and ViT of Hugging Face, with a new head.

The starter's own network, which needs no transformers, is that of `efficientnet.py`; here both are begun.

Papers: Oquab et al., "DINOv2" (2023); Siméoni et al., "DINOv3" (2025); Zhai et al., "Sigmoid Loss for Language Image
Pre-Training" (2023); Radford et al., "Learning Transferable Visual Models" (2021); Dosovitskiy et al., "An Image is
Worth 16x16 Words" (2021). The networks are those of the library transformers (Apache-2.0); weights have licences of
their own, which what is made of them keeps.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from annotary.cards import PreprocessSpec
from annotary.errors import UsageError
from annotary.models._checkpoint_files import CONFIG_FILE
from annotary.models._checkpoint_preprocess import read_preprocess
from annotary.models._efficientnet_backbone import is_efficientnet
from annotary.models._vision_tagger_files import (
    TAGGER_FILE,
    Pooling,
    backbone_directory,
    read_tagger,
    tagger_text,
)
from annotary.models._vision_tagger_network import (
    VisionTaggerNetwork,
    empty_backbone,
    load_backbone,
    load_weights,
)
from annotary.models.joytag import TAGS_FILE, tag_lines
from annotary.training.heads import (
    HeadReport,
    StartReport,
    fill_head,
    licence_in,
    match_tags,
)
from annotary.training.recipe import NetworkRecipe

_LAYER = re.compile(r"\blayers?\.(\d+)\.")
_BEFORE = ("embeddings", "rope_embeddings")


class BackboneTagger(VisionTaggerNetwork):
    """A backbone with a head, as it is trained.

    Args:
        backbone: Of transformers.
        tags: How many outputs the head has.
        preprocess: How images are prepared for it.
        pooling: What the head reads.

    Attributes:
        is_body_frozen: Whether the head alone is trained; the rest is then always in evaluation mode.
        start: What it started from.
    """

    family = "vision_tagger"

    def __init__(
        self, backbone: Any, tags: int, preprocess: PreprocessSpec, pooling: Pooling
    ) -> None:
        super().__init__(backbone, tags, pooling)
        self.is_body_frozen = False
        self.start = StartReport()
        self._preprocess = preprocess
        self._is_checkpointing = False

    def forward(self, images: Tensor) -> Tensor:
        """Logits [b, t] of images [b, 3, h, w], prepared as `preprocess` says."""
        return cast(Tensor, self.head(self.embed(images)))

    def embed(self, images: Tensor) -> Tensor:
        """What the head reads, float[b, d], of images float[b, 3, h, w]."""
        if not self.is_body_frozen:
            return super().embed(images)
        with torch.no_grad():
            return super().embed(images)

    def train(self, mode: bool = True) -> Self:
        """Go to training mode, or to evaluation mode; a frozen body stays in the latter."""
        super().train(mode)
        if self.is_body_frozen:
            self.backbone.eval()
        return self

    def freeze_body(self) -> None:
        """Train the head alone from here on."""
        self.backbone.requires_grad_(requires_grad=False)
        self.is_body_frozen = True
        self.train(self.training)

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether blocks are computed again in the backward pass."""
        return self._is_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, is_on: bool) -> None:
        # What transformers calls it since 5.24, and what it called it before.
        way = (
            "activation"
            if hasattr(self.backbone, "activation_checkpointing_enable")
            else "gradient"
        )
        if is_on:
            getattr(self.backbone, f"{way}_checkpointing_enable")({"use_reentrant": False})
        elif self._is_checkpointing:
            getattr(self.backbone, f"{way}_checkpointing_disable")()
        self._is_checkpointing = is_on

    @property
    def patch_dropout(self) -> float:
        """Always 0: networks of transformers take all patches."""
        return 0.0

    @patch_dropout.setter
    def patch_dropout(self, share: float) -> None:
        if share:
            raise UsageError("a backbone takes all patches: patch_dropout must be 0")

    @property
    def image_size(self) -> int:
        """Side in pixels of the images that it is trained with now."""
        return self._preprocess.size[0]

    def set_image_size(self, side: int) -> None:
        """Go on with images of another size, between two steps. Learned positions are interpolated at every pass.

        Raises:
            ModelError: Its patches do not fit.
        """
        self.check_size(side, side)
        self._preprocess = replace(self._preprocess, size=(side, side))

    @property
    def preprocess(self) -> PreprocessSpec:
        """How its images are prepared: as its own settings say, at the size that it is trained with."""
        return self._preprocess

    @property
    def depths(self) -> int:
        """How many depths `depth_of` tells apart."""
        return cast(int, self.backbone.config.num_hidden_layers) + 2

    def depth_of(self, name: str) -> int:
        """How deep a parameter lies, for layer-wise decay: 0 is what makes tokens, then the layers, the rest and head.

        Args:
            name: Of `named_parameters`; what wrappers put before it is passed over.
        """
        if found := _LAYER.search(name):
            return int(found[1]) + 1
        is_before = any(part in _BEFORE for part in name.split("."))
        return 0 if is_before else self.depths - 1

    def settings_files(self) -> dict[str, str]:
        """The files beside the weights that say what the network is: name to text."""
        table = self.backbone.config.to_diff_dict()
        return {
            CONFIG_FILE: json.dumps(table, indent=2, sort_keys=True) + "\n",
            TAGGER_FILE: tagger_text(self.pooling, self._preprocess),
        }


def build_backbone(
    recipe: NetworkRecipe,
    tags: Sequence[str],
    start: str,
    image_size: int,
    *,
    pooling: Pooling | None = None,
    bias: Tensor | None = None,
    aliases: Mapping[str, str] | None = None,
) -> BackboneTagger:
    """A backbone with a head for some tags, on the processor, in float32.

    Args:
        recipe: Of it `stochastic_depth` matters, where the network knows it, as DINOv2 and EfficientNet-Lite do.
        tags: What is trained, in the order of the outputs.
        start: A folder or a repository: a backbone, or one that was fine-tuned here, whose rows are kept by name; or
            `starter`, or what else `efficientnet.efficientnet_start` takes.
        image_size: Side of the square images in pixels.
        pooling: What the head reads; when nothing is said, what the checkpoint's head read, otherwise the network's own
            summary, or of an EfficientNet-Lite its stages.
        bias: float[t], of new tags.
        aliases: Other names of tags, each with the name that it stands for.

    Raises:
        UsageError: There is no such backbone.
        ModelError: It is damaged, or cannot be trained so.
    """
    from annotary.training.efficientnet import efficientnet_start, tagger_from

    network: BackboneTagger
    notes: tuple[str, ...] = ()
    own = efficientnet_start(start)
    directory = own or backbone_directory(start)
    if (directory / TAGGER_FILE).is_file():
        network, report = _from_tagger(directory, tags, pooling, recipe, bias, aliases)
    else:
        started = None
        if own is not None:
            started = tagger_from(own, pooling, len(tags), recipe.stochastic_depth)
            network, notes = started.network, started.notes
        else:
            backbone = load_backbone(directory, _settings(recipe))
            spec = read_preprocess(directory, backbone.config.model_type)
            network = BackboneTagger(backbone, len(tags), spec, pooling or "pooled")
        rows, report = match_tags(started.tags if started else (), tags, aliases)
        old = started.head if started else None
        fill_head(network.head, bias=bias, deviation=0.0, old=old, rows=rows)
    if network.image_size != image_size:
        told = f"images have {image_size} pixels a side, and its own have {network.image_size}"
        notes = (*notes, told)
    network.set_image_size(image_size)
    network.start = StartReport(start, report, notes, licence_in(directory))
    return network


def _empty(
    directory: Path, pooling: Pooling, tags: int, spec: PreprocessSpec, recipe: NetworkRecipe
) -> BackboneTagger:
    """A network that was fine-tuned before, whose weights are yet to come."""
    if is_efficientnet(directory):
        from annotary.training.efficientnet import empty_tagger

        return empty_tagger(directory, pooling, tags, spec, recipe.stochastic_depth)
    return BackboneTagger(empty_backbone(directory, _settings(recipe)), tags, spec, pooling)


def _settings(recipe: NetworkRecipe) -> dict[str, Any]:
    """What a recipe says differently from a network's own `config.json`."""
    return {"drop_path_rate": recipe.stochastic_depth}


def _from_tagger(
    directory: Path,
    tags: Sequence[str],
    pooling: Pooling | None,
    recipe: NetworkRecipe,
    bias: Tensor | None,
    aliases: Mapping[str, str] | None,
) -> tuple[BackboneTagger, HeadReport]:
    """A network that was fine-tuned before, with another list of tags."""
    own, spec = read_tagger(directory)
    if pooling not in (None, own):
        raise UsageError(f"{directory} has a head that reads {own!r}, and not {pooling!r}")
    old_tags = tag_lines(directory / TAGS_FILE)
    network = _empty(directory, own, len(old_tags), spec, recipe)
    load_weights(network, directory)
    rows, report = match_tags(old_tags, tags, aliases)
    old = (network.head.weight.detach(), network.head.bias.detach())
    network.head = nn.Linear(network.head.in_features, len(tags))
    fill_head(network.head, bias=bias, deviation=0.0, old=old, rows=rows)
    return network, report
