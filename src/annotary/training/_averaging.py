"""A running mean of a network's weights, which varies less from step to step than the weights themselves.

Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging" (1992). The first steps count more, so that
the mean does not remember where the weights began: the share that stays is ``(1 + n) / (10 + n)`` until it reaches the
decay, as in TensorFlow's ``ExponentialMovingAverage``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from annotary.training.distributed import local, put, unwrapped, whole


class RunningMean:
    """The mean of the weights that are trained; each process keeps the mean of its part.

    Args:
        network: Whose.
        decay: Share of the mean that stays at each step, 0..1.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._weights = {
            name: weight
            for name, weight in unwrapped(network).named_parameters()
            if weight.requires_grad
        }
        self._means = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        stays = min(self._decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(
            [local(mean) for mean in self._means.values()],
            [local(weight) for weight in self._weights.values()],
            1.0 - stays,
        )
        self.steps += 1

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The network has the mean for its weights while the context lasts."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state(self) -> dict[str, Tensor]:
        """The mean, whole and on the processor. All processes must ask."""
        return {name: whole(mean) for name, mean in self._means.items()}

    def load(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Go on from what `state` told.

        Args:
            state: It.
            steps: How many steps it had taken in.
        """
        for name, mean in self._means.items():
            put(mean, state[name])
        self.steps = steps

    @torch.no_grad()
    def _swap(self) -> None:
        for name, weight in self._weights.items():
            ours, theirs = local(self._means[name]), local(weight)
            held = ours.clone()
            ours.copy_(theirs)
            theirs.copy_(held)
