"""How fast a run goes, and how long it waits for images."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

from annotary.errors import UsageError
from annotary.training.plan import StagePlan

if TYPE_CHECKING:
    from annotary.training._learning import Stepped

Thing = TypeVar("Thing")


class Meter:
    """Measures a stage between two rows of the log.

    Args:
        stage: It.
        every: Steps between two rows.
        skips_overflows: Whether a step whose gradients are no numbers is left out, as with fp16.
    """

    def __init__(self, stage: StagePlan, every: int, *, skips_overflows: bool = False) -> None:
        self._stage = stage
        self._every = every
        self._skips_overflows = skips_overflows
        self._begun = time.monotonic()
        self.restart()

    def restart(self) -> None:
        """Begin to measure, when something else than training has taken time."""
        self._since = time.monotonic()
        self._waited = 0.0
        self._steps = 0

    def watching(self, parts: Iterator[Thing]) -> Iterator[Thing]:
        """The same, with the time that it takes noted as waiting."""
        while True:
            started = time.monotonic()
            try:
                part = next(parts)
            except StopIteration:
                return
            self._waited += time.monotonic() - started
            yield part

    def is_due(self, step: int) -> bool:
        """Whether a row is to be written after a step, counted from 1; called once for each."""
        self._steps += 1
        return step % self._every == 0 or step == self._stage.steps

    def check(self, samples: int, stepped: Stepped) -> None:
        """Make sure that a step, whose weights are about to be told of or saved, has not destroyed them.

        Args:
            samples: Images that were seen in all stages.
            stepped: What the step was like.

        Raises:
            UsageError: The loss or the gradient is no number any more, so that nothing is learned.
        """
        is_lost = not math.isfinite(float(stepped.loss)) and not stepped.loss_scale > 1.0
        if not self._skips_overflows:
            is_lost = is_lost or not math.isfinite(float(stepped.gradient_norm))
        if is_lost:
            raise UsageError(
                f"the loss is no number any more after {samples:,} samples: try a smaller optimiser.learning_rate, a"
                " schedule.warm_up, or another precision.numbers"
            )

    def row(self, step: int, samples: int, stepped: Stepped) -> dict[str, float | int]:
        """A row of `steps.csv`.

        Args:
            step: Of the stage, from 1.
            samples: Images that were seen in all stages.
            stepped: What the step was like.

        Raises:
            UsageError: As of `check`.
        """
        self.check(samples, stepped)
        seconds = max(time.monotonic() - self._since, 1e-9)
        row: dict[str, float | int] = {
            "stage": self._stage.number + 1,
            "step": step,
            "samples": samples,
            "loss": float(stepped.loss),
            "learning_rate": self._stage.learning_rate(step - 1),
            "gradient_norm": float(stepped.gradient_norm),
            "loss_scale": stepped.loss_scale,
            "samples_per_second": round(self._steps * self._stage.batch_size / seconds, 3),
            "waiting": round(self._waited / seconds, 4),
            "seconds": round(time.monotonic() - self._begun, 3),
        }
        self.restart()
        return row
