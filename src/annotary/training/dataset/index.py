"""A dataset folder as training reads it: tags, and for each image its tags and where its picture is.

What it holds, where `image` is where the original is, and tags are places in `top_tags.txt`, ascending:

    train.parquet, validation.parquet   id, tags, sha256, image
    top_tags.txt                        the tags, a line each: by how many images have them, then by name
    tags.csv                            index,tag,category,train,validation
    validation_ids.txt                  the ids of the validation images, a line each
    images/ab/cd/abcd….webp             the pictures, reduced, by the sha256 of their originals; or none
    sources.json                        what the inputs know, if not all know all tags; then there is a column `source`
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
from annotary.training.dataset.knowledge import SOURCES, Sources, read_sources

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
        sources: What the inputs know of which the images are; None where all images know all tags.

    Raises:
        UsageError: It is no such folder, or not finished, or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.description = _description(folder)
        self.tags: tuple[str, ...] = tuple(_lines(folder / TOP_TAGS))
        suffix = self.description.get("cache_suffix") or ""
        is_partial = bool(self.description.get("sources"))
        self.sources = read_sources(folder / SOURCES, len(self.tags)) if is_partial else None
        self.train = _split(folder, TRAIN, suffix, len(self.tags), self.sources)
        self.validation = _split(folder, VALIDATION, suffix, len(self.tags), self.sources)


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
        sources: int32[n], the row of `absent` that each image goes by; None where all images know all tags.
        absent: float32[s, t], how much it counts that an image has not a tag, 0..1; 0 where nobody knows.

    Attributes:
        ids: As above.
        offsets: As above.
        tags: As above.
        sha256: As above.
        images: As above.
        tag_count: As above.
        sources: As above.
        absent: As above.
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
        sources: npt.NDArray[np.int32] | None = None,
        absent: npt.NDArray[np.float32] | None = None,
    ) -> None:
        self.ids = ids
        self.offsets = offsets
        self.tags = tags
        self.sha256 = sha256
        self.images = images
        self.tag_count = tag_count
        self._cache = cache
        self._suffix = suffix
        self.sources = sources
        self.absent = absent

    def __len__(self) -> int:
        return len(self.ids)

    def targets(self, rows: Sequence[int] | npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
        """Which tags images have, uint8[b, t], 0 or 1.

        Args:
            rows: The images, 0..n-1.
        """
        chosen = np.asarray(rows, np.int64)
        targets = np.zeros((len(chosen), self.tag_count), np.uint8)
        targets[self._tagged(chosen)] = 1
        return targets

    def weights(
        self, rows: Sequence[int] | npt.NDArray[np.integer], unknown: float = 0.0
    ) -> npt.NDArray[np.float32] | None:
        """How much each target counts, float32[b, t]; None where all of them count 1.

        A tag that an image has counts 1, and one that it has not as much as its source says.

        Args:
            rows: The images, 0..n-1.
            unknown: What a tag counts that an image has not where nobody knows, 0..1.
        """
        if self.sources is None or self.absent is None:
            return None
        chosen = np.asarray(rows, np.int64)
        absent = self.absent
        if unknown:
            absent = np.where(absent == 0.0, np.float32(unknown), absent)
        weights: npt.NDArray[np.float32] = absent[self.sources[chosen]]
        weights[self._tagged(chosen)] = 1.0
        return weights

    def counts(self) -> npt.NDArray[np.int64]:
        """How many images have each tag, int64[t]."""
        return np.bincount(self.tags, minlength=self.tag_count).astype(np.int64)

    def amounts(self, unknown: float = 0.0) -> npt.NDArray[np.float64]:
        """How many images count for each tag, float64[t]: all, or those that know it, as much as they count.

        Args:
            unknown: What a tag counts that an image has not where nobody knows, 0..1.
        """
        if self.sources is None or self.absent is None:
            return np.full(self.tag_count, float(len(self)))
        groups = len(self.absent)
        images = np.bincount(self.sources, minlength=groups)[:, None]
        of_tags = np.repeat(self.sources.astype(np.int64), np.diff(self.offsets)) * self.tag_count
        own = np.bincount(of_tags + self.tags, minlength=groups * self.tag_count)
        own = own.reshape(groups, self.tag_count)
        absent = np.where(self.absent == 0.0, unknown, self.absent)
        found: npt.NDArray[np.float64] = (own + (images - own) * absent).sum(axis=0)
        return found

    def _tagged(
        self, rows: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """Of all tags of some images the place of the image among these, and the tag."""
        first, counts = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        # Counting up from each image's first tag, for all images at once.
        ends = np.cumsum(counts)
        steps = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)
        places = np.repeat(first, counts) + steps
        return np.repeat(np.arange(len(rows)), counts), self.tags[places]

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


def _split(folder: Path, name: str, suffix: str, tag_count: int, sources: Sources | None) -> Split:
    import pyarrow as pa
    import pyarrow.parquet

    columns = ["id", "tags", "sha256", "image"] + ["source"] * (sources is not None)
    try:
        table = pa.parquet.read_table(folder / name, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"{folder / name} cannot be read; make the dataset anew") from error
    lists = table["tags"].combine_chunks()
    offsets, tags = _numbers(lists.offsets, np.int64), _numbers(lists.flatten(), np.int32)
    if len(tags) and not 0 <= tags.min() <= tags.max() < tag_count:
        raise UsageError(f"{folder / name} has tags that {TOP_TAGS} does not have")
    places, absent = None, None
    if sources is not None:
        absent = sources.weights(tag_count)
        places = _numbers(table["source"].combine_chunks(), np.int32)
        if len(places) and not 0 <= places.min() <= places.max() < len(absent):
            raise UsageError(f"{folder / name} has sources that {SOURCES} does not have")
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
        sources=places,
        absent=absent,
    )


def _numbers(array: pa.Array, kind: type) -> npt.NDArray[Any]:
    return np.asarray(array.to_numpy(zero_copy_only=False)).astype(kind)


def _texts(column: pa.ChunkedArray) -> Texts:
    return Texts.of(column.to_pylist())
