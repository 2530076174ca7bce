"""Vectors of texts, kept on disk by model and text, so that labels are embedded once and not once a run."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from annotary.models import Model
from annotary.tasks.encoding import Texts, Vectors

_KEYS_AT_ONCE = 500
"""Keys of one question; SQLite takes 999 variables at least."""

_SECONDS = 10.0
"""How long another process that writes is waited for."""


def cache_folder() -> Path:
    """Where annotary keeps what can be computed again: `ANNOTARY_CACHE`, or a folder of its own in the user's cache."""
    if told := os.environ.get("ANNOTARY_CACHE"):
        return Path(told)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "annotary"
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/annotary"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "annotary"


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

    @classmethod
    def of(cls, fingerprint: str, model: Model) -> Self:
        """The cache of a loaded model.

        Args:
            fingerprint: Of its files (`annotary.models.Found.fingerprint`).
            model: Tells what it computes in, which decides the last bits.
        """
        return cls(f"{fingerprint} {model.choice.library} {model.choice.precision}")

    def get(self, keys: Sequence[bytes]) -> dict[bytes, tuple[Vectors, bool]]:
        """Of the keys that are known, the vector float32[d] and whether its text was truncated."""
        known: dict[bytes, tuple[Vectors, bool]] = {}
        with self._lock, self._forgiving(), self._open() as connection:
            for start in range(0, len(keys), _KEYS_AT_ONCE):
                part = keys[start : start + _KEYS_AT_ONCE]
                marks = ",".join("?" * len(part))
                question = f"SELECT key, vector, truncated, checksum FROM {_TABLE} WHERE key IN ({marks})"
                for key, vector, truncated, checksum in connection.execute(question, part):
                    if _checksum(key, vector, truncated) == checksum:
                        known[key] = (np.frombuffer(vector, dtype="<f4"), bool(truncated))
        return known

    def put(self, keys: Sequence[bytes], texts: Texts) -> None:
        """Keep vectors; what cannot be written is not kept."""
        rows = []
        for key, vector, truncated in zip(keys, texts.vectors, texts.is_truncated, strict=True):
            data = vector.astype("<f4").tobytes()
            rows.append((key, data, int(truncated), _checksum(key, data, int(truncated))))
        with self._lock, self._forgiving():
            if not self._is_usable:
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._open(may_create=True) as connection, connection:
                connection.execute(
                    f"CREATE TABLE IF NOT EXISTS {_TABLE} (key BLOB PRIMARY KEY, vector BLOB NOT NULL,"
                    " truncated INTEGER NOT NULL, checksum BLOB NOT NULL) WITHOUT ROWID"
                )
                if self.path.stat().st_size > _MOST_BYTES:
                    connection.execute(f"DELETE FROM {_TABLE}")
                connection.executemany(f"INSERT OR REPLACE INTO {_TABLE} VALUES (?, ?, ?, ?)", rows)

    def _open(self, *, may_create: bool = False) -> contextlib.closing[sqlite3.Connection]:
        if not may_create and not self.path.is_file():
            raise FileNotFoundError(self.path)
        return contextlib.closing(sqlite3.connect(self.path, timeout=_SECONDS))

    @contextlib.contextmanager
    def _forgiving(self) -> Iterator[None]:
        """Go on when the file cannot be used. One that is damaged makes way, as it would be in the way for ever."""
        try:
            yield
        except FileNotFoundError:
            pass
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
                for name in (f"{self.path.name}-journal", self.path.name):
                    with contextlib.suppress(OSError):
                        self.path.with_name(name).unlink(missing_ok=True)
            else:
                self._is_usable = False  # else every write would wait for it again
        except OSError:
            self._is_usable = False


def _checksum(key: object, vector: object, truncated: object) -> bytes:
    """Of a row: a vector that differs in one bit from what was written is not believed. Empty for what is no row."""
    if not isinstance(key, bytes) or not isinstance(vector, bytes) or truncated not in (0, 1):
        return b""
    return hashlib.blake2b(key + bytes([truncated]) + vector, digest_size=16).digest()


def key_of(texts: Sequence[str]) -> bytes:
    """What a text, or several that are averaged, is found by."""
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()
