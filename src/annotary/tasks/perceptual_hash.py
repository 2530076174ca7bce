"""Perceptual hashes: 64 bits that stay nearly the same when a picture is resized, recompressed or a little brighter.

The DCT hash of pHash (Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010; in its
library `ph_dct_imagehash`): the picture as 32 x 32 grey values, its discrete cosine transform, and for each of the
8 x 8 lowest frequencies that are not constant along a side whether it is above their median.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from annotary.cards import PreprocessSpec
from annotary.runtime import available_cores
from annotary.tasks import Picture

SIDE = 32
"""Pixels of a side of the picture that is transformed."""

BITS = 64

FLAT_RANGE = 3.0
"""Grey levels, of 255, that must lie between the darkest and the brightest of the 32 x 32 values. Below that there is
nothing but noise to compare, and all plain pictures would be duplicates of each other."""

SPEC = PreprocessSpec(
    size=(SIDE, SIDE), fit="squash", resample="bilinear", layout="nhwc", dtype="uint8"
)
"""How pictures are prepared. The filter is the one with which copies of another size stay nearest: of 400 photos that
were reduced to 128 pixels all are within 4 bits; with means of blocks (`box`), which follow the pixels, 96 % are."""

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as for JPEG


class Hashes(NamedTuple):
    """Perceptual hashes of pictures.

    Attributes:
        values: uint64[b]; the bit of the lowest frequencies stands first.
        is_flat: bool[b]; whether the picture is too plain to be told from others, so that its hash means nothing.
    """

    values: npt.NDArray[np.uint64]
    is_flat: npt.NDArray[np.bool_]


def perceptual_hashes(pictures: npt.NDArray[np.uint8]) -> Hashes:
    """The hashes of pictures.

    Args:
        pictures: uint8[b, 32, 32, 3], RGB, prepared as `SPEC` says.
    """
    grey = pictures.astype(np.float32) @ _LUMA
    spread = np.ptp(grey.reshape(len(grey), -1), axis=1) if len(grey) else np.empty(0, np.float32)
    lowest = (_COSINES @ grey @ _COSINES.T).reshape(len(grey), BITS)
    is_above = lowest > np.median(lowest, axis=1, keepdims=True)
    values = np.packbits(is_above, axis=1).view(">u8").reshape(-1).astype(np.uint64)
    return Hashes(values, spread < FLAT_RANGE)


def distance(first: int, second: int) -> int:
    """In how many of the 64 bits two hashes differ."""
    return (first ^ second).bit_count()


def chromas(pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """How far pictures are from grey, uint8[b]: the most that two colours of one of their pixels differ by, 0..255.

    A hash is of grey values alone and cannot tell a photo from itself without colours.

    Args:
        pictures: uint8[b, 32, 32, 3], RGB, prepared as `SPEC` says.
    """
    return np.asarray(np.ptp(pictures, axis=3).max(axis=(1, 2), initial=0))


class PerceptualHash:
    """The task of hashing: each image's hash is handed on beside its record as `phash`, and its `chroma`.

    The hash is 0..2**64-1, or None where the picture is flat. No network is asked, so it goes with any other tasks in
    one pass over the images.
    """

    part = ""
    source = "phash"
    inputs = (SPEC,)
    batch_size = 32

    def __init__(self) -> None:
        self.streams = available_cores()

    def annotate(
        self, pictures: Sequence[Picture], *batches: npt.NDArray[np.generic]
    ) -> list[Mapping[str, Any]]:
        """The `phash` of every image, and its `chroma`."""
        (batch,) = batches
        small = batch.astype(np.uint8, copy=False)
        values, is_flat = perceptual_hashes(small)
        found = zip(values.tolist(), is_flat.tolist(), chromas(small).tolist(), strict=True)
        return [
            {"phash": None if flat else value, "chroma": chroma} for value, flat, chroma in found
        ]


def _cosines() -> npt.NDArray[np.float32]:
    """The rows 1..8 of the orthonormal DCT-II of 32 values, float32[8, 32]."""
    frequency = np.arange(1, 9)[:, None]
    position = np.arange(SIDE)[None, :]
    rows = np.cos(np.pi * (2 * position + 1) * frequency / (2 * SIDE)) * np.sqrt(2 / SIDE)
    result: npt.NDArray[np.float32] = rows.astype(np.float32)
    return result


_COSINES = _cosines()
