"""EfficientNet-Lite with a new head, trained whole: from the starter, from weights of Google's, or from an earlier run.

Paper, code and licence: `models._efficientnet_lite`. Norms are folded into the convolutions before training, so that
nothing depends on how a batch is put together. What training adds is stochastic depth, which the paper's own training
has, too (at one rate in all blocks, where it rises with their depth there), and blocks that are computed again in the
backward pass.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from annotary import weights
from annotary.cards import CARD_FILE, TAGS_FILE, PreprocessSpec, read_card, read_vocabulary
from annotary.errors import ModelError
from annotary.models._checkpoint_files import CONFIG_FILE
from annotary.models._efficientnet_backbone import (
    EfficientNetBackbone,
    LitePooling,
    config_of,
    config_table,
    is_efficientnet,
    preprocess_of,
)
from annotary.models._efficientnet_lite import (
    EfficientNetLite,
    EfficientNetLiteConfig,
    InvertedResidual,
    rename_reference,
)
from annotary.models._vision_tagger_files import TAGGER_FILE, Pooling, tagger_text
from annotary.models.onnx_tagger import MODEL_FILE
from annotary.training._integer_tower import VARIANTS, read_tower
from annotary.training.backbones import BackboneTagger
from annotary.training.network import drop_images

_STATE_FILES = (".pth", ".pt")
_SHIPPED = "starter"


class TrainingResidual(InvertedResidual):
    """A block that some images skip in training.

    Attributes:
        drop_rate: Probability that an image skips it, 0..1 (below 1); blocks without a way around are never skipped.
        gradient_checkpointing: Whether it is computed again in the backward pass.
    """

    drop_rate = 0.0
    gradient_checkpointing = False

    def forward(self, image: Tensor) -> Tensor:
        """Map ``[b, inputs, h, w]`` to ``[b, outputs, ceil(h / stride), ceil(w / stride)]``."""
        if not self.training:
            return super().forward(image)
        if self.gradient_checkpointing:
            branch = cast(Tensor, checkpoint(self.branch, image, use_reentrant=False))
        else:
            branch = self.branch(image)
        if not self.has_shortcut:
            return branch
        return image + (drop_images(branch, self.drop_rate) if self.drop_rate else branch)


class TrainingBackbone(EfficientNetBackbone):
    """The network as it is trained."""

    block_class = TrainingResidual

    def forward(self, images: Tensor) -> Tensor:
        """What the head reads, float[b, d], of images float[b, 3, h, w], prepared as `preprocess_of` says."""
        # Filters of single channels are faster where the channels of a pixel lie together: on a processor a step in
        # float32 takes three fifths of the time.
        return super().forward(images.contiguous(memory_format=torch.channels_last))


class EfficientNetTagger(BackboneTagger):
    """An EfficientNet-Lite with a head, as it is trained.

    Args:
        backbone: It.
        tags: How many outputs the head has.
        preprocess: How images are prepared for it.
    """

    def __init__(self, backbone: TrainingBackbone, tags: int, preprocess: PreprocessSpec) -> None:
        super().__init__(backbone, tags, preprocess, backbone.pooling)
        self.backbone: TrainingBackbone

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether blocks are computed again in the backward pass."""
        return self._is_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, is_on: bool) -> None:
        for block in self._blocks():
            block.gradient_checkpointing = is_on
        self._is_checkpointing = is_on

    @property
    def stochastic_depth(self) -> float:
        """Probability that an image skips a block, 0..1 (below 1)."""
        return self._blocks()[0].drop_rate

    @stochastic_depth.setter
    def stochastic_depth(self, rate: float) -> None:
        for block in self._blocks():
            block.drop_rate = rate

    def set_image_size(self, side: int) -> None:
        """Go on with images of another size, between two steps; all sizes go."""
        super().set_image_size(side)
        self.backbone.config = replace(self.backbone.config, image_size=side)

    @property
    def depths(self) -> int:
        """How many depths `depth_of` tells apart."""
        return len(self.backbone.stage_ends) + 2

    def depth_of(self, name: str) -> int:
        """How deep a parameter lies, for layer-wise decay: 0 is the stem, then the stages, then the last map and head.

        Blocks of a stage learn alike: there are many, and a factor for each would leave the first ones as they are.

        Args:
            name: Of `named_parameters`; what wrappers put before it is passed over.
        """
        parts = name.split(".")
        if "stem" in parts:
            return 0
        if "blocks" not in parts:
            return self.depths - 1
        block = int(parts[parts.index("blocks") + 1])
        return 1 + sum(end < block for end in self.backbone.stage_ends)

    def settings_files(self) -> dict[str, str]:
        """The files beside the weights that say what the network is: name to text."""
        table = config_table(self.backbone.config)
        return {
            CONFIG_FILE: json.dumps(table, indent=2) + "\n",
            TAGGER_FILE: tagger_text(self.pooling, self.preprocess),
        }

    def _blocks(self) -> list[TrainingResidual]:
        return [one for one in self.backbone.blocks if isinstance(one, TrainingResidual)]


def efficientnet_start(name: str) -> Path | None:
    """The folder, or the file of a state dict, that a name stands for, where that is an EfficientNet-Lite.

    Args:
        name: `starter`, a folder of a tagger like it or of a run of ours, or a file that ends in `.pth` or `.pt`;
            before folders and files `dir:` may stand.

    Raises:
        ModelError: Its settings cannot be read.
    """
    path = Path(name.removeprefix("dir:"))
    if not path.is_dir() and name in weights.shipped():
        path = weights.shipped()[name]
    if (path / CONFIG_FILE).is_file():
        return path if is_efficientnet(path) else None
    is_state = path.suffix in _STATE_FILES and path.is_file()
    return path if is_state or (path / MODEL_FILE).is_file() else None


def empty_tagger(
    directory: Path, pooling: Pooling, tags: int, preprocess: PreprocessSpec, drop_rate: float
) -> EfficientNetTagger:
    """The network of an earlier run, whose weights are yet to come.

    Args:
        directory: With `config.json`.
        pooling: What the head reads.
        tags: How many outputs the head has.
        preprocess: How images are prepared.
        drop_rate: Probability that an image skips a block, 0..1 (below 1).

    Raises:
        ModelError: The settings are damaged.
    """
    return _tagger(config_of(directory), pooling, tags, preprocess, drop_rate)


@dataclass(frozen=True)
class Started:
    """A network with weights of others.

    Attributes:
        network: It; its head is chance.
        notes: What was done to the weights, a sentence each.
        tags: What the head of the weights has told, in the order of its outputs; empty where there is none to keep.
        head: Its weight [t, d] and bias [t].
    """

    network: EfficientNetTagger
    notes: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    head: tuple[Tensor, Tensor] | None = None


def tagger_from(path: Path, pooling: Pooling | None, tags: int, drop_rate: float) -> Started:
    """A network with weights of an ONNX file or a state dict.

    Args:
        path: What `efficientnet_start` gives.
        pooling: What the head reads; the mean and spread of several stages when nothing is said.
        tags: How many outputs the head has.
        drop_rate: As for `empty_tagger`.

    Raises:
        MissingExtra: The library onnx is not installed.
        ModelError: The file is damaged, or of another network.
    """
    wanted: Pooling = pooling or "stages"
    if path.is_file():
        return _from_state(path, wanted, tags, drop_rate)
    tower = read_tower(path / MODEL_FILE)
    spec = _preprocess(path, tower.config)
    network = _tagger(tower.config, wanted, tags, spec, drop_rate)
    _fill(network.backbone, tower.weights)
    network.backbone.standardise(tower.mean, tower.scale)
    if tower.head is None or wanted != "stages":
        return Started(network)
    names = read_vocabulary(path).names
    if tower.head[0].shape != (len(names), network.head.in_features):
        raise ModelError(f"{path / MODEL_FILE} has a head that does not fit its {TAGS_FILE}")
    return Started(network, tags=names, head=tower.head)


def _tagger(
    config: EfficientNetLiteConfig,
    pooling: Pooling,
    tags: int,
    preprocess: PreprocessSpec,
    drop_rate: float,
) -> EfficientNetTagger:
    backbone = TrainingBackbone(config, cast(LitePooling, pooling))
    network = EfficientNetTagger(backbone, tags, preprocess)
    network.stochastic_depth = drop_rate
    return network


def _preprocess(directory: Path, config: EfficientNetLiteConfig) -> PreprocessSpec:
    """How a tagger's card says that images are prepared, as numbers that the network takes."""
    own = preprocess_of(config.image_size)
    if not (directory / CARD_FILE).is_file():
        return own
    told = read_card(directory).preprocess
    return replace(
        told, layout=own.layout, dtype=own.dtype, scale=own.scale, mean=own.mean, std=own.std
    )


def _from_state(path: Path, pooling: Pooling, tags: int, drop_rate: float) -> Started:
    """A network with the weights of a file of `efficientnet-lite-pytorch`."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        renamed = rename_reference(state)
        classes = len(renamed["classifier.weight"])
    except Exception as error:  # of torch, pickle and zip, in whatever part is damaged
        told = (str(error).strip() or type(error).__name__).split("\n", 1)[0]
        raise ModelError(f"{path} holds no weights of efficientnet-lite-pytorch: {told}") from error
    variant = _variant_of(path, renamed)
    config = replace(VARIANTS[variant], classes=classes)
    reference = EfficientNetLite(config)
    reference.load_state_dict(renamed)
    network = _tagger(config, pooling, tags, preprocess_of(config.image_size), drop_rate)
    folded = reference.eval().fold().state_dict()
    _fill(network.backbone, {n: v for n, v in folded.items() if not n.startswith("classifier.")})
    if variant != "Lite2":
        return Started(
            network, (f"EfficientNet-{variant}; what its head reads is not standardised",)
        )
    # The starter is made from such weights, and its numbers are those of many photos.
    tower = read_tower(weights.shipped()[_SHIPPED] / MODEL_FILE)
    network.backbone.standardise(tower.mean, tower.scale)
    told = "EfficientNet-Lite2; what its head reads is standardised as the starter's"
    return Started(network, (told,))


def _variant_of(path: Path, state: Mapping[str, Tensor]) -> str:
    """Which of Google's networks has tensors of these names and shapes."""
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    for name, config in VARIANTS.items():
        with torch.device("meta"):
            network = EfficientNetLite(replace(config, classes=shapes["classifier.weight"][0]))
        if {key: tuple(value.shape) for key, value in network.state_dict().items()} == shapes:
            return name
    raise ModelError(f"{path} has weights of none of EfficientNet-{', '.join(VARIANTS)}")


def _fill(backbone: EfficientNetBackbone, values: Mapping[str, Tensor]) -> None:
    """Give a network its weights, all of them."""
    buffers = {"feature_mean": backbone.feature_mean, "feature_scale": backbone.feature_scale}
    backbone.load_state_dict({**values, **buffers})
