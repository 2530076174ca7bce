"""Vectors of texts, kept on disk by model and text, so that labels are embedded once and not once a run."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from annotary import __version__
from annotary.models import Model
from annotary.tasks.encoding import Texts, Vectors

_KEYS_AT_ONCE = 500
"""Keys of one question; SQLite takes 999 variables at least."""

_SECONDS = 10.0
"""How long another process that writes is waited for."""

_TABLE = "texts_1"
"""With the number of what its columns mean."""

_COLUMNS = "key, vector, truncated, checksum"

_PAGE_SIZE = 32_768
"""Bytes; in SQLite's usual 4096 a vector of 512 numbers would take 4.7 kB."""

_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

_MOST_BYTES = 1 << 30
"""A file that has grown beyond this begins anew. A text takes 4 bytes a number and a quarter more: with 512 numbers
2.5 kB, so that this is 400,000 texts."""


def cache_folder() -> Path:
    """Where annotary keeps what can be computed again: `ANNOTARY_CACHE`, or a folder of its own in the user's cache."""
    if told := os.environ.get("ANNOTARY_CACHE"):
        return Path(told)
    try:
        if sys.platform == "win32":
            user = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local")
        elif sys.platform == "darwin":
            user = Path.home() / "Library/Caches"
        else:
            user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # the user has no home; nothing can be below this, so that nothing is kept
        user = Path(os.devnull)
    return user / "annotary"


class TextCache:
    """The vectors of texts for one model, in an SQLite file. Several processes and threads may use it at once.

    A cache that cannot be read or written is as if it were empty: what it would spare is computed.

    Args:
        model: What changes with anything that vectors depend on: the fingerprint of the model's files, and the
            precision.
        folder: Where the file is; `cache_folder()` when nothing is said.
    """

    def __init__(self, model: str, folder: Path | None = None) -> None:
        name = hashlib.sha256(model.encode()).hexdigest()[:16]
        self.path = (folder or cache_folder()) / "texts" / f"{name}.sqlite"
        self._lock = threading.Lock()
        self._is_usable = True  # once it failed it is not waited for again

    @classmethod
    def of(cls, fingerprint: str, model: Model) -> Self:
        """The cache of a loaded model.

        Args:
            fingerprint: Of its files (`annotary.models.Found.fingerprint`).
            model: Tells what it computes in, which decides the last bits.
        """
        # How texts are cut into pieces is a matter of this package, too.
        return cls(f"{__version__} {fingerprint} {model.choice.library} {model.choice.precision}")

    def get(self, keys: Sequence[bytes]) -> dict[bytes, tuple[Vectors, bool]]:
        """Of the keys that are known, the vector float32[d] and whether its text was truncated."""
        known: dict[bytes, tuple[Vectors, bool]] = {}
        with self._lock, self._forgiving():
            if not self._is_usable or not self.path.is_file():
                return known
            with self._open() as connection:
                for start in range(0, len(keys), _KEYS_AT_ONCE):
                    part = keys[start : start + _KEYS_AT_ONCE]
                    marks = ",".join("?" * len(part))
                    question = f"SELECT {_COLUMNS} FROM {_TABLE} WHERE key IN ({marks})"
                    for key, vector, truncated, checksum in connection.execute(question, part):
                        if _is_row(key, vector, truncated, checksum):
                            known[key] = (np.frombuffer(vector, dtype="<f4"), bool(truncated))
        return known

    def put(self, keys: Sequence[bytes], texts: Texts) -> None:
        """Keep vectors; what cannot be written is not kept."""
        rows = []
        for key, vector, truncated in zip(keys, texts.vectors, texts.is_truncated, strict=True):
            data = vector.astype("<f4").tobytes()
            rows.append((key, data, int(truncated), _checksum(key, data, int(truncated))))
        if not self._is_usable:
            return
        with self._lock, self._forgiving():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._open() as connection, connection:
                connection.execute(f"PRAGMA page_size = {_PAGE_SIZE}")
                # The disk is not waited for: what a power cut damages is noticed and made anew.
                connection.execute("PRAGMA synchronous = OFF")
                connection.execute(
                    f"CREATE TABLE IF NOT EXISTS {_TABLE} (key BLOB PRIMARY KEY, vector BLOB NOT NULL,"
                    " truncated INTEGER NOT NULL, checksum BLOB NOT NULL) WITHOUT ROWID"
                )
                pages, free, size = (
                    connection.execute(f"PRAGMA {name}").fetchone()[0]
                    for name in ("page_count", "freelist_count", "page_size")
                )
                if (pages - free) * size > _MOST_BYTES:
                    connection.execute(f"DELETE FROM {_TABLE}")
                connection.executemany(f"INSERT OR REPLACE INTO {_TABLE} VALUES (?, ?, ?, ?)", rows)

    def _open(self) -> contextlib.closing[sqlite3.Connection]:
        connection = sqlite3.connect(self.path, timeout=_SECONDS)
        connection.text_factory = bytes  # a damaged value may be taken for text and need not be any
        return contextlib.closing(connection)

    @contextlib.contextmanager
    def _forgiving(self) -> Iterator[None]:
        """Go on when the file cannot be used. One that is damaged makes way, as it would be in the way for ever."""
        try:
            yield
        except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
            # A message may cite the damaged name of a table, which is no text.
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if isinstance(error, UnicodeDecodeError) or code in _DAMAGED:
                for name in (f"{self.path.name}-journal", self.path.name):
                    with contextlib.suppress(OSError):
                        self.path.with_name(name).unlink(missing_ok=True)
            elif "no such table" not in str(error):  # whoever made the file was stopped
                self._is_usable = False


def _checksum(key: bytes, vector: bytes, truncated: int) -> bytes:
    return hashlib.blake2b(key + bytes([truncated]) + vector, digest_size=16).digest()


def _is_row(key: Any, vector: Any, truncated: Any, checksum: Any) -> bool:
    """Whether a row is what was written: a vector that differs in one bit is not believed."""
    is_typed = isinstance(key, bytes) and isinstance(vector, bytes) and truncated in (0, 1)
    return is_typed and _checksum(key, vector, int(truncated)) == checksum


def key_of(texts: Sequence[str]) -> bytes:
    """What a text, or several that are averaged, is found by."""
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()
