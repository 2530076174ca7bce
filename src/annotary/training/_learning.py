"""Steps of training: batches that are put together from parts, in 16 bits or 32, on one process or several.

Nothing here draws from a stream of random numbers. What a part of a batch needs of chance (stochastic depth, dropped
patches) follows from the seed, the stage, the step, the part and the process, so that a run that was stopped anywhere
goes on with the same bits: all there is to keep are the weights, the optimiser, the scale and the mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from annotary.cards import PreprocessSpec
from annotary.training._averaging import RunningMean
from annotary.training.augmentation import mix_up
from annotary.training.distributed import (
    Processes,
    accumulating,
    distributed,
    load_optimiser_state,
    network_state,
    optimiser_state,
    unwrapped,
)
from annotary.training.losses import TaggingLoss
from annotary.training.optimisers import build_optimiser, set_learning_rate
from annotary.training.recipe import TaggerRecipe

_LEAST_WEIGHT = 1e-12

_NUMBERS = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Part(NamedTuple):
    """A part of a batch, as large as one process takes at a time.

    Attributes:
        images: uint8[b, h, w, 3], RGB, of the size of the stage.
        targets: uint8[b, t], 0 or 1.
        weights: float32[b], 1; 0 for what is no image.
        target_weights: float32[b, t], how much each target counts, 0..1; None where all count 1.
    """

    images: Tensor
    targets: Tensor
    weights: Tensor
    target_weights: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Stepped:
    """What a step was like; tensors stay on the device until somebody asks.

    Attributes:
        loss: Mean of the whole batch over all processes.
        gradient_norm: Before it was clipped; infinite or NaN where fp16 overflowed and the step was left out.
        loss_scale: What the loss was multiplied by for fp16; 1 otherwise.
    """

    loss: Tensor
    gradient_norm: Tensor
    loss_scale: float


class Learner:
    """A network that learns, with all that a step depends on.

    Args:
        network: On the processor; it is moved to the device, and with FSDP changed in place.
        loss: Of logits and targets.
        recipe: How.
        processes: Who shares the work.
    """

    def __init__(
        self, network: nn.Module, loss: TaggingLoss, recipe: TaggerRecipe, processes: Processes
    ) -> None:
        self.recipe = recipe
        self.processes = processes
        self._loss = loss
        numbers = recipe.precision.numbers
        _allow_tf32(is_allowed=recipe.precision.tf32)
        network.to(processes.device)
        strategy = recipe.precision.strategy
        module = distributed(network, processes, strategy, numbers)
        self.network = unwrapped(module)
        self._module: nn.Module = (
            cast(nn.Module, torch.compile(module, dynamic=False))
            if recipe.precision.compile
            else module
        )
        self.mean = (
            RunningMean(self.network, recipe.averaging.decay) if recipe.averaging.decay else None
        )
        self._scaler = torch.amp.GradScaler(
            processes.device.type,
            init_scale=recipe.precision.scale,
            growth_interval=recipe.precision.scale_interval,
            enabled=numbers == "fp16",
        )
        self._weights = [weight for weight in self.network.parameters() if weight.requires_grad]
        self._optimiser = build_optimiser(recipe.optimiser, self.network)

    def restart(self) -> None:
        """Forget what the optimiser knows, for a stage that begins anew."""
        self._optimiser = build_optimiser(self.recipe.optimiser, self.network)

    def step(
        self,
        parts: Iterable[Part],
        count: int,
        learning_rate: float,
        place: tuple[int, int],
        size: int | None = None,
    ) -> Stepped:
        """Change the weights by one batch.

        Args:
            parts: This process's share of the batch.
            count: How many parts there are.
            learning_rate: Of this step.
            place: The stage and the step, from 0, which chance depends on.
            size: Images of all parts; these are of one size when nothing is said.
        """
        recipe, scaler = self.recipe, self._scaler
        self.network.train()
        set_learning_rate(self._optimiser, learning_rate)
        total = torch.zeros((), device=self.processes.device)
        for number, part in zip(range(count), parts, strict=False):
            images, targets, weights = self._prepared(part, (*place, number))
            # Parts and processes add up to the same mean only if what it is over does not depend on what they know.
            entries = None if part.target_weights is None else _entries(part)
            share = 1.0 / count if size is None else len(part.images) / size
            if self._loss.is_sum:
                share = float(self.processes.count)
            torch.manual_seed(self._seed(*place, number, self.processes.rank))
            with accumulating(self._module, is_last=number == count - 1):
                with self._casting():
                    logits = self._module(images)
                loss = self._loss(logits, targets, weights, entries) * share
                torch.autograd.backward(scaler.scale(loss))
            total += loss.detach()
        scaler.unscale_(self._optimiser)
        limit = recipe.optimiser.clip_norm or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self._weights, limit)
        scale = scaler.get_scale() if scaler.is_enabled() else 1.0
        scaler.step(self._optimiser)
        scaler.update()
        self._optimiser.zero_grad()
        if self.mean is not None:
            self.mean.update()
        whole_norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        return Stepped(
            self.processes.total(total) / self.processes.count, whole_norm.detach(), scale
        )

    def logits(self, images: Tensor) -> Tensor:
        """Logits float32[b, t] of images uint8[b, h, w, 3], without gradients and chance."""
        self.network.eval()
        with torch.no_grad(), self._casting():
            found: Tensor = self.network(self._normalised(images))
        return found.float()

    def averaged(self) -> AbstractContextManager[None]:
        """Where the network has the mean of its weights, if one is kept."""
        return nullcontext() if self.mean is None else self.mean.in_place()

    def weights(self) -> dict[str, Tensor]:
        """The weights that are trained, whole and on the processor. All processes must ask."""
        return network_state(self._module)

    def mean_weights(self, own: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The same with the mean in place of what is trained; None where none is kept. All processes must ask.

        Args:
            own: What `weights` told.
        """
        return None if self.mean is None else {**own, **self.mean.state()}

    def state(self) -> dict[str, Any]:
        """What else the next step depends on, whole and on the processor. All processes must ask."""
        return {
            "optimiser": optimiser_state(self._optimiser, self._module),
            "scaler": self._scaler.state_dict(),
            "mean_steps": 0 if self.mean is None else self.mean.steps,
        }

    def load(self, state: Mapping[str, Any], mean: Mapping[str, Tensor]) -> None:
        """Go on from what `state` told; the weights are there already.

        Args:
            state: It.
            mean: What `mean_weights` told.
        """
        load_optimiser_state(self._optimiser, self._module, state["optimiser"])
        if self._scaler.is_enabled() and state["scaler"]:
            self._scaler.load_state_dict(dict(state["scaler"]))
        if self.mean is not None:
            self.mean.load(mean, state["mean_steps"])

    def _prepared(
        self, part: Part, place: tuple[int, int, int]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Images as the network wants them, targets, mixed if the recipe says so, and how much each counts."""
        stage, step, number = place
        images = self._normalised(part.images)
        targets = part.targets.to(self.processes.device, non_blocking=True).float()
        is_whole = bool(part.weights.all())
        mixup = self.recipe.augmentation.mixup
        known = None
        if part.target_weights is not None:
            known = part.target_weights.to(self.processes.device, non_blocking=True)
            targets = torch.cat([targets * known, known], dim=1)
        if mixup:
            images, targets = mix_up(
                *(images, targets, mixup, self._seed(stage, step), stage),
                number * self.processes.count + self.processes.rank,
                None if is_whole else part.weights,
            )
        if known is not None:
            # Of two that are mixed each target counts as much as it is known, and one that is not known not at all.
            targets, known = targets.chunk(2, dim=1)
            targets = targets / known.clamp(min=_LEAST_WEIGHT)
        if is_whole:
            return images, targets, known
        weights = part.weights.to(self.processes.device)[:, None].expand(targets.shape)
        return images, targets, weights if known is None else weights * known

    def _normalised(self, images: Tensor) -> Tensor:
        spec: PreprocessSpec = self.network.preprocess  # type: ignore[assignment]
        return normalised(images.to(self.processes.device, non_blocking=True), spec)

    def _casting(self) -> AbstractContextManager[Any]:
        numbers = _NUMBERS.get(self.recipe.precision.numbers)
        if numbers is None:
            return nullcontext()
        return torch.autocast(self.processes.device.type, numbers)

    def _seed(self, *place: int) -> int:
        """A number that follows from the recipe's seed and a place, 0..2**63 - 1."""
        mixed = np.random.SeedSequence((self.recipe.data.seed, *place)).generate_state(1, np.uint64)
        return int(mixed[0]) >> 1


def _entries(part: Part) -> float:
    """How many targets a part has, known or not, of what is an image."""
    return max(float(part.weights.sum()), 1.0) * part.targets.shape[1]


def normalised(images: Tensor, spec: PreprocessSpec) -> Tensor:
    """Images uint8[b, h, w, 3], RGB, as a network wants them, float32[b, 3, h, w]: the arithmetic of `preprocess`."""
    values = images.permute(0, 3, 1, 2)
    if spec.channel_order == "bgr":
        values = values.flip(1)
    mean = torch.tensor(spec.mean, device=images.device)[:, None, None]
    std = torch.tensor(spec.std, device=images.device)[:, None, None]
    return (values.float() / spec.scale - mean) / std


def _allow_tf32(*, is_allowed: bool) -> None:
    """Let NVIDIA's GPUs multiply float32 with fewer digits, or not; processors are not concerned."""
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = is_allowed
        torch.backends.cudnn.allow_tf32 = is_allowed
