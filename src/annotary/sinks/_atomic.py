"""Writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from annotary.errors import OutputError

_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


def write_atomically(path: Path, content: str | bytes, *, is_durable: bool = False) -> None:
    """Write a file so that a killed process leaves the old one or the new one, never a part.

    Args:
        path: The file; folders that are missing are made.
        content: Text is written as UTF-8, with its line ends as they are.
        is_durable: As `replacing` has it.

    Raises:
        OutputError: It cannot be written; the old file, if any, is as it was.
    """
    try:
        with replacing(path, is_durable=is_durable) as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


@contextlib.contextmanager
def replacing(path: Path, *, is_durable: bool = False) -> Iterator[BinaryIO]:
    """A new file that takes a file's place at the end, if all goes well; if not, nothing is left of it.

    A link is followed; mode and extended attributes of an existing file are kept.

    Args:
        path: The file; folders that are missing are made.
        is_durable: Whether the disk must have the new file before the old one goes, so that even a loss of power keeps
            one of them. It costs a wait for the disk.

    Raises:
        OSError: It cannot be written; the old file, if any, is as it was.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(target) as temporary:
        try:
            with temporary.open("wb") as file:
                yield file
                if is_durable:
                    file.flush()
                    os.fsync(file.fileno())
            with contextlib.suppress(FileNotFoundError):
                # Flags of BSD and macOS may make a file that nobody can rename or remove: they are not copied.
                has_flags = getattr(target.stat(), "st_flags", 0) != 0
                (shutil.copymode if has_flags else shutil.copystat)(target, temporary)
                os.utime(temporary)
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """The name of a file beside another that nobody else writes meanwhile.

    It is named by its target and locked, so that processes with the same target wait for each other, and what a killed
    one left is used up by the next. Where nothing can be locked, the name has the process in it instead.
    """
    digest = hashlib.blake2b(os.fsencode(target.name), digest_size=8).hexdigest()
    shared = target.with_name(f".annotary-{digest}.tmp")
    descriptor = _locked(shared)
    try:
        own = target.with_name(f".annotary-{digest}-{os.getpid()}.tmp")
        yield own if descriptor is None else shared
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _locked(path: Path) -> int | None:
    """A file that is made if need be, opened, and locked until it is closed; None where that cannot be."""
    try:
        import fcntl
    except ImportError:
        return None
    while True:
        try:
            descriptor = os.open(path, _FLAGS, 0o666)
        except OSError:  # it has the mode of a target that cannot be written; or opening the file tells what is wrong
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(descriptor), path.lstat()):
                return descriptor
        except FileNotFoundError:
            pass  # whoever had the lock made it the target, or gave it up
        except OSError:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
