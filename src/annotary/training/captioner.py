"""Trains a small decoder to write captions from what a frozen image network gives.

Data, network and loop are apart: `Words` turns captions into numbers, `CaptionTable` gives batches of any features that
were computed before, `CaptionDecoder` is a transformer that reads an image as a few tokens before the words (as in
ClipCap, Mokady et al., 2021, but with words of its own and nothing trained before), and `CaptionTraining` is the loop.
It is meant for few data: features, words and weights are hidden by chance, and the labels are smoothed.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

PADDING, START, END, UNKNOWN = 0, 1, 2, 3
"""Numbers of the words that are none."""

SPECIAL = ("<padding>", "<start>", "<end>", "<unknown>")
"""Their names."""

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")

_STEPS_OF_A_SEED = 1_000_003
"""Distance of the random numbers of two seeds."""


def split_words(text: str) -> list[str]:
    """The words of a text in small letters, without punctuation."""
    return [word.replace("’", "'") for word in _WORD.findall(text.lower())]


@dataclass(frozen=True)
class Words:
    """The words that can be written.

    Attributes:
        names: By number; the first are `SPECIAL`.
    """

    names: tuple[str, ...]

    @classmethod
    def of(cls, captions: Iterable[str], least: int = 2) -> Words:
        """The words of some captions that occur so many times at least, the most frequent first."""
        counts = Counter(word for caption in captions for word in split_words(caption))
        kept = sorted(
            (word for word, n in counts.items() if n >= least), key=lambda w: (-counts[w], w)
        )
        return cls((*SPECIAL, *kept))

    def encode(self, caption: str, longest: int) -> list[int]:
        """Numbers of a caption with its start and its end; `longest` words of it are kept."""
        numbers = {name: number for number, name in enumerate(self.names)}
        words = [numbers.get(word, UNKNOWN) for word in split_words(caption)[:longest]]
        return [START, *words, END]

    def decode(self, numbers: Iterable[int]) -> str:
        """The text of numbers, without those that are no words."""
        return " ".join(self.names[number] for number in numbers if number > UNKNOWN)


@dataclass(frozen=True)
class CaptionerOptions:
    """What the decoder is like and how it is trained."""

    width: int = 192
    """Numbers of a word's vector; a multiple of `heads`."""

    layers: int = 2
    """Blocks of attention and a hidden layer."""

    heads: int = 4
    """Of the attention."""

    prefix: int = 4
    """Tokens that each region of an image becomes."""

    longest: int = 24
    """Words of a caption at most."""

    dropout: float = 0.3
    """Probability of hiding a number inside the network, 0..1."""

    input_dropout: float = 0.5
    """Probability of hiding a number of the image, 0..1."""

    word_dropout: float = 0.1
    """Probability of hiding a word that was written, 0..1."""

    label_smoothing: float = 0.1
    """Share of the target that goes to all words alike, 0..1."""

    steps: int = 1500
    """Of the whole run."""

    batch_size: int = 128
    """Captions a step."""

    learning_rate: float = 1e-3
    """Of AdamW at its highest; it rises over the first `warmup_share` of all steps and falls as a cosine to 0."""

    warmup_share: float = 0.1
    """Share of all steps during which the learning rate rises, 0..1."""

    weight_decay: float = 0.1
    """Of AdamW, on matrices."""

    gradient_limit: float = 1.0
    """The longest that the gradient of all parameters may be."""

    average: float = 0.0
    """Decay of a moving average of the weights, 0..1, which `CaptionTraining.averaged` gives; 0 keeps none."""

    seed: int = 0
    """Start of all random numbers; the same seed on the same machine gives the same bits."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.width % self.heads:
            raise ValueError(
                f"width must be a multiple of heads, but got {self.width}, {self.heads}"
            )
        if min(self.layers, self.prefix, self.longest, self.steps, self.batch_size) < 1:
            raise ValueError("layers, prefix, longest, steps and batch_size must be 1 or more")
        for name in ("dropout", "input_dropout", "word_dropout", "label_smoothing", "average"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(
                    f"{name} must be in 0..1, and below 1, but got {getattr(self, name)}"
                )


class _Block(nn.Module):
    """Attention to all that stands before, and a hidden layer; both add to what comes in."""

    def __init__(self, options: CaptionerOptions) -> None:
        super().__init__()
        self.heads = options.heads
        self.hide = options.dropout
        self.attention_norm = nn.LayerNorm(options.width)
        self.ask = nn.Linear(options.width, 3 * options.width)
        self.answer = nn.Linear(options.width, options.width)
        self.hidden_norm = nn.LayerNorm(options.width)
        self.grow = nn.Linear(options.width, 4 * options.width)
        self.shrink = nn.Linear(4 * options.width, options.width)

    def forward(self, tokens: Tensor, seen: Tensor) -> Tensor:
        """Tokens ``[b, t, w]``; `seen` bool ``[t, t]`` says which sees which."""
        asked = self.ask(self.attention_norm(tokens))
        query, key, value = asked.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        found = functional.scaled_dot_product_attention(
            query, key, value, seen, self.hide if self.training else 0.0
        )
        answered = self.answer(found.transpose(1, 2).flatten(2))
        tokens = tokens + functional.dropout(answered, self.hide, self.training)
        grown = self.shrink(functional.gelu(self.grow(self.hidden_norm(tokens))))
        return tokens + functional.dropout(grown, self.hide, self.training)


class CaptionDecoder(nn.Module):
    """Words from an image's numbers.

    Args:
        inputs: Numbers of a region of an image.
        words: How many words there are.
        options: What it is like.
        regions: Of an image.
    """

    def __init__(
        self, inputs: int, words: int, options: CaptionerOptions, regions: int = 1
    ) -> None:
        super().__init__()
        self.options = options
        self.prefix = regions * options.prefix
        self.enter = nn.Linear(inputs, options.prefix * options.width)
        self.enter_norm = nn.LayerNorm(options.width)
        self.words = nn.Embedding(words, options.width)
        self.places = nn.Parameter(torch.zeros(self.prefix + options.longest + 1, options.width))
        self.blocks = nn.ModuleList(_Block(options) for _ in range(options.layers))
        self.norm = nn.LayerNorm(options.width)
        self.offset = nn.Parameter(torch.zeros(words))
        nn.init.normal_(self.words.weight, std=options.width**-0.5)
        nn.init.normal_(self.places, std=0.02)

    def read(self, images: Tensor) -> Tensor:
        """The tokens of images ``[b, regions, inputs]``: ``[b, prefix, width]``."""
        hidden = functional.dropout(images, self.options.input_dropout, self.training)
        tokens = self.enter(hidden).unflatten(-1, (self.options.prefix, -1)).flatten(1, 2)
        normed: Tensor = self.enter_norm(tokens)
        return normed

    def write(self, prefix: Tensor, numbers: Tensor) -> Tensor:
        """Logits ``[b, t, words]`` of the word after each of the words ``[b, t]``."""
        count = self.prefix + numbers.shape[1]
        tokens = torch.cat([prefix, self.words(numbers)], 1) + self.places[:count]
        tokens = functional.dropout(tokens, self.options.dropout, self.training)
        place = torch.arange(count, device=tokens.device)
        # The image's tokens see each other; a word sees them and the words before it.
        seen = place[None] <= place[:, None].clamp(min=self.prefix - 1)
        for block in self.blocks:
            tokens = block(tokens, seen)
        written: Tensor = self.norm(tokens[:, self.prefix :])
        return written @ self.words.weight.T + self.offset

    def forward(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Logits as `write`, from images ``[b, regions, inputs]``."""
        return self.write(self.read(images), numbers)


@dataclass(frozen=True)
class CaptionTable:
    """Images that are in memory as features, with their captions as numbers."""

    images: Tensor
    """``[views, n, regions, inputs]``: the same images seen in different ways."""

    captions: Sequence[Sequence[Sequence[int]]]
    """Of each image its captions, each with its start and its end; one at least."""

    def __post_init__(self) -> None:
        """Check that every image has a caption."""
        if len(self.captions) != self.images.shape[1] or not all(map(len, self.captions)):
            raise ValueError("captions must hold at least one caption for every image")

    def draw(self, step: int, batch_size: int, seed: int) -> tuple[Tensor, Tensor]:
        """Images ``[b, regions, inputs]`` and numbers ``[b, t]`` of a step.

        Every caption is drawn once in a pass over all, with its image in a random view.
        """
        pairs = [(n, caption) for n, own in enumerate(self.captions) for caption in own]
        batch_size = min(batch_size, len(pairs))
        steps = len(pairs) // batch_size
        order = torch.Generator().manual_seed(seed * _STEPS_OF_A_SEED + step // steps)
        start = step % steps * batch_size
        chosen = torch.randperm(len(pairs), generator=order)[start : start + batch_size].tolist()
        views = torch.Generator().manual_seed(seed * _STEPS_OF_A_SEED + step)
        view = torch.randint(self.images.shape[0], (batch_size,), generator=views)
        rows = torch.tensor([pairs[place][0] for place in chosen])
        return self.images[view, rows].float(), padded([pairs[place][1] for place in chosen])


def padded(captions: Sequence[Sequence[int]]) -> Tensor:
    """Captions of different lengths as int64 ``[n, t]``."""
    numbers = torch.full((len(captions), max(map(len, captions))), PADDING)
    for row, caption in enumerate(captions):
        numbers[row, : len(caption)] = torch.tensor(caption)
    return numbers


class CaptionTraining:
    """One training run, step by step, which can be saved and continued at any step with the same bits (on CPU).

    Args:
        decoder: What is trained.
        table: What on.
        options: How.
    """

    def __init__(
        self, decoder: CaptionDecoder, table: CaptionTable, options: CaptionerOptions
    ) -> None:
        self.decoder = decoder
        self.table = table
        self.options = options
        parameters = list(decoder.parameters())
        self._optimiser = torch.optim.AdamW(
            [
                {
                    "params": [p for p in parameters if p.ndim > 1],
                    "weight_decay": options.weight_decay,
                },
                {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=options.learning_rate,
        )
        self._average = [p.detach().clone() for p in parameters] if options.average else None
        self.step = 0

    def run(self, checkpoint: Path | None = None, save_every: int = 500) -> Iterator[float]:
        """Do the remaining steps and yield the loss of each.

        Args:
            checkpoint: File to save to every `save_every` steps and at the end; None saves nothing.
            save_every: Steps between two saves.
        """
        while self.step < self.options.steps:
            loss = self.train_step()
            if checkpoint is not None and (
                self.step % save_every == 0 or self.step == self.options.steps
            ):
                self.save(checkpoint)
            yield loss

    def train_step(self) -> float:
        """Do one step and return its loss, the mean cross entropy of a word."""
        options = self.options
        images, numbers = self.table.draw(self.step, options.batch_size, options.seed)
        for group in self._optimiser.param_groups:
            group["lr"] = options.learning_rate * self._share_of_rate()
        self.decoder.train()
        with torch.random.fork_rng():
            torch.manual_seed(options.seed * _STEPS_OF_A_SEED + self.step)
            written = numbers[:, :-1]
            is_hidden = (torch.rand(written.shape) < options.word_dropout) & (written > UNKNOWN)
            logits = self.decoder(images, written.masked_fill(is_hidden, UNKNOWN))
        # A word that is not known is no target: it would be written.
        targets = numbers[:, 1:].masked_fill(numbers[:, 1:] == UNKNOWN, PADDING)
        loss = functional.cross_entropy(
            logits.transpose(1, 2),
            targets,
            ignore_index=PADDING,
            label_smoothing=options.label_smoothing,
        )
        self._optimiser.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.decoder.parameters(), options.gradient_limit)
        self._optimiser.step()
        self._follow()
        self.step += 1
        return loss.item()

    @torch.no_grad()
    def _follow(self) -> None:
        if self._average is not None:
            # At the beginning the average is over what there is.
            decay = min(self.options.average, (self.step + 1) / (self.step + 10))
            for kept, value in zip(self._average, self.decoder.parameters(), strict=True):
                kept.lerp_(value, 1 - decay)

    @torch.no_grad()
    def averaged(self) -> None:
        """Put the moving average of the weights in their place, after the last step."""
        if self._average is not None:
            for kept, value in zip(self._average, self.decoder.parameters(), strict=True):
                value.copy_(kept)

    def save(self, path: Path) -> None:
        """Write everything that the next step depends on; the file appears whole or not at all."""
        state = {
            "options": asdict(self.options),
            "decoder": self.decoder.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "average": self._average,
            "step": self.step,
        }
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def restore(self, path: Path) -> None:
        """Continue from a saved run.

        Raises:
            ValueError: The file was saved with other options.
        """
        state: dict[str, Any] = torch.load(path, weights_only=True)
        if state["options"] != asdict(self.options):
            raise ValueError(f"{path} was saved with other options: {state['options']}")
        self.decoder.load_state_dict(state["decoder"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._average = state["average"]
        self.step = state["step"]

    def _share_of_rate(self) -> float:
        warmup = max(1, round(self.options.warmup_share * self.options.steps))
        if self.step < warmup:
            return (self.step + 1) / warmup
        progress = (self.step - warmup) / max(1, self.options.steps - warmup)
        return 0.5 * (1.0 + math.cos(math.pi * progress))


@torch.no_grad()
def mean_loss(decoder: CaptionDecoder, table: CaptionTable, batch_size: int = 256) -> float:
    """Mean negative log-probability of a known word of all captions, the images in their first view."""
    decoder.eval()
    pairs = [(n, caption) for n, own in enumerate(table.captions) for caption in own]
    total = count = 0.0
    for start in range(0, len(pairs), batch_size):
        some = pairs[start : start + batch_size]
        numbers = padded([caption for _, caption in some])
        images = table.images[0, [row for row, _ in some]].float()
        targets = numbers[:, 1:].masked_fill(numbers[:, 1:] == UNKNOWN, PADDING)
        logits = decoder(images, numbers[:, :-1]).transpose(1, 2)
        total += float(
            functional.cross_entropy(logits, targets, ignore_index=PADDING, reduction="sum")
        )
        count += float((targets != PADDING).sum())
    return total / count


def train_captioner(
    table: CaptionTable,
    words: Words,
    options: CaptionerOptions,
    checkpoint: Path | None = None,
    report: Callable[[int, float], None] | None = None,
) -> CaptionDecoder:
    """Train a decoder to the end; continue from the checkpoint if there is one.

    Args:
        table: What on.
        words: What the captions' numbers mean.
        options: What it is like, and how.
        checkpoint: File of the run.
        report: Called after every step with its number and its loss.
    """
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        _, _, regions, inputs = table.images.shape
        decoder = CaptionDecoder(inputs, len(words.names), options, regions)
    training = CaptionTraining(decoder, table, options)
    if checkpoint is not None and checkpoint.exists():
        training.restore(checkpoint)
    for loss in training.run(checkpoint):
        if report is not None:
            report(training.step, loss)
    training.averaged()
    return decoder.eval()
