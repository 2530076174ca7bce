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

import numpy as np

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

    def get(self, keys: Sequence[bytes]) -> dict[bytes, tuple[Vectors, bool]]:
        """Of the keys that are known, the vector float32[d] and whether its text was truncated."""
        known: dict[bytes, tuple[Vectors, bool]] = {}
        if not self.path.is_file():
            return known
        with self._lock, contextlib.suppress(sqlite3.Error, OSError), self._open() as connection:
            for start in range(0, len(keys), _KEYS_AT_ONCE):
                part = keys[start : start + _KEYS_AT_ONCE]
                marks = ",".join("?" * len(part))
                question = f"SELECT key, vector, truncated FROM texts WHERE key IN ({marks})"
                for key, vector, truncated in connection.execute(question, part):
                    known[key] = (np.frombuffer(vector, dtype=np.float32), bool(truncated))
        return known

    def put(self, keys: Sequence[bytes], texts: Texts) -> None:
        """Keep vectors; what cannot be written is not kept."""
        rows = [
            (key, vector.tobytes(), int(truncated))
            for key, vector, truncated in zip(keys, texts.vectors, texts.is_truncated, strict=True)
        ]
        with self._lock, contextlib.suppress(sqlite3.Error, OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._open() as connection, connection:
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS texts"
                    " (key BLOB PRIMARY KEY, vector BLOB NOT NULL, truncated INTEGER NOT NULL) WITHOUT ROWID"
                )
                connection.executemany("INSERT OR REPLACE INTO texts VALUES (?, ?, ?)", rows)

    def _open(self) -> contextlib.closing[sqlite3.Connection]:
        return contextlib.closing(sqlite3.connect(self.path, timeout=_SECONDS))


def key_of(texts: Sequence[str]) -> bytes:
    """What a text, or several that are averaged, is found by."""
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()
