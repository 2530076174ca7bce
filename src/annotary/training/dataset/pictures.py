"""What is measured of every picture, once: its digest, its perceptual hash, and whether it can be trained on.

Measures go into a journal, line by line and in the order of the posts, so that a run that was stopped goes on. Of a
file it is remembered by its path, size and time; what could not be had is tried again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from annotary import images, preprocess
from annotary.errors import ImageError, OutputError
from annotary.images import FORMATS, DecodeOptions
from annotary.records import Failure, Item
from annotary.sources import Reader
from annotary.sources._paths import reason
from annotary.tasks.perceptual_hash import SIDE, SPEC, chromas, perceptual_hashes
from annotary.training.dataset.image_cache import ImageCache, reduced_size

One = TypeVar("One")
Made = TypeVar("Made")

Why = Literal["", "unreadable", "animated", "transparent"]
"""Why a picture cannot be trained on; empty when it can."""

_LEAST_SIDE = 256
"""Pixels of the longer side that are decoded at least, for the hash."""

_AHEAD = 4  # pictures under way for each worker


class Picture(NamedTuple):
    """What is measured of a picture.

    Attributes:
        sha256: Of the file's bytes, 32 bytes; empty where they could not be had.
        phash: The perceptual hash, 0..2**64-1; None where the picture is flat or was not decoded.
        chroma: How far it is from grey, 0..255.
        why: Why it cannot be trained on.
        told: The same in words.
    """

    sha256: bytes = b""
    phash: int | None = None
    chroma: int = 0
    why: Why = ""
    told: str = ""


class Measuring:
    """Measures pictures and fills the cache. Threads share it.

    Args:
        reader: Reads files and addresses.
        cache: Gets the reduced pictures; None keeps none.
        keeps_transparent: Whether transparent pictures are put on white, rather than left out.
        decode: How they are decoded.
    """

    def __init__(
        self,
        reader: Reader,
        cache: ImageCache | None,
        *,
        keeps_transparent: bool,
        decode: DecodeOptions,
    ) -> None:
        self._reader = reader
        self._cache = cache
        self._keeps_transparent = keeps_transparent
        self._decode = decode

    def measure(self, item: Item) -> Picture:
        """What is measured of an image; its reduced picture is in the cache afterwards, if it can be trained on.

        Raises:
            OutputError: The cache cannot be written.
        """
        try:
            data = self._reader.read(item)
        except ImageError as error:
            return Picture(why="unreadable", told=str(error))
        return self.measure_data(data)

    def measure_data(self, data: bytes) -> Picture:
        """The same of the encoded bytes."""
        known = Picture(hashlib.sha256(data).digest())
        try:
            if is_animated(data):
                return known._replace(why="animated", told="an animation")
            decoded = images.decode(data, at_least=self._needed, options=self._decode)
            may_be_clear = decoded.is_transparent and not self._keeps_transparent
            if may_be_clear and has_clear_pixels(data, self._decode):
                return known._replace(why="transparent", told="some of it is transparent")
        except ImageError as error:
            return known._replace(why="unreadable", told=str(error))
        full_size = (decoded.width, decoded.height)
        small = preprocess.fit(decoded.pixels, SPEC, full_size)[None]
        hashes = perceptual_hashes(small)
        if self._cache is not None:
            self._cache.write(known.sha256, decoded.pixels, full_size)
        return known._replace(
            phash=None if hashes.is_flat[0] else int(hashes.values[0]),
            chroma=int(chromas(small)[0]),
        )

    def _needed(self, width: int, height: int) -> tuple[int, int]:
        """Height and width that are needed of a picture: for the cache, and for its hash."""
        longest = _LEAST_SIDE if self._cache is None else max(self._cache.size, _LEAST_SIDE)
        rows, columns = reduced_size(width, height, longest)
        return max(rows, SIDE), max(columns, SIDE)


class PictureBook:
    """The pictures that were measured, in a journal and, packed, in memory.

    Args:
        path: The journal; a tail that was cut off is removed.

    Raises:
        OutputError: It cannot be read, or is something else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[int, int] = {}
        self._sha256 = bytearray()
        self._phash, self._chroma = array("Q"), array("B")
        self._bad: dict[int, tuple[Why, str]] = {}
        self._flat: set[int] = set()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
            try:
                self._recover()
            except BaseException:
                self._file.close()
                raise
        except OSError as error:
            raise OutputError(f"cannot write {path}: {reason(error)}") from error

    def find(self, key: str) -> int | None:
        """The row of a picture that was measured before."""
        return self._rows.get(_short(key))

    def add(self, key: str, picture: Picture) -> int:
        """Add a picture; tells its row.

        Raises:
            OutputError: It cannot be written.
        """
        if key and picture.sha256:
            value = [
                f"{_short(key):016x}", picture.sha256.hex(), picture.phash, picture.chroma,
                picture.why, picture.told,
            ]  # fmt: skip
            line = json.dumps(value, ensure_ascii=True) + "\n"
            try:
                self._file.write(line.encode())
                self._file.flush()
            except OSError as error:
                raise OutputError(f"cannot write {self._path}: {reason(error)}") from error
            return self._put(_short(key), picture)
        return self._put(None, picture)

    def picture(self, row: int) -> Picture:
        """What was measured."""
        why, told = self._bad.get(row, ("", ""))
        sha256 = bytes(self._sha256[32 * row : 32 * row + 32])
        phash = None if row in self._flat else self._phash[row]
        return Picture(sha256 if any(sha256) else b"", phash, self._chroma[row], why, told)

    def close(self) -> None:
        """Close the journal."""
        self._file.close()

    def _put(self, key: int | None, picture: Picture) -> int:
        row = len(self._phash)
        self._sha256 += picture.sha256 or bytes(32)
        self._phash.append(picture.phash or 0)
        self._chroma.append(picture.chroma)
        if picture.phash is None:
            self._flat.add(row)
        if picture.why:
            self._bad[row] = (picture.why, picture.told)
        if key is not None:
            self._rows[key] = row
        return row

    def _recover(self) -> None:
        self._file.seek(0)
        end = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            try:
                key, sha256, phash, chroma, why, told = json.loads(line)
                self._put(int(key, 16), Picture(bytes.fromhex(sha256), phash, chroma, why, told))
            except (ValueError, TypeError) as error:
                raise OutputError(
                    f"{self._path} holds something else; remove it, and the pictures are measured anew"
                ) from error
            end += len(line)
        self._file.truncate(end)
        self._file.seek(end)


def measured(
    posts: Iterable[Item | Failure], book: PictureBook, measuring: Measuring, workers: int
) -> Iterator[int]:
    """The rows in the book of images, in their order; those that are not in it are measured.

    Args:
        posts: The images.
        book: What is known, and gets what is new.
        measuring: How.
        workers: Threads that measure.
    """

    def look(found: tuple[str, Item | Failure | int]) -> Picture | int:
        _, one = found
        if isinstance(one, Failure):
            return Picture(why="unreadable", told=one.message)
        return one if isinstance(one, int) else measuring.measure(one)

    def named() -> Iterator[tuple[str, Item | Failure | int]]:
        for one in posts:
            key = key_of(one) if isinstance(one, Item) else ""
            known = book.find(key) if key else None
            yield key, one if known is None else known

    for (key, _), picture in in_order(named(), look, workers):
        # It may have come twice while it was under way.
        known = picture if isinstance(picture, int) else book.find(key) if key else None
        yield known if known is not None else book.add(key, picture)  # type: ignore[arg-type]


def in_order(
    ones: Iterable[One], work: Callable[[One], Made], workers: int
) -> Iterator[tuple[One, Made]]:
    """Each of many things with what was made of it, in their order, made by several threads.

    Args:
        ones: They; no more are taken than are under way.
        work: What makes something of one.
        workers: Threads.
    """
    held: deque[tuple[One, Future[Made]]] = deque()
    pool = ThreadPoolExecutor(workers, "annotary-pictures")
    try:
        for one in ones:
            held.append((one, pool.submit(work, one)))
            while len(held) > _AHEAD * workers or (held and held[0][1].done()):
                first, made = held.popleft()
                yield first, made.result()
        while held:
            first, made = held.popleft()
            yield first, made.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def key_of(item: Item) -> str:
    """What an image is remembered by; empty where nothing is known that would change with it."""
    if item.data is not None:
        return "sha256:" + hashlib.sha256(item.data).hexdigest()
    if item.path is not None:
        try:
            status = item.path.stat()
        except (OSError, ValueError):
            return ""
        path = os.path.abspath(item.path)  # noqa: PTH100 - a link stays what it is
        return f"{path}\0{status.st_size}\0{status.st_mtime_ns}"
    return item.url or ""


def is_animated(data: bytes) -> bool:
    """Whether a file has several pictures that are shown one after the other.

    Args:
        data: The encoded bytes; of what is damaged nothing is said.
    """
    try:
        if data[:4] == b"GIF8":
            return _gif_pictures(data) > 1
        if data[:8] == b"\x89PNG\r\n\x1a\n":
            return any(kind == b"acTL" for kind in _png_kinds(data))
        if data[8:16] == b"WEBPVP8X":
            return bool(data[20] & 0x02)
    except (IndexError, struct.error):
        return False
    # Brands of AVIF and HEIF for sequences of pictures.
    return data[4:8] == b"ftyp" and data[8:12] in (b"avis", b"hevc", b"hevx", b"msf1")


def has_clear_pixels(data: bytes, options: DecodeOptions) -> bool:
    """Whether any pixel of an image that can be decoded is not opaque.

    Args:
        data: The encoded bytes.
        options: How they are decoded.
    """
    read = next(
        read for pattern, read in FORMATS.values() if re.match(pattern, data[:256], re.DOTALL)
    )
    opened: Any = read(data, options)
    if opened.key is not None:
        return True
    image = opened.image
    image.load()
    if image.mode in ("RGBa", "La"):
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    return bool(image.convert("RGBA").getchannel("A").getextrema()[0] < 255)


def _gif_pictures(data: bytes) -> int:
    """How many pictures a GIF has, up to two."""
    flags = data[10]
    offset = 13 + ((3 << ((flags & 7) + 1)) if flags & 0x80 else 0)
    found = 0
    while found < 2 and data[offset] != ord(";"):
        if data[offset] == ord(","):
            found += 1
            own = data[offset + 9]
            offset += 10 + ((3 << ((own & 7) + 1)) if own & 0x80 else 0) + 1
        elif data[offset] == ord("!"):
            offset += 2
        else:
            break
        while data[offset]:
            offset += 1 + data[offset]
        offset += 1
    return found


def _png_kinds(data: bytes) -> Iterator[bytes]:
    """The kinds of a PNG's chunks up to its pixels."""
    offset = 8
    while offset + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, offset)
        if kind == b"IDAT":
            return
        yield kind
        offset += 12 + length


def _short(key: str) -> int:
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big")
