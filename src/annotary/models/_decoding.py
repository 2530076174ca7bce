"""How a network that gives the next token is made to write texts: beam search, drawing, and guards against repetition.

The network is behind a protocol of two calls, `Step`, in NumPy, so that the same searching and drawing serves networks
of torch and of ONNX. Beam search gives the tokens that `generate` of transformers gives (5.24,
`generation/utils.py:_beam_search`, length_penalty = 1, early_stopping = False), with what it knows as
`repetition_penalty`, `no_repeat_ngram_size` and `min_length`. Drawing is nucleus sampling (Holtzman et al., "The
Curious Case of Neural Text Degeneration", 2020).

What differs: an image whose texts are found is let go of, and the others go on without it; the first step looks at each
beginning once and not once a beam; what is drawn depends on the image and the seed alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from annotary.models._generation import Decoding

Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]

_NEVER = np.float32(-1e9)
"""The score of what is out of the question, as in transformers: low, and still a number that can be divided."""


class Step(Protocol):
    """A network that writes one token after the other, and remembers what it has read."""

    def begin(self, tokens: Numbers) -> Floats:
        """Read the beginnings of texts.

        Args:
            tokens: int64[n, l]; the beginning of the text of each of n images, in their order.

        Returns:
            float32[n, v]: logits of the token that follows each.
        """

    def follow(self, tokens: Numbers, earlier: Numbers) -> Floats:
        """Read one more token of each of some texts.

        Args:
            tokens: int64[r]; what each text goes on with.
            earlier: int64[r]; which row of the last call each text continues. A row may be continued several times, or
                not at all, and then it is forgotten. Rows of one image stay side by side.

        Returns:
            float32[r, v]: logits of the token that follows each.
        """


class Found(NamedTuple):
    """A text in tokens.

    Attributes:
        tokens: What was added to the beginning, without the token that ends texts.
        score: The mean of the log-probabilities of the added tokens, of the end among them where there is one, as the
            network gives them before any guard.
        is_ended: Whether it came to an end by itself, within the length.
    """

    tokens: tuple[int, ...]
    score: float
    is_ended: bool


def write(
    step: Step, beginnings: Numbers, decoding: Decoding, end: int, seeds: Sequence[bytes] = ()
) -> list[list[Found]]:
    """Texts for some images.

    Args:
        step: The network.
        beginnings: int64[n, l]; a text of each image begins so, and none is as long as `max_length`.
        decoding: How.
        end: The token that ends texts.
        seeds: For drawing: some bytes of each image, such as a digest of its pixels.

    Returns:
        `count` texts for each image, the best first; fewer where a search finds no more.

    Raises:
        ValueError: A beginning leaves no room, or the vocabulary is too small for so many beams.
    """
    if beginnings.shape[1] >= decoding.max_length:
        raise ValueError(
            f"a beginning of {beginnings.shape[1]} tokens leaves no room in {decoding.max_length}"
        )
    if not len(beginnings):
        return []
    if decoding.nucleus is not None:
        generators = [
            _generator(decoding.seed, seed, number)
            for seed in seeds
            for number in range(decoding.count)
        ]
        return _by_turns(step, beginnings, decoding, end, generators)
    if decoding.beams == 1:
        return _by_turns(step, beginnings, decoding, end, None)
    return _search(step, beginnings, decoding, end)


def log_softmax(logits: Floats) -> Floats:
    """Log-probabilities float32[r, v] of logits float32[r, v]."""
    highest = logits.max(axis=-1, keepdims=True)
    shifted = logits - highest
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)), np.float32)


def guard(scores: Floats, written: Numbers, decoding: Decoding, end: int) -> None:
    """Change the scores of tokens in place, by what was written before.

    Args:
        scores: float32[r, v].
        written: int64[r, l]; the texts so far, with their beginnings.
        decoding: What is guarded against.
        end: The token that ends texts; too short texts do not.
    """
    length = written.shape[1]
    rows = np.arange(len(written))[:, None]
    penalty = np.float32(decoding.repetition_penalty)
    if penalty != 1.0:
        known = scores[rows, written]
        scores[rows, written] = np.where(known < 0, known * penalty, known / penalty)
    span = decoding.no_repeat
    if 0 < span <= length:
        last = written[:, length - span + 1 :]
        for start in range(length - span + 1):
            is_same = (written[:, start : start + span - 1] == last).all(axis=1)
            (where,) = is_same.nonzero()
            scores[where, written[where, start + span - 1]] = -np.inf
    if length < decoding.min_length:
        scores[:, end] = -np.inf


class _Search:
    """The search of one image.

    Args:
        beginning: int64[l].
        decoding: How.
        end: The token that ends texts.

    Attributes:
        texts: int64[k, l]; the beams, the best first, with their beginning.
        scores: float32[k]; the sums of their guarded log-probabilities.
    """

    def __init__(self, beginning: Numbers, decoding: Decoding, end: int) -> None:
        self.texts = beginning[None, :]
        self.scores = np.zeros(1, np.float32)
        self._first = len(beginning)
        self._sums = np.zeros(1)  # of log-probabilities without guards
        self._decoding = decoding
        self._end = end
        self._complete: list[tuple[np.float32, Found]] = []

    def advance(self, guarded: Floats, plain: Floats) -> Numbers:
        """Add the likeliest tokens to the beams, and keep those beams that are complete.

        Args:
            guarded: float32[k, v]; log-probabilities of what follows each beam, after the guards.
            plain: float32[k, v]; before them.

        Returns:
            int64[k]: which of the beams each of the new ones continues.
        """
        beams, size = self._decoding.beams, guarded.shape[1]
        total = (guarded + self.scores[:, None]).reshape(-1)
        # Twice as many, so that enough go on where all of the best end.
        chosen = _highest(total, 2 * beams)
        parents, tokens = np.divmod(chosen, size)
        scores, sums = total[chosen], self._sums[parents] + plain[parents, tokens]
        length = self.texts.shape[1] + 1
        is_over = (tokens == self._end) | (length >= self._decoding.max_length)
        added = np.float32(length - self._first)
        for place in is_over[:beams].nonzero()[
            0
        ]:  # others of lower score do not count, even complete
            written = (*self.texts[parents[place], self._first :].tolist(), int(tokens[place]))
            is_ended = written[-1] == self._end
            mean = float(sums[place]) / len(written)
            found = Found(written[:-1] if is_ended else written, mean, is_ended)
            self._complete.append((scores[place] / added, found))
        self._complete = sorted(self._complete, key=lambda one: -one[0])[:beams]
        scores = np.where(is_over, scores + _NEVER, scores).astype(np.float32)
        going = np.argsort(-scores, kind="stable")[:beams]
        self.texts = np.concatenate([self.texts[parents[going]], tokens[going, None]], axis=1)
        self.scores, self._sums = scores[going], sums[going]
        return np.asarray(parents[going], np.int64)

    @property
    def is_done(self) -> bool:
        """Whether no beam is expected to become better than what is complete, or all are as long as they may be."""
        length = self.texts.shape[1]
        if length >= self._decoding.max_length:
            return True
        if len(self._complete) < self._decoding.beams:
            return False
        return bool(self.scores[0] / np.float32(length - self._first) <= self._complete[-1][0])

    def best(self) -> list[Found]:
        """What was found, the best first."""
        return [found for _, found in self._complete[: self._decoding.count]]


def _search(step: Step, beginnings: Numbers, decoding: Decoding, end: int) -> list[list[Found]]:
    """Beam search of all images, side by side."""
    searches = [_Search(beginning, decoding, end) for beginning in beginnings]
    going = searches
    logits = step.begin(beginnings)
    if logits.shape[1] < 2 * decoding.beams:
        raise ValueError(f"{decoding.beams} beams are too many for {logits.shape[1]} tokens")
    while True:
        plain = log_softmax(logits)
        guarded = plain.copy()
        guard(guarded, np.concatenate([one.texts for one in going]), decoding, end)
        start, earlier = 0, []
        for one in going:
            rows = slice(start, start + len(one.texts))
            parents = one.advance(guarded[rows], plain[rows])
            if not one.is_done:
                earlier.append(start + parents)
            start = rows.stop
        going = [one for one in going if not one.is_done]
        if not going:
            return [one.best() for one in searches]
        tokens = np.concatenate([one.texts[:, -1] for one in going])
        logits = step.follow(tokens, np.concatenate(earlier))


def _by_turns(
    step: Step,
    beginnings: Numbers,
    decoding: Decoding,
    end: int,
    generators: Sequence[np.random.Generator] | None,
) -> list[list[Found]]:
    """Texts one token after the other: the likeliest, or one that is drawn where there are generators."""
    each = decoding.count if generators is not None else 1
    first = beginnings.shape[1]
    texts = np.repeat(beginnings, each, axis=0)
    rows = np.repeat(np.arange(len(beginnings)), each)  # of the last call
    going = np.arange(len(texts))
    sums = np.zeros(len(texts))
    found: list[Found | None] = [None] * len(texts)
    logits = step.begin(beginnings)[rows]
    while True:
        plain, scores = log_softmax(logits), logits.copy()
        guard(scores, texts, decoding, end)
        if generators is None or decoding.nucleus is None:
            tokens = scores.argmax(axis=1)
        else:
            tokens = _drawn(scores, decoding.nucleus, [generators[row] for row in going.tolist()])
        sums = sums + plain[np.arange(len(tokens)), tokens]
        texts = np.concatenate([texts, tokens[:, None]], axis=1)
        is_over = (tokens == end) | (texts.shape[1] >= decoding.max_length)
        for place in is_over.nonzero()[0]:
            written = tuple(texts[place, first:].tolist())
            is_ended = written[-1] == end
            mean = float(sums[place]) / len(written)
            found[going[place]] = Found(written[:-1] if is_ended else written, mean, is_ended)
        (kept,) = (~is_over).nonzero()
        if not len(kept):
            break
        texts, sums, going = texts[kept], sums[kept], going[kept]
        logits = step.follow(texts[:, -1], rows[kept])
        rows = np.arange(len(kept))
    every = [one for one in found if one is not None]
    groups = [every[i : i + each] for i in range(0, len(every), each)]
    return [sorted(group, key=lambda one: -one.score) for group in groups]


def _drawn(scores: Floats, share: float, generators: Sequence[np.random.Generator]) -> Numbers:
    """A token for each row, from the likeliest that together have a share of the probability."""
    chosen = np.empty(len(scores), np.int64)
    for row, generator in enumerate(generators):
        order = np.argsort(-scores[row], kind="stable")
        highest = scores[row, order].astype(np.float64)
        sums = np.cumsum(np.exp(highest - highest[0]))
        last = min(int(np.searchsorted(sums, share * sums[-1])), len(sums) - 1)
        kept = order[: last + 1]
        # Each token has luck of its own (Gumbel's trick): in another batch numbers differ in their last digits, and
        # with them which of two words is likelier, or the last that is kept. That changes nothing for the others.
        luck = generator.gumbel(size=(scores.shape[1],))
        chosen[row] = kept[np.argmax(scores[row, kept] + luck[kept])]
    return chosen


def _highest(values: Floats, count: int) -> Numbers:
    """Places of the highest values, the highest first."""
    places = np.argpartition(values, len(values) - count)[len(values) - count :]
    return np.asarray(places[np.argsort(-values[places], kind="stable")], np.int64)


def _generator(seed: int, image: bytes, number: int) -> np.random.Generator:
    """Draws one text of one image: the same ones whatever other images and texts there are."""
    words = [seed % 2**64, number, *image]
    return np.random.default_rng(words)
