"""Makes pictures of batches from files: what each worker of the loader does, and the memory that all of them share."""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from annotary import images, preprocess
from annotary.cards import PreprocessSpec
from annotary.errors import ImageError, UnreachableImage
from annotary.images import DecodeOptions
from annotary.preprocess import Pixels
from annotary.records import Failure
from annotary.training.augmentation import AugmentationOptions, Chance, augment, fit_augmented

WHITE = 255


class Wanted(NamedTuple):
    """An image that is asked for.

    Attributes:
        row: Of the dataset.
        identity: Its id.
        path: Where its file is.
    """

    row: int
    identity: str
    path: str


class Broken(NamedTuple):
    """An image that could not be had.

    Attributes:
        place: In the batch.
        failure: Why, under the image's id.
    """

    place: int
    failure: Failure


@dataclass(frozen=True, slots=True)
class Layout:
    """What lies where in the memory that the loader and its workers share.

    Attributes:
        size: Height and width of a picture in pixels.
        batch: Pictures in a batch.
        slots: Batches that are being made at a time.
        kept: Pictures that are kept from epoch to epoch, before augmentation: those of the first rows.
    """

    size: tuple[int, int]
    batch: int
    slots: int
    kept: int

    @property
    def bytes(self) -> int:
        """Of all together."""
        return self.kept + (self.slots * self.batch + self.kept) * prod(self.size) * 3


class Shared:
    """Memory of several processes, which is gone when the last of them is.

    Args:
        size: In bytes.
        handle: What `handle` was where it was made; None makes it.
    """

    def __init__(self, size: int, handle: int | str | None = None) -> None:
        self.handle: int | str
        if sys.platform == "win32":
            self.handle = handle or f"annotary-{uuid.uuid4().hex}"
            self.memory = mmap.mmap(-1, size, tagname=str(self.handle))
        else:
            self.handle = _unnamed_file(size) if handle is None else int(handle)
            self.memory = mmap.mmap(int(self.handle), size)

    @property
    def inherited(self) -> tuple[int, ...]:
        """The files that a process must be given to open it."""
        return (self.handle,) if isinstance(self.handle, int) else ()

    def close(self) -> None:
        """Let go of it; arrays of it that somebody still holds stay as they are."""
        if isinstance(self.handle, int):
            os.close(self.handle)
        with contextlib.suppress(BufferError):
            self.memory.close()


def _unnamed_file(size: int) -> int:
    """A file without a name, in memory where the system has such."""
    if sys.platform == "linux":
        handle = os.memfd_create("annotary-batches")
    else:
        handle, name = tempfile.mkstemp(prefix="annotary-")
        os.unlink(name)  # noqa: PTH108
    os.ftruncate(handle, size)
    return handle


class Pictures:
    """Batches that are being made, and pictures that are kept.

    Args:
        memory: At least `layout.bytes`, zero at first.
        layout: What lies where.

    Attributes:
        slots: uint8[slots, batch, h, w, 3].
    """

    def __init__(self, memory: mmap.mmap | bytearray, layout: Layout) -> None:
        shape = (*layout.size, 3)
        numbers = np.frombuffer(memory, np.uint8, layout.bytes)
        whole = layout.slots * layout.batch * prod(shape)
        self.slots = numbers[:whole].reshape(layout.slots, layout.batch, *shape)
        self._kept = numbers[whole : whole + layout.kept * prod(shape)].reshape(-1, *shape)
        self._is_kept = numbers[whole + layout.kept * prod(shape) :]

    def kept(self, row: int) -> Pixels | None:
        """The picture of a row, before augmentation, if it is kept; it may not be changed."""
        return self._kept[row] if row < len(self._kept) and self._is_kept[row] else None

    def keep(self, row: int, fitted: Pixels) -> None:
        """Keep the picture of a row, if there is a place for it."""
        if row < len(self._kept):
            self._kept[row] = fitted
            self._is_kept[row] = 1  # last: whoever finds it takes the picture


@dataclass(frozen=True, slots=True)
class Preparation:
    """How an image becomes a picture of a batch.

    Attributes:
        spec: Size, fit and filter.
        augmentation: How it is changed by chance; None leaves it.
        seed: Of what is drawn.
        decode: Limits and speed.
    """

    spec: PreprocessSpec
    augmentation: AugmentationOptions | None = None
    seed: int = 0
    decode: DecodeOptions = field(default_factory=DecodeOptions)

    def fill(
        self,
        target: npt.NDArray[np.uint8],
        wanted: Sequence[Wanted],
        epoch: int,
        pictures: Pictures,
    ) -> list[Broken]:
        """Make pictures.

        Args:
            target: uint8[n, h, w, 3], where they are put; what cannot be had becomes white.
            wanted: n images.
            epoch: Of what is drawn.
            pictures: Those that are kept.

        Returns:
            The images that could not be had, by their place in `target`.
        """
        broken = []
        for place, one in enumerate(wanted):
            try:
                target[place] = self._picture(one, epoch, pictures)
            except ImageError as error:
                target[place] = WHITE
                broken.append(Broken(place, Failure.of(one.identity, error)))
        return broken

    def _picture(self, wanted: Wanted, epoch: int, pictures: Pictures) -> Pixels:
        options, chance = self.augmentation, Chance(self.seed, epoch, wanted.identity)
        fitted = pictures.kept(wanted.row)
        if fitted is None:
            found = images.decode(
                _read(wanted.path),
                at_least=preprocess.needed_by_all(self.spec),
                options=self.decode,
                alpha=self.spec.alpha,
            )
            full = found.width, found.height
            if options is not None and not options.begins_fitted:
                return fit_augmented(found.pixels, self.spec, options, chance, full)
            fitted = preprocess.fit(found.pixels, self.spec, full)
            pictures.keep(wanted.row, fitted)
        return fitted if options is None else augment(fitted, options, chance)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        number = getattr(error, "errno", None)
        raise UnreachableImage(f"{path}: {os.strerror(number) if number else error}") from error
