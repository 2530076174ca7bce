"""The entries of MetaCLIP: words and names that captions are looked through for, and that balancing counts by.

"Demystifying CLIP Data" (Xu et al., 2023, arXiv 2309.16671), section 3.1 and table 1; `build_metadata.py` of the
original (CC-BY-NC) was read for the rules, and "Meta CLIP 2" (Chuang et al., 2025) for those of other languages. What
differs: the list has an order, so that ids stay; an entry that cannot match is left out and told; caps are exact.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from annotary.curation import _frequencies, _wordnet
from annotary.curation._entry_choice import SOURCES, Candidate, Chosen, Entry, Source
from annotary.curation._frequencies import BETWEEN, MOST_COUNT, Counts, Malformed, WordCounts
from annotary.curation.entries import LANGUAGES_WITHOUT_SPACES
from annotary.errors import UsageError

__all__ = [
    *("SOURCES", "Entry", "Metadata", "MetadataOptions", "MetadataSources"),
    *("Source", "build_metadata", "coverage"),
]

_NUMBERS = 100
_HOURLY_VIEWS = 50  # views in an hour from which on they count: int(count / 50) > 0


@dataclass(frozen=True, slots=True)
class MetadataSources:
    """What entries are made of."""

    unigrams: tuple[Path, ...] = field(default=(), metadata={"metavar": "FILE"})
    """Counts of words: word<TAB>count on each line, or CSV; .gz is fine. A file, or a folder of them; may be given
    several times, and counts are summed."""

    bigrams: tuple[Path, ...] = field(default=(), metadata={"metavar": "FILE"})
    """Counts of pairs of words: first<TAB>second<TAB>count, or CSV. Needs --unigrams, with all words and not the
    frequent ones alone."""

    titles: tuple[Path, ...] = field(default=(), metadata={"metavar": "FILE"})
    """Views of titles: title<TAB>views, CSV, or hourly dumps of Wikimedia (pageviews-*.gz), a folder of them, too."""

    wordnet: str | None = field(default=None, metadata={"metavar": "PATH|none"})
    """A folder with WordNet's data.noun …, a table of the Open Multilingual Wordnet, or a list of names; none leaves it
    out. Without it, the list of WordNet 3.0 that ships, for English."""

    captions: tuple[str, ...] = field(default=(), metadata={"metavar": "TABLE"})
    """Your own captions, in the place of --unigrams and --bigrams: tables, or folders of them."""

    text_column: tuple[str, ...] = field(default=(), metadata={"metavar": "NAME"})
    """Column of --captions that holds texts; may be given several times. Without it the first with a usual name."""

    def __post_init__(self) -> None:
        if self.bigrams and not self.unigrams:
            raise ValueError("bigrams needs --unigrams: without counts of words there is no PMI")
        if self.captions and (self.unigrams or self.bigrams):
            raise ValueError("captions and --unigrams are counts of different texts; give one")
        if self.text_column and not self.captions:
            raise ValueError("text_column is a column of --captions, which were not given")


@dataclass(frozen=True, slots=True)
class MetadataOptions:
    """Which of them become entries; a limit that is not given is that of the language."""

    language: str = field(default="en", metadata={"metavar": "CODE"})
    """The language, by its code in Wikipedia (en, fr, zh): English has the rules of MetaCLIP's table 1, others those of
    Meta CLIP 2."""

    unigram_count: int | None = field(default=None, metadata={"metavar": "N"})
    """Words that occur so often become entries: 100 in English (table 1), else 1."""

    unigram_share: float | None = field(default=None, metadata={"metavar": "SHARE"})
    """And at most this share of all different words: 1 in English, else 0.1."""

    max_unigrams: int = field(default=251_465, metadata={"metavar": "N"})
    """The most entries that are words, the most frequent (table 1); 0 for no limit."""

    bigram_pmi: float = field(default=30.0, metadata={"metavar": "BITS"})
    """Pairs of words with so high a pointwise mutual information become entries (table 1)."""

    bigram_count: int = field(default=1, metadata={"metavar": "N"})
    """And that occur so often. The paper has no such limit; PMI is highest for pairs of words that hardly occur."""

    bigram_share: float | None = field(default=None, metadata={"metavar": "SHARE"})
    """And at most this many for each different word: no limit in English, else 0.4."""

    max_bigrams: int = field(default=100_646, metadata={"metavar": "N"})
    """The most entries that are pairs of words, those of the highest PMI (table 1); 0 for no limit."""

    title_views: int | None = field(default=None, metadata={"metavar": "N"})
    """Titles with so many views become entries: 70 in English (table 1), else 1."""

    title_share: float | None = field(default=None, metadata={"metavar": "SHARE"})
    """And at most this share of all titles: 1 in English, else 0.76."""

    max_titles: int = field(default=61_235, metadata={"metavar": "N"})
    """The most entries that are titles, those with the most views (table 1); 0 for no limit."""

    max_length: int | None = field(default=None, metadata={"metavar": "N"})
    """Longer entries are left out, in characters: no limit (0) in English, else 256."""

    keep_dead: bool = False
    """Keep entries that no text can match, such as "i.e."; else they are left out. They are listed in any case."""

    def __post_init__(self) -> None:
        if not self.language or not self.language.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"language must be a code such as en or zh, but got {self.language!r}")
        for name in ("unigram_count", "bigram_count", "title_views"):
            if (least := getattr(self, name)) is not None and least < 1:
                raise ValueError(f"{name} must be 1 or more, but got {least}")
        for name in ("unigram_share", "bigram_share", "title_share"):
            if (share := getattr(self, name)) is not None and not share > 0:
                raise ValueError(f"{name} must be above 0, but got {share}")
        for name in ("max_unigrams", "max_bigrams", "max_titles", "max_length"):
            if (most := getattr(self, name)) is not None and most < 0:
                raise ValueError(f"{name} must not be negative, but got {most}")
        if math.isnan(self.bigram_pmi):
            raise ValueError("bigram_pmi must be a number")


@dataclass(frozen=True)
class Metadata:
    """The list of entries, and how it came about.

    Attributes:
        entries: Each once; the place in the list is the id.
        dead: Entries that no text can match; they are in `entries` only if that was asked for.
        report: What was read, kept and dropped, and why, ready for JSON.
        broken: Tables of captions that could not be read to their end, and why.
    """

    entries: list[Entry]
    dead: list[Entry]
    report: dict[str, Any]
    broken: list[str]


def build_metadata(
    sources: MetadataSources,
    options: MetadataOptions,
    *,
    on_source: Callable[[str], None] | None = None,
) -> Metadata:
    """Build the list of entries. The same input gives the same list, in whatever order lines and files come.

    Args:
        sources: What it is made of.
        options: Which become entries.
        on_source: Is told the name of each source that is begun.

    Raises:
        UsageError: A file cannot be read to its end.
    """
    return _Building(sources, options, on_source or (lambda _: None)).built()


def coverage(names: Iterable[str], entries: Iterable[str]) -> dict[str, Any]:
    """How many of some names, such as those of classes, are entries, as they are or in lower case.

    Args:
        names: The names; one that comes twice counts once.
        entries: The entries.
    """
    known = set(entries)
    wanted = [name for name in dict.fromkeys(name.strip() for name in names) if name]
    found = [name for name in wanted if name in known]
    missing = [name for name in wanted if name not in known]
    return {
        "names": len(wanted),
        "found": len(found),
        "found_in_lower_case": sum(name.lower() in known for name in missing),
        "missing": missing,
    }


class _Rules(NamedTuple):
    """The limits, with those of the language for what was not given."""

    language: str
    unigram_count: int
    unigram_share: float
    bigram_share: float
    title_views: int
    title_share: float
    max_length: int

    @classmethod
    def of(cls, options: MetadataOptions) -> _Rules:
        language = options.language.lower().replace("_", "-")
        is_english = language == "en"
        english = (100, 1.0, math.inf, 70, 1.0, 0)
        others = (1, 0.1, 0.4, 1, 0.76, 256)
        given = (
            *(options.unigram_count, options.unigram_share, options.bigram_share),
            *(options.title_views, options.title_share, options.max_length),
        )
        usual = english if is_english else others
        chosen = [two if one is None else one for one, two in zip(given, usual, strict=True)]
        return cls(language, *chosen)  # type: ignore[arg-type]

    @property
    def is_english(self) -> bool:
        return self.language == "en"


@dataclass
class _Reading:
    """Lines of a source that were read, and what became of them."""

    files: Sequence[Path]
    malformed: Malformed = field(default_factory=Malformed)
    read: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, paths: Iterable[Path]) -> _Reading:
        return cls(_frequencies.files_of(paths))

    def report(self) -> dict[str, Any]:
        return {
            "files": list(map(str, self.files)),
            "rows": self.read,
            "rows_left_out": dict(self.left_out),
            "malformed": _frequencies.not_told(self.malformed),
        }


class _Building:
    """A list under construction."""

    def __init__(
        self, sources: MetadataSources, options: MetadataOptions, on_source: Callable[[str], None]
    ) -> None:
        self._sources = sources
        self._options = options
        self._rules = _Rules.of(options)
        self._on_source = on_source
        self._chosen = Chosen(
            self._rules.language, self._rules.max_length, keep_dead=options.keep_dead
        )
        self._broken: list[str] = []
        self._report: dict[str, Any] = {}

    def built(self) -> Metadata:
        """The list."""
        numbers = (Candidate((i,), str(i), None) for i in range(_NUMBERS))
        self._report["numbers"] = self._chosen.take("n", numbers)
        self._take_wordnet()
        if self._sources.captions:
            self._take_captions()
        elif self._sources.unigrams:
            self._take_counts()
        if self._sources.titles:
            self._take_titles()
        chosen = self._chosen
        return Metadata(chosen.entries, chosen.dead, self._whole_report(), self._broken)

    def _whole_report(self) -> dict[str, Any]:
        by_source = Counter(entry.source for entry in self._chosen.dead)
        return {
            "language": self._rules.language,
            "limits": {
                **{name: _finite(value) for name, value in self._rules._asdict().items()},
                **{name: getattr(self._options, name) for name in _OTHER_LIMITS},
            },
            "entries": len(self._chosen.entries),
            "never_match": {
                "kept": self._options.keep_dead,
                "count": len(self._chosen.dead),
                "by_source": {SOURCES[letter]: by_source[letter] for letter in SOURCES},
            },
            "sources": self._report,
        }

    def _take_wordnet(self) -> None:
        wordnet = self._sources.wordnet
        if wordnet == "none" or (wordnet is None and not self._rules.is_english):
            return
        reading = _Reading([] if wordnet is None else [Path(wordnet)])
        self._on_source("wordnet")
        names: Iterable[str] = (
            _wordnet.shipped_names()
            if wordnet is None
            else _wordnet.read_names(Path(wordnet), reading.malformed)
        )
        distinct = list(dict.fromkeys(name.strip() for name in _read(names, reading)))
        candidates = (Candidate((i,), name, None) for i, name in enumerate(distinct))
        self._take("w", reading, candidates)

    def _take_counts(self) -> None:
        """Words and pairs of words from files."""
        sources = self._sources
        with ExitStack() as stack:
            words = stack.enter_context(Counts())
            self._on_source("unigrams")
            reading = _Reading.of(sources.unigrams)
            for path in reading.files:
                for row in _frequencies.read_unigrams(path, reading.malformed):
                    reading.read += 1
                    words.add(row.texts[0], row.count)
            known = self._take_words(words, reading, needs_all=bool(sources.bigrams))
            if not sources.bigrams:
                return
            pairs = stack.enter_context(Counts())
            self._on_source("bigrams")
            reading = _Reading.of(sources.bigrams)
            for path in reading.files:
                for row in _frequencies.read_bigrams(path, reading.malformed):
                    reading.read += 1
                    pairs.add(BETWEEN.join(row.texts), row.count)
            self._take_pairs(pairs, known, reading)

    def _take_captions(self) -> None:
        """Words and pairs of words of captions."""
        from annotary.curation._caption_counts import count_captions
        from annotary.curation.columns import text_columns
        from annotary.curation.tables import find_parts, sound_part

        if self._rules.language in LANGUAGES_WITHOUT_SPACES:
            raise UsageError(
                f"--captions cuts words at spaces, which {self._rules.language} does not put between them; "
                "count words with a tokeniser of that language, and give --unigrams and --bigrams"
            )
        with Counts() as words, Counts() as pairs:
            self._on_source("captions")
            parts = find_parts(self._sources.captions)
            tables = list(dict.fromkeys(Path(part.file) for part in parts))
            columns = text_columns(sound_part(parts), self._sources.text_column)
            found = count_captions(parts, columns, words, pairs)
            self._broken = found.broken
            reading = _Reading(tables, read=found.texts)
            reading.left_out["no text in it"] = found.empty
            reading.malformed.count = len(found.skipped)
            reading.malformed.told = [f"{where}: {why}" for where, why in found.skipped[:100]]
            known = self._take_words(words, reading, needs_all=True)
            self._report["unigrams"]["broken"] = found.broken
            self._take_pairs(pairs, known, _Reading(tables, read=found.texts))

    def _take_words(self, words: Counts, reading: _Reading, *, needs_all: bool) -> WordCounts:
        """Entries that are words; gives the counts of all words, or only their sums if not all are needed."""
        known, least = WordCounts(), self._rules.unigram_count
        below: Counter[str] = Counter()

        def candidates() -> Iterator[Candidate]:
            for word, count in _in_range(words):
                known.add(word if needs_all else None, count)
                if count < least:
                    below[f"count below {least}"] += 1
                else:
                    yield Candidate((-count,), word, count)

        def most() -> int | None:
            return _least(self._options.max_unigrams, self._rules.unigram_share * known.distinct)

        self._take("u", reading, candidates(), below, most, self._options.max_unigrams)
        if needs_all:
            known.freeze()
        self._report["unigrams"]["sum_of_counts"] = known.total
        return known

    def _take_pairs(self, pairs: Counts, known: WordCounts, reading: _Reading) -> None:
        """Entries that are pairs of words."""
        least, least_count = self._options.bigram_pmi, self._options.bigram_count
        below: Counter[str] = Counter()
        space = "" if self._rules.language in LANGUAGES_WITHOUT_SPACES else " "
        most = _least(self._options.max_bigrams, self._rules.bigram_share * known.distinct)

        def candidates() -> Iterator[Candidate]:
            for pair, count, score in _frequencies.pairs_with_pmi(_in_range(pairs), known):
                if score < least:
                    is_unknown = score == -math.inf
                    below["a word without a count" if is_unknown else f"PMI below {least:g}"] += 1
                    continue
                if count < least_count:
                    below[f"count below {least_count}"] += 1
                    continue
                # The last bits of a logarithm differ between machines, and must not decide the order.
                rank = (-round(score, 9), -count)
                yield Candidate(rank, pair.replace(BETWEEN, space), count)

        self._take("b", reading, candidates(), below, lambda: most, self._options.max_bigrams)
        highest = math.log2(known.total) if known.total else 0.0
        self._report["bigrams"]["highest_possible_pmi"] = round(highest, 3)

    def _take_titles(self) -> None:
        """Entries that are titles."""
        least, distinct = self._rules.title_views, 0
        below: Counter[str] = Counter()
        self._on_source("titles")
        reading = _Reading.of(self._sources.titles)
        with Counts() as views:
            for path in reading.files:
                for row in _frequencies.read_titles(path, reading.malformed):
                    reading.read += 1
                    title = row.texts[0].replace("_", " ").strip()
                    if why := self._title_left_out(row, title):
                        reading.left_out[why] += 1
                    else:
                        views.add(title, row.count)

            def candidates() -> Iterator[Candidate]:
                nonlocal distinct
                for title, count in _in_range(views):
                    distinct += 1
                    if count < least:
                        below[f"views below {least}"] += 1
                    else:
                        yield Candidate((-count,), title, count)

            def most() -> int | None:
                return _least(self._options.max_titles, self._rules.title_share * distinct)

            self._take("t", reading, candidates(), below, most, self._options.max_titles)

    def _title_left_out(self, row: _frequencies.Row, title: str) -> str:
        """Why a line is not counted; "" if it is."""
        if row.project is not None:
            language = self._rules.language
            # MetaCLIP takes the desktop's views alone; Meta CLIP 2 those of telephones (".m"), too.
            taken = (language,) if self._rules.is_english else (language, f"{language}.m")
            if row.project not in taken:
                return "another project"
            if self._rules.is_english and row.count < _HOURLY_VIEWS:
                return f"fewer than {_HOURLY_VIEWS} views in the hour"
        return 'a ":" in it' if ":" in title else ""

    def _take(
        self,
        letter: Source,
        reading: _Reading,
        candidates: Iterable[Candidate],
        below: Mapping[str, int] | None = None,
        most: Callable[[], int | None] = lambda: None,
        held: int = 0,
    ) -> None:
        """Make entries of the best candidates of a source, as `Chosen.take` does, and report."""
        # What was read is complete only behind the last candidate.
        found = self._chosen.take(letter, candidates, below, most, held)
        self._report[SOURCES[letter]] = {**reading.report(), **found}


_OTHER_LIMITS = ("max_unigrams", "bigram_pmi", "bigram_count", "max_bigrams", "max_titles")


def _read(names: Iterable[str], reading: _Reading) -> Iterator[str]:
    """Names as they come, counted."""
    for name in names:
        reading.read += 1
        yield name


def _least(most: int, share: float) -> int | None:
    """The lower of two limits; a `most` of 0 is none."""
    limits = [*([most] if most else []), *([math.floor(share)] if share < math.inf else [])]
    return min(limits, default=None)


def _in_range(counts: Iterable[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    for text, count in counts:
        if count > MOST_COUNT:
            raise UsageError(f"the counts of {text!r} sum up to more than 2^63")
        yield text, count


def _finite(value: object) -> object:
    return None if value == math.inf else value
