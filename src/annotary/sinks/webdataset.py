"""WebDataset: a tar that holds every image as it is, with its record and its tags beside it.

    2024/dog.jpg    the bytes of the image, with the suffix that they ask for
    2024/dog.json   the record, as a line of `.jsonl` is
    2024/dog.txt    the caption, tags and labels on one line

The path before the suffix is the sample's key: the image's path below the folder that was asked for, without dots,
which readers take for the end of a key. Times and owners are all nothing, so equal runs give equal files.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from annotary.errors import ImageError, OutputError, UsageError
from annotary.records import Annotation, Item, to_line
from annotary.sinks import _text
from annotary.sinks._appending import AppendingRecords
from annotary.sinks._contract import SinkOptions, TagsOfImage
from annotary.sinks._names import NameSet
from annotary.sinks._parts import ALL_PARTS
from annotary.sinks._signatures import suffix_of
from annotary.sinks.jsonl import name_of, tags_of

SUFFIXES = (".tar",)
OPTIONS = _text.OPTIONS
NEEDS_BYTES = True
PARTS = ALL_PARTS

_BLOCK = 512
_LARGEST_RECORD = 1 << 26
"""Bytes of a record that is read to find its image; ours are some kilobytes."""


class WebDatasetSink:
    """Appends one sample an image to a tar.

    Args:
        output: The tar.
        options: How tags are joined in the `.txt`.

    Raises:
        OutputError: It cannot be read, or does not hold what the format writes.
    """

    def __init__(self, output: Path, options: SinkOptions) -> None:
        self._options = options
        self._keys = NameSet()
        self._samples = AppendingRecords(output, TarSamples(self._keys))

    def holds(self, item: Item) -> bool:
        """Whether the tar has this image."""
        return item.image in self._samples

    def write(self, item: Item, annotation: Annotation) -> None:
        """Append one sample.

        Raises:
            ImageError: The encoded bytes of the image are not there.
            OutputError: It cannot be written; the tar ends with the sample before.
        """
        if item.data is None:
            raise ImageError("a tar holds the encoded image, and this one came without its bytes")
        key = next(key for key in _keys_for(item) if key not in self._keys and _fits(key))
        caption = _text.caption_of(annotation, self._options)
        members = (
            (_suffix(item), item.data),
            ("json", to_line(annotation).encode()),
            ("txt", caption.encode("utf-8", "backslashreplace")),
        )
        sample = b"".join(_member(f"{key}.{suffix}", data) for suffix, data in members)
        self._samples.append(item.image, sample)
        self._keys.add(key)

    def close(self, *, complete: bool) -> None:
        """Write the end of the archive."""
        self._samples.close(complete=complete)


class TarSamples:
    """Samples of three members each: the image, its record, its text.

    Args:
        keys: Takes the key of every sample that is found.
    """

    opening = b""
    between = b""
    closing = bytes(2 * _BLOCK)

    def __init__(self, keys: NameSet) -> None:
        self._keys = keys

    def recover(self, file: BinaryIO) -> Iterator[tuple[str, int]]:
        """The image and the end of every whole sample; what images hold is skipped."""
        size = file.seek(0, 2)
        file.seek(0)
        found: list[str] = []
        image = ""
        while (info := _next_header(file)) is not None:
            body = file.tell()
            end = body + _padded(info.size)
            if end > size:
                return
            key, _, suffix = info.name.rpartition(".")
            found.append(key)
            part = ("", "json", "txt")[len(found) - 1]
            if found[0] != key or part not in ("", suffix):
                raise ValueError(f"{info.name!r} is no part of a sample of annotary")
            if part == "json":
                if info.size > _LARGEST_RECORD:
                    raise ValueError(f"{info.name!r} is no record of an image")
                image = name_of(file.read(info.size), info.name)
            if part == "txt":
                self._keys.add(key)
                yield image, end
                found = []
            file.seek(end)


def open(  # noqa: A001
    output: Path | None,
    options: SinkOptions,
    parts: tuple[str, ...],  # noqa: ARG001
) -> WebDatasetSink:
    """A sink that continues the tar."""
    assert output is not None
    if "%" in output.name or "{" in output.name:
        raise UsageError(f"{output.name} names more than one tar; annotary writes one a run")
    return WebDatasetSink(output, options)


def read(output: Path, options: SinkOptions) -> Iterator[TagsOfImage]:  # noqa: ARG001
    """The tags of every sample's record."""
    try:
        with output.open("rb") as file:
            end = file.seek(0, 2)
            file.seek(0)
            while (info := _next_header(file)) is not None:
                after = file.tell() + _padded(info.size)
                if after > end:
                    return
                if info.name.endswith(".json") and info.size <= _LARGEST_RECORD:
                    yield tags_of(file.read(info.size))
                file.seek(after)
    except OSError as error:
        raise OutputError(f"cannot read {output}: {error.strerror}") from error
    except ValueError as error:
        raise OutputError(f"{output} holds something else: {error}") from error


def _keys_for(item: Item) -> Iterator[str]:
    """What a sample may be called, best first, until one is free."""
    path = PurePosixPath(_path_of(item))
    plain = _plain(str(path.with_suffix("") if path.suffix else path))
    yield plain
    if path.suffix:
        yield f"{plain}_{_plain(path.suffix[1:])}"
    encoded = item.image.encode("utf-8", "backslashreplace")
    number = 0
    while True:
        digest = hashlib.blake2b(encoded, digest_size=8, salt=number.to_bytes(8, "little"))
        yield f"{plain}_{digest.hexdigest()}"
        yield f"{_tail(plain)}_{digest.hexdigest()}"  # for a path that no header of a tar can hold
        number += 1


def _path_of(item: Item) -> str:
    """The path of an image below what was asked for; of an address, what stands behind its scheme."""
    if item.relative:
        return item.relative
    name = re.sub(r"^[a-z]+://", "", item.image, flags=re.I)
    return name.strip("/") or "image"


def _plain(path: str) -> str:
    """A path without dots, and without what makes readers stumble or leave the folder that they unpack to."""
    path = path.encode("utf-8", "replace").decode()
    path = re.sub(r"[\x00-\x1f\x7f.:*?\"<>|]", "_", path)
    path = "/".join(part for part in re.split(r"[/\\]+", path) if part)
    path = re.sub(r"^_{2,}", "_", path)  # webdataset skips names that begin with two
    return path if path.strip("_") else "image"


def _tail(key: str) -> str:
    """The end of a key, in at most 60 bytes."""
    return key.rpartition("/")[2].encode()[-60:].decode("utf-8", "ignore")


def _fits(key: str) -> bool:
    """Whether the plain header of a tar, which all readers know, can hold a member of this key."""
    try:
        tarfile.TarInfo(f"{key}.jpeg").tobuf(tarfile.USTAR_FORMAT, "utf-8")
    except ValueError:
        return False
    return True


def _suffix(item: Item) -> str:
    """The suffix that the first bytes of an image ask for, else the one of its name."""
    assert item.data is not None
    if (asked := suffix_of(item.data)) is not None:
        return asked
    suffix = PurePosixPath(_path_of(item)).suffix[1:].lower()
    is_plain = re.fullmatch(r"[a-z0-9]{1,4}", suffix) and suffix not in ("json", "txt")
    return suffix if is_plain else "bin"


def _member(name: str, data: bytes) -> bytes:
    """A file as it stands in a tar."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    header = info.tobuf(tarfile.USTAR_FORMAT, "utf-8")
    return b"".join((header, data, bytes(_padded(len(data)) - len(data))))


def _next_header(file: BinaryIO) -> tarfile.TarInfo | None:
    """The header that a file goes on with; None at its end, or where it was cut off.

    Raises:
        ValueError: Something else stands there.
    """
    place = file.tell()
    block = file.read(_BLOCK)
    if len(block) < _BLOCK and not block.strip(b"\0"):
        return None
    if not block.strip(b"\0"):
        while rest := file.read(1 << 20):
            if rest.strip(b"\0"):
                raise ValueError(f"the archive ends at byte {place}, and there is more")
        return None
    if len(block) < _BLOCK:
        return None
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.TarError as error:
        raise ValueError(f"there is no file of a tar at byte {place}") from error
    if not info.isreg():
        raise ValueError(f"{info.name!r} is no part of a sample of annotary")
    return info


def _padded(size: int) -> int:
    """A size in bytes, rounded up to whole blocks."""
    return -(-size // _BLOCK) * _BLOCK
