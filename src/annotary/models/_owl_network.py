"""The parts of OWL-ViT and OWLv2 in torch, with the networks of transformers.

The vision tower may compute in half precision. What follows it, the merge with the class token and the heads, is
float32 always: a box is a sigmoid of a sum, and half the digits of it are pixels of a large image.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from annotary.models._transformers_loading import load_network

_CLASSES = {"owlvit": "OwlViTForObjectDetection", "owlv2": "Owlv2ForObjectDetection"}
"""What `model_type` says, as a class of transformers."""

_TINY = 1e-6
"""Added to lengths before vectors are divided by them, as the class head does."""


class OwlParts(NamedTuple):
    """A checkpoint, in parts that run in different precisions.

    Attributes:
        images: float32[b, 3, h, w] to what the vision tower makes of them, [b, 1 + n, d].
        texts: int64[q, l] to float32[q, e].
        heads: Everything behind the vision tower.
    """

    images: nn.Module
    texts: nn.Module
    heads: Heads


def load_parts(directory: Path, model_type: str) -> OwlParts:
    """The parts of a checkpoint.

    Args:
        directory: With `config.json` and weights.
        model_type: `owlvit` or `owlv2`.

    Raises:
        MissingExtra: transformers is not installed.
        ModelError: The weights are missing, damaged, or are not those of the config.
    """
    model = load_network(directory, _CLASSES[model_type])
    body = getattr(model, model_type)
    return OwlParts(_Images(body.vision_model), _Texts(body), Heads(model, body))


class _Images(nn.Module):
    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.tower(pixel_values=images).last_hidden_state)


class _Texts(nn.Module):
    """Without a mask: the tower looks back only, from the end of the text, where its meaning is read."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.tower = body.text_model
        self.projection = body.text_projection

    def forward(self, tokens: Tensor) -> Tensor:
        vectors = self.projection(self.tower(input_ids=tokens).pooler_output)
        return cast(Tensor, vectors / vectors.norm(dim=-1, keepdim=True))


class Heads(nn.Module):
    """What makes places, boxes and logits of what the vision tower gives. A place is a patch of the input.

    Args:
        model: Of transformers.
        body: Its part with the two towers.
    """

    def __init__(self, model: Any, body: Any) -> None:
        super().__init__()
        # A copy: the tower keeps its own, which goes to half precision with it.
        self.last_norm = copy.deepcopy(body.vision_model.post_layernorm)
        self.place_norm = model.layer_norm
        self.class_head = model.class_head
        self.box_head = model.box_head
        self.objectness_head = getattr(model, "objectness_head", None)
        self.register_buffer("box_bias", model.box_bias.clone(), persistent=False)

    def places(self, hidden: Tensor) -> Tensor:
        """float32[b, n, d] of the vision tower's [b, 1 + n, d]: every patch times the class token, normalised."""
        normal = self.last_norm(hidden.float())
        return cast(Tensor, self.place_norm(normal[:, 1:] * normal[:, :1]))

    def boxes(self, places: Tensor) -> Tensor:
        """float32[b, n, 4], `xyxy`, 0..1 of the input; nothing keeps a box from reaching beyond its edges."""
        middle, size = (self.box_head(places) + self.box_bias).sigmoid().chunk(2, dim=-1)
        return torch.cat([middle - size / 2, middle + size / 2], dim=-1)

    def classes(self, places: Tensor) -> Tensor:
        """float32[b, n, e]: what is there, to be compared with queries; of any length."""
        return cast(Tensor, self.class_head.dense0(places))

    def logits(self, places: Tensor, queries: Tensor) -> Tensor:
        """float32[b, n, q] for queries float32[q, e], which are taken as they are: it is linear in them."""
        cosines = unit(self.classes(places)) @ queries.T
        cosines += self.class_head.logit_shift(places)
        return cosines.mul_(self.class_head.elu(self.class_head.logit_scale(places)) + 1)

    def objectness(self, places: Tensor) -> Tensor | None:
        """float32[b, n]: how much each place looks like a thing of any kind; None for OWL-ViT, which does not say."""
        if self.objectness_head is None:
            return None
        return cast(Tensor, self.objectness_head(places)[..., 0])


def unit(vectors: Tensor) -> Tensor:
    """Vectors of length 1, with the class head's arithmetic."""
    return cast(Tensor, vectors / (torch.linalg.norm(vectors, dim=-1, keepdim=True) + _TINY))
