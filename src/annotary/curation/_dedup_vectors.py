"""The vectors of images, from a column of the tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from annotary.curation._dedup_images import Vectors
from annotary.curation._dedup_plan import PlannedPart
from annotary.curation.steps import Tally
from annotary.curation.tables import Part, PartWriter, Rows
from annotary.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

_AT_ONCE = 4096


@dataclass(slots=True)
class VectorStep:
    """The step that brings vectors to length 1. A row without one, or with a null vector, has none.

    Attributes:
        column: The column with vectors.
        name: Of the step.
    """

    column: str
    name: str = "dedup vectors"

    def settings(self) -> dict[str, Any]:
        """What vectors depend on."""
        return {"vector_column": self.column}

    def run(self, part: Part, target: Path) -> Tally:
        """Write the vectors of a part, each with the number of its row.

        Raises:
            UsageError: The column holds no vectors, or of different lengths.
        """
        tally = Tally()
        rows = Rows(part, [self.column])
        with VectorWriter(part.file, self.column, target) as writer:
            for batch in rows.batches():
                places, vectors = _vectors(part, self.column, batch.column(0))
                writer.write(places + tally.rows_out, vectors)
                tally.rows_out += batch.num_rows
        tally.rows_in = tally.rows_out
        tally.skip(rows.skipped)
        return tally


class VectorWriter:
    """A table of vectors, each with the number of its row; a context, as `PartWriter`.

    Args:
        file: What they are of, for messages.
        column: What they are in, for messages.
        target: The table.
    """

    def __init__(self, file: str, column: str, target: Path) -> None:
        self._file = file
        self._column = column
        self._writer = PartWriter(target, _schema())
        self._size: int | None = None
        self._held: list[tuple[int, bytes]] = []

    def __enter__(self) -> Self:
        self._writer.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self._flush()
        self._writer.__exit__(kind, error, traceback)

    def write(self, rows: npt.NDArray[np.int64], vectors: npt.NDArray[np.float32]) -> None:
        """Add vectors.

        Args:
            rows: int64[n], ascending.
            vectors: float32[n, d], of length 1.

        Raises:
            UsageError: They have other lengths than those before.
        """
        if not len(rows):
            return
        if self._size not in (None, vectors.shape[1]):
            raise UsageError(_told_lengths(self._file, self._column, self._size, vectors.shape[1]))
        self._size = vectors.shape[1]
        self._held += zip(rows.tolist(), _bytes(vectors), strict=True)
        if len(self._held) >= _AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        columns = [[row for row, _ in self._held], [vector for _, vector in self._held]]
        arrays = [pa.array(c, field.type) for c, field in zip(columns, _schema(), strict=True)]
        self._writer.write(pa.RecordBatch.from_arrays(arrays, schema=_schema()))
        self._held.clear()


def read_vectors(folder: Path, parts: Sequence[PlannedPart], work: Path) -> Vectors:
    """The vectors of all parts, in a file.

    Args:
        folder: Of `VectorStep`.
        parts: All parts.
        work: For the file, 4 bytes a number.

    Raises:
        UsageError: They have different lengths.
    """
    rows = [np.empty(0, np.int64)]
    size = 0
    with (work / "vectors.float32").open("wb") as file:
        for part in parts:
            path = folder / f"{part.name}.parquet"
            if part.broken is not None:
                continue
            for batch in Rows(Part(str(path), "parquet", part.name)).batches():
                if not batch.num_rows:
                    continue
                cells = batch.column(1).to_pylist()
                if size not in (0, len(cells[0])):
                    raise UsageError(
                        _told_lengths(part.file, "vectors", size // 4, len(cells[0]) // 4)
                    )
                size = len(cells[0])
                file.write(b"".join(cells))
                rows.append(batch.column(0).to_numpy() + part.first)
    numbers = np.concatenate(rows)
    if not len(numbers):
        return Vectors(numbers, np.empty((0, 1), np.float32))
    shape = (len(numbers), size // 4)
    return Vectors(numbers, np.memmap(work / "vectors.float32", np.float32, "r", shape=shape))


def joined_vectors(pieces: Sequence[Vectors]) -> Vectors:
    """Vectors of several places as one, in memory.

    Raises:
        UsageError: They have different lengths.
    """
    some = [vectors for vectors in pieces if len(vectors.rows)]
    sizes = {vectors.vectors.shape[1] for vectors in some}
    if len(sizes) > 1:
        raise UsageError(
            f"evaluation sets have vectors of {' and of '.join(map(str, sorted(sizes)))} numbers;"
            " they must be of one model"
        )
    if not some:
        return Vectors(np.empty(0, np.int64), np.empty((0, 1), np.float32))
    return Vectors(
        np.concatenate([vectors.rows for vectors in some]),
        np.concatenate([np.asarray(vectors.vectors) for vectors in some]),
    )


def _vectors(
    part: Part, name: str, column: pa.Array
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The vectors of rows that have one, float32[n, d] of length 1, and the places of these rows."""
    from pyarrow import types

    kind = column.type
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if not is_list or not (types.is_floating(kind.value_type) or types.is_integer(kind.value_type)):
        raise UsageError(
            f"the column {name!r} of {part.file} holds {kind}, no vectors (--vector-column)"
        )
    places = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
    values = (
        column.drop_null()
        .flatten()
        .fill_null(float("nan") if types.is_floating(kind.value_type) else 0)
    )
    numbers = np.asarray(values.to_numpy(zero_copy_only=False), np.float32)
    if not len(places):
        return places, np.empty((0, 1), np.float32)
    size = len(numbers) // len(places)
    lengths = (
        column.drop_null().value_lengths().to_numpy()
        if not types.is_fixed_size_list(kind)
        else None
    )
    if lengths is not None and (lengths != size).any():
        raise UsageError(_told_lengths(part.file, name, int(lengths.min()), int(lengths.max())))
    found = numbers.reshape(len(places), size)
    norms = np.linalg.norm(found, axis=1)
    is_good = np.isfinite(norms) & (norms > 0)
    return places[is_good], found[is_good] / norms[is_good, None]


def _bytes(vectors: npt.NDArray[np.float32]) -> list[bytes]:
    return [vector.tobytes() for vector in vectors]


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema([("row", pa.int64()), ("vector", pa.binary())])


def _told_lengths(file: str, name: str, one: int | None, other: int) -> str:
    return (
        f"{file} has vectors of {one} and of {other} numbers in {name!r}; they must be of one model"
    )
