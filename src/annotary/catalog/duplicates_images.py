"""Images that are compared, in a temporary database: what each is compared by, which pairs are near, the groups."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from annotary.catalog.duplicates_found import Fingerprint, Found, Kept
from annotary.errors import OutputError

_WAYS = ("file", "exact", "phash", "embedding")
"""How images are the same, the surest first."""

_CACHE_KIB = 64 * 1024
_AT_ONCE = 10_000

_GREY, _COLOURED = 6, 24
"""Up to which chroma an image is grey, and from which on it has colours. Between them, as where JPEG has left a tinge,
nobody can say."""

_SCHEMA = f"""
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA temp_store = FILE;
PRAGMA cache_size = -{_CACHE_KIB};
CREATE TABLE images (
    number INTEGER PRIMARY KEY, side INTEGER, image BLOB, path BLOB, file BLOB, gone INTEGER, modified REAL,
    bytes INTEGER, width INTEGER, height INTEGER, sha256 TEXT, phash INTEGER, vector INTEGER, chroma INTEGER
);
CREATE TABLE names (kept INTEGER, image BLOB);
CREATE TABLE hash_pairs (first INTEGER, second INTEGER, distance INTEGER);
CREATE TABLE vector_pairs (first INTEGER, second INTEGER, distance REAL);
"""

_INDEXES = """
CREATE INDEX images_by_sha256 ON images (sha256) WHERE sha256 IS NOT NULL;
CREATE INDEX images_by_phash ON images (phash) WHERE phash IS NOT NULL;
"""

# One who is better than another comes first, whatever the order of the input. What is unknown is worst. A file that a
# catalogue remembers and that is gone must not be kept in place of one that is there: that may be the only one left.
_ORDER = """side DESC, gone, width * height DESC, bytes DESC, modified IS NULL, modified,
    length(image), image, number"""

_CANDIDATES = f"""
CREATE INDEX hash_pairs_by_first ON hash_pairs (first);
CREATE INDEX vector_pairs_by_first ON vector_pairs (first);
CREATE TEMP TABLE chosen (number INTEGER PRIMARY KEY);
INSERT OR IGNORE INTO chosen SELECT number FROM images WHERE file IN
    (SELECT file FROM images WHERE file IS NOT NULL GROUP BY file HAVING count(*) > 1);
INSERT OR IGNORE INTO chosen SELECT number FROM images WHERE sha256 IN
    (SELECT sha256 FROM images WHERE sha256 IS NOT NULL GROUP BY sha256 HAVING count(*) > 1);
INSERT OR IGNORE INTO chosen SELECT number FROM images WHERE phash IN
    (SELECT phash FROM images WHERE phash IS NOT NULL GROUP BY phash HAVING count(*) > 1);
INSERT OR IGNORE INTO chosen SELECT number FROM images WHERE phash IN (SELECT first FROM hash_pairs);
INSERT OR IGNORE INTO chosen SELECT first FROM vector_pairs;
CREATE TABLE candidates (
    rank INTEGER PRIMARY KEY, number INTEGER, side INTEGER, file BLOB, sha256 TEXT, phash INTEGER, content INTEGER,
    chroma INTEGER
);
INSERT INTO candidates
    SELECT row_number() OVER (ORDER BY {_ORDER}) - 1, number, side, file, sha256, phash,
        CASE WHEN vector IS NULL THEN NULL WHEN sha256 IS NULL THEN number ELSE
            (SELECT min(same.number) FROM images AS same
             WHERE same.sha256 = images.sha256 AND same.vector IS NOT NULL)
        END, chroma
    FROM images WHERE number IN chosen;
CREATE INDEX candidates_by_file ON candidates (file, rank);
CREATE INDEX candidates_by_sha256 ON candidates (sha256, rank);
CREATE INDEX candidates_by_phash ON candidates (phash, rank);
CREATE INDEX candidates_by_content ON candidates (content, rank);
"""

_COLOURED_ALIKE = f"""(chroma IS NULL OR :chroma IS NULL
    OR min(chroma, :chroma) > {_GREY} OR max(chroma, :chroma) < {_COLOURED})"""
"""A photo without its colours has the hash of the photo, and is often the larger file; neither stands for the other."""

_NEAR = {
    "file": "SELECT rank, 0.0 FROM candidates WHERE file = :file AND rank > :after",
    "exact": "SELECT rank, 0.0 FROM candidates WHERE sha256 = :sha256 AND rank > :after",
    "phash": f"""SELECT rank, 0.0 FROM candidates
        WHERE phash = :phash AND rank > :after AND {_COLOURED_ALIKE}
        UNION ALL SELECT rank, distance FROM hash_pairs
            JOIN candidates ON candidates.phash = hash_pairs.second AND rank > :after
        WHERE hash_pairs.first = :phash AND {_COLOURED_ALIKE}""",
    "embedding": """SELECT rank, 0.0 FROM candidates WHERE content = :content AND rank > :after
        UNION ALL SELECT rank, distance FROM vector_pairs
            JOIN candidates ON candidates.content = vector_pairs.second AND rank > :after
        WHERE vector_pairs.first = :content""",
}
"""The worse images that are near to one, by way. Images with the same hash, or the same bytes, have pairs in common."""


class ImageTable:
    """Images, and which are near to which, on disk.

    First come all images, then `end`, then pairs, then the groups.

    Args:
        folder: For the files; whoever made it removes it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with _told():
            self._database = sqlite3.connect(folder / "images.sqlite", isolation_level=None)
            self._database.executescript(_SCHEMA)
            self._vector_file = (folder / "vectors").open("wb")
        self._vectors = 0
        self._dimensions = 0
        self._waiting: list[tuple[Any, ...]] = []

    def close(self) -> None:
        """Close the files."""
        self._vector_file.close()
        self._database.close()

    def add(self, image: Fingerprint, *, is_reference: bool) -> None:
        """Add an image.

        Raises:
            OutputError: The disk is full.
            ValueError: Its vector has another length than those before.
        """
        place = None
        if image.vector is not None:
            if self._vectors and len(image.vector) != self._dimensions:
                raise ValueError(
                    f"vectors must have {self._dimensions} numbers, but {image.image} has {len(image.vector)}"
                )
            self._dimensions, place = len(image.vector), self._vectors
            with _told():
                self._vector_file.write(image.vector.astype(np.float32).tobytes())
            self._vectors += 1
        file, is_gone, modified = _identity(image)
        self._waiting.append(
            (
                *(int(is_reference), _stored(image.image), _stored(image.path)),
                *(file, int(is_gone), modified),
                *(image.bytes, image.width, image.height, image.sha256),
                *(_signed(image.phash), place, image.chroma),
            )
        )
        if len(self._waiting) >= _AT_ONCE:
            self._flush()

    def end(self) -> None:
        """After the last image: names of the same file, on the same side, become one image."""
        self._flush()
        with _told():
            self._vector_file.close()
            self._database.executescript(_INDEXES)
            twice = """SELECT side, file FROM images WHERE file IS NOT NULL
                GROUP BY side, file HAVING count(*) > 1"""
            same = f"""SELECT number, image, path FROM images
                WHERE side = ? AND file = ? ORDER BY {_ORDER}"""
            self._database.execute("CREATE INDEX images_by_file ON images (file, side)")
            for key in self._database.execute(twice).fetchall():
                rows = self._database.execute(same, key).fetchall()
                # A link is told by the name of the file, so that nobody deletes the file and keeps the link.
                (kept, image, _), *others = sorted(rows, key=lambda row: _is_link(row[2]))
                names = [
                    (kept, name) for name in dict.fromkeys(o[1] for o in others) if name != image
                ]
                self._database.executemany("INSERT INTO names VALUES (?, ?)", names)
                self._database.executemany(
                    "DELETE FROM images WHERE number = ?", [(other[0],) for other in others]
                )

    def hashes(self) -> npt.NDArray[np.uint64]:
        """All different hashes, uint64[n], in a file."""
        query = "SELECT DISTINCT phash FROM images WHERE phash IS NOT NULL"
        return self._column(query, "hashes").view(np.uint64)

    def vectors(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """A number for each different image with a vector, int64[n], and the vectors float32[n, d], both in files.

        Of images with the same bytes one stands for all.
        """
        query = """SELECT min(number) AS number FROM images
                WHERE vector IS NOT NULL AND sha256 IS NOT NULL GROUP BY sha256
            UNION ALL SELECT number FROM images WHERE vector IS NOT NULL AND sha256 IS NULL"""
        numbers = self._column(f"SELECT number FROM ({query}) ORDER BY 1", "numbers")
        if not len(numbers):
            return numbers, np.empty((0, 1), np.float32)
        places = self._column(
            f"SELECT vector FROM images WHERE number IN ({query}) ORDER BY number", "places"
        )
        every = np.memmap(
            self._folder / "vectors", np.float32, "r", shape=(self._vectors, self._dimensions)
        )
        if len(places) == self._vectors:
            return numbers, every
        # Without the copies: then rows are numbered as `numbers` is, and the search knows nothing of copies.
        with _told(), (self._folder / "different").open("wb") as file:
            for start in range(0, len(places), _AT_ONCE):
                file.write(np.ascontiguousarray(every[places[start : start + _AT_ONCE]]).tobytes())
        shape = (len(places), self._dimensions)
        return numbers, np.memmap(self._folder / "different", np.float32, "r", shape=shape)

    def add_hash_pairs(
        self,
        first: npt.NDArray[np.uint64],
        second: npt.NDArray[np.uint64],
        distance: npt.NDArray[np.uint8],
    ) -> None:
        """Add pairs of near hashes."""
        columns = first.view(np.int64).tolist(), second.view(np.int64).tolist(), distance.tolist()
        self._add_pairs("hash_pairs", *columns)

    def add_vector_pairs(
        self,
        first: npt.NDArray[np.int64],
        second: npt.NDArray[np.int64],
        distance: npt.NDArray[np.float32],
    ) -> None:
        """Add pairs of images with near vectors, by the numbers that `vectors` told."""
        self._add_pairs("vector_pairs", first.tolist(), second.tolist(), distance.tolist())

    def groups(
        self, kinds: Sequence[str], *, is_against: bool
    ) -> Iterator[tuple[Kept, list[Found]]]:
        """The kept images, the best first, each with what is near to it, the nearest first.

        Args:
            kinds: Which of exact, phash and embedding count.
            is_against: Whether the images of the reference, and they alone, are kept.
        """
        with _told():
            self._database.executescript(_CANDIDATES)
        (count,) = self._database.execute("SELECT count(*) FROM candidates").fetchone()
        (references,) = self._database.execute(
            "SELECT count(*) FROM candidates WHERE side = 1"
        ).fetchone()
        ways = [way for way in _WAYS if way in kinds or (way == "file" and is_against)]
        nearest = _Nearest(count)
        names = ("file", "sha256", "phash", "content", "chroma")
        query = f"SELECT rank, {', '.join(names)} FROM candidates ORDER BY rank"
        cursor = self._database.execute(query)
        for rank, *values in islice(cursor, references if is_against else count):
            if nearest.has(rank):
                continue
            known = dict(zip(names, values, strict=True))
            known["after"] = references - 1 if is_against else rank
            if is_against:  # a photo that was learned from is known without its colours, too
                known["chroma"] = None
            for way in ways:
                found = self._database.execute(_NEAR[way], known).fetchall()
                if found:
                    nearest.offer(rank, _WAYS.index(way), found)
        for kept, others in nearest.groups():
            yield self._told_of(kept), [self._found(*other) for other in others]

    def _flush(self) -> None:
        marks = "NULL, " + ", ".join("?" * 13)
        with _told():
            self._database.execute("BEGIN")
            self._database.executemany(f"INSERT INTO images VALUES ({marks})", self._waiting)
            self._database.execute("COMMIT")
        self._waiting.clear()

    def _add_pairs(
        self, table: str, first: list[int], second: list[int], distance: list[Any]
    ) -> None:
        """Both ways round, so that either is found from the other."""
        with _told():
            self._database.execute("BEGIN")
            for one, other in ((first, second), (second, first)):
                rows = zip(one, other, distance, strict=True)
                self._database.executemany(f"INSERT INTO {table} VALUES (?, ?, ?)", rows)
            self._database.execute("COMMIT")

    def _column(self, query: str, name: str) -> npt.NDArray[np.int64]:
        """Whole numbers that a query gives, in a file of this name."""
        with _told(), (self._folder / name).open("wb") as file:
            cursor = self._database.execute(query)
            while rows := cursor.fetchmany(_AT_ONCE):
                file.write(np.array([row[0] for row in rows], np.int64).tobytes())
            size = file.tell()
        return np.memmap(self._folder / name, np.int64, "r") if size else np.empty(0, np.int64)

    def _told_of(self, rank: int) -> Kept:
        return Kept(*self._columns_of(rank))

    def _found(self, rank: int, way: int, distance: float) -> Found:
        return Found(*(*self._columns_of(rank), _WAYS[way], distance))

    def _columns_of(self, rank: int) -> tuple[Any, ...]:
        query = """SELECT number, image, path, images.bytes, width, height, modified, gone
            FROM candidates JOIN images USING (number) WHERE rank = ?"""
        number, image, path, *known, gone = self._database.execute(query, (rank,)).fetchone()
        names = self._database.execute(
            "SELECT image FROM names WHERE kept = ? ORDER BY length(image), image", (number,)
        )
        also = tuple(_recovered(name) for (name,) in names)
        return (
            rank,
            _recovered(image),
            None if path is None else _recovered(path),
            *known,
            also,
            bool(gone),
        )


class _Nearest:
    """The kept image that each candidate is nearest to, by rank."""

    def __init__(self, count: int) -> None:
        self._kept = np.full(count, -1, np.int64)
        self._way = np.full(count, len(_WAYS), np.uint8)
        self._distance = np.full(count, np.inf, np.float32)

    def has(self, rank: int) -> bool:
        """Whether a kept image is near."""
        return bool(self._kept[rank] >= 0)

    def offer(self, kept: int, way: int, found: Sequence[tuple[int, float]]) -> None:
        """Say that images are near to a kept one; of several the surest way counts, then the least distance."""
        table = np.array(found)
        ranks, distance = table[:, 0].astype(np.int64), table[:, 1].astype(np.float32)
        is_better = (way < self._way[ranks]) | (
            (way == self._way[ranks]) & (distance < self._distance[ranks])
        )
        ranks, distance = ranks[is_better], distance[is_better]
        self._kept[ranks], self._way[ranks], self._distance[ranks] = kept, way, distance

    def groups(self) -> Iterator[tuple[int, list[tuple[int, int, float]]]]:
        """Kept images in the order of their ranks, with rank, way and distance of what is near to them."""
        members = np.flatnonzero(self._kept >= 0)
        order = np.lexsort(
            (members, self._distance[members], self._way[members], self._kept[members])
        )
        members = members[order]
        kept, starts = np.unique(self._kept[members], return_index=True)
        ends = np.append(starts, len(members))[1:]
        for rank, start, end in zip(kept.tolist(), starts.tolist(), ends.tolist(), strict=True):
            near = members[start:end]
            columns = near.tolist(), self._way[near].tolist(), self._distance[near].tolist()
            yield rank, list(zip(*columns, strict=True))


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Turn what a full disk makes SQLite and the system raise into one line."""
    try:
        yield
    except (sqlite3.OperationalError, OSError) as error:
        if getattr(error, "sqlite_errorname", "SQLITE_FULL").startswith("SQLITE_ERROR"):
            raise  # not the disk's fault
        raise OutputError(
            f"cannot write temporary files ({error}); TMPDIR chooses where they are"
        ) from error


def _identity(image: Fingerprint) -> tuple[bytes | None, bool, float | None]:
    """What tells a file from others, whatever it is called, whether it is gone, and when it was written."""
    if image.path is None:
        return _stored(f"name:{image.image}"), False, None
    try:
        status = os.stat(image.path)  # noqa: PTH116 - a Path costs more than the look itself
    except (OSError, ValueError) as error:
        is_gone = isinstance(error, FileNotFoundError | NotADirectoryError)
        return _stored(f"path:{os.path.abspath(image.path)}"), is_gone, None  # noqa: PTH100
    if status.st_ino:
        return f"{status.st_dev}:{status.st_ino}".encode(), False, status.st_mtime
    return _stored(f"path:{os.path.realpath(image.path)}"), False, status.st_mtime


def _is_link(path: bytes | None) -> bool:
    return path is not None and os.path.islink(_recovered(path))  # noqa: PTH114


def _stored(text: str | None) -> bytes | None:
    """Any name, also one that is not valid Unicode."""
    return None if text is None else text.encode("utf-8", "surrogatepass")


def _recovered(stored: bytes) -> str:
    return stored.decode("utf-8", "surrogatepass")


def _signed(value: int | None) -> int | None:
    """64 bits as SQLite holds them."""
    return None if value is None else value - (1 << 64) if value >= 1 << 63 else value
