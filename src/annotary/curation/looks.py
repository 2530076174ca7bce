"""What is measured of pictures, once, for quality filters and for finding copies alike.

One decode gives all: the picture's size, how sharp, bright and rich in contrast it is, and its perceptual hash; the
bytes give their sha256. Measures are taken of the picture reduced to `WORKING_SIDE` pixels, so that they do not depend
on how many pixels it has, nor on whether a JPEG was decoded at reduced scale.

Sharpness is the variance of the Laplacian of the grey values (Pech-Pacheco, Cristóbal, Chamorro-Martínez and
Fernández-Valdivia, "Diatom autofocusing in brightfield microscopy: a comparative study", ICPR 2000), here of the
sharpest of 4 x 4 pieces: a sharp subject before a soft background is no blurred photo. `benchmarks/quality.py` shows
what it tells apart.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from annotary import images, preprocess
from annotary.curation._row_images import RowImages, image_column
from annotary.curation.steps import MOST_LISTED, Tally
from annotary.curation.tables import BATCH_ROWS, BrokenPart, Part, PartWriter, Rows
from annotary.errors import ImageError
from annotary.images import DecodeOptions
from annotary.records import Failure, Item
from annotary.sources import Reader, SourceOptions
from annotary.tasks.perceptual_hash import SIDE, SPEC, chromas, perceptual_hashes

if TYPE_CHECKING:
    import pyarrow as pa

WORKING_SIDE = 256
"""Pixels of the longer side of the picture that is measured. Smaller pictures are measured as they are, which makes
them look sharper than larger ones of the same scene. What is too fine to be seen here hardly reaches a network of 224
to 384 pixels either."""

PIECES = 4
"""Pieces along a side, of which the sharpest counts."""

FETCHERS = 16
"""Images of addresses that are downloaded at a time."""

_REMEMBERED = 1024
"""Files and addresses of which the look is remembered: tables with several texts an image name it in several rows."""

_DECODE = DecodeOptions()

_VERSION = 1  # of what is measured; looks of another version are not taken for these


class Look(NamedTuple):
    """What is measured of a picture.

    Attributes:
        sha256: Of the file's bytes, 32 bytes; None where they could not be had.
        size: Bytes of the file.
        phash: The perceptual hash, 0..2**64-1; None where the picture is flat, or could not be decoded.
        chroma: How far it is from grey, 0..255.
        width: Pixels of the upright picture.
        height: Pixels of the upright picture.
        sharpness: Variance of the Laplacian of the grey values of the sharpest piece, from 0 (flat). Photos have 100 to
            5,000.
        brightness: Mean grey value, 0..255.
        contrast: Standard deviation of the grey values, 0..127.5.
        error: Why something could not be had; None when all could.
    """

    sha256: bytes | None = None
    size: int | None = None
    phash: int | None = None
    chroma: int | None = None
    width: int | None = None
    height: int | None = None
    sharpness: float | None = None
    brightness: float | None = None
    contrast: float | None = None
    error: str | None = None


def look_at(data: bytes, options: DecodeOptions = _DECODE) -> Look:
    """Measure a picture; one that cannot be decoded has an `error`.

    Args:
        data: The encoded bytes.
        options: How they are decoded.
    """
    known = Look(hashlib.sha256(data).digest(), len(data))
    try:
        decoded = images.decode(data, at_least=_needed, options=options)
    except ImageError as error:
        return known._replace(error=str(error))
    full_size = (decoded.width, decoded.height)
    small = preprocess.fit(decoded.pixels, SPEC, full_size)[None]
    hashes = perceptual_hashes(small)
    grey = working_grey(decoded.pixels, full_size)
    return known._replace(
        phash=None if hashes.is_flat[0] else int(hashes.values[0]),
        chroma=int(chromas(small)[0]),
        width=decoded.width,
        height=decoded.height,
        sharpness=sharpness(grey),
        brightness=float(grey.mean()),
        contrast=float(grey.std()),
    )


def working_grey(
    pixels: images.Pixels, full_size: tuple[int, int] | None = None
) -> npt.NDArray[np.uint8]:
    """The grey values that are measured, uint8[h, w], with the longer side at most `WORKING_SIDE`.

    Args:
        pixels: uint8[H, W, 3], RGB.
        full_size: Width and height of the image that `pixels` is a reduced decode of.
    """
    picture = Image.fromarray(pixels).convert("L")
    rows, columns = _working_size(*(full_size or picture.size))
    if picture.size != (columns, rows):
        # Pillow's bilinear filter takes the mean of all pixels that become one, so that reducing makes no false edges.
        picture = picture.resize((columns, rows), Image.Resampling.BILINEAR)
    return np.asarray(picture)


def sharpness(grey: npt.NDArray[np.uint8]) -> float:
    """The variance of the Laplacian of the sharpest of 4 x 4 pieces of a picture; 0 where it is too small for one.

    Args:
        grey: uint8[h, w].
    """
    if min(grey.shape) < 3:
        return 0.0
    values = grey.astype(np.int16)
    middle = values[1:-1, 1:-1]
    edges = values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:] - 4 * middle
    pieces = (
        piece
        for band in np.array_split(edges, min(PIECES, edges.shape[0]))
        for piece in np.array_split(band, min(PIECES, edges.shape[1]), axis=1)
    )
    return max(float(piece.var(dtype=np.float64)) for piece in pieces)


class Looker:
    """Measures the pictures of items, in their order. A context: connections are closed at its end.

    Args:
        source: How files and addresses are read.
        decode: How pictures are decoded.
    """

    def __init__(self, source: SourceOptions, decode: DecodeOptions) -> None:
        self._stack = ExitStack()
        self._reader = self._stack.enter_context(Reader(source))
        self._fetchers: ThreadPoolExecutor | None = None
        self._decode = decode
        self._known: dict[str, Look] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()
        if self._fetchers is not None:
            self._fetchers.shutdown(cancel_futures=True)

    def looks(self, found: Iterable[Item | Failure]) -> Iterator[tuple[str, Look]]:
        """The name and the look of every image. What could not be named or read has one with an `error`.

        Addresses are fetched ahead, `FETCHERS` at a time; nothing else is held.
        """
        held: deque[tuple[Item | Failure, Future[bytes] | None]] = deque()
        for one in found:
            ahead = isinstance(one, Item) and one.url is not None and one.url not in self._known
            held.append((one, self._fetched(one) if ahead else None))  # type: ignore[arg-type]
            while held and (len(held) > FETCHERS or held[0][1] is None or held[0][1].done()):
                yield self._look(*held.popleft())
        while held:
            yield self._look(*held.popleft())

    def _look(self, one: Item | Failure, coming: Future[bytes] | None) -> tuple[str, Look]:
        if isinstance(one, Failure):
            return one.image, Look(error=one.message)
        key = "" if one.data is not None else one.image
        look = self._known.get(key)
        if look is None:
            try:
                data = self._reader.read(one) if coming is None else coming.result()
            except ImageError as error:
                look = Look(error=str(error))
            else:
                look = look_at(data, self._decode)
            if key:
                if len(self._known) >= _REMEMBERED:
                    del self._known[next(iter(self._known))]
                self._known[key] = look
        return one.image, look

    def _fetched(self, item: Item) -> Future[bytes]:
        if self._fetchers is None:
            self._fetchers = ThreadPoolExecutor(FETCHERS, "annotary-looks")
        return self._fetchers.submit(self._reader.read, item)


@dataclass(frozen=True, slots=True)
class PictureOptions:
    """Where the images of tables are."""

    images: Path | None = field(default=None, metadata={"metavar": "FOLDER"})
    """Where paths start; where the table is otherwise. What is not there is looked for in the current folder."""


@dataclass(slots=True)
class LooksStep:
    """The step that measures the pictures of tables: for each row of a part one of what is written, in their order.

    Attributes:
        source: Which column holds the images, and how they are read.
        decode: How they are decoded.
        pictures: Where paths start.
        name: Of the step.
    """

    source: SourceOptions = field(default_factory=SourceOptions)
    decode: DecodeOptions = field(default_factory=DecodeOptions)
    pictures: PictureOptions = field(default_factory=PictureOptions)
    name: str = "looks"

    def settings(self) -> dict[str, Any]:
        """What looks depend on. How long servers are waited for is not among it."""
        return {
            "version": _VERSION,
            "image_column": self.source.image_column,
            "images": None if self.pictures.images is None else str(self.pictures.images),
            "max_bytes": self.source.max_bytes,
            "decode": asdict(self.decode),
        }

    def run(self, part: Part, target: Path) -> Tally:
        """Measure the pictures of a part.

        Raises:
            BrokenPart: It cannot be read.
            UsageError: It has no column of images.
        """
        tally = Tally()
        column = self.source.image_column or "image"
        if part.form != "webdataset":  # of a tar, which would be gone through for that, it is known
            column = image_column(part, Rows(part).schema, self.source.image_column)
        rows = Rows(part, [column])
        with self.measuring(part) as measured, PartWriter(target, looks_schema()) as writer:
            for batch in rows.batches():
                found = measured(batch.column(0), None)
                list_failures(tally, found)
                for start in range(0, max(1, len(found)), BATCH_ROWS):
                    writer.write(looks_batch([look for _, look in found[start:][:BATCH_ROWS]]))
            tally.rows_out = writer.rows
        tally.rows_in = tally.rows_out
        tally.skip(rows.skipped)
        return tally

    def measuring(self, part: Part) -> Measuring:
        """What measures the images of a part, batch by batch."""
        return Measuring(self, part)


class Measuring:
    """Measures the images of a part, batch by batch; a context.

    Args:
        step: How.
        part: The part.
    """

    def __init__(self, step: LooksStep, part: Part) -> None:
        folder = step.pictures.images
        self._images = RowImages(part, None if folder is None else str(folder), step.source)
        self._looker = Looker(step.source, step.decode)
        self._rows = 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self._images)
        self._stack.enter_context(self._looker)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __call__(
        self, cells: pa.Array, chosen: npt.NDArray[np.bool_] | None
    ) -> list[tuple[str, Look]]:
        """The names and looks of the images of the next rows.

        Args:
            cells: What stands in the column of images of the rows.
            chosen: bool[rows], the rows whose images are measured; all when nothing is said. Others have an empty look.
        """
        places = range(len(cells)) if chosen is None else np.flatnonzero(chosen).tolist()
        found: list[tuple[str, Look]] = [("", Look())] * len(cells)
        of_rows = (self._images.of(self._rows + place, cells[place]) for place in places)
        for place, look in zip(places, self._looker.looks(of_rows), strict=True):
            found[place] = look
        self._rows += len(cells)
        return found


def list_failures(tally: Tally, found: Iterable[tuple[str, Look]]) -> None:
    """Count the images that could not be had, as `unreadable_images`, and list the first thousand."""
    for name, look in found:
        if look.error is not None:
            count = tally.beside["unreadable_images"] = tally.beside.get("unreadable_images", 0) + 1
            if count <= MOST_LISTED:
                tally.failures.append(Failure(name, "UnreadableImage", look.error))


def looks_schema() -> pa.Schema:
    """The columns of what is written: those of `Look`."""
    import pyarrow as pa

    return pa.schema(
        [
            ("sha256", pa.binary(32)),
            ("size", pa.int64()),
            ("phash", pa.uint64()),
            ("chroma", pa.uint8()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("sharpness", pa.float32()),
            ("brightness", pa.float32()),
            ("contrast", pa.float32()),
            ("error", pa.string()),
        ]
    )


def looks_batch(looks: Iterable[Look]) -> pa.RecordBatch:
    """Looks as rows."""
    import pyarrow as pa

    schema = looks_schema()
    columns = zip(*looks, strict=True) if (looks := list(looks)) else [()] * len(schema)
    arrays = [pa.array(c, field.type) for c, field in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def read_looks(file: Path) -> Iterator[pa.RecordBatch]:
    """What `LooksStep` has written of a part.

    Raises:
        BrokenPart: It is not there, or cannot be read.
    """
    part = Part(str(file), "parquet", file.stem)
    if not file.exists():
        raise BrokenPart(f"the pictures of this part are not measured: there is no {file}")
    yield from Rows(part).batches()


def _needed(width: int, height: int) -> tuple[int, int]:
    """Height and width that are needed of a picture: for measuring, and for its hash."""
    rows, columns = _working_size(width, height)
    return max(rows, SIDE), max(columns, SIDE)


def _working_size(width: int, height: int) -> tuple[int, int]:
    """Height and width of the picture that is measured."""
    scale = min(1.0, WORKING_SIDE / max(width, height))
    return max(1, round(height * scale)), max(1, round(width * scale))
