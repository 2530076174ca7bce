"""Trains encoders of images and texts to put what fits together near each other.

Loss, data and loop are apart: `contrastive_loss` knows logits and how well each text fits each image; a `PairSource`
gives batches of anything that the two towers take; `ContrastiveTraining` knows neither. The losses are those of CLIP
(Radford et al., 2021: softmax both ways, learnt temperature) and SigLIP (Zhai et al., 2023: each pair by itself), and
both take several texts an image, pairs of which nothing is known, and shares between 0 and 1.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

Loss = Literal["softmax", "sigmoid"]
Sides = Literal["both", "images"]

_STEPS_OF_A_SEED = 1_000_003
"""Distance of the random numbers of two seeds."""


@dataclass(frozen=True)
class ContrastiveOptions:
    """How the towers are trained."""

    steps: int = 1000
    """Steps of the whole run; in each, every source gives a batch."""

    learning_rate: float = 1e-3
    """Of AdamW at its highest; it rises over the first `warmup_share` of all steps and falls as a cosine to 0."""

    warmup_share: float = 0.1
    """Share of all steps during which the learning rate rises, 0..1."""

    weight_decay: float = 0.1
    """Of AdamW, on matrices; biases, gains and temperatures are free."""

    scale: float = 14.3
    """What cosines are multiplied by at the start, above 0: 1 / 0.07 is CLIP's. It is learnt, one for each source."""

    most_scale: float = 100.0
    """What it may grow to (CLIP's: without a limit training becomes unstable)."""

    bias: float = -10.0
    """What is added to scaled cosines at the start, for sources with the loss `sigmoid` (SigLIP's); it is learnt."""

    scale_rate: float = 3.0
    """The learning rate of scales and biases, as a multiple of `learning_rate`."""

    gradient_limit: float = 0.0
    """The longest that the gradient of all parameters may be; 0 sets no limit."""

    average: float = 0.0
    """Decay of a moving average of the weights, 0..1, which `ContrastiveTraining.averaged` gives; 0 keeps none."""

    seed: int = 0
    """Start of all random numbers; the same seed on the same machine gives the same bits."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.steps < 1 or self.learning_rate <= 0 or self.weight_decay < 0:
            raise ValueError("steps and learning_rate must be positive, and weight_decay 0 or more")
        if not 0.0 <= self.warmup_share <= 1.0 or not 0.0 <= self.average < 1.0:
            raise ValueError("warmup_share must be in 0..1, and average in 0..1 (below 1)")
        if not 0.0 < self.scale <= self.most_scale:
            raise ValueError(f"scale must be above 0 and at most most_scale, but got {self.scale}")


@dataclass(frozen=True)
class PairBatch:
    """Images and texts, and how well they fit."""

    images: Any
    """What the image tower takes, for n images."""

    texts: Any
    """What the text tower takes, for m texts."""

    targets: Tensor
    """``[n, m]``, 0..1: how well each text fits each image; 1 for its own. An image may have several."""

    known: Tensor | None = None
    """bool ``[n, m]``: pairs that count. None: all."""


class PairSource(Protocol):
    """Where batches come from."""

    @property
    def name(self) -> str:
        """Unique among the sources of a training."""

    @property
    def weight(self) -> float:
        """Its loss is multiplied by this."""

    @property
    def loss(self) -> Loss:
        """Which loss its batches have."""

    @property
    def sides(self) -> Sides:
        """`both`, or `images` where each image chooses among the texts, but no text among the images."""

    def draw(self, step: int, generator: torch.Generator) -> PairBatch:
        """The batch of a step. It must depend on nothing but the step and the generator."""


def contrastive_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    kind: Loss = "softmax",
    sides: Sides = "both",
    known: Tensor | None = None,
) -> Tensor:
    """The loss of a batch, a scalar.

    `softmax`: each image divides its choice among the texts as its targets say (divided by their sum), and each text
    among the images; the mean of both cross entropies. With one text an image and targets of 0 and 1 it is CLIP's.
    `sigmoid`: the binary cross entropy of every pair, summed over the pairs and divided by the images: SigLIP's.

    Args:
        logits: ``[n, m]``, images by texts: scaled cosines, for `sigmoid` with the bias.
        targets: ``[n, m]``, 0..1.
        kind: Which loss.
        sides: `images` leaves the texts' half out, for `softmax`.
        known: bool ``[n, m]``; other pairs count neither as fitting nor as not.
    """
    if kind == "sigmoid":
        each = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return (each if known is None else each * known).sum() / len(logits)
    if known is not None:
        logits = logits.masked_fill(~known, -math.inf)
        targets = targets * known
    loss = _cross_entropy(logits, targets)
    return loss if sides == "images" else (loss + _cross_entropy(logits.T, targets.T)) / 2


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the rows that have a target."""
    total = targets.sum(1, keepdim=True)
    has_target = total[:, 0] > 0
    shares = (targets / total.clamp(min=1e-12))[has_target]
    found = functional.log_softmax(logits[has_target], dim=1)
    each = -torch.where(shares > 0, shares * found, torch.zeros_like(found)).sum(1)
    return each.sum() / has_target.sum().clamp(min=1)


def own_targets(images: Tensor, texts: Tensor) -> Tensor:
    """``[n, m]``: 1 where image and text have the same number, so that no text of an image is held against it.

    Args:
        images: int64[n], the number of each image; the same image may come twice.
        texts: int64[m], the number of the image that each text is of.
    """
    return (images[:, None] == texts[None, :]).float()


@dataclass(frozen=True)
class PairTable:
    """A source of images and texts that are in memory as tensors: pixels, or what a frozen tower gives.

    An image is drawn once in a pass over all, in a random view, with so many of its texts. Texts that occur with
    several images fit them all.
    """

    name: str
    """Of the source."""

    images: Tensor
    """``[views, n, ...]``: the same images seen in different ways."""

    texts: Tensor
    """``[m, ...]``."""

    links: Sequence[Sequence[int]]
    """Of each image, the rows of its texts; one at least."""

    batch_size: int = 256
    """Images a step."""

    texts_per_image: int = 1
    """Drawn with an image; one that has fewer gives some twice."""

    weight: float = 1.0
    """As `PairSource.weight`."""

    loss: Loss = "softmax"
    """As `PairSource.loss`."""

    sides: Sides = "both"
    """As `PairSource.sides`."""

    seed: int = 0
    """Start of the order of the images."""

    def __post_init__(self) -> None:
        """Check that every image has a text."""
        if len(self.links) != self.images.shape[1] or not all(len(own) for own in self.links):
            raise ValueError("links must name at least one text for every image")

    def draw(self, step: int, generator: torch.Generator) -> PairBatch:
        """The batch of a step."""
        rows = rows_of_step(step, len(self.links), self.batch_size, self.seed)
        views = torch.randint(self.images.shape[0], (len(rows),), generator=generator)
        chosen = torch.tensor(
            [draw_some(self.links[row], self.texts_per_image, generator) for row in rows.tolist()]
        ).flatten()
        own = [set(self.links[row]) for row in rows.tolist()]
        targets = torch.tensor([[float(text in mine) for text in chosen.tolist()] for mine in own])
        return PairBatch(self.images[views, rows].float(), self.texts[chosen], targets)


def rows_of_step(step: int, count: int, batch_size: int, seed: int) -> Tensor:
    """Which of `count` rows a step gets, int64: each pass goes through all of them in an order of its own."""
    batch_size = min(batch_size, count)
    steps = count // batch_size
    generator = torch.Generator().manual_seed(seed * _STEPS_OF_A_SEED + step // steps)
    place = step % steps * batch_size
    return torch.randperm(count, generator=generator)[place : place + batch_size]


def draw_some(values: Sequence[int], count: int, generator: torch.Generator) -> list[int]:
    """So many of some values, none twice while there are others."""
    drawn: list[int] = []
    while len(drawn) < count:
        order = torch.randperm(len(values), generator=generator).tolist()
        drawn += [values[place] for place in order[: count - len(drawn)]]
    return drawn


class ContrastiveTraining:
    """One training run, step by step, which can be saved and continued at any step with the same bits (on CPU).

    All that is random in a step, dropout in the towers too, follows from the seed and the number of the step.

    Args:
        image_tower: From `PairBatch.images` to vectors ``[n, d]`` of any length.
        text_tower: From `PairBatch.texts` to vectors ``[m, d]``.
        sources: Where batches come from.
        options: How to train.
        rates: Beginnings of names of parameters (`images.` or `texts.` and their name in the tower) to what their
            learning rate is multiplied by; 0 freezes them. The longest that fits counts.
    """

    def __init__(
        self,
        image_tower: nn.Module,
        text_tower: nn.Module,
        sources: Sequence[PairSource],
        options: ContrastiveOptions,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        if len({source.name for source in sources}) != len(sources) or not sources:
            raise ValueError("sources must have names that differ, and there must be one")
        self.sources = tuple(sources)
        self.options = options
        self.towers = nn.ModuleDict({"images": image_tower, "texts": text_tower})
        device = next(self.towers.parameters()).device
        start = {"scale": math.log(options.scale), "bias": options.bias}
        self._learnt = nn.ParameterDict(
            {
                f"{what}_{number}": nn.Parameter(torch.tensor(value, device=device))
                for number in range(len(sources))
                for what, value in start.items()
            }
        )
        self._optimiser = torch.optim.AdamW(self._groups(rates or {}))
        self._rates = [group["lr"] for group in self._optimiser.param_groups]
        self._average: dict[str, Tensor] | None = (
            {name: value.detach().clone() for name, value in self.towers.named_parameters()}
            if options.average
            else None
        )
        self.step = 0

    def _groups(self, rates: Mapping[str, float]) -> list[dict[str, Any]]:
        options, groups = self.options, []
        for name, parameter in self.towers.named_parameters():
            fitting = [beginning for beginning in rates if name.startswith(beginning)]
            rate = rates[max(fitting, key=len)] if fitting else 1.0
            parameter.requires_grad_(rate > 0)
            if rate > 0:
                decay = options.weight_decay if parameter.ndim > 1 else 0.0
                groups.append(_group([parameter], options.learning_rate * rate, decay))
        learnt = list(self._learnt.parameters())
        return [*groups, _group(learnt, options.learning_rate * options.scale_rate, 0.0)]

    def scale(self, name: str) -> float:
        """What the cosines of a source are multiplied by, as learnt so far."""
        return float(self._learnt[f"scale_{self._number(name)}"].detach().exp())

    def bias(self, name: str) -> float:
        """What is added for a source with the loss `sigmoid`, as learnt so far."""
        return float(self._learnt[f"bias_{self._number(name)}"].detach())

    def _number(self, name: str) -> int:
        return [source.name for source in self.sources].index(name)

    def run(self, checkpoint: Path | None = None, save_every: int = 500) -> Iterator[float]:
        """Do the remaining steps and yield the loss of each.

        Args:
            checkpoint: File to save to every `save_every` steps and at the end; None saves nothing.
            save_every: Steps between two saves.
        """
        while self.step < self.options.steps:
            loss = self.train_step()
            if checkpoint is not None and (
                self.step % save_every == 0 or self.step == self.options.steps
            ):
                self.save(checkpoint)
            yield loss

    def train_step(self) -> float:
        """Do one step and return its loss."""
        start = self.options.seed * _STEPS_OF_A_SEED + self.step
        generator = torch.Generator().manual_seed(start)
        for group, rate in zip(self._optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * self._share_of_rate()
        self.towers.train()
        with torch.random.fork_rng():
            torch.manual_seed(start)
            losses = [
                source.weight * self._loss(number, source.draw(self.step, generator))
                for number, source in enumerate(self.sources)
            ]
        loss = torch.stack(losses).sum()
        self._optimiser.zero_grad()
        torch.autograd.backward(loss)
        if self.options.gradient_limit:
            nn.utils.clip_grad_norm_(self.towers.parameters(), self.options.gradient_limit)
        self._optimiser.step()
        self._after_step()
        self.step += 1
        return loss.item()

    def _loss(self, number: int, batch: PairBatch) -> Tensor:
        source = self.sources[number]
        images = functional.normalize(self.towers["images"](batch.images), dim=1)
        texts = functional.normalize(self.towers["texts"](batch.texts), dim=1)
        logits = self._learnt[f"scale_{number}"].exp() * images @ texts.T
        if source.loss == "sigmoid":
            logits = logits + self._learnt[f"bias_{number}"]
        return contrastive_loss(
            logits,
            batch.targets.to(logits.device),
            kind=source.loss,
            sides=source.sides,
            known=None if batch.known is None else batch.known.to(logits.device),
        )

    @torch.no_grad()
    def _after_step(self) -> None:
        for name, value in self._learnt.items():
            if name.startswith("scale_"):
                value.clamp_(max=math.log(self.options.most_scale))
        if self._average is not None:
            # At the beginning the average is over what there is.
            decay = min(self.options.average, (self.step + 1) / (self.step + 10))
            for name, value in self.towers.named_parameters():
                self._average[name].lerp_(value, 1 - decay)

    @torch.no_grad()
    def averaged(self) -> None:
        """Put the moving average of the weights in their place, after the last step."""
        if self._average is not None:
            for name, value in self.towers.named_parameters():
                value.copy_(self._average[name])

    def save(self, path: Path) -> None:
        """Write everything that the next step depends on; the file appears whole or not at all."""
        state = {
            "options": asdict(self.options),
            "sources": [source.name for source in self.sources],
            "towers": self.towers.state_dict(),
            "learnt": self._learnt.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "average": self._average,
            "step": self.step,
        }
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def restore(self, path: Path) -> None:
        """Continue from a saved run.

        Raises:
            ValueError: The file was saved with other options or sources.
        """
        state: dict[str, Any] = torch.load(path, weights_only=True)
        if state["options"] != asdict(self.options):
            raise ValueError(f"{path} was saved with other options: {state['options']}")
        if state["sources"] != [source.name for source in self.sources]:
            raise ValueError(f"{path} was saved with other sources: {state['sources']}")
        self.towers.load_state_dict(state["towers"])
        self._learnt.load_state_dict(state["learnt"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._average = state["average"]
        self.step = state["step"]

    def _share_of_rate(self) -> float:
        warmup = max(1, round(self.options.warmup_share * self.options.steps))
        if self.step < warmup:
            return (self.step + 1) / warmup
        progress = (self.step - warmup) / max(1, self.options.steps - warmup)
        return 0.5 * (1.0 + math.cos(math.pi * progress))


def _group(parameters: list[nn.Parameter], rate: float, decay: float) -> dict[str, Any]:
    return {"params": parameters, "lr": rate, "weight_decay": decay}


def train_contrastive(
    training: ContrastiveTraining,
    checkpoint: Path | None = None,
    report: Callable[[int, float], None] | None = None,
) -> ContrastiveTraining:
    """Train to the end; continue from the checkpoint if there is one.

    Args:
        training: The run.
        checkpoint: File of the run.
        report: Called after every step with its number and its loss.
    """
    if checkpoint is not None and checkpoint.exists():
        training.restore(checkpoint)
    for loss in training.run(checkpoint):
        if report is not None:
            report(training.step, loss)
    training.towers.eval()
    return training
