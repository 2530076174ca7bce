"""Taggers that are a vision network (DINOv2 and 3, SigLIP, CLIP, ViT, EfficientNet-Lite) with a head trained here.

A directory holds `config.json` of the network, `model.safetensors` with the weights of network (`backbone.`) and head
(`head.`), `tagger.json`, which says what the head reads and how images are prepared, and `top_tags.txt`, one tag on
each line in the order of the outputs; categories and thresholds may stand in `tags.csv`. They run in torch.
"""

from __future__ import annotations

from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from annotary.cards import TAGS_FILE as TABLE_FILE
from annotary.cards import Card, Vocabulary
from annotary.errors import MissingExtra
from annotary.models._checkpoint_files import CONFIG_FILE
from annotary.models._probabilities import probabilities
from annotary.models._vision_tagger_files import TAGGER_FILE, WEIGHTS_FILE, read_tagger
from annotary.models.joytag import TAGS_FILE, THRESHOLDS, read_tags
from annotary.runtime import Choice, RuntimeOptions, decide, offers

if TYPE_CHECKING:
    from torch import nn

    from annotary.runtime.torch_runtime import TorchSession

LOOKED_FOR = f"{TAGGER_FILE}, {CONFIG_FILE}, {WEIGHTS_FILE} and {TAGS_FILE}"


class VisionTagger:
    """A fine-tuned vision network.

    Attributes:
        card: What it is.
        vocabulary: Its tags, in the order of the outputs.
    """

    def __init__(self, card: Card, vocabulary: Vocabulary, session: TorchSession) -> None:
        self.card = card
        self.vocabulary = vocabulary
        self.streams = session.choice.streams
        self.batch_size = session.choice.batch_size
        self._session = session

    @property
    def choice(self) -> Choice:
        """What it runs on, and why."""
        return self._session.choice

    @property
    def network(self) -> nn.Module:
        """The network as it runs: from images float[b, 3, h, w] to logits [b, t] and what the head reads [b, d]."""
        return self._session.network

    def tag_scores(self, batch: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """Probabilities float32[b, t], 0..1, for a batch prepared as the card says."""
        logits = self._session.run(batch, "tags")
        return probabilities(self.card, logits, len(batch), len(self.vocabulary))

    def features(self, batch: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """What the head reads, float32[b, d]; not normalised."""
        return self._session.run(batch, "features")


def files(names: Collection[str], options: RuntimeOptions) -> tuple[str, ...] | None:
    """The files that a run needs; None where there are not all, or something else than torch is asked for."""
    needed = (TAGGER_FILE, CONFIG_FILE, WEIGHTS_FILE, TAGS_FILE)
    if not set(needed) <= set(names) or options.runtime not in ("auto", "torch"):
        return None
    return (*needed, *((TABLE_FILE,) if TABLE_FILE in names else ()))


def check_libraries(name: str) -> None:
    """Raise `MissingExtra` where torch is not installed; what else a network needs, its `config.json` tells."""
    if find_spec("torch") is None:
        raise MissingExtra(f"{name}, a fine-tuned vision network,", "torch")


def describe(directory: Path) -> Card:
    """A card for a directory that has none.

    Raises:
        ModelError: Its settings are damaged.
    """
    _, preprocess = read_tagger(directory)
    return Card(
        name=directory.name or "vision-tagger",
        version="unversioned",
        family="vision_tagger",
        licence="unknown",
        description="A fine-tuned vision network.",
        preprocess=preprocess,
        thresholds=THRESHOLDS,
        activation="sigmoid",
    )


def load(card: Card, directory: Path, options: RuntimeOptions) -> VisionTagger:
    """The tagger of a directory.

    Raises:
        ModelError: A file is missing, damaged, or does not fit the others.
        MissingExtra: There is no torch, or no transformers where the network is one of its.
    """
    check_libraries(card.name)
    pooling, _ = read_tagger(directory)
    vocabulary = read_tags(directory / TAGS_FILE, card)
    decide(options, offers(None, has_torch=True), name=card.name)  # it says what can be had
    from annotary.models._vision_tagger_network import (
        VisionTaggerForUse,
        empty_backbone,
        load_weights,
    )
    from annotary.runtime.torch_runtime import TorchSession

    network = VisionTaggerForUse(empty_backbone(directory), len(vocabulary), pooling)
    load_weights(network, directory)
    network.check_size(*card.preprocess.size)
    shape = (3, *card.preprocess.size)
    session = TorchSession(network.eval(), ("tags", "features"), options, shape)
    return VisionTagger(card, vocabulary, session)
