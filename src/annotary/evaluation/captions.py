"""How near captions are to those that people wrote: BLEU, ROUGE-L, CIDEr and CIDEr-D, as COCO counts them.

BLEU is that of Papineni et al. 2002 over all captions, against the reference whose length is nearest. ROUGE-L is that
of Lin 2004 with beta 1.2, the best precision and the best recall over the references. CIDEr is that of Vedantam et al.
2015 without stemming, and CIDEr-D its form that cannot be gamed by repeated words or by length; **what COCO and papers
report as "CIDEr" is CIDEr-D**, with up to four words, sigma 6 and times 10. Document frequencies are those of the
references that are measured on, so that a number holds for its dataset.

Written down from the papers, with the conventions of pycocoevalcap 1.2 (BSD-2; its wheel has 104 MB of Java), and held
to its numbers by tests. METEOR and SPICE are Java programs and not here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from annotary.evaluation._caption_tokens import caption_tokens
from annotary.evaluation.resampling import interval, resampled_sums
from annotary.evaluation.zero_shot import Interval

Floats: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int64]
Words: TypeAlias = tuple[str, ...]

LONGEST = 4
"""Words of an n-gram, at most."""

METRICS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d", "cider")
"""All of them, in the order in which they are told."""

_ROUGE_BETA = 1.2
"""How much more recall counts than precision."""

_SIGMA = 6.0
"""Of the length penalty of CIDEr-D, in words."""

_TINY, _SMALL = 1e-15, 1e-9
"""What the reference adds to counts, above and below the line, so that nothing is divided by zero."""


@dataclass(frozen=True, eq=False)
class CaptionResult:
    """How near each caption is to its references, and all of them together.

    Attributes:
        images: int64[n], the image of each caption; images are what is resampled.
        counts: float64[n, 10] of BLEU: n-grams of 1 to 4 words that are right, n-grams that there are, words, words of
            the nearest reference.
        rouge_l: float64[n], 0..1.
        cider: float64[n], 0..10; not a number when there is one image only, as then no word tells images apart.
        cider_d: float64[n], likewise.
    """

    images: Integers
    counts: Floats
    rouge_l: Floats
    cider: Floats
    cider_d: Floats

    def metrics(self) -> dict[str, float | None]:
        """Every metric over all captions; None for what is not defined."""
        found = _together(self.counts.sum(axis=0), self._means().sum(axis=0), len(self.images))
        return {name: _number(value) for name, value in zip(METRICS, found, strict=True)}

    def intervals(self, *, seed: int = 0, rounds: int = 1000) -> dict[str, Interval | None]:
        """Where each metric lies with a certainty of 95 %, if the images are a random sample.

        Images are drawn with replacement (bootstrap). Document frequencies of CIDEr stay those of all images.
        """
        columns = np.concatenate(
            [self.counts, self._means(), np.ones((len(self.images), 1))], axis=1
        )
        sums = resampled_sums(columns, self.images, seed=seed, rounds=rounds)
        drawn = np.array(
            [_together(row[:10], row[10:13], row[13]) for row in sums], dtype=np.float64
        )
        return {
            name: None if np.isnan(drawn[:, place]).any() else interval(drawn[:, place])
            for place, name in enumerate(METRICS)
        }

    def of_each(self) -> Mapping[str, Floats]:
        """Metrics of each caption alone; what is compared with the judgements of people."""
        alone = [_bleu(row) for row in self.counts]
        bleu = np.array(alone, dtype=np.float64).reshape(len(alone), LONGEST)
        return {
            **{f"bleu_{n + 1}": bleu[:, n] for n in range(LONGEST)},
            "rouge_l": self.rouge_l,
            "cider_d": self.cider_d,
            "cider": self.cider,
        }

    def _means(self) -> Floats:
        return np.stack([self.rouge_l, self.cider_d, self.cider], axis=1)


def measure_captions(
    captions: Sequence[str], images: Sequence[int], references: Sequence[Sequence[str]]
) -> CaptionResult:
    """Measure captions against those that people wrote of the same images.

    Args:
        captions: Whatever was written; an empty one is right in nothing.
        images: The image of each, by its place in `references`.
        references: Of each image one or more captions.

    Raises:
        ValueError: There is no caption, or an image has no reference.
    """
    if not captions or len(captions) != len(images):
        raise ValueError(f"expected an image for each caption, but got {len(images)}")
    if not all(references[image] for image in images):
        raise ValueError("every image must have one reference or more")
    words = [caption_tokens(caption) for caption in captions]
    of_references = [[caption_tokens(text) for text in texts] for texts in references]
    counted = [[_counted(one) for one in texts] for texts in of_references]
    weights = _Weights(counted)
    vectors = [[weights.vector(one) for one in texts] for texts in counted]
    bleu = np.empty((len(captions), 2 * LONGEST + 2))
    others = np.empty((len(captions), 3))
    for row, (own, image) in enumerate(zip(words, images, strict=True)):
        ngrams = _counted(own)
        lengths = [len(reference) for reference in of_references[image]]
        bleu[row] = _bleu_counts(own, ngrams, counted[image], lengths)
        vector = weights.vector(ngrams)
        others[row] = (
            _rouge_l(own, of_references[image]),
            np.mean([_cider(vector, reference) for reference in vectors[image]]),
            np.mean([_cider_d(vector, reference) for reference in vectors[image]]),
        )
    if len(references) < 2:
        others[:, 1:] = np.nan
    places = np.asarray(images, dtype=np.int64)
    return CaptionResult(places, bleu, others[:, 0], others[:, 1], others[:, 2])


def _counted(words: Sequence[str]) -> Counter[Words]:
    """How often each n-gram stands in a caption."""
    return Counter(
        tuple(words[start : start + n])
        for n in range(1, LONGEST + 1)
        for start in range(len(words) - n + 1)
    )


def _bleu_counts(
    words: Sequence[str],
    ngrams: Counter[Words],
    references: Sequence[Counter[Words]],
    lengths: Sequence[int],
) -> list[int]:
    """What BLEU adds up over captions: a row of `CaptionResult.counts`."""
    right = [0] * LONGEST
    for ngram, count in ngrams.items():
        right[len(ngram) - 1] += min(count, max(reference[ngram] for reference in references))
    there = [max(0, len(words) - n) for n in range(LONGEST)]
    nearest = min(lengths, key=lambda length: (abs(length - len(words)), length))
    return [*right, *there, len(words), nearest]


def _bleu(counts: Floats) -> list[float]:
    """BLEU with n-grams of up to 1, 2, 3 and 4 words, 0..1."""
    ratio = (counts[8] + _TINY) / (counts[9] + _SMALL)
    brevity = math.exp(1.0 - 1.0 / ratio) if ratio < 1.0 else 1.0
    found, product = [], 1.0
    for n in range(LONGEST):
        product *= (counts[n] + _TINY) / (counts[LONGEST + n] + _SMALL)
        found.append(float(product ** (1.0 / (n + 1)) * brevity))
    return found


def _together(counts: Floats, sums: Floats, captions: float) -> list[float]:
    return [*_bleu(counts), *(float(value) for value in sums / captions)]


def _rouge_l(words: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """F of the longest common subsequence; precision and recall each the best over the references."""
    common = [_common(words, reference) for reference in references]
    if not max(common):
        return 0.0
    precision = max(common) / len(words)
    recall = max(
        length / len(reference)
        for length, reference in zip(common, references, strict=True)
        if reference
    )
    square = _ROUGE_BETA**2
    return (1.0 + square) * precision * recall / (recall + square * precision)


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    lengths = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for place, other in enumerate(second, 1):
            above = lengths[place]
            lengths[place] = diagonal + 1 if word == other else max(above, lengths[place - 1])
            diagonal = above
    return lengths[-1]


class _Vector(NamedTuple):
    """A caption as weighted n-grams, for each of the four lengths.

    Attributes:
        weights: N-gram to its weight.
        norms: Of the weights.
        pairs: How many n-grams of two words there are, which the reference takes for the length.
    """

    weights: list[dict[Words, float]]
    norms: list[float]
    pairs: int


class _Weights:
    """Term frequency times inverse document frequency; a document is all references of an image."""

    def __init__(self, references: Sequence[Sequence[Counter[Words]]]) -> None:
        self._documents = Counter(ngram for texts in references for ngram in set().union(*texts))
        self._most = math.log(max(len(references), 1))

    def vector(self, ngrams: Counter[Words]) -> _Vector:
        weights: list[dict[Words, float]] = [{} for _ in range(LONGEST)]
        for ngram, count in ngrams.items():
            rare = self._most - math.log(max(1, self._documents[ngram]))
            weights[len(ngram) - 1][ngram] = count * rare
        norms = [math.sqrt(sum(value * value for value in own.values())) for own in weights]
        pairs = sum(count for ngram, count in ngrams.items() if len(ngram) == 2)
        return _Vector(weights, norms, pairs)


def _cider(caption: _Vector, reference: _Vector) -> float:
    """Ten times the mean cosine over the four lengths of n-grams."""
    return 10.0 * _cosine(caption, reference, is_clipped=False)


def _cider_d(caption: _Vector, reference: _Vector) -> float:
    """As CIDEr, with weights no larger than the reference's, less the more the lengths differ."""
    apart = caption.pairs - reference.pairs
    penalty = math.exp(-(apart**2) / (2.0 * _SIGMA**2))
    return 10.0 * penalty * _cosine(caption, reference, is_clipped=True)


def _cosine(caption: _Vector, reference: _Vector, *, is_clipped: bool) -> float:
    total = 0.0
    for n in range(LONGEST):
        norms = caption.norms[n] * reference.norms[n]
        if not norms:
            continue
        own, other = caption.weights[n], reference.weights[n]
        total += (
            sum(
                (min(value, other[ngram]) if is_clipped else value) * other[ngram]
                for ngram, value in own.items()
                if ngram in other
            )
            / norms
        )
    return total / LONGEST


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
