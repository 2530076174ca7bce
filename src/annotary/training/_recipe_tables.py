"""The tables of a tagger's recipe: each is a dataclass, and the text under a field says what the key is for.

Where a default has a reason in the reference it is that of fpgaminer/joytag's ``training/train/Train.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

JOYTAG_STEM = "conv:c=64;ln;relu;conv:c=128;ln;relu;conv:c=256;ln;relu;conv:c=512;ln;relu;conv:c=768,s=1,k=1,p=0"
"""The convolutional stem of the published weights (their config.json)."""


def _at_least(record: Any, lowest: int, *names: str) -> None:
    for name in names:
        if getattr(record, name) < lowest:
            raise ValueError(f"{name} must be at least {lowest}, but got {getattr(record, name)}")


def _shares(record: Any, *names: str) -> None:
    for name in names:
        if not 0.0 <= getattr(record, name) < 1.0:
            raise ValueError(f"{name} must be in 0..1 (below 1), but got {getattr(record, name)}")


def _finite(record: Any, *names: str) -> None:
    for name in names:
        value = getattr(record, name)
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{name} must be finite, but got {value}")


@dataclass(frozen=True)
class DataRecipe:
    """What is seen, and how much of it at a time."""

    batch_size: int = 4096
    """Images of one step of the optimiser, over all processes; no more than a stage has samples."""

    device_batch_size: int = 64
    """Images that one process takes at a time, at most; steps are put together from parts as even as can be."""

    workers: int = 8
    """Processes that read and decode images, for each training process; 0 reads in the process itself."""

    cache_mb: int = 0
    """Memory, in megabytes, of each training process for pictures that are kept from pass to pass; 0 keeps none."""

    minimum_tags: int = 5
    """Training images with fewer tags are left out."""

    seed: int = 42
    """Start of all random numbers. On one kind of processor the same seed gives the same bits."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _at_least(self, 1, "batch_size", "device_batch_size")
        _at_least(self, 0, "workers", "cache_mb", "minimum_tags", "seed")
        if self.seed >= 2**63:
            raise ValueError(f"seed must be below 2**63, but got {self.seed}")


@dataclass(frozen=True)
class NetworkRecipe:
    """The network, and what it starts from."""

    kind: Literal["joytag", "backbone"] = "joytag"
    """`joytag` is a vision transformer of JoyTag's; `backbone` the starter's network, or one of the Hugging Face hub,
    with a new head."""

    start: str = ""
    """Model whose weights are taken: a name, `dir:FOLDER`, or of `backbone` `starter`, a repository, or a file of
    EfficientNet-Lite's weights (.pth). Empty starts from chance. Of a JoyTag the head's rows are kept for tags of the
    same name, and its architecture is taken over."""

    aliases: str = ""
    """File with other names of tags, two on a line: what a tag of `start` is called, and which tag it stands for. Rows
    of the head are kept for these, too."""

    pooling: Literal["", "pooled", "mean", "both", "stages"] = ""
    """Of `backbone`: what the head reads: the network's own summary, the mean of its patches' tokens, or one after the
    other; of the starter's network `stages`, mean and spread of several stages. Empty takes what the head of `start`
    reads, or else the summary, or the stages."""

    num_blocks: int = 12
    """Transformer blocks."""

    patch_size: int = 16
    """Side in pixels of what becomes one token."""

    d_model: int = 768
    """Width of a token."""

    mlp_dim: int = 3072
    """Width inside the blocks' two-layer networks."""

    num_heads: int = 12
    """Attention heads; divides `d_model`."""

    cnn_stem: str = JOYTAG_STEM
    """Layers between the image and the tokens, in JoyTag's notation; empty takes one convolution a patch."""

    stochastic_depth: float = 0.05
    """Probability that an image skips a part of a block, 0..1."""

    patch_dropout: float = 0.0
    """Share of the tokens that is left out in training, 0..1."""

    freeze: Literal["none", "body"] = "none"
    """`body` trains the head alone."""

    frozen_depths: int = 0
    """How many of the lowest depths stay as they are: the stem, then the blocks (in the starter: the stages)."""

    gradient_checkpointing: bool = False
    """Compute blocks again in the backward pass in place of keeping what is inside: less memory, a third more time."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _at_least(self, 1, "num_blocks", "patch_size", "d_model", "mlp_dim", "num_heads")
        _at_least(self, 0, "frozen_depths")
        _shares(self, "stochastic_depth", "patch_dropout")
        if self.kind == "backbone" and not self.start:
            raise ValueError(
                'start must be starter, or name a repository or dir:FOLDER, when kind is "backbone"'
            )
        if self.kind != "backbone" and self.pooling:
            raise ValueError('pooling must be empty unless kind is "backbone"')
        if self.aliases and not self.start:
            raise ValueError("aliases must be empty where start is: there are no rows to keep")


@dataclass(frozen=True)
class OptimiserRecipe:
    """How weights are changed."""

    kind: Literal["lamb", "adamw"] = "lamb"
    """LAMB is the reference's; AdamW gets slightly further and needs a warm-up."""

    learning_rate: float = 4e-3
    """At its highest."""

    betas: tuple[float, ...] = (0.9, 0.999)
    """How slowly the means of gradients and of their squares change, two numbers in 0..1."""

    epsilon: float = 1e-6
    """Added to the root of the mean square."""

    weight_decay: float = 0.05
    """How strongly weights are drawn to 0."""

    decay_all: bool = True
    """Decay biases and gains, too, as the reference does; else matrices alone."""

    layer_decay: float = 1.0
    """Factor of the learning rate from one block to the one below it; 1 treats all alike."""

    clip_norm: float = 1.0
    """Gradients longer than this are shortened to it; 0 leaves them."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas must be two numbers in 0..1 (below 1), but got {self.betas}")
        _finite(self, "learning_rate", "epsilon", "weight_decay", "clip_norm")
        if self.learning_rate <= 0 or self.epsilon <= 0:
            raise ValueError("learning_rate and epsilon must be above 0")
        if min(self.weight_decay, self.clip_norm) < 0 or not 0.0 < self.layer_decay <= 1.0:
            raise ValueError(
                "weight_decay and clip_norm must be 0 or more, and layer_decay in 0..1 (not 0)"
            )


@dataclass(frozen=True)
class ScheduleRecipe:
    """How the learning rate goes."""

    kind: Literal["cosine", "one-cycle", "inverse-square-root", "constant"] = "cosine"
    """The curve, over the samples of a stage (or of all stages up to the next restart)."""

    warm_up: int = 0
    """Samples during which the learning rate rises from 0."""

    minimum_ratio: float = 0.0
    """Where the curve ends, as a share of the highest learning rate, 0..1."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _at_least(self, 0, "warm_up")
        if not 0.0 <= self.minimum_ratio <= 1.0:
            raise ValueError(f"minimum_ratio must be in 0..1, but got {self.minimum_ratio}")


@dataclass(frozen=True)
class AugmentationRecipe:
    """How images are changed before they are seen."""

    kind: Literal["trivial2", "trivial", "rand", "sw", "none"] = "trivial2"
    """TrivialAugment with all of its operations, with the reference's first level, RandAugment, the changes of
    SmilingWolf's taggers, or none."""

    operations: int = 2
    """Of `rand`: how many operations, one after the other."""

    magnitude: int = 9
    """Of `rand`: how strong they are, 0 to 30."""

    cutout: float = 0.0
    """Side of a square that is covered, as a share of the image's, 0..1; 0 covers none."""

    flip: float = 0.0
    """Probability that an image is mirrored, 0..1; the reference mirrors none."""

    mixup: float = 0.0
    """Parameter of the Beta distribution that mixes pairs of images; 0 mixes none."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _at_least(self, 0, "operations")
        _finite(self, "mixup")
        if not 0 <= self.magnitude <= 30:
            raise ValueError(f"magnitude must be in 0..30, but got {self.magnitude}")
        if not 0.0 <= self.flip <= 1.0 or not 0.0 <= self.cutout <= 1.0 or self.mixup < 0:
            raise ValueError("flip and cutout must be in 0..1, and mixup 0 or more")


@dataclass(frozen=True)
class LossRecipe:
    """What is made small."""

    kind: Literal[
        "bce",
        "weighted",
        "focal",
        "focal2",
        "asl",
        "asl2",
        "asl3",
        "asl4",
        "asl5",
        "asl6",
        "asl7",
        "asl8",
        "asl9",
    ] = "focal2"
    """The loss, by the reference's names; `focal2` is the focal loss with an exponent of 2, times 256."""

    label_smoothing: float = 0.0
    """How far targets are moved from 0 and 1 towards one half, 0..1."""

    unknown: float = 0.0
    """Of datasets with partial labels: what a tag counts as absent where nobody knows whether an image has it, 0..1."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _shares(self, "label_smoothing")
        if not 0.0 <= self.unknown <= 1.0:
            raise ValueError(f"unknown must be in 0..1, but got {self.unknown}")


@dataclass(frozen=True)
class PrecisionRecipe:
    """What is computed in which numbers."""

    numbers: Literal["fp16", "bf16", "fp32"] = "fp16"
    """Of the passes; weights and the optimiser stay float32. fp16 scales the loss so that gradients do not vanish."""

    scale: float = 65536.0
    """What the loss is multiplied by at first, with fp16."""

    scale_interval: int = 1000
    """Steps without an overflow after which the scale is doubled, with fp16."""

    tf32: bool = True
    """Let NVIDIA's GPUs multiply float32 matrices with fewer digits."""

    compile: bool = False
    """Let torch compile the network: a minute or more at the start, faster steps on a GPU."""

    strategy: Literal["ddp", "fsdp"] = "ddp"
    """How several processes share the work: each holds the whole network, or a part of it (for the large ones)."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _at_least(self, 1, "scale_interval")
        _finite(self, "scale")
        if self.scale <= 0:
            raise ValueError(f"scale must be above 0, but got {self.scale}")


@dataclass(frozen=True)
class AveragingRecipe:
    """A running mean of the weights, which is what is measured and saved."""

    decay: float = 0.0
    """Share of the mean that stays at each step, 0..1, such as 0.999; 0 keeps no mean."""

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(f"decay must be in 0..1 (below 1), but got {self.decay}")


@dataclass(frozen=True)
class ValidationRecipe:
    """How the network is measured while it is trained."""

    every: int = 1_000_000
    """Samples between two measurements; 0 measures at the end of each stage alone."""

    threshold: float = 0.5
    """Probability from which on a tag counts as predicted, 0..1; the reference takes 0.5 in training."""

    metric: Literal["map", "macro_f1", "micro_f1", "loss"] = "macro_f1"
    """What says which checkpoint is the best."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _at_least(self, 0, "every")
        if not 0.0 < self.threshold < 1.0:
            raise ValueError(f"threshold must be between 0 and 1, but got {self.threshold}")


@dataclass(frozen=True)
class CheckpointsRecipe:
    """What is kept of the way."""

    every: int = 1_000_000
    """Samples between two checkpoints; there is one at the end of each stage, too."""

    keep: int = 2
    """How many of the last checkpoints stay, besides the best."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _at_least(self, 1, "every", "keep")


@dataclass(frozen=True)
class LogsRecipe:
    """Where a run tells how it goes. A table, `steps.csv`, is always written."""

    every: int = 1
    """Steps between two rows."""

    tensorboard: bool = False
    """Write files for TensorBoard, too."""

    wandb: str = ""
    """Project of Weights & Biases to send the rows to; empty sends nothing anywhere."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _at_least(self, 1, "every")


@dataclass(frozen=True)
class StageRecipe:
    """A part of a run with one size of images."""

    image_size: int = 224
    """Side of the square images in pixels."""

    samples: int = 220_000_000
    """Images that are seen, over all passes."""

    learning_rate: float | None = None
    """At its highest, in place of the optimiser's."""

    batch_size: int | None = None
    """In place of the data's."""

    device_batch_size: int | None = None
    """In place of the data's: larger images need more memory."""

    patch_dropout: float | None = None
    """Share of the tokens that is left out, in place of the network's."""

    restart: bool = True
    """Begin with a new optimiser and a new curve of the learning rate; false goes on with both, at another size."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _at_least(self, 1, "image_size", "samples")
        _finite(self, "learning_rate")
        if self.learning_rate is not None and self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be above 0, but got {self.learning_rate}")
        if self.patch_dropout is not None:
            _shares(self, "patch_dropout")
        if min(self.batch_size or 1, self.device_batch_size or 1) < 1:
            raise ValueError("batch_size and device_batch_size must be at least 1")
