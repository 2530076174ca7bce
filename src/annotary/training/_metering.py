"""How fast a run goes, and how long it waits for images."""

from __future__ import annotations

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
    """

    def __init__(self, stage: StagePlan, every: int) -> None:
        self._stage = stage
        self._every = every
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

    def row(self, step: int, samples: int, stepped: Stepped) -> dict[str, float | int]:
        """A row of `steps.csv`.

        Args:
            step: Of the stage, from 1.
            samples: Images that were seen in all stages.
            stepped: What the step was like.

        Raises:
            UsageError: The loss is no number any more, so that nothing is learned.
        """
        loss = float(stepped.loss)
        is_lost = loss != loss or abs(loss) == float("inf")
        if is_lost and not (stepped.loss_scale > 1.0):
            raise UsageError(
                f"the loss is no number any more after {samples:,} samples: try a smaller optimiser.learning_rate, a"
                " schedule.warm_up, or another precision.numbers"
            )
        seconds = max(time.monotonic() - self._since, 1e-9)
        row: dict[str, float | int] = {
            "stage": self._stage.number + 1,
            "step": step,
            "samples": samples,
            "loss": loss,
            "learning_rate": self._stage.learning_rate(step - 1),
            "gradient_norm": float(stepped.gradient_norm),
            "loss_scale": stepped.loss_scale,
            "samples_per_second": round(self._steps * self._stage.batch_size / seconds, 3),
            "waiting": round(self._waited / seconds, 4),
            "seconds": round(time.monotonic() - self._begun, 3),
        }
        self.restart()
        return row
