"""Losses of independent tags: binary cross entropy, focal and asymmetric loss, under JoyTag's names and scales.

The names are those of ``loss_type`` in JoyTag's ``Models.py``, so that a recipe of its training can be written down as
it was. Of its "asl" losses only ``asl8`` and ``asl9`` are the asymmetric loss of Ridnik et al., "Asymmetric Loss For
Multi-Label Classification" (2021); the others have exponents of 0 and no shift, which leaves binary cross entropy,
times a number. The focal loss is that of Lin et al., "Focal Loss for Dense Object Detection" (2017), without its alpha.

What differs: everything is computed in float32 (float64 for logits in float64), whatever the network computes in, and
logarithms are taken of logits and never of rounded probabilities; targets may be any number in 0..1; and targets that
are not known do not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from annotary.training._recipe_tables import LossRecipe

MOST_POSITIVE_WEIGHT = 100.0
"""What `positive_weights` are cut to, as in JoyTag's training."""


@dataclass(frozen=True, slots=True)
class _Form:
    """What stands behind a name: a loss of each target, how they are put together, and a factor."""

    kind: Literal["bce", "focal", "asymmetric"] = "bce"
    scale: float = 1.0
    is_sum: bool = False


_FORMS = {
    "bce": _Form(),
    "ce": _Form(),
    "weighted": _Form(),
    "focal": _Form("focal"),
    # A factor of 256 keeps gradients from vanishing in 16 bits (JoyTag's notes).
    "focal2": _Form("focal", 256.0),
    "asl": _Form(is_sum=True),
    "asl2": _Form(is_sum=True),
    "asl3": _Form(),
    "asl4": _Form(scale=128.0),
    "asl5": _Form(scale=128.0),
    "asl6": _Form(scale=256.0),
    "asl7": _Form(scale=2.0),
    "asl8": _Form("asymmetric", 256.0),
    "asl9": _Form("asymmetric", 358.0),
}

LOSS_NAMES = tuple(_FORMS)
"""All names; `ce` is another name of `bce`."""


class TaggingLoss:
    """The loss of a recipe.

    Args:
        recipe: Which loss, and how far its targets are smoothed.
        positive_weights: ``[t]``, of `weighted` alone, which needs them: see `positive_weights`.
    """

    def __init__(self, recipe: LossRecipe, positive_weights: Tensor | None = None) -> None:
        if (recipe.kind == "weighted") != (positive_weights is not None):
            raise ValueError("positive weights belong to the loss weighted, and it needs them")
        self.recipe = recipe
        self._positive_weights = positive_weights

    @property
    def is_sum(self) -> bool:
        """Whether it is summed over the images; else it is their mean, and does not grow with the batch."""
        return _FORMS[self.recipe.kind].is_sum

    def __call__(
        self,
        logits: Tensor,
        targets: Tensor,
        weights: Tensor | None = None,
        entries: float | None = None,
    ) -> Tensor:
        """Return the loss of a batch, a scalar.

        Args:
            logits: ``[n, t]``, of any floating-point type.
            targets: ``[n, t]``, 0..1, of any type.
            weights: ``[n, t]``, 0 or more: how much each target counts. 0 where it is unknown. None means 1 everywhere.
            entries: What a mean is over, in place of the sum of the weights.
        """
        if self._positive_weights is not None:
            self._positive_weights = self._positive_weights.to(logits.device)
        return tagging_loss(
            logits,
            smoothed(targets, self.recipe.label_smoothing),
            kind=self.recipe.kind,
            weights=weights,
            positive_weights=self._positive_weights,
            entries=entries,
        )


def tagging_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    kind: str = "bce",
    gamma: float = 2.0,
    scale: float = 1.0,
    weights: Tensor | None = None,
    positive_weights: Tensor | None = None,
    entries: float | None = None,
) -> Tensor:
    """Return the loss over all known targets, a scalar: their mean, or for `asl` and `asl2` their sum.

    Args:
        logits: ``[n, t]``.
        targets: ``[n, t]``, 0..1.
        kind: One of `LOSS_NAMES`.
        gamma: Exponent of the focal losses, 0 or more.
        scale: Multiplies the result, besides the factor that a name brings.
        weights: ``[n, t]``, or ``[n, 1]`` for whole images, 0 or more; the mean is weighted by them.
        positive_weights: ``[t]``, 0 or more: how much more a tag counts where an image has it; of binary cross entropy.
        entries: What the mean is over, in place of the sum of the weights: how many targets there are, known or not.
            Then each of them counts as if all were known, and means of parts of a batch add up to that of the whole.
    """
    form = _FORMS[kind]
    # Autocast would take no lower precision for what follows, but the logits come in the network's.
    logits = logits if logits.dtype == torch.float64 else logits.float()
    targets = targets.to(logits.dtype)
    if form.kind == "asymmetric":
        loss = asymmetric_losses(logits, targets)
    else:
        loss = functional.binary_cross_entropy_with_logits(
            logits, targets, reduction="none", pos_weight=positive_weights
        )
        if form.kind == "focal":
            loss = loss * _powered((torch.sigmoid(logits) - targets).abs(), gamma)
    scale = scale * form.scale
    if weights is None:
        return (loss.sum() if form.is_sum else loss.mean()) * scale
    weights = weights.to(loss.dtype).expand_as(loss)
    total = (loss * weights).sum()
    if form.is_sum:
        return total * scale
    return total / (weights.sum().clamp(min=1e-12) if entries is None else entries) * scale


def asymmetric_losses(
    logits: Tensor,
    targets: Tensor,
    *,
    positive_gamma: float = 1.0,
    negative_gamma: float = 4.0,
    shift: float = 0.05,
) -> Tensor:
    """Return the asymmetric loss of each target, ``[n, t]`` (equations 4, 5 and 7 of its paper).

    Where an image has a tag it is ``-(1 - p)^positive_gamma log p``, elsewhere ``-q^negative_gamma log(1 - q)`` with
    ``q = max(p - shift, 0)``: negatives that are right already, and many that are labelled wrongly, do not count. For a
    target between 0 and 1 it is the mean of both, weighted by it.

    Args:
        logits: ``[n, t]``.
        targets: ``[n, t]``, 0..1.
        positive_gamma: Exponent for tags that an image has, 0 or more. JoyTag takes 1, the paper 0.
        negative_gamma: For the others.
        shift: Probability below which those others do not count, 0..1 (below 1).
    """
    positive = functional.logsigmoid(logits) * _powered(torch.sigmoid(-logits), positive_gamma)
    shifted = functional.relu(torch.sigmoid(logits) - shift)
    logarithm = torch.log1p(-shifted) if shift else functional.logsigmoid(-logits)
    negative = logarithm * _powered(shifted, negative_gamma)
    return -(targets * positive + (1 - targets) * negative)


def smoothed(targets: Tensor, smoothing: float) -> Tensor:
    """Return targets moved towards one half.

    Args:
        targets: 0..1.
        smoothing: 0..1: 0 leaves them, 0.1 makes 0.05 and 0.95 of 0 and 1.
    """
    return targets * (1.0 - smoothing) + 0.5 * smoothing if smoothing else targets


def positive_weights(
    positives: Tensor,
    images: int | Tensor,
    *,
    root: float = 1.0,
    most: float = MOST_POSITIVE_WEIGHT,
) -> Tensor:
    """Return weights that rare tags have more of, float32 ``[t]``: the `root`-th root of negatives per positive.

    Args:
        positives: ``[t]``, images that have each tag.
        images: All images, at least as many; or ``[t]``, those that count for each tag.
        root: 1 makes all positives of a tag count as much as all of its negatives; more makes them more alike.
        most: What they are cut to; also the weight of a tag that no image has.
    """
    counts = positives.to(torch.float64)
    ratio = (images - counts) / counts  # infinite where there is none, and then cut
    return ratio.pow(1.0 / root).nan_to_num(nan=most).clamp(max=most).float()


def _powered(errors: Tensor, gamma: float) -> Tensor:
    """Errors of 0..1 to a power; below 1 the slope at 0 is infinite, and is cut there."""
    if 0.0 < gamma < 1.0:
        errors = errors.clamp(min=torch.finfo(errors.dtype).tiny)
    return errors.pow(gamma)
