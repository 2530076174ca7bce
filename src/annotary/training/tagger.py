"""Trains taggers: independent probabilities for many tags, from features that were computed once.

A linear or one-hidden-layer head on cached features, two of the losses of `losses.py`, and training that resumes
exactly. The loss `focal` with a scale of 256 is JoyTag's ("focal2" of its ``Models.py``).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from annotary.errors import OutputError
from annotary.training.losses import tagging_loss

Loss = Literal["bce", "focal"]


@dataclass(frozen=True)
class TaggerOptions:
    """How a tagger's head is trained."""

    loss: Loss = "bce"
    """`bce` is binary cross entropy; `focal` multiplies it by the error to the power of `focal_gamma`."""

    focal_gamma: float = 2.0
    """Exponent of the focal loss, 0 or more."""

    loss_scale: float = 1.0
    """Multiplies the loss. JoyTag takes 256 so that 16-bit gradients do not vanish."""

    hidden: int = 0
    """Width of the hidden layer; 0 makes the head linear."""

    epochs: int = 30
    """Passes over the images; of each image one view is seen per pass."""

    batch_size: int = 256
    """Images per step."""

    learning_rate: float = 1e-3
    """Of AdamW at its highest; it rises over the first `warmup_share` of all steps and falls as a cosine to 0."""

    warmup_share: float = 0.1
    """Share of all steps during which the learning rate rises, 0..1."""

    weight_decay: float = 0.1
    """Of AdamW, on matrices; biases and gains are free."""

    dropout: float = 0.2
    """Probability of hiding a feature, 0..1."""

    mixup: float = 0.0
    """Parameter of the Beta distribution that mixes pairs of images; 0 mixes none."""

    seed: int = 0
    """Start of all random numbers; the same seed on the same machine gives the same bits."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.loss not in ("bce", "focal"):
            raise ValueError(f"loss must be bce or focal, but got {self.loss!r}")
        if min(self.epochs, self.batch_size) < 1 or self.hidden < 0:
            raise ValueError("epochs and batch_size must be positive, and hidden 0 or more")
        if not 0.0 <= self.dropout < 1.0 or not 0.0 <= self.warmup_share <= 1.0:
            raise ValueError("dropout must be in 0..1 (below 1), and warmup_share in 0..1")


@dataclass(frozen=True)
class TaggerData:
    """What a head is trained on. All tensors are on the same device."""

    features: Tensor
    """Floating point ``[views, n, d]``: the same images seen in different ways (flipped, cropped)."""

    targets: Tensor
    """``[n, t]``, 0..1: 1 where the image has the tag."""

    weights: Tensor | None = None
    """``[n, t]``, 0 or more: how much each target counts. 0 where it is unknown. None means 1 everywhere."""

    evidence: Tensor | None = None
    """``[views, n, t]``: a log-likelihood from elsewhere, which the head adds with a learned gain per tag."""

    def __post_init__(self) -> None:
        """Check the shapes."""
        images, tags = self.targets.shape
        views, images_of_features, _ = self.features.shape
        if images_of_features != images:
            raise ValueError(f"features have {images_of_features} images, but targets {images}")
        if self.weights is not None and self.weights.shape != self.targets.shape:
            raise ValueError("weights must have the shape of the targets")
        if self.evidence is not None and self.evidence.shape != (views, images, tags):
            raise ValueError(f"evidence must be [{views}, {images}, {tags}]")


class TaggerHead(nn.Module):
    """Standardises features and maps them to one logit per tag.

    Args:
        features: Number of features.
        tags: Number of tags.
        hidden: Width of a hidden layer; 0 for none.
        has_evidence: Whether `forward` gets a log-likelihood per tag to add.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self, features: int, tags: int, hidden: int = 0, *, has_evidence: bool = False
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.middle = nn.Linear(features, hidden) if hidden else None
        self.last = nn.Linear(hidden or features, tags)
        self.gain = nn.Parameter(torch.zeros(tags)) if has_evidence else None

    def forward(
        self,
        features: Tensor,
        evidence: Tensor | None = None,
        keep: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Return logits ``[n, t]``.

        Args:
            features: ``[n, d]``.
            evidence: ``[n, t]``, if the head was made for it.
            keep: Dropout, applied to the standardised features and to the hidden layer.
        """
        hidden = (features - self.mean) / self.scale
        hidden = keep(hidden) if keep is not None else hidden
        if self.middle is not None:
            hidden = functional.relu(self.middle(hidden))
            hidden = keep(hidden) if keep is not None else hidden
        logits: Tensor = self.last(hidden)
        if self.gain is not None:
            if evidence is None:
                raise ValueError("this head needs evidence")
            logits = logits + self.gain * evidence
        return logits

    @torch.no_grad()
    def prepare(self, data: TaggerData, generator: torch.Generator) -> None:
        """Set mean and scale to those of the data's first view, biases to the tags' frequencies, weights near 0."""
        first = data.features[0].float()
        self.mean.copy_(first.mean(0))
        self.scale.copy_(first.std(0, correction=0) + 1e-3)
        for layer, spread in ((self.middle, 1 / math.sqrt(first.shape[1])), (self.last, 1e-3)):
            if layer is not None:
                layer.weight.normal_(0.0, spread, generator=generator)
                layer.bias.zero_()
        weights = torch.ones_like(data.targets) if data.weights is None else data.weights
        positives = (data.targets * weights).sum(0) + 0.5
        negatives = ((1 - data.targets) * weights).sum(0) + 0.5
        self.last.bias.copy_(torch.log(positives / negatives))


class TaggerTraining:
    """One training run, step by step, which can be saved and continued at any step with the same bits (on CPU).

    Args:
        data: The images.
        options: How to train.
    """

    def __init__(self, data: TaggerData, options: TaggerOptions) -> None:
        self.data = data
        self.options = options
        self._generator = torch.Generator().manual_seed(options.seed)
        _, self._images, features = data.features.shape
        self.head = TaggerHead(
            features, data.targets.shape[1], options.hidden, has_evidence=data.evidence is not None
        )
        self.head.prepare(data, self._generator)
        self.head.to(data.features.device)
        parameters = list(self.head.parameters())
        self._optimiser = torch.optim.AdamW(
            [
                {
                    "params": [p for p in parameters if p.ndim > 1],
                    "weight_decay": options.weight_decay,
                },
                {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=options.learning_rate,
        )
        self.step = 0
        self._order = torch.empty(0, dtype=torch.int64)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one pass over the images."""
        return math.ceil(self._images / self.options.batch_size)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.options.epochs * self.steps_per_epoch

    def run(self, checkpoint: Path | None = None, save_every: int = 500) -> Iterator[float]:
        """Do the remaining steps and yield the loss of each.

        Args:
            checkpoint: File to save to every `save_every` steps and at the end; None saves nothing.
            save_every: Steps between two saves.
        """
        while self.step < self.total_steps:
            loss = self.train_step()
            if checkpoint is not None and (
                self.step % save_every == 0 or self.step == self.total_steps
            ):
                self.save(checkpoint)
            yield loss

    def train_step(self) -> float:
        """Do one step and return its loss."""
        place = self.step % self.steps_per_epoch
        if place == 0:
            self._order = torch.randperm(self._images, generator=self._generator)
        size = self.options.batch_size
        features, targets, weights, evidence = self._batch(
            self._order[place * size : (place + 1) * size]
        )
        for group in self._optimiser.param_groups:
            group["lr"] = self._learning_rate()
        logits = self.head(features, evidence, self._drop if self.options.dropout else None)
        loss = tagging_loss(
            logits,
            targets,
            kind=self.options.loss,
            gamma=self.options.focal_gamma,
            scale=self.options.loss_scale,
            weights=weights,
        )
        self._optimiser.zero_grad()
        torch.autograd.backward(loss)
        self._optimiser.step()
        self.step += 1
        return loss.item()

    def save(self, path: Path) -> None:
        """Write everything that the next step depends on; the file appears whole or not at all.

        Raises:
            OutputError: It cannot be written; what was there is as it was.
        """
        state = {
            "options": asdict(self.options),
            "head": self.head.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "random": self._generator.get_state(),
            "order": self._order,
            "step": self.step,
        }
        temporary = path.with_name(path.name + ".tmp")
        try:
            with temporary.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except (OSError, RuntimeError) as error:  # torch has an error of its own for a full disk
            with suppress(OSError):
                temporary.unlink()
            told = str(getattr(error, "strerror", None) or error).split("\n", 1)[0]
            raise OutputError(f"cannot write {path}: {told}") from error

    def restore(self, path: Path) -> None:
        """Continue from a saved run.

        Raises:
            ValueError: The file was saved with other options.
        """
        state: dict[str, Any] = torch.load(path, weights_only=True)
        if state["options"] != asdict(self.options):
            raise ValueError(f"{path} was saved with other options: {state['options']}")
        self.head.load_state_dict(state["head"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._generator.set_state(state["random"])
        self._order = state["order"]
        self.step = state["step"]

    def _batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Features, targets, weights and evidence of some images, each in a random view."""
        data = self.data
        views = torch.randint(data.features.shape[0], (len(rows),), generator=self._generator)
        features = data.features[views, rows].float()
        targets = data.targets[rows].float()
        weights = None if data.weights is None else data.weights[rows].float()
        evidence = None if data.evidence is None else data.evidence[views, rows].float()
        if self.options.mixup:
            partner = torch.randperm(len(rows), generator=self._generator)
            share = _beta(self.options.mixup, self._generator)
            features = torch.lerp(features[partner], features, share)
            if weights is None:
                targets = torch.lerp(targets[partner], targets, share)
            else:
                total = torch.lerp(weights[partner], weights, share)
                positive = torch.lerp((weights * targets)[partner], weights * targets, share)
                targets, weights = positive / total.clamp(min=1e-12), total
            if evidence is not None:
                evidence = torch.lerp(evidence[partner], evidence, share)
        return features, targets, weights, evidence

    def _drop(self, hidden: Tensor) -> Tensor:
        keep = 1.0 - self.options.dropout
        mask = torch.rand(hidden.shape, generator=self._generator).to(hidden.device) < keep
        return hidden * mask / keep

    def _learning_rate(self) -> float:
        warmup = max(1, round(self.options.warmup_share * self.total_steps))
        if self.step < warmup:
            return self.options.learning_rate * (self.step + 1) / warmup
        progress = (self.step - warmup) / max(1, self.total_steps - warmup)
        return self.options.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


def train_tagger(
    data: TaggerData,
    options: TaggerOptions,
    checkpoint: Path | None = None,
    report: Callable[[int, float], None] | None = None,
) -> TaggerHead:
    """Train a head to the end; continue from the checkpoint if there is one.

    Args:
        data: The images.
        options: How to train.
        checkpoint: File of the run.
        report: Called after every step with its number and its loss.
    """
    training = TaggerTraining(data, options)
    if checkpoint is not None and checkpoint.exists():
        training.restore(checkpoint)
    for loss in training.run(checkpoint):
        if report is not None:
            report(training.step, loss)
    return training.head.eval()


def _beta(parameter: float, generator: torch.Generator) -> float:
    """A random number of the symmetric Beta distribution, by Jöhnk's method (for parameters up to 1)."""
    while True:
        first, second = (
            torch.rand(2, generator=generator, dtype=torch.float64) ** (1 / parameter)
        ).tolist()
        if 0.0 < first + second <= 1.0:
            return float(first / (first + second))
