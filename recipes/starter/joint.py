"""Trains what joins images and texts: two small heads on what the image tower and the sentence encoder give.

A vector has two parts. For the first, the image head sees the tower's features, the logarithms of the ImageNet classes
and the log-odds of the tags. The second is the mean of the tags' own text vectors, weighted with the tags'
probabilities: so what the tagger knows stays known where there are few captions or none. The text head is the last
layers of the sentence encoder, trained on, and a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from annotary.training.contrastive import (
    ContrastiveOptions,
    ContrastiveTraining,
    Loss,
    PairBatch,
    Sides,
    draw_some,
    rows_of_step,
    train_contrastive,
)
from recipes.starter.sentences import WIDTH, SentenceEncoder

Floats = npt.NDArray[np.float32]
Images = tuple[Tensor, Tensor]
"""What the image head takes: its inputs ``[n, d + 1000 + tags]`` and probabilities of the tags ``[n, tags]``."""

UNSURE = 0.15
"""A tag that an image does not have, but may have by its score, is not held against it."""

REFRESHED = 4
"""The tags' vectors in the image head follow the text head every so many batches."""


@dataclass(frozen=True)
class JointOptions:
    """Sizes and strengths; chosen on held-aside images, see the page."""

    width: int = 256
    """Numbers of the first part of a vector."""

    known_width: int = 128
    """Numbers of the second part."""

    dropout: float = 0.65
    """Probability of hiding an input of the image head, 0..1."""

    text_dropout: float = 0.2
    """Probability of hiding a number of the sentence encoder, 0..1."""

    text_rate: float = 0.3
    """Learning rate of the sentence encoder's own layers, beside that of what is new."""

    captions: int = 2
    """Drawn for an image and step."""

    label_weight: float = 0.5
    """Of the loss of names and phrases, beside that of captions."""

    small_share: float = 0.3
    """Share of the images with names that are seen as thumbnails."""

    training: ContrastiveOptions = field(
        default_factory=lambda: ContrastiveOptions(steps=150, learning_rate=1e-3, scale=20.0)
    )
    """The loop."""


class TextHead(nn.Module):
    """From what the encoder's convolutions give, ``[n, 512]``, to vectors ``[n, width + known_width]``."""

    def __init__(self, encoder: SentenceEncoder, options: JointOptions) -> None:
        super().__init__()
        self.hide = nn.Dropout(options.text_dropout)
        self.encoder = encoder
        for name, parameter in encoder.named_parameters():
            parameter.requires_grad_(name[:2] in ("d0", "d1", "d2", "d3", "p1", "p3"))
        self.widths = [options.width, options.known_width]
        self.project = nn.Linear(WIDTH, sum(self.widths))
        self.share = nn.Parameter(torch.tensor(1.0))

    def forward(self, means: Tensor) -> Tensor:
        """Vectors of length 1."""
        direct, known = self.parts(means)
        return functional.normalize(torch.cat([direct, self.share * known], 1), dim=1)

    def parts(self, means: Tensor) -> tuple[Tensor, Tensor]:
        """The two parts, each of length 1."""
        found = functional.normalize(self.encoder.last(self.hide(means)), dim=1)
        direct, known = torch.split(self.project(found * WIDTH**0.5), self.widths, dim=1)
        return functional.normalize(direct, dim=1), functional.normalize(known, dim=1)


class ImageHead(nn.Module):
    """From inputs and probabilities of the tags to vectors ``[n, width + known_width]``.

    Args:
        inputs: Their number.
        texts: The text head.
        tag_means: ``[tags, 512]``: what the text head takes, for the tags' names.
        options: Sizes.
    """

    tag_means: Tensor
    tag_vectors: Tensor
    calls: Tensor

    def __init__(
        self, inputs: int, texts: TextHead, tag_means: Tensor, options: JointOptions
    ) -> None:
        super().__init__()
        self.hide = nn.Dropout(options.dropout)
        self.direct = nn.Linear(inputs, options.width)
        self.share = nn.Parameter(torch.tensor(1.0))
        self.gain = nn.Parameter(torch.zeros(len(tag_means)))
        self.register_buffer("tag_means", tag_means, persistent=False)
        self.register_buffer("tag_vectors", torch.zeros(len(tag_means), options.known_width))
        self.register_buffer("calls", torch.tensor(0))
        self._texts = (texts,)  # not a part of this module

    def forward(self, images: Images) -> Tensor:
        """Vectors of length 1."""
        inputs, probabilities = images
        if self.training:
            if self.calls % REFRESHED == 0:
                self.refresh()
            self.calls += 1
        direct = functional.normalize(self.direct(self.hide(inputs)), dim=1)
        known = functional.normalize((probabilities * self.gain.exp()) @ self.tag_vectors, dim=1)
        return functional.normalize(torch.cat([direct, self.share * known], 1), dim=1)

    @torch.no_grad()
    def refresh(self) -> None:
        """Take the tags' vectors, less their mean, from the text head as it is."""
        texts = self._texts[0]
        was_training = texts.training
        texts.eval()
        _, vectors = texts.parts(self.tag_means)
        self.tag_vectors.copy_(vectors - vectors.mean(0))
        texts.train(was_training)


@dataclass(frozen=True)
class Material:
    """What the heads are trained on."""

    inputs: Tensor
    """float16 ``[views, n, d + 1000 + tags]``: of all images; the sharp views first."""

    probabilities: Tensor
    """float16 ``[views, n, tags]``."""

    sharp: int
    """How many views are sharp."""

    means: Tensor
    """``[texts, 512]``: what the convolutions of the sentence encoder give."""

    captions: Mapping[int, Sequence[int]]
    """Image to its captions' numbers, for the images to train on."""

    names: Mapping[int, Sequence[int]]
    """Image to the numbers of its names and, twice, its phrases; likewise."""

    fitting: Mapping[int, frozenset[int]]
    """Image to all texts that fit it."""

    tags: Sequence[Sequence[int]]
    """Of each tag, the number of its name and of "a photo of" it."""

    def images(self, rows: Tensor, generator: torch.Generator, small_share: float) -> Images:
        """What the image head takes, each image in a random view."""
        views = torch.randint(self.sharp, (len(rows),), generator=generator)
        small = self.sharp + torch.randint(
            len(self.inputs) - self.sharp, (len(rows),), generator=generator
        )
        is_small = torch.rand(len(rows), generator=generator) < small_share
        views = torch.where(is_small, small, views)
        return self.inputs[views, rows].float(), self.probabilities[views, rows].float()


@dataclass(frozen=True)
class Pairs:
    """Images with texts that belong to them: captions, or names and phrases."""

    name: str
    material: Material
    links: Mapping[int, Sequence[int]]
    batch_size: int
    texts_per_image: int = 1
    weight: float = 1.0
    small_share: float = 0.0
    seed: int = 0
    loss: Loss = "softmax"
    sides: Sides = "both"

    def draw(self, step: int, generator: torch.Generator) -> PairBatch:
        """The batch of a step; an image's other texts, and tags that it may have, are not held against it."""
        images = list(self.links)
        chosen = rows_of_step(step, len(images), self.batch_size, self.seed).tolist()
        rows = [images[place] for place in chosen]
        texts = [
            text
            for row in rows
            for text in draw_some(self.links[row], self.texts_per_image, generator)
        ]
        places: dict[int, list[int]] = {}
        for place, text in enumerate(texts):
            places.setdefault(text, []).append(place)
        targets = torch.zeros(len(rows), len(texts))
        for place, row in enumerate(rows):
            for text in self.material.fitting[row] & places.keys():
                targets[place, places[text]] = 1
        numbers = torch.tensor(rows)
        return PairBatch(
            self.material.images(numbers, generator, self.small_share),
            self.material.means[texts],
            targets,
            (targets > 0) | ~self._may_fit(numbers, places, len(texts)),
        )

    def _may_fit(self, rows: Tensor, places: Mapping[int, list[int]], count: int) -> Tensor:
        may = torch.zeros(len(rows), count, dtype=torch.bool)
        for tag, texts in enumerate(self.material.tags):
            for text in texts:
                if text in places:
                    likely = self.material.probabilities[0, rows, tag] > UNSURE
                    may[:, places[text]] |= likely[:, None]
        return may


@dataclass(frozen=True)
class JointModel:
    """The trained heads."""

    images: ImageHead
    texts: TextHead
    scale: float
    """What the cosines of captions are multiplied by, as learnt."""


def train_joint(
    material: Material,
    encoder: SentenceEncoder,
    options: JointOptions,
    checkpoint: Path | None = None,
    report: Callable[[int, float], None] | None = None,
) -> JointModel:
    """Train the heads.

    Args:
        material: What on.
        encoder: Its last layers are trained on.
        options: How.
        checkpoint: File of the run: an interrupted one goes on.
        report: Called after every step with its number and its loss.
    """
    seed = options.training.seed
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        texts = TextHead(encoder, options)
        tag_means = material.means[[names[0] for names in material.tags]]
        images = ImageHead(material.inputs.shape[2], texts, tag_means, options)
    captioned, labelled = material.captions, material.names
    sources = [
        Pairs("captions", material, captioned, 512, options.captions, seed=seed),
        Pairs(
            "labels", material, labelled, 192, 1, options.label_weight, options.small_share, seed
        ),
    ]
    rates = {"texts.encoder": options.text_rate, "images.share": 3.0, "images.gain": 3.0}
    rates["texts.share"] = 3.0
    training = ContrastiveTraining(images, texts, sources, options.training, rates)
    train_contrastive(training, checkpoint, report)
    images.refresh()
    return JointModel(images.eval(), texts.eval(), training.scale("captions"))
