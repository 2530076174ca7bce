"""The catalogue: a Lance table with a row an image, in a folder of its own.

photos.catalog/
  images.lance/          the rows; Lance writes each change as a new version, so that a kill leaves the last one
  catalog.json           which models said what in it
  catalog.lock           held by the process that writes
  failures.jsonl         the images that could not be annotated
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from annotary.catalog._columns import (
    VERSION,
    annotation_of,
    arrow,
    embedding_field,
    later_field,
    recovered,
    schema_of,
    table_of,
)
from annotary.catalog._note import NOTE_FILE, Note, read_note
from annotary.errors import MissingExtra, OutputError, UsageError
from annotary.records import Annotation

if TYPE_CHECKING:
    import lancedb
    import pyarrow

    from annotary.catalog import _nearest

TABLE = "images"
BATCH = 4096
"""Rows that `rows` gives at a time, when nothing else is said."""

LIVE = "deleted IS NULL"
"""The condition on rows whose images are there."""

INDEX_FROM = 100_000
"""Vectors from which on an index is made of them: with fewer, comparing all is as quick."""

_IDS_AT_ONCE = 5000

_TIMES = ("deleted", "added", "changed")

_KEPT = timedelta(hours=1)
"""How long old versions stay: who began to read one has so long to come to its end."""


class CatalogRow(NamedTuple):
    """An image of a catalogue.

    Attributes:
        id: What tells it from others.
        path: Where the file is; empty for what is no file.
        sha256: Of its bytes, in hexadecimal digits.
        annotation: What was said of it.
    """

    id: int
    path: str
    sha256: str
    annotation: Annotation


class Catalog:
    """A catalogue that is read; `annotary.catalog.fill` writes one.

    Args:
        path: The folder.
        table: The open Lance table.
        note: Which models said what.
    """

    def __init__(self, path: Path, table: lancedb.table.LanceTable, note: Note) -> None:
        self.path = path
        self.note = note
        self._table = table
        self._deleted: tuple[int, bool] | None = None  # of which version of the table

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open a catalogue as it is now; what others write later is not seen.

        Raises:
            UsageError: There is none; the message says how one is made.
            OutputError: It is damaged, or of another version.
            MissingExtra: lancedb is not installed.
        """
        place = Path(path)
        note = read_note(place)
        if note is None:
            is_there = place.exists()
            told = f"{place} is no catalogue" if is_there else f"no catalogue in {place}"
            raise UsageError(f"{told}; make one with: annotary embed PATH... --catalog NAME")
        connection = _connect(place)
        with told_errors(place):
            try:
                table = connection.open_table(TABLE)
            except ValueError as error:
                raise OutputError(
                    f"{place} has no table; fill it again with --on-existing overwrite"
                ) from error
            found = cls(place, table, note)
            found._check_version()
        return found

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], note: Note, dimensions: int | None = None
    ) -> Self:
        """Make an empty catalogue.

        Args:
            path: The folder; made when missing. It must hold no catalogue.
            note: Which models will say what.
            dimensions: Of the vectors; None when there are none yet.

        Raises:
            UsageError: There is a catalogue already.
            OutputError: It cannot be written.
            MissingExtra: lancedb is not installed.
        """
        place = Path(path)
        if read_note(place) is not None:
            raise UsageError(f"{place} is a catalogue already")
        connection = _connect(place)
        with told_errors(place):
            place.mkdir(parents=True, exist_ok=True)
            # A table without a note is nobody's: a process was killed here, or the catalogue is thrown away.
            connection.drop_table(TABLE, ignore_missing=True)
            table = connection.create_table(TABLE, schema=schema_of(dimensions))
        # Last, so that a catalogue is one whole, or none.
        note.write(place)
        return cls(place, table, note)

    def __len__(self) -> int:
        """How many images it has, without those that are gone."""
        return self.count()

    @property
    def dimensions(self) -> int | None:
        """Of the vectors; None when there are none."""
        if "embedding" not in self._table.schema.names:
            return None
        return int(self._table.schema.field("embedding").type.list_size)

    @property
    def model(self) -> str | None:
        """The id of the card whose vectors it holds; None when there are none."""
        embedding = self.note.parts.get("embedding")
        return None if embedding is None else str(embedding["model"])

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(self._table.schema.names)

    def count(self, where: str | None = None, *, with_deleted: bool = False) -> int:
        """How many rows there are.

        Args:
            where: Only those for which this holds, such as "width > 1000".
            with_deleted: Count images that are gone, too.

        Raises:
            UsageError: `where` makes no sense; the message says why.
        """
        condition = self._condition(where, with_deleted=with_deleted)
        with self._told(where):
            return int(self._table.count_rows(condition))

    def rows(
        self,
        columns: Sequence[str],
        *,
        where: str | None = None,
        batch_size: int = BATCH,
        with_deleted: bool = False,
    ) -> Iterator[pyarrow.RecordBatch]:
        """All rows, some at a time and never all in memory, in no order that means anything.

        Args:
            columns: Which columns. `id` is what tells rows apart: it stays as it is for as long as the catalogue has
                the image.
            where: Only rows for which this holds, in SQL: "width > 1000 AND array_has(tag_names, 'dog')".
            batch_size: At most so many rows at a time.
            with_deleted: Give images that are gone, too.

        Raises:
            UsageError: A column is unknown, or `where` makes no sense.
        """
        condition = self._condition(where, with_deleted=with_deleted)
        with self._told(where):
            query = self._table.search().select(list(columns))
            if condition is not None:
                query = query.where(condition)
            yield from query.to_batches(batch_size)

    def fetch(self, ids: Sequence[int], columns: Sequence[str]) -> pyarrow.Table:
        """Some rows, in the order of their ids; rows that do not exist are left out.

        Args:
            ids: Which rows, each once.
            columns: Which columns; `id` comes first in any case.

        Raises:
            UsageError: A column is unknown.
        """
        pa = arrow()
        names = ["id", *(name for name in columns if name != "id")]
        tables = []
        with self._told(None):
            for start in range(0, max(len(ids), 1), _IDS_AT_ONCE):
                listed = ", ".join(str(int(one)) for one in ids[start : start + _IDS_AT_ONCE])
                query = self._table.search().where(f"id IN ({listed or 'NULL'})").select(names)
                tables.append(query.to_arrow())
        table = pa.concat_tables(tables)
        found = {int(one): place for place, one in enumerate(table["id"].to_pylist())}
        places = [found[int(one)] for one in ids if int(one) in found]
        return table.take(pa.array(places, pa.int64()))

    def records(self, ids: Sequence[int]) -> list[Annotation]:
        """The records of rows, in the order of their ids; rows that do not exist are left out."""
        return [row.annotation for row in self.rows_of(ids)]

    def rows_of(self, ids: Sequence[int]) -> list[CatalogRow]:
        """Some rows as records, in the order of their ids; rows that do not exist are left out."""
        rows = self.fetch(ids, [name for name in self.columns if name not in _TIMES]).to_pylist()
        return [
            CatalogRow(row["id"], recovered(row["path"]), row["sha256"], annotation_of(row))
            for row in rows
        ]

    def vectors(
        self, *, where: str | None = None, batch_size: int = BATCH
    ) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
        """The ids int64[n] and vectors float32[n, d] of all images that have one, some at a time.

        Raises:
            UsageError: `where` makes no sense, or the catalogue has no vectors.
        """
        dimensions = self._embedded()
        both = f"({where}) AND embedding IS NOT NULL" if where else "embedding IS NOT NULL"
        for batch in self.rows(["id", "embedding"], where=both, batch_size=batch_size):
            flat = batch.column("embedding").flatten().to_numpy()
            yield batch.column("id").to_numpy(), flat.reshape(-1, dimensions)

    def search(
        self,
        vector: npt.NDArray[np.float32],
        top: int,
        *,
        where: str | None = None,
        threshold: float | None = None,
        is_exact: bool = False,
        nprobes: int | None = None,
        refine: int | None = None,
    ) -> list[tuple[int, float]]:
        """The images that are most like a vector.

        Args:
            vector: float32[d], of length 1.
            top: How many, at most.
            where: Only images for which this holds.
            threshold: Only images whose cosine is at least this, -1..1.
            is_exact: Compare all vectors, even if there is an index.
            nprobes: How many parts of the index are looked into; a good number when nothing is said.
            refine: How many times `top` candidates of the index are compared exactly.

        Returns:
            Ids and cosines -1..1, the best first; of equal ones the smaller id first.

        Raises:
            UsageError: `where` makes no sense, the catalogue has no vectors, or the vector is of another length.
        """
        from annotary.catalog import _nearest

        dimensions = self._embedded()
        if vector.shape != (dimensions,):
            raise UsageError(
                f"{self.path} holds vectors of {dimensions} numbers, but got {list(vector.shape)}"
            )
        probing = None if is_exact else self._probing(where, nprobes, refine)
        if probing is None:
            found = _nearest.among(self.vectors(where=where), vector, top)
        else:
            # To look at the condition of a million rows takes longer than to search them.
            condition = self._condition(where, with_deleted=not self._has_deleted())
            with self._told(where):
                found = _nearest.by_index(self._table, vector, top, condition, probing)
        return [(one, score) for one, score in found if threshold is None or score >= threshold]

    def _has_deleted(self) -> bool:
        """Whether images of any rows are gone."""
        version = self._table.version
        if self._deleted is None or self._deleted[0] != version:
            with self._told(None):
                self._deleted = version, self._table.count_rows("deleted IS NOT NULL") > 0
        return self._deleted[1]

    def _probing(
        self, where: str | None, nprobes: int | None, refine: int | None
    ) -> _nearest.Probing | None:
        """How the index is searched; None where there is none, or comparing all is as quick."""
        from annotary.catalog import _nearest

        if not self.has_index:
            return None
        share = 1.0
        if where is not None:
            count = self.count(where)
            if count <= _nearest.EXACT_UP_TO:
                return None
            share = count / max(1, len(self))
        return _nearest.Probing.of(nprobes, refine, share)

    @property
    def has_index(self) -> bool:
        """Whether there is an index of the vectors."""
        with self._told(None):
            return any(index.columns == ["embedding"] for index in self._table.list_indices())

    def build_index(self) -> None:
        """Make an index of the vectors, or make the one there is anew.

        Raises:
            UsageError: There are too few vectors for one.
        """
        from annotary.catalog import _nearest

        dimensions = self._embedded()
        count = self.count("embedding IS NOT NULL")
        if count < _nearest.LEAST_FOR_INDEX:
            least = _nearest.LEAST_FOR_INDEX
            raise UsageError(f"an index needs {least:,} vectors or more, but there are {count:,}")
        with self._told(None):
            _nearest.build(self._table, count, dimensions)

    def index_ids(self) -> None:
        """Make an index of the ids, so that single rows of a large catalogue are found at once."""
        from lancedb.index import BTree

        with self._told(None):
            if not any(index.columns == ["id"] for index in self._table.list_indices()):
                self._table.create_index("id", config=BTree())

    def add_vectors_column(self, dimensions: int) -> None:
        """Give a catalogue without vectors the column for them."""
        with self._told(None):
            self._table.add_columns(embedding_field(dimensions))

    def add_later_column(self, name: str) -> None:
        """Give a catalogue of an older version a column that it lacks, empty in all rows."""
        with self._told(None):
            self._table.add_columns(later_field(name))

    def drop_vectors_column(self) -> None:
        """Remove all vectors, and the index of them."""
        with self._told(None):
            self._table.drop_columns(["embedding"])

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows, by column; they are there whole when this comes back, or none of them is.

        Args:
            rows: Each with an `id` that no row has, `image` and `path`; columns that are left out are null.
        """
        with self._told(None):
            self._table.add(table_of(rows, self._table.schema), on_bad_vectors="null")

    def replace(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Put rows in the place of those with the same ids; a column that a row lacks becomes null."""
        with self._told(None):
            merge = self._table.merge_insert("id").when_matched_update_all()
            # An image without a vector is nothing bad.
            merge.execute(table_of(rows, self._table.schema), on_bad_vectors="null")

    def mark_deleted(self, ids: Sequence[int]) -> None:
        """Note that the images of rows are gone; the rows stay, for when they come back."""
        now = datetime.now(UTC)
        with self._told(None):
            for start in range(0, len(ids), _IDS_AT_ONCE):
                listed = ", ".join(str(one) for one in ids[start : start + _IDS_AT_ONCE])
                self._table.update(where=f"id IN ({listed})", values={"deleted": now})

    def compact(self) -> None:
        """Put small pieces of the table together, take new rows into the index, and remove versions of an hour ago."""
        with self._told(None):
            self._table.optimize(cleanup_older_than=_KEPT)

    @property
    def table(self) -> lancedb.table.LanceTable:
        """The Lance table itself, for what this class does not do."""
        return self._table

    def _embedded(self) -> int:
        dimensions = self.dimensions
        if dimensions is None:
            raise UsageError(
                f"{self.path} holds no vectors; add them with: annotary embed PATH... --catalog {self.path}"
            )
        return dimensions

    def _condition(self, where: str | None, *, with_deleted: bool) -> str | None:
        """`where`, and that the image is there."""
        if where is not None:
            self._check(where)
        told = f"({where})" if where else None
        if with_deleted:
            return told
        return f"{told} AND {LIVE}" if told else LIVE

    def _check(self, where: str) -> None:
        """Refuse a condition that makes no sense by itself, before it stands among others."""
        if not where.strip():
            raise UsageError("the condition is empty; write one such as 'width > 1000'")
        if not _is_whole(where):
            raise UsageError(
                f"the condition {where!r} cannot be used: a parenthesis or a quote is not closed, or opened"
            )
        with self._told(where):
            self._table.search().where(where).select(["id"]).explain_plan()

    @contextlib.contextmanager
    def _told(self, where: str | None) -> Iterator[None]:
        with told_errors(self.path, where):
            yield

    def _check_version(self) -> None:
        metadata: Mapping[bytes, bytes] = self._table.schema.metadata or {}
        if metadata.get(b"annotary.catalog") != str(VERSION).encode():
            raise OutputError(
                f"{self.path} was made by another version of annotary; choose another --catalog"
            )


def _is_whole(where: str) -> bool:
    """Whether a condition can stand in parentheses: what it opens it closes, and no comment hides what follows."""
    bare = re.sub(r"'[^']*'|\"[^\"]*\"|`[^`]*`", "", where)
    depth = 0
    for sign in bare:
        depth += (sign == "(") - (sign == ")")
        if depth < 0:
            return False
    return depth == 0 and not re.search(r"['\"`;]|--|/\*", bare)


def is_catalog(path: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a catalogue."""
    return (Path(path) / NOTE_FILE).is_file()


@contextlib.contextmanager
def told_errors(path: Path, where: str | None = None) -> Iterator[None]:
    """Turn what lancedb and the system raise into one line.

    Args:
        path: Of the catalogue.
        where: The user's condition, which is at fault when it cannot be understood.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:
        message = _first_sentence(str(error))
        if where is not None:
            raise UsageError(f"the condition {where!r} cannot be used: {message}") from error
        if "No field named" in message:
            raise UsageError(f"{path}: {message}") from error
        raise OutputError(f"cannot read or write {path}: {message}") from error
    except OSError as error:
        why = error.strerror or _first_sentence(str(error))
        raise OutputError(f"cannot read or write {path}: {why}") from error


def _first_sentence(message: str) -> str:
    """What a message of lancedb says, without where in its own source code it was raised."""
    text = " ".join(message.split())
    text = re.sub(r",? ?/\S+\.rs:\d+:\d+.*", "", text)
    text = re.sub(
        r"^(LanceError\(\w+\): |lance error: |Invalid input, |Schema error: |Invalid user input: )+",
        "",
        text,
    )
    return text[:300] or "lancedb does not say why"


def check_installed() -> None:
    """Refuse to begin where catalogues cannot be had.

    Raises:
        MissingExtra: lancedb is not installed.
    """
    _lancedb()


def _connect(path: Path) -> Any:
    """A connection to the folder as a database of Lance.

    Raises:
        MissingExtra: lancedb is not installed.
    """
    return _lancedb().connect(os.fspath(path))


def _lancedb() -> Any:
    # Scanning reads ahead up to 2 GiB otherwise; it is as quick with less.
    os.environ.setdefault("LANCE_DEFAULT_IO_BUFFER_SIZE", str(128 * 1024 * 1024))
    os.environ.setdefault("LANCE_DEFAULT_FRAGMENT_READAHEAD", "2")
    # Lance warns of what is usual here, such as tables that are new or small.
    os.environ.setdefault("LANCEDB_LOG", "error")
    try:
        import lancedb
    except ImportError as error:
        raise MissingExtra("A catalogue", "catalog") from error
    return lancedb
