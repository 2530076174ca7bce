"""Matching: which entries of a list occur in which text, the first half of MetaCLIP's curation.

Xu et al., "Demystifying CLIP Data", ICLR 2024 (arXiv 2309.16671), section 3.2, with the exact rule of its code
(`metaclip/substr_matching.py`), which `annotary.curation.entry_index` states. The output has all columns of the tables
and, for each column of texts, one more with the ids of the entries that each text matches, `caption_entries`; beside
it `_counts.npy` holds how many texts match each entry, which is all that balancing needs to know of the whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from annotary.curation._arrays import buffer_of, column_of
from annotary.curation.columns import ENTRIES, is_list, is_text, refuse_column, text_columns
from annotary.curation.entries import Entries
from annotary.curation.entry_index import EntryIndex
from annotary.curation.probabilities import Counts
from annotary.curation.steps import (
    STATE,
    OnPart,
    StepOptions,
    StepResult,
    Tally,
    add_to_report,
    run_step,
)
from annotary.curation.tables import (
    BATCH_BYTES,
    BATCH_ROWS,
    Part,
    PartWriter,
    Rows,
    find_parts,
    no_column,
    sound_part,
)
from annotary.errors import OutputError, UsageError
from annotary.sinks import write_atomically
from annotary.sinks._atomic import replacing
from annotary.sources._paths import reason

if TYPE_CHECKING:
    import pyarrow as pa

COUNTS, ENTRY_LIST = "_counts.npy", "_entries.json"


@dataclass(frozen=True, slots=True)
class MatchOptions:
    """What is matched."""

    text_column: tuple[str, ...] = field(default=(), metadata={"metavar": "NAME"})
    """A column with texts, or with lists of texts, of which each becomes a row; may be given several times. Without
    it the first with a usual name."""

    language: str | None = field(default=None, metadata={"metavar": "CODE"})
    """For texts of a language that is written without spaces, such as zh, ja or th: entries are found inside of
    words, as in MetaCLIP 2."""

    matched_only: bool = False
    """Leave out rows of which no text matches any entry; balancing leaves them out in any case."""


class MatchStep:
    """The step of matching.

    Args:
        entries: What is looked for.
        language: Which rule.
        columns: The columns with texts.
        is_matched_only: Whether rows without any match are left out.
    """

    name = "match"

    def __init__(
        self,
        entries: Entries,
        language: str | None,
        columns: Sequence[str],
        *,
        is_matched_only: bool,
    ) -> None:
        self._entries: Entries | None = entries
        self._language = language
        self._digest = EntryIndex.digest_of(entries, language=language)
        self._columns = tuple(columns)
        self._is_matched_only = is_matched_only

    def __getstate__(self) -> dict[str, Any]:
        # Workers map the index into memory from its files, so that all share it.
        return {**self.__dict__, "_entries": None}

    def settings(self) -> dict[str, Any]:
        """What the matches depend on."""
        return {
            "entries": self._digest,
            "text_columns": list(self._columns),
            "matched_only": self._is_matched_only,
        }

    def prepare(self, folder: Path) -> None:
        """Put the index where workers find it; what was counted before is no longer all there is."""
        (folder / COUNTS).unlink(missing_ok=True)
        self.prepare_index(folder)

    def prepare_index(self, folder: Path) -> None:
        """Put the index where workers find it, unless it is there."""
        assert self._entries is not None
        place = _index_folder(folder, self._digest)
        try:
            EntryIndex.load(place)  # of an earlier run, or of another machine that reads it now
        except UsageError:
            EntryIndex.build(self._entries, language=self._language).save(place)

    def index(self, folder: Path) -> EntryIndex:
        """The index, from its files."""
        return _loaded(_index_folder(folder, self._digest))

    def run(self, part: Part, target: Path) -> Tally:
        """Match the texts of a part, and count."""
        index = self.index(target.parent)
        counts = np.zeros(index.entries, np.uint64)
        tally = Tally(beside={"texts": 0, "texts_matched": 0, "matches": 0})
        rows = Rows(part)
        with PartWriter(target) as writer:
            for batch in rows.batches():
                for piece in self._unrolled(batch, tally, part):
                    writer.write(self._matched(index, piece, counts, tally, part))
            tally.rows_out = writer.rows
            tally.skip(rows.skipped)
            save_counts(counts_of_part(target), counts)
        return tally

    def _matched(
        self, index: EntryIndex, batch: pa.RecordBatch, counts: Counts, tally: Tally, part: Part
    ) -> pa.RecordBatch:
        """Rows with the entries of their texts."""
        import pyarrow as pa

        is_matched = np.zeros(batch.num_rows, np.bool_)
        for name in self._columns:
            refuse_column(part, batch, name + ENTRIES, "matched")
            texts = buffer_of(_text_column(batch, name, part))
            found = index.match_buffer(*texts)
            offsets = column_of(found.offsets.astype(np.int32))
            lists = pa.ListArray.from_arrays(offsets, column_of(found.entries))
            batch = batch.append_column(name + ENTRIES, lists)
            sizes = np.diff(found.offsets)
            is_matched |= sizes > 0
            counts += np.bincount(found.entries, minlength=len(counts)).astype(np.uint64)
            absent = 0 if texts.is_valid is None else int((~texts.is_valid).sum())
            tally.beside["texts"] += len(sizes) - absent
            tally.beside["texts_matched"] += int((sizes > 0).sum())
            tally.beside["matches"] += int(found.offsets[-1])
        if self._is_matched_only and not is_matched.all():
            tally.drop("no entry matched", int((~is_matched).sum()))
            batch = batch.filter(column_of(is_matched))
        return batch

    def _unrolled(
        self, batch: pa.RecordBatch, tally: Tally, part: Part
    ) -> Iterator[pa.RecordBatch]:
        """Rows with one text each: lists of texts become as many rows."""
        tally.rows_in += batch.num_rows
        (name, *more) = self._columns
        if name not in batch.schema.names or more or not is_list(batch.schema.field(name).type):
            yield batch
            return
        with_text = 0
        for piece, rows in unroll(batch, name, part):
            with_text += rows
            tally.beside["rows_unrolled"] = tally.beside.get("rows_unrolled", 0) + piece.num_rows
            yield piece
        tally.drop("no text", batch.num_rows - with_text)


def match(
    tables: Sequence[str | Path],
    entries: Entries,
    folder: Path,
    options: MatchOptions | None = None,
    steps: StepOptions | None = None,
    *,
    on_part: OnPart | None = None,
) -> StepResult:
    """Match the texts of tables with entries.

    Args:
        tables: Tables, folders of tables.
        entries: What is looked for.
        folder: Where it is written: a Parquet file for each part; when no part is left, `_counts.npy` uint64[entries]
            and `_entries.json`.
        options: What is matched.
        steps: How the work is spread.
        on_part: Is told of each part as it is done.

    Raises:
        UsageError: A column is not there or holds no text.
        OutputError: The folder holds something else.
    """
    options = options or MatchOptions()
    parts = find_parts(tables)
    columns = text_columns(sound_part(parts), options.text_column)
    step = MatchStep(entries, options.language, columns, is_matched_only=options.matched_only)
    result = run_step(step, parts, folder, steps, on_part=on_part)
    if not result.is_complete:
        return result  # whoever does the last part counts: others would write less than that, and later
    counts = added_counts(folder, result.tallies, len(entries))
    save_array(folder / COUNTS, counts)
    write_atomically(folder / ENTRY_LIST, json.dumps(list(entries), ensure_ascii=False))
    step.prepare_index(folder)
    index = step.index(folder)
    facts = {
        "text_columns": list(columns),
        "language": options.language,
        "entries": index.entries,
        "entries_dead": len(index.dead),
        "entries_duplicate": len(index.duplicates),
        "entries_matched": int(np.count_nonzero(counts)),
    }
    add_to_report(folder, facts)
    return result


def english_entries() -> Entries:
    """The entries that need no other file: the numbers 0..99 and the 86,554 names of WordNet's synsets."""
    from annotary.curation._wordnet import shipped_names

    texts = dict.fromkeys((*map(str, range(100)), *shipped_names()))
    return Entries(tuple(texts), "the English entries of WordNet")


def unroll(batch: pa.RecordBatch, name: str, part: Part) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Rows with a list of texts as rows with one text, and of how many rows they are the first.

    The list holds texts, or, as in MetaCLIP's own files, pairs of a kind and a text ("alt", "a dog"); then there is a
    column more with the kinds, `texts_kind`. Rows without any text are left out. What else a row has, such as an image,
    is copied for each of its texts, so it comes in pieces of a bounded size.

    Args:
        batch: Rows.
        name: The column with the lists.
        part: Where they are from.
    """
    import pyarrow as pa
    from pyarrow import compute

    place = batch.schema.names.index(name)
    lists = batch.column(place)
    rows, texts, kinds = compute.list_parent_indices(lists), compute.list_flatten(lists), None
    if not is_text(texts.type):  # [kind, text]; what is shorter has no text
        refuse_column(part, batch, f"{name}_kind", "unrolled")
        is_pair = compute.fill_null(
            compute.equal(compute.list_value_length(texts), 2), fill_value=False
        )
        rows, texts = rows.filter(is_pair), texts.filter(is_pair)
        kinds, texts = compute.list_element(texts, 0), compute.list_element(texts, 1)
    is_first = np.diff(rows.to_numpy(), prepend=-1) > 0
    # The lists themselves are not copied for each of their texts.
    others = batch.set_column(place, name, pa.nulls(batch.num_rows))
    fitting = BATCH_BYTES * batch.num_rows // max(1, others.nbytes)
    at_once = min(BATCH_ROWS, max(1, fitting))
    for start in range(0, max(1, len(rows)), at_once):
        piece = others.take(rows.slice(start, at_once))
        piece = piece.set_column(place, name, texts.slice(start, at_once))
        if kinds is not None:
            piece = piece.append_column(f"{name}_kind", kinds.slice(start, at_once))
        yield piece, int(is_first[start : start + at_once].sum())


def counts_of_part(target: Path) -> Path:
    """Where the counts of a part stand, by the path of its table."""
    return target.parent / STATE / "counts" / f"{target.stem}.npy"


def save_counts(path: Path, counts: Counts) -> None:
    """Write counts of few entries: uint64[2, k], their ids and counts."""
    ids = np.flatnonzero(counts)
    save_array(path, np.stack([ids.astype(np.uint64), counts[ids]]))


def added_counts(folder: Path, parts: Iterable[str], entries: int) -> Counts:
    """What `save_counts` wrote for some parts, added up: uint64[entries].

    Args:
        folder: Where a step has written its parts.
        parts: Their names.
        entries: How many entries there are.

    Raises:
        OutputError: The counts of a part are gone, or damaged.
    """
    counts = np.zeros(entries, np.uint64)
    for name in parts:
        path = counts_of_part(folder / f"{name}.parquet")
        try:
            ids, found = np.load(path)
            counts[ids.astype(np.int64)] += found
        except (OSError, EOFError, ValueError, IndexError) as error:
            told = "the counts of a part are gone or damaged; say --on-existing overwrite"
            raise OutputError(f"{path}: {told}") from error
    return counts


def save_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write an array whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    try:
        with replacing(path) as file:
            np.save(file, array)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {reason(error)}") from error


def _text_column(batch: pa.RecordBatch, name: str, part: Part) -> pa.Array:
    if name not in batch.schema.names:
        raise UsageError(no_column(part.file, name, batch.schema.names))
    column = batch.column(batch.schema.names.index(name))
    if not is_text(column.type):
        raise UsageError(f"the column {name!r} of {part.file} holds {column.type}, not text")
    return column


def _index_folder(folder: Path, digest: str) -> Path:
    return folder / STATE / f"index-{digest}"


@lru_cache(maxsize=1)
def _loaded(folder: Path) -> EntryIndex:
    return EntryIndex.load(folder)
