"""How a linear probe is trained: everything that the result depends on besides the images."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class ProbeRecipe:
    """How the head is trained."""

    model: str = field(default="starter", metadata={"metavar": "NAME"})
    """Model whose features the head reads: a name, `dir:FOLDER`, or `hf:REPOSITORY`. A tagger, or a vision network
    without a head (DINOv2, DINOv3, SigLIP, CLIP, ViT)."""

    views: int = field(default=1, metadata={"metavar": "N"})
    """Ways in which each image is seen: 1 as it is, 2 mirrored, too, which takes twice as long."""

    loss: Literal["bce", "focal"] = "bce"
    """Binary cross entropy, or the focal loss, which minds tags that are easy less."""

    epochs: int = field(default=100, metadata={"metavar": "PASSES"})
    """Passes over the features of all images."""

    batch_size: int = field(default=64, metadata={"metavar": "IMAGES"})
    """Images of one step."""

    learning_rate: float = field(default=1e-3, metadata={"metavar": "RATE"})
    """Of AdamW, at its highest; it rises during the first tenth, and falls as a cosine to 0."""

    weight_decay: float = field(default=0.1, metadata={"metavar": "RATE"})
    """How strongly weights are drawn to 0."""

    dropout: float = field(default=0.2, metadata={"metavar": "SHARE"})
    """Probability that a feature is hidden in a step, 0..1 (below 1)."""

    unknown: float = field(default=0.0, metadata={"metavar": "SHARE"})
    """Of datasets with partial labels: what a tag counts as absent where nobody knows whether an image has it, 0..1."""

    seed: int = 0
    """Start of all random numbers. On one kind of processor the same seed gives the same bits."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.model:
            raise ValueError("model must name a model")
        if self.views not in (1, 2):
            raise ValueError(f"views must be 1 or 2, but got {self.views}")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, but got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, but got {self.learning_rate}")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay must be 0 or more, but got {self.weight_decay}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in 0..1 (below 1), but got {self.dropout}")
        if not 0.0 <= self.unknown <= 1.0:
            raise ValueError(f"unknown must be in 0..1, but got {self.unknown}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be at least 0 and below 2**63, but got {self.seed}")
        for name in ("learning_rate", "weight_decay"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite, but got {getattr(self, name)}")

    def settings(self) -> dict[str, Any]:
        """All values, as JSON."""
        return asdict(self)
