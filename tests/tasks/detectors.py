"""A detector without weights that sees squares of colours, and pictures for tasks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from annotary.cards import Card, PreprocessSpec
from annotary.models._texts import Texts
from annotary.records import Item
from annotary.runtime import Choice
from annotary.tasks import Picture
from annotary.tasks.locating import Located, Queries

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}

SQUASH = PreprocessSpec(size=(128, 128), fit="squash", resample="box", std=(1.0, 1.0, 1.0))
PAD = PreprocessSpec(
    size=(128, 128), fit="pad", resample="box", pad_colour=(0, 0, 0), std=(1.0, 1.0, 1.0)
)
CORNER = PreprocessSpec(
    size=(128, 128),
    fit="pad",
    pad_place="corner",
    resample="gaussian",
    pad_colour=(0, 0, 0),
    std=(1.0, 1.0, 1.0),
)


class ColourDetector:
    """Finds where an image has a colour: one box around each piece of pixels of it that hang together.

    A text is its first word that names a colour; words from the fifth on are not read. A logit is high when the colour
    is that of the query.

    Args:
        spec: How images are prepared; values must stay 0..255.

    Attributes:
        images: How many were looked at, a call.
        texts: The texts of every call.
    """

    def __init__(self, spec: PreprocessSpec = SQUASH, *, batch_size: int = 2) -> None:
        self.card = Card("colours", "1.0", "colours", "Apache-2.0", spec)
        self.streams = 1
        self.batch_size = batch_size
        self.images: list[int] = []
        self.texts: list[tuple[str, ...]] = []

    @property
    def choice(self) -> Choice:
        """It runs on NumPy."""
        return Choice("NumPy", "cpu", "fp32", 1, 1, "it is small", self.batch_size)

    def embed_queries(self, texts: Sequence[str]) -> Texts:
        """Unit vectors: red, green, blue, or between them."""
        self.texts.append(tuple(texts))
        vectors = np.full((len(texts), 3), 3**-0.5, np.float32)
        for row, text in enumerate(texts):
            for word in text.split()[:4]:
                if word in COLOURS:
                    vectors[row] = np.array(COLOURS[word]) / 255
        return Texts(vectors, np.array([len(text.split()) > 4 for text in texts], np.bool_))

    def queries_like(
        self, batch: npt.NDArray[np.generic], boxes: npt.NDArray[np.float32]
    ) -> Queries:
        """The strongest colour in each box."""
        size = self.card.preprocess.size[0]
        found = []
        for image, box in zip(batch, boxes, strict=True):
            left, top, right, bottom = (box * size).round().astype(int)
            mean = np.asarray(image, np.float64)[:, top:bottom, left:right].mean(axis=(1, 2))
            found.append((mean == mean.max()).astype(np.float32))
        return np.stack(found)

    def locate(self, batch: npt.NDArray[np.generic], queries: Queries) -> Located:
        """A place for each piece; images have as many places as the one with most pieces, and one more."""
        self.images.append(len(batch))
        pieces = [_pieces(np.asarray(image, np.float64)) for image in batch]
        most = 1 + max(map(len, pieces))
        boxes = np.zeros((len(batch), most, 4), np.float32)
        logits = np.full((len(batch), most, len(queries)), -9.0, np.float32)
        for number, found in enumerate(pieces):
            for place, (box, colour) in enumerate(found):
                boxes[number, place] = box / self.card.preprocess.size[0]
                logits[number, place] = (
                    6.0 * (queries @ colour)
                    - 3.0
                    + 1e-3 * np.prod(boxes[number, place, 2:] - boxes[number, place, :2])
                )
        return Located(boxes, logits)


def _pieces(
    image: npt.NDArray[np.float64],
) -> list[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
    """Boxes `xyxy` in pixels around pieces of one colour, and the colours."""
    from scipy import ndimage

    found = []
    for number in range(3):
        others = np.delete(image, number, axis=0).max(axis=0)
        # Edges lie where half of a pixel has the colour.
        is_there = (image[number] > 127.5) & (others < 127.5)
        labelled, _ = ndimage.label(is_there)
        for rows, columns in ndimage.find_objects(labelled):
            box = np.array([columns.start, rows.start, columns.stop, rows.stop], np.float64)
            found.append((box, np.eye(3)[number]))
    return found


def scene(
    width: int, height: int, *squares: tuple[str, tuple[int, int, int, int]]
) -> npt.NDArray[np.uint8]:
    """A grey picture with squares in it, each a colour and left, top, right and bottom edge."""
    pixels = np.full((height, width, 3), 90, np.uint8)
    for colour, (left, top, right, bottom) in squares:
        pixels[top:bottom, left:right] = COLOURS[colour]
    return pixels


def pictures_of(photos: Sequence[npt.NDArray[np.uint8]]) -> list[Picture]:
    """Pictures as a pipeline hands them to a task, with their pixels."""
    return [
        Picture(Item(f"{number}.png", pixels=photo), photo.shape[1], photo.shape[0], photo)
        for number, photo in enumerate(photos)
    ]
