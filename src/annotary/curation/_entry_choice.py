"""The list of entries as it grows: source by source, the best of each, each entry once."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from heapq import nsmallest
from itertools import islice
from typing import Any, Literal, NamedTuple, TypeAlias

from annotary.curation._frequencies import has_line_break
from annotary.curation.entries import LANGUAGES_WITHOUT_SPACES
from annotary.curation.entry_index import EntryIndex

Source: TypeAlias = Literal["n", "w", "u", "b", "t"]

SOURCES: dict[Source, str] = {
    "n": "numbers",
    "w": "wordnet",
    "u": "unigrams",
    "b": "bigrams",
    "t": "titles",
}
"""Where entries come from, in the order in which they are taken; letters as in Meta CLIP 2."""

BEYOND = "beyond the largest number"
"""Why entries are dropped that are fit, but not among the best."""

DEAD = "never matches"
"""Why entries are dropped that no text can match."""

_MARKS = frozenset(string.punctuation)
_MORE_MARKS = frozenset("，。、；：？¿！“”‘’（）【】《》〈〉「」『』～—")
_SLACK = 100_000  # candidates that are held beyond a cap before the worst are let go
_AT_ONCE = 65_536


class Entry(NamedTuple):
    """An entry.

    Attributes:
        text: As captions must have it.
        source: Its letter in `SOURCES`.
        count: How often it occurs: in the texts that words were counted in, or in views; None for numbers and WordNet.
    """

    text: str
    source: Source
    count: int | None  # type: ignore[assignment]


class Candidate(NamedTuple):
    """What may become an entry.

    Attributes:
        rank: The lowest come first, and of equal ones the first by code points.
        text: The entry.
        count: Of it.
    """

    rank: tuple[float, ...]
    text: str
    count: int | None  # type: ignore[assignment]


class Chosen:
    """The entries that were chosen so far.

    Args:
        language: A code of Wikipedia.
        max_length: In characters; 0 for no limit.
        keep_dead: Whether what cannot match is kept.

    Attributes:
        entries: Each once.
        dead: Those that no text can match; they are in `entries` only if they are kept.
    """

    def __init__(self, language: str, max_length: int, *, keep_dead: bool) -> None:
        self.entries: list[Entry] = []
        self.dead: list[Entry] = []
        self._language = language
        self._max_length = max_length
        self._keeps_dead = keep_dead
        self._known: set[str] = set()

    def take(
        self,
        letter: Source,
        candidates: Iterable[Candidate],
        below: Mapping[str, int] | None = None,
        most: Callable[[], int | None] = lambda: None,
        held: int = 0,
    ) -> dict[str, Any]:
        """Make entries of the best candidates of a source.

        Args:
            letter: The source.
            candidates: In any order.
            below: What was below the limits of the source and so is no candidate, when all of them were taken: why, and
                how many.
            most: How many entries there may be, asked when all candidates were seen; None for any number.
            held: More than this many will never be taken; 0 for any number.

        Returns:
            How many candidates there were, how many are entries, and why the others are none.
        """
        best: dict[str, Candidate] = {}
        dropped: Counter[str] = Counter()
        dead: list[Candidate] = []
        texts = 0
        for candidate, why, is_dead in self._judged(candidates):
            texts += 1
            if is_dead:
                dead.append(candidate)
            if why:
                dropped[why] += 1
                continue
            other = best.get(candidate.text)
            if other is not None:
                dropped["twice in the source"] += 1
                candidate = min(candidate, other)
            best[candidate.text] = candidate
            if held and len(best) > 2 * held + _SLACK:
                dropped[BEYOND] += len(best) - held
                best = {one.text: one for one in nsmallest(held, best.values())}
        chosen = sorted(best.values())
        limit = most()
        if limit is not None and len(chosen) > limit:
            dropped[BEYOND] += len(chosen) - limit
            chosen = chosen[:limit]
        self._add(letter, chosen, dead)
        dropped.update(below or {})
        texts += sum((below or {}).values())
        return {"texts": texts, "entries": len(chosen), "dropped": dict(sorted(dropped.items()))}

    def _judged(self, candidates: Iterable[Candidate]) -> Iterator[tuple[Candidate, str, bool]]:
        """Candidates, why each can be no entry ("" if it can), and whether it is fit, but for never matching."""
        candidates = iter(candidates)
        while some := list(islice(candidates, _AT_ONCE)):
            unfit = [self._unfit(one.text) for one in some]
            dead = self._never_matching(
                [one.text for one, why in zip(some, unfit, strict=True) if not why]
            )
            for one, why in zip(some, unfit, strict=True):
                is_dead = not why and one.text in dead
                yield one, DEAD if is_dead and not self._keeps_dead else why, is_dead

    def _never_matching(self, texts: list[str]) -> set[str]:
        """Those of some texts that, as entries, no text could match."""
        language = self._language if self._language in LANGUAGES_WITHOUT_SPACES else None
        return {texts[place] for place in EntryIndex.build(texts, language=language).dead.tolist()}

    def _add(self, letter: Source, chosen: list[Candidate], dead: list[Candidate]) -> None:
        self.entries += [Entry(one.text, letter, one.count) for one in chosen]
        self._known.update(one.text for one in chosen)
        first = {one.text: one for one in sorted(dead, reverse=True)}  # the best of equal texts
        if self._keeps_dead:  # those that were not taken for another reason are no entries
            first = {one.text: one for one in chosen if one.text in first}
        self.dead += [Entry(one.text, letter, one.count) for one in sorted(first.values())]

    def _unfit(self, text: str) -> str:
        """Why a text can be no entry; "" if it can."""
        if not text:
            return "empty"
        if self._language == "en":
            if text in _MARKS:
                return "a punctuation mark"
        elif all(letter in _MARKS or letter in _MORE_MARKS for letter in text):
            return "punctuation alone"
        if self._max_length and len(text) > self._max_length:
            return f"longer than {self._max_length} characters"
        if text != text.strip() or has_line_break(text):
            return "white space at an end, or a line break"
        return "an entry already" if text in self._known else ""
