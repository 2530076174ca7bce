"""Balancing: entries that nearly every text has are drawn seldom, the second half of MetaCLIP's curation.

Xu et al., "Demystifying CLIP Data", ICLR 2024 (arXiv 2309.16671), algorithm 1. An entry that c texts match has the
probability p = t / max(c, t); a text is kept when at least one of its entries is drawn, so with the probability
1 - (1 - p1)(1 - p2)…, and never without an entry. Here the draw is a hash of a seed, the id of the pair and its text:
the same pair is kept or not whatever the order and the parts of the tables, and a greater t keeps what a smaller one
kept.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from annotary.curation._arrays import column_of
from annotary.curation._balance_report import shares
from annotary.curation._draws import draws
from annotary.curation.columns import ENTRIES, as_text, id_columns, refuse_column
from annotary.curation.match import (
    COUNTS,
    ENTRY_LIST,
    added_counts,
    counts_of_part,
    save_array,
    save_counts,
)
from annotary.curation.probabilities import (
    Counts,
    Lists,
    entry_probabilities,
    least_t,
    t_of_tail_share,
    text_probabilities,
)
from annotary.curation.steps import (
    STATE,
    OnPart,
    StepOptions,
    StepResult,
    Tally,
    add_to_report,
    read_report,
    run_step,
)
from annotary.curation.tables import (
    Part,
    PartWriter,
    Rows,
    column_types,
    find_parts,
    no_column,
    sound_part,
)
from annotary.errors import UsageError
from annotary.sinks import write_atomically
from annotary.sources._paths import reason

if TYPE_CHECKING:
    import pyarrow as pa

PROBABILITY = "_probability"
"""What is put behind the name of a column of texts for the probability with which each is kept."""

SAMPLE = 1_000_000
"""Texts by which t is chosen for a size, about; all of them where there are fewer."""

_SAMPLE_SEED = 0x5A17


@dataclass(frozen=True, slots=True)
class BalanceOptions:
    """How much is kept."""

    t: float | None = None
    """Texts that an entry keeps about, if it has more, above 0: 20,000 for 1.6 billion pairs (MetaCLIP 400M), 170,000
    for its 2.5B."""

    target_size: int | None = field(default=None, metadata={"metavar": "PAIRS"})
    """Choose t so that about so many pairs are kept."""

    tail_share: float | None = field(default=None, metadata={"metavar": "X"})
    """Choose t so that entries with fewer texts than t make up this share of all matches, above 0 and below 1:
    about 0.06 in both of MetaCLIP's sets. It keeps t in step with a pool that grows."""

    seed: int = 0
    """Of the draw; the same seed keeps the same pairs."""

    id: tuple[str, ...] = field(default=(), metadata={"metavar": "NAME"})
    """A column that tells a pair, such as its url; may be given several times. Without it the first with a usual
    name."""

    online: bool = False
    """Draw nothing: keep every pair with a match and write its probability, for training loaders that draw anew in
    every epoch."""

    def __post_init__(self) -> None:
        told = [
            name for name in ("t", "target_size", "tail_share") if getattr(self, name) is not None
        ]
        if len(told) != 1:
            said = f"not {' and '.join(told)} together" if told else "one of them"
            raise ValueError(
                f"t, target_size or tail_share must be said, {said}"
                " (--t, --target-size or --tail-share)"
            )
        if self.t is not None and not 0.0 < self.t < math.inf:
            raise ValueError(f"t must be above 0, but got {self.t:g}")
        if self.target_size is not None and self.target_size < 1:
            raise ValueError(f"target_size must be at least 1, but got {self.target_size}")
        if self.tail_share is not None and not 0.0 < self.tail_share < 1.0:
            raise ValueError(f"tail_share must be above 0 and below 1, but got {self.tail_share}")


class Balancer:
    """Decides about pairs one by one: the online balancing of training loaders.

    Args:
        counts: uint64[entries], how many texts match each (`_counts.npy` of `annotary curate match`).
        t: As `BalanceOptions.t`.
        seed: Of the draw.
    """

    def __init__(self, counts: npt.NDArray[Any], t: float, seed: int = 0) -> None:
        self.t = t
        self.seed = seed
        self._probabilities = entry_probabilities(counts, t)

    @classmethod
    def of(cls, folder: Path, t: float, seed: int = 0) -> Balancer:
        """By the counts in a folder that `annotary curate match` has written.

        Raises:
            UsageError: There are none.
        """
        return cls(read_counts(folder), t, seed)

    def probability(self, entries: Sequence[int]) -> float:
        """With which probability a text is kept, 0..1.

        Args:
            entries: The ids of the entries that it matches.
        """
        ids = np.unique(np.asarray(entries, np.uint32))
        lists = np.array([0, len(ids)], np.int64), ids
        return float(text_probabilities(lists, self._probabilities)[0])

    def keeps(self, entries: Sequence[int], text: str, *ids: str, epoch: int = 0) -> bool:
        """Whether a pair is kept; in epoch 0 as `annotary curate balance` decides.

        Args:
            entries: The ids of the entries that its text matches.
            text: Its text.
            ids: What it is known by, in the order of `--id`.
            epoch: Another epoch, another draw.
        """
        return draw(self.seed, text, *ids, epoch=epoch) < self.probability(entries)


def draw(seed: int, text: str, *ids: str, epoch: int = 0) -> float:
    """The number in [0, 1) that decides about a pair: it is kept when this is below its probability."""
    import pyarrow as pa

    columns = [pa.array([one], pa.string()) for one in (*ids, text)]
    return float(draws(_epoch_seed(seed, epoch), columns)[0])


class BalanceStep:
    """The step of balancing.

    Args:
        counts: How many texts match each entry.
        t: As `BalanceOptions.t`.
        columns: The columns with texts, of which the entries stand in columns of their own.
        ids: The columns that tell a pair.
        options: The seed, and whether anything is drawn.
    """

    name = "balance"

    def __init__(
        self,
        counts: Counts,
        t: float,
        columns: Sequence[str],
        ids: Sequence[str],
        options: BalanceOptions,
    ) -> None:
        self._counts: Counts | None = counts
        self._digest = hashlib.sha256(counts.tobytes()).hexdigest()[:16]
        self._t = t
        self._columns = tuple(columns)
        self._ids = tuple(ids)
        self._seed = options.seed
        self._is_online = options.online

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_counts": None}

    def settings(self) -> dict[str, Any]:
        """What is kept depends on this."""
        return {
            "counts": self._digest,
            "t": int(self._t) if self._t == int(self._t) else self._t,
            "text_columns": list(self._columns),
            "id": list(self._ids),
            "seed": self._seed,
            "online": self._is_online,
        }

    def prepare(self, folder: Path) -> None:
        """Put the counts where workers find them."""
        assert self._counts is not None
        save_array(self._place(folder), self._counts)

    def run(self, part: Part, target: Path) -> Tally:
        """Draw the pairs of a part."""
        probabilities = _probabilities(self._place(target.parent), self._t)
        kept_counts = np.zeros(len(probabilities), np.uint64)
        tally = Tally(
            beside={"texts": 0, "texts_matched": 0, "texts_kept": 0, "texts_expected": 0.0}
        )
        rows = Rows(part)
        with PartWriter(target) as writer:
            for batch in rows.batches():
                tally.rows_in += batch.num_rows
                writer.write(self._drawn(batch, probabilities, kept_counts, tally, part))
            tally.rows_out = writer.rows
            tally.skip(rows.skipped)
            save_counts(counts_of_part(target), kept_counts)
        return tally

    def _drawn(
        self,
        batch: pa.RecordBatch,
        probabilities: npt.NDArray[np.float64],
        kept_counts: Counts,
        tally: Tally,
        part: Part,
    ) -> pa.RecordBatch:
        """The rows of which a text is kept; texts that are not are taken out of them."""
        ids = [_column(batch, name, part) for name in self._ids]
        is_kept_row = np.zeros(batch.num_rows, np.bool_)
        is_matched_row = np.zeros(batch.num_rows, np.bool_)
        for name in self._columns:
            text = _column(batch, name, part)
            lists = lists_of(_column(batch, name + ENTRIES, part), part, len(probabilities))
            chance = text_probabilities(lists, probabilities)
            is_matched = np.diff(lists[0]) > 0
            is_kept = is_matched if self._is_online else draws(self._seed, [*ids, text]) < chance
            tally.beside["texts"] += batch.num_rows - text.null_count
            tally.beside["texts_matched"] += int(is_matched.sum())
            tally.beside["texts_kept"] += int(is_kept.sum())
            tally.beside["texts_expected"] += float(chance.sum())
            is_of_kept = np.repeat(is_kept, np.diff(lists[0]))
            kept = np.bincount(lists[1][is_of_kept], minlength=len(kept_counts))
            kept_counts += kept.astype(np.uint64)
            is_matched_row |= is_matched
            is_kept_row |= is_kept
            if self._is_online:
                refuse_column(part, batch, name + PROBABILITY, "balanced")
                batch = batch.append_column(name + PROBABILITY, column_of(chance))
            elif len(self._columns) > 1:
                batch = _without(batch, (name, name + ENTRIES), is_kept)
        tally.drop("no entry matched", int((~is_matched_row).sum()))
        tally.drop("not drawn", int((is_matched_row & ~is_kept_row).sum()))
        return batch.filter(column_of(is_kept_row))

    def _place(self, folder: Path) -> Path:
        return folder / STATE / f"counts-{self._digest}.npy"


class SampleStep:
    """The step of taking some texts by which t can be chosen.

    Args:
        columns: The columns with texts.
        ids: The columns that tell a pair.
        share: Of the texts that are taken, above 0 and at most 1.
        entries: How many entries there are.
    """

    name = "sample"

    def __init__(
        self, columns: Sequence[str], ids: Sequence[str], share: float, entries: int
    ) -> None:
        self._columns = tuple(columns)
        self._ids = tuple(ids)
        self._share = share
        self.entries = entries

    def settings(self) -> dict[str, Any]:
        """What is taken depends on this."""
        return {"text_columns": list(self._columns), "id": list(self._ids), "share": self._share}

    def run(self, part: Part, target: Path) -> Tally:
        """Take texts with a match: their entries."""
        import pyarrow as pa

        names = tuple(
            dict.fromkeys([*self._ids, *self._columns, *(one + ENTRIES for one in self._columns)])
        )
        rows = Rows(part, names)
        tally = Tally()
        with PartWriter(target, pa.schema([("entries", pa.list_(pa.uint32()))])) as writer:
            for batch in rows.batches():
                tally.rows_in += batch.num_rows
                ids = [_column(batch, name, part) for name in self._ids]
                for name in self._columns:
                    offsets, entries = lists_of(
                        _column(batch, name + ENTRIES, part), part, self.entries
                    )
                    luck = draws(_SAMPLE_SEED, [*ids, _column(batch, name, part)])
                    is_taken = (luck < self._share) & (np.diff(offsets) > 0)
                    lists = pa.ListArray.from_arrays(
                        column_of(offsets.astype(np.int32)), column_of(entries)
                    )
                    taken = lists.filter(column_of(is_taken))
                    writer.write(pa.RecordBatch.from_arrays([taken], ["entries"]))
            tally.rows_out = writer.rows
        return tally


def balance(
    matched: Path,
    folder: Path,
    options: BalanceOptions,
    steps: StepOptions | None = None,
    *,
    counts: npt.NDArray[Any] | None = None,
    tables: Sequence[str | Path] | None = None,
    on_part: OnPart | None = None,
) -> StepResult:
    """Draw the pairs of matched tables.

    Args:
        matched: The folder that matching has written, whose counts and report are read.
        folder: Where it is written.
        options: How much is kept.
        steps: How the work is spread.
        counts: In place of those in the folder, such as those of a larger pool.
        tables: What is balanced, if it is not the matched tables themselves but what later steps made of them.
        on_part: Is told of each part as it is done.

    Raises:
        UsageError: There is nothing that was matched.
        OutputError: The folder holds something else.
    """
    told = read_report(matched)
    if told.get("step") != "match":
        raise UsageError(
            f"{matched} is no output of annotary curate match, but of {told.get('step') or 'something else'};"
            " name that of match, and what was made of it with --tables"
        )
    if told.get("parts_missing"):
        raise UsageError(f"{matched} lacks {told['parts_missing']:,} parts: match them first")
    is_counted = counts is not None or (matched / COUNTS).exists()
    if "text_columns" not in told or not is_counted:
        raise UsageError(f"{matched} was not written to its end by annotary curate match")
    counts = read_counts(matched) if counts is None else np.asarray(counts, np.uint64)
    if len(counts) != told["entries"]:
        raise UsageError(
            f"these are counts of {len(counts):,} entries, but {matched} has matches of {told['entries']:,}"
        )
    parts = find_parts([matched] if tables is None else tables)
    first = sound_part(parts)
    columns = _matched_columns(first, told["text_columns"])
    ids = id_columns(first, options.id)
    t = choose_t(counts, options, told, parts, columns, ids, folder, steps)
    step = BalanceStep(counts, t, columns, ids, options)
    result = run_step(step, parts, folder, steps, on_part=on_part)
    if not result.is_complete:
        return result  # as in matching, whoever does the last part tells of all
    kept = added_counts(folder, result.tallies, len(counts))
    save_array(folder / COUNTS, kept)
    entries = read_entries(matched)
    if entries is not None and len(entries) != len(counts):
        entries = None
    if entries is not None:
        write_atomically(folder / ENTRY_LIST, json.dumps(entries, ensure_ascii=False))
    add_to_report(
        folder, {"asked": asdict(options), **shares(counts, kept, t, result.total, entries)}
    )
    return result


def choose_t(
    counts: Counts,
    options: BalanceOptions,
    told: dict[str, Any],
    parts: Sequence[Part],
    columns: Sequence[str],
    ids: Sequence[str],
    folder: Path,
    steps: StepOptions | None,
) -> float:
    """The t that options ask for.

    For a size it is the least t that is expected to keep so many texts, by about a million texts that are taken by a
    hash of their ids.

    Raises:
        UsageError: Even all that match are fewer than the size.
    """
    if options.t is not None:
        return options.t
    if options.tail_share is not None:
        return t_of_tail_share(counts, options.tail_share)
    size, total = options.target_size, int(told.get("texts_matched", 0))
    assert size is not None
    while True:
        share = min(1.0, SAMPLE / max(1, total))
        step = SampleStep(columns, ids, share, len(counts))
        lists = _sample(step, parts, folder, steps)
        found = sum(len(offsets) - 1 for offsets, _ in lists)
        if share == 1.0 or found >= SAMPLE / 2:
            break
        total = int(found / share)  # the tables hold less than what was matched
    luck = 0.0 if share == 1.0 else 5 * math.sqrt(found)
    if found + luck < size * share:
        about = "" if share == 1.0 else "about "
        raise UsageError(
            f"only {about}{found / share:,.0f} texts match any entry, fewer than --target-size {size:,}"
        )
    return least_t(counts, lists, size * share)


def _sample(
    step: SampleStep, parts: Sequence[Part], folder: Path, steps: StepOptions | None
) -> list[Lists]:
    """The entries of some texts, by a step of its own within a folder's state."""
    made_from = json.dumps([step.settings(), sorted(part.name for part in parts)])
    digest = hashlib.sha256(made_from.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    place = folder / STATE / f"sample-{digest}"
    # All machines take the whole sample, so that they find the same t.
    run_step(step, parts, place, replace(steps or StepOptions(), shard=None))
    return [
        lists_of(batch.column(0), part, step.entries)
        for part in find_parts([place])
        for batch in Rows(part).batches()
    ]


def lists_of(array: pa.Array, part: Part, entries: int) -> Lists:
    """The lists of a column of ids, without a copy where they have 32 bits; a missing list is an empty one.

    Args:
        array: The column.
        part: Where it is from.
        entries: How many there are.

    Raises:
        UsageError: It holds something else, or ids of another list of entries.
    """
    from pyarrow import types

    kind = array.type
    is_list = types.is_list(kind) or types.is_large_list(kind)
    if not is_list or not (types.is_integer(kind.value_type) or types.is_null(kind.value_type)):
        raise UsageError(f"{part.file} has a column of {kind} where ids of entries are expected")
    offsets = np.asarray(array.offsets.to_numpy(), np.int64)
    offsets, values = offsets - offsets[0], array.values[offsets[0] : offsets[-1]]
    if values.null_count:
        raise UsageError(f"{part.file} has a list of ids of entries in which one is missing")
    ids = values.to_numpy(zero_copy_only=False)
    if len(ids) and not 0 <= ids.min() <= ids.max() < entries:
        raise UsageError(f"{part.file} has ids of entries of another list")
    return offsets, ids.astype(np.uint32, copy=False)


def read_counts(folder: Path) -> Counts:
    """The counts that matching has written, uint64[entries].

    Raises:
        UsageError: There are none.
    """
    return read_counts_file(folder / COUNTS)


def read_counts_file(path: Path) -> Counts:
    """Counts of texts for each entry, uint64[entries], from a file of NumPy.

    Raises:
        UsageError: It holds something else, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            counts = np.lib.format.read_array(file)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {reason(error)}") from error
    except (ValueError, EOFError) as error:
        raise UsageError(f"{path} is no array of NumPy (.npy), or is damaged") from error
    if counts.ndim != 1 or counts.dtype.kind not in "ui":
        raise UsageError(f"{path} holds {counts.dtype}{list(counts.shape)}, not counts of entries")
    if counts.min(initial=0) < 0:
        raise UsageError(f"{path} holds counts below 0")
    found: Counts = counts.astype(np.uint64)
    return found


def read_entries(folder: Path) -> list[str] | None:
    """The texts of the entries; None where they do not stand beside."""
    try:
        return list(json.loads((folder / ENTRY_LIST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _matched_columns(part: Part, told: Sequence[str]) -> tuple[str, ...]:
    kinds = column_types(part)
    for name in told:
        for wanted in (name, name + ENTRIES):
            if wanted not in kinds:
                raise UsageError(no_column(part.file, wanted, list(kinds)))
    return tuple(told)


def _column(batch: pa.RecordBatch, name: str, part: Part) -> pa.Array:
    import pyarrow as pa

    if name not in batch.schema.names:
        raise UsageError(no_column(part.file, name, batch.schema.names))
    array = batch.column(batch.schema.names.index(name))
    if name.endswith(ENTRIES):
        return array
    try:
        return as_text(array)
    except pa.ArrowException as error:  # of the first part alone it is known what its columns hold
        raise UsageError(
            f"the column {name!r} of {part.file} holds {array.type}, which is neither text nor an id"
        ) from error


def _without(
    batch: pa.RecordBatch, names: Sequence[str], is_kept: npt.NDArray[np.bool_]
) -> pa.RecordBatch:
    """Rows of which some columns are empty where they are not kept."""
    import pyarrow as pa
    from pyarrow import compute

    for name in names:
        place = batch.schema.names.index(name)
        column = batch.column(place)
        if name.endswith(ENTRIES):
            empty: Any = pa.scalar([], column.type)
        else:
            empty = pa.scalar(None, column.type)
        batch = batch.set_column(place, name, compute.if_else(column_of(is_kept), column, empty))
    return batch


def _epoch_seed(seed: int, epoch: int) -> int:
    if not epoch:
        return seed
    return int.from_bytes(
        hashlib.blake2b(f"{seed} {epoch}".encode(), digest_size=8).digest(), "big"
    )


@lru_cache(maxsize=1)
def _probabilities(place: Path, t: float) -> npt.NDArray[np.float64]:
    return entry_probabilities(np.load(place), t)
