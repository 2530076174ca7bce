"""Which language a text is in, by py3langid.

py3langid is a naive Bayes classifier over n-grams of bytes (Lui and Baldwin, "langid.py: An Off-the-shelf Language
Identification Tool", ACL 2012), trained anew by A. Barbaresi for 139 languages; BSD licence. It needs NumPy alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from annotary.errors import MissingExtra, UnknownName

Integers: TypeAlias = npt.NDArray[np.int64]

UNKNOWN = "unknown"
"""In the place of a language that cannot be told."""

MIN_LETTERS = 20
"""A text with fewer letters has an unknown language; docs/curate-quality.md shows how often those are told wrong."""

MIN_SCORE = 0.2
"""A language that is less probable is unknown. At this, of sentences of 20 to 30 English letters 1 in 50 is lost."""

ALIASES = {"nb": "no", "zh-cn": "zh", "zh-tw": "zh", "iw": "he", "in": "id"}
"""Other codes of languages that have one here."""

_LONGEST = 1024  # bytes of texts that are looked at together
_AT_ONCE = 4096  # texts

_PROBES = (
    "",
    "7",
    "A dog runs across the wet grass with a ball in its mouth.",
    "Ein Hund läuft über das nasse Gras",
    "Собака бежит по мокрой траве",
    "Пас трчи преко мокре траве",
    "犬が濡れた草の上を走っている",
    "IMG_20190401_0023.jpg",
    "THE OLD MAN AND THE SEA",
)

_DENSE_FROM = "\u2e80"  # the first of the Chinese, Japanese and Korean blocks


class Identifier:
    """Tells languages.

    Attributes:
        languages: The codes that it knows, ISO 639. `zxx` stands for what is no language: numbers, markup, file names.

    Raises:
        MissingExtra: py3langid is not installed.
    """

    def __init__(self) -> None:
        self._model = _model()
        self._walker = _Walker.of(self._model)
        self.languages = frozenset(self._model.labels)

    def language(self, text: str) -> tuple[str, float]:
        """The likeliest language of a text, and its probability, 0..1.

        It is told for short texts, too, for which it is often wrong: see `enough_letters`.
        """
        code, score = self._model.classify(text)
        return str(code), float(score)

    def of_all(self, texts: Sequence[str]) -> list[tuple[str, float]]:
        """The same for many texts, several times as fast."""
        if self._walker is None:
            return [self.language(text) for text in texts]
        found: list[tuple[str, float]] = [("", 0.0)] * len(texts)
        encoded = [self._model._encode(text) for text in texts]
        # Those of like length go together; long ones are rare, and would keep all others waiting.
        order = sorted(range(len(texts)), key=lambda place: len(encoded[place]))
        while order and len(encoded[order[-1]]) > _LONGEST:
            place = order.pop()
            found[place] = self.language(texts[place])
        for start in range(0, len(order), _AT_ONCE):
            places = order[start : start + _AT_ONCE]
            told = self._walker.languages([encoded[place] for place in places])
            for place, one in zip(places, told, strict=True):
                found[place] = one
        return found

    def codes(self, told: str) -> frozenset[str]:
        """The codes in a list such as "en,de".

        Raises:
            UnknownName: One is not known.
        """
        named = [code.strip().lower() for code in told.split(",") if code.strip()]
        codes = [ALIASES.get(code, code) for code in named]
        for code, name in zip(codes, named, strict=True):
            if code not in self.languages:
                raise UnknownName("language", name, self.languages)
        return frozenset(codes)


class _Walker:
    """What the model of py3langid does with one text, for many at once.

    The model is an automaton that is given the bytes of a text one by one, and tells at some of its states that a
    feature has occurred; and a table of how much each feature speaks for each language. Here all texts are one byte
    further at each step. The tables are parts of py3langid that may change, so `of` makes sure of the result.

    Args:
        model: The model.
    """

    def __init__(self, model: Any) -> None:
        self._rows = np.asarray(model._rowbase, np.int64)
        self._next = np.asarray(model.tk_nextmove)
        self._features = np.asarray(model.tk_output, np.int64)
        self._table = np.asarray(model.nb_ptc, np.float32)
        self._prior = np.asarray(model.nb_pc, np.float32)
        self._codes = list(model.nb_classes)
        self._twins = list(model._alias_pairs)

    @classmethod
    def of(cls, model: Any) -> _Walker | None:
        """That of a model; None where it does not tell what the model tells."""
        try:
            walker = cls(model)
            probes = sorted(_PROBES, key=lambda text: len(model._encode(text)))
            told = walker.languages([model._encode(text) for text in probes])
            known = [model.classify(text) for text in probes]
        except (AttributeError, TypeError, ValueError, LookupError):
            return None
        is_same = all(
            one[0] == other[0] and abs(one[1] - other[1]) < 1e-3
            for one, other in zip(told, known, strict=True)
        )
        return walker if is_same else None

    def languages(self, texts: Sequence[bytes]) -> list[tuple[str, float]]:
        """The likeliest language of each text, and its probability.

        Args:
            texts: As the model encodes them, the shortest first.
        """
        lengths = np.array([len(text) for text in texts], np.int64)
        scores = self._scores(*self._counts(texts, lengths), len(texts))
        # The model's own way of keeping probabilities of long texts from being 0 and 1.
        scores *= (1.0 / np.sqrt(np.maximum(lengths, 1)))[:, None].astype(np.float32)
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
        for first, second in self._twins:  # a language in another script
            scores[:, first] += scores[:, second]
            scores[:, second] = 0.0
        best = scores.argmax(axis=1)
        return [
            (self._codes[place], float(score))
            for place, score in zip(best.tolist(), scores[np.arange(len(texts)), best], strict=True)
        ]

    def _counts(
        self, texts: Sequence[bytes], lengths: Integers
    ) -> tuple[Integers, Integers, Integers]:
        """Which text has which feature how often: three columns, in the order of the texts."""
        data = np.frombuffer(b"".join(texts), np.uint8)
        starts = np.cumsum(lengths) - lengths
        states: Integers = np.zeros(len(texts), np.int64)
        owners, features = [], []
        for step in range(int(lengths.max(initial=0))):
            first = int(
                np.searchsorted(lengths, step, side="right")
            )  # those before are at their end
            reached = self._next[self._rows[states[first:]] + data[starts[first:] + step]]
            states[first:] = reached
            told = self._features[reached]
            hits = np.flatnonzero(told >= 0)
            owners.append(hits + first)
            features.append(told[hits])
        if not owners:
            return states[:0], states[:0], states[:0]
        keys = np.concatenate(owners) * len(self._table) + np.concatenate(features)
        keys, counts = np.unique(keys, return_counts=True)
        return keys // len(self._table), keys % len(self._table), counts

    def _scores(
        self, owners: Integers, features: Integers, counts: Integers, texts: int
    ) -> npt.NDArray[np.float32]:
        """How much speaks for each language, float32[texts, languages]; 0 for texts without features."""
        scores = np.zeros((texts, len(self._codes)), np.float32)
        weights = np.log1p(counts.astype(np.float32))
        edges = np.searchsorted(owners, np.arange(texts + 1)).tolist()
        for place, (low, high) in enumerate(pairwise(edges)):
            if low < high:
                np.matmul(weights[low:high], self._table[features[low:high]], out=scores[place])
                scores[place] += self._prior
        return scores


def enough_letters(text: str) -> bool:
    """Whether a text has the letters that it takes to tell its language.

    A letter of Chinese, Japanese or Korean counts as three: words have fewer of them, which hardly any other language
    shares.
    """
    count = 0
    for letter in text:
        if letter.isalpha():
            count += 3 if letter >= _DENSE_FROM else 1
            if count >= MIN_LETTERS:
                return True
    return False


@cache
def identifier() -> Identifier:
    """The one that is loaded once for the process, in half a second.

    Raises:
        MissingExtra: py3langid is not installed.
    """
    return Identifier()


def _model() -> Any:
    try:
        from py3langid.langid import (  # type: ignore[import-untyped, unused-ignore]
            MODEL_FILE,
            LanguageIdentifier,
        )
    except ImportError as error:
        raise MissingExtra("Telling languages", "curate") from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
