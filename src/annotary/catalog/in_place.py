"""Searching images where they are, without a catalogue: embedded once, and kept in the user's cache after that."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from annotary.catalog._columns import recovered
from annotary.catalog._deciding import stat_of
from annotary.catalog._known import place_of
from annotary.catalog._nearest import best
from annotary.catalog._vector_cache import FileKey, VectorCache, kept
from annotary.images import DecodeOptions
from annotary.pipeline import Outcome, PipelineOptions, annotate
from annotary.records import Annotation, Failure, Item, Record
from annotary.sinks import NameSet
from annotary.sources import Reader
from annotary.tasks.embedding import Embed
from annotary.tasks.encoding import ImageEncoder

_AT_ONCE = 1024
"""Vectors that are compared together."""

_KEPT_AT_ONCE = 256
_SECONDS = 5.0
"""How long a vector waits for others until it is kept: what a kill can cost."""


class Match(NamedTuple):
    """An image that was found.

    Attributes:
        image: Its name.
        path: Its absolute path; empty for what is no file.
        score: The cosine, -1..1.
        vector: Its vector float32[d].
    """

    image: str
    path: str
    score: float
    vector: npt.NDArray[np.float32]


class SearchInPlace:
    """A search among the images of sources. Iterate over it once; then `matches` has what was found.

    Args:
        items: The images, from `annotary.sources`.
        model: Embeds them.
        query: float32[d], of length 1.
        top: How many are wanted.
        cache: Of the model.
        reader: Reads the bytes.
        decode_options: How bytes are decoded.
        options: How the work is spread.
        left_out: The bytes of images that are not shown, nor exact copies of them.

    Attributes:
        outcome: The counts, up to date at any time: `done` were embedded, `done_before` were in the cache.
    """

    def __init__(
        self,
        items: Iterable[Item | Failure],
        model: ImageEncoder,
        query: npt.NDArray[np.float32],
        top: int,
        cache: VectorCache,
        reader: Reader,
        decode_options: DecodeOptions,
        options: PipelineOptions,
        left_out: Collection[bytes] = (),
    ) -> None:
        self.outcome = Outcome()
        self._cache = cache
        self._best = _Best(query, top)
        self._left_out = {hashlib.sha256(data).digest() for data in left_out}
        self._sizes = {len(data) for data in left_out}
        self._numbers = itertools.count()
        self._awaited: deque[tuple[int, FileKey | None] | None] = deque()
        self._unkept: list[tuple[FileKey, npt.NDArray[np.float32]]] = []
        self._kept_at = time.monotonic()
        self._results = annotate(
            self._to_do(items), [Embed(model)], reader, decode_options, options
        )

    def __iter__(self) -> Iterator[Record]:
        """Embed what has to be embedded; yields what was said of those images, and failures."""
        try:
            with contextlib.closing(self._results) as results:
                for item, record, _ in results:
                    self._take(item, record)
                    yield record
        finally:
            self._keep()

    def matches(self) -> list[Match]:
        """What was found, the best first; of equal ones the first of the sources."""
        return self._best.matches()

    def _take(self, item: Item | None, record: Record) -> None:
        awaited = self._awaited.popleft()
        if not isinstance(record, Annotation):
            self.outcome.failed += 1
            return
        assert item is not None
        assert awaited is not None
        assert record.embedding is not None
        self.outcome.done += 1
        number, key = awaited
        vector = np.array(record.embedding.vector, dtype=np.float32)
        self._best.add(number, item.image, place_of(item), kept(vector))
        if key is not None:
            self._unkept.append((key, vector))
        is_late = time.monotonic() - self._kept_at > _SECONDS
        if len(self._unkept) >= _KEPT_AT_ONCE or is_late:
            self._keep()

    def _keep(self) -> None:
        unkept, self._unkept = self._unkept, []
        self._cache.put(unkept)
        self._kept_at = time.monotonic()

    def _to_do(self, items: Iterable[Item | Failure]) -> Iterator[Item | Failure]:
        """The images that have to be embedded; in the thread that walks the sources."""
        met = NameSet()
        for item in items:
            if isinstance(item, Failure):
                self._awaited.append(None)
                yield item
                continue
            place = place_of(item)
            if not met.add(place or f"\0{item.image}") or self._is_left_out(item):
                continue
            number = next(self._numbers)
            found = stat_of(item) if place else None
            key = None if found is None else FileKey(place, *found)
            vector = None if key is None else self._cache.get(key)
            if vector is not None:
                self.outcome.done_before += 1
                self._best.add(number, item.image, place, vector)
            else:
                self._awaited.append((number, key))
                yield item

    def _is_left_out(self, item: Item) -> bool:
        found = stat_of(item) if self._sizes else None
        if found is None or found.bytes not in self._sizes:
            return False
        if item.data is not None:
            return hashlib.sha256(item.data).digest() in self._left_out
        assert item.path is not None
        try:
            with open(item.path, "rb") as file:
                return hashlib.file_digest(file, "sha256").digest() in self._left_out
        except OSError:
            return False


class _Best:
    """The best of a stream of images; from several threads."""

    def __init__(self, query: npt.NDArray[np.float32], top: int) -> None:
        self._query = query
        self._top = top
        self._held: dict[int, tuple[str, str, npt.NDArray[np.float32]]] = {}
        self._lock = threading.Lock()

    def add(self, number: int, image: str, path: str, vector: npt.NDArray[np.float32]) -> None:
        with self._lock:
            self._held[number] = image, path, vector
            if len(self._held) >= self._top + _AT_ONCE:
                ids, _ = self._sorted()
                self._held = {one: self._held[one] for one in ids.tolist()}

    def matches(self) -> list[Match]:
        with self._lock:
            ids, scores = self._sorted()
            found = zip(ids.tolist(), scores.tolist(), strict=True)
            return [self._match(one, score) for one, score in found]

    def _sorted(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        ids = np.fromiter(self._held, np.int64, len(self._held))
        if not len(ids):
            return ids, np.empty(0, np.float32)
        vectors = np.stack([self._held[one][2] for one in ids.tolist()])
        return best(ids, np.round(vectors @ self._query, 6), self._top)

    def _match(self, number: int, score: float) -> Match:
        image, path, vector = self._held[number]
        return Match(image, recovered(path), score, vector)
