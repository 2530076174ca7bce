"""BLIP's judgement of texts in torch: one head that sees image and text together, and two that put each on a sphere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from annotary.errors import ModelError
from annotary.models._blip_decoder import Memory, TextLayers

Vectors = npt.NDArray[np.float32]


class Judge:
    """The text network of a `BlipForImageTextRetrieval`, with its heads, which compute in float32.

    Args:
        network: It.
        device: Where it runs.
        numbers: What its layers compute in.
        name: Of the model, for messages.

    Attributes:
        layers: The text network.
        width: Of the vectors.
    """

    def __init__(self, network: Any, device: str, numbers: torch.dtype, name: str) -> None:
        self.layers = TextLayers(network.text_encoder, device, numbers)
        heads = (network.itm_head, network.vision_proj, network.text_proj)
        self._together, self._images, self._texts = (
            head.to(device, torch.float32).eval() for head in heads
        )
        self.width = int(self._texts.out_features)
        self._name = name

    def logits(self, rows: Sequence[Sequence[int]], memories: Sequence[Memory]) -> Vectors:
        """float32[n, 2]: against and for each text.

        Args:
            rows: n texts of l tokens.
            memories: The image of each; texts of one image stand side by side.
        """
        states = self.layers.read(self.layers.tensor(rows), memories)
        return self._checked(self._together(states[:, 0].float()))

    def text_vectors(self, rows: Sequence[Sequence[int]]) -> Vectors:
        """float32[n, d], of length 1, of n texts of l tokens by themselves."""
        states = self.layers.read(self.layers.tensor(rows), [None] * len(rows))
        return self._checked(functional.normalize(self._texts(states[:, 0].float()), dim=-1))

    def image_vectors(self, states: Sequence[Tensor]) -> Vectors:
        """float32[b, d], of length 1, of the states [s, d] of b images."""
        first = torch.stack([one[0] for one in states]).float()
        return self._checked(functional.normalize(self._images(first), dim=-1))

    def _checked(self, found: Tensor) -> Vectors:
        """As numbers.

        Raises:
            ModelError: They are none.
        """
        vectors = np.asarray(found.cpu().numpy(), np.float32)
        if not np.isfinite(vectors).all():
            raise ModelError(
                f"{self._name} gives scores that are no numbers; does it need --precision fp32?"
            )
        return vectors
