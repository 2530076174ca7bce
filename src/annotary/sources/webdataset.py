"""The images in a tar, on disk or on the web, as WebDataset and others write them: .tar, .tar.gz or .tgz.

One argument may name many tars with braces, `shards/{00000..00146}.tar`. A tar is read once from its begin to its end
and never held whole; an image is named by the tar and its path in it, `shards/00000.tar/key.jpg`. Which members are
taken is told as for files of a folder.

Members that follow one another and have the same path up to the first dot of the file name are one sample, as for
WebDataset. The image of a sample is the one with nothing but an image's suffix behind that dot: beside `key.jpg`,
`key.mask.png` is a part of the sample and not an image of its own. Where there is none, all of its images are taken, so
that photos whose names have dots are not lost.

Directories, links, pipes and devices are not looked at. A member that is larger than allowed, or whose path leads
outside of the archive, is a failure. A tar that is damaged, or a connection that breaks and does not come back, is a
failure that has the tar's name and tells how many images were read, and the next tar follows.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator
from typing import TypeAlias
from urllib.parse import urlsplit

from annotary.errors import UnreachableImage, UsageError
from annotary.records import Failure, Item
from annotary.sources import folder
from annotary.sources._braces import expand
from annotary.sources._members import OUTSIDE, chooser, inner_path
from annotary.sources._options import SourceOptions
from annotary.sources._paths import kind_of, reason
from annotary.sources._rows import is_address
from annotary.sources._shard import Shard
from annotary.sources._tar import ERRORS, Tar, open_tar

SUFFIXES = (".tar", ".tar.gz", ".tgz")
"""Endings of file names, in lower case, that are taken for tars."""

READS_IMAGES = True

MOST_TARS = 100_000
"""How many tars one argument may name."""

MOST_HELD = 16
"""Images of one sample that wait for a better one. A "sample" with more is no sample, but photos with dots in names."""

BACKOFF = 0.5
"""Seconds before a connection that broke is made anew."""

Found: TypeAlias = Item | Failure | None
"""An image, why there is none, or None for one of another shard."""


def accepts(argument: str) -> bool:
    """Whether the argument has a tar's suffix and is an address, a file, or names files with braces."""
    if is_address(argument):
        return urlsplit(argument).path.lower().endswith(SUFFIXES)
    if not argument.lower().endswith(SUFFIXES):
        return False
    return kind_of(argument) == "file" or (
        "{" in argument and kind_of(next(expand(argument))) == "file"
    )


def check(argument: str, options: SourceOptions) -> None:  # noqa: ARG001 - the room's contract
    """Look whether all tars that braces name are there.

    Raises:
        UsageError: One is not, or they are too many.
    """
    for number, place in enumerate(_tars(argument), 1):
        if number > MOST_TARS:
            raise UsageError(f"{argument!r} names more than {MOST_TARS:,} files")
        if not is_address(place) and not kind_of(place):
            raise UsageError(f"no such file: {place!r}, of {argument!r}")


def items(argument: str, options: SourceOptions) -> Iterator[Found]:
    """The images in the tars, in their order."""
    for place in _tars(argument):
        yield from _images_of(place, options)


def looked_for(options: SourceOptions) -> str:
    """What is taken from a tar, for the message that nothing was found."""
    return folder.looked_for(options).rpartition(" in it ")[0]


def _tars(argument: str) -> Iterator[str]:
    """The names that an argument stands for; that of a file that exists is never one with braces."""
    if "{" not in argument or (not is_address(argument) and kind_of(argument)):
        return iter((argument,))
    return expand(argument)


def _images_of(place: str, options: SourceOptions) -> Iterator[Found]:
    """The images of one tar."""
    count = 0
    try:
        with _open(place, options) as file, open_tar(file) as archive:
            for found in _best_of_samples(_images(archive, place, options)):
                count += not isinstance(found, Failure)
                yield found
    except UnreachableImage as error:
        why = str(error)
    except OSError as error:
        why = reason(error)
    except ERRORS as error:
        why = str(error)
    else:
        return
    many = f"{count:,} image{'s' if count > 1 else ''}"
    told = f"only {many} of this archive could be read" if count else "this archive cannot be read"
    yield Failure.of(place, UnreachableImage(f"{told}: {why}"))


def _open(place: str, options: SourceOptions) -> io.BufferedReader:
    if not is_address(place):
        return open(place, "rb")
    # Imported here: most runs are on local files and need no HTTP client.
    from annotary.sources._download import RemoteFile

    return io.BufferedReader(RemoteFile(place, options, backoff=BACKOFF), 256 * 1024)


def _images(archive: Tar, place: str, options: SourceOptions) -> Iterator[tuple[str, Found]]:
    """The members that are taken, and their paths."""
    is_taken = chooser(options)
    shard = Shard.of(options.shard)
    for member in archive:
        if member.isreg() and is_taken(member.name):
            path = inner_path(member.name)
            if not path:
                failure = Failure.of(f"{place}/{member.name}", UnreachableImage(OUTSIDE))
                yield member.name, failure
            else:
                is_here = shard.has(path)
                yield (
                    path,
                    _image(archive, member, place, path, options.max_bytes) if is_here else None,
                )


def _image(
    archive: Tar, member: tarfile.TarInfo, place: str, path: str, max_bytes: int
) -> Item | Failure:
    name = f"{place}/{path}"
    if member.size > max_bytes:
        return Failure.of(name, UnreachableImage(f"larger than {max_bytes:,} bytes (--max-bytes)"))
    if member.issparse():
        return Failure.of(name, UnreachableImage("a sparse file, which is not read from archives"))
    return Item(name, data=archive.content(member), relative=path)


def _best_of_samples(members: Iterable[tuple[str, Found]]) -> Iterator[Found]:
    """Of each sample its image, or its images when none is better than the others."""
    sample = ""
    has_image = False
    held: list[Found] = []
    try:
        for path, found in members:
            key, ending = _split(path)
            if key != sample:
                yield from held
                sample, has_image, held = key, False, []
            if "." not in ending:
                held.clear()
                has_image = True
                yield found
            elif not has_image:
                held.append(found)
                if len(held) > MOST_HELD:
                    yield from held
                    held.clear()
    except Exception:
        yield from held  # what was read before the archive broke off
        raise
    yield from held


def _split(path: str) -> tuple[str, str]:
    """The key of a member's sample, and what stands behind the dot that ends it."""
    start = path.rfind("/") + 1
    stem, _, ending = path[start:].partition(".")
    return path[:start] + stem, ending
