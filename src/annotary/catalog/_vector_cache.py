"""Vectors of files, kept in the user's cache, so that a folder that is searched again is not embedded again."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from annotary.tasks.text_cache import cache_folder

_SECONDS = 10.0
"""How long another process that writes is waited for."""


class FileKey(NamedTuple):
    """What tells a file, and that it did not change.

    Attributes:
        path: Absolute, as it can be written in UTF-8.
        bytes: Its size.
        modified_ns: When it was changed, in nanoseconds.
    """

    path: str
    bytes: int
    modified_ns: int


class VectorCache:
    """The vectors of files for one model, in an SQLite file. Several processes and threads may use it at once.

    Vectors are kept as float16 and made unit vectors again when they are read; what was just computed goes the same
    way, so that a search gives the same with and without the cache.

    Args:
        model: What changes with anything that vectors depend on.
        folder: Where the file is; the user's cache when nothing is said.

    Attributes:
        problem: Why the cache could not be used; empty when nothing is wrong.
    """

    def __init__(self, model: str, folder: Path | None = None) -> None:
        name = hashlib.sha256(model.encode()).hexdigest()[:16]
        self.path = (folder or cache_folder()) / "vectors" / f"{name}.sqlite"
        self.problem = ""
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def get(self, key: FileKey) -> npt.NDArray[np.float32] | None:
        """The vector float32[d] of a file; None when it is not known, or was that of other content."""
        question = "SELECT vector FROM vectors WHERE path = ? AND bytes = ? AND modified_ns = ?"
        with self._lock:
            if self.problem or not (self._connection or self.path.is_file()):
                return None
            try:
                row = self._opened().execute(question, key).fetchone()
            except (sqlite3.Error, OSError) as error:
                self._note(error)
                return None
        return None if row is None else kept(np.frombuffer(row[0], dtype=np.float16))

    def put(self, rows: Sequence[tuple[FileKey, npt.NDArray[np.float32]]]) -> None:
        """Keep vectors; what cannot be written is not kept, and `problem` says why."""
        values = [(*key, vector.astype(np.float16).tobytes()) for key, vector in rows]
        with self._lock:
            if self.problem or not rows:
                return
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                connection = self._opened()
                with connection:
                    connection.execute(_TABLE)
                    connection.executemany(
                        "INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?)", values
                    )
            except (sqlite3.Error, OSError) as error:
                self._note(error)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._connection is not None:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.close()
                self._connection = None

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = sqlite3.connect(self.path, timeout=_SECONDS, check_same_thread=False)
        return self._connection

    def _note(self, error: Exception) -> None:
        if isinstance(error, sqlite3.OperationalError) and "no such table" in str(error):
            return  # another process is making it
        self.problem = str(getattr(error, "strerror", None) or error)


_TABLE = (
    "CREATE TABLE IF NOT EXISTS vectors (path TEXT PRIMARY KEY, bytes INTEGER NOT NULL,"
    " modified_ns INTEGER NOT NULL, vector BLOB NOT NULL) WITHOUT ROWID"
)


def kept(vector: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """A vector float32[d] of length 1, as it is when it was kept."""
    rounded = vector.astype(np.float16).astype(np.float32)
    return np.asarray(rounded / np.linalg.norm(rounded), dtype=np.float32)
