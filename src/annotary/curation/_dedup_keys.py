"""Keys: what rows are the same by, as hashes of 128 bits, in files that are sorted and can be read in slices.

Each part has a file for each way of being the same. A file is one block after the other of up to `BLOCK_ROWS` rows,
sorted by the upper half of their hashes: all upper halves (uint64), all lower halves (uint64), all numbers of rows in
the part (uint32). So rows whose hashes begin alike are found in all parts, and compared, without reading the rest.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from annotary.curation.columns import as_text
from annotary.curation.steps import Tally
from annotary.curation.tables import Part, Rows, arrow
from annotary.errors import OutputError
from annotary.sinks._atomic import replacing
from annotary.sources._paths import reason

if TYPE_CHECKING:
    import pyarrow as pa

Halves = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]

BLOCK_ROWS = 2**20
"""Rows that are sorted at a time, about 40 bytes each."""

KEY_BYTES = 20
"""Bytes on disk of a row and way."""

SUFFIX = ".keys"


class Keys(NamedTuple):
    """Hashes of rows.

    Attributes:
        high: uint64[n], the upper 64 bits.
        low: uint64[n], the lower 64 bits.
        rows: int64[n].
    """

    high: Halves
    low: Halves
    rows: Numbers

    def take(self, chosen: Any) -> Keys:
        """Some of them.

        Args:
            chosen: Their places, a slice, or bool[n].
        """
        return Keys(self.high[chosen], self.low[chosen], self.rows[chosen])

    @classmethod
    def joined(cls, pieces: Sequence[Keys]) -> Keys:
        """Several as one."""
        nothing = np.empty(0, np.uint64)
        return cls(
            np.concatenate([nothing, *(keys.high for keys in pieces)]),
            np.concatenate([nothing, *(keys.low for keys in pieces)]),
            np.concatenate([np.empty(0, np.int64), *(keys.rows for keys in pieces)]),
        )


@dataclass(frozen=True, slots=True)
class KeyWay:
    """A way of being the same that a hash of some columns tells.

    Attributes:
        name: As the user says it: "text".
        reason: Why a row goes: "duplicate text".
        columns: What must be the same, all of them.
        is_text: For each column whether it is text that may be normalised.
    """

    name: str
    reason: str
    columns: tuple[str, ...]
    is_text: tuple[bool, ...]


@dataclass(slots=True)
class KeyStep:
    """The step that hashes what rows are compared by. It writes no tables.

    Attributes:
        ways: The ways.
        is_normalised: Whether texts count as the same that differ in case, width, or white space.
        name: Of the step.
    """

    ways: tuple[KeyWay, ...]
    is_normalised: bool
    name: str = "dedup keys"

    def settings(self) -> dict[str, Any]:
        """What hashes depend on."""
        ways = {way.name: list(way.columns) for way in self.ways}
        return {"ways": ways, "normalise": self.is_normalised, "block": BLOCK_ROWS}

    def run(self, part: Part, target: Path) -> Tally:
        """Hash the rows of a part."""
        rows = Rows(part, list(dict.fromkeys(name for way in self.ways for name in way.columns)))
        tally = Tally()
        with ExitStack() as stack:
            files = [
                stack.enter_context(KeyWriter(key_file(target.parent, way.name, part.name)))
                for way in self.ways
            ]
            for batch in rows.batches():
                for way, file in zip(self.ways, files, strict=True):
                    file.write(self._keys(way, batch, tally.rows_out))
                tally.rows_out += batch.num_rows
        tally.rows_in = tally.rows_out
        tally.skip(rows.skipped)
        return tally

    def _keys(self, way: KeyWay, batch: pa.RecordBatch, first: int) -> Keys:
        """The keys of the rows that have all of the columns."""
        columns = [
            cells_of(batch.column(name), is_normalised=self.is_normalised and is_text)
            for name, is_text in zip(way.columns, way.is_text, strict=True)
        ]
        return keys_of(_joined(columns), first)


def key_file(folder: Path, way: str, part: str) -> Path:
    """Where the keys of a part are."""
    number = blake2b(way.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    return folder / f"{part}.{number}{SUFFIX}"


def keys_of(cells: Sequence[bytes | None], first: int) -> Keys:
    """The hashes of what rows are compared by. A row without it, or where it is empty, has none.

    BLAKE2b (RFC 7693): of a thousand million different cells two have the same 128 bits with a probability of 1.5e-21,
    and nobody can make such two.

    Args:
        cells: What each row is compared by.
        first: The number of the first row.
    """
    digests = b"".join([blake2b(cell, digest_size=16).digest() for cell in cells if cell])
    halves = np.frombuffer(digests, "<u8").reshape(-1, 2)
    rows = np.fromiter((i for i, cell in enumerate(cells) if cell), np.int64, len(halves))
    return Keys(halves[:, 0], halves[:, 1], rows + first)


def normalised(text: str) -> str:
    """A text as it is compared: in Unicode's form NFKC, without case, with single spaces between words."""
    if not text.isascii():
        # Folding case may undo the form (Unicode Standard, section 3.13, definition D146).
        text = unicodedata.normalize("NFKC", text).casefold()
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


class KeyWriter:
    """A file of keys that is there in whole when the context ends, and not at all when it ends in an error.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: list[Keys] = []
        self._rows = 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._file = self._stack.enter_context(replacing(self._path))
        return self

    def write(self, keys: Keys) -> None:
        """Add rows, whose numbers ascend.

        Raises:
            OutputError: The disk does not take them.
        """
        self._held.append(keys)
        self._rows += len(keys.rows)
        while self._rows >= BLOCK_ROWS:
            self._flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None and self._rows:
                self._flush()
        except BaseException as failed:
            self._stack.__exit__(type(failed), failed, failed.__traceback__)
            raise
        try:
            self._stack.__exit__(kind, error, traceback)
        except OSError as failed:
            raise OutputError(f"cannot write {self._path}: {reason(failed)}") from failed

    def _flush(self) -> None:
        """Write the next block."""
        held = Keys.joined(self._held)
        block, left = held.take(slice(BLOCK_ROWS)), held.take(slice(BLOCK_ROWS, None))
        self._held, self._rows = [left], len(left.rows)
        block = block.take(np.argsort(block.high, kind="stable"))
        try:
            self._file.write(block.high.astype("<u8").tobytes())
            self._file.write(block.low.astype("<u8").tobytes())
            self._file.write(block.rows.astype("<u4").tobytes())
        except OSError as failed:
            raise OutputError(f"cannot write {self._path}: {reason(failed)}") from failed


@dataclass(frozen=True, slots=True)
class KeyFile:
    """The keys of a part.

    Attributes:
        path: The file.
        first: The number of the part's first row among those of all parts.
    """

    path: Path
    first: int

    def between(self, low: int, high: int) -> Iterator[Keys]:
        """The keys whose upper halves lie from `low` up to, not including, `high`, block by block.

        Raises:
            OutputError: The file is gone.
        """
        try:
            size = self.path.stat().st_size
            if not size:
                return
            data = np.memmap(self.path, np.uint8, "r")
        except OSError as failed:
            told = "say --on-existing overwrite to begin anew"
            raise OutputError(f"cannot read {self.path}: {reason(failed)}; {told}") from failed
        for start in range(0, size // KEY_BYTES, BLOCK_ROWS):
            count = min(BLOCK_ROWS, size // KEY_BYTES - start)
            block = data[start * KEY_BYTES : (start + count) * KEY_BYTES]
            upper = block[: 8 * count].view("<u8")
            begin = int(np.searchsorted(upper, np.uint64(low)))
            end = count if high >> 64 else int(np.searchsorted(upper, np.uint64(high)))
            if begin < end:
                yield Keys(
                    np.array(upper[begin:end], np.uint64),
                    np.array(block[8 * count : 16 * count].view("<u8")[begin:end], np.uint64),
                    block[16 * count :].view("<u4")[begin:end].astype(np.int64) + self.first,
                )


def bucket(files: Sequence[KeyFile], number: int, count: int) -> Keys:
    """The keys of all parts whose hashes begin alike.

    Args:
        files: Of all parts, in their order.
        number: Of the bucket, 0..count.
        count: How many there are.
    """
    low, high = ((i << 64) // count for i in (number, number + 1))
    return Keys.joined([keys for file in files for keys in file.between(low, high)])


def _joined(columns: list[list[bytes | None]]) -> list[bytes | None]:
    """Cells of several columns as one, from which each can be told."""
    if len(columns) == 1:
        return columns[0]
    return [
        b"".join(len(cell).to_bytes(8, "little") + cell for cell in cells if cell)
        if all(cells)
        else None
        for cells in zip(*columns, strict=True)
    ]


def cells_of(array: pa.Array, *, is_normalised: bool) -> list[bytes | None]:
    """The cells of a column as bytes; None where there is nothing."""
    from pyarrow import types

    kind = array.type
    if types.is_dictionary(kind):
        array = array.dictionary_decode()
        kind = array.type
    if types.is_nested(kind):
        return [_plain(value, is_normalised) for value in array.to_pylist()]
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        found: list[bytes | None] = array.to_pylist()
        return found
    try:
        texts = as_text(array)
    except arrow().ArrowException:  # such as durations, which have no text
        return [None if one is None else str(one).encode() for one in array.to_pylist()]
    _, offsets, data = texts.buffers()
    if data is None or offsets is None:
        return [None] * len(texts)
    wide = str(texts.type) == "large_string"
    starts = np.frombuffer(offsets, np.int64 if wide else np.int32)
    starts = starts[texts.offset : texts.offset + len(texts) + 1]
    text = memoryview(data)[int(starts[0]) : int(starts[-1])].tobytes()
    edges = (starts - starts[0]).tolist()
    cells: list[bytes | None] = [text[start:end] for start, end in pairwise(edges)]
    if is_normalised:
        cells = [normalised(c.decode("utf-8", "replace")).encode() if c else None for c in cells]
    if texts.null_count:
        is_valid = texts.is_valid().to_pylist()
        cells = [cell if there else None for cell, there in zip(cells, is_valid, strict=True)]
    return cells


def _plain(value: Any, is_normalised: bool) -> bytes | None:
    """A cell with parts, such as a list of texts, as bytes."""
    if not value:
        return None
    if is_normalised:
        value = _normalised_in(value)
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode(
        "utf-8", "surrogatepass"
    )


def _normalised_in(value: Any) -> Any:
    if isinstance(value, str):
        return normalised(value)
    if isinstance(value, list | tuple):
        return [_normalised_in(one) for one in value]
    if isinstance(value, dict):
        return {name: _normalised_in(one) for name, one in value.items()}
    return value
