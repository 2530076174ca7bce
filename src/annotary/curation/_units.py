"""Texts as sequences of units, such that an entry occurs in a text where its units follow each other there.

The rule of MetaCLIP (arXiv 2309.16671; its code, `substr_matching.py`) is about strings. A text is *spaced*: a space
before and after it, a space before and after each of the marks , . ; : ? ! ` and every TAB, LF and CR becomes a space.
An entry matches if it, between two spaces, is a part of the spaced text.

**Version 1.** Cut the spaced text, without its first and last character, at every single space. " entry " occurs in the
spaced text just where the entry, cut at every single space, is a run of those units: both ends of the run are at
spaces, and within it the same spaces lie between the same units. Units may be empty (two spaces that follow each
other). A mark is always a unit of its own, with a unit that is no mark, maybe an empty one, on both sides.

**Version 2** (MetaCLIP 2, arXiv 2507.22062) drops the space before an entry that begins with a *character that stands
alone*, and the space after one that ends with one. Here the units are: each such character, each space, and each
longest run of other characters. There is a border between two characters just if one of them is a space or stands
alone. An entry with the spaces that it gets begins and ends with a space or such a character, so wherever it occurs,
its two ends are at borders; and borders within it depend on the two characters beside them alone, so they are the same
in the entry and in the text. Therefore it occurs just where its units follow each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Places = NDArray[np.int64]

MARKS: Final = ",.;:?!`"
"""The marks that are set apart from what is before and after them."""

WHITESPACE: Final = " \t\n\r"
"""Each is one space in a spaced text. No other character is: not the no-break space, not form feed."""

SPACE: Final = len(MARKS)
"""The code of a space; those of the marks are their places in `MARKS`."""

BREAK: Final = SPACE + 1
"""The code of what ends a text. It follows nothing and nothing follows it."""

_RUN, _ALONE, _WHITE, _MARK = 0, 1, 2, 3
"""Classes of characters; a mark's is `_MARK` and its place in `MARKS`."""


class Units(NamedTuple):
    """The units of many texts, in one sequence in which a break ends every text.

    Attributes:
        starts: Where in the bytes each unit begins that is spelt out there.
        lengths: How many bytes it has.
        places: Where in the sequence it is.
        fixed_places: Where in the sequence there are others, which need no looking up.
        fixed_codes: What they are: a mark, `SPACE` or `BREAK`.
        background: The code of all places that are in neither list.
        first: For each text where in the sequence it begins, and at the end the length of the sequence.
    """

    starts: Places
    lengths: Places
    places: Places
    fixed_places: Places
    fixed_codes: Bytes
    background: int
    first: Places


# What a byte is in version 1, for `bytes.translate`: 1 for those at which a text is cut.
_IS_CUT = bytes(chr(byte) in WHITESPACE + MARKS for byte in range(256))
# And the code of what stands between the units there; 0xFF is a space, which leaves no unit.
_NOTHING = 0xFF
_CODES = np.full(256, _NOTHING, np.uint8)
_CODES[[ord(mark) for mark in MARKS]] = np.arange(len(MARKS))


def joined_bytes(texts: Sequence[str]) -> tuple[Bytes, Places]:
    """Texts as UTF-8, one after the other, and where each begins and the last ends. Lone surrogates may be in them."""
    joined = "".join(texts)
    data = np.frombuffer(joined.encode("utf-8", "surrogatepass"), np.uint8)
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)), out=offsets[1:])
    if data.size != len(joined):
        characters = np.flatnonzero((data & 0xC0) != 0x80)
        offsets = np.append(characters, data.size)[offsets]
    return data, offsets


def text_units(data: Bytes, ends: Places) -> Units:
    """Texts by the rule of version 1.

    Args:
        data: The bytes of all texts, one after the other, and at least one byte more.
        ends: Where each ends; the first begins at 0.
    """
    length = int(ends[-1])
    is_cut = np.frombuffer(data[:length].tobytes().translate(_IS_CUT), np.bool_)
    cuts, text_ends = _with_ends(np.flatnonzero(is_cut), ends)
    codes = _CODES.take(data.take(cuts))
    codes[text_ends] = BREAK
    starts = np.empty_like(cuts)
    starts[0] = 0
    np.add(cuts[:-1], 1, out=starts[1:])
    starts[text_ends[:-1] + 1] = ends[:-1]
    # A mark or the end of a text is one more place in the sequence, behind the unit that ends there.
    is_more = codes != _NOTHING
    behind = np.cumsum(is_more)
    places = np.arange(cuts.size)
    places[1:] += behind[:-1]
    more = np.flatnonzero(is_more)
    first = np.zeros(ends.size + 1, np.int64)
    first[1:] = places[text_ends] + 2
    return Units(starts, cuts - starts, places, places[more] + 1, codes[more], BREAK, first)


def entry_units(data: Bytes, ends: Places) -> Units:
    """Entries by the rule of version 1: cut at single spaces. Entries that can never match are not among them."""
    length = int(ends[-1])
    cuts, text_ends = _with_ends(np.flatnonzero(data[:length] == ord(" ")), ends)
    starts = np.empty_like(cuts)
    starts[0] = 0
    np.add(cuts[:-1], 1, out=starts[1:])
    starts[text_ends[:-1] + 1] = ends[:-1]
    first = np.concatenate([[0], text_ends + 1])
    nothing = np.zeros(0, np.int64)
    return Units(
        starts, cuts - starts, np.arange(cuts.size), nothing, nothing.astype(np.uint8), BREAK, first
    )


def _with_ends(cuts: Places, ends: Places) -> tuple[Places, Places]:
    """Places where texts are cut and where they end as one ascending list, and where in it the ends are."""
    text_ends = np.searchsorted(cuts, ends) + np.arange(ends.size)
    merged = np.empty(cuts.size + ends.size, np.int64)
    is_cut = np.ones(merged.size, np.bool_)
    is_cut[text_ends] = False
    merged[is_cut] = cuts
    merged[text_ends] = ends
    return merged, text_ends


def text_characters(data: Bytes, ends: Places) -> Units:
    """Texts by the rule of version 2; the arguments are those of `text_units`."""
    starts, lengths, classes, texts = _runs(data, ends)
    is_mark = classes >= _MARK
    # A mark brings a space on each side; a text has one before it and one behind it, and then the break.
    widths = np.where(is_mark, 3, 1)
    places = np.cumsum(widths) - widths + 3 * texts + 1 + is_mark
    inside = np.bincount(texts, weights=widths, minlength=ends.size).astype(np.int64)
    first = np.concatenate([[0], np.cumsum(inside + 3)])
    spelt = np.flatnonzero(classes != _WHITE)
    breaks = first[1:] - 1
    codes = np.full(ends.size, BREAK, np.uint8)
    return Units(starts[spelt], lengths[spelt], places[spelt], breaks, codes, SPACE, first)


def entry_characters(data: Bytes, ends: Places) -> Units:
    """Entries with the spaces that they get, by the rule of version 2; the arguments are those of `entry_units`."""
    starts, lengths, _, texts = _runs(data, ends)
    first = np.searchsorted(texts, np.arange(ends.size + 1))
    nothing = np.zeros(0, np.int64)
    return Units(
        starts, lengths, np.arange(starts.size), nothing, nothing.astype(np.uint8), BREAK, first
    )


def _runs(data: Bytes, ends: Places) -> tuple[Places, Places, Bytes, Places]:
    """Where the units of version 2 begin, their bytes, the class of their (first) character, and their texts."""
    length = int(ends[-1])
    is_start = (data[:length] & 0xC0) != 0x80
    begins = np.concatenate([[0], ends[:-1]])
    is_start[begins[begins < length]] = True
    characters = np.flatnonzero(is_start)
    classes = _classes(data, characters, length)
    is_first = classes != _RUN
    is_first[1:] |= classes[:-1] != _RUN
    texts = np.searchsorted(ends, characters, side="right")
    is_first[1:] |= texts[1:] != texts[:-1]
    is_first[:1] = True
    firsts = np.flatnonzero(is_first)
    starts = characters[firsts]
    # Texts follow each other without a gap, so a unit ends where the next begins.
    lengths = np.diff(starts, append=length)
    return starts, lengths, classes[firsts], texts[firsts]


def _classes(data: Bytes, characters: Places, length: int) -> Bytes:
    """The class of each character, given where its bytes begin. What is no UTF-8 counts as other characters do."""
    padded = np.concatenate([data[:length], np.zeros(3, np.uint8)])
    lead = padded.take(characters).astype(np.int32)
    second, third, fourth = (
        (padded.take(characters + k) & 0x3F).astype(np.int32) for k in (1, 2, 3)
    )
    points = np.select(
        [lead < 0x80, lead < 0xE0, lead < 0xF0],
        [
            lead,
            (lead & 0x1F) << 6 | second,
            (lead & 0x0F) << 12 | second << 6 | third,
        ],
        (lead & 0x07) << 18 | second << 12 | third << 6 | fourth,
    )
    classes: Bytes = _class_table().take(np.minimum(points, 0x10FFFF))
    sizes = np.select([lead < 0x80, lead < 0xC0, lead < 0xE0, lead < 0xF0], [1, 0, 2, 3], 4)
    classes[sizes != np.diff(characters, append=length)] = _RUN
    return classes


ALONE: Final = (
    (0x4E00, 0x9FFF, "CJK Unified Ideographs"),
    (0x3400, 0x4DBF, "CJK Unified Ideographs Extension A"),
    (0x20000, 0x2A6DF, "CJK Unified Ideographs Extension B"),
    (0x2A700, 0x2EBEF, "CJK Unified Ideographs Extensions C to F"),
    (0x2EBF0, 0x2EE5D, "CJK Unified Ideographs Extension I"),
    (0x30000, 0x323AF, "CJK Unified Ideographs Extensions G and H"),
    (0xF900, 0xFAFF, "CJK Compatibility Ideographs"),
    (0x2F800, 0x2FA1F, "CJK Compatibility Ideographs Supplement"),
    (0x2E80, 0x2EFF, "CJK Radicals Supplement"),
    (0x2F00, 0x2FDF, "Kangxi Radicals"),
    (0x2FF0, 0x2FFF, "Ideographic Description Characters"),
    (0x3005, 0x3007, "ideographic iteration mark, closing mark and zero"),
    (0x3040, 0x309F, "Hiragana"),
    (0x30A0, 0x30FF, "Katakana"),
    (0x31F0, 0x31FF, "Katakana Phonetic Extensions"),
    (0xFF66, 0xFF9F, "halfwidth Katakana"),
    (0x0E00, 0x0E7F, "Thai"),
    (0x0E80, 0x0EFF, "Lao"),
    (0x1000, 0x109F, "Myanmar (Burmese)"),
    (0x1780, 0x17FF, "Khmer"),
    (0x0F00, 0x0FFF, "Tibetan"),
    (0x0021, 0x002F, "ASCII punctuation ! to /"),
    (0x003A, 0x0040, "ASCII punctuation : to @"),
    (0x005B, 0x0060, "ASCII punctuation [ to `"),
    (0x007B, 0x007E, "ASCII punctuation { to ~"),
    (0x3001, 0x3002, "ideographic comma and full stop"),
    (0x3008, 0x3011, "CJK brackets"),
    (0xFF01, 0xFF0F, "fullwidth punctuation ! to /"),
    (0xFF1A, 0xFF20, "fullwidth punctuation : to @"),
    (0xFF3B, 0xFF40, "fullwidth punctuation [ to `"),
    (0xFF5B, 0xFF65, "fullwidth punctuation { to ~ and halfwidth CJK punctuation"),
    (0x2014, 0x2014, "em dash"),
    (0x2018, 0x2019, "single quotation marks"),
    (0x201C, 0x201D, "double quotation marks"),
)
"""Characters that stand alone in version 2: first, last, and the name of the range.

The rule names CJK, Thai, Lao, Burmese, Khmer, Tibetan and punctuation. Punctuation is that of ASCII, and what texts in
these scripts have for it. Where the rule is silent: Hiragana and Katakana stand alone (Japanese has no spaces; with
ideographs alone, an entry that ends in Kana would never match within a sentence), and so do ideographs that Unicode
has had since. Hangul does not: Korean is written with spaces.
"""


def stands_alone(character: str) -> bool:
    """Whether an entry that begins (ends) with this character gets no space before (after) it in version 2."""
    return int(_class_table()[ord(character)]) not in (_RUN, _WHITE)


@cache
def _class_table() -> Bytes:
    table = np.zeros(0x110000, np.uint8)
    for first, last, _ in ALONE:
        table[first : last + 1] = _ALONE
    for character in WHITESPACE:
        table[ord(character)] = _WHITE
    for place, mark in enumerate(MARKS):
        table[ord(mark)] = _MARK + place
    return table
