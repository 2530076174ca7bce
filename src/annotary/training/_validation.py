"""Measuring a tagger while it is trained: images go by once, on all processes, in memory for the tags alone."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from annotary.evaluation.tagging import Summary, TagCounts
from annotary.evaluation.tagging_streams import ScoreHistograms
from annotary.evaluation.tagging_thresholds import FittingOptions, fit
from annotary.training._learning import Learner, Part
from annotary.training.distributed import Processes
from annotary.training.losses import TaggingLoss

_SHRINKAGE = 10.0
"""Positives that the threshold of all tags is worth, for those of single tags: as of `evaluation.fit_thresholds`."""


@dataclass(frozen=True, eq=False)
class Measured:
    """How well a tagger does on images that it does not learn from.

    Attributes:
        loss: Mean over the images; where not all is known about them, over what is.
        mean_average_precision: Mean over the tags that occur, 0..1; scores are rounded to bins of 0.0156 in logits.
        macro: Means over the tags, at the threshold.
        micro: Rates of the summed counts, at the threshold.
        histograms: How the scores of each tag are spread, from which thresholds are chosen.
        images: How many images there were.
        seconds: How long it took.
    """

    loss: float
    mean_average_precision: float
    macro: Summary
    micro: Summary
    histograms: ScoreHistograms
    images: int
    seconds: float

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers that a checkpoint is known by."""
        return {
            "loss": self.loss,
            "map": self.mean_average_precision,
            "macro_f1": self.macro.f1,
            "micro_f1": self.micro.f1,
        }

    def row(self, stage: int, step: int, samples: int, threshold: float) -> dict[str, float | int]:
        """A row of `validation.csv`."""
        return {
            "stage": stage,
            "step": step,
            "samples": samples,
            "loss": self.loss,
            "map": self.mean_average_precision,
            "macro_f1": self.macro.f1,
            "macro_precision": self.macro.precision,
            "macro_recall": self.macro.recall,
            "micro_f1": self.micro.f1,
            "micro_precision": self.micro.precision,
            "micro_recall": self.micro.recall,
            "threshold": threshold,
            "images": self.images,
            "seconds": round(self.seconds, 3),
        }


def measure(
    learner: Learner, parts: Iterable[Part], loss: TaggingLoss, tags: int, threshold: float
) -> Measured:
    """Measure a network, with the mean of its weights if one is kept. All processes get the same.

    Args:
        learner: It.
        parts: The images that this process measures on; each image is some process's once.
        loss: What is trained, without smoothing.
        tags: How many tags there are.
        threshold: Probability from which on a tag counts as predicted.
    """
    started = time.monotonic()
    counts, histograms = TagCounts(tags), ScoreHistograms(tags)
    total, amount, images = 0.0, 0.0, 0
    with learner.averaged():
        for part in parts:
            is_image = part.weights > 0
            logits = learner.logits(part.images)[is_image.to(learner.processes.device)]
            if not len(logits):
                continue
            targets = part.targets[is_image]
            known = None if part.target_weights is None else part.target_weights[is_image] > 0
            weights = None if known is None else known.to(logits.device)
            value = float(loss(logits, targets.to(logits.device), weights))
            share = 1.0 if known is None else float(known.sum()) / known.numel()
            total += value if loss.is_sum else value * share * len(logits)
            amount += share * len(logits)
            images += len(logits)
            scores, true = torch.sigmoid(logits).cpu().numpy(), targets.numpy().astype(np.bool_)
            mask = None if known is None else known.numpy()
            counts.update(scores >= threshold, true, mask)
            histograms.update(scores, true, mask)
    sums = (total, amount, float(images))
    total, amount, images = _added_up(learner.processes, counts, histograms, sums)
    precision, occurs = histograms.average_precision().value, histograms.support > 0
    return Measured(
        loss=total / amount if amount else 0.0,
        mean_average_precision=float(precision[occurs].mean()) if occurs.any() else 0.0,
        macro=counts.macro(),
        micro=counts.micro(),
        histograms=histograms,
        images=images,
        seconds=time.monotonic() - started,
    )


def fitted_thresholds(
    histograms: ScoreHistograms, categories: Sequence[str] | None
) -> dict[str, list[float]] | None:
    """The preset `balanced`: a threshold for each tag, fitted to images; None where they have none of the tags.

    Args:
        histograms: Of the scores of the images.
        categories: Of the tags, [t]; None where they have none.
    """
    if not histograms.support.any():
        return None
    options = FittingOptions(fit="macro-f1", per="tag", shrinkage=_SHRINKAGE)
    found = fit(histograms, options, categories or [""] * histograms.tags)
    return {"balanced": found.values.tolist()}


def _added_up(
    processes: Processes,
    counts: TagCounts,
    histograms: ScoreHistograms,
    sums: tuple[float, float, float],
) -> tuple[float, float, int]:
    """Put together what the processes have counted, in place; the sums of losses, of what they are of, of images."""
    if processes.count == 1:
        return sums[0], sums[1], round(sums[2])
    for array in (
        *(counts.true_positives, counts.false_positives),
        *(counts.false_negatives, counts.true_negatives),
        *(histograms.all, histograms.true, histograms.sums),
    ):
        # Counts of 32 bits are added as they are: sums of them wrap around in the same way, signed or not.
        signed = array.view(np.int32) if array.dtype == np.uint32 else array
        moved = torch.from_numpy(signed).to(processes.device)
        signed[...] = processes.total(moved).cpu().numpy()
    together = torch.tensor(sums, dtype=torch.float64, device=processes.device)
    found = processes.total(together).tolist()
    return found[0], found[1], round(found[2])
