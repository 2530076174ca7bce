"""What a catalogue holds already, small enough for millions of images: some 100 bytes for each."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from annotary.catalog._columns import PARTS, recovered, stored
from annotary.catalog._table import Catalog
from annotary.records import Item

if TYPE_CHECKING:
    import pyarrow

_COLUMNS = ("id", "image", "path", "bytes", "modified_ns", "sha256", "sources", "deleted")

Content: TypeAlias = tuple[int, int]
"""The first 128 bits of a sha256, in halves: nobody can make two images that share them."""


class Stat(NamedTuple):
    """What tells quickly whether a file has changed: its bytes, and when it was changed in nanoseconds."""

    bytes: int
    modified_ns: int


class Row(NamedTuple):
    """What is known of a row without asking the table.

    Attributes:
        place: Among all rows that were there at the beginning.
        id: Of the row.
        stat: Of the file when it was looked at; -1 where it is no file.
        content: What tells its content.
        parts: Which parts of a record it has, a bit each.
        is_deleted: Whether the image was gone.
    """

    place: int
    id: int
    stat: Stat
    content: Content
    parts: int
    is_deleted: bool


class Known:
    """The rows of a catalogue as they were at the beginning of a run, found by identity, by content and by id.

    Args:
        catalog: Read once, in batches.
    """

    def __init__(self, catalog: Catalog) -> None:
        pieces = [_columns_of(batch) for batch in catalog.rows(_COLUMNS, with_deleted=True)]
        columns = {
            name: np.concatenate([np.empty(0, kind), *(piece[name] for piece in pieces)])
            for name, kind in _KINDS.items()
        }
        del pieces
        order = np.argsort(columns["key"], kind="stable")
        # Each by itself, as searching wants it.
        self._columns = {name: column[order] for name, column in columns.items()}
        self._keys = self._columns["key"]
        self._by_content = _order(self._columns["content"])
        self._contents = self._columns["content"][self._by_content]
        self._by_id = _order(self._columns["id"])
        self._ids = self._columns["id"][self._by_id]
        self._sizes = np.unique(self._columns["bytes"])
        self._is_seen = np.zeros(len(self._keys), dtype=bool)
        self.next_id = int(self._ids[-1]) + 1 if len(self._ids) else 0

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, key: int) -> Row | None:
        """The row of an image, by the digest of its identity."""
        place = _search(self._keys, np.uint64(key))
        return None if place is None else self._row(place)

    def has_size(self, size: int) -> bool:
        """Whether a row's image had so many bytes: without one, content cannot be known."""
        return _search(self._sizes, np.int64(size)) is not None

    def with_content(self, content: Content) -> Iterator[Row]:
        """All rows with this content."""
        first = _search(self._contents, np.uint64(content[0]))
        while (
            first is not None
            and first < len(self._contents)
            and int(self._contents[first]) == content[0]
        ):
            row = self._row(int(self._by_content[first]))
            if row.content == content:
                yield row
            first += 1

    def see(self, row: Row) -> None:
        """Note that the image of a row is there."""
        self._is_seen[row.place] = True

    def is_unseen(self, one: int) -> bool:
        """Whether a row was there at the beginning, and its image was not met since."""
        place = _search(self._ids, np.int64(one))
        return place is not None and not self._is_seen[self._by_id[place]]

    def missing(self, catalog: Catalog) -> npt.NDArray[np.bool_]:
        """Whether the file of each row is where it was no more, bool[n] by `Row.place`. It looks at all of them."""
        found = np.zeros(len(self._keys), dtype=bool)
        for batch in catalog.rows(["id", "path"], where="path != ''", with_deleted=True):
            for one, path in zip(batch["id"].to_pylist(), batch["path"].to_pylist(), strict=True):
                place = _search(self._ids, np.int64(one))
                if place is not None:
                    found[self._by_id[place]] = is_missing(path)
        return found

    def _row(self, place: int) -> Row:
        row = {name: column[place].item() for name, column in self._columns.items()}
        return Row(
            place,
            row["id"],
            Stat(row["bytes"], row["modified_ns"]),
            (row["content"], row["rest"]),
            row["parts"],
            row["is_deleted"],
        )


_KINDS = {
    "key": np.uint64,
    "id": np.int64,
    "bytes": np.int64,
    "modified_ns": np.int64,
    "content": np.uint64,
    "rest": np.uint64,
    "parts": np.uint8,
    "is_deleted": np.bool_,
}
"""What is kept of each row; `content` and `rest` are the halves of `Content`."""


def _columns_of(batch: pyarrow.RecordBatch) -> dict[str, npt.NDArray[np.generic]]:
    """What is kept of the rows of a batch with the columns of `_COLUMNS`."""
    texts = {name: batch[name].to_pylist() for name in ("path", "image", "sha256", "sources")}
    contents = [content_of(text or "") for text in texts["sha256"]]
    values = {
        "key": list(map(key_of, texts["path"], texts["image"])),
        "id": batch["id"].to_numpy(),
        "bytes": batch["bytes"].fill_null(-1).to_numpy(zero_copy_only=False),
        "modified_ns": batch["modified_ns"].fill_null(-1).to_numpy(zero_copy_only=False),
        "content": [first for first, _ in contents],
        "rest": [second for _, second in contents],
        "parts": [_parts_of(text or "{}") for text in texts["sources"]],
        "is_deleted": batch["deleted"].is_valid().to_numpy(zero_copy_only=False),
    }
    return {name: np.asarray(values[name], kind) for name, kind in _KINDS.items()}


def _order(column: npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
    return np.argsort(column, kind="stable")


def _search(column: npt.NDArray[np.generic], value: np.generic) -> int | None:
    """The first place of a value in a sorted column."""
    place = int(np.searchsorted(column, value))
    return place if place < len(column) and column[place] == value else None


def key_of(path: str, image: str) -> int:
    """64 bits of what tells an image from others: its path if it is a file, its name otherwise.

    Args:
        path: As the column holds it; empty for what is no file.
        image: As the column holds it.
    """
    identity = f"f{path}" if path else f"n{image}"
    digest = hashlib.blake2b(identity.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def place_of(item: Item) -> str:
    """The absolute path of an image as the column holds it; empty for what is no file."""
    if item.path is None:
        return ""
    return stored(os.path.abspath(item.path))  # noqa: PTH100 - a hundred times faster than Path's


def content_of(sha256: str) -> Content:
    """What tells content, of a sha256 in hexadecimal digits; zeros of an empty text."""
    return int(sha256[:16] or "0", 16), int(sha256[16:32] or "0", 16)


def bits_of(parts: Collection[str]) -> int:
    """Parts of a record as bits."""
    return sum(1 << place for place, part in enumerate(PARTS) if part in parts)


def is_missing(path: str) -> bool:
    """Whether nothing has this path, as a column holds it; false where one cannot look."""
    try:
        os.lstat(recovered(path))
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False
    return False


@lru_cache(maxsize=1024)
def _parts_of(sources: str) -> int:
    return bits_of(json.loads(sources))
