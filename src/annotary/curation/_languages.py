"""Which language a text is in, by py3langid.

py3langid is a naive Bayes classifier over n-grams of bytes (Lui and Baldwin, "langid.py: An Off-the-shelf Language
Identification Tool", ACL 2012), trained anew by A. Barbaresi for 139 languages; BSD licence. It needs NumPy alone.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from annotary.errors import MissingExtra, UnknownName

UNKNOWN = "unknown"
"""In the place of a language that cannot be told."""

MIN_LETTERS = 20
"""A text with fewer letters has an unknown language; docs/curate-quality.md shows how often those are told wrong."""

MIN_SCORE = 0.2
"""A language that is less probable is unknown. At this, of sentences of 20 to 30 English letters 1 in 50 is lost."""

ALIASES = {"nb": "no", "zh-cn": "zh", "zh-tw": "zh", "iw": "he", "in": "id"}
"""Other codes of languages that have one here."""

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
        self.languages = frozenset(self._model.labels)

    def language(self, text: str) -> tuple[str, float]:
        """The likeliest language of a text, and its probability, 0..1.

        It is told for short texts, too, for which it is often wrong: see `enough_letters`.
        """
        code, score = self._model.classify(text)
        return str(code), float(score)

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
