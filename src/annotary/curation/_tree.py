"""The tables of an `EntryIndex`, made from a list of entries with array operations alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from annotary.curation import _units
from annotary.curation._hash_table import NONE, HashTable, Keys, Values, pair_keys
from annotary.curation._units import Bytes, Places, Units
from annotary.curation.entries import Entries, language_rule
from annotary.errors import UsageError

WORD: Final = 8
"""How many bytes of a unit are looked up at once."""

FILL: Final = np.array(
    [~((1 << 8 * size) - 1) & ((1 << 64) - 1) for size in range(WORD + 1)], np.uint64
)
"""What fills a piece of so many bytes up to eight. 0xFF is in no UTF-8, so no other piece reads the same."""

_MOST_STATES = 0x20202020


def pieces_of(data: Bytes) -> Keys:
    """The eight bytes from each byte on, as numbers; one number for every byte but the last seven."""
    windows: Keys = np.ndarray(data.size - WORD + 1, "<u8", data, strides=(1,))
    return np.ascontiguousarray(windows)


def padded_bytes(data: Bytes) -> Bytes:
    """A copy with eight bytes more, so that there is a piece at every byte and at the end."""
    padded = np.empty(data.size + WORD, np.uint8)
    padded[:-WORD] = data
    padded[-WORD:] = ord(" ")
    return padded


def build(
    entries: Entries | Sequence[str], language: str | None, multiplier: int
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Facts and tables of the index of a list of entries; see `EntryIndex.build`."""
    rule = language_rule(language)
    texts = entries.texts if isinstance(entries, Entries) else _listed(entries)
    data, ends = _patterns(texts, rule)
    is_dead = _dead(data, ends)
    data, ends, living = _without(data, ends, is_dead)
    padded = padded_bytes(data)
    units = _no_units() if not living.size else _cut(padded, ends, rule)
    words, joins, nodes, states = _spell(padded, units)
    steps, whole, states = _follow(nodes, units.first, states)
    # Of equal entries the first has the matches: of several values for one place the last one stays.
    entry_of_state = np.full(states, NONE, np.uint32)
    entry_of_state[whole[::-1]] = living[::-1]
    duplicates = living[entry_of_state[whole] != living]

    number, inner, first_entry, entry_states = _numbered(states, steps[0], entry_of_state)
    entry_of = np.empty(entry_states, np.uint32)
    has_entry = np.flatnonzero(entry_of_state != NONE)
    entry_of[number[has_entry] - first_entry] = entry_of_state[has_entry]
    hashed = {
        "words": HashTable.build(words, number[: words.size], multiplier=multiplier),
        "joins": _pairs(joins, number, multiplier),
        "steps": _pairs(steps, number, multiplier),
    }
    tables: dict[str, NDArray[Any]] = {
        "dead": np.flatnonzero(is_dead),
        "duplicates": duplicates,
        "entry_of": entry_of,
        "fixed": _fixed(hashed["words"]),
    }
    facts: dict[str, Any] = {
        "entries": len(texts),
        "language": language,
        "digest": digest_of(texts, rule),
        "inner": inner,
        "first_entry": first_entry,
        "entry_states": entry_states,
        "multiplier": multiplier,
        "longest": int(units.lengths.max(initial=0)),
    }
    for name, table in hashed.items():
        tables |= {f"{name}_{part}": array for part, array in table.arrays().items()}
    facts["tables"] = sorted(tables)
    return facts, tables


def _listed(entries: Sequence[str]) -> Sequence[str]:
    if isinstance(entries, str):
        raise UsageError(f"entries are a list of texts, and {entries[:40]!r} is one text")
    for place, entry in enumerate(entries):
        if not isinstance(entry, str):
            raise UsageError(f"entry {place} is no text but {entry!r}")
    return entries


def _patterns(texts: Sequence[str], rule: int) -> tuple[Bytes, Places]:
    """The entries as bytes, one after the other, and where each ends; by the second rule with the spaces they get."""
    if rule == 2:
        alone = _units.stands_alone
        texts = [
            f"{'' if alone(text[0]) else ' '}{text}{'' if alone(text[-1]) else ' '}"
            if text
            else text
            for text in texts
        ]
    data, offsets = _units.joined_bytes(texts)
    return data, offsets[1:]


def _dead(data: Bytes, ends: Places) -> NDArray[np.bool_]:
    """Which entries no text can match.

    A spaced text holds no TAB, LF or CR. In it a mark has a space on both sides, and between two marks that follow
    each other are two spaces at least, as each brings its own. So an entry lives just if it has none of those three
    characters, only spaces (or its own ends) beside its marks, no single space between two marks, and anything that is
    no space. A text that it matches is then the entry with one space less on both sides of each mark.
    """
    begins = np.concatenate([[0], ends[:-1]])
    owner = np.repeat(np.arange(ends.size), ends - begins)
    is_dead = np.ones(ends.size, np.bool_)
    is_dead[owner[data != ord(" ")]] = False
    white = [ord(character) for character in _units.WHITESPACE if character != " "]
    is_dead[owner[np.isin(data, white)]] = True
    marks = np.isin(data, [ord(mark) for mark in _units.MARKS])
    at = np.flatnonzero(marks)
    for step in (-1, 1):
        beside = at + step
        inside = (beside >= begins[owner[at]]) & (beside < ends[owner[at]])
        glued = inside & (data.take(beside, mode="clip") != ord(" "))
        is_dead[owner[at[glued]]] = True
    near = at[:-1][np.diff(at) == 2]
    near = near[owner[near] == owner[near + 2]]
    is_dead[owner[near]] = True
    return is_dead


def _without(
    data: Bytes, ends: Places, is_dead: NDArray[np.bool_]
) -> tuple[Bytes, Places, NDArray[np.int64]]:
    """The bytes and ends of the living entries, and their ids."""
    lengths = np.diff(ends, prepend=0)
    living = np.flatnonzero(~is_dead)
    return data[np.repeat(~is_dead, lengths)], np.cumsum(lengths[living]), living


def _no_units() -> Units:
    none = np.zeros(0, np.int64)
    return Units(none, none, none, none, none.astype(np.uint8), _units.BREAK, np.zeros(1, np.int64))


def _cut(data: Bytes, ends: Places, rule: int) -> Units:
    return (_units.entry_characters if rule == 2 else _units.entry_units)(data, ends)


def _spell(data: Bytes, units: Units) -> tuple[Keys, tuple[Values, Values, Values], Values, int]:
    """Ids for all pieces of units, and states for the units.

    The state of a unit of one piece is the id of the piece. Longer units go from the state of what is before to that of
    the whole, by the id of the piece that is added: these are the joins.

    Returns:
        The pieces in the order of their ids; the joins (state, piece, next state); the state of each unit; how many
        states there are.
    """
    pieces = pieces_of(data)
    levels = [np.arange(units.starts.size)]
    found = [pieces[units.starts] | FILL[np.minimum(units.lengths, WORD)]]
    while (longer := levels[-1][units.lengths[levels[-1]] > WORD * len(levels)]).size:
        left = units.lengths[longer] - WORD * len(levels)
        piece = pieces[units.starts[longer] + WORD * len(levels)]
        found.append(piece | FILL[np.minimum(left, WORD)])
        levels.append(longer)
    words, inverse = np.unique(np.concatenate(found), return_inverse=True)
    # NumPy 2.0 alone gives the inverse another shape.
    ids = inverse.reshape(-1).astype(np.uint32)
    by_level = np.split(ids, np.cumsum([level.size for level in levels])[:-1])
    nodes = by_level[0].copy()
    states = words.size
    joins = _Pairs()
    for level, added in zip(levels[1:], by_level[1:], strict=True):
        nodes[level], states = joins.add(nodes[level], added, states)
    return words, joins.all(), nodes, states


def _follow(
    nodes: Values, first: Places, states: int
) -> tuple[tuple[Values, Values, Values], Values, int]:
    """The tree of entries over their units: the steps, the state in which each entry ends, and how many states."""
    sizes = np.diff(first)
    steps = _Pairs()
    whole = nodes[first[:-1]] if sizes.size else nodes
    whole = whole.copy()
    at = np.flatnonzero(sizes > 1)
    depth = 1
    while at.size:
        whole[at], states = steps.add(whole[at], nodes[first[at] + depth], states)
        depth += 1
        at = at[sizes[at] > depth]
    return steps.all(), whole, states


class _Pairs:
    """Steps from a state to another, by an id: numbered as they come up, each once."""

    def __init__(self) -> None:
        self._found: list[tuple[Values, Values, Values]] = []

    def add(self, states: Values, ids: Values, next_state: int) -> tuple[Values, int]:
        """The states that follow, new ones from `next_state` on, and the first number that is free then."""
        keys, inverse = np.unique(pair_keys(states, ids), return_inverse=True)
        if next_state + keys.size >= _MOST_STATES:
            raise UsageError("these entries are too many for one index; cut the list in two")
        new = np.arange(next_state, next_state + keys.size, dtype=np.uint32)
        before, by = (keys >> np.uint64(32)).astype(np.uint32), keys.astype(np.uint32)
        self._found.append((before, by, new))
        return new[inverse.reshape(-1)], next_state + keys.size

    def all(self) -> tuple[Values, Values, Values]:
        """All steps: from which state, by what, to which."""
        none = np.zeros(0, np.uint32)
        before, by, after = zip((none, none, none), *self._found, strict=True)
        return np.concatenate(before), np.concatenate(by), np.concatenate(after)


def _numbered(states: int, inner: Values, entry_of_state: Values) -> tuple[Values, int, int, int]:
    """New numbers for all states: first those that are followed by others, among them last those that are entries.

    Returns:
        The new number of each; how many are followed by others; the first that is an entry; how many are entries.
    """
    is_inner = np.zeros(states, np.bool_)
    is_inner[inner] = True
    is_entry = entry_of_state != NONE
    group = np.where(is_inner, np.where(is_entry, 1, 0), np.where(is_entry, 2, 3)).astype(np.uint8)
    number = np.empty(states, np.uint32)
    number[np.argsort(group, kind="stable")] = np.arange(states, dtype=np.uint32)
    sizes = np.bincount(group, minlength=4).tolist()
    return number, sizes[0] + sizes[1], sizes[0], sizes[1] + sizes[2]


def _pairs(pairs: tuple[Values, Values, Values], number: Values, multiplier: int) -> HashTable:
    before, by, after = (number[column] for column in pairs)
    return HashTable.build(pair_keys(before, by), after, multiplier=multiplier)


def _fixed(words: HashTable) -> Values:
    """The state of each mark, of a space and of a break, by their codes."""
    spelt = np.frombuffer((_units.MARKS + " ").encode("ascii"), np.uint8).astype(np.uint64)
    return np.append(words.find(spelt | FILL[1]), np.uint32(NONE))


def digest_of(texts: Sequence[str], rule: int) -> str:
    """What changes with the entries and with the rule."""
    data, offsets = _units.joined_bytes(texts)
    digest = hashlib.blake2b(f"annotary entries, rule {rule}\n".encode(), digest_size=16)
    digest.update(offsets.astype("<i8").tobytes())
    digest.update(data.tobytes())
    return digest.hexdigest()
