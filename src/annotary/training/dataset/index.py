"""A dataset folder as training reads it: tags, and for each image its tags and where its picture is.

What it holds, where `image` is where the original is, and tags are places in `top_tags.txt`, ascending:

    train.parquet, validation.parquet   id, tags, sha256, image
    top_tags.txt                        the tags, a line each: by how many images have them, then by name
    tags.csv                            index,tag,category,train,validation
    validation_ids.txt                  the ids of the validation images, a line each
    images/ab/cd/abcd….webp             the pictures, reduced, by the sha256 of their originals; or none
    dataset.json                        the settings, and what there is
    report.json, summary.html           what was left out, and why
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from annotary.errors import UsageError
from annotary.sources._columns import place_in

if TYPE_CHECKING:
    import pyarrow as pa

TRAIN, VALIDATION = "train.parquet", "validation.parquet"
TOP_TAGS, TAGS, VALIDATION_IDS = "top_tags.txt", "tags.csv", "validation_ids.txt"
IMAGES, DESCRIPTION, REPORT, SUMMARY = "images", "dataset.json", "report.json", "summary.html"

LAYOUT = 1
"""Of the folder; one of another layout is not read."""


class TagDataset:
    """A dataset folder, as `annotary train dataset` makes it.

    Args:
        folder: It.

    Attributes:
        folder: It.
        tags: What is trained, in the order of the columns of targets.
        train: The images to learn from.
        validation: The images to measure on, none of which is among the others.
        description: What `dataset.json` holds.

    Raises:
        UsageError: It is no such folder, or not finished, or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.description = _description(folder)
        self.tags: tuple[str, ...] = tuple(_lines(folder / TOP_TAGS))
        suffix = self.description.get("cache_suffix") or ""
        self.train = _split(folder, TRAIN, suffix, len(self.tags))
        self.validation = _split(folder, VALIDATION, suffix, len(self.tags))


class Split:
    """The images of one part of a dataset. It holds arrays alone, so that it goes to other processes quickly.

    Args:
        ids: Of the images, in their order.
        offsets: int64[n + 1], where the tags of each image begin in `tags`.
        tags: int32[m], places in `TagDataset.tags`, ascending in each image.
        sha256: uint8[n, 32], of the original files.
        images: Where the originals are: paths; or addresses, or places in archives, which are no files.
        tag_count: How many tags the dataset has.
        cache: The folder of the reduced pictures; None without them.
        suffix: Of the reduced pictures (".webp").

    Attributes:
        ids: As above.
        offsets: As above.
        tags: As above.
        sha256: As above.
        images: As above.
        tag_count: As above.
    """

    def __init__(
        self,
        ids: Sequence[str],
        offsets: npt.NDArray[np.int64],
        tags: npt.NDArray[np.int32],
        sha256: npt.NDArray[np.uint8],
        images: Sequence[str],
        *,
        tag_count: int,
        cache: Path | None = None,
        suffix: str = "",
    ) -> None:
        self.ids = ids
        self.offsets = offsets
        self.tags = tags
        self.sha256 = sha256
        self.images = images
        self.tag_count = tag_count
        self._cache = cache
        self._suffix = suffix

    def __len__(self) -> int:
        return len(self.ids)

    def targets(self, rows: Sequence[int] | npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
        """Which tags images have, uint8[b, t], 0 or 1.

        Args:
            rows: The images, 0..n-1.
        """
        chosen = np.asarray(rows, np.int64)
        first, counts = self.offsets[chosen], self.offsets[chosen + 1] - self.offsets[chosen]
        targets = np.zeros((len(chosen), self.tag_count), np.uint8)
        # Counting up from each image's first tag, for all images at once.
        ends = np.cumsum(counts)
        steps = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)
        places = np.repeat(first, counts) + steps
        targets[np.repeat(np.arange(len(chosen)), counts), self.tags[places]] = 1
        return targets

    def counts(self) -> npt.NDArray[np.int64]:
        """How many images have each tag, int64[t]."""
        return np.bincount(self.tags, minlength=self.tag_count).astype(np.int64)

    def path(self, row: int) -> Path:
        """Where the picture of an image is: the reduced one if there is one, otherwise the original.

        Args:
            row: The image, 0..n-1.
        """
        if self._cache is not None and self._suffix:
            reduced = cached_path(self._cache, self.sha256[row].tobytes().hex(), self._suffix)
            if reduced.exists():
                return reduced
        return Path(place_in(self.images[row], ""))


class Texts(Sequence[str]):
    """Many texts in two arrays: a list of a million takes ten times the memory, and long to go to another process.

    Args:
        data: uint8[m], all texts in UTF-8, one after the other.
        offsets: int64[n + 1], where each begins.
    """

    def __init__(self, data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> None:
        self._data = data
        self._offsets = offsets

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        """Those texts."""
        encoded = [text.encode() for text in texts]
        offsets = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(one) for one in encoded], out=offsets[1:])
        return cls(np.frombuffer(b"".join(encoded), np.uint8), offsets)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        where = int(place)
        if where < 0:
            where += len(self)
        if not 0 <= where < len(self):
            raise IndexError(f"there are {len(self)} texts, but got {place}")
        return self._data[self._offsets[where] : self._offsets[where + 1]].tobytes().decode()


def cached_path(cache: Path, sha256: str, suffix: str) -> Path:
    """Where the reduced picture of an image is, as the published training code lays them out.

    Args:
        cache: The folder `images` of the dataset.
        sha256: Of the original file, 64 hexadecimal digits.
        suffix: Of the reduced pictures (".webp").
    """
    return cache / sha256[:2] / sha256[2:4] / f"{sha256}{suffix}"


def _description(folder: Path) -> dict[str, Any]:
    place = folder / DESCRIPTION
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
        layout = found["layout"]
    except FileNotFoundError as error:
        raise UsageError(
            f"{folder} is no finished dataset: it has no {DESCRIPTION}; annotary train dataset makes one"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{place} cannot be read; make the dataset anew") from error
    if layout != LAYOUT:
        raise UsageError(f"{folder} has layout {layout!r}, and this version reads {LAYOUT}")
    return dict(found)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split("\n")[:-1]
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read; make the dataset anew") from error


def _split(folder: Path, name: str, suffix: str, tag_count: int) -> Split:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        table = pa.parquet.read_table(folder / name, columns=["id", "tags", "sha256", "image"])
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"{folder / name} cannot be read; make the dataset anew") from error
    lists = table["tags"].combine_chunks()
    offsets, tags = _numbers(lists.offsets, np.int64), _numbers(lists.flatten(), np.int32)
    if len(tags) and not 0 <= tags.min() <= tags.max() < tag_count:
        raise UsageError(f"{folder / name} has tags that {TOP_TAGS} does not have")
    digests = b"".join(table["sha256"].to_pylist())
    return Split(
        _texts(table["id"]),
        offsets - offsets[0],
        tags,
        np.frombuffer(digests, np.uint8).reshape(-1, 32),
        _texts(table["image"]),
        tag_count=tag_count,
        cache=folder / IMAGES if suffix else None,
        suffix=suffix,
    )


def _numbers(array: pa.Array, kind: type) -> npt.NDArray[Any]:
    return np.asarray(array.to_numpy(zero_copy_only=False)).astype(kind)


def _texts(column: pa.ChunkedArray) -> Texts:
    return Texts.of(column.to_pylist())
