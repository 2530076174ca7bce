"""The cache of reduced pictures: small enough to be decoded quickly, and in several qualities, as the web has them.

JoyTag's training images were reduced to a longest side of 512 pixels (Pillow's bicubic filter) and kept as WebP: 45 %
with quality 90, 45 % with quality 100, 10 % without loss. Here which of them an image gets follows from its sha256
rather than from a random stream, so that it is the same however many workers there are and however often they are
stopped.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from annotary.sinks import write_atomically
from annotary.training.dataset.index import cached_path

SUFFIXES = {"webp": ".webp", "jpeg": ".jpg", "off": ""}

_USUAL = {"webp": ("90:45", "100:45", "lossless:10"), "jpeg": ("90:50", "100:50"), "off": ()}


class Quality(NamedTuple):
    """A way to encode pictures.

    Attributes:
        quality: 1..100; None without loss.
        share: Of the pictures, 0..1.
    """

    quality: int | None
    share: float


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """The cache of reduced pictures."""

    cache: Literal["webp", "jpeg", "off"] = "webp"
    """How reduced pictures are kept; off keeps none, and training reads the originals."""

    cache_size: int = field(default=512, metadata={"metavar": "PIXELS"})
    """The longest side of reduced pictures; smaller ones stay as they are."""

    cache_quality: tuple[str, ...] = field(default=(), metadata={"metavar": "QUALITY:SHARE"})
    """A quality, 1 to 100 or `lossless`, and which share of the pictures gets it. May be given several times; otherwise
    90:45, 100:45 and lossless:10 for WebP, as JoyTag had it, and 90:50 and 100:50 for JPEG."""

    def __post_init__(self) -> None:
        if self.cache not in SUFFIXES:
            raise ValueError(f"cache must be webp, jpeg or off, but got {self.cache!r}")
        if self.cache_size < 16:
            raise ValueError(f"cache_size must be at least 16 pixels, but got {self.cache_size}")
        _ = self.qualities

    @property
    def qualities(self) -> tuple[Quality, ...]:
        """The qualities, with shares that add up to 1.

        Raises:
            ValueError: One cannot be read.
        """
        told = self.cache_quality or _USUAL[self.cache]
        found = [_quality(one, self.cache) for one in told]
        total = math.fsum(one.share for one in found)
        return tuple(Quality(one.quality, one.share / total) for one in found)

    def settings(self) -> dict[str, Any]:
        """What the pictures depend on, as JSON."""
        if self.cache == "off":
            return {"cache": "off"}
        return {
            "cache": self.cache,
            "cache_size": self.cache_size,
            "cache_quality": [list(one) for one in self.qualities],
        }


class ImageCache:
    """The reduced pictures of a dataset. Several threads may write.

    Args:
        folder: `images` in the dataset.
        options: How they are kept.
    """

    def __init__(self, folder: Path, options: CacheOptions) -> None:
        self.folder = folder
        self.size = options.cache_size
        self.suffix = SUFFIXES[options.cache]
        self._qualities = options.qualities

    def path(self, sha256: bytes) -> Path:
        """Where the picture of an original with this digest is, or would be."""
        return cached_path(self.folder, sha256.hex(), self.suffix)

    def has(self, sha256: bytes) -> bool:
        """Whether the picture is there."""
        return self.path(sha256).exists()

    def write(
        self, sha256: bytes, pixels: npt.NDArray[np.uint8], full_size: tuple[int, int]
    ) -> None:
        """Reduce and keep a picture, unless it is there.

        Args:
            sha256: Of the original.
            pixels: uint8[h, w, 3], RGB.
            full_size: Width and height of the image that `pixels` is a reduced decode of.

        Raises:
            OutputError: It cannot be written.
        """
        path = self.path(sha256)
        if path.exists():
            return
        picture = Image.fromarray(pixels)
        rows, columns = reduced_size(*full_size, self.size)
        if picture.size != (columns, rows):
            picture = picture.resize((columns, rows), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        quality = quality_of(sha256, self._qualities)
        if self.suffix == ".jpg":
            picture.save(file, "JPEG", quality=quality)
        elif quality is None:
            # Method 4 takes twice as long for files that are 2 % smaller.
            picture.save(file, "WEBP", lossless=True, quality=75, method=2)
        else:
            picture.save(file, "WEBP", quality=quality, method=4)
        write_atomically(path, file.getvalue())

    def prune(self, kept: set[bytes]) -> int:
        """Remove all pictures but those of some originals; tells how many went.

        Args:
            kept: sha256 of the originals.
        """
        gone = 0
        for path in sorted(self.folder.glob("??/??/*")):
            stem, _, ending = path.name.partition(".")
            is_kept = ending == self.suffix[1:] and _digest(stem) in kept
            if not is_kept:
                path.unlink(missing_ok=True)
                gone += not path.name.startswith(".")
        return gone


def reduced_size(width: int, height: int, longest: int) -> tuple[int, int]:
    """Height and width of a picture with its longest side at most so many pixels."""
    scale = min(1.0, longest / max(width, height))
    return max(1, round(height * scale)), max(1, round(width * scale))


def quality_of(sha256: bytes, qualities: tuple[Quality, ...]) -> int | None:
    """The quality of a picture, by the last bytes of its digest: the first ones say where it lies."""
    place = int.from_bytes(sha256[-8:], "big") / 2**64
    for one in qualities:
        place -= one.share
        if place < 0:
            return one.quality
    return qualities[-1].quality


def _quality(told: str, form: str) -> Quality:
    name, _, share = told.partition(":")
    try:
        quality = None if name == "lossless" else int(name)
        part = float(share) if share else 1.0
    except ValueError:
        quality, part = 0, 0.0
    is_sound = (quality is None and form == "webp") or (quality is not None and 1 <= quality <= 100)
    if not is_sound or not (0 < part < math.inf):
        raise ValueError(
            f"cache_quality must be QUALITY:SHARE, such as 90:45 or, of WebP, lossless:10, but got {told!r}"
        )
    return Quality(quality, part)


def _digest(stem: str) -> bytes:
    try:
        return bytes.fromhex(stem)
    except ValueError:
        return b""
