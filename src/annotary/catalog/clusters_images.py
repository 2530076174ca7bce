"""Images on their way into clusters: embedded once, and kept in the user's cache after that, as searches keep them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from annotary.catalog._deciding import stat_of
from annotary.catalog._known import place_of
from annotary.catalog._vector_cache import FileKey, VectorCache, kept
from annotary.catalog.clusters_rows import ClusterRows
from annotary.records import Failure, Item

_KEPT_AT_ONCE = 256
_SECONDS = 5.0
"""How long a vector waits for others until it is kept: what a kill can cost."""


class _Awaited(NamedTuple):
    """An image whose row is still to be written, because one before it is still to be embedded."""

    item: Item
    key: FileKey | None
    vector: npt.NDArray[np.float32] | None


class KnownImages:
    """Puts images into rows in the order of the sources, whether their vectors are in the cache or just embedded.

    Args:
        rows: Where they go.
        cache: Of the model.

    Attributes:
        known: How many were in the cache.
    """

    def __init__(self, rows: ClusterRows, cache: VectorCache) -> None:
        self.known = 0
        self._rows = rows
        self._cache = cache
        self._awaited: deque[_Awaited] = deque()
        self._unkept: list[tuple[FileKey, npt.NDArray[np.float32]]] = []
        self._kept_at = time.monotonic()
        self._lock = threading.Lock()

    def to_do(self, items: Iterable[Item | Failure]) -> Iterator[Item | Failure]:
        """The images that have to be embedded; in the thread that walks the sources."""
        for item in items:
            if isinstance(item, Failure):
                yield item
                continue
            place = place_of(item)
            found = stat_of(item) if place else None
            key = None if found is None else FileKey(place, *found)
            vector = None if key is None else self._cache.get(key)
            with self._lock:
                self.known += vector is not None
                if vector is not None and not self._awaited:
                    self._add(item, vector)
                    continue
                self._awaited.append(_Awaited(item, key, vector))
            if vector is None:
                yield item

    def take(self, item: Item, vector: npt.NDArray[np.float32] | None) -> None:
        """Take the vector float32[d] of an image that was to be embedded; None where that could not be done.

        Raises:
            OutputError: The disk is full.
        """
        with self._lock:
            while self._awaited:
                one = self._awaited.popleft()
                if one.vector is not None:
                    self._add(one.item, one.vector)
                if one.item is item:
                    if vector is not None:
                        self._add(item, kept(vector))
                        self._keep(one.key, vector)
                    break
            while self._awaited and (known := self._awaited[0].vector) is not None:
                self._add(self._awaited.popleft().item, known)

    def close(self) -> None:
        """Keep what has not been kept yet."""
        unkept, self._unkept = self._unkept, []
        self._cache.put(unkept)
        self._kept_at = time.monotonic()

    def _keep(self, key: FileKey | None, vector: npt.NDArray[np.float32]) -> None:
        if key is not None:
            self._unkept.append((key, vector))
        if len(self._unkept) >= _KEPT_AT_ONCE or time.monotonic() - self._kept_at > _SECONDS:
            self.close()

    def _add(self, item: Item, vector: npt.NDArray[np.float32]) -> None:
        self._rows.add(item.image, None if item.path is None else str(item.path), vector)
