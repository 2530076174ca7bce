"""Calibrates logits on the images that are held aside, and says what scores they come to, also of unseen images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from recipes.starter import calibrate, export
from recipes.starter.heads import Labels

Scores = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Columns = npt.NDArray[np.int64]

CAREFUL = {"balanced": 0.4, "precise": 0.7, "broad": 0.2}
"""Thresholds of tags with hardly any held-aside positives, unless those of all tags together are higher."""

PARTS = 5
"""Held-aside images are measured with lines that were fitted on the other parts."""

SHARE = 0.3
"""Of the fine-tuned network's logits in those that are calibrated, where it knows the tag."""

Fit = Callable[[npt.NDArray[np.int64]], export.Model]
"""From numbers of images to the model with lines that fit them."""


@dataclass(frozen=True)
class Calibration:
    """A model with lines, and all that they were fitted to.

    Attributes:
        logits: ``[n, learned]`` of all images, before calibration.
        evidence: ``[n, tags]``.
        labels: Of all images.
        held: ``[n]``: which images are held aside.
        fit: How lines are fitted.
    """

    logits: Floats
    evidence: Floats
    labels: Labels
    held: npt.NDArray[np.bool_]
    fit: Fit

    @classmethod
    def of(
        cls,
        model: export.Model,
        logits: Floats,
        evidence: Floats,
        labels: Labels,
        held: npt.NDArray[np.bool_],
    ) -> Calibration:
        """Fit the lines of a model whose logits come from one network."""

        def fit(rows: npt.NDArray[np.int64]) -> export.Model:
            return replace(model, lines=_lines(model, logits, labels, rows))

        return cls(logits, evidence, labels, held, fit)

    def mixed_with(self, tuned: npt.NDArray[np.floating[Any]], places: Columns) -> Calibration:
        """The same for what a second network says, too; tags that it does not know stay as they are.

        Args:
            tuned: ``[n, tuned]``, its logits.
            places: ``[tuned]``: which of the learned tags it knows.
        """
        logits = self.logits.copy()
        logits[:, places] = (1 - SHARE) * logits[:, places] + SHARE * tuned

        def fit(rows: npt.NDArray[np.int64]) -> export.Model:
            model = self.fit(rows)
            fitted = _lines(model, logits, self.labels, rows)
            slope, offset = model.lines.slope.copy(), model.lines.offset.copy()
            slope[places], offset[places] = fitted.slope[places], fitted.offset[places]
            return replace(model, lines=calibrate.Lines(slope, offset))

        return replace(self, logits=logits, fit=fit)

    @cached_property
    def model(self) -> export.Model:
        """The model with lines that fit all held-aside images."""
        return self.fit(np.flatnonzero(self.held))

    def scores(self) -> Scores:
        """``[n, tags]``, of the model."""
        return export.scores(self.model, self.logits, self.evidence)

    @cached_property
    def cross_fitted(self) -> Scores:
        """``[n, tags]``, in which no held-aside image was calibrated with itself."""
        found = self.scores()
        every = np.flatnonzero(self.held)
        for part in range(PARTS):
            rows = every[part::PARTS]
            own = self.fit(np.setdiff1d(every, rows))
            found[rows] = export.scores(own, self.logits[rows], self.evidence[rows])
        return found

    def thresholds(self) -> dict[str, Scores]:
        """Preset name to thresholds ``[tags]``."""
        held = self.cross_fitted[self.held]
        return calibrate.choose_thresholds(held, self.labels, self.held, CAREFUL)


def _lines(
    model: export.Model, logits: Floats, labels: Labels, rows: npt.NDArray[np.int64]
) -> calibrate.Lines:
    learned = model.vocabulary.is_learned()
    targets, weights = labels.targets[rows][:, learned], labels.weights[rows][:, learned]
    return calibrate.fit_lines(logits[rows], targets, weights)
