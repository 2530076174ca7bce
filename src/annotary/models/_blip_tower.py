"""BLIP's image tower in torch, which encodes an image once for all that is asked of it.

The weights are in the modules of transformers; what is here goes through them with torch's fused attention, which never
holds the 577 x 577 weights of an image of 384 pixels, and gives the same numbers within rounding.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from annotary.errors import ModelError
from annotary.runtime import RuntimeOptions
from annotary.runtime.torch_runtime import TorchSession

REMEMBERED = 32
"""Images whose encoding is kept for what else is asked of them; one of 384 pixels takes 1.8 MB in float32."""

_STATES = "states"


class ImageStates(nn.Module):
    """Takes float32[b, 3, h, w] and gives a state for each patch, behind that of the image: [b, s, d].

    Args:
        vision: A `BlipVisionModel`.
    """

    def __init__(self, vision: Any) -> None:
        super().__init__()
        self.vision = vision

    def forward(self, images: Tensor) -> Tensor:
        states: Tensor = self.vision.embeddings(images)
        for layer in self.vision.encoder.layers:
            states = states + _attended(layer.self_attn, layer.layer_norm1(states))
            states = states + layer.mlp(layer.layer_norm2(states))
        found: Tensor = self.vision.post_layernorm(states)
        return found


def _attended(attention: Any, states: Tensor) -> Tensor:
    b, s, d = states.shape
    mixed = attention.qkv(states).view(b, s, 3, attention.num_heads, d // attention.num_heads)
    query, key, value = mixed.permute(2, 0, 3, 1, 4)
    found = functional.scaled_dot_product_attention(query, key, value)
    projected: Tensor = attention.projection(found.transpose(1, 2).reshape(b, s, d))
    return projected


class Encoded:
    """An image, encoded.

    Attributes:
        digest: 16 bytes that change with its pixels.
        states: [s, d], where the network runs.
    """

    __slots__ = ("digest", "states")

    def __init__(self, digest: bytes, states: Tensor) -> None:
        self.digest = digest
        self.states = states


class Tower:
    """Encodes images, and remembers the last ones. Safe to use from one thread at a time, within `computing`.

    Args:
        vision: A `BlipVisionModel`.
        options: How it runs.
        size: Height and width of images, in pixels.

    Attributes:
        session: Runs it.
        encoded: How many images went through the network so far.
    """

    def __init__(self, vision: Any, options: RuntimeOptions, size: tuple[int, int]) -> None:
        self.session = TorchSession(ImageStates(vision), (_STATES,), options, (3, *size))
        self.encoded = 0
        self._one_at_a_time = threading.Lock()  # on a GPU, too
        self._known: OrderedDict[bytes, Tensor] = OrderedDict()

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Where all of a model's networks run: one thread at a time, with the threads and the device asked for.

        Raises:
            ModelError: torch cannot compute.
        """
        with self._one_at_a_time, self.session.computing():
            try:
                yield
            except RuntimeError as error:
                told = (str(error).strip() or type(error).__name__).split("\n", 1)[0]
                raise ModelError(f"torch cannot run the network: {told}") from error

    def encode(self, batch: npt.NDArray[np.generic]) -> list[Encoded]:
        """The states of each image of a batch, in its order; those that are remembered are not computed again."""
        digests = [hashlib.blake2b(_bytes(image), digest_size=16).digest() for image in batch]
        found = {digest: self._known[digest] for digest in digests if digest in self._known}
        new = {digest: place for place, digest in enumerate(digests) if digest not in found}
        size = max(1, self.session.choice.batch_size)
        places = list(new.values())
        for start in range(0, len(places), size):
            some = np.ascontiguousarray(batch[places[start : start + size]])
            (states,) = self.session.compute(torch.from_numpy(some).to(self.session.choice.device))
            assert states is not None
            self.encoded += len(some)
            for place, one in zip(places[start : start + size], states, strict=True):
                found[digests[place]] = one
        for digest in digests:
            self._known[digest] = found[digest]
            self._known.move_to_end(digest)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return [Encoded(digest, found[digest]) for digest in digests]


def _bytes(image: npt.NDArray[np.generic]) -> bytes:
    return np.ascontiguousarray(image).tobytes()
