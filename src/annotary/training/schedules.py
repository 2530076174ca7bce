"""Learning rates as functions of the samples seen so far: cosine, one cycle, inverse square root, constant.

Counting samples and not steps keeps a curve what it is when the batch size changes, as in JoyTag's training. Nothing
here needs torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from annotary.training._recipe_tables import ScheduleRecipe

CYCLE_PEAK = 0.3
"""Share of a run after which one cycle is at its highest, without a `warm_up` (the default of torch's OneCycleLR)."""

CYCLE_START = 1 / 25
"""What one cycle begins with, as a share of the highest learning rate (the same)."""

ROOT_SAMPLES = 10_000
"""Samples that the fall of the inverse square root is measured by, without a `warm_up`: JoyTag's own warm-up."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The learning rate of every moment of a run; called with the samples seen before a step, it gives that step's.

    Attributes:
        recipe: The curve.
        learning_rate: At its highest, above 0.
        samples: Of the whole run, at least 1. Beyond them the last learning rate stays.
    """

    recipe: ScheduleRecipe
    learning_rate: float
    samples: int

    def __post_init__(self) -> None:
        """Check that there is a run, and that the rise ends before it does."""
        if self.samples < 1 or not 0.0 < self.learning_rate < math.inf:
            raise ValueError(
                f"a run needs samples and a learning rate above 0, but got {self.samples} and {self.learning_rate}"
            )
        if self.recipe.warm_up >= self.samples:
            raise ValueError(
                f"schedule.warm_up {self.recipe.warm_up} must be below the run's {self.samples} samples"
            )

    def __call__(self, samples: int) -> float:
        """The learning rate after so many samples, 0 or more."""
        if samples < 0:
            raise ValueError(f"samples must be 0 or more, but got {samples}")
        return self.learning_rate * self._ratio(min(samples, self.samples))

    def _ratio(self, seen: int) -> float:
        """The share of the highest learning rate, 0..1."""
        kind, lowest = self.recipe.kind, self.recipe.minimum_ratio
        rise: float = self.recipe.warm_up
        if kind == "one-cycle":
            rise = rise or CYCLE_PEAK * self.samples
            if seen < rise:
                return _wave(CYCLE_START, 1.0, seen / rise)
        elif seen < rise:
            return seen / rise
        if kind == "constant":
            return 1.0
        if kind == "inverse-square-root":
            # As the `rsqrt` of big_vision: at the end of the rise it is 1, whatever it is measured by.
            unit = rise or ROOT_SAMPLES
            return max(lowest, math.sqrt(unit / (seen - rise + unit)))
        return _wave(1.0, lowest, (seen - rise) / (self.samples - rise))


def _wave(first: float, last: float, progress: float) -> float:
    """From one value to another along half a cosine wave, progress 0..1."""
    return last + (first - last) * 0.5 * (1.0 + math.cos(math.pi * progress))
