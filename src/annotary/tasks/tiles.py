"""Large images in tiles that overlap, so that small things are seen large, and one thing is found once."""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from annotary.tasks.nms import Boxes, areas, intersections

_EDGE = 0.01
"""Share of a tile's side: a box that ends so near to an edge where the image goes on is taken to be cut by it."""

_COVERED = 0.7
"""Share of a cut box that lies in a whole one of the same label from which on both are one thing."""


_LIKELY = 0.5
"""Share of a cut box's score from which on a whole one takes its place."""


class Tile(NamedTuple):
    """A part of an image, in its pixels.

    Attributes:
        left: Its first column.
        top: Its first row.
        right: The column behind its last one.
        bottom: The row behind its last one.
    """

    left: int
    top: int
    right: int
    bottom: int


def tiles_of(width: int, height: int, side: int, overlap: float) -> list[Tile]:
    """The tiles of an image, row by row; none when it fits into one.

    They are evenly spread, all of one size, and neighbours share at least so much as was asked for.

    Args:
        width: Pixels of the image.
        height: Pixels of the image.
        side: Pixels of a tile; one that is longer than the image is cut to it.
        overlap: Share of a side that neighbours have in common, 0..0.9.
    """
    if width <= side and height <= side:
        return []
    return [
        Tile(left, top, min(width, left + side), min(height, top + side))
        for top in _starts(height, side, overlap)
        for left in _starts(width, side, overlap)
    ]


def _starts(length: int, side: int, overlap: float) -> list[int]:
    if length <= side:
        return [0]
    count = ceil((length - side) / (side * (1.0 - overlap)) - 1e-9) + 1
    return [round(number * (length - side) / (count - 1)) for number in range(count)]


def is_cut(boxes: Boxes, tile: Tile, width: int, height: int) -> npt.NDArray[np.bool_]:
    """Which boxes of a tile end at an edge of it where the image goes on.

    Args:
        boxes: float64[n, 4], `xyxy` in pixels of the image.
        tile: Where they were found.
        width: Pixels of the image.
        height: Pixels of the image.
    """
    across, down = (tile.right - tile.left) * _EDGE, (tile.bottom - tile.top) * _EDGE
    return (
        ((boxes[:, 0] < tile.left + across) & (tile.left > 0))
        | ((boxes[:, 1] < tile.top + down) & (tile.top > 0))
        | ((boxes[:, 2] > tile.right - across) & (tile.right < width))
        | ((boxes[:, 3] > tile.bottom - down) & (tile.bottom < height))
    )


def without_pieces(
    boxes: Boxes,
    scores: npt.NDArray[np.float64],
    labels: npt.NDArray[np.intp],
    cut: npt.NDArray[np.bool_],
) -> npt.NDArray[np.intp]:
    """Which boxes are no piece of another: whole ones, and cut ones that no whole one of their label covers.

    Args:
        boxes: float64[n, 4] of all tiles, `xyxy` in pixels of the image.
        scores: float64[n], 0..1. A box that is hardly likely does not stand for one that is.
        labels: One a box.
        cut: Whether a tile's edge cut it.
    """
    kept = ~cut
    whole = np.flatnonzero(~cut)
    for place in np.flatnonzero(cut):
        is_alike = labels[whole] == labels[place]
        alike = whole[is_alike & (scores[whole] >= _LIKELY * scores[place])]
        shared = intersections(boxes[place], boxes[alike])
        kept[place] = not (shared > _COVERED * areas(boxes[place])).any()
    return np.flatnonzero(kept)
