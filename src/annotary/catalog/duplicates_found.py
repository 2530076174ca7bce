"""What is known of images that are compared, and what was found of them before it is put into words."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What an image is compared by. Whatever is not known is None, and not compared.

    Attributes:
        image: Its name.
        path: Its file, when it is one on this machine.
        bytes: Of the file.
        width: Pixels of the upright image.
        height: Pixels of the upright image.
        sha256: Of the file's bytes, hexadecimal.
        phash: The perceptual hash, 0..2**64-1.
        vector: float32[d] of length 1.
        chroma: How far the image is from grey, 0..255 (`annotary.tasks.perceptual_hash.chromas`).
    """

    image: str
    path: str | None = None
    bytes: int | None = None
    width: int | None = None
    height: int | None = None
    sha256: str | None = None
    phash: int | None = None
    vector: npt.NDArray[np.float32] | None = field(default=None, repr=False, compare=False)
    chroma: int | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """An image that is kept.

    Attributes:
        rank: Its place among all that were compared; 0 is the best.
        image: Its name.
        path: Its file.
        bytes: Of the file.
        width: Pixels.
        height: Pixels.
        modified: When the file was last written, in seconds since 1970.
        also: Other names of the same file.
        is_gone: Whether it was a file, and is one no more.
    """

    rank: int
    image: str
    path: str | None
    bytes: int | None
    width: int | None
    height: int | None
    modified: float | None
    also: tuple[str, ...]
    is_gone: bool

    @property
    def pixels(self) -> int | None:
        """Width times height."""
        return None if self.width is None or self.height is None else self.width * self.height


@dataclass(frozen=True, slots=True)
class Found(Kept):
    """An image that is the same as a kept one, or nearly so.

    Attributes:
        by: How it was found.
        distance: From the kept one, by that way.
    """

    by: str
    distance: float
