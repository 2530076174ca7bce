"""The texts of a run of CapFilt in a temporary SQLite file, so that there may be more of them than memory holds.

It is made anew by every run from the tables and the journal: nothing in it is lost with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import tempfile
import threading
from collections.abc import Iterator, Sequence
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any, NamedTuple, Self

from annotary.curation._capfilt_judging import Judged, Score
from annotary.curation._capfilt_tables import Row
from annotary.records import Item

ORIGINS = ("web", "synthetic")

EMPTY = "empty"
SAME_AS_WEB = "the same as a web text of the image"
FAILED = "the image could not be had"
NO_TEXT = "no text"

_TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE images (
    id INTEGER PRIMARY KEY, key BLOB UNIQUE, name BLOB, failure TEXT, state INTEGER DEFAULT 0, caption INTEGER
);
CREATE INDEX named ON images (name);
CREATE TABLE texts (
    id INTEGER PRIMARY KEY, image INTEGER, origin INTEGER, source INTEGER, row INTEGER, field TEXT, text TEXT,
    plain TEXT, why TEXT, score REAL, cosine REAL, is_cut INTEGER, certainty REAL, tie BLOB, kept INTEGER DEFAULT 0
);
CREATE INDEX of_image ON texts (image);
CREATE TABLE sources (id INTEGER PRIMARY KEY, name BLOB UNIQUE);
"""

_WAITING, _ASKED, _DONE = range(3)


class Rule(NamedTuple):
    """What is kept. With neither, all that is neither empty nor said twice.

    Attributes:
        threshold: Of the score, from which on a text is kept.
        share: Of all texts that have a score, 0..1: so many are kept, the best.
    """

    threshold: float | None = None
    share: float | None = None


class Store:
    """Images, their texts, and what was found of them. Threads may share it."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="annotary-capfilt-")
        path = Path(self._folder.name, "texts.sqlite")
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._connection.executescript(_TABLES)
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._folder.cleanup()

    def add(self, rows: Iterator[Row]) -> None:
        """Take the rows of all tables."""
        with self._lock:
            self._do("BEGIN")
            for row in rows:
                source = self._number("sources", "name", os.fsencode(row.table))
                image = self._image(row)
                for field, cell in row.texts:
                    for value in cell if isinstance(cell, list) and cell else [cell]:
                        self._add_text(image, value, (source, row.number, field))
            self._do("COMMIT")

    def begin(self, item: Item) -> tuple[str, ...] | None:
        """Whether an image is still to be asked about: its texts, sorted, each once; None when it is not."""
        with self._lock:
            found = self._one("SELECT id, state, failure FROM images WHERE key = ?", _key(item))
            if found is None or found[1] != _WAITING or found[2] is not None:
                return None
            self._do("UPDATE images SET state = ? WHERE id = ?", _ASKED, found[0])
            return self._texts_of(found[0])

    def settle(self, name: str, judged: Judged, *, is_scored: bool, is_written: bool) -> bool:
        """Note what was found of an image; false when it is not all that is asked now.

        Args:
            name: Of the image.
            judged: What was found.
            is_scored: Whether texts need scores.
            is_written: Whether there is a caption.
        """
        with self._lock:
            found = self._one("SELECT id FROM images WHERE name = ?", _bytes(name))
            if found is None:
                return False
            (image,) = found
            texts = self._texts_of(image)
            if is_scored and not all(text in judged.scores for text in texts):
                return False
            for text in texts if is_scored else ():
                self._set_score("image = ? AND plain = ?", judged.scores[text], image, text)
            if is_written and judged.caption is not None:
                self._add_caption(image, judged)
            self._do("UPDATE images SET state = ? WHERE id = ?", _DONE, image)
            return True

    def fail(self, name: str, message: str) -> None:
        """Note why an image could not be had."""
        with self._lock:
            self._do("UPDATE images SET failure = ? WHERE name = ?", message, _bytes(name))

    def fail_waiting(self, name: str, message: str) -> bool:
        """Note why an image that is still to be asked about could not be had before; false when there is none."""
        with self._lock:
            done = self._connection.execute(
                "UPDATE images SET failure = ? WHERE name = ? AND state = ? AND failure IS NULL",
                (message, _bytes(name), _WAITING),
            )
            return done.rowcount > 0

    def is_done(self, name: str) -> bool:
        """Whether all was found of an image."""
        found = self._one("SELECT state FROM images WHERE name = ?", _bytes(name))
        return found is not None and found[0] == _DONE

    def failures(self) -> Iterator[tuple[str, str]]:
        """The images that could not be had, and why."""
        told = "SELECT name, failure FROM images WHERE failure IS NOT NULL ORDER BY id"
        return ((_text(name), why) for name, why in self._all(told))

    def finish_unasked(self) -> None:
        """Images without any text that could be scored are done, where nothing is written of them."""
        told = "NOT EXISTS (SELECT 1 FROM texts WHERE image = images.id AND why IS NULL)"
        self._do(f"UPDATE images SET state = {_DONE} WHERE failure IS NULL AND {told}")

    def unfinished(self) -> list[str]:
        """The images that nothing was found of, and that did not fail."""
        told = f"SELECT name FROM images WHERE state != {_DONE} AND failure IS NULL ORDER BY id"
        return [_text(name) for (name,) in self._all(told)]

    @property
    def waiting(self) -> int:
        """How many images are still to be asked about."""
        where = f"state = {_WAITING} AND failure IS NULL"
        return int(self._count(f"SELECT COUNT(*) FROM images WHERE {where}"))

    @property
    def images(self) -> int:
        """How many there are."""
        return int(self._count("SELECT COUNT(*) FROM images"))

    def decide(self, rule: Rule) -> float | None:
        """Decide on every text; the lowest score that is kept, of a share."""
        with self._lock:
            self._do("UPDATE texts SET kept = 0")
            told = "(SELECT 1 FROM images WHERE images.id = image AND failure IS NOT NULL)"
            can_be = f"why IS NULL AND NOT EXISTS {told}"
            if rule.share is not None:
                scored = f"{can_be} AND score IS NOT NULL"
                count = self._count(f"SELECT COUNT(*) FROM texts WHERE {scored}")
                best = f"SELECT id FROM texts WHERE {scored} ORDER BY score DESC, tie LIMIT ?"
                self._do(
                    f"UPDATE texts SET kept = 1 WHERE id IN ({best})", _share(rule.share, count)
                )
                lowest = self._one("SELECT MIN(score) FROM texts WHERE kept = 1")
                return None if lowest is None else lowest[0]
            if rule.threshold is not None:
                self._do(f"UPDATE texts SET kept = 1 WHERE {can_be} AND score >= ?", rule.threshold)
            else:
                self._do(f"UPDATE texts SET kept = 1 WHERE {can_be}")
            return None

    def rows(self, below: str) -> Iterator[dict[str, Any]]:
        """Every text: those of an image together, its web texts in the order of the tables, then the synthetic one.

        Args:
            below: Why a text is dropped that has a score.
        """
        told = (
            "SELECT images.name, failure, origin, sources.name, row, field, text, why, score, cosine, is_cut,"
            " certainty, kept FROM texts JOIN images ON images.id = image LEFT JOIN sources ON sources.id = source"
            " ORDER BY image, origin, texts.id"
        )
        for image, failure, origin, source, row, field, text, why, score, *rest in self._all(told):
            cosine, is_cut, certainty, kept = rest
            if failure is not None:
                why = f"{FAILED}: {failure}"
            yield {
                "image": _text(image),
                "text": text,
                "origin": ORIGINS[origin],
                "kept": bool(kept),
                "score": score,
                "why": None if kept else why or below,
                "cosine": cosine,
                "certainty": certainty,
                "is_cut": None if is_cut is None else bool(is_cut),
                "table": None if source is None else os.fsdecode(source),
                "row": row,
                "column": field,
            }

    def counts(self, below: str) -> dict[str, dict[str, Any]]:
        """What became of the texts of each origin, in numbers."""
        found: dict[str, dict[str, Any]] = {}
        for number, origin in enumerate(ORIGINS):
            grouped = self._all(
                "SELECT kept, score IS NOT NULL, failure IS NOT NULL, why, COUNT(*) FROM texts JOIN images"
                " ON images.id = image WHERE origin = ? GROUP BY 1, 2, 3, 4",
                number,
            )
            told: dict[str, Any] = {"texts": 0, "kept": 0, "scored": 0, "noise_ratio": None}
            dropped: dict[str, int] = {}
            for kept, has_score, has_failed, why, count in grouped:
                told["texts"] += count
                told["kept"] += count * kept
                if not kept:
                    reason = FAILED if has_failed else kind_of_reason(why or below)
                    dropped[reason] = dropped.get(reason, 0) + count
                told["scored"] += count * (has_score and not has_failed and why is None)
            if told["scored"]:
                told["noise_ratio"] = dropped.get(below, 0) / told["scored"]
            found[origin] = {**told, "dropped": dict(sorted(dropped.items()))}
        return found

    @property
    def cut(self) -> int:
        """How many texts are longer than the filter reads."""
        return int(self._count("SELECT COUNT(*) FROM texts WHERE is_cut = 1"))

    def _image(self, row: Row) -> int:
        """The number of a row's image."""
        found = row.found
        key, name = _key(found), _bytes(found.image)
        told = self._one("SELECT id FROM images WHERE key = ?", key)
        if told is None:
            message = None if isinstance(found, Item) else found.message
            self._do("INSERT INTO images (key, name, failure) VALUES (?, ?, ?)", key, name, message)
            told = self._one("SELECT last_insert_rowid()")
        assert told is not None
        return int(told[0])

    def _add_text(self, image: int, value: Any, where: tuple[int, int, str]) -> None:
        text, why = _as_text(value)
        plain = "" if text is None else " ".join(text.split())
        if why is None and not plain:
            why = EMPTY
        if why is None and self._says(image, "plain = ?", plain):
            why = SAME_AS_WEB
        self._insert(image, 0, text, plain, why, where)

    def _add_caption(self, image: int, judged: Judged) -> None:
        assert judged.caption is not None
        text, certainty, score = judged.caption
        plain = " ".join(text.split())
        same = [
            one
            for (one,) in self._all("SELECT plain FROM texts WHERE image = ? AND origin = 0", image)
        ]
        why = None if plain else EMPTY
        if plain and plain.casefold() in map(str.casefold, same):
            why = SAME_AS_WEB
        self._do("DELETE FROM texts WHERE image = ? AND origin = 1", image)
        self._insert(image, 1, text, plain, why, (None, None, None))
        if score is not None:
            self._set_score("image = ? AND origin = 1", score, image)
        self._do("UPDATE texts SET certainty = ? WHERE image = ? AND origin = 1", certainty, image)

    def _insert(
        self,
        image: int,
        origin: int,
        text: str | None,
        plain: str,
        why: str | None,
        where: Sequence[Any],
    ) -> None:
        named = self._one("SELECT name FROM images WHERE id = ?", image)
        assert named is not None
        tie = hashlib.blake2b(named[0] + b"\0" + plain.encode(), digest_size=8).digest()
        self._do(
            "INSERT INTO texts (image, origin, text, plain, why, source, row, field, tie)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            *(image, origin, text, plain, why, *where, tie),
        )

    def _set_score(self, where: str, score: Score, *values: Any) -> None:
        self._do(
            f"UPDATE texts SET score = ?, cosine = ?, is_cut = ? WHERE {where} AND why IS NULL",
            *(score.score, score.cosine, score.is_cut, *values),
        )

    def _says(self, image: int, where: str, *values: Any) -> bool:
        """Whether an image has such a text already."""
        told = f"SELECT 1 FROM texts WHERE image = ? AND why IS NULL AND {where}"
        return self._one(told, image, *values) is not None

    def _texts_of(self, image: int) -> tuple[str, ...]:
        told = "SELECT DISTINCT plain FROM texts WHERE image = ? AND origin = 0 AND why IS NULL"
        return tuple(sorted(text for (text,) in self._all(told, image)))

    def _number(self, table: str, column: str, value: Any) -> int:
        """The number of a value, which it gets if it has none."""
        self._do(f"INSERT OR IGNORE INTO {table} ({column}) VALUES (?)", value)
        return int(self._count(f"SELECT id FROM {table} WHERE {column} = ?", value))

    def _count(self, told: str, *values: Any) -> int:
        found = self._one(told, *values)
        return 0 if found is None else int(found[0])

    def _one(self, told: str, *values: Any) -> tuple[Any, ...] | None:
        with self._lock:
            found: tuple[Any, ...] | None = self._connection.execute(told, values).fetchone()
            return found

    def _all(self, told: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        with self._lock:
            return iter(self._connection.execute(told, values))

    def _do(self, told: str, *values: Any) -> None:
        with self._lock:
            self._connection.execute(told, values)


def _as_text(value: Any) -> tuple[str | None, str | None]:
    """A cell as a text, and what is wrong with it."""
    if value is None:
        return None, EMPTY
    if isinstance(value, str):
        # Halves of pairs, and bytes that are not UTF-8, are no text.
        return value.encode("utf-8", "surrogatepass").decode("utf-8", "replace"), None
    if isinstance(value, bytes):
        return None, f"{NO_TEXT}, but {len(value):,} bytes"
    told = json.dumps(value, ensure_ascii=True, default=str)
    kinds = {"dict": "an object", "list": "a list", "bool": "a truth value"}
    return told, f"{NO_TEXT}, but {kinds.get(type(value).__name__, 'a number')}"


def kind_of_reason(why: str) -> str:
    """The reason without what differs from text to text."""
    return next((kind for kind in (NO_TEXT, FAILED) if why.startswith(kind)), why)


def _share(share: float, count: int) -> int:
    """So many of a number as a share says: rounded, a half up."""
    whole = Decimal(str(share)) * count
    return int(whole.to_integral_value(ROUND_HALF_UP))


def _key(found: Item | Any) -> bytes:
    """What tells an image from others, however its path is written."""
    path = found.path if isinstance(found, Item) else None
    return os.fsencode(os.path.abspath(path)) if path is not None else _bytes(found.image)  # noqa: PTH100


def _bytes(name: str) -> bytes:
    """A name that need not be text, as SQLite can hold it."""
    return name.encode("utf-8", "surrogatepass")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogatepass")


def as_share(share: float) -> str:
    """A share for people: 0.5 is "50 %"."""
    return f"{float(Decimal(str(share)) * 100):g} %"


def told_below(rule: Rule, kind: str | None) -> str:
    """Why a text is dropped that has a score."""
    if rule.share is not None:
        return f"not among the best {as_share(rule.share)}"
    if rule.threshold is None:
        return ""
    return f"{'cosine' if kind == 'cosine' else 'score'} below {rule.threshold:g}"
