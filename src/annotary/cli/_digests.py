"""The sha256 of files that could be the same, without decoding them."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING

from annotary.errors import ImageError
from annotary.records import Failure, Item

if TYPE_CHECKING:
    from annotary.cli._grouping import Reading

_READERS = 8
_AT_ONCE = 256


def repeated_sizes(reading: Reading, paths: Sequence[str]) -> Collection[int] | None:
    """The sizes that more than one file has; None when going through the names once more is not cheap.

    Files of different sizes are different, so that of most photos nothing has to be read.
    """
    import numpy as np

    if reading.counter(paths) is None:
        return None
    sizes = array("q")
    for item in reading.open(paths):
        if isinstance(item, Item):
            size = _size(item)
            if size is None:
                return None
            sizes.append(size)
    different, counts = np.unique(np.array(sizes, np.int64), return_counts=True)
    return frozenset(different[counts > 1].tolist())


def digests(
    reading: Reading, paths: Sequence[str], sizes: Collection[int] | None
) -> Iterator[tuple[Item, int, str | None]]:
    """Images with their bytes and sha256, which is None for those whose size is not one of `sizes`."""

    def look(item: Item) -> tuple[int, str | None] | Failure:
        if sizes is not None:
            size = _size(item)
            if size is not None and size not in sizes:
                return size, None
        try:
            data = reader.read(item)
        except ImageError as error:
            return Failure.of(item.image, error)
        return len(data), hashlib.sha256(data).hexdigest()

    with (
        reading.bar("comparing", reading.counter(paths)) as show,
        reading.reader() as reader,
        ThreadPoolExecutor(_READERS, "annotary-read") as pool,
    ):
        images = reading.open(paths)
        while batch := list(islice(images, _AT_ONCE)):
            items = [item for item in batch if isinstance(item, Item)]
            for failure in batch:
                if isinstance(failure, Failure):
                    reading.fail(failure)
            for item, found in zip(items, pool.map(look, items), strict=True):
                if isinstance(found, Failure):
                    reading.fail(found)
                else:
                    reading.outcome.done += 1
                    yield item, *found
            show()


def _size(item: Item) -> int | None:
    if item.path is None:
        return None
    try:
        return item.path.stat().st_size
    except (OSError, ValueError):
        return None
