"""Trains the heads on the cached features: what each image says about each tag, and how much to believe it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from annotary.training.tagger import TaggerData, TaggerHead, TaggerOptions, train_tagger
from recipes.starter import pixels
from recipes.starter.features import Table
from recipes.starter.few_bits import FewBits
from recipes.starter.tables import Example, Vocabulary, is_photo, label

Floats = npt.NDArray[np.float32]

EVIDENCE_FLOOR = 1e-4
"""Added to ImageNet probabilities before the logarithm."""

_LINEAR = TaggerOptions(
    epochs=30, learning_rate=3e-4, weight_decay=0.1, dropout=0.5, loss_scale=256.0, seed=7
)
_HIDDEN = TaggerOptions(
    hidden=512,
    epochs=30,
    learning_rate=1.5e-3,
    weight_decay=0.1,
    dropout=0.4,
    loss_scale=256.0,
    seed=17,
)
MEMBERS: tuple[TaggerOptions, ...] = (_LINEAR, _HIDDEN, replace(_HIDDEN, seed=18))
"""The heads whose logits are averaged: one linear, two with a hidden layer."""

BITS = 4
"""Of the numbers of the heads. 8 are no better, where three heads are averaged, and twice as large."""

_WEAK_PHOTO = 0.05
"""Weight of "absent" on a photo whose source does not know the word."""

_WEAK_DRAWING = 0.03
"""Weight of "absent" on a drawing for a word that only photos teach."""

_DRAWN_ON_PHOTO = 0.5
"""Weight of "absent" on a photo for a tag that only drawings teach."""

UNNAMED = {"corel": 1.0, "flickr": 0.5, "coco": 1.0, "emoji": 0.5, "clipart": 0.3}
"""Weight of "absent" where the source knows the word and does not say it: captions and keywords leave much out."""


@dataclass(frozen=True)
class Labels:
    """What is known about all images."""

    targets: Floats
    """``[n, tags]``, 0 or 1."""

    known: npt.NDArray[np.bool_]
    """``[n, tags]``: whether a source says so."""

    weights: Floats
    """``[n, tags]``: how much each target counts, 0..1; small but not 0 for weak negatives."""


def make_labels(examples: Sequence[Example], vocabulary: Vocabulary) -> Labels:
    """Join the words of the sources, the styles and the weak negatives."""
    targets, known = label(examples, vocabulary)
    pixels.add_styles(examples, vocabulary, targets, known)
    photo = is_photo(examples)
    on_photos = known[photo].any(0)
    on_drawings = known[~photo].any(0)
    weights = np.where(photo[:, None], np.float32(_WEAK_PHOTO), np.float32(_WEAK_DRAWING))
    weights = np.where(~on_photos & photo[:, None], np.float32(_DRAWN_ON_PHOTO), weights)
    weights = np.where(on_photos & on_drawings, np.minimum(weights, _WEAK_PHOTO), weights)
    unnamed = np.array([UNNAMED[e.source] for e in examples], np.float32)[:, None]
    weights = np.where(known, np.where(targets > 0, np.float32(1), unnamed), weights)
    is_colour = np.array([category == "colour" for category in vocabulary.categories])
    taught = np.any([vocabulary.teaches(source) for source in vocabulary.words], axis=0)
    is_style = np.array([name in vocabulary.styles for name in vocabulary.names]) & ~taught
    is_treated = np.array([example.treatment != "none" for example in examples])
    weights[np.ix_(is_treated, is_colour)] = 0
    weights = np.where(is_style & ~known, 0, weights)
    return Labels(targets, known, weights.astype(np.float32))


def class_probability(logits: npt.NDArray[np.float16]) -> Floats:
    """Softmax of ImageNet logits ``[n, 1000]``."""
    shifted = logits.astype(np.float32)
    shifted = np.exp(shifted - shifted.max(1, keepdims=True))
    return np.asarray(shifted / shifted.sum(1, keepdims=True), np.float32)


def evidence(logits: npt.NDArray[np.float16], vocabulary: Vocabulary) -> Floats:
    """``[n, tags]``: log-odds of the summed ImageNet probability, 0 where there is none."""
    floor = EVIDENCE_FLOOR
    summed = np.clip(class_probability(logits) @ vocabulary.members, 0, 1)
    odds = np.log((summed + floor) / (1 - summed + floor)) - np.log(floor / (1 + floor))
    return np.asarray(odds * vocabulary.members.any(0), np.float32)


@dataclass(frozen=True)
class Member:
    """One head: linear, or with a hidden layer."""

    last: FewBits
    """``[d or hidden, learned]``."""

    first: FewBits | None = None
    """``[d, hidden]``."""

    first_bias: Floats | None = None
    """``[hidden]``."""

    def logits(self, standard: Floats) -> Floats:
        """``[n, learned]`` from standardised features, without bias."""
        if self.first is None or self.first_bias is None:
            return self.last.multiply(standard)
        return self.last.multiply(np.maximum(self.first.multiply(standard) + self.first_bias, 0))


@dataclass(frozen=True)
class Ensemble:
    """Heads whose logits are averaged."""

    mean: Floats
    """``[d]``: subtracted from the features."""

    scale: Floats
    """``[d]``: divides them then."""

    members: tuple[Member, ...]
    """The heads."""

    bias: Floats
    """``[learned]``: the mean of the heads' biases."""

    gain: Floats
    """``[learned]``: of the evidence, the mean of the heads' gains."""

    def standardise(self, features: npt.NDArray[np.floating[Any]]) -> Floats:
        """``[n, d]``: features with mean 0 and spread 1 over the training images."""
        return np.asarray((features.astype(np.float32) - self.mean) / self.scale, np.float32)

    def logits(self, standard: Floats, evidence_of_learned: Floats) -> Floats:
        """``[n, learned]`` from standardised features."""
        total = sum(member.logits(standard) for member in self.members) / len(self.members)
        return np.asarray(total + self.bias + self.gain * evidence_of_learned, np.float32)


def train_heads(
    tables: dict[str, Table],
    labels: Labels,
    vocabulary: Vocabulary,
    rows: npt.NDArray[np.bool_],
    folder: Path,
    report: Callable[[str], None],
) -> Ensemble:
    """Train on the images of `rows`.

    Args:
        tables: View name to what the tower gives.
        labels: Of all images.
        vocabulary: The tags; only the learned ones get a head.
        rows: ``[n]``: images to train on.
        folder: For checkpoints: an interrupted run goes on where it was.
        report: Called with a line of text.
    """
    learned = vocabulary.is_learned()
    data = TaggerData(
        torch.stack([torch.from_numpy(table.features[rows]) for table in tables.values()]),
        torch.from_numpy(labels.targets[rows][:, learned]),
        torch.from_numpy(labels.weights[rows][:, learned]),
        torch.stack(
            [
                torch.from_numpy(evidence(table.logits[rows], vocabulary)[:, learned]).half()
                for table in tables.values()
            ]
        ),
    )
    folder.mkdir(parents=True, exist_ok=True)
    heads = []
    for number, options in enumerate(MEMBERS):
        kind = f"{options.hidden} hidden" if options.hidden else "linear"
        report(
            f"head {number + 1} of {len(MEMBERS)} ({kind}): {rows.sum():,} images, {learned.sum()} tags"
        )
        heads.append(train_tagger(data, options, folder / f"head_{number}.pt"))
    return _join(heads)


def _join(heads: Sequence[TaggerHead]) -> Ensemble:
    """Round the matrices and average what is linear."""
    members = []
    for head in heads:
        last = FewBits.of(head.last.weight.detach().numpy().T, BITS)
        if head.middle is None:
            members.append(Member(last))
        else:
            first = FewBits.of(head.middle.weight.detach().numpy().T, BITS)
            members.append(Member(last, first, head.middle.bias.detach().numpy()))
    return Ensemble(
        heads[0].mean.numpy(),
        heads[0].scale.numpy(),
        tuple(members),
        np.mean([head.last.bias.detach().numpy() for head in heads], 0),
        np.mean([head.gain.detach().numpy() for head in heads if head.gain is not None], 0),
    )
