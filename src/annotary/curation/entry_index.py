"""Which entries occur in texts, exactly by MetaCLIP's rule, for whole batches at once.

    bytes ──▶ units ──words──▶ ids ──steps──▶ states ──▶ (text, entry) ──▶ lists

`_units.py` states the rules and why units may stand for strings. A unit is looked up eight bytes at a time, and the
ids of units that follow each other lead along a tree of entries; all places of all texts go down that tree together,
so that there is no loop over texts. Hash tables only find candidates: keys are compared whole, and results do not
depend on the hash.

Where the rule is silent or strange: an entry of nothing, or of nothing but spaces, matches nothing (by the letter it
would match where there are spaces enough, as behind most commas); a missing text matches nothing; of entries that are
equal, the first has the matches.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from annotary.curation import _units
from annotary.curation._hash_table import MULTIPLIER, NONE, HashTable, pair_keys
from annotary.curation._tree import FILL, WORD, build, digest_of, padded_bytes, pieces_of
from annotary.curation._units import Bytes, Places, Units
from annotary.curation.entries import Entries, language_rule
from annotary.errors import OutputError, UsageError
from annotary.sinks._atomic import replacing, write_atomically

CHUNK_BYTES: Final = 1 << 18
"""Texts are matched in chunks of about so many bytes, so that what is worked out between stays in the cache."""

_FORMAT = 1
_DESCRIPTION = "index.json"


class Matches(NamedTuple):
    """The entries of each text: those of text i are `entries[offsets[i]:offsets[i + 1]]`, ascending, each once.

    Attributes:
        offsets: int64, one more than there are texts.
        entries: uint32, ids of entries.
    """

    offsets: NDArray[np.int64]
    entries: NDArray[np.uint32]

    def counts(self, entries: int) -> NDArray[np.uint64]:
        """For each entry how many of the texts have it.

        Args:
            entries: How many entries there are.
        """
        return np.bincount(self.entries, minlength=entries).astype(np.uint64)


class EntryIndex:
    """A list of entries, made ready to be found in texts. It does not change, so threads and processes may share it.

    Attributes:
        entries: How many there are.
        language: The code that chose the rule, or None.
        digest: Of the entries and the rule; equal digests give equal matches.
        dead: Ids of entries that no text can match, ascending.
        duplicates: Ids of entries that are equal to an earlier one, which has all their matches; ascending.
    """

    def __init__(self, facts: dict[str, Any], tables: dict[str, NDArray[Any]]) -> None:
        self.entries: int = facts["entries"]
        self.language: str | None = facts["language"]
        self.digest: str = facts["digest"]
        self.dead: NDArray[np.int64] = tables["dead"]
        self.duplicates: NDArray[np.int64] = tables["duplicates"]
        self._facts = facts
        self._tables = tables
        self._entry_of: NDArray[np.uint32] = tables["entry_of"]
        self._fixed: NDArray[np.uint32] = tables["fixed"]
        self._words, self._joins, self._steps = (
            HashTable(
                **{
                    part: tables[f"{name}_{part}"]
                    for part in ("keys", "values", "choices", "rest", "rest_values")
                },
                multiplier=facts["multiplier"],
            )
            for name in ("words", "joins", "steps")
        )
        # States are numbered so that the two questions that are asked of every state are comparisons: those below
        # `inner` are followed by others, and those from `first_entry` to `last_entry` are where an entry ends.
        self._inner = np.uint32(facts["inner"])
        self._first_entry = np.uint32(facts["first_entry"])
        self._entry_states = np.uint32(facts["entry_states"])
        self._longest: int = facts["longest"]
        self._is_by_character = language_rule(self.language) == 2

    @staticmethod
    def digest_of(entries: Entries | Sequence[str], *, language: str | None = None) -> str:
        """The digest that an index of these entries has, without making it.

        Raises:
            UsageError: No such language.
        """
        return digest_of(list(entries), language_rule(language))

    @classmethod
    def build(
        cls,
        entries: Entries | Sequence[str],
        *,
        language: str | None = None,
        multiplier: int = MULTIPLIER,
    ) -> EntryIndex:
        """Make a list of entries ready.

        Args:
            entries: Their ids are their places in it.
            language: With the code of a language without spaces, the rule of MetaCLIP 2; else that of version 1.
            multiplier: Another hash; matches are the same with any.

        Raises:
            UsageError: No such language; or a name was given instead of a list.
        """
        return cls(*build(entries, language, multiplier))

    def save(self, folder: Path) -> None:
        """Write the index to a folder, from where `load` maps it; the folder is made.

        Every file is put in place whole, the description last. So a folder with a description is complete, and who has
        an index mapped that is written again keeps what it has mapped.

        Raises:
            OutputError: It cannot be written.
        """
        folder = Path(folder)
        try:
            for name, table in self._tables.items():
                with replacing(folder / f"{name}.npy") as file:
                    np.save(file, table)
        except OSError as error:
            raise OutputError(
                f"cannot write the index of entries to {folder}: {error.strerror}"
            ) from error
        write_atomically(
            folder / _DESCRIPTION, json.dumps({"format": _FORMAT, **self._facts}, indent=1)
        )

    @classmethod
    def load(cls, folder: Path) -> EntryIndex:
        """Open an index. Its tables are mapped, so all processes that open it share one copy in memory.

        Raises:
            UsageError: There is none in that folder, or it is of another version.
        """
        folder = Path(folder)
        try:
            facts = json.loads((folder / _DESCRIPTION).read_text("utf-8"))
            if facts.pop("format") != _FORMAT:
                raise UsageError(
                    f"{folder} holds an index of another version of annotary; build it again"
                )
            tables = {
                name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))
                for name in facts["tables"]
            }
            return cls(facts, tables)
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{folder} holds no whole index of entries: {error}; build it again"
            ) from None

    def match(self, texts: Sequence[str | None], *, chunk_bytes: int = CHUNK_BYTES) -> Matches:
        """The entries of each text.

        Args:
            texts: None is a missing text and has no entries.
            chunk_bytes: See `CHUNK_BYTES`; matches are the same with any.
        """
        filled = [text or "" for text in texts]
        data, offsets = _units.joined_bytes(filled)
        return self.match_buffer(data, offsets, chunk_bytes=chunk_bytes)

    def match_buffer(
        self,
        data: Bytes,
        offsets: NDArray[np.integer[Any]],
        is_valid: NDArray[np.bool_] | None = None,
        *,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> Matches:
        """The entries of texts that lie in one buffer, as Arrow keeps a column of strings.

        Args:
            data: UTF-8 bytes.
            offsets: Text i is `data[offsets[i]:offsets[i + 1]]`; int32 or int64. The first need not be 0.
            is_valid: False for a missing text, whatever bytes it has; None when none is missing.
            chunk_bytes: See `CHUNK_BYTES`; matches are the same with any.
        """
        places = np.asarray(offsets, np.int64)
        counts, found = [np.zeros(1, np.int64)], [np.zeros(0, np.uint32)]
        for first, last in _chunks(places, chunk_bytes):
            start, stop = int(places[first]), int(places[last])
            padded = padded_bytes(data[start:stop])
            valid = None if is_valid is None else is_valid[first:last]
            text, entry = self._match_chunk(padded, places[first + 1 : last + 1] - start, valid)
            counts.append(np.bincount(text, minlength=last - first))
            found.append(entry)
        return Matches(np.cumsum(np.concatenate(counts)), np.concatenate(found))

    def _match_chunk(
        self, data: Bytes, ends: Places, is_valid: NDArray[np.bool_] | None
    ) -> tuple[Places, NDArray[np.uint32]]:
        """Texts and their entries, in the order of both, each pair once."""
        if data.size and data.max() == 0xFF:
            # No UTF-8 has this byte, so no entry has it: any other that no UTF-8 has will do, and this one fills words.
            data[data == 0xFF] = 0xFE
        units = (_units.text_characters if self._is_by_character else _units.text_units)(data, ends)
        ids = self._ids(data, units)
        places, entries = self._walk(ids)
        text = np.repeat(np.arange(ends.size), np.diff(units.first)).take(places)
        if is_valid is not None:
            is_kept = is_valid.take(text)
            text, entries = text[is_kept], entries[is_kept]
        return _in_order(text, entries, ends.size, self.entries)

    def _ids(self, data: Bytes, units: Units) -> NDArray[np.uint32]:
        """The sequence of units as states of the first level; `NONE` where no entry has that unit."""
        pieces = pieces_of(data)
        lengths = units.lengths
        known = self._words.find(pieces.take(units.starts) | FILL.take(np.minimum(lengths, WORD)))
        longer = np.flatnonzero(lengths > WORD)
        states = known.take(longer)
        known[longer] = NONE
        goes_on = (states != NONE) & (lengths.take(longer) <= self._longest)
        done = 0
        while (longer := longer[goes_on]).size:
            states = states[goes_on]
            done += WORD
            left = lengths.take(longer) - done
            piece = pieces.take(units.starts.take(longer) + done) | FILL.take(
                np.minimum(left, WORD)
            )
            states = self._joins.find(pair_keys(states, self._words.find(piece)))
            is_whole = left <= WORD
            known[longer[is_whole]] = states[is_whole]
            goes_on = ~is_whole & (states != NONE)
        ids = np.full(int(units.first[-1]), self._fixed[units.background], np.uint32)
        ids[units.fixed_places] = self._fixed.take(units.fixed_codes)
        ids[units.places] = known
        return ids

    def _walk(self, ids: NDArray[np.uint32]) -> tuple[Places, NDArray[np.uint32]]:
        """All places where an entry ends, and the entry."""
        at = np.flatnonzero(ids - self._first_entry < self._entry_states)
        places, states = [at], [ids.take(at)]
        at = np.flatnonzero(ids < self._inner)
        state = ids.take(at)
        while at.size:
            # Behind the last unit of a text is its break, which nothing leads to: no entry goes over the end of a text.
            at = at + 1
            following = ids.take(at)
            is_known = following != NONE
            at = at[is_known]
            state = self._steps.find(pair_keys(state[is_known], following[is_known]))
            is_entry = state - self._first_entry < self._entry_states
            places.append(at[is_entry])
            states.append(state[is_entry])
            goes_on = state < self._inner
            at, state = at[goes_on], state[goes_on]
        ended = np.concatenate(states)
        ended -= self._first_entry
        return np.concatenate(places), self._entry_of.take(ended)


def _in_order(
    text: Places, entry: NDArray[np.uint32], texts: int, entries: int
) -> tuple[Places, NDArray[np.uint32]]:
    """Pairs of a text and an entry in the order of both, each once."""
    # One number for both, so that it is one sort; with 32 bits, where they do, it takes half the time.
    bits = max(entries - 1, 1).bit_length()
    keys: NDArray[Any]
    if texts << bits <= 1 << 32:
        keys = text.astype(np.uint32) << np.uint32(bits)
    else:
        keys = text.astype(np.uint64) << np.uint64(bits)
    np.bitwise_or(keys, entry, out=keys)
    keys.sort()
    is_new = np.ones(keys.size, np.bool_)
    np.not_equal(keys[1:], keys[:-1], out=is_new[1:])
    keys = keys[is_new]
    kind = keys.dtype.type
    return (keys >> kind(bits)).astype(np.int64), (keys & kind((1 << bits) - 1)).astype(np.uint32)


def _chunks(offsets: Places, chunk_bytes: int) -> Iterator[tuple[int, int]]:
    """Runs of texts of about so many bytes; a longer text is a run of its own."""
    first, texts = 0, offsets.size - 1
    while first < texts:
        last = int(np.searchsorted(offsets, offsets[first] + chunk_bytes, side="right")) - 1
        # Empty texts have units too: their number is bounded as well.
        last = min(max(last, first + 1), first + max(chunk_bytes, 1), texts)
        yield first, last
        first = last
