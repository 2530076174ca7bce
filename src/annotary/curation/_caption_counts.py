"""Words and pairs of words of captions, counted in little memory.

Words are cut where matching could find them (`docs/curate-match.md`): the marks , . ; : ? ! ` stand alone, TAB and line
ends are spaces, and whatever is between two spaces is a word, with its case and its quotes. Marks are no words. A pair
is two words with exactly one space between them: no mark and no second space, across which an entry would not match.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from annotary.curation._frequencies import BETWEEN, Counts
from annotary.curation._units import MARKS, WHITESPACE
from annotary.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

    from annotary.curation.tables import Part

_SPACED = str.maketrans({**dict.fromkeys(WHITESPACE, " "), **{mark: f" {mark} " for mark in MARKS}})
_NO_WORDS = frozenset(("", *MARKS))


@dataclass
class Captions:
    """What was counted.

    Attributes:
        texts: Captions that were read.
        empty: Cells without a caption.
        skipped: Rows that could not be read: where, and why.
        broken: Tables that could not be read to their end, and why; what was read of them counts.
    """

    texts: int = 0
    empty: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def words_of(text: str) -> list[str]:
    """The pieces of a text between its spaces, in order: words, marks, and "" between two spaces."""
    return text.translate(_SPACED).split(" ")


def count_captions(
    parts: Sequence[Part], columns: Sequence[str], words: Counts, pairs: Counts
) -> Captions:
    """Count the words of captions, and the pairs of words.

    Args:
        parts: Of the tables.
        columns: Those that hold the captions: texts, or lists of texts.
        words: Gets the counts of words.
        pairs: Gets the counts of pairs, with `BETWEEN` between their words.

    Raises:
        UsageError: A column is not there, or holds no texts.
    """
    from annotary.curation.tables import BrokenPart, Rows

    found = Captions()
    for part in parts:
        rows = Rows(part, columns)
        try:
            for batch in rows.batches():
                for name in columns:
                    _count(_texts(batch.column(name), name, part.file), words, pairs, found)
        except BrokenPart as error:
            found.broken.append(str(error))
        found.skipped += rows.skipped
    return found


def _count(texts: Iterable[str | None], words: Counts, pairs: Counts, found: Captions) -> None:
    singles: Counter[str] = Counter()
    doubles: Counter[tuple[str, str]] = Counter()
    for text in texts:
        if not text:
            found.empty += 1
            continue
        found.texts += 1
        pieces = words_of(text)
        singles.update(pieces)
        doubles.update(pairwise(pieces))
    for word, count in singles.items():
        if word not in _NO_WORDS:
            words.add(word, count)
    for (first, second), count in doubles.items():
        if first not in _NO_WORDS and second not in _NO_WORDS:
            pairs.add(first + BETWEEN + second, count)


def _texts(column: pa.Array, name: str, file: str) -> Iterator[str | None]:
    """The texts of a column; of a list each."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        yield from _texts(column.flatten(), name, file)
        return
    if pa.types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), kind.value_type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not (is_text or pa.types.is_string_view(kind) or pa.types.is_null(kind)):
        raise UsageError(f"{file}: column {name!r} holds no texts but {kind}")
    values: list[Any] = column.to_pylist()
    yield from values
